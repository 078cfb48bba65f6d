"""What the public release took, as recorded once in release.json, and what this project wants to reach."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).resolve().parent
BATCH = 2  # of the training phases
PHASE_WEIGHTS = {'Gmain': 1.0, 'Greg': 1 / 4, 'Dmain': 1.0, 'Dreg': 1 / 16}  # lazy regularization
RASTERIZATIONS = {'Gmain': BATCH, 'Greg': BATCH, 'Dmain': BATCH, 'Dreg': 0}  # heads rasterized in each phase
CONV_STAGES = ('texture', 'static', 'mouth', 'blending', 'superres')
NETWORK_STAGES = (*CONV_STAGES, 'volume', 'mapping')
FULL_SIZE = 'ffhq512-release'

Scale = Literal['conv', 'bandwidth', 'none']
Kind = Literal['seconds', 'ratio', 'ratio_without', 'fraction', 'floors', 'peak_share']


@functools.cache
def recorded() -> Mapping[str, Any]:
    """The content of release.json."""
    return json.loads((FOLDER / 'release.json').read_text(encoding='utf-8'))


@functools.cache
def work() -> Mapping[str, Mapping[str, float]]:
    """GFLOP of each row at full size by the convolution (or matrix product) whose ceiling bounds it: work.json, and
    what is left of an image when its identity or its planes are cached.
    """
    counted = json.loads((FOLDER / 'work.json').read_text(encoding='utf-8'))['gflop']
    identity = [counted['texture'], counted['static']]
    animation = {
        shape: gflop - sum(part.get(shape, 0) for part in identity) for shape, gflop in counted['image'].items()
    }
    camera = {
        shape: counted['volume'].get(shape, 0) + counted['superres'].get(shape, 0)
        for shape in sorted({*counted['volume'], *counted['superres']})
    }
    return {**counted, 'animation': {shape: max(gflop, 0.0) for shape, gflop in animation.items()}, 'camera': camera}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """The release's seconds for a row. Its rasterizer's share is never scaled: no ceiling of ours is like it."""

    seconds: float  # all of it
    rasterizer: float = 0.0  # PyTorch3D's share of `seconds`
    alone: float | None = None  # everything but the rasterizer, where it was measured by itself
    scale: Scale = 'none'  # which ceiling carries the rest of it over to another machine
    work: str = ''  # row of work.json whose shapes weigh the ceilings

    @property
    def without(self) -> float:
        """Seconds without the rasterizer; 0 for the rasterizer itself."""
        return self.seconds - self.rasterizer if self.alone is None else self.alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One figure that a row should reach. `precision` '' means any."""

    group: str
    name: str
    precision: str
    kind: Kind
    value: float

    @property
    def at_most(self) -> bool:
        """Whether smaller is better."""
        return self.kind in ('seconds', 'floors', 'peak_share')


def references() -> dict[tuple[str, str], Reference]:
    """By (group, row)."""
    record, seconds = recorded(), recorded()['seconds']
    raster = seconds['rasterize']
    alone = sum(seconds[name] for name in NETWORK_STAGES)
    frame = Reference(seconds=seconds['image'], rasterizer=raster, alone=alone, scale='conv', work='image')
    table = {
        ('stages', 'rasterize'): Reference(seconds=raster, rasterizer=raster),
        ('stages', 'mapping'): Reference(seconds=seconds['mapping']),
        ('stages', 'volume'): Reference(seconds=seconds['volume'], scale='bandwidth', work='volume'),
        # The release runs everything for every frame and every camera.
        **{('stages', name): frame for name in ('image', 'animation', 'camera')},
        ('stages', 'density'): Reference(
            seconds=record['density_64_seconds']['whole'], rasterizer=raster, scale='conv', work='image'
        ),
        ('ops', 'rasterize 4 views'): Reference(
            seconds=seconds['rasterize_alone'], rasterizer=seconds['rasterize_alone']
        ),
    }
    for name in CONV_STAGES:
        table['stages', name] = Reference(seconds=seconds[name], scale='conv', work=name)
    for name, value in record['training_batch2_seconds'].items():
        share = RASTERIZATIONS[name] * raster
        table['training', name] = Reference(seconds=value, rasterizer=share, scale='conv', work=name)
    table['training', 'image'] = Reference(
        seconds=weighted({name: table['training', name].seconds for name in PHASE_WEIGHTS}),
        rasterizer=weighted({name: table['training', name].rasterizer for name in PHASE_WEIGHTS}),
        scale='conv',
        work='training image',
    )
    filtered = record['filter_seconds']['depthwise4x4 1x128x256x256 fp32 nchw']
    for name in ('up2', 'down2'):
        for layout in ('nchw', 'nhwc'):
            table['ops', f'upfirdn2d {name} {layout}'] = Reference(seconds=filtered, scale='bandwidth')
    table['ops', 'sample planes'] = Reference(
        seconds=record['sampling_seconds']['grid_sample 3x32x256x256 @196608 pts'], scale='bandwidth'
    )
    query = record['density_64_seconds']['query']  # on ready planes
    table['ops', 'query field 64^3'] = Reference(seconds=query, scale='bandwidth')
    return table


def weighted(seconds: Mapping[str, float]) -> float:
    """Seconds an image from those of the four phases at `BATCH` images."""
    return sum(weight * seconds[name] for name, weight in PHASE_WEIGHTS.items()) / BATCH


TARGETS = (
    Target(group='stages', name='rasterize', precision='', kind='seconds', value=0.010),
    Target(group='ops', name='rasterize 4 views', precision='', kind='ratio', value=800),
    Target(group='stages', name='image', precision='fp32', kind='ratio', value=5),
    Target(group='stages', name='image', precision='fp32', kind='ratio_without', value=2.2),
    Target(group='stages', name='image', precision='bf16', kind='ratio', value=9),
    Target(group='stages', name='image', precision='bf16', kind='ratio_without', value=4),
    Target(group='stages', name='animation', precision='fp32', kind='ratio', value=6.5),
    Target(group='stages', name='animation', precision='bf16', kind='ratio', value=13),
    Target(group='stages', name='camera', precision='bf16', kind='ratio', value=25),
    Target(group='stages', name='density', precision='', kind='ratio', value=40),
    Target(group='training', name='image', precision='fp32', kind='ratio', value=4),
    Target(group='training', name='image', precision='bf16', kind='ratio', value=7),
    Target(group='training', name='image', precision='', kind='peak_share', value=0.6),
    *(
        Target(group='ops', name=f'upfirdn2d {name} {layout}', precision='', kind='floors', value=2)
        for name in ('up2', 'down2')
        for layout in ('nchw', 'nhwc')
    ),
    *(Target(group='stages', name=name, precision='', kind='fraction', value=0.7) for name in CONV_STAGES),
    Target(group='processes', name='gen_samples.py --help', precision='', kind='seconds', value=1.5),
    Target(group='processes', name='first build of the ops', precision='', kind='seconds', value=90),
)
