"""Counts the work of each stage and training phase at full size, by the convolution shape that bounds it: work.json.

Run again only when the networks themselves change, never for a faster way to compute them: the counts are the work
that the release-size networks ask for, whatever computes it.

    python -m benchmarks.flops --out benchmarks/work.json
"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.ceilings import nearest
from benchmarks.environment import commit
from benchmarks.release import BATCH, FULL_SIZE, PHASE_WEIGHTS
from benchmarks.stages import MODULES, density_points
from benchmarks.subjects import Subject, build_subject
from benchmarks.training import phase_losses
from dnnlib.cli import Command
from dnnlib.files import atomic_write

CONVOLUTION = torch.ops.aten.convolution.default
CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward.default
Work = dict[str, float]  # GFLOP by shape


class Counter(TorchDispatchMode):
    """GFLOP of convolutions and matrix products, by shape and by the stage that is running; filters (depthwise
    convolutions) are left out, since they are bounded by memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_stage: dict[str, Work] = collections.defaultdict(lambda: collections.defaultdict(float))
        self.running: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if function._overloadpacket in flop_registry:
            shape = self._shape(function, args, out)
            if shape is not None:
                flop = flop_registry[function._overloadpacket](*args, **(kwargs or {}), out_val=out)
                for stage in (*self.running, 'all'):
                    self.by_stage[stage][shape] += flop / 1e9
        return out

    def _shape(self, function: Any, args: tuple[Any, ...], out: Any) -> str | None:
        if function is CONVOLUTION:
            x, weight, transposed, groups = args[0], args[1], args[6], args[8]
            sides = (x if transposed else out).shape[2:]
        elif function is CONVOLUTION_BACKWARD:
            grad, x, weight, transposed, groups = args[0], args[1], args[2], args[7], args[9]
            sides = (x if transposed else grad).shape[2:]
        else:
            return 'gemm'
        if groups > 1 or weight.shape[0] * weight.shape[1] == 1:
            return None
        outputs, inputs = weight.shape[:2]
        side = round((sides[0] * sides[1]) ** 0.5)
        return str(nearest(*((outputs, inputs) if transposed else (inputs, outputs)), side))

    def watch(self, modules: Mapping[str, nn.Module]) -> None:
        """Book what runs inside each module under its name too."""
        for name, module in modules.items():
            module.register_forward_pre_hook(lambda *_, name=name: self.running.append(name))  # type: ignore[misc]
            module.register_forward_hook(lambda *_: self._leave())

    def _leave(self) -> None:
        self.running.pop()


def count(call: Callable[[], object]) -> Work:
    """GFLOP by shape of one call."""
    with Counter() as counter:
        call()
    return dict(counter.by_stage['all'])


def count_stages(subject: Subject) -> dict[str, Work]:
    """Each stage of one image, the image, and a density grid on its planes."""
    generator = subject.generator.eval()
    counter = Counter()
    counter.watch({name: getattr(generator, module) for name, module in MODULES.items()})
    with torch.no_grad():
        with counter:
            ws = generator.map(subject.z, subject.label)
            planes = generator.deform(generator.identity(ws), subject.head)
            generator.render(planes, subject.label)
        density = count(lambda: generator.density(planes, density_points(subject)))
    result = {name: dict(counter.by_stage[name]) for name in MODULES}
    return {**result, 'image': dict(counter.by_stage['all']), 'density': density}


def count_phases(subject: Subject) -> dict[str, Work]:
    """Each training phase, forward and backward, and an image's share of all."""
    result = {}
    for name, loss in phase_losses(subject).items():
        subject.generator.requires_grad_(name.startswith('G'))
        subject.discriminator.requires_grad_(name.startswith('D'))
        result[name] = count(lambda loss=loss: loss().backward())  # type: ignore[misc]
    shapes = {shape for work in result.values() for shape in work}
    image = {
        shape: sum(weight * result[name].get(shape, 0.0) for name, weight in PHASE_WEIGHTS.items()) / BATCH
        for shape in shapes
    }
    return {**result, 'training image': image}


@click.command(cls=Command)
@click.option('--out', required=True, metavar='JSON', help='The file to write.')
@click.option('--cfg', default=FULL_SIZE, show_default=True, help='Preset to count.')
@click.option('--phases/--no-phases', default=True, show_default=True, help='Count the training phases too.')
def main(out: str, cfg: str, phases: bool) -> None:
    """Count a preset's networks on a CPU, in fp32 and with the PyTorch twins of the ops."""
    os.environ['NEXT3D_OPS'] = 'reference'
    cpu = torch.device('cpu')
    gflop = count_stages(build_subject(cfg, batch=1, device=cpu))
    if phases:
        gflop.update(count_phases(build_subject(cfg, batch=BATCH, device=cpu)))
    content = {
        'what': f'GFLOP of each row at {cfg} by the convolution (or matrix product) whose ceiling bounds it; '
        f'stages at batch 1, training phases (forward and backward) at batch {BATCH}, filters left out',
        'how': "benchmarks/flops.py: torch.utils.flop_counter's formulas on this project's modules, PyTorch twins",
        'commit': commit(Path(__file__).resolve().parent),
        'gflop': {
            name: {shape: round(value, 4) for shape, value in sorted(work.items()) if value > 0}
            for name, work in gflop.items()
        },
    }
    with atomic_write(out) as handle:
        handle.write((json.dumps(content, indent=1) + '\n').encode())
    for name, work in gflop.items():
        click.echo(f'{name:<15} {sum(work.values()):10.1f} GFLOP')


if __name__ == '__main__':
    main()
