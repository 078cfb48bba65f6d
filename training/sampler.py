"""Which images a step sees, as a pure function of (seed, position), and their loading.

A step's batch is cut into micro-batches of `batch_gpu` samples, numbered over the whole batch;
rank r takes micro-batches r, r + ranks, ... Everything random and the discriminator's minibatch
statistic belong to a micro-batch, so a result depends on batch and batch_gpu, not on the number of ranks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dnnlib.errors import UserError
from torch_utils.rng import numpy_stream
from torch_utils.workers import start_worker


class ImageSource(Protocol):
    """What loading needs of a dataset."""

    def __len__(self) -> int: ...

    def images(self, indices: list[int]) -> Tensor: ...

    def readable(self, indices: list[int]) -> tuple[list[int], Tensor, list[int]]: ...


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


class ClipOrder:
    """An endless shuffled sequence of groups of `frames` items, each of one clip.

    An epoch shuffles the frames of every clip, cuts them into groups, and shuffles the groups of all clips. A
    clip whose length is no multiple of `frames` fills its last group with its first ones, so that every item comes
    in every epoch and none of another clip. Each epoch is a function of (seed, epoch).
    """

    def __init__(self, clips: np.ndarray, *, frames: int, seed: int) -> None:
        if frames < 1 or not len(clips):
            raise ValueError(f'frames: expected at least 1, and at least one item, got {frames} and {len(clips)}')
        _, self._clips, lengths = np.unique(clips, return_inverse=True, return_counts=True)
        self.frames, self.seed = frames, seed
        groups = -(-lengths // frames)
        starts = np.cumsum(lengths) - lengths  # of a clip in the order by clips
        first = np.cumsum(groups) - groups
        number = np.arange(groups.sum()) - np.repeat(first, groups)  # of a group within its clip
        slots = number[:, None] * frames + np.arange(frames)
        self._slots = np.repeat(starts, groups)[:, None] + slots % np.repeat(lengths, groups)[:, None]
        self.size = len(self._slots)
        self._epoch = -1
        self._order = np.empty((0, frames), np.int64)

    def __getitem__(self, position: int) -> list[int]:
        """The group at a position of the sequence."""
        epoch, offset = divmod(position, self.size)
        if epoch != self._epoch:
            rng = numpy_stream(self.seed, 'clips', epoch)
            shuffled = np.lexsort((rng.random(len(self._clips)), self._clips))
            self._order = shuffled[self._slots[rng.permutation(self.size)]]
            self._epoch = epoch
        return self._order[offset].tolist()


def across(groups: Tensor) -> Tensor:
    """[groups, frames, ...] -> [groups * frames, ...] with the first frame of every group first.

    The discriminator's minibatch statistic compares samples that lie N / group size apart: so frames of one clip.
    """
    return groups.transpose(0, 1).flatten(0, 1)


class MicroBatchIndices(torch.utils.data.Sampler[list[int]]):
    """Endless index lists of one rank's micro-batches from image number `start` on.

    With `clips` [size], the clip of each item, a micro-batch is made of groups of `clip_frames` items of one
    clip, in the order of `across`.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int,
        plan: BatchPlan,
        rank: int,
        start: int,
        clips: np.ndarray | None = None,
        clip_frames: int = 1,
    ) -> None:
        if plan.batch_gpu % clip_frames:
            raise ValueError(f'clip_frames: {clip_frames} does not divide batch_gpu = {plan.batch_gpu}')
        self.order = InfiniteOrder(size, seed=seed)
        self.clip_order = None if clips is None else ClipOrder(clips, frames=clip_frames, seed=seed)
        self.plan, self.rank, self.start = plan, rank, start

    def __iter__(self) -> Iterator[list[int]]:
        position = self.start
        while True:
            for micro in self.plan.micro_batches(self.rank):
                first = position + micro * self.plan.batch_gpu
                yield self._micro_batch(first)
            position += self.plan.batch

    def _micro_batch(self, first: int) -> list[int]:
        count = self.plan.batch_gpu
        if self.clip_order is None:
            return [self.order[first + i] for i in range(count)]
        frames = self.clip_order.frames
        groups = [self.clip_order[first // frames + i] for i in range(count // frames)]
        return across(torch.tensor(groups)).tolist()


class _Images(torch.utils.data.Dataset):
    """Whole micro-batches by their index lists; a UserError travels home as its message."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: list[int]) -> tuple[list[int], Tensor, list[int]] | str:
        try:
            return self.source.readable(indices)
        except UserError as error:
            return str(error)


def _start_loader(_: int) -> None:
    start_worker()


def _unchanged(item: Any) -> Any:
    return item


@contextlib.contextmanager
def explained_workers() -> Iterator[None]:
    """Turn the death of a loading process, which torch raises wherever the main one is, into a UserError."""
    try:
        yield
    except RuntimeError as error:
        found = re.search(r'DataLoader worker \(pid\(?s?\)? ([\d, ]+)\)(?: is killed by signal: ([^.]+))?', str(error))
        if found is None:
            raise
        how = f'was killed by signal {found[2]}' if found[2] else 'ended unexpectedly'
        raise UserError(
            f'a process that loads images (pid {found[1]}) {how} (out of memory?); the same command continues the run,'
            ' with fewer --workers if it happens again'
        ) from error


def load_micro_batches(
    source: ImageSource,
    indices: MicroBatchIndices,
    *,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[tuple[list[int], Tensor, list[int]]]:
    """Endless (dataset indices, images uint8 [batch_gpu, 3, R, R], replaced rows) in the order of `indices`.

    `workers` processes decode ahead; 0 decodes here. UserError names a damaged image.
    """
    loader = torch.utils.data.DataLoader(
        _Images(source),
        batch_sampler=indices,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        worker_init_fn=_start_loader,
        prefetch_factor=4 if workers else None,
    )
    for loaded in loader:
        if isinstance(loaded, str):
            raise UserError(loaded)
        yield loaded
