"""Wavefront OBJ: triangle meshes with uv coordinates, in and out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dnnlib import UserError
from dnnlib.files import atomic_write
from training.head.model import HeadTemplate


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjMesh:
    """What an OBJ file holds; polygons are fanned into triangles, normals and materials are ignored."""

    vertices: Tensor  # [V, 3] float32
    faces: Tensor  # [F, 3] int64
    uv: Tensor | None  # [T, 2] float32, or None without vt lines
    uv_faces: Tensor | None  # [F, 3] int64, or None if not every face has uv indices


def read_obj(path: str | Path) -> ObjMesh:
    """Read an OBJ file. UserError names the file and the line of whatever cannot be read."""
    try:
        lines = Path(path).read_text(encoding='utf-8', errors='replace').splitlines()
    except FileNotFoundError:
        raise UserError(f'{path}: no such file; give the path of an OBJ mesh') from None
    vertices = _floats(path, lines, 'v ', 3)
    if not len(vertices):
        raise UserError(f'{path}: no vertices; expected an OBJ file with lines "v x y z"')
    uv = _floats(path, lines, 'vt ', 2)
    faces, uv_faces = _faces(path, lines, len(vertices), len(uv))
    return ObjMesh(
        vertices=torch.from_numpy(vertices.astype(np.float32)),
        faces=torch.from_numpy(faces),
        uv=torch.from_numpy(uv.astype(np.float32)) if len(uv) else None,
        uv_faces=torch.from_numpy(uv_faces) if uv_faces is not None else None,
    )


def _floats(path: str | Path, lines: list[str], prefix: str, width: int) -> np.ndarray:
    """Numbers [n, width] of all lines that begin with `prefix`."""
    rows = [line[len(prefix) :].split()[:width] for line in lines if line.startswith(prefix)]
    if not rows:
        return np.zeros((0, width))
    try:
        values = np.array(rows, dtype=np.float64)
    except ValueError:
        values = np.full((1, width), np.nan)
    if values.shape == (len(rows), width) and np.isfinite(values).all():
        return values
    for number, line in enumerate(lines, start=1):
        if line.startswith(prefix) and not _all_finite(line[len(prefix) :].split()[:width], width):
            raise UserError(
                f'{path}: line {number}: expected {width} finite numbers after "{prefix.strip()}", got {line!r}'
            )
    raise AssertionError('unreachable: some line was wrong')


def _all_finite(words: list[str], width: int) -> bool:
    try:
        return len(words) == width and bool(np.isfinite([float(word) for word in words]).all())
    except ValueError:
        return False


def _faces(path: str | Path, lines: list[str], num_vertices: int, num_uv: int) -> tuple[np.ndarray, np.ndarray | None]:
    corners: list[list[int]] = []
    uv_corners: list[list[int]] = []
    for number, line in enumerate(lines, start=1):
        if not line.startswith('f '):
            continue
        try:
            index, uv_index = [], []
            for word in line[2:].split():
                parts = word.split('/')
                index.append(_resolve(int(parts[0]), num_vertices))
                if len(parts) > 1 and parts[1]:
                    uv_index.append(_resolve(int(parts[1]), num_uv))
        except ValueError as error:
            raise UserError(f'{path}: line {number}: {error} in {line!r}') from None
        if len(index) < 3:
            raise UserError(f'{path}: line {number}: a face needs at least 3 corners, got {line!r}')
        corners += [[index[0], index[k], index[k + 1]] for k in range(1, len(index) - 1)]
        if len(uv_index) == len(index):
            uv_corners += [[uv_index[0], uv_index[k], uv_index[k + 1]] for k in range(1, len(index) - 1)]
    faces = np.array(corners, dtype=np.int64).reshape(-1, 3)
    complete = bool(corners) and len(uv_corners) == len(corners)
    return faces, np.array(uv_corners, dtype=np.int64) if complete else None


def _resolve(index: int, count: int) -> int:
    """OBJ index (1-based, or negative from the end) -> 0-based."""
    resolved = index - 1 if index > 0 else count + index
    if index == 0 or not 0 <= resolved < count:
        raise ValueError(f'index {index} but only {count} defined')
    return resolved


def write_obj(
    path: str | Path, vertices: Tensor, *, faces: Tensor, uv: Tensor | None = None, uv_faces: Tensor | None = None
) -> None:
    """Write vertices [V, 3], faces [F, 3] and, where both are given, uv [T, 2] and uv_faces [F, 3]."""
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise ValueError(f'vertices: expected shape [V, 3], got {list(vertices.shape)}')
    text = [''.join(f'v {x:.7g} {y:.7g} {z:.7g}\n' for x, y, z in vertices.detach().cpu().tolist())]
    if uv is not None and uv_faces is not None:
        text.append(''.join(f'vt {u:.7g} {v:.7g}\n' for u, v in uv.cpu().tolist()))
        pairs = zip((faces.cpu() + 1).tolist(), (uv_faces.cpu() + 1).tolist(), strict=True)
        text.append(''.join(f'f {a}/{p} {b}/{q} {c}/{r}\n' for (a, b, c), (p, q, r) in pairs))
    else:
        text.append(''.join(f'f {a} {b} {c}\n' for a, b, c in (faces.cpu() + 1).tolist()))
    with atomic_write(path) as handle:
        handle.write(''.join(text).encode())


def check_topology(mesh: ObjMesh, template: HeadTemplate, *, path: str | Path, model: str) -> None:
    """UserError unless `mesh` has the template's vertices and (where it states faces) its triangles, in order."""
    found, expected = len(mesh.vertices), template.num_vertices
    remedy = f'export the mesh from the head model {model!r}, or load the model that this mesh belongs to'
    if found != expected:
        raise UserError(f'{path}: another topology: {found} vertices, but {model!r} has {expected}; {remedy}')
    faces = template.faces.cpu()
    if len(mesh.faces) and len(mesh.faces) != len(faces):
        raise UserError(
            f'{path}: another topology: {len(mesh.faces)} triangles, but {model!r} has {len(faces)}; {remedy}'
        )
    if len(mesh.faces) and not bool((mesh.faces == faces).all()):
        first = int(torch.nonzero((mesh.faces != faces).any(dim=1))[0, 0])
        raise UserError(
            f'{path}: another topology: triangle {first + 1} joins other vertices than in {model!r}; {remedy}'
        )


def head_vertices(path: str | Path, template: HeadTemplate, *, model: str) -> Tensor:
    """Vertices [V, 3] of an OBJ file of the template's topology; UserError otherwise."""
    mesh = read_obj(path)
    check_topology(mesh, template, path=path, model=model)
    return mesh.vertices
