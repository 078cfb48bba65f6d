"""How far a value would move with other draws: seeded resampling of what was drawn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from torch_utils.rng import numpy_stream

LEVEL = 0.95
RESAMPLES = 1000  # of persons, pairs or clips
REFITS = 20  # of distances that cost a decomposition each: for their standard error
_NORMAL = 1.959963984540054  # standard errors on each side of a 95 % interval
_ENTRIES = 1 << 22  # drawn at once

Interval = tuple[float, float]


def ratio_interval(
    numerators: NDArray[np.floating],
    denominators: NDArray[np.floating],
    *,
    seed: int,
    transform: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda values: values,
) -> Interval:
    """Percentile interval of transform(sum numerators / sum denominators) over G independent groups [G].

    A group (a person, a pair, a clip) is drawn as a whole: the images of one person are not independent.
    """
    groups = len(numerators)
    rng = numpy_stream('bootstrap', seed, groups)
    block = max(_ENTRIES // max(groups, 1), 1)
    values = []
    for start in range(0, RESAMPLES, block):
        weights = rng.multinomial(groups, np.full(groups, 1 / groups), size=min(block, RESAMPLES - start))
        below = weights @ denominators.astype(np.float64)
        above = weights @ numerators.astype(np.float64)
        values.append(np.divide(above, below, out=np.full(len(above), np.nan), where=below != 0))
    low, high = np.nanquantile(transform(np.concatenate(values)), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def normal_interval(value: float, standard_error: float) -> Interval:
    """The 95 % interval about a value."""
    return value - _NORMAL * standard_error, value + _NORMAL * standard_error


def refit_error(count: int, fit: Callable[[NDArray[np.int64]], float], *, seed: int) -> float:
    """Standard error of `fit(rows)` over REFITS resamplings of `count` rows with replacement.

    Only the spread is used: a distance of resampled features is biased upwards, its spread is not.
    """
    draws = (numpy_stream('refit', seed, number).integers(count, size=count) for number in range(REFITS))
    return float(np.std([fit(np.sort(rows)) for rows in draws], ddof=1))
