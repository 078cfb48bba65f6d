"""What spawned ranks do in tests; imports little, since every rank pays for it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

from dnnlib import UserError
from torch_utils.distributed import Communicator


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
