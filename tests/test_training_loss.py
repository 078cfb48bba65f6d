"""Loss terms against closed forms and oracles; schedules; that everything learns."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cases_dataset import SheetHead, random_labels, random_params
from cases_training import tiny_dataset, tiny_trainer
from torch import Tensor, nn

from dnnlib import UserError
from torch_utils.rng import stream
from training.conditions import Conditions, ConditionSource
from training.config import LossConfig
from training.loss import GanLoss, Latents, Schedule, blur, blur_kernel, mix_ws, raw_from_image
from training.template_rendering import render_template
from training.trainer import DivergedError, Trainer

QUIET = Schedule(blur_sigma=0.0, swap_probability=0.0)


def _conditions(count: int, *, seed: int = 0) -> Conditions:
    model, label = SheetHead(), random_labels(count, seed=seed)
    head = model.forward(random_params(model, count, seed=seed))
    return Conditions(label=label, head=head, discriminator_label=label, mapping_label=label)


class LinearDiscriminator(nn.Module):
    """logits = <a, image> + <b, raw> + <c, template>."""

    def __init__(self, size: int, raw: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(template='correspondence')
        self.a, self.b = nn.Parameter(torch.randn(3, size, size)), nn.Parameter(torch.randn(3, raw, raw))
        self.c = nn.Parameter(torch.randn(3, size, size))
        self.seen: dict[str, Tensor] = {}

    def forward(self, *, image: Tensor, image_raw: Tensor, label: Tensor, template: Tensor, rng: Any) -> Tensor:
        self.seen = {'image': image, 'image_raw': image_raw, 'template': template, 'label': label}
        parts = ((self.a, image), (self.b, image_raw), (self.c, template))
        return torch.stack([(weight * x).sum(dim=(1, 2, 3)) for weight, x in parts]).sum(dim=0)[:, None]


class LineGenerator(nn.Module):
    """Density = z . point^2 + shift; images are constants of z."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(image_resolution=8)
        self.render_resolution = 4
        self.template = SheetHead().template
        self.scale = nn.Parameter(torch.ones(()))
        self.points = torch.empty(0)
        self.shift = 0.0

    def map(self, z: Tensor, label: Tensor) -> Tensor:
        return z[:, None].expand(-1, 6, -1)

    def identity(self, ws: Tensor, *, rng: Any) -> Tensor:
        return ws[:, 0]

    def deform(self, identity: Tensor, head: Any, *, rng: Any) -> Tensor:
        return identity

    def density(self, planes: Tensor, points: Tensor) -> Tensor:
        self.points = points
        return self.scale * (points.square() @ planes[:, :3, None]) + self.shift

    def render(self, planes: Tensor, label: Tensor, *, resolution: int | None, rng: Any) -> Any:
        value = planes[:, :3, None, None] * self.scale
        return SimpleNamespace(image=value.expand(-1, 3, 8, 8), image_raw=value.expand(-1, 3, 4, 4))


def _loss(**config: Any) -> tuple[GanLoss, LineGenerator, LinearDiscriminator]:
    torch.manual_seed(0)
    generator, discriminator = LineGenerator(), LinearDiscriminator(8, 4)
    loss = GanLoss(generator, discriminator, config=LossConfig(**config), augment=None)  # type: ignore[arg-type]
    return loss, generator, discriminator


# Schedules and image operations.


def test_schedule_fades() -> None:
    config = LossConfig(blur_sigma=10, blur_fade_kimg=200, pose_swap_prob=0.5, pose_swap_fade_kimg=1000)
    points = [Schedule.at(config, images_seen=kimg * 1000) for kimg in (0, 100, 200, 1000, 5000)]
    assert [point.blur_sigma for point in points] == [10, 5, 0, 0, 0]
    assert [point.swap_probability for point in points] == pytest.approx([1, 0.95, 0.9, 0.5, 0.5])
    never = Schedule.at(LossConfig(blur_fade_kimg=0, pose_swap_fade_kimg=0), images_seen=0)
    assert (never.blur_sigma, never.swap_probability) == (0, 0.5)


@pytest.mark.parametrize('sigma', [0.4, 1.25, 10.0])
def test_blur_kernel_is_the_base_two_gaussian(sigma: float) -> None:
    size = int(3 * sigma)
    wanted = np.array([2.0 ** -((x / sigma) ** 2) for x in range(-size, size + 1)])
    assert np.allclose(blur_kernel(sigma).numpy(), wanted / wanted.sum(), atol=1e-7)


