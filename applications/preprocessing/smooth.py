"""Smoothing of fitted parameters over time: noise goes, blinks, words and saccades stay.

A penalized least-squares smoother on the second difference, with a penalty that lets go where
smoothing would take away motion: what it removes is noise if it alternates, and motion if neighbouring frames lose
the same. The noise is estimated from the signal itself. Rotations are smoothed on SO(3) (averages of matrices,
projected), so nothing depends on axes or wraps around. Units: frames in time, any in value.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import solveh_banded

from training.head.model import HeadModel, HeadParams

_STIFFNESS = 4.0  # weight of a squared second difference where nothing moves: half the power at periods of 9 frames
_THRESHOLD = 2.5  # a loss beyond this many standard deviations of the noise's own is motion
_REACH = 2  # frames around it that are spared as well
# Upper and lower lid points of the left and the right eye.
_LIDS = [[(43, 47), (44, 46)], [(37, 41), (38, 40)]]


def smooth_signals(values: np.ndarray, *, strength: float = 1.0, shared: bool = False) -> np.ndarray:
    """Signals [T, C], one value a frame, smoothed over time; the same shape, float64.

    `strength` scales the stiffness (0: nothing happens). With `shared` the columns are one vector: what is
    motion is decided by its length, so the result does not depend on the axes.
    """
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f'values: expected finite [T, C], got {values.dtype} {list(values.shape)}')
    given = values.astype(np.float64)
    if len(given) < 3 or strength <= 0:
        return given
    groups = [np.arange(given.shape[1])] if shared else [np.array([c]) for c in range(given.shape[1])]
    smoothed = given.copy()
    for group in groups:
        smoothed[:, group] = _smooth_group(given[:, group], stiffness=_STIFFNESS * strength)
    return smoothed


def smooth_rotations(matrices: np.ndarray, *, strength: float = 1.0) -> np.ndarray:
    """Rotations [T, 3, 3] smoothed over time; turning all inputs by a rotation turns all outputs by it."""
    if matrices.ndim != 3 or matrices.shape[1:] != (3, 3):
        raise ValueError(f'matrices: expected shape [T, 3, 3], got {list(matrices.shape)}')
    mixed = smooth_signals(matrices.reshape(len(matrices), 9), strength=strength, shared=True)
    left, _, right = np.linalg.svd(mixed.reshape(-1, 3, 3))
    left[..., -1] *= np.sign(np.linalg.det(left @ right))[:, None]
    return left @ right


def smooth_params(model: HeadModel, params: HeadParams, *, strength: float = 1.0) -> HeadParams:
    """Expression, jaw and eyes of consecutive frames [T, ...] smoothed; identity and the rest stay.

    The expression is split into the two directions that open and close the lids, smoothed by
    themselves, and the remainder: a blink then lets go of nothing but the lids.
    """
    expression = params.expression.double().cpu().numpy()
    basis = _lid_directions(model, params[:1]).astype(np.float64)
    lids = expression @ basis.T
    rest = smooth_signals(expression - lids @ basis, strength=strength)
    rest -= (rest @ basis.T) @ basis
    expression = smooth_signals(lids, strength=strength) @ basis + rest

    def smoothed(values: torch.Tensor) -> torch.Tensor:
        result = smooth_signals(values.cpu().numpy(), strength=strength)
        return torch.from_numpy(result).to(values)

    return params.replace(
        expression=torch.from_numpy(expression).to(params.expression),
        jaw=smoothed(params.jaw),
        eyes=smoothed(params.eyes),
    )


def jitter(values: np.ndarray) -> float:
    """The mean length of the second difference of [T, C]."""
    return float(np.linalg.norm(np.diff(values, n=2, axis=0), axis=1).mean()) if len(values) > 2 else 0.0


def _smooth_group(values: np.ndarray, *, stiffness: float) -> np.ndarray:
    """One vector signal [T, C] with common weights."""
    columns = values.shape[1]
    second = np.median(np.linalg.norm(np.diff(values, n=2, axis=0), axis=1))
    noise = second / np.sqrt(6 * _median_square(columns))  # of one column; a second difference has 6 times the variance
    if noise <= 1e-12:
        return values
    lost = values - _solve(values, np.full(len(values) - 2, stiffness))
    # Noise alternates in what the smoother takes away; motion does not, and stands out in a mean of three.
    mean = (np.pad(lost, ((1, 1), (0, 0)), mode='edge')[[0, 1, 2] + np.arange(len(lost))[:, None]]).mean(axis=1)
    limit = _THRESHOLD * noise * np.sqrt(columns) * _noise_in_mean(stiffness)
    weight = 1 / (1 + (np.linalg.norm(mean, axis=1) / limit) ** 4)
    around = np.pad(weight, _REACH, mode='edge')
    weight = np.min([around[k : k + len(weight)] for k in range(2 * _REACH + 1)], axis=0)
    return _solve(values, stiffness * weight[1:-1])


def _noise_in_mean(stiffness: float) -> float:
    """The standard deviation of a mean of three of what the smoother takes away from white noise of deviation 1."""
    frequency = np.linspace(0, np.pi, 513)
    penalty = stiffness * (2 - 2 * np.cos(frequency)) ** 2
    return float(np.sqrt(np.mean((penalty / (1 + penalty) * (1 + 2 * np.cos(frequency)) / 3) ** 2)))


def _median_square(columns: int) -> float:
    """The median of a chi-square distribution with this many degrees of freedom (Wilson and Hilferty)."""
    return columns * (1 - 2 / (9 * columns)) ** 3


def _solve(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """argmin sum |x - values|^2 + sum weight |second difference of x|^2; values [T, C], weight [T - 2]."""
    count = len(values)
    bands = np.zeros((3, count))  # upper form: bands[2] the diagonal
    bands[2] = 1.0
    for offset, factor in enumerate((1.0, -2.0, 1.0)):
        bands[2, offset : offset + count - 2] += weight * factor**2
    bands[1, 1:-1] += -2.0 * weight
    bands[1, 2:] += -2.0 * weight
    bands[0, 2:] += weight
    return solveh_banded(bands, values)


def _lid_directions(model: HeadModel, params: HeadParams) -> np.ndarray:
    """Orthonormal rows [2, num_expression]: how the left and the right lid gap depend on the expression."""
    start = params.map(torch.zeros_like).replace(identity=params.identity)

    def gaps(expression: torch.Tensor) -> torch.Tensor:
        points = model.forward(start.replace(expression=expression)).landmarks[0]
        return torch.stack([sum((points[a, 1] - points[b, 1] for a, b in eye), points.new_zeros(())) for eye in _LIDS])

    slopes = torch.autograd.functional.jacobian(gaps, start.expression)[:, 0]
    basis, _ = torch.linalg.qr(slopes.double().T)
    return basis.T.cpu().numpy()
