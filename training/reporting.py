"""What a run says about itself at each tick: one line, and the same numbers as scalars."""

from __future__ import annotations

import dataclasses
import resource
import sys
from typing import Any

import torch
from tqdm import tqdm

from torch_utils.distributed import Communicator
from torch_utils.stats import Moments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tick:
    """A tick's place and cost."""

    number: int
    images_seen: int
    images: int  # since the last tick
    total_seconds: float  # of the whole run, earlier sessions included
    seconds: float  # training since the last tick
    maintenance: float  # pictures, metrics, snapshots after the last tick
    augment: float

    def line(self, communicator: Communicator) -> str:
        """The line of log.txt (EG3D's fields)."""
        return (
            f'tick {self.number:<5d} kimg {self.images_seen / 1000:<9.3f} time {format_time(self.total_seconds):<12s} '
            f'sec/tick {self.seconds:<8.2f} sec/kimg {self._per_kimg:<8.2f} maintenance {self.maintenance:<6.2f} '
            f'{memory(communicator)} augment {self.augment:.3f}'
        )

    def scalars(self) -> dict[str, float]:
        """Names as in TensorBoard."""
        return {
            'Progress/tick': self.number,
            'Progress/kimg': self.images_seen / 1000,
            'Progress/augment': self.augment,
            'Timing/total_sec': self.total_seconds,
            'Timing/sec_per_kimg': self._per_kimg,
            'Timing/maintenance_sec': self.maintenance,
        }

    def record(self, numbers: dict[str, Moments]) -> dict[str, Any]:
        """The line of stats.jsonl: scalars, and count, mean and deviation of what was collected."""
        moments = {name: dataclasses.asdict(value) for name, value in numbers.items()}
        return {'images_seen': self.images_seen, **self.scalars(), **moments}

    @property
    def _per_kimg(self) -> float:
        return self.seconds / max(self.images, 1) * 1000


def format_time(seconds: float) -> str:
    """'1h 02m 03s'; days when there are any."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f'{days}d {hour:02d}h {minute:02d}m'
    return f'{hour}h {minute:02d}m {second:02d}s' if hour else f'{minute}m {second:02d}s'


def memory(communicator: Communicator) -> str:
    """Peak memory of this process, and of its accelerator since the last call, in GiB."""
    unit = 1 if sys.platform == 'darwin' else 1024
    text = f'cpumem {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:<6.2f}'
    if communicator.device.type == 'cpu':
        return text
    module = torch.get_device_module(communicator.device)
    peak = module.max_memory_allocated(communicator.device) / 2**30
    module.reset_peak_memory_stats(communicator.device)
    return f'{text} gpumem {peak:<6.2f}'


def progress_bar(total: int, *, initial: int, visible: bool) -> tqdm:
    """Images seen; in a file instead of a terminal, one line every half minute."""
    return tqdm(
        total=total,
        initial=initial,
        unit='img',
        smoothing=0.05,
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
        dynamic_ncols=True,
        disable=not visible,
    )
