"""The template mesh: head skin cut by a plane at the neck, two eyeballs; teeth and tongue as parts.

Every vertex is a linear function of the base mesh, so shapes and morph targets go through the same map.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from tools.headbake.source import Array, BaseMesh, IntArray

# The neck is cut by the plane through these two points (y, z, decimetres), constant in x.
NECK_FRONT = (5.72, 0.80)
NECK_BACK = (6.08, -0.35)
EYE_SEGMENTS = 24
# Polar angles (degrees) of an eyeball's rings about the gaze direction; the third ring is the rim of the iris.
EYE_RINGS = (6.5, 13.0, 20.0, 29.0, 40.0, 52.0, 65.0, 79.0, 93.0, 108.0, 125.0)
IRIS_RING = 2
PARTS = {'teeth_upper': 'helper-upper-teeth', 'teeth_lower': 'helper-lower-teeth', 'tongue': 'helper-tongue'}
CHARTS = ('main', 'neck', 'eye_left', 'eye_right')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
    """Topology of the baked head and the map from the base mesh to its rows.

    Rows = skin, left eyeball, right eyeball, parts (in the order of PARTS), joints.
    """

    skin: sp.csr_matrix  # [S, Vb]
    eye_directions: Array  # [E, 3] unit, left eye (the right one is its mirror image)
    eye_vertices: tuple[IntArray, IntArray]  # base vertices of the left and right eyeball
    eye_normals: tuple[Array, Array]  # their outward unit normals on the neutral base mesh
    part_vertices: IntArray  # [P] base vertices
    faces: IntArray  # [F, 3] rows
    uv: Array  # [T, 2] source coordinates of the skin's charts, eyeballs in their own unit disc
    uv_faces: IntArray  # [F, 3]
    chart: IntArray  # [F] index into CHARTS
    part_faces: dict[str, IntArray]  # [Fp, 3] into the part's own vertices
    part_uv: dict[str, tuple[Array, IntArray]]
    part_sizes: dict[str, int]
    mirror: IntArray  # [rows]
    joints: dict[str, Array]  # fixed joints as [Vb] weights

    @property
    def num_skin(self) -> int:
        return int(self.skin.shape[0])

    @property
    def num_template(self) -> int:
        return self.num_skin + 2 * len(self.eye_directions)

    def rows(self, base: Array) -> Array:
        """Base vertices (or offsets of them) [Vb, 3] -> rows [R, 3]; linear."""
        blocks = [self.skin @ base]
        centres = []
        for side, (index, normals) in enumerate(zip(self.eye_vertices, self.eye_normals, strict=True)):
            centre = base[index].mean(axis=0)
            radius = ((base[index] - centre) * normals).sum() / len(index)
            flip = np.array([1.0 if side == 0 else -1.0, 1.0, 1.0])
            blocks.append(centre + radius * self.eye_directions * flip)
            centres.append(centre)
        blocks.append(base[self.part_vertices])
        blocks.append(np.stack([self.joints[name] @ base for name in ('root', 'neck', 'jaw')] + centres))
        return np.concatenate(blocks)


def _components(faces: IntArray, count: int) -> IntArray:
    """Connected component of each face."""
    first = np.repeat(faces[:, 0], faces.shape[1] - 1)
    graph = sp.coo_matrix((np.ones(len(first)), (first, faces[:, 1:].reshape(-1))), (count, count))
    return connected_components(graph, directed=False)[1][faces[:, 0]]


def _triangulate(base: BaseMesh, quads: IntArray, uv_quads: IntArray) -> tuple[IntArray, IntArray]:
    """Quads -> triangles along the shorter diagonal, the same way on both sides of the face."""
    vertices = base.vertices
    lookup = {tuple(sorted(quad)): i for i, quad in enumerate(quads.tolist())}
    partner = np.array([lookup[tuple(sorted(quad))] for quad in base.mirror[quads].tolist()])
    first = np.linalg.norm(vertices[quads[:, 0]] - vertices[quads[:, 2]], axis=1)
    second = np.linalg.norm(vertices[quads[:, 1]] - vertices[quads[:, 3]], axis=1)
    use_first = first <= second
    # The quads on x < 0 repeat the choice of their partners, whichever corner they start from.
    pair = np.sort(np.where(use_first[:, None], quads[:, [0, 2]], quads[:, [1, 3]]), axis=1)
    mirrored_pair = np.sort(base.mirror[pair[partner]], axis=1)
    follows = vertices[quads, 0].mean(axis=1) < 0
    pair = np.where(follows[:, None], mirrored_pair, pair)
    use_first = (np.sort(quads[:, [0, 2]], axis=1) == pair).all(axis=1)
    one = np.where(use_first[:, None], [0, 1, 2], [0, 1, 3])
    two = np.where(use_first[:, None], [0, 2, 3], [1, 2, 3])
    order = np.concatenate([one, two])
    return (
        np.take_along_axis(np.concatenate([quads, quads]), order, axis=1),
        np.take_along_axis(np.concatenate([uv_quads, uv_quads]), order, axis=1),
    )


def _select_skin(base: BaseMesh) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks over quads: the head's skin down to the chest (no mouth cavity, no eye sockets), and the main chart."""
    body = base.group('body')
    centre = base.vertices[base.quads].mean(axis=1)
    near = body & (centre[:, 1] > 5.2) & (np.abs(centre[:, 0]) < 2.0)
    charts = _components(base.uv_quads, len(base.uv))
    u, v = base.uv[base.uv_quads].mean(axis=1).T
    main_seed = near & (u > 0.64) & (v > 0.15) & (v < 0.82)
    main_chart = np.bincount(charts[main_seed]).argmax()
    main = near & (charts == main_chart)
    neck_seed = near & ~main & (centre[:, 1] < 6.0)
    neck_chart = np.bincount(charts[neck_seed]).argmax()
    return main | (near & (charts == neck_chart)), main


