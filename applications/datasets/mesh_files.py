"""Meshes and landmarks as text, read by the hundred thousand: vertices of an OBJ, rows of numbers."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from dnnlib import UserError
from training.head.landmarks import LEFT_EYE, OUTER_LIPS, RIGHT_EYE
from training.head.model import NUM_LANDMARKS

EXTENT = (0.1, 0.5)  # metres: the longest side of a head's bounding box
_USUAL_SCALES = (1 / 2.5, 1 / 2.6, 0.2, 0.1, 0.01, 0.001, 10.0, 100.0)
_TYPICAL = 0.28  # metres: FLAME's template from the base of the neck to the crown
_MARGIN = 0.03  # metres that a landmark may lie outside the mesh's bounding box


def read_vertices(path: str | Path) -> np.ndarray:
    """The `v` lines of an OBJ file, float64 [V, 3], about 30 times as fast as training/head/obj.py's full reader.

    Numbers after the third (vertex colours) and all other lines are ignored. UserError with the reason for a file
    without vertices, cut within a vertex, or with something that is not a finite number.
    """
    data = _read(path)
    start = 0 if data.startswith(b'v ') else data.find(b'\nv ') + 1
    if not data.startswith(b'v ', start):
        raise UserError(f'{path}: no vertices (lines "v x y z")')
    last = data.rfind(b'\nv ') + 1
    end = data.find(b'\n', last)
    if end < 0:
        raise UserError(f'{path}: cut short within a vertex')
    block = data[start:end].replace(b'\r', b'')
    lines = block.count(b'\n') + 1
    if block.count(b'\nv ') + 1 != lines:  # other lines in between
        rows = [line for line in block.split(b'\n') if line.startswith(b'v ')]
        block, lines = b'\n'.join(rows), len(rows)
    values = _parse(block.replace(b'v ', b' '))
    if values is None or len(values) % lines or len(values) // lines < 3:
        raise UserError(f'{path}: a vertex is not three numbers')
    vertices = values.reshape(lines, -1)[:, :3]
    if not np.isfinite(vertices).all():
        raise UserError(f'{path}: a vertex is not finite (NaN or infinity)')
    return vertices


def read_landmarks(path: str | Path) -> np.ndarray:
    """The first 68 rows of three numbers of a text file, float64 [68, 3]; UserError with the reason otherwise."""
    data = _read(path)
    rows = [line for line in data.replace(b',', b' ').splitlines() if line.strip() and not line.startswith(b'#')]
    if len(rows) < NUM_LANDMARKS:
        raise UserError(f'{path}: {len(rows)} landmarks instead of {NUM_LANDMARKS}')
    values = _parse(b'\n'.join(rows[:NUM_LANDMARKS]))
    if values is None or len(values) % NUM_LANDMARKS or len(values) // NUM_LANDMARKS < 3:
        raise UserError(f'{path}: a landmark is not three numbers')
    landmarks = values.reshape(NUM_LANDMARKS, -1)[:, :3]
    if not np.isfinite(landmarks).all():
        raise UserError(f'{path}: a landmark is not finite (NaN or infinity)')
    return landmarks


def check_frame(vertices: np.ndarray, landmarks: np.ndarray | None, *, path: str | Path) -> None:
    """UserError with the reason unless this is a head in the head frame: metres, y up, face to +z."""
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    extent = float((high - low).max())
    if not EXTENT[0] <= extent <= EXTENT[1]:
        raise UserError(f'{path}: mesh of {extent:.3g} m, a head has {EXTENT[0]:g} to {EXTENT[1]:g} m')
    if landmarks is None:
        return
    if (landmarks < low - _MARGIN).any() or (landmarks > high + _MARGIN).any():
        raise UserError(f'{path}: landmarks lie outside the mesh (another unit or frame)')
    eyes, lips = landmarks[[*RIGHT_EYE, *LEFT_EYE]], landmarks[list(OUTER_LIPS)]
    if eyes[:, 1].mean() <= lips[:, 1].mean():
        raise UserError(f'{path}: eyes lie below the mouth; y must point up')


def suggest_scale(extent: float) -> float:
    """The factor, of those that people use, which brings a head of this extent nearest to its size in metres."""
    return min(_USUAL_SCALES, key=lambda scale: abs(np.log(extent * scale / _TYPICAL)))


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None


def _parse(text: bytes) -> np.ndarray | None:
    """Numbers separated by white space, None if something else is among them."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # numpy only warns of what it cannot read
        try:
            return np.fromstring(text.decode('ascii'), sep=' ')
        except (DeprecationWarning, ValueError):
            return None
