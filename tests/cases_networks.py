"""Inputs and checks shared by the tests of the networks."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from torch_utils.ops.layer_epilogue import layer_epilogue
from torch_utils.ops.modulated_conv import modulated_conv2d
from training.layers import demodulation

Module = TypeVar('Module', bound=nn.Module)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed))


def perturb(network: Module) -> Module:
    """Non-zero biases and noise strengths, so that nothing hides behind an initial zero."""
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(index)))
    return network


def assert_all_parameters_learn(network: nn.Module, loss: torch.Tensor) -> None:
    loss.backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not idle
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def modulated(
    x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor, *, demodulate: bool = True, up: int = 1
) -> torch.Tensor:
    """A StyleGAN2 layer without noise, bias and activation."""
    return layer_epilogue(
        modulated_conv2d(x, weight, styles, up=up),
        bias=x.new_zeros(len(weight)),
        taps=torch.tensor([0.25, 0.75, 0.75, 0.25]).to(x) if up == 2 else None,
        scale=demodulation(weight.square().sum(dim=(2, 3)), styles) if demodulate else None,
        slope=1,
        gain=1,
    )