def test_blur_against_loops() -> None:
    image, kernel = torch.randn(2, 3, 9, 7), blur_kernel(0.9).double()
    wanted = torch.zeros(2, 3, 9, 7, dtype=torch.double)
    size = len(kernel) // 2
    for row in range(9):
        for column in range(7):
            for i in range(-size, size + 1):
                for j in range(-size, size + 1):
                    source = image[:, :, min(max(row + i, 0), 8), min(max(column + j, 0), 6)].double()
                    wanted[:, :, row, column] += kernel[i + size] * kernel[j + size] * source
    assert torch.allclose(blur(image, sigma=0.9).double(), wanted, atol=1e-6)
    assert torch.allclose(blur(torch.ones(1, 3, 5, 5), sigma=4.0), torch.ones(1, 3, 5, 5), atol=1e-5)
    assert blur(image, sigma=0.3) is image


def test_raw_image_keeps_the_mean() -> None:
    image = torch.randn(2, 3, 16, 16)
    raw = raw_from_image(image, 4)
    assert raw.shape == (2, 3, 4, 4)
    assert torch.allclose(raw.mean(dim=(2, 3)), image.mean(dim=(2, 3)), atol=0.05)


def test_mixing_replaces_the_same_layers_in_both_halves() -> None:
    ws, mixed = torch.zeros(3, 8, 2), torch.ones(3, 8, 2)
    result = mix_ws(ws, mixed, torch.tensor([1, 3, 4]))
    assert result[:, :, 0].tolist() == [[0, 1, 1, 1] * 2, [0, 0, 0, 1] * 2, [0, 0, 0, 0] * 2]


# Terms.


def test_generator_main_is_softplus_of_the_logits() -> None:
    loss, generator, discriminator = _loss()
    conditions, z = _conditions(3), torch.randn(3, 4)
    terms = loss.generator_main(Latents(z=z), conditions, schedule=QUIET, rng=stream(0))
    image = z[:, :3, None, None]
    template = render_template(
        generator.template, conditions.head, conditions.label, resolution=8, mode='correspondence'
    )
    logits = (discriminator.a * image).sum((1, 2, 3)) + (discriminator.b * image).sum((1, 2, 3))
    logits = logits + (discriminator.c * template).sum((1, 2, 3))
    assert torch.allclose(terms.logits[:, 0], logits, atol=1e-4)
    assert torch.allclose(terms.loss, torch.log1p(torch.exp(-logits)).mean(), atol=1e-4)
    assert torch.equal(discriminator.seen['label'], conditions.discriminator_label)


def test_discriminator_main_sees_real_and_fake() -> None:
    loss, generator, discriminator = _loss()
    conditions, real, z = _conditions(2), _conditions(2, seed=1), torch.randn(2, 4)
    images = torch.randn(2, 3, 8, 8)
    terms = loss.discriminator_main(
        images, real, latents=Latents(z=z), conditions=conditions, schedule=QUIET, rng=stream(0)
    )
    assert torch.equal(discriminator.seen['image'], images)  # the reals come last
    assert torch.allclose(discriminator.seen['image_raw'], raw_from_image(images, 4))
    fake, true = terms.logits_fake, terms.logits_real
    wanted = torch.log1p(torch.exp(fake)).mean() + torch.log1p(torch.exp(-true)).mean()
    assert torch.allclose(terms.loss, wanted, atol=1e-4)
    assert torch.equal(terms.ws, z[:, None].expand(-1, 6, -1))
    terms.loss.backward()
    assert generator.scale.grad is None


def test_blur_reaches_images_and_the_real_raw_target() -> None:
    loss, _, discriminator = _loss()
    images, real = torch.randn(2, 3, 8, 8), _conditions(2)
    schedule = Schedule(blur_sigma=1.0, swap_probability=0.0)
    loss.discriminator_r1(images, real, schedule=schedule, rng=stream(0))
    assert torch.allclose(discriminator.seen['image'], blur(images, sigma=1.0))
    assert torch.allclose(discriminator.seen['image_raw'], blur(raw_from_image(images, 4), sigma=1.0))
    loss.generator_main(Latents(z=torch.randn(2, 4)), real, schedule=schedule, rng=stream(0))
    assert discriminator.seen['image_raw'].std(dim=(2, 3)).max() == 0  # fakes' raw images are as rendered


