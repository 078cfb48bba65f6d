"""Meshes for the synthetic dataset: pieces, simple surfaces, normals, a smooth skull, a rigid fit."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

# Materials, one number per piece; the renderer colours by them.
SKIN, EYE, TEETH, TONGUE, HAIR, CLOTH, COLLAR, FRAME = range(8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """A mesh with one material, head frame (metres)."""

    vertices: np.ndarray  # [V, 3] float32
    faces: np.ndarray  # [F, 3] int64, counter-clockwise seen from outside
    surface: np.ndarray  # [V, 3] float32: where on the material a vertex lies; static while the piece moves
    material: int
    two_sided: bool = False

    def at(self, vertices: np.ndarray) -> Piece:
        """The same piece with its vertices elsewhere."""
        return dataclasses.replace(self, vertices=vertices.astype(np.float32))


def lengths(vectors: np.ndarray) -> np.ndarray:
    """Norms [P, 1] of vectors [P, 3]; much faster than a reduction over so short an axis."""
    x, y, z = vectors[:, 0], vectors[:, 1], vectors[:, 2]
    return np.sqrt(x * x + y * y + z * z)[:, None]


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals [V, 3]."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    normals = np.cross(b - a, c - a)
    rows, columns = faces.ravel(), np.repeat(np.arange(len(faces)), 3)
    gather = sparse.csr_matrix(
        (np.ones(rows.size, dtype=np.float32), (rows, columns)), shape=(len(vertices), len(faces))
    )
    total = gather @ normals
    return (total / np.maximum(lengths(total), 1e-12)).astype(np.float32)


def vertex_areas(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """A third of the area of the faces around each vertex, [V]."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    area = lengths(np.cross(b - a, c - a))[:, 0] / 6
    return np.bincount(faces.ravel(), np.repeat(area, 3), minlength=len(vertices))


def grid_faces(rows: int, columns: int) -> np.ndarray:
    """Triangles of a grid of rows x columns vertices (row-major); outward if rows x columns is."""
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)[None]).ravel()
    right, below = corner + 1, corner + columns
    return np.concatenate([np.stack([corner, below, right], 1), np.stack([right, below, below + 1], 1)])


def sheet(points: np.ndarray, surface: np.ndarray, material: int) -> Piece:
    """A two-sided grid surface from points and surface coordinates [rows, columns, 3]."""
    faces = grid_faces(points.shape[0], points.shape[1])
    vertices, coordinates = points.reshape(-1, 3).astype(np.float32), surface.reshape(-1, 3).astype(np.float32)
    return Piece(vertices=vertices, faces=faces, surface=coordinates, material=material, two_sided=True)


def ellipsoid(
    centre: np.ndarray, radii: tuple[float, float, float], material: int, *, bumps: np.ndarray | None = None
) -> Piece:
    """An ellipsoid; `bumps` [rows, columns] scales its radius."""
    rows, columns = (16, 25) if bumps is None else bumps.shape
    polar = np.linspace(0, np.pi, rows)[:, None]
    around = np.linspace(-np.pi, np.pi, columns)[None]
    unit = np.stack(
        np.broadcast_arrays(np.sin(polar) * np.sin(around), np.cos(polar), np.sin(polar) * np.cos(around)), -1
    )
    scale = 1.0 if bumps is None else bumps[..., None]
    along = np.stack(np.broadcast_arrays(around, polar, 0 * polar), -1)
    return dataclasses.replace(sheet(centre + unit * np.array(radii) * scale, along, material), two_sided=False)


def tube(path: np.ndarray, radii: np.ndarray | float, material: int, *, closed: bool = False, sides: int = 8) -> Piece:
    """A tube around a polyline [n, 3] with radius per point (or one)."""
    path = np.concatenate([path, path[:2]]) if closed else path
    radius = np.broadcast_to(np.asarray(radii, dtype=np.float64), (len(path),))
    tangent = np.gradient(path, axis=0)
    if closed:
        tangent[0] = tangent[-2]
        tangent[-1] = tangent[1]
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-12)
    helper = np.eye(3)[np.abs(tangent).sum(0).argmin()]
    first = np.cross(tangent, helper)
    first /= np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-12)
    second = np.cross(tangent, first)
    turn = np.linspace(0, 2 * np.pi, sides + 1)
    ring = first[:, None] * np.cos(turn)[None, :, None] + second[:, None] * np.sin(turn)[None, :, None]
    points = path[:, None] + ring * radius[:, None, None]
    steps = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    surface = np.stack(np.broadcast_arrays(turn[None], steps[:, None] * 20, 0 * steps[:, None]), -1)
    return dataclasses.replace(sheet(points, surface, material), two_sided=False)


