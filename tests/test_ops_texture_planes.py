"""Texture through fragments: against a loop over pixels, the twin, finite differences, and the number of threads."""

from __future__ import annotations

import math

import cases_ops
import pytest
import torch

from torch_utils.ops import library
from torch_utils.ops.rasterize import Fragments
from torch_utils.ops.texture_planes import Mirror, sample_mask, texture_planes

BACKENDS = ['native', 'reference']
SLOTS = (0, 2, 2, 0)  # plane 1 stays empty
MIRRORS = (Mirror.NONE, Mirror.COLUMNS, Mirror.NONE, Mirror.ROWS)


def fragments_of(case: cases_ops.TextureCase, barycentrics: torch.Tensor | None = None) -> Fragments:
    weights = case.barycentrics if barycentrics is None else barycentrics
    return Fragments(case.face_ids, weights, weights[..., 0])


def planes_of(case: cases_ops.TextureCase, backend: str | None, *, background: bool, **changed: torch.Tensor):
    return texture_planes(
        fragments_of(case, changed.get('barycentrics')),
        case.face_uv,
        changed.get('texture', case.texture),
        slots=SLOTS,
        mirrors=MIRRORS,
        background=background,
        backend=backend,
    )


def read_bilinear(texture: torch.Tensor, u: float, v: float) -> torch.Tensor:
    """One point of a texture [C, T, U] in plain Python."""
    height, width = texture.shape[1:]
    x, y = ((u + 1) * width - 1) / 2, ((v + 1) * height - 1) / 2
    total = torch.zeros_like(texture[:, 0, 0])
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += texture[:, row, column] * ((1 - abs(x - column)) * (1 - abs(y - row)))
    return total


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('background', [False, True])
def test_brute_force(background: bool, backend: str) -> None:
    case = cases_ops.texture_case(samples=2, channels=3, size=5, dtype=torch.float64)
    planes = planes_of(case, backend, background=background)
    expected = torch.zeros_like(planes)
    height, width = case.face_ids.shape[1:]
    for view, (slot, mirror) in enumerate(zip(SLOTS, MIRRORS, strict=True)):
        for n, row, column in torch.cartesian_prod(*(torch.arange(k) for k in (2, height, width))).tolist():
            face = int(case.face_ids[2 * view + n, row, column])
            u, v = (case.barycentrics[2 * view + n, row, column] @ case.face_uv[face]).tolist() if face >= 0 else (0, 0)
            at_row = height - 1 - row if mirror == Mirror.ROWS else row
            at_column = width - 1 - column if mirror == Mirror.COLUMNS else column
            if face >= 0 or background:
                expected[n, slot, :, at_row, at_column] += read_bilinear(case.texture[n], u, v)
    torch.testing.assert_close(planes, expected)
    assert (planes[:, 1] == 0).all()
    assert (planes[:, 0] != 0).any()


@pytest.mark.parametrize('background', [False, True])
@pytest.mark.parametrize('channels', [1, 16, 19, 32])
def test_native_agrees_with_twin(channels: int, background: bool, device: torch.device) -> None:
    """Values and both gradients, from plain and channels-last textures."""
    case = cases_ops.texture_case(channels=channels)
    results = []
    for backend, layout in zip([*BACKENDS, 'native'], [torch.channels_last, torch.contiguous_format] * 2, strict=False):
        texture = case.texture.to(device).contiguous(memory_format=layout).requires_grad_()
        weights = case.barycentrics.to(device).requires_grad_()
        moved = cases_ops.TextureCase(
            face_ids=case.face_ids.to(device),
            barycentrics=weights,
            face_uv=case.face_uv.to(device),
            texture=texture,
        )
        planes = planes_of(moved, backend, background=background)
        grad = torch.randn(planes.shape, generator=torch.Generator().manual_seed(3)).to(device)
        results.append((planes, *torch.autograd.grad(planes, [texture, weights], grad)))
    for native, reference in zip(results[0], results[1], strict=True):
        torch.testing.assert_close(native, reference, atol=2e-5, rtol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[2], strict=True)) or device.type != 'cpu'


def test_planes_are_channels_last() -> None:
    planes = planes_of(cases_ops.texture_case(channels=8), 'native', background=True)
    assert planes.shape == (2, 3, 8, 12, 15)
    for plane in range(3):
        assert planes[:1, plane].is_contiguous(memory_format=torch.channels_last)
    assert planes.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('background', [False, True])
def test_gradcheck(background: bool, backend: str, device: torch.device) -> None:
    case = cases_ops.texture_case(samples=1, channels=2, size=3, dtype=torch.float64)
    case = cases_ops.TextureCase(**{name: value.to(device) for name, value in vars(case).items()})

    def read(weights: torch.Tensor, texture: torch.Tensor) -> torch.Tensor:
        return planes_of(case, backend, background=background, barycentrics=weights, texture=texture)

    inputs = (case.barycentrics.clone().requires_grad_(), case.texture.clone().requires_grad_())
    assert torch.autograd.gradcheck(read, inputs, eps=1e-7, atol=1e-5)


