"""Work on many items in processes, results in order; and a folder that keeps what is done.

Every item is computed by itself with one thread, so neither the number of processes nor an
interruption changes a result.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import importlib
import json
import multiprocessing
import os
import pickle
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from applications.datasets.parameter_files import TensorUnpickler
from dnnlib import UserError
from dnnlib.files import atomic_write, explain_os_error
from torch_utils.workers import start_worker, usable_cores

Item = TypeVar('Item')
Result = TypeVar('Result')
_CONTEXT: list[Any] = []  # of this worker process
_OPTIONS = 'options.json'
REVISION = 3  # of detection and fits: raise it where their results change, so that no run mixes two


def check_workers(workers: int | None) -> int:
    """The number of processes (0: this one); UserError for a negative one."""
    if workers is not None and workers < 0:
        raise UserError(f'--workers {workers}: expected 0 (this process) or more')
    return usable_cores() if workers is None else workers


def ordered_map(
    function: Callable[[Any, Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    make_context: Callable[..., contextlib.AbstractContextManager[Any]],
    arguments: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """`function(context, item)` of each item, in order, with a bounded number under way.

    Each process (0: this one) enters its own context `make_context(*arguments)`. UserError if a process dies.
    """
    if workers == 0:
        with _one_thread(), make_context(*arguments) as context:
            for item in items:
                yield function(context, item)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context('spawn'),
        initializer=_start_worker,
        initargs=(make_context, arguments),
    )
    with pool:
        pending: deque[concurrent.futures.Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(_call, function, item))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError(
                'a worker process died (out of memory?); run again to continue, with fewer --workers'
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _start_worker(
    make_context: Callable[..., contextlib.AbstractContextManager[Any]], arguments: tuple[Any, ...]
) -> None:
    start_worker()
    manager = make_context(*arguments)
    _CONTEXT[:] = [manager.__enter__(), manager]  # left when the process ends


def _call(function: Callable[[Any, Item], Result], item: Item) -> Result:
    return function(_CONTEXT[0], item)


class _ResultUnpickler(TensorUnpickler):
    """Builds arrays, tensors and the plain records of this project; runs nothing else that a file names."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith('applications.preprocessing.') or module == 'training.head.model':
            found = getattr(importlib.import_module(module), name, None)
            if isinstance(found, type) and dataclasses.is_dataclass(found):
                return found
        return super().find_class(module, name)


class WorkFolder:
    """Finished results beside the output, so that an interrupted run goes on where it stopped.

    `options` are what the results depend on; a folder made with others is refused by the options'
    names. Results are written whole or not at all. Call `remove` when the output is complete.
    """

    def __init__(self, path: str | os.PathLike[str], options: Mapping[str, object], *, restart: bool = False) -> None:
        self.path = Path(path)
        wanted = json.loads(json.dumps({'revision': REVISION, **options}))
        if self.path.exists():
            self._check(wanted, restart=restart)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_os_error(error, self.path) from error
        if not (self.path / _OPTIONS).is_file():
            with atomic_write(self.path / _OPTIONS) as handle:
                handle.write((json.dumps(wanted, indent=1) + '\n').encode())

    def _check(self, wanted: dict[str, object], *, restart: bool) -> None:
        try:
            found = json.loads((self.path / _OPTIONS).read_text(encoding='utf-8'))
        except (OSError, ValueError) as error:
            if self.path.is_dir() and not any(name for name in os.listdir(self.path) if not name.startswith('.')):
                return  # killed before it wrote its options
            raise UserError(f'{self.path}: not the work folder of an earlier run; move it away') from error
        changed = [name for name in wanted if found.get(name) != wanted[name]]
        if restart:
            shutil.rmtree(self.path)
        elif changed:
            was = ', '.join(f'{name} was {found.get(name)}, is now {wanted[name]}' for name in changed)
            raise UserError(
                f'{self.path}: holds an unfinished run with other options ({was}); repeat those, '
                'or pass --restart to begin anew'
            )

    def load(self, key: str) -> Any:
        """A finished result, None if there is none."""
        try:
            with open(self._file(key), 'rb') as handle:
                return _ResultUnpickler(handle).load()
        except FileNotFoundError:
            return None
        except MemoryError as error:  # damaged bytes may claim any size
            raise UserError(f'{self.path}: a kept result claims more memory than there is; pass --restart') from error
        except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f'{self.path}: a kept result is not readable ({error}); pass --restart') from error

    def has(self, key: str) -> bool:
        """Whether a result is finished."""
        return self._file(key).is_file()

    def save(self, key: str, result: Any) -> None:
        """Keep a result."""
        with atomic_write(self._file(key)) as handle:
            pickle.dump(result, handle, protocol=4)

    @contextlib.contextmanager
    def removed_if_empty(self) -> Iterator[None]:
        """If the block raises before any result was kept, the folder goes as well."""
        try:
            yield
        except BaseException:
            if not self.count():
                self.remove()
            raise

    def count(self) -> int:
        """How many results are kept."""
        return sum(1 for _ in self.path.glob('*.done'))

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, key: str) -> Path:
        return self.path / f'{hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:24]}.done'


def file_key(path: str | os.PathLike[str]) -> str:
    """What changes when a file does: its size and time of change; 'absent' if it cannot be read."""
    try:
        status = os.stat(path)
    except OSError:
        return 'absent'
    return f'{status.st_size}-{status.st_mtime_ns}'