def test_r1_closed_form() -> None:
    """The gradient of a linear D is its weights; the template's do not count."""
    loss, _, discriminator = _loss(r1_gamma=6.0)
    terms = loss.discriminator_r1(torch.randn(3, 3, 8, 8), _conditions(3), schedule=QUIET, rng=stream(0))
    wanted = discriminator.a.square().sum() + discriminator.b.square().sum()
    assert torch.allclose(terms.penalty, wanted.expand(3), rtol=1e-5)
    assert torch.allclose(terms.loss, 3 * wanted, rtol=1e-5)
    terms.loss.backward()
    assert discriminator.a.grad is not None
    assert torch.allclose(discriminator.a.grad, 6 * discriminator.a, rtol=1e-5)  # d/da gamma/2 |a|^2
    assert discriminator.c.grad is None


@pytest.mark.parametrize(('norm', 'box'), [('l2', 0.5), ('l1', 1.0)])
def test_density_against_an_oracle(norm: str, box: float) -> None:
    loss, generator, _ = _loss(density_norm=norm, density_box=box, density_shift=0.1, density_weight=0.3)
    z = torch.randn(2, 4)
    terms = loss.generator_density(Latents(z=z), _conditions(2), rng=stream(5))
    first, second = generator.points.double().chunk(2, dim=1)
    assert first.shape == (2, 1000, 3)
    assert 0.95 * box < first.abs().max() <= box
    assert abs(first.mean()) < 0.05 * box
    assert (second - first).std() == pytest.approx(0.1, rel=0.05)
    difference = ((first**2 - second**2) * z[:, None, :3].double()).sum(dim=2).numpy()
    wanted = np.mean(difference**2 if norm == 'l2' else np.abs(difference))
    assert float(terms.penalty) == pytest.approx(wanted, rel=1e-4)
    assert float(terms.loss.detach()) == pytest.approx(0.3 * wanted, rel=1e-4)


def test_anchor_against_an_oracle() -> None:
    """The mean square of the distance from another network's density, at the same points for the same ws."""
    loss, generator, _ = _loss(density_weight=0.3, density_anchor=2.0)
    z = torch.randn(2, 4)
    alone = loss.generator_density(Latents(z=z), _conditions(2), rng=stream(5))
    held = copy.deepcopy(generator)
    loss.anchor = held  # type: ignore[assignment]
    same = loss.generator_density(Latents(z=z), _conditions(2), rng=stream(5))
    assert torch.equal(same.loss, alone.loss)
    held.shift = 0.5
    moved = loss.generator_density(Latents(z=z), _conditions(2), rng=stream(5))
    assert float(moved.loss.detach() - alone.loss.detach()) == pytest.approx(2.0 * 0.25, rel=1e-4)
    assert torch.equal(moved.penalty, alone.penalty)


def test_template_none_is_left_out() -> None:
    loss, _, discriminator = _loss()
    discriminator.config.template = 'none'
    assert loss._template(_conditions(2)) is None


# Conditions.


def test_fakes_take_camera_and_head_from_one_item(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path)
    source = ConditionSource(dataset, label_dim=25, device=torch.device('cpu'))
    fake = source.fake(64, swap_probability=0.5, rng=stream(0))
    table = dataset.label(list(range(len(dataset))))
    items = [int((table == label).all(dim=1).nonzero()[0]) for label in fake.label]
    assert torch.allclose(fake.head.vertices, dataset.head_input(items).vertices)
    assert torch.equal(fake.discriminator_label, fake.label)
    assert fake.mapping_label is not None
    swapped = (fake.mapping_label != fake.label).any(dim=1).float().mean()
    assert 0.25 < swapped < 0.7
    assert len(set(items)) > 10  # one item a sample, not one a batch
    same = source.fake(16, swap_probability=0.0, rng=stream(1))
    assert same.mapping_label is not None
    assert torch.equal(same.label, same.mapping_label)


def test_expression_label(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path)
    label = ConditionSource(dataset, label_dim=29, device=torch.device('cpu')).real([3, 14]).discriminator_label
    params = dataset.head_params([3, 14])
    assert params is not None
    assert torch.equal(label[:, :25], dataset.label([3, 14]))
    assert torch.equal(label[:, 25:27], params.expression)
    assert (label[:, 27:] == 0).all()


def test_expression_label_needs_parameters(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path, heads='mesh')
    with pytest.raises(UserError, match='no head parameters, which D.label_dim=75 needs'):
        ConditionSource(dataset, label_dim=75, device=torch.device('cpu')).real([0])


# The step.


