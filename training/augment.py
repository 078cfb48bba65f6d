"""Augmentation of what the discriminator sees, at an adaptive or fixed probability (Karras et al. 2020).

Colour, noise and cutout change image and raw image of a sample alike; the template rendering, which shows geometry
only, is left alone. Geometry has a module of its own (training/augment_camera.py), since cameras must stay true.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

BRIGHTNESS_STD = 0.2
CONTRAST_STD = 0.5  # octaves
SATURATION_STD = 1.0  # octaves
HUE_MAX = 1.0  # half turns
NOISE_STD = 0.1
CUTOUT_SIZE = 0.5  # of the image's side


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """Colour, noise and cutout, each applied to a sample with the given probability; twice differentiable."""

    camera: bool = False  # whether the loss moves cameras before

    def __call__(
        self, image: Tensor, image_raw: Tensor, *, probability: float, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """[N, 3, R, R] and [N, 3, r, r] in [-1, 1] -> the same shapes; `rng` lives on their device."""
        if probability <= 0:
            return image, image_raw
        draw = Draw(image.shape[0], probability, rng, image.device)
        matrix = color_matrix(
            brightness=draw.normal() * BRIGHTNESS_STD,
            contrast=torch.exp2(draw.normal() * CONTRAST_STD),
            hue=draw.uniform() * (math.pi * HUE_MAX),
            saturation=torch.exp2(draw.normal() * SATURATION_STD),
        ).to(image.dtype)
        noise = (draw.normal() * NOISE_STD).abs()[:, None, None, None]
        cut = draw.gate()
        centre = torch.rand([image.shape[0], 2], generator=rng, device=image.device)
        results = []
        for pixels in (image, image_raw):
            colored = torch.einsum('nij,njhw->nihw', matrix[:, :, :3], pixels) + matrix[:, :, 3, None, None]
            noisy = colored + torch.randn(pixels.shape, generator=rng, device=pixels.device) * noise
            results.append(noisy * keep_mask(centre, cut, size=pixels.shape[-1]))
        return results[0], results[1]


class Draw:
    """Per-sample draws [N] (or [N, width]) that are 0 where the sample is not augmented."""

    def __init__(self, count: int, probability: float, rng: torch.Generator, device: torch.device) -> None:
        self.count, self.probability, self.rng, self.device = count, probability, rng, device

    def gate(self) -> Tensor:
        return torch.rand(self.count, generator=self.rng, device=self.device) < self.probability

    def normal(self, width: int | None = None) -> Tensor:
        if width is None:
            return torch.randn(self.count, generator=self.rng, device=self.device) * self.gate()
        return torch.randn([self.count, width], generator=self.rng, device=self.device) * self.gate()[:, None]

    def uniform(self) -> Tensor:
        return (torch.rand(self.count, generator=self.rng, device=self.device) * 2 - 1) * self.gate()


def color_matrix(*, brightness: Tensor, contrast: Tensor, hue: Tensor, saturation: Tensor) -> Tensor:
    """Affine maps of RGB [N, 3, 4] = saturation . hue . contrast . brightness; arguments [N], hue in radians."""
    eye = torch.eye(3, device=brightness.device)
    luma = torch.full([3, 3], 1 / 3, device=brightness.device)  # projection onto grey
    axis = 1 / math.sqrt(3)
    cross = torch.tensor([[0, -axis, axis], [axis, 0, -axis], [-axis, axis, 0]], device=brightness.device)
    cos, sin, stretch = (value[:, None, None] for value in (hue.cos(), hue.sin(), saturation))
    rotation = luma + (eye - luma) * cos + cross * sin
    linear = (luma + (eye - luma) * stretch) @ rotation * contrast[:, None, None]
    offset = linear @ brightness[:, None, None].expand(-1, 3, 1)
    return torch.cat([linear, offset], dim=2)


def keep_mask(centre: Tensor, cut: Tensor, *, size: int) -> Tensor:
    """0 inside the square about `centre` [N, 2] (column, row in [0, 1]) where `cut` [N], else 1. [N, 1, S, S]"""
    position = (torch.arange(size, device=centre.device) + 0.5) / size
    inside = (position[None, None, :] - centre[:, :, None]).abs() < CUTOUT_SIZE / 2  # [N, 2, S]
    square = inside[:, 1, :, None] & inside[:, 0, None, :]
    return (~(square & cut[:, None, None]))[:, None].float()


def adapted_probability(probability: float, *, sign: float, target: float, images: int, ramp_kimg: float) -> float:
    """ADA's control: one step towards the target mean sign of real logits, after `images` more images."""
    direction = math.copysign(1.0, sign - target) if sign != target else 0.0
    return min(max(probability + direction * images / (ramp_kimg * 1000), 0.0), 1.0)
