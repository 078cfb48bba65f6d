"""What the ranks of a run settle before they train: native ops, a folder that all of them see, a log of each."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
from pathlib import Path

import torch

from dnnlib.errors import UserError
from torch_utils.distributed import Communicator, describe
from torch_utils.ops import library

_TOKEN = '.ranks'


def build_ops(communicator: Communicator) -> None:
    """Build and load the native ops, once a node, before anything else is done together."""
    communicator.progress.enter('build of the ops', limit=2 * library.LOCK_TIMEOUT_SECONDS)
    if communicator.local_rank == 0:
        library.use_native(communicator.device)  # nodes that share a cache folder wait for each other by its lock
    communicator.barrier()
    communicator.progress.enter('start')


def check_shared(communicator: Communicator, folder: Path) -> None:
    """UserError on all ranks unless each sees the folder of rank 0. Collective; rank 0 has made the folder."""
    if communicator.size == 1:
        return
    token = torch.tensor([secrets.randbits(62)], device=communicator.device)
    communicator.broadcast_([token])
    file = folder / _TOKEN
    if communicator.is_main:
        file.write_text(str(int(token)))
    communicator.barrier()
    seen = False
    with contextlib.suppress(OSError):
        seen = file.read_text() == str(int(token))
    blind = torch.zeros(communicator.size, device=communicator.device)
    blind[communicator.rank] = 0.0 if seen else 1.0
    missing = communicator.sum_(blind).nonzero().flatten().tolist()
    if communicator.is_main:
        file.unlink(missing_ok=True)
    if missing:
        names = ', '.join(str(rank) for rank in missing[:8])
        raise UserError(
            f'--outdir: {folder} of rank 0 is not what rank(s) {names} see there; all nodes must share the folder, '
            'since each rank resumes from its state file'
        )


def open_rank_log(communicator: Communicator, folder: Path) -> None:
    """log-rank<k>.txt in the run's folder, where there are several ranks: who it is, why it ended, its stack then."""
    if communicator.size == 1:
        return
    fields = {'host': platform.node(), 'process': os.getpid(), 'local rank': communicator.local_rank}
    fields |= describe(communicator)
    text = ', '.join(f'{key} {value}' for key, value in fields.items())
    communicator.progress.open_log(folder / f'log-rank{communicator.rank}.txt', f'rank {communicator.rank}: {text}')
