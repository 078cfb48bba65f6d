"""How well fits of known heads come back: profiles, noise, another head model; and that nothing else decides them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from applications.preprocessing.fit import CONTOUR, Fit, fit_heads, project_head
from applications.preprocessing.priors import ExpressionPrior, WeightPrior
from tests import cases_flame
from tests.cases_preprocessing import random_heads
from tools.evaluate_fits import expression_weights, skull_error
from training import cameras
from training.head import load_head_model
from training.head.flame import FlameHead
from training.head.makehuman import MakeHumanHead
from training.head.model import HeadModel, HeadParams

SIDE = 512  # pixels of the crops in which errors are counted


@pytest.fixture(scope='module')
def model() -> MakeHumanHead:
    head = load_head_model('makehuman')
    assert isinstance(head, MakeHumanHead)
    return head


def fit_seen(model: HeadModel, params: HeadParams, label: Tensor, *, pixels: float) -> Fit:
    """The fit of known heads' landmarks and iris points under noise."""
    rng = torch.Generator().manual_seed(0)
    landmarks, iris = (
        points + pixels / SIDE * torch.randn(points.shape, generator=rng)
        for points in project_head(model, params, label)
    )
    return fit_heads(model, landmarks, iris=iris)


@pytest.mark.parametrize(('pixels', 'degrees', 'error'), [(0.0, 1.0, 0.6), (1.0, 1.5, 1.6)])
def test_a_profile_of_60_degrees_converges(model: MakeHumanHead, pixels: float, degrees: float, error: float) -> None:
    params, _ = random_heads(model, 4, seed=30)
    yaw = math.radians(60) * torch.tensor([1.0, -1.0, 1.0, -1.0])
    label = cameras.orbit_camera(yaw, torch.tensor([0.0, 0.1, -0.1, 0.2]), roll=torch.tensor([0.0, 0.1, 0.0, -0.1]))
    fit = fit_seen(model, params, label, pixels=pixels)
    assert skull_error(fit, params=params, label=label).norm(dim=1).max() < degrees
    assert fit.error.mean(dim=1).max() * SIDE < error


def test_a_fit_does_not_depend_on_its_batch_or_on_the_run(model: MakeHumanHead) -> None:
    params, label = random_heads(model, 3, seed=4)
    landmarks, iris = project_head(model, params, label)
    landmarks = landmarks + torch.randn(landmarks.shape, generator=torch.Generator().manual_seed(1)) / SIDE
    together, again = (fit_heads(model, landmarks, iris=iris) for _ in range(2))
    alone = fit_heads(model, landmarks[1:2], iris=iris[1:2])
    assert together.iris_error is not None
    assert alone.iris_error is not None
    for key, value in together.params.as_dict().items():
        assert torch.equal(value, again.params.as_dict()[key])
    assert torch.equal(together.label, again.label)
    assert torch.allclose(together.landmarks[1], alone.landmarks[0], atol=2e-4)
    assert torch.allclose(together.iris_error[1], alone.iris_error[0], atol=2e-4)
    assert torch.allclose(together.params.eyes[1], alone.params.eyes[0], atol=2e-3)


def test_noise_is_not_taken_for_expression(model: MakeHumanHead) -> None:
    """Under a pixel of noise the named weights come back better than as zeros, and what is not shown stays small."""
    params, label = random_heads(model, 6, seed=31)
    fit = fit_seen(model, params, label, pixels=1.0)
    wanted, got = (expression_weights(model, p) for p in (params, fit.params))
    assert (got - wanted).abs().mean() < 0.85 * wanted.abs().mean()
    hidden = wanted.abs().amax(dim=0) < 1e-3
    assert got[:, hidden].abs().mean() < 0.03
    assert got.min() > -0.1
    assert skull_error(fit, params=params, label=label).norm(dim=1).mean() < 1.2


def test_expression_prior_counts_both_sides_as_one(model: MakeHumanHead) -> None:
    prior = ExpressionPrior(model, WeightPrior(size=0.2, smooth=0.02, negative=5.0))
    names = list(model.expression_names)
    weights = torch.zeros(3, len(names))
    weights[0, names.index('mouthSmileLeft')], weights[0, names.index('mouthSmileRight')] = 0.3, 0.4
    weights[1, names.index('cheekPuff')] = 0.5
    weights[2, names.index('cheekPuff')] = -0.1
    length = prior.residuals(model.expression_coefficients(weights)).norm(dim=-1)
    assert list(length.shape) == [3, len(prior)]
    cost = torch.where(length < prior.robust, 0.5 * length**2, prior.robust * (length - 0.5 * prior.robust)).sum(dim=1)
    # Laplace: weight / size, less half of what the round top takes off.
    assert torch.allclose(cost, torch.full((3,), 0.5 / 0.2 - 0.02 / 0.4), atol=1e-4)


def test_a_flame_head_comes_back(tmp_path: Path) -> None:
    """The made-up FLAME, with a tenth of its spread: at the whole one its 40 vertices take any shape, and so
    any pose. No accuracy of a true FLAME can be read from it, only that pose and eyes are found."""
    arrays = cases_flame.arrays()
    arrays['shapedirs'] = 0.1 * arrays['shapedirs']
    flame = FlameHead(cases_flame.write_folder(tmp_path, arrays))
    assert len(ExpressionPrior(flame, WeightPrior())) == 0
    rng = torch.Generator().manual_seed(1)
    count = 6
    params = flame.neutral(count).replace(
        identity=torch.randn(count, flame.num_identity, generator=rng),
        expression=torch.randn(count, flame.num_expression, generator=rng),
    )
    label = cameras.orbit_camera(0.25 * torch.randn(count, generator=rng), 0.12 * torch.randn(count, generator=rng))
    for pixels, degrees, error in ((0.0, 2.5, 0.8), (1.0, 3.0, 1.8)):
        fit = fit_seen(flame, params, label, pixels=pixels)
        pose = skull_error(fit, params=params, label=label).norm(dim=1)
        jaw = torch.rad2deg((fit.params.jaw - params.jaw).abs()).mean()
        print(f'{pixels:g} px: pose {pose.mean():.2f} ({pose.max():.2f}), jaw {jaw:.2f} degrees')
        assert pose.mean() < degrees
        assert fit.error[:, CONTOUR.stop :].mean() * SIDE < error
