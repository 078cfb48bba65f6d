"""The template mesh re-rendered under the image's camera, for the discriminator (paper section 3.5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils.ops import rasterize
from training.cameras import head_to_world, project, unpack_label
from training.head.model import HeadInput, HeadTemplate

BACKGROUND = -1.0


def correspondence_colors(template: HeadTemplate) -> Tensor:
    """Each vertex coloured by its position in the neutral template's bounding box. [V, 3] in [-1, 1]"""
    low, high = template.vertices.amin(dim=0), template.vertices.amax(dim=0)
    return (template.vertices - low) / (high - low) * 2 - 1


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Area-weighted unit normals [N, V, 3] of counter-clockwise faces [F, 3]."""
    a, b, c = (vertices[:, faces[:, corner]] for corner in range(3))
    face_normals = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for corner in range(3):
        total.index_add_(1, faces[:, corner], face_normals)
    return F.normalize(total, dim=-1)


@torch.no_grad()
def render_template(template: HeadTemplate, head: HeadInput, label: Tensor, *, resolution: int, mode: str) -> Tensor:
    """Posed heads under cameras `label` [N, 25] -> images [N, 3, resolution, resolution] in [-1, 1].

    mode 'correspondence': neutral position (paper); 'uv': u, v and coverage; 'normals': in camera axes.
    The background is -1. Colours are interpolated in the image plane (the faces are small). No gradient.
    """
    device = head.vertices.device
    faces = template.faces.to(device)
    world = head_to_world(head.vertices)
    image, depth = project(world, label)
    fragments = rasterize.rasterize(
        torch.cat([image * 2 - 1, depth[..., None]], dim=-1), faces, height=resolution, width=resolution
    )
    if mode == 'correspondence':
        colors = correspondence_colors(template).to(device)[faces][None]
    elif mode == 'uv':
        uv = template.uv.to(device)[template.uv_faces.to(device)]
        colors = torch.cat([uv * 2 - 1, torch.ones_like(uv[..., :1])], dim=-1)[None]
    elif mode == 'normals':
        rotation = unpack_label(label)[0][:, :3, :3]
        colors = (vertex_normals(world, faces) @ rotation)[:, faces]
    else:
        raise ValueError(f'mode: expected correspondence, uv or normals, got {mode!r}')
    painted = rasterize.interpolate(fragments, colors)
    covered = (fragments.face_ids >= 0)[..., None]
    return torch.where(covered, painted, painted.new_tensor(BACKGROUND)).permute(0, 3, 1, 2).contiguous()
