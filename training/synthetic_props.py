"""Glasses and shoulders for the synthetic dataset (head frame, metres)."""

from __future__ import annotations

import numpy as np

from training.synthetic_geometry import CLOTH, COLLAR, FRAME, Piece, Skull, sheet, tube
from training.synthetic_params import Person
from training.synthetic_skin import smooth_curve, smoothstep

# Shoulders: share of the way from the neck's ring to the outline of the torso, fall in metres on the way.
_SHOULDER = np.array(
    [
        (0.0, 0.0),
        (0.05, 0.010),
        (0.16, 0.019),
        (0.36, 0.026),
        (0.60, 0.036),
        (0.82, 0.054),
        (0.95, 0.082),
        (1.0, 0.12),
        (1.0, 0.22),
    ]
)
_TORSO = (0.0, -0.116, -0.062)  # centre of the outline, at the height of the neck's ring
_TORSO_RADII = (0.205, 0.105)  # to the side, to the front


def build_glasses(person: Person, landmarks: np.ndarray, skull: Skull) -> list[Piece]:
    """Two rims, a bridge and two temples that rest on the ears; [] for people without glasses."""
    if person.glasses == 'none':
        return []
    eyes = [landmarks[36:42].mean(0), landmarks[42:48].mean(0)]  # right, left
    apart = abs(eyes[1][0] - eyes[0][0])
    half_width = apart * (0.37 if person.glasses == 'round' else 0.405)
    half_height = half_width * (0.96 if person.glasses == 'round' else 0.72)
    power = 2.0 if person.glasses == 'round' else 3.6
    front = max(landmarks[36:48, 2].max(), landmarks[27, 2] - 0.004) + 0.011
    turn = np.linspace(0, 2 * np.pi, 33)[:-1]
    outline = np.stack([np.sign(f(turn)) * np.abs(f(turn)) ** (2 / power) for f in (np.cos, np.sin)], -1)
    radius = 0.0014 if person.texture_seed % 2 else 0.0021
    pieces, inner, outer = [], [], []
    for side, eye in zip((-1.0, 1.0), eyes, strict=True):
        middle = np.array([side * apart * 0.515, eye[1] - 0.003, front])
        ring = middle + np.concatenate([outline * (half_width, half_height), np.zeros((len(turn), 1))], 1)
        ring[:, 2] -= 6.0 * np.maximum(np.abs(ring[:, 0]) - 0.3 * apart, 0) ** 2
        pieces.append(tube(ring, radius, FRAME, closed=True, sides=6))
        inner.append(middle + (-side * half_width, 0.25 * half_height, 0))
        outer.append(ring[np.argmax(side * ring[:, 0] + 0.4 * ring[:, 1])])
    span = np.linspace(0, 1, 9)[:, None]
    bridge = inner[0] * (1 - span) + inner[1] * span
    bridge[:, 1] += 0.003 * np.sin(np.pi * span[:, 0])
    pieces.append(tube(bridge, radius * 1.1, FRAME, sides=6))
    for side, hinge in zip((-1.0, 1.0), outer, strict=True):
        wide = abs(skull.point(np.array(side * np.pi / 2), np.array(np.pi / 2))[0]) + 0.004
        ear = np.array([side * wide, hinge[1] + 0.001, landmarks[0 if side < 0 else 16][2] - 0.012])
        knee = hinge + (side * 0.004, 0.0, -0.008)
        path = np.concatenate([hinge[None], knee + (ear - knee) * np.linspace(0, 1, 8)[:, None]])
        pieces.append(tube(path, radius * 1.1, FRAME, sides=6))
    return pieces


def build_shoulders(ring: np.ndarray) -> Piece:
    """A loft from the lower edge of the neck, [K, 3] in any order, to the shoulders; it stays with the body.

    Its surface coordinates are (azimuth, distance from the neck in metres, share of the neck's motion).
    """
    azimuth = np.linspace(-np.pi, np.pi, 49)
    neck = ring_at(ring, azimuth)
    middle = 0.5 * (neck.min(0) + neck.max(0))
    torso = np.array(_TORSO) + (0, middle[1] - _TORSO[1], middle[2] - _TORSO[2])
    outline = [
        np.sign(f(azimuth)) * np.abs(f(azimuth)) ** 0.72 * r
        for f, r in zip((np.sin, np.cos), _TORSO_RADII, strict=True)
    ]
    outer = torso + np.stack([outline[0], 0 * azimuth, outline[1]], -1)
    share, fall = smooth_curve(_SHOULDER, steps=3).T[..., None, None]
    points = neck * (1 - share) + outer * share - fall * np.array([0.0, 1.0, 0.0])
    inside = middle + (neck - middle) * (0.94, 1, 0.94) + (0, 0.005, 0)  # starts inside the neck: no crack
    points = np.concatenate([inside[None], points])
    steps = np.linalg.norm(np.diff(points[1:], axis=0), axis=-1)
    along = np.concatenate([np.full((1, 49), -0.005), np.zeros((1, 49)), np.cumsum(steps, axis=0)])
    follow = np.concatenate([[1.0], (1 - share[:, 0, 0]) ** 2])[:, None]
    return sheet(points, np.stack(np.broadcast_arrays(azimuth[None], along, follow), -1), CLOTH)


