"""The five calls: shapes, purity, caches, batch independence, every parameter trained, every preset's choices."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cases_geometry import ellipsoid_template, posed

from torch_utils.precision import choose_precision
from training.cameras import orbit_camera
from training.config import preset
from training.generator import STAGES, Generator

TEMPLATE = ellipsoid_template()
DEBUG = preset('debug').generator
VARIANTS: dict[str, dict] = {
    'paper': {},
    'front-mouth': {'mouth_planes': 'front'},
    'mouth-from-texture': {'mouth_source': 'texture'},
    'mouth-from-static': {'mouth_source': 'static'},
    'release': {
        'plane_layout': 'release', 'side_alpha': 'one_sided', 'alpha_fill': 'release', 'template_transform': 'constant',
        'mouth_planes': 'front', 'mouth_channels': 0, 'mouth_box': 'rounded', 'blending': 'release',
        'plane_aggregation': 'mean',
    },
    'unconditional': {'label_scale': 0.0},
}  # fmt: skip


def make(**changes) -> Generator:
    torch.manual_seed(0)
    generator = Generator(dataclasses.replace(DEBUG, **changes), TEMPLATE).eval()
    with torch.no_grad():  # the noise of a fresh network is multiplied by zero
        for name, parameter in generator.named_parameters():
            if name.endswith('noise_strength'):
                parameter.fill_(0.1)
    return generator


def inputs(count: int = 2):
    torch.manual_seed(1)
    z = torch.randn(count, DEBUG.z_dim)
    label = orbit_camera(torch.randn(count) * 0.2, torch.randn(count) * 0.1)
    return z, label, posed(TEMPLATE, count)


@pytest.mark.parametrize('name', VARIANTS)
def test_shapes_and_determinism(name: str) -> None:
    generator = make(**VARIANTS[name])
    z, label, head = inputs()
    with torch.no_grad():
        first, second = generator(z, label, head), generator(z, label, head)
    assert first.image.shape == (2, 3, 16, 16)
    assert first.image_raw.shape == (2, 3, 8, 8)
    assert first.depth.shape == first.weights.shape == (2, 1, 8, 8)
    assert torch.isfinite(first.image).all()
    assert torch.equal(first.image, second.image)


@pytest.mark.parametrize('name', VARIANTS)
def test_samples_do_not_see_each_other(name: str) -> None:
    generator = make(**VARIANTS[name])
    z, label, head = inputs(3)
    with torch.no_grad():
        together = generator(z, label, head)
        alone = generator(z[1:2], label[1:2], head[1:2])
    torch.testing.assert_close(together.image[1:2], alone.image, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(together.depth[1:2], alone.depth, atol=2e-5, rtol=1e-4)


def test_calls_write_no_state() -> None:
    generator = make()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    z, label, head = inputs()
    generator.train()
    generator(z, label, head, rng=torch.Generator().manual_seed(0))
    for name, value in generator.state_dict().items():
        assert torch.equal(before[name], value), name


def test_cached_calls_equal_the_composition() -> None:
    generator = make()
    z, label, head = inputs()
    with torch.no_grad():
        whole = generator(z, label, head)
        identity = generator.identity(generator.map(z, label))
        planes = generator.deform(identity, head)
        torch.testing.assert_close(generator.render(planes, label).image, whole.image)
        other = generator.render(planes, label.flip(0)).image
        torch.testing.assert_close(generator(z, label, head, camera=label.flip(0)).image, other)


@pytest.mark.parametrize('name', [name for name in VARIANTS if name != 'unconditional'])
def test_every_parameter_gets_a_gradient(name: str) -> None:
    generator = make(**VARIANTS[name])
    z, label, head = inputs()
    out = generator(z, label, head, rng=torch.Generator().manual_seed(0))
    torch.manual_seed(2)
    (out.image * torch.randn_like(out.image)).sum().add(
        (out.image_raw * torch.randn_like(out.image_raw)).sum()
    ).backward()
    dead = [
        name for name, parameter in generator.named_parameters()
        if parameter.grad is None or not torch.isfinite(parameter.grad).all() or parameter.grad.abs().max() == 0
    ]  # fmt: skip
    assert not dead, dead


def test_random_numbers_come_from_the_generator_alone() -> None:
    generator = make()
    z, label, head = inputs()
    with torch.no_grad():
        a = generator(z, label, head, rng=torch.Generator().manual_seed(4)).image
        torch.manual_seed(123)
        b = generator(z, label, head, rng=torch.Generator().manual_seed(4)).image
        c = generator(z, label, head, rng=torch.Generator().manual_seed(5)).image
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_truncation_halves() -> None:
    generator = make()
    z, label, _ = inputs()
    with torch.no_grad():
        generator.mapping.w_avg.copy_(torch.randn(DEBUG.w_dim))
        full = generator.map(z, label)
        none = generator.map(z, label, truncation_psi=0.0)
        first = generator.map(z, label, truncation_psi=0.0, truncation_cutoff=generator.num_half)
    torch.testing.assert_close(none, generator.mapping.w_avg.expand_as(none))
    torch.testing.assert_close(first[:, : generator.num_half], none[:, : generator.num_half])
    torch.testing.assert_close(first[:, generator.num_half :], full[:, generator.num_half :])


def test_unconditional_ignores_the_label() -> None:
    generator = make(label_scale=0.0)
    z, label, _ = inputs()
    with torch.no_grad():
        torch.testing.assert_close(generator.map(z, label), generator.map(z, label.flip(0)))
        torch.testing.assert_close(generator.map(z, label), generator.map(z, None))


def test_expression_changes_the_image_but_not_the_identity() -> None:
    generator = make()
    z, label, head = inputs()
    with torch.no_grad():
        identity = generator.identity(generator.map(z, label))
        one = generator.render(generator.deform(identity, head), label).image
        two = generator.render(generator.deform(identity, posed(TEMPLATE, 2, seed=9)), label).image
    assert (one - two).abs().max() > 1e-4


def test_density_equals_the_renderer_field() -> None:
    generator = make()
    z, label, head = inputs()
    points = (torch.rand(2, 11, 3) - 0.5) * 0.8
    with torch.no_grad():
        planes = generator.deform(generator.identity(generator.map(z, label)), head)
        sigma = generator.density(planes, points)
    assert sigma.shape == (2, 11, 1)
    with torch.no_grad():
        torch.testing.assert_close(generator.density(planes[1:], points[1:, :4]), sigma[1:, :4])


@pytest.mark.parametrize('size', [4, 16])
def test_another_render_resolution(size: int) -> None:
    generator = make()
    z, label, head = inputs(1)
    with torch.no_grad():
        planes = generator.deform(generator.identity(generator.map(z, label)), head)
        out = generator.render(planes, label, resolution=size)
    assert out.image_raw.shape[-1] == size
    assert out.image.shape[-1] == 16


def test_wrong_inputs_are_named() -> None:
    generator = make()
    z, label, head = inputs()
    with pytest.raises(ValueError, match='z: expected'):
        generator.map(z[:, :3], label)
    with pytest.raises(ValueError, match='ws: expected'):
        generator.identity(torch.zeros(2, 3, DEBUG.w_dim))
    identity = generator.identity(generator.map(z, label))
    with pytest.raises(ValueError, match='head: expected 2 samples'):
        generator.deform(identity, head[:1])


def test_full_size_builds_with_the_expected_parameters() -> None:
    """ffhq512-release has the release's networks less the parameters that it never trains (29.8 M of 172.8 M)."""
    generator = Generator(preset('ffhq512-release').generator, TEMPLATE)
    count = sum(parameter.numel() for parameter in generator.parameters())
    assert abs(count / 1e6 - (172.8 - 29.8)) < 0.5, count


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('name', ['paper', 'release'])
def test_recomputed_stages_give_the_same_gradients(name: str, precision: str) -> None:
    """Also where stages draw noise: the same numbers again, and none taken from the caller's stream."""
    generator = make(**VARIANTS[name])
    z, label, head = inputs()
    results = []
    for generator.checkpoint in (frozenset(), frozenset(STAGES), frozenset({'static', 'volume'})):
        generator.zero_grad()
        rng = torch.Generator().manual_seed(5)
        with choose_precision(precision, torch.device('cpu')).context():
            out = generator(z, label, head, rng=rng)
        out.image.square().mean().backward()
        gradients = [parameter.grad.clone() for parameter in generator.parameters() if parameter.grad is not None]
        results.append((out.image.detach(), torch.rand(3, generator=rng), *gradients))
    assert len(results[0]) > 50
    for kept, *others in zip(*results, strict=True):
        assert all(torch.equal(kept, recomputed) for recomputed in others)


def test_recomputing_keeps_fewer_tensors() -> None:
    generator = make()
    z, label, head = inputs()
    kept = []
    for generator.checkpoint in (frozenset(), frozenset({'texture'}), frozenset(STAGES)):
        total = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            generator(z, label, head)
        kept.append(total)
    assert kept[2] < kept[1] < kept[0]


def test_own_precision_overrides_the_callers() -> None:
    generator = make()
    z, label, head = inputs()
    with torch.no_grad():
        plain = generator(z, label, head).image
        generator.precision = choose_precision('bf16', torch.device('cpu'))
        assert generator.precision_name == 'bf16'
        half = generator(z, label, head).image
    assert half.dtype == torch.float32
    assert 0 < (plain - half).abs().max() < 0.2 * plain.abs().max()
