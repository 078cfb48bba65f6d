"""Does the picture show what was asked for? Distances between driving and re-estimated head parameters.

Every function takes N images and returns N numbers (float64), so that floors, intervals and means of all
metrics are made in one way. Frames and units: metrics/estimators/base.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnnlib import UserError
from metrics.estimators.base import HeadEstimate
from torch_utils.rotations import axis_angle_matrix

Numbers = NDArray[np.float64]
_FIXED = ('valid', 1), ('jaw', 3), ('rotation', 3), ('gaze', 4)


def pack(estimate: HeadEstimate) -> NDArray[np.float32]:
    """An estimate as rows [N, 11 + E]; what it lacks is NaN."""
    count = len(estimate)
    columns = []
    for name, width in _FIXED:
        value = getattr(estimate, name)
        columns.append(
            torch.full((count, width), float('nan')) if value is None else value.reshape(count, width).float().cpu()
        )
    if estimate.expression is not None:
        columns.append(estimate.expression.float().cpu())
    return torch.cat(columns, dim=1).numpy()


def unpack(rows: NDArray[np.float32]) -> HeadEstimate:
    """The inverse of `pack`."""
    table = torch.from_numpy(np.ascontiguousarray(rows))
    parts = dict(zip([name for name, _ in _FIXED], table[:, :11].split([w for _, w in _FIXED], dim=1), strict=True))
    valid = parts.pop('valid')[:, 0] > 0

    def known(value: Tensor) -> Tensor | None:
        return None if value.shape[1] == 0 or bool(value[valid].isnan().all()) else value

    gaze = known(parts['gaze'])
    return HeadEstimate(
        expression=known(table[:, 11:]),
        jaw=known(parts['jaw']),
        rotation=known(parts['rotation']),
        gaze=None if gaze is None else gaze.reshape(-1, 2, 2),
        valid=valid,
    )


def errors(family: str, found: HeadEstimate, wanted: HeadEstimate, *, estimator: str) -> Numbers:
    """Distance of each image [N] by the definition of a metric's family; UserError for what the estimator lacks."""
    if family.startswith('aed'):
        return _DISTANCES[family.removeprefix('aed')](_difference('expression', found, wanted, estimator))
    if family == 'gaze':
        return _gaze_angle(*(_field('gaze', estimate, estimator) for estimate in (found, wanted)))
    if family == 'jaw':
        return _DISTANCES[''](_difference('jaw', found, wanted, estimator))
    if family == 'apd_no_roll':
        angles = [yaw_pitch(_field('rotation', estimate, estimator)) for estimate in (found, wanted)]
        return _DISTANCES['']((angles[0] - angles[1]).numpy())
    turn = _difference('rotation', found, wanted, estimator)
    if family == 'apd_jaw':
        return _DISTANCES[''](np.concatenate([turn, _difference('jaw', found, wanted, estimator)], axis=1))
    return _DISTANCES[family.removeprefix('apd')](turn)


_DISTANCES: dict[str, Callable[[Numbers], Numbers]] = {
    '': lambda d: np.abs(d).mean(axis=1),
    '_l1': lambda d: np.abs(d).sum(axis=1),
    '_l2': lambda d: np.sqrt((d**2).sum(axis=1)),
    '_rmse': lambda d: np.sqrt((d**2).mean(axis=1)),
    '_agora': lambda d: np.sqrt((d**2).mean(axis=1)),
}


def _field(name: str, estimate: HeadEstimate, estimator: str) -> Tensor:
    value = getattr(estimate, name)
    if value is None:
        raise UserError(f'{estimator}: gives no {name}; choose another estimator for this metric')
    return value.double().cpu()


def _difference(name: str, found: HeadEstimate, wanted: HeadEstimate, estimator: str) -> Numbers:
    first, second = _field(name, found, estimator), _field(name, wanted, estimator)
    if first.shape != second.shape:
        raise UserError(
            f'{estimator}: estimates {first.shape[1]} numbers of {name}, the dataset drives {second.shape[1]};'
            ' use a dataset of the same head model'
        )
    return (first - second).numpy()


def yaw_pitch(rotation: Tensor) -> Tensor:
    """Rotation vectors [N, 3] in camera axes -> yaw and pitch [N, 2] that are left when the picture's roll is undone.

    R = Rz(roll) Ry(yaw) Rx(pitch): turning the picture changes the roll and nothing else.
    """
    matrix = axis_angle_matrix(rotation)
    pitch = torch.atan2(matrix[:, 2, 1], matrix[:, 2, 2])
    yaw = torch.asin((-matrix[:, 2, 0]).clamp(-1, 1))
    return torch.stack([yaw, pitch], dim=1)


def _gaze_angle(first: Tensor, second: Tensor) -> Numbers:
    """Mean over both eyes of the angle between directions, degrees."""
    a, b = (_direction(gaze) for gaze in (first, second))
    angle = torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(dim=-1))
    return angle.rad2deg().mean(dim=1).numpy()


def _direction(gaze: Tensor) -> Tensor:
    """Yaw and pitch [N, 2, 2] -> unit vectors [N, 2, 3]."""
    yaw, pitch = gaze.unbind(dim=-1)
    return torch.stack([yaw.sin() * pitch.cos(), pitch.sin(), yaw.cos() * pitch.cos()], dim=-1)


def response_terms(found: HeadEstimate, wanted: HeadEstimate, *, estimator: str) -> tuple[Numbers, Numbers]:
    """Numerator and denominator of each image [N]: the sums' ratio is the slope of re-estimated on driving."""
    drive = _field('expression', wanted, estimator).numpy()
    moved = drive + _difference('expression', found, wanted, estimator)
    drive = drive - drive.mean(axis=0)
    return ((moved - moved.mean(axis=0)) * drive).sum(axis=1), (drive**2).sum(axis=1)


def pair_cosines(embeddings: NDArray[np.floating]) -> Numbers:
    """Cosine of rows 2 i and 2 i + 1 of unit vectors [2 P, D], [P]."""
    rows = embeddings.astype(np.float64)
    return (rows[0::2] * rows[1::2]).sum(axis=1)


def clip_differences(images: Tensor) -> NDArray[np.float32]:
    """A clip uint8 [T, 3, H, W], T at least 3 -> [1, 2]: mean |second| and mean |first central| difference in time."""
    frames = images.double()
    second = (frames[2:] - 2 * frames[1:-1] + frames[:-2]).abs().mean()
    first = (frames[2:] - frames[:-2]).abs().mean()
    return torch.stack([second, first])[None].float().cpu().numpy()
