"""calc_metrics.py on a real snapshot: the loop's value, ranks, and one line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cases_outputs import write_dataset, write_snapshot
from click.testing import CliRunner, Result

import calc_metrics
import train
from training.dataset import HeadDataset
from training.synthetic import generate


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
    same = ('metric', 'seed', 'num_real', 'num_generated', 'truncation_psi', 'dataset_hash', 'estimator_hash', 'kimg')
    assert {key: result[key] for key in same} == {key: in_loop[key] for key in same}
    assert result['num_real'] == 24  # mirrored, as in training


def test_options_decide_the_value(tmp_path: Path, network: Path) -> None:
    values = []
    for number, options in enumerate(([], ['--batch=5'], ['--seed=1'], ['--trunc=0.5'], ['--no-mirror'])):
        out = tmp_path / f'{number}.jsonl'
        result = measure('--network', network, '--metrics=fd_random4_full', '--device=cpu', '--out', out, *options)
        assert result.exit_code == 0, result.output
        assert result.output.startswith('fd_random4_full: ')
        values.append(json.loads(out.read_text())['value'])
    assert values[1] == values[0]  # the batch size decides nothing
    assert len({round(value, 6) for value in (values[0], *values[2:])}) == 4


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['--metrics=sid5k'], "metric 'sid5k': unknown; expected one of fid"),
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


ADAPTER = """
import torch
from metrics.adapter import Adapter

class Mine(Adapter):
    name, resolution, content_hash = 'mine', 16, 'weights-1'
    def __init__(self, device):
        self.device = device
    def images(self, request):
        noise = [torch.randint(256, (3, 16, 16), generator=torch.Generator().manual_seed(s)) for s in request.seeds]
        return torch.stack(noise).to(torch.uint8)

class Wide(Mine):
    resolution = 32

class Other:
    def __init__(self, device):
        pass
"""


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / 'mine.py'
    path.write_text(ADAPTER)
    return path


@pytest.fixture(scope='module')
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('heads') / 'heads.zip'
    generate(path, num=8, resolution=64, seed=3, workers=0, progress=False)
    return path


def test_compare_measures_any_generator(tmp_path: Path, data: Path, adapter: Path) -> None:
    out = tmp_path / 'out.jsonl'
    names = 'fid_random20_full,id_synth3,flicker2x3'
    arguments = ['compare', '--data', data, '--metrics', names, '--out', out, '--device=cpu', '--name=Mine 2']
    for _ in range(2):
        result = measure(*arguments, '--adapter', f'{adapter}:Mine')
        assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line['metric'] for line in lines] == 2 * names.split(',')
    assert [line['value'] for line in lines[3:]] == [line['value'] for line in lines[:3]]
    assert {(line['name'], line['subject']) for line in lines} == {('Mine 2', 'mine')}
    assert lines[1]['value'] > 0.9999  # it heeds the seed alone
    assert lines[2]['value'] == 0


def test_compare_measures_the_synthetic_renderer(tmp_path: Path, heads: Path) -> None:
    out = tmp_path / 'out.jsonl'
    file = Path(calc_metrics.__file__).parent / 'applications' / 'synthetic_adapter.py'
    result = measure(
        'compare', '--adapter', f'{file}:SyntheticAdapter', '--data', heads, '--metrics=aed_synth2x2,gaze_synth2x2',
        '--out', out, '--device=cpu',
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line['metric'] for line in found] == ['aed_synth2x2', 'gaze_synth2x2']
    assert all(0 < line['value'] < 4 * line['floor'] for line in found)  # a perfect generator is near the floor


def test_compare_measures_folders(tmp_path: Path, heads: Path) -> None:
    out = tmp_path / 'out.jsonl'
    names = 'fid_random20_full,aed_synth,id_synth'
    result = measure('compare', '--images', heads, '--data', heads, '--metrics', names, '--out', out, '--device=cpu')
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in out.read_text().splitlines()]
    # As many as there are.
    assert [line['metric'] for line in found] == ['fid_random8_full', 'aed_synth2x4', 'id_synth2']
    assert found[0]['value'] == pytest.approx(0, abs=1e-6)
    assert found[1]['value'] == found[1]['floor']
    plain = tmp_path / 'plain'
    plain.mkdir()
    dataset = HeadDataset(heads)
    for row, name in enumerate(dataset.names):
        (plain / Path(name).name).write_bytes(dataset.image_bytes(row))
    result = measure(
        'compare', '--images', plain, '--data', heads, '--metrics=fid_random20_full', '--device=cpu', '--out', out
    )
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text().splitlines()[-1])['value'] == found[0]['value']
    result = measure('compare', '--images', plain, '--data', heads, '--metrics=aed_synth', '--device=cpu')
    assert result.exit_code == 1
    assert 'plain: holds no head parameters' in result.output


@pytest.mark.parametrize(
    ('arguments', 'code', 'expected'),
    [
        (['--adapter=mine'], 1, "--adapter: expected FILE.py:CLASS, got 'mine'"),
        (['--adapter=absent.py:Mine'], 1, 'absent.py: no such file'),
        (['--adapter=mine.py:Yours'], 1, 'mine.py: has no class Yours; it has Mine, Wide, Other'),
        (['--adapter=mine.py:Other'], 1, 'must derive from metrics.adapter.Adapter'),
        (['--adapter=broken.py:Mine'], 1, 'broken.py: ZeroDivisionError'),
        (['--adapter=mine.py:Wide'], 1, 'images are 16 px but mine makes 32 px'),
        (['--adapter=mine.py:Mine', '--images=x'], 2, 'give one of the two'),
        ([], 2, 'give one of the two'),
        (['--images=absent'], 1, 'absent: '),
    ],
)
def test_compare_mistakes(
    tmp_path: Path, data: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch, arguments, code, expected
) -> None:
    monkeypatch.chdir(tmp_path)
    Path('broken.py').write_text('1 / 0')
    result = measure('compare', '--data', data, '--metrics=fid_random4', '--device=cpu', *arguments)
    assert result.exit_code == code, result.output
    assert expected in result.output.splitlines()[-1]


def test_the_network_is_needed_and_options_stay_behind_subcommands() -> None:
    assert '--network: missing' in measure('--metrics=fd_random4').output
    assert 'options of report go behind its name' in measure('--network=x', 'report', 'y', '--out=z.md').output
