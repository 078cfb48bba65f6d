"""A network in play: its trained parameters, optimizer, loss scale, and what is wrong with its gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torch_utils.precision import LossScale
from training.config import TrainConfig


def _laid_out_like(value: Tensor, parameter: Tensor) -> Tensor:
    """`value` in the memory format of its parameter, which the fused optimizer takes for granted."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


class Player:
    """One network with its optimizer; `interval` is its lazy regularizer's (0: none), `scaled` for fp16."""

    def __init__(
        self,
        network: nn.Module,
        config: TrainConfig,
        *,
        lr: float,
        interval: int,
        frozen: set[str],
        scaled: bool = False,
    ) -> None:
        self.network = network
        self.scale = LossScale(active=scaled)
        self.parameters = [value for name, value in network.named_parameters() if name not in frozen]
        # The regularizer's steps come on top, so learning rate and momenta shrink to match (StyleGAN2).
        ratio = interval / (interval + 1) if interval else 1.0
        betas = (config.adam_beta1**ratio, config.adam_beta2**ratio)
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr * ratio, betas=betas, eps=1e-8, fused=True)

    def requires_grad(self, wanted: bool) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(wanted)

    def non_finite(self) -> dict[str, float]:
        """Sub-networks (direct children) with gradients that are not finite, and their share of its numbers.

        In the order of the backward pass: the first is where it began, since it spreads from the loss towards the
        input. Where only their squares overflow, every sub-network with gradients is named, with share 0.
        """
        found, present = {}, {}
        for name, child in reversed(list(self.network.named_children())):
            gradients = [parameter.grad for parameter in child.parameters() if parameter.grad is not None]
            if not gradients:
                continue
            count = sum(gradient.numel() for gradient in gradients)
            bad = sum(int(torch.count_nonzero(~gradient.isfinite())) for gradient in gradients)
            present[name] = 0.0
            if bad:
                found[name] = bad / count
        return found or present

    def state(self) -> dict[int, Any]:
        """The optimizer's tensors on the CPU, by parameter number."""
        return {
            index: {name: value.detach().to('cpu', copy=True) for name, value in entry.items()}
            for index, entry in self.optimizer.state_dict()['state'].items()
        }

    def load_state(self, state: Mapping[int, Any]) -> None:
        groups = self.optimizer.state_dict()['param_groups']
        shaped = {
            index: {name: _laid_out_like(value, self.parameters[index]) for name, value in entry.items()}
            for index, entry in state.items()
        }
        self.optimizer.load_state_dict({'state': shaped, 'param_groups': groups})
