"""Landmarks to head parameters and camera, for any HeadModel (paper section 4, supplement B.1).

The paper runs DECA and then fits the eyes; here one maximum-a-posteriori fit does both.
Unknowns: identity, expression, jaw, yaw and pitch of each eye, and the camera's rigid pose.
The focal length is fixed (cameras.FOCAL), the neck and the global head pose stay zero: the
camera takes the whole head pose, as EG3D's labels do.

Stages: weak-perspective pose -> camera -> camera, identity, expression and jaw -> eyes; each is
a damped Gauss-Newton (Levenberg-Marquardt) over the batch with one damping value a sample.
Besides the 68 landmarks a detector's other points may be given, with where they lie on the head
model and how they err (calibration.Embedding); they then decide, and the 68 are only compared.

Image coordinates are (column, row) in [0, 1] (training/cameras.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from applications.preprocessing.calibration import NUM_POINTS, Embedding
from applications.preprocessing.problem import CONTOUR, SHARES_A_METRE, Fit, FitConfig, Problem
from training import cameras
from training.head.model import NUM_LANDMARKS, HeadModel, HeadParams

__all__ = ['CONTOUR', 'SHARES_A_METRE', 'Fit', 'FitConfig', 'fit_heads', 'project_head', 'project_points']
_DEFAULT = FitConfig()


def fit_heads(
    model: HeadModel,
    landmarks: Tensor,  # [N, 68, 2] in [0, 1]
    *,
    iris: Tensor | None = None,  # [N, 2, 5, 2] in [0, 1]: left, right; centre, right, top, left, bottom
    points: Tensor | None = None,  # [N, K, 2] in [0, 1]: those of the embedding
    start: Fit | None = None,  # a fit of nearby landmarks (the frame before, another crop)
    identity: Tensor | None = None,  # [N, num_identity]: known (a person's other pictures), not fitted
    offsets: Tensor | None = None,  # [78, 3] metres: the given points from the model's (calibration.py)
    embedding: Embedding | None = None,  # of `points` on the model
    config: FitConfig = _DEFAULT,
) -> Fit:
    """Head parameters and cameras whose projected landmarks match; each sample is fitted by itself.

    Without `iris` the eyes look straight ahead. ValueError for wrong shapes or non-finite points.
    """
    _check('landmarks', landmarks, [NUM_LANDMARKS, 2])
    if iris is not None:
        _check('iris', iris, [2, 5, 2])
    if offsets is not None and list(offsets.shape) != [NUM_POINTS, 3]:
        raise ValueError(f'offsets: expected shape [{NUM_POINTS}, 3], got {list(offsets.shape)}')
    if (points is None) != (embedding is None):
        raise ValueError('points and embedding: expected both or neither')
    if points is not None and embedding is not None:
        _check('points', points, [len(embedding), 2])
        embedding.check(model)
    if identity is not None and list(identity.shape) != [len(landmarks), model.num_identity]:
        raise ValueError(
            f'identity: expected shape [{len(landmarks)}, {model.num_identity}], got {list(identity.shape)}'
        )
    problem = Problem(model, landmarks, iris=iris, points=points, offsets=offsets, embedding=embedding, config=config)
    state = problem.weak_perspective() if start is None else problem.warm_start(start)
    free: tuple[str, ...] = ('camera', 'identity', 'expression', 'jaw', 'detector')
    if identity is not None:
        state.values[:, problem.columns('identity')] = identity.to(state.values)
        free = ('camera', 'expression', 'jaw', 'detector')
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


def project_points(model: HeadModel, params: HeadParams, label: Tensor, *, embedding: Embedding) -> Tensor:
    """The points [N, K, 2] of an embedding of a head without neck pose in the image, in [0, 1]."""
    embedding.check(model)
    places = embedding.places(model.forward(params).vertices, model)
    return cameras.project(cameras.head_to_world(places), label)[0]


def _check(name: str, points: Tensor, shape: list[int]) -> None:
    if list(points.shape[1:]) != shape or points.ndim != len(shape) + 1:
        raise ValueError(f'{name}: expected shape {["N", *shape]}, got {list(points.shape)}')
    if not bool(torch.isfinite(points).all()):
        raise ValueError(f'{name}: expected finite image coordinates, got NaN or infinity')
