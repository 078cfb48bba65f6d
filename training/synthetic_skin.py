"""Procedural colour of skin, eyes and teeth for the synthetic dataset.

A face is painted on a canvas: the front view of the neutral template (head frame, metres), so that a
painted brow stays on the same vertices whatever the expression. All colours are linear RGB.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from training.synthetic_params import Person, rgb

TEETH = np.array([0.80, 0.74, 0.64], dtype=np.float32)
GUMS = np.array([0.42, 0.13, 0.13], dtype=np.float32)
TONGUE = np.array([0.45, 0.13, 0.13], dtype=np.float32)
CAVITY = np.array([0.085, 0.020, 0.020], dtype=np.float32)
SCLERA = np.array([0.62, 0.59, 0.57], dtype=np.float32)


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """0 at `low`, 1 at `high` (which may be the smaller one), smooth between."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def value_noise(rng: np.random.Generator, size: int, cells: int, *, stretch: int = 1) -> np.ndarray:
    """Smooth noise [size, size] in [-1, 1]; `cells` lattice points a side, `stretch` times fewer in rows."""
    lattice = rng.uniform(-1, 1, (max(cells // stretch, 2), cells)).astype(np.float32)
    grid = torch.from_numpy(lattice)[None, None]
    return torch.nn.functional.interpolate(grid, (size, size), mode='bilinear', align_corners=True)[0, 0].numpy()


def segment_distance(points: np.ndarray, line: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points [P, 2] against a polyline [n, 2]: distance, share of its length in [0, 1], signed offset to its left."""
    lengths = np.maximum(np.linalg.norm(np.diff(line, axis=0), axis=1), 1e-9)
    before = np.concatenate([[0], np.cumsum(lengths)])
    best = np.full(len(points), np.inf)
    share, side = np.zeros(len(points)), np.zeros(len(points))
    x, y = points[:, 0].astype(np.float64), points[:, 1].astype(np.float64)
    for start, end, length, done in zip(line[:-1], line[1:], lengths, before[:-1], strict=True):
        (dx, dy), px, py = (end - start) / length, x - start[0], y - start[1]
        along = np.clip(px * dx + py * dy, 0, length)
        distance = np.hypot(px - along * dx, py - along * dy)
        closer = distance < best
        best[closer] = distance[closer]
        share[closer] = (done + along[closer]) / before[-1]
        side[closer] = (dx * py - dy * px)[closer]
    return best, share, np.sign(side) * best


def polygon_distance(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Signed distance [P] to a closed polygon [n, 2], negative inside."""
    closed = np.concatenate([polygon, polygon[:1]])
    distance = segment_distance(points, closed)[0]
    a, b = closed[:-1], closed[1:]
    above = (a[None, :, 1] > points[:, None, 1]) != (b[None, :, 1] > points[:, None, 1])
    with np.errstate(divide='ignore', invalid='ignore'):
        column = a[:, 0] + (points[:, None, 1] - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1])
    inside = (above & (points[:, None, 0] < column)).sum(axis=1) % 2 == 1
    return np.where(inside, -distance, distance)


def smooth_curve(points: np.ndarray, *, closed: bool = False, steps: int = 4) -> np.ndarray:
    """Catmull-Rom subdivision of a polyline [n, 2]."""
    padded = (
        np.concatenate([points[-1:], points, points[:2]])
        if closed
        else np.concatenate([points[:1], points, points[-1:]])
    )
    pieces = []
    for p0, p1, p2, p3 in zip(padded[:-3], padded[1:-2], padded[2:-1], padded[3:], strict=True):
        t = np.arange(steps)[:, None] / steps
        pieces.append(
            0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
        )
    return np.concatenate(pieces if closed else [*pieces, points[-1:]])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Canvas:
    """Static maps over the face front, [size, size]; row 0 is the lowest y."""

    size: int
    low: np.ndarray  # [2] x, y of the corner, metres
    high: np.ndarray  # [2]
    brow_distance: np.ndarray  # metres
    brow_share: np.ndarray  # 0 at the nose, 1 at the temple
    brow_offset: np.ndarray  # metres above the brow line
    lips: np.ndarray  # 0 to 1
    lip_line: np.ndarray  # 0 to 1: where the lips meet
    lash_line: np.ndarray
    socket: np.ndarray
    cheeks: np.ndarray
    nose: np.ndarray
    nostrils: np.ndarray
    beard: np.ndarray


def make_canvas(landmarks: np.ndarray, size: int) -> Canvas:
    """Maps for a neutral template with landmarks [68, 3] (head frame)."""
    lm = np.asarray(landmarks, dtype=np.float64)[:, :2]
    half = 0.78 * abs(lm[16, 0] - lm[0, 0])
    low = np.array([-half, lm[8, 1] - 0.03], dtype=np.float32)
    high = np.array([half, lm[8, 1] - 0.03 + 2 * half], dtype=np.float32)
    axis = (np.arange(size) + 0.5) / size
    grid = np.stack(np.meshgrid(low[0] + axis * 2 * half, low[1] + axis * 2 * half), axis=-1).reshape(-1, 2)

    def blob(centre: np.ndarray, width: float, height: float) -> np.ndarray:
        return np.exp(-(((grid - centre) / (width, height)) ** 2).sum(-1))

    right = segment_distance(grid, smooth_curve(lm[[21, 20, 19, 18, 17]]))
    left = segment_distance(grid, smooth_curve(lm[[22, 23, 24, 25, 26]]))
    nearer = right[0] < left[0]
    lids = [smooth_curve(lm[rows]) for rows in ([36, 37, 38, 39], [42, 43, 44, 45])]
    lower = [smooth_curve(lm[rows]) for rows in ([36, 41, 40, 39], [42, 47, 46, 45])]
    lash = max_of(np.exp(-((segment_distance(grid, lid)[0] / 0.0011) ** 2)) for lid in lids)
    lash = np.maximum(lash, 0.45 * max_of(np.exp(-((segment_distance(grid, lid)[0] / 0.0008) ** 2)) for lid in lower))
    outer = polygon_distance(grid, smooth_curve(lm[48:60], closed=True))
    meeting = segment_distance(grid, smooth_curve((lm[[60, 61, 62, 63, 64]] + lm[[60, 67, 66, 65, 64]]) / 2))[0]
    eyes = [lm[36:42].mean(0), lm[42:48].mean(0)]
    mouth = [lm[48], lm[54]]
    cheeks = [
        0.5 * eye + 0.5 * corner + (np.sign(eye[0]) * 0.010, 0.0) for eye, corner in zip(eyes, mouth, strict=True)
    ]
    jaw = np.concatenate([lm[2:15] + np.where(np.arange(13)[:, None] % 13 > 0, (0, -0.004), 0)])
    upper = [lm[14] * (0.75, 1) + (0, -0.006), 0.5 * (lm[54] + lm[35]) + (0.010, 0.002), lm[33] + (0.012, -0.002)]
    upper += [lm[33] + (0, -0.003)] + [point * (-1, 1) for point in upper[::-1]]
    beard = smoothstep(0.006, -0.006, polygon_distance(grid, np.concatenate([jaw, np.array(upper)])))
    maps = {
        'brow_distance': np.where(nearer, right[0], left[0]),
        'brow_share': np.where(nearer, right[1], left[1]),
        'brow_offset': np.where(nearer, -right[2], left[2]),
        'lips': smoothstep(0.0008, -0.0006, outer),
        'lip_line': np.exp(-((meeting / 0.0010) ** 2)) * (outer < 0),
        'lash_line': lash,
        'socket': max_of(blob(eye + (0, 0.001), 0.021, 0.014) for eye in eyes),
        'cheeks': max_of(blob(cheek, 0.020, 0.017) for cheek in cheeks),
        'nose': blob(lm[30] + (0, 0.001), 0.012, 0.010),
        'nostrils': max_of(blob(0.6 * lm[row] + 0.4 * lm[33] + (0, 0.0005), 0.0030, 0.0018) for row in (31, 35)),
        'beard': beard * smoothstep(-0.0006, 0.0008, outer),
    }
    arrays = {name: value.reshape(size, size).astype(np.float32) for name, value in maps.items()}
    return Canvas(size=size, low=low, high=high, **arrays)


def max_of(values) -> np.ndarray:
    """Elementwise maximum of several arrays."""
    return np.maximum.reduce(list(values))


def paint_face(canvas: Canvas, person: Person) -> np.ndarray:
    """The person's face on the canvas, linear RGB [size, size, 3]."""
    rng = np.random.default_rng(person.texture_seed)
    size = canvas.size
    mottle = 0.55 * value_noise(rng, size, 9) + 0.45 * value_noise(rng, size, 40)
    fine = value_noise(rng, size, 150)
    strands = value_noise(rng, size, 90, stretch=3)
    stubble = value_noise(rng, size, 170, stretch=2)
    tone = 1 + person.roughness * (0.045 * mottle + 0.035 * fine)
    colour = person.skin * tone[..., None] * (1 + person.roughness * 0.03 * mottle[..., None] * rgb(0.3, -0.6, -0.6))

    rosy = person.skin * rgb(1.02, 0.66, 0.64)
    blush = person.blush * (0.75 * canvas.cheeks + 0.55 * canvas.nose) * (1 + 0.25 * mottle)
    colour = mix(colour, rosy, 0.8 * np.clip(blush, 0, 1))
    colour = mix(colour, person.skin * rgb(0.62, 0.50, 0.50), 0.30 * canvas.socket)
    if person.freckles > 0:
        colour = mix(colour, person.skin * rgb(0.55, 0.40, 0.32), _freckles(canvas, person, rng))
    if person.beard > 0:
        density = np.clip(canvas.beard * (0.35 + 0.65 * person.beard) * (1 + 0.35 * stubble), 0, 1)
        density *= 0.92 if person.beard_length > 0 else 0.55
        colour = mix(colour, person.brow_colour * (1.25 + 0.5 * stubble[..., None]), density)
    lip = person.lips * (1 + 0.10 * strands[..., None] + 0.05 * mottle[..., None])
    colour = mix(colour, lip, 0.92 * canvas.lips)
    colour = mix(colour, person.lips * 0.22, 0.65 * canvas.lip_line)
    colour = mix(colour, person.skin * 0.12, 0.8 * canvas.nostrils)

    centre = person.brow_arch * np.sin(np.pi * canvas.brow_share) + 0.001
    width = (
        person.brow_width * (0.55 + 0.45 * smoothstep(0.0, 0.2, canvas.brow_share)) * (1 - 0.75 * canvas.brow_share**2)
    )
    gap = np.hypot(canvas.brow_offset - centre, np.sqrt(np.maximum(canvas.brow_distance**2 - canvas.brow_offset**2, 0)))
    brow = smoothstep(1.15, 0.45, gap / width + 0.12 * strands) * (1 + 0.25 * strands)
    colour = mix(colour, person.brow_colour, person.brow_density * brow)
    colour = mix(colour, rgb(0.012, 0.009, 0.008), person.lashes * canvas.lash_line)
    return np.clip(colour, 0.002, 0.95).astype(np.float32)


def mix(base: np.ndarray, other: np.ndarray, amount: np.ndarray | float) -> np.ndarray:
    """Linear blend; `amount` has one dimension less than the colours (or is a number)."""
    weight = amount[..., None] if isinstance(amount, np.ndarray) else amount
    return base + (other - base) * weight


def _freckles(canvas: Canvas, person: Person, rng: np.random.Generator) -> np.ndarray:
    """Density [size, size] of small dots where cheeks and nose are, a few moles anywhere."""
    size, scale = canvas.size, canvas.size / float(canvas.high[0] - canvas.low[0])
    density = np.zeros((size, size), dtype=np.float32)
    weights = (canvas.cheeks + canvas.nose + 0.03).ravel()
    count = int(140 * person.freckles)
    cells = np.searchsorted(np.cumsum(weights), rng.random(count) * weights.sum())
    radii = rng.uniform(0.0006, 0.0013, count) * scale
    strengths = rng.uniform(0.3, 0.8, count) * (0.4 + 0.6 * person.freckles)
    for cell, radius, strength in zip(np.minimum(cells, size * size - 1), radii, strengths, strict=True):
        row, column, reach = cell // size, cell % size, int(np.ceil(2 * radius)) + 1
        rows = slice(max(row - reach, 0), row + reach + 1)
        columns = slice(max(column - reach, 0), column + reach + 1)
        y, x = np.ogrid[rows.start : min(rows.stop, size), columns.start : min(columns.stop, size)]
        dot = strength * np.exp(-((y - row) ** 2 + (x - column) ** 2) / radius**2)
        density[rows, columns] = np.maximum(density[rows, columns], dot)
    return density


def sample_canvas(canvas: Canvas, image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Bilinear lookup of image [size, size, C] at canonical points [P, 2+] (x, y in metres); borders repeat."""
    position = (points[:, :2] - canvas.low) / (canvas.high - canvas.low) * canvas.size - 0.5
    position = np.clip(position, 0, canvas.size - 1.001).astype(np.float32)
    cell = position.astype(np.int32)
    fraction = position - cell
    flat = image.reshape(-1, image.shape[-1])
    corner = cell[:, 1] * canvas.size + cell[:, 0]
    fx, fy = fraction[:, :1], fraction[:, 1:]
    top = flat[corner] * (1 - fx) + flat[corner + 1] * fx
    bottom = flat[corner + canvas.size] * (1 - fx) + flat[corner + canvas.size + 1] * fx
    return top * (1 - fy) + bottom * fy


def eye_colour(person: Person, directions: np.ndarray, *, iris_angle: float) -> np.ndarray:
    """Colour [P, 3] of the eyeball by direction from its centre, [P, 3]; the pupil looks along +z.

    iris_angle: radians between the optical axis and the limbus.
    """
    sine = np.hypot(directions[:, 0], directions[:, 1])
    angle = np.arctan2(sine, directions[:, 2]) / (iris_angle * person.iris_size)
    around = np.arctan2(directions[:, 1], directions[:, 0])
    streaks = 0.5 * np.sin(around * 23 + 1.7 * np.sin(around * 7)) + 0.5 * np.sin(
        around * 41 + 2.3 * np.cos(around * 11)
    )
    ring = person.iris * ((0.75 + 0.55 * smoothstep(0.35, 0.62, angle)) * (1 + 0.22 * streaks))[:, None]
    ring = mix(ring, person.iris * 0.18, smoothstep(0.78, 1.0, angle))
    colour = mix(ring, rgb(0.004, 0.004, 0.005), smoothstep(0.46, 0.38, angle))
    veins = smoothstep(1.5, 3.2, angle)
    sclera = mix(np.broadcast_to(SCLERA, colour.shape), rgb(0.62, 0.40, 0.37), 0.55 * veins)
    return mix(colour, sclera, smoothstep(0.94, 1.08, angle)).astype(np.float32)
