"""Volume rendering: closed forms, brute force, determinism, batch independence, gradients."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from torch_utils.ops.planes import sample_planes
from training import volume
from training.config import GeneratorConfig
from training.volume import (
    Decoder,
    VolumeRenderer,
    composite,
    importance_depths,
    importance_shares,
    stratified_depths,
)

CONFIG = GeneratorConfig(depth_samples=8, importance_samples=8, plane_channels=4, decoder_hidden=8)


def test_composite_against_a_loop() -> None:
    torch.manual_seed(0)
    colors = torch.rand(2, 3, 6, 4, dtype=torch.float64)
    sigma = torch.randn(2, 3, 6, 1, dtype=torch.float64) * 4
    depths = torch.rand(2, 3, 6, 1, dtype=torch.float64).sort(dim=2)[0] + 1
    shuffle = torch.tensor([3, 0, 5, 1, 4, 2])
    out, depth, weights = composite(colors[:, :, shuffle], sigma[:, :, shuffle], depths[:, :, shuffle])
    for n in range(2):
        for m in range(3):
            through, color, total = 1.0, torch.zeros(4, dtype=torch.float64), 0.0
            for i in range(5):
                delta = (depths[n, m, i + 1] - depths[n, m, i]).item()
                density = math.log1p(math.exp((sigma[n, m, i] + sigma[n, m, i + 1]).item() / 2 - 1))
                alpha = 1 - math.exp(-delta * density)
                color += through * alpha * (colors[n, m, i] + colors[n, m, i + 1]) / 2
                total += through * alpha
                through *= 1 - alpha + 1e-10
            torch.testing.assert_close(out[n, m], color)
            assert math.isclose(weights[n, m].sum().item(), total, rel_tol=1e-9)
            assert depths[n, m].min() - 1e-9 <= depth[n, m].item() / total <= depths[n, m].max() + 1e-9


def test_homogeneous_medium_has_a_closed_form() -> None:
    depths = torch.linspace(1, 3, 2001, dtype=torch.float64).view(1, 1, -1, 1)
    sigma = torch.full_like(depths, 0.7)
    density = math.log1p(math.exp(0.7 - 1))
    _, _, weights = composite(torch.ones_like(depths), sigma, depths)
    assert math.isclose(weights.sum().item(), 1 - math.exp(-2 * density), rel_tol=1e-6)


def test_sample_planes_reads_the_documented_axes() -> None:
    """Each plane holds its own (column, row) coordinates; the sampler must return the point's."""
    size = 64
    centres = (2 * torch.arange(size) + 1) / size - 1
    row, column = torch.meshgrid(centres, centres, indexing='ij')
    ramp = torch.stack([column, row])  # [2, R, R]
    points = (torch.rand(1, 50, 3) - 0.5) * 0.9
    for slot, (first, second) in enumerate(((0, 1), (0, 2), (2, 1))):
        planes = torch.zeros(1, 3, 2, size, size)
        planes[0, slot] = ramp
        out = sample_planes(planes, points, box_size=1.0, aggregation='sum')
        torch.testing.assert_close(out, points[..., [first, second]] * 2, atol=1e-5, rtol=1e-5)
        mean = sample_planes(planes, points, box_size=1.0, aggregation='mean')
        torch.testing.assert_close(mean * 3, out)


def test_stratified_depths_are_midpoints_without_a_generator() -> None:
    depths = stratified_depths(1, 2, CONFIG, rng=None, like=torch.zeros(1))
    step = (CONFIG.ray_far - CONFIG.ray_near) / 7
    torch.testing.assert_close(depths[0, 0, :, 0], CONFIG.ray_near + step * (torch.arange(8) + 0.5))
    jittered = stratified_depths(1, 2, CONFIG, rng=torch.Generator().manual_seed(0), like=torch.zeros(1))
    assert (jittered - depths).abs().max() <= step / 2 + 1e-6
    assert not torch.equal(jittered, depths)