def _on_edge(vertices: Array, height: Array, edge: tuple[int, int]) -> Array:
    """Where the edge (a, b) meets height 0; vertex a itself for (a, a)."""
    a, b = edge
    t = 0.0 if a == b else float(height[a] / (height[a] - height[b]))
    return vertices[a] * (1 - t) + vertices[b] * t


def _cut(
    vertices: Array, faces: IntArray, uv: Array, uv_faces: IntArray, chart: IntArray
) -> tuple[sp.csr_matrix, IntArray, Array, IntArray, IntArray]:
    """Keep what lies above the neck plane; new vertices are interpolated on the crossing edges.

    Returns the vertex map [S, Vb], faces, uv, uv faces and the charts of what is left.
    """
    (y1, z1), (y0, z0) = NECK_FRONT, NECK_BACK
    height = vertices[:, 1] - (y0 + (vertices[:, 2] - z0) * (y1 - y0) / (z1 - z0))
    inside = height > 0
    rows: dict[tuple[int, int], int] = {}
    uv_rows: dict[tuple[int, int, float], int] = {}
    out_faces, out_uv, out_chart = [], [], []

    def vertex(a: int, b: int) -> int:
        return rows.setdefault((min(a, b), max(a, b)), len(rows))

    def texture(a: int, b: int, t: float) -> int:
        key = (a, b, t) if a <= b else (b, a, 1 - t)
        return uv_rows.setdefault((key[0], key[1], round(key[2], 9)), len(uv_rows))

    for face, uv_face, kind in zip(faces.tolist(), uv_faces.tolist(), chart.tolist(), strict=True):
        polygon = []
        for k in range(3):
            a, b, ta, tb = face[k], face[(k + 1) % 3], uv_face[k], uv_face[(k + 1) % 3]
            if inside[a]:
                polygon.append((vertex(a, a), texture(ta, ta, 0.0)))
            if inside[a] != inside[b]:
                t = float(height[a] / (height[a] - height[b]))
                polygon.append((vertex(a, b), texture(ta, tb, t)))
        if len(polygon) == 4:  # the shorter diagonal, so that both sides of the face agree
            points = np.array([_on_edge(vertices, height, key) for key in (list(rows)[p[0]] for p in polygon)])
            if np.linalg.norm(points[0] - points[2]) > np.linalg.norm(points[1] - points[3]):
                polygon = polygon[1:] + polygon[:1]
        for k in range(1, len(polygon) - 1):
            out_faces.append([polygon[0][0], polygon[k][0], polygon[k + 1][0]])
            out_uv.append([polygon[0][1], polygon[k][1], polygon[k + 1][1]])
            out_chart.append(kind)
    entries = [(row, a, b) for (a, b), row in rows.items()]
    matrix = sp.lil_matrix((len(rows), len(vertices)))
    for row, a, b in entries:
        t = 0.0 if a == b else float(height[a] / (height[a] - height[b]))
        matrix[row, a] += 1 - t
        matrix[row, b] += t
    new_uv = np.stack([uv[a] * (1 - t) + uv[b] * t for a, b, t in uv_rows])
    return matrix.tocsr(), np.array(out_faces), new_uv, np.array(out_uv), np.array(out_chart)