def test_every_parameter_gets_a_gradient(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    for network in (trainer.generator, trainer.discriminator):  # zeros at the start hide what is behind them
        for name, parameter in network.named_parameters():
            if name.endswith('noise_strength') or (name.endswith('.weight') and not parameter.any()):
                nn.init.constant_(parameter, 0.1)
    seen: dict[int, float] = {}
    for player, network in ((trainer.g, trainer.generator), (trainer.d, trainer.discriminator)):
        player.optimizer.register_step_pre_hook(
            lambda *_, network=network: seen.update(
                {
                    id(parameter): seen.get(id(parameter), 0) + float(parameter.grad.abs().sum())
                    for parameter in network.parameters()
                    if parameter.grad is not None
                }
            )
        )
    loader = trainer.loader()
    for _ in range(2):
        trainer.step(next(loader))
    for network in (trainer.generator, trainer.discriminator):
        dead = [name for name, parameter in network.named_parameters() if not seen.get(id(parameter))]
        assert dead == []


def test_lazy_terms_shrink_the_optimizer(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    group = trainer.g.optimizer.param_groups[0]
    assert group['lr'] == pytest.approx(0.0025 * 4 / 5)
    assert group['betas'] == pytest.approx((0.0, 0.99 ** (4 / 5)))
    assert trainer.d.optimizer.param_groups[0]['lr'] == pytest.approx(0.002 * 16 / 17)
    plain = tiny_trainer(tmp_path, L__density_weight=0.0, L__r1_gamma=0.0)
    assert plain.g.optimizer.param_groups[0]['lr'] == 0.0025
    assert plain.density_interval == plain.r1_interval == 0


def test_w_avg_follows_the_mapping(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, w_avg_beta=0.75, batch_gpu=2)
    means = []
    original = trainer.loss.discriminator_main

    def remember(*args: Any, **options: Any) -> Any:
        terms = original(*args, **options)
        means.append(terms.ws[:, 0].mean(dim=0))
        return terms

    trainer.loss.discriminator_main = remember  # type: ignore[method-assign]
    trainer.step(next(trainer.loader()))
    assert len(means) == 2
    assert torch.allclose(trainer.generator.mapping.w_avg, 0.25 * (means[0] + means[1]) / 2, atol=1e-6)
    assert torch.equal(trainer.average.mapping.w_avg, trainer.generator.mapping.w_avg)


def test_non_finite_gradients_are_skipped_counted_and_end_the_run(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    before = trainer.networks()
    poison = torch.full([], math.nan, requires_grad=True)
    for turn in range(9):
        assert not trainer.optimize('Gmain', trainer.g, lambda *_: _poisoned(trainer, poison)), turn
    assert all(torch.equal(value, before['G'][name]) for name, value in trainer.networks()['G'].items())
    assert trainer.stats.collect(trainer.communicator)['Gradient/Gmain/skipped'].mean == 1
    with pytest.raises(DivergedError, match='Gmain: 10 steps in a row had non-finite gradients at kimg 0.0'):
        trainer.optimize('Gmain', trainer.g, lambda *_: _poisoned(trainer, poison))


def _poisoned(trainer: Trainer, poison: Tensor) -> Tensor:
    return poison * sum(parameter.sum() for parameter in trainer.g.parameters)


def test_initial_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = tiny_trainer(tmp_path)
    marker = torch.rand(())
    torch.manual_seed(1)
    torch.rand(7)
    second, other = tiny_trainer(tmp_path), tiny_trainer(tmp_path, seed=1)
    torch.manual_seed(1)
    assert torch.rand(()) == marker  # building networks leaves the global stream alone
    name = 'b16.conv0.weight'
    assert torch.equal(first.networks()['D'][name], second.networks()['D'][name])
    assert not torch.equal(first.networks()['D'][name], other.networks()['D'][name])


def test_bf16_gradients_point_where_fp32_ones_do(tmp_path: Path) -> None:
    gradients: dict[str, list[Tensor]] = {}
    for precision in ('fp32', 'bf16'):
        trainer = tiny_trainer(tmp_path, precision=precision)
        phases = gradients.setdefault(precision, [])
        for player in (trainer.g, trainer.d):
            player.optimizer.register_step_pre_hook(
                lambda optimizer, *_, phases=phases: phases.append(
                    torch.cat([p.grad.flatten() for p in optimizer.param_groups[0]['params'] if p.grad is not None])
                )
            )
        trainer.step(next(trainer.loader()))
        assert all(parameter.dtype == torch.float32 for parameter in trainer.generator.parameters())
    for exact, coarse in zip(gradients['fp32'], gradients['bf16'], strict=True):  # Gmain, Gdensity, Dmain, Dr1
        assert not torch.equal(exact, coarse)
        assert torch.nn.functional.cosine_similarity(exact, coarse, dim=0) > 0.97
        assert coarse.norm() == pytest.approx(float(exact.norm()), rel=0.1)
