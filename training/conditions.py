"""What an image is generated or judged under: cameras, heads and the discriminator's labels, from a dataset.

A fake image takes its camera and its head parameters from one random dataset item (SPEC section 6);
the camera shown to the mapping network is swapped for another random item's with a probability.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dnnlib.errors import UserError
from training.cameras import LABEL_DIM
from training.head.model import HeadInput, HeadModel, HeadParams
from training.sampler import ImageSource, across


class HeadImages(ImageSource, Protocol):
    """What training needs of a dataset (training/dataset.py)."""

    name: str
    resolution: int
    labels: Tensor  # [M, 25], not mirrored

    @property
    def head_model(self) -> HeadModel: ...

    def label(self, indices: list[int]) -> Tensor: ...

    def head_params(self, indices: list[int]) -> HeadParams | None: ...

    def head_input(self, indices: list[int], *, device: torch.device) -> HeadInput: ...

    def item_clips(self) -> np.ndarray | None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions:
    """N samples; cameras and heads are world and head frame (training/cameras.py)."""

    label: Tensor  # [N, 25] the camera of the image
    head: HeadInput
    discriminator_label: Tensor  # [N, D.label_dim]
    mapping_label: Tensor | None = None  # [N, 25] what the mapping network is told; fakes only


class ConditionSource:
    """Draws conditions for fakes and looks them up for reals."""

    def __init__(self, dataset: HeadImages, *, label_dim: int, device: torch.device, clip_frames: int = 1) -> None:
        self.dataset = dataset
        self.device = device
        self.label_dim = label_dim  # of the discriminator
        self.clip_frames = clip_frames
        self.clips = dataset_clips(dataset) if clip_frames > 1 else None  # [len(dataset)]

    def real(self, indices: list[int]) -> Conditions:
        """The conditions of dataset items."""
        return Conditions(
            label=self.dataset.label(indices).to(self.device),
            head=self.dataset.head_input(indices, device=self.device),
            discriminator_label=self._discriminator_label(indices).to(self.device),
        )

    def fake(self, count: int, *, swap_probability: float, rng: torch.Generator) -> Conditions:
        """`count` random items; each mapping label is another random item's with `swap_probability`. `rng`: CPU."""
        if self.clips is not None:
            return self._fake_clips(count, swap_probability=swap_probability, rng=rng)
        indices = torch.randint(len(self.dataset), [count], generator=rng)
        others = torch.randint(len(self.dataset), [count], generator=rng)
        swapped = torch.where(torch.rand(count, generator=rng) < swap_probability, others, indices)
        mapping_label = self.dataset.label(swapped.tolist()).to(self.device)
        return dataclasses.replace(self.real(indices.tolist()), mapping_label=mapping_label)

    def _fake_clips(self, count: int, *, swap_probability: float, rng: torch.Generator) -> Conditions:
        """Groups of random frames of random items' clips, laid `across`; one mapping label a group: one w a person."""
        groups = count // self.clip_frames
        firsts, others = torch.randint(len(self.dataset), [2, groups], generator=rng)
        swapped = torch.where(torch.rand(groups, generator=rng) < swap_probability, others, firsts)
        order, starts, lengths, clip_of = self._clip_rows
        clips = clip_of[firsts.numpy()]
        offsets = (torch.rand(groups, self.clip_frames, generator=rng).numpy() * lengths[clips, None]).astype(np.int64)
        frames = torch.from_numpy(order[starts[clips, None] + offsets])
        mapping_label = across(self.dataset.label(swapped.tolist())[:, None].expand(-1, self.clip_frames, -1))
        conditions = self.real(across(frames).tolist())
        return dataclasses.replace(conditions, mapping_label=mapping_label.to(self.device))

    @cached_property
    def _clip_rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Items sorted by clip, where each clip starts in that order, its length, and the clip of each item."""
        assert self.clips is not None
        _, clip_of, lengths = np.unique(self.clips, return_inverse=True, return_counts=True)
        return np.argsort(clip_of, kind='stable'), np.cumsum(lengths) - lengths, lengths, clip_of

    def _discriminator_label(self, indices: list[int]) -> Tensor:
        """The camera [N, 25], followed by as many expression coefficients as the label has room for."""
        camera = self.dataset.label(indices)
        extra = self.label_dim - LABEL_DIM
        if extra <= 0:
            return camera[:, : self.label_dim]
        params = self.dataset.head_params(indices)
        if params is None:
            raise UserError(
                f'{self.dataset.name}: has no head parameters, which D.label_dim={self.label_dim} needs '
                f'(camera 25 + {extra} expression numbers); use D.label_dim=25'
            )
        expression = params.expression[:, :extra].cpu()
        return torch.cat([camera, torch.nn.functional.pad(expression, (0, extra - expression.shape[1]))], dim=1)


def label_width(dataset: HeadImages) -> int:
    """How long a label of camera and all expression coefficients of a dataset is (D.label_dim = -1); UserError
    if it has no head parameters."""
    params = dataset.head_params([0])
    if params is None:
        raise UserError(f'{dataset.name}: has no head parameters, which D.label_dim=-1 needs; use D.label_dim=25')
    return LABEL_DIM + params.expression.shape[1]


def dataset_clips(dataset: HeadImages) -> np.ndarray:
    """The clip of each item; UserError if the dataset knows none."""
    clips = dataset.item_clips()
    if clips is None:
        raise UserError(
            f'{dataset.name}: does not say which images are frames of one clip, which --clip-frames needs; use'
            ' --clip-frames=1, or a dataset made by `dataset_tool.py from-video`'
        )
    return clips
