"""benchmarks/precision.py: image PSNR and training curves of two precisions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from cases_outputs import write_snapshot
from cases_training import CPU, count_images, open_sheet_dataset, tiny_config, tiny_dataset
from click.testing import CliRunner, Result

from benchmarks import precision
from training import loop


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(precision.main, list(arguments))


def write_run(folder: Path, *, g: float, d: float, metric: float | None = None, ticks: int = 8) -> str:
    """A run's records as training writes them; the first half of the losses is wild."""
    folder.mkdir()
    lines = []
    for tick in range(1, ticks + 1):
        wild = 100.0 if tick <= ticks // 2 else 0.0
        losses = {'Loss/G/loss': {'num': 4, 'mean': g + wild}, 'Loss/D/loss': {'num': 4, 'mean': d + wild}}
        lines.append(json.dumps({'images_seen': 1000 * tick, 'Progress/kimg': tick, **losses}))
    (folder / 'stats.jsonl').write_text('\n'.join(lines) + '\n')
    if metric is not None:
        rows = [{'metric': 'fd', 'value': value, 'images_seen': seen} for seen, value in ((4000, 9.0), (8000, metric))]
        (folder / 'metric-fd.jsonl').write_text('\n'.join(json.dumps(row) for row in rows) + '\n')
    return str(folder)


def test_psnr() -> None:
    image = torch.zeros(3, 4, 4)
    assert precision.psnr(image, image + 0.02) == pytest.approx(40.0, abs=1e-4)
    assert precision.psnr(image, image + 2) == pytest.approx(0.0)
    assert precision.psnr(image, image) == math.inf


def test_images_of_a_network(tmp_path: Path) -> None:
    network = str(write_snapshot(tmp_path / 'network-snapshot-000004.pkl'))
    found = precision.compare_images(network, [0, 1], ['neutral', 'jawOpen'], 'bf16', 'cpu')
    assert len(found) == 2 * 2 * len(precision.YAWS)
    assert all(20 < value < 100 for value in found.values())  # neither equal to fp32 nor far from it
    assert set(precision.compare_images(network, [0], ['neutral'], 'fp32', 'cpu').values()) == {math.inf}
    result = invoke('images', f'--network={network}', '--seeds=0', '--expressions=neutral', '--device=cpu')
    met = min(value for case, value in found.items() if case.startswith('seed 0, neutral')) >= precision.TARGET_DB
    assert result.exit_code == (0 if met else 1), result.output
    assert result.output.startswith('bf16: 2 images, min ')


def test_image_options() -> None:
    for arguments, message in (
        (('images', '--precision=fp8'), "--precision: expected bf16, fp16 or both, got 'fp8'"),
        (('images', '--seeds=x'), '--seeds: expected numbers'),
        (('images', '--network=/nowhere.pkl'), '/nowhere.pkl: No such file'),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 1
        assert result.output.startswith(f'Error: {message}')
        assert len(result.output.splitlines()) == 1


def test_comparison_by_hand(tmp_path: Path) -> None:
    """Means 1 and 1.8, standard deviations 0.1414 over two runs each: standard error 0.1414, 2 degrees of freedom."""
    baseline = [write_run(tmp_path / f'a{i}', g=value, d=2.0, metric=5.0 + i) for i, value in enumerate((0.9, 1.1))]
    other = [write_run(tmp_path / f'b{i}', g=value, d=2.5, metric=5.5) for i, value in enumerate((1.7, 1.9))]
    g, d, metric = precision.compare_runs(baseline, other, window=0.25)
    assert (g.baseline.name, g.baseline.kimg) == ('Loss/G/loss', 8.0)
    assert (g.baseline.mean, g.other.mean) == (pytest.approx(1.0), pytest.approx(1.8))
    assert [g.baseline.spread, g.other.spread] == pytest.approx([0.02**0.5] * 2)
    assert g.margin == pytest.approx(4.30265 * 0.02**0.5, rel=1e-5)  # of Student's t table
    assert not g.within_noise  # 0.8 > 0.61
    assert not d.within_noise  # no spread at all, another mean
    assert (metric.baseline.name, metric.baseline.kimg, metric.within_noise) == ('fd', 8.0, True)
    arguments = [f'--baseline={run}' for run in baseline] + [f'--other={run}' for run in other]
    result = invoke('curves', *arguments)
    assert result.exit_code == 1
    assert result.output.count('DIFFERENT') == 2
    assert result.output.count('within noise') == 1
    same = invoke('curves', *arguments[:2], *(f'--other={run}' for run in baseline))
    assert same.exit_code == 0
    assert same.output.count('within noise') == 3


def test_runs_of_unequal_length(tmp_path: Path) -> None:
    """All are read up to where the shortest ends; metrics where all of them have one."""
    runs = [write_run(tmp_path / 'long', g=1, d=1, metric=5, ticks=8), write_run(tmp_path / 'short', g=1, d=1, ticks=4)]
    found = list(precision.compare_runs(runs, runs, window=0.25))
    assert [one.baseline.kimg for one in found] == [4.0, 4.0]
    assert found[0].baseline.mean == pytest.approx((101 + 1) / 2)  # the long run is still wild at kimg 3 and 4


def test_records_of_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_dataset(tmp_path).path
    monkeypatch.setattr(loop, 'open_dataset', open_sheet_dataset)
    config = tiny_config(data, kimg=0.016, tick_kimg=0.008, snapshot_ticks=1, metrics=['images'])
    loop.train(CPU, config=config, options=loop.RunOptions(outdir=str(tmp_path / 'run')), evaluate=count_images)
    losses = precision.read_losses(tmp_path / 'run')
    assert [kimg for kimg, _ in losses][-1] == pytest.approx(0.016)
    assert all(set(values) == set(precision.CURVES) for _, values in losses)
    assert precision.read_metrics(tmp_path / 'run')['images'][0.016] == 16.0


def test_wrong_runs_are_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / 'run', g=1, d=1)
    (tmp_path / 'odd').mkdir()
    (tmp_path / 'odd' / 'stats.jsonl').write_text('{"images_seen": 3}\n')
    for other, message in (
        ('/nowhere', '/nowhere/stats.jsonl: cannot be read'),
        (str(tmp_path / 'odd'), 'a line has no Progress/kimg'),
    ):
        result = invoke('curves', f'--baseline={run}', f'--baseline={run}', f'--other={run}', f'--other={other}')
        assert result.exit_code == 1
        assert message in result.output
        assert len(result.output.splitlines()) == 1
    result = invoke('curves', f'--baseline={run}', f'--other={run}')
    assert 'give each at least twice' in result.output
