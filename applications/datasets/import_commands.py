"""dataset_tool.py's commands that import other formats: from-release, from-deca, from-smirk, from-eg3d."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from dnnlib.cli import Command

_SHARED = (
    click.option('--out', required=True, help='Dataset to write: a name ending in .zip, or a folder.'),
    click.option('--resolution', type=int, help='Image side, a power of two. Default: that of the first image.'),
    click.option('--resize', is_flag=True, help='Resample square images of another size; else they are rejected.'),
    click.option('--workers', type=click.IntRange(min=0), help='Reading processes; 0: none. Default: one a core.'),
    click.option('--overwrite', is_flag=True, help='Replace a dataset at --out.'),
)
_RESTART = click.option('--restart', is_flag=True, help='With --fit: begin anew instead of continuing.')
_FLAME_HELP = "The user's FLAME 2020 file (generic_model.pkl) or its folder."


def _shared_options(command: Callable) -> Callable:
    for option in reversed(_SHARED):
        command = option(command)
    return command


def _target(values: dict[str, Any]) -> Any:
    from applications.datasets.imports import Target

    return Target(**values)


@click.command('from-release', cls=Command)
@click.option('--source', required=True, help='Folder that holds images512x512, meshes512x512 and lms512x512.')
@click.option('--labels', help='Label file. Default: dataset.json (or the only dataset*.json) beside the images.')
@click.option('--head-model', help="The user's FLAME file, or makehuman: the model that the meshes belong to.")
@click.option('--fit', is_flag=True, help='Store head parameters fitted to the meshes (needs --head-model).')
@_RESTART
@click.option('--mesh-scale', default=1.0, show_default=True, help='Metres in a unit of the meshes and landmarks.')
@_shared_options
def from_release(
    source: str, labels: str | None, head_model: str | None, fit: bool, restart: bool, mesh_scale: float, **target: Any
) -> None:
    """Convert the training data of Next3D's public release.

    One OBJ and one text of 68 landmarks an image become rows of one file: 16-bit vertices and landmarks (30 KB
    an image for FLAME; the rounding error is printed), or with --fit head parameters (under 1 KB; the error of the
    fit is printed in millimetres). Meshes must be in the head frame: metres, y up, face to +z, as DECA writes them
    when its global rotation is zero. Labels with more than 25 numbers keep the first 25.

    Whatever is missing or damaged is listed with its reason in OUT-report/rejects.csv; OUT-report/items.csv
    says which image became which. With --fit a run that was interrupted continues when it is started again: finished
    fits wait in OUT-work.

    \b
    Examples:
      python dataset_tool.py from-release --source=ffhq --out=data/ffhq512.zip
      python dataset_tool.py from-release --source=ffhq --out=data/ffhq512.zip --fit --head-model=generic_model.pkl
    """
    from applications.datasets.imports import import_release

    import_release(
        source,
        target=_target(target),
        labels=labels,
        head_model=head_model,
        scale=mesh_scale,
        fit=fit,
        restart=restart,
        log=click.echo,
    )


@click.command('from-deca', cls=Command)
@click.option(
    '--params', required=True, help="Folder of DECA's files: one .npy, .npz, .pkl, .pt, .mat or .json an image."
)
@click.option('--images', help='Folder or zip of the squares that DECA saw. Without it --out is an .npz of parameters.')
@click.option('--labels', help="EG3D's dataset.json for these images. Default: cameras from DECA's own.")
@click.option('--head-model', required=True, help=_FLAME_HELP)
@click.option('--eyes', help='Folder of eye poses, one file an image: 6 numbers (axis-angles), or 4 (pitch and yaw).')
@_shared_options
def from_deca(
    params: str, images: str | None, labels: str | None, head_model: str, eyes: str | None, **target: Any
) -> None:
    """Turn DECA's parameter files into head parameters and cameras.

    Read are shape, exp, pose (global turn and jaw) and cam, and where they are stored tform and eye_pose; EMOCA's
    names are understood too. Files are read without running anything in them. The global turn becomes the camera's;
    without --labels the orthographic camera is converted to the perspective one of the 25 numbers (focal length
    4.2647), which puts the middle of the face exactly where DECA's puts it.

    \b
    Examples:
      python dataset_tool.py from-deca --params=deca --images=crops --head-model=generic_model.pkl --out=data/faces.zip
      python dataset_tool.py from-deca --params=deca --head-model=generic_model.pkl --out=drive.npz
    """
    from applications.datasets.imports import Tracker, import_tracker

    tracker = Tracker(kind='deca', folder=params, eyes=eyes)
    import_tracker(tracker, images=images, target=_target(target), labels=labels, head_model=head_model, log=click.echo)


@click.command('from-smirk', cls=Command)
@click.option(
    '--params', required=True, help="Folder of SMIRK's files: one .npz, .npy, .pkl, .pt, .mat or .json an image."
)
@click.option(
    '--images', help='Folder or zip of the squares that SMIRK saw. Without it --out is an .npz of parameters.'
)
@click.option('--labels', help="EG3D's dataset.json for these images. Default: cameras from SMIRK's own.")
@click.option('--head-model', required=True, help=_FLAME_HELP)
@click.option('--eyes', help='Folder of eye poses, one file an image: 6 numbers (axis-angles), or 4 (pitch and yaw).')
@click.option('--eyelids', help="Folder of SMIRK's l_eyelid.npy and r_eyelid.npy, to keep blinks.")
@_shared_options
def from_smirk(
    params: str,
    images: str | None,
    labels: str | None,
    head_model: str,
    eyes: str | None,
    eyelids: str | None,
    **target: Any,
) -> None:
    """Turn SMIRK's parameter files into head parameters and cameras.

    Read are shape_params (the first 100), expression_params, pose_params, jaw_params, cam and eyelid_params. FLAME
    has no lid parameters: with --eyelids the closed lids become the nearest expression coefficients, without it they
    are lost and the number of images concerned is printed. Cameras: see from-deca.

    \b
    Example:
      python dataset_tool.py from-smirk --params=smirk --images=crops --head-model=generic_model.pkl --out=faces.zip
    """
    from applications.datasets.imports import Tracker, import_tracker

    tracker = Tracker(kind='smirk', folder=params, eyes=eyes, eyelids=eyelids)
    import_tracker(tracker, images=images, target=_target(target), labels=labels, head_model=head_model, log=click.echo)


@click.command('from-eg3d', cls=Command)
@click.option('--data', required=True, help='EG3D dataset: zip or folder with images and dataset.json.')
@click.option('--labels', help='Label file instead of the dataset.json inside.')
@click.option('--deca', help="Heads from DECA's parameter files in this folder (needs --head-model).")
@click.option('--smirk', help="Heads from SMIRK's parameter files in this folder (needs --head-model).")
@click.option('--params', help='Heads from an .npz of head parameters, with an array "names" or in the images\' order.')
@click.option('--meshes', help='Heads from OBJ files in this folder.')
@click.option('--landmarks', help='Texts of 68 landmarks for --meshes. Default: those of the head model.')
@click.option('--fit', is_flag=True, help='Store head parameters fitted to --meshes.')
@_RESTART
@click.option('--mesh-scale', default=1.0, show_default=True, help='Metres in a unit of --meshes.')
@click.option('--head-model', help="The user's FLAME file, or makehuman.")
@_shared_options
def from_eg3d(
    data: str,
    labels: str | None,
    deca: str | None,
    smirk: str | None,
    params: str | None,
    meshes: str | None,
    landmarks: str | None,
    fit: bool,
    restart: bool,
    mesh_scale: float,
    head_model: str | None,
    **target: Any,
) -> None:
    """Add heads to an EG3D dataset.

    The images and cameras of an existing EG3D dataset, and exactly one source of heads whose files are named like the
    images (00000/img00000000.npy, 00000/img00000000/img00000000.npy, or img00000000.npy).

    \b
    Examples:
      python dataset_tool.py from-eg3d --data=FFHQ_512.zip --deca=deca --head-model=generic_model.pkl --out=out.zip
      python dataset_tool.py from-eg3d --data=FFHQ_512.zip --meshes=obj --landmarks=lms --out=out.zip
    """
    from applications.datasets.imports import Meshes, Tracker, import_eg3d

    if deca is not None and smirk is not None:
        raise click.UsageError('--deca and --smirk: give one of them')
    if meshes is None and (landmarks or fit or mesh_scale != 1.0):
        raise click.UsageError('--landmarks, --fit and --mesh-scale belong to --meshes, which is not given')
    folder = deca or smirk
    import_eg3d(
        data,
        target=_target(target),
        labels=labels,
        head_model=head_model,
        tracker=None if folder is None else Tracker(kind='deca' if deca else 'smirk', folder=folder),
        params=params,
        meshes=None
        if meshes is None
        else Meshes(folder=meshes, landmarks=landmarks, scale=mesh_scale, fit=fit, restart=restart),
        log=click.echo,
    )


COMMANDS: tuple[click.Command, ...] = (from_release, from_deca, from_smirk, from_eg3d)
