"""Planes at points, alone and decoded: brute force, the twin, numerical derivatives, threads, layouts, mistakes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import cases_volume
import pytest
import torch

from torch_utils.ops import planes as ops
from torch_utils.ops.planes import query_field, sample_planes

BACKENDS = ['native', 'reference']
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 3e-6, torch.float16: 3e-6}
CASES = {case.name: case for case in cases_volume.plane_cases()}
CPU = torch.device('cpu')


def loop(planes: torch.Tensor, points: torch.Tensor, box_size: float) -> torch.Tensor:
    """The sum over planes by the definition, in Python: planes [N, 3, C, R, R], points [N, M, 3] -> [N, M, C]."""
    count, _, channels, size, _ = planes.shape
    out = torch.zeros(count, points.shape[1], channels, dtype=torch.float64)
    for n, m, plane in itertools.product(range(count), range(points.shape[1]), range(3)):
        place = [(points[n, m, axis].item() * 2 / box_size + 1) * size / 2 - 0.5 for axis in ops.PLANE_AXES[plane]]
        if not all(math.isfinite(p) and -1 < p < size for p in place):
            continue
        left, top = (math.floor(p) for p in place)
        for row, column in itertools.product((top, top + 1), (left, left + 1)):
            if 0 <= row < size and 0 <= column < size:
                weight = (1 - abs(place[0] - column)) * (1 - abs(place[1] - row))
                out[n, m] += weight * planes[n, plane, :, row, column].double()
    return out


@pytest.mark.parametrize('name', CASES)
def test_against_a_loop(name: str, device: torch.device) -> None:
    case = CASES[name]
    moved = case.to(device, torch.float64)
    expected = loop(case.planes, case.points, case.box_size)
    for aggregation, factor in (('sum', 1), ('mean', 3)):
        options: dict[str, Any] = {'box_size': case.box_size, 'aggregation': aggregation}
        value = sample_planes(moved.planes, moved.points, backend='native', **options)
        torch.testing.assert_close(value.cpu() * factor, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('name', [name for name in CASES if name not in ('odd', 'empty')])
def test_types(name: str, dtype: torch.dtype, device: torch.device) -> None:
    case = CASES[name].to(device, dtype)
    options: dict[str, Any] = {'box_size': case.box_size, 'aggregation': 'mean'}
    native, twin = (sample_planes(case.planes, case.points, backend=b, **options) for b in BACKENDS)
    assert native.dtype == twin.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(native, twin, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize('name', [name for name in CASES if name not in ('odd', 'empty')])
def test_gradients_agree_with_the_twin(name: str, dtype: torch.dtype, device: torch.device) -> None:
    case = CASES[name].to(device, dtype)
    results = []
    for backend in BACKENDS:
        planes, points = case.planes.detach().requires_grad_(), case.points.clone().requires_grad_()
        value = sample_planes(planes, points, box_size=case.box_size, aggregation='mean', backend=backend)
        cotangent = cases_volume.noise(*value.shape, seed=20).to(value)
        results.append(torch.autograd.grad(value, [planes, points], cotangent))
    tolerance = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 1e-2}[dtype]
    for native, twin in zip(*results, strict=True):
        assert native.dtype == twin.dtype
        torch.testing.assert_close(native, twin, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize('backend', BACKENDS)
def test_numerical_derivatives(backend: str, device: torch.device) -> None:
    planes = cases_volume.noise(2, 3, 9, 4, 4, seed=1).double().to(device).requires_grad_()
    points = (cases_volume.noise(2, 12, 3, seed=2).double() * 0.4).to(device).requires_grad_()

    def apply(planes: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        return sample_planes(planes, points, box_size=1.1, aggregation='mean', backend=backend)

    assert torch.autograd.gradcheck(apply, (planes, points))


def test_no_second_derivative() -> None:
    planes = cases_volume.noise(1, 3, 4, 4, 4, seed=1).requires_grad_()
    points = (cases_volume.noise(1, 5, 3, seed=2) * 0.2).requires_grad_()
    value = sample_planes(planes, points, box_size=1.0, aggregation='sum', backend='native')
    (gradient,) = torch.autograd.grad(value.square().sum(), points, create_graph=True)
    with pytest.raises(RuntimeError, match='sample_planes: differentiable once only'):
        gradient.sum().backward()


def test_gradient_only_where_asked(device: torch.device) -> None:
    case = CASES['plain'].to(device, torch.float32)
    for learns in ((True, False), (False, True)):
        planes, points = case.planes.clone().requires_grad_(learns[0]), case.points.clone().requires_grad_(learns[1])
        sample_planes(planes, points, box_size=1.0, aggregation='sum', backend='native').sum().backward()
        assert (planes.grad is not None, points.grad is not None) == learns


def test_threads_change_no_bit() -> None:
    planes = cases_volume.noise(2, 3, 40, 16, 16, seed=1).requires_grad_()
    points = (cases_volume.noise(2, 5000, 3, seed=2) * 0.3).requires_grad_()
    weights = cases_volume.decoder_weights(40, 24, 7)
    results = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            value = sample_planes(planes, points, box_size=1.0, aggregation='mean', backend='native')
            gradients = torch.autograd.grad(value, [planes, points], torch.sin(value.detach()))
            with torch.no_grad():
                colors, sigma = query_field(
                    planes,
                    points,
                    (weights[0], weights[1]),
                    (weights[2], weights[3]),
                    box_size=1.0,
                    aggregation='sum',
                    backend='native',
                )
            assert colors is not None
            results.append((value, *gradients, colors, sigma))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_adjacent_channels_are_not_copied() -> None:
    for name, copied in (('channels_last', False), ('stacked', False), ('plain', True)):
        planes = CASES[name].planes
        last = ops.channels_last_planes(planes)
        assert (last.data_ptr() != planes.data_ptr()) == copied
        assert last.stride(2) == 1
        assert torch.equal(last, planes)


# The decoded field.


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('aggregation', ops.AGGREGATIONS)
@pytest.mark.parametrize(('name', 'hidden', 'colors'), [('stacked', 64, 32), ('plain', 17, 3), ('crop', 100, 90)])
def test_field_against_layers(
    name: str, hidden: int, colors: int, aggregation: str, dtype: torch.dtype, device: torch.device
) -> None:
    case = CASES[name].to(device, dtype)
    weights = [w.to(device) for w in cases_volume.decoder_weights(case.planes.shape[2], hidden, colors)]
    options: dict[str, Any] = {'box_size': case.box_size, 'aggregation': aggregation}
    for of_colors in (True, False):
        with torch.no_grad():
            (native, sigma), (twin, expected) = (
                query_field(
                    case.planes,
                    case.points,
                    (weights[0], weights[1]),
                    (weights[2], weights[3]),
                    of_colors=of_colors,
                    backend=backend,
                    **options,
                )
                for backend in BACKENDS
            )
        torch.testing.assert_close(sigma, expected, atol=5e-6, rtol=5e-6)
        if of_colors:
            torch.testing.assert_close(native, twin, atol=3e-6, rtol=3e-6)
        else:
            assert native is None
            assert twin is None


def test_field_activations_keep_their_digits() -> None:
    """Softplus and the widened sigmoid over their whole range, to 1e-6 of their value, through one-wide networks."""
    x = torch.linspace(-80, 80, 4001)
    planes = torch.ones(1, 3, 1, 1, 1)
    for shift in x.tolist():
        hidden = (torch.zeros(1, 1), torch.tensor([shift]))
        out = (torch.tensor([[1.0], [0.0]]), torch.tensor([0.0, shift]))
        with torch.no_grad():
            colors, sigma = query_field(
                planes, torch.zeros(1, 1, 3), hidden, out, box_size=1.0, aggregation='sum', backend='native'
            )
        exact = float(torch.tensor(shift))
        softplus = max(exact, 0) + math.log1p(math.exp(-abs(exact)))
        sigmoid = 1 / (1 + math.exp(-exact))
        assert sigma.item() == pytest.approx(softplus, rel=1e-6)
        assert colors is not None
        assert colors.item() == pytest.approx(sigmoid * 1.002 - 0.001, rel=1e-6, abs=1e-7)


def test_field_learns_and_takes_float64(device: torch.device) -> None:
    """Where the fused kernel does not apply, the call is still right."""
    case = CASES['plain'].to(device, torch.float64)
    weights = [w.double().to(device).requires_grad_() for w in cases_volume.decoder_weights(5, 6, 3)]

    def apply(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        colors, sigma = query_field(
            inputs[0],
            case.points[:, :6],
            (inputs[1], inputs[2]),
            (inputs[3], inputs[4]),
            box_size=1.0,
            aggregation='mean',
        )
        assert colors is not None
        return colors, sigma

    assert torch.autograd.gradcheck(apply, (case.planes.requires_grad_(), *weights), fast_mode=True)


def test_operators_are_sound() -> None:
    case = CASES['stacked']
    planes, points = case.planes.clone().requires_grad_(), case.points.clone().requires_grad_()
    weights = cases_volume.decoder_weights(32, 16, 4)
    native = torch.ops.next3d
    torch.library.opcheck(native.sample_planes.default, (planes, points, 2.0, 1 / 3))
    torch.library.opcheck(native.sample_planes.default, (planes.detach().bfloat16(), points.detach(), 2.0, 1.0))
    cotangent = cases_volume.noise(2, 50, 32, seed=1)
    for wanted in ((True, True), (True, False), (False, True)):
        arguments = (cotangent, case.planes, case.points, 2.0, 1.0, *wanted)
        torch.library.opcheck(native.sample_planes_backward.default, arguments)
    for of_colors in (True, False):
        arguments = (case.planes, case.points, 2.0, 1.0, *weights, of_colors)
        torch.library.opcheck(native.query_field.default, arguments)


@pytest.mark.parametrize('backend', BACKENDS)
def test_mistakes(backend: str) -> None:
    planes, points = torch.zeros(2, 3, 4, 5, 5), torch.zeros(2, 6, 3)
    hidden, out = (torch.zeros(7, 4), torch.zeros(7)), (torch.zeros(3, 7), torch.zeros(3))
    good: dict[str, Any] = {'box_size': 1.0, 'aggregation': 'mean', 'backend': backend}
    for wrong in (planes[:, :2], planes[..., :4], planes[0]):
        with pytest.raises(ValueError, match=r'planes: expected \[N, 3, C, R, R\]'):
            sample_planes(wrong, points, **good)
    for wrong in (points[:1], points[..., :2], points[0]):
        with pytest.raises(ValueError, match=r'points: expected \[2, M, 3\]'):
            sample_planes(planes, wrong, **good)
    with pytest.raises(ValueError, match="aggregation: expected one of mean, sum, got 'max'"):
        sample_planes(planes, points, box_size=1.0, aggregation='max', backend=backend)
    with pytest.raises(ValueError, match=r'hidden, out: expected \[H, 4\]'):
        query_field(planes, points, (torch.zeros(7, 5), hidden[1]), out, **good)
