"""Pictures from tensors: ranges, grids, depth colours, files that are whole or absent."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dnnlib.files import atomic_write

# Anchors of a perceptually even dark-blue to yellow map (near is bright); RGB in [0, 1].
DEPTH_ANCHORS = ((0.99, 0.91, 0.65), (0.94, 0.62, 0.36), (0.76, 0.33, 0.42), (0.42, 0.18, 0.50), (0.08, 0.07, 0.26))


def to_uint8(images: Tensor) -> Tensor:
    """[..., H, W] in [-1, 1] -> uint8 of the same shape; values outside are clamped."""
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def depth_colors(depth: Tensor, *, near: float | None = None, far: float | None = None) -> Tensor:
    """Depth [N, 1, H, W] along the ray -> RGB [N, 3, H, W] in [-1, 1], near bright, far dark.

    near, far: the range shown (world units); None: that of each image.
    """
    flat = depth.flatten(1)
    low = flat.amin(dim=1) if near is None else flat.new_full((len(flat),), near)
    high = flat.amax(dim=1) if far is None else flat.new_full((len(flat),), far)
    span = (high - low).clamp_min(1e-6)[:, None, None, None]
    position = ((depth - low[:, None, None, None]) / span).clamp(0, 1) * (len(DEPTH_ANCHORS) - 1)
    anchors = depth.new_tensor(DEPTH_ANCHORS)
    lower = position.floor().clamp(max=len(DEPTH_ANCHORS) - 2).long()
    mix = position - lower
    colors = anchors[lower[:, 0]].movedim(-1, 1) * (1 - mix) + anchors[lower[:, 0] + 1].movedim(-1, 1) * mix
    return colors * 2 - 1


def resize(images: Tensor, size: int) -> Tensor:
    """Square images [N, C, H, W] -> [N, C, size, size]: nearest for whole-number enlargement, else bilinear."""
    if images.shape[-1] == size and images.shape[-2] == size:
        return images
    if size % images.shape[-1] == 0 and images.shape[-1] == images.shape[-2]:
        return F.interpolate(images, size=(size, size), mode='nearest')
    return F.interpolate(images, size=(size, size), mode='bilinear', align_corners=False, antialias=True)


def grid(images: Tensor | Sequence[Tensor], columns: int) -> Tensor:
    """Images [N, C, H, W] in reading order -> one picture [C, rows * H, columns * W]; missing cells are -1."""
    batch = images if isinstance(images, Tensor) else torch.stack(list(images))
    if batch.ndim != 4 or not len(batch) or columns < 1:
        raise ValueError(f'images: expected [N, C, H, W] with N and columns at least 1, got {list(batch.shape)}')
    count, channels, height, width = batch.shape
    rows = -(-count // columns)
    empty = batch.new_full((rows * columns - count, channels, height, width), -1.0)
    cells = torch.cat([batch, empty]).reshape(rows, columns, channels, height, width)
    return cells.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)


def to_array(picture: Tensor) -> NDArray[np.uint8]:
    """[3, H, W] in [-1, 1] -> uint8 array [H, W, 3]."""
    return to_uint8(picture).movedim(0, -1).contiguous().cpu().numpy()


def save_png(path: str | os.PathLike[str], picture: Tensor) -> None:
    """Write [3, H, W] in [-1, 1] as a PNG that is whole or absent; UserError if it cannot be written."""
    from PIL import Image

    image = Image.fromarray(to_array(picture))
    with atomic_write(path) as handle:
        image.save(handle, format='png')
