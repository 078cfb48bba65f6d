"""Three axis-aligned planes read at world points, alone or through the decoder that follows.

Planes [N, 3, C, R, R] are read at (column, row) = (x, y), (x, z) and (z, y), bilinearly between texel centres at
(i + 0.5) / R, zero outside. The kernels want the channels of a texel adjacent in memory, as `channels_last_planes`
lays them; planes in another layout are copied at every call.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from torch_utils.ops import library
from torch_utils.ops.once import no_second_order

# Which two world axes a plane is read at, as (column, row).
PLANE_AXES = ((0, 1), (0, 2), (2, 1))
AGGREGATIONS = ('mean', 'sum')
COLOR_MARGIN = 0.001  # colours lie in (-margin, 1 + margin)
MAX_CHANNELS = 128  # of planes and of colours, for query_field

library.define('sample_planes(Tensor planes, Tensor points, float scale, float gain) -> Tensor')
library.define(
    'sample_planes_backward(Tensor grad, Tensor planes, Tensor points, float scale, float gain, bool of_planes,'
    ' bool of_points) -> (Tensor, Tensor)'
)
library.define(
    'query_field(Tensor planes, Tensor points, float scale, float gain, Tensor hidden_weight, Tensor hidden_bias,'
    ' Tensor out_weight, Tensor out_bias, bool of_colors) -> (Tensor, Tensor)'
)


def channels_last_planes(planes: torch.Tensor) -> torch.Tensor:
    """Planes [N, 3, C, R, R] whose channels are adjacent in memory: themselves where that holds, else a copy."""
    if planes.stride(2) == 1:
        return planes
    return planes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


def sample_planes(
    planes: torch.Tensor, points: torch.Tensor, *, box_size: float, aggregation: str, backend: str | None = None
) -> torch.Tensor:
    """Planes [N, 3, C, R, R] read at world points [N, M, 3] and summed or averaged: [N, M, C].

    box_size: side of the cube about the origin that the planes cover, in world units. aggregation: of AGGREGATIONS.
    Computed and returned in float32, for planes of 16 bits too; in float64 for float64. Differentiable once in both;
    the same whatever the number of threads, the gradient on CUDA excepted (atomic sums). `backend`: 'native',
    'reference', or None for the choice of NEXT3D_OPS. Raises ValueError for wrong shapes.
    """
    points, scale, gain = _arguments(planes, points, box_size, aggregation)
    if library.use_native(planes.device, backend=backend):
        return torch.ops.next3d.sample_planes(planes, points, scale, gain)
    return _sample_reference(planes, points, scale, aggregation)


def query_field(
    planes: torch.Tensor,
    points: torch.Tensor,
    hidden: tuple[torch.Tensor, torch.Tensor],  # weight [H, C], bias [H]
    out: tuple[torch.Tensor, torch.Tensor],  # weight [1 + K, H], bias [1 + K]: sigma, then colours
    *,
    box_size: float,
    aggregation: str,
    of_colors: bool = True,
    backend: str | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Colours [N, M, K] (None unless of_colors) and sigma [N, M, 1]: `sample_planes`, then an MLP with softplus.

    Colours go through a sigmoid widened by COLOR_MARGIN. Weights and points are float32, or float64 like the planes.
    The native kernel takes no part in gradients, so a call that needs one, or float64, runs `sample_planes` and
    PyTorch's layers instead. `backend` as in `sample_planes`. Raises ValueError for wrong shapes.
    """
    points, scale, gain = _arguments(planes, points, box_size, aggregation)
    (weight, bias), (out_weight, out_bias) = hidden, out
    if weight.shape[1:] != planes.shape[2:3] or out_weight.shape[1:] != weight.shape[:1] or len(out_weight) < 2:
        shapes = f'{list(weight.shape)} and {list(out_weight.shape)}'
        raise ValueError(f'hidden, out: expected [H, {planes.shape[2]}] and [1 + K, H], got {shapes}')
    inputs = (planes, points, *hidden, *out)
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    small = planes.dtype != torch.float64 and max(planes.shape[2], len(out_weight) - 1) <= MAX_CHANNELS
    if small and not learns and library.use_native(planes.device, backend=backend):
        colors, sigma = torch.ops.next3d.query_field(planes, points, scale, gain, *hidden, *out, of_colors)
        return (colors if of_colors else None), sigma
    sampled = sample_planes(planes, points, box_size=box_size, aggregation=aggregation, backend=backend)
    if not of_colors:
        out_weight, out_bias = out_weight[:1], out_bias[:1]
    x = torch.addmm(out_bias, F.softplus(torch.addmm(bias, sampled.flatten(0, 1), weight.t())), out_weight.t())
    x = x.view(*points.shape[:2], -1)
    return (widened_sigmoid(x[..., 1:]) if of_colors else None), x[..., :1]