def test_importance_samples_follow_the_weights() -> None:
    depths = torch.linspace(1, 2, 33).view(1, 1, -1, 1)
    weights = torch.zeros(1, 1, 32, 1)
    weights[0, 0, 20] = 1.0
    drawn = importance_shares(1, 1, 1000, rng=torch.Generator().manual_seed(0), like=depths)
    fine = importance_depths(depths, weights, drawn).flatten()
    near = ((fine - depths.flatten()[20]).abs() < 0.1).float().mean()
    assert near > 0.7
    even = importance_depths(depths, weights, importance_shares(1, 1, 10, rng=None, like=depths)).flatten()
    assert (even[1:] > even[:-1]).all()


def make_scene(count: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Decoder]:
    generator = torch.Generator().manual_seed(5)
    planes = torch.randn(count, 3, 4, 16, 16, generator=generator)
    origins = torch.tensor([0.0, 0.0, 2.9]).expand(count, 9, 3)
    directions = torch.nn.functional.normalize(
        torch.randn(count, 9, 3, generator=generator) * 0.05 + torch.tensor([0.0, 0.0, -1.0]), dim=-1
    )
    torch.manual_seed(0)
    return planes, origins, directions, Decoder(4, 8)


@pytest.mark.parametrize('importance', [0, 8])
def test_samples_do_not_see_each_other(importance: int) -> None:
    renderer = VolumeRenderer(dataclasses.replace(CONFIG, importance_samples=importance))
    planes, origins, directions, decoder = make_scene()
    both = renderer(planes, origins, directions, decoder=decoder, rng=None)
    one = renderer(planes[1:], origins[1:], directions[1:], decoder=decoder, rng=None)
    for name in ('features', 'depth', 'weights'):
        torch.testing.assert_close(getattr(both, name)[1:], getattr(one, name))


def test_empty_space_has_the_far_depth() -> None:
    renderer = VolumeRenderer(CONFIG)
    planes, origins, directions, decoder = make_scene()
    with torch.no_grad():
        decoder.out.bias[0] = -1e4
    out = renderer(planes, origins, directions, decoder=decoder, rng=None)
    assert torch.isfinite(out.depth).all()
    assert (out.depth > CONFIG.ray_far - 0.2).all()
    torch.testing.assert_close(out.features, torch.full_like(out.features, -1.0))


def test_gradients_reach_planes_and_decoder() -> None:
    renderer = VolumeRenderer(CONFIG)
    planes, origins, directions, decoder = make_scene()
    planes.requires_grad_(True)
    renderer(planes, origins, directions, decoder=decoder, rng=None).features.square().sum().backward()
    assert planes.grad is not None
    assert planes.grad.abs().sum() > 0
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in decoder.parameters())


@pytest.mark.parametrize('rng_seed', [None, 3])
def test_parts_of_rays_change_no_bit(monkeypatch: pytest.MonkeyPatch, rng_seed: int | None) -> None:
    renderer = VolumeRenderer(CONFIG)
    planes, origins, directions, decoder = make_scene()
    results = []
    for at_once in (volume.RAYS_AT_ONCE, 4):  # 2 samples x 9 rays: parts of 2 rays, the last one of 1
        monkeypatch.setattr(volume, 'RAYS_AT_ONCE', at_once)
        rng = None if rng_seed is None else torch.Generator().manual_seed(rng_seed)
        with torch.no_grad():
            results.append(renderer(planes, origins, directions, decoder=decoder, rng=rng))
    for name in ('features', 'depth', 'weights'):
        assert torch.equal(getattr(results[0], name), getattr(results[1], name))


def test_rendering_without_gradients_equals_training(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = VolumeRenderer(CONFIG)
    planes, origins, directions, decoder = make_scene()
    with_gradient = renderer(planes, origins, directions, decoder=decoder, rng=None)
    assert with_gradient.features.requires_grad
    with torch.no_grad():
        without = renderer(planes, origins, directions, decoder=decoder, rng=None)
    for name in ('features', 'depth', 'weights'):
        torch.testing.assert_close(getattr(without, name), getattr(with_gradient, name), atol=1e-5, rtol=1e-5)
