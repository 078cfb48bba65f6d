"""Draws one scene of the synthetic dataset: project, rasterize, colour by material, light, downsample.

Everything is drawn at `SUPERSAMPLING` times the resolution in linear RGB and averaged before the sRGB curve.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from torch_utils.ops import rasterize
from training import cameras
from training import synthetic_geometry as geometry
from training import synthetic_skin as skin
from training.synthetic_geometry import Piece
from training.synthetic_hair import scalp_density
from training.synthetic_params import Light, Person, rgb
from training.synthetic_props import clothes_colour, fabric

SUPERSAMPLING = 4
IRIS_ANGLE = np.deg2rad(24.0)


@dataclasses.dataclass(frozen=True)
class Pixels:
    """What the rasterizer found: one row per covered pixel."""

    index: np.ndarray  # [P] into the flattened image
    material: np.ndarray  # [P]
    backside: np.ndarray  # [P] bool
    normal: np.ndarray  # [P, 3] unit, world, towards the viewer's side of the face
    surface: np.ndarray  # [P, 3]

    def take(self, rows: np.ndarray) -> Pixels:
        """Some of the pixels."""
        return Pixels(**{name: value[rows] for name, value in vars(self).items()})


Painted = tuple[np.ndarray, np.ndarray]  # albedo [P, 3] (linear), gloss [P]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paint:
    """What colouring needs beside the pixels."""

    person: Person
    canvas: skin.Canvas
    face: np.ndarray  # [size, size, 3]
    fibres: np.ndarray  # [S, S] in [-1, 1]: noise along strands (rows) and across them (columns)
    skull_centre: np.ndarray  # [3] of the template
    depth_range: tuple[float, float]  # z of the template where the face's paint begins and is complete
    neck_plane: tuple[float, float]  # height and slope over z of the template's lower edge


def trace(pieces: list[Piece], label: np.ndarray, size: int) -> Pixels:
    """Visible surface of posed pieces (head frame) from a camera label [25], at size x size pixels."""
    counts = np.cumsum([0] + [len(piece.vertices) for piece in pieces])
    front = np.concatenate([piece.faces + start for piece, start in zip(pieces, counts[:-1], strict=True)])
    sided = np.concatenate([np.full(len(piece.faces), piece.two_sided) for piece in pieces])
    materials = np.concatenate([np.full(len(piece.faces), piece.material, dtype=np.int8) for piece in pieces])
    vertices = np.concatenate([piece.vertices for piece in pieces])
    normals = np.concatenate([geometry.vertex_normals(piece.vertices, piece.faces) for piece in pieces])
    surface = np.concatenate([piece.surface for piece in pieces])
    faces = np.concatenate([front, front[sided][:, ::-1]])

    world = cameras.head_to_world(torch.from_numpy(vertices).float())
    image, depth = cameras.project(world[None], torch.from_numpy(label)[None])
    inverse = 1 / depth[0]
    # 1 / z is linear on the screen: the order of depths is exact, and the weights can be corrected for perspective.
    screen = torch.cat([2 * image[0] - 1, (1 - inverse)[:, None]], dim=1)
    fragments = rasterize.rasterize(screen[None].contiguous(), torch.from_numpy(faces), height=size, width=size)

    face_ids = fragments.face_ids.reshape(-1).numpy()
    index = np.flatnonzero(face_ids >= 0)
    face_ids = face_ids[index]
    corners = faces[face_ids]
    weights = fragments.barycentrics.reshape(-1, 3).numpy()[index] * inverse.numpy()[corners]
    weights /= (weights[:, 0] + weights[:, 1] + weights[:, 2])[:, None]
    attributes = np.concatenate([normals, surface], axis=1)
    values = weights[:, :1] * attributes[corners[:, 0]]
    for k in (1, 2):
        values += weights[:, k, None] * attributes[corners[:, k]]
    backside = face_ids >= len(front)
    normal = values[:, :3] / np.maximum(geometry.lengths(values[:, :3]), 1e-6)
    normal[backside] *= -1
    material = np.concatenate([materials, materials[sided]])[face_ids]
    return Pixels(index=index, material=material, backside=backside, normal=normal, surface=values[:, 3:])


def colour(pixels: Pixels, paint: Paint) -> Painted:
    """Albedo [P, 3] (linear) and gloss [P] of every covered pixel."""
    albedo = np.zeros((len(pixels.index), 3), dtype=np.float32)
    gloss = np.zeros(len(pixels.index), dtype=np.float32)
    painters = {
        geometry.SKIN: _skin, geometry.EYE: _eye, geometry.TEETH: _teeth, geometry.TONGUE: _tongue,
        geometry.HAIR: _hair, geometry.CLOTH: _cloth, geometry.COLLAR: _collar, geometry.FRAME: _frame,
    }  # fmt: skip
    for material, painter in painters.items():
        rows = np.flatnonzero(pixels.material == material)
        if len(rows):
            albedo[rows], gloss[rows] = painter(pixels.take(rows), paint)
    return albedo, gloss


def _skin(seen: Pixels, paint: Paint) -> Painted:
    person = paint.person
    result = np.broadcast_to(person.skin, seen.surface.shape).copy()
    front = skin.smoothstep(*paint.depth_range, seen.surface[:, 2])
    rows = np.flatnonzero((front > 0) & ~seen.backside)
    result[rows] = skin.mix(result[rows], skin.sample_canvas(paint.canvas, paint.face, seen.surface[rows]), front[rows])
    scalp = np.zeros(len(seen.surface), dtype=np.float32)
    rows = np.flatnonzero((front < 1) | (seen.surface[:, 1] > paint.skull_centre[1]))
    offset = seen.surface[rows] - paint.skull_centre
    scalp[rows] = scalp_density(person.hair, offset / geometry.lengths(offset))
    result = skin.mix(result, person.hair.colour * rgb(0.6, 0.6, 0.6), 0.9 * scalp)
    if person.neckline == 'high':
        above = seen.surface[:, 1] - paint.neck_plane[0] - paint.neck_plane[1] * seen.surface[:, 2]
        cloth = skin.smoothstep(0.031, 0.030, above)
        result = skin.mix(result, fabric(person, seen.surface[:, 0], above), cloth)
    result = np.where(seen.backside[:, None], skin.CAVITY, result)
    return result, np.where(seen.backside, 0.0, 0.06 * (1 - scalp))


def _eye(seen: Pixels, paint: Paint) -> Painted:
    result = skin.eye_colour(paint.person, seen.surface, iris_angle=IRIS_ANGLE)
    lid = 1 - 0.55 * skin.smoothstep(0.05, 0.5, seen.normal[:, 1])  # the upper lid's shadow
    return result * lid[:, None], np.full(len(result), 0.9)


def _teeth(seen: Pixels, paint: Paint) -> Painted:
    """Surface: (share of the height from the root, depth behind the front teeth, x), metres."""
    inside = 0.35 + 0.65 * skin.smoothstep(0.030, 0.0, seen.surface[:, 1])
    around = np.arctan2(seen.surface[:, 2], 0.047 - seen.surface[:, 1])
    gap = skin.smoothstep(0.16, 0.04, np.abs(np.sin(around * (np.pi / 0.19))))
    lingual = skin.smoothstep(0.1, -0.3, seen.normal[:, 0] * np.sign(seen.surface[:, 2])) * (seen.surface[:, 1] > 0.005)
    crown = skin.smoothstep(0.40, 0.50, seen.surface[:, 0] + 0.06 * (1 - gap) - 0.3 * lingual)
    result = skin.mix(np.broadcast_to(skin.GUMS, seen.surface.shape), skin.TEETH * (1 - 0.45 * gap[:, None]), crown)
    return result * (1.05 * inside * (1 - 0.65 * lingual))[:, None], np.full(len(result), 0.15)


def _tongue(seen: Pixels, paint: Paint) -> Painted:
    inside = 0.15 + 0.75 * skin.smoothstep(0.040, 0.0, seen.surface[:, 1])
    return skin.TONGUE * inside[:, None], np.full(len(seen.surface), 0.25)


def _hair(seen: Pixels, paint: Paint) -> Painted:
    size = len(paint.fibres)
    across = (seen.surface[:, 0] * (size / (2 * np.pi)) * 2).astype(np.int64) % size
    along = (seen.surface[:, 1] * 14).astype(np.int64) % size
    strand = paint.fibres[along, across]
    band = 0.10 * np.sin(seen.surface[:, 0] * 9 + 2 * strand)
    result = paint.person.hair.colour * (1 + 0.38 * strand + band)[:, None]
    return np.where(seen.backside[:, None], 0.30, 1.0) * result, np.where(seen.backside, 0.0, 0.10 + 0.10 * strand)


def _cloth(seen: Pixels, paint: Paint) -> Painted:
    result, cloth = clothes_colour(paint.person, seen.surface)
    result = skin.mix(np.broadcast_to(paint.person.skin, result.shape), result, cloth)
    return result * np.where(seen.backside[:, None], 0.3, 1.0), 0.05 * (1 - cloth)


def _collar(seen: Pixels, paint: Paint) -> Painted:
    result = fabric(paint.person, seen.surface[:, 0], seen.surface[:, 1])
    return result * np.where(seen.backside[:, None], 0.5, 1.0), np.zeros(len(seen.surface))


def _frame(seen: Pixels, paint: Paint) -> Painted:
    return np.broadcast_to(paint.person.glasses_colour, seen.surface.shape), np.full(len(seen.surface), 0.6)


def light_up(albedo: np.ndarray, gloss: np.ndarray, pixels: Pixels, *, light: Light, view: np.ndarray) -> np.ndarray:
    """Linear radiance [P, 3]: wrapped diffuse (wider for red: skin), ambient by height, a small highlight."""
    facing = pixels.normal @ light.direction
    is_skin = (pixels.material == geometry.SKIN)[:, None]
    wrap = np.where(is_skin, rgb(0.34, 0.20, 0.16), np.float32(0.12))
    diffuse = np.maximum((facing[:, None] + wrap) / (1 + wrap), 0)
    sky = 0.5 + 0.5 * pixels.normal[:, 1:2]
    ambient = light.ambient[0] * sky + light.ambient[1] * (1 - sky)
    half = light.direction + view
    half = half / np.linalg.norm(half)
    shine = np.square(np.square(np.square(np.maximum(pixels.normal @ half, 0))))
    hard = np.flatnonzero(gloss > 0.5)  # frames; eyes harder still
    shine[hard] = shine[hard] ** np.where(gloss[hard] > 0.8, 22.0, 5.0)
    return albedo * (light.colour * diffuse + ambient) + (light.colour * 0.9) * (gloss * shine)[:, None]


def to_srgb(value: np.ndarray) -> np.ndarray:
    """Linear [0, 1] (clipped) -> sRGB uint8."""
    value = np.clip(value, 0, 1)
    curve = np.where(value <= 0.0031308, value * 12.92, 1.055 * np.maximum(value, 1e-8) ** (1 / 2.4) - 0.055)
    return np.rint(curve * 255).astype(np.uint8)


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Area average of [S, S, C] by an integer factor."""
    rows = image[::factor].copy()
    for k in range(1, factor):  # slices: a reduction over so short an axis is several times slower
        rows += image[k::factor]
    result = rows[:, ::factor].copy()
    for k in range(1, factor):
        result += rows[:, k::factor]
    return result / factor**2


