"""Meshes of a head model's topology -> the parameters that make them.

For any HeadModel. A maximum-a-posteriori fit over all vertices at once: nearly linear in identity and expression,
mildly non-linear in the pose. Nonlinear conjugate gradients with exact gradients, preconditioned by the
Gauss-Newton matrix of the neutral head (made once), and with the Gauss-Newton step length along each direction:
one forward, one backward and one directional derivative an iteration, instead of one for each unknown. Meshes that
have not settled by then (poses far from neutral in models of few vertices) go through solver.py, mesh by mesh.
"""

from __future__ import annotations

import dataclasses
import warnings

import torch
from torch import Tensor

from applications.preprocessing.solver import levenberg_marquardt
from training.head.model import PARAM_FIELDS, HeadModel, HeadParams
from training.head.rotation import axis_angle_matrix

# Prior standard deviations: coefficients have unit ones by definition, radians, metres.
_SPREAD = {
    'identity': 1.0, 'expression': 1.0, 'jaw': 0.3, 'neck': 0.2, 'eyes': 0.4, 'rotation': 0.3, 'translation': 0.1,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshFitConfig:
    """How exactly vertices are to be met."""

    sigma: float = 1e-4  # metres: noise of a vertex; small, so that the prior decides only what meshes leave open
    iterations: int = 60  # at most
    tolerance: float = 1e-4  # relative decrease of the cost below which nothing more is gained


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshFit:
    """A batch of fitted meshes."""

    params: HeadParams  # [N, ...]
    error: Tensor  # [N, V] metres: distance of each vertex from the given one


class MeshFitter:
    """Fits batches of meshes of one head model, which it differentiates once when it is made."""

    def __init__(self, model: HeadModel, *, config: MeshFitConfig = MeshFitConfig()) -> None:
        self.model, self.config = model, config
        neutral = model.neutral()
        self.widths = [int(getattr(neutral, name).shape[1]) for name in PARAM_FIELDS]
        spread = [torch.full((width,), _SPREAD[name]) for name, width in zip(PARAM_FIELDS, self.widths, strict=True)]
        self.spread = torch.cat(spread).to(neutral.identity)  # [P]
        count = len(self.spread)
        zeros = torch.zeros(count, count, device=self.spread.device)
        basis = self._slope(zeros, torch.eye(count, device=self.spread.device)).flatten(1).double()  # [P, 3 V]
        self._factor = torch.linalg.cholesky(basis @ basis.T + torch.eye(count, device=basis.device))

    def fit(self, vertices: Tensor) -> MeshFit:
        """Vertices [N, V, 3] (metres, head frame) -> parameters; each sample is fitted by itself.

        ValueError for another number of vertices or numbers that are not finite.
        """
        template = self.model.template.vertices
        if vertices.ndim != 3 or vertices.shape[1:] != template.shape:
            raise ValueError(f'vertices: expected shape [N, {len(template)}, 3], got {list(vertices.shape)}')
        if not bool(torch.isfinite(vertices).all()):
            raise ValueError('vertices: expected finite numbers')
        vertices = vertices.to(template)
        turn, move = _rigid(template, vertices)
        aligned = (vertices - move[:, None]) @ turn
        values, settled = self._minimize(aligned)
        for index in torch.nonzero(~settled)[:, 0].tolist():
            values[index : index + 1] = self._polish(values[index : index + 1], aligned[index : index + 1])
        params = self._params(values)
        with torch.no_grad():
            made = self.model.forward(params).vertices @ turn.transpose(1, 2) + move[:, None]
            rotation = _axis_angle(turn @ axis_angle_matrix(params.rotation))
            params = params.replace(rotation=rotation, translation=torch.zeros_like(params.translation))
            # The turn is about the model's root joint, wherever that lies: what is left is a shift.
            params = params.replace(translation=(made - self.model.forward(params).vertices).mean(dim=1))
            error = (self.model.forward(params).vertices - vertices).norm(dim=-1)
        return MeshFit(params=params, error=error)

    def _params(self, unknowns: Tensor) -> HeadParams:
        """Unknowns in prior standard deviations [N, P] -> HeadParams."""
        fields = (unknowns * self.spread).split(self.widths, dim=1)
        return HeadParams(**dict(zip(PARAM_FIELDS, fields, strict=True)))

    def _made(self, unknowns: Tensor) -> Tensor:
        """Vertices [N, V, 3] in units of sigma."""
        return self.model.forward(self._params(unknowns)).vertices / self.config.sigma

    def _slope(self, unknowns: Tensor, direction: Tensor) -> Tensor:
        """Derivative of `_made` along a direction [N, P]."""
        with torch.no_grad(), warnings.catch_warnings():
            # torch's first forward derivative compiles its own decompositions in a way that it warns about.
            warnings.simplefilter('ignore', DeprecationWarning)
            return torch.func.jvp(self._made, (unknowns,), (direction,))[1]  # type: ignore[misc]

    def _cost(self, unknowns: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Cost [N] and its gradient [N, P], float64."""
        leaf = unknowns.detach().requires_grad_()
        cost = 0.5 * (self._made(leaf) - target).square().flatten(1).sum(dim=1) + 0.5 * leaf.square().sum(dim=1)
        (gradient,) = torch.autograd.grad(cost.sum(), leaf)
        return cost.detach().double(), gradient.double()

    def _polish(self, values: Tensor, vertices: Tensor) -> Tensor:
        target = vertices / self.config.sigma

        def residuals(unknowns: Tensor, index: Tensor) -> Tensor:
            return self._made(unknowns) - target[index]

        return levenberg_marquardt(
            residuals,
            values,
            columns=torch.arange(values.shape[1], device=values.device),
            precision=torch.eye(values.shape[1], device=values.device),
            robust=1e6,  # no vertex is an outlier
            iterations=30,
            tolerance=self.config.tolerance,
        )

    def _minimize(self, vertices: Tensor) -> tuple[Tensor, Tensor]:
        """Unknowns [N, P], and which samples had nothing more to gain [N]."""
        target = vertices / self.config.sigma
        values = vertices.new_zeros(len(vertices), len(self.spread))
        cost, gradient = self._cost(values, target)
        trust = torch.ones_like(cost)
        settled = torch.zeros_like(cost, dtype=torch.bool)
        direction, before, product = torch.zeros_like(gradient), gradient, torch.ones_like(cost)
        for _ in range(self.config.iterations):
            downhill = torch.cholesky_solve(gradient.T, self._factor).T
            beta = ((gradient - before) * downhill).sum(dim=1) / product
            direction = beta.clamp(min=0)[:, None] * direction - downhill
            steep = (direction * gradient).sum(dim=1)
            uphill = steep >= 0
            direction = torch.where(uphill[:, None], -downhill, direction)
            steep = torch.where(uphill, -(downhill * gradient).sum(dim=1), steep)
            bend = self._slope(values, direction.to(values)).double().square().flatten(1).sum(dim=1)
            length = -steep / (bend + direction.square().sum(dim=1)).clamp(min=1e-30)
            trial = values + ((trust * length)[:, None] * direction).to(values)
            trial_cost, trial_gradient = self._cost(trial, target)
            better = trial_cost < cost
            before, product = gradient, (gradient * downhill).sum(dim=1).clamp(min=1e-30)
            values = torch.where(better[:, None], trial, values)
            gradient = torch.where(better[:, None], trial_gradient, gradient)
            cost = torch.where(better, trial_cost, cost)
            trust = torch.where(better, (trust * 2).clamp(max=1.0), trust / 4)
            # By what is still to gain, as far as the factor tells; a small gain may be that of a poor step.
            rest = torch.cholesky_solve(gradient.T, self._factor).T
            settled = 0.5 * (gradient * rest).sum(dim=1) < self.config.tolerance * cost
            if bool(settled.all()):
                break
        return values, settled


def _rigid(template: Tensor, vertices: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations [N, 3, 3] and shifts [N, 3] that carry the template [V, 3] nearest to each mesh [N, V, 3]."""
    centre, middle = template.mean(dim=0), vertices.mean(dim=1)
    moment = (vertices - middle[:, None]).transpose(1, 2) @ (template - centre)
    left, _, right = torch.linalg.svd(moment)
    sign = torch.ones_like(middle)
    sign[:, 2] = torch.linalg.det(left @ right).sign()
    turn = (left * sign[:, None]) @ right
    return turn, middle - turn @ centre


def _axis_angle(matrices: Tensor) -> Tensor:
    """Axis-angle vectors [N, 3] of rotation matrices [N, 3, 3]."""
    from scipy.spatial.transform import Rotation

    vectors = Rotation.from_matrix(matrices.double().cpu().numpy()).as_rotvec()
    return torch.from_numpy(vectors).to(matrices)
