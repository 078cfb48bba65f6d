"""The convolution of a StyleGAN2 layer: shared weights, inputs scaled per sample and channel.

conv(x * styles, weight) equals a convolution by per-sample kernels up to rounding. What StyleGAN2 does to its result
(filter, demodulation, noise, bias, activation) is `layer_epilogue`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from torch_utils.ops import conv2d
from torch_utils.ops.layer_epilogue import scale_channels


def modulated_conv2d(x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor, *, up: int = 1) -> torch.Tensor:
    """x [N, C, H, W], weight [O, C, k, k] with k odd, styles [N, C] (float32) -> [N, O, H, W], in the type of x.

    up = 2: the transposed convolution with stride 2, [N, O, 2 H + k - 2, ...], still to be filtered. A single sample
    has its styles multiplied into the weight where that is the smaller tensor. On a CPU the gradient keeps x alone,
    not its scaled copy, and is differentiable once; with NEXT3D_OPS=reference to any order. Casts as torch.autocast
    does.
    """
    if x.ndim != 4 or weight.ndim != 4 or x.shape[1] != weight.shape[1] or styles.shape != x.shape[:2]:
        raise ValueError(
            f'x, weight, styles: expected [N, C, H, W], [O, C, k, k] and [N, C], got {list(x.shape)},'
            f' {list(weight.shape)}, {list(styles.shape)}'
        )
    if up not in (1, 2) or weight.shape[2] % 2 == 0:
        raise ValueError(f'up, weight: expected 1 or 2 and an odd kernel, got {up}, {list(weight.shape)}')
    x = conv2d.autocast(x)
    if folds(x, weight):
        return _convolve(x, weight * styles[:, :, None, None], up)
    if conv2d.own_gradients(x, weight, styles):
        return _ScaledConvolution.apply(x, weight, styles, up)
    return _convolve(scale_channels(x, styles), weight, up)


def folds(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the styles are multiplied into the weight: it is shared by one sample only, and the smaller tensor."""
    return len(x) == 1 and weight.numel() <= x.numel()


def _convolve(x: torch.Tensor, weight: torch.Tensor, up: int) -> torch.Tensor:
    if up == 2:
        return conv2d.conv_transpose2d(x, weight.transpose(0, 1))
    return conv2d.conv2d(x, weight, padding=weight.shape[2] // 2)


class _ScaledConvolution(torch.autograd.Function):
    """Scales anew in the backward pass instead of keeping the scaled input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor, up: int) -> torch.Tensor:
        ctx.up = up
        ctx.save_for_backward(x, weight, styles)
        with conv2d.as_given(x):
            return _convolve(scale_channels(x, styles), weight.to(x.dtype), up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        x, weight, styles = ctx.saved_tensors
        of_x, of_weight, of_styles = ctx.needs_input_grad[:3]
        kernel = weight.shape[2]
        grad_x = grad_weight = grad_styles = None
        with conv2d.as_given(x):
            if of_weight:
                scaled = scale_channels(x, styles)
                if ctx.up == 2:
                    grad_weight = conv2d.weight_gradient(scaled, grad, kernel, stride=2).transpose(0, 1)
                else:
                    grad_weight = conv2d.weight_gradient(grad, scaled, kernel, padding=kernel // 2)
                grad_weight = grad_weight.to(weight.dtype)
                del scaled
            if of_x or of_styles:
                cast = weight.to(x.dtype)
                if ctx.up == 2:
                    of_scaled = conv2d.conv2d(grad, cast.transpose(0, 1), stride=2)
                else:
                    size = (x.shape[2], x.shape[3])
                    of_scaled = conv2d.data_gradient(grad, cast, size, padding=kernel // 2)
                grad_x, grad_styles = torch.ops.next3d.scale_channels_backward(of_scaled, x, styles)
        return grad_x, grad_weight, grad_styles, None
