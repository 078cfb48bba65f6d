"""Ranks: one process each, spawned here or started by torchrun, and the few collectives that training needs.

A `Communicator` is passed around explicitly; with one rank every collective is a no-op and no
process group exists. gloo serves CPU ranks, nccl accelerators.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import datetime
import multiprocessing
import multiprocessing.connection
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from dnnlib.errors import UserError
from torch_utils import watch
from torch_utils.progress import LostConnectionError, Progress
from torch_utils.watch import TIMEOUT_SECONDS, Watch
from torch_utils.workers import usable_cores

GROUP_TIMEOUT = datetime.timedelta(days=7)  # the watch decides how long is too long
JOIN_SECONDS = 600.0  # for all ranks to find each other
GRACE_SECONDS = 2.0  # between asking a spawned rank to end and killing it
START_METHOD = 'spawn'  # of ranks
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of mallopt(3)


@dataclasses.dataclass(frozen=True)
class Communicator:
    """This process's place among the ranks, its device, and where it is in its work."""

    device: torch.device
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    progress: Progress = dataclasses.field(default_factory=Progress, compare=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            with self._collective():
                torch.distributed.all_reduce(tensor)
        return tensor

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Mean over ranks of each tensor, in place, as one flat message."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self.sum_(flat)
        flat /= self.size
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Every rank takes rank 0's values, in place."""
        if self.size > 1:
            with self._collective():
                for tensor in tensors:
                    torch.distributed.broadcast(tensor, 0)

    def least(self, value: int) -> int:
        """The smallest of the ranks' values."""
        smallest = torch.tensor([value], device=self.device)
        if self.size > 1:
            with self._collective():
                torch.distributed.all_reduce(smallest, torch.distributed.ReduceOp.MIN)
        return int(smallest)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.sum_(torch.zeros(1, device=self.device))

    @contextlib.contextmanager
    def _collective(self) -> Iterator[None]:
        """LostConnectionError where another rank has gone."""
        self.progress.collective()
        try:
            yield
        except RuntimeError as error:  # gloo's and nccl's
            raise LostConnectionError(str(error)) from error


def torchrun_ranks() -> tuple[int, int, int] | None:
    """(rank, number of ranks, local rank) when torchrun started this process, else None."""
    if 'TORCHELASTIC_RUN_ID' not in os.environ and not {'RANK', 'WORLD_SIZE', 'MASTER_ADDR'} <= set(os.environ):
        return None
    return int(os.environ['RANK']), int(os.environ['WORLD_SIZE']), int(os.environ.get('LOCAL_RANK', 0))


@contextlib.contextmanager
def process_group(
    store: Any, device_type: str, *, rank: int, size: int, local_rank: int, timeout: float, quiet: bool = False
) -> Iterator[Communicator]:
    """Join the group of `size` ranks that share `store` for the block, watched (torch_utils/watch.py);
    accelerators are numbered by local rank."""
    cpu = device_type == 'cpu'
    device = torch.device(device_type) if cpu else torch.device(device_type, local_rank)
    if not cpu:
        torch.get_device_module(device).set_device(device)
    communicator = Communicator(device, rank, size, local_rank)
    start = _meet(store, rank, size)
    try:
        torch.distributed.init_process_group(
            'gloo' if cpu else 'nccl',
            store=torch.distributed.PrefixStore(f'{start}/group', store),
            rank=rank,
            world_size=size,
            timeout=GROUP_TIMEOUT,
            device_id=None if cpu else device,
        )
    except RuntimeError as error:
        raise UserError(f'rank {rank} cannot connect to the other ranks: {str(error).splitlines()[0]}') from error
    # A connection of its own, since one that waits in the main thread is locked.
    own = torch.distributed.PrefixStore(f'{start}/watch', store.clone())
    watched = Watch(own, rank=rank, size=size, progress=communicator.progress, timeout=timeout, quiet=quiet)
    with watched.running():
        yield communicator
    torch.distributed.destroy_process_group()  # not after a failure: it may wait for those that have gone


def _meet(store: Any, rank: int, size: int) -> str:
    """Wait for all ranks; a name of this start of theirs, under which the store holds nothing yet.

    A store may outlive a group that failed (torchrun's restarts), so an old greeting must not be taken for a new one:
    rank 0 gives the start its name, the others greet it, and it returns each greeting when all are there. UserError
    names the ranks that did not come.
    """
    own, deadline, pause = secrets.token_hex(8), time.monotonic() + JOIN_SECONDS, 0.01
    if rank == 0:
        store.set('start', own)
    missing = list(range(1, size)) if rank == 0 else [0]
    while missing:
        if time.monotonic() > deadline:
            names = ', '.join(str(other) for other in missing[:8])
            raise UserError(f'rank {rank}: rank(s) {names} did not start within {JOIN_SECONDS:.0f} s')
        if rank == 0:
            missing = [other for other in missing if not store.check([f'{own}/greeting/{other}'])]
        elif store.check(['start']):
            start = store.get('start').decode()
            store.set(f'{start}/greeting/{rank}', own)
            answer = f'{start}/answer/{rank}'
            if store.check([answer]) and store.get(answer).decode() == own:
                return start
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)
    for other in range(1, size):
        store.set(f'{own}/answer/{other}', store.get(f'{own}/greeting/{other}'))
    return own


