"""What the synthetic dataset draws: a `Person` per identity, a `Scene` per image.

Every factor has a random stream of its own, keyed by (seed, factor, number): expression, jaw, gaze,
neck, camera, light and background are independent of the identity and of one another, and a change
to one factor's draws leaves the others as they were.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from training import cameras
from training.head.model import HeadParams

IMAGES_PER_IDENTITY = 4
HAIR_STYLES = ('bald', 'buzz', 'short', 'quiff', 'fringe', 'afro', 'bob', 'long', 'bun', 'ponytail', 'pigtails')
_HAIR_WEIGHTS = (0.08, 0.10, 0.17, 0.09, 0.10, 0.07, 0.12, 0.13, 0.06, 0.04, 0.04)
BACKGROUNDS = ('gradient', 'blobs', 'wall', 'bokeh')

# sRGB palettes, 0 to 255.
_SKIN = np.array(
    [(250, 222, 203), (243, 202, 175), (228, 178, 143), (203, 146, 108), (166, 110, 76), (122, 78, 52), (84, 54, 40)]
)
_HAIR = np.array(
    [(26, 21, 19), (52, 36, 27), (88, 58, 38), (128, 88, 56), (186, 146, 92), (222, 192, 140), (146, 66, 30),
     (150, 147, 143), (214, 211, 205)]
)  # fmt: skip
_HAIR_COLOUR_WEIGHTS = (0.20, 0.20, 0.17, 0.10, 0.11, 0.06, 0.07, 0.06, 0.03)
_IRIS = np.array(
    [(82, 50, 28), (54, 34, 22), (116, 78, 38), (92, 108, 62), (86, 122, 150), (120, 150, 172), (112, 118, 122)]
)
_IRIS_WEIGHTS = (0.28, 0.20, 0.12, 0.12, 0.14, 0.08, 0.06)

# Expression units: the left and right names of a unit usually move together.
_UNITS = (
    'browDown', 'browInnerUp', 'browOuterUp', 'cheekPuff', 'cheekSquint', 'eyeSquint', 'eyeWide', 'jawForward',
    'mouthDimple', 'mouthFrown', 'mouthFunnel', 'mouthSide', 'mouthLowerDown', 'mouthPress', 'mouthPucker',
    'mouthRollLower', 'mouthRollUpper', 'mouthShrugLower', 'mouthShrugUpper', 'mouthStretch', 'mouthUpperUp',
    'noseSneer',
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hair:
    """Shape and colour of the hair; lengths in metres."""

    style: str
    colour: np.ndarray  # [3] linear RGB
    thickness: float
    length: float  # of the hanging part, below the level of the ears
    hairline: float  # height of the forehead's edge, standard deviations
    parting: float  # -1 to 1: to which side the hair falls
    opening: float  # radians: half-width of the face's opening in hanging hair
    waviness: float
    noise_seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Person:
    """All that an identity fixes. Colours are linear RGB in [0, 1]."""

    identity: int
    shape: np.ndarray  # [num_identity] standard normal
    skin: np.ndarray
    lips: np.ndarray
    iris: np.ndarray
    iris_size: float
    brow_colour: np.ndarray
    brow_width: float
    brow_arch: float
    brow_density: float
    blush: float
    freckles: float
    roughness: float
    lashes: float
    beard: float  # 0 none, 1 full
    beard_length: float  # metres
    texture_seed: int
    hair: Hair
    glasses: str  # 'none', 'round', 'square'
    glasses_colour: np.ndarray
    clothes: np.ndarray
    clothes_accent: np.ndarray
    clothes_pattern: str  # 'plain', 'stripes', 'checks'
    neckline: str  # 'crew', 'v', 'high', 'shirt'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Light:
    direction: np.ndarray  # [3] unit, world, towards the light
    colour: np.ndarray  # [3] linear
    ambient: np.ndarray  # [2, 3] linear: from above, from below


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """All that differs between two images of a person."""

    label: np.ndarray  # [25] float32
    head: HeadParams  # one row
    light: Light
    background: str
    background_seed: int


def linear(colour: np.ndarray) -> np.ndarray:
    """sRGB 0 to 255 -> linear 0 to 1."""
    value = np.asarray(colour, dtype=np.float64) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


def rgb(red: float, green: float, blue: float) -> np.ndarray:
    """A colour [3], float32."""
    return np.array([red, green, blue], dtype=np.float32)


def stream(seed: int, factor: str, number: int) -> np.random.Generator:
    """The random stream of one factor of one image or identity."""
    key = int.from_bytes(factor.encode()[:8].ljust(8, b' '), 'little')
    return np.random.default_rng(np.random.SeedSequence([seed, key, number]))


def identity_of(index: int) -> int:
    """Identity number of image `index`."""
    return index // IMAGES_PER_IDENTITY


def _hair(rng: np.random.Generator) -> Hair:
    style = str(rng.choice(HAIR_STYLES, p=_HAIR_WEIGHTS))
    colour = _HAIR[rng.choice(len(_HAIR), p=_HAIR_COLOUR_WEIGHTS)] + rng.normal(0, 5, 3)
    if rng.random() < 0.03:
        colour = np.array([(60, 80, 160), (190, 70, 120), (40, 120, 110)])[rng.integers(3)]
    low, high = {'buzz': (0.003, 0.006), 'afro': (0.035, 0.07), 'bun': (0.005, 0.010), 'ponytail': (0.005, 0.010)}.get(
        style, (0.011, 0.024)
    )
    return Hair(
        style=style,
        colour=linear(np.clip(colour, 8, 245)),
        thickness=float(rng.uniform(low, high)),
        length=float(rng.uniform(0.05, 0.12) if style == 'bob' else rng.uniform(0.14, 0.24)),
        hairline=float(np.clip(rng.normal(), -2, 2)),
        parting=float(rng.uniform(-1, 1)),
        opening=float(rng.uniform(0.95, 1.35)),
        waviness=float(rng.uniform(0, 1) ** 2),
        noise_seed=int(rng.integers(2**31)),
    )


def sample_person(seed: int, identity: int, *, num_identity: int) -> Person:
    """The person with number `identity`; depends on nothing but (seed, identity)."""
    rng = stream(seed, 'look', identity)
    tone = rng.uniform(0, len(_SKIN) - 1)
    skin = np.stack([np.interp(tone, range(len(_SKIN)), _SKIN[:, c]) for c in range(3)]) + rng.normal(0, 3, 3)
    rosy = skin * (0.84, 0.70, 0.69) + (14, 3, 6)
    lipstick = np.array([(170, 40, 50), (150, 50, 80), (190, 80, 90)])[rng.integers(3)]
    hair = _hair(stream(seed, 'hair', identity))
    bearded = hair.style not in ('bob', 'long', 'bun', 'ponytail', 'pigtails') and rng.random() < 0.40
    return Person(
        identity=identity,
        shape=stream(seed, 'shape', identity).standard_normal(num_identity).astype(np.float32),
        skin=linear(np.clip(skin, 20, 252)),
        lips=linear(lipstick if rng.random() < 0.18 and not bearded else np.clip(rosy + rng.normal(0, 5, 3), 20, 250)),
        iris=linear(np.clip(_IRIS[rng.choice(len(_IRIS), p=_IRIS_WEIGHTS)] + rng.normal(0, 5, 3), 10, 220)),
        iris_size=float(rng.uniform(0.94, 1.06)),
        brow_colour=np.minimum(hair.colour * rng.uniform(0.35, 0.7), 0.4 * linear(skin)).clip(0.006).astype(np.float32),
        brow_width=float(rng.uniform(0.0026, 0.0052)),
        brow_arch=float(rng.normal(0, 0.0015)),
        brow_density=float(rng.uniform(0.55, 0.95)),
        blush=float(rng.uniform(0.1, 1.0)),
        freckles=float(max(0.0, rng.uniform(-1.2, 1.0))),
        roughness=float(rng.uniform(0.3, 1.0)),
        lashes=float(rng.uniform(0.4, 1.0)),
        beard=float(rng.uniform(0.25, 1.0)) if bearded else 0.0,
        beard_length=float(rng.uniform(0.0, 0.012) if rng.random() < 0.5 else 0.0),
        texture_seed=int(rng.integers(2**31)),
        hair=hair,
        glasses=('none', 'round', 'square')[rng.choice(3, p=(0.85, 0.06, 0.09))],
        glasses_colour=linear(
            np.array([(18, 18, 20), (70, 40, 22), (150, 120, 60), (120, 22, 30), (130, 132, 136)])[rng.integers(5)]
        ),
        clothes=linear(rng.uniform(15, 235, 3)),
        clothes_accent=linear(rng.uniform(15, 235, 3)),
        clothes_pattern=('plain', 'stripes', 'checks')[rng.choice(3, p=(0.66, 0.22, 0.12))],
        neckline=('crew', 'v', 'high', 'shirt')[rng.choice(4, p=(0.40, 0.25, 0.12, 0.23))],
    )


def sample_camera(seed: int, index: int) -> np.ndarray:
    """Label [25] with FFHQ-like spread: yaw 0.3, pitch 0.15, roll 0.1 rad."""
    rng = stream(seed, 'camera', index)
    yaw = np.clip(0.3 * rng.standard_normal(), -0.75, 0.75)
    pitch = np.clip(0.15 * rng.standard_normal(), -0.45, 0.45)
    roll = np.clip(0.1 * rng.standard_normal(), -0.3, 0.3)
    jitter = rng.normal(0, (0.008, 0.008, 0.004))
    label = cameras.orbit_camera(
        torch.tensor([yaw], dtype=torch.float64),
        torch.tensor([pitch], dtype=torch.float64),
        roll=torch.tensor([roll], dtype=torch.float64),
        pivot=(float(jitter[0]), float(jitter[1]), cameras.PIVOT[2] + float(jitter[2])),
    )
    return label[0].numpy().astype(np.float32)


def sample_expression(seed: int, index: int) -> dict[str, float]:
    """Weights of named (ARKit) expressions: a mixture of up to four units, a smile, a blink."""
    rng = stream(seed, 'express', index)
    weights: dict[str, float] = {}
    for unit in rng.choice(_UNITS, size=rng.choice(5, p=(0.12, 0.26, 0.30, 0.20, 0.12)), replace=False):
        _add_unit(weights, str(unit), float(rng.uniform(0.2, 1.0)), rng)
    if rng.random() < 0.40:
        _add_unit(weights, 'mouthSmile', float(rng.uniform(0.3, 1.0)), rng)
    mouth = [name for name in weights if name.startswith('mouth')]
    total = sum(weights[name] for name in mouth) / 2  # most units have two sides
    for name in mouth:  # targets add up: too many at once fold the skin
        weights[name] *= 0.9 / max(total, 1.0)
    return weights


def _add_unit(weights: dict[str, float], unit: str, weight: float, rng: np.random.Generator) -> None:
    """Both sides of a paired unit, one of them often weaker, sometimes absent."""
    if unit in ('browInnerUp', 'cheekPuff', 'jawForward', 'mouthFunnel', 'mouthPucker') or unit.endswith(
        ('Lower', 'Upper')
    ):
        weights[unit] = weight
        return
    sides = [('Left', 'Right')[i] for i in rng.permutation(2)]
    if unit == 'mouthSide':
        weights[f'mouth{sides[0]}'] = weight
        return
    weights[unit + sides[0]] = weight
    weights[unit + sides[1]] = weight * float(rng.choice((1.0, rng.uniform(0.3, 1.0), 0.0), p=(0.6, 0.25, 0.15)))


def sample_blink(seed: int, index: int) -> tuple[float, float]:
    """Lid closure (left, right) in [0, 1]; 20 % of the images blink, some half, some with one eye."""
    rng = stream(seed, 'blink', index)
    kind, full, half = rng.random(), rng.uniform(0.7, 1.0), rng.uniform(0.15, 0.5)
    if kind < 0.10:
        return full, full
    if kind < 0.17:
        return half, half
    if kind < 0.20:
        return (full, 0.0) if rng.random() < 0.5 else (0.0, full)
    return 0.0, 0.0


def sample_jaw(seed: int, index: int) -> tuple[float, float]:
    """Opening in [0, 1] (open in 45 % of the images, some wide) and sideways share in [-1, 1]."""
    rng = stream(seed, 'jaw', index)
    opening = 0.12 + 0.88 * rng.beta(1.1, 1.6) if rng.random() < 0.45 else abs(rng.normal(0, 0.012))
    return float(min(opening, 1.0)), float(np.clip(rng.normal(0, 0.3), -1, 1))


def sample_gaze(seed: int, index: int) -> tuple[float, float, float]:
    """Common yaw (towards the subject's left), pitch (up) and half vergence of the eyes, radians."""
    rng = stream(seed, 'gaze', index)
    yaw, pitch = np.clip(rng.standard_normal(2), -2.2, 2.2) * (0.22, 0.10)
    return float(yaw), float(pitch), float(abs(rng.normal(0, 0.02)))


def sample_neck(seed: int, index: int) -> np.ndarray:
    """Axis-angle [3] of the neck: nod, turn, tilt."""
    draw = stream(seed, 'neck', index).standard_normal(3)
    return (np.clip(draw, -2.5, 2.5) * (0.07, 0.09, 0.06)).astype(np.float32)


def sample_light(seed: int, index: int) -> Light:
    """One directional light from the front half and a soft ambient from above and below."""
    rng = stream(seed, 'light', index)
    azimuth, elevation = np.clip(rng.normal(0, 0.65), -1.4, 1.4), rng.uniform(-0.05, 1.0)
    direction = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    warmth = rng.normal(0, 0.06)
    tint = np.array([1 + warmth, 1.0, 1 - warmth])
    strength = rng.uniform(0.45, 0.85)
    above = (1.10 - strength) * rng.uniform(0.75, 1.0) * np.array([1 - 0.3 * warmth, 1.0, 1 + 0.4 * warmth])
    return Light(
        direction=direction.astype(np.float32),
        colour=(strength * tint).astype(np.float32),
        ambient=np.stack([above, above * rng.uniform(0.35, 0.7) * tint]).astype(np.float32),
    )