def _eyeball() -> tuple[Array, IntArray, Array]:
    """A sphere cap about +z: directions [E, 3] (pole first, then ring by ring), faces, uv in the unit disc."""
    angle = 2 * np.pi * np.arange(EYE_SEGMENTS) / EYE_SEGMENTS
    directions, uv = [np.array([[0.0, 0.0, 1.0]])], [np.zeros((1, 2))]
    for polar in np.radians(EYE_RINGS):
        ring = np.stack(
            [np.sin(polar) * np.cos(angle), np.sin(polar) * np.sin(angle), np.full_like(angle, np.cos(polar))], 1
        )
        directions.append(ring)
        uv.append(ring[:, :2] / np.sin(polar) * polar / np.radians(EYE_RINGS[-1]))
    index = 1 + np.arange(len(EYE_RINGS) * EYE_SEGMENTS).reshape(len(EYE_RINGS), EYE_SEGMENTS)
    after = np.roll(index, -1, axis=1)
    faces = [np.stack([np.zeros_like(index[0]), index[0], after[0]], axis=1)]
    for k in range(len(EYE_RINGS) - 1):
        faces.append(np.stack([index[k], index[k + 1], after[k + 1]], axis=1))
        faces.append(np.stack([index[k], after[k + 1], after[k]], axis=1))
    return np.concatenate(directions), np.concatenate(faces), np.concatenate(uv)


def build(base: BaseMesh) -> Template:
    """Cut, join and index the template and its parts."""
    skin_mask, main = _select_skin(base)
    faces, uv_faces = _triangulate(base, base.quads[skin_mask], base.uv_quads[skin_mask])
    chart = np.where(np.tile(main[skin_mask], 2), 0, 1)
    skin, faces, uv, uv_faces, chart = _cut(base.vertices, faces, base.uv, uv_faces, chart)
    keep = _components(faces, skin.shape[0])
    assert (keep == keep[0]).all(), 'the skin must be one piece'

    directions, eye_faces, eye_uv = _eyeball()
    count, eye_count = skin.shape[0], len(directions)
    left, right = base.group_vertices('helper-l-eye'), base.group_vertices('helper-r-eye')
    normals = []
    for index in (left, right):
        offset = base.vertices[index] - base.vertices[index].mean(axis=0)
        normals.append(offset / np.linalg.norm(offset, axis=1, keepdims=True))
    # The right eyeball is the mirror image of the left one: directions flipped in x, winding reversed.
    flipped = eye_faces[:, [0, 2, 1]]
    all_faces = np.concatenate([faces, count + eye_faces, count + eye_count + flipped])
    all_uv = np.concatenate([uv, eye_uv, eye_uv * [-1, 1]])
    all_uv_faces = np.concatenate([uv_faces, len(uv) + eye_faces, len(uv) + eye_count + flipped])
    all_chart = np.concatenate([chart, np.full(len(eye_faces), 2), np.full(len(eye_faces), 3)])

    part_vertices, part_faces, part_uv = [], {}, {}
    for name, group in PARTS.items():
        used = base.group_vertices(group)
        quads, uv_quads = base.quads[base.group(group)], base.uv_quads[base.group(group)]
        triangles, uv_triangles = _triangulate(base, quads, uv_quads)
        used_uv = np.unique(uv_triangles)
        part_vertices.append(used)
        part_faces[name] = np.searchsorted(used, triangles)
        part_uv[name] = (base.uv[used_uv], np.searchsorted(used_uv, uv_triangles))
    sizes = {name: len(index) for name, index in zip(PARTS, part_vertices, strict=True)}
    parts = np.concatenate(part_vertices)
    return Template(
        skin=skin, eye_directions=directions, eye_vertices=(left, right),
        eye_normals=(normals[0], normals[1]), part_vertices=parts, faces=all_faces, uv=all_uv, uv_faces=all_uv_faces,
        chart=all_chart, part_faces=part_faces, part_uv=part_uv, part_sizes=sizes,
        mirror=_mirror(base, skin, eye_count, parts), joints=_joints(base),
    )  # fmt: skip


def _mirror(base: BaseMesh, skin: sp.csr_matrix, eye_count: int, parts: IntArray) -> IntArray:
    """Row of the mirror image of each row."""
    position = skin @ base.vertices
    other = skin[:, base.mirror] @ base.vertices  # each row's recipe applied to the mirrored vertices
    keys = {tuple(np.round(p, 7) + 0.0): i for i, p in enumerate(position)}
    skin_mirror = np.array([keys[tuple(np.round(p, 7) + 0.0)] for p in other])
    count = len(position)
    eyes = np.arange(eye_count)
    part_of = {int(v): i for i, v in enumerate(parts)}
    part_mirror = np.array([part_of[int(base.mirror[v])] for v in parts])
    start = count + 2 * eye_count
    joints = start + len(parts) + np.array([0, 1, 2, 4, 3])
    return np.concatenate([skin_mirror, count + eye_count + eyes, count + eyes, start + part_mirror, joints])


def _joints(base: BaseMesh) -> dict[str, Array]:
    """Root, neck and jaw pivots as weights over base vertices (means of the source's joint cubes)."""

    def cube(name: str) -> Array:
        weights = np.zeros(len(base.vertices))
        index = base.group_vertices(name)
        weights[index] = 1 / len(index)
        return weights

    neck, head, mouth = cube('joint-neck'), cube('joint-head'), cube('joint-mouth')
    return {'root': neck, 'neck': 0.5 * neck + 0.5 * head, 'jaw': mouth}
