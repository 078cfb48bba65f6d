"""One UV square: the main chart upright with the face enlarged, the neck and the eyeballs beside it.

Charts are laid out by convex-combination maps: with positive weights and a convex outline no triangle can flip or
overlap. The weights are reweighted until areas follow a wanted density (Yoshizawa, Belyaev and Seidel, 2004).
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from tools.headbake.landmarks import rims
from tools.headbake.source import Array, IntArray
from tools.headbake.template import Template

# Boxes (u0, v0, u1, v1) in [0, 1]^2, v up.
MAIN_BOX = (0.012, 0.145, 0.988, 0.988)
NECK_BOX = (0.165, 0.012, 0.835, 0.130)
EYE_BOXES = ((0.866, 0.012, 0.984, 0.130), (0.016, 0.012, 0.134, 0.130))
OUTLINE_POWER = 5.0  # charts fill a superellipse |x|^p + |y|^p = 1: strictly convex, nearly a rectangle
BOTTOM_SHARE = 0.36  # share of the main chart's outline that the edge below the jaw takes
ROUNDS = 60


def _outline(positions: Array, width: float, height: float) -> Array:
    """Points of a superellipse at shares [n] of its length, from the middle of the top, counter-clockwise."""
    angle = np.linspace(0, 2 * np.pi, 20001) + np.pi / 2
    c, s = np.cos(angle), np.sin(angle)
    radius = (np.abs(c) ** OUTLINE_POWER + np.abs(s) ** OUTLINE_POWER) ** (-1 / OUTLINE_POWER)
    curve = np.stack([c * radius * width / 2, s * radius * height / 2], axis=1)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    share = length / length[-1]
    return np.stack([np.interp(positions, share, curve[:, k]) for k in range(2)], axis=1)


def _fill_holes(vertices: Array, faces: IntArray, outer: IntArray) -> tuple[Array, IntArray]:
    """Close every rim but the outer one with a fan about a new vertex, so that holes cannot fold."""
    points, fans = [vertices], [faces]
    for rim in rims(faces):
        if np.intersect1d(rim, outer).size:
            continue
        centre = len(vertices) + len(points) - 1
        points.append(vertices[rim].mean(axis=0, keepdims=True))
        fans.append(np.stack([np.roll(rim, -1), rim, np.full(len(rim), centre)], axis=1))
    return np.concatenate(points), np.concatenate(fans)


def _mean_value_weights(vertices: Array, faces: IntArray) -> sp.csr_matrix:
    """Floater's mean value weights, row i over the neighbours of i; positive."""
    count = len(vertices)
    rows, columns, values = [], [], []
    for k in range(3):
        i, j, l = faces[:, k], faces[:, (k + 1) % 3], faces[:, (k + 2) % 3]
        a, b = vertices[j] - vertices[i], vertices[l] - vertices[i]
        la, lb = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        cosine = ((a * b).sum(axis=1) / np.maximum(la * lb, 1e-12)).clip(-0.999, 0.999)
        tangent = np.sqrt((1 - cosine) / (1 + cosine))
        rows += [i, i]
        columns += [j, l]
        values += [tangent / np.maximum(la, 1e-6), tangent / np.maximum(lb, 1e-6)]
    data = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return sp.coo_matrix(data, (count, count)).tocsr()


def _areas(points: Array, faces: IntArray) -> Array:
    a, b = points[faces[:, 1]] - points[faces[:, 0]], points[faces[:, 2]] - points[faces[:, 0]]
    if points.shape[1] == 2:
        return 0.5 * (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])
    return 0.5 * np.linalg.norm(np.cross(a, b), axis=1)


def _flatten(vertices: Array, faces: IntArray, rim: IntArray, rim_uv: Array, density: Array) -> Array:
    """Convex-combination map [V, 2] with a fixed outline, areas driven towards density [F] x area."""
    num, num_faces = len(vertices), len(faces)
    points, filled = _fill_holes(vertices, faces, rim)
    wanted = np.concatenate([density, np.full(len(filled) - num_faces, density.mean() * 0.5)]) * _areas(points, filled)
    wanted /= wanted.sum()
    weights = _mean_value_weights(points, filled)
    inner = np.setdiff1d(np.arange(len(points)), rim)
    uv = np.zeros((len(points), 2))
    uv[rim] = rim_uv
    best, best_score = uv, np.inf
    for _ in range(ROUNDS):
        rows = sp.diags(1 / np.asarray(weights.sum(axis=1)).ravel()) @ weights
        system = (sp.eye(len(inner)) - rows[inner][:, inner]).tocsc()
        uv = uv.copy()
        uv[inner] = splu(system).solve(np.asarray(rows[inner][:, rim] @ rim_uv))
        area = _areas(uv, filled)
        assert (area > 0).all(), 'a convex-combination map cannot flip'
        ratio = np.log(wanted / (area / area.sum()))
        score = float((wanted * ratio**2).sum())
        if score < best_score:
            best, best_score = uv, score
        # A vertex whose triangles are too small pulls its neighbours less.
        pull, share = np.zeros(len(points)), np.zeros(len(points))
        for k in range(3):
            np.add.at(pull, filled[:, k], wanted * ratio)
            np.add.at(share, filled[:, k], wanted)
        weights = weights @ sp.diags(np.exp(-0.25 * pull / share))
    return best[:num]


def _fit(points: Array, box: tuple[float, float, float, float]) -> Array:
    """Scale points to fill a box."""
    low, high = points.min(axis=0), points.max(axis=0)
    return np.array(box[:2]) + (points - low) / (high - low) * (np.array(box[2:]) - np.array(box[:2]))


