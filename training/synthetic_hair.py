"""Hair as geometry for the synthetic dataset: a cap over the skull and what hangs, stands or is tied.

Everything is attached to the skull of the identity's neutral head, so it turns with the neck and does
not know about the expression. Angles: azimuth 0 = front, positive to the subject's left; polar 0 = up.
"""

from __future__ import annotations

import numpy as np

from training.synthetic_geometry import HAIR, Piece, Skull, angles, direction, ellipsoid, sheet, tube
from training.synthetic_params import Hair
from training.synthetic_skin import smoothstep

# The edge of the hair on the head, degrees: azimuth -> polar angle (sideburns at 78, ears at 95).
_EDGE = np.array(
    [(0, 47), (22, 48), (42, 54), (58, 66), (72, 84), (80, 98), (92, 92), (112, 106), (140, 122), (180, 126)]
)
_DIVE = 0.0015  # metres below the skin where the edge of a cap ends


def edge_angle(hair: Hair, azimuth: np.ndarray) -> np.ndarray:
    """Polar angle of the hairline, radians; receding hairlines lie higher, most at the temples."""
    degrees = np.abs(np.rad2deg(azimuth))
    edge = np.interp(degrees, _EDGE[:, 0], _EDGE[:, 1])
    front = smoothstep(75, 30, degrees)
    temples = np.exp(-(((degrees - 34) / 14) ** 2))
    return np.deg2rad(edge - front * 3.0 * hair.hairline - temples * 4.0 * max(hair.hairline, 0.0))


def scalp_density(hair: Hair, directions: np.ndarray) -> np.ndarray:
    """How much of the skin at unit directions [P, 3] from the skull's centre carries hair, 0 to 1."""
    if hair.style == 'bald':
        return np.zeros(len(directions), dtype=np.float32)
    azimuth, polar = angles(directions)
    softness = np.deg2rad(3.0 if hair.style == 'buzz' else 1.5)
    return smoothstep(softness, -softness, polar - edge_angle(hair, azimuth)).astype(np.float32)


def build_hair(hair: Hair, skull: Skull) -> list[Piece]:
    """The pieces of a hair style on a skull (head frame, metres)."""
    if hair.style == 'bald':
        return []
    rng = np.random.default_rng(hair.noise_seed)
    pieces = [_cap(hair, skull, rng)]
    if hair.style in ('bob', 'long', 'pigtails'):
        pieces += [_drape(hair, skull, rng)] if hair.style != 'pigtails' else _tails(hair, skull, rng, sides=(-1, 1))
    if hair.style == 'ponytail':
        pieces += _tails(hair, skull, rng, sides=(0,))
    if hair.style == 'bun':
        polar = np.deg2rad(rng.uniform(15, 62))
        radius = rng.uniform(0.026, 0.040)
        centre = skull.point(np.array(np.pi), np.array(polar), thickness=0.6 * radius)
        bumps = 1 + 0.06 * _waves(rng, *_angle_grid(16, 25), scale=3)
        pieces.append(ellipsoid(centre, (radius * 1.1, radius, radius), HAIR, bumps=bumps))
    return pieces


