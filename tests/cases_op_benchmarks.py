"""Rows of the benchmark for single operations, beyond the basic ones; those whose op exists."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import cases_ops
import torch

from torch_utils.ops import conv2d, layer_epilogue, rasterize, texture_planes
from torch_utils.ops import planes as planes_op
from torch_utils.rng import stream

Call = Callable[[], object]
CHANNELS, SIDE = 128, 256  # of a synthesis layer
PLANE_CHANNELS, PLANE_SIDE, HIDDEN = 32, 256, 64
PLANE_POINTS = 196_608  # the coarse (or the fine) samples of one image
GRID_POINTS = 64**3
LAYOUTS = {'nchw': torch.contiguous_format, 'nhwc': torch.channels_last}


def op_benchmarks(
    device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, Callable[[], tuple[Call, int | None]]]]:
    """(row, prepare) of each op; prepare() -> what to time, and the bytes that it must at least read and write."""
    yield 'sample planes', functools.partial(_sample_planes, device, dtype)
    yield 'query field 64^3', functools.partial(_query_field, device, dtype)
    for layout, memory_format in LAYOUTS.items():
        yield f'layer_epilogue up2 {layout}', functools.partial(_epilogue, device, dtype, memory_format)
        yield f'scale_channels {layout}', functools.partial(_scale, device, dtype, memory_format)
    yield 'texture planes', functools.partial(_texture_planes, device, dtype)
    yield 'weight gradient 3x3', functools.partial(_weight_gradient, device, dtype)


def _randn(*shape: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=stream(0, 'values')).to(device, dtype)


def _points(count: int, device: torch.device) -> torch.Tensor:
    return (torch.rand(1, count, 3, generator=stream(0, 'points')) - 0.5).to(device)


def _planes(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """[1, 3, C, R, R] with the channels adjacent in memory."""
    planes = _randn(1, 3, PLANE_SIDE, PLANE_SIDE, PLANE_CHANNELS, device=device, dtype=dtype)
    return planes.permute(0, 1, 4, 2, 3)


def _sample_planes(device: torch.device, dtype: torch.dtype) -> tuple[Call, int]:
    planes, points = _planes(device, dtype), _points(PLANE_POINTS, device)
    traffic = planes.nbytes + points.nbytes + PLANE_POINTS * PLANE_CHANNELS * 4
    return lambda: planes_op.sample_planes(planes, points, box_size=1.0, aggregation='mean'), traffic


def _query_field(device: torch.device, dtype: torch.dtype) -> tuple[Call, int]:
    planes, points = _planes(device, dtype), _points(GRID_POINTS, device)
    hidden = (_randn(HIDDEN, PLANE_CHANNELS, device=device, dtype=torch.float32), torch.zeros(HIDDEN, device=device))
    out = (
        _randn(1 + PLANE_CHANNELS, HIDDEN, device=device, dtype=torch.float32),
        torch.zeros(1 + PLANE_CHANNELS, device=device),
    )
    options: dict[str, Any] = {'box_size': 1.0, 'aggregation': 'mean', 'of_colors': False}
    traffic = planes.nbytes + points.nbytes + GRID_POINTS * 4
    return lambda: planes_op.query_field(planes, points, hidden, out, **options), traffic


def _epilogue(device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format) -> tuple[Call, int]:
    """After a transposed convolution: filter, demodulation, noise, bias, activation."""
    x = _randn(1, CHANNELS, SIDE + 1, SIDE + 1, device=device, dtype=dtype).contiguous(memory_format=memory_format)
    scale = torch.ones(1, CHANNELS, device=device)
    noise = _randn(1, 1, SIDE, SIDE, device=device, dtype=torch.float32)
    options: dict[str, Any] = {
        'taps': torch.tensor([0.25, 0.75, 0.75, 0.25], device=device),
        'scale': scale,
        'noise': noise,
    }
    traffic = x.nbytes + CHANNELS * SIDE * SIDE * x.element_size() + noise.nbytes
    return lambda: layer_epilogue.layer_epilogue(x, bias=scale[0], **options), traffic


def _scale(device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format) -> tuple[Call, int]:
    x = _randn(1, CHANNELS, SIDE, SIDE, device=device, dtype=dtype).contiguous(memory_format=memory_format)
    scale = torch.ones(1, CHANNELS, device=device)
    return lambda: layer_epilogue.scale_channels(x, scale), 2 * x.nbytes


def _texture_planes(device: torch.device, dtype: torch.dtype) -> tuple[Call, int]:
    """A texture on the four views of a head-like mesh."""
    mesh = cases_ops.head_like().to(device)
    fragments = rasterize.rasterize(mesh.vertices, mesh.faces, height=mesh.height, width=mesh.width)
    face_uv = 2 * torch.rand(len(mesh.faces), 1, 2, generator=stream(0, 'uv')).to(device).expand(-1, 3, -1) - 1
    texture = _randn(1, PLANE_CHANNELS, PLANE_SIDE, PLANE_SIDE, device=device, dtype=dtype)
    options: dict[str, Any] = {'slots': (0, 1, 1, 2), 'mirrors': (texture_planes.Mirror.NONE,) * 4, 'background': True}
    traffic = texture.nbytes + fragments.face_ids.nbytes + fragments.barycentrics.nbytes + 3 * texture.nbytes
    return lambda: texture_planes.texture_planes(fragments, face_uv.contiguous(), texture, **options), traffic


def _weight_gradient(device: torch.device, dtype: torch.dtype) -> tuple[Call, int]:
    """Of a 3x3 convolution with 128 channels on both sides."""
    grad, x = (
        _randn(1, CHANNELS, SIDE, SIDE, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    return lambda: conv2d.weight_gradient(grad, x, 3, padding=1), grad.nbytes + x.nbytes
