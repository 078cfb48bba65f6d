"""What a slow command keeps beside its output, so that it goes on where it was interrupted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from applications.preprocessing.pool import WorkFolder
from dnnlib.files import remove_leftovers


@contextlib.contextmanager
def kept_work(out: str, *, what: str, restart: bool, log: Callable[[str], None]) -> Iterator[WorkFolder]:
    """The folder OUT-work of a command that makes `out`; it goes when the block ends, and stays if the block fails.

    Its results must be kept under keys that name everything they depend on. Unfinished outputs of killed runs go first.
    """
    work = WorkFolder(f'{out.removesuffix(".zip")}-work', {'holds': what}, restart=restart)
    if work.count():
        log(f'{work.path}: continuing, {work.count()} batches of {what} are done')
    remove_leftovers(out)
    with work.removed_if_empty():
        yield work
    work.remove()
