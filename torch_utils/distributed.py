"""Ranks: one process each, spawned here or started by torchrun, and the few collectives that training needs.

A `Communicator` is passed around explicitly; with one rank every collective is a no-op and no
process group exists. gloo serves CPU ranks, nccl accelerators.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import datetime
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from dnnlib.errors import UserError

TIMEOUT_SECONDS = 3600  # longer than rank 0 may spend on metrics while the others wait
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of mallopt(3)


@dataclasses.dataclass(frozen=True)
class Communicator:
    """This process's place among the ranks, and its device."""

    device: torch.device
    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Mean over ranks of each tensor, in place, as one flat message."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Every rank takes rank 0's values, in place."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, 0)

    def barrier(self) -> None:
        """Wait for all ranks; raises after the process group's timeout."""
        if self.size > 1:
            self.sum_(torch.zeros(1, device=self.device))


def torchrun_ranks() -> tuple[int, int, int] | None:
    """(rank, number of ranks, local rank) when torchrun started this process, else None."""
    if 'TORCHELASTIC_RUN_ID' not in os.environ and not {'RANK', 'WORLD_SIZE', 'MASTER_ADDR'} <= set(os.environ):
        return None
    return int(os.environ['RANK']), int(os.environ['WORLD_SIZE']), int(os.environ.get('LOCAL_RANK', 0))


@contextlib.contextmanager
def process_group(
    device_type: str, *, rank: int, size: int, local_rank: int, init_method: str, timeout: float = TIMEOUT_SECONDS
) -> Iterator[Communicator]:
    """Join the group of `size` ranks for the block; accelerators are numbered by local rank."""
    cpu = device_type == 'cpu'
    device = torch.device(device_type) if cpu else torch.device(device_type, local_rank)
    if not cpu:
        torch.get_device_module(device).set_device(device)
    torch.distributed.init_process_group(
        'gloo' if cpu else 'nccl',
        init_method=init_method,
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=timeout),
        device_id=None if cpu else device,
    )
    try:
        yield Communicator(device, rank, size, local_rank)
    finally:
        torch.distributed.destroy_process_group()


def run(function: Callable[[Communicator], None], device_type: str, *, ranks: int = 1) -> None:
    """Call `function(communicator)` in every rank: here, in spawned processes, or in torchrun's.

    `function` must be picklable when ranks > 1. A UserError of any rank is raised here, the other
    ranks are ended. Raises UserError when torchrun's number of ranks differs from `ranks`.
    """
    started = torchrun_ranks()
    if started is not None:
        rank, size, local_rank = started
        if size != ranks:
            raise UserError(f'--gpus: torchrun started {size} ranks but {ranks} were asked for; pass --gpus={size}')
        with process_group(device_type, rank=rank, size=size, local_rank=local_rank, init_method='env://') as group:
            function(group)
    elif ranks == 1:
        function(Communicator(torch.device(device_type)))
    else:
        _spawn(function, device_type, ranks)


def _spawn(function: Callable[[Communicator], None], device_type: str, ranks: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        context = torch.multiprocessing.start_processes(
            _spawned, args=(function, device_type, ranks, folder), nprocs=ranks, join=False, start_method='spawn'
        )
        assert context is not None
        try:
            while not context.join():
                pass
        except (torch.multiprocessing.ProcessRaisedException, torch.multiprocessing.ProcessExitedException) as error:
            messages = sorted(Path(folder).glob('error-*.txt'))
            if messages:
                raise UserError(messages[0].read_text()) from None
            if isinstance(error, torch.multiprocessing.ProcessExitedException):
                reason = error.signal_name or f'exit status {error.exit_code}'
                raise UserError(f'rank {error.error_index} ended by {reason} (out of memory?)') from None
            raise


def _spawned(index: int, function: Callable[[Communicator], None], device_type: str, ranks: int, folder: str) -> None:
    _die_with_parent()
    limit_threads(ranks)
    method = (Path(folder) / 'rendezvous').as_uri()
    try:
        with process_group(device_type, rank=index, size=ranks, local_rank=index, init_method=method) as group:
            function(group)
    except UserError as error:
        (Path(folder) / f'error-{index}.txt').write_text(str(error))
        raise


def _die_with_parent() -> None:
    """Have Linux kill this rank when the process that spawned it is killed; it would go on writing otherwise."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL('libc.so.6').prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of returning each large tensor to the system (fewer page faults).

    A tenth of the time of a training step on a CPU; elsewhere, or without glibc, nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL('libc.so.6')
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(_M_TOP_PAD, 1 << 26)


def limit_threads(ranks: int) -> None:
    """Share this machine's cores among `ranks` processes, unless OMP_NUM_THREADS says otherwise."""
    if 'OMP_NUM_THREADS' not in os.environ:
        try:
            cores = len(os.sched_getaffinity(0))
        except AttributeError:  # not on macOS
            cores = os.cpu_count() or 1
        torch.set_num_threads(max(cores // ranks, 1))


def describe(communicator: Communicator) -> dict[str, Any]:
    """Device, ranks and threads as a log line's fields."""
    name = communicator.device.type
    if name != 'cpu':
        name = torch.get_device_module(communicator.device).get_device_name(communicator.device)
    return {'device': name, 'ranks': communicator.size, 'threads': torch.get_num_threads(), 'torch': torch.__version__}
