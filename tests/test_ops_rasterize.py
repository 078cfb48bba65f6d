"""The rasterizer against a brute-force loop, its twin, closed forms, and the public release's recorded output."""

from __future__ import annotations

import dataclasses
import sys

import cases_ops
import pytest
import torch

from dnnlib import UserError
from torch_utils.ops import library
from torch_utils.ops.rasterize import AREA_EPSILON, Fragments, interpolate, rasterize

BACKENDS = ['native', 'reference']
MESHES = {case.name: case for case in cases_ops.mesh_cases()}


def run(case: cases_ops.MeshCase, backend: str | None) -> Fragments:
    return rasterize(case.vertices, case.faces, height=case.height, width=case.width, backend=backend)


def assert_same(a: Fragments, b: Fragments) -> None:
    assert torch.equal(a.face_ids, b.face_ids)
    assert torch.equal(a.barycentrics, b.barycentrics)
    assert torch.equal(a.depth, b.depth)


def brute_force(case: cases_ops.MeshCase) -> torch.Tensor:
    """Face ids pixel by pixel in float64 Python numbers, straight from the module's rule."""

    def edge(p: list[float], a: list[float], b: list[float]) -> float:
        return (p[0] - a[0]) * (b[1] - a[1]) - (p[1] - a[1]) * (b[0] - a[0])

    result = torch.full((case.vertices.shape[0], case.height, case.width), -1)
    for sample, vertices in enumerate(case.vertices.double().tolist()):
        for row in range(case.height):
            for column in range(case.width):
                p = [-1 + (2 * column + 1) / case.width, -1 + (2 * row + 1) / case.height]
                best = float('inf')
                for face, (i, j, k) in enumerate(case.faces.tolist()):
                    a, b, c = vertices[i], vertices[j], vertices[k]
                    area, edges = edge(c, a, b), [edge(p, b, c), edge(p, c, a), edge(p, a, b)]
                    if area > AREA_EPSILON and min(edges) > 0:
                        depth = sum(e / (area + AREA_EPSILON) * v[2] for e, v in zip(edges, (a, b, c), strict=True))
                        if depth < best:
                            best, result[sample, row, column] = depth, face
    return result


@pytest.mark.parametrize('backend', BACKENDS)
def test_brute_force(backend: str, device: torch.device) -> None:
    case = cases_ops.random_soup(11, samples=2, num_faces=25, height=13, width=17, spread=0.7)
    case = case.to(device, torch.float64)
    assert (brute_force(case) == run(case, backend).face_ids.cpu()).all()


