"""Make, check and convert training sets."""

from __future__ import annotations

from collections.abc import Iterable

import click

from applications.datasets import edit_commands, fit_commands, import_commands
from dnnlib.cli import Group


@click.group(cls=Group, context_settings={'max_content_width': 110})
def main() -> None:
    """Make and check training sets.

    \b
    A dataset is one .zip (or one folder) with
      00000/img00000000.png ...  8-bit RGB images, square, all of one size (a power of two)
      dataset.json               {"labels": [[name, [25 numbers]], ...]}: camera per image (EG3D's layout)
      head.npz                   head parameters, or vertices and landmarks, per image

    The 25 numbers: cam2world 4 x 4 by rows (camera axes x right, y down, z forward), then the 3 x 3
    intrinsics by rows in units of the image side. Each subcommand has its own --help.
    """


@main.command()
@click.option('--out', required=True, help='Dataset to write: a name ending in .zip, or a folder.')
@click.option('--num', default=4000, show_default=True, help='Images; four in a row show one person.')
@click.option('--resolution', default=64, show_default=True, help='Image side in pixels, a power of two.')
@click.option(
    '--seed', type=click.IntRange(min=0), default=0, show_default=True, help='The same seed gives the same file.'
)
@click.option('--workers', type=click.IntRange(min=0), help='Processes; 0: only this one. Default: one a core.')
@click.option('--restart', is_flag=True, help='Begin anew instead of continuing an interrupted run.')
@click.option('--overwrite', is_flag=True, help='Replace a dataset at --out.')
def synth(out: str, num: int, resolution: int, seed: int, workers: int | None, restart: bool, overwrite: bool) -> None:
    """Render heads of the embedded CC0 model with exact labels.

    Identity, skin, hair, glasses, clothes, light and background vary, and expression, gaze, neck pose
    and camera are independent of them. Enough to train, test and demonstrate without any download. A run that
    was interrupted continues when it is started again: finished images wait in OUT-work.

    \b
    Examples:
      python dataset_tool.py synth --out=data/synth64.zip
      python dataset_tool.py synth --out=data/tiny.zip --num=64 --resolution=32 --workers=2
    """
    from applications.datasets.kept import kept_work
    from training.synthetic import generate

    with kept_work(out, what='images', restart=restart, log=click.echo) as kept:
        generate(out, num=num, resolution=resolution, seed=seed, workers=workers, overwrite=overwrite, kept=kept)
    click.echo(f'{out}: {num} images of {resolution} x {resolution}; check it with: dataset_tool.py validate {out}')


@main.command()
@click.argument('path')
@click.option('--overlay', metavar='PNG', help='Also draw meshes and landmarks over some images into this picture.')
@click.option('--count', type=click.IntRange(min=1), default=16, show_default=True, help='Images on the overlay sheet.')
@click.option('--head-model', help="The user's FLAME file, for datasets made with FLAME.")
@click.option('--workers', type=click.IntRange(min=1), default=4, show_default=True, help='Threads that read images.')
@click.option('--all', 'list_all', is_flag=True, help='List every finding, not only the first five of a kind.')
def validate(path: str, overlay: str | None, count: int, head_model: str | None, workers: int, list_all: bool) -> None:
    """Check a dataset (PATH: zip or folder) and say how to repair what is wrong.

    One line per finding: severity, item, problem, remedy. Exit status 1 if there is an error. Checked:
    labels without images and images without labels, length and finiteness of labels, rotations and
    intrinsics, constant labels, damaged images, their sizes and colour modes, duplicate names, rows
    of head.npz against images, the head model's content, and heads that project out of the picture.

    The overlay sheet shows whether head and picture agree: wires must sit on the face, red landmarks on
    eyes, nose, mouth and jaw, green dots on the irises. Items with findings come first. Without heads the neutral
    embedded head is drawn, which shows whether the cameras follow the convention.

    \b
    Examples:
      python dataset_tool.py validate data/synth64.zip
      python dataset_tool.py validate data/faces.zip --overlay=overlay.png --count=36
    """
    from PIL import Image
    from tqdm import tqdm

    from applications.preprocessing.validate import draw_sheet
    from applications.preprocessing.validate import validate as check
    from dnnlib.files import atomic_write
    from training.head import load_head_model

    def progress(items: Iterable, total: int, what: str) -> Iterable:
        return tqdm(items, total=total, desc=what, leave=False)

    model = None if head_model is None else load_head_model('flame', path=head_model)
    report = check(path, head_model=model, threads=workers, progress=progress)
    for line in report.lines(limit=None if list_all else 5):
        click.echo(line)
    click.echo(report.summary())
    if overlay is not None:
        sheet = Image.fromarray(draw_sheet(path, report, head_model=model, count=count))
        with atomic_write(overlay) as handle:
            sheet.save(handle, format='PNG')
        click.echo(f'overlay: {overlay}')
    if report.count('error'):
        raise click.exceptions.Exit(1)


for command in (*fit_commands.COMMANDS, *import_commands.COMMANDS, *edit_commands.COMMANDS):
    main.add_command(command)


if __name__ == '__main__':
    main()
