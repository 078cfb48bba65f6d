"""Stage 1: the neural texture (paper section 3.1)."""

from __future__ import annotations

import torch
from torch import nn

from training.config import GeneratorConfig
from training.stylegan2 import SynthesisNetwork


class TextureGenerator(nn.Module):
    """ws [N, num_ws, w_dim] (the last half of the mapping's rows) -> texture [N, C, R, R] in UV space."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.synthesis = SynthesisNetwork(
            config.w_dim,
            config.plane_resolution,
            config.plane_channels,
            channel_base=config.channel_base,
            channel_max=config.channel_max,
        )
        self.num_ws = self.synthesis.num_ws

    def forward(self, ws: torch.Tensor, *, rng: torch.Generator | None = None) -> torch.Tensor:
        return self.synthesis(ws, rng=rng)
