"""Run the parity tests against a fixture and write their figures into docs/parity.md. Run by hand."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import click

from dnnlib import UserError
from dnnlib.cli import Command
from dnnlib.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
TESTS = ('tests/test_parity_stages.py', 'tests/test_parity_networks.py', 'tests/test_parity_generator.py')
BEGIN, END = '<!-- figures: tools/parity_report.py -->', '<!-- end of figures -->'


@dataclasses.dataclass(frozen=True)
class Row:
    """The worst of all comparisons of one name in one test."""

    test: str
    name: str
    error: float
    floor: float
    bound: float
    magnitude: float
    count: int

    def markdown(self) -> str:
        several = f' ({self.count})' if self.count > 1 else ''
        exact = 'equal' if self.error == 0 else f'{self.error:.2g}'
        floor = f'{self.floor:.2g}' if self.floor else 'none'
        magnitude = '' if math.isnan(self.magnitude) else f'{self.magnitude:.3g}'
        return f'| {self.name}{several} | {exact} | {floor} | {self.bound:.2g} | {magnitude} |'


def collect(lines: Iterable[str]) -> list[Row]:
    """Rows from the records of tests/cases_parity.py, in their order; views and batch sizes of one thing are merged."""
    rows: dict[tuple[str, str], Row] = {}
    for record in map(json.loads, lines):
        test = record['test'].partition('[')[0]
        name = re.sub(r', view \d$', '', record['name'])
        key = (test, name)
        new = Row(test, name, record['error'], record['floor'], record['bound'], record['magnitude'], 1)
        old = rows.get(key)
        if old is not None:
            worse = max(old, new, key=lambda row: row.error / row.bound if row.bound else row.error)
            new = dataclasses.replace(worse, count=old.count + 1)
        rows[key] = new
    return list(rows.values())


def table(rows: list[Row], *, conditions: str) -> str:
    """One table a test file."""
    text = [BEGIN, '', conditions, '']
    for file in TESTS:
        chosen = [row for row in rows if row.test.startswith(file)]
        if chosen:
            text += [f'### {file}', '', '| stage | largest error | noise floor | tolerance | largest magnitude |']
            text += ['|---|---|---|---|---|', *(row.markdown() for row in chosen), '']
    return '\n'.join([*text, END])


def insert(page: str, figures: str) -> str:
    """`page` with the text between the marks replaced; UserError if it has none."""
    if BEGIN not in page or END not in page:
        raise UserError(f'the page lacks the marks {BEGIN} and {END}')
    return page[: page.index(BEGIN)] + figures + page[page.index(END) + len(END) :]


@click.command(cls=Command)
@click.option('--fixture', required=True, help='The parity fixture (.pt).')
@click.option('--page', default=str(ROOT / 'docs/parity.md'), show_default=True, help='Where the figures go.')
def main(fixture: str, page: str) -> None:
    """Run the parity tests and put their figures between the marks of PAGE.

    \b
    Example:
        python -m tools.parity_report --fixture=fixture_synth.pt
    """
    if not Path(fixture).is_file():
        raise UserError(f'--fixture: {fixture}: no such file')
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / 'record.jsonl'
        environment = {
            **os.environ,
            'NEXT3D_PARITY_FIXTURE': str(Path(fixture).resolve()),
            'NEXT3D_PARITY_RECORD': str(record),
        }
        command = [sys.executable, '-m', 'pytest', '-q', *TESTS]
        if subprocess.run(command, cwd=ROOT, env=environment).returncode:
            raise UserError(f'{fixture}: a parity test failed; {page} is left as it was')
        rows = collect(record.read_text().splitlines())
    import torch

    meta = torch.load(fixture, weights_only=True)['meta']
    conditions = (
        f'{sum(row.count for row in rows)} comparisons, all within tolerance, on a CPU with torch {torch.__version__}; '
        f'the fixture was made with torch {meta["torch"]} by {meta["reference"]}.'
    )
    target = Path(page)
    with atomic_write(target) as handle:
        handle.write(insert(target.read_text(encoding='utf-8'), table(rows, conditions=conditions)).encode())
    click.echo(f'{target}: {len(rows)} rows')


if __name__ == '__main__':
    main()
