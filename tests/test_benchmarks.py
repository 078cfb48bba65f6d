"""benchmarks/: the arithmetic, the table, the records, and the line of RESULTS.md."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import ceilings, flops, ops, processes, report, stages, training
from benchmarks.compare import Row, Verdict, compare
from benchmarks.release import CONV_STAGES, PHASE_WEIGHTS, TARGETS, Target, recorded, references, work
from benchmarks.timing import Measurement
from dnnlib import UserError

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device('cpu')
TWICE = {name: 2 * rate for name, rate in recorded()['ceilings'].items()}  # a machine of double speed
RECORD: dict[str, Any] = {
    'date': '2030-01-02T03:04:05+00:00',
    'commit': 'abc1234',
    'processor': 'a | processor',
    'threads': 2,
    'cfg': 'ffhq512-release',
    'quick': False,
    'ceilings': [{'after': 'start', 'rates': {'gemm 2048^3 float32': 100.0}}],
}


def measured(group: str, name: str, precision: str, *seconds: float, **facts: Any) -> Measurement:
    return Measurement(group=group, name=name, precision=precision, seconds=seconds, **facts)


def at_double_speed(group: str, name: str, precision: str, *seconds: float, **facts: Any) -> Row:
    return compare(measured(group, name, precision, *seconds, **facts), rates=TWICE, full_size=True)


# Arithmetic.


def test_floor_is_the_work_at_the_ceilings() -> None:
    rates = {'conv3x3 1x512x64x64->512 float32 nhwc': 200.0, 'gemm 2048^3 float32': 50.0}
    work = {'conv 512->512@64': 100.0, 'gemm': 10.0}
    assert ceilings.floor_seconds(work, rates, 'fp32') == pytest.approx(0.5 + 0.2)
    assert ceilings.floor_seconds(work, rates, 'bf16') is None
    assert ceilings.floor_seconds({'conv 512->512@32': 1.0}, rates, 'fp32') is None


def test_ceilings_around_a_block() -> None:
    assert ceilings.mean_rates({'a': 100.0, 'b': 1.0}, {'a': 50.0}) == pytest.approx({'a': 200 / 3})
    assert ceilings.drift({'a': 100.0, 'b': 50.0}, {'a': 200.0, 'b': 100.0}) == pytest.approx(2.0)
    assert ceilings.drift({}, {}) is None


def test_rows_are_bounded_by_the_better_memory() -> None:
    plain = {'a': 10.0, 'b': 5.0, 'c': 1.0}
    assert ceilings.bounds({**plain, 'a, memory reused': 12.0, 'b, memory reused': 4.0}) == {**plain, 'a': 12.0}
    reused = {name + ceilings.REUSED: 2 * rate for name, rate in TWICE.items() if name.startswith('conv3x3')}
    facts = measured('stages', 'texture', 'fp32', 1.0)
    row, tighter = (compare(facts, rates=rates, full_size=True) for rates in (TWICE, {**TWICE, **reused}))
    assert row.fraction is not None
    assert tighter.fraction == pytest.approx(row.fraction / 2, rel=1e-3)
    assert tighter.ratio == row.ratio  # the release's ceilings were measured without


def test_shapes() -> None:
    for shape in ceilings.CONVOLUTIONS:
        name = str(ceilings.Shape(kind='conv', channels=shape[:2], side=shape[2]))
        assert str(ceilings.Shape.parse(name)) == name
        assert ceilings.Shape.parse(name).ceiling('fp32') in recorded()['ceilings']
        assert ceilings.Shape.parse(name).ceiling('bf16') in recorded()['ceilings']
    assert str(ceilings.nearest(512, 512, 8)) == 'conv 512->512@16'
    assert str(ceilings.nearest(96, 128, 260)) == 'conv 128->128@256'
    with pytest.raises(ValueError, match='shape: expected gemm'):
        ceilings.Shape.parse('conv 3x3')


def test_the_release_is_carried_over_without_its_rasterizer() -> None:
    row = at_double_speed('stages', 'image', 'fp32', 0.5, 1.0, 3.0)
    others = 0.0004 + 0.5794 + 0.7418 + 1.1903 + 0.6729 + 0.5699 + 2.4299
    assert row.release == pytest.approx(8.0791 + (13.66 - 8.0791) / 2)
    assert row.ratio == pytest.approx(10.86955)
    assert row.ratio_without == pytest.approx(others / 2)
    assert row.normalized_by == 'fp32 convolutions'
    assert [verdict.met for verdict in row.verdicts] == [True, True]
    # bf16 is bounded by its own ceilings, but the release ran in fp32.
    fast = at_double_speed('stages', 'image', 'bf16', 1.0)
    assert fast.ratio == row.ratio
    assert fast.fraction is not None
    assert row.fraction is not None
    assert fast.fraction < row.fraction


def test_training_image() -> None:
    seconds = (81.628 + 42.935 / 4 + 34.162 + 19.183 / 16) / 2
    rasterizer = 8.0791 * (2 + 2 / 4 + 2) / 2
    row = at_double_speed('training', 'image', 'fp32', 10.0, peak_bytes=int(14.932e9 / 2))
    assert row.release == pytest.approx(rasterizer + (seconds - rasterizer) / 2)
    assert row.ratio_without == pytest.approx((seconds - rasterizer) / 2 / 10)
    assert {verdict.target.kind: verdict.value for verdict in row.verdicts} == {
        'ratio': pytest.approx(row.ratio),
        'peak_share': pytest.approx(0.5),
    }


def test_memory_bound_rows() -> None:
    row = at_double_speed('ops', 'upfirdn2d up2 nhwc', 'fp32', 0.002, bytes_moved=101_000_000)
    assert row.floor == pytest.approx(0.001)  # 101 MB at 2 x 50.5 GB/s
    assert row.fraction == pytest.approx(0.5)
    assert row.ratio == pytest.approx(0.052173 / 2 / 0.002)
    assert row.normalized_by == 'bandwidth'
    assert row.verdicts[0].met
    assert not at_double_speed('ops', 'upfirdn2d up2 nhwc', 'fp32', 0.0021, bytes_moved=101_000_000).verdicts[0].met


def test_the_rasterizer_is_not_scaled() -> None:
    row = at_double_speed('stages', 'rasterize', 'fp32', 0.02)
    assert row.ratio == pytest.approx(8.0791 / 0.02)
    assert row.ratio_without is None
    assert row.normalized_by == 'nothing'
    assert row.verdicts[0].closeness == pytest.approx(0.5)
    assert str(row.verdicts[0]) == 'at most 0.01 s: 50% of it'


def test_what_is_not_known_is_not_invented() -> None:
    row = compare(measured('stages', 'texture', 'fp32', 1.0), rates={}, full_size=True)
    assert (row.floor, row.fraction, row.release, row.ratio, row.normalized_by) == (None, None, None, None, '')
    assert str(row.verdicts[0]) == '70% of ceiling: not measured'
    assert not row.verdicts[0].met
    small = compare(measured('stages', 'texture', 'fp32', 1.0), rates=TWICE, full_size=False)
    assert (small.gflop, small.ratio, small.verdicts) == (None, None, ())


def test_verdicts() -> None:
    target = Target(group='g', name='n', precision='', kind='ratio', value=4)
    assert Verdict(target=target, value=4.0).met
    assert Verdict(target=target, value=8.0).closeness == 1
    assert Verdict(target=target, value=3.0).closeness == 0.75
    assert str(Verdict(target=target, value=3.0)) == '4x: 75% of it'


def test_every_target_and_reference_is_a_row() -> None:
    known = {'stages': stages.ROWS, 'training': training.ROWS, 'ops': ops.rows(), 'processes': processes.ROWS}
    for target in TARGETS:
        assert target.name in known[target.group]
    for group, name in references():
        assert name in known[group] or name == 'query field 64^3'  # an op that may not exist yet


def test_counted_work_agrees_with_the_record() -> None:
    """Our networks do what the release's do; its record counts the filters apart."""
    for name in (*CONV_STAGES, 'volume'):
        theirs = sum(value for kind, value in recorded()['gflop_by_stage'][name].items() if kind != 'depthwise')
        assert sum(work()[name].values()) == pytest.approx(theirs, rel=0.03), name
    parts = sum(sum(work()[name].values()) for name in (*CONV_STAGES, 'volume'))
    assert sum(work()['image'].values()) == pytest.approx(parts, rel=1e-3)
    camera, animation = (sum(work()[name].values()) for name in ('camera', 'animation'))
    assert camera < animation < parts
    phases = sum(weight * sum(work()[name].values()) for name, weight in PHASE_WEIGHTS.items())
    assert sum(work()['training image'].values()) == pytest.approx(phases / 2, rel=1e-3)