@pytest.mark.parametrize('name', MESHES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_native_equals_twin_exactly(name: str, dtype: torch.dtype, device: torch.device) -> None:
    case = MESHES[name].to(device, dtype)
    native, reference = run(case, 'native'), run(case, 'reference')
    assert_same(native, reference)
    assert native.face_ids.dtype == torch.int64
    assert native.depth.isfinite().all()
    if name != 'soup3':  # a handful of slivers
        assert (native.face_ids >= 0).any()


def test_load_of_one_image(device: torch.device) -> None:
    case = cases_ops.head_like().to(device)
    native = run(case, 'native')
    assert_same(native, run(case, 'reference'))
    assert 0.2 < (native.face_ids >= 0).float().mean() < 0.3  # an ellipse of radii 0.5 and 0.6


def test_threads_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = MESHES['soup1']
    expected = run(case, 'native')
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert_same(expected, run(case, 'native'))
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr('torch_utils.ops.rasterize.CANDIDATES_PER_CHUNK', 100)
    assert_same(expected, run(case, 'reference'))


@pytest.mark.parametrize('backend', BACKENDS)
def test_hostile_faces_are_skipped(backend: str, device: torch.device) -> None:
    case = MESHES['hostile'].to(device)
    assert set(run(case, backend).face_ids.unique().tolist()) == {0, 10}


@pytest.mark.parametrize('backend', BACKENDS)
def test_pixel_centres_edges_and_closed_form(backend: str, device: torch.device) -> None:
    # A right triangle over a 4 x 4 image whose hypotenuse passes through pixel centres: those stay uncovered.
    vertices = torch.tensor([[[-1.0, -1.0, 2.0], [-1.0, 1.0, 2.0], [1.0, -1.0, 4.0]]], device=device)
    faces = torch.tensor([[0, 1, 2]], device=device)
    result = rasterize(vertices, faces, height=4, width=4, backend=backend)
    expected = torch.tensor([[0, 0, 0, -1], [0, 0, -1, -1], [0, -1, -1, -1], [-1, -1, -1, -1]])
    assert (result.face_ids[0].cpu() == expected).all()
    column = torch.tensor([-0.75, -0.25, 0.25])
    torch.testing.assert_close(result.depth[0, 0, :3].cpu(), 3 + column)
    assert (result.barycentrics[result.face_ids < 0] == 0).all()
    assert (result.depth[result.face_ids < 0] == 0).all()


@pytest.mark.parametrize('backend', BACKENDS)
def test_ties_go_to_the_smaller_index(backend: str, device: torch.device) -> None:
    case = MESHES['ties'].to(device)
    result = run(case, backend).face_ids
    sets = case.faces.sort(dim=1).values
    for face in result.unique().tolist():
        if face >= 0:
            assert face == int((sets == sets[face]).all(1).nonzero()[0])


@pytest.mark.parametrize('backend', BACKENDS)
def test_samples_are_independent(backend: str, device: torch.device) -> None:
    case = MESHES['soup1'].to(device)
    together = run(case, backend)
    for index in range(case.vertices.shape[0]):
        alone = rasterize(
            case.vertices[index : index + 1], case.faces, height=case.height, width=case.width, backend=backend
        )
        assert torch.equal(alone.face_ids[0], together.face_ids[index])
        assert torch.equal(alone.depth[0], together.depth[index])


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradcheck(backend: str, device: torch.device) -> None:
    case = cases_ops.random_soup(4, samples=2, num_faces=8, height=9, width=7, spread=0.8).to(device, torch.float64)
    vertices = case.vertices.requires_grad_()

    def shaded(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        result = rasterize(v, case.faces, height=case.height, width=case.width, backend=backend)
        return result.barycentrics, result.depth

    assert torch.autograd.gradcheck(shaded, vertices, eps=1e-7, atol=1e-4, fast_mode=True)


def test_no_second_derivative() -> None:
    """An error, not zeros."""
    case = cases_ops.random_soup(4, samples=2, num_faces=8, height=9, width=7, spread=0.8)
    vertices = case.vertices.clone().requires_grad_()
    result = rasterize(vertices, case.faces, height=9, width=7, backend='native')
    value = result.barycentrics.square().sum() + result.depth.square().sum()
    (gradient,) = torch.autograd.grad(value, vertices, create_graph=True)
    with pytest.raises(RuntimeError, match='rasterize: differentiable once only'):
        gradient.square().sum().backward()
    fragments = Fragments(result.face_ids, result.barycentrics.detach().requires_grad_(), result.depth)
    table = torch.randn(2, 8, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    painted = interpolate(fragments, table, backend='native').square().sum()
    (gradient,) = torch.autograd.grad(painted, table, create_graph=True)
    with pytest.raises(RuntimeError, match='interpolate: differentiable once only'):
        gradient.square().sum().backward()


@pytest.mark.parametrize('name', MESHES)
def test_gradients_agree(name: str, device: torch.device) -> None:
    case = MESHES[name].to(device)
    gradients = []
    for backend in BACKENDS:
        rng = torch.Generator().manual_seed(1)
        vertices = case.vertices.clone().requires_grad_()
        result = rasterize(vertices, case.faces, height=case.height, width=case.width, backend=backend)
        noise = [torch.randn(x.shape, generator=rng).to(device) for x in (result.barycentrics, result.depth)]
        total = (result.barycentrics * noise[0]).sum() + (result.depth * noise[1]).sum()
        gradients.append(torch.autograd.grad(total, vertices)[0])
    scale = gradients[1].abs().amax().clamp(min=1e-6)
    torch.testing.assert_close(gradients[0] / scale, gradients[1] / scale, rtol=1e-4, atol=1e-6)
    assert gradients[0].isfinite().all()


def test_depth_alone_has_a_gradient(device: torch.device) -> None:
    vertices = MESHES['sphere'].to(device).vertices.requires_grad_()
    result = rasterize(vertices, MESHES['sphere'].faces.to(device), height=16, width=16)
    result.depth.sum().backward()
    assert vertices.grad is not None
    covered = (result.face_ids >= 0).sum()  # the weights of a pixel's three depths sum to one
    torch.testing.assert_close(vertices.grad[..., 2].sum(), covered.float(), rtol=1e-4, atol=1e-3)
    assert not result.face_ids.requires_grad


def test_opcheck(device: torch.device) -> None:
    library.use_native(device, backend='native')
    case = MESHES['soup1'].to(device)
    arguments = (case.vertices.requires_grad_(), case.faces, case.height, case.width)
    torch.library.opcheck(torch.ops.next3d.rasterize.default, arguments)
    result = run(case, 'native')
    cotangents = (torch.randn_like(result.barycentrics), torch.randn_like(result.depth))
    backward = (*cotangents, result.face_ids, case.vertices.detach(), case.faces)
    torch.library.opcheck(torch.ops.next3d.rasterize_backward.default, backward)
    weights = result.barycentrics.detach().requires_grad_()
    table = torch.randn(1, len(case.faces), 3, 2, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.next3d.interpolate.default, (result.face_ids, weights, table))


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('samples', [1, 2])
def test_interpolate(samples: int, backend: str, device: torch.device) -> None:
    case = cases_ops.random_soup(6, samples=2, num_faces=20, height=8, width=9, spread=0.7).to(device, torch.float64)
    result = run(case, 'reference')
    rng = torch.Generator().manual_seed(2)
    attributes = torch.randn(samples, 20, 3, 5, generator=rng, dtype=torch.float64).to(device)
    value = interpolate(result, attributes, backend=backend)
    for n, row, column in torch.cartesian_prod(torch.arange(2), torch.arange(8), torch.arange(9)).tolist():
        face = int(result.face_ids[n, row, column])
        corners = attributes[n % samples, face] if face >= 0 else torch.zeros_like(attributes[0, 0])
        torch.testing.assert_close(value[n, row, column], result.barycentrics[n, row, column] @ corners)

    def shaded(weights: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return interpolate(Fragments(result.face_ids, weights, result.depth), table, backend=backend)

    inputs = (result.barycentrics.clone().requires_grad_(), attributes.requires_grad_())
    assert torch.autograd.gradcheck(shaded, inputs, fast_mode=True)


@pytest.mark.parametrize('samples', [1, 3])
def test_interpolate_agrees_with_twin(samples: int, device: torch.device) -> None:
    case = MESHES['soup1'].to(device)
    result = run(case, None)
    rng = torch.Generator().manual_seed(2)
    values = []
    for backend in BACKENDS:
        rng.manual_seed(2)
        table = torch.randn(samples, len(case.faces), 3, 4, generator=rng).to(device).requires_grad_()
        weights = result.barycentrics.clone().requires_grad_()
        value = interpolate(Fragments(result.face_ids, weights, result.depth), table, backend=backend)
        cotangent = torch.randn(value.shape, generator=rng).to(device)
        values.append((value, *torch.autograd.grad(value, [weights, table], cotangent)))
        (by_weights,) = torch.autograd.grad(
            interpolate(Fragments(result.face_ids, weights, result.depth), table.detach(), backend=backend),
            weights,
            cotangent,
        )
        assert torch.equal(by_weights, values[-1][1])
    assert torch.equal(values[0][0], values[1][0])
    for native, reference in zip(values[0][1:], values[1][1:], strict=True):
        torch.testing.assert_close(native, reference, atol=1e-5, rtol=1e-5)


def test_interpolated_position_is_the_pixel_centre(device: torch.device) -> None:
    case = cases_ops.head_like(views=2).to(device)
    result = run(case, None)
    position = interpolate(result, case.vertices[:, case.faces])
    sharp = result.barycentrics.sum(-1) > 0.9999  # larger faces, where the epsilon is negligible
    centre = (2 * torch.arange(256, device=device) + 1) / 256 - 1
    expected = torch.stack(torch.meshgrid(centre, centre, indexing='xy'), dim=-1).expand(2, -1, -1, -1)
    assert sharp.sum() > 5000
    torch.testing.assert_close(position[..., :2][sharp], expected[sharp], atol=2e-4, rtol=0)
    assert (position[result.face_ids < 0] == 0).all()


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize(('samples', 'num_faces'), [(0, 5), (2, 0)])
def test_nothing_to_draw(samples: int, num_faces: int, backend: str) -> None:
    faces = torch.zeros(num_faces, 3, dtype=torch.int32)
    vertices = torch.zeros(samples, 4, 3, requires_grad=True)
    result = rasterize(vertices, faces, height=3, width=5, backend=backend)
    assert result.face_ids.shape == result.depth.shape == (samples, 3, 5)
    assert result.barycentrics.shape == (samples, 3, 5, 3)
    assert (result.face_ids == -1).all()
    attributes = torch.zeros(1, num_faces, 3, 2)
    assert interpolate(result, attributes, backend=backend).shape == (samples, 3, 5, 2)


@pytest.mark.parametrize(
    ('vertices', 'faces', 'options', 'message'),
    [
        (torch.zeros(4, 3), torch.zeros(1, 3).long(), {}, r'vertices: expected \[N, V, 3\], got \[4, 3\]'),
        (torch.zeros(1, 4, 3).half(), torch.zeros(1, 3).long(), {}, 'vertices: expected float32 or float64'),
        (torch.zeros(1, 4, 3), torch.zeros(1, 3), {}, 'faces: expected integers'),
        (torch.zeros(1, 4, 3), torch.tensor([[0, 1, 4]]), {}, r'faces: expected indices in \[0, 4\), got 0 to 4'),
        (torch.zeros(1, 4, 3), torch.tensor([[0, -1, 2]]), {}, 'got -1 to 2'),
        (torch.zeros(1, 4, 3), torch.zeros(1, 3).long(), {'height': 0}, 'height, width: expected at least 1'),
        (torch.zeros(1, 4, 3), torch.zeros(1, 3).long(), {'backend': 'nvdiffrast'}, 'backend: expected one of'),
    ],
)
def test_bad_input(vertices: torch.Tensor, faces: torch.Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rasterize(vertices, faces, **{'height': 4, 'width': 4, **options})


def test_bad_attributes() -> None:
    result = run(MESHES['ties'], None)
    with pytest.raises(ValueError, match=r'attributes: expected \[2 or 1, F, 3, C\]'):
        interpolate(result, torch.zeros(3, 4, 3, 2))


@pytest.mark.parametrize('name', ['sphere', 'ties', 'head_like', 'soup1', 'soup2'])
def test_pytorch3d_agrees(name: str, device: torch.device) -> None:
    pytest.importorskip('pytorch3d')
    case = cases_ops.head_like(views=2) if name == 'head_like' else MESHES[name]
    case = dataclasses.replace(case, vertices=case.vertices + torch.tensor([0.0, 0.0, 100.0])).to(device)
    ours, theirs = run(case, None), run(case, 'pytorch3d')
    same = ours.face_ids == theirs.face_ids
    # Pixel centres are the same numbers only in square images of a power of two.
    assert same.all() if case.height == case.width else same.float().mean() > 0.998
    torch.testing.assert_close(ours.barycentrics[same], theirs.barycentrics[same], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.depth[same], theirs.depth[same], atol=1e-4, rtol=1e-4)


def test_pytorch3d_gradient(device: torch.device) -> None:
    pytest.importorskip('pytorch3d')
    case = MESHES['sphere'].to(device)
    gradients = []
    for backend in (None, 'pytorch3d'):
        vertices = case.vertices[:1].clone().requires_grad_()
        result = rasterize(vertices, case.faces, height=32, width=32, backend=backend)
        weights = torch.randn(result.barycentrics.shape, generator=torch.Generator().manual_seed(0)).to(device)
        gradients.append(torch.autograd.grad((result.barycentrics * weights).sum() + result.depth.sum(), vertices)[0])
    torch.testing.assert_close(*gradients, atol=2e-3, rtol=1e-3)


def test_pytorch3d_refuses_what_it_would_drop(device: torch.device) -> None:
    pytest.importorskip('pytorch3d')
    case = MESHES['sphere'].to(device)
    with pytest.raises(ValueError, match='pytorch3d rasterizer needs positive depths'):
        rasterize(case.vertices - 6, case.faces, height=8, width=8, backend='pytorch3d')


def test_pytorch3d_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'pytorch3d', None)
    case = MESHES['sphere']
    with pytest.raises(UserError, match='rasterizer pytorch3d: PyTorch3D is not installed'):
        run(case, 'pytorch3d')


@pytest.mark.parametrize('backend', BACKENDS)
def test_parity_with_release(backend: str, parity_fixture: dict) -> None:
    """Every face id of 4 views x 2 meshes; barycentrics and depth bit for bit where recorded."""
    recorded = parity_fixture['stages']['raster']
    faces = parity_fixture['G_state']['faces'][0][:, [0, 2, 1]]  # the release reverses the winding after its flips
    for view, vertices in enumerate(recorded['verts']):
        result = rasterize(vertices, faces, height=256, width=256, backend=backend)
        assert torch.equal(result.face_ids, recorded['pix_to_face'][view].long())
        covered = result.face_ids >= 0
        for value, coded in (
            (result.barycentrics.permute(0, 3, 1, 2), recorded['bary'][view]),
            (result.depth.unsqueeze(1), recorded['zbuf'][view]),
        ):
            value = torch.where(covered.unsqueeze(1), value, -1)  # the release's background
            row, column = coded['offset']
            step = coded['stride']
            assert torch.equal(value[:, :, row::step, column::step], coded['sub'])
