"""The head mesh itself as a small animatable model: the network's colours baked into uv, expressions as morph targets.

Its motion is exact, because it is the head model's own; its shape is the bare template's, without hair and clothes.
What the neural texture holds are features, not colours: the picture is read off renderings of the same planes, at the
place where each texel's surface point lies in the volume.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from applications.gltf import Shape
from applications.meshes import seen_colors
from applications.surfaces import VIEWS, in_volume
from torch_utils.ops import rasterize
from training.generator import Generator, Planes
from training.head.model import HeadInput, HeadModel, HeadParams, HeadTemplate
from training.template_rendering import vertex_normals


@torch.no_grad()
def bake_texture(generator: Generator, planes: Planes, head: HeadInput, *, size: int) -> NDArray[np.uint8]:
    """A picture [size, size, 3] over uv, row 0 at v = 1, of the posed head [1, ...] that the planes were made for.

    Texels that no face covers repeat their nearest neighbour, so that no seam shows.
    """
    template = generator.template
    world = in_volume(generator, head.vertices)
    faces, uv_faces = template.faces.to(world.device), template.uv_faces.to(world.device)
    turned = [0, 2, 1]  # charts may lie either way round in uv; the rasterizer skips backs
    faces = torch.cat([faces, faces[:, turned]])
    uv_faces = torch.cat([uv_faces, uv_faces[:, turned]])
    uv = template.uv.to(world)
    flat = torch.stack([2 * uv[:, 0] - 1, 1 - 2 * uv[:, 1], torch.zeros_like(uv[:, 0])], dim=1)
    fragments = rasterize.rasterize(flat[None], uv_faces, height=size, width=size)
    surface = torch.cat([world, vertex_normals(world, template.faces.to(world.device))], dim=2)
    values = rasterize.interpolate(fragments, surface[:, faces])[0]
    covered = fragments.face_ids[0] >= 0
    points, normals = values[covered].split(3, dim=1)
    normals = torch.nn.functional.normalize(normals, dim=1)
    colors = seen_colors(generator, planes, points, normals, views=VIEWS)
    picture = np.zeros((size, size, 3), dtype=np.uint8)
    mask = covered.cpu().numpy()
    picture[mask] = ((colors + 1) * 127.5).round().byte().cpu().numpy()
    rows, columns = distance_transform_edt(~mask, return_distances=False, return_indices=True)
    return picture[rows, columns]


def template_shape(
    template: HeadTemplate,  # on the CPU
    vertices: Tensor,  # [V, 3] metres
    picture: NDArray[np.uint8],
    *,
    name: str,
    targets: Mapping[str, Tensor],  # posed vertices [V, 3] of each target
) -> Shape:
    """The head mesh with uv, texture and morph targets; vertices on seams of the uv are doubled."""
    pairs = torch.stack([template.faces.reshape(-1), template.uv_faces.reshape(-1)], dim=1).numpy()
    corners, faces = np.unique(pairs, axis=0, return_inverse=True)
    owner = torch.from_numpy(corners[:, 0])
    normals = vertex_normals(vertices[None], template.faces)[0]
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format='PNG')
    return Shape(
        name=name,
        vertices=vertices[owner].numpy(),
        faces=faces.reshape(-1, 3),
        normals=normals[owner].numpy(),
        uv=template.uv.numpy()[corners[:, 1]],
        texture=buffer.getvalue(),
        targets={key: (moved - vertices)[owner].numpy() for key, moved in targets.items()},
    )


@torch.no_grad()
def expression_targets(head: HeadModel, params: HeadParams) -> dict[str, Tensor]:
    """Posed vertices [V, 3] of the head `params` [1, ...] with each named expression fully on."""
    targets = {}
    for name in head.expression_names:
        unit = head.named_expression(name).as_dict()
        moved = HeadParams(**{key: value + unit[key].to(value) for key, value in params.as_dict().items()})
        targets[name] = head.forward(moved).vertices[0]
    return targets
