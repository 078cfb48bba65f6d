"""The 68 iBUG landmarks, gaze points, face regions and skinning weights of the baked head.

Landmarks are given as points in the front view (x, y) or the side view (y, z), in centimetres of the head frame,
on the subject's right half and the midline; the other half is the mirror image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.headbake.source import Array, BaseMesh, IntArray
from tools.headbake.template import EYE_RINGS, EYE_SEGMENTS, IRIS_RING, Template
from training.head.landmarks import MIRROR

BoolArray = NDArray[np.bool_]
# The hairline's height y over z (centimetres), seen from the side, back to front; its softness in metres.
HAIRLINE = (
    (-4.6, -11.0),
    (-3.6, -8.0),
    (-1.5, -5.5),
    (0.0, -3.0),
    (1.6, -2.0),
    (5.0, 0.0),
    (6.8, 2.0),
    (8.6, 4.0),
    (9.0, 6.0),
)
HAIRLINE_SOFTNESS = 0.012

# (y, z) of landmarks 0-7, seen from the side; 8 is the chin.
JAW = ((2.2, -2.4), (0.4, -2.4), (-1.5, -2.2), (-3.3, -1.8), (-5.0, -1.0), (-6.3, 0.5), (-7.3, 2.1), (-7.9, 3.4))
# (x, y) in the front view.
FRONT = {
    8: (0.0, -8.15),
    17: (-5.2, 3.75), 18: (-4.5, 4.35), 19: (-3.5, 4.6), 20: (-2.45, 4.45), 21: (-1.45, 4.0),
    27: (0.0, 2.6), 28: (0.0, 1.4), 29: (0.0, 0.2), 30: (0.0, -1.0),
    31: (-1.3, -1.85), 32: (-0.65, -2.0), 33: (0.0, -2.2),
    36: (-4.15, 2.4), 39: (-1.5, 2.1),
    48: (-2.32, -4.2), 49: (-1.5, -3.55), 50: (-0.55, -3.25), 51: (0.0, -3.35), 57: (0.0, -5.5), 58: (-0.75, -5.35),
    59: (-1.5, -4.95),
}  # fmt: skip
# x on the rim of an opening, and whether on its upper or lower half.
ON_RIM = {
    37: (-3.4, 'upper'), 38: (-2.4, 'upper'), 40: (-2.4, 'lower'), 41: (-3.4, 'lower'),
    60: (-2.1, 'upper'), 61: (-0.9, 'upper'), 62: (0.0, 'upper'), 66: (0.0, 'lower'), 67: (-0.9, 'lower'),
}  # fmt: skip


def _ray_hit(vertices: Array, faces: IntArray, axis: int, point: tuple[float, float], sign: int) -> tuple[int, Array]:
    """First face met by a ray coming along `axis` from the side of `sign`, and the barycentrics of the hit."""
    others = [k for k in range(3) if k != axis]
    corners = vertices[faces][..., others]
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    p = np.array(point)

    def cross(u: Array, v: Array) -> Array:
        return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]

    area = cross(b - a, c - a)
    with np.errstate(divide='ignore', invalid='ignore'):
        weights = np.stack([cross(b - p, c - p), cross(c - p, a - p), cross(a - p, b - p)], axis=1) / area[:, None]
    inside = np.isfinite(weights).all(axis=1) & (weights >= -1e-9).all(axis=1)
    assert inside.any(), f'no surface at {point}'
    depth = np.where(inside, (weights * vertices[faces][..., axis]).sum(axis=1) * sign, -np.inf)
    best = int(np.nanargmax(np.where(np.isnan(depth), -np.inf, depth)))
    return best, weights[best].clip(0)


def rims(faces: IntArray) -> list[IntArray]:
    """Boundary loops of a mesh, each an ordered list of vertices."""
    edges = {(int(f[k]), int(f[(k + 1) % 3])) for f in faces for k in range(3)}
    following = {a: b for a, b in edges if (b, a) not in edges}
    loops = []
    while following:
        start, current = following.popitem()
        loop = [start]
        while current != start:
            loop.append(current)
            current = following.pop(current)
        loops.append(np.array(loop))
    return loops


def _rim_hit(vertices: Array, faces: IntArray, rim: IntArray, x: float, half: str) -> tuple[int, Array]:
    """The point of a rim at a given x, as a point on an edge of one face."""
    best: tuple[float, int, Array] | None = None
    for a, b in zip(rim.tolist(), np.roll(rim, -1).tolist(), strict=True):
        xa, xb = vertices[a, 0], vertices[b, 0]
        if min(xa, xb) <= x <= max(xa, xb) and xa != xb:
            t = (x - xa) / (xb - xa)
            y = vertices[a, 1] * (1 - t) + vertices[b, 1] * t
            score = y if half == 'upper' else -y
            if best is None or score > best[0]:
                face = int(np.flatnonzero((faces == a).any(axis=1) & (faces == b).any(axis=1))[0])
                weights = np.where(faces[face] == a, 1 - t, np.where(faces[face] == b, t, 0.0))
                best = (score, face, weights)
    assert best is not None, f'the rim does not reach x = {x}'
    return best[1], best[2]


def embed(mean: Array, template: Template) -> tuple[IntArray, Array]:
    """Landmark faces [68] and barycentrics [68, 3] on the mean head."""
    skin = template.faces[template.chart <= 1]
    vertices = mean[: template.num_template]
    loops = rims(skin)
    centre = [vertices[loop].mean(axis=0) for loop in loops]
    eye = next(i for i, c in enumerate(centre) if c[0] < -0.01 and c[1] > 0)
    mouth = next(i for i, c in enumerate(centre) if abs(c[0]) < 1e-3 and -0.06 < c[1] < -0.02)
    hits: dict[int, tuple[int, Array]] = {}
    for i, (y, z) in enumerate(JAW):
        hits[i] = _ray_hit(vertices, skin, 0, (y / 100, z / 100), -1)
    for i, (x, y) in FRONT.items():
        hits[i] = _ray_hit(vertices, skin, 2, (x / 100, y / 100), 1)
    for i, (x, half) in ON_RIM.items():
        hits[i] = _rim_hit(vertices, skin, loops[eye if i < 48 else mouth], x / 100, half)
    lookup = {tuple(sorted(face)): i for i, face in enumerate(skin.tolist())}
    for i in list(hits):
        j = MIRROR[i]
        if j == i:
            continue
        face, weights = hits[i]
        mirrored = template.mirror[skin[face]]
        other = lookup[tuple(sorted(mirrored.tolist()))]
        hits[j] = (other, np.array([weights[mirrored.tolist().index(v)] for v in skin[other].tolist()]))
    faces = np.array([hits[i][0] for i in range(68)])
    weights = np.stack([hits[i][1] / hits[i][1].sum() for i in range(68)])
    return faces, weights


def gaze_vertices(template: Template) -> IntArray:
    """[2, 5]: left and right eye; iris centre, then its subject's-right, top, subject's-left and bottom border."""
    start = template.num_skin
    ring = start + 1 + IRIS_RING * EYE_SEGMENTS
    quarter = EYE_SEGMENTS // 4
    left = [start, ring + 2 * quarter, ring + quarter, ring, ring + 3 * quarter]
    right = [int(template.mirror[v]) for v in left]
    right[1], right[3] = right[3], right[1]
    return np.array([left, right])


def iris_radius_uv() -> float:
    """Radius of the iris as a fraction of the radius of the eyeball's disc in the UV chart."""
    return EYE_RINGS[IRIS_RING] / EYE_RINGS[-1]