def harmonics(directions: np.ndarray, degree: int) -> np.ndarray:
    """Monomials x^i y^j z^k with i + j + k = degree or degree - 1: they span all harmonics up to `degree`."""
    powers = np.ones((degree + 1, *directions.shape))
    for k in range(1, degree + 1):
        powers[k] = powers[k - 1] * directions
    exponents = [(i, j, n - i - j) for n in (degree - 1, degree) for i in range(n + 1) for j in range(n - i + 1)]
    return np.stack([powers[i, ..., 0] * powers[j, ..., 1] * powers[k, ..., 2] for i, j, k in exponents], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skull:
    """A smooth star-shaped surface through the head without ears and nose."""

    centre: np.ndarray  # [3]
    coefficients: np.ndarray
    degree: int

    def radius(self, directions: np.ndarray) -> np.ndarray:
        """Distance from the centre along unit directions [..., 3]."""
        return harmonics(directions, self.degree) @ self.coefficients

    def point(self, azimuth: np.ndarray, polar: np.ndarray, *, thickness: np.ndarray | float = 0.0) -> np.ndarray:
        """Points [..., 3]; azimuth 0 = front, positive to the subject's left; polar 0 = up."""
        directions = direction(azimuth, polar)
        return self.centre + directions * (self.radius(directions) + thickness)[..., None]


def direction(azimuth: np.ndarray, polar: np.ndarray) -> np.ndarray:
    """Unit vectors [..., 3] of azimuth and polar angles (radians)."""
    return np.stack(
        np.broadcast_arrays(np.sin(polar) * np.sin(azimuth), np.cos(polar), np.sin(polar) * np.cos(azimuth)), -1
    )


def angles(directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Azimuth and polar angle of unit vectors [..., 3]."""
    return np.arctan2(directions[..., 0], directions[..., 2]), np.arccos(np.clip(directions[..., 1], -1, 1))


def fit_skull(vertices: np.ndarray, centre: np.ndarray, *, importance: np.ndarray, degree: int = 8) -> Skull:
    """Least squares on directions of vertices [V, 3] by importance [V]; what sticks out or lies deep counts less."""
    offsets = vertices - centre
    radii = np.linalg.norm(offsets, axis=1)
    directions = offsets / radii[:, None]
    design = harmonics(directions, degree)
    weights = importance
    coefficients = np.zeros(design.shape[1])
    for _ in range(5):
        scaled = design * weights[:, None]
        normal = scaled.T @ design
        ridge = 1e-5 * np.trace(normal) / len(normal) * np.eye(len(normal))
        coefficients = np.linalg.solve(normal + ridge, scaled.T @ radii)
        residual = radii - design @ coefficients
        weights = importance / (1 + (residual / 0.006) ** 2)
    coefficients = np.round(coefficients, 7)  # the same whatever the number of threads
    return Skull(centre=centre, coefficients=coefficients, degree=degree)


def rigid_fit(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation [3, 3] and translation [3] with target ~ source @ rotation.T + translation (Kabsch)."""
    middle_source, middle_target = source.mean(0), target.mean(0)
    u, _, vt = np.linalg.svd((source - middle_source).T @ (target - middle_target))
    sign = np.sign(np.linalg.det(vt.T @ u.T))
    rotation = vt.T @ np.diag([1, 1, sign]) @ u.T
    return rotation, middle_target - rotation @ middle_source


def border_rings(faces: np.ndarray, count: int) -> list[np.ndarray]:
    """The open borders of a mesh with `count` vertices: vertex numbers of each, unordered."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    edges, uses = np.unique(edges, axis=0, return_counts=True)
    open_edges = edges[uses == 1]
    graph = sparse.coo_matrix((np.ones(len(open_edges)), tuple(open_edges.T)), (count, count))
    component = connected_components(graph, directed=False)[1]
    members = np.unique(open_edges)
    return [members[component[members] == k] for k in np.unique(component[members])]
