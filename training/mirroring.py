"""Left and right exchanged: the mesh of the x-mirrored head.

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
from training.head.landmarks import mirror_landmarks
from training.head.model import HeadInput, HeadTemplate

_FLIP = np.array([-1.0, 1.0, 1.0])
_SEEDS = 40  # faces of a connected part from which a symmetry is tried


def mirror_vertex_map(template: HeadTemplate) -> Tensor:
    """For each vertex of a mesh with left/right symmetric topology the vertex opposite [V] int64.

    Follows the connectivity outwards from a face and its opposite, so the neutral shape may be lopsided:
    positions only choose where to start. Where only the diagonals of quads differ between the sides,
    positions decide (asymmetry of about 1 mm). Vertices without a face stay themselves.
    Raises UserError if there is no such symmetry.
    """
    points = template.vertices.detach().cpu().double().numpy()
    faces = template.faces.cpu().numpy()
    opposite = _match_topology(points, faces)
    if opposite is None:
        opposite = _match_positions(points, faces)
    if opposite is None:
        raise UserError('head model: its mesh has no left/right symmetry, so it cannot be mirrored; use --mirror=0')
    return torch.from_numpy(opposite)


def _match_topology(points: np.ndarray, faces: np.ndarray) -> np.ndarray | None:
    """The vertex map by connectivity; None if a part of the mesh has no mirror image."""
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
            if all(best[1].get(corner) == near[corner] for corner in (a, b, c)):
                continue  # one face decides the whole map, so this one leads to the best again
            found = _follow((a, b), (int(near[b]), int(near[a])), third)
            keys, values = np.array(list(found)), np.array(list(found.values()))
            gap = float(((points[values] * _FLIP - points[keys]) ** 2).sum()) if found else np.inf
            best = min(best, (gap, found), key=lambda item: item[0])
        for here, there in best[1].items():
            opposite[here], opposite[there] = there, here
        if not best[1]:
            return None
    opposite = np.where(opposite < 0, np.arange(len(points)), opposite)
    return opposite if (opposite[opposite] == np.arange(len(points))).all() else None


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


def _match_positions(points: np.ndarray, faces: np.ndarray) -> np.ndarray | None:
    """The vertex map by nearest positions after a smooth correction of the asymmetry; None if it is no symmetry."""
    tree, mirrored = scipy.spatial.cKDTree(points), points * _FLIP
    _, around = scipy.spatial.cKDTree(mirrored).query(mirrored, k=min(40, len(points)))
    moved = mirrored
    for _ in range(60):
        near = tree.query(moved)[1]
        mutual = near[near] == np.arange(len(points))
        if mutual.all():
            break
        shift = (points[near] - mirrored) * mutual[:, None]
        moved = mirrored + shift[around].sum(axis=1) / np.maximum(mutual[around].sum(axis=1), 1)[:, None]
    else:
        return None
    edges = _edge_set(faces)
    kept = len(np.intersect1d(_edge_set(near[faces]), edges)) / len(edges)
    return near if kept > 0.6 else None  # two thirds of a triangulated quad mesh are no diagonals


def _edge_set(faces: np.ndarray) -> np.ndarray:
    pairs = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64), axis=1)
    return np.unique(pairs[:, 0] << 32 | pairs[:, 1])


def mirror_mesh(head: HeadInput, vertex_map: Tensor) -> HeadInput:
    """Vertices and landmarks of the x-mirrored head; `vertex_map` [V] from `mirror_vertex_map`."""
    flip = head.vertices.new_tensor([-1.0, 1.0, 1.0])
    vertices = (head.vertices * flip)[:, vertex_map.to(head.vertices.device)]
    return HeadInput(vertices, mirror_landmarks(head.landmarks))
