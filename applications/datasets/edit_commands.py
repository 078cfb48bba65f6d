"""dataset_tool.py's commands that turn datasets into other datasets, or into pictures."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from dnnlib import UserError
from dnnlib.cli import Command

if TYPE_CHECKING:
    from applications.datasets.edit import Selection
    from applications.preprocessing.pool import WorkFolder
    from training.head.model import HeadModel

_OUT = click.option('--out', required=True, help='Dataset to write: a name ending in .zip, or a folder.')
_SHARD_SIZE = click.option(
    '--shard-size', type=click.IntRange(min=1), help='Write a folder of zips with at most this many images each.'
)
_WORKERS = click.option(
    '--workers', type=click.IntRange(min=1), default=4, show_default=True, help='Threads that read and encode images.'
)
_OVERWRITE = click.option('--overwrite', is_flag=True, help='Replace a dataset at the output.')
_HEAD_MODEL = click.option('--head-model', help="The user's FLAME file, for datasets made with FLAME.")


def _writing(command: Callable) -> Callable:
    for option in (_OVERWRITE, _WORKERS, _SHARD_SIZE, _OUT):
        command = option(command)
    return command


def _progress(items: Iterable, total: int, what: str) -> Iterable:
    from tqdm import tqdm

    return tqdm(items, total=total, desc=what, leave=False)


def _load_model(path: str | None) -> HeadModel | None:
    from training.head import load_head_model

    return None if path is None else load_head_model('flame', path=path)


@contextlib.contextmanager
def _timed(*, out: str, count: int) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds = max(time.perf_counter() - started, 1e-9)
    click.echo(f'{out}: {count} images in {seconds:.1f} s ({count / seconds:.0f} images/s)')


def _write(
    out: str,
    selections: list[Selection],
    *,
    shard_size: int | None,
    workers: int,
    overwrite: bool,
    kept: WorkFolder | None = None,
) -> None:
    from applications.datasets.edit import open_writer, write

    with _timed(out=out, count=sum(len(selection.items) for selection in selections)):
        like = selections[0].dataset
        with open_writer(out, like=like, shard_size=shard_size, overwrite=overwrite) as writer:
            write(writer, selections, workers=workers, progress=_progress, kept=kept)


@click.command('mirror', cls=Command)
@click.argument('path')
@_writing
@click.option('--restart', is_flag=True, help='Begin anew instead of continuing an interrupted run.')
@_HEAD_MODEL
def mirror(path: str, head_model: str | None, out: str, restart: bool, **options: Any) -> None:
    """Write the images of PATH, then all their mirror images.

    Picture, camera, head parameters or mesh and landmarks change sides together. A mirrored image shows the
    same person; a mirrored clip is a clip of its own. train.py --mirror=1 gives the same items without the
    disk space (exactly so for meshes and the embedded head; FLAME's parameters have no exact mirror image).
    Mirrored pictures are encoded as PNG, the others keep their bytes. A run that was interrupted continues when it
    is started again: encoded pictures wait in OUT-work.

    \b
    Example:
      python dataset_tool.py mirror data/faces.zip --out=data/faces-mirrored.zip
    """
    import numpy as np

    from applications.datasets.edit import open_dataset, select
    from applications.datasets.kept import kept_work

    dataset = open_dataset(path, head_model=_load_model(head_model), mirror=True)
    with kept_work(out, what='encoded pictures', restart=restart, log=click.echo) as kept:
        _write(out, [select(dataset, np.arange(len(dataset)))], kept=kept, **options)


@click.command('rebalance', cls=Command)
@click.argument('path')
@_writing
@click.option('--bins', type=click.IntRange(min=2), default=9, show_default=True, help='Bins over the range of yaw.')
@click.option(
    '--max-copies', type=click.IntRange(min=2), default=8, show_default=True, help='Of one image, itself included.'
)
def rebalance(path: str, bins: int, max_copies: int, out: str, **options: Any) -> None:
    """Repeat images of rare yaws, as EG3D's rebalanced FFHQ does.

    The range of yaw is cut into bins of one width; an image of a bin is written (fullest bin / its bin) times,
    rounded, at most --max-copies times. Every copy is a file of its own, so that any reader of EG3D's
    format takes the dataset; the disk space is that of all copies. Keep copies out of test sets: split first.

    \b
    Example:
      python dataset_tool.py rebalance data/ffhq.zip --out=data/ffhq-rebalanced.zip --bins=9 --max-copies=8
    """
    import numpy as np

    from applications.datasets.edit import open_dataset, rebalanced_rows, select
    from training.cameras import camera_angles

    dataset = open_dataset(path)
    rows, before, after = rebalanced_rows(dataset.labels, bins=bins, max_copies=max_copies)
    reach = float(np.degrees(np.abs(camera_angles(dataset.labels)[:, 0]).max()))
    edges = np.linspace(-reach, reach, bins + 1)
    click.echo('yaw (degrees)        before     after')
    for i in range(bins):
        click.echo(f'{edges[i]:7.1f} .. {edges[i + 1]:6.1f}  {before[i]:9d} {after[i]:9d}')
    _write(out, [select(dataset, rows)], **options)


@click.command('merge', cls=Command)
@click.argument('paths', nargs=-1, required=True)
@_writing
def merge(paths: tuple[str, ...], out: str, **options: Any) -> None:
    """Write the images of several datasets into one.

    They must have one resolution and heads of one model. Persons and clips are numbered apart. Where only
    some datasets know persons (or clips), each image of the others counts as a person (a clip) of its own.

    \b
    Example:
      python dataset_tool.py merge data/photos.zip data/videos.zip --out=data/all.zip
    """
    from applications.datasets.edit import merged, open_dataset

    if len(paths) < 2:
        raise UserError('merge: expected at least two datasets; `repack` copies one')
    _write(out, merged([open_dataset(path) for path in paths]), **options)


@click.command('repack', cls=Command)
@click.argument('path')
@_writing
def repack(path: str, out: str, **options: Any) -> None:
    """Write the same dataset as a zip, a folder, or a folder of zips (--shard-size).

    A folder of zips opens by its own name everywhere. A shard that is missing or damaged is an error that
    names it.

    \b
    Examples:
      python dataset_tool.py repack data/ffhq512.zip --out=data/ffhq512 --shard-size=10000
      python dataset_tool.py repack data/ffhq512 --out=data/one.zip
    """
    import numpy as np

    from applications.datasets.edit import open_dataset, select

    dataset = open_dataset(path)
    _write(out, [select(dataset, np.arange(len(dataset)))], **options)


@click.command('split', cls=Command)
@click.argument('path')
@click.option('--out-a', required=True, help='The first part: a name ending in .zip, or a folder.')
@click.option('--out-b', required=True, help='The rest.')
@click.option('--fraction', type=click.FloatRange(0, 1, min_open=True, max_open=True), help='Share of the first part.')
@click.option('--count', type=click.IntRange(min=1), help='Images of the first part.')
@click.option('--seed', type=click.IntRange(min=0), default=0, show_default=True, help='Which images or persons.')
@click.option('--by-identity/--by-image', default=True, show_default=True, help='Keep persons together.')
@_SHARD_SIZE
@_WORKERS
@_OVERWRITE
def split(
    path: str,
    out_a: str,
    out_b: str,
    fraction: float | None,
    count: int | None,
    seed: int,
    by_identity: bool,
    shard_size: int | None,
    workers: int,
    overwrite: bool,
) -> None:
    """Cut a dataset into two, no person in both.

    Whole persons are drawn for the first part until it is as near to the wanted size as persons allow. Where
    only clips are known, clips are kept together. Datasets that know neither need --by-image.

    \b
    Examples:
      python dataset_tool.py split data/all.zip --out-a=data/train.zip --out-b=data/test.zip --fraction=0.9
      python dataset_tool.py split data/ffhq.zip --out-a=a.zip --out-b=b.zip --count=60000 --by-image
    """
    from applications.datasets.edit import open_dataset, open_pair, select, split_rows, write

    if (fraction is None) == (count is None):
        raise UserError('split: give one of --fraction and --count, the size of the first part')
    dataset = open_dataset(path)
    wanted = count if count is not None else round((fraction or 0) * len(dataset))
    parts = split_rows(dataset, wanted, seed=seed, by_identity=by_identity)

    with _timed(out=f'{out_a} ({len(parts[0])}) and {out_b} ({len(parts[1])})', count=len(dataset)):
        with open_pair(out_a, out_b, like=dataset, shard_size=shard_size, overwrite=overwrite) as writers:
            for writer, rows in zip(writers, parts, strict=True):
                write(writer, [select(dataset, rows)], workers=workers, progress=_progress)


@click.command('stats', cls=Command)
@click.argument('path')
@click.option('--out', default='stats.png', show_default=True, help='The picture to write.')
@click.option('--json', 'as_json', is_flag=True, help='Print the numbers as JSON instead of a table.')
@click.option('--targets', default='jawOpen,eyeBlinkLeft,eyeBlinkRight', show_default=True, help='Named expressions.')
@_HEAD_MODEL
def stats(path: str, out: str, as_json: bool, targets: str, head_model: str | None) -> None:
    """Draw histograms of cameras, expressions, gaze and persons, and print a table.

    Yaw, pitch and roll of the camera and of both eyes in degrees, the distance of the camera, the jaw's
    angle, the mean of the absolute expression coefficients, the weights of --targets (embedded head only;
    1 is a closed lid), images per person. Datasets of meshes have the openings of mouth and lids in millimetres.

    \b
    Example:
      python dataset_tool.py stats data/synth64.zip --out=stats.png
    """
    from applications.datasets.edit import open_dataset
    from applications.datasets.stats import draw_histograms, measure, summary
    from dnnlib.files import atomic_write

    started = time.perf_counter()
    dataset = open_dataset(path, head_model=_load_model(head_model))
    names = [name.strip() for name in targets.split(',') if name.strip()]
    values = measure(dataset, targets=names)
    with atomic_write(out) as handle:
        draw_histograms(values).save(handle, format='PNG')
    if as_json:
        click.echo(json.dumps({'images': len(dataset), 'stats': summary(values)}, indent=2))
        return
    click.echo(_table(summary(values)))
    seconds = max(time.perf_counter() - started, 1e-9)
    click.echo(f'{out}: {len(dataset)} images in {seconds:.1f} s ({len(dataset) / seconds:.0f} images/s)')


def _table(rows: dict[str, dict[str, float]]) -> str:
    columns = ('mean', 'std', 'min', '5%', '50%', '95%', 'max')
    lines = [f'{"":28}' + ''.join(f'{name:>9}' for name in columns)]
    lines += [f'{name:28}' + ''.join(f'{row[column]:9.3f}' for column in columns) for name, row in rows.items()]
    return '\n'.join(lines)


COMMANDS: tuple[click.Command, ...] = (stats, mirror, rebalance, merge, split, repack)
