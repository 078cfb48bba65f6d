"""Kernel distance, precision and recall, Inception score, path length: feature rows in, numbers out, in float64."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from torch_utils.rng import numpy_stream

SUBSETS = 100
SUBSET_SIZE = 1000
SPLITS = 10  # of the Inception score
_ROWS = 1024  # rows of a distance matrix held at once

Features = NDArray[np.floating]


def kernel_distance(first: Features, second: Features) -> float:
    """Unbiased squared MMD of two sets of features [M, D], kernel (x y / D + 1)^3 (Binkowski et al. 2018)."""
    size, width = first.shape
    if first.shape != second.shape or size < 2:
        raise ValueError(f'second: expected the shape of first [M, D], M at least 2, got {second.shape}, {first.shape}')
    x, y = first.astype(np.float64), second.astype(np.float64)
    within = (x @ x.T / width + 1) ** 3 + (y @ y.T / width + 1) ** 3
    across = (x @ y.T / width + 1) ** 3
    return float((within.sum() - np.trace(within)) / (size * (size - 1)) - 2 * across.mean())


def subset_distances(real: Features, generated: Features, *, size: int, seed: int) -> NDArray[np.float64]:
    """kernel_distance of SUBSETS random subsets of `size` rows of each set."""
    values = []
    for number in range(SUBSETS):
        rng = numpy_stream('kid', seed, size, number)
        chosen = [np.sort(rng.choice(len(rows), size, replace=False)) for rows in (real, generated)]
        values.append(kernel_distance(real[chosen[0]], generated[chosen[1]]))
    return np.array(values)


def kid(real: Features, generated: Features, *, seed: int) -> tuple[float, float]:
    """The kernel distance as it is published (mean over 100 subsets of 1,000, or of all), and its standard error.

    The error is that of subsampling: subsets of m of n rows spread by a known factor more than the value of all n.
    """
    smaller = min(len(real), len(generated))
    values = subset_distances(real, generated, size=min(SUBSET_SIZE, smaller), seed=seed)
    half = min(SUBSET_SIZE, smaller // 2)
    if half < 2:
        return float(values.mean()), float('nan')
    spread = values if half == SUBSET_SIZE else subset_distances(real, generated, size=half, seed=seed)
    drawn = 1 / SUBSETS if half == SUBSET_SIZE else 0.0
    return float(values.mean()), float(np.sqrt(spread.var(ddof=1) * (half / (smaller - half) + drawn)))


def inside(
    manifold: Features, points: Features, *, neighbours: int, device: torch.device | None = None
) -> NDArray[np.bool_]:
    """Whether each point [P, D] lies within the k-th nearest neighbour's distance of some manifold row [M, D].

    Kynkaanniemi et al. 2019: precision is the mean over generated points, recall the mean over real ones.
    """
    if len(manifold) <= neighbours:
        raise ValueError(f'manifold: expected more rows than neighbours ({neighbours}), got {len(manifold)}')
    base = torch.from_numpy(np.ascontiguousarray(manifold)).to(device or 'cpu', torch.float64)
    other = torch.from_numpy(np.ascontiguousarray(points)).to(base)
    # A row's nearest neighbour in its own set is itself.
    radii = torch.cat([_squared(rows, base).kthvalue(neighbours + 1, dim=1).values for rows in base.split(_ROWS)])
    found = [(_squared(rows, base) <= radii).any(dim=1) for rows in other.split(_ROWS)]
    return torch.cat(found).cpu().numpy()


def _squared(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Squared distances [P, M]; in float64 a product is exact enough, and a hundred times faster than differences."""
    across = first @ second.T
    return ((first**2).sum(dim=1)[:, None] + (second**2).sum(dim=1) - 2 * across).clamp(min=0)


def inception_score(probabilities: Features) -> NDArray[np.float64]:
    """exp of the mean KL divergence from the mean class distribution, of each of SPLITS parts of [N, C], in order."""
    rows = probabilities.astype(np.float64)
    count = len(rows)
    if count < SPLITS:
        raise ValueError(f'probabilities: expected at least {SPLITS} rows, got {count}')
    scores = []
    for part in range(SPLITS):
        p = rows[part * count // SPLITS : (part + 1) * count // SPLITS]
        logs = np.log(np.where(p > 0, p, 1)) - np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
        scores.append(np.exp((p * logs).sum(axis=1).mean()))
    return np.array(scores)


def path_lengths(features: Features, *, step: float) -> NDArray[np.float64]:
    """Squared distance of the unit feature vectors of rows 2 i and 2 i + 1 over step^2, [N / 2]."""
    rows = features.astype(np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return ((rows[0::2] - rows[1::2]) ** 2).sum(axis=1) / step**2
