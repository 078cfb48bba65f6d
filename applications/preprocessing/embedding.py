"""Measure where a detector's points lie on a head model, and how they err, from renderings of known heads.

Used once for a pair of detector and model by tools/calibrate_landmarks.py; what comes out is calibration.Embedding.

N renderings, P points of the detector, V vertices, F triangles, R modes. Image coordinates are in [0, 1].
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from applications.preprocessing.calibration import Embedding
from training import cameras
from training.head.makehuman import MakeHumanHead
from training.head.model import HeadParams
from training.head.rotation import axis_angle_matrix

_FLIP = torch.tensor([-1.0, 1.0, 1.0])
_GRID = 6  # places are tried on a grid of so many steps in each triangle
_NEAR = 6  # in the triangles around so many vertices
_OFFSET_PRIOR, _MODE_PRIOR = 0.003, 0.0015  # metres: spread of offsets and modes
_FREEDOM = 4.0  # degrees of freedom of the remaining errors (Student's t): failed detections drop out
_MIN_SIGMA = 0.15e-3  # metres


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
    """Known heads as a detector saw them."""

    params: HeadParams  # N rows
    label: Tensor  # [N, 25]
    points: Tensor  # [N, P, 2] detected


def locate_points(model: MakeHumanHead, views: Views, mirror: Tensor) -> tuple[Tensor, Tensor]:
    """Triangles [P] and barycentrics [P, 3] of the surface points whose images lie nearest to the detected ones.

    Nearest by the median over the renderings; not on the eyeballs; points that `mirror` [P] pairs lie symmetrically.
    """
    with torch.no_grad():
        vertices = model.forward(views.params).vertices
    image, _ = cameras.project(cameras.head_to_world(vertices), views.label)  # [N, V, 2]
    skin = torch.nonzero(~model.regions['eyes'])[:, 0]
    corners = model.template.faces[skin]
    used = torch.unique(corners)
    weights = _grid()
    neutral = model.template.vertices
    places = []
    for point in views.points.unbind(dim=1):
        distance = (image[:, used] - point[:, None]).norm(dim=-1).median(dim=0).values
        near = used[distance.topk(_NEAR, largest=False).indices]
        triangles = corners[torch.isin(corners, near).any(dim=1)]
        candidates = torch.einsum('gk,nfkc->nfgc', weights, image[:, triangles])
        distance = (candidates - point[:, None, None]).norm(dim=-1).median(dim=0).values
        triangle, cell = divmod(int(distance.argmin()), len(weights))
        places.append(weights[cell] @ neutral[triangles[triangle]])
    middle = torch.stack(places)
    middle = 0.5 * (middle + middle[mirror] * _FLIP)
    faces, barycentrics = torch.zeros(len(mirror), dtype=torch.int64), torch.zeros(len(mirror), 3)
    for row in torch.nonzero(middle[:, 0] >= 0)[:, 0].tolist():
        found, cell = _nearest(middle[row], neutral[corners])
        faces[row], barycentrics[row] = skin[found], weights[cell]
        other = int(mirror[row])
        if other != row:
            faces[other], barycentrics[other] = _mirrored(model, int(faces[row]), barycentrics[row])
    return faces, barycentrics


def choose_points(places: Tensor, sigma: Tensor, mirror: Tensor, *, count: int, limit: float) -> Tensor:
    """Indices of at least `count` points, with their mirror images, that are spread over the face [P, 3].

    Each next one lies farthest from those chosen; points whose sigma [P] is above `limit` are left out.
    """
    good = sigma <= limit
    first = int(torch.where(good, sigma, torch.inf).argmin())
    chosen = {first, int(mirror[first])}
    while len(chosen) < min(count, int(good.sum())):
        distance = torch.cdist(places, places[list(chosen)]).min(dim=1).values
        row = int(torch.where(good, distance, -1.0).argmax())
        chosen |= {row, int(mirror[row])}
    return torch.tensor(sorted(chosen))


def estimate_embedding(
    model: MakeHumanHead,
    views: Views,
    faces: Tensor,  # [P]
    barycentrics: Tensor,  # [P, 3]
    mirror: Tensor,  # [P]
    *,
    modes: int,
    iterations: int = 40,
) -> Embedding:
    """Offsets, modes and sigmas of points whose places are known: factor analysis by expectation maximization.

    Each rendering counts a second time as its mirror image.
    """
    residual, jacobian = _linearized(model, views, faces, barycentrics)
    residual = torch.cat([residual, residual[:, mirror] * _FLIP[:2]])
    jacobian = torch.cat([jacobian, jacobian[:, mirror] * _FLIP[:2, None] * _FLIP])
    patterns, variance = _factors(residual.double(), jacobian.double(), modes=modes, iterations=iterations)
    offsets = patterns[..., 0].float()
    variance = 0.5 * (variance + variance[mirror])
    scale = jacobian.square().sum(dim=(2, 3)).div(2).sqrt().median()  # image sides a metre
    return Embedding(
        points=torch.arange(len(mirror)),
        faces=faces,
        barycentrics=barycentrics,
        offsets=0.5 * (offsets + offsets[mirror] * _FLIP),
        modes=patterns[..., 1:].float().permute(2, 0, 1),
        sigma=(variance.sqrt() / scale).float(),
        iris_sigma=1.0,  # not measured here
    )


def _linearized(model: MakeHumanHead, views: Views, faces: Tensor, barycentrics: Tensor) -> tuple[Tensor, Tensor]:
    """Detected from true points [N, P, 2], and how these move with one in the frame of the skull [N, P, 2, 3]."""
    with torch.no_grad():
        vertices = model.forward(views.params).vertices
    places = (vertices[:, model.template.faces[faces]] * barycentrics[..., None]).sum(dim=2)
    turn = axis_angle_matrix(views.params.rotation) @ axis_angle_matrix(views.params.neck)
    image, _ = cameras.project(cameras.head_to_world(places), views.label)
    step = 1e-4
    slopes = [
        (cameras.project(cameras.head_to_world(places + step * (turn @ axis)[:, None]), views.label)[0] - image) / step
        for axis in torch.eye(3)
    ]
    return views.points - image, torch.stack(slopes, dim=-1)


def _factors(residual: Tensor, jacobian: Tensor, *, modes: int, iterations: int) -> tuple[Tensor, Tensor]:
    """Patterns [P, 3, 1 + R] (constant, then modes) and variances [P] of residual = jacobian pattern (1, a) + noise."""
    count, points = residual.shape[:2]
    rng = torch.Generator().manual_seed(0)
    patterns = torch.zeros(points, 3, 1 + modes, dtype=residual.dtype)
    patterns[..., 1:] = 0.2 * _MODE_PRIOR * torch.randn(points, 3, modes, generator=rng)
    spread = torch.tensor([_OFFSET_PRIOR, *[_MODE_PRIOR] * modes], dtype=residual.dtype)
    variance = residual.square().mean(dim=(0, 2))
    trust = torch.ones(count, points, dtype=residual.dtype)
    floor = (_MIN_SIGMA * jacobian.square().sum(dim=(2, 3)).div(2).sqrt().median()) ** 2
    normal = torch.einsum('npci,npcj->npij', jacobian, jacobian)
    slope = torch.einsum('npci,npc->npi', jacobian, residual)
    size = 3 * (1 + modes)
    for _ in range(iterations):
        # The amplitudes of each rendering, given the patterns.
        left = residual - torch.einsum('npci,pi->npc', jacobian, patterns[..., 0])
        shown = torch.einsum('npci,pir->npcr', jacobian, patterns[..., 1:])
        weight = trust / variance
        precision = torch.einsum('np,npcr,npcs->nrs', weight, shown, shown) + torch.eye(modes, dtype=residual.dtype)
        covariance = torch.linalg.inv(precision)
        amplitudes = torch.einsum('nrs,np,npcs,npc->nr', covariance, weight, shown, left)
        # What is left, and how far each detection is to be trusted.
        left = left - torch.einsum('npcr,nr->npc', shown, amplitudes)
        square = left.square().sum(dim=2) + torch.einsum('npcr,nrs,npcs->np', shown, covariance, shown)
        trust = (_FREEDOM + 2) / (_FREEDOM + square / variance)
        variance = ((trust * square).sum(dim=0) / (2 * count)).clamp(min=floor)
        # The patterns, given the amplitudes.
        known = torch.cat([amplitudes.new_ones(count, 1), amplitudes], dim=1)
        moments = known[:, :, None] * known[:, None]
        moments[:, 1:, 1:] += covariance
        system = torch.einsum('np,npij,nrs->pirjs', trust, normal, moments).reshape(points, size, size)
        system += variance[:, None, None] * torch.diag(spread.repeat(3) ** -2)
        target = torch.einsum('np,npi,nr->pir', trust, slope, known).reshape(points, size, 1)
        patterns = torch.linalg.solve(system, target).reshape(points, 3, 1 + modes)
    return patterns, variance


def _grid() -> Tensor:
    """Barycentrics [G, 3] of a grid over a triangle."""
    cells = [(i, j, _GRID - i - j) for i in range(_GRID + 1) for j in range(_GRID + 1 - i)]
    return torch.tensor(cells, dtype=torch.float32) / _GRID


def _nearest(place: Tensor, triangles: Tensor) -> tuple[int, int]:
    """Triangle of [F, 3, 3] and cell of the grid nearest to a place [3]."""
    near = (triangles.mean(dim=1) - place).norm(dim=1).topk(2 * _NEAR, largest=False).indices
    distance = (torch.einsum('gk,fkc->fgc', _grid(), triangles[near]) - place).norm(dim=-1)
    triangle, cell = divmod(int(distance.argmin()), distance.shape[1])
    return int(near[triangle]), cell


def _mirrored(model: MakeHumanHead, face: int, barycentric: Tensor) -> tuple[int, Tensor]:
    """The mirror image of a place on the surface."""
    faces = model.template.faces
    corners = model.mirror_vertices[faces[face]]
    other = int(torch.nonzero((faces[:, :, None] == corners).any(dim=1).all(dim=1))[0, 0])
    order = [int(torch.nonzero(corners == vertex)[0, 0]) for vertex in faces[other]]
    return other, barycentric[order]
