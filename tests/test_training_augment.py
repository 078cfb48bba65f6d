"""Augmentation, of cameras too, and the generator's moving average against their formulas."""

from __future__ import annotations

import colorsys
import math

import pytest
import torch
from cases_geometry import ellipsoid_template, posed
from torch import nn

from torch_utils.rng import stream
from training.augment import Augment, Draw, adapted_probability, color_matrix, keep_mask
from training.augment_camera import CameraMove, draw_move, reflected
from training.cameras import orbit_camera, project, unpack_label
from training.conditions import Conditions
from training.config import LossConfig
from training.ema import ema_beta, update_ema
from training.loss import GanLoss, Pair, Schedule, raw_from_image
from training.template_rendering import render_template


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
    assert torch.autograd.gradgradcheck(run, (image, raw), fast_mode=True)


# Cameras.


def _moves(count: int, *, seed: int = 0) -> CameraMove:
    return draw_move(Draw(count, 1.0, stream(seed), torch.device('cpu')))


def _labels(count: int) -> torch.Tensor:
    """Cameras that use all of the intrinsics: two focal lengths, skew, a principal point off the middle."""
    angles = torch.randn(3, count, generator=stream(8)) * 0.3
    label = orbit_camera(angles[0], angles[1], roll=angles[2])
    label[:, 16:25] = torch.tensor([4.2, 0.1, 0.52, 0.0, 4.6, 0.47, 0.0, 0.0, 1.0])
    return label


def test_a_moved_camera_sees_the_moved_image() -> None:
    move, label = _moves(6), _labels(6)
    points = torch.randn(6, 20, 3, generator=stream(9)) * 0.2
    at, depth = project(points, label)
    moved, same = project(points, move.label(label))
    wanted = (at - 0.5) @ move.linear.transpose(1, 2) + 0.5 + move.shift[:, None]
    assert torch.allclose(moved, wanted, atol=1e-5)
    assert torch.allclose(same, depth, atol=1e-5)
    pose, intrinsics = unpack_label(move.label(label))
    assert torch.allclose(pose[:, :3, :3] @ pose[:, :3, :3].transpose(1, 2), torch.eye(3), atol=1e-5)
    assert torch.equal(intrinsics[:, 1, 0], torch.zeros(6))
    assert (intrinsics[:, [0, 1], [0, 1]] > 0).all()
    extra = torch.cat([label, torch.arange(12.0).view(6, 2)], dim=1)
    assert torch.equal(move.label(extra), torch.cat([move.label(label), extra[:, 25:]], dim=1))


def test_a_moved_rendering_is_the_moved_cameras_rendering() -> None:
    """Of a head that stays inside the picture; only pixels at its edge and its seams may differ."""
    template = ellipsoid_template(mouth_hole=False)
    move, label, head = _moves(4, seed=2), _labels(4), posed(template, 4)
    label[:, 16], label[:, 20] = 2.1, 2.3
    before, after = (
        render_template(template, head, cameras, resolution=96, mode='correspondence')
        for cameras in (label, move.label(label))
    )
    assert (before - after).abs().mean() > 0.1
    assert (move.images(before) - after).abs().amax(dim=1).flatten().quantile(0.95) < 0.1


def test_what_lies_outside_is_reflected() -> None:
    assert reflected(torch.tensor([-3, -1, 0, 3, 4, 6, 9]), 4).tolist() == [2, 0, 0, 3, 3, 1, 1]
    image = torch.arange(4.0).expand(1, 1, 4, 4)
    shifted = CameraMove(torch.eye(2)[None], torch.tensor([[0.5, 0.0]])).images(image)  # two pixels to the right
    assert shifted[0, 0, 0].tolist() == [1, 0, 0, 1]
    still = CameraMove(torch.eye(2)[None], torch.zeros(1, 2))
    assert torch.equal(still.images(image), image)


def test_template_and_image_stay_aligned() -> None:
    """A template that is the image: where colours were left alone, the discriminator sees twice the same."""
    count = 160
    template = ellipsoid_template()
    judge, label = Watching(), _labels(count)
    loss = GanLoss(nn.Module(), judge, config=LossConfig(), augment=Augment(camera=True))  # type: ignore[arg-type]
    image = torch.randn(count, 3, 16, 16, generator=stream(4))
    pair = Pair(image=image, image_raw=raw_from_image(image, 8), template=image.clone())
    conditions = Conditions(label=label, head=posed(template, count), discriminator_label=label)
    schedule = Schedule(blur_sigma=0.0, swap_probability=0.0, augment_probability=0.4)
    loss._judge(pair, conditions, schedule, stream(6))
    seen = judge.seen
    moved = (seen['template'] != image).flatten(1).any(dim=1)
    assert torch.equal(moved, (seen['label'] != label).any(dim=1))
    assert 0.5 < moved.float().mean() < 0.95  # 1 - 0.6 ** 3
    aligned = (seen['template'] == seen['image']).flatten(1).all(dim=1)
    assert (aligned & moved).sum() > 3  # 0.6 ** 6 of them have no colour, noise or cut
    small = raw_from_image(seen['template'][aligned & moved], 8)
    assert (small - seen['image_raw'][aligned & moved]).abs().mean() < 0.5 * small.abs().mean()


class Watching(nn.Module):
    """A discriminator that keeps what it was shown."""

    seen: dict[str, torch.Tensor]

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        self.seen = inputs
        return inputs['image'].mean(dim=(1, 2, 3))[:, None]


def test_moved_images_are_twice_differentiable() -> None:
    move = _moves(2)
    image = torch.randn(2, 1, 5, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: move.images(x).square(), image)
    assert torch.autograd.gradgradcheck(lambda x: move.images(x).square(), image, fast_mode=True)


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