def _angle_grid(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    return np.linspace(-np.pi, np.pi, columns)[None], np.linspace(0, np.pi, rows)[:, None]


def _waves(
    rng: np.random.Generator, azimuth: np.ndarray, other: np.ndarray, *, scale: float, count: int = 6
) -> np.ndarray:
    """Sum of waves over (azimuth, other), periodic in azimuth, about -1 to 1."""
    total = np.zeros(np.broadcast_shapes(azimuth.shape, other.shape))
    for _ in range(count):
        around, along = np.round(rng.normal(0, scale)), rng.normal(0, scale)
        total = total + np.sin(around * azimuth + along * other + rng.uniform(0, 2 * np.pi))
    return total / np.sqrt(count)


def _cap(hair: Hair, skull: Skull, rng: np.random.Generator) -> Piece:
    rows, columns = (26, 81) if hair.style == 'afro' else (20, 65)
    azimuth = np.linspace(-np.pi, np.pi, columns)[None]
    along = np.linspace(0, 1, rows)[:, None] ** 0.8
    edge = edge_angle(hair, azimuth)
    if hair.style == 'afro':
        edge = edge + np.deg2rad(12) * smoothstep(1.3, 1.8, np.abs(azimuth))
    rim = np.zeros_like(azimuth)
    if hair.style == 'fringe':
        cover = smoothstep(1.05, 0.65, np.abs(azimuth + 0.15 * hair.parting))
        edge = edge + cover * np.deg2rad(
            17 + 4 * hair.parting * np.sin(azimuth) + 1.2 * np.sin(azimuth * 17 + 3 * hair.parting)
        )
        rim = cover * 0.007
    polar = np.maximum(edge, 0.1) * along
    grow, power = _thickness(hair, azimuth, polar)
    lumps = _waves(rng, azimuth, polar, scale=6.0 if hair.style == 'afro' else 2.2) * np.sin(np.minimum(polar, 1.2))
    grow = grow * (1 + (0.05 if hair.style in ('buzz', 'afro') else 0.10) * lumps)
    round_off = np.maximum(1 - along**power, 0) ** (1 / power)
    thickness = np.maximum(grow * round_off, rim * smoothstep(0.3, 0.8, along)) - _DIVE * smoothstep(
        0.85, 1.0, along
    ) * (rim < 0.003)
    points = skull.point(np.broadcast_to(azimuth, polar.shape), polar, thickness=thickness)
    sway = azimuth + 0.25 * hair.parting * np.sin(polar * 2) + 0.04 * hair.waviness * np.sin(polar * 30)
    return sheet(points, np.stack(np.broadcast_arrays(sway, polar, 0 * polar), -1), HAIR)


def _thickness(hair: Hair, azimuth: np.ndarray, polar: np.ndarray) -> tuple[np.ndarray, float]:
    """Height of the cap above the skull in metres, and how roundly it ends at the hairline (small = round)."""
    top = smoothstep(np.deg2rad(95), np.deg2rad(35), polar)
    sided = 1 + 0.25 * hair.parting * np.sin(azimuth) * np.sin(polar)
    if hair.style in ('buzz', 'bun', 'ponytail'):
        return hair.thickness * (0.8 + 0.2 * top), 9.0
    if hair.style == 'afro':
        return hair.thickness * (0.90 + 0.20 * top), 2.6
    if hair.style == 'quiff':
        front = np.exp(-((azimuth / 0.9) ** 2) - ((polar - np.deg2rad(38)) / np.deg2rad(22)) ** 2)
        return hair.thickness * (0.35 + 0.6 * top + 1.3 * front) * sided, 4.0
    if hair.style in ('short', 'fringe'):
        return hair.thickness * (0.40 + 0.65 * top) * sided, 5.0
    part = np.exp(-(((azimuth - 0.5 * hair.parting) / 0.10) ** 2)) * smoothstep(np.deg2rad(5), np.deg2rad(20), polar)
    return hair.thickness * (0.95 + 0.15 * top - 0.35 * part * (np.abs(azimuth) < np.pi / 2)) * sided, 5.0


def _drape(hair: Hair, skull: Skull, rng: np.random.Generator) -> Piece:
    """Hair that follows the skull to its widest place and falls from there, open at the face."""
    opening = hair.opening + 0.08 * hair.parting * np.array([1.0, -1.0])
    azimuth = np.linspace(opening[0], 2 * np.pi - opening[1], 57)[None]
    from_front = np.minimum(azimuth - opening[0], 2 * np.pi - opening[1] - azimuth)
    start, level = np.deg2rad(48), np.deg2rad(88)
    thickness = 0.4 * hair.thickness + 0.013 + 0.007 * np.exp(-(((np.abs(_wrap(azimuth)) - 1.6) / 0.5) ** 2))
    waves = _waves(rng, azimuth, np.linspace(0, 3, 24)[:, None], scale=4.0)

    polar = np.linspace(start, level, 9)[:, None]
    grow = thickness * smoothstep(np.deg2rad(40), np.deg2rad(75), polar) * smoothstep(-0.06, 0.12, from_front) + 0.004
    upper = skull.point(np.broadcast_to(azimuth, (9, 57)), polar, thickness=grow + 0.002 * waves[:9])

    fall = np.linspace(0, 1, 16)[1:, None]
    reach = skull.radius(direction(azimuth, np.full_like(azimuth, level))) * np.sin(level) + grow[-1:]
    flare = 1 + 0.10 * fall - (0.22 if hair.style == 'bob' else 0.10) * fall**3
    curl = hair.waviness * 0.010 * np.sin(fall * 14 + 5 * waves[9:] * 0.3 + 3 * azimuth) * smoothstep(0.0, 0.4, fall)
    outward = reach * flare + 0.003 * waves[9:] + curl
    drop = (hair.length + 0.03) * fall * (1 - 0.06 * np.exp(-((from_front / 0.25) ** 2))) * (1 + 0.03 * waves[9:])
    bottom = upper[-1:, :, 1] - drop
    lower = np.stack(
        [skull.centre[0] + outward * np.sin(azimuth), bottom, skull.centre[2] + outward * np.cos(azimuth)], -1
    )

    along = np.concatenate([polar[:, 0], level + fall[:, 0] * (hair.length + 0.03) * 10])[:, None]
    sway = azimuth + 0.03 * hair.waviness * np.sin(along * 9)
    surface = np.stack(np.broadcast_arrays(sway, along, 0 * along), -1)
    return sheet(np.concatenate([upper, lower]), surface, HAIR)


def _wrap(azimuth: np.ndarray) -> np.ndarray:
    return (azimuth + np.pi) % (2 * np.pi) - np.pi


def _tails(hair: Hair, skull: Skull, rng: np.random.Generator, *, sides: tuple[int, ...]) -> list[Piece]:
    """A ponytail (side 0, from the back, over one shoulder) or tails behind both ears."""
    pieces = []
    for side in sides:
        azimuth = np.pi if side == 0 else side * 1.85
        root = skull.point(np.array(azimuth), np.deg2rad(np.array(70.0 if side == 0 else 98.0)), thickness=-0.005)
        lean = float(np.sign(hair.parting)) * 0.055 if side == 0 else side * 0.035
        forward = 0.02 if side == 0 else 0.015
        t = np.linspace(0, 1, 16)
        swing = np.sin(t * np.pi * 0.5)
        path = root + np.stack(
            [
                lean * swing + 0.002 * np.sin(t * 19),
                0.03 * np.sin(t * np.pi * 1.2) * (side == 0) - hair.length * t**1.3,
                0 * t,
            ],
            -1,
        )
        outward = (
            direction(np.array(azimuth), np.array(np.pi / 2))
            * (0.035 * np.sin(np.minimum(t * 3, 1) * np.pi / 2))[:, None]
        )
        path = path + outward + np.stack([0 * t, 0 * t, forward * t], -1)
        radius = rng.uniform(0.020, 0.030) * np.sin(np.pi * np.clip(0.12 + 0.85 * t, 0, 1)) ** 0.6
        radius = radius * (1 + 0.15 * hair.waviness * np.sin(t * 28))
        pieces.append(tube(path, np.maximum(radius, 0.001), HAIR, sides=12))
    return pieces