def run(
    function: Callable[[Communicator], None], device_type: str, *, ranks: int = 1, timeout: float = TIMEOUT_SECONDS
) -> None:
    """Call `function(communicator)` in every rank: here, in spawned processes, or in torchrun's.

    `function` must be picklable when ranks > 1. A UserError of any rank is raised here, the other
    ranks are ended; so are all when a rank dies, or gets no further for `timeout` seconds, with rank and phase in the
    message. Raises UserError when torchrun's number of ranks differs from `ranks`.
    """
    started = torchrun_ranks()
    if started is not None:
        rank, size, local_rank = started
        if size != ranks:
            raise UserError(f'--gpus: torchrun started {size} ranks but {ranks} were asked for; pass --gpus={size}')
        store, _, _ = next(torch.distributed.rendezvous('env://', timeout=datetime.timedelta(seconds=JOIN_SECONDS)))
        with process_group(
            store, device_type, rank=rank, size=size, local_rank=local_rank, timeout=timeout
        ) as communicator:
            _end_by_exception(communicator.progress)
            function(communicator)
    elif ranks == 1:
        communicator = Communicator(torch.device(device_type))
        watched = Watch(watch.local_store(), rank=0, size=1, progress=communicator.progress, timeout=timeout)
        with watched.running():
            function(communicator)
    else:
        _spawn(function, device_type, ranks, timeout)


def _end_by_exception(progress: Progress) -> None:
    """Have SIGTERM, by which torchrun ends the ranks of a group that lost one, raise in the main thread: it tells
    which rank was where before it ends."""

    def end(number: int, frame: FrameType | None) -> None:
        if not progress.ending:
            raise LostConnectionError('ended by SIGTERM, as launchers do')

    signal.signal(signal.SIGTERM, end)


def _spawn(function: Callable[[Communicator], None], device_type: str, ranks: int, timeout: float) -> None:
    store = torch.distributed.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
    context: Any = multiprocessing.get_context(START_METHOD)
    processes: list[BaseProcess] = [
        context.Process(target=_spawned, args=(index, function, device_type, ranks, store.port, timeout), daemon=False)
        for index in range(ranks)
    ]
    try:
        for process in processes:
            process.start()
        alive = dict(enumerate(processes))
        while alive:
            multiprocessing.connection.wait([process.sentinel for process in alive.values()])
            for rank, process in list(alive.items()):
                if not process.is_alive():
                    del alive[rank]
                    _check_end(store, rank, process.exitcode)
    finally:
        _end_all(processes)


def _check_end(store: Any, rank: int, status: int | None) -> None:
    """UserError unless a rank came to its end."""
    start = store.get('start').decode() if store.check(['start']) else 'none'
    board = torch.distributed.PrefixStore(f'{start}/watch', store)
    if status == 0 and watch.has_finished(board, rank):
        return
    said = watch.verdict(board) if status == 1 else None
    if said is not None:
        raise UserError(said)
    if status is not None and status < 0:
        hint = ' (out of memory?)' if -status == signal.SIGKILL else ''
        how = f'{signal.Signals(-status).name}{hint}'
    else:
        how = f'exit status {status} before its work was done'
    raise UserError(f'rank {rank} ended by {how} in {watch.last_phase(board, rank)}')


def _end_all(processes: Sequence[BaseProcess]) -> None:
    started = [process for process in processes if process.pid is not None]
    for process in started:
        process.terminate()
    for process in started:
        process.join(GRACE_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _spawned(
    index: int, function: Callable[[Communicator], None], device_type: str, ranks: int, port: int, timeout: float
) -> None:
    _die_with_parent()
    limit_threads(ranks)
    store = torch.distributed.TCPStore('127.0.0.1', port, is_master=False)
    with process_group(
        store, device_type, rank=index, size=ranks, local_rank=index, timeout=timeout, quiet=True
    ) as communicator:
        function(communicator)


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
        torch.set_num_threads(max(usable_cores() // ranks, 1))


def describe(communicator: Communicator) -> dict[str, Any]:
    """Device, ranks and threads as a log line's fields."""
    name = communicator.device.type
    if name != 'cpu':
        name = torch.get_device_module(communicator.device).get_device_name(communicator.device)
    return {'device': name, 'ranks': communicator.size, 'threads': torch.get_num_threads(), 'torch': torch.__version__}