def test_no_second_derivative() -> None:
    """An error, not zeros."""
    case = cases_ops.texture_case(samples=1, channels=2, size=3)
    inputs = [case.barycentrics.clone().requires_grad_(), case.texture.clone().requires_grad_()]
    value = planes_of(case, 'native', background=True, barycentrics=inputs[0], texture=inputs[1])
    for gradient in torch.autograd.grad(value.square().sum(), inputs, create_graph=True):
        with pytest.raises(RuntimeError, match='texture_planes: differentiable once only'):
            torch.autograd.grad(gradient.square().sum(), inputs, retain_graph=True)


@pytest.mark.parametrize('wanted', ['barycentrics', 'texture'])
def test_one_gradient_alone(wanted: str) -> None:
    case = cases_ops.texture_case()
    leaf = getattr(case, wanted).clone().requires_grad_()
    both = {name: getattr(case, name).clone().requires_grad_() for name in ('barycentrics', 'texture')}
    planes_of(case, 'native', background=True, **both).square().sum().backward()
    planes_of(case, 'native', background=True, **{wanted: leaf}).square().sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, both[wanted].grad)


def test_threads_change_nothing() -> None:
    case = cases_ops.texture_case(samples=3, channels=32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            leaves = {name: getattr(case, name).clone().requires_grad_() for name in ('barycentrics', 'texture')}
            planes = planes_of(case, 'native', background=True, **leaves)
            planes.square().sum().backward()
            results.append((planes, *(leaf.grad for leaf in leaves.values())))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def test_mask(device: torch.device) -> None:
    case = cases_ops.texture_case()
    fragments = Fragments(case.face_ids.to(device), case.barycentrics.to(device), case.barycentrics[..., 0])
    mask = torch.rand(7, 9, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    native, reference = (sample_mask(fragments, case.face_uv.to(device), mask, backend=name) for name in BACKENDS)
    torch.testing.assert_close(native, reference, atol=1e-6, rtol=1e-6)
    assert (native[case.face_ids.to(device) < 0] == 0).all()
    assert not native.requires_grad
    face = int(case.face_ids[0].max())
    row, column = (case.face_ids[0] == face).nonzero()[0].tolist()
    u, v = (case.barycentrics[0, row, column] @ case.face_uv[face]).tolist()
    torch.testing.assert_close(
        native[0, row, column].cpu(), read_bilinear(mask.detach().cpu()[None], u, v)[0], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf'), 1e30])
def test_hostile_uv_reads_nothing(value: float) -> None:
    case = cases_ops.texture_case()
    case.face_uv[...] = value
    assert (planes_of(case, 'native', background=False) == 0).all()


def test_empty_batch() -> None:
    empty = Fragments(torch.zeros(0, 4, 5).long(), torch.zeros(0, 4, 5, 3), torch.zeros(0, 4, 5))
    for backend in BACKENDS:
        planes = texture_planes(
            empty,
            torch.zeros(2, 3, 2),
            torch.zeros(0, 6, 3, 3),
            slots=SLOTS,
            mirrors=MIRRORS,
            background=True,
            backend=backend,
        )
        assert planes.shape == (0, 3, 6, 4, 5)


def test_opcheck(device: torch.device) -> None:
    library.use_native(device, backend='native')
    case = cases_ops.texture_case()
    tensors = [value.to(device) for value in (case.face_ids, case.barycentrics, case.face_uv, case.texture)]
    options = (list(SLOTS), [int(mirror) for mirror in MIRRORS], True)
    grad = torch.randn_like(torch.ops.next3d.texture_planes(*tensors, *options))
    backward = torch.ops.next3d.texture_planes_backward.default
    for wanted in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(backward, (grad, *tensors, *options, *wanted))
    torch.library.opcheck(torch.ops.next3d.sample_mask.default, (*tensors[:3], tensors[3][0, 0]))
    tensors[1].requires_grad_()
    tensors[3].requires_grad_()
    torch.library.opcheck(torch.ops.next3d.texture_planes.default, (*tensors, *options))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'slots': (), 'mirrors': ()}, 'slots, mirrors: expected 1 to 8 views'),
        ({'slots': (0, 1, 2, 9)}, 'slots, mirrors: expected 1 to 8 views'),
        ({'mirrors': MIRRORS[:3]}, 'slots, mirrors: expected 1 to 8 views'),
        ({'texture': torch.zeros(3, 2, 4, 4)}, r'texture: expected \[8 / 4, C, T, T\], got \[3, 2, 4, 4\]'),
        ({'face_uv': torch.zeros(1, 20, 3, 2)}, r'face_uv: expected \[F, 3, 2\], got \[1, 20, 3, 2\]'),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    case = cases_ops.texture_case()
    arguments = {'face_uv': case.face_uv, 'texture': case.texture, 'slots': SLOTS, 'mirrors': MIRRORS, **changes}
    with pytest.raises(ValueError, match=message):
        texture_planes(fragments_of(case), background=True, **arguments)
    with pytest.raises(ValueError, match=r'mask: expected \[S, S\]'):
        sample_mask(fragments_of(case), case.face_uv, torch.zeros(1, 4, 4))
