"""What makes a mesh of marching cubes fit for use: stray parts and background removed, fewer faces.

Nothing here needs a library: components by scipy's graph routines, decimation by clustering vertices in a grid, where
each cluster's vertex goes to the point that lies nearest the planes of its faces (least squares), so that edges stay.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from applications.meshes import Mesh, vertex_normals

_STEPS = 14  # of the search for a grid
_STIFFNESS = 0.05  # pull towards the cluster's mean, against the pull of its planes
_SLOPE = 200.0  # sigma a world unit: how fast a cut volume falls off beyond its border


def keep_largest(mesh: Mesh) -> Mesh:
    """The connected part with the most faces."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(mesh.vertices)
    first, second = mesh.faces[:, [0, 1]].reshape(-1), mesh.faces[:, [1, 2]].reshape(-1)
    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(count, count))
    _, part = connected_components(graph, directed=False)
    of_face = part[mesh.faces[:, 0]]
    return take_faces(mesh, of_face == np.bincount(of_face).argmax())


def take_faces(mesh: Mesh, kept: NDArray[np.bool_]) -> Mesh:
    """The faces [F] that are kept, with the vertices that they use."""
    used, faces = np.unique(mesh.faces[kept], return_inverse=True)
    colors = None if mesh.colors is None else mesh.colors[used]
    return Mesh(mesh.vertices[used], faces.reshape(-1, 3).astype(np.int32), mesh.normals[used], colors)


def decimate(mesh: Mesh, *, faces: int) -> Mesh:
    """At most `faces` faces, as many as a grid of clusters gives; colours are dropped. ValueError for less than 4."""
    if faces < 4:
        raise ValueError(f'faces: expected at least 4, got {faces}')
    if len(mesh.faces) <= faces:
        return mesh
    extent = float(np.ptp(mesh.vertices, axis=0).max())
    low, high = extent / 2000, extent  # a grid of one cell keeps nothing
    for _ in range(_STEPS):
        middle = float(np.sqrt(low * high))
        if len(_merged_faces(mesh, _cluster(mesh, middle))) > faces:
            low = middle
        else:
            high = middle
    return _collapse(mesh, _cluster(mesh, high), cell=high)


def _cluster(mesh: Mesh, cell: float) -> NDArray[np.int64]:
    """The cluster [V] of each vertex, numbered from 0."""
    place = np.floor((mesh.vertices - mesh.vertices.min(axis=0)) / cell).astype(np.int64)
    width = place.max(axis=0) + 1
    key = (place[:, 0] * width[1] + place[:, 1]) * width[2] + place[:, 2]
    return np.unique(key, return_inverse=True)[1].reshape(-1)


def _merged_faces(mesh: Mesh, cluster: NDArray[np.int64]) -> NDArray[np.int64]:
    """Faces between clusters: those with three different ones, each triangle once and none with its own reverse."""
    faces = cluster[mesh.faces]
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    turned = np.take_along_axis(faces, (faces.argmin(axis=1)[:, None] + np.arange(3)) % 3, axis=1)
    ordered = np.sort(turned, axis=1)
    _, index, group = np.unique(ordered, axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    side = np.where((turned == ordered).all(axis=1), 1, -1)  # which way round
    balance = np.zeros(len(index), dtype=np.int64)
    np.add.at(balance, group, side)
    kept = balance != 0  # equal numbers of both: two sheets that fell together
    result = ordered[index[kept]]
    return np.where((balance[kept] > 0)[:, None], result, result[:, [0, 2, 1]])


def _collapse(mesh: Mesh, cluster: NDArray[np.int64], *, cell: float) -> Mesh:
    """One vertex a cluster, where the planes of the faces around it meet."""
    count = int(cluster.max()) + 1
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    offset = (normal * corners[:, 0]).sum(axis=1)
    total = np.stack([np.bincount(cluster, mesh.vertices[:, axis], count) for axis in range(3)], axis=1)
    mean = total / np.bincount(cluster, minlength=count)[:, None]
    matrix, vector = np.zeros((count, 3, 3)), np.zeros((count, 3))
    for corner in range(3):
        owner = cluster[mesh.faces[:, corner]]
        np.add.at(matrix, owner, normal[:, :, None] * normal[:, None, :])
        np.add.at(vector, owner, normal * offset[:, None])
    pull = _STIFFNESS * np.trace(matrix, axis1=1, axis2=2) + 1e-20
    matrix += pull[:, None, None] * np.eye(3)
    place = np.linalg.solve(matrix, (vector + pull[:, None] * mean)[..., None])[..., 0]
    place = np.clip(place, mean - cell, mean + cell).astype(np.float32)
    used, index = np.unique(_merged_faces(mesh, cluster), return_inverse=True)
    faces = index.reshape(-1, 3).astype(np.int32)
    return Mesh(place[used], faces, vertex_normals(place[used], faces))


def cut_far(
    sigma: NDArray[np.float32], *, level: float, half: float, points: NDArray[np.float32], distance: float
) -> NDArray[np.float32]:
    """The grid [R, R, R] without what lies farther than `distance` from the points [P, 3], all in world units.

    Its surface at `level` is that of the solid cut by a smooth border; what lies nearer does not change.
    """
    from scipy.spatial import cKDTree

    inside = np.argwhere(sigma > level)
    place = inside * (2 * half / (sigma.shape[0] - 1)) - half
    far, _ = cKDTree(points).query(place, distance_upper_bound=3 * distance)
    far = np.minimum(far, 3 * distance)
    result = sigma.copy()
    index = tuple(inside.T)
    result[index] = np.minimum(sigma[index], level + _SLOPE * (distance - far))
    return result


def closed_at_the_border(sigma: NDArray[np.float32], *, level: float) -> NDArray[np.float32]:
    """The grid with its outermost voxels just outside, so that a head that leaves the box gets a lid, not a hole."""
    result = np.minimum(sigma, level - 1e-3 * max(abs(level), 1.0)).astype(np.float32)
    result[1:-1, 1:-1, 1:-1] = sigma[1:-1, 1:-1, 1:-1]
    return result
