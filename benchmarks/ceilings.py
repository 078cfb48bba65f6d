"""What this machine can do at best, right now: convolutions, matrix products, memory; and the arithmetic on it.

The names and shapes are those of release.json, so that a time measured there can be carried over: a row that does
`work` GFLOP in each shape has the floor sum(work / rate), and release seconds x (floor here / floor there) is what the
release would take on this machine at this moment. Ceilings are measured in a process of their own with plain torch,
as the recorded ones were, and that carries times over. The convolutions are then measured again with the allocator of
the native ops, which spares page faults: what our own rows are bounded by is the faster of both.
"""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
import torch.nn.functional as F

from benchmarks.subjects import TYPES
from benchmarks.timing import repeat, repeat_short
from torch_utils.ops import library

# Batch 1: channels in, channels out, image side. Those of the stages at full size.
CONVOLUTIONS = (
    *((512, 512, 16), (512, 512, 32), (512, 512, 64), (256, 256, 128)),
    *((128, 128, 256), (128, 128, 512), (256, 128, 512)),
)
TRANSPOSED = ((512, 512, 32), (256, 128, 128), (256, 128, 256))  # 3x3, stride 2; the side of the input
GEMMS = (1024, 2048, 4096)
BOUNDING_GEMM = 2048
DTYPE_NAMES = {'fp32': 'float32', 'bf16': 'bfloat16', 'fp16': 'float16'}
MEMCPY = 'memcpy {} MiB (read+write bytes)'
TRIAD = 'triad c=a+b 3x256 MiB (bytes)'
REUSED = ', memory reused'  # ends the name of a ceiling measured with the allocator

Rates = Mapping[str, float]  # by name: GFLOP/s, GB/s for memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A kind of work that has a ceiling, as work.json spells it: conv 512->512@64, or gemm."""

    kind: Literal['conv', 'gemm']
    channels: tuple[int, int] = (0, 0)
    side: int = 0

    def __str__(self) -> str:
        return 'gemm' if self.kind == 'gemm' else f'conv {self.channels[0]}->{self.channels[1]}@{self.side}'

    @staticmethod
    def parse(text: str) -> Shape:
        """The inverse of str(); ValueError for anything else."""
        if text == 'gemm':
            return Shape(kind='gemm')
        match = re.fullmatch(r'conv (\d+)->(\d+)@(\d+)', text)
        if match is None:
            raise ValueError(f'shape: expected gemm or like conv 512->512@64, got {text!r}')
        inputs, outputs, side = (int(number) for number in match.groups())
        return Shape(kind='conv', channels=(inputs, outputs), side=side)

    def ceiling(self, precision: str) -> str:
        """The name of its ceiling."""
        dtype = DTYPE_NAMES[precision]
        if self.kind == 'gemm':
            return f'gemm {BOUNDING_GEMM}^3 {dtype}'
        inputs, outputs = self.channels
        return f'conv3x3 1x{inputs}x{self.side}x{self.side}->{outputs} {dtype} nhwc'


def nearest(inputs: int, outputs: int, side: int) -> Shape:
    """The measured convolution that is most like one of these channels and output side (log distance)."""

    def distance(shape: tuple[int, int, int]) -> float:
        pairs = zip(shape, (inputs, outputs, side), strict=True)
        return sum(math.log2(measured / wanted) ** 2 for measured, wanted in pairs)

    found = min(CONVOLUTIONS, key=distance)
    return Shape(kind='conv', channels=found[:2], side=found[2])


def floor_seconds(work: Mapping[str, float], rates: Rates, precision: str) -> float | None:
    """Seconds that `work` (GFLOP by shape) takes at the ceilings; None where a ceiling was not measured."""
    total = 0.0
    for text, gflop in work.items():
        rate = rates.get(Shape.parse(text).ceiling(precision))
        if rate is None:
            return None
        total += gflop / rate
    return total


def bounds(rates: Rates) -> dict[str, float]:
    """Rates by name, each the better of plain and reused memory."""
    return {name: max(rate, rates.get(name + REUSED, 0.0)) for name, rate in rates.items() if not name.endswith(REUSED)}


