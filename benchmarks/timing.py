"""Repeated measurements of one call, and the peak memory of this process."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

WARM_UP_RUNS = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one row of a benchmark took, before anything is compared with it."""

    group: str  # stages, training, ops, processes
    name: str
    precision: str  # fp32, bf16, fp16, or - where it has none
    seconds: tuple[float, ...]  # of each run, in order, warm-up left out
    peak_bytes: int | None = None  # peak resident memory while it ran
    bytes_moved: int | None = None  # least traffic with main memory, for operations that it bounds
    note: str = ''

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Measurement:
        return Measurement(**{**values, 'seconds': tuple(values['seconds'])})


def synchronize(device: torch.device) -> None:
    """Wait for an accelerator; nothing on a CPU."""
    if device.type != 'cpu':
        torch.accelerator.synchronize(device)


def now(device: torch.device) -> float:
    """Seconds, after everything given to the device is done."""
    synchronize(device)
    return time.perf_counter()


def repeat(call: Callable[[], object], *, runs: int, device: torch.device, inner: int = 1) -> tuple[float, ...]:
    """Seconds of each of `runs` calls after the warm-up; `inner` calls make one run where one is too short."""
    for _ in range(WARM_UP_RUNS):
        call()
    times = []
    for _ in range(runs):
        start = now(device)
        for _ in range(inner):
            call()
        times.append((now(device) - start) / inner)
    return tuple(times)


def repeat_short(call: Callable[[], object], *, runs: int, device: torch.device) -> tuple[float, ...]:
    """As `repeat`, with as many calls a run as take 20 ms."""
    call()
    start = now(device)
    call()
    once = now(device) - start
    return repeat(call, runs=runs, device=device, inner=min(100, max(1, round(0.02 / max(once, 1e-6)))))


class StageClock:
    """Times calls of submodules while others run, by hooks on them: `with clock: ...` fills `clock.seconds`."""

    def __init__(self, modules: dict[str, nn.Module], device: torch.device) -> None:
        self.modules = modules
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def running(self) -> Iterator[StageClock]:
        """Seconds of each module called within, summed over its calls; starts from nothing."""
        self.seconds = {}
        handles = []
        for name, module in self.modules.items():
            started: list[float] = []

            def before(*_: Any, started: list[float] = started) -> None:
                started.append(now(self.device))

            def after(*_: Any, started: list[float] = started, name: str = name) -> None:
                self.seconds[name] = self.seconds.get(name, 0.0) + now(self.device) - started.pop()

            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()


def start_peak(device: torch.device) -> None:
    """Forget the peak memory so far (of a CPU on Linux; elsewhere it stays the whole process's)."""
    gc.collect()
    if device.type != 'cpu':
        torch.get_device_module(device).reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')


def peak_bytes(device: torch.device) -> int | None:
    """Peak memory since `start_peak`: resident on a CPU, allocated on an accelerator; None where nobody knows."""
    if device.type != 'cpu':
        return int(torch.get_device_module(device).max_memory_allocated(device))
    with contextlib.suppress(OSError):
        for line in Path('/proc/self/status').read_text().splitlines():
            if line.startswith('VmHWM:'):
                return int(line.split()[1]) * 1024
    return None
