"""Convolutions whose gradients of any order are again fast convolutions.

A convolution with weight w [M, N, k, k] ties a small image S [B, M, h, w] to a large one L [B, N, H, W] by the sum of

    S[b, m, i, j] * w[m, n, y, x] * L[b, n, stride * i + y - padding, stride * j + x - padding]

over all indices. Leaving out one factor gives three functions, and the gradients of each are the other two:

    conv2d(L, w)              -> S    data_gradient is its gradient in L, weight_gradient(S, L) the one in w
    conv_transpose2d(S, w)    -> L    conv2d is its gradient in S, weight_gradient(S, L) the one in w
    weight_gradient(S, L, k)  -> w

so R1, which differentiates the discriminator twice, never leaves them. torch computes its second gradients by dilated
convolutions instead, and on a CPU its weight gradients run far below the speed of its convolutions.

All functions compute only the gradients that are asked for, keep only the tensors that those need, and cast to the
type of torch.autocast where that is on. On other devices than CPUs, where no gradient is recorded, and with
NEXT3D_OPS=reference they are plain torch calls. A CPU without instructions for a 16-bit type computes it in float32,
whose products of 16-bit numbers are exact: torch's own code for that case is many times slower.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from torch_utils.ops import library

library.define('weight_gradient(Tensor small, Tensor large, int kernel, int stride, int padding) -> Tensor')


def conv2d(x: torch.Tensor, weight: torch.Tensor, *, stride: int = 1, padding: int = 0) -> torch.Tensor:
    """F.conv2d of x [B, C, H, W] by weight [O, C, k, k]: [B, O, h, w], h = (H + 2 padding - k) // stride + 1.

    Half of a pair for `conv_transpose2d`: its data gradient, with x as the gradient. Any order of gradients.
    """
    _check(x, weight, channels=1)
    if not own_gradients(x, weight):
        return _correlate(x, weight, stride, padding)
    return _Correlate.apply(autocast(x), autocast(weight), stride, padding)


def conv_transpose2d(x: torch.Tensor, weight: torch.Tensor, *, stride: int = 2) -> torch.Tensor:
    """F.conv_transpose2d of x [B, C, h, w] by weight [C, O, k, k]: [B, O, stride (h - 1) + k, ...]."""
    _check(x, weight, channels=0)
    if not own_gradients(x, weight):
        return _widened(F.conv_transpose2d, x, weight, stride=stride)
    kernel = weight.shape[2]
    size = (stride * (x.shape[2] - 1) + kernel, stride * (x.shape[3] - 1) + kernel)
    return _Spread.apply(autocast(x), autocast(weight), size, stride, 0)


def data_gradient(
    grad: torch.Tensor, weight: torch.Tensor, size: tuple[int, int], *, stride: int = 1, padding: int = 0
) -> torch.Tensor:
    """Gradient of conv2d in x, [B, C, *size], from grad [B, O, h, w] and weight [O, C, k, k].

    For conv_transpose2d call conv2d(grad, weight, stride=stride) instead. Differentiable to any order.
    """
    _check(grad, weight, channels=0)
    if not own_gradients(grad, weight):
        return _spread(grad, weight, size, stride, padding)
    return _Spread.apply(grad, weight, size, stride, padding)


def weight_gradient(
    grad: torch.Tensor, x: torch.Tensor, kernel_size: int, *, stride: int = 1, padding: int = 0
) -> torch.Tensor:
    """Gradient of conv2d in weight, [O, C, k, k], from grad [B, O, h, w] and x [B, C, H, W].

    For conv_transpose2d (weight [C, O, k, k]) call it with x first and grad second. Differentiable to any order.
    """
    if grad.ndim != 4 or x.ndim != 4 or grad.shape[0] != x.shape[0] or grad.dtype != x.dtype:
        raise ValueError(
            f'grad, x: expected [B, O, h, w] and [B, C, H, W] of one type, got {grad.dtype} {list(grad.shape)},'
            f' {x.dtype} {list(x.shape)}'
        )
    if not own_gradients(grad, x):
        return _weight_gradient(grad, x, kernel_size, stride, padding)
    return _WeightGradient.apply(grad, x, kernel_size, stride, padding)


def _check(x: torch.Tensor, weight: torch.Tensor, *, channels: int) -> None:
    if x.ndim != 4 or weight.ndim != 4 or x.shape[1] != weight.shape[channels] or weight.shape[2] != weight.shape[3]:
        shape = '[O, C, k, k]' if channels == 1 else '[C, O, k, k]'
        raise ValueError(f'x, weight: expected [B, C, H, W] and {shape}, got {list(x.shape)}, {list(weight.shape)}')


def own_gradients(*inputs: torch.Tensor) -> bool:
    """Whether a call on `inputs` records the gradients of this module rather than torch's, or none."""
    recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    return recorded and inputs[0].device.type == 'cpu' and library.use_native(inputs[0].device)


def autocast_device(x: torch.Tensor) -> str:
    """The device type whose autocast decides; tensors without data (meta) stand for the CPU's."""
    return 'cpu' if x.device.type == 'meta' else x.device.type


def autocast(x: torch.Tensor) -> torch.Tensor:
    """x in the type that torch.autocast would give a convolution."""
    return x.to(compute_type(x))


def compute_type(x: torch.Tensor) -> torch.dtype:
    """The type that torch.autocast would give a convolution of x."""
    device = autocast_device(x)
    known = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if known and x.dtype != torch.float64 else x.dtype


