"""Producers of image batches: a dataset and a generator, addressed by index.

Image `index` of a source is a function of that index alone, so that a result depends neither on the
batch size nor on how the indices were shared out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from dnnlib import UserError
from torch_utils.rng import numpy_stream, stream


class ImageSource(Protocol):
    """Images by index."""

    def __len__(self) -> int: ...

    def images(self, indices: Sequence[int]) -> Tensor:
        """uint8 [n, 3, H, W]."""


class Dataset(Protocol):
    """The part of training.dataset.HeadDataset that metrics use."""

    name: str
    resolution: int

    @property
    def content_hash(self) -> str: ...

    def __len__(self) -> int: ...

    def images(self, indices: Any) -> Tensor: ...

    def label(self, indices: Any) -> Tensor: ...

    def head_input(self, indices: Any, *, device: torch.device) -> Any: ...


def batches(
    source: ImageSource, indices: Sequence[int], *, batch: int, rank: int = 0, size: int = 1
) -> Iterator[tuple[slice, Tensor]]:
    """(position in `indices`, uint8 images) of every batch that falls to this rank.

    Batches are cut before they are shared out, so that each holds the same images at any number of ranks.
    """
    if batch < 1:
        raise ValueError(f'batch: expected at least 1, got {batch}')
    for number, start in enumerate(range(0, len(indices), batch)):
        if number % size == rank:
            chosen = indices[start : start + batch]
            yield slice(start, start + len(chosen)), source.images(chosen)


class DatasetImages:
    """The images of a dataset on `device`."""

    def __init__(self, dataset: Dataset, *, device: torch.device) -> None:
        self.dataset = dataset
        self.device = device

    def __len__(self) -> int:
        return len(self.dataset)

    def images(self, indices: Sequence[int]) -> Tensor:
        return self.dataset.images(indices).to(self.device)


class GeneratedImages:
    """`count` images of a generator; latent, camera and head are drawn per image (paper section 4.1).

    Camera and head parameters come from one random item of the dataset, as in training; the camera is
    also what the generator is conditioned on. Rendering is deterministic.
    """

    def __init__(
        self,
        generator: Any,  # training.generator.Generator
        dataset: Dataset,
        *,
        count: int,
        seed: int,
        device: torch.device,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
    ) -> None:
        if generator.config.image_resolution != dataset.resolution:
            raise UserError(
                f'{dataset.name}: images are {dataset.resolution} px but the network makes '
                f'{generator.config.image_resolution} px; measure against a dataset of its own size'
            )
        self.generator = generator
        self.dataset = dataset
        self.count = count
        self.seed = seed
        self.device = device
        self.truncation = {'truncation_psi': truncation_psi, 'truncation_cutoff': truncation_cutoff}

    def __len__(self) -> int:
        return self.count

    @torch.no_grad()
    def images(self, indices: Sequence[int]) -> Tensor:
        streams = [stream('metric', self.seed, index) for index in indices]
        items = [int(torch.randint(len(self.dataset), (1,), generator=rng)) for rng in streams]
        z = torch.cat([torch.randn(1, self.generator.config.z_dim, generator=rng) for rng in streams]).to(self.device)
        label = self.dataset.label(items).to(self.device)
        head = self.dataset.head_input(items, device=self.device)
        ws = self.generator.map(z, label, **self.truncation)
        planes = self.generator.deform(self.generator.identity(ws), head)
        image = self.generator.render(planes, label).image
        return (image * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def choose_indices(total: int, count: int | None, *, seed: int) -> list[int]:
    """All indices below `total`, or `count` of them without repetition, in ascending order."""
    if count is None or count >= total:
        return list(range(total))
    return sorted(int(i) for i in numpy_stream('metric-subset', seed, total).permutation(total)[:count])
