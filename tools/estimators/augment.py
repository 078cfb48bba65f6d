"""What is done to rendered pictures so that an estimator does not lean on their style."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SHIFT = 0.05  # of the half side
MAX_ZOOM = 0.04
MAX_NOISE = 0.05
MAX_GAIN = 0.12
GREY = (0.299, 0.587, 0.114)


def augment(images: Tensor, *, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Float images [N, 3, R, R] in [-1, 1], each shifted, scaled, recoloured, blurred or sharpened, made noisy.

    Also returns the maps [N, 2, 3] from places in the result to places in the picture, both in [-1, 1]; no other label
    changes. Strengths are drawn per picture; a third of them is neither blurred nor noisy.
    """
    images, matrix = _move(images, rng)
    images = _recolour(images, rng)
    images = _blur(images, rng)
    strength = _uniform(images, 0, MAX_NOISE, rng) * _chance(images, 0.4, rng)
    noise = torch.randn(images.shape, generator=rng)
    return (images + strength * noise).clamp(-1, 1), matrix


def spoil(images: Tensor, *, rng: torch.Generator) -> Tensor:
    """Pictures [N, 3, R, R] that show no face: quarters in another order, upside down, or a magnified corner."""
    spoilt = []
    for number, image in enumerate(images):
        side = image.shape[1] // 2
        if number % 3 == 0:
            order = 1 + int(torch.randint(3, (1,), generator=rng))
            spoilt.append(image.roll((side * (order // 2), side * (order % 2)), dims=(1, 2)))
        elif number % 3 == 1:
            spoilt.append(image.flip(1))
        else:
            corner = image[:, : side // 2, : side // 2] if number % 2 else image[:, : side // 2, -side // 2 :]
            spoilt.append(F.interpolate(corner[None], size=image.shape[1:], mode='bilinear', align_corners=False)[0])
    return torch.stack(spoilt)


def _uniform(images: Tensor, low: float, high: float, rng: torch.Generator, channels: int = 1) -> Tensor:
    return low + (high - low) * torch.rand(len(images), channels, 1, 1, generator=rng)


def _chance(images: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    return (torch.rand(len(images), 1, 1, 1, generator=rng) < probability).to(images.dtype)


def _move(images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    matrix = torch.zeros(len(images), 2, 3)
    zoom = 1 + MAX_ZOOM * (2 * torch.rand(len(images), generator=rng) - 1)
    matrix[:, 0, 0] = matrix[:, 1, 1] = zoom
    matrix[:, :, 2] = MAX_SHIFT * (2 * torch.rand(len(images), 2, generator=rng) - 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode='bilinear', padding_mode='border', align_corners=False)
    return moved, matrix


def _recolour(images: Tensor, rng: torch.Generator) -> Tensor:
    grey = (images * images.new_tensor(GREY)[:, None, None]).sum(dim=1, keepdim=True)
    images = grey + (images - grey) * _uniform(images, 0.7, 1.2, rng)
    gain = _uniform(images, 1 - MAX_GAIN, 1 + MAX_GAIN, rng) * _uniform(images, 0.95, 1.05, rng, channels=3)
    return images * gain + _uniform(images, -0.1, 0.1, rng)


def _blur(images: Tensor, rng: torch.Generator) -> Tensor:
    """Towards a binomially smoothed picture, or away from it (sharper)."""
    line = images.new_tensor([1, 4, 6, 4, 1]) / 16
    kernel = (line[:, None] * line).expand(3, 1, 5, 5)
    smooth = F.conv2d(F.pad(images, (2, 2, 2, 2), mode='replicate'), kernel, groups=3)
    amount = _uniform(images, -0.4, 1.0, rng) * _chance(images, 0.5, rng)
    return images + amount * (smooth - images)
