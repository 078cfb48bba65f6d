"""Tables of numbers a picture, made in chunks: shared out over ranks, kept on the disk, made again where damaged.

A chunk's content is a function of its number, so that neither ranks nor an interruption change a bit of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dnnlib import UserError
from dnnlib.download import default_cache_dir
from dnnlib.files import atomic_write, make_output_folder
from torch_utils.distributed import Communicator

CHUNK = 64  # rows a file
GROUP = 8  # pictures at once on a CPU: fixed, since convolutions round by the size of a batch

Rows = NDArray[np.float32]
Compute = Callable[[Sequence[int]], Rows]  # indices -> [n, D]
Progress = Callable[[str, int, int], None]  # what, done, total


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workshop:
    """Who computes, how much at once, and where results are kept."""

    communicator: Communicator
    batch: int  # pictures at once on an accelerator
    cache_dir: str | os.PathLike[str] | None = None  # None: dnnlib.download.default_cache_dir()
    progress: Progress | None = None
    made: dict[str, Rows] = dataclasses.field(default_factory=dict)  # what this call has already seen

    def table(self, key: list[Any], count: int, compute: Compute, *, what: str, keep: bool = True) -> Rows:
        """Rows [count, D] of `compute`, on every rank. Collective.

        `key`: what decides them, as JSON; the same key is computed once a call, and with `keep` once for all.
        """
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
        if name in self.made:
            return self.made[name]
        folder = Path(self.cache_dir or default_cache_dir()) / 'tables' / name if keep else None
        if folder is not None:
            make_output_folder(folder)
        chunks: dict[int, Rows] = {}
        for number, rows in enumerate(_cut(range(count), CHUNK)):
            if number % self.communicator.size == self.communicator.rank:
                chunks[rows.start] = self._chunk(folder, number, rows, compute)
                if self.progress:
                    self.progress(what, rows.stop, count)
        table = self._gather(chunks, count)
        self.made[name] = table
        return table

    def _chunk(self, folder: Path | None, number: int, rows: range, compute: Compute) -> Rows:
        path = None if folder is None else folder / f'{number:05d}.npz'
        if path is not None and (found := read_chunk(path, len(rows))) is not None:
            return found
        batch = GROUP if self.communicator.device.type == 'cpu' else self.batch
        parts = []
        for part in _cut(rows, batch):
            parts.append(compute(part))
            self.communicator.progress.beat()
        result = np.concatenate(parts).astype(np.float32, copy=False)
        if path is not None:
            with atomic_write(path) as handle:
                np.savez(handle, rows=result)
        return result

    def _gather(self, chunks: dict[int, Rows], count: int) -> Rows:
        """All ranks' chunks as one table; exact: a row is zero on all ranks but one."""
        communicator = self.communicator
        width = torch.zeros(1, dtype=torch.int64, device=communicator.device)
        if communicator.is_main:  # it has the first chunk
            width += next(iter(chunks.values())).shape[1]
        table = np.zeros((count, int(communicator.sum_(width))), dtype=np.float32)
        for start, rows in chunks.items():
            table[start : start + len(rows)] = rows
        if communicator.size == 1:
            return table
        return communicator.sum_(torch.from_numpy(table).to(communicator.device)).cpu().numpy()


def _cut(rows: range, size: int) -> Iterator[range]:
    for start in range(rows.start, rows.stop, size):
        yield range(start, min(start + size, rows.stop))


def read_chunk(path: str | os.PathLike[str], rows: int) -> Rows | None:
    """A stored chunk of `rows` rows, or None when there is no file, a damaged or another one."""
    try:
        with np.load(path, allow_pickle=False) as data:  # a zip: its checksum guards the content
            found = data['rows']
    except PermissionError as error:
        raise UserError(f'{path}: not readable; check its permissions or choose another --cache-dir') from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    whole = found.ndim == 2 and len(found) == rows and found.dtype == np.float32
    return found if whole else None
