"""Left and right exchanged: landmarks and meshes of the x-mirrored head.

A head mirrored in x must keep its topology (the uv of a cheek belongs to that cheek), so its
coordinates are negated and its vertices renumbered by the head's left/right symmetry.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse.csgraph
import scipy.spatial
import torch
from torch import Tensor

from dnnlib import UserError
from training.head.model import NUM_LANDMARKS, HeadInput, HeadTemplate

_FLIP = np.array([-1.0, 1.0, 1.0])
_SEEDS = 40  # faces of a connected part from which a symmetry is tried
_ASYMMETRIC = 'head model: its mesh has no left/right symmetry, so datasets cannot be mirrored; use --mirror=0'


def _landmark_permutation() -> list[int]:
    chains = [range(0, 17), range(17, 27), [27], [28], [29], [30], range(31, 36)]  # jaw, brows, nose
    chains += [[36, 37, 38, 39, 42, 43, 44, 45], [41, 40, 47, 46]]  # eyes: upper, lower lids
    chains += [range(48, 55), range(55, 60), range(60, 65), range(65, 68)]  # mouth: outer, inner
    permutation = [0] * NUM_LANDMARKS
    for chain in chains:
        for here, there in zip(chain, reversed(chain), strict=True):
            permutation[here] = there
    return permutation


LANDMARK_MIRROR: tuple[int, ...] = tuple(_landmark_permutation())  # index of the landmark on the other side


def mirror_vertex_map(template: HeadTemplate) -> Tensor:
    """For each vertex of a mesh with left/right symmetric topology the vertex opposite [V] int64.

    Follows the connectivity outwards from a face and its opposite, so the neutral shape may be lopsided
    (FLAME's is a little): positions only choose where to start. Vertices without a face stay themselves.
    Raises UserError if there is no such symmetry.
    """
    points = template.vertices.detach().cpu().double().numpy()
    faces = template.faces.cpu().numpy()
    _, near = scipy.spatial.cKDTree(points).query(points * _FLIP)
    third = {(f[i], f[(i + 1) % 3]): f[(i + 2) % 3] for f in faces.tolist() for i in range(3)}
    opposite = np.full(len(points), -1)
    for seed_faces in _components(faces, len(points)):
        if opposite[faces[seed_faces[0], 0]] >= 0:  # the other one of a pair of components
            continue
        best: tuple[float, dict[int, int]] = (np.inf, {})
        for a, b, c in faces[seed_faces[:: -(-len(seed_faces) // _SEEDS)]].tolist():
            if third.get((int(near[b]), int(near[a]))) != near[c]:
                continue
            found = _follow((a, b), (int(near[b]), int(near[a])), third)
            keys, values = np.array(list(found)), np.array(list(found.values()))
            gap = float(((points[values] * _FLIP - points[keys]) ** 2).sum()) if found else np.inf
            best = min(best, (gap, found), key=lambda item: item[0])
        for here, there in best[1].items():
            opposite[here], opposite[there] = there, here
        if not best[1]:
            raise UserError(_ASYMMETRIC)
    opposite = np.where(opposite < 0, np.arange(len(points)), opposite)
    if (opposite[opposite] != np.arange(len(points))).any():
        raise UserError(_ASYMMETRIC)
    return torch.from_numpy(opposite)


def _components(faces: np.ndarray, count: int) -> list[np.ndarray]:
    """Face indices of each connected part."""
    edges = (np.ones(2 * len(faces)), (faces[:, [0, 1]].reshape(-1), faces[:, [1, 2]].reshape(-1)))
    _, part = scipy.sparse.csgraph.connected_components(scipy.sparse.coo_array(edges, shape=(count, count)))
    order = part[faces[:, 0]]
    return [np.flatnonzero(order == number) for number in np.unique(order)]


def _follow(edge: tuple[int, int], mirrored: tuple[int, int], third: dict[tuple[int, int], int]) -> dict[int, int]:
    """The vertex map grown from a directed edge and its mirror image; {} where the two sides differ.

    `third` gives the remaining corner of the face left of a directed edge. A mirror image runs backwards:
    edge (a, b) corresponds to (b', a').
    """
    found = {edge[0]: mirrored[1], edge[1]: mirrored[0]}
    used = {mirrored[0]: edge[1], mirrored[1]: edge[0]}
    stack, seen = [(edge, mirrored)], {edge}
    while stack:
        (a, b), (b2, a2) = stack.pop()
        c, c2 = third.get((a, b)), third.get((b2, a2))
        if (c is None) != (c2 is None):
            return {}
        if c is None or c2 is None:
            continue
        if found.setdefault(c, c2) != c2 or used.setdefault(c2, c) != c:
            return {}
        for one, other in (((b, a), (a2, b2)), ((b, c), (c2, b2)), ((c, a), (a2, c2))):
            if one not in seen:
                seen.add(one)
                stack.append((one, other))
    if any(found.get(there, here) != here for here, there in found.items()):
        return {}
    return found


def mirror_mesh(head: HeadInput, vertex_map: Tensor) -> HeadInput:
    """Vertices and landmarks of the x-mirrored head; `vertex_map` [V] from `mirror_vertex_map`."""
    return HeadInput(_flip_x(head.vertices)[:, vertex_map], mirror_landmarks(head.landmarks))


def mirror_landmarks(landmarks: Tensor) -> Tensor:
    """Landmarks [N, 68, 3] of the x-mirrored head."""
    return _flip_x(landmarks)[:, list(LANDMARK_MIRROR)]


def _flip_x(points: Tensor) -> Tensor:
    return points * points.new_tensor([-1.0, 1.0, 1.0])
