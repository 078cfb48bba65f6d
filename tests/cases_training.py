"""A tiny training run on a sheet-shaped head, shared by the training tests and their subprocesses."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
if __name__ == '__main__':
    sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

from cases_dataset import SheetHead, make_dataset  # noqa: E402

from metrics.adapter import NetworkAdapter  # noqa: E402
from metrics.registry import Protocol, evaluate  # noqa: E402
from torch_utils.distributed import Communicator, run  # noqa: E402
from torch_utils.ops import library  # noqa: E402
from torch_utils.stats import Stats  # noqa: E402
from training import checkpoint, grids, loop  # noqa: E402
from training.config import TrainConfig, preset  # noqa: E402
from training.dataset import HeadDataset  # noqa: E402
from training.run_dataset import dataset_of  # noqa: E402
from training.trainer import Trainer  # noqa: E402

CPU = Communicator(torch.device('cpu'))


def tiny_dataset(folder: Path, **options: Any) -> HeadDataset:
    """Ten random 16 px images with sheet heads, as a zip in `folder`, mirrored."""
    path = folder / 'tiny.zip'
    if not path.exists():
        make_dataset(path, **{'count': 10, 'resolution': 16, **options})
    return HeadDataset(path, mirror=True, head_model=SheetHead())


def tiny_config(data: Path | str = 'tiny.zip', **overrides: Any) -> TrainConfig:
    """The debug preset; overrides by dotted name with '__' for the dot."""
    named = {key.replace('__', '.'): value for key, value in overrides.items()}
    config = preset('debug', {'data': str(data), **named})
    return dataclasses.replace(config, head_model='sheet', batch_gpu=config.batch_gpu or config.batch // config.gpus)


def tiny_trainer(folder: Path, *, communicator: Communicator = CPU, **overrides: Any) -> Trainer:
    """A trainer over `tiny_dataset`."""
    dataset = tiny_dataset(folder)
    return Trainer(tiny_config(dataset.path, **overrides), dataset=dataset, communicator=communicator, stats=Stats())


def resume_config(data: Path | str, *, images: int, gpus: int = 1) -> TrainConfig:
    """Everything that has state at once: ADA, style mixing, accumulation, fades, lazy terms, metrics."""
    return tiny_config(
        data,
        kimg=images / 1000,
        gpus=gpus,
        batch=2,
        batch_gpu=1,
        tick_kimg=0.004,
        augment='ada',
        ada_kimg=0.05,
        metrics=['images'],
        L__style_mixing_prob=0.5,
        L__density_interval=2,
        L__r1_interval=3,
        L__blur_fade_kimg=0.01,
        L__pose_swap_fade_kimg=0.01,
        D__mbstd_group_size=1,
    )


def open_sheet_dataset(config: TrainConfig, *, head_model: str | None = None) -> HeadDataset:
    """Stands in for training.loop.open_dataset: the sheet is no model that a user can name."""
    return dataset_of(config, head_model=SheetHead())


def count_images(names: tuple[str, ...], **subjects: Any) -> list[dict[str, Any]]:
    """A measurement that costs nothing."""
    return [{'metric': name, 'value': float(subjects['images_seen'])} for name in names]


def train_sheet(communicator: Communicator, *, config: TrainConfig, outdir: str) -> None:
    """One rank of a run on sheet heads."""
    loop.open_dataset = open_sheet_dataset
    grids.COLUMNS, grids.BLOCKS = 2, 1  # pictures cost more than steps
    loop.train(communicator, config=config, options=loop.RunOptions(outdir=outdir), evaluate=count_images)


def record_gradients(communicator: Communicator, *, folder: str, steps: int = 2) -> None:
    """Save a metric and a snapshot of the initial weights, the averaged gradients of every phase of some steps, and
    the weights and statistics after them."""
    torch.set_num_threads(1)
    options: dict[str, Any] = {'batch': 12, 'batch_gpu': 2, 'augment': 'ada', 'ada_kimg': 0.1}
    trainer = tiny_trainer(Path(folder), communicator=communicator, L__style_mixing_prob=0.5, **options)
    trainer.augment_probability = 0.5
    record: dict[str, Any] = {'metric': measure(trainer, folder=folder), 'snapshot': snapshot_digest(trainer, folder)}
    for player, network in ((trainer.g, trainer.generator), (trainer.d, trainer.discriminator)):
        names = {id(parameter): name for name, parameter in network.named_parameters()}

        def remember(optimizer: Any, *_: Any, names: dict[int, str] = names) -> None:
            gradients = {
                names[id(parameter)]: parameter.grad.clone()
                for parameter in optimizer.param_groups[0]['params']
                if parameter.grad is not None
            }
            record[f'phase{len(record)}'] = gradients

        player.optimizer.register_step_pre_hook(remember)
    loader = trainer.loader()
    for _ in range(steps):
        trainer.step(next(loader))
    record['state'] = {name: dict(state) for name, state in trainer.networks().items()}
    record['stats'] = {
        name: (moments.num, moments.mean) for name, moments in trainer.stats.collect(communicator).items()
    }
    if communicator.is_main:
        torch.save(record, Path(folder) / f'record{communicator.size}.pt')


def measure(trainer: Trainer, *, folder: str) -> float:
    """A distance of a few images, by all ranks."""
    protocol = Protocol(batch=2, cache_dir=Path(folder) / f'cache{trainer.communicator.size}')
    subjects: dict[str, Any] = {'dataset': trainer.dataset, 'communicator': trainer.communicator, 'protocol': protocol}
    return evaluate(['fd_random8_full'], subject=NetworkAdapter(trainer.average), **subjects)[0]['value']


def snapshot_digest(trainer: Trainer, folder: str) -> str:
    """The sha256 of the snapshot that rank 0 writes; '' on the others."""
    if not trainer.communicator.is_main:
        return ''
    head = trainer.dataset.head_model
    info = checkpoint.Info(images_seen=0, head_model=head.name, head_model_hash=head.content_hash)
    config = dataclasses.replace(trainer.config, gpus=1)
    path = Path(folder) / f'snapshot{trainer.communicator.size}.pkl'
    networks = trainer.networks()
    content = checkpoint.Snapshot(config=config, info=info, template=head.template, networks=networks)
    checkpoint.save_snapshot(path, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kill_at(point: str) -> None:
    """Let this process kill itself: 'step N' before step N, 'write NAME BYTES' that far into writing a file
    whose name begins with NAME, 'rename NAME' and 'renamed NAME' before and after it takes its place."""
    kind, _, rest = point.partition(' ')
    if kind == 'step':
        step = Trainer.step

        def dying_step(self: Trainer, real: Any) -> None:
            if self.images_seen // self.config.batch >= int(rest):
                os.kill(os.getpid(), signal.SIGKILL)
            step(self, real)

        Trainer.step = dying_step  # type: ignore[method-assign]
    elif kind == 'write':
        name, limit = rest.split()
        write = checkpoint._Writer.write
        written: dict[Any, int] = {}

        def dying_write(self: Any, data: Any) -> int:
            count = write(self, data)
            written[self] = written.get(self, 0) + len(data)
            if Path(self.handle.name).name.startswith(f'.{name}') and written[self] >= int(limit):
                self.handle.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return count

        checkpoint._Writer.write = dying_write  # type: ignore[method-assign]
    else:
        replace = os.replace

        def dying_replace(source: Any, target: Any) -> None:
            if kind == 'renamed':
                replace(source, target)
            if Path(target).name.startswith(rest):
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == 'rename':
                replace(source, target)

        os.replace = dying_replace  # type: ignore[assignment]


def main() -> None:
    """Read a list of {outdir, data, images, gpus, kill} as JSON; run each in a forked child, print how it ended.

    This process only imports, which takes longer than a tiny run; it never computes, so it may fork.
    """
    import torch._dynamo  # optimizers import it
    import torch.utils.tensorboard

    library.load('cpu')
    for task in json.loads(sys.stdin.read()):
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            if task.get('kill'):
                kill_at(task['kill'])
            config = resume_config(task['data'], images=task['images'], gpus=task.get('gpus', 1))
            run(functools.partial(train_sheet, config=config, outdir=task['outdir']), 'cpu', ranks=config.gpus)
            sys.stdout.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(f'#ended {os.waitstatus_to_exitcode(status)}', flush=True)


if __name__ == '__main__':
    main()
