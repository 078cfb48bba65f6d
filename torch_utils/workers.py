"""How many processes and threads are worth starting, and what a worker process does at its start."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def in_runs(function: Callable[[range], None], count: int, *, threads: int) -> None:
    """Call `function` on consecutive runs of range(count), by at most `threads` threads and no more than cores.

    For many small pieces of work, each of which takes less than handing it to another thread. A thread takes about
    four runs, so that one which is held up does not hold up the others.
    """
    threads = min(threads, usable_cores(), count)
    if threads <= 1:
        function(range(count))
        return
    pieces = min(4 * threads, count)
    bounds = [count * i // pieces for i in range(pieces + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda start, stop: function(range(start, stop)), bounds[:-1], bounds[1:]))


def start_worker() -> None:
    """One thread for this process, which ends when its parent does: a killed parent cannot end its workers."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
