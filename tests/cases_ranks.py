"""What spawned ranks do in tests; imports little, since every rank pays for it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch

from dnnlib import UserError
from torch_utils.distributed import Communicator
from training.ranks import check_shared


def collectives(communicator: Communicator, *, folder: str) -> None:
    """Every collective once; the results go to <rank>.pt."""
    rank = communicator.rank
    total = communicator.sum_(torch.full([3], float(rank + 1)))
    parts = [torch.full([2, 2], float(rank)), torch.tensor(10.0 * rank)]
    communicator.mean_(parts)
    copied = [torch.full([2], float(rank + 7))]
    communicator.broadcast_(copied)
    communicator.barrier()
    torch.save([total, *parts, *copied], Path(folder) / f'{rank}.pt')


def fail(communicator: Communicator, *, kind: str) -> None:
    """Rank 1 raises a UserError, or is killed, while the others wait for it."""
    if communicator.rank == 1:
        if kind == 'user':
            raise UserError('the disk of rank 1 is full')
        os.kill(os.getpid(), signal.SIGKILL)
    communicator.barrier()


def stumble(communicator: Communicator, *, kind: str) -> None:
    """Rank 1 sleeps for ever, leaves, or raises in phase Gmain, while the others wait for it."""
    communicator.progress.enter('data')
    communicator.barrier()
    communicator.progress.enter('Gmain')
    if communicator.rank == 1:
        if kind == 'sleep':
            time.sleep(3600)
        if kind == 'exit':
            os._exit(3)
        if kind == 'leave':
            raise SystemExit(0)
        raise RuntimeError('a defect')
    communicator.barrier()


def fall_asleep(communicator: Communicator, *, phase: str) -> None:
    """For ever."""
    communicator.progress.enter(phase)
    time.sleep(3600)


def work_alone(communicator: Communicator, *, seconds: float) -> None:
    """Rank 0 works longer than the others may be idle, and shows that it does."""
    communicator.progress.enter('metrics')
    end = time.monotonic() + seconds
    while communicator.is_main and time.monotonic() < end:
        communicator.progress.beat()
        time.sleep(0.05)
    communicator.barrier()


def look_elsewhere(communicator: Communicator, *, folder: str) -> None:
    """Rank 1 has another folder under the name of rank 0's."""
    own = Path(folder) / str(communicator.rank)
    own.mkdir()
    check_shared(communicator, own)
