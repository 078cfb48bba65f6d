"""What the worker processes of a pool do at their start."""

from __future__ import annotations

import multiprocessing
import os
import threading

import torch


def start_worker() -> None:
    """One thread for this process, which ends when its parent does: a killed parent cannot end its workers."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
