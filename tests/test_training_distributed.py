"""Ranks: what they compute together equals what one computes alone; errors come home as one line."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cases_ranks import collectives, fail, look_elsewhere
from cases_training import CPU, ROOT, record_gradients, resume_config, tiny_dataset, train_sheet

from dnnlib import UserError
from torch_utils import distributed
from torch_utils.distributed import run
from training.checkpoint import load_training_state

RANKS = (1, 2, 3)


@pytest.fixture(scope='module', autouse=True)
def forked_ranks() -> Iterator[None]:
    """Ranks that need not import torch again: seconds a test. One thread, since pools of threads do not survive."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, 'START_METHOD', 'fork')
        patch.setenv('OMP_NUM_THREADS', '1')
        yield


@pytest.fixture(scope='module')
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    """The same metric, snapshot and two steps (twelve samples in micro-batches of two) by one, two and three ranks."""
    folder = tmp_path_factory.mktemp('ranks')
    tiny_dataset(folder)
    for ranks in RANKS:
        run(functools.partial(record_gradients, folder=str(folder)), 'cpu', ranks=ranks)
    return {ranks: torch.load(folder / f'record{ranks}.pt', weights_only=True) for ranks in RANKS}


@pytest.mark.parametrize('ranks', RANKS[1:])
def test_ranks_average_to_the_gradients_of_one(records: dict[int, dict], ranks: int) -> None:
    phases = [name for name in records[1] if name.startswith('phase')]
    assert len(phases) == 6  # Gmain, Gdensity, Dmain, Dr1; Gmain, Dmain
    for phase in phases:
        assert records[1][phase].keys() == records[ranks][phase].keys()
        for name, alone in records[1][phase].items():
            error = (alone - records[ranks][phase][name]).abs().max()
            assert error <= 1e-5 * max(1.0, float(alone.abs().max())), (phase, name, float(error))


@pytest.mark.parametrize('ranks', RANKS[1:])
def test_ranks_reach_the_same_weights_and_statistics(records: dict[int, dict], ranks: int) -> None:
    for network, state in records[1]['state'].items():
        for name, alone in state.items():
            assert torch.allclose(alone, records[ranks]['state'][network][name], atol=2e-5, rtol=1e-4), (network, name)
    assert records[1]['stats'].keys() == records[ranks]['stats'].keys()
    for name, (count, mean) in records[1]['stats'].items():
        if not name.startswith('Gradient'):  # reported by each rank
            assert records[ranks]['stats'][name][0] == count, name
        assert records[ranks]['stats'][name][1] == pytest.approx(mean, abs=1e-4, rel=1e-3), name


def test_metrics_and_snapshots_do_not_depend_on_the_number_of_ranks(records: dict[int, dict]) -> None:
    for ranks in RANKS[1:]:
        assert records[ranks]['metric'] == records[1]['metric']
        assert records[ranks]['snapshot'] == records[1]['snapshot']
    assert records[1]['metric'] > 0


def test_collectives(tmp_path: Path) -> None:
    run(functools.partial(collectives, folder=str(tmp_path)), 'cpu', ranks=2)
    for rank in (0, 1):
        total, mean, number, copied = torch.load(tmp_path / f'{rank}.pt', weights_only=True)
        assert total.tolist() == [3, 3, 3]
        assert mean.tolist() == [[0.5, 0.5], [0.5, 0.5]]
        assert number == 5
        assert copied.tolist() == [7, 7]


def test_one_rank_needs_no_process_group() -> None:
    value = torch.ones(2)
    CPU.mean_([value])
    CPU.barrier()
    assert CPU.sum_(value) is value
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ('kind', 'message'),
    [('user', '^the disk of rank 1 is full$'), ('kill', '^rank 1 ended by SIGKILL .* in phase start$')],
)
def test_a_failing_rank_ends_the_run(kind: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks as train.py starts them."""
    monkeypatch.setattr(distributed, 'START_METHOD', 'spawn')
    with pytest.raises(UserError, match=message):
        run(functools.partial(fail, kind=kind), 'cpu', ranks=2)


def test_torchrun_is_recognized(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.torchrun_ranks() is None
    for name, value in {'RANK': '3', 'WORLD_SIZE': '8', 'LOCAL_RANK': '1', 'MASTER_ADDR': 'x'}.items():
        monkeypatch.setenv(name, value)
    assert distributed.torchrun_ranks() == (3, 8, 1)
    with pytest.raises(UserError, match='torchrun started 8 ranks but 2 were asked for'):
        run(lambda communicator: None, 'cpu', ranks=2)


TORCHRUN_SCRIPT = """
import functools, os, sys
sys.path[:0] = {paths!r}
from cases_training import kill_at, resume_config, train_sheet
from torch_utils.distributed import run
from training.checkpoint import load_training_state
if (os.environ['RANK'], os.environ['TORCHELASTIC_RESTART_COUNT']) == ('1', '0'):
    kill_at('step 3')
config = resume_config({data!r}, images=16, gpus=2)
run(functools.partial(train_sheet, config=config, outdir={outdir!r}), 'cpu', ranks=2)
"""


def test_torchrun_restarts_a_killed_rank_and_the_run_goes_on(tmp_path: Path) -> None:
    """Rank 1 is killed in the fourth step; the state of the second is where both go on, to the same weights."""
    data = tiny_dataset(tmp_path).path
    script, outdir = tmp_path / 'script.py', tmp_path / 'killed'
    paths = [str(ROOT), str(ROOT / 'tests')]
    script.write_text(TORCHRUN_SCRIPT.format(paths=paths, data=str(data), outdir=str(outdir)))
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '--max-restarts=1']
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert 'resumed' in done.stdout
    assert re.search(r'rank 1 \(.*\) ended in phase data', done.stderr), done.stderr[-4000:]
    assert 'phase data' in (outdir / 'log-rank0.txt').read_text()
    config = resume_config(data, images=16, gpus=2)
    run(functools.partial(train_sheet, config=config, outdir=str(tmp_path / 'whole')), 'cpu', ranks=2)
    states = [load_training_state(tmp_path / name / 'training-state-000000016.pt')[2] for name in ('killed', 'whole')]
    for network in ('G_ema', 'G', 'D'):
        for name, value in states[0][network].items():
            assert torch.equal(value, states[1][network][name]), (network, name)


def test_a_folder_that_is_not_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'--outdir: .* is not what rank\(s\) 1 see there; all nodes must share'):
        run(functools.partial(look_elsewhere, folder=str(tmp_path)), 'cpu', ranks=2)