def widened_sigmoid(x: torch.Tensor) -> torch.Tensor:
    """Colours in (-COLOR_MARGIN, 1 + COLOR_MARGIN)."""
    return x.sigmoid() * (1 + 2 * COLOR_MARGIN) - COLOR_MARGIN


def _arguments(
    planes: torch.Tensor, points: torch.Tensor, box_size: float, aggregation: str
) -> tuple[torch.Tensor, float, float]:
    """Points in the type of the sums, their scale to [-1, 1], and the factor of the sum over planes."""
    if planes.ndim != 5 or planes.shape[1] != 3 or planes.shape[3] != planes.shape[4] or planes.shape[3] < 1:
        raise ValueError(f'planes: expected [N, 3, C, R, R], got {list(planes.shape)}')
    if points.ndim != 3 or points.shape[0] != planes.shape[0] or points.shape[2] != 3:
        raise ValueError(f'points: expected [{planes.shape[0]}, M, 3], got {list(points.shape)}')
    if aggregation not in AGGREGATIONS:
        raise ValueError(f'aggregation: expected one of {", ".join(AGGREGATIONS)}, got {aggregation!r}')
    wide = torch.float64 if planes.dtype == torch.float64 else torch.float32
    return points.to(wide), 2 / box_size, 1 / 3 if aggregation == 'mean' else 1.0


def _sample_reference(planes: torch.Tensor, points: torch.Tensor, scale: float, aggregation: str) -> torch.Tensor:
    """The twin."""
    count, _, channels, size, _ = planes.shape
    coordinates = points * scale
    grid = torch.stack([coordinates[..., list(axes)] for axes in PLANE_AXES], dim=1)  # [N, 3, M, 2]
    flat = planes.to(points.dtype).reshape(-1, channels, size, size)
    sampled = F.grid_sample(flat, grid.flatten(0, 1)[:, None], align_corners=False)
    total = sampled.view(count, 3, channels, -1).sum(dim=1).transpose(1, 2)
    return total / 3 if aggregation == 'mean' else total


@torch.library.register_fake('next3d::sample_planes')
def _fake(planes: torch.Tensor, points: torch.Tensor, scale: float, gain: float) -> torch.Tensor:
    return points.new_empty((*points.shape[:2], planes.shape[2]))


@torch.library.register_fake('next3d::sample_planes_backward')
def _fake_backward(
    grad: torch.Tensor,
    planes: torch.Tensor,
    points: torch.Tensor,
    scale: float,
    gain: float,
    of_planes: bool,
    of_points: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    count, _, channels, size, _ = planes.shape
    by_planes = planes.new_empty((0,))
    if of_planes:
        by_planes = planes.new_empty((count, 3, size, size, channels)).permute(0, 1, 4, 2, 3)
    return by_planes, points.new_empty(points.shape if of_points else (0,))


@torch.library.register_fake('next3d::query_field')
def _fake_query(
    planes: torch.Tensor,
    points: torch.Tensor,
    scale: float,
    gain: float,
    hidden_weight: torch.Tensor,
    hidden_bias: torch.Tensor,
    out_weight: torch.Tensor,
    out_bias: torch.Tensor,
    of_colors: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (*points.shape[:2], out_weight.shape[0] - 1) if of_colors else (0,)
    return points.new_empty(shape), points.new_empty((*points.shape[:2], 1))


def _setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    planes, points, ctx.scale, ctx.gain = inputs
    ctx.save_for_backward(planes, points)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple:
    of_planes, of_points = ctx.needs_input_grad[:2]
    by_planes, by_points = torch.ops.next3d.sample_planes_backward(
        grad, *ctx.saved_tensors, ctx.scale, ctx.gain, of_planes, of_points
    )
    return by_planes if of_planes else None, by_points if of_points else None, None, None


torch.library.register_autograd('next3d::sample_planes', _backward, setup_context=_setup_context)
no_second_order('sample_planes')
