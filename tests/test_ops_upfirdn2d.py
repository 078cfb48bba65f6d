"""FIR resampling against a direct sum, its twin, adjointness, and torch's own interpolation."""

from __future__ import annotations

import itertools
from typing import Any

import cases_ops
import pytest
import torch
import torch.nn.functional as F

from torch_utils.ops import library
from torch_utils.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

BACKENDS = ['native', 'reference']
FILTERS = cases_ops.filters()
RESAMPLINGS = cases_ops.RESAMPLINGS
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def image(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def brute_force(x: torch.Tensor, f: torch.Tensor, **options: Any) -> torch.Tensor:
    """Each output pixel as a sum over all taps, in Python."""

    def spread(value: int | tuple[int, ...]) -> list[int]:
        numbers = [value] if isinstance(value, int) else list(value)
        return numbers * 2 if len(numbers) == 1 else numbers

    up_x, up_y = spread(options.get('up', 1))
    down_x, down_y = spread(options.get('down', 1))
    padding = spread(options.get('padding', 0))
    left, right, top, bottom = padding if len(padding) == 4 else (padding[0], padding[0], padding[1], padding[1])
    f = torch.outer(f, f) if f.ndim == 1 else f
    f = f.double() * options.get('gain', 1.0)
    taps = f if options.get('flip_filter') else f.flip([0, 1])
    samples, channels, height, width = x.shape
    rows = (height * up_y + top + bottom - f.shape[0]) // down_y + 1
    columns = (width * up_x + left + right - f.shape[1]) // down_x + 1
    y = torch.zeros(samples, channels, rows, columns, dtype=torch.float64)
    for row, column in itertools.product(range(rows), range(columns)):
        for i, j in itertools.product(range(f.shape[0]), range(f.shape[1])):
            source_y, rest_y = divmod(row * down_y + i - top, up_y)
            source_x, rest_x = divmod(column * down_x + j - left, up_x)
            if rest_y == rest_x == 0 and 0 <= source_y < height and 0 <= source_x < width:
                y[:, :, row, column] += taps[i, j] * x[:, :, source_y, source_x].double()
    return y


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('resampling', RESAMPLINGS)
@pytest.mark.parametrize('filter_name', FILTERS)
def test_brute_force(filter_name: str, resampling: str, backend: str, device: torch.device) -> None:
    x, f = image(2, 3, 7, 6), FILTERS[filter_name]
    y = upfirdn2d(x.to(device), f.to(device), backend=backend, **RESAMPLINGS[resampling])
    expected = brute_force(x, f, **RESAMPLINGS[resampling])
    torch.testing.assert_close(y.cpu().double(), expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('resampling', ['blur', 'up2', 'down2', 'mixed_axes'])
def test_types_and_layouts(
    resampling: str, memory_format: torch.memory_format, dtype: torch.dtype, device: torch.device
) -> None:
    x = image(2, 5, 19, 37, dtype=dtype).to(device).to(memory_format=memory_format)
    f = FILTERS['general'].to(device)
    outputs = [upfirdn2d(x, f, backend=backend, **RESAMPLINGS[resampling]) for backend in BACKENDS]
    for y in outputs:
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(*outputs, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_half_types_are_summed_wide(device: torch.device) -> None:
    """Thousands of small terms beside a large one: a sum in the half type would lose them."""
    x = torch.full((1, 1, 64, 64), 1.0, dtype=torch.bfloat16, device=device)
    f = torch.full((64, 64), 2.0**-6, device=device)
    for backend in BACKENDS:
        assert float(upfirdn2d(x, f, backend=backend)) == 64.0


def test_strided_input(device: torch.device) -> None:
    base = image(3, 8, 10, 12).to(device)
    for x in (base[:, ::2], base[..., 1:-1], base.transpose(2, 3), base[:1].expand(4, -1, -1, -1)):
        y = upfirdn2d(x, FILTERS['binomial'].to(device), up=2, padding=1, backend='native')
        expected = upfirdn2d(x.contiguous(), FILTERS['binomial'].to(device), up=2, padding=1, backend='reference')
        torch.testing.assert_close(y, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('resampling', RESAMPLINGS)
def test_gradients_to_second_order(resampling: str, backend: str, device: torch.device) -> None:
    x = image(1, 2, 6, 5, dtype=torch.float64).to(device).requires_grad_()
    f = FILTERS['general'].double().to(device)
    options = RESAMPLINGS[resampling]

    def resample(x: torch.Tensor) -> torch.Tensor:
        return upfirdn2d(x, f, backend=backend, **options)

    assert torch.autograd.gradcheck(resample, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(resample, x, fast_mode=True)


def test_gradient_agrees_with_twin(device: torch.device) -> None:
    for options in RESAMPLINGS.values():
        gradients = []
        for backend in BACKENDS:
            x = image(2, 3, 9, 8).to(device).requires_grad_()
            y = upfirdn2d(x, FILTERS['general'].to(device), backend=backend, **options)
            gradients.append(torch.autograd.grad(y, x, image(*y.shape, seed=1).to(device))[0])
        torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_opcheck(device: torch.device) -> None:
    library.use_native(device, backend='native')
    x = image(2, 3, 8, 7).to(device).requires_grad_()
    f = FILTERS['binomial'].to(device)
    arguments = (f, 2, 2, 1, 1, 2, 1, 2, 1, False, 4.0)
    torch.library.opcheck(torch.ops.next3d.upfirdn2d.default, (x, *arguments))
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    torch.library.opcheck(torch.ops.next3d.upfirdn2d.default, (last, *arguments))


@pytest.mark.parametrize('backend', BACKENDS)
def test_helpers(backend: str, device: torch.device) -> None:
    """Sizes, brightness, and centring: a linear ramp stays the same ramp away from the border."""
    f = setup_filter(device=device)
    ramp = torch.linspace(0, 15, 16, device=device).expand(1, 1, 16, 16)
    up = upsample2d(ramp, f, backend=backend)
    down = downsample2d(ramp, f, backend=backend)
    assert up.shape == (1, 1, 32, 32)
    assert down.shape == (1, 1, 8, 8)
    inner = slice(3, -3)
    torch.testing.assert_close(up[0, 0, 16, inner], (torch.arange(32, device=device)[inner] - 0.5) / 2)
    torch.testing.assert_close(down[0, 0, 4, 1:-1], 2 * torch.arange(8.0, device=device)[1:-1] + 0.5)
    assert filter2d(ramp, f, padding=1, backend=backend).shape == (1, 1, 18, 18)
    box = setup_filter([1, 1], device=device)
    x = image(1, 2, 8, 8).to(device)
    torch.testing.assert_close(downsample2d(x, box, backend=backend), F.avg_pool2d(x, 2))
    torch.testing.assert_close(upsample2d(x, box, backend=backend), F.interpolate(x, scale_factor=2))


def test_setup_filter() -> None:
    f = setup_filter()
    assert f.shape == (4, 4)
    assert float(f.sum()) == 1
    assert torch.equal(f * 64, torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])))
    assert torch.equal(setup_filter(None), torch.ones(1, 1))
    assert torch.equal(
        setup_filter([1, 2], normalize=False, flip_filter=True, gain=2), torch.tensor([[8.0, 4], [4, 2]])
    )
    x = image(1, 1, 4, 4)
    assert torch.equal(upfirdn2d(x, None), x)


@pytest.mark.parametrize(
    ('x', 'f', 'options', 'message'),
    [
        (torch.zeros(3, 4, 4), torch.ones(2, 2), {}, r'x: expected floats \[N, C, H, W\]'),
        (torch.zeros(1, 1, 4, 4).int(), torch.ones(2, 2), {}, 'x: expected floats'),
        (torch.zeros(1, 1, 4, 4), torch.ones(2, 2, 2), {}, r'f: expected floats \[fh, fw\]'),
        (torch.zeros(1, 1, 4, 4), torch.ones(2, 2, requires_grad=True), {}, 'without gradient'),
        (torch.zeros(1, 1, 4, 4), torch.ones(5, 5), {}, r'is smaller than f \[5, 5\]'),
        (torch.zeros(1, 1, 4, 4), torch.ones(1, 1), {'padding': -2}, 'is smaller than f'),
        (torch.zeros(1, 1, 4, 4), torch.ones(2, 2), {'up': 0}, 'up: expected positive numbers'),
        (torch.zeros(1, 1, 4, 4), torch.ones(2, 2), {'down': (1, -1)}, 'down: expected positive numbers'),
    ],
)
def test_bad_input(x: torch.Tensor, f: torch.Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        upfirdn2d(x, f, **options)


def test_bad_taps() -> None:
    with pytest.raises(ValueError, match=r'taps: expected \[n\] or \[fh, fw\]'):
        setup_filter(torch.ones(1, 1, 1))
