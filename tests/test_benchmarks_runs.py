"""benchmarks/: small runs that really measure, whole commands, and one line for every wrong option."""

from __future__ import annotations

import mmap
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from benchmarks import ceilings, ops, processes, report, run, stages, training, worker
from benchmarks.release import PHASE_WEIGHTS
from benchmarks.subjects import FLAME_FACES, build_subject, split_faces
from benchmarks.timing import Measurement, StageClock, peak_bytes, repeat, start_peak
from dnnlib import UserError
from torch_utils.ops import rasterize
from training.head.makehuman import embedded_head

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device('cpu')


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(run.main, list(arguments))


def refused(result: Result, message: str) -> None:
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1


# Measuring.


def test_timing() -> None:
    calls: list[int] = []
    assert len(repeat(lambda: calls.append(1), runs=3, device=CPU, inner=2)) == 3
    assert len(calls) == 1 + 3 * 2

    class Sleep(nn.Module):
        def forward(self, seconds: float) -> None:
            threading.Event().wait(seconds)

    clock = StageClock({'sleep': Sleep(), 'idle': Sleep()}, CPU)
    with clock.running():
        clock.modules['sleep'](0.03)
        clock.modules['sleep'](0.03)
    assert set(clock.seconds) == {'sleep'}
    assert 0.06 <= clock.seconds['sleep'] < 1
    assert not clock.modules['sleep']._forward_hooks


@pytest.mark.skipif(sys.platform != 'linux', reason='peak memory can be reset on Linux alone')
def test_peak_memory_is_of_its_own_time() -> None:
    start_peak(CPU)
    before = peak_bytes(CPU)
    with mmap.mmap(-1, 64 << 20) as block:  # fresh pages: tensors may reuse resident memory
        block.write(bytes(64 << 20))
        high = peak_bytes(CPU)
    assert before is not None
    assert high is not None
    assert high - before > 48 << 20


def test_split_faces_keeps_the_surface() -> None:
    template = embedded_head().template
    finer, corners = split_faces(template, num_faces=FLAME_FACES)
    assert len(finer.faces) == len(finer.uv_faces) == FLAME_FACES
    assert torch.equal(finer.vertices[len(template.vertices) :], template.vertices[corners].mean(dim=1))
    for points, faces, old_points, old_faces in (
        (finer.vertices, finer.faces, template.vertices, template.faces),
        (finer.uv, finer.uv_faces, template.uv, template.uv_faces),
    ):
        areas = [area(p, f) for p, f in ((points, faces), (old_points, old_faces))]
        assert areas[0] == pytest.approx(areas[1], rel=1e-4)
    drawn = [
        rasterize.rasterize(vertices[None] * 5, faces, height=64, width=64).face_ids >= 0
        for vertices, faces in ((finer.vertices, finer.faces), (template.vertices, template.faces))
    ]
    assert (drawn[0] != drawn[1]).float().mean() < 0.01  # centres on a new edge belong to no face
    with pytest.raises(ValueError, match='num_faces'):
        split_faces(template, num_faces=FLAME_FACES + 1)


def area(points: torch.Tensor, faces: torch.Tensor) -> float:
    points = nn.functional.pad(points, (0, 3 - points.shape[1])).double()
    a, b, c = points[faces].unbind(1)
    return float(torch.linalg.cross(b - a, c - a).norm(dim=1).sum() / 2)


def test_ceilings_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, 'CONVOLUTIONS', ((8, 8, 16),))
    monkeypatch.setattr(ceilings, 'TRANSPOSED', ((8, 8, 16),))
    monkeypatch.setattr(ceilings, 'GEMMS', (32,))
    rates = ceilings.measure(('fp32', 'bf16'), device=CPU, runs=1, small=False)
    assert set(rates) == {
        *(ceilings.MEMCPY.format(size) for size in (64, 512)),
        ceilings.TRIAD,
        *(f'conv3x3 1x8x16x16->8 {dtype} nhwc' for dtype in ('float32', 'bfloat16')),
        *(f'conv3x3 1x8x16x16->8 {dtype} nhwc, memory reused' for dtype in ('float32', 'bfloat16')),
        *(f'convT3x3s2 1x8x16x16->8 {dtype} nhwc' for dtype in ('float32', 'bfloat16')),
        *(f'gemm 32^3 {dtype}' for dtype in ('float32', 'bfloat16')),
    }
    assert all(rate > 0 for rate in rates.values())


