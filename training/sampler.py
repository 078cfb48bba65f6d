"""Which images a step sees, as a pure function of (seed, position), and their loading.

A step's batch is cut into micro-batches of `batch_gpu` samples, numbered over the whole batch;
rank r takes micro-batches r, r + ranks, ... Everything random and the discriminator's minibatch
statistic belong to a micro-batch, so a result depends on batch and batch_gpu, not on the number of ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dnnlib.errors import UserError
from torch_utils.rng import numpy_stream


class ImageSource(Protocol):
    """What loading needs of a dataset."""

    def __len__(self) -> int: ...

    def images(self, indices: list[int]) -> Tensor: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How a batch is cut over ranks and accumulation rounds."""

    batch: int
    batch_gpu: int
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.batch % (self.batch_gpu * self.ranks):
            raise ValueError(
                f'batch: {self.batch} is not divisible by gpus x batch_gpu = {self.ranks} x {self.batch_gpu}'
            )

    @property
    def rounds(self) -> int:
        """Micro-batches that each rank accumulates in a step."""
        return self.batch // (self.batch_gpu * self.ranks)

    def micro_batches(self, rank: int) -> range:
        """The micro-batch numbers of one rank, in the order of its rounds."""
        return range(rank, self.batch // self.batch_gpu, self.ranks)


class InfiniteOrder:
    """An endless shuffled sequence over `size` items; each epoch is its own permutation of (seed, epoch)."""

    def __init__(self, size: int, *, seed: int) -> None:
        if size < 1:
            raise ValueError(f'size: expected at least one item, got {size}')
        self.size = size
        self.seed = seed
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def __getitem__(self, position: int) -> int:
        """The item at a position of the sequence."""
        epoch, offset = divmod(position, self.size)
        if epoch != self._epoch:
            self._order = numpy_stream(self.seed, 'order', epoch).permutation(self.size)
            self._epoch = epoch
        return int(self._order[offset])


class MicroBatchIndices(torch.utils.data.Sampler[list[int]]):
    """Endless index lists of one rank's micro-batches from image number `start` on."""

    def __init__(self, size: int, *, seed: int, plan: BatchPlan, rank: int, start: int) -> None:
        self.order = InfiniteOrder(size, seed=seed)
        self.plan, self.rank, self.start = plan, rank, start

    def __iter__(self) -> Iterator[list[int]]:
        position = self.start
        while True:
            for micro in self.plan.micro_batches(self.rank):
                first = position + micro * self.plan.batch_gpu
                yield [self.order[first + i] for i in range(self.plan.batch_gpu)]
            position += self.plan.batch


class _Images(torch.utils.data.Dataset):
    """Whole micro-batches by their index lists; a UserError travels home as its message."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: list[int]) -> tuple[list[int], Tensor | str]:
        try:
            return indices, self.source.images(indices)
        except UserError as error:
            return indices, str(error)


def _unchanged(item: Any) -> Any:
    return item


def load_micro_batches(
    source: ImageSource,
    indices: MicroBatchIndices,
    *,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[tuple[list[int], Tensor]]:
    """Endless (dataset indices, images uint8 [batch_gpu, 3, R, R]) in the order of `indices`.

    `workers` processes decode ahead; 0 decodes here. UserError names a damaged image.
    """
    loader = torch.utils.data.DataLoader(
        _Images(source),
        batch_sampler=indices,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
    )
    for chosen, images in loader:
        if isinstance(images, str):
            raise UserError(images)
        yield chosen, images
