"""Named running moments, averaged over samples, micro-batches and ranks without a host sync per report."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from torch_utils.distributed import Communicator


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and population standard deviation of everything reported under one name."""

    num: int
    mean: float
    std: float


class Stats:
    """Collects numbers between two ticks. Every rank must report the same names."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # name -> [3]: count, sum, sum of squares

    def report(self, name: str, value: Tensor | float) -> None:
        """Add all elements of `value` to the moments called `name`; no gradient, no host sync."""
        flat = torch.as_tensor(value).detach().reshape(-1).double()
        sums = torch.stack([torch.full_like(flat.sum(), flat.numel()), flat.sum(), flat.square().sum()])
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    def collect(self, communicator: Communicator) -> dict[str, Moments]:
        """The moments over all ranks since the last call, in the order of their names; starts afresh."""
        names = sorted(self._sums)
        if not names:
            return {}
        table = torch.stack([self._sums[name].to(communicator.device) for name in names])
        communicator.sum_(table)
        self._sums.clear()
        result = {}
        for name, (count, total, squares) in zip(names, table.tolist(), strict=True):
            mean = total / max(count, 1)
            variance = squares / max(count, 1) - mean * mean
            result[name] = Moments(
                int(count), mean, math.sqrt(max(variance, 0.0)) if variance == variance else variance
            )
        return result
