"""A video's face as a driver: head parameters and camera of each frame, as dataset_tool.py from-video finds them.

Detection, one identity a person, fits and smoothing are those of applications/preprocessing. Frames without a usable
face stay in the result, marked, so that a driven video has as many frames as its driver.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from applications.heads import check_widths
from applications.preprocessing.calibration import load_calibration
from applications.preprocessing.clip import FrameChoice, read_frames, video_facts
from applications.preprocessing.crops import PhotoLimits
from applications.preprocessing.detect import FaceDetector
from applications.preprocessing.photos import describe_detector
from applications.preprocessing.pool import WorkFolder, check_workers
from applications.preprocessing.report import summarize
from applications.preprocessing.video import Stages, VideoOptions, content_key
from dnnlib import UserError
from dnnlib.files import atomic_write, make_output_folder
from torch_utils.rotations import matrix_axis_angle
from training import cameras
from training.head.model import PARAM_FIELDS, HeadModel, HeadParams

FRONT = (1.0, -1.0, -1.0)  # diagonal of the rotation (camera to world) of a camera that faces the head
FOLDER_FPS = 30.0  # of a folder of pictures, which has none
# A driver may stand farther away, at the border or in profile: only what is no fit at all is left out.
_LIMITS = PhotoLimits(min_side=24.0, max_outside=1.0, max_error=0.25, max_yaw=90.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Track:
    """What a video says of its driver; rows of frames without a face are zeros."""

    params: HeadParams  # [T, ...]; the neck is straight: the camera has the rotation of the whole head
    camera: Tensor  # [T, 3] axis-angle (world) from the front camera's rotation to the frame's camera
    found: Tensor  # [T] bool
    person: Tensor  # [T] int64: frames of one person have one number; -1 without a face
    fps: float
    reasons: str = ''  # why frames have no face, counted

    def __len__(self) -> int:
        return len(self.found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackOptions:
    """How a video is tracked."""

    max_frames: int | None = None  # the first so many; None: all
    landmarker: str | None = None
    workers: int = 0
    detector: FaceDetector | None = None  # None: MediaPipe's
    kept: str | None = None  # .npz where the track is kept; if it holds this video's already, nothing is tracked


def track_video(
    source: str | os.PathLike[str],
    head: HeadModel,
    options: TrackOptions,
    *,
    beside: str | os.PathLike[str],  # unfinished work goes to a folder that begins with this name
    report: Callable[[str], None],
) -> Track:
    """Every frame of a video, or of a folder of pictures, in order.

    An interrupted run goes on where it stopped. UserError if there is no frame, or a face in none.
    """
    path = Path(source)
    try:
        with contextlib.closing(read_frames(path)) as pictures:
            next(pictures)  # says what is wrong before anything else is done
        fps = FOLDER_FPS if path.is_dir() else video_facts(path).fps
        content = content_key(source)
    except UserError as error:
        raise _named(error) from error
    if options.kept is not None:
        make_output_folder(Path(options.kept).parent)
        if known := read_track(options.kept, head, content=_key(content, options)):
            report(f'{options.kept}: the tracking of {source}, used again')
            return known
        if Path(options.kept).exists() and read_track(options.kept, head) is None:
            raise UserError(f'--save-params {options.kept}: is there and holds no tracking; choose another name')
    name = describe_detector(options.detector, options.landmarker, log=report)
    settings = {'content': content, 'head_model': head.content_hash, 'detector': name, 'frames': options.max_frames}
    tag = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    work = WorkFolder(f'{os.fspath(beside)}-tracking-{tag}', settings)
    stages = Stages(
        source,
        work,
        model=head,
        calibration=load_calibration(name.partition(' ')[0], head),
        options=VideoOptions(frames=FrameChoice(max_frames=options.max_frames), limits=_LIMITS, framing='pivot'),
        workers=check_workers(options.workers),
    )
    try:
        with work.removed_if_empty():
            frames = stages.detect(options.detector, options.landmarker, log=report)
        written, rejected = stages.fit(frames)
    except UserError as error:
        raise _named(error) from error
    rows = torch.tensor([item.row for item in written])
    found = torch.zeros(len(frames), dtype=torch.bool)
    found[rows] = True
    fitted = HeadParams.cat([item.fitted.params for item in written])
    label = torch.cat([item.fitted.label for item in written])
    _, person = torch.unique(fitted.identity, dim=0, return_inverse=True)
    turn = cameras.unpack_label(label)[0][:, :3, :3] @ torch.diag(label.new_tensor(FRONT))
    blank = head.neutral(len(frames)).as_dict()
    track = Track(
        params=HeadParams(**{name: value.index_copy(0, rows, getattr(fitted, name)) for name, value in blank.items()}),
        camera=torch.zeros(len(frames), 3).index_copy(0, rows, matrix_axis_angle(turn)),
        found=found,
        person=torch.full((len(frames),), -1).index_copy(0, rows, person),
        fps=fps,
        reasons=summarize(rejected),
    )
    if options.kept is not None:
        save_track(options.kept, track, content=_key(content, options))
    work.remove()
    return track


def save_track(path: str | os.PathLike[str], track: Track, *, content: str = '') -> None:
    """An .npz of HeadParams (so that --drive and --head take it) with what else a track has."""
    arrays: dict[str, Any] = {name: value.numpy() for name, value in track.params.as_dict().items()}
    arrays |= {'camera': track.camera.numpy(), 'found': track.found.numpy(), 'person': track.person.numpy()}
    arrays |= {'fps': np.array(track.fps), 'content': np.array(content), 'reasons': np.array(track.reasons)}
    with atomic_write(path) as handle:
        np.savez(handle, **arrays)


def read_track(path: str | os.PathLike[str], head: HeadModel, *, content: str | None = None) -> Track | None:
    """What `save_track` wrote; None where there is no file, no track in it, or (with `content`) that of another video.

    UserError if it is of another head model.
    """
    try:
        with open(path, 'rb') as handle, np.load(handle, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except (FileNotFoundError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    needed = {*PARAM_FIELDS, 'camera', 'found', 'person', 'fps', 'content', 'reasons'}
    if not needed <= set(arrays) or (content is not None and str(arrays['content']) != content):
        return None
    params = HeadParams.from_dict({name: torch.from_numpy(arrays[name]) for name in PARAM_FIELDS})
    check_widths(params, head, where=str(path))
    return Track(
        params=params,
        camera=torch.from_numpy(arrays['camera']).float(),
        found=torch.from_numpy(arrays['found']).bool(),
        person=torch.from_numpy(arrays['person']).long(),
        fps=float(arrays['fps']),
        reasons=str(arrays['reasons']),
    )


def _key(content: str, options: TrackOptions) -> str:
    return f'{content} {options.max_frames}'


def _named(error: UserError) -> UserError:
    """The same complaint in the words of the command that drives."""
    return UserError(str(error).replace('--source', '--drive').replace('choose a smaller --start', 'is it empty?'))
