"""Statistics of real images, kept under the hash of everything that decides them."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnnlib import UserError
from dnnlib.download import default_cache_dir
from dnnlib.files import atomic_write, make_output_folder
from metrics.frechet import Statistics
from torch_utils.distributed import Communicator


def cached_statistics(
    key: list[Any],
    compute: Callable[[], Statistics],
    *,
    cache_dir: str | os.PathLike[str] | None,
    communicator: Communicator,
) -> Statistics:
    """Stored statistics, or those of `compute`, which all ranks then call together.

    Rank 0 decides whether there is a whole file; a damaged one is made again.
    """
    folder = Path(cache_dir or default_cache_dir()) / 'statistics'
    path = folder / f'{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.npz'
    found = read_statistics(path) if communicator.is_main else None
    known = torch.tensor([float(found is not None)], device=communicator.device)
    if not communicator.sum_(known).item():
        result = compute()
        if communicator.is_main:
            make_output_folder(folder)
            with atomic_write(path) as handle:
                np.savez(handle, mean=result.mean, covariance=result.covariance, count=result.count)
        return result
    found = found or read_statistics(path)
    if found is None:
        raise UserError(f'{path}: not readable on rank {communicator.rank}; all ranks must see the cache folder')
    return found


def read_statistics(path: str | os.PathLike[str]) -> Statistics | None:
    """The stored statistics, or None when there is no file or not a whole one."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return Statistics(data['mean'], data['covariance'], int(data['count']))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
