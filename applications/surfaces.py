"""The surface of a generated head as a mesh for other programs: cut, cleaned, decimated, coloured, in metres.

Everything is read from planes that are already there: neither the texture nor the planes are made again.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from applications import meshes
from applications.mesh_cleanup import closed_at_the_border, cut_far, decimate, keep_largest
from applications.meshes import Mesh
from dnnlib import UserError
from training import cameras
from training.generator import Generator, Planes
from training.head.model import HeadInput

# Where colours are read from: (yaw, pitch) in radians, as far to the sides as networks are trained.
VIEWS = ((0.0, 0.0), (-0.5, 0.0), (0.5, 0.0), (-1.0, 0.0), (1.0, 0.0), (0.0, 0.4), (0.0, -0.4))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurfaceOptions:
    """How a density becomes a mesh."""

    resolution: int = 128  # voxels a side
    level: float | None = None  # sigma; None: meshes.choose_level
    faces: int | None = None  # at most so many; None: all
    cut: float | None = None  # metres from the head mesh, beyond which nothing stays; None: nothing is cut
    all_parts: bool = False  # False: the largest connected part alone


@dataclasses.dataclass(frozen=True)
class Surface:
    """A mesh in the head frame (metres) and the sigma that it lies at."""

    mesh: Mesh
    level: float
    found: str  # the range of sigma, in words


@torch.no_grad()
def head_surface(generator: Generator, planes: Planes, head: HeadInput, options: SurfaceOptions) -> Surface:
    """The surface of one head's cached planes; `head` [1, ...] is the mesh that they were made for.

    UserError with the range of sigma if there is none.
    """
    half = generator.config.box_size / 2
    sigma = meshes.density_grid(generator, planes, resolution=options.resolution)
    level = meshes.choose_level(sigma, options.level)
    found = f'sigma is between {sigma.min():.3g} and {sigma.max():.3g}'
    solid = sigma
    if options.cut is not None:
        points = in_volume(generator, head.vertices[0]).cpu().numpy()
        distance = options.cut * cameras.HEAD_SCALE
        solid = cut_far(sigma, level=level, half=half, points=points, distance=distance)
    solid = closed_at_the_border(solid, level=level)
    if not solid.max() > level:
        where = '' if options.cut is None else f' within {options.cut:g} m of the head mesh'
        raise UserError(f'no surface at sigma {level:.3g}{where}; {found}: give another --level or a larger --cut')
    mesh = meshes.extract_mesh(solid, level=level, half=half)
    mesh = mesh if options.all_parts else keep_largest(mesh)
    if options.faces is not None:
        mesh = decimate(mesh, faces=options.faces)
    if not len(mesh.faces):
        raise UserError(f'--faces {options.faces}: nothing is left of the surface at sigma {level:.3g}; {found}')
    colored = meshes.color_mesh(mesh, generator, planes, views=VIEWS)
    return Surface(dataclasses.replace(colored, vertices=in_metres(mesh.vertices)), level, found)


def in_volume(generator: Generator, vertices: Tensor) -> Tensor:
    """Vertices of a head mesh [..., 3] (metres) -> where the network draws them (world units), its learned place
    of the template included."""
    moved = generator.rasterizer.transform(vertices.to(next(generator.parameters()).device))
    return cameras.head_to_world(moved)


def in_metres(vertices: NDArray[np.float32]) -> NDArray[np.float32]:
    """World points [V, 3] -> the head frame."""
    return cameras.world_to_head(torch.from_numpy(vertices)).numpy()
