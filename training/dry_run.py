"""One step on all ranks that writes nothing: does it run, and what memory does it take?"""

from __future__ import annotations

import time

from torch_utils.distributed import Communicator
from torch_utils.precision import choose_precision
from torch_utils.stats import Stats
from training.batch_fit import memory_explained
from training.conditions import HeadImages
from training.config import TrainConfig
from training.memory import estimate
from training.reporting import memory
from training.trainer import Trainer
from training.warm_start import start_from

# What each phase reports when it has run.
PHASE_NUMBERS = {
    'Gmain': 'Loss/G/loss',
    'Gdensity': 'Loss/G/density',
    'Dmain': 'Loss/D/loss',
    'Dr1': 'Loss/D/r1',
}


def dry_run(
    communicator: Communicator, config: TrainConfig, dataset: HeadImages, *, checkpoint: frozenset[str]
) -> None:
    """One real step of all phases on all ranks, then the estimate of a rank's memory with the measured peak beside it.

    The first step of a run is one in which both lazy regularizers are due.
    """
    assert config.batch_gpu is not None
    trainer = Trainer(config, dataset=dataset, communicator=communicator, stats=Stats())
    trainer.generator.checkpoint = checkpoint
    warm_start(trainer, config)
    started = time.perf_counter()
    with memory_explained(communicator, config):
        trainer.step(next(trainer.loader()))
    seconds = time.perf_counter() - started
    peak = memory(communicator)  # before the estimate adds to it
    numbers = trainer.stats.collect(communicator)
    if not communicator.is_main:
        return
    losses = ', '.join(f'{phase} {numbers[name].mean:.4f}' for phase, name in PHASE_NUMBERS.items() if name in numbers)
    print(f'dry run: one step of {config.batch} images on {config.gpus} rank(s) in {seconds:.1f} s: {losses}')
    for notice in trainer.notices:
        print(notice)
    precision = choose_precision(config.precision, communicator.device)
    expected = estimate(
        config,
        dataset,
        batch_gpu=config.batch_gpu,
        ranks=communicator.size,
        precision=precision,
        checkpoint=checkpoint,
    )
    print(expected.line())
    print(f'measured peak of rank 0, the whole process, in GiB: {peak}')


def warm_start(trainer: Trainer, config: TrainConfig) -> list[str]:
    """Copy what fits from the file `config.resume`; lines for the log. UserError if nothing fits."""
    if config.resume is None:
        return []
    modules = {'G': trainer.generator, 'D': trainer.discriminator, 'G_ema': trainer.average}
    return start_from(config.resume, modules, config)
