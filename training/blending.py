"""Blending: the net that hides the mouth's boundary, and the alpha blend with the static planes.

Paper sections 3.2 (neural blending module) and 3.3; SPEC sections 4 and 5.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.config import GeneratorConfig
from training.style_unet import ShallowUNet, build_blending_unet


class BlendingNet(nn.Module):
    """Removes the flicker at the boundary of the pasted mouth.

    'shallow' (paper): planes and pasted mouth, concatenated, through a plain UNet that corrects
    the planes. 'release': a style-UNet whose output replaces the (front) plane.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.release = config.blending == 'release'
        channels = config.plane_channels
        self.unet = build_blending_unet(config) if self.release else ShallowUNet(2 * channels, channels, width=channels)

    def forward(self, planes: Tensor, mouth: Tensor, ws: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        """Completed planes and mouth [N, P, C, R, R] -> blended planes of the same shape."""
        count, num_planes = planes.shape[:2]
        if self.release:
            repeated = ws.repeat_interleave(num_planes, dim=0) if num_planes > 1 else ws
            return self.unet(planes.flatten(0, 1), repeated, rng=rng).view_as(planes)
        stacked = torch.cat([planes, mouth], dim=2).flatten(0, 1)
        return self.unet(stacked).view(count, num_planes, *planes.shape[2:])


def blend(rasterized: Tensor, static: Tensor, alpha: Tensor) -> Tensor:
    """rasterized * alpha + static * (1 - alpha), plane by plane. [N, 3, C, R, R] and alpha [N, 3, 1, R, R]"""
    return rasterized * alpha + static * (1 - alpha)