def test_stages_add_up() -> None:
    subject = build_subject('debug', batch=1, device=CPU)
    rows = {row.name: row for row in stages.measure(subject, precision='fp32', runs=2, names=frozenset(stages.ROWS))}
    assert list(rows) == list(stages.ROWS)
    for turn in range(2):
        took = {name: row.seconds[turn] for name, row in rows.items()}
        assert took['image'] > took['animation'] > took['camera'] > took['superres'] > 0
        assert sum(took[name] for name in ('mapping', *stages.MODULES)) < took['image']
    some = stages.measure(subject, precision='bf16', runs=1, names=frozenset({'camera'}))
    assert [(row.name, row.precision, len(row.seconds)) for row in some] == [('camera', 'bf16', 1)]


def test_training_trains() -> None:
    subject = build_subject('debug', batch=2, device=CPU)
    before = {name: value.clone() for name, value in subject.generator.named_parameters()}
    rows = {
        row.name: row for row in training.measure(subject, precision='fp32', runs=2, names=frozenset(training.ROWS))
    }
    assert list(rows) == list(training.ROWS)
    for turn in range(2):
        parts = {name: rows[name].seconds[turn] for name in PHASE_WEIGHTS}
        expected = (parts['Gmain'] + parts['Greg'] / 4 + parts['Dmain'] + parts['Dreg'] / 16) / 2
        assert rows['image'].seconds[turn] == pytest.approx(expected)
    assert any(not torch.equal(value, before[name]) for name, value in subject.generator.named_parameters())
    assert all(value.grad is None for value in subject.generator.parameters())


def test_ops_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, 'SIDE', 8)
    monkeypatch.setattr(ops, 'CHANNELS', 4)
    more = ops.import_cases('cases_op_benchmarks')
    for name, value in {'SIDE': 8, 'CHANNELS': 4, 'PLANE_SIDE': 8, 'PLANE_POINTS': 10, 'GRID_POINTS': 10}.items():
        monkeypatch.setattr(more, name, value)
    for precision in ('fp32', 'bf16'):
        names = ops.rows(precision)
        rows = list(ops.measure(precision=precision, runs=1, names=frozenset(names), device=CPU))
        assert [row.name for row in rows] == list(names)
        traffic = {row.name: row.bytes_moved for row in rows}
        size = 4 if precision == 'fp32' else 2
        assert traffic['upfirdn2d up2 nhwc'] == traffic['upfirdn2d down2 nchw'] == 4 * (64 + 16) * size
        assert traffic['bias_act lrelu nchw'] == 2 * 4 * 64 * size


def test_other_cases_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'cases_extra.py').write_text(
        'def op_benchmarks(device, dtype):\n    yield "extra op", lambda: (lambda: None, 12)\n'
    )
    monkeypatch.setattr(ops, 'TESTS', tmp_path)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    assert ops.rows()[-1] == 'extra op'
    (row,) = ops.measure(precision='fp32', runs=2, names=frozenset({'extra op'}), device=CPU)
    assert row.bytes_moved == 12


