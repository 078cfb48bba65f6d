"""Convolutions against loops, torch, numerical derivatives of second order, and each other's gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from torch_utils.ops import conv2d, library
from torch_utils.ops.modulated_conv import modulated_conv2d

SHAPES = [  # batch, channels in, channels out, height, width, kernel, stride, padding
    (2, 3, 5, 7, 6, 3, 1, 1),
    (1, 17, 9, 5, 5, 3, 1, 1),
    (3, 4, 6, 9, 7, 3, 2, 0),
    (2, 5, 3, 6, 6, 1, 1, 0),
    (2, 8, 50, 11, 13, 3, 1, 1),
    (2, 16, 16, 4, 4, 3, 1, 1),
    (1, 64, 96, 33, 33, 3, 2, 0),
    (2, 33, 49, 20, 24, 3, 1, 1),
]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pair(case: tuple, dtype: torch.dtype, last: bool = True) -> tuple[torch.Tensor, torch.Tensor, dict]:
    batch, inputs, outputs, height, width, kernel, stride, padding = case
    layout = torch.channels_last if last else torch.contiguous_format
    x = noise(batch, inputs, height, width, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    weight = noise(outputs, inputs, kernel, kernel, seed=1, dtype=dtype).requires_grad_()
    return x, weight, {'stride': stride, 'padding': padding}


def loops(small: torch.Tensor, large: torch.Tensor, kernel: int, stride: int, padding: int) -> torch.Tensor:
    """The weight gradient by its definition."""
    result = torch.zeros(small.shape[1], large.shape[1], kernel, kernel, dtype=torch.float64)
    for y, x, i, j in itertools.product(range(kernel), range(kernel), range(small.shape[2]), range(small.shape[3])):
        row, column = stride * i + y - padding, stride * j + x - padding
        if 0 <= row < large.shape[2] and 0 <= column < large.shape[3]:
            result[:, :, y, x] += torch.einsum(
                'bm,bn->mn', small[:, :, i, j].double(), large[:, :, row, column].double()
            )
    return result


@pytest.mark.parametrize('backend', ['chosen', 'native'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('case', SHAPES)
def test_weight_gradient_follows_the_definition(case: tuple, dtype: torch.dtype, backend: str) -> None:
    x, weight, geometry = pair(case, dtype)
    small, x = noise(*F.conv2d(x, weight, **geometry).shape, seed=2, dtype=dtype), x.detach()
    if backend == 'native':
        library.load('cpu')
        result = torch.ops.next3d.weight_gradient(small, x, case[5], case[6], case[7])
    else:
        result = conv2d.weight_gradient(small, x, case[5], **geometry)
    expected = loops(small, x, case[5], **geometry)
    scale = float(expected.abs().max())
    assert result.dtype == dtype
    torch.testing.assert_close(
        result.double(), expected, rtol=0, atol=scale * (1e-12 if dtype == torch.float64 else 2e-6)
    )


def test_native_op_is_registered_for_tracing() -> None:
    library.load('cpu')
    arguments = (noise(2, 5, 4, 3), noise(2, 7, 9, 7, seed=1), 3, 2, 0)
    torch.library.opcheck(
        torch.ops.next3d.weight_gradient.default, arguments, test_utils=('test_schema', 'test_faketensor')
    )
    empty = torch.ops.next3d.weight_gradient(noise(0, 5, 4, 4), noise(0, 7, 4, 4), 3, 1, 1)
    assert torch.equal(empty, torch.zeros(5, 7, 3, 3))


def test_wide_layers_take_the_native_op() -> None:
    """The shapes for which it is chosen, against torch in float64."""
    for shape, stride, padding in (((2, 130, 100, 18, 20), 1, 1), ((1, 24, 40, 9, 9), 2, 0)):
        batch, outputs, inputs, height, width = shape
        small = noise(batch, outputs, height, width)
        size = (height, width) if stride == 1 else (2 * height + 1, 2 * width + 1)
        large = noise(batch, inputs, *size, seed=1).contiguous(memory_format=torch.channels_last)
        result = conv2d.weight_gradient(small, large, 3, stride=stride, padding=padding)
        weight = torch.zeros(outputs, inputs, 3, 3, dtype=torch.float64, requires_grad=True)
        F.conv2d(large.double(), weight, stride=stride, padding=padding).backward(small.double())
        assert weight.grad is not None
        torch.testing.assert_close(result.double(), weight.grad, rtol=0, atol=2e-6 * float(weight.grad.abs().max()))


@pytest.mark.parametrize('last', [True, False])
@pytest.mark.parametrize('case', SHAPES)
def test_first_and_second_order_equal_torch(case: tuple, last: bool) -> None:
    """Output, gradients, and the gradients of the squared data gradient (R1)."""
    results = []
    for function in (conv2d.conv2d, F.conv2d):
        x, weight, geometry = pair(case, torch.float64, last)
        y = function(x, weight, **geometry)
        first = torch.autograd.grad(y.sin().sum(), [x, weight], create_graph=True)
        second = torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), [x, weight])
        results.append((y, *first, *second))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('size', [(3, 4), (16, 16)])
def test_transposed_equals_torch(size: tuple[int, int]) -> None:
    results = []
    for function in (conv2d.conv_transpose2d, F.conv_transpose2d):
        x = noise(2, 5, *size, dtype=torch.float64).requires_grad_()
        weight = noise(5, 7, 3, 3, seed=1, dtype=torch.float64).requires_grad_()
        y = function(x, weight, stride=2)
        first = torch.autograd.grad(y.sin().sum(), [x, weight], create_graph=True)
        second = torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), [x, weight])
        results.append((y, *first, *second))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_numerical_derivatives() -> None:
    for case in SHAPES[:2]:
        x, weight, geometry = pair((1, 2, 2, 4, 3, *case[5:]), torch.float64)
        assert torch.autograd.gradgradcheck(lambda a, b, g=geometry: conv2d.conv2d(a, b, **g), (x, weight))
    small, large = (noise(1, 2, *size, dtype=torch.float64).requires_grad_() for size in ((2, 2), (5, 5)))
    assert torch.autograd.gradgradcheck(lambda s, l: conv2d.weight_gradient(s, l, 3, stride=2), (small, large))


def test_autocast_gives_the_weight_its_own_type() -> None:
    x, weight, geometry = pair(SHAPES[0], torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        y = conv2d.conv2d(x, weight, **geometry)
    assert y.dtype == torch.bfloat16
    by_x, by_weight = torch.autograd.grad(y.float().sum(), [x, weight])
    assert by_x.dtype == by_weight.dtype == torch.float32
    exact = torch.autograd.grad(F.conv2d(x, weight, **geometry).sum(), [x, weight])
    torch.testing.assert_close(by_weight, exact[1], rtol=0.05, atol=0.1)


def test_only_wanted_gradients_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, geometry = pair(SHAPES[0], torch.float32)
    y = conv2d.conv2d(x, weight.detach(), **geometry)
    monkeypatch.setattr(conv2d, '_weight_gradient', None)
    y.sum().backward()
    assert x.grad is not None


def test_weight_gradient_does_not_depend_on_threads() -> None:
    small, large = noise(2, 70, 24, 20), noise(2, 50, 24, 20, seed=1)
    library.load('cpu')
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(torch.ops.next3d.weight_gradient(small, large, 3, 1, 1))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match='x, weight: expected'):
        conv2d.conv2d(noise(1, 3, 4, 4), noise(2, 4, 3, 3))
    with pytest.raises(ValueError, match='grad, x: expected'):
        conv2d.weight_gradient(noise(1, 3, 4, 4), noise(2, 4, 4, 4), 3)
    with pytest.raises(ValueError, match='x, weight, styles: expected'):
        modulated_conv2d(noise(1, 3, 4, 4), noise(2, 3, 3, 3), noise(2, 3))


@pytest.mark.parametrize('up', [1, 2])
@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('mode', ['native', 'reference'])
def test_modulated_convolution_and_its_gradients(
    batch: int, up: int, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By per-sample kernels, whichever way is chosen (folded, scaled with and without gradient)."""
    monkeypatch.setenv('NEXT3D_OPS', mode)
    for size in (3, 12):  # weight larger and smaller than x
        inputs = [
            tensor.requires_grad_()
            for tensor in (
                noise(batch, 6, size, size, dtype=torch.float64),
                noise(5, 6, 3, 3, seed=1, dtype=torch.float64),
                1 + noise(batch, 6, seed=2, dtype=torch.float64),
            )
        ]
        x, weight, styles = inputs
        y = modulated_conv2d(x, weight, styles, up=up)
        expected = []
        for index in range(batch):
            kernel = weight * styles[index].view(1, -1, 1, 1)
            one = x[index : index + 1]
            same = (
                F.conv2d(one, kernel, padding=1)
                if up == 1
                else F.conv_transpose2d(one, kernel.transpose(0, 1), stride=2)
            )
            expected.append(same)
        torch.testing.assert_close(y, torch.cat(expected))
        with torch.no_grad():
            torch.testing.assert_close(modulated_conv2d(x, weight, styles, up=up), y)
        gradients = [torch.autograd.grad(value.sin().sum(), inputs) for value in (y, torch.cat(expected))]
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('up', [1, 2])
def test_modulated_convolution_to_second_order(up: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the twin; the native one refuses."""
    inputs = [
        noise(2, 2, 3, 3, dtype=torch.float64).requires_grad_(),
        noise(3, 2, 3, 3, seed=1, dtype=torch.float64).requires_grad_(),
        (1 + noise(2, 2, seed=2, dtype=torch.float64)).requires_grad_(),
    ]
    monkeypatch.setenv('NEXT3D_OPS', 'reference')
    assert torch.autograd.gradgradcheck(lambda *args: modulated_conv2d(*args, up=up), inputs, fast_mode=True)
    monkeypatch.setenv('NEXT3D_OPS', 'native')
    first = torch.autograd.grad(modulated_conv2d(*inputs, up=up).square().sum(), inputs[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match='once_differentiable'):
        first.sum().backward()


@pytest.mark.parametrize('flags', ['x86_64 avx2', 'x86_64 avx2 avx512_bf16'])
@pytest.mark.parametrize('case', SHAPES)
def test_bf16_is_the_same_with_and_without_its_instructions(
    case: tuple, flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients are those of the rounded inputs, but for one rounding of each result."""
    monkeypatch.setattr(library, 'processor_flags', lambda: flags)
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        x, weight, geometry = pair(case, torch.bfloat16)
        x, weight = (tensor.detach().to(dtype).requires_grad_() for tensor in (x, weight))
        y = conv2d.conv2d(x, weight, **geometry)
        grad = noise(*y.shape, seed=3, dtype=torch.bfloat16).to(dtype)
        spread = conv2d.conv_transpose2d(grad, weight.detach(), stride=geometry['stride'])
        with torch.no_grad():
            unrecorded = conv2d.conv2d(x, weight, **geometry)
        results.append((y, unrecorded, spread, *torch.autograd.grad(y, [x, weight], grad)))
    for ours, exact in zip(*results, strict=True):
        assert ours.dtype == torch.bfloat16
        bound = 2**-8 * float(exact.detach().abs().max())
        torch.testing.assert_close(ours.double(), exact, rtol=2**-7, atol=bound)