def vertex_masks(base: BaseMesh, template: Template, mean: Array) -> dict[str, Array]:
    """Soft masks [V] in [0, 1]: face, lips, eyelids, ears (painted in the source) and hair; symmetric."""
    masks = {}
    for name in ('face', 'lips', 'eyelids', 'ears'):
        image = (
            np.asarray(Image.open(base.root / f'mpfb2/textures/mpfb_{name}.jpg').convert('L'), dtype=np.float64) / 255
        )
        height, width = image.shape
        value = np.zeros(template.num_template)
        for k in range(3):
            use = template.chart == 0
            u, v = template.uv[template.uv_faces[use, k]].T
            row = ((1 - v) * height).astype(int).clip(0, height - 1)
            column = (u * width).astype(int).clip(0, width - 1)
            np.maximum.at(value, template.faces[use, k], image[row, column])
        masks[name] = 0.5 * (value + value[template.mirror[: template.num_template]])
    vertices = mean[: template.num_template]
    line = np.interp(vertices[:, 2], *np.array(HAIRLINE).T[::-1] / 100)
    masks['hair'] = ((vertices[:, 1] - line) / HAIRLINE_SOFTNESS + 0.5).clip(0, 1) * (1 - masks['ears'])
    masks['hair'][template.num_skin :] = 0
    return masks


