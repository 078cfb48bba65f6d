"""Landmarks to head parameters and camera, for any HeadModel (paper section 4, supplement B.1).

The paper runs DECA and then fits the eyes; here one maximum-a-posteriori fit does both.
Unknowns: identity, expression, jaw, yaw and pitch of each eye, and the camera's rigid pose.
The focal length is fixed (cameras.FOCAL), the neck and the global head pose stay zero: the
camera takes the whole head pose, as EG3D's labels do.

Stages: weak-perspective pose -> camera -> camera, identity, expression and jaw -> eyes; each is
a damped Gauss-Newton (Levenberg-Marquardt) over the batch with one damping value a sample.

Image coordinates are (column, row) in [0, 1] (training/cameras.py). N samples, P unknowns,
M = 78 points: 68 landmarks, then 5 of the left iris and 5 of the right.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from applications.preprocessing.calibration import NUM_POINTS
from applications.preprocessing.priors import ExpressionPrior, WeightPrior
from applications.preprocessing.solver import levenberg_marquardt
from training import cameras
from training.head.model import NUM_LANDMARKS, HeadModel, HeadParams

CONTOUR = slice(0, 17)
# Upper and lower lid, then upper and lower inner lip: their distances are what a blink and a word change.
_GAPS = [(37, 41), (38, 40), (43, 47), (44, 46), (61, 67), (62, 66), (63, 65)]
_EYE_CORNERS = [(42, 45), (36, 39)]  # left, right eye
_LIDS = [[(43, 47), (44, 46)], [(37, 41), (38, 40)]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Noise of the landmarks (shares of the image side) and spread of the unknowns (standard deviations)."""

    landmark_sigma: float = 1.2 / 512
    contour_sigma: float = 2.0 / 512  # the jaw line is where detectors and models agree least
    gap_sigma: float = 1.2 / 512  # lid and lip distances: keeps blinks and closed mouths
    robust: float = 3.0  # residuals beyond this many sigmas count linearly (Huber)
    identity_sigma: float = 1.0
    expression_sigma: float = 1.0  # of coefficients without names
    named_sigma: float = 2.0  # of coefficients whose names tell more, in the next line
    weights: WeightPrior = WeightPrior()
    jaw_sigma: tuple[float, float, float] = (0.2, 0.03, 0.03)  # radians: opening, sideways, twist
    eye_sigma: float = 0.4  # radians
    vergence_sigma: float = 0.1  # radians: how far the two eyes may differ
    iterations: int = 25  # at most, per stage
    tolerance: float = 1e-4  # relative decrease of the cost at which a sample is done


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """A batch of fitted heads."""

    params: HeadParams  # [N, ...]; neck, rotation and translation are zero
    label: Tensor  # [N, 25]
    landmarks: Tensor  # [N, 68, 2] the model's landmarks (with offsets) in the image, in [0, 1]
    error: Tensor  # [N, 68] distance to the given landmarks, share of the image side
    iris_error: Tensor | None  # [N, 10] the same for the iris points

    def __len__(self) -> int:
        return len(self.params)

    def __getitem__(self, index: slice | Tensor | list[int]) -> Fit:
        iris_error = None if self.iris_error is None else self.iris_error[index]
        return Fit(
            params=self.params[index],
            label=self.label[index],
            landmarks=self.landmarks[index],
            error=self.error[index],
            iris_error=iris_error,
        )


def fit_heads(
    model: HeadModel,
    landmarks: Tensor,  # [N, 68, 2] in [0, 1]
    *,
    iris: Tensor | None = None,  # [N, 2, 5, 2] in [0, 1]: left, right; centre, right, top, left, bottom
    start: Fit | None = None,  # a fit of nearby landmarks (the frame before, another crop)
    identity: Tensor | None = None,  # [N, num_identity]: known (a person's other pictures), not fitted
    offsets: Tensor | None = None,  # [78, 3] metres: the given points from the model's (calibration.py)
    config: FitConfig = FitConfig(),
) -> Fit:
    """Head parameters and cameras whose projected landmarks match; each sample is fitted by itself.

    Without `iris` the eyes look straight ahead. ValueError for wrong shapes or non-finite points.
    """
    _check('landmarks', landmarks, [NUM_LANDMARKS, 2])
    if iris is not None:
        _check('iris', iris, [2, 5, 2])
    if offsets is not None and list(offsets.shape) != [NUM_POINTS, 3]:
        raise ValueError(f'offsets: expected shape [{NUM_POINTS}, 3], got {list(offsets.shape)}')
    if identity is not None and list(identity.shape) != [len(landmarks), model.num_identity]:
        raise ValueError(
            f'identity: expected shape [{len(landmarks)}, {model.num_identity}], got {list(identity.shape)}'
        )
    problem = _Problem(model, landmarks, iris=iris, offsets=offsets, config=config)
    state = problem.weak_perspective() if start is None else problem.warm_start(start)
    free: tuple[str, ...] = ('camera', 'identity', 'expression', 'jaw')
    if identity is not None:
        state.values[:, problem.columns('identity')] = identity.to(state.values)
        free = ('camera', 'expression', 'jaw')
    state = problem.solve(state, 'camera')
    state = problem.solve(state, *free)
    if iris is not None:
        problem.look_at_iris(state)
        state = problem.solve(state, 'eyes')
    return problem.result(state)


