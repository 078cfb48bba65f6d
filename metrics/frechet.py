"""Frechet distance between two sets of feature vectors (Heusel et al. 2017; paper section 4.1).

features [N, D] -> Statistics (mean, covariance) -> distance: three pure steps in float64.
    d^2 = |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 1024  # rows summed at once: fixed, so that the sums do not depend on how the rows arrived


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and covariance of a set of feature vectors."""

    mean: NDArray[np.float64]  # [D]
    covariance: NDArray[np.float64]  # [D, D], normalized by count - 1
    count: int
    factor: NDArray[np.float64] | None = None  # [D, count], F F^T = covariance, where that is the smaller one


def statistics(features: NDArray[np.floating]) -> Statistics:
    """Features [N, D] (N at least 2) -> mean and unbiased covariance, accumulated in float64.

    Two passes, so that a large mean does not cancel the covariance.
    """
    if features.ndim != 2 or features.shape[0] < 2:
        raise ValueError(f'features: expected shape [N, D] with N at least 2, got {list(features.shape)}')
    count, width = features.shape
    if not np.isfinite(features).all():
        raise ValueError('features: expected finite numbers, got nan or inf')
    blocks = range(0, count, BLOCK_ROWS)
    total = np.zeros(width)
    for start in blocks:
        total += features[start : start + BLOCK_ROWS].astype(np.float64).sum(axis=0)
    mean = total / count
    outer = np.zeros((width, width))
    for start in blocks:
        centred = features[start : start + BLOCK_ROWS].astype(np.float64) - mean
        outer += centred.T @ centred
    few = count <= width  # then the rows themselves are a factor, and no decomposition is needed
    factor = (features.astype(np.float64) - mean).T / np.sqrt(count - 1) if few else None
    return Statistics(mean, outer / (count - 1), count, factor)


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """The squared Frechet distance between the Gaussians of two sets (what is reported as FID).

    tr((C1 C2)^(1/2)) is the sum of the singular values of F1^T F2 with C = F F^T by eigenvalues: real by
    construction, defined for singular covariances (N < D), and exact to rounding for equal sets, where
    the root of C1 C2 by a Schur method is neither.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f'statistics: expected the same width, got {first.mean.shape[0]} and {second.mean.shape[0]}')
    difference = first.mean - second.mean
    cross = np.linalg.svd(_factor(first).T @ _factor(second), compute_uv=False).sum()
    trace = np.trace(first.covariance) + np.trace(second.covariance)
    return float(max(difference @ difference + trace - 2.0 * cross, 0.0))


def _factor(of: Statistics) -> NDArray[np.float64]:
    """F [D, rank] with F F^T = covariance, which has no negative eigenvalues beyond rounding."""
    if of.factor is not None:
        return of.factor
    values, vectors = np.linalg.eigh((of.covariance + of.covariance.T) / 2)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])
