"""Batched damped Gauss-Newton (Levenberg-Marquardt) with a Gaussian prior and a Huber loss.

N independent problems of P unknowns; residuals come as F vectors of C components, and the
Huber loss acts on each vector's length. Derivatives by forward-mode differentiation: one
directional derivative for each unknown, all around one shared evaluation, so any differentiable
model works that treats each sample by itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

# (values [K, P], sample index [K]) -> residuals [K, F, C] in standard deviations
Residuals = Callable[[Tensor, Tensor], Tensor]


def levenberg_marquardt(
    residuals: Residuals,
    start: Tensor,  # [N, P]
    *,
    columns: Tensor,  # indices of the unknowns to solve for; the others stay
    precision: Tensor,  # [P, P] inverse covariance of the prior, whose mean is zero
    robust: float | Tensor,  # residual vectors longer than this count linearly; one number, or [F]
    iterations: int,
    tolerance: float,  # relative decrease of the cost at which a sample is done
) -> Tensor:
    """The values [N, P] at which each sample's cost stops falling; a step is kept only where it helps."""
    values, precision = start.clone(), precision.double()
    robust = torch.as_tensor(robust, dtype=values.dtype, device=values.device)
    prior = precision[columns][:, columns]
    everyone = torch.arange(len(values), device=values.device)
    damping = torch.full((len(values),), 1e-2, dtype=torch.float64, device=values.device)
    cost = _cost(residuals(values, everyone), values, precision=precision, robust=robust)
    active = torch.ones_like(damping, dtype=torch.bool)
    for _ in range(iterations):
        rows = active.nonzero()[:, 0]
        normal, gradient = _normal_equations(residuals, values[rows], rows, columns=columns, robust=robust)
        normal += prior
        gradient += (values[rows].double() @ precision)[:, columns]
        damped = normal + torch.diag_embed(damping[rows, None] * normal.diagonal(dim1=1, dim2=2) + 1e-9)
        step = torch.linalg.solve(damped, -gradient[..., None])[..., 0]
        trial = values[rows]
        trial[:, columns] += step.to(values.dtype)
        trial_cost = _cost(residuals(trial, rows), trial, precision=precision, robust=robust)
        better = torch.isfinite(trial_cost) & (trial_cost < cost[rows])
        done = better & (cost[rows] - trial_cost < tolerance * cost[rows])
        values[rows] = torch.where(better[:, None], trial, values[rows])
        cost[rows] = torch.where(better, trial_cost, cost[rows])
        damping[rows] = torch.where(better, damping[rows] / 5, damping[rows] * 5)
        active[rows] = ~done & (damping[rows] < 1e6)
        if not bool(active.any()):
            break
    return values


def _cost(residual: Tensor, values: Tensor, *, precision: Tensor, robust: Tensor) -> Tensor:
    """The negative log posterior [N], up to a constant, in float64."""
    size, values = residual.norm(dim=-1).double(), values.double()
    huber = torch.where(size <= robust, 0.5 * size**2, robust * size - 0.5 * robust**2)
    return huber.sum(dim=1) + 0.5 * ((values @ precision) * values).sum(dim=1)


def _normal_equations(
    residuals: Residuals, values: Tensor, rows: Tensor, *, columns: Tensor, robust: Tensor
) -> tuple[Tensor, Tensor]:
    """Reweighted J^T J [N, C, C] and J^T r [N, C] over the chosen columns, in float64."""
    directions = torch.eye(values.shape[1], dtype=values.dtype, device=values.device)[columns]

    def slope(direction: Tensor) -> Tensor:
        tangent = direction.expand_as(values)
        return torch.func.jvp(lambda v: residuals(v, rows), (values,), (tangent,))[1]  # type: ignore[misc]

    with torch.no_grad(), warnings.catch_warnings():
        # torch's first forward derivative compiles its own decompositions in a way that it warns about.
        warnings.simplefilter('ignore', DeprecationWarning)
        residual = residuals(values, rows)
        slopes = torch.func.vmap(slope)(directions)  # [C, N, F, 2]: the values are computed once for all directions
    jacobian = slopes.flatten(2).permute(1, 2, 0).double()
    weight = robust / torch.maximum(residual.norm(dim=-1), robust)
    weight = weight[..., None].expand_as(residual).flatten(1).double()
    weighted = jacobian * weight[..., None]
    return jacobian.transpose(1, 2) @ weighted, (weighted * residual.flatten(1).double()[..., None]).sum(dim=1)
