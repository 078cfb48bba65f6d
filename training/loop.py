"""A training run from start, or resume, to end: ticks, reports, snapshots, metrics."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib.errors import UserError
from torch_utils.distributed import Communicator, describe, keep_freed_memory
from torch_utils.ops import library
from torch_utils.stats import Moments, Stats
from training.cameras import framing_of
from training.checkpoint import (
    Info,
    Snapshot,
    load_training_state,
    save_snapshot,
    save_training_state,
    snapshot_name,
)
from training.conditions import HeadImages, dataset_clips
from training.config import TrainConfig, to_dict
from training.dataset import HeadDataset
from training.grids import GridSource, write_png
from training.head import load_head_model
from training.reporting import Tick, memory, progress_bar
from training.run_directory import STATE_FILE, RunDirectory, changed_fields, exclusive
from training.trainer import DivergedError, Trainer
from training.warm_start import start_from

# names, generator=, dataset=, communicator=, images_seen= -> one JSON-able result with 'metric' and 'value' a name;
# collective. Given by the caller because metrics lie beside training, not below it.
Evaluate = Callable[..., list[dict[str, Any]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out; nothing here changes its result."""

    outdir: str
    workers: int = 0
    head_model: str | None = None  # the user's FLAME file, for datasets of FLAME parameters
    dry_run: bool = False
    checkpoint: bool = False  # recompute the generator's stages in the backward pass instead of keeping them


def train(communicator: Communicator, *, config: TrainConfig, options: RunOptions, evaluate: Evaluate) -> None:
    """One rank of a run; rank 0 writes. Goes on where the folder's state file ends, if there is one.

    UserError for whatever the user can mend: data, options, disk, a diverged run.
    """
    if communicator.device.type == 'cpu':
        keep_freed_memory()
    if communicator.is_main:
        library.use_native(communicator.device)  # built by one rank, before any collective
    communicator.barrier()
    dataset = open_dataset(config, head_model=options.head_model)
    if options.dry_run:
        _dry_run(communicator, config, dataset, checkpoint=options.checkpoint)
        return
    with contextlib.ExitStack() as stack:
        directory = None
        if communicator.is_main:
            directory = RunDirectory(options.outdir)
            stack.enter_context(exclusive(directory.path))
            directory.check_options(config)
            stack.callback(directory.close)
        communicator.barrier()
        Run(communicator, config, options=options, dataset=dataset, directory=directory, evaluate=evaluate).run()


def open_dataset(config: TrainConfig, *, head_model: str | None = None) -> HeadDataset:
    """The run's dataset, checked against the config; UserError otherwise. `head_model`: the user's FLAME file."""
    dataset = HeadDataset(config.data, mirror=config.mirror)
    if head_model is not None:
        model = load_head_model(dataset.head_model_name or '', path=head_model)
        dataset = HeadDataset(config.data, mirror=config.mirror, head_model=model)
    size = config.generator.image_resolution
    if config.discriminator.image_resolution != size:
        raise UserError(f'D.image_resolution: expected G.image_resolution = {size}; set both alike')
    if dataset.resolution != size:
        raise UserError(
            f'--data: {config.data} holds {dataset.resolution} px images, but {config.preset} makes {size} px ones; '
            f'choose another --cfg or make the dataset at {size} px'
        )
    if config.clip_frames > 1:
        dataset_clips(dataset)  # or says why not
    dataset.head_input([0], device='cpu')  # heads and head model are there and fit
    return dataset


def prepare(config: TrainConfig, *, head_model: str | None = None) -> TrainConfig:
    """The config with its dataset's head model; UserError if dataset and config do not fit."""
    dataset = open_dataset(config, head_model=head_model)
    return dataclasses.replace(config, head_model=dataset.head_model.name)


def fingerprint(dataset: HeadImages) -> str:
    """A hash of a dataset's number of items, resolution and cameras: the same wherever its file lies."""
    digest = hashlib.sha256(f'{len(dataset)} {dataset.resolution}'.encode())
    digest.update(np.ascontiguousarray(dataset.labels.numpy()).tobytes())
    return digest.hexdigest()