def as_given(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """No autocast: gradients are computed in the type of the forward pass, wherever they are asked for."""
    device = autocast_device(x)
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


class _Correlate(torch.autograd.Function):
    """L, w -> S."""

    @staticmethod
    def forward(ctx: Any, large: torch.Tensor, weight: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
        _keep(ctx, large, weight)
        ctx.arguments = (tuple(large.shape[2:]), weight.shape[2], {'stride': stride, 'padding': padding})
        with as_given(large):
            return _correlate(large, weight, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        large, weight = ctx.saved_tensors
        size, kernel, geometry = ctx.arguments
        of_large = None if weight is None else data_gradient(grad, weight, size, **geometry)
        of_weight = None if large is None else weight_gradient(grad, large, kernel, **geometry)
        return of_large, of_weight, None, None


class _Spread(torch.autograd.Function):
    """S, w -> L."""

    @staticmethod
    def forward(
        ctx: Any, small: torch.Tensor, weight: torch.Tensor, size: tuple[int, int], stride: int, padding: int
    ) -> torch.Tensor:
        _keep(ctx, small, weight)
        ctx.arguments = (weight.shape[2], {'stride': stride, 'padding': padding})
        return _spread(small, weight, size, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        small, weight = ctx.saved_tensors
        kernel, geometry = ctx.arguments
        with as_given(grad):
            of_small = None if weight is None else conv2d(grad, weight, **geometry)
        of_weight = None if small is None else weight_gradient(small, grad, kernel, **geometry)
        return of_small, of_weight, None, None, None


class _WeightGradient(torch.autograd.Function):
    """S, L -> w."""

    @staticmethod
    def forward(
        ctx: Any, small: torch.Tensor, large: torch.Tensor, kernel: int, stride: int, padding: int
    ) -> torch.Tensor:
        _keep(ctx, small, large)
        ctx.arguments = (tuple(large.shape[2:]), {'stride': stride, 'padding': padding})
        return _weight_gradient(small, large, kernel, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        small, large = ctx.saved_tensors
        size, geometry = ctx.arguments
        with as_given(grad):
            of_small = None if large is None else conv2d(large, grad, **geometry)
        of_large = None if small is None else data_gradient(small, grad, size, **geometry)
        return of_small, of_large, None, None, None


def _keep(ctx: Any, first: torch.Tensor, second: torch.Tensor) -> None:
    """Save each of two factors only if the gradient of the other is wanted."""
    ctx.save_for_backward(first if ctx.needs_input_grad[1] else None, second if ctx.needs_input_grad[0] else None)


def _correlate(x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
    return _widened(F.conv2d, x, weight, stride=stride, padding=padding)


def _widened(function: Callable[..., torch.Tensor], x: torch.Tensor, weight: torch.Tensor, **options: Any) -> Any:
    """function(x, weight), by way of float32 where this CPU cannot multiply their type."""
    dtype = compute_type(x)
    if _multiplies(dtype, x.device):
        return function(x, weight, **options)
    with as_given(x):
        return function(x.to(dtype).float(), weight.to(dtype).float(), **options).to(dtype)


def _multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether convolutions of a type are fast here, or a twin is asked for."""
    if device.type != 'cpu' or dtype not in (torch.bfloat16, torch.float16) or not library.use_native(device):
        return True
    return dtype == torch.bfloat16 and library.bf16_instructions() is not None


def _spread(
    small: torch.Tensor, weight: torch.Tensor, size: tuple[int, int], stride: int, padding: int
) -> torch.Tensor:
    kernel = weight.shape[2]
    rest = [
        total - (stride * (length - 1) + kernel - 2 * padding)
        for total, length in zip(size, small.shape[2:], strict=True)
    ]
    with as_given(small):
        return _widened(F.conv_transpose2d, small, weight, stride=stride, padding=padding, output_padding=rest)


def _weight_gradient(small: torch.Tensor, large: torch.Tensor, kernel: int, stride: int, padding: int) -> torch.Tensor:
    """The one place that chooses how weight gradients are computed.

    Ours in fp32 where it has a kernel for the processor; torch's otherwise.
    """
    if not _multiplies(small.dtype, small.device):
        return _weight_gradient(small.float(), large.float(), kernel, stride, padding).to(small.dtype)
    if _ours_is_faster(small, large, kernel, stride):
        return torch.ops.next3d.weight_gradient(small, large, kernel, stride, padding)
    weight = large.new_empty(small.shape[1], large.shape[1], kernel, kernel)
    weight = torch.empty_like(weight, memory_format=library.layout(large))
    geometry = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1)
    return torch.ops.aten.convolution_backward(small, large, weight, None, *geometry, [False, True, False])[1]


def _ours_is_faster(small: torch.Tensor, large: torch.Tensor, kernel: int, stride: int) -> bool:
    """As measured: packing pays for 3x3 kernels with enough channels (with AVX2, nearly any), or with a stride."""
    if kernel == 1 or small.device.type != 'cpu' or small.dtype != torch.float32:
        return False
    flags = set(library.processor_flags().split())
    if 'avx512f' in flags:
        enough = 96
    elif {'avx2', 'fma'} <= flags:
        enough = 16
    else:
        return False
    if stride == 1 and min(small.shape[1], large.shape[1]) < enough:
        return False
    return library.use_native(small.device)


@torch.library.register_fake('next3d::weight_gradient')
def _fake(small: torch.Tensor, large: torch.Tensor, kernel: int, stride: int, padding: int) -> torch.Tensor:
    weight = small.new_empty(small.shape[1], large.shape[1], kernel, kernel)
    return torch.empty_like(weight, memory_format=torch.channels_last)
