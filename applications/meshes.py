"""Shapes of a generated head: density grid on cached planes, marching cubes, PLY and MRC files.

Grids are indexed [x, y, z] over the cube of half-side `half` in world units; voxel i lies at
-half + 2 * half * i / (resolution - 1), so that the first and last ones lie on its faces.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnnlib import UserError
from dnnlib.files import atomic_write
from training import cameras
from training.generator import Generator, Planes

DEFAULT_LEVEL = 10.0  # sigma of the surface: EG3D's, about half of the light lost in 0.07 world units
MIN_INSIDE = 0.002  # share of the box that a surface at DEFAULT_LEVEL must enclose to be taken for a head
VIEWS = ((0.0, 0.0), (-1.0, 0.0), (1.0, 0.0))  # yaw, pitch in radians, that colours are read from
_HIDDEN_WEIGHT = 0.02  # of the neighbours' colour against a view that sees a point squarely
_SEEN = 0.1  # weight of the views from which on a point counts as seen
_ANCHORS = 1024  # seen points, spread evenly, that unseen ones take their colour from
_NEIGHBOURS = 64  # of these, so that no border shows
CHUNK = 1 << 17  # points evaluated at once, rounded to whole lines of the grid


@dataclasses.dataclass(frozen=True)
class Mesh:
    """A triangle mesh in world units, faces counter-clockwise seen from outside."""

    vertices: NDArray[np.float32]  # [V, 3]
    faces: NDArray[np.int32]  # [F, 3]
    normals: NDArray[np.float32]  # [V, 3], unit, outward
    colors: NDArray[np.uint8] | None = None  # [V, 3]


@torch.no_grad()
def density_grid(
    generator: Generator,
    planes: Planes,  # of one head
    *,
    resolution: int,
    half: float | None = None,
    chunk: int = CHUNK,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """sigma on a grid [resolution, resolution, resolution] over the box; the planes are read, never remade.

    half: half-side of the cube, None = the generator's box. progress(done, total) counts points.
    """
    if resolution < 2:
        raise ValueError(f'resolution: expected at least 2, got {resolution}')
    half = generator.config.box_size / 2 if half is None else half
    device = next(generator.parameters()).device
    axis = torch.linspace(-half, half, resolution, device=device)
    lines = max(1, chunk // resolution)  # along z, so many at once
    values = np.empty((resolution**2, resolution), dtype=np.float32)
    for start in range(0, resolution**2, lines):
        index = torch.arange(start, min(start + lines, resolution**2), device=device)
        points = axis.new_empty(len(index), resolution, 3)
        points[..., 0] = axis[index // resolution][:, None]
        points[..., 1] = axis[index % resolution][:, None]
        points[..., 2] = axis
        sigma = generator.density(planes, points.view(1, -1, 3))
        values[start : start + len(index)] = sigma.view(-1, resolution).float().cpu().numpy()
        if progress:
            progress((start + len(index)) * resolution, resolution**3)
    return values.reshape(resolution, resolution, resolution)


def choose_level(sigma: NDArray[np.float32], level: float | None = None) -> float:
    """The surface level: `level` if given, else DEFAULT_LEVEL, else (a weakly trained model) mid-range.

    UserError if a given level crosses nothing.
    """
    low, high = float(sigma.min()), float(sigma.max())
    if level is not None:
        if not low < level < high:
            raise UserError(f'shape level {level:g}: no surface there; sigma is between {low:.3g} and {high:.3g}')
        return level
    if not low < high:
        raise UserError(f'shape: sigma is {low:.3g} everywhere, so there is no surface')
    inside = float((sigma > DEFAULT_LEVEL).mean())
    return DEFAULT_LEVEL if MIN_INSIDE < inside < 1 - MIN_INSIDE else (low + high) / 2


def extract_mesh(sigma: NDArray[np.float32], *, level: float, half: float) -> Mesh:
    """Marching cubes of a density grid [R, R, R] at `level`; denser is inside."""
    from skimage.measure import marching_cubes

    spacing = 2 * half / (sigma.shape[0] - 1)
    vertices, faces, _, _ = marching_cubes(sigma, level=level, gradient_direction='ascent')
    vertices = vertices.astype(np.float32) * np.float32(spacing) - np.float32(half)
    return Mesh(vertices, faces.astype(np.int32), vertex_normals(vertices, faces))


def vertex_normals(vertices: NDArray[np.float32], faces: NDArray[np.integer]) -> NDArray[np.float32]:
    """Area-weighted vertex normals [V, 3]."""
    corners = vertices[faces].astype(np.float64)
    face = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.zeros(vertices.shape)
    for corner in range(3):
        np.add.at(total, faces[:, corner], face)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return (total / np.maximum(length, 1e-20)).astype(np.float32)


@torch.no_grad()
def seen_colors(
    generator: Generator,
    planes: Planes,
    points: Tensor,  # [P, 3] world
    normals: Tensor,  # [P, 3] unit, outward
    *,
    views: tuple[tuple[float, float], ...] = VIEWS,
) -> Tensor:
    """Colours [P, 3] in [-1, 1] of surface points, read from renderings of the same planes at (yaw, pitch) in radians.

    Each view counts by how squarely it faces the point, if it sees it. What none sees has a mean of the colours seen
    around: what the volume itself holds there was never compared with a picture, and looks like it.
    """
    color = points.new_zeros(len(points), 3)
    weight = points.new_zeros(len(points), 1)
    for yaw, pitch in views:
        label = cameras.orbit_camera(torch.tensor([yaw]), torch.tensor([pitch])).to(points.device)
        out = generator.render(planes, label)
        place, _ = cameras.project(points[None], label)
        where = (place * 2 - 1)[:, :, None]
        distance = (points - label[0, [3, 7, 11]]).norm(dim=-1)
        seen = torch.nn.functional.grid_sample(out.depth, where, align_corners=False, padding_mode='border')
        value = torch.nn.functional.grid_sample(out.image, where, align_corners=False, padding_mode='border')
        view = torch.nn.functional.normalize(label[0, [3, 7, 11]] - points, dim=-1)
        facing = (view * normals).sum(dim=-1).clamp_min(0.0) ** 2
        visible = torch.sigmoid((seen[0, 0, :, 0] - distance + 0.03) / 0.01)
        share = (facing * (visible + 1e-3))[:, None]
        color += share * value[0, :, :, 0].T
        weight += share
    spread = _spread(points, color / weight.clamp_min(1e-9), seen=weight[:, 0] > _SEEN)
    return ((color + _HIDDEN_WEIGHT * spread) / (weight + _HIDDEN_WEIGHT)).clamp(-1, 1)


def _spread(points: Tensor, colors: Tensor, *, seen: Tensor) -> Tensor:
    """Colours [P, 3] with those of points that are not seen [P] replaced by a mean of seen ones, near ones first."""
    from scipy.spatial import cKDTree

    anchors = torch.nonzero(seen)[:, 0]
    anchors = anchors[:: max(1, len(anchors) // _ANCHORS)]
    count = min(_NEIGHBOURS, len(anchors))
    if count == 0 or bool(seen.all()):
        return colors
    tree = cKDTree(points[anchors].cpu().numpy())
    distance, index = tree.query(points[~seen].cpu().numpy(), k=range(1, count + 1))
    share = torch.from_numpy(1 / (distance + 1e-4) ** 2).to(colors)
    near = colors[anchors][torch.from_numpy(index).to(colors.device)]
    result = colors.clone()
    result[~seen] = (near * share[..., None]).sum(dim=1) / share.sum(dim=1, keepdim=True)
    return result


def color_mesh(
    mesh: Mesh,
    generator: Generator,
    planes: Planes,
    *,
    views: tuple[tuple[float, float], ...] = VIEWS,
) -> Mesh:
    """The mesh with the vertex colours of `seen_colors`."""
    device = next(generator.parameters()).device
    points, normals = torch.from_numpy(mesh.vertices).to(device), torch.from_numpy(mesh.normals).to(device)
    colors = seen_colors(generator, planes, points, normals, views=views)
    return dataclasses.replace(mesh, colors=((colors + 1) * 127.5).round().byte().cpu().numpy())


def write_ply(path: str | os.PathLike[str], mesh: Mesh) -> None:
    """Binary little-endian PLY with normals, and colours where the mesh has them."""
    fields = [(name, '<f4') for name in ('x', 'y', 'z', 'nx', 'ny', 'nz')]
    if mesh.colors is not None:
        fields += [(name, 'u1') for name in ('red', 'green', 'blue')]
    names = {'<f4': 'float', 'u1': 'uchar'}
    vertices = np.empty(len(mesh.vertices), dtype=fields)
    for axis, name in enumerate(('x', 'y', 'z')):
        vertices[name], vertices[f'n{name}'] = mesh.vertices[:, axis], mesh.normals[:, axis]
    if mesh.colors is not None:
        for channel, name in enumerate(('red', 'green', 'blue')):
            vertices[name] = mesh.colors[:, channel]
    faces = np.empty(len(mesh.faces), dtype=[('count', 'u1'), ('index', '<i4', (3,))])
    faces['count'], faces['index'] = 3, mesh.faces
    header = ['ply', 'format binary_little_endian 1.0', f'element vertex {len(vertices)}']
    header += [f'property {names[kind]} {name}' for name, kind in fields]
    header += [f'element face {len(faces)}', 'property list uchar int vertex_indices', 'end_header', '']
    with atomic_write(path) as handle:
        handle.write('\n'.join(header).encode('ascii'))
        handle.write(vertices.tobytes())
        handle.write(faces.tobytes())


def write_mrc(path: str | os.PathLike[str], grid: NDArray[np.float32], *, half: float) -> None:
    """A density grid [x, y, z] as an MRC2014 map (mode 2): x runs fastest; cell in world units, centred."""
    nx, ny, nz = grid.shape
    header = np.zeros(256, dtype='<i4')
    floats = header.view('<f4')
    header[0:3] = nx, ny, nz
    header[3] = 2  # float32
    header[7:10] = nx, ny, nz
    floats[10:13] = 2 * half  # cell lengths
    floats[13:16] = 90.0  # cell angles
    header[16:19] = 1, 2, 3  # columns, rows, sections are x, y, z
    floats[19:22] = grid.min(), grid.max(), grid.mean(dtype=np.float64)
    header[22] = 1  # a volume
    header[27] = 20140
    floats[49:52] = -half  # origin
    header[52] = int.from_bytes(b'MAP ', 'little')
    header[53] = int.from_bytes(bytes((0x44, 0x44, 0, 0)), 'little')  # little-endian
    floats[54] = grid.std(dtype=np.float64)
    with atomic_write(path) as handle:
        handle.write(header.tobytes())
        handle.write(np.ascontiguousarray(grid.transpose(2, 1, 0), dtype='<f4').tobytes())
