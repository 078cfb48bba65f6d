"""Pictures whose bytes hold the numbers that they show, and estimators that read them: exact to 16 bits.

What an estimator says of such a picture is known, so a metric of any definition has a value on paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics.adapter import Adapter, Request
from metrics.estimators.base import HeadEstimate, HeadEstimator, IdentityEmbedder, gaze_angles, head_rotation
from training.cameras import orbit_camera
from training.head.model import HeadInput, HeadParams

RESOLUTION = 16
WIDTHS = {'expression': 4, 'jaw': 3, 'rotation': 3, 'gaze': 4, 'identity': 6}
_SPAN = 4.0  # numbers lie in [-4, 4]


def encode(numbers: Tensor) -> Tensor:
    """[N, 20] -> pictures uint8 [N, 3, R, R]: two bytes a number, then what is left black."""
    whole = ((numbers / _SPAN + 1) * 32767.5).round().long().clamp(0, 65535)
    data = torch.stack([whole // 256, whole % 256], dim=-1).flatten(1).to(torch.uint8)
    images = torch.zeros(len(numbers), 3 * RESOLUTION * RESOLUTION, dtype=torch.uint8)
    images[:, : data.shape[1]] = data
    return images.view(-1, 3, RESOLUTION, RESOLUTION)


def decode(images: Tensor) -> dict[str, Tensor]:
    """The inverse of `encode`, by name."""
    count = sum(WIDTHS.values())
    data = images.flatten(1)[:, : 2 * count].long()
    numbers = ((data[:, 0::2] * 256 + data[:, 1::2]) / 32767.5 - 1) * _SPAN
    return dict(zip(WIDTHS, numbers.float().split(list(WIDTHS.values()), dim=1), strict=True))


class NumberEstimator(HeadEstimator):
    """Reads what a picture holds."""

    name = 'numbers'
    content_hash = 'n' * 64
    licence = 'none needed'
    head_model: str | None = 'numbers'

    def __call__(self, images: Tensor) -> HeadEstimate:
        found = decode(images)
        return HeadEstimate(
            expression=found['expression'],
            jaw=found['jaw'],
            rotation=found['rotation'],
            gaze=found['gaze'].view(-1, 2, 2),
            valid=images.flatten(1).any(dim=1),  # a black picture shows no face
        )

    def targets(self, params: Any, cameras: Tensor) -> HeadEstimate:
        return HeadEstimate(
            expression=params.expression,
            jaw=params.jaw,
            rotation=head_rotation(params, cameras),
            gaze=gaze_angles(params.eyes),
            valid=torch.ones(len(cameras), dtype=torch.bool),
        )

    def to(self, device: Any) -> NumberEstimator:
        return self


class NumberIdentity(IdentityEmbedder):
    """The direction of the numbers of identity."""

    name = 'numbers'
    content_hash = 'i' * 64
    licence = 'none needed'
    num_features = WIDTHS['identity']

    def embed(self, images: Tensor) -> Tensor:
        return torch.nn.functional.normalize(decode(images)['identity'], dim=1)

    def to(self, device: Any) -> NumberIdentity:
        return self


class NumberDataset:
    """48 pictures of 12 persons with all their labels."""

    name = 'numbers'
    resolution = RESOLUTION
    content_hash = 'd' * 64
    head_model_name = 'numbers'

    def __init__(self, count: int = 48) -> None:
        rng = torch.Generator().manual_seed(0)
        self.cameras = orbit_camera(
            0.3 * torch.randn(count, generator=rng),
            0.2 * torch.randn(count, generator=rng),
            roll=0.2 * torch.randn(count, generator=rng),
        )
        widths = {'identity': 6, 'expression': 4, 'jaw': 3, 'neck': 3, 'eyes': 6, 'rotation': 3, 'translation': 3}
        self.params = HeadParams(
            **{name: 0.2 * torch.randn(count, width, generator=rng) for name, width in widths.items()}
        )
        self.identities = torch.arange(count) // 4

    def __len__(self) -> int:
        return len(self.cameras)

    @property
    def names(self) -> list[str]:
        return [f'{index}.png' for index in range(len(self))]

    def images(self, indices: Sequence[int]) -> Tensor:
        rows = list(indices)
        return encode(shown(self.params[rows], self.cameras[rows], self.params.identity[rows]))

    def label(self, indices: Sequence[int]) -> Tensor:
        return self.cameras[list(indices)]

    def head_params(self, indices: Sequence[int]) -> HeadParams:
        return self.params[list(indices)]

    def head_input(self, indices: Sequence[int], *, device: Any) -> HeadInput:
        return self.pose(self.head_params(indices), device=device)

    def pose(self, params: HeadParams, *, device: Any) -> HeadInput:
        return HeadInput(torch.zeros(len(params), 3, 3), torch.zeros(len(params), 68, 3))


def shown(params: HeadParams, cameras: Tensor, identity: Tensor) -> Tensor:
    """What a perfect picture holds, [N, 20]."""
    gaze = gaze_angles(params.eyes).flatten(1)
    return torch.cat([params.expression, params.jaw, head_rotation(params, cameras), gaze, identity], dim=1)


class NumberAdapter(Adapter):
    """A perfect generator, or one that changes what it shows: `change` maps [N, 20] to [N, 20]."""

    name = 'numbers'
    resolution = RESOLUTION
    mixes = True

    def __init__(self, change: Callable[[Tensor], Tensor] | None = None, *, content_hash: str | None = None) -> None:
        self.change = change or (lambda numbers: numbers)
        self.content_hash = content_hash
        self.requests: list[Request] = []

    def images(self, request: Request) -> Tensor:
        self.requests.append(request)
        identity = np.stack([np.random.RandomState(seed).randn(6) for seed in request.seeds])
        numbers = shown(request.params, request.camera, torch.from_numpy(identity).float())
        return encode(self.change(numbers))


def columns(name: str) -> slice:
    """Where a quantity lies among the 20 numbers."""
    start = 0
    for other, width in WIDTHS.items():
        if other == name:
            return slice(start, start + width)
        start += width
    raise KeyError(name)
