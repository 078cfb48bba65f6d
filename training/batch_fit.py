"""--batch-gpu=auto: the most images at once that a rank's memory holds, and what to do when it does not."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from dnnlib.errors import UserError
from torch_utils.distributed import Communicator
from torch_utils.precision import choose_precision
from torch_utils.stats import Stats
from training.conditions import HeadImages
from training.config import TrainConfig
from training.memory import GIB, Estimate, estimate
from training.run_directory import OPTIONS_FILE
from training.trainer import Trainer

SHARE_OF_FREE_MEMORY = 0.8  # of a CPU's: what the estimate may fill; the rest is for the process, files and others
_MESSAGES = ('out of memory', 'not enough memory', "can't allocate memory", 'bad alloc')


def choices(config: TrainConfig) -> list[int]:
    """Divisors of a rank's share of the batch that hold whole groups of clip frames, largest first."""
    share = config.batch // config.gpus
    return [size for size in range(share, 0, -1) if share % size == 0 and size % config.clip_frames == 0]


def settle_batch_gpu(config: TrainConfig, outdir: str, *, auto: bool) -> TrainConfig:
    """The config where the user gave no number: the one that the run in `outdir` began with, since it decides the
    run's result, if it still fits --batch and --gpus; else None with `auto` (fit_batch_gpu finds one), or as it is."""
    try:
        recorded = json.loads((Path(outdir) / OPTIONS_FILE).read_text())['batch_gpu']
    except (OSError, ValueError, KeyError, TypeError):
        recorded = None
    if recorded in choices(config):
        return dataclasses.replace(config, batch_gpu=recorded)
    return dataclasses.replace(config, batch_gpu=None) if auto else config


def fit_batch_gpu(
    communicator: Communicator, config: TrainConfig, dataset: HeadImages, *, checkpoint: frozenset[str]
) -> tuple[TrainConfig, str]:
    """The config with the largest choice that fits every rank, and why. Collective. UserError if none fits.

    On an accelerator a step of all phases is tried at each size; on a CPU, which would start to swap instead, the
    estimate is compared with the free memory.
    """
    sizes = choices(config)
    if communicator.device.type == 'cpu':
        size, why = _by_estimate(communicator, config, dataset, sizes, checkpoint=checkpoint)
    else:
        size, why = _by_trial(communicator, config, dataset, sizes, checkpoint=checkpoint)
    if size == 0:
        raise UserError(
            f'--batch-gpu=auto: not even {sizes[-1]} fits ({why}); use --grad-checkpoint or a smaller --cfg'
        )
    return dataclasses.replace(config, batch_gpu=size), f'batch-gpu {size} ({why})'


def _by_estimate(
    communicator: Communicator,
    config: TrainConfig,
    dataset: HeadImages,
    sizes: Sequence[int],
    *,
    checkpoint: frozenset[str],
) -> tuple[int, str]:
    needs = torch.zeros(len(sizes), dtype=torch.float64)
    if communicator.is_main:
        precision = choose_precision(config.precision, communicator.device)
        small = sizes[-1]
        pair = [
            estimate(config, dataset, batch_gpu=size, ranks=config.gpus, precision=precision, checkpoint=checkpoint)
            for size in (small, 2 * small)
        ]
        needs = torch.tensor([extrapolated(pair, size) for size in sizes], dtype=torch.float64)
    communicator.broadcast_([needs])
    free = free_memory()
    if free is None:
        raise UserError('--batch-gpu=auto: this system does not tell its free memory; give a number')
    neighbours = int(os.environ.get('LOCAL_WORLD_SIZE', communicator.size))
    budget = SHARE_OF_FREE_MEMORY * free / neighbours
    own = largest_that_fits(sizes, lambda size: float(needs[sizes.index(size)]) <= budget)
    found = communicator.least(own)
    need = float(needs[sizes.index(found)] if found else needs[-1]) / GIB
    return found, f'auto: an estimated {need:.2f} GiB of {budget / GIB:.2f} GiB for each of {neighbours} rank(s) here'


def extrapolated(pair: Sequence[Estimate], size: int) -> float:
    """Bytes at `size` images at once from the estimates at two sizes: memory grows by the same for each image."""
    first, second = pair
    slope = (second.total - first.total) / (second.batch_gpu - first.batch_gpu)
    return first.total + slope * (size - first.batch_gpu)


def _by_trial(
    communicator: Communicator,
    config: TrainConfig,
    dataset: HeadImages,
    sizes: Sequence[int],
    *,
    checkpoint: frozenset[str],
) -> tuple[int, str]:
    alone = Communicator(communicator.device, local_rank=communicator.local_rank, progress=communicator.progress)

    def fits(size: int) -> bool:
        try:
            trial = dataclasses.replace(config, batch=size, batch_gpu=size, gpus=1)
            trainer = Trainer(trial, dataset=dataset, communicator=alone, stats=Stats())
            trainer.generator.checkpoint = checkpoint
            trainer.step(next(trainer.loader()))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def fits_and_leaves_nothing(size: int) -> bool:
        result = fits(size)
        gc.collect()
        if communicator.device.type != 'cpu':
            torch.accelerator.empty_cache()
        return result

    found = communicator.least(largest_that_fits(sizes, fits_and_leaves_nothing))
    return found, 'auto: the largest at which a step of all phases ran on every rank'


def largest_that_fits(sizes: Sequence[int], fits: Callable[[int], bool]) -> int:
    """The first of `sizes`, which fall, that fits; 0 if none does."""
    return next((size for size in sizes if fits(size)), 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch (on any device), numpy or the system refused memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _MESSAGES)


@contextlib.contextmanager
def memory_explained(communicator: Communicator, config: TrainConfig) -> Iterator[None]:
    """UserError with the remedy where the block runs out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        smaller = [size for size in choices(config) if size < (config.batch_gpu or 1)]
        remedy = f'--batch-gpu={smaller[0]} or auto, or ' if smaller else ''
        raise UserError(
            f'rank {communicator.rank} ran out of memory in phase {communicator.progress.phase} at batch-gpu '
            f'{config.batch_gpu}; use {remedy}--grad-checkpoint'
        ) from error


def free_memory() -> int | None:
    """Bytes of main memory that this process may still take: the system's, or its control group's; None if unknown."""
    found = [value for value in (_available(), _control_group_rest()) if value is not None]
    return min(found) if found else None


def _available() -> int | None:
    with contextlib.suppress(OSError):
        for line in Path('/proc/meminfo').read_text().splitlines():
            if line.startswith('MemAvailable:'):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return None


def _control_group_rest() -> int | None:
    """Limit less use of a container (version 2 of control groups); reclaimable file pages count as free."""
    folder = Path('/sys/fs/cgroup')
    with contextlib.suppress(OSError, ValueError):
        limit, used = int((folder / 'memory.max').read_text()), int((folder / 'memory.current').read_text())
        stat = dict(line.split() for line in (folder / 'memory.stat').read_text().splitlines())
        return limit - used + int(stat.get('inactive_file', 0))
    return None