def regions(mean: Array, template: Template, masks: dict[str, Array], brow_points: Array) -> dict[str, BoolArray]:
    """Masks over faces: face, scalp, ears, neck and eyes share out all faces; lips, eyelids, brows lie in face."""
    corner_mean = {name: mask[template.faces].mean(axis=1) for name, mask in masks.items()}
    centre = mean[template.faces].mean(axis=1)
    eyes = template.chart >= 2
    ears = ~eyes & (corner_mean['ears'] > 0.5)
    face = ~eyes & ~ears & (corner_mean['face'] > 0.4) & (template.chart == 0)
    nape = (template.chart == 0) & (centre[:, 1] < -0.035) & ~face & ~ears
    neck = (template.chart == 1) | nape
    scalp = ~(eyes | ears | face | neck)
    distance = np.full(len(centre), np.inf)
    for a, b in [(brow_points[i], brow_points[i + 1]) for i in (0, 1, 2, 3, 5, 6, 7, 8)]:
        t = (((centre - a) @ (b - a)) / ((b - a) @ (b - a))).clip(0, 1)
        distance = np.minimum(distance, np.linalg.norm(centre - (a + t[:, None] * (b - a)), axis=1))
    return {
        'face': face, 'scalp': scalp, 'ears': ears, 'neck': neck, 'eyes': eyes,
        'lips': face & (corner_mean['lips'] > 0.5),
        'eyelids': face & (corner_mean['eyelids'] > 0.4),
        'brows': face & (distance < 0.006),
    }  # fmt: skip


def skinning(base: BaseMesh, template: Template, jaw_open: Array) -> tuple[Array, float]:
    """Weights [R - 5, 5] (root, neck, jaw, left eye, right eye) and the angle of the jaw in the target jawOpen.

    The jaw's weight is the share of a rotation about the jaw's pivot that the sculpted target `jaw_open`
    [R, 3] makes at each vertex; the neck's comes from the source's neck bones.
    """
    neutral = template.rows(base.vertices) * 0.1
    pivot = neutral[-3]
    start = template.num_template + template.part_sizes['teeth_upper']
    teeth = slice(start, start + template.part_sizes['teeth_lower'])
    before = neutral[teeth] - neutral[teeth].mean(axis=0)
    after = before + jaw_open[teeth] - jaw_open[teeth].mean(axis=0)
    u, _, vt = np.linalg.svd(before.T @ after)
    rotation = vt.T @ u.T
    angle = float(np.arctan2(rotation[2, 1], rotation[1, 1]))
    turn = (neutral - pivot) @ (rotation - np.eye(3)).T
    jaw = ((jaw_open * turn).sum(axis=1) / np.maximum((turn**2).sum(axis=1), 1e-8)).clip(0, 1)
    jaw[template.num_template : start] = 0
    jaw[teeth] = 1
    jaw[: template.num_skin] = _smooth(jaw[: template.num_skin], template.faces[template.chart <= 1], rounds=2)
    neck_source = base.weights_under('head') + 0.75 * base.weights['neck03'] + 0.4 * base.weights['neck02']
    neck_source = (neck_source + 0.1 * base.weights['neck01']).clip(0, 1)
    neck = np.ones(len(neutral))
    neck[: template.num_skin] = _smooth(template.skin @ neck_source, template.faces[template.chart <= 1], rounds=3)
    weights = np.zeros((len(neutral) - 5, 5))
    jaw = 0.5 * (jaw + jaw[template.mirror])[:-5]
    neck = (0.5 * (neck + neck[template.mirror])[:-5]).clip(0, 1)
    weights[:, 2] = np.minimum(jaw, neck)
    weights[:, 1] = neck - weights[:, 2]
    weights[:, 0] = 1 - neck
    count, eye = template.num_skin, len(template.eye_directions)
    weights[count : count + 2 * eye] = 0
    weights[count : count + eye, 3] = 1
    weights[count + eye : count + 2 * eye, 4] = 1
    return weights, angle


def _smooth(values: Array, faces: IntArray, *, rounds: int) -> Array:
    """Averages over mesh neighbours."""
    for _ in range(rounds):
        total, count = values.copy(), np.ones_like(values)
        for k in range(3):
            for j in ((k + 1) % 3, (k + 2) % 3):
                np.add.at(total, faces[:, k], values[faces[:, j]])
                np.add.at(count, faces[:, k], 1)
        values = total / count
    return values