def _open_back(vertices: Array, faces: IntArray, mirror: IntArray) -> tuple[IntArray, IntArray, int]:
    """Cut the main chart along the back midline, from its lower edge up to the crown.

    Returns the vertex of each uv index, the uv faces and the crown's uv index.
    """
    used = np.unique(faces)
    back = used[(mirror[used] == used) & (vertices[used, 2] < vertices[used[vertices[used, 1].argmax()], 2])]
    crown = int(used[vertices[used, 1].argmax()])
    right = (vertices[faces, 0].mean(axis=1) < 0)[:, None] & np.isin(faces, back)
    copies = {int(v): len(used) + k for k, v in enumerate(back)}
    index = np.searchsorted(used, faces)
    index[right] = [copies[int(v)] for v in faces[right]]
    return np.concatenate([used, back]), index, int(np.searchsorted(used, crown))


def _main_chart(vertices: Array, faces: IntArray, mirror: IntArray, density: Array) -> tuple[Array, IntArray]:
    source, index, crown = _open_back(vertices, faces, mirror)
    points = vertices[source]
    rim = next(r for r in rims(index) if crown in r)
    rim = np.roll(rim, -int(np.flatnonzero(rim == crown)[0]))
    step = np.linalg.norm(np.diff(points[np.append(rim, rim[0])], axis=0), axis=1)
    # The cut's two sides lie on the midline; everything else of the rim is the lower edge.
    on_cut = (np.abs(points[rim, 0]) < 1e-9) & (points[rim, 2] < points[crown, 2] + 1e-9)
    cut_step = on_cut & np.roll(on_cut, -1)
    share = np.where(cut_step, (1 - BOTTOM_SHARE) / step[cut_step].sum(), BOTTOM_SHARE / step[~cut_step].sum()) * step
    places = np.concatenate([[0], np.cumsum(share)[:-1]])
    outline = _outline(places, MAIN_BOX[2] - MAIN_BOX[0], MAIN_BOX[3] - MAIN_BOX[1])
    return _flatten(points, index, rim, outline, density), index


def _neck_chart(vertices: Array, faces: IntArray, uv_faces: IntArray) -> tuple[Array, IntArray]:
    index = np.searchsorted(np.unique(uv_faces), uv_faces)
    points = np.zeros((index.max() + 1, 3))
    points[index] = vertices[faces]
    rim = max(rims(index), key=len)
    # The upper edge's middle lies on the midline in front, just under the chin.
    middle = np.flatnonzero((np.abs(points[rim, 0]) < 1e-9) & (points[rim, 2] > -0.06))
    start = middle[points[rim[middle], 1].argmax()]
    rim = np.roll(rim, -int(start))
    step = np.linalg.norm(np.diff(points[np.append(rim, rim[0])], axis=0), axis=1)
    places = np.concatenate([[0], np.cumsum(step)[:-1]]) / step.sum()
    outline = _outline(places, NECK_BOX[2] - NECK_BOX[0], NECK_BOX[3] - NECK_BOX[1])
    return _flatten(points, index, rim, outline, np.ones(len(faces))), index


def pack(mean: Array, template: Template, density: Array) -> tuple[Array, IntArray]:
    """Packed uv coordinates [T, 2] and uv faces [F, 3]; `density` [F] is each face's wanted uv area per area."""
    uv_faces = np.zeros_like(template.faces)
    blocks: list[Array] = []
    vertices = mean[: template.num_template]
    for kind in range(4):
        use = template.chart == kind
        faces = template.faces[use]
        if kind == 0:
            uv, index = _main_chart(vertices, faces, template.mirror, density[use])
            uv = _fit(uv, MAIN_BOX)
        elif kind == 1:
            uv, index = _neck_chart(vertices, faces, template.uv_faces[use])
            uv = _fit(uv, NECK_BOX)
        else:
            used = np.unique(template.uv_faces[use])
            uv, index = _fit(template.uv[used], EYE_BOXES[kind - 2]), np.searchsorted(used, template.uv_faces[use])
        uv_faces[use] = index + sum(len(block) for block in blocks)
        blocks.append(uv)
    return np.concatenate(blocks), uv_faces


def face_density(mean: Array, template: Template, masks: dict[str, Array]) -> Array:
    """Wanted uv area per area [F]: the face's front several times the scalp's, mouth and eyes most."""
    centre = mean[template.faces].mean(axis=1)
    face = masks['face'][template.faces].mean(axis=1)
    front = (0.5 + centre[:, 2] / 0.05).clip(0, 1)
    features = masks['lips'][template.faces].mean(axis=1) + masks['eyelids'][template.faces].mean(axis=1)
    return 0.6 + 0.2 * face + 0.8 * face * front + 0.5 * features.clip(0, 1)


def eye_mask(size: int) -> np.ndarray:
    """Bool [size, size], row 0 at v = 1: False within the eyeballs' discs, True elsewhere."""
    centres = (np.arange(size) + 0.5) / size
    u, v = np.meshgrid(centres, 1 - centres)
    mask = np.ones((size, size), dtype=bool)
    for box in EYE_BOXES:
        middle = 0.5 * (np.array(box[:2]) + np.array(box[2:]))
        radius = 0.5 * (box[2] - box[0]) + 1 / size
        mask &= (u - middle[0]) ** 2 + (v - middle[1]) ** 2 > radius**2
    return mask
