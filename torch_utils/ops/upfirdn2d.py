"""FIR resampling of images: upsample, pad, filter, downsample.

Per channel, in this order:
    1. insert up - 1 zeros after every pixel,
    2. pad with zeros (a negative number crops),
    3. convolve with the filter ('valid'); flip_filter=True correlates instead,
    4. keep every down-th pixel from the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from torch_utils.ops import library

Pair = int | Sequence[int]

library.define(
    'upfirdn2d(Tensor x, Tensor f, int up_x, int up_y, int down_x, int down_y, int left, int right, int top,'
    ' int bottom, bool correlate, float gain) -> Tensor'
)


def setup_filter(
    taps: Sequence[float] | torch.Tensor | None = (1, 3, 3, 1),
    *,
    device: torch.device | str = 'cpu',
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> torch.Tensor:
    """A float32 filter for the functions below: from n taps the outer product [n, n], or [fh, fw] as it is.

    `taps` None is the identity. normalize: the entries sum to 1, before `gain`.
    """
    f = torch.as_tensor([1.0] if taps is None else taps, dtype=torch.float32, device=device)
    if f.ndim not in (1, 2) or f.numel() == 0:
        raise ValueError(f'taps: expected [n] or [fh, fw], got {list(f.shape)}')
    if f.ndim == 1:
        f = torch.outer(f, f)
    if normalize:
        f = f / f.sum()
    if flip_filter:
        f = f.flip([0, 1])
    return f * gain


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    *,
    up: Pair = 1,
    down: Pair = 1,
    padding: Pair = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    backend: str | None = None,
) -> torch.Tensor:
    """x [N, C, H, W] resampled with filter f, [fh, fw], or [n] for an outer product, or None for the identity.

    up, down: a number or (x, y); padding: a number, (x, y) or (left, right, top, bottom), in pixels after
    upsampling. The result has the type and memory format of x; half types are summed in float32. Differentiable
    to any order in x, not in f. `backend`: 'native', 'reference', or None for the choice of NEXT3D_OPS.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f'x: expected floats [N, C, H, W], got {x.dtype} {list(x.shape)}')
    if f is None:
        f = x.new_ones([1, 1], dtype=torch.float32)
    if f.ndim not in (1, 2) or f.numel() == 0 or not f.is_floating_point() or f.requires_grad:
        raise ValueError(f'f: expected floats [fh, fw] or [n] without gradient, got {f.dtype} {list(f.shape)}')
    if f.ndim == 1:
        f = torch.outer(f, f)
    up_x, up_y = _pair(up, 'up')
    down_x, down_y = _pair(down, 'down')
    left, right, top, bottom = _padding(padding)
    if x.shape[2] * up_y + top + bottom < f.shape[0] or x.shape[3] * up_x + left + right < f.shape[1]:
        raise ValueError(f'x: {list(x.shape)} with up {up} and padding {padding} is smaller than f {list(f.shape)}')
    arguments = (up_x, up_y, down_x, down_y, left, right, top, bottom, flip_filter, float(gain))
    if library.use_native(x.device, backend=backend):
        return torch.ops.next3d.upfirdn2d(x, f, *arguments)
    return _reference(x, f, *arguments)


