"""A network in play: its trained parameters, optimizer, loss scale, and what is wrong with its gradients."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from dnnlib.errors import UserError
from torch_utils.precision import LossScale
from training.config import TrainConfig

_ADAM_STATE = {'step', 'exp_avg', 'exp_avg_sq'}


class Player:
    """One network with its optimizer; `interval` is its lazy regularizer's (0: none), `scaled` for fp16."""

    def __init__(
        self,
        network: nn.Module,
        config: TrainConfig,
        *,
        lr: float,
        interval: int,
        frozen: Collection[str] = (),
        scaled: bool = False,
    ) -> None:
        self.network = network
        self.scale = LossScale(active=scaled)
        trained = {name: value for name, value in network.named_parameters() if name not in frozen}
        self.names, self.parameters = list(trained), list(trained.values())
        for name in frozen:
            network.get_parameter(name).requires_grad_(False)
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

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The optimizer's tensors on the CPU, by parameter name."""
        return {
            self.names[index]: {name: value.detach().to('cpu', copy=True) for name, value in entry.items()}
            for index, entry in self.optimizer.state_dict()['state'].items()
        }

    def load_state(self, state: Mapping[str | int, Mapping[str, Tensor]], *, where: str) -> None:
        """Continue from `state()`; a parameter that it lacks, or knows but is frozen now, is left as it is.

        States of the first version number the parameters. UserError if a tensor does not fit.
        """
        numbers = {name: index for index, name in enumerate(self.names)}
        known = {name for name, _ in self.network.named_parameters()}
        entries = {}
        for key, entry in state.items():
            name = self.names[key] if isinstance(key, int) and key < len(self.names) else key
            if name in numbers:
                entries[numbers[name]] = self._fitted(entry, self.parameters[numbers[name]], where=f'{where}: {name}')
            elif name not in known:
                raise UserError(f'{where}: has unknown {name}; was it made by another version?')
        groups = self.optimizer.state_dict()['param_groups']
        self.optimizer.load_state_dict({'state': entries, 'param_groups': groups})

    def _fitted(self, entry: Mapping[str, Tensor], parameter: Tensor, *, where: str) -> dict[str, Tensor]:
        """An entry in the memory format of its parameter, which the fused optimizer takes for granted."""
        if set(entry) != _ADAM_STATE or not all(isinstance(value, Tensor) for value in entry.values()):
            raise UserError(f'{where}: not a state of Adam; was it made by another version?')
        fitted = {'step': entry['step'].reshape(()).float()}
        for name in ('exp_avg', 'exp_avg_sq'):
            if entry[name].shape != parameter.shape:
                raise UserError(f'{where}: has another shape than the parameter; was it made by another version?')
            fitted[name] = torch.empty_like(parameter).copy_(entry[name])
        return fitted