def ring_at(ring: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
    """Points [..., 3] of a closed ring [K, 3] about the vertical at the given azimuths."""
    middle = 0.5 * (ring.min(0) + ring.max(0))
    own = np.arctan2(ring[:, 0] - middle[0], ring[:, 2] - middle[2])
    order = np.argsort(own)
    return np.stack([np.interp(azimuth, own[order], ring[order, k], period=2 * np.pi) for k in range(3)], -1)


def follow_neck(shoulders: Piece, before: np.ndarray, after: np.ndarray) -> Piece:
    """The shoulders with their upper edge moved as the neck's ring moved (rings [K, 3], same order)."""
    azimuth = shoulders.surface[:, 0]
    moved = ring_at(after, azimuth) - ring_at(before, azimuth)
    return shoulders.at(shoulders.vertices + moved * shoulders.surface[:, 2:])


def build_collar(person: Person, ring: np.ndarray) -> list[Piece]:
    """A shirt's collar: two flaps around the neck, open at the front; [] for other necklines."""
    if person.neckline != 'shirt':
        return []
    azimuth = np.linspace(0.30, 2 * np.pi - 0.30, 41)
    neck = ring_at(ring, azimuth)
    middle = 0.5 * (neck.min(0) + neck.max(0))
    outward = (neck - middle) * (1, 0, 1)
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    front = np.exp(-((np.minimum(azimuth, 2 * np.pi - azimuth) / 0.6) ** 2))[:, None]
    up = np.array([0.0, 1.0, 0.0])
    rows = [
        neck + 0.003 * outward - 0.006 * up,
        neck + 0.004 * outward + (0.013 - 0.010 * front) * up,
        neck + 0.007 * outward + (0.014 - 0.010 * front) * up,
        neck + (0.017 + 0.004 * front) * outward - (0.014 + 0.012 * front) * up,
    ]
    surface = np.stack(np.broadcast_arrays(azimuth[None], np.full((4, 1), 0.5), np.ones((4, 1))), -1)
    return [sheet(np.stack(rows), surface, COLLAR)]


def clothes_colour(person: Person, surface: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour [P, 3] (linear) and share of cloth [P] (0 = bare skin) at surface coordinates [P, 3]."""
    azimuth, along = surface[:, 0], surface[:, 1]
    width, deep = {'v': (0.75, 0.085), 'shirt': (0.32, 0.060)}.get(person.neckline, (0.0, 1.0))
    inside = np.abs(azimuth) - width * np.maximum(1 - along / deep, 0) / (1 + 25 * np.maximum(along, 0))
    start = {'crew': 0.008 + 0.006 * smoothstep(1.3, 0.0, np.abs(azimuth)), 'high': -0.1}.get(person.neckline, 0.004)
    edge = np.minimum(along - start, inside * (0.05 + along)) if width else along - start
    cloth = smoothstep(-0.0008, 0.0008, edge)
    colour = fabric(person, azimuth, along)
    if person.neckline in ('crew', 'v'):
        trim = smoothstep(0.009, 0.007, edge)
        colour = colour + (person.clothes * 0.7 - colour) * trim[:, None]
    return colour, cloth.astype(np.float32)


def fabric(person: Person, azimuth: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Colour [P, 3] of the cloth with its pattern."""
    colour = np.broadcast_to(person.clothes, (len(along), 3)).astype(np.float32)
    if person.clothes_pattern == 'plain':
        return colour
    stripe = smoothstep(-0.2, 0.2, np.sin(along * 2 * np.pi / 0.022))
    if person.clothes_pattern == 'checks':
        stripe = 0.5 * stripe + 0.5 * smoothstep(-0.2, 0.2, np.sin(azimuth * 16))
    return colour + (person.clothes_accent - colour) * (0.8 * stripe[:, None]).astype(np.float32)