def test_a_quick_run_measures(tmp_path: Path) -> None:
    """The whole chain as a user starts it, at the smallest size."""
    out, results = tmp_path / 'run.json', tmp_path / 'RESULTS.md'
    results.write_text((ROOT / 'benchmarks' / 'RESULTS.md').read_text())
    command = [sys.executable, 'benchmarks/run.py', '--quick', '--cfg=debug', '--only=stages,Dmain', '--threads=1']
    result = subprocess.run(
        [*command, '--precision=bf16', f'--out={out}', f'--results={results}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    record, rows = report.read_record(out)
    assert (record['quick'], record['threads'], record['cfg']) == (True, 1, 'debug')
    assert record['command'].startswith('python benchmarks/run.py --quick')
    assert record['versions']['torch'] == torch.__version__
    found = [(row.measured.group, row.measured.name) for row in rows]
    assert found == [*(('stages', name) for name in stages.ROWS), ('training', 'Dmain')]
    for row in rows:
        assert len(row.measured.seconds) == run.QUICK_RUNS
        assert all(0 < seconds < 60 for seconds in row.measured.seconds)
        assert row.measured.name in result.stdout
    assert results.read_text().splitlines()[-1].startswith(f'| {record["date"][:10]}')
    assert 'debug quick' in results.read_text().splitlines()[-1]


def test_blocks_stand_between_ceilings() -> None:
    """Each block is compared with the ceilings before and after it, in order."""
    asked: list[str] = []
    speeds = iter([100.0, 50.0, 25.0])

    def perform(request: worker.Request) -> dict[str, Any]:
        asked.append(f'{request.group} {request.precision}')
        if request.group == 'ceilings':
            assert request.precisions == ('fp32', 'bf16')
            return {'rates': {ceilings.TRIAD: next(speeds)}}
        row = Measurement(group='ops', name='x', precision=request.precision, seconds=(1.0,), bytes_moved=10**9)
        return {'rows': [row.to_dict()]}

    plan = run.Plan(rows={'ops': ('x',)}, precisions=('fp32', 'bf16'), cfg='debug', device='cpu', threads=1, quick=True)
    record, rows = run.run_plan(plan, perform=perform, report=lambda _: None)
    assert asked == ['ceilings -', 'ops fp32', 'ceilings -', 'ops bf16', 'ceilings -']
    assert [row.floor for row in rows] == pytest.approx([(1 / 100 + 1 / 50) / 2, (1 / 50 + 1 / 25) / 2])
    assert [entry['after'] for entry in record['ceilings']] == ['start', 'ops fp32', 'ops bf16']


# Whole commands and options.


def test_pairs_take_turns(tmp_path: Path) -> None:
    log = tmp_path / 'log'
    script = tmp_path / 'note.py'
    script.write_text(f'import sys; open({str(log)!r}, "a").write(sys.argv[1])')
    times = processes.alternate({'A': f'python {script} a', 'B': f'python {script} b'}, runs=2)
    assert log.read_text() == 'ab' * 3
    assert [len(seconds) for seconds in times.values()] == [2, 2]
    result = invoke('--quick', '--pair', 'python -c pass', "python -c 'import time; time.sleep(0.3)'")
    assert result.exit_code == 0, result.output
    ratio = float(result.output.splitlines()[-1].split()[4])
    assert 0 < ratio < 0.9
    refused(invoke('--pair', 'python -c pass', 'python -c "raise SystemExit(3)"'), 'exit status 3: no output')
    refused(invoke('--pair', 'python -c pass', '/nowhere/tool'), 'cannot be started')


def test_help_starts_fast() -> None:
    times = processes.alternate({name: processes.COMMANDS[name] for name in list(processes.COMMANDS)[:2]}, runs=3)
    bare, helped = (min(seconds) for seconds in times.values())
    assert helped < min(1.5, 4 * bare)


def test_processes_do_their_work(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[str] = []

    def note(command: str, **_: object) -> float:
        commands.append(command)
        return float(len(commands))

    monkeypatch.setattr(processes, 'run_once', note)
    rows = list(processes.measure(runs=1, names=frozenset(processes.ROWS)))
    assert [row.name for row in rows] == list(processes.ROWS)
    assert len(commands) == 2 * len(processes.COMMANDS) + 1
    assert not any('{' in command for command in commands)


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in processes.COMMANDS if '{out}' in processes.COMMANDS[name]])
def test_commands_are_valid(name: str) -> None:
    (row,) = processes.measure(runs=1, names=frozenset({name}))
    assert 0 < row.median < 60


def test_options_are_checked() -> None:
    refused(invoke('--precision=fp8'), "--precision: expected some of fp32, bf16, fp16, got 'fp8'")
    refused(invoke('--precision=fp16'), '--precision: fp16 is for GPUs')
    refused(invoke('--cfg=ffhq'), '--cfg: expected one of ffhq512, ffhq256, ffhq128, ffhq512-release')
    refused(invoke('--only=stages,foo'), "--only: 'foo' is no group (stages, training, ops, processes) and no row")
    refused(invoke('--only='), "--only: ''")
    refused(invoke('--device=nothing'), '--device nothing: not available')
    refused(invoke('--only=mouth', '--results=/nowhere/R.md'), '--results: /nowhere/R.md does not exist')
    refused(invoke('--only=mouth', '--no-record', '--out=/nowhere/r.json'), '--out: /nowhere/r.json cannot be written')


def test_rows_are_chosen_by_name() -> None:
    known = {'stages': ('image', 'mouth'), 'training': ('Gmain', 'image'), 'ops': ('fir up', 'fir down', 'first')}
    assert run.choose_rows('stages', known=known, quick=False)['stages'] == ('image', 'mouth')
    assert run.choose_rows('image', known=known, quick=False) == {
        'stages': ('image',),
        'training': ('image',),
        'ops': (),
    }
    assert run.choose_rows('fir,Gmain', known=known, quick=False)['ops'] == ('fir up', 'fir down')
    everything = {**known, 'processes': processes.ROWS}
    assert processes.FIRST_BUILD in run.choose_rows(None, known=everything, quick=False)['processes']
    assert processes.FIRST_BUILD not in run.choose_rows(None, known=everything, quick=True)['processes']


def test_a_failed_block_is_one_line() -> None:
    request = worker.Request(
        group='stages', precision='fp32', names=('image',), cfg='none', device='cpu', threads=1, runs=1, quick=True
    )
    with pytest.raises(UserError, match=r'^stages fp32: exit status 1: ValueError: preset: expected one of'):
        run.perform_in_process(request)
