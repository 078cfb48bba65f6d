"""benchmarks/monitors.py: steps and looks are taken, and the share is that of a tick."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import monitors
from tests.cases_dataset import make_dataset
from training.config import preset
from training.head import load_head_model


def test_a_look_is_compared_with_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitors, 'LOOK_EVERY', 1)
    data = make_dataset(tmp_path / 'a.zip', count=4, resolution=16, model=load_head_model('makehuman'))
    config = preset('debug', {'data': str(data), 'batch_gpu': 4, 'L.r1_interval': 1, 'L.density_interval': 1})
    cost = monitors.measure(config, cycles=1)
    assert cost.step > 0
    assert cost.look > 0
    assert cost.steps_per_tick == 4
    cost = monitors.Cost(step=2.0, look=1.0, steps_per_tick=4.5)
    assert cost.share == pytest.approx(0.1)


def test_an_unknown_preset_is_one_line() -> None:
    result = CliRunner().invoke(monitors.main, ['--cfg=huge'])
    assert result.exit_code == 1
    assert result.output.startswith('Error: --cfg: expected one of ffhq512')