def draw_background(kind: str, seed: int, size: int) -> np.ndarray:
    """A soft background [size, size, 3], linear RGB."""
    rng = np.random.default_rng(seed)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(axis, axis)
    turn = rng.uniform(0, 2 * np.pi)
    ramp = np.clip(0.5 + np.cos(turn) * (x - 0.5) + np.sin(turn) * (y - 0.5), 0, 1)[..., None]
    base = rng.uniform(0.02, 0.75) * (0.35 * rng.uniform(0, 1, 3) + 0.65)
    other = np.clip(base * rng.uniform(0.4, 1.6) + rng.normal(0, 0.05, 3), 0.01, 0.9)
    image = base + (other - base) * ramp
    if kind in ('blobs', 'bokeh'):
        for _ in range(rng.integers(3, 9)):
            centre, tint = rng.uniform(-0.1, 1.1, 2), rng.uniform(0.02, 0.8, 3) ** 1.5
            distance = np.hypot(x - centre[0], (y - centre[1]) * rng.uniform(0.5, 1.5)) / rng.uniform(0.08, 0.35)
            mask = np.exp(-(distance**2)) if kind == 'blobs' else skin.smoothstep(1.0, 0.75, distance * 1.6)
            image = skin.mix(image, tint, mask * rng.uniform(0.3, 0.9))
    if kind == 'wall':
        for _ in range(rng.integers(1, 4)):
            edge = x if rng.random() < 0.7 else y
            start, soft = rng.uniform(0, 1), rng.uniform(0.01, 0.06)
            band = skin.smoothstep(start - soft, start + soft, edge)
            if rng.random() < 0.5:
                stop = start + rng.uniform(0.1, 0.4)
                band = band * skin.smoothstep(stop + soft, stop - soft, edge)
            image = skin.mix(image, np.clip(image * rng.uniform(0.4, 1.7) + rng.normal(0, 0.03, 3), 0, 0.95), band)
    return image.astype(np.float32)
