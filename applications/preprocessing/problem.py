"""The unknowns of a fit, and what they are compared with: residuals and priors of one batch (fit.py).

N samples, P unknowns; M points: 68 landmarks, 5 of the left iris, 5 of the right, then the K of an embedding.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from applications.preprocessing.calibration import NUM_POINTS, Embedding
from applications.preprocessing.priors import ExpressionPrior, WeightPrior
from applications.preprocessing.solver import levenberg_marquardt
from training import cameras
from training.head.model import NUM_LANDMARKS, HeadModel, HeadParams

CONTOUR = slice(0, 17)
# Upper and lower lid, then upper and lower inner lip: their distances are what a blink and a word change.
_GAPS = [(37, 41), (38, 40), (43, 47), (44, 46), (61, 67), (62, 66), (63, 65)]
SHARES_A_METRE = 2.5 * cameras.FOCAL / cameras.RADIUS  # of the image side, at the distance of the framing
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
    vergence_sigma: tuple[float, float] = (0.05, 0.02)  # radians: how far the two eyes may differ in yaw, in pitch
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


@dataclasses.dataclass(frozen=True)
class State:
    """Unknowns of each sample, and the camera rotation around which its turn is counted."""

    values: Tensor  # [N, P]
    base: Tensor  # [N, 3, 3] camera from world


class _Surface:
    """Where the compared points lie: the model's landmarks and irises with offsets, then those of an embedding."""

    def __init__(self, model: HeadModel, embedding: Embedding, *, offsets: Tensor | None) -> None:
        template, device = model.template, model.template.vertices.device
        self.model = model
        faces = torch.cat([template.landmark_faces, embedding.faces.to(device)])
        corners = torch.cat([template.faces[faces].reshape(-1), model.gaze_vertices.reshape(-1)])
        self.vertices, rows = torch.unique(corners, return_inverse=True)
        self.corners, self.gaze = rows[: 3 * len(faces)], rows[3 * len(faces) :]
        self.weights = torch.cat([template.landmark_barycentrics, embedding.barycentrics.to(device)])[..., None]
        first = torch.zeros(NUM_POINTS, 3) if offsets is None else offsets
        self.offsets = torch.cat([first, embedding.offsets]).to(device)
        self.modes = torch.cat([torch.zeros(len(embedding.modes), NUM_POINTS, 3), embedding.modes], dim=1).to(device)

    def places(self, params: HeadParams, amplitudes: Tensor) -> Tensor:
        """Points [N, M, 3] in the head frame, metres, under amplitudes [N, R] of the shared errors."""
        used = self.model.positions(params, self.vertices)
        surface = (used[:, self.corners].unflatten(1, (-1, 3)) * self.weights).sum(dim=2)
        points = torch.cat([surface[:, :NUM_LANDMARKS], used[:, self.gaze], surface[:, NUM_LANDMARKS:]], dim=1)
        return points + self.offsets + torch.einsum('nr,rmc->nmc', amplitudes, self.modes)