def filter2d(
    x: torch.Tensor,
    f: torch.Tensor,
    *,
    padding: Pair = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    backend: str | None = None,
) -> torch.Tensor:
    """x filtered at its own size; `padding` extends (or crops) the result."""
    height, width = f.shape[0], f.shape[-1]
    total = _add(_padding(padding), (width // 2, (width - 1) // 2, height // 2, (height - 1) // 2))
    return upfirdn2d(x, f, padding=total, flip_filter=flip_filter, gain=gain, backend=backend)


def upsample2d(
    x: torch.Tensor,
    f: torch.Tensor,
    *,
    up: Pair = 2,
    padding: Pair = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    backend: str | None = None,
) -> torch.Tensor:
    """x [N, C, H, W] -> [N, C, up H, up W], brightness kept; `padding` extends (or crops) the result."""
    up_x, up_y = _pair(up, 'up')
    height, width = f.shape[0], f.shape[-1]
    own = ((width + up_x - 1) // 2, (width - up_x) // 2, (height + up_y - 1) // 2, (height - up_y) // 2)
    total = _add(_padding(padding), own)
    gain = gain * up_x * up_y
    return upfirdn2d(x, f, up=up, padding=total, flip_filter=flip_filter, gain=gain, backend=backend)


def downsample2d(
    x: torch.Tensor,
    f: torch.Tensor,
    *,
    down: Pair = 2,
    padding: Pair = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    backend: str | None = None,
) -> torch.Tensor:
    """x [N, C, H, W] -> [N, C, H / down, W / down]; `padding` extends (or crops) the input."""
    down_x, down_y = _pair(down, 'down')
    height, width = f.shape[0], f.shape[-1]
    own = ((width - down_x + 1) // 2, (width - down_x) // 2, (height - down_y + 1) // 2, (height - down_y) // 2)
    total = _add(_padding(padding), own)
    return upfirdn2d(x, f, down=down, padding=total, flip_filter=flip_filter, gain=gain, backend=backend)


def _pair(value: Pair, name: str) -> tuple[int, int]:
    x, y = (value, value) if isinstance(value, int) else value
    if x < 1 or y < 1:
        raise ValueError(f'{name}: expected positive numbers, got {value}')
    return x, y


def _padding(value: Pair) -> tuple[int, int, int, int]:
    if isinstance(value, int):
        return value, value, value, value
    if len(value) == 2:
        return value[0], value[0], value[1], value[1]
    left, right, top, bottom = value
    return left, right, top, bottom


def _add(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [first + second for first, second in zip(a, b, strict=True)]


def _reference(
    x: torch.Tensor,
    f: torch.Tensor,
    up_x: int,
    up_y: int,
    down_x: int,
    down_y: int,
    left: int,
    right: int,
    top: int,
    bottom: int,
    correlate: bool,
    gain: float,
) -> torch.Tensor:
    """The twin, step by step as in the module's description."""
    samples, channels, height, width = x.shape
    memory_format = library.layout(x)
    sum_type = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = x.reshape(samples, channels * height, 1, width, 1).to(sum_type)
    y = F.pad(y, [0, up_x - 1, 0, 0, 0, up_y - 1]) if (up_x, up_y) != (1, 1) else y
    y = y.reshape(samples, channels, height * up_y, width * up_x)
    y = F.pad(y, [left, right, top, bottom])
    f = f.to(sum_type) * gain
    if not correlate:
        f = f.flip([0, 1])
    y = F.conv2d(y, f.expand(channels, 1, -1, -1), stride=(down_y, down_x), groups=channels)
    return y.to(x.dtype).contiguous(memory_format=memory_format)


@torch.library.register_fake('next3d::upfirdn2d')
def _fake(
    x: torch.Tensor,
    f: torch.Tensor,
    up_x: int,
    up_y: int,
    down_x: int,
    down_y: int,
    left: int,
    right: int,
    top: int,
    bottom: int,
    correlate: bool,
    gain: float,
) -> torch.Tensor:
    height = (x.shape[2] * up_y + top + bottom - f.shape[0]) // down_y + 1
    width = (x.shape[3] * up_x + left + right - f.shape[1]) // down_x + 1
    return torch.empty_like(x.new_empty(x.shape[0], x.shape[1], height, width), memory_format=library.layout(x))


def _setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    x, f, *ctx.arguments = inputs
    ctx.sizes = (x.shape, output.shape)
    ctx.save_for_backward(f)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple:
    """The adjoint of a resampling: the mirrored filter with up and down exchanged."""
    (f,) = ctx.saved_tensors
    up_x, up_y, down_x, down_y, left, _, top, _, correlate, gain = ctx.arguments
    (_, _, height, width), (_, _, out_height, out_width) = ctx.sizes
    before_x, before_y = f.shape[1] - left - 1, f.shape[0] - top - 1
    after_x = width * up_x - out_width * down_x + left - up_x + 1
    after_y = height * up_y - out_height * down_y + top - up_y + 1
    padding = (before_x, after_x, before_y, after_y)
    grad_x = torch.ops.next3d.upfirdn2d(grad, f, down_x, down_y, up_x, up_y, *padding, not correlate, gain)
    return (grad_x, *([None] * 11))


torch.library.register_autograd('next3d::upfirdn2d', _backward, setup_context=_setup_context)
