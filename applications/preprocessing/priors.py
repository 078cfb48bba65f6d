"""What faces do, told to the fits: few expressions at a time, and weights that are not negative."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from training.head.makehuman import MakeHumanHead
from training.head.model import HeadModel

_JOINT = ('jawOpen', 'jawLeft', 'jawRight')


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightPrior:
    """How the weights of named expressions spread: as a Laplace distribution with a round top."""

    size: float = 0.12  # mean weight
    smooth: float = 0.01  # weights below this count quadratically, above linearly
    negative: float = 6.0  # a weight below zero counts as one so many times as large
    joint: float = 4.0  # as does the weight of an expression that repeats what the jaw joint does


class ExpressionPrior:
    """Residuals of the named expressions' weights, for solver.py.

    The left and right side of an expression make one vector, whose length counts linearly: a face shows
    few expressions strongly rather than all a little, and both sides of one rather than sides of two.
    Models whose expressions have no such names (FLAME's are principal components) get no residuals.
    """

    def __init__(self, model: HeadModel, prior: WeightPrior) -> None:
        device = model.template.vertices.device
        self.matrix = torch.zeros(model.num_expression, 0, 2, device=device)  # coefficients -> weights of each unit
        if isinstance(model, MakeHumanHead):
            names = model.expression_names
            weights = torch.linalg.pinv(model.expression_coefficients(torch.eye(len(names), device=device)))
            units = sorted({_unit(name) for name in names})
            self.matrix = weights.new_zeros(model.num_expression, len(units), 2)
            for column, name in enumerate(names):
                factor = prior.joint if name in _JOINT else 1.0
                self.matrix[:, units.index(_unit(name)), int(name.endswith('Right'))] = factor * weights[:, column]
        self.scale = (prior.size * prior.smooth) ** 0.5
        self.robust = (prior.smooth / prior.size) ** 0.5  # Huber's bound: from `smooth` on the slope is 1 / size
        self.negative = prior.negative

    def residuals(self, expression: Tensor) -> Tensor:
        """Coefficients [K, num_expression] -> [K, units, 2]."""
        weights = torch.einsum('ke,euc->kuc', expression, self.matrix)
        return torch.where(weights < 0, self.negative * weights, weights) / self.scale

    def __len__(self) -> int:
        return self.matrix.shape[1]


def _unit(name: str) -> str:
    return name.removesuffix('Left').removesuffix('Right')