class Problem:
    """Residuals and priors of one batch."""

    def __init__(
        self,
        model: HeadModel,
        landmarks: Tensor,  # [N, 68, 2]
        *,
        iris: Tensor | None,  # [N, 2, 5, 2]
        points: Tensor | None,  # [N, K, 2]
        offsets: Tensor | None,  # [78, 3]
        embedding: Embedding | None,
        config: FitConfig,
    ) -> None:
        self.model, self.config = model, config
        self.device = model.template.vertices.device
        self.embedding = Embedding.empty() if embedding is None else embedding
        self.surface = _Surface(model, self.embedding, offsets=offsets)
        count = landmarks.shape[0]
        given = [landmarks, landmarks.new_full((count, 10, 2), 0.5) if iris is None else iris.reshape(count, 10, 2)]
        self.points = torch.cat(given if points is None else [*given, points], dim=1).to(self.device, torch.float32)
        self.has_iris = iris is not None
        self.widths = {
            'camera': 6,
            'identity': model.num_identity,
            'expression': model.num_expression,
            'jaw': 3,
            'eyes': 4,  # left yaw, left pitch, right yaw, right pitch
            'detector': len(self.embedding.modes),  # amplitudes of the errors that its points share
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

    def predict(self, state: State) -> Tensor:
        """Points [N, M, 2] of the model in the image, where the detector would see them."""
        params, rotation, shift = self.unpack(state)
        points = self.surface.places(params, state.values[:, self.columns('detector')])
        world = cameras.head_to_world(points)
        local = world @ rotation.transpose(1, 2) + shift[:, None]
        return cameras.FOCAL * local[..., :2] / local[..., 2:].clamp(min=0.1) + 0.5

    def solve(self, state: State, *groups: str) -> State:
        """Minimize the cost over the named groups of unknowns."""
        expression = self.columns('expression')

        def residuals(values: Tensor, index: Tensor) -> Tensor:
            points = self.predict(State(values, state.base[index]))
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
        return State(values, state.base)

    def unpack(self, state: State) -> tuple[HeadParams, Tensor, Tensor]:
        """Unknowns -> head parameters, camera-from-world rotation [N, 3, 3] and shift [N, 3]."""
        camera, identity, expression, jaw, eyes, _ = state.values.split(list(self.widths.values()), dim=1)
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

    def weak_perspective(self) -> State:
        """A start: the scaled orthographic view of the neutral head that fits the inner landmarks best."""
        count = self.points.shape[0]
        neutral = self.model.forward(self.model.neutral()).landmarks[0] + self.surface.offsets[:NUM_LANDMARKS]
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
        return State(values, base)

    def warm_start(self, fit: Fit) -> State:
        """The unknowns of an earlier fit of the same samples."""
        if len(fit) != self.points.shape[0]:
            raise ValueError(f'start: expected a fit of {self.points.shape[0]} samples, got {len(fit)}')
        cam2world, _ = cameras.unpack_label(fit.label.to(self.device))
        base = cam2world[:, :3, :3].transpose(1, 2)
        shift = -(base @ cam2world[:, :3, 3:])[..., 0]
        params = fit.params.to(self.device)
        eyes = params.eyes[:, [1, 0, 4, 3]]
        camera = torch.cat([torch.zeros_like(shift), shift], dim=1)
        known = [camera, params.identity, params.expression, params.jaw, eyes]
        return State(torch.cat([*known, shift.new_zeros(len(shift), self.widths['detector'])], dim=1), base)

    def look_at_iris(self, state: State) -> None:
        """Switch to the eye stage: iris points only, seen relative to the fitted eye corners.

        What the lids leave as residual would otherwise turn into gaze; a closed eye says little.
        """
        with torch.no_grad():
            offset = self.points - self.predict(state)
        known = len(self.embedding) > 0
        sigma = self.embedding.iris_sigma * SHARES_A_METRE if known else self.config.landmark_sigma
        self.sigma[:] = torch.inf
        for eye, (corners, lids) in enumerate(zip(_EYE_CORNERS, _LIDS, strict=True)):
            rows = slice(NUM_LANDMARKS + 5 * eye, NUM_LANDMARKS + 5 * eye + 5)
            self.target[:, rows] = self.points[:, rows] - offset[:, list(corners)].mean(dim=1, keepdim=True)
            width = (self.points[:, corners[0]] - self.points[:, corners[1]]).norm(dim=-1).clamp(min=1e-4)
            gap = sum((self.points[:, top] - self.points[:, low]).norm(dim=-1) for top, low in lids) / len(lids)
            open_share = ((gap / width - 0.06) / 0.12).clamp(0.05, 1.0)
            self.sigma[:, rows] = (sigma / open_share)[:, None]

    def result(self, state: State) -> Fit:
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
            iris_error=error[:, NUM_LANDMARKS:NUM_POINTS] if self.has_iris else None,
        )

    def _features(self) -> Tensor:
        """[M + gaps, M]: the points themselves, then lid and lip distances as differences."""
        count = NUM_POINTS + len(self.embedding)
        rows = torch.zeros(len(_GAPS), count)
        for row, (upper, lower) in enumerate(_GAPS):
            rows[row, upper], rows[row, lower] = 1.0, -1.0
        return torch.cat([torch.eye(count), rows]).to(self.device)

    def _sigmas(self) -> Tensor:
        """[1, features]; infinite for the iris, whose stage comes last."""
        sigma = torch.full((NUM_LANDMARKS,), self.config.landmark_sigma)
        sigma[CONTOUR] = self.config.contour_sigma
        if len(self.embedding):
            sigma[:] = torch.inf  # the detector's points say the same once more
        iris = torch.full((NUM_POINTS - NUM_LANDMARKS,), torch.inf)
        gaps = torch.full((len(_GAPS),), self.config.gap_sigma)
        return torch.cat([sigma, iris, self.embedding.sigma * SHARES_A_METRE, gaps])[None].to(self.device)

    def _precision(self) -> Tensor:
        """[P, P] inverse covariance of the Gaussian prior around zero; nothing on the camera."""
        config = self.config
        spread = torch.full((sum(self.widths.values()),), torch.inf, device=self.device)
        spread[self.columns('identity')] = config.identity_sigma
        spread[self.columns('expression')] = config.named_sigma if len(self.units) else config.expression_sigma
        spread[self.columns('jaw')] = spread.new_tensor(config.jaw_sigma)
        spread[self.columns('eyes')] = config.eye_sigma
        spread[self.columns('detector')] = 1.0
        matrix = torch.diag(spread**-2)
        eyes = self.columns('eyes')
        pairs = ((eyes[0], eyes[2]), (eyes[1], eyes[3]))
        for (left, right), sigma in zip(pairs, config.vergence_sigma, strict=True):
            pair = torch.zeros_like(spread)
            pair[left], pair[right] = 1.0, -1.0
            matrix += torch.outer(pair, pair) / sigma**2
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
