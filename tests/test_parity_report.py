"""The figures of docs/parity.md: collected from the tests' records, merged, put between the marks."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from dnnlib import UserError
from tools.parity_report import BEGIN, END, collect, insert, main, table


def test_rows_keep_the_worst_of_each_name() -> None:
    test = 'tests/test_parity_stages.py::test_uv'
    numbers = [('uv, view 0', 1e-6, 1e-5), ('uv, view 1', 4e-6, 1e-5), ('uv, view 2', 0.0, 1e-5), ('boxes', 0.0, 0.0)]
    lines = [
        json.dumps({'test': test, 'name': name, 'error': error, 'floor': 0.0, 'bound': bound, 'magnitude': 1.0})
        for name, error, bound in numbers
    ]
    rows = collect(lines)
    assert [(row.name, row.error, row.count) for row in rows] == [('uv', 4e-6, 3), ('boxes', 0.0, 1)]
    text = table(rows, conditions='Here.')
    assert '| uv (3) | 4e-06 | none | 1e-05 | 1 |' in text
    assert '| boxes | equal | none | 0 | 1 |' in text


def test_figures_replace_the_old_ones() -> None:
    page = f'before\n{BEGIN}\nold\n{END}\nafter\n'
    new = insert(page, f'{BEGIN}\nnew\n{END}')
    assert new == f'before\n{BEGIN}\nnew\n{END}\nafter\n'
    with pytest.raises(UserError, match='lacks the marks'):
        insert('nothing', 'x')


def test_a_missing_fixture_is_one_line() -> None:
    result = CliRunner().invoke(main, ['--fixture=absent.pt'])
    assert result.exit_code == 1
    assert result.output == 'Error: --fixture: absent.pt: no such file\n'
