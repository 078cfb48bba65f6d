"""Reading a texture through the fragments of several views, straight into feature planes (paper 3.1).

A pixel's uv is its barycentrics' sum of the face's corners, in [-1, 1] with u = column and v = row, the centre of texel
i of `size` at -1 + (2 i + 1) / size. Reads are bilinear with zeros outside (grid_sample with align_corners=False).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from torch_utils.ops import library
from torch_utils.ops.once import no_second_order
from torch_utils.ops.rasterize import Fragments, interpolate

MAX_VIEWS = 8  # kMaxViews of csrc/texture_math.h

library.define(
    'texture_planes(Tensor face_ids, Tensor barycentrics, Tensor face_uv, Tensor texture, int[] slots, int[] mirrors,'
    ' bool background) -> Tensor'
)
library.define(
    'texture_planes_backward(Tensor grad, Tensor face_ids, Tensor barycentrics, Tensor face_uv, Tensor texture,'
    ' int[] slots, int[] mirrors, bool background, bool of_texture, bool of_barycentrics) -> (Tensor, Tensor)'
)
library.define('sample_mask(Tensor face_ids, Tensor barycentrics, Tensor face_uv, Tensor mask) -> Tensor')


class Mirror(enum.IntEnum):
    """How a view is turned before it enters its plane (Mirror of csrc/texture_math.h)."""

    NONE = 0
    COLUMNS = 1
    ROWS = 2


def texture_planes(
    fragments: Fragments,
    face_uv: torch.Tensor,
    texture: torch.Tensor,
    *,
    slots: Sequence[int],
    mirrors: Sequence[Mirror],
    background: bool,
    backend: str | None = None,
) -> torch.Tensor:
    """Planes [N, P, C, H, W] of textures [N, C, T, T] seen by V views; each plane is channels-last in memory.

    `fragments` are those of V views of N samples, [V * N, H, W] with the views outermost, face_uv [F, 3, 2] the corners
    of every face. View v enters plane slots[v] (P = the largest + 1) mirrored by mirrors[v]; views of one plane are
    added. Pixels without a face show the texture's centre with `background`, else 0. Differentiable once in texture
    and barycentrics; on CUDA the texture's gradient is not deterministic (atomic sums). `backend`: 'native',
    'reference', or None for the choice of NEXT3D_OPS. Raises ValueError for wrong shapes.
    """
    views, shape = len(slots), fragments.face_ids.shape
    if not 1 <= views <= MAX_VIEWS or len(mirrors) != views or not all(0 <= slot < MAX_VIEWS for slot in slots):
        raise ValueError(f'slots, mirrors: expected 1 to {MAX_VIEWS} views, got {list(slots)}, {list(mirrors)}')
    if texture.ndim != 4 or texture.shape[0] * views != shape[0] or 0 in texture.shape[2:]:
        raise ValueError(f'texture: expected [{shape[0]} / {views}, C, T, T], got {list(texture.shape)}')
    _check_uv(face_uv)
    dtype = fragments.barycentrics.dtype
    texture, face_uv = texture.to(dtype), face_uv.to(dtype)
    if library.use_native(texture.device, backend=backend):
        planes = torch.ops.next3d.texture_planes(
            fragments.face_ids, fragments.barycentrics, face_uv, texture, list(slots), list(mirrors), background
        )
        return planes.permute(0, 1, 4, 2, 3)
    return _planes_reference(fragments, face_uv, texture, slots=slots, mirrors=mirrors, background=background)


def sample_mask(
    fragments: Fragments, face_uv: torch.Tensor, mask: torch.Tensor, *, backend: str | None = None
) -> torch.Tensor:
    """A mask [S, S] over uv at every fragment, 0 where there is no face: [M, H, W] without gradient.

    `backend`: 'native', 'reference', or None for the choice of NEXT3D_OPS. Raises ValueError for wrong shapes.
    """
    if mask.ndim != 2 or mask.numel() == 0:
        raise ValueError(f'mask: expected [S, S], got {list(mask.shape)}')
    _check_uv(face_uv)
    barycentrics = fragments.barycentrics.detach()
    mask, face_uv = mask.detach().to(barycentrics.dtype), face_uv.to(barycentrics.dtype)
    if library.use_native(mask.device, backend=backend):
        return torch.ops.next3d.sample_mask(fragments.face_ids, barycentrics, face_uv, mask)
    detached = Fragments(fragments.face_ids, barycentrics, fragments.depth)
    uv = interpolate(detached, face_uv[None], backend='reference')
    read = F.grid_sample(mask.expand(len(uv), 1, *mask.shape), uv, align_corners=False)[:, 0]
    return torch.where(fragments.face_ids >= 0, read, 0)


def _check_uv(face_uv: torch.Tensor) -> None:
    if face_uv.ndim != 3 or face_uv.shape[1:] != (3, 2):
        raise ValueError(f'face_uv: expected [F, 3, 2], got {list(face_uv.shape)}')


def _planes_reference(
    fragments: Fragments,
    face_uv: torch.Tensor,
    texture: torch.Tensor,
    *,
    slots: Sequence[int],
    mirrors: Sequence[Mirror],
    background: bool,
) -> torch.Tensor:
    """The twin: one grid_sample a view."""
    count = texture.shape[0]
    uv = interpolate(fragments, face_uv[None], backend='reference')
    planes: list[torch.Tensor | None] = [None] * (max(slots) + 1)
    for view, (slot, mirror) in enumerate(zip(slots, mirrors, strict=True)):
        rows = slice(view * count, (view + 1) * count)
        seen = F.grid_sample(texture, uv[rows], align_corners=False)
        if not background:
            seen = torch.where(fragments.face_ids[rows, None] >= 0, seen, 0)
        if mirror != Mirror.NONE:
            seen = seen.flip(-1 if mirror == Mirror.COLUMNS else -2)
        before = planes[slot]
        planes[slot] = seen if before is None else before + seen
    empty = texture.new_zeros(count, texture.shape[1], *uv.shape[1:3])
    return torch.stack([empty if plane is None else plane for plane in planes], dim=1)


@torch.library.register_fake('next3d::texture_planes')
def _fake(
    face_ids: torch.Tensor,
    barycentrics: torch.Tensor,
    face_uv: torch.Tensor,
    texture: torch.Tensor,
    slots: list[int],
    mirrors: list[int],
    background: bool,
) -> torch.Tensor:
    return texture.new_empty((texture.shape[0], max(slots) + 1, *face_ids.shape[1:], texture.shape[1]))


@torch.library.register_fake('next3d::texture_planes_backward')
def _fake_backward(
    grad: torch.Tensor,
    face_ids: torch.Tensor,
    barycentrics: torch.Tensor,
    face_uv: torch.Tensor,
    texture: torch.Tensor,
    slots: list[int],
    mirrors: list[int],
    background: bool,
    of_texture: bool,
    of_barycentrics: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    count, channels, height, width = texture.shape
    by_texture = texture.new_empty((count, height, width, channels)).permute(0, 3, 1, 2)
    by_barycentrics = barycentrics.new_empty(barycentrics.shape if of_barycentrics else (0,))
    return by_texture if of_texture else texture.new_empty((0,)), by_barycentrics


@torch.library.register_fake('next3d::sample_mask')
def _fake_mask(
    face_ids: torch.Tensor, barycentrics: torch.Tensor, face_uv: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    return barycentrics.new_empty(face_ids.shape)


def _setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _backward(ctx: Any, grad: torch.Tensor) -> tuple:
    _, of_barycentrics, _, of_texture = ctx.needs_input_grad[:4]
    by_texture, by_barycentrics = torch.ops.next3d.texture_planes_backward(
        grad, *ctx.saved_tensors, *ctx.options, of_texture, of_barycentrics
    )
    barycentrics, texture = by_barycentrics if of_barycentrics else None, by_texture if of_texture else None
    return None, barycentrics, None, texture, None, None, None


torch.library.register_autograd('next3d::texture_planes', _backward, setup_context=_setup_context)
no_second_order('texture_planes')
