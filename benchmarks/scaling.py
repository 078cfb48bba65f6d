"""What a rank needs and what more ranks give: memory against its estimate, one rank against two, many GPUs computed."""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # started by its path: import from the root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import click

from dnnlib.cli import Group, parse_int_list
from dnnlib.errors import UserError

if TYPE_CHECKING:
    import torch

    from torch_utils.distributed import Communicator
    from training.config import TrainConfig

ITEMS = 32  # of the dataset that is made for a measurement
GPUS = (1, 8, 64, 512)


@click.group(cls=Group)
def main() -> None:
    """Measure `memory` and `ranks` here; `project` computes what cannot be measured here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement of memory."""

    cfg: str
    data: str
    batch_gpu: int
    precision: str
    checkpoint: tuple[str, ...]


@main.command()
@click.option('--cfg', default='synth64', show_default=True, help='Preset.')
@click.option('--batch-gpu', default='1,2,4,8', show_default=True, help='Images at once, like 1,2,4.')
@click.option('--precision', default='fp32', show_default=True, help='fp32 or bf16.')
@click.option('--grad-checkpoint', is_flag=True, help='Recompute all stages of G.')
@click.option('--computed', is_flag=True, help='The estimate alone: nothing of this size is made.')
def memory(cfg: str, batch_gpu: str, precision: str, grad_checkpoint: bool, computed: bool) -> None:
    """Peak resident memory of two steps of all phases, each size in a process of its own, beside the estimate.

    Measured is what comes on top of the process with its libraries and dataset open.
    """
    from training.generator import STAGES

    with tempfile.TemporaryDirectory() as folder:
        data = _dataset(cfg, folder)
        for size in parse_int_list(batch_gpu, option='--batch-gpu'):
            checkpoint = STAGES if grad_checkpoint else ()
            case = Case(cfg=cfg, data=data, batch_gpu=size, precision=precision, checkpoint=checkpoint)
            name = f'{cfg} {precision} batch-gpu {size}{" recomputing" if grad_checkpoint else ""}'
            expected = _apart(estimated, case)
            text = f'{name}: estimated {expected / 2**30:.3f} GiB'
            if not computed:
                base, peak = _apart(measured, case)
                found = peak - base
                text += (
                    f', measured {found / 2**30:.3f} GiB on top of {base / 2**30:.3f} GiB, '
                    f'error {expected / found - 1:+.1%}'
                )
            click.echo(text)


def _dataset(cfg: str, folder: str) -> str:
    from benchmarks.data import write
    from training.config import PRESETS, preset

    if cfg not in PRESETS:
        raise UserError(f'--cfg: expected one of {", ".join(PRESETS)}, got {cfg!r}')
    path = Path(folder) / 'data.zip'
    write(path, count=ITEMS, resolution=preset(cfg).generator.image_resolution)
    return str(path)


def _apart(function: Callable[[Case], Any], case: Case) -> Any:
    """function(case) in a process of its own, so that its peak is its own."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(function, (case,))


def estimated(case: Case) -> int:
    """Bytes of training.memory's formula."""
    import torch

    from torch_utils.precision import choose_precision
    from training.dataset import HeadDataset
    from training.memory import estimate

    return estimate(
        _config(case),
        HeadDataset(case.data),
        batch_gpu=case.batch_gpu,
        ranks=1,
        precision=choose_precision(case.precision, torch.device('cpu')),
        checkpoint=frozenset(case.checkpoint),
    ).total


def measured(case: Case) -> tuple[int, int]:
    """Resident bytes before a trainer is made, and their peak until two steps of all phases are done."""
    import torch

    from benchmarks.data import resident
    from benchmarks.timing import peak_bytes, start_peak
    from torch_utils.distributed import Communicator
    from torch_utils.ops import library
    from torch_utils.stats import Stats
    from training.dataset import HeadDataset
    from training.trainer import Trainer

    device = torch.device('cpu')
    library.use_native(device)
    dataset = HeadDataset(case.data)
    dataset.head_input([0], device=device)
    start_peak(device)
    base = resident()
    trainer = Trainer(_config(case), dataset=dataset, communicator=Communicator(device), stats=Stats())
    trainer.generator.checkpoint = frozenset(case.checkpoint)
    for _ in range(2):  # in the second, the optimizers have their moments
        trainer.images_seen = 0
        trainer.step(next(trainer.loader()))
    return base, peak_bytes(device) or 0


def _config(case: Case) -> TrainConfig:
    from training.config import preset

    return preset(
        case.cfg,
        {'data': case.data, 'batch': case.batch_gpu, 'batch_gpu': case.batch_gpu, 'precision': case.precision},
    )


@main.command()
@click.option('--cfg', default='synth64', show_default=True, help='Preset.')
@click.option('--ranks', 'numbers', default='1,2', show_default=True, help='Like 1,2,4.')
@click.option('--steps', type=click.IntRange(min=2), default=9, show_default=True, help='The first is left out.')
def ranks(cfg: str, numbers: str, steps: int) -> None:
    """Seconds of a step of the same batch by several ranks, one thread each, and of its four exchanges of gradients.

    A rank's share of time in exchanges includes waiting for the others.
    """
    from torch_utils.distributed import run

    with tempfile.TemporaryDirectory() as folder:
        data, alone = _dataset(cfg, folder), 0.0
        for number in parse_int_list(numbers, option='--ranks'):
            target = Path(folder) / f'{number}.json'
            work = functools.partial(timed_steps, cfg=cfg, data=data, steps=steps, target=str(target))
            run(work, 'cpu', ranks=number)
            result = json.loads(target.read_text())
            seconds = statistics.median(result['steps'])
            alone = alone or seconds * number
            click.echo(
                f'{cfg}, {number} rank(s): {seconds:.3f} s a step (median of {steps - 1}), '
                f'{alone / seconds:.2f} x the first, exchange {statistics.median(result["exchanges"]) / seconds:.1%}'
            )


