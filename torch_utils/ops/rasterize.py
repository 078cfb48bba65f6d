"""Batched orthographic triangle rasterization (paper 3.2), one face per pixel.

Vertices are given in the image plane: x = column and y = row in [-1, 1], the centre of pixel i of `size` at
-1 + (2 i + 1) / size, and z = depth growing away from the viewer. With the edge function
e(p, a, b) = (p.x - a.x)(b.y - a.y) - (p.y - a.y)(b.x - a.x) of a face (v0, v1, v2):

    area         = e(v2, v0, v1); faces with area <= 1e-8 (back, degenerate or not finite) are skipped
    barycentrics = (e(p, v1, v2), e(p, v2, v0), e(p, v0, v1)) / (area + 1e-8), so their sum is slightly below 1
    inside       = all three edge functions > 0: a pixel centre exactly on an edge belongs to no face
    depth        = barycentrics . (z0, z1, z2); the nearest face wins, equal depths go to the smaller face index

This is the rule of the rasterizer that the public release used; it takes the release's faces with corners [0, 2, 1].
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch

from torch_utils.ops import library
from torch_utils.ops.once import no_second_order

BACKENDS = ('native', 'reference', 'pytorch3d')
AREA_EPSILON = 1e-8
CANDIDATES_PER_CHUNK = 1 << 20  # of (face, pixel) pairs in the twin: about 150 MB of temporaries

library.define('rasterize(Tensor vertices, Tensor faces, int height, int width) -> (Tensor, Tensor, Tensor)')
library.define(
    'rasterize_backward(Tensor grad_barycentrics, Tensor grad_depth, Tensor face_ids, Tensor vertices, Tensor faces)'
    ' -> Tensor'
)
library.define('interpolate(Tensor face_ids, Tensor barycentrics, Tensor attributes) -> Tensor')
library.define(
    'interpolate_backward(Tensor grad, Tensor face_ids, Tensor barycentrics, Tensor attributes, bool of_attributes)'
    ' -> (Tensor, Tensor)'
)


@dataclasses.dataclass(frozen=True)
class Fragments:
    """What each pixel sees. Background: face_ids -1, barycentrics and depth 0."""

    face_ids: torch.Tensor  # [N, H, W] int64, index into faces
    barycentrics: torch.Tensor  # [N, H, W, 3]
    depth: torch.Tensor  # [N, H, W], in the unit of the vertices' z


def chosen_backend() -> str | None:
    """The backend that NEXT3D_RASTERIZER names (--rasterizer of the scripts), None for auto; UserError for others."""
    value = os.environ.get('NEXT3D_RASTERIZER') or 'auto'
    if value not in ('auto', *BACKENDS):
        raise library.UserError(f'NEXT3D_RASTERIZER: expected auto, {", ".join(BACKENDS)}, got {value!r}')
    return None if value == 'auto' else value


def rasterize(
    vertices: torch.Tensor, faces: torch.Tensor, *, height: int, width: int, backend: str | None = None
) -> Fragments:
    """Fragments of vertices [N, V, 3] (float32 or float64; see the module) and faces [F, 3] (integers).

    Barycentrics and depth are differentiable once in the vertices; face_ids are not. Deterministic on every device,
    the gradient on CUDA excepted (atomic sums). `backend`: 'native', 'reference', 'pytorch3d', or None for the choice
    of NEXT3D_RASTERIZER, and else of NEXT3D_OPS. Raises ValueError for wrong shapes or types and, on a CPU, for face
    indices out of range.
    """
    if vertices.ndim != 3 or vertices.shape[2] != 3:
        raise ValueError(f'vertices: expected [N, V, 3], got {list(vertices.shape)}')
    if vertices.dtype not in (torch.float32, torch.float64):
        raise ValueError(f'vertices: expected float32 or float64, got {vertices.dtype}')
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.dtype not in (torch.int32, torch.int64):
        raise ValueError(f'faces: expected integers [F, 3], got {faces.dtype} {list(faces.shape)}')
    if height < 1 or width < 1:
        raise ValueError(f'height, width: expected at least 1, got {height}, {width}')
    if backend not in (None, *BACKENDS):
        raise ValueError(f'backend: expected one of {", ".join(BACKENDS)} or None, got {backend!r}')
    backend = backend or chosen_backend()
    faces = faces.long()
    if faces.device.type == 'cpu' and faces.numel():  # elsewhere it would wait for the device
        low, high = (int(bound) for bound in torch.aminmax(faces))
        if low < 0 or high >= vertices.shape[1]:
            raise ValueError(f'faces: expected indices in [0, {vertices.shape[1]}), got {low} to {high}')
    if backend == 'pytorch3d':
        return _rasterize_pytorch3d(vertices, faces, height=height, width=width)
    if library.use_native(vertices.device, backend=backend):
        barycentrics, depth, face_ids = torch.ops.next3d.rasterize(vertices, faces, height, width)
        return Fragments(face_ids, barycentrics, depth)
    return _rasterize_reference(vertices, faces, height=height, width=width)


def interpolate(fragments: Fragments, attributes: torch.Tensor, *, backend: str | None = None) -> torch.Tensor:
    """Attributes of face corners, [N or 1, F, 3, C], at every pixel: [N, H, W, C], 0 on the background.

    The weights are the barycentrics as they are, not normalized. Differentiable once in both. `backend`: 'native',
    'reference', or None for the choice of NEXT3D_OPS.
    """
    face_ids, barycentrics = fragments.face_ids, fragments.barycentrics
    if attributes.ndim != 4 or attributes.shape[2] != 3 or attributes.shape[0] not in (1, face_ids.shape[0]):
        raise ValueError(f'attributes: expected [{face_ids.shape[0]} or 1, F, 3, C], got {list(attributes.shape)}')
    attributes = attributes.to(barycentrics.dtype)
    if library.use_native(face_ids.device, backend=backend):
        return torch.ops.next3d.interpolate(face_ids, barycentrics, attributes)
    return _interpolate_reference(face_ids, barycentrics, attributes)


def _interpolate_reference(
    face_ids: torch.Tensor, barycentrics: torch.Tensor, attributes: torch.Tensor
) -> torch.Tensor:
    tables, num_faces, _, channels = attributes.shape
    if num_faces == 0:
        return barycentrics.new_zeros(*face_ids.shape, channels)
    rows = face_ids.clamp(min=0)
    if tables > 1:
        rows = rows + num_faces * torch.arange(tables, device=rows.device).view(-1, 1, 1)
    corners = [corner.index_select(0, rows.flatten()) for corner in attributes.flatten(0, 1).unbind(1)]
    w0, w1, w2 = barycentrics.flatten(0, 2).split(1, dim=1)
    value = w0 * corners[0] + w1 * corners[1] + w2 * corners[2]
    return torch.where((face_ids >= 0).unsqueeze(-1), value.view(*face_ids.shape, channels), 0)


def _edge(p: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """e(p, a, b) of points [..., 2 or more]."""
    return (p[..., 0] - a[..., 0]) * (b[..., 1] - a[..., 1]) - (p[..., 1] - a[..., 1]) * (b[..., 0] - a[..., 0])


def _pixel_centres(size: int, like: torch.Tensor) -> torch.Tensor:
    return (2 * torch.arange(size, device=like.device) + 1).to(like.dtype) / size - 1


def _edges(p: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
    """The three edge functions [..., 3] at p [..., 2] of corners [..., 3, 3]."""
    a, b, c = corners.unbind(-2)
    return torch.stack([_edge(p, b, c), _edge(p, c, a), _edge(p, a, b)], dim=-1)


def _area(corners: torch.Tensor) -> torch.Tensor:
    a, b, c = corners.unbind(-2)
    return _edge(c, a, b)


def _depth(barycentrics: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
    b0, b1, b2 = barycentrics.unbind(-1)
    z0, z1, z2 = corners[..., 2].unbind(-1)
    return b0 * z0 + b1 * z1 + b2 * z2


def _rasterize_reference(vertices: torch.Tensor, faces: torch.Tensor, *, height: int, width: int) -> Fragments:
    """The twin: find the visible face of every pixel, then evaluate the formulas there (autograd sees only that)."""
    samples, num_faces = vertices.shape[0], faces.shape[0]
    corners = vertices[:, faces]  # [N, F, 3, 3]
    face_ids = _visible_faces(corners.detach(), height=height, width=width)
    if samples * num_faces == 0:
        empty = vertices.new_zeros(samples, height, width)
        return Fragments(face_ids, empty.unsqueeze(-1).expand(-1, -1, -1, 3).clone(), empty)
    covered = (face_ids >= 0).nonzero()  # [M, 3] as (sample, row, column)
    sample, row, column = covered.unbind(1)
    seen = corners[sample, face_ids[sample, row, column]]
    centre = torch.stack([_pixel_centres(width, vertices)[column], _pixel_centres(height, vertices)[row]], dim=-1)
    barycentrics = _edges(centre, seen) / (_area(seen) + AREA_EPSILON).unsqueeze(-1)
    place = (sample, row, column)
    return Fragments(
        face_ids,
        vertices.new_zeros(samples, height, width, 3).index_put(place, barycentrics),
        vertices.new_zeros(samples, height, width).index_put(place, _depth(barycentrics, seen)),
    )


def _visible_faces(corners: torch.Tensor, *, height: int, width: int) -> torch.Tensor:
    """Index of the nearest face at each pixel, [N, H, W], -1 = none; corners [N, F, 3, 3].

    Every usable face lists the pixels of its bounding box; the lists are worked off in chunks of bounded size, in
    the order of the faces, against one z-buffer.
    """
    samples, num_faces = corners.shape[:2]
    flat = corners.flatten(0, 1)
    area = _area(flat)
    usable = (area > AREA_EPSILON) & area.isfinite() & flat[..., 2].isfinite().all(-1)
    size = torch.tensor([width, height], device=flat.device)
    low, high = flat[..., :2].amin(1), flat[..., :2].amax(1)
    scaled = [((bound + 1) * size - 1).nan_to_num(nan=0.0) / 2 for bound in (low, high)]
    first = (scaled[0].ceil() - 1).clamp(min=0).minimum(size).long()  # one pixel to spare: `inside` decides
    last = (scaled[1].floor() + 1).clamp(min=-1).minimum(size - 1).long()
    extent = (last - first + 1).clamp(min=0) * usable.unsqueeze(-1)
    order = (extent.prod(-1) > 0).nonzero().squeeze(1)
    counts = extent[order].prod(-1)
    ends = counts.cumsum(0)

    nearest = flat.new_full((samples * height * width,), float('inf'))
    face_ids = torch.full((samples * height * width,), -1, device=flat.device)
    start, done = 0, 0
    while start < len(order):
        limit = torch.as_tensor(done + CANDIDATES_PER_CHUNK, device=flat.device)
        stop = max(start + 1, int(torch.searchsorted(ends, limit, right=True)))
        count = counts[start:stop]
        face = torch.repeat_interleave(order[start:stop], count)
        begins = ends[start:stop] - count - done
        offset = torch.arange(len(face), device=flat.device) - torch.repeat_interleave(begins, count)
        column = first[face, 0] + offset % extent[face, 0]
        row = first[face, 1] + offset // extent[face, 0]
        centre = torch.stack([_pixel_centres(width, flat)[column], _pixel_centres(height, flat)[row]], dim=-1)
        edges = _edges(centre, flat[face])
        depth = _depth(edges / (area[face] + AREA_EPSILON).unsqueeze(-1), flat[face])
        inside = (edges > 0).all(-1) & ((centre >= low[face]) & (centre <= high[face])).all(-1) & depth.isfinite()
        pixel = ((face // num_faces) * height + row) * width + column
        _resolve(nearest, face_ids, pixel[inside], depth[inside], face[inside] % num_faces)
        start, done = stop, int(ends[stop - 1])
    return face_ids.view(samples, height, width)


def _resolve(
    nearest: torch.Tensor, face_ids: torch.Tensor, pixel: torch.Tensor, depth: torch.Tensor, face: torch.Tensor
) -> None:
    """Put candidates into the z-buffer: the strictly nearer wins, among equals the smaller index."""
    closer = depth < nearest[pixel]
    pixel, depth, face = pixel[closer], depth[closer], face[closer]
    nearest.scatter_reduce_(0, pixel, depth, 'amin')
    best = depth == nearest[pixel]
    pixel, face = pixel[best], face[best]
    face_ids[pixel] = torch.iinfo(torch.int64).max
    face_ids.scatter_reduce_(0, pixel, face, 'amin')


def _rasterize_pytorch3d(vertices: torch.Tensor, faces: torch.Tensor, *, height: int, width: int) -> Fragments:
    """PyTorch3D's rasterizer under this module's conventions.

    Its x and y point left and up, its range is [-1, 1] along the shorter side, it works in float32, and it drops
    faces that reach depths below 1e-8, which are therefore refused.
    """
    try:
        from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
        from pytorch3d.structures import Meshes
    except ImportError as error:
        raise library.UserError(
            f'rasterizer pytorch3d: PyTorch3D is not installed ({error}); see environment.yml'
        ) from error
    if bool((vertices[..., 2] < AREA_EPSILON).any()):
        raise ValueError('vertices: the pytorch3d rasterizer needs positive depths; add a constant to z')
    shorter = min(height, width)
    scale = vertices.new_tensor([-width / shorter, -height / shorter, 1.0])
    meshes = Meshes(verts=(vertices * scale).float(), faces=faces.expand(vertices.shape[0], -1, -1))
    packed, depth, barycentrics, _ = rasterize_meshes(
        meshes,
        image_size=(height, width),
        blur_radius=0.0,
        faces_per_pixel=1,
        perspective_correct=False,
        clip_barycentric_coords=False,
        cull_backfaces=True,
    )
    packed, depth, barycentrics = packed[..., 0], depth[..., 0], barycentrics[..., 0, :]
    covered = packed >= 0
    first = faces.shape[0] * torch.arange(vertices.shape[0], device=packed.device).view(-1, 1, 1)
    return Fragments(
        torch.where(covered, packed - first, -1),
        torch.where(covered.unsqueeze(-1), barycentrics, 0).to(vertices.dtype),
        torch.where(covered, depth, 0).to(vertices.dtype),
    )


@torch.library.register_fake('next3d::rasterize')
def _fake(vertices: torch.Tensor, faces: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, ...]:
    shape = (vertices.shape[0], height, width)
    return vertices.new_empty((*shape, 3)), vertices.new_empty(shape), faces.new_empty(shape)


@torch.library.register_fake('next3d::rasterize_backward')
def _fake_backward(
    grad_barycentrics: torch.Tensor,
    grad_depth: torch.Tensor,
    face_ids: torch.Tensor,
    vertices: torch.Tensor,
    faces: torch.Tensor,
) -> torch.Tensor:
    return torch.empty_like(vertices, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    vertices, faces, _, _ = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(vertices, faces, output[2])


def _backward(ctx: Any, grad_barycentrics: torch.Tensor, grad_depth: torch.Tensor, grad_ids: Any) -> tuple:
    vertices, faces, face_ids = ctx.saved_tensors
    gradient = torch.ops.next3d.rasterize_backward(grad_barycentrics, grad_depth, face_ids, vertices, faces)
    return gradient, None, None, None


torch.library.register_autograd('next3d::rasterize', _backward, setup_context=_setup_context)
no_second_order('rasterize')


@torch.library.register_fake('next3d::interpolate')
def _fake_interpolate(face_ids: torch.Tensor, barycentrics: torch.Tensor, attributes: torch.Tensor) -> torch.Tensor:
    return barycentrics.new_empty((*face_ids.shape, attributes.shape[3]))


@torch.library.register_fake('next3d::interpolate_backward')
def _fake_interpolate_backward(
    grad: torch.Tensor,
    face_ids: torch.Tensor,
    barycentrics: torch.Tensor,
    attributes: torch.Tensor,
    of_attributes: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = attributes.shape if of_attributes else (0,)
    return barycentrics.new_empty(barycentrics.shape), attributes.new_empty(shape)


def _setup_interpolate(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_interpolate(ctx: Any, grad: torch.Tensor) -> tuple:
    of_attributes = ctx.needs_input_grad[2]
    by_weights, by_attributes = torch.ops.next3d.interpolate_backward(grad, *ctx.saved_tensors, of_attributes)
    return None, by_weights, by_attributes if of_attributes else None


torch.library.register_autograd('next3d::interpolate', _backward_interpolate, setup_context=_setup_interpolate)
no_second_order('interpolate')
