"""Loss scaling, half precision in training, and what happens to gradients that are not finite."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from cases_training import tiny_trainer
from torch import Tensor

from torch_utils.precision import GROWTH_STEPS, MAX_SCALE, LossScale, Precision
from training import trainer as trainer_module
from training.trainer import DivergedError, Trainer


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 as on a GPU: CPUs have it too, only slowly."""
    chosen = Precision(name='fp16', device_type='cpu', reason='a test')
    monkeypatch.setattr(trainer_module, 'choose_precision', lambda *_: chosen)


def test_a_scale_halves_on_overflow_and_doubles_after_good_steps() -> None:
    scale = LossScale(active=True)
    assert scale.value == MAX_SCALE
    assert scale.shrink()
    assert scale.shrink()
    for _ in range(GROWTH_STEPS - 1):
        scale.grow()
    assert scale.value == MAX_SCALE / 4
    resumed = LossScale(active=True)
    resumed.load_state(scale.state())
    for one in (scale, resumed):
        one.grow()
        assert one.value == MAX_SCALE / 2
    gradients = [torch.tensor([3.0, 2.0**-40])]
    scale.undo_(gradients)
    assert gradients[0].tolist() == [3 / scale.value, 2.0**-40 / scale.value]


def test_a_scale_of_one_is_not_to_blame() -> None:
    scale = LossScale(active=True)
    halvings = 0
    while scale.shrink():
        halvings += 1
    assert (halvings, scale.value) == (16, 1.0)
    off = LossScale(active=False)
    assert not off.shrink()
    off.load_state({'value': 8.0, 'good_steps': 3})
    assert off.value == 1


def test_half_precision_trains_with_a_scale(half: None, tmp_path: Path) -> None:
    """All phases: the scale falls until gradients fit, then steps are made; the state keeps it."""
    trainer = tiny_trainer(tmp_path, batch=2)
    before = trainer.networks()
    dtypes = set()
    trainer.discriminator.fromrgb.register_forward_hook(lambda _, __, output: dtypes.add(output.dtype))
    loader = trainer.loader()
    for _ in range(2):
        trainer.step(next(loader))
    assert torch.float16 in dtypes
    numbers = trainer.stats.collect(trainer.communicator)
    assert numbers['Gradient/Gmain/scale'].mean <= MAX_SCALE
    after = trainer.networks()
    for name in ('G', 'D'):
        assert any(not torch.equal(before[name][key], value) for key, value in after[name].items()), trainer.notices
        assert all(value.isfinite().all() for value in after[name].values())
    trainer.g.scale.value = 128.0
    other = tiny_trainer(tmp_path, batch=2)
    other.load_state(trainer.state(), where='state')
    assert other.g.scale.state() == trainer.g.scale.state()


def test_scaled_gradients_are_those_of_the_loss(half: None, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.g.optimizer.step = lambda: None  # type: ignore[method-assign]
    weight = trainer.g.parameters[0]
    assert trainer.optimize('Gmain', trainer.g, lambda *_: (weight * 3e-6).sum())
    assert weight.grad is not None
    assert torch.allclose(weight.grad, torch.full_like(weight, 3e-6), rtol=1e-6)


def poisoned(trainer: Trainer, poison: Tensor, part: str) -> Tensor:
    """A loss whose gradients are NaN in one sub-network of G and 1 in another."""
    bad = sum(parameter.sum() for parameter in getattr(trainer.generator, part).parameters())
    good = sum(parameter.sum() for parameter in trainer.generator.decoder.parameters())
    return poison * bad + good


def test_the_sub_network_where_it_began_is_named(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.max_skipped = 2
    trainer.images_seen = 12
    poison = torch.full([], math.nan)
    assert not trainer.optimize('Gmain', trainer.g, lambda *_: poisoned(trainer, poison, 'static'))
    numbers = trainer.stats.collect(trainer.communicator)
    assert numbers['Gradient/Gmain/nonfinite/static'].mean == 1
    assert 'Gradient/Gmain/nonfinite/decoder' not in numbers
    assert trainer.notices == [
        'Gmain: non-finite gradients at kimg 0.012, first in static (100.00% of its numbers); step skipped'
    ]
    with pytest.raises(DivergedError, match='Gdensity: 2 steps in a row .* at kimg 0.012, first in texture'):
        trainer.optimize('Gdensity', trainer.g, lambda *_: poisoned(trainer, poison, 'texture'))
    assert trainer.state()['counters']['skipped'] == 2


def test_overflow_of_a_scaled_loss_does_not_count_as_divergence(half: None, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.max_skipped = 1
    limit = torch.tensor(2.0**115)  # overflows float32 with every scale above 2^12
    weight = trainer.g.parameters[0]
    made = [trainer.optimize('Gmain', trainer.g, lambda *_: (weight * limit).sum()) for _ in range(5)]
    assert made == [False] * 5
    assert (trainer.skipped_in_row, trainer.skipped) == (0, 5)
    assert trainer.g.scale.value == MAX_SCALE / 32
    assert 'overflow' in trainer.notices[0]
