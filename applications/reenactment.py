"""From a driver to the heads of an avatar: what passes, how, and what fills the gaps.

What passes is expression, jaw, gaze and the rotation of the head; the driver's shape is replaced before anything is
computed. Transfer is absolute (the driver's values) or relative: the driver's change since it was at rest, added
to the avatar's resting face, which leaves errors of the driver's fit that do not move behind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from applications.driving import (
    ROTATION_FIELDS,
    TRANSFERRED,
    DriveOptions,
    drive_sequence,
    mix_params,
    slerp,
    transfer,
)
from applications.preprocessing.align import aimed_label
from applications.preprocessing.neck import check_share, split_neck
from applications.samples import CameraRig
from applications.tracking import FRONT, Track, TrackOptions, read_track, track_video
from dnnlib import UserError
from torch_utils.rotations import axis_angle_matrix, matrix_axis_angle
from training import cameras
from training.head.model import HeadModel, HeadParams

VIDEO_TYPES = ('.mp4', '.mov', '.m4v', '.mkv', '.webm', '.avi', '.mpg', '.mpeg', '.gif')
DEFAULT_FPS = 30.0
_AT_ONCE = 256  # heads
TRANSFERS = ('relative', 'absolute')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferOptions:
    """How a driver's motion passes."""

    transfer: str | None = None  # of TRANSFERS; None: relative for what was tracked, absolute for exact parameters
    neutral_frame: int | None = None  # of the driver at rest; None: `resting_frames`
    camera: bool = False  # whether a tracked driver moves the camera
    neck_share: float | None = None  # of a tracked head's rotation that the neck makes; None: 0 with `camera`, else 1

    def __post_init__(self) -> None:
        if self.neck_share is not None:
            check_share(self.neck_share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriverOptions:
    """A driver and what passes from it."""

    source: str  # a video, a folder of pictures, a track or parameters (.npz), a packed dataset, or a demo's name
    items: tuple[int, ...] | None = None  # key poses from a dataset
    frames: int | None = None  # of a video the first so many; of others the length that they are stretched to
    fps: float | None = None  # None: the driver's own, else DEFAULT_FPS
    transfer: TransferOptions = TransferOptions()
    track: TrackOptions = TrackOptions()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Motion:
    """A driver's motion on an avatar."""

    params: HeadParams  # [T, ...] with the avatar's identity
    fps: float
    labels: Tensor | None = None  # cameras [T, 25]; None: the driver does not move it
    rows: Tensor | None = None  # [T] the driver's frame that each frame shows; None: it has no pictures


def is_video(source: str) -> bool:
    """Whether --drive names a video or a folder of pictures rather than parameters, a dataset or a demo."""
    path = Path(source)
    if path.is_dir():
        return not (path / 'dataset.json').exists()
    return path.suffix.lower() in VIDEO_TYPES


def drive(
    options: DriverOptions,
    head: HeadModel,
    *,
    identity: Tensor,  # [1, num_identity] of the avatar
    rig: CameraRig,
    beside: str,  # the output; unfinished tracking lies beside it
    report: Callable[[str], None],
) -> Motion:
    """The driver's motion on an avatar. UserError for what can not drive."""
    source, transfers = options.source, options.transfer
    track: Track | None = None
    if is_video(source):
        kept = dataclasses.replace(options.track, max_frames=options.frames)
        track = track_video(source, head, kept, beside=beside, report=report)
    elif options.track.kept is not None:
        raise UserError(f'--save-params: belongs to a video, and --drive {source} is none')
    elif source.endswith('.npz'):
        track = read_track(source, head)
    if track is not None:
        frames = None if is_video(source) else options.frames
        if frames is None and options.fps is not None:
            frames = max(1, round(len(track) * options.fps / track.fps))
        motion = tracked_motion(track, head, identity=identity, options=transfers, rig=rig, frames=frames)
        lost = int((~track.found).sum())
        report(
            f'{source}: {len(track)} frames at {track.fps:.6g} a second, '
            + (f'{lost} filled in ({track.reasons})' if lost else 'a face in every one')
        )
        return dataclasses.replace(motion, fps=options.fps or track.fps)
    _check_suffix(source)
    if transfers.camera:
        raise UserError(f'--drive-camera: {source} has no camera; give a video, or what --save-params kept of one')
    fps = options.fps or DEFAULT_FPS
    sequence = DriveOptions(source=source, items=options.items, frames=options.frames, fps=fps)
    driver = transfer(drive_sequence(sequence, head), identity=identity, head=head)
    if transfers.transfer == 'relative':
        rest = transfers.neutral_frame or 0
        if rest >= len(driver):
            raise UserError(f'--neutral-frame {rest}: the driver has frames 0 to {len(driver) - 1}')
        driver = relative(driver, rest=driver[[rest]], own=head.neutral().replace(identity=identity))
    return Motion(params=driver, fps=fps)


def tracked_motion(
    track: Track,
    head: HeadModel,
    *,
    identity: Tensor,
    options: TransferOptions,
    rig: CameraRig,
    frames: int | None = None,
) -> Motion:
    """A track on the identity [1, num_identity]: gaps are bridged (held at the ends), so that no frame is lost.

    frames: the length that it is stretched to; None: its own.
    """
    found = torch.nonzero(track.found)[:, 0]
    if not len(found):
        raise UserError('--drive: no frame with a face in it')
    _check_neutral(track, options.neutral_frame)
    driver = transfer(track.params, identity=identity, head=head)  # the driver's shape ends here
    share = options.neck_share if options.neck_share is not None else 0.0 if options.camera else 1.0
    label = aimed_label(_rotation(track.camera), framing='pivot')
    bent, turned = split_neck(head, driver[found], label[found], share=share)
    camera = matrix_axis_angle(cameras.unpack_label(turned)[0][:, :3, :3] @ torch.diag(turned.new_tensor(FRONT)))
    params = driver.replace(neck=driver.neck.index_copy(0, found, bent.neck))
    turns = torch.zeros_like(track.camera).index_copy(0, found, camera)
    if options.transfer != 'absolute':
        face, pose = resting_frames(track, driver, head, chosen=options.neutral_frame)
        rest = params[face].replace(neck=params.neck[pose])
        params = relative(params, rest=rest, own=head.neutral().replace(identity=identity))
        turns = _since(turns, turns[pose])
    for lower, upper, mix in (bridges(track.found), stretch(len(track), frames or len(track))):
        params = mix_params(params[lower], params[upper], mix)
        turns = slerp(turns[lower], turns[upper], mix)
    rows = torch.linspace(0, len(track) - 1, len(params)).round().long()
    framing = 'pivot' if rig.centre is None else 'eg3d'
    labels = aimed_label(_rotation(turns), framing=framing) if options.camera else None
    return Motion(params=params, fps=track.fps, labels=labels, rows=rows)


def relative(driver: HeadParams, *, rest: HeadParams, own: HeadParams) -> HeadParams:
    """`own` [1, ...] moved as the driver [T, ...] moved since `rest` [T or 1, ...]; own's shape and place stay.

    Coefficients add up; a rotation is followed by the driver's change of it.
    """
    count = len(driver)
    fields = {name: value.expand(count, -1).clone() for name, value in own.as_dict().items()}
    for name in TRANSFERRED:
        value, before = getattr(driver, name), getattr(rest, name).expand(count, -1)
        if name in ROTATION_FIELDS:
            parts = (t.reshape(count, -1, 3) for t in (value, before, fields[name]))
            now, then, start = (axis_angle_matrix(t.double()) for t in parts)
            fields[name] = matrix_axis_angle(now @ then.transpose(-1, -2) @ start).reshape(count, -1).to(value)
        else:
            fields[name] = fields[name] + value - before
    return HeadParams(**fields)


def bridges(found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each of T frames the frames that it is mixed of, and the share [T] of the second: itself where it is found,
    its nearest found neighbours in a gap, the one neighbour at either end."""
    rows = torch.nonzero(found)[:, 0]
    frames = torch.arange(len(found))
    after = torch.searchsorted(rows, frames).clamp(max=len(rows) - 1)
    upper = rows[after]
    lower = torch.where(upper > frames, rows[(after - 1).clamp_min(0)], upper)
    span = (upper - lower).clamp_min(1)
    share = ((frames - lower) / span).clamp(0, 1)
    return lower, upper, torch.where(upper == lower, torch.zeros_like(share), share)


def stretch(count: int, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `bridges`, for `frames` frames spread evenly over `count`; first and last are kept."""
    position = torch.linspace(0, count - 1, frames, dtype=torch.float64)
    lower = position.floor().long().clamp(max=max(count - 2, 0))
    return lower, (lower + 1).clamp(max=count - 1), position - lower


def _check_suffix(source: str) -> None:
    """UserError for a file that is there but is nothing that drives."""
    path = Path(source)
    if path.is_file() and path.suffix.lower() not in ('.npz', '.zip'):
        known = f'a video ({", ".join(VIDEO_TYPES)}), an .npz, or a dataset (.zip or folder)'
        raise UserError(f'--drive {source}: unknown format {path.suffix!r}; expected {known}')


@torch.no_grad()
def resting_frames(
    track: Track, driver: HeadParams, head: HeadModel, *, chosen: int | None = None
) -> tuple[Tensor, Tensor]:
    """For each frame the frame in which its person's face is at rest, and the one in which the head is. Both [T].

    The face: the frame whose landmarks lie nearest those of the neutral face, with the neck straight. The head: the
    frame whose rotation is nearest the mean of the person's. `chosen` is both for its own person.
    `driver` [T, ...]: the track's parameters on the avatar's shape.
    """
    still = driver.map(torch.zeros_like).replace(identity=driver.identity)
    straight = driver.replace(neck=still.neck)
    neutral = head.forward(still[:1]).landmarks
    parts = [head.forward(straight[rows.tolist()]).landmarks for rows in torch.arange(len(track)).split(_AT_ONCE)]
    away = (torch.cat(parts) - neutral).norm(dim=-1).mean(dim=1)
    turned = axis_angle_matrix(track.camera)
    face, pose = (torch.zeros(len(track), dtype=torch.int64) for _ in range(2))
    for person in track.person[track.found].unique():
        mine = track.person == person
        rows = torch.nonzero(mine)[:, 0]
        mean = turned[rows].mean(dim=0)
        face[mine] = rows[away[rows].argmin()]
        pose[mine] = rows[(turned[rows] - mean).flatten(1).norm(dim=1).argmin()]
        if chosen is not None and bool(mine[chosen]):
            face[mine] = pose[mine] = chosen
    return face, pose


def _check_neutral(track: Track, chosen: int | None) -> None:
    """UserError unless the chosen frame shows a face."""
    if chosen is not None and not 0 <= chosen < len(track):
        raise UserError(f'--neutral-frame {chosen}: the driver has frames 0 to {len(track) - 1}')
    if chosen is not None and not track.found[chosen]:
        raise UserError(f'--neutral-frame {chosen}: no face was found in it; choose another')


def _since(turns: Tensor, before: Tensor) -> Tensor:
    """Axis-angle vectors [T, 3] of the rotations since those before."""
    now, then = axis_angle_matrix(turns.double()), axis_angle_matrix(before.double())
    return matrix_axis_angle(now @ then.transpose(-1, -2)).to(turns)


def _rotation(turns: Tensor) -> Tensor:
    """Camera-to-world rotations [T, 3, 3] of turns [T, 3] away from the front camera."""
    return axis_angle_matrix(turns) @ torch.diag(turns.new_tensor(FRONT))
