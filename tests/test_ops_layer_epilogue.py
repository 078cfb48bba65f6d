"""Epilogue and channel scaling against sums in Python, their twins, and numerical derivatives."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from cases_epilogue import SHAPES, EpilogueCase, epilogue_case

from torch_utils.ops import library
from torch_utils.ops.layer_epilogue import layer_epilogue, scale_channels

BACKENDS = ['native', 'reference']
FORMATS = [torch.contiguous_format, torch.channels_last]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def run(case: EpilogueCase, backend: str) -> list[torch.Tensor]:
    """The result and the gradients of a random linear function of it."""
    for value in case.inputs:
        value.requires_grad_()
    y = layer_epilogue(case.x, **case.options, backend=backend)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y.detach(), *torch.autograd.grad(y, case.inputs, cotangent)]


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('filtered', [True, False])
def test_brute_force(filtered: bool, backend: str, device: torch.device) -> None:
    case = epilogue_case((2, 3, 4, 5), filtered=filtered, noise='own')
    x, (taps, scale, noise, bias) = case.x.double(), case.options.values()
    assert scale is not None
    assert noise is not None
    assert bias is not None
    expected = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
    for n, c, row, column in itertools.product(*(range(size) for size in expected.shape)):
        value = 0.0 if filtered else float(x[n, c, row, column])
        for i, j in itertools.product(range(4), range(4)) if taps is not None else ():
            source_row, source_column = row - 1 + i, column - 1 + j
            if 0 <= source_row < x.shape[2] and 0 <= source_column < x.shape[3]:
                value += float(taps[3 - i]) * float(taps[3 - j]) * float(x[n, c, source_row, source_column])
        value = value * float(scale[n, c]) + float(noise[n, 0, row, column]) + float(bias[c])
        expected[n, c, row, column] = 1.5 * (value if value > 0 else 0.3 * value)
    case = epilogue_case((2, 3, 4, 5), filtered=filtered, noise='own', device=device)
    y = layer_epilogue(case.x, **case.options, slope=0.3, gain=1.5, backend=backend)
    torch.testing.assert_close(y.cpu().double(), expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('filtered', [True, False])
def test_twin(filtered: bool, memory_format: torch.memory_format, dtype: torch.dtype, device: torch.device) -> None:
    for shape, scaled, noise in itertools.product(SHAPES, (True, False), ('shared', 'own', None)):
        case = epilogue_case(
            shape,
            filtered=filtered,
            scaled=scaled,
            noise=noise,
            dtype=dtype,
            memory_format=memory_format,
            device=device,
        )
        results = [run(case, backend) for backend in BACKENDS]
        assert results[0][0].dtype == dtype
        assert results[0][0].is_contiguous(memory_format=memory_format)
        for native, reference in zip(*results, strict=True):
            assert native.dtype == reference.dtype
            unit = reference.abs().amax().clamp(min=1e-6)
            torch.testing.assert_close(native / unit, reference / unit, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_large_layer(dtype: torch.dtype, device: torch.device) -> None:
    """Several tiles, bands and strips."""
    case = epilogue_case((1, 272, 71, 90), filtered=True, dtype=dtype, device=device)
    for native, reference in zip(run(case, 'native'), run(case, 'reference'), strict=True):
        unit = reference.abs().amax()
        torch.testing.assert_close(native / unit, reference / unit, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_same_as_separate_ops(device: torch.device) -> None:
    """The order of rounding of the layer it replaces: without filter all float32 bits agree."""
    case = epilogue_case((2, 24, 13, 17), filtered=False, device=device)
    scale, noise, bias = (case.options[name] for name in ('scale', 'noise', 'bias'))
    assert scale is not None
    assert noise is not None
    assert bias is not None
    y = case.x * scale[:, :, None, None] + noise + bias[:, None, None]
    expected = torch.nn.functional.leaky_relu(y, 0.2) * math.sqrt(2)
    assert torch.equal(layer_epilogue(case.x, **case.options, backend='native'), expected)


def test_scale_gradient_from_a_rounded_result(device: torch.device) -> None:
    """In bfloat16 undoing the activation adds little to what rounding the inputs does, even if nothing correlates."""
    options = {'filtered': True, 'device': device}
    cases = {backend: epilogue_case((1, 64, 64, 64), dtype=torch.bfloat16, **options) for backend in BACKENDS}
    exact = epilogue_case((1, 64, 64, 64), dtype=torch.float64, **options)
    rounded = epilogue_case((1, 64, 64, 64), dtype=torch.float64, **options)
    rounded.x.copy_(cases['native'].x)
    by_inputs = float(relative_error(run(rounded, 'reference')[2], run(exact, 'reference')[2]))
    by_output = float(relative_error(run(cases['native'], 'native')[2], run(cases['reference'], 'reference')[2]))
    assert by_output < 5e-3
    assert by_output < 0.5 * by_inputs


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return (value - expected).norm() / expected.norm()


@pytest.mark.parametrize('memory_format', FORMATS)
def test_threads_do_not_matter(memory_format: torch.memory_format) -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            case = epilogue_case((2, 33, 70, 41), filtered=True, memory_format=memory_format)
            scaled = scale_channels(case.x, case.inputs[1], backend='native')
            scaled_grads = torch.ops.next3d.scale_channels_backward(case.x, scaled, case.inputs[1])
            results.append([*run(case, 'native'), scaled, *scaled_grads])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_only_wanted_gradients(device: torch.device) -> None:
    case = epilogue_case((1, 8, 6, 6), filtered=True, device=device)
    full = run(case, 'native')[1:]
    for index, value in enumerate(case.inputs):
        fresh = epilogue_case((1, 8, 6, 6), filtered=True, device=device)
        fresh.inputs[index].requires_grad_()
        y = layer_epilogue(fresh.x, **fresh.options, backend='native')
        cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
        (gradient,) = torch.autograd.grad(y, fresh.inputs[index], cotangent)
        assert gradient.shape == value.shape
        assert torch.equal(gradient, full[index])


@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('filtered', [True, False])
def test_gradients(filtered: bool, memory_format: torch.memory_format, device: torch.device) -> None:
    case = epilogue_case(
        (2, 3, 4, 3), filtered=filtered, dtype=torch.float64, memory_format=memory_format, device=device
    )
    names = [name for name in case.options if name != 'taps']

    def apply(x: torch.Tensor, *operands: torch.Tensor, backend: str = 'native') -> torch.Tensor:
        return layer_epilogue(
            x, taps=case.options['taps'], **dict(zip(names, operands, strict=True)), slope=0.3, backend=backend
        )

    inputs = [value.requires_grad_() for value in case.inputs]
    assert torch.autograd.gradcheck(apply, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *args: apply(*args, backend='reference'), inputs, fast_mode=True)
    (gradient,) = torch.autograd.grad(apply(*inputs).square().sum(), case.x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only; pass backend='reference'"):
        gradient.sum().backward()


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('memory_format', FORMATS)
def test_scale_channels(memory_format: torch.memory_format, dtype: torch.dtype, device: torch.device) -> None:
    for shape in (*SHAPES, (1, 33, 40, 50)):
        case = epilogue_case(shape, filtered=False, dtype=dtype, memory_format=memory_format, device=device)
        x, scale = (value.requires_grad_() for value in case.inputs[:2])
        cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(x)
        results = []
        for backend in BACKENDS:
            y = scale_channels(x, scale, backend=backend)
            assert y.dtype == dtype
            results.append((y.detach(), *torch.autograd.grad(y, [x, scale], cotangent)))
        assert results[0][0].is_contiguous(memory_format=memory_format)
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])
        torch.testing.assert_close(results[0][2], results[1][2], atol=1e-4, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize('backend', BACKENDS)
def test_scale_channels_gradients(backend: str, device: torch.device) -> None:
    case = epilogue_case((2, 3, 3, 4), filtered=False, dtype=torch.float64, device=device)
    x, scale = (value.requires_grad_() for value in case.inputs[:2])

    def apply(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return scale_channels(x, scale, backend=backend)

    assert torch.autograd.gradcheck(apply, (x, scale), fast_mode=True)
    assert torch.autograd.gradgradcheck(apply, (x, scale), fast_mode=True)
    assert torch.equal(torch.autograd.grad(apply(x, scale.detach()).sum(), x)[0], scale[..., None, None].expand_as(x))


def test_half_types_round_to_even(device: torch.device) -> None:
    """Every 16-bit pattern survives; ties, overflow, tiny numbers and NaN are rounded as torch does."""
    ones = torch.ones(1, 1, device=device)
    values = torch.cat([torch.randn(4096) * 10.0**exponent for exponent in range(-9, 6)])
    special = torch.tensor(
        [65519.0, 65520.0, 65504.0, 2.0**-25, 3 * 2.0**-25, 1 + 2.0**-9, 1 + 3 * 2.0**-9, 3.4e38, 1e-40]
    )
    wide = torch.cat([values, special, -special, torch.tensor([math.inf, -math.inf, math.nan])])
    for dtype in (torch.bfloat16, torch.float16):
        patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(1, 1, 256, 256).to(device)
        copied = scale_channels(patterns, ones, backend='native')
        assert torch.equal(copied.nan_to_num(nan=7), patterns.nan_to_num(nan=7))
        assert torch.equal(copied.isnan(), patterns.isnan())
        for factor in (1.0, 1 + 2.0**-9, 1 + 3 * 2.0**-9, 1 + 2.0**-11, 1e-3, 2.0**-24, 3.7, 1e30):
            scaled = scale_channels(patterns, ones * factor, backend='native')
            expected = (patterns.float() * factor).to(dtype)
            torch.testing.assert_close(scaled, expected, atol=0, rtol=0, equal_nan=True)
        x = torch.zeros(1, wide.numel(), 1, 1, dtype=dtype, device=device)
        y = layer_epilogue(x, bias=wide.to(device), slope=1.0, gain=1.0, backend='native')
        torch.testing.assert_close(y.flatten().cpu(), wide.to(dtype), atol=0, rtol=0, equal_nan=True)


def test_strided_and_empty(device: torch.device) -> None:
    case = epilogue_case((2, 6, 8, 8), filtered=False, device=device)
    for x in (case.x.transpose(2, 3), case.x[:1].expand(2, -1, -1, -1)):
        results = [layer_epilogue(x, **case.options, backend=backend) for backend in BACKENDS]
        torch.testing.assert_close(*results, atol=2e-6, rtol=2e-6)
    empty = epilogue_case((0, 6, 4, 4), filtered=True, device=device)
    for native, reference in zip(run(empty, 'native'), run(empty, 'reference'), strict=True):
        torch.testing.assert_close(native, reference)


def test_opcheck(device: torch.device) -> None:
    library.use_native(device, backend='native')
    for memory_format, filtered in itertools.product(FORMATS, (True, False)):
        case = epilogue_case((2, 3, 5, 4), filtered=filtered, memory_format=memory_format, device=device)
        taps, scale, noise, bias = case.options.values()
        tests = ('test_schema', 'test_faketensor', 'test_autograd_registration', 'test_aot_dispatch_dynamic')
        inputs = [value.requires_grad_() for value in case.inputs]
        arguments = (inputs[0], taps, scale, noise, bias, 0.2, 1.4)
        torch.library.opcheck(torch.ops.next3d.layer_epilogue.default, arguments, test_utils=tests)
        y = torch.ops.next3d.layer_epilogue(*arguments).detach()
        values = (scale.detach(), noise.detach(), bias.detach()) if scale is not None and noise is not None else ()
        for wanted in ([True] * 4, [False] * 4, [False, True, False, True]):
            backward = (torch.randn_like(y), y, *values, 0.2, 1.4, wanted)
            torch.library.opcheck(torch.ops.next3d.layer_epilogue_backward.default, backward, test_utils=tests)
        x, factors = inputs[0], inputs[1]
        torch.library.opcheck(torch.ops.next3d.scale_channels.default, (x, factors), test_utils=tests)
        second = (torch.randn_like(x).requires_grad_(), x, factors)
        torch.library.opcheck(torch.ops.next3d.scale_channels_backward.default, second, test_utils=tests)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'x': torch.zeros(2, 3, 4)}, r'x: expected floats \[N, C, H, W\]'),
        ({'x': torch.zeros(2, 3, 4, 4).int()}, 'x: expected floats'),
        ({'bias': torch.zeros(4)}, r'bias: expected torch.float32 \[3\], got torch.float32 \[4\]'),
        ({'bias': torch.zeros(3).double()}, r'bias: expected torch.float32 \[3\], got torch.float64'),
        ({'scale': torch.zeros(1, 3)}, r'scale: expected torch.float32 \[2, 3\]'),
        ({'noise': torch.zeros(4, 4)}, r'noise: expected torch.float32 \[2, 1, 4, 4\]'),
        ({'noise': torch.zeros(1, 1, 5, 4)}, r'noise: expected torch.float32 \[1, 1, 4, 4\]'),
        ({'noise': torch.zeros(1, 1, 4, 4), 'taps': torch.ones(4)}, r'noise: expected torch.float32 \[1, 1, 3, 3\]'),
        ({'taps': torch.ones(3)}, r'taps: expected torch.float32 \[4\]'),
        ({'taps': torch.ones(4, requires_grad=True)}, 'taps: expected floats without gradient'),
        ({'x': torch.zeros(2, 3, 1, 4), 'taps': torch.ones(4)}, 'expected at least 2 x 2 pixels'),
        ({'slope': 0.0}, 'slope, gain: expected above 0'),
        ({'gain': -1.0}, 'slope, gain: expected above 0'),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    options = {'x': torch.zeros(2, 3, 4, 4), 'bias': torch.zeros(3), **changes}
    with pytest.raises(ValueError, match=message):
        layer_epilogue(options.pop('x'), **options)
    with pytest.raises(ValueError, match=r'scale: expected torch.float32 \[2, 3\]'):
        scale_channels(torch.zeros(2, 3, 4, 4), torch.zeros(3))
