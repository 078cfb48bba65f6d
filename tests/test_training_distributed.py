"""Ranks: what they compute together equals what one computes alone; errors come home as one line."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases_ranks import collectives, fail
from cases_training import CPU, ROOT, record_gradients, tiny_dataset

from dnnlib import UserError
from torch_utils import distributed
from torch_utils.distributed import run


@pytest.fixture(scope='module')
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    """The same two steps (four samples in micro-batches of two) by one rank and by two."""
    folder = tmp_path_factory.mktemp('ranks')
    tiny_dataset(folder)
    for ranks in (1, 2):
        run(functools.partial(record_gradients, folder=str(folder)), 'cpu', ranks=ranks)
    return {ranks: torch.load(folder / f'record{ranks}.pt', weights_only=True) for ranks in (1, 2)}


def test_two_ranks_average_to_the_gradients_of_one(records: dict[int, dict]) -> None:
    phases = [name for name in records[1] if name.startswith('phase')]
    assert len(phases) == 6  # Gmain, Gdensity, Dmain, Dr1; Gmain, Dmain
    for phase in phases:
        assert records[1][phase].keys() == records[2][phase].keys()
        for name, alone in records[1][phase].items():
            error = (alone - records[2][phase][name]).abs().max()
            assert error <= 1e-5 * max(1.0, float(alone.abs().max())), (phase, name, float(error))


def test_two_ranks_reach_the_same_weights_and_statistics(records: dict[int, dict]) -> None:
    for network, state in records[1]['state'].items():
        for name, alone in state.items():
            assert torch.allclose(alone, records[2]['state'][network][name], atol=2e-5, rtol=1e-4), (network, name)
    assert records[1]['stats'].keys() == records[2]['stats'].keys()
    for name, (count, mean) in records[1]['stats'].items():
        if not name.startswith('Gradient'):  # reported by each rank
            assert records[2]['stats'][name][0] == count, name
        assert records[2]['stats'][name][1] == pytest.approx(mean, abs=1e-4, rel=1e-3), name


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
    ('kind', 'message'), [('user', '^the disk of rank 1 is full$'), ('kill', '^rank 1 ended by SIGKILL')]
)
def test_a_failing_rank_ends_the_run(kind: str, message: str) -> None:
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
import functools, sys
sys.path[:0] = {paths!r}
from cases_ranks import collectives
from torch_utils.distributed import run
run(functools.partial(collectives, folder={folder!r}), 'cpu', ranks=2)
"""


def test_torchrun_works(tmp_path: Path) -> None:
    script = tmp_path / 'script.py'
    script.write_text(TORCHRUN_SCRIPT.format(paths=[str(ROOT), str(ROOT / 'tests')], folder=str(tmp_path)))
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.load(tmp_path / '1.pt', weights_only=True)[0].tolist() == [3, 3, 3]
