"""The generator's exponential moving average over images seen, with a ramp-up (StyleGAN2-ADA)."""

from __future__ import annotations

import torch
from torch import nn


def ema_beta(*, images_seen: int, batch: int, half_life_kimg: float, rampup: float | None) -> float:
    """The decay of one step: 0.5 ** (batch / half-life in images).

    The half-life is at most `rampup` times the images seen, so that early averages forget quickly.
    """
    half_life = half_life_kimg * 1000
    if rampup is not None:
        half_life = min(half_life, images_seen * rampup)
    return 0.5 ** (batch / max(half_life, 1e-8))


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, *, beta: float) -> None:
    """average = beta average + (1 - beta) model for every parameter; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - beta)
    for target, source in zip(average.buffers(), model.buffers(), strict=True):
        target.copy_(source)
