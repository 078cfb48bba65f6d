"""Dual discriminator: any batch, gradients, R1, label noise, bad input."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from tests.cases_networks import assert_all_parameters_learn, perturb, randn, seeded
from training.config import DiscriminatorConfig, preset
from training.discriminator import DualDiscriminator, minibatch_std


def discriminator_inputs(batch: int, config: DiscriminatorConfig) -> dict[str, torch.Tensor | None]:
    size = config.image_resolution
    return {
        'image': randn(batch, 3, size, size, seed=1),
        'image_raw': randn(batch, 3, size // 2, size // 2, seed=2),
        'label': randn(batch, config.label_dim, seed=3) if config.label_dim else None,
        'template': None if config.template == 'none' else randn(batch, 3, size, size, seed=4),
    }


@pytest.mark.parametrize('batch', [1, 2, 3, 6])
def test_discriminator_any_batch(batch: int) -> None:
    torch.manual_seed(0)
    config = preset('debug').discriminator
    discriminator = perturb(DualDiscriminator(config))
    logits = discriminator(**discriminator_inputs(batch, config))
    assert logits.shape == (batch, 1)
    assert logits.isfinite().all()


@pytest.mark.parametrize('changes', [{}, {'template': 'none'}, {'label_dim': 0}])
def test_discriminator_learns_from_logits_and_from_r1(changes: dict) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(preset('debug').discriminator, **changes)
    discriminator = perturb(DualDiscriminator(config))
    inputs = discriminator_inputs(4, config)
    assert_all_parameters_learn(discriminator, F.softplus(discriminator(**inputs)).mean())
    discriminator.zero_grad()
    sources = [value.requires_grad_() for name, value in inputs.items() if value is not None and name != 'label']
    gradients = torch.autograd.grad(discriminator(**inputs).sum(), sources, create_graph=True)
    torch.stack([g.square().sum() for g in gradients]).sum().backward()
    weights = [p for name, p in discriminator.named_parameters() if name.endswith('weight')]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in weights)


def test_r1_gradient_of_a_parameter_matches_finite_differences() -> None:
    torch.manual_seed(0)
    config = preset('debug').discriminator
    discriminator = perturb(DualDiscriminator(config)).double()
    inputs = {k: v.double() for k, v in discriminator_inputs(2, config).items() if v is not None}
    sources = [inputs['image'].requires_grad_(), inputs['image_raw'].requires_grad_()]

    def penalty() -> torch.Tensor:
        gradients = torch.autograd.grad(discriminator(**inputs).sum(), sources, create_graph=True)
        return torch.stack([g.square().sum() for g in gradients]).sum()

    weight = discriminator.get_parameter('b16.conv1.weight')
    (analytic,) = torch.autograd.grad(penalty(), weight)
    direction = torch.randn(weight.shape, generator=seeded(), dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        weight.add_(step * direction)
    high = penalty().item()
    with torch.no_grad():
        weight.sub_(2 * step * direction)
    numeric = (high - penalty().item()) / (2 * step)
    assert (analytic * direction).sum().item() == pytest.approx(numeric, rel=1e-5)


def test_minibatch_std_groups() -> None:
    x = randn(6, 2, 4, 4)
    out = minibatch_std(x, group_size=4)  # 6 = 3 x 2: groups (0, 2, 4) and (1, 3, 5)
    for start in (0, 1):
        expected = (x[start::2].var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(out[start::2, 2], expected.expand(3, 4, 4))
    torch.testing.assert_close(out[:, :2], x)
    assert minibatch_std(x[:1], group_size=4)[0, 2].max().item() == pytest.approx(1e-4, rel=1e-3)


def test_label_noise_leaves_the_caller_alone() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(preset('debug').discriminator, label_noise=1.0)
    discriminator = perturb(DualDiscriminator(config))
    inputs = discriminator_inputs(4, config)
    label = inputs['label']
    assert label is not None
    before = label.clone()
    plain = discriminator(**inputs)
    noisy = discriminator(**inputs, rng=seeded())
    torch.testing.assert_close(label, before, rtol=0, atol=0)
    assert (noisy - plain).abs().max() > 1e-4
    torch.testing.assert_close(noisy, discriminator(**inputs, rng=seeded()))
    single = discriminator_inputs(1, config)
    torch.testing.assert_close(discriminator(**single, rng=seeded()), discriminator(**single))  # not NaN


def test_discriminator_names_bad_input() -> None:
    config = preset('debug').discriminator
    discriminator = DualDiscriminator(config)
    good = discriminator_inputs(2, config)
    for name, value, message in [
        ('image', randn(2, 3, 8, 8), r'image: expected \[N, 3, 16, 16\]'),
        ('image_raw', randn(1, 3, 8, 8), r'image_raw: expected \[2, 3, r, r\]'),
        ('template', None, r'template: expected \[2, 3, 16, 16\], got None'),
        ('label', randn(2, 24), r'label: expected \[N, 25\], got \[2, 24\]'),
    ]:
        with pytest.raises(ValueError, match=message):
            discriminator(**{**good, name: value})
