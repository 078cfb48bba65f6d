"""What surrounds the convolution of a StyleGAN2 layer, each in one pass over memory.

scale_channels modulates its input; layer_epilogue filters (after upsampling), demodulates, adds noise and bias, and
applies the leaky ReLU to its output.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from torch_utils.ops import library, upfirdn2d

NUM_TAPS = 4
BEFORE, AFTER = 1, 1  # zeros around the image that is filtered

library.define(
    'layer_epilogue(Tensor x, Tensor? taps, Tensor? scale, Tensor? noise, Tensor bias, float slope, float gain)'
    ' -> Tensor'
)
library.define(
    'layer_epilogue_backward(Tensor grad, Tensor y, Tensor? scale, Tensor? noise, Tensor bias, float slope,'
    ' float gain, bool[4] wanted) -> (Tensor, Tensor, Tensor, Tensor)'
)
library.define('scale_channels(Tensor x, Tensor scale) -> Tensor')
library.define('scale_channels_backward(Tensor grad, Tensor x, Tensor scale) -> (Tensor, Tensor)')


def layer_epilogue(
    x: torch.Tensor,
    *,
    bias: torch.Tensor,
    taps: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    slope: float = 0.2,
    gain: float = math.sqrt(2),
    backend: str | None = None,
) -> torch.Tensor:
    """gain * lrelu(fir(x) * scale + noise + bias) of x [N, C, H, W], rounded once to the type of x.

    fir: with `taps` [4] convolves rows and columns after padding by one pixel, [H - 1, W - 1] result: what follows a
    transposed convolution with stride 2 (taps that sum to 2 keep brightness); None: no filter. scale [N, C] (not 0),
    noise [N or 1, 1, H', W'] of the result's size, bias [C]. All but x are float32 (float64 with x float64). slope
    and gain are above 0. Keeps the memory format of x.

    Differentiable in x, scale, noise and bias, once; to any order with backend='reference'. The native backward reads
    only the result, which the next layer keeps anyway: it undoes the activation. In half types that rounding changes
    the gradient of `scale` by less than rounding the incoming gradient does. `backend`: 'native', 'reference', or None
    for the choice of NEXT3D_OPS.
    """
    _check_image(x)
    samples, channels, height, width = x.shape
    if taps is not None:
        height, width = height + BEFORE + AFTER - NUM_TAPS + 1, width + BEFORE + AFTER - NUM_TAPS + 1
        if min(height, width) < 1:
            raise ValueError(f'x: expected at least 2 x 2 pixels to filter, got {list(x.shape)}')
        if taps.requires_grad:
            raise ValueError('taps: expected floats without gradient')
    _check_operand('taps', taps, x, [NUM_TAPS])
    _check_operand('scale', scale, x, [samples, channels])
    _check_operand('noise', noise, x, [1 if noise is not None and len(noise) == 1 else samples, 1, height, width])
    _check_operand('bias', bias, x, [channels])
    if not (slope > 0 and gain > 0):
        raise ValueError(f'slope, gain: expected above 0, got {slope}, {gain}')
    if library.use_native(x.device, backend=backend):
        return torch.ops.next3d.layer_epilogue(x, taps, scale, noise, bias, float(slope), float(gain))
    return _reference(x, taps, scale, noise, bias, float(slope), float(gain))


def scale_channels(x: torch.Tensor, scale: torch.Tensor, *, backend: str | None = None) -> torch.Tensor:
    """x [N, C, H, W] times scale [N, C] (float32; float64 with x float64), rounded once to the type of x.

    Keeps the memory format of x. Differentiable to any order. `backend` as in layer_epilogue.
    """
    _check_image(x)
    _check_operand('scale', scale, x, [x.shape[0], x.shape[1]])
    if library.use_native(x.device, backend=backend):
        return torch.ops.next3d.scale_channels(x, scale)
    return (x.to(scale.dtype) * scale[:, :, None, None]).to(x.dtype)


def _check_image(x: torch.Tensor) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f'x: expected floats [N, C, H, W], got {x.dtype} {list(x.shape)}')


def _check_operand(name: str, value: torch.Tensor | None, x: torch.Tensor, shape: list[int]) -> None:
    dtype = _sum_type(x)
    if value is not None and (list(value.shape) != shape or value.dtype != dtype):
        raise ValueError(f'{name}: expected {dtype} {shape}, got {value.dtype} {list(value.shape)}')


def _sum_type(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _reference(
    x: torch.Tensor,
    taps: torch.Tensor | None,
    scale: torch.Tensor | None,
    noise: torch.Tensor | None,
    bias: torch.Tensor,
    slope: float,
    gain: float,
) -> torch.Tensor:
    """The twin."""
    y = x.to(bias.dtype)
    if taps is not None:
        y = upfirdn2d.upfirdn2d(y, taps, padding=(BEFORE, AFTER), backend='reference')
    if scale is not None:
        y = y * scale[:, :, None, None]
    if noise is not None:
        y = y + noise
    return (F.leaky_relu(y + bias[:, None, None], slope) * gain).to(x.dtype)


@torch.library.register_fake('next3d::layer_epilogue')
def _fake(
    x: torch.Tensor,
    taps: torch.Tensor | None,
    scale: torch.Tensor | None,
    noise: torch.Tensor | None,
    bias: torch.Tensor,
    slope: float,
    gain: float,
) -> torch.Tensor:
    shrink = 0 if taps is None else NUM_TAPS - 1 - BEFORE - AFTER
    y = x.new_empty(x.shape[0], x.shape[1], x.shape[2] - shrink, x.shape[3] - shrink)
    return torch.empty_like(y, memory_format=library.layout(x))


@torch.library.register_fake('next3d::layer_epilogue_backward')
def _fake_backward(
    grad: torch.Tensor,
    y: torch.Tensor,
    scale: torch.Tensor | None,
    noise: torch.Tensor | None,
    bias: torch.Tensor,
    slope: float,
    gain: float,
    wanted: list[bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    samples, channels, height, width = y.shape
    return (
        torch.empty_like(y, memory_format=library.layout(y)) if wanted[0] else y.new_empty(0),
        bias.new_empty(samples, channels) if wanted[1] and scale is not None else bias.new_empty(0),
        bias.new_empty(samples if wanted[2] else 0, 1, height, width),
        bias.new_empty(channels if wanted[3] else 0),
    )


@torch.library.register_fake('next3d::scale_channels')
def _fake_scale(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=library.layout(x))


@torch.library.register_fake('next3d::scale_channels_backward')
def _fake_scale_backward(grad: torch.Tensor, x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x, memory_format=library.layout(x)), torch.empty_like(scale)


def _setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    _, taps, scale, noise, bias, *ctx.arguments = inputs
    ctx.save_for_backward(output, taps, scale, noise, bias)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple:
    y, taps, scale, noise, bias = ctx.saved_tensors
    of_x, _, of_scale, of_noise, of_bias = ctx.needs_input_grad[:5]
    wanted = [of_x, of_scale, of_noise, of_bias]
    grad_x, grad_scale, grad_noise, grad_bias = torch.ops.next3d.layer_epilogue_backward(
        grad, y, scale, noise, bias, *ctx.arguments, wanted
    )
    if of_x and taps is not None:  # the adjoint: the mirrored filter on an image padded the other way round
        padding = (NUM_TAPS - 1 - BEFORE, NUM_TAPS - 1 - AFTER) * 2
        grad_x = torch.ops.next3d.upfirdn2d(grad_x, torch.outer(taps, taps), 1, 1, 1, 1, *padding, True, 1.0)
    if of_noise and len(noise) == 1:
        grad_noise = grad_noise.sum(dim=0, keepdim=True)
    return (
        grad_x if of_x else None,
        None,
        grad_scale if of_scale else None,
        grad_noise if of_noise else None,
        grad_bias if of_bias else None,
        None,
        None,
    )


def _setup_second(ctx: Any, inputs: tuple, output: tuple) -> None:
    """Nothing is kept: there is no second derivative."""


def _second(ctx: Any, *cotangents: torch.Tensor) -> tuple:
    raise RuntimeError("layer_epilogue: the native op has first derivatives only; pass backend='reference' for more")


def _setup_scale(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _scale_backward(ctx: Any, grad: torch.Tensor) -> tuple:
    x, scale = ctx.saved_tensors
    if not ctx.needs_input_grad[1]:
        return torch.ops.next3d.scale_channels(grad, scale), None
    return torch.ops.next3d.scale_channels_backward(grad, x, scale)


def _scale_second(ctx: Any, of_x: torch.Tensor, of_scale: torch.Tensor) -> tuple:
    """The gradients grad * scale and sum(grad * x) are linear in each argument."""
    grad, x, scale = ctx.saved_tensors
    by_grad, by_scale = torch.ops.next3d.scale_channels_backward(of_x, grad, scale)
    by_grad = by_grad + torch.ops.next3d.scale_channels(x, of_scale)
    return by_grad, torch.ops.next3d.scale_channels(grad, of_scale), by_scale


torch.library.register_autograd('next3d::layer_epilogue', _backward, setup_context=_setup_context)
torch.library.register_autograd('next3d::layer_epilogue_backward', _second, setup_context=_setup_second)
torch.library.register_autograd('next3d::scale_channels', _scale_backward, setup_context=_setup_scale)
torch.library.register_autograd('next3d::scale_channels_backward', _scale_second, setup_context=_setup_scale)
