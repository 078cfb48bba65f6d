"""Single operations at the sizes of the full network, against the traffic with main memory that they cannot avoid.

The inputs come from tests/cases_*.py. Any of these files may bring rows (cases_op_benchmarks does): a function
`op_benchmarks(device, dtype)` that yields (name, prepare), where prepare() returns the call to time and the bytes that
it must at least read and write (None where memory does not bound it). Rows with a gradient enable it inside the call.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.subjects import FLAME_FACES, TYPES
from benchmarks.timing import Measurement, repeat_short
from torch_utils.ops import bias_act, fill_holes, rasterize, upfirdn2d
from torch_utils.rng import stream

TESTS = Path(__file__).resolve().parent.parent / 'tests'
CHANNELS, SIDE = 128, 256  # of the filtered and activated images
Call = Callable[[], object]
Prepare = Callable[[], tuple[Call, int | None]]
LAYOUTS = {'nchw': torch.contiguous_format, 'nhwc': torch.channels_last}


def import_cases(name: str) -> Any:
    """A module of shared test inputs, such as cases_ops."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    return importlib.import_module(name)


def rows(precision: str = 'fp32') -> tuple[str, ...]:
    """Names of all rows of one type; float32 has all of them."""
    return tuple(name for name, _ in cases(precision, device=torch.device('cpu')))


def cases(precision: str, *, device: torch.device) -> Iterator[tuple[str, Prepare]]:
    """All rows of one type; the rasterizer and the masks exist in float32 alone. Nothing is allocated yet."""
    dtype = TYPES[precision]
    if precision == 'fp32':
        yield 'rasterize 4 views', lambda: (_drawing(device), None)
        yield 'interpolate uv', lambda: (_interpolation(device), None)
        yield 'fill_holes 4 masks', lambda: (_hole_filling(device), None)
    for layout, memory_format in LAYOUTS.items():
        for name, prepare in (('upfirdn2d up2', _upsample), ('upfirdn2d down2', _downsample), ('bias_act lrelu', _act)):
            yield f'{name} {layout}', functools.partial(prepare, device, dtype, memory_format)
    for path in sorted(TESTS.glob('cases_*.py')):
        if 'def op_benchmarks(' in path.read_text(encoding='utf-8'):
            yield from import_cases(path.stem).op_benchmarks(device, dtype)


def measure(*, precision: str, runs: int, names: frozenset[str], device: torch.device) -> Iterator[Measurement]:
    """The rows `names`."""
    for name, prepare in cases(precision, device=device):
        if name not in names:
            continue
        with torch.no_grad():
            call, moved = prepare()
            seconds = repeat_short(call, runs=runs, device=device)
        yield Measurement(group='ops', name=name, precision=precision, seconds=seconds, bytes_moved=moved)


def _drawing(device: torch.device) -> Callable[[], rasterize.Fragments]:
    """Four views of a head-like mesh with exactly as many faces as FLAME's."""
    mesh = import_cases('cases_ops').head_like(faces=FLAME_FACES + 300).to(device)
    faces = mesh.faces[:FLAME_FACES]
    return lambda: rasterize.rasterize(mesh.vertices, faces, height=mesh.height, width=mesh.width)


def _interpolation(device: torch.device) -> Call:
    fragments = _drawing(device)()
    corners = torch.rand(1, FLAME_FACES, 3, 2, generator=stream(0, 'corners')).to(device)
    return lambda: rasterize.interpolate(fragments, corners)


def _hole_filling(device: torch.device) -> Call:
    alpha = (_drawing(device)().face_ids >= 0).float()[:, None]
    alpha[:, :, 110:130, 118:138] = 0  # a mouth
    return lambda: fill_holes.fill_holes(alpha, guarded=False)


def _image(device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format) -> torch.Tensor:
    x = torch.randn(1, CHANNELS, SIDE, SIDE, generator=stream(0, 'pixels')).to(device, dtype)
    return x.contiguous(memory_format=memory_format)


def _upsample(device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format) -> tuple[Call, int]:
    """From half the side to SIDE."""
    f = upfirdn2d.setup_filter(device=device)
    large = _image(device, dtype, memory_format)
    small = large[:, :, ::2, ::2].contiguous(memory_format=memory_format)
    return lambda: upfirdn2d.upsample2d(small, f), large.nbytes + small.nbytes


def _downsample(device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format) -> tuple[Call, int]:
    """From SIDE to half of it."""
    f = upfirdn2d.setup_filter(device=device)
    large = _image(device, dtype, memory_format)
    return lambda: upfirdn2d.downsample2d(large, f), large.nbytes * 5 // 4


def _act(device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format) -> tuple[Call, int]:
    x = _image(device, dtype, memory_format)
    bias = torch.randn(CHANNELS, generator=stream(0, 'bias')).to(device, dtype)
    return lambda: bias_act.bias_act(x, bias, act='lrelu'), 2 * x.nbytes
