"""Measures the project on this machine: ceilings, stages, training phases, operations, whole commands."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

if not __package__:  # started by its path: import from the root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import click

from benchmarks.release import FULL_SIZE
from dnnlib.cli import Command
from dnnlib.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
GROUPS = ('stages', 'training', 'ops', 'processes')
PRECISIONS = ('fp32', 'bf16', 'fp16')
RUNS, QUICK_RUNS = 5, 2
CEILING_RUNS, QUICK_CEILING_RUNS = 5, 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What one call measures, and how."""

    rows: Mapping[str, tuple[str, ...]]  # by group; a group without rows is left out
    precisions: tuple[str, ...]
    cfg: str
    device: str
    threads: int
    quick: bool

    def blocks(self) -> Iterator[tuple[str, str]]:
        """(group, precision) of each process that measures rows."""
        for group in GROUPS:
            if self.rows.get(group):
                yield from [(group, '-')] if group == 'processes' else [(group, name) for name in self.precisions]

    def bounded(self, group: str) -> bool:
        """Whether the rows of a group are compared with ceilings."""
        return group == 'ops' or (group != 'processes' and self.cfg == FULL_SIZE)


@click.command(cls=Command)
@click.option('--quick', is_flag=True, help=f'{QUICK_RUNS} runs a row instead of {RUNS}, no first build; marked so.')
@click.option('--only', help='Groups or rows, comma-separated: stages, training, ops, processes, or names of rows.')
@click.option('--precision', default='fp32,bf16', show_default=True, help='Comma-separated: fp32, bf16, fp16.')
@click.option('--cfg', default=FULL_SIZE, show_default=True, help='Preset. Only the default has a release.')
@click.option('--threads', type=click.IntRange(min=1), help="Default: torch's choice.")
@click.option('--device', default='cpu', show_default=True, help='cpu, or a torch device name.')
@click.option('--out', metavar='JSON', help='Also write the whole record.')
@click.option('--results', default=str(Path('benchmarks') / 'RESULTS.md'), show_default=True, help='Gets a line.')
@click.option('--no-record', is_flag=True, help='Leave --results alone.')
@click.option('--pair', nargs=2, metavar='CMD_A CMD_B', help='Only time two whole commands in turn.')
def main(
    quick: bool,
    only: str | None,
    precision: str,
    cfg: str,
    threads: int | None,
    device: str,
    out: str | None,
    results: str,
    no_record: bool,
    pair: tuple[str, str] | None,
) -> None:
    """Print a table of medians, fractions of this machine's ceilings, ratios to the public release and targets.

    A full run takes about a quarter of an hour on two cores. Each block of rows runs in a process of its own, between
    two measurements of the ceilings. How to read the table: benchmarks/RESULTS.md.

    \b
    Examples:
        python benchmarks/run.py
        python benchmarks/run.py --quick --only=stages --precision=bf16 --no-record
        python benchmarks/run.py --only=superres,upfirdn2d --out=record.json --no-record
        python benchmarks/run.py --pair "python gen_samples.py --help" "python -c 'import click'"
    """
    if pair:
        print_pair(*pair, runs=QUICK_RUNS if quick else RUNS)
        return
    plan = make_plan(quick=quick, only=only, precision=precision, cfg=cfg, threads=threads, device=device)
    if out:
        _writable(Path(out))
    if not no_record and not Path(results).is_file():
        raise UserError(
            f'--results: {results} does not exist; start this in the root of the project, or use --no-record'
        )
    record, rows = run_plan(plan, perform=perform_in_process, report=click.echo)

    from benchmarks import report

    click.echo('')
    for line in report.ceiling_lines([entry['rates'] for entry in record['ceilings']]):
        click.echo(line)
    click.echo('\n' + report.table(rows))
    if out:
        report.write_record(out, record, rows)
    if not no_record:
        report.append_result(results, report.result_line(record, rows))


def _writable(path: Path) -> None:
    if path.is_dir() or not os.access(path.resolve().parent, os.W_OK):
        raise UserError(f'--out: {path} cannot be written; give a file in a folder that exists')


def make_plan(*, quick: bool, only: str | None, precision: str, cfg: str, threads: int | None, device: str) -> Plan:
    """Options -> plan; UserError names the option that is wrong."""
    precisions = tuple(dict.fromkeys(part.strip() for part in precision.split(',')))
    if not set(precisions) <= set(PRECISIONS):
        raise UserError(f'--precision: expected some of {", ".join(PRECISIONS)}, got {precision!r}')

    import torch

    from benchmarks import ops, processes, stages, training
    from torch_utils.devices import choose_device
    from training.config import PRESETS

    if cfg not in PRESETS:
        raise UserError(f'--cfg: expected one of {", ".join(PRESETS)}, got {cfg!r}')
    chosen_device = choose_device(device)
    if 'fp16' in precisions and chosen_device.type == 'cpu':
        raise UserError('--precision: fp16 is for GPUs; CPUs have no fast float16 convolutions')
    known = {'stages': stages.ROWS, 'training': training.ROWS, 'ops': ops.rows(), 'processes': processes.ROWS}
    return Plan(
        rows=choose_rows(only, known=known, quick=quick),
        precisions=precisions,
        cfg=cfg,
        device=str(chosen_device),
        threads=threads or torch.get_num_threads(),
        quick=quick,
    )


