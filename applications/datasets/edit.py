"""Datasets from datasets: mirror, rebalance, merge, split, repack. Images keep their bytes unless they are flipped."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from applications.preprocessing.pool import WorkFolder
from dnnlib import UserError
from dnnlib.files import explain_os_error
from training.cameras import camera_angles
from training.dataset import HeadDataset
from training.dataset_format import encode_png
from training.dataset_shards import ShardedWriter
from training.dataset_writer import DatasetWriter, refuse_to_replace, replace_folder
from training.head.model import HeadInput, HeadModel, HeadParams

Writer = DatasetWriter | ShardedWriter
Progress = Callable[[Iterable, int, str], Iterable]  # items, how many, what they are
BLOCK = 64  # images in flight: bounds memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Items of one dataset and what they are called in the new one."""

    dataset: HeadDataset
    items: np.ndarray  # [N] int64
    identities: np.ndarray | None = None  # [N]
    clips: np.ndarray | None = None  # [N, 2] clip, frame number


def select(dataset: HeadDataset, items: Sequence[int] | np.ndarray) -> Selection:
    """Items with the numbers that the dataset gives them; mirrored items are the same person in another clip."""
    chosen = np.asarray(items, dtype=np.int64).reshape(-1)
    rows, mirrored = chosen % len(dataset.names), chosen >= len(dataset.names)
    identities = None if dataset.identities is None else dataset.identities.numpy()[rows]
    clips = None
    if dataset.clips is not None:
        ids, frames = (values.numpy() for values in dataset.clips)
        clips = np.stack([ids[rows] + mirrored * (ids.max() - ids.min() + 1), frames[rows]], axis=1)
    return Selection(dataset=dataset, items=chosen, identities=identities, clips=clips)


def open_writer(
    out: str | os.PathLike[str], *, like: HeadDataset, shard_size: int | None = None, overwrite: bool = False
) -> Writer:
    """A writer for images and heads of the kind of `like`: a zip, a folder, or a folder of zips."""
    layout = like.heads_layout
    options: dict[str, Any] = {
        'resolution': like.resolution,
        'head_model': '' if layout is None else layout[0],
        'head_model_hash': '' if layout is None else layout[1],
        'overwrite': overwrite,
    }
    return DatasetWriter(out, **options) if shard_size is None else ShardedWriter(out, shard_size=shard_size, **options)


def _silent(items: Iterable, total: int, what: str) -> Iterable:
    return items


def write(
    writer: Writer,
    selections: Sequence[Selection],
    *,
    workers: int = 4,
    progress: Progress = _silent,
    kept: WorkFolder | None = None,
) -> None:
    """Append the items of all selections in order; `workers` threads read, and flip where an item is mirrored.

    Encoding what was flipped takes nearly all the time, so `kept` holds it for the next run if this one is interrupted.
    """
    total = sum(len(selection.items) for selection in selections)
    with ThreadPoolExecutor(workers) as pool:
        for image, item in progress(_items(selections, pool, kept), total, 'images'):
            writer.add(image, **item)


