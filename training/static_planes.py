"""Stage 4: planes of what the template does not cover: hair, background, body (paper section 3.3)."""

from __future__ import annotations

import torch
from torch import nn

from training.config import GeneratorConfig
from training.stylegan2 import SynthesisNetwork


class StaticPlanes(nn.Module):
    """ws [N, num_ws, w_dim] (the first half of the mapping's rows) -> three static planes [N, 3, C, R, R]."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.synthesis = SynthesisNetwork(
            config.w_dim,
            config.plane_resolution,
            3 * config.plane_channels,
            channel_base=config.channel_base,
            channel_max=config.channel_max,
        )
        self.num_ws = self.synthesis.num_ws

    def forward(self, ws: torch.Tensor, *, rng: torch.Generator | None = None) -> torch.Tensor:
        return self.synthesis(ws, rng=rng).unflatten(1, (3, -1))
