"""A run that is killed again and again ends like one that was not: files, weights, records."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cases_training import CPU, ROOT, count_images, open_sheet_dataset, resume_config, tiny_dataset

from dnnlib import UserError
from training import loop
from training.run_directory import RunDirectory, changed_fields, hold

IMAGES = 12  # six steps, three ticks
STATE = 'training-state-000000012.pt'
KILLS = [
    'step 0',  # before anything was saved
    'step 1',
    'write network-snapshot 100',  # into the first snapshot
    'rename network-snapshot',
    'write training-state 300000',  # snapshot newer than any state
    'renamed training-state',  # first state just written
    'step 3',
    'renamed network-snapshot',  # snapshot of the next tick, state of this one
    'write training-state 1000',
    'rename training-state',
    'renamed stats.jsonl',  # while the records are cut back
    'renamed manifest',
    'step 5',
]


def _run(tasks: list[dict[str, Any]]) -> list[int]:
    """Exit codes of the tasks (tests/cases_training.py)."""
    command = [sys.executable, str(ROOT / 'tests' / 'cases_training.py')]
    done = subprocess.run(command, input=json.dumps(tasks), capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    codes = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith('#ended')]
    assert len(codes) == len(tasks), done.stderr
    return codes


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An uninterrupted run, and one that was killed at every point of KILLS."""
    folder = tmp_path_factory.mktemp('resume')
    data = str(tiny_dataset(folder).path)
    whole = {'outdir': str(folder / 'whole'), 'data': data, 'images': IMAGES}
    killed = {**whole, 'outdir': str(folder / 'killed')}
    codes = _run([whole, *({**killed, 'kill': point} for point in KILLS), killed])
    assert codes == [0, *([-signal.SIGKILL] * len(KILLS)), 0]
    return {'whole': folder / 'whole', 'killed': folder / 'killed', 'data': Path(data)}


def _flat(value: Any, prefix: str = '') -> dict[str, Any]:
    if isinstance(value, dict):
        return {name: leaf for key, item in value.items() for name, leaf in _flat(item, f'{prefix}{key}.').items()}
    return {prefix: value}


def test_weights_and_optimizers_are_bit_identical(runs: dict[str, Path]) -> None:
    whole, killed = (_flat(torch.load(runs[name] / STATE, weights_only=True)) for name in ('whole', 'killed'))
    assert whole.keys() == killed.keys()
    assert whole['counters.images_seen.'] == IMAGES
    assert whole['counters.augment_probability.'] > 0
    for name, value in whole.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, killed[name]), name
        elif name != 'info.':  # holds seconds
            assert value == killed[name], name


def test_snapshots_are_identical_files(runs: dict[str, Path]) -> None:
    whole, killed = (
        {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in runs[name].glob('*.pkl')}
        for name in ('whole', 'killed')
    )
    assert whole == killed
    assert len(whole) == 1


def test_pictures_are_identical(runs: dict[str, Path]) -> None:
    for name in ('reals.png', 'fakes000000.png'):
        assert (runs['whole'] / name).read_bytes() == (runs['killed'] / name).read_bytes()


def _records(file: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return [
        {key: value for key, value in record.items() if not key.startswith(('Timing', 'Resources'))}
        for record in records
    ]


def test_records_have_no_gaps_and_no_duplicates(runs: dict[str, Path]) -> None:
    for name in ('stats.jsonl', 'metric-images.jsonl'):
        whole, killed = _records(runs['whole'] / name), _records(runs['killed'] / name)
        assert [record['images_seen'] for record in whole] == [4, 8, 12]
        assert whole == killed


def test_tensorboard_shows_each_step_once(runs: dict[str, Path]) -> None:
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    for name in ('whole', 'killed'):
        events = accumulator.EventAccumulator(str(runs[name]))
        events.Reload()
        for tag in ('Loss/G/loss', 'Metrics/images'):
            assert [event.step for event in events.Scalars(tag)] == [4, 8, 12], (name, tag)


def test_nothing_half_written_is_left(runs: dict[str, Path]) -> None:
    assert not list(runs['killed'].glob('.*.tmp'))


def _train(runs: dict[str, Path], outdir: Path, **changes: Any) -> None:
    import dataclasses

    config = dataclasses.replace(resume_config(runs['data'], images=IMAGES), **changes)
    loop.train(CPU, config=config, options=loop.RunOptions(outdir=str(outdir)), evaluate=count_images)


def test_a_changed_config_is_refused_by_name(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, 'open_dataset', open_sheet_dataset)
    with pytest.raises(UserError, match=r'other options: g_lr \(0.0025 -> 0.1\), seed \(0 -> 3\);'):
        _train(runs, runs['killed'], g_lr=0.1, seed=3)
    (runs['killed'] / 'training_options.json').rename(runs['killed'] / 'kept')
    try:
        with pytest.raises(UserError, match=r'000012.pt: made with other options: seed'):
            _train(runs, runs['killed'], seed=3)
    finally:
        (runs['killed'] / 'kept').rename(runs['killed'] / 'training_options.json')


def test_another_dataset_is_refused(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, 'open_dataset', open_sheet_dataset)
    other = tiny_dataset(tmp_path, seed=5).path
    with pytest.raises(UserError, match='images or cameras in data .'):
        _train(runs, runs['killed'], data=str(other))


def test_a_finished_run_stays_as_it_is(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, 'open_dataset', open_sheet_dataset)
    before = (runs['whole'] / STATE).read_bytes()
    _train(runs, runs['whole'])
    assert 'this run is complete' in capsys.readouterr().out
    assert (runs['whole'] / STATE).read_bytes() == before


def test_one_process_a_folder(tmp_path: Path) -> None:
    with hold(tmp_path), pytest.raises(UserError, match='another process is training here'):
        with hold(tmp_path, wait=0.3):
            pass


def test_changed_fields() -> None:
    old = {'seed': 0, 'loss': {'gamma': 1, 'kind': 'a'}, 'kimg': 5}
    new = {'seed': 0, 'loss': {'gamma': 2, 'kind': 'a'}, 'kimg': 9, 'extra': 1}
    assert [str(change) for change in changed_fields(old, new)] == ['extra (None -> 1)', 'loss.gamma (1 -> 2)']


def test_records_are_cut_back(tmp_path: Path) -> None:
    lines = [json.dumps({'images_seen': seen}) for seen in (8, 16, 24)]
    (tmp_path / 'stats.jsonl').write_text('\n'.join([*lines, '{"images_se']))
    directory = RunDirectory(tmp_path)
    directory.begin(resume_config('x', images=8), images_seen=16)
    directory.close()
    assert (tmp_path / 'stats.jsonl').read_text().splitlines() == lines[:2]
