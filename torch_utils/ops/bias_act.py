"""Bias, activation, gain and clamp in one pass: y = clamp(gain * act(x + b))."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from torch_utils.ops import library


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activation:
    """One activation: its function of (x, alpha), its defaults, and what its slope costs."""

    function: Callable[[torch.Tensor, float], torch.Tensor]
    alpha: float = 0.0
    gain: float = 1.0
    piecewise_linear: bool = False


ACTIVATIONS = {
    'linear': Activation(function=lambda x, alpha: x, piecewise_linear=True),
    'relu': Activation(function=lambda x, alpha: F.relu(x), gain=math.sqrt(2), piecewise_linear=True),
    'lrelu': Activation(function=F.leaky_relu, alpha=0.2, gain=math.sqrt(2), piecewise_linear=True),
    'tanh': Activation(function=lambda x, alpha: torch.tanh(x)),
    'sigmoid': Activation(function=lambda x, alpha: torch.sigmoid(x)),
    'elu': Activation(function=lambda x, alpha: F.elu(x)),
    'selu': Activation(function=lambda x, alpha: F.selu(x)),
    'softplus': Activation(function=lambda x, alpha: F.softplus(x)),
    'swish': Activation(function=lambda x, alpha: x * torch.sigmoid(x), gain=math.sqrt(2)),
}
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805

library.define('bias_act(Tensor x, Tensor? b, int dim, str act, float alpha, float gain, float clamp) -> Tensor')
library.define(
    'bias_act_backward(Tensor grad, Tensor reference, Tensor? b, int dim, str act, float alpha, float gain,'
    ' float clamp) -> Tensor'
)
library.define(
    'bias_act_backward_sum(Tensor grad, Tensor reference, Tensor? b, int dim, str act, float alpha, float gain,'
    ' float clamp) -> (Tensor, Tensor)'
)


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    *,
    dim: int = 1,
    act: str = 'linear',
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """clamp(gain * act(x + b)) of x of any shape with b [x.shape[dim]] (of the type of x) added along `dim`.

    act: one of ACTIVATIONS; alpha (slope of lrelu below zero, at least 0) and gain default to its entry; clamp
    limits the magnitude, None does not. Half types are computed in float32 and rounded once. Differentiable to any
    order in x and b. `backend`: 'native', 'reference', or None for the choice of NEXT3D_OPS, which on a CPU leaves
    smooth activations to PyTorch (its vectorized exp is faster).
    """
    spec = ACTIVATIONS.get(act)
    if spec is None:
        raise ValueError(f'act: expected one of {", ".join(ACTIVATIONS)}, got {act!r}')
    if not x.is_floating_point() or not -x.ndim <= dim < x.ndim:
        raise ValueError(f'x: expected floats with dimension {dim}, got {x.dtype} {list(x.shape)}')
    if b is not None and (b.shape != x.shape[dim : dim + 1 or None] or b.dtype != x.dtype):
        raise ValueError(f'b: expected {x.dtype} [{x.shape[dim]}], got {b.dtype} {list(b.shape)}')
    alpha = spec.alpha if alpha is None else float(alpha)
    gain = spec.gain if gain is None else float(gain)
    if alpha < 0 or (clamp is not None and clamp < 0):
        raise ValueError(f'alpha, clamp: expected at least 0, got {alpha}, {clamp}')
    limit = -1.0 if clamp is None else float(clamp)
    arguments = (dim % x.ndim, act, alpha, gain, limit)
    if backend is None and not spec.piecewise_linear and x.device.type == 'cpu' and library.mode() == 'auto':
        backend = 'reference'
    if library.use_native(x.device, backend=backend):
        return torch.ops.next3d.bias_act(x, b, *arguments)
    return _reference(x, b, *arguments)


def _add_bias(x: torch.Tensor, b: torch.Tensor | None, dim: int) -> torch.Tensor:
    return x if b is None else x + b.view([-1 if axis == dim else 1 for axis in range(x.ndim)])


def _sum_type(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _reference(
    x: torch.Tensor, b: torch.Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float
) -> torch.Tensor:
    """The twin."""
    wide = _sum_type(x)
    y = ACTIVATIONS[act].function(_add_bias(x.to(wide), None if b is None else b.to(wide), dim), alpha)
    if gain != 1:
        y = y * gain
    if clamp >= 0:
        y = y.clamp(-clamp, clamp)
    return y.to(x.dtype)


def _slope_derivative(reference: torch.Tensor, act: str, gain: float) -> torch.Tensor:
    """Derivative of the activation's slope by `reference`: its output times gain, or its argument for swish."""
    if act == 'swish':
        s = torch.sigmoid(reference)
        return s * (1 - s) * (2 + reference * (1 - 2 * s))
    t = reference / gain
    if act == 'tanh':
        slope = -2 * t
    elif act == 'sigmoid':
        slope = 1 - 2 * t
    elif act == 'softplus':
        slope = torch.exp(-t)
    else:  # elu, selu: slope = t + constant below zero
        slope = (t < 0).to(t.dtype)
    return slope / gain


