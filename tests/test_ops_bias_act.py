"""Bias and activation against closed forms, the twin, and numerical derivatives to second order."""

from __future__ import annotations

import math

import pytest
import torch

from torch_utils.ops import library
from torch_utils.ops.bias_act import ACTIVATIONS, bias_act

BACKENDS = ['native', 'reference']
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SCALARS = {
    'linear': lambda z: z,
    'relu': lambda z: max(z, 0.0),
    'lrelu': lambda z: z if z > 0 else 0.2 * z,
    'tanh': math.tanh,
    'sigmoid': lambda z: 1 / (1 + math.exp(-z)),
    'elu': lambda z: z if z > 0 else math.exp(z) - 1,
    'selu': lambda z: 1.0507009873554805 * (z if z > 0 else 1.6732632423543772 * (math.exp(z) - 1)),
    'softplus': lambda z: math.log(1 + math.exp(z)),
    'swish': lambda z: z / (1 + math.exp(-z)),
}


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * 2


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('act', ACTIVATIONS)
def test_closed_form(act: str, backend: str, device: torch.device) -> None:
    x, b = noise(2, 3, 4), noise(3, seed=1)
    y = bias_act(x.to(device), b.to(device), act=act, gain=1.7, clamp=2.5, backend=backend)
    expected = [
        [[min(max(1.7 * SCALARS[act](z + shift), -2.5), 2.5) for z in row] for row, shift in zip(sample, b.tolist())]  # noqa: B905
        for sample in x.tolist()
    ]
    torch.testing.assert_close(y.cpu(), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize('backend', BACKENDS)
def test_default_gains(backend: str, device: torch.device) -> None:
    """relu, lrelu and swish keep the second moment of a normal input roughly at 1; the others have gain 1."""
    x = torch.tensor([[2.0]], device=device)
    for act in ACTIVATIONS:
        gain = math.sqrt(2) if act in ('relu', 'lrelu', 'swish') else 1.0
        expected = torch.tensor([[gain * SCALARS[act](2.0)]], device=device)
        torch.testing.assert_close(bias_act(x, act=act, backend=backend), expected)
    assert float(bias_act(-x, act='lrelu', alpha=0.5, gain=1, backend=backend)) == -1.0


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('act', ACTIVATIONS)
def test_types(act: str, dtype: torch.dtype, device: torch.device) -> None:
    x, b = noise(3, 5, 9, 7, dtype=dtype).to(device), noise(5, dtype=dtype, seed=1).to(device)
    outputs = [bias_act(x, b, act=act, clamp=2, backend=backend) for backend in BACKENDS]
    assert outputs[0].dtype == outputs[1].dtype == dtype
    torch.testing.assert_close(*outputs, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(
    ('shape', 'dim'), [((4,), 0), ((5, 6), 1), ((5, 6), 0), ((2, 3, 4), -1), ((2, 3, 4, 5), 2), ((0, 3, 2, 2), 1)]
)
def test_shapes(shape: tuple[int, ...], dim: int, bias: bool, device: torch.device) -> None:
    x = noise(*shape).to(device).requires_grad_()
    b = noise(shape[dim], seed=1).to(device).requires_grad_() if bias else None
    inputs = [x] if b is None else [x, b]
    results = []
    for backend in BACKENDS:
        y = bias_act(x, b, dim=dim, act='lrelu', backend=backend)
        results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    for native, reference in zip(*results, strict=True):
        torch.testing.assert_close(native, reference)


@pytest.mark.parametrize('act', ['lrelu', 'swish'])
def test_layouts(act: str, device: torch.device) -> None:
    base, b = noise(2, 6, 8, 10).to(device), noise(6, seed=1).to(device)
    last = base.to(memory_format=torch.channels_last)
    y = bias_act(last, b, act=act, backend='native')
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, bias_act(base, b, act=act, backend='reference'))
    for x in (base.transpose(2, 3), base[:, :, ::2], last[:, :, 1:], base[:1].expand(3, -1, -1, -1)):
        torch.testing.assert_close(
            bias_act(x, b, act=act, backend='native'), bias_act(x, b, act=act, backend='reference')
        )
    x = last.requires_grad_()
    (gradient,) = torch.autograd.grad(bias_act(x, b, act=act, backend='native').square().sum(), x)
    (expected,) = torch.autograd.grad(bias_act(x, b, act=act, backend='reference').square().sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_large_input_without_bias(device: torch.device) -> None:
    x = noise(3, 70_001, dtype=torch.float32).to(device)  # split over threads at odd places
    torch.testing.assert_close(
        bias_act(x, act='lrelu', backend='native'), bias_act(x, act='lrelu', backend='reference')
    )


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('clamp', [None, 1.5])
@pytest.mark.parametrize('act', ACTIVATIONS)
def test_gradients_to_second_order(act: str, clamp: float | None, backend: str, device: torch.device) -> None:
    x = noise(2, 3, 5, seed=2).to(device).requires_grad_()
    b = noise(3, seed=3).to(device).requires_grad_()

    def apply(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return bias_act(x, b, act=act, gain=1.3, clamp=clamp, backend=backend)

    assert torch.autograd.gradcheck(apply, (x, b), fast_mode=True)
    assert torch.autograd.gradgradcheck(apply, (x, b), fast_mode=True)


@pytest.mark.parametrize('act', ACTIVATIONS)
def test_gradient_penalty_agrees_with_twin(act: str, device: torch.device) -> None:
    """The gradient of a squared gradient norm, as R1 needs it, in float32."""
    results = []
    for backend in BACKENDS:
        x = noise(2, 3, 8, 8, dtype=torch.float32).to(device).requires_grad_()
        b = noise(3, dtype=torch.float32, seed=1).to(device).requires_grad_()
        y = bias_act(bias_act(x, b, act=act, backend=backend), act='swish', backend=backend)
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        results.append((gradient, *torch.autograd.grad(gradient.square().sum(), [x, b])))
    for native, reference in zip(*results, strict=True):
        torch.testing.assert_close(native, reference, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize('backend', BACKENDS)
def test_far_from_zero(backend: str, device: torch.device) -> None:
    """No overflow, and slopes that do not cancel."""
    for act in ACTIVATIONS:
        x = torch.tensor([-200.0, -40.0, -1e-4, 1e-4, 40.0, 200.0], device=device, requires_grad=True)
        y = bias_act(x, dim=0, act=act, gain=1, backend=backend)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert y.isfinite().all()
        assert gradient.isfinite().all()
        assert float(gradient[5]) == pytest.approx({'tanh': 0, 'sigmoid': 0, 'selu': 1.0507}.get(act, 1), abs=1e-4)
    (slope,) = torch.autograd.grad(bias_act(x, dim=0, act='softplus', gain=1, backend=backend).sum(), x)
    assert float(slope[1]) == pytest.approx(math.exp(-40), rel=1e-4)


def test_opcheck(device: torch.device) -> None:
    library.use_native(device, backend='native')
    x = noise(2, 3, 4, 4, dtype=torch.float32).to(device).requires_grad_()
    b = noise(3, dtype=torch.float32, seed=1).to(device).requires_grad_()
    for act in ('lrelu', 'swish', 'tanh'):
        arguments = (b, 1, act, 0.2, 1.3, 2.0)
        torch.library.opcheck(torch.ops.next3d.bias_act.default, (x, *arguments))
        last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
        torch.library.opcheck(torch.ops.next3d.bias_act.default, (last, *arguments))
        second = (b if act == 'swish' else None, 1, act, 0.2, 1.3, 2.0)
        grad = torch.randn_like(x).requires_grad_()
        torch.library.opcheck(torch.ops.next3d.bias_act_backward.default, (grad, x, *second))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'act': 'gelu'}, "act: expected one of linear, relu, .* got 'gelu'"),
        ({'dim': 2}, 'x: expected floats with dimension 2'),
        ({'b': torch.zeros(4)}, r'b: expected torch.float32 \[3\], got torch.float32 \[4\]'),
        ({'b': torch.zeros(3).double()}, r'b: expected torch.float32 \[3\]'),
        ({'b': torch.zeros(3, 1)}, 'b: expected'),
        ({'clamp': -1.0}, 'alpha, clamp: expected at least 0'),
        ({'act': 'lrelu', 'alpha': -0.1}, 'alpha, clamp: expected at least 0'),
        ({'backend': 'triton'}, 'backend: expected one of'),
    ],
)
def test_bad_input(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bias_act(torch.zeros(2, 3), **options)
