"""Expression sequences: built-in demos as functions of time, sequences between given heads, transfer.

A sequence is a HeadParams with one row a frame. Demos are written in named expressions where the head
model has them and in jaw, neck and eye rotations; all are smooth and start and end near the neutral face.

Signs (head frame: x to the subject's left, y up, z forward; positive turns): about +x the jaw opens and
gaze or head go down; about +y gaze or head go to the subject's left; about +z the head tilts to its right.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from applications.heads import dataset_params, read_params
from dnnlib import UserError
from training.head.model import HeadModel, HeadParams

ROTATION_FIELDS = {'jaw': 1, 'neck': 1, 'eyes': 2, 'rotation': 1}  # axis-angle vectors in each
DEFAULT_FRAMES = 120
DEFAULT_ITEMS = 8  # key poses taken from a dataset
TRANSFERRED = ('expression', 'jaw', 'neck', 'eyes')  # what a driver gives; identity and place stay

# Mouth shapes of speech: jaw angle in radians, then weights of named expressions (both sides alike).
_VISEMES: dict[str, tuple[float, dict[str, float]]] = {
    'rest': (0.0, {}),
    'ah': (0.24, {'mouthLowerDown': 0.25, 'mouthUpperUp': 0.15}),
    'eh': (0.14, {'mouthStretch': 0.35, 'mouthSmile': 0.15}),
    'ee': (0.07, {'mouthStretch': 0.40, 'mouthSmile': 0.30}),
    'oh': (0.17, {'mouthFunnel': 0.60}),
    'oo': (0.07, {'mouthPucker': 0.75, 'mouthFunnel': 0.20}),
    'm': (0.0, {'mouthPress': 0.45, 'mouthRollLower': 0.25, 'mouthRollUpper': 0.20}),
    'f': (0.03, {'mouthRollLower': 0.60, 'mouthUpperUp': 0.25}),
    's': (0.04, {'mouthStretch': 0.20, 'mouthLowerDown': 0.20}),
}
# (shape, seconds): two phrases and their pauses.
_SPEECH = (
    ('rest', 0.25), ('m', 0.10), ('ah', 0.17), ('m', 0.09), ('eh', 0.14), ('s', 0.11), ('oh', 0.18), ('f', 0.10),
    ('ee', 0.16), ('s', 0.09), ('ah', 0.20), ('oo', 0.17), ('rest', 0.30), ('oo', 0.15), ('ah', 0.18), ('s', 0.10),
    ('ee', 0.17), ('m', 0.10), ('oh', 0.20), ('f', 0.09), ('ah', 0.16), ('eh', 0.14), ('m', 0.11), ('ah', 0.22),
    ('rest', 0.45),
)  # fmt: skip
_COARTICULATION = 0.04  # seconds: how far a sound spreads over its neighbours
_GAZE_TARGETS = (
    (0.0, 0.0),
    (0.45, 0.0),
    (-0.45, 0.0),
    (0.0, -0.28),
    (0.0, 0.25),
    (0.35, -0.2),
    (-0.35, 0.18),
    (0.0, 0.0),
)
_BLINKS = (0.5, 1.6, 1.95, 3.2)  # seconds of the lids' lowest point; a double blink in the middle
_BLINK_PERIOD = 4.0


def demo_sequence(name: str, head: HeadModel, *, frames: int, fps: float) -> HeadParams:
    """A built-in sequence of `frames` rows: talk, blink, gaze, turn, or all (one after the other).

    UserError names the sequences, or the expressions that the head model lacks.
    """
    if name == 'all':
        names = [part for part in SEQUENCES if part != 'blink' or _sides('eyeBlink', head)]
        counts = [frames * (i + 1) // len(names) - frames * i // len(names) for i in range(len(names))]
        return HeadParams.cat(
            [demo_sequence(part, head, frames=n, fps=fps) for part, n in zip(names, counts, strict=True)]
        )
    if name not in SEQUENCES:
        raise UserError(f'sequence {name!r}: expected one of {", ".join(SEQUENCE_NAMES)}')
    seconds = torch.arange(frames, dtype=torch.float32) / fps
    params = SEQUENCES[name](seconds, head)
    # Ease in and out of the neutral face, so that sequences can be joined and looped.
    edge = min(0.2, frames / fps / 4)
    last = seconds[-1] if frames else seconds.new_zeros(())
    envelope = smoothstep(torch.minimum(seconds, last - seconds) / max(edge, 1e-6))[:, None]
    return params.map(lambda value: value * envelope.to(value))


def talk(seconds: Tensor, head: HeadModel) -> HeadParams:
    """Speech-like visemes that run into each other, slow nods, and blinks."""
    names = list(_VISEMES)
    weights = _viseme_weights(seconds, names)  # [T, shapes]
    jaw = weights @ torch.tensor([_VISEMES[name][0] for name in names])
    shares: dict[str, Tensor] = {}
    for column, name in enumerate(names):
        for shape, value in _VISEMES[name][1].items():
            shares[shape] = shares.get(shape, torch.zeros_like(seconds)) + weights[:, column] * value
    shares['browInnerUp'] = 0.25 * (1 - torch.cos(2 * math.pi * seconds / 3.1)) / 2
    shares['eyeBlink'] = _blink_curve(seconds)
    nod = 0.03 * torch.sin(2 * math.pi * seconds / 1.7)
    tilt = 0.02 * torch.sin(2 * math.pi * seconds / 2.9)
    params = express(head, shares)
    zero = torch.zeros_like(nod)
    return params.replace(
        jaw=params.jaw + torch.stack([jaw, zero, zero], dim=1).to(params.jaw),
        neck=params.neck + torch.stack([nod, zero, tilt], dim=1).to(params.neck),
    )


def blink(seconds: Tensor, head: HeadModel) -> HeadParams:
    """Blinks, one of them double, each about a quarter of a second."""
    if not _sides('eyeBlink', head):
        raise UserError(f'sequence blink: head model {head.name} has no expression eyeBlink')
    return express(head, {'eyeBlink': _blink_curve(seconds)})


def gaze(seconds: Tensor, head: HeadModel) -> HeadParams:
    """The eyes jump between held targets: left, right, up, down, oblique, and back."""
    targets = torch.tensor(_GAZE_TARGETS)  # yaw to the subject's left, pitch down
    hold, jump = 0.6, 0.08
    step = (seconds / hold).floor().long()
    mix = smoothstep((seconds - step * hold) / jump)[:, None]
    angles = targets[(step - 1).clamp_min(0) % len(targets)] * (1 - mix) + targets[step % len(targets)] * mix
    # The lids follow; the named looks turn the eyes as well, which the exact angles replace.
    lids = {'eyeLookDown': (angles[:, 1] / 0.45).clamp(0, 1), 'eyeLookUp': (-angles[:, 1] / 0.45).clamp(0, 1)}
    eye = torch.stack([angles[:, 1], angles[:, 0], torch.zeros_like(seconds)], dim=1)
    params = express(head, lids)
    return params.replace(eyes=torch.cat([eye, eye], dim=1).to(params.eyes))


def turn(seconds: Tensor, head: HeadModel) -> HeadParams:
    """The head turns left and right, nods and tilts on its neck within the range of the training data."""
    period = 3.0
    phase = 2 * math.pi * seconds / period
    neck = torch.stack([0.10 * torch.sin(2 * phase), 0.22 * torch.sin(phase), 0.08 * torch.sin(phase / 2)], dim=1)
    params = head.neutral(len(seconds))
    return params.replace(neck=neck.to(params.neck))


SEQUENCES: dict[str, Callable[[Tensor, HeadModel], HeadParams]] = {
    'talk': talk,
    'blink': blink,
    'gaze': gaze,
    'turn': turn,
}
SEQUENCE_NAMES = (*SEQUENCES, 'all')


def express(head: HeadModel, weights: Mapping[str, Tensor]) -> HeadParams:
    """Named expressions mixed by curves [T]: the sum of each one's parameters times its weight.

    A name without side ('eyeBlink') moves both; names that the head model lacks are left out.
    """
    count = max((len(curve) for curve in weights.values()), default=1)
    total = head.neutral(count)
    for name, curve in weights.items():
        for side in _sides(name, head):
            unit = head.named_expression(side)
            scaled = unit.map(lambda value, curve=curve: value * curve[:, None].to(value))
            total = HeadParams(**{key: value + scaled.as_dict()[key] for key, value in total.as_dict().items()})
    return total


def _sides(name: str, head: HeadModel) -> list[str]:
    return [full for full in (name, f'{name}Left', f'{name}Right') if full in head.expression_names]


def smoothstep(x: Tensor) -> Tensor:
    """0 below 0, 1 above 1, a cubic with flat ends between."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def _viseme_weights(seconds: Tensor, names: list[str]) -> Tensor:
    """[T, shapes], rows sum to 1: the sounds one after the other, smoothed by a Gaussian in time."""
    edges = np.cumsum([0.0] + [duration for _, duration in _SPEECH])
    place = (seconds % float(edges[-1]))[:, None]
    # The speech starts and ends at rest, so that the outermost sounds may last for ever.
    passed = torch.special.ndtr((place - torch.tensor(edges[1:-1], dtype=torch.float32)) / _COARTICULATION)
    ones, zeros = torch.ones_like(place), torch.zeros_like(place)
    shares = torch.cat([ones, passed], dim=1) - torch.cat([passed, zeros], dim=1)
    weights = torch.zeros(len(seconds), len(names))
    return weights.index_add_(1, torch.tensor([names.index(name) for name, _ in _SPEECH]), shares)