def test_counting() -> None:
    x = torch.randn(2, 512, 8, 8, requires_grad=True)
    plain, up, filters = (
        nn.Conv2d(512, 512, 3, padding=1),
        nn.ConvTranspose2d(512, 8, 2, 2),
        nn.Conv2d(8, 8, 3, groups=8),
    )
    counted = flops.count(lambda: filters(up(plain(x))))
    plain_gflop, up_gflop = 2 * 2 * 64 * 512 * 512 * 9 / 1e9, 2 * 2 * 64 * 512 * 8 * 4 / 1e9
    assert sum(counted.values()) == pytest.approx(plain_gflop + up_gflop)
    assert counted['conv 512->512@16'] >= plain_gflop
    assert flops.count(lambda: plain(x).sum().backward()) == pytest.approx({'conv 512->512@16': 3 * plain_gflop})
    matrix = torch.randn(100, 100)
    assert flops.count(lambda: matrix @ matrix) == pytest.approx({'gemm': 2e6 / 1e9})


def test_committed_figures_are_finite() -> None:
    def numbers(value: Any) -> list[float]:
        if isinstance(value, dict):
            return [number for part in value.values() for number in numbers(part)]
        return [value] if isinstance(value, (int, float)) else []

    for name in ('release.json', 'work.json'):
        found = numbers(json.loads((ROOT / 'benchmarks' / name).read_text()))
        assert len(found) > 50
        assert all(math.isfinite(number) and number >= 0 for number in found)