def project_head(
    model: HeadModel, params: HeadParams, label: Tensor, *, offsets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The 68 landmarks [N, 68, 2] and the iris points [N, 2, 5, 2] of a head in the image, in [0, 1].

    With `offsets` [78, 3] as in fit_heads: where a detector would see them on a head without neck pose.
    """
    head = model.forward(params)
    gaze = head.vertices[:, model.gaze_vertices.to(head.vertices.device).reshape(-1)]
    places = torch.cat([head.landmarks, gaze], dim=1)
    if offsets is not None:
        places = places + offsets.to(places)
    points, _ = cameras.project(cameras.head_to_world(places), label)
    return points[:, :NUM_LANDMARKS], points[:, NUM_LANDMARKS:].reshape(-1, 2, 5, 2)


def _check(name: str, points: Tensor, shape: list[int]) -> None:
    if list(points.shape[1:]) != shape or points.ndim != len(shape) + 1:
        raise ValueError(f'{name}: expected shape {["N", *shape]}, got {list(points.shape)}')
    if not bool(torch.isfinite(points).all()):
        raise ValueError(f'{name}: expected finite image coordinates, got NaN or infinity')


@dataclasses.dataclass(frozen=True)
class _State:
    """Unknowns of each sample, and the camera rotation around which its turn is counted."""

    values: Tensor  # [N, P]
    base: Tensor  # [N, 3, 3] camera from world


class _Problem:
    """Residuals and priors of one batch."""

    def __init__(
        self, model: HeadModel, landmarks: Tensor, *, iris: Tensor | None, offsets: Tensor | None, config: FitConfig
    ) -> None:
        self.model, self.config = model, config
        self.device = model.template.vertices.device
        corners = model.template.faces[model.template.landmark_faces]
        self.vertices = torch.cat([corners.reshape(-1), model.gaze_vertices.reshape(-1)])
        self.offsets = torch.zeros(NUM_POINTS, 3) if offsets is None else offsets
        self.offsets = self.offsets.to(self.device)
        count = landmarks.shape[0]
        points = landmarks.new_full((count, NUM_POINTS, 2), 0.5)
        points[:, :NUM_LANDMARKS] = landmarks
        if iris is not None:
            points[:, NUM_LANDMARKS:] = iris.reshape(count, -1, 2)
        self.points = points.to(self.device, torch.float32)
        self.has_iris = iris is not None
        self.widths = {
            'camera': 6,
            'identity': model.num_identity,
            'expression': model.num_expression,
            'jaw': 3,
            'eyes': 4,  # left yaw, left pitch, right yaw, right pitch
        }
        self.features = self._features()
        self.sigma = self._sigmas().expand(count, -1).clone()  # [N, features]
        self.target = torch.einsum('fm,nmc->nfc', self.features, self.points)
        self.units = ExpressionPrior(model, config.weights)
        bounds = [torch.full((len(self.features),), config.robust), torch.full((len(self.units),), self.units.robust)]
        self.robust = torch.cat(bounds).to(self.device)
        self.precision = self._precision()

    def columns(self, *groups: str) -> Tensor:
        """Indices into the unknowns of the named groups."""
        chosen, start = [], 0
        for name, width in self.widths.items():
            if name in groups:
                chosen.append(torch.arange(start, start + width, device=self.device))
            start += width
        return torch.cat(chosen)

    def predict(self, state: _State) -> Tensor:
        """Points [N, 78, 2] of the model in the image."""
        params, rotation, shift = self.unpack(state)
        used = self.model.positions(params, self.vertices)
        corners = used[:, : 3 * NUM_LANDMARKS].unflatten(1, (NUM_LANDMARKS, 3))
        landmarks = (corners * self.model.template.landmark_barycentrics[..., None]).sum(dim=2)
        points = torch.cat([landmarks, used[:, 3 * NUM_LANDMARKS :]], dim=1) + self.offsets
        world = cameras.head_to_world(points)
        local = world @ rotation.transpose(1, 2) + shift[:, None]
        return cameras.FOCAL * local[..., :2] / local[..., 2:].clamp(min=0.1) + 0.5

    def solve(self, state: _State, *groups: str) -> _State:
        """Minimize the cost over the named groups of unknowns."""
        expression = self.columns('expression')

        def residuals(values: Tensor, index: Tensor) -> Tensor:
            points = self.predict(_State(values, state.base[index]))
            features = torch.einsum('fm,nmc->nfc', self.features, points)
            seen = (features - self.target[index]) / self.sigma[index][..., None]
            return torch.cat([seen, self.units.residuals(values[:, expression])], dim=1)

        values = levenberg_marquardt(
            residuals,
            state.values,
            columns=self.columns(*groups),
            precision=self.precision,
            robust=self.robust,
            iterations=self.config.iterations,
            tolerance=self.config.tolerance,
        )
        return _State(values, state.base)

    def unpack(self, state: _State) -> tuple[HeadParams, Tensor, Tensor]:
        """Unknowns -> head parameters, camera-from-world rotation [N, 3, 3] and shift [N, 3]."""
        camera, identity, expression, jaw, eyes = state.values.split(list(self.widths.values()), dim=1)
        zeros = torch.zeros_like(jaw)
        turn = zeros[:, 0]
        params = HeadParams(
            identity=identity,
            expression=expression,
            jaw=jaw,
            neck=zeros,
            eyes=torch.stack([eyes[:, 1], eyes[:, 0], turn, eyes[:, 3], eyes[:, 2], turn], dim=1),
            rotation=zeros,
            translation=zeros,
        )
        return params, _exponential(camera[:, :3]) @ state.base, camera[:, 3:]

    def weak_perspective(self) -> _State:
        """A start: the scaled orthographic view of the neutral head that fits the inner landmarks best."""
        count = self.points.shape[0]
        neutral = self.model.forward(self.model.neutral()).landmarks[0] + self.offsets[:NUM_LANDMARKS]
        neutral = cameras.head_to_world(neutral)
        inner = torch.arange(CONTOUR.stop, NUM_LANDMARKS, device=self.device)
        centre = neutral[inner].mean(dim=0)
        seen = self.points[:, inner]
        flat = torch.linalg.pinv(neutral[inner] - centre) @ (seen - seen.mean(dim=1, keepdim=True))  # [N, 3, 2]
        left, scales, right = torch.linalg.svd(flat.transpose(1, 2), full_matrices=False)
        axes = left @ right  # [N, 2, 3]: image column and row in the world
        base = torch.cat([axes, torch.linalg.cross(axes[:, :1], axes[:, 1:])], dim=1)
        depth = cameras.FOCAL / scales.mean(dim=1, keepdim=True).clamp(min=1e-3)
        aim = torch.cat([(seen.mean(dim=1) - 0.5) / cameras.FOCAL, torch.ones_like(depth)], dim=1) * depth
        values = torch.zeros(count, sum(self.widths.values()), device=self.device)
        values[:, 3:6] = aim - base @ centre
        return _State(values, base)

    def warm_start(self, fit: Fit) -> _State:
        """The unknowns of an earlier fit of the same samples."""
        if len(fit) != self.points.shape[0]:
            raise ValueError(f'start: expected a fit of {self.points.shape[0]} samples, got {len(fit)}')
        cam2world, _ = cameras.unpack_label(fit.label.to(self.device))
        base = cam2world[:, :3, :3].transpose(1, 2)
        shift = -(base @ cam2world[:, :3, 3:])[..., 0]
        params = fit.params.to(self.device)
        eyes = params.eyes[:, [1, 0, 4, 3]]
        camera = torch.cat([torch.zeros_like(shift), shift], dim=1)
        return _State(torch.cat([camera, params.identity, params.expression, params.jaw, eyes], dim=1), base)

    def look_at_iris(self, state: _State) -> None:
        """Switch to the eye stage: iris points only, seen relative to the fitted eye corners.

        What the lids leave as residual would otherwise turn into gaze; a closed eye says little.
        """
        with torch.no_grad():
            offset = self.points - self.predict(state)
        self.sigma[:] = torch.inf
        for eye, (corners, lids) in enumerate(zip(_EYE_CORNERS, _LIDS, strict=True)):
            rows = slice(NUM_LANDMARKS + 5 * eye, NUM_LANDMARKS + 5 * eye + 5)
            self.target[:, rows] = self.points[:, rows] - offset[:, list(corners)].mean(dim=1, keepdim=True)
            width = (self.points[:, corners[0]] - self.points[:, corners[1]]).norm(dim=-1).clamp(min=1e-4)
            gap = sum((self.points[:, top] - self.points[:, low]).norm(dim=-1) for top, low in lids) / len(lids)
            open_share = ((gap / width - 0.06) / 0.12).clamp(0.05, 1.0)
            self.sigma[:, rows] = (self.config.landmark_sigma / open_share)[:, None]

    def result(self, state: _State) -> Fit:
        """The final state as a Fit."""
        with torch.no_grad():
            params, rotation, shift = self.unpack(state)
            points = self.predict(state)
        cam2world = torch.eye(4, device=self.device).repeat(len(params), 1, 1)
        cam2world[:, :3, :3] = _orthonormal(rotation.transpose(1, 2))
        cam2world[:, :3, 3] = -(cam2world[:, :3, :3] @ shift[..., None])[..., 0]
        label = cameras.pack_label(cam2world, cameras.intrinsics(len(params), device=self.device))
        error = (points - self.points).norm(dim=-1)
        return Fit(
            params=params,
            label=label,
            landmarks=points[:, :NUM_LANDMARKS],
            error=error[:, :NUM_LANDMARKS],
            iris_error=error[:, NUM_LANDMARKS:] if self.has_iris else None,
        )

    def _features(self) -> Tensor:
        """[78 + gaps, 78]: the points themselves, then lid and lip distances as differences."""
        rows = torch.zeros(len(_GAPS), NUM_POINTS)
        for row, (upper, lower) in enumerate(_GAPS):
            rows[row, upper], rows[row, lower] = 1.0, -1.0
        return torch.cat([torch.eye(NUM_POINTS), rows]).to(self.device)

    def _sigmas(self) -> Tensor:
        """[1, features]; infinite for the iris, whose stage comes last."""
        sigma = torch.full((NUM_LANDMARKS,), self.config.landmark_sigma)
        sigma[CONTOUR] = self.config.contour_sigma
        iris, gaps = (
            torch.full((NUM_POINTS - NUM_LANDMARKS,), torch.inf),
            torch.full((len(_GAPS),), self.config.gap_sigma),
        )
        return torch.cat([sigma, iris, gaps])[None].to(self.device)

    def _precision(self) -> Tensor:
        """[P, P] inverse covariance of the Gaussian prior around zero; nothing on the camera."""
        config = self.config
        spread = torch.full((sum(self.widths.values()),), torch.inf, device=self.device)
        spread[self.columns('identity')] = config.identity_sigma
        spread[self.columns('expression')] = config.named_sigma if len(self.units) else config.expression_sigma
        spread[self.columns('jaw')] = spread.new_tensor(config.jaw_sigma)
        spread[self.columns('eyes')] = config.eye_sigma
        matrix = torch.diag(spread**-2)
        eyes = self.columns('eyes')
        for left, right in ((eyes[0], eyes[2]), (eyes[1], eyes[3])):
            pair = torch.zeros_like(spread)
            pair[left], pair[right] = 1.0, -1.0
            matrix += torch.outer(pair, pair) / config.vergence_sigma**2
        return matrix


def _exponential(vectors: Tensor) -> Tensor:
    """Axis-angle [N, 3] -> rotation matrices [N, 3, 3]."""
    angle = (vectors.square().sum(dim=1) + 1e-12).sqrt()[:, None, None]
    zero = torch.zeros_like(vectors[:, 0])
    x, y, z = vectors.unbind(dim=1)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).reshape(-1, 3, 3)
    half = (angle / 2).sin() / (angle / 2)
    return torch.eye(3, device=vectors.device) + angle.sin() / angle * skew + 0.5 * half.square() * (skew @ skew)


def _orthonormal(matrices: Tensor) -> Tensor:
    """The nearest rotations, so that labels hold rotations to machine precision."""
    left, _, right = torch.linalg.svd(matrices)
    return left @ right
