"""calc_metrics.py on a real snapshot: the loop's value, ranks, and one line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cases_outputs import write_dataset, write_snapshot
from click.testing import CliRunner, Result

import calc_metrics
import train


def measure(*arguments: object) -> Result:
    return CliRunner().invoke(calc_metrics.main, [str(argument) for argument in arguments])


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp('data') / 'noise.zip', count=12)


@pytest.fixture(scope='module')
def network(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return write_snapshot(tmp_path_factory.mktemp('network') / 'network-snapshot-000004.pkl', data=str(data))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('NEXT3D_CACHE_DIR', str(tmp_path / 'cache'))


def test_the_command_gives_the_value_of_the_loop(tmp_path: Path, data: Path) -> None:
    run, name = tmp_path / 'run', 'fd_random12_full'
    trained = CliRunner().invoke(
        train.main,
        [f'--outdir={run}', '--cfg=debug', f'--data={data}', '--kimg=0.016', f'--metrics={name}', '--device=cpu'],
    )
    assert trained.exit_code == 0, trained.output
    in_loop = json.loads((run / f'metric-{name}.jsonl').read_text().splitlines()[-1])
    measured = measure(
        '--network', run / in_loop['snapshot'], '--metrics', name, '--out', tmp_path / 'out.jsonl', '--device=cpu',
        '--cache-dir', tmp_path / 'fresh',
    )  # fmt: skip
    assert measured.exit_code == 0, measured.output
    result = json.loads((tmp_path / 'out.jsonl').read_text())
    assert result['value'] == in_loop['value']
    same = ('metric', 'seed', 'num_real', 'num_generated', 'truncation_psi', 'dataset_hash', 'extractor_hash', 'kimg')
    assert {key: result[key] for key in same} == {key: in_loop[key] for key in same}
    assert result['num_real'] == 24  # mirrored, as in training


def test_options_decide_the_value(tmp_path: Path, network: Path) -> None:
    values = []
    for number, options in enumerate(([], ['--batch=5'], ['--seed=1'], ['--trunc=0.5'], ['--no-mirror'])):
        out = tmp_path / f'{number}.jsonl'
        result = measure('--network', network, '--metrics=fd_random10_full', '--device=cpu', '--out', out, *options)
        assert result.exit_code == 0, result.output
        assert result.output.startswith('fd_random10_full: ')
        values.append(json.loads(out.read_text())['value'])
    assert values[1] == pytest.approx(values[0], rel=1e-5)  # the batch size decides nothing
    assert len({round(value, 6) for value in (values[0], *values[2:])}) == 4


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['--metrics=kid5k'], "metric 'kid5k': unknown; expected fid<N>"),
        (['--data=absent.zip'], 'absent.zip: no such dataset'),
        (['--network=absent.pkl'], 'absent.pkl: No such file'),
        (['--metrics=fid10', '--inception=absent.pt'], 'absent.pt: no such file (expected one with sha256 f58cb9b6'),
        (['--metrics=fid10', '--inception=text.pt'], 'text.pt: sha256 is'),
        (['--out=text.pt/out.jsonl'], 'text.pt/out.jsonl: '),
    ],
    ids=lambda value: None if isinstance(value, str) else ' '.join(value),
)
def test_mistakes(
    tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path('text.pt').write_text('not a network')
    result = measure('--network', network, '--metrics=fd_random10', '--device=cpu', *arguments)
    assert result.exit_code == 1, result.output
    errors = [line for line in result.output.splitlines() if not line.startswith('fd_random')]
    assert len(errors) == 1, result.output
    assert expected in errors[0]
