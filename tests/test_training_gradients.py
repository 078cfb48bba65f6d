"""Every loss term's gradient in float64: against differences, and of the native ops against their twins.

What autograd takes for constant (importance samples, alpha masks, mouth boxes; the fakes that D sees) is held fixed
while parameters move. The kinks (leaky ReLU, |x| of the L1 density) are not avoided: the pipeline has some 1e5 of
them, so a step now and then crosses one, which spoils the difference on that side and the central one by that
activation's share. Hence a step as small as 1e-7, and the difference on either side may agree instead; both sides are
spoilt with a probability below 1e-4. Tolerances: rounding a loss of about 1 leaves 2e-16 / 1e-7 = 2e-9 of a slope, and
one-sided differences err by half the step times the curvature; 5e-9 absolute and 1e-5 relative bound the two.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases_gradients import Objective, gradients, slopes

from training.augment import Augment
from training.loss import Schedule

LIVELY: dict[str, Any] = {
    'augment': Augment(camera=True),
    'schedule': Schedule(blur_sigma=0.7, swap_probability=0.0, augment_probability=0.8, render_resolution=6),
    'D__label_noise': 1.0,
    'D__label_dim': 28,
}
SETTINGS: dict[str, dict[str, Any]] = {
    'plain': {'D__label_dim': 25},
    'lively': LIVELY,
    'no template': {**LIVELY, 'D__template': 'none'},
    'l1': {'L__density_norm': 'l1', 'L__density_box': 1.0},
}
CASES = [
    ('generator', 'plain'),
    ('generator', 'lively'),
    ('density', 'plain'),
    ('density', 'l1'),
    ('discriminator', 'plain'),
    ('discriminator', 'lively'),
    ('discriminator', 'no template'),
    ('r1', 'plain'),
    ('r1', 'lively'),
    ('r1', 'no template'),
]


@pytest.mark.parametrize(('term', 'setting'), CASES)
def test_gradient_is_the_slope_of_the_loss(term: str, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Along a random direction of each sub-network, so that none hides behind a steeper one."""
    monkeypatch.setenv('NEXT3D_OPS', 'reference')
    networks = ('decoder', 'texture') if setting == 'l1' else None  # the rest is as with l2
    for group, found in slopes(Objective(**SETTINGS[setting]), term, networks=networks).items():
        numeric = (found.central, found.forward, found.backward)
        assert any(found.exact == pytest.approx(value, rel=1e-5, abs=5e-9) for value in numeric), (group, found)
        assert (found.exact == 0) == (term == 'density' and group == 'superres'), group


@pytest.mark.parametrize('term', ['generator', 'density', 'discriminator', 'r1'])
def test_native_ops_give_the_gradient_of_their_twins(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, where rounding hides nothing; R1 goes through each of its ops twice."""
    found = []
    for mode in ('reference', 'native'):
        monkeypatch.setenv('NEXT3D_OPS', mode)
        found.append(gradients(Objective(**LIVELY), term))
    largest = max(float(value.abs().max()) for value in found[0].values())
    assert largest > 0
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-8, atol=1e-11 * largest, msg=name)


def test_r1_in_float32_keeps_its_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The native ops' second order at the precision of training, against the twins in float64.

    1e-6 of a gradient is rounding; one activation that rounding puts on the other side of its kink costs 1e-5.
    """
    results = []
    for mode, dtype in (('reference', torch.float64), ('native', torch.float32)):
        monkeypatch.setenv('NEXT3D_OPS', mode)
        objective = Objective(D__label_dim=25)
        objective.discriminator.to(dtype)
        objective.images = objective.images.to(dtype)
        objective.real = objective.cast(objective.real, dtype)
        results.append(gradients(objective, 'r1'))
    largest = max(float(value.norm()) for value in results[0].values())
    for name, exact in results[0].items():
        error = float((results[1][name].double() - exact).norm())
        assert error <= 1e-4 * float(exact.norm()) + 1e-5 * largest, (name, error, float(exact.norm()))
