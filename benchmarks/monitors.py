"""What the monitors of training cost: one look at the averaged generator, which comes once a tick, against steps."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # started by its path: import from the root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import click

from dnnlib.cli import Command
from dnnlib.errors import UserError

if TYPE_CHECKING:
    from training.config import TrainConfig

ITEMS = 32  # of the dataset that is made for the measurement
LOOK_EVERY = 4  # steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of processor time."""

    step: float  # mean over the regularizers' cycle
    look: float  # median
    steps_per_tick: float

    @property
    def share(self) -> float:
        """Of the time of a tick, without its snapshots."""
        return self.look / (self.look + self.steps_per_tick * self.step)


@click.command(cls=Command)
@click.option('--cfg', default='synth64', show_default=True, help='Preset; its batch and tick are taken.')
@click.option('--cycles', type=click.IntRange(min=1), default=1, show_default=True, help='Of the lazy regularizers.')
def main(cfg: str, cycles: int) -> None:
    """Print a step's and a look's processor time on the CPU, and the share of a tick that looking takes.

    Steps and looks take turns in one process, so that what else the machine does slows both.

    \b
    Example:
        OMP_NUM_THREADS=1 python -m benchmarks.monitors
    """
    from benchmarks.data import write
    from training.config import PRESETS, preset

    if cfg not in PRESETS:
        raise UserError(f'--cfg: expected one of {", ".join(PRESETS)}, got {cfg!r}')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'data.zip'
        write(path, count=ITEMS, resolution=preset(cfg).generator.image_resolution)
        config = preset(cfg, {'data': str(path)})
        cost = measure(dataclasses.replace(config, batch_gpu=config.batch), cycles=cycles)
    click.echo(f'{cfg}: a step of {config.batch} images takes {cost.step:.3f} s, a look {cost.look:.3f} s')
    click.echo(
        f'a look is worth {cost.look / cost.step:.2f} steps; of a tick of {cost.steps_per_tick:.0f} steps the monitors '
        f'take {cost.share:.2%}'
    )


def measure(config: TrainConfig, *, cycles: int) -> Cost:
    """Whole cycles of the lazy regularizers, a look after every LOOK_EVERY steps."""
    import torch

    from torch_utils.distributed import Communicator
    from torch_utils.ops import library
    from torch_utils.stats import Stats
    from training.dataset import HeadDataset
    from training.monitors import Probe
    from training.trainer import Trainer

    device = torch.device('cpu')
    library.use_native(device)
    dataset = HeadDataset(config.data)
    trainer = Trainer(config, dataset=dataset, communicator=Communicator(device), stats=Stats())
    probe = Probe(config, dataset, device=device)
    batches = trainer.loader()
    trainer.step(next(batches))  # warm-up, as is the first look
    probe.measure(trainer.average, batch=config.batch_gpu or 1)
    cycle = max(config.loss.density_interval, config.loss.r1_interval, LOOK_EVERY)
    steps: list[float] = []
    looks: list[float] = []
    for number in range(cycles * cycle):
        real = next(batches)
        started = time.process_time()
        trainer.step(real)
        steps.append(time.process_time() - started)
        if (number + 1) % LOOK_EVERY == 0:
            started = time.process_time()
            probe.measure(trainer.average, batch=config.batch_gpu or 1)
            looks.append(time.process_time() - started)
    return Cost(
        step=statistics.fmean(steps),
        look=statistics.median(looks),
        steps_per_tick=config.tick_kimg * 1000 / config.batch,
    )


if __name__ == '__main__':
    main()