def _blink_curve(seconds: Tensor) -> Tensor:
    """Lid closure [T] in [0, 1]: closing in 0.1 s, opening in 0.16 s."""
    place = (seconds % _BLINK_PERIOD)[:, None] - torch.tensor(_BLINKS)
    closing, opening = smoothstep(1 + place / 0.10), smoothstep(1 - place / 0.16)
    return torch.where(place < 0, closing, opening).amax(dim=1)


def sequence_between(keys: HeadParams, *, frames: int, neutral: HeadParams | None = None) -> HeadParams:
    """A loop of `frames` rows through the rows of `keys`, resting briefly at each.

    A single key needs `neutral`: neutral, key, neutral. Coefficients are interpolated with a cubic
    ease, rotations along the shortest arc.
    """
    if len(keys) == 1:
        if neutral is None:
            raise ValueError('neutral: expected for a sequence with a single key')
        keys = HeadParams.cat([neutral[:1].replace(identity=keys.identity), keys])
    position = torch.arange(frames, dtype=torch.float64) / max(frames, 1) * len(keys)
    lower = position.floor().long() % len(keys)
    mix = smoothstep((position - position.floor()) * 1.25)
    return mix_params(keys[lower], keys[(lower + 1) % len(keys)], mix)


def resample(params: HeadParams, *, frames: int) -> HeadParams:
    """The same sequence with another number of rows; first and last rows are kept."""
    if len(params) == frames:
        return params
    position = torch.linspace(0, len(params) - 1, frames, dtype=torch.float64)
    lower = position.floor().long().clamp(max=max(len(params) - 2, 0))
    return mix_params(params[lower], params[(lower + 1).clamp(max=len(params) - 1)], position - lower)


