"""The stages of one image at batch 1, and what is left of them when identity or planes are cached."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.subjects import Subject, precision_context
from benchmarks.timing import WARM_UP_RUNS, Measurement, StageClock, now, peak_bytes, repeat, start_peak

# Row -> the generator's submodule that does it. Measured by hooks, so a stage may change its signature.
MODULES = {
    'texture': 'texture',
    'static': 'static',
    'rasterize': 'rasterizer',
    'mouth': 'teeth',
    'blending': 'blending',
    'volume': 'renderer',
    'superres': 'superres',
}
CALLS = ('map', 'identity', 'deform', 'render')
ROWS = ('mapping', *MODULES, 'image', 'animation', 'camera', 'density')
GRID_SIDE = 64


def density_points(subject: Subject) -> Tensor:
    """A grid of 64^3 world points over the box, [1, 64^3, 3]."""
    half = subject.config.generator.box_size / 2
    axis = torch.linspace(-half, half, GRID_SIDE, device=subject.device)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing='ij'), dim=-1).view(1, -1, 3)


def measure(subject: Subject, *, precision: str, runs: int, names: frozenset[str]) -> Iterator[Measurement]:
    """The rows `names`; every run makes one image from latent to picture, then one density grid on its planes."""
    generator, device = subject.generator.eval().requires_grad_(False), subject.device
    present = {name: getattr(generator, module) for name, module in MODULES.items()}
    clock = StageClock({name: module for name, module in present.items() if module is not None}, device)
    taken: dict[str, list[float]] = {name: [] for name in ROWS}
    start_peak(device)
    with torch.no_grad(), precision_context(precision, device):
        for turn in range(WARM_UP_RUNS + runs):
            seconds = _one_image(subject, clock)
            for name, value in seconds.items() if turn >= WARM_UP_RUNS else ():
                taken[name].append(value)
        peak = peak_bytes(device)
        if 'density' in names:
            planes = generator.deform(generator.identity(generator.map(subject.z, subject.label)), subject.head)
            points = density_points(subject)
            taken['density'] = list(repeat(lambda: generator.density(planes, points), runs=runs, device=device))
    for name in ROWS:
        if name in names and taken[name]:
            yield Measurement(
                group='stages',
                name=name,
                precision=precision,
                seconds=tuple(taken[name]),
                peak_bytes=peak if name == 'image' else None,
            )


def _one_image(subject: Subject, clock: StageClock) -> dict[str, float]:
    """Seconds of each row for one image by the five calls of the generator."""
    generator, device = subject.generator, subject.device
    with clock.running():
        marks = [now(device)]
        ws = generator.map(subject.z, subject.label)
        marks.append(now(device))
        identity = generator.identity(ws)
        marks.append(now(device))
        planes = generator.deform(identity, subject.head)
        marks.append(now(device))
        generator.render(planes, subject.label)
        marks.append(now(device))
    took = dict(zip(CALLS, (b - a for a, b in zip(marks, marks[1:], strict=False)), strict=True))
    return {
        **clock.seconds,
        'mapping': took['map'],
        'image': sum(took.values()),
        'animation': took['deform'] + took['render'],
        'camera': took['render'],
    }