def _items(
    selections: Sequence[Selection], pool: ThreadPoolExecutor, kept: WorkFolder | None
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for selection in selections:
        dataset = selection.dataset
        for start in range(0, len(selection.items), BLOCK):
            block = slice(start, start + BLOCK)
            items = selection.items[block]
            images = _images(dataset, items.tolist(), pool, kept)
            labels, heads = dataset.label(items), _heads(dataset, items)
            for i, image in enumerate(images):
                yield (
                    image,
                    {
                        'label': labels[i],
                        'head': None if heads is None else heads[[i]],
                        'identity_id': None if selection.identities is None else int(selection.identities[block][i]),
                        'clip': None if selection.clips is None else tuple(selection.clips[block][i].tolist()),
                    },
                )


def _images(
    dataset: HeadDataset, items: list[int], pool: ThreadPoolExecutor, kept: WorkFolder | None
) -> Iterable[bytes]:
    """The bytes of a block's images; of a block with mirrored ones from `kept`, if it has them."""
    if kept is None or max(items) < len(dataset.names):
        return pool.map(functools.partial(_image, dataset), items)
    key = f'{dataset.content_hash} {items}'
    found: list[bytes] | None = kept.load(key)
    if found is None:
        found = list(pool.map(functools.partial(_image, dataset), items))
        kept.save(key, found)
    return found


def _heads(dataset: HeadDataset, items: np.ndarray) -> HeadParams | HeadInput | None:
    if dataset.heads_layout is None:
        return None
    params = dataset.head_params(items)
    return dataset.head_input(items) if params is None else params


def _image(dataset: HeadDataset, item: int) -> bytes:
    if item < len(dataset.names):
        return dataset.image_bytes(item)
    return encode_png(np.ascontiguousarray(dataset.decode(item).transpose(1, 2, 0)))


# What each command keeps.


def rebalanced_rows(labels: Any, *, bins: int, max_copies: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to write, images per yaw bin before and after.

    The range of yaw (symmetric about 0) is cut into `bins` of one width. Each image of a bin is written
    round(fullest bin / this bin) times, at least once and at most `max_copies` times. All images come once in
    their order, then all second copies, and so on.
    """
    yaw = camera_angles(labels)[:, 0]
    reach = max(float(np.abs(yaw).max()), 1e-6)
    bin_of = np.minimum(((yaw + reach) / (2 * reach) * bins).astype(np.int64), bins - 1)
    before = np.bincount(bin_of, minlength=bins)
    copies = np.clip(np.round(before.max() / np.maximum(before, 1)).astype(np.int64), 1, max_copies)
    rows = np.concatenate([np.flatnonzero(copies[bin_of] > turn) for turn in range(int(copies[bin_of].max()))])
    return rows, before, before * copies


def merged(datasets: Sequence[HeadDataset]) -> list[Selection]:
    """All items of all datasets, persons and clips numbered apart; UserError if they do not go together.

    Where only some datasets know persons (clips), each image of the others counts as a person (a clip) of its own.
    """
    first = datasets[0]
    for other in datasets[1:]:
        if other.resolution != first.resolution:
            raise UserError(
                f'{other.path}: holds {other.resolution} px images, {first.path} {first.resolution} px; resize one'
            )
        mine, theirs = (
            None if d.heads_layout is None else (*d.heads_layout[:2], d.heads_layout[3]) for d in (first, other)
        )
        if mine != theirs:
            names = [d.head_model_name or 'no heads' for d in (first, other)]
            raise UserError(
                f'{other.path}: its heads ({names[1]}) are not of the kind of {first.path} ({names[0]}): another model,'
                ' file or kind; fit both datasets with the same head model'
            )
    selections = [select(dataset, np.arange(len(dataset.names))) for dataset in datasets]
    if any(selection.identities is not None for selection in selections):
        selections = _number_apart(selections, 'identities')
    if any(selection.clips is not None for selection in selections):
        selections = _number_apart(selections, 'clips')
    return selections


def _number_apart(selections: list[Selection], field: str) -> list[Selection]:
    """Numbers of `field` from 0 on, no number in two datasets."""
    result, start = [], 0
    for selection in selections:
        values = getattr(selection, field)
        count = len(selection.items)
        if field == 'clips':
            values = np.stack([np.arange(count), np.zeros(count, np.int64)], axis=1) if values is None else values
            _, ids = np.unique(values[:, 0], return_inverse=True)
            numbered = dataclasses.replace(selection, clips=np.stack([ids + start, values[:, 1]], axis=1))
        else:
            ids = np.arange(count) if values is None else np.unique(values, return_inverse=True)[1]
            numbered = dataclasses.replace(selection, identities=ids + start)
        start += int(ids.max()) + 1
        result.append(numbered)
    return result


def split_rows(dataset: HeadDataset, count: int, *, seed: int, by_identity: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two parts in their order, `count` images in the first (or as many as whole persons allow).

    `by_identity`: no person is in both parts; clips count as persons where only clips are known. UserError if
    a part would stay empty, or persons are asked for and unknown.
    """
    total = len(dataset.names)
    groups = np.arange(total)
    if by_identity:
        known = (
            dataset.identities
            if dataset.identities is not None
            else None
            if dataset.clips is None
            else dataset.clips[0]
        )
        if known is None:
            raise UserError(f'{dataset.path}: does not say which images show one person; pass --by-image')
        groups = np.unique(known.numpy(), return_inverse=True)[1]
    sizes = np.bincount(groups)
    order = np.random.default_rng(seed).permutation(len(sizes))
    reached = np.cumsum(sizes[order])
    taken = int(np.abs(np.array([0, *reached]) - count).argmin())
    taken = min(max(taken, 1), len(order) - 1)
    if len(order) < 2 or not 0 < count < total:
        raise UserError(
            f'{dataset.path}: {total} images of {len(order)} groups cannot be split at {count}; ask for fewer'
        )
    chosen = np.isin(groups, order[:taken])
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


@contextlib.contextmanager
def open_pair(first: str, second: str, *, overwrite: bool = False, **options: Any) -> Iterator[list[Writer]]:
    """Two writers (`options`: as open_writer); neither dataset appears before both are complete."""
    paths = [Path(first), Path(second)]
    if paths[0].absolute() == paths[1].absolute():
        raise UserError(f'{first}: named twice; give the second part another name')
    for path in paths:
        refuse_to_replace(path, overwrite=overwrite)
    parts = [path.with_name(f'.{path.stem}.{os.getpid()}.part{path.suffix}') for path in paths]
    writers: list[Writer] = []
    try:
        writers += [open_writer(part, **options) for part in parts]
        yield writers
        for writer in writers:
            writer.close()
        for part, path in zip(parts, paths, strict=True):
            try:
                replace_folder(part, path) if part.is_dir() else os.replace(part, path)
            except OSError as error:
                raise explain_os_error(error, path) from error
    finally:
        for writer in writers:
            writer.discard()
        for part in parts:
            shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)


def open_dataset(
    path: str | os.PathLike[str], *, head_model: HeadModel | None = None, mirror: bool = False
) -> HeadDataset:
    """The dataset without a cache of decoded images."""
    return HeadDataset(Path(path), head_model=head_model, mirror=mirror, cache_bytes=0)