def mix_params(first: HeadParams, second: HeadParams, share: Tensor) -> HeadParams:
    """Row by row from `first` (share 0) to `second` (share 1)."""
    fields = {}
    for name, start in first.as_dict().items():
        end = second.as_dict()[name]
        if name in ROTATION_FIELDS:
            fields[name] = slerp(start, end, share)
        else:
            fields[name] = torch.lerp(start, end, share[:, None].to(start))
    return HeadParams(**fields)


def slerp(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """Axis-angle vectors [T, 3 k] interpolated on the rotation group."""
    from scipy.spatial.transform import Rotation

    shape = start.shape
    first = Rotation.from_rotvec(start.reshape(-1, 3).double().cpu().numpy())
    second = Rotation.from_rotvec(end.reshape(-1, 3).double().cpu().numpy())
    way = (first.inv() * second).as_rotvec()
    weight = np.repeat(share.double().cpu().numpy(), shape[1] // 3)[:, None]
    mixed = (first * Rotation.from_rotvec(way * weight)).as_rotvec()
    return torch.from_numpy(mixed).to(start).reshape(shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriveOptions:
    """Where a driving sequence comes from."""

    source: str  # a demo's name, a packed dataset, or an .npz of HeadParams
    items: tuple[int, ...] | None = None  # key poses from the dataset; None: the first DEFAULT_ITEMS
    frames: int | None = None  # None: the rows of an .npz, else DEFAULT_FRAMES
    fps: float = 30.0


def drive_sequence(options: DriveOptions, head: HeadModel) -> HeadParams:
    """The driver's parameters, one row a frame; its own identity is still in them (see `transfer`).

    A dataset gives key poses, joined smoothly into a loop; a single one alternates with the neutral
    face. An .npz is a sequence already, resampled if another number of frames is asked for.
    """
    frames = options.frames or DEFAULT_FRAMES
    if options.source in SEQUENCE_NAMES:
        return demo_sequence(options.source, head, frames=frames, fps=options.fps)
    if not Path(options.source).exists():
        raise UserError(
            f'--drive {options.source}: no such file; expected a dataset, an .npz of HeadParams, '
            f'or one of {", ".join(SEQUENCE_NAMES)}'
        )
    if options.source.endswith('.npz'):
        params = read_params(options.source, head)
        return params if options.frames is None else resample(params, frames=frames)
    keys = dataset_params(options.source, head, indices=options.items, most=DEFAULT_ITEMS)
    return sequence_between(keys, frames=frames, neutral=head.neutral())


def transfer(driver: HeadParams, *, identity: Tensor, head: HeadModel) -> HeadParams:
    """Expression, jaw, neck and eyes of the driver on the identity coefficients [1, num_identity].

    The driver's own identity, rotation and translation do not pass. UserError if the widths are not
    those of the head model.
    """
    if driver.expression.shape[1] != head.num_expression:
        raise UserError(
            f'driver: {driver.expression.shape[1]} expression numbers, but head model {head.name} takes '
            f'{head.num_expression}; the driver must come from the same head model as the network'
        )
    if list(identity.shape) != [1, head.num_identity]:
        raise UserError(
            f'identity: expected [1, {head.num_identity}] numbers of head model {head.name}, got {list(identity.shape)}'
        )
    still = head.neutral(len(driver)).replace(identity=identity.expand(len(driver), -1).to(driver.identity))
    return still.replace(**{name: getattr(driver, name) for name in TRANSFERRED})