def _dry_run(communicator: Communicator, config: TrainConfig, dataset: HeadDataset, *, checkpoint: bool) -> None:
    """One real step on all ranks; writes nothing."""
    trainer = Trainer(config, dataset=dataset, communicator=communicator, stats=Stats())
    trainer.generator.checkpoint = checkpoint
    warm_start(trainer, config)
    started = time.perf_counter()
    trainer.step(next(trainer.loader()))
    numbers = trainer.stats.collect(communicator)
    if communicator.is_main:
        names = ('Loss/G/loss', 'Loss/D/loss')
        losses = ', '.join(f'{name} {numbers[name].mean:.4f}' for name in names)
        seconds = time.perf_counter() - started
        print(f'dry run: one step of {config.batch} images in {seconds:.1f} s, {losses}, {memory(communicator)}')


def warm_start(trainer: Trainer, config: TrainConfig) -> list[str]:
    """Copy what fits from the file `config.resume`; lines for the log. UserError if nothing fits."""
    if config.resume is None:
        return []
    modules = {'G': trainer.generator, 'D': trainer.discriminator, 'G_ema': trainer.average}
    return start_from(config.resume, modules, config)


class Run:
    """The loop around Trainer.step."""

    def __init__(
        self,
        communicator: Communicator,
        config: TrainConfig,
        *,
        options: RunOptions,
        dataset: HeadDataset,
        directory: RunDirectory | None,  # rank 0 only
        evaluate: Evaluate,
    ) -> None:
        self.communicator, self.config, self.options = communicator, config, options
        self.dataset, self.directory, self.evaluate = dataset, directory, evaluate
        self.stats = Stats()
        self.trainer = Trainer(config, dataset=dataset, communicator=communicator, stats=self.stats)
        self.trainer.generator.checkpoint = options.checkpoint
        self.total = math.ceil(config.kimg * 1000 / config.batch) * config.batch
        self.grid = GridSource(config, dataset, device=communicator.device)
        self.metrics: dict[str, float] = {}
        self.seconds_before = 0.0
        self.started = self.tick_started = time.perf_counter()
        self.tick_start_images = 0
        self.maintenance = 0.0

    def run(self) -> None:
        """Until `kimg` thousand images were seen."""
        self._begin()
        if self.trainer.images_seen >= self.total:
            self._log(
                f'this run is complete at kimg {self.trainer.images_seen / 1000:.1f}; a larger --kimg continues it'
            )
            return
        loader = self.trainer.loader(workers=self.options.workers)
        tick_images = max(round(self.config.tick_kimg * 1000), 1)
        self.tick_started, self.tick_start_images = time.perf_counter(), self.trainer.images_seen
        with progress_bar(self.total, initial=self.trainer.images_seen, visible=self.communicator.is_main) as bar:
            while self.trainer.images_seen < self.total:
                before = self.trainer.images_seen // tick_images
                self._step(loader)
                bar.update(self.config.batch)
                done = self.trainer.images_seen >= self.total
                if done or self.trainer.images_seen // tick_images > before:
                    self._tick(self.trainer.images_seen // tick_images, done=done)
        self._log(f'done: {self.trainer.images_seen / 1000:.1f} kimg in {self.options.outdir}')

    def _begin(self) -> None:
        file = Path(self.options.outdir) / STATE_FILE
        if file.exists():
            config, info, state = load_training_state(file)
            changes = changed_fields(config, to_dict(self.config))
            if info['dataset'] != fingerprint(self.dataset):
                changes.append(f'data (other images or cameras in {self.config.data})')
            if changes:
                raise UserError(
                    f'{file}: made with other options: {", ".join(changes)}; '
                    'repeat them to resume, or choose another --outdir'
                )
            self.trainer.load_state(state, where=str(file))
            self.seconds_before, self.metrics = info['seconds'], info['metrics']
        if self.directory is not None:
            self.directory.begin(self.config, images_seen=self.trainer.images_seen)
        if self.trainer.images_seen:
            self._log(f'resumed {file} at kimg {self.trainer.images_seen / 1000:.3f}')
            return
        for line in warm_start(self.trainer, self.config):
            self._log(line)
        self._describe()
        if self.directory is not None:
            self.directory.picture('reals.png', functools.partial(write_png, self.grid.reals()))
            self._save_fakes()

    def _describe(self) -> None:
        counts = {
            name: sum(parameter.numel() for parameter in module.parameters()) / 1e6
            for name, module in (('G', self.trainer.generator), ('D', self.trainer.discriminator))
        }
        machine = ', '.join(f'{key} {value}' for key, value in describe(self.communicator).items())
        self._log(
            f'{self.config.preset}: G {counts["G"]:.2f} M, D {counts["D"]:.2f} M parameters; {machine}; '
            f'precision {self.config.precision}'
        )
        self._log(f'{self.dataset.name}: {len(self.dataset)} items of {self.dataset.resolution} px')

    def _step(self, loader: Any) -> None:
        try:
            self.trainer.step(next(loader))
        except DivergedError:
            if self.directory is not None:
                self._save_snapshot()
            raise

    # Ticks.

    def _tick(self, number: int, *, done: bool) -> None:
        now, seen = time.perf_counter(), self.trainer.images_seen
        tick = Tick(
            number=number,
            images_seen=seen,
            images=seen - self.tick_start_images,
            total_seconds=self.seconds_before + now - self.started,
            seconds=now - self.tick_started,
            maintenance=self.maintenance,
            augment=self.trainer.augment_probability,
        )
        self._report(tick, self.stats.collect(self.communicator))
        save = done or number % self.config.snapshot_ticks == 0
        if self.directory is not None and (save or number % self.config.image_ticks == 0):
            self._save_fakes()
        if save:
            self._snapshot()
        self.tick_started, self.tick_start_images = time.perf_counter(), seen
        self.maintenance = self.tick_started - now

    def _report(self, tick: Tick, numbers: dict[str, Moments]) -> None:
        """One tick line, one line of stats.jsonl, TensorBoard scalars."""
        if self.directory is None:
            return
        self.directory.log(tick.line(self.communicator))
        self.directory.record('stats', tick.record(numbers))
        means = {name: moments.mean for name, moments in numbers.items()}
        self.directory.scalars({**tick.scalars(), **means}, images_seen=tick.images_seen)

    def _save_fakes(self) -> None:
        assert self.directory is not None
        picture = self.grid.fakes(self.trainer.average, batch=self.trainer.plan.batch_gpu)
        name = f'fakes{self.trainer.images_seen // 1000:06d}.png'
        self.directory.picture(name, functools.partial(write_png, picture))

    # Snapshots.

    def _snapshot(self) -> None:
        """Metrics, snapshot, state, in this order: the state alone decides where a resumed run continues."""
        try:
            self._measure()
        finally:
            if self.directory is not None:
                path = self._save_snapshot()
        state = self.trainer.state()
        if self.directory is None:
            return
        info = {
            'images_seen': self.trainer.images_seen,
            'seconds': self.seconds_before + time.perf_counter() - self.started,
            'dataset': fingerprint(self.dataset),
            'metrics': self.metrics,
        }
        save_training_state(self.directory.state_file, config=self.config, info=info, payload=state)
        self.directory.log(f'saved {path} and {self.directory.state_file.name}')

    def _measure(self) -> None:
        if not self.config.metrics:
            return
        seen = self.trainer.images_seen
        results = self.evaluate(
            self.config.metrics,
            generator=self.trainer.average,
            dataset=self.dataset,
            communicator=self.communicator,
            images_seen=seen,
        )
        self.metrics = {result['metric']: float(result['value']) for result in results}
        if self.directory is None:
            return
        for result in results:
            name, value = result['metric'], result['value']
            self.directory.record(f'metric-{name}', {'images_seen': seen, 'snapshot': snapshot_name(seen), **result})
            self.directory.log(f'{name} {value:.4f} at kimg {seen / 1000:.3f}')
        self.directory.scalars({f'Metrics/{name}': value for name, value in self.metrics.items()}, images_seen=seen)

    def _save_snapshot(self) -> str:
        assert self.directory is not None
        model = self.dataset.head_model
        info = Info(
            images_seen=self.trainer.images_seen,
            head_model=model.name,
            head_model_hash=model.content_hash,
            metrics=self.metrics,
            framing=framing_of(self.dataset.labels),
        )
        snapshot = Snapshot(config=self.config, info=info, template=model.template, networks=self.trainer.networks())
        path = self.directory.path / snapshot_name(self.trainer.images_seen)
        save_snapshot(path, snapshot)
        return path.name

    def _log(self, text: str) -> None:
        if self.directory is not None:
            self.directory.log(text)
