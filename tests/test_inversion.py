"""Pivotal tuning: schedules, what falls, what stays as it was, the regularizer, the losses and their masks."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from applications import perceptual
from applications.avatars import choose_objective
from applications.inversion import (
    PLATEAU_STEPS,
    InversionConfig,
    Locality,
    find_latent,
    flat,
    latent_rate,
    latent_statistics,
    noise_scale,
    tune_generator,
    tuned_parameters,
)
from applications.inversion_inputs import view_of
from applications.inversion_losses import Objective, View, Weights, blur, dilate, head_weight, parse_weights
from applications.inversion_novel import drawn_camera, drawn_head
from applications.perceptual import Lpips, RandomPerceptual, load_lpips, load_perceptual, weighted_mean
from applications.samples import CameraRig
from dnnlib import UserError
from metrics.estimators.embedded import EmbeddedFeatures
from metrics.estimators.embedded_network import EmbeddedNetwork, write_embedded
from tests.cases_avatars import made_pictures, objective, recorder
from tests.cases_outputs import tiny_generator
from tools.measure_avatars import Person, scores, table
from training import cameras
from training.generator import Generator
from training.head.makehuman import embedded_head

RIG = CameraRig()
CONFIG = InversionConfig(latent_steps=16, tuning_steps=8, mean_samples=256, latent_rate=0.1, tuning_rate=2e-3)


@pytest.fixture(scope='module')
def generator() -> Generator:
    return tiny_generator()


@pytest.fixture(scope='module')
def views(generator: Generator) -> list[View]:
    return [view_of(picture, generator.template, background=0.2) for picture in made_pictures(generator, count=2)]


def same_state(module: torch.nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


# Schedules.


def test_learning_rate_rises_holds_and_falls() -> None:
    config = InversionConfig(latent_steps=100, latent_rate=1.0)
    rates = [latent_rate(config, step) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:76] == pytest.approx([1.0] * 71)
    assert all(before > after for before, after in itertools.pairwise(rates[76:]))
    assert rates[99] < 0.01
    assert rates[87] == pytest.approx(0.5 - 0.5 * math.cos(math.pi * 0.13 / 0.25))


def test_noise_fades_to_nothing() -> None:
    config = InversionConfig(latent_steps=100, noise=0.5, noise_ramp=0.75)
    scales = [noise_scale(config, step, deviation=2.0) for step in range(100)]
    assert scales[0] == pytest.approx(1.0)
    assert scales[30] == pytest.approx((1 - 0.4) ** 2)
    assert scales[75:] == [0.0] * 25


def test_tuning_stops_on_a_plateau() -> None:
    falling = [0.99**n for n in range(2 * PLATEAU_STEPS)]
    still = [1.0] * (2 * PLATEAU_STEPS)
    assert not flat(falling, plateau=0.1)
    assert flat(still, plateau=0.1)
    assert not flat(still, plateau=0.0)
    assert not flat(still[:-1], plateau=0.1)


# Phases.


def test_latent_phase(generator: Generator, views: list[View]) -> None:
    """The loss falls, the network is not written to, and the same seed gives the same latent."""
    state = copy.deepcopy(generator.state_dict())
    statistics = latent_statistics(generator, RIG.front(), samples=256, seed=0)
    torch.testing.assert_close(statistics.samples.mean(dim=0), statistics.mean)
    log: list[tuple[str, int, float]] = []
    ws = find_latent(generator, views[:1], objective(), statistics, CONFIG, watch=recorder(log))
    losses = [loss for _, _, loss in log]
    assert [step for _, step, _ in log] == list(range(16))
    assert np.mean(losses[-4:]) < 0.7 * losses[0]
    assert same_state(generator, state)
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    short = [dataclasses.replace(CONFIG, latent_steps=2, seed=seed) for seed in (0, 0, 1)]
    again, same, other = (find_latent(generator, views[:1], objective(), statistics, config) for config in short)
    assert torch.equal(again, same)
    assert not torch.equal(again, other)
    assert (ws[:, 0] - ws[:, 1]).abs().max() > 1e-4  # w+: each row its own


def test_space_w_keeps_one_row(generator: Generator, views: list[View]) -> None:
    statistics = latent_statistics(generator, RIG.front(), samples=64, seed=0)
    config = dataclasses.replace(CONFIG, space='w', latent_steps=3)
    ws = find_latent(generator, views, objective(), statistics, config)
    assert ws.shape == (1, generator.num_ws, generator.config.w_dim)
    assert torch.equal(ws, ws[:, :1].expand_as(ws))
    assert not torch.equal(ws[0, 0], statistics.mean)


def make_locality(generator: Generator, ws: Tensor, *, config: InversionConfig = CONFIG) -> Locality:
    head = embedded_head()
    return Locality(
        generator,
        ws,
        latent_statistics(generator, RIG.front(), samples=64, seed=0),
        objective(),
        config,
        heads=lambda rng: drawn_head(head, head.neutral().identity, rng),
        cameras=lambda rng: drawn_camera(RIG, rng),
    )


def test_tuning_phase(generator: Generator, views: list[View]) -> None:
    """The loss falls, pivot and base stay bit by bit, and so does what is not to be tuned."""
    state = copy.deepcopy(generator.state_dict())
    ws = generator.mapping.w_avg.expand(1, generator.num_ws, -1).clone()
    pivot = ws.clone()
    log: list[tuple[str, int, float]] = []
    tuned = tune_generator(
        generator, ws, views[:1], objective(), CONFIG, locality=make_locality(generator, ws), watch=recorder(log)
    )
    losses = [loss for _, _, loss in log]
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(ws, pivot)
    assert same_state(generator, state)
    moved = {name for name, value in tuned.state_dict().items() if not torch.equal(value, state[name])}
    assert moved <= set(tuned_parameters(generator))
    assert {name.partition('.')[0] for name in moved} >= {'texture', 'static', 'teeth', 'blending', 'decoder'}
    assert not any(parameter.requires_grad for parameter in tuned.parameters())
    short = dataclasses.replace(CONFIG, tuning_steps=2)
    first, second = (tune_generator(generator, ws, views, objective(), short) for _ in range(2))
    assert same_state(first, second.state_dict())


def test_views_take_turns(generator: Generator, views: list[View]) -> None:
    shown: list[float] = []
    ws = generator.mapping.w_avg.expand(1, generator.num_ws, -1).clone()
    config = dataclasses.replace(CONFIG, tuning_steps=4, tuning_rate=0.0)
    tune_generator(
        generator,
        ws,
        views,
        objective(),
        config,
        watch=lambda phase, step, terms, image: shown.append(float(terms.loss.detach())),
    )
    assert shown[0] == shown[2]
    assert shown[1] == shown[3]
    assert shown[0] != shown[1]


def test_a_loss_that_is_no_number_is_one_line(generator: Generator, views: list[View]) -> None:
    ws = torch.full((1, generator.num_ws, generator.config.w_dim), math.nan)
    with pytest.raises(UserError, match='tuning phase: the loss is not finite at step 0; lower its rate'):
        tune_generator(generator, ws, views, objective(), CONFIG)


# Locality.


def test_locality_is_zero_at_the_base_and_its_gradient_is_right(generator: Generator) -> None:
    ws = generator.mapping.w_avg.expand(1, generator.num_ws, -1).clone()
    locality = make_locality(generator, ws)
    assert float(locality.loss(generator, 0)) == pytest.approx(0.0, abs=1e-10)
    moved = copy.deepcopy(generator)
    weight = moved.decoder.out.bias
    with torch.no_grad():
        weight.add_(0.3)
    weight.requires_grad_(True)
    loss = locality.loss(moved, 0)
    assert float(loss.detach()) > 1e-4
    (gradient,) = torch.autograd.grad(loss, weight)
    direction = gradient / gradient.norm()
    step = 1e-2
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * step * direction)
            values.append(float(locality.loss(moved, 0)))
            weight.sub_(sign * step * direction)
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(gradient.norm()), rel=0.02)


def test_neighbours_lie_at_the_radius_and_differ_by_step(generator: Generator) -> None:
    ws = generator.mapping.w_avg.expand(1, generator.num_ws, -1).clone()
    locality = make_locality(generator, ws)
    near = [locality.neighbour(torch.Generator().manual_seed(seed)) for seed in range(3)]
    radius = CONFIG.locality_radius * locality.statistics.deviation
    for one in near:
        torch.testing.assert_close((one - ws).norm(dim=-1), torch.full((1, generator.num_ws), radius))
    assert not torch.equal(near[0], near[1])


def test_the_regularizer_holds_the_neighbourhood(generator: Generator, views: list[View]) -> None:
    """With it the tuned network stays nearer to the base around the pivot than without."""
    ws = generator.mapping.w_avg.expand(1, generator.num_ws, -1).clone()
    config = dataclasses.replace(CONFIG, tuning_steps=6, locality_interval=1)
    locality = make_locality(generator, ws, config=config)
    strong = objective(locality=5.0)
    held = tune_generator(generator, ws, views[:1], strong, config, locality=locality)
    free = tune_generator(generator, ws, views[:1], strong, config)
    distances = [float(locality.loss(network, 1000)) for network in (held, free)]
    assert distances[0] < 0.8 * distances[1]


# Losses.


def test_terms_vanish_at_the_target_and_know_the_person(views: list[View]) -> None:
    image = views[0].image
    target = objective().target(image, views[0].weight)
    assert float(objective().terms(image, target).loss) == pytest.approx(0.0, abs=1e-5)
    other = image.clone()
    other[:, 0] += 0.5
    terms = objective(perceptual=2.0, pixel=3.0, identity=4.0).terms(other, target)
    assert float(terms.pixel) == pytest.approx(0.25 / 3, rel=1e-4)
    assert float(terms.identity) > 1e-3
    assert float(terms.loss) == pytest.approx(
        float(2 * terms.perceptual + 3 * terms.pixel + 4 * terms.identity), rel=1e-5
    )
    without = Objective(RandomPerceptual(), weights=Weights())
    assert float(without.terms(other, without.target(image)).identity) == 0.0


def test_the_mask_decides_what_counts() -> None:
    """A change where the weight is 0 costs nothing; the same change inside costs by its weight."""
    image = torch.zeros(1, 3, 32, 32)
    weight = torch.zeros(1, 1, 32, 32)
    weight[..., 16:] = 1.0
    outside, inside = image.clone(), image.clone()
    outside[..., 4:8, 2:6] = 1.0
    inside[..., 4:8, 26:30] = 1.0
    compare = objective(identity=0.0)
    target = compare.target(image, weight)
    assert float(compare.terms(outside, target).pixel) == 0.0
    assert float(compare.terms(inside, target).pixel) == pytest.approx(16 / (32 * 16))
    near, far = (float(compare.terms(changed, target).perceptual) for changed in (inside, outside))
    assert far < 0.1 * near  # what remains comes from the coarsest maps, whose filters reach across
    assert weighted_mean(torch.ones(1, 2, 8, 8), weight) == pytest.approx(1.0)


def test_head_weight_covers_head_and_hair_softly() -> None:
    head, label = embedded_head(), RIG.front()
    posed = head.forward(head.neutral())
    weight = head_weight(head.template, posed, label, resolution=64, background=0.25)
    assert weight.shape == (1, 1, 64, 64)
    points = cameras.project(cameras.head_to_world(posed.landmarks), label)[0][0] * 64
    columns, rows = points.long().T
    assert weight[0, 0, rows, columns].min() > 0.95
    top = int(rows.min())
    assert weight[0, 0, top - 8, 32] > 0.9  # forehead and hair above the brows
    assert weight[0, 0, 2, 2] == pytest.approx(0.25, abs=0.01)
    assert float(weight.min()) >= 0.25 - 1e-5
    assert float(weight.max()) <= 1 + 1e-5
    assert (weight[..., 1:] - weight[..., :-1]).abs().max() < 0.12


def test_dilation_and_blur() -> None:
    mask = torch.zeros(1, 1, 21, 21)
    mask[..., 10, 10] = 1
    grown = dilate(mask, 3.0)
    assert grown[0, 0, 10].tolist() == [0] * 7 + [1] * 7 + [0] * 7
    assert grown[0, 0, 7, 8] == 0  # a disc, not a square
    torch.testing.assert_close(blur(torch.ones(1, 1, 9, 9), 2.0), torch.ones(1, 1, 9, 9))
    assert float(blur(mask, 2.0).sum()) == pytest.approx(1.0, abs=1e-5)


def test_weights_by_name() -> None:
    assert parse_weights(['pixel=2', 'background=0']) == Weights(pixel=2.0, background=0.0)
    for text in ('pixels=2', 'pixel=-1', 'pixel=', 'pixel=nan'):
        with pytest.raises(UserError, match=f'--weight {text}: expected'):
            parse_weights([text])


# Perceptual networks.


def lpips_tensors() -> dict[str, Tensor]:
    """Random weights of the right names and shapes."""
    rng = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=rng).abs() * (2 / math.prod(shape[1:] or [1])) ** 0.5
        for name, shape in perceptual._lpips_shapes().items()
    }


def test_random_perceptual_grows_with_the_error_and_has_gradients() -> None:
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 32, 32, generator=rng) * 2 - 1
    noise = torch.randn(image.shape, generator=rng)
    network = RandomPerceptual()
    maps = network.maps(image)
    small, large = (network.distance(network.maps(image + scale * noise), maps) for scale in (0.1, 0.3))
    assert 0 < float(small) < float(large)
    moved = (image + 0.1 * noise).requires_grad_(True)
    network.distance(network.maps(moved), maps).backward()
    assert moved.grad is not None
    assert moved.grad.abs().max() > 0


def test_embedded_perceptual_is_its_own_distance(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_embedded(tmp_path / 'e.npz', EmbeddedNetwork(), {'licence': 'none'})
    features = EmbeddedFeatures(tmp_path / 'e.npz')
    network = perceptual.EmbeddedPerceptual(features)
    first, second = (torch.rand(1, 3, 32, 32) * 2 - 1 for _ in range(2))
    distance = network.distance(network.maps(first), network.maps(second))
    torch.testing.assert_close(distance, features.module.distance(first, second)[0])
    assert (network.name, network.content_hash) == ('embedded-features', features.content_hash)


def test_networks_are_chosen_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_embedded(tmp_path / 'e.npz', EmbeddedNetwork(), {'licence': 'none'})
    spec = f'embedded:{tmp_path / "e.npz"}'
    chosen = choose_objective(spec, Weights(pixel=3.0), identity=spec)
    names = {role: network['name'] for role, network in chosen.networks().items() if network}
    assert names == {'perceptual': 'embedded-features', 'identity': 'embedded-identity'}
    assert chosen.weights.pixel == 3.0
    assert choose_objective('random', Weights(), identity='none').networks()['identity'] is None
    with pytest.raises(UserError, match='nobody'):
        choose_objective('random', Weights(), identity='nobody')


def test_measured_people_are_compared_with_the_truth(views: list[View]) -> None:
    """The table of tools/measure_avatars.py: a copy of the input is perfect on the input alone."""
    person = Person(
        identity=torch.zeros(1, 64),
        views={'input': views[:1], 'novel views': views[1:], 'novel expressions': views},
    )
    result = scores(lambda view: views[0].image, person, objective())
    assert result[0, 0] > 90
    assert result[0, 3] == pytest.approx(1.0, abs=1e-5)
    error = (views[0].image - views[1].image).square()
    assert result[1, 1] == pytest.approx(float(10 * torch.log10(4 / error.mean())), abs=1e-3)
    assert result[2] - (result[0] + result[1]) / 2 == pytest.approx(np.zeros(4), abs=1e-5)
    lines = table([{'copy': result}, {'copy': result + 2}])
    assert len(lines) == 2 + 3
    assert lines[2].startswith(f'| copy | input | {result[0, 0] + 1:.2f} |')


def test_lpips_is_the_published_formula(tmp_path: Path) -> None:
    tensors = lpips_tensors()
    torch.save({k: v for k, v in tensors.items() if k.startswith('features')}, tmp_path / 'vgg16.pth')
    torch.save({k: v for k, v in tensors.items() if k.startswith('lin')}, tmp_path / 'vgg.pth')
    network = load_perceptual(f'lpips:{tmp_path}')
    assert network.content_hash == Lpips(tensors).content_hash
    rng = torch.Generator().manual_seed(1)
    first, second = (torch.rand(1, 3, 16, 16, generator=rng) * 2 - 1 for _ in range(2))
    expected = torch.zeros([])
    x = torch.cat([first, second])
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x = (x - shift[:, None, None]) / scale[:, None, None]
    layer = 0
    for block, count in enumerate((2, 2, 3, 3, 3)):
        if block:
            x, layer = torch.nn.functional.max_pool2d(x, 2), layer + 1
        for _ in range(count):
            weight, bias = tensors[f'features.{layer}.weight'], tensors[f'features.{layer}.bias']
            x, layer = torch.nn.functional.conv2d(x, weight, bias, padding=1).relu(), layer + 2
        unit = x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
        difference = (unit[:1] - unit[1:]).square()
        expected += torch.nn.functional.conv2d(difference, tensors[f'lin{block}.model.1.weight']).mean()
    torch.testing.assert_close(network.distance(network.maps(first), network.maps(second)), expected)


def test_lpips_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='--perceptual: expected'):
        load_perceptual('vgg')
    with pytest.raises(UserError, match='none: no such folder; it must hold'):
        load_lpips(tmp_path / 'none')
    with pytest.raises(UserError, match=r'no .pth file there holds torchvision.s vgg16'):
        load_lpips(tmp_path)
    tensors = lpips_tensors()
    torch.save({k: v for k, v in tensors.items() if k.startswith('features')}, tmp_path / 'vgg16.pth')
    with pytest.raises(UserError, match=r'no .pth file there holds LPIPS.s heads'):
        load_lpips(tmp_path)
    heads = {k: v for k, v in tensors.items() if k.startswith('lin')}
    torch.save({**heads, 'features.28.bias': torch.zeros(3)}, tmp_path / 'vgg.pth')
    (tmp_path / 'vgg16.pth').rename(tmp_path / 'a.pth')
    with pytest.raises(UserError, match=r'features.28.bias: expected \[512\], got \[3\]'):
        load_lpips(tmp_path)
    (tmp_path / 'z.pth').write_text('no tensors')
    with pytest.raises(UserError, match=r'z.pth: not a file of plain tensors'):
        load_lpips(tmp_path)
