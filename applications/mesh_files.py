"""Meshes as files, by the suffix of the path: .obj, .ply or .glb."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from applications.gltf import Shape, write_glb
from applications.meshes import Mesh, write_ply
from dnnlib import UserError
from dnnlib.files import atomic_write

SUFFIXES = ('.obj', '.ply', '.glb')


def check_suffixes(paths: Sequence[str], *, only_glb: str | None = None) -> None:
    """UserError for a path of another kind; `only_glb` names the option that .glb alone can hold."""
    for path in paths:
        suffix = Path(path).suffix.lower()
        if suffix not in SUFFIXES:
            raise UserError(f'--output {path}: unknown format {suffix!r}; expected one of {", ".join(SUFFIXES)}')
        if only_glb is not None and suffix != '.glb':
            raise UserError(f'--output {path}: {only_glb} is written as .glb alone')


def write_mesh(path: str | os.PathLike[str], mesh: Mesh, *, name: str) -> None:
    """One still mesh in the format that the suffix says."""
    suffix = Path(path).suffix.lower()
    if suffix == '.ply':
        write_ply(path, mesh)
    elif suffix == '.obj':
        write_colored_obj(path, mesh)
    else:
        write_glb(path, [mesh_shape(mesh, name=name)])


def mesh_shape(mesh: Mesh, *, name: str) -> Shape:
    """A mesh as a node of a GLB file."""
    return Shape(name=name, vertices=mesh.vertices, faces=mesh.faces, normals=mesh.normals, colors=mesh.colors)


def write_colored_obj(path: str | os.PathLike[str], mesh: Mesh) -> None:
    """OBJ with normals; colours, where the mesh has them, stand behind the coordinates (`v x y z r g b`, 0 to 1)."""
    if mesh.colors is None:
        rows = [f'v {x:.6g} {y:.6g} {z:.6g}' for x, y, z in mesh.vertices.tolist()]
    else:
        both = zip(mesh.vertices.tolist(), (mesh.colors / 255).tolist(), strict=True)
        rows = [f'v {x:.6g} {y:.6g} {z:.6g} {r:.4f} {g:.4f} {b:.4f}' for (x, y, z), (r, g, b) in both]
    rows += [f'vn {x:.4f} {y:.4f} {z:.4f}' for x, y, z in mesh.normals.tolist()]
    rows += [f'f {a}//{a} {b}//{b} {c}//{c}' for a, b, c in (mesh.faces + 1).tolist()]
    with atomic_write(path) as handle:
        handle.write(('\n'.join(rows) + '\n').encode())