# What a run tells.


def some_rows() -> list[Row]:
    return [
        at_double_speed('stages', 'rasterize', 'fp32', 0.008),
        at_double_speed('stages', 'image', 'fp32', 1.0, 1.1, 0.9),
        at_double_speed('stages', 'image', 'bf16', 0.5),
        at_double_speed('stages', 'texture', 'fp32', 0.2),
        at_double_speed('stages', 'blending', 'fp32', 0.4),
        at_double_speed('training', 'image', 'fp32', 9.0, peak_bytes=8_000_000_000),
        at_double_speed('ops', 'upfirdn2d up2 nhwc', 'fp32', 0.0012, bytes_moved=101_000_000),
        compare(measured('processes', 'import click', '-', 0.03, note='a note'), rates={}, full_size=False),
    ]


def test_table_is_aligned() -> None:
    lines = report.table(some_rows()).splitlines()
    assert len(lines) == 2 + len(some_rows())
    column = lines[0].index('median') + len('median')
    for line, row in zip(lines[2:], some_rows(), strict=True):
        assert line[:column].endswith(report.duration(row.measured.median))
        assert line.startswith(row.measured.group)
    assert '5x: met; 2.2x w/o rasterizer: met' in lines[3]
    assert lines[-1].endswith('a note')


def test_ceilings_are_shown_with_drift() -> None:
    rates = {ceilings.TRIAD: 50.0, 'gemm 1024^3 float16': 10.0}
    lines = list(report.ceiling_lines([rates, {name: 1.1 * rate for name, rate in rates.items()}]))
    assert lines[1].split()[-3:] == ['50', '50', '55']
    assert lines[2].split()[-3:] == ['-', '10', '11']
    assert lines[3].endswith('+10.0%')
    assert list(report.ceiling_lines([])) == []


def test_record_round_trip(tmp_path: Path) -> None:
    report.write_record(tmp_path / 'run.json', RECORD, some_rows())
    record, rows = report.read_record(tmp_path / 'run.json')
    assert record == RECORD
    assert rows == some_rows()


def test_result_line() -> None:
    cells = [cell.strip() for cell in report.result_line(RECORD, some_rows()).strip('|').split('|')]
    told = dict(zip(report.RESULT_COLUMNS, cells, strict=True))
    assert told['date (UTC)'] == '2030-01-02 03:04'
    assert told['machine'] == 'a / processor, 2 threads'
    assert told['rasterize'] == 'fp32 8.00 ms (1010x)'
    assert told['whole image'] == 'fp32 1.00 s (10.9x, 3.1x w/o raster) / bf16 500.00 ms (21.7x, 6.2x w/o raster)'
    assert told['animation frame'] == 'not measured'
    assert told['peak memory'] == 'fp32 8.0 GB'
    assert told['FIR, floors'] == 'fp32 1.2 to 1.2'
    low, high = (row.fraction for row in some_rows()[3:5])
    assert told['conv stages'] == f'fp32 {low:.0%} to {high:.0%}'
    assert 'quick' in report.result_line({**RECORD, 'quick': True}, [])


def test_results_keep_every_line(tmp_path: Path) -> None:
    results = tmp_path / 'RESULTS.md'
    text = (ROOT / 'benchmarks' / 'RESULTS.md').read_text()
    results.write_text(text)
    threads = [threading.Thread(target=report.append_result, args=(results, f'| line {i} |')) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = results.read_text()
    assert now.startswith(text.rstrip('\n'))
    assert sorted(now[len(text.rstrip('\n')) :].split('\n')[1:-1]) == sorted(f'| line {i} |' for i in range(12))
    assert list(tmp_path.iterdir()) == [results]


def test_failed_append_leaves_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / 'RESULTS.md'
    results.write_text((ROOT / 'benchmarks' / 'RESULTS.md').read_text())
    before = results.read_text()

    def full(*_: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.replace', full)
    with pytest.raises(UserError, match='disk is full'):
        report.append_result(results, '| line |')
    monkeypatch.undo()
    assert results.read_text() == before
    other = tmp_path / 'notes.md'
    other.write_text('# Notes\n')
    with pytest.raises(UserError, match='has no table of results'):
        report.append_result(other, '| line |')
    with pytest.raises(UserError, match='cannot be read'):
        report.append_result(tmp_path / 'none.md', '| line |')
    assert other.read_text() == '# Notes\n'
