"""What a run tells: the table, the JSON record, and the line of RESULTS.md."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ceilings
from benchmarks.compare import NOT_MEASURED, Row, row_from_dict
from benchmarks.release import CONV_STAGES, recorded
from dnnlib.errors import UserError
from dnnlib.files import atomic_write


def table(rows: Sequence[Row]) -> str:
    """All rows, aligned, by group."""
    head = (
        'group',
        'row',
        'type',
        'median',
        'min',
        'max',
        'GFLOP',
        'ceiling',
        'x release',
        'w/o raster',
        'by',
        'peak',
        'targets',
    )
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = []
    for index, line in enumerate(lines):
        left = [
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        left[-1] = line[-1]
        text.append('  '.join(left).rstrip())
        if index == 0:
            text.append('-' * len(text[0]))
    return '\n'.join(text)


def _cells(row: Row) -> tuple[str, ...]:
    measured = row.measured
    return (
        measured.group,
        measured.name,
        measured.precision,
        duration(measured.median),
        duration(min(measured.seconds)),
        duration(max(measured.seconds)),
        '-' if row.gflop is None else f'{row.gflop:.1f}',
        '-' if row.fraction is None else f'{row.fraction:.0%}',
        '-' if row.ratio is None else f'{row.ratio:.1f}',
        '-' if row.ratio_without is None else f'{row.ratio_without:.1f}',
        row.normalized_by or '-',
        '-' if measured.peak_bytes is None else f'{measured.peak_bytes / 1e9:.1f} GB',
        '; '.join([str(verdict) for verdict in row.verdicts] + ([measured.note] if measured.note else [])),
    )


def duration(seconds: float) -> str:
    """'3.21 s', '45.6 ms' or '12 us'."""
    if seconds >= 1:
        return f'{seconds:.2f} s'
    return f'{seconds * 1e3:.2f} ms' if seconds >= 1e-3 else f'{seconds * 1e6:.0f} us'


def ceiling_lines(measured: Sequence[ceilings.Rates]) -> Iterator[str]:
    """The ceilings, first to last, beside the recorded ones; and the drift between neighbours."""
    if not measured:
        return
    known = recorded()['ceilings']
    width = max(len(name) for name in measured[0])
    yield f'{"ceiling".ljust(width)}  recorded  this run, in order'
    for name in measured[0]:
        there = f'{known[name]:.0f}' if name in known else '-'
        here = '  '.join(f'{rates[name]:6.0f}' for rates in measured if name in rates)
        yield f'{name.ljust(width)}  {there:>8}  {here}'
    steps = [ceilings.drift(a, b) for a, b in zip(measured, measured[1:], strict=False)]
    if steps:
        yield f'drift from one to the next: {", ".join("-" if step is None else f"{step - 1:+.1%}" for step in steps)}'


# The line of RESULTS.md: column -> rows (group, name), and what of them is told.
COLUMNS: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    'rasterize': ('stages', ('rasterize',), 'seconds'),
    'whole image': ('stages', ('image',), 'both'),
    'animation frame': ('stages', ('animation',), 'ratio'),
    'camera frame': ('stages', ('camera',), 'ratio'),
    'density 64^3': ('stages', ('density',), 'ratio'),
    'training image': ('training', ('image',), 'both'),
    'peak memory': ('training', ('image',), 'peak'),
    'FIR, floors': ('ops', tuple(f'upfirdn2d {n} {y}' for n in ('up2', 'down2') for y in ('nchw', 'nhwc')), 'floors'),
    'conv stages': ('stages', CONV_STAGES, 'fraction'),
}
RESULT_COLUMNS = ('date (UTC)', 'commit', 'machine', 'run', *COLUMNS)


def result_line(record: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """One line of the table in RESULTS.md: medians, fp32 / bf16."""
    cells = [
        record['date'][:16].replace('T', ' '),
        record['commit'],
        f'{record["processor"]}, {record["threads"]} threads',
        ' '.join([record['cfg'], *(['quick'] if record['quick'] else [])]),
    ]
    for group, names, kind in COLUMNS.values():
        cells.append(
            _result_cell([row for row in rows if row.measured.group == group and row.measured.name in names], kind)
        )
    return '| ' + ' | '.join(cell.replace('|', '/') for cell in cells) + ' |'


def _result_cell(rows: Sequence[Row], kind: str) -> str:
    parts = []
    for precision in dict.fromkeys(row.measured.precision for row in rows):
        same = [row for row in rows if row.measured.precision == precision]
        told = _tell(same, kind)
        parts += [f'{precision} {told}'] if told else []
    return ' / '.join(parts) or NOT_MEASURED


def _tell(rows: Sequence[Row], kind: str) -> str:
    first = rows[0]
    if kind == 'seconds':
        return duration(first.measured.median) + ('' if first.ratio is None else f' ({first.ratio:.0f}x)')
    if kind in ('ratio', 'both'):
        told = [] if first.ratio is None else [f'{first.ratio:.1f}x']
        if kind == 'both' and first.ratio_without is not None:
            told.append(f'{first.ratio_without:.1f}x w/o raster')
        return duration(first.measured.median) + (f' ({", ".join(told)})' if told else '')
    if kind == 'peak':
        return '' if first.measured.peak_bytes is None else f'{first.measured.peak_bytes / 1e9:.1f} GB'
    if kind == 'floors':
        found = [row.measured.median / row.floor for row in rows if row.floor]
        return f'{min(found):.1f} to {max(found):.1f}' if found else ''
    fractions = [row.fraction for row in rows if row.fraction is not None]
    return f'{min(fractions):.0%} to {max(fractions):.0%}' if fractions else ''


def append_result(path: str | os.PathLike[str], line: str) -> None:
    """Add a line at the end of the results, whole or not at all; runs that end together wait for each other.

    UserError where the file is no results file or not writable.
    """
    target = Path(path)
    with _alone(target.parent):
        try:
            old = target.read_text(encoding='utf-8')
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f'{path}: cannot be read ({error}); use benchmarks/RESULTS.md or --no-record') from error
        heading = '| ' + ' | '.join(RESULT_COLUMNS) + ' |'
        if heading not in old.splitlines():
            raise UserError(f'{path}: has no table of results with the columns {", ".join(RESULT_COLUMNS)}')
        with atomic_write(target) as handle:
            handle.write((old.rstrip('\n') + '\n' + line + '\n').encode())


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, which the system releases when its holder dies."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f'{folder}: {error.strerror}') from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_record(path: str | os.PathLike[str], record: Mapping[str, Any], rows: Iterable[Row]) -> None:
    """The JSON record of a run."""
    content = {**record, 'rows': [row.to_dict() for row in rows]}
    with atomic_write(path) as handle:
        handle.write((json.dumps(content, indent=1) + '\n').encode())


def read_record(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Row]]:
    """The inverse of `write_record`."""
    content = json.loads(Path(path).read_text(encoding='utf-8'))
    rows = [row_from_dict(values) for values in content.pop('rows')]
    return content, rows
