"""What a run says about itself: a line and numbers at each tick, warnings, and the report at each snapshot."""

from __future__ import annotations

import dataclasses
import platform
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from torch_utils.distributed import Communicator, describe
from torch_utils.stats import Moments, Stats
from training.conditions import HeadImages
from training.config import TrainConfig
from training.generator import Generator
from training.health import KIMG, Change, Watch, checks_for, means
from training.monitors import Probe, dataset_numbers
from training.run_directory import RunDirectory
from training.run_records import read_lines
from training.run_report import write_report

Batch = TypeVar('Batch')


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
    memory: dict[str, float]  # measure_memory's

    def line(self) -> str:
        """The line of log.txt (EG3D's fields)."""
        return (
            f'tick {self.number:<5d} kimg {self.images_seen / 1000:<9.3f} time {format_time(self.total_seconds):<12s} '
            f'sec/tick {self.seconds:<8.2f} sec/kimg {self._per_kimg:<8.2f} maintenance {self.maintenance:<6.2f} '
            f'{memory_text(self.memory)} augment {self.augment:.3f}'
        )

    def scalars(self) -> dict[str, float]:
        """Names as in TensorBoard."""
        return {
            'Progress/tick': self.number,
            KIMG: self.images_seen / 1000,
            'Progress/augment': self.augment,
            'Timing/total_sec': self.total_seconds,
            'Timing/sec_per_kimg': self._per_kimg,
            'Timing/images_per_sec': self.images / max(self.seconds, 1e-9),
            'Timing/maintenance_sec': self.maintenance,
            **self.memory,
        }

    @property
    def _per_kimg(self) -> float:
        return self.seconds / max(self.images, 1) * 1000


class Reporter:
    """Rank 0's numbers, warnings and report. Reads the run and changes nothing of its result."""

    def __init__(
        self, directory: RunDirectory, config: TrainConfig, *, dataset: HeadImages, communicator: Communicator
    ) -> None:
        self.directory, self.config, self.communicator = directory, config, communicator
        self.probe = Probe(config, dataset, device=communicator.device)
        self.dataset_numbers = dataset_numbers(dataset)
        self.watch = Watch(checks_for(config))

    def begin(self, *, images_seen: int) -> None:
        """Note who goes on with the run; take up the warnings of earlier ticks; warn about the dataset."""
        machine = {**describe(self.communicator), 'python': platform.python_version(), 'system': platform.platform()}
        started = time.strftime('%Y-%m-%d %H:%M:%S')
        self.directory.record('sessions', {'images_seen': images_seen, 'started': started, **machine})
        for record in read_lines(self.directory.path / 'stats.jsonl'):
            self.watch.update(means(record))
        changes = self.watch.update({KIMG: images_seen / 1000, **self.dataset_numbers})
        self._warn(changes, images_seen=images_seen)

    def tick(self, tick: Tick, moments: dict[str, Moments], *, generator: Generator, batch: int) -> None:
        """One tick line, one line of stats.jsonl, TensorBoard scalars, warnings. `generator`: the averaged one."""
        extra = {**tick.scalars(), **self.dataset_numbers, **self.probe.measure(generator, batch=batch)}
        if 'Timing/data_sec' in moments:  # the mean wait of a step
            steps = tick.images / self.config.batch
            extra['Timing/data_share'] = moments['Timing/data_sec'].mean * steps / max(tick.seconds, 1e-9)
        self.directory.log(tick.line())
        record = {'images_seen': tick.images_seen, **extra, **_plain(moments)}
        self.directory.record('stats', record)
        numbers = means(record)
        del numbers['images_seen']
        self.directory.scalars(numbers, images_seen=tick.images_seen)
        self._warn(self.watch.update(numbers), images_seen=tick.images_seen)

    def report(self) -> None:
        """Write report.html anew."""
        write_report(self.directory.path)

    def _warn(self, changes: list[Change], *, images_seen: int) -> None:
        for change in changes:
            self.directory.log(str(change))
            self.directory.note('Warnings', str(change), images_seen=images_seen)


def _plain(moments: dict[str, Moments]) -> dict[str, Any]:
    """Count, mean and deviation of what was collected."""
    return {name: dataclasses.asdict(value) for name, value in moments.items()}


def timed(batches: Iterator[Batch], stats: Stats) -> Iterator[Batch]:
    """The same batches; how long each one was waited for becomes Timing/data_sec."""
    while True:
        started = time.perf_counter()
        batch = next(batches)
        stats.report('Timing/data_sec', time.perf_counter() - started)
        yield batch


def format_time(seconds: float) -> str:
    """'1h 02m 03s'; days when there are any."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f'{days}d {hour:02d}h {minute:02d}m'
    return f'{hour}h {minute:02d}m {second:02d}s' if hour else f'{minute}m {second:02d}s'


def measure_memory(communicator: Communicator) -> dict[str, float]:
    """Peak memory of this process, and of its accelerator since the last call, in GiB."""
    unit = 1 if sys.platform == 'darwin' else 1024
    values = {'Resources/cpu_gib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    if communicator.device.type != 'cpu':
        module = torch.get_device_module(communicator.device)
        values['Resources/gpu_gib'] = module.max_memory_allocated(communicator.device) / 2**30
        module.reset_peak_memory_stats(communicator.device)
    return values


def memory_text(values: dict[str, float]) -> str:
    """'cpumem 1.20 gpumem 3.40', in GiB."""
    names = {'Resources/cpu_gib': 'cpumem', 'Resources/gpu_gib': 'gpumem'}
    return ' '.join(f'{names[name]} {value:<6.2f}' for name, value in values.items())


def memory(communicator: Communicator) -> str:
    """`measure_memory` as text."""
    return memory_text(measure_memory(communicator))


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
