"""Datasets with images that cannot be decoded: the next readable item takes the place of one that cannot."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib.errors import UserError
from torch_utils.distributed import Communicator
from training.dataset import HeadDataset, Indices

MAX_SHARE = 0.01  # of bad images in what was read
GRACE = 10  # bad readings before the share counts: a short run cannot know its share yet


class TolerantDataset(HeadDataset):
    """A HeadDataset that replaces items whose image is damaged, as a function of the dataset alone.

    The replacement of an item is the next one in order that is readable, of the same clip where `keep_clips`; so it
    is the same on every rank, in every process and after a resume. What the disk fails to deliver is still an
    error: it may be there the next time.
    """

    def __init__(self, path: str | os.PathLike[str], *, keep_clips: bool = False, **options: Any) -> None:
        super().__init__(path, **options)
        self._item_clips = self.item_clips() if keep_clips else None
        self._bad: dict[int, str] = {}  # row -> what is wrong with it, as far as this process knows

    def readable(self, indices: Indices) -> tuple[list[int], Tensor, list[int]]:
        """(items, their images uint8 [N, 3, R, R], rows of the replaced ones).

        UserError if a whole clip, or the whole dataset, is not readable.
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1).tolist()
        while True:
            chosen = [self._replacement(item) for item in wanted]
            try:
                images = super().images(chosen)
            except UserError:
                self._find_bad(chosen)
                continue
            pairs = zip(wanted, chosen, strict=True)
            return chosen, images, [item % len(self.names) for item, taken in pairs if item != taken]

    def images(self, indices: Indices) -> Tensor:
        """As HeadDataset.images, with the replacements' images."""
        return self.readable(indices)[1]

    def _find_bad(self, items: list[int]) -> None:
        """Note the rows that cannot be decoded; raises what has another cause."""
        for row in sorted({item % len(self.names) for item in items}):
            try:
                self._decode(row)
            except UserError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno is not None:
                    raise
                self._bad[row] = str(error)

    def _replacement(self, item: int) -> int:
        if item % len(self.names) not in self._bad:
            return item
        for step in range(1, len(self)):
            other = (item + step) % len(self)
            same = self._item_clips is None or self._item_clips[other] == self._item_clips[item]
            if same and other % len(self.names) not in self._bad:
                return other
        where = 'no image' if self._item_clips is None else 'no frame of its clip'
        raise UserError(f'{self._bad[item % len(self.names)]}; {where} is readable')


class BadImages:
    """How much of what a run read was replaced because it was damaged."""

    def __init__(self, dataset: HeadDataset) -> None:
        self.dataset = dataset
        self.read = self.replaced = 0  # images, over all ranks, since the start of the run
        self._named: set[int] = set()

    def collect(self, communicator: Communicator, *, read: int, rows: list[int]) -> tuple[int, list[str]]:
        """Number of replaced images and lines that name the new ones, of `read` images that all ranks read together.

        `rows` are those of this rank. Collective. UserError on every rank if more than MAX_SHARE of everything that
        the run read was replaced.
        """
        counts = torch.bincount(torch.tensor(rows, dtype=torch.int64), minlength=len(self.dataset.names))
        counts = communicator.sum_(counts.to(communicator.device))
        recent, rows = int(counts.sum()), counts.nonzero().flatten().tolist()
        self.read, self.replaced = self.read + read, self.replaced + recent
        where = self.dataset.path
        if self.replaced > max(GRACE, MAX_SHARE * self.read):
            raise UserError(
                f'{where}: {self.replaced} of {self.read} images read were damaged, more than {MAX_SHARE:.0%}, among'
                f' them {self.dataset.names[rows[0]]}; `dataset_tool.py validate` lists them'
            )
        new = [row for row in rows if row not in self._named]
        self._named.update(new)
        return recent, [f'warning: {where}: {self.dataset.names[row]} is damaged, others take its place' for row in new]
