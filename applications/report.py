"""Results as the paper's Tables 1 and 2, in Markdown, LaTeX or HTML: what calc_metrics.py report does."""

from __future__ import annotations

import dataclasses
import html
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dnnlib import UserError
from dnnlib.files import atomic_write

# As printed in the paper (FFHQ, section 4.1 and 4.2). Columns: FID, AED, APD, APD*, ID.
QUOTED: dict[str, dict[str, tuple[float, ...]]] = {
    '1': {
        'DiscoFaceGAN (256²)': (17.1, 0.42, 0.046, 0.024, 0.73),
        'AniFaceGAN (256²)': (20.1, 0.25, 0.041, 0.022, 0.82),
        '3DFaceShop (512²)': (23.7, 0.31, 0.045, 0.024, 0.75),
        'Next3D (512²)': (3.9, 0.16, 0.023, 0.019, 0.84),
    },
    '2': {
        'w/o T_static': (6.6, 0.25, 0.026, 0.63),
        'w/o G_teeth (uv)': (7.2, 0.37, 0.042, 0.71),
        'w/o G_teeth (s)': (8.4, 0.32, 0.036, 0.79),
        'w/o I_synthetic': (3.8, 0.18, 0.025, 0.74),
        'Next3D': (3.9, 0.16, 0.023, 0.84),
    },
}
TITLES = {
    '1': 'Table 1: comparison',
    '2': 'Table 2: ablation',
}
COLUMNS = {
    '1': (
        ('FID', 'fid', '↓'),
        ('AED', 'aed', '↓'),
        ('APD', 'apd', '↓'),
        ('APD*', 'apd_no_roll', '↓'),
        ('ID', 'id', '↑'),
    ),
    '2': (('FID', 'fid', '↓'), ('AED', 'aed', '↓'), ('APD', 'apd', '↓'), ('ID', 'id', '↑')),
}
NOTE = (
    'Rows marked "quoted" are printed in the paper and were not measured here. Brackets: 95 % interval. '
    'Floor: what the same code gives for the dataset\'s own images. A column named after an estimator ("_synth", ...) '
    'was measured by that stand-in and is comparable only with itself.'
)
ARROWS = {'lower': '↓', 'higher': '↑', 'one': '→ 1'}


@dataclasses.dataclass(frozen=True)
class Table:
    """A title, column heads, and rows whose first cell is the row's name."""

    title: str
    head: list[str]
    rows: list[list[str]]


def read_results(paths: Sequence[str | os.PathLike[str]]) -> list[dict[str, Any]]:
    """All results of some JSON-lines files, in order; UserError names a line that is none."""
    found = []
    for path in paths:
        for number, line in enumerate(Path(path).read_text(encoding='utf-8', errors='replace').splitlines(), 1):
            if not line.strip():
                continue
            try:
                result = json.loads(line)
                found.append({**result, 'metric': str(result['metric']), 'value': float(result['value'])})
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f'{path}: line {number} is no result of calc_metrics.py; remove it') from error
    if not found:
        raise UserError(f'{", ".join(str(path) for path in paths)}: no results; measure with --out first')
    return found


def write_report(results: Sequence[str | os.PathLike[str]], out: str, *, tables: Sequence[str]) -> None:
    """Write the paper's tables ('1', '2') with our rows; the suffix of `out` decides the format."""
    writers: dict[str, Callable[[list[Table]], str]] = {'.md': markdown, '.tex': latex, '.html': page}
    writer = writers.get(Path(out).suffix.lower())
    if writer is None:
        raise UserError(f'{out}: expected a name ending in .md, .tex or .html')
    found = read_results(results)
    text = writer([layout(number, found) for number in tables])
    with atomic_write(out) as handle:
        handle.write(text.encode())


def layout(number: str, results: list[dict[str, Any]]) -> Table:
    """One of the paper's tables: its columns, then a column a stand-in metric of the same families, then the rest."""
    columns = COLUMNS[number]
    order = [family for _, family, _ in columns]
    others = sorted(
        {result['metric'] for result in results if _column(result, columns) is None},
        key=lambda name: _place(name, results, order),
    )
    better = {result['metric']: ARROWS.get(result.get('better', ''), '') for result in results}
    head = ['', *(f'{title} {arrow}' for title, _, arrow in columns), *(f'{name} {better[name]}' for name in others)]
    rows = [
        [f'{name} (quoted)', *(f'{value:g}' for value in values), *['–'] * len(others)]
        for name, values in QUOTED[number].items()
    ]
    by_subject: dict[tuple[str, str], dict[str, str]] = {}
    for result in results:
        column = _column(result, columns) or result['metric']
        who = (str(result.get('subject_hash') or result.get('network_hash') or result.get('kimg')), label(result))
        by_subject.setdefault(who, {})[column] = cell(result)
    for (_, name), cells in by_subject.items():
        rows.append([name, *(cells.get(column, '–') for column in [*order, *others])])
    return Table(TITLES[number], head, rows)


