"""Augmentation and the generator's moving average against their formulas."""

from __future__ import annotations

import colorsys
import math

import pytest
import torch
from torch import nn

from torch_utils.rng import stream
from training.augment import Augment, adapted_probability, color_matrix, keep_mask
from training.ema import ema_beta, update_ema


def _color(**changes: float) -> torch.Tensor:
    values = {'brightness': 0.0, 'contrast': 1.0, 'hue': 0.0, 'saturation': 1.0, **changes}
    return color_matrix(**{name: torch.tensor([value]) for name, value in values.items()})[0]


def test_neutral_color_is_the_identity() -> None:
    assert torch.allclose(_color(), torch.eye(3, 4), atol=1e-6)


def test_hue_turns_about_grey() -> None:
    third = _color(hue=2 * math.pi / 3)[:, :3]
    assert torch.allclose(third, torch.eye(3).roll(1, 0), atol=1e-6)  # red -> green -> blue
    grey = torch.ones(3)
    assert torch.allclose(_color(hue=0.7)[:, :3] @ grey, grey, atol=1e-6)


def test_saturation_zero_is_the_mean_color() -> None:
    pixel = torch.tensor([0.5, -0.2, 0.3])
    assert torch.allclose(_color(saturation=0.0)[:, :3] @ pixel, pixel.mean().expand(3), atol=1e-6)
    richer = ((_color(saturation=1.5)[:, :3] @ pixel) + 1) / 2
    assert colorsys.rgb_to_hsv(*richer.tolist())[1] > colorsys.rgb_to_hsv(*((pixel + 1) / 2).tolist())[1]


def test_brightness_and_contrast_order() -> None:
    matrix = _color(brightness=0.1, contrast=2.0)
    assert torch.allclose(matrix[:, :3] @ torch.zeros(3) + matrix[:, 3], torch.full([3], 0.2), atol=1e-6)


def test_cutout_covers_the_same_part_at_any_size() -> None:
    centre, cut = torch.tensor([[0.5, 0.25], [0.5, 0.5]]), torch.tensor([True, False])
    large, small = keep_mask(centre, cut, size=64), keep_mask(centre, cut, size=16)
    assert torch.equal(nn.functional.avg_pool2d(large, 4), small)
    assert large[0].mean() == 1 - 0.25
    assert (large[0, 0, :32, 16:48] == 0).all()
    assert (large[1] == 1).all()


def test_probability_zero_changes_nothing() -> None:
    image, raw = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4)
    same = Augment()(image, raw, probability=0.0, rng=stream(0))
    assert same[0] is image
    assert same[1] is raw


def test_image_and_raw_change_alike() -> None:
    color = torch.rand(64, 3, 1, 1) * 2 - 1
    image, raw = Augment()(color.expand(-1, -1, 16, 16), color.expand(-1, -1, 8, 8), probability=0.4, rng=stream(1))
    pooled = nn.functional.avg_pool2d(image, 2)
    quiet = (pooled - raw).abs().amax(dim=(1, 2, 3)) < 1e-5  # samples without noise and without a cut through a pixel
    assert quiet.float().mean() > 0.3
    changed = (image - color).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert (quiet & changed).any()
    assert not changed.all()


def test_augmentation_is_drawn_from_the_stream() -> None:
    image, raw = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 4, 4)
    first, again, other = (Augment()(image, raw, probability=1.0, rng=stream(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_augmentation_is_twice_differentiable() -> None:
    image = torch.randn(2, 3, 4, 4, dtype=torch.double, requires_grad=True)
    raw = torch.randn(2, 3, 2, 2, dtype=torch.double, requires_grad=True)

    def run(image: torch.Tensor, raw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(t.double().square() for t in Augment()(image, raw, probability=1.0, rng=stream(0)))

    assert torch.autograd.gradcheck(run, (image, raw))
    assert torch.autograd.gradgradcheck(run, (image, raw))


def test_ada_moves_by_the_sign() -> None:
    def step(probability: float, sign: float) -> float:
        return adapted_probability(probability, sign=sign, target=0.6, images=64, ramp_kimg=500)

    assert step(0.1, 0.9) == pytest.approx(0.1 + 64 / 500000)
    assert step(0.1, 0.2) == pytest.approx(0.1 - 64 / 500000)
    assert step(0.1, 0.6) == 0.1
    assert step(0.0, 0.0) == 0.0
    assert step(1.0, 1.0) == 1.0


def test_ema_decay() -> None:
    late = ema_beta(images_seen=10**7, batch=32, half_life_kimg=10, rampup=0.05)
    assert late ** (10000 / 32) == pytest.approx(0.5)
    early = ema_beta(images_seen=1000, batch=32, half_life_kimg=10, rampup=0.05)
    assert early == pytest.approx(0.5 ** (32 / 50))
    assert ema_beta(images_seen=0, batch=32, half_life_kimg=10, rampup=0.05) == 0.0
    assert ema_beta(images_seen=0, batch=32, half_life_kimg=10, rampup=None) == pytest.approx(0.5 ** (32 / 10000))


def test_ema_averages_parameters_and_copies_buffers() -> None:
    average, model = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    nn.init.constant_(average.weight, 2.0)
    nn.init.constant_(model.weight, 4.0)
    assert model.running_mean is not None
    assert average.running_mean is not None
    model.running_mean.fill_(7.0)
    update_ema(average, model, beta=0.75)
    assert torch.allclose(average.weight, torch.full([3], 2.5))
    assert torch.equal(average.running_mean, model.running_mean)
    assert torch.equal(model.weight, torch.full([3], 4.0))