@torch.library.register_fake('next3d::bias_act')
def _fake(
    x: torch.Tensor, b: torch.Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float
) -> torch.Tensor:
    plain = b is not None and dim != 1
    return torch.empty_like(x, memory_format=torch.contiguous_format if plain else library.layout(x))


@torch.library.register_fake('next3d::bias_act_backward')
def _fake_backward(
    grad: torch.Tensor,
    reference: torch.Tensor,
    b: torch.Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
) -> torch.Tensor:
    return _fake(reference, b, dim, act, alpha, gain, clamp)


@torch.library.register_fake('next3d::bias_act_backward_sum')
def _fake_backward_sum(
    grad: torch.Tensor,
    reference: torch.Tensor,
    b: torch.Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    grad_b = reference.new_empty(reference.shape[dim])
    return _fake(reference, grad_b, dim, act, alpha, gain, clamp), grad_b


def _setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    """Keeps the output, which the next layer keeps anyway; only swish needs its argument."""
    x, b, *ctx.arguments = inputs
    ctx.has_bias = b is not None
    if ctx.arguments[1] == 'swish':
        ctx.save_for_backward(x, b)
    else:
        ctx.save_for_backward(output, None)


def _sum_to_bias(gradient: torch.Tensor, dim: int) -> torch.Tensor:
    others = [axis for axis in range(gradient.ndim) if axis != dim]
    return gradient.sum(others) if others else gradient


def _backward(ctx: Any, grad: torch.Tensor) -> tuple:
    reference, b = ctx.saved_tensors
    if ctx.has_bias and ctx.needs_input_grad[1]:
        grad_x, grad_b = torch.ops.next3d.bias_act_backward_sum(grad, reference, b, *ctx.arguments)
    else:
        grad_x, grad_b = torch.ops.next3d.bias_act_backward(grad, reference, b, *ctx.arguments), None
    return grad_x, grad_b, None, None, None, None, None


def _setup_second(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    grad, reference, b, *ctx.arguments = inputs
    ctx.save_for_backward(grad, reference, b)
    ctx.set_materialize_grads(False)


def _second_of_sum(ctx: Any, of_x: torch.Tensor | None, of_b: torch.Tensor | None) -> tuple:
    """The gradient of b is the sum of that of x: its cotangent adds to every pixel."""
    reference, dim = ctx.saved_tensors[1], ctx.arguments[0]
    if of_b is not None:
        spread = of_b.view([-1 if axis == dim else 1 for axis in range(reference.ndim)])
        of_x = spread.expand_as(reference) if of_x is None else of_x + spread
    return _second(ctx, of_x)


def _second(ctx: Any, cotangent: torch.Tensor | None) -> tuple:
    """The first-order gradient is linear in the incoming one and curved in `reference`."""
    if cotangent is None:
        return (None,) * 8
    grad, reference, b = ctx.saved_tensors
    dim, act, _, gain, clamp = ctx.arguments
    by_grad = torch.ops.next3d.bias_act_backward(cotangent, reference, b, *ctx.arguments)
    by_reference = by_b = None
    if not ACTIVATIONS[act].piecewise_linear and gain != 0:
        argument = _add_bias(reference, b, dim).to(_sum_type(reference))
        by_reference = cotangent * grad * gain * _slope_derivative(argument, act, gain)
        if clamp >= 0:
            output = ACTIVATIONS[act].function(argument, 0.0) * gain if act == 'swish' else argument
            by_reference = torch.where(output.abs() < clamp, by_reference, 0)
        by_reference = by_reference.to(reference.dtype)
        by_b = None if b is None else _sum_to_bias(by_reference, dim)
    return by_grad, by_reference, by_b, None, None, None, None, None


torch.library.register_autograd('next3d::bias_act', _backward, setup_context=_setup_context)
torch.library.register_autograd('next3d::bias_act_backward', _second, setup_context=_setup_second)
torch.library.register_autograd('next3d::bias_act_backward_sum', _second_of_sum, setup_context=_setup_second)
