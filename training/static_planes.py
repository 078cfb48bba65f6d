"""Stage 4: planes of what the template does not cover: hair, background, body (paper section 3.3)."""

from __future__ import annotations

import torch
from torch import nn

from training.config import GeneratorConfig
from training.stylegan2 import SynthesisNetwork


class StaticPlanes(nn.Module):
    """ws [N, num_ws, w_dim] (the first half of the mapping's rows) -> three static planes [N, 3, C, R, R].

    static_planes = 'eg3d': the network makes a fourth plane that is transposed and added to the one read at (x, z),
    so that it is read at (z, x), where EG3D reads its third.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.num_made = 4 if config.static_planes == 'eg3d' else 3
        self.synthesis = SynthesisNetwork(
            config.w_dim,
            config.plane_resolution,
            self.num_made * config.plane_channels,
            channel_base=config.channel_base,
            channel_max=config.channel_max,
        )
        self.num_ws = self.synthesis.num_ws

    def forward(self, ws: torch.Tensor, *, rng: torch.Generator | None = None) -> torch.Tensor:
        planes = self.synthesis(ws, rng=rng).unflatten(1, (self.num_made, -1))
        if self.num_made == 3:
            return planes
        front, top, side, transposed = planes.unbind(dim=1)
        return torch.stack([front, top + transposed.transpose(-1, -2), side], dim=1)