def timed_steps(communicator: Communicator, *, cfg: str, data: str, steps: int, target: str) -> None:
    """Seconds of each step but the first, and of the exchanges in it, on rank 0; written to `target` as JSON."""
    import torch

    from torch_utils.stats import Stats
    from training.config import preset
    from training.dataset import HeadDataset
    from training.trainer import Trainer

    torch.set_num_threads(1)
    config = preset(cfg, {'data': data, 'gpus': communicator.size})
    config = dataclasses.replace(config, batch_gpu=config.batch // communicator.size)
    trainer = Trainer(config, dataset=HeadDataset(data), communicator=communicator, stats=Stats())
    exchanged = [0.0]
    mean = type(communicator).mean_

    def timed_mean(tensors: Sequence[torch.Tensor]) -> None:
        start = time.perf_counter()
        mean(communicator, tensors)
        exchanged[0] += time.perf_counter() - start

    object.__setattr__(communicator, 'mean_', timed_mean)
    loader, rows = trainer.loader(), []
    for _ in range(steps):
        communicator.barrier()
        start, exchanged[0] = time.perf_counter(), 0.0
        trainer.step(next(loader))
        rows.append((time.perf_counter() - start, exchanged[0]))
    if communicator.is_main:
        steps_, exchanges = zip(*rows[1:], strict=True)
        Path(target).write_text(json.dumps({'steps': steps_, 'exchanges': exchanges}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """The assumptions of a projection."""

    image_seconds: float  # compute of one training image on one GPU
    gradient_bytes: tuple[float, float]  # of G and of D
    phases: tuple[float, float]  # exchanges of each in a step, lazy ones by their share
    inside: float  # bytes a second of a GPU to its neighbour within a node
    between: float  # bytes a second of a GPU to the next node
    node: int  # GPUs of a node
    latency: float  # seconds of one hop

    def exchange(self, gpus: int) -> float:
        """Seconds of a step's exchanges: ring all-reduce, 2 (n - 1) / n of the bytes over the slowest link."""
        if gpus == 1:
            return 0.0
        rate = self.inside if gpus <= self.node else self.between
        total = 0.0
        for size, count in zip(self.gradient_bytes, self.phases, strict=True):
            total += count * (2 * (gpus - 1) / gpus * size / rate + 2 * (gpus - 1) * self.latency)
        return total

    def step(self, *, batch: int, gpus: int) -> float:
        """Seconds of a step of `batch` images, exchange after compute, as it is done."""
        return batch / gpus * self.image_seconds + self.exchange(gpus)


@main.command()
@click.option('--cfg', default='ffhq512', show_default=True, help='Preset: its parameters are the bytes.')
@click.option('--image-ms', type=float, default=97.0, show_default=True, help='Compute of a training image on a GPU.')
@click.option('--inside', type=float, default=200.0, show_default=True, help='GB/s from GPU to GPU within a node.')
@click.option('--between', type=float, default=12.5, show_default=True, help='GB/s a GPU between nodes.')
@click.option('--node', type=click.IntRange(min=1), default=8, show_default=True, help='GPUs a node.')
@click.option('--latency-us', type=float, default=10.0, show_default=True, help='Of one hop of the ring.')
@click.option('--batch', 'batches', default='32,256,2048', show_default=True, help='Images a step.')
def project(
    cfg: str, image_ms: float, inside: float, between: float, node: int, latency_us: float, batches: str
) -> None:
    """Computed, not measured: seconds of a step and images a second on many GPUs, from the assumptions given."""
    cluster = cluster_of(
        cfg,
        image_seconds=image_ms / 1e3,
        inside=inside * 1e9,
        between=between * 1e9,
        node=node,
        latency=latency_us / 1e6,
    )
    click.echo(
        f'{cfg}: gradients of G {cluster.gradient_bytes[0] / 1e6:.0f} MB, of D {cluster.gradient_bytes[1] / 1e6:.0f} MB'
    )
    for batch in parse_int_list(batches, option='--batch'):
        for gpus in GPUS:
            if batch % gpus:
                continue
            seconds = cluster.step(batch=batch, gpus=gpus)
            share = cluster.exchange(gpus) / seconds
            efficiency = batch * cluster.image_seconds / gpus / seconds
            click.echo(
                f'batch {batch:5d}, {gpus:4d} GPUs, {batch // gpus:4d} each: {seconds:7.3f} s a step, '
                f'{batch / seconds:8.1f} images/s, exchange {share:5.1%}, efficiency {efficiency:5.1%}'
            )


def cluster_of(cfg: str, *, image_seconds: float, inside: float, between: float, node: int, latency: float) -> Cluster:
    """The cluster for a preset's networks and lazy intervals."""
    import torch

    from benchmarks.subjects import build_subject
    from training.config import preset

    config = preset(cfg)
    subject = build_subject(cfg, batch=1, device=torch.device('cpu'))
    sizes = [4.0 * sum(p.numel() for p in net.parameters()) for net in (subject.generator, subject.discriminator)]
    phases = (1 + 1 / config.loss.density_interval, 1 + 1 / config.loss.r1_interval)
    return Cluster(
        image_seconds=image_seconds,
        gradient_bytes=(sizes[0], sizes[1]),
        phases=phases,
        inside=inside,
        between=between,
        node=node,
        latency=latency,
    )


if __name__ == '__main__':
    main()
