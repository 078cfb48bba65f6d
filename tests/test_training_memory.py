"""The memory estimate against the bytes of a real step, --batch-gpu=auto, and running out of memory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases_training import CPU, tiny_config, tiny_dataset, tiny_trainer

from dnnlib import UserError
from torch_utils.distributed import Communicator
from torch_utils.precision import choose_precision
from training import batch_fit
from training.batch_fit import choices, fit_batch_gpu, largest_that_fits, memory_explained, settle_batch_gpu
from training.generator import STAGES
from training.memory import Estimate, LiveBytes, estimate


def test_the_estimate_is_what_a_real_step_holds(tmp_path: Path) -> None:
    """The largest phase, counted over real tensors by the same counter."""
    dataset = tiny_dataset(tmp_path)
    config = tiny_config(dataset.path, batch_gpu=4)
    expected = estimate(config, dataset, batch_gpu=4, ranks=1, precision=choose_precision('fp32', CPU.device))
    trainer = tiny_trainer(tmp_path, batch_gpu=4)
    parameters = [*trainer.generator.parameters(), *trainer.discriminator.parameters()]
    trained = sum(4 * parameter.numel() for parameter in parameters)
    assert expected.gradients == trained
    assert expected.optimizer == 2 * trained
    trainer.g.optimizer.step = trainer.d.optimizer.step = lambda: None  # type: ignore[method-assign]
    real = next(trainer.loader())
    with LiveBytes() as live:
        trainer.step(real)
    # Gradients and activations; the step holds its inputs and statistics besides.
    counted = expected.activations + expected.gradients
    assert live.peak == pytest.approx(counted, rel=0.1), (live.peak, expected)


def fake_estimates(patch: pytest.MonkeyPatch, *, fixed: int, each: int, free: int) -> list[dict[str, Any]]:
    """Let estimates be a straight line, and free memory a number; returns what was asked."""
    asked: list[dict[str, Any]] = []

    def line(config: Any, dataset: Any, *, batch_gpu: int, **options: Any) -> Estimate:
        asked.append({'batch_gpu': batch_gpu, **options})
        parts = dict.fromkeys(('parameters', 'average', 'gradients', 'optimizer', 'exchange'), 0)
        return Estimate(**{**parts, 'parameters': fixed}, batch_gpu=batch_gpu, activations=each * batch_gpu, phase='x')

    patch.setattr(batch_fit, 'estimate', line)
    patch.setattr(batch_fit, 'free_memory', lambda: free)
    return asked


def test_auto_takes_the_largest_divisor_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(tiny_config(batch=12), batch_gpu=None)
    assert choices(config) == [12, 6, 4, 3, 2, 1]
    assert choices(dataclasses.replace(config, clip_frames=2)) == [12, 6, 4, 2]
    asked = fake_estimates(monkeypatch, fixed=2**30, each=2**29, free=5 * 2**30)
    dataset: Any = None
    fitted, why = fit_batch_gpu(CPU, config, dataset, checkpoint=frozenset(STAGES))
    assert fitted.batch_gpu == 6  # 1 + 6 / 2 = 4 GiB of 0.8 * 5
    assert why == 'batch-gpu 6 (auto: an estimated 4.00 GiB of 4.00 GiB for each of 1 rank(s) here)'
    assert [one['batch_gpu'] for one in asked] == [1, 2]
    assert asked[0]['checkpoint'] == frozenset(STAGES)
    monkeypatch.setattr(batch_fit, 'free_memory', lambda: 2**30)
    with pytest.raises(UserError, match='^--batch-gpu=auto: not even 1 fits .*--grad-checkpoint'):
        fit_batch_gpu(CPU, config, dataset, checkpoint=frozenset())


def test_an_accelerator_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real steps on a stand-in of a device that holds two images."""
    dataset = tiny_dataset(tmp_path)
    tried = []

    class SmallTrainer(batch_fit.Trainer):
        def step(self, real: Any) -> None:
            tried.append(self.config.batch_gpu)
            if len(real[0].images) > 2:
                raise torch.OutOfMemoryError('tried to allocate 20 GiB')
            super().step(real)

    monkeypatch.setattr(batch_fit, 'Trainer', SmallTrainer)
    config = dataclasses.replace(tiny_config(dataset.path, batch=8), batch_gpu=None)
    size, why = batch_fit._by_trial(CPU, config, dataset, choices(config), checkpoint=frozenset())
    assert (size, tried) == (2, [8, 4, 2])
    assert 'ran on every rank' in why


def test_nothing_fits() -> None:
    assert largest_that_fits([8, 4, 2], lambda size: False) == 0


def test_the_number_of_a_run_is_kept(tmp_path: Path) -> None:
    config = tiny_config(batch=8)
    assert settle_batch_gpu(config, str(tmp_path), auto=False).batch_gpu == 8
    assert settle_batch_gpu(config, str(tmp_path), auto=True).batch_gpu is None
    (tmp_path / 'training_options.json').write_text(json.dumps({'batch_gpu': 2}))
    for auto in (False, True):
        assert settle_batch_gpu(config, str(tmp_path), auto=auto).batch_gpu == 2
    assert settle_batch_gpu(dataclasses.replace(config, gpus=8), str(tmp_path), auto=True).batch_gpu is None


@pytest.mark.parametrize(
    'error',
    [torch.OutOfMemoryError('x'), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")],
)
def test_running_out_of_memory_is_one_line_with_a_remedy(error: Exception) -> None:
    config = tiny_config(batch=8, batch_gpu=4)
    communicator = Communicator(torch.device('cpu'))
    communicator.progress.enter('Gmain')
    expected = 'rank 0 ran out of memory in phase Gmain at batch-gpu 4; use --batch-gpu=2 or auto, or --grad-checkpoint'
    with pytest.raises(UserError, match=f'^{expected}$'), memory_explained(communicator, config):
        raise error
    with pytest.raises(RuntimeError, match='^a defect$'), memory_explained(communicator, config):
        raise RuntimeError('a defect')


def test_the_system_tells_its_free_memory() -> None:
    free = batch_fit.free_memory()
    assert free is not None
    assert 2**20 < free < 2**50