def _column(result: dict[str, Any], columns: Sequence[tuple[str, str, str]]) -> str | None:
    """The paper's column that a result belongs to: official estimator, its protocol's counts; else None."""
    wanted = {'fid': 'fid50k_full'}
    for _, family, _ in columns:
        if result.get('official') and result['metric'] == wanted.get(family, family):
            return family
    return None


def _place(name: str, results: list[dict[str, Any]], order: list[str]) -> tuple[int, str]:
    """Stand-ins of the paper's families first, in its order."""
    family = next((str(result.get('family', '')) for result in results if result['metric'] == name), '')
    return (order.index(family) if family in order else len(order), name)


def label(result: dict[str, Any]) -> str:
    """A row's name: --name, or the file of the network, adapter or folder."""
    given = result.get('name')
    path = next((result[key] for key in ('network', 'adapter', 'images', 'snapshot') if result.get(key)), None)
    return str(given or (Path(str(path)).name if path else result.get('subject', 'unnamed')))


def cell(result: dict[str, Any]) -> str:
    """'0.16 [0.15, 0.17], floor 0.10'."""
    digits = 1 if abs(result['value']) >= 10 else 2 if abs(result['value']) >= 1 else 3
    text = f'{result["value"]:.{digits}f}'
    if result.get('interval'):
        low, high = result['interval']
        text += f' [{low:.{digits}f}, {high:.{digits}f}]'
    if result.get('floor') is not None:
        text += f', floor {result["floor"]:.{digits}f}'
    return text


def markdown(tables: list[Table]) -> str:
    """Tables as Markdown."""
    parts = []
    for table in tables:
        lines = [f'### {table.title}', '', _bar(table.head), _bar(['---'] * len(table.head))]
        parts.append('\n'.join(lines + [_bar(row) for row in table.rows]))
    return '\n\n'.join([*parts, NOTE]) + '\n'


def _bar(cells: list[str]) -> str:
    return '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'


_LATEX = {'\\': r'\textbackslash{}', '&': r'\&', '%': r'\%', '_': r'\_', '#': r'\#', '$': r'\$', '{': r'\{', '}': r'\}'}
_LATEX |= {'↓': r'$\downarrow$', '↑': r'$\uparrow$', '→': r'$\to$', '²': r'$^2$', '–': '--', '~': r'\textasciitilde{}'}
_LATEX |= {'^': r'\textasciicircum{}'}


def _escaped(text: str) -> str:
    return ''.join(_LATEX.get(letter, letter) for letter in text)


def latex(tables: list[Table]) -> str:
    """Tables as LaTeX `table` environments; needs no package."""
    parts = []
    for table in tables:
        rows = [' & '.join(_escaped(cell) for cell in row) + r' \\' for row in (table.head, *table.rows)]
        body = '\n'.join([rows[0], r'\hline', *rows[1:]])
        columns = 'l' + 'c' * (len(table.head) - 1)
        parts.append(
            f'\\begin{{table}}\n\\caption{{{_escaped(table.title)}. {_escaped(NOTE)}}}\n'
            f'\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n\\end{{table}}'
        )
    return '\n\n'.join(parts) + '\n'


def page(tables: list[Table]) -> str:
    """Tables as one HTML page."""
    parts = []
    for table in tables:
        rows = [_row(table.head, 'th'), *(_row(row, 'td') for row in table.rows)]
        parts.append(f'<h3>{html.escape(table.title)}</h3>\n<table border="1">\n' + '\n'.join(rows) + '\n</table>')
    body = '\n'.join([*parts, f'<p>{html.escape(NOTE)}</p>'])
    head = '<head><meta charset="utf-8"><title>Metrics</title></head>'
    return f'<!DOCTYPE html>\n<html>{head}<body>\n{body}\n</body></html>\n'


def _row(cells: list[str], tag: str) -> str:
    return '<tr>' + ''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells) + '</tr>'
