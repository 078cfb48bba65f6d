"""Tables of results: the paper's layout, its numbers quoted, stand-ins apart."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import calc_metrics
from applications.report import QUOTED, layout, read_results

RESULTS = [
    {'metric': 'fid50k_full', 'family': 'fid', 'value': 4.21, 'interval': [4.1, 4.3], 'official': True},
    {
        'metric': 'aed_synth50x4',
        'family': 'aed',
        'value': 0.25,
        'interval': [0.2, 0.3],
        'floor': 0.1,
        'official': False,
    },
    {'metric': 'aed50x4', 'family': 'aed', 'value': 0.17, 'official': True},
    {'metric': 'flicker', 'family': 'flicker', 'value': 0.4, 'official': True},
    {'metric': 'id', 'family': 'id', 'value': 0.8, 'official': True},
    {'metric': 'id', 'family': 'id', 'value': 0.81, 'official': True},
]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / 'results.jsonl'
    lines = [{'network': 'runs/0/net_a.pkl', 'network_hash': 'a', 'better': 'lower', **result} for result in RESULTS]
    lines.append(
        {
            'metric': 'fid_synth2k_full',
            'family': 'fid',
            'value': 7.5,
            'official': False,
            'name': 'B & C',
            'network_hash': 'b',
        }
    )
    path.write_text('\n'.join(json.dumps(line) for line in lines) + '\n')
    return path


def columns(table: Any, row: str) -> dict[str, str]:
    cells = next(cells for cells in table.rows if cells[0] == row)
    return dict(zip([head.split(' ')[0] for head in table.head], cells, strict=True))


def test_only_the_papers_own_measure_stands_under_its_name(results: Path) -> None:
    table = layout('1', read_results([results]))
    quoted = columns(table, 'Next3D (512²) (quoted)')
    assert [quoted[name] for name in ('FID', 'AED', 'APD', 'APD*', 'ID')] == ['3.9', '0.16', '0.023', '0.019', '0.84']
    assert quoted['aed_synth50x4'] == '–'
    ours = columns(table, 'net_a.pkl')
    assert ours['FID'] == '4.21 [4.10, 4.30]'
    assert ours['AED'] == '–'  # fewer images than the paper's protocol: a column of its own
    assert ours['aed50x4'] == '0.170'
    assert ours['aed_synth50x4'] == '0.250 [0.200, 0.300], floor 0.100'
    assert ours['ID'] == '0.810'  # the latest
    assert columns(table, 'B & C')['fid_synth2k_full'] == '7.50'
    assert columns(table, 'B & C')['FID'] == '–'
    assert len(table.rows) == len(QUOTED['1']) + 2
    assert 'APD*' not in ' '.join(layout('2', read_results([results])).head)


class Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_data(self, data: str) -> None:
        self.found.append(data)


@pytest.mark.parametrize('suffix', ['md', 'tex', 'html'])
def test_formats(tmp_path: Path, results: Path, suffix: str) -> None:
    out = tmp_path / f'tables.{suffix}'
    result = CliRunner().invoke(calc_metrics.main, ['report', str(results), f'--out={out}'])
    assert result.exit_code == 0, result.output
    text = out.read_text()
    assert text.count('quoted)') >= 9
    if suffix == 'md':
        widths = {line.count('|') for line in text.splitlines() if line.startswith('|')}
        assert len(widths) == 2  # one a table
    elif suffix == 'tex':
        rows = [line for line in text.splitlines() if line.endswith(r'\\')]
        assert {row.count('&') - row.count(r'\&') for row in rows[: len(rows) // 2]} == {rows[0].count('&')}
        assert r'B \& C' in text
        assert r'fid\_synth2k\_full' in text
        assert text.isascii()
    else:
        parser = Cells()
        parser.feed(text)
        assert 'B & C' in parser.found


def test_report_mistakes(tmp_path: Path, results: Path) -> None:
    def fail(*arguments: object) -> str:
        result = CliRunner().invoke(calc_metrics.main, ['report', *map(str, arguments)])
        assert result.exit_code == 1, result.output
        return result.output.splitlines()[-1]

    assert 'expected a name ending in .md, .tex or .html' in fail(results, f'--out={tmp_path}/tables.pdf')
    bad = tmp_path / 'bad.jsonl'
    bad.write_text(results.read_text() + 'not json\n')
    assert 'bad.jsonl: line 8 is no result' in fail(bad, f'--out={tmp_path}/t.md')
    bad.write_text('')
    assert 'no results' in fail(bad, f'--out={tmp_path}/t.md')
    assert 'absent.jsonl' in fail(tmp_path / 'absent.jsonl', f'--out={tmp_path}/t.md')
    assert not (tmp_path / 't.md').exists()
