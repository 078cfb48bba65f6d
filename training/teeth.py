"""Mouth completion: crop, G_teeth, paste (paper section 3.2, Fig. 3 and 12; SPEC section 4).

The crop and the paste are separable antialiased resizings with a box of its own for every
sample, written as two batched matrix products: no loop over samples, no copy to the host.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from training.config import GeneratorConfig
from training.style_unet import build_mouth_unet

MOUTH = slice(48, 60)  # outer lips of the 68 landmarks
CORNERS = (48, 54)
EXPANSION = 1.2
MIN_SIDE = 4.0  # pixels: keeps a degenerate mouth from dividing by zero


@dataclasses.dataclass(frozen=True)
class MouthBoxes:
    """Square boxes in plane pixels, rows and columns, one per sample and plane. [N, P, 2]"""

    start: Tensor  # (row, column) of the upper left corner
    stop: Tensor


def mouth_boxes(landmarks: Tensor, resolution: int, *, rounding: str) -> MouthBoxes:
    """Boxes around landmarks [N, P, 68, 2] (column, row in [-1, 1]) on planes of `resolution`.

    'rounded' truncates to whole pixels as the release does (and clamps at the border, where
    the release runs off the plane); 'continuous' moves smoothly. All planes of a sample share the
    largest side, so that the crops have one scale.
    """
    pixels = (landmarks * (resolution / 2) + resolution / 2).flip(-1)  # (row, column)
    mouth = pixels[:, :, MOUTH]
    extent = (mouth.amax(dim=2) - mouth.amin(dim=2)).amax(dim=(1, 2))[:, None, None]
    centre = (pixels[:, :, CORNERS[0]] + pixels[:, :, CORNERS[1]]) / 2
    if rounding == 'rounded':
        half = torch.div((EXPANSION * extent).trunc(), 2, rounding_mode='floor')
        start, stop = (centre - half).trunc().clamp(0, resolution - 1), (centre + half).trunc()
        return MouthBoxes(start, torch.maximum(stop.clamp(max=resolution), start + 1))
    half = (EXPANSION * extent).clamp(min=MIN_SIDE) / 2
    return MouthBoxes(centre - half, centre + half)


def _triangle(centres: Tensor, positions: Tensor, support: Tensor) -> Tensor:
    """Antialiased linear filter: rows of weights from `positions` [.., 1, B] to `centres` [.., A, 1]."""
    return (1 - (positions - centres).abs() / support).clamp(min=0)


def _coverage(start: Tensor, stop: Tensor, size: int) -> Tensor:
    """Covered fraction of each pixel of an axis by [start, stop). start [...] -> [..., size]"""
    pixels = torch.arange(size, device=start.device, dtype=start.dtype)
    return (torch.minimum(pixels + 1, stop[..., None]) - torch.maximum(pixels, start[..., None])).clamp(0, 1)


def crop_weights(start: Tensor, stop: Tensor, size: int, out: int) -> Tensor:
    """Resizing of pixels [start, stop) of an axis of `size` to `out` samples. start [...] -> [..., out, size]"""
    coverage = _coverage(start, stop, size)
    scale = (stop - start)[..., None, None] / out
    local = torch.arange(size, device=start.device, dtype=start.dtype) + 0.5 - start[..., None, None]
    centres = (torch.arange(out, device=start.device, dtype=start.dtype) + 0.5)[:, None] * scale
    weights = _triangle(centres, local, scale.clamp(min=1)) * coverage[..., None, :]
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-6)


def paste_weights(start: Tensor, stop: Tensor, size: int, source: int) -> tuple[Tensor, Tensor]:
    """Resizing of `source` samples into pixels [start, stop) of an axis of `size`.

    start [...] -> weights [..., size, source], zero outside the box, and coverage [..., size]
    (1 inside, 0 outside, the covered fraction on a border pixel of a continuous box).
    """
    pixels = torch.arange(size, device=start.device, dtype=start.dtype)
    coverage = _coverage(start, stop, size)
    scale = source / (stop - start)[..., None, None]
    local = (pixels[:, None] + 0.5 - start[..., None, None]).clamp(min=0)
    centres = torch.minimum(local * scale, torch.full_like(scale, float(source)))
    positions = torch.arange(source, device=start.device, dtype=start.dtype) + 0.5
    weights = _triangle(centres, positions, scale.clamp(min=1))
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-6)
    return weights * (coverage > 0)[..., None], coverage


@dataclasses.dataclass(frozen=True)
class CompletedMouth:
    planes: Tensor  # [N, P, C, R, R]: the rasterized planes with the mouth pasted in
    mouth: Tensor  # [N, P, C, R, R]: the pasted mouth alone, zero outside its box


class MouthCompletion(nn.Module):
    """G_teeth: a style-modulated UNet on the mouth crops of the first P planes (P = 3, or 1 as in the release)."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.num_planes = 3 if config.mouth_planes == 'all' else 1
        self.unet = build_mouth_unet(config)

    def boxes(self, landmarks: Tensor) -> MouthBoxes:
        """Boxes on the completed planes from plane landmarks [N, 3, 68, 2]."""
        planes = landmarks[:, : self.num_planes]
        return mouth_boxes(planes, self.config.plane_resolution, rounding=self.config.mouth_box)

    def crop(self, planes: Tensor, boxes: MouthBoxes) -> Tensor:
        """planes [N, P, C, R, R] -> crops [N, P, C, S, S], S = mouth_resolution."""
        size, out = planes.shape[-1], self.config.mouth_resolution
        weights = crop_weights(boxes.start, boxes.stop, size, out)  # [N, P, 2, S, R]
        rows, columns = weights[:, :, 0, None], weights[:, :, 1, None]
        return rows @ planes @ columns.transpose(-1, -2)

    def paste(self, planes: Tensor, crops: Tensor, boxes: MouthBoxes) -> CompletedMouth:
        """crops [N, P, C, S', S'] resized into their boxes on planes [N, P, C, R, R]."""
        weights, coverage = paste_weights(boxes.start, boxes.stop, planes.shape[-1], crops.shape[-1])
        mouth = weights[:, :, 0, None] @ crops @ weights[:, :, 1, None].transpose(-1, -2)
        mask = (coverage[:, :, 0, :, None] * coverage[:, :, 1, None, :])[:, :, None]
        mouth = mouth * mask
        return CompletedMouth(planes * (1 - mask) + mouth, mouth)

    def forward(
        self, rasterized: Tensor, landmarks: Tensor, ws: Tensor, *, rng: torch.Generator | None = None
    ) -> CompletedMouth:
        """rasterized [N, 3, C, R, R], plane landmarks [N, 3, 68, 2] -> the first P planes completed."""
        planes = rasterized[:, : self.num_planes]
        boxes = self.boxes(landmarks)
        crops = self.crop(planes, boxes)
        out = self.unet(crops.flatten(1, 2), ws, rng=rng)
        out = out.view(out.shape[0], self.num_planes, -1, *out.shape[-2:])
        return self.paste(planes, out, boxes)