def choose_rows(only: str | None, *, known: Mapping[str, tuple[str, ...]], quick: bool) -> dict[str, tuple[str, ...]]:
    """The rows of each group that `only` asks for: groups, rows, or the first words of rows; None: all.

    A row that several groups have (image) is taken from each. --quick leaves the first build out unless it is named.
    """
    from benchmarks.processes import FIRST_BUILD

    if only is None:
        return {
            group: tuple(row for row in rows if not (quick and row == FIRST_BUILD)) for group, rows in known.items()
        }
    chosen: dict[str, list[str]] = {group: [] for group in known}
    for part in (part.strip() for part in only.split(',')):
        found = [(part, row) for row in known.get(part, ())] or [
            (group, row) for group, rows in known.items() for row in rows if part and (row + ' ').startswith(part + ' ')
        ]
        if not found:
            names = [row for rows in known.values() for row in rows]
            raise UserError(f'--only: {part!r} is no group ({", ".join(known)}) and no row ({", ".join(names)})')
        for group, row in found:
            chosen[group] += [] if row in chosen[group] else [row]
    return {group: tuple(row for row in rows if row in chosen[group]) for group, rows in known.items()}


Perform = Callable[[Any], dict[str, Any]]


def run_plan(plan: Plan, *, perform: Perform, report: Callable[[str], None]) -> tuple[dict[str, Any], list[Any]]:
    """The record (all but the rows) and the rows, each compared with the ceilings just before and after its block."""
    from benchmarks import ceilings, environment
    from benchmarks.compare import compare
    from benchmarks.timing import Measurement
    from benchmarks.worker import Request

    shared: dict[str, Any] = {'cfg': plan.cfg, 'device': plan.device, 'threads': plan.threads, 'quick': plan.quick}
    record = {
        'format': 1,
        'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        'command': environment.command_line(),
        'commit': environment.commit(ROOT),
        'processor': environment.processor(),
        'versions': environment.versions(),
        **shared,
        'ceilings': [],
    }
    # The release is carried over by fp32 ceilings, so these are always among them.
    asked = tuple(dict.fromkeys(['fp32', *plan.precisions]))

    def measure_ceilings(after: str) -> Mapping[str, float]:
        report(f'ceilings ({after}) ...')
        runs = QUICK_CEILING_RUNS if plan.quick else CEILING_RUNS
        rates = perform(Request(group='ceilings', precisions=asked, runs=runs, **shared))['rates']
        record['ceilings'].append({'after': after, 'rates': rates})
        return rates

    rows: list[Any] = []
    before: Mapping[str, float] = {}
    for group, precision in plan.blocks():
        block = group if precision == '-' else f'{group} {precision}'
        if plan.bounded(group) and not before:
            before = measure_ceilings('start')
        report(f'{block} ...')
        names, runs = plan.rows[group], QUICK_RUNS if plan.quick else RUNS
        result = perform(Request(group=group, precision=precision, names=names, runs=runs, **shared))
        after = measure_ceilings(block) if plan.bounded(group) else before
        around = ceilings.mean_rates(before, after)
        for values in result['rows']:
            measured = Measurement.from_dict(values)
            rows.append(compare(measured, rates=around, full_size=plan.cfg == FULL_SIZE))
        before = after
    return record, rows


def perform_in_process(request: Any) -> dict[str, Any]:
    """A block in a process of its own; UserError with its last line where it fails."""
    environment = {**os.environ, 'OMP_NUM_THREADS': str(request.threads)}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / 'result.json'
        command = [sys.executable, '-m', 'benchmarks.worker', json.dumps(dataclasses.asdict(request)), str(target)]
        result = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, check=False)
        if result.returncode != 0:
            lines = result.stderr.strip().splitlines() or ['no output']
            block = f'{request.group} {request.precision}'.removesuffix(' -')
            raise UserError(f'{block}: exit status {result.returncode}: {lines[-1]}')
        with contextlib.suppress(BrokenPipeError):
            sys.stderr.write(result.stderr)
        return json.loads(target.read_text(encoding='utf-8'))


def print_pair(first: str, second: str, *, runs: int) -> None:
    """Min, median and max of two commands that take turns, and the ratio of their medians."""
    import statistics

    from benchmarks import processes
    from benchmarks.report import duration

    times = processes.alternate({'A': first, 'B': second}, runs=runs, folder=Path.cwd())
    medians = {}
    for name, command in (('A', first), ('B', second)):
        medians[name] = statistics.median(times[name])
        low, middle, high = (duration(value) for value in (min(times[name]), medians[name], max(times[name])))
        click.echo(f'{name}  min {low:>9}  median {middle:>9}  max {high:>9}  {runs} runs  {command}')
    click.echo(f'A / B = {medians["A"] / medians["B"]:.3f} (medians)')


if __name__ == '__main__':
    main()
