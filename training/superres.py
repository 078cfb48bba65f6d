"""Stage 6: super-resolution of the rendered features (paper section 3.4), without noise."""

from __future__ import annotations

import torch
from torch import nn

from training.config import GeneratorConfig
from training.layers import filtered_resize, log2_resolution
from training.stylegan2 import SynthesisBlock, num_synthesis_ws

# R's variants by image resolution: (input resolution, (width, upsampling) of the two blocks).
_HYBRIDS = {
    512: (128, ((256, 2), (128, 2))),
    256: (128, ((128, 1), (64, 2))),
    128: (64, ((128, 1), (64, 2))),
}


class SuperResolution(nn.Module):
    """features [N, plane_channels, r, r] and rgb [N, 3, r, r] -> image [N, 3, image_resolution, image_resolution].

    superres = 'stylegan2' (P): one block per doubling of render_resolution, widths superres_channels halving per
    block (at least 8); with render_resolution = image_resolution there is no block and rgb is returned.
    'hybrid' (R): two blocks of fixed widths chosen by image_resolution. Inputs of another resolution than the first
    block's are resized with antialiasing. ws [N, num_ws or more, w_dim]: every layer reads row .num_ws - 1, the last
    of a synthesis network of plane_resolution. The image has the range of rgb. Neither input is written to.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.num_ws = num_synthesis_ws(config.plane_resolution)
        self.w_dim = config.w_dim
        self.feature_channels = config.plane_channels
        self.input_resolution, table = _block_table(config)
        self.num_blocks = len(table)
        channels, resolution = config.plane_channels, self.input_resolution
        for index, (width, up) in enumerate(table):
            resolution *= up
            block = SynthesisBlock(
                channels, width, w_dim=config.w_dim, resolution=resolution, image_channels=3, up=up, use_noise=False
            )
            setattr(self, f'block{index}', block)
            channels = width

    def forward(self, features: torch.Tensor, rgb: torch.Tensor, ws: torch.Tensor) -> torch.Tensor:
        if features.ndim != 4 or features.shape[1] != self.feature_channels:
            raise ValueError(f'features: expected [N, {self.feature_channels}, r, r], got {list(features.shape)}')
        if rgb.ndim != 4 or rgb.shape[1] != 3:
            raise ValueError(f'rgb: expected [N, 3, r, r], got {list(rgb.shape)}')
        if ws.ndim != 3 or ws.shape[1] < self.num_ws or ws.shape[2] != self.w_dim:
            raise ValueError(f'ws: expected [N, {self.num_ws} or more, {self.w_dim}], got {list(ws.shape)}')
        rows = ws[:, self.num_ws - 1 : self.num_ws].expand(-1, 3, -1)
        x = filtered_resize(features, self.input_resolution)
        image = filtered_resize(rgb, self.input_resolution)
        for index in range(self.num_blocks):
            x, image = getattr(self, f'block{index}')(x, image, ws=rows)
        return image


def _block_table(config: GeneratorConfig) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Input resolution and (width, upsampling) of each block."""
    if config.superres == 'hybrid':
        if config.image_resolution not in _HYBRIDS:
            known = ', '.join(map(str, _HYBRIDS))
            raise ValueError(f"image_resolution: superres 'hybrid' exists for {known}, got {config.image_resolution}")
        return _HYBRIDS[config.image_resolution]
    low = log2_resolution(config.render_resolution, name='render_resolution')
    high = log2_resolution(config.image_resolution, name='image_resolution')
    if high < low:
        raise ValueError(
            f'image_resolution: expected at least render_resolution = {config.render_resolution}, '
            f'got {config.image_resolution}'
        )
    widths = (max(8, config.superres_channels >> index) for index in range(high - low))
    return config.render_resolution, tuple((width, 2) for width in widths)