def bandwidth(rates: Rates) -> float | None:
    """GB/s of the triad; None where it was not measured."""
    return rates.get(TRIAD)


def mean_rates(before: Rates, after: Rates) -> dict[str, float]:
    """Ceilings of a block from those before and after it: the harmonic mean, as times average."""
    return {name: 2 / (1 / before[name] + 1 / after[name]) for name in before if name in after}


def drift(before: Rates, after: Rates) -> float | None:
    """How much faster the machine became: the geometric mean of after / before over all ceilings."""
    logs = [math.log(after[name] / before[name]) for name in before if name in after]
    return math.exp(sum(logs) / len(logs)) if logs else None


def measure(precisions: tuple[str, ...], *, device: torch.device, runs: int, small: bool) -> dict[str, float]:
    """Median rates by name. `small` leaves out what takes long and is no stage's shape."""
    rates = dict(_memory(device, runs))
    for precision in precisions:
        with torch.no_grad():
            rates.update(_convolutions(precision, device, runs, small=small))
            rates.update(_gemms(precision, device, runs, small=small))
    library.use_native(device)  # brings the allocator, where there is one
    for precision in precisions:
        with torch.no_grad():
            again = _convolutions(precision, device, runs, small=True)
            rates.update((name + REUSED, rate) for name, rate in again)
    return rates


def _rate(amount: float, seconds: tuple[float, ...]) -> float:
    return float(f'{amount / statistics.median(seconds) / 1e9:.5g}')


def _convolutions(precision: str, device: torch.device, runs: int, *, small: bool) -> Iterator[tuple[str, float]]:
    dtype, last = TYPES[precision], torch.channels_last
    for inputs, outputs, side in CONVOLUTIONS:
        x = torch.randn(1, inputs, side, side, device=device).to(dtype).to(memory_format=last)
        w = torch.randn(outputs, inputs, 3, 3, device=device).to(dtype).to(memory_format=last)
        seconds = repeat_short(lambda x=x, w=w: F.conv2d(x, w, padding=1), runs=runs, device=device)  # type: ignore[misc]
        name = Shape(kind='conv', channels=(inputs, outputs), side=side).ceiling(precision)
        yield name, _rate(2 * 9 * inputs * outputs * side * side, seconds)
    for inputs, outputs, side in () if small else TRANSPOSED:
        x = torch.randn(1, inputs, side, side, device=device).to(dtype).to(memory_format=last)
        w = torch.randn(inputs, outputs, 3, 3, device=device).to(dtype).to(memory_format=last)
        seconds = repeat_short(lambda x=x, w=w: F.conv_transpose2d(x, w, stride=2), runs=runs, device=device)  # type: ignore[misc]
        name = f'convT3x3s2 1x{inputs}x{side}x{side}->{outputs} {DTYPE_NAMES[precision]} nhwc'
        yield name, _rate(2 * 9 * inputs * outputs * side * side, seconds)


def _gemms(precision: str, device: torch.device, runs: int, *, small: bool) -> Iterator[tuple[str, float]]:
    for side in (BOUNDING_GEMM,) if small else GEMMS:
        a, b = (torch.randn(side, side, device=device).to(TYPES[precision]) for _ in range(2))
        seconds = repeat_short(lambda a=a, b=b: a @ b, runs=runs, device=device)  # type: ignore[misc]
        yield f'gemm {side}^3 {DTYPE_NAMES[precision]}', _rate(2 * side**3, seconds)


def _memory(device: torch.device, runs: int) -> Iterator[tuple[str, float]]:
    for size in (64, 512):
        source = torch.ones(size << 18, device=device)
        target = torch.empty_like(source)
        seconds = repeat_short(lambda t=target, s=source: t.copy_(s), runs=runs, device=device)  # type: ignore[misc]
        yield MEMCPY.format(size), _rate(2 * (size << 20), seconds)
    a, b, c = (torch.ones(256 << 18, device=device) for _ in range(3))
    yield TRIAD, _rate(3 * (256 << 20), repeat(lambda: torch.add(a, b, out=c), runs=runs, device=device))
