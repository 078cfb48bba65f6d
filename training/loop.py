"""A training run from start, or resume, to end: ticks, reports, snapshots, metrics."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from dnnlib.errors import UserError
from dnnlib.files import output_folder
from torch_utils.distributed import Communicator, describe, keep_freed_memory
from torch_utils.stats import Stats
from training.bad_images import BadImages
from training.batch_fit import fit_batch_gpu, memory_explained
from training.cameras import framing_of
from training.checkpoint import NETWORKS, Info, Snapshot, snapshot_name
from training.conditions import label_width
from training.config import TrainConfig
from training.dataset import HeadDataset
from training.dry_run import dry_run, warm_start
from training.grids import GridSource, write_png
from training.ranks import build_ops, check_shared, open_rank_log
from training.reporting import Reporter, Tick, measure_memory, progress_bar, timed
from training.run_dataset import open_dataset
from training.run_directory import RunDirectory, hold
from training.sampler import explained_workers
from training.snapshots import BackgroundWriter, fingerprint, resume_point, write_files
from training.trainer import MAX_SKIPPED_STEPS, DivergedError, Trainer

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
    checkpoint: frozenset[str] = frozenset()  # stages of the generator to recompute in the backward pass, not to keep
    max_skipped: int = MAX_SKIPPED_STEPS  # steps with non-finite gradients in a row that end the run
    keep: int | None = None  # network snapshots and states; None: every snapshot and two states
    override_config: bool = False  # go on although the config changed


def train(communicator: Communicator, *, config: TrainConfig, options: RunOptions, evaluate: Evaluate) -> None:
    """One rank of a run; rank 0 writes. Goes on where the folder's state file ends, if there is one.

    UserError for whatever the user can mend: data, options, disk, a diverged run.
    """
    if communicator.device.type == 'cpu':
        keep_freed_memory()
    build_ops(communicator)
    dataset = open_dataset(config, head_model=options.head_model)
    if config.batch_gpu is None:
        config, why = fit_batch_gpu(communicator, config, dataset, checkpoint=options.checkpoint)
        if communicator.is_main:
            print(why, flush=True)
    if options.dry_run:
        dry_run(communicator, config, dataset, checkpoint=options.checkpoint)
        return
    with contextlib.ExitStack() as stack:
        directory = None
        if communicator.is_main:
            directory = RunDirectory(stack.enter_context(output_folder(options.outdir)))
            stack.enter_context(hold(directory.path))
            directory.check_options(config, override=options.override_config)
            stack.callback(directory.close)
        check_shared(communicator, Path(options.outdir))
        open_rank_log(communicator, Path(options.outdir))
        writer = stack.enter_context(BackgroundWriter())
        run = Run(communicator, config, options=options, dataset=dataset, directory=directory, evaluate=evaluate)
        run.run(writer)


def prepare(config: TrainConfig, *, head_model: str | None = None) -> TrainConfig:
    """The config with its dataset's head model and label width; UserError if dataset and config do not fit."""
    dataset = open_dataset(config, head_model=head_model)
    judge = config.discriminator
    if judge.label_dim < 0:
        judge = dataclasses.replace(judge, label_dim=label_width(dataset))
    return dataclasses.replace(config, head_model=dataset.head_model.name, discriminator=judge)


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
        self.trainer = Trainer(
            config, dataset=dataset, communicator=communicator, stats=self.stats, max_skipped=options.max_skipped
        )
        self.trainer.generator.checkpoint = options.checkpoint
        self.total = math.ceil(config.kimg * 1000 / config.batch) * config.batch
        self.grid = GridSource(config, dataset, device=communicator.device)
        self.reporter: Reporter | None = None
        if directory is not None:
            self.reporter = Reporter(directory, config, dataset=dataset, communicator=communicator)
        self.bad_images = BadImages(dataset)
        self.metrics: dict[str, float] = {}
        self.seconds_before = 0.0
        self.started = self.tick_started = time.perf_counter()
        self.tick_start_images = 0
        self.maintenance = 0.0

    def run(self, writer: BackgroundWriter) -> None:
        """Until `kimg` thousand images were seen; files are written by `writer` meanwhile."""
        self.writer = writer
        self._begin()
        if self.trainer.images_seen >= self.total:
            self._log(
                f'this run is complete at kimg {self.trainer.images_seen / 1000:.1f}; a larger --kimg continues it'
            )
            return
        loader = timed(self.trainer.loader(workers=self.options.workers), self.stats)
        tick_images = max(round(self.config.tick_kimg * 1000), 1)
        self.tick_started, self.tick_start_images = time.perf_counter(), self.trainer.images_seen
        bar = progress_bar(self.total, initial=self.trainer.images_seen, visible=self.communicator.is_main)
        with bar, explained_workers():
            while self.trainer.images_seen < self.total:
                before = self.trainer.images_seen // tick_images
                self._step(loader)
                bar.update(self.config.batch)
                done = self.trainer.images_seen >= self.total
                if done or self.trainer.images_seen // tick_images > before:
                    self._tick(self.trainer.images_seen // tick_images, done=done)
        self._collect(wait=True)
        self._log(f'done: {self.trainer.images_seen / 1000:.1f} kimg in {self.options.outdir}')

    def _begin(self) -> None:
        point = resume_point(
            Path(self.options.outdir),
            self.communicator,
            directory=self.directory,
            config=self.config,
            dataset=fingerprint(self.dataset),
            override=self.options.override_config,
        )
        if point is not None:
            self.trainer.load_state(point.payload, where=str(point.file))
            self.seconds_before, self.metrics = point.seconds, point.metrics
            self.bad_images.read, self.bad_images.replaced = point.images_read, point.images_replaced
        lines = warm_start(self.trainer, self.config) if point is None else []  # before anything is written
        if self.directory is not None:
            self.directory.begin(self.config, images_seen=self.trainer.images_seen)
        if self.reporter is not None:
            self.reporter.begin(images_seen=self.trainer.images_seen)
        if point is not None:
            self._log(f'resumed {point.file} at kimg {self.trainer.images_seen / 1000:.3f}')
            return
        for line in lines:
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
        self._collect()
        try:
            with memory_explained(self.communicator, self.config):
                self.trainer.step(next(loader))
        except DivergedError:
            self._write(self.trainer.networks(), state=None)
            self._end_together()
            raise
        finally:
            while self.trainer.notices:
                self._log(self.trainer.notices.pop(0))

    def _end_together(self) -> None:
        """For errors that all ranks meet at once: rank 0's files come first, the others' end would cut them short."""
        self._collect(wait=True)
        self.communicator.barrier()

    # Ticks.

    def _tick(self, number: int, *, done: bool) -> None:
        self.communicator.progress.enter('tick')
        now, seen = time.perf_counter(), self.trainer.images_seen
        tick = Tick(
            number=number,
            images_seen=seen,
            images=seen - self.tick_start_images,
            total_seconds=self.seconds_before + now - self.started,
            seconds=now - self.tick_started,
            maintenance=self.maintenance,
            augment=self.trainer.augment_probability,
            memory=measure_memory(self.communicator),
        )
        self._count_bad_images(tick.images)
        moments = self.stats.collect(self.communicator)
        if self.reporter is not None:
            self.reporter.tick(tick, moments, generator=self.trainer.average, batch=self.trainer.plan.batch_gpu)
        save = done or number % self.config.snapshot_ticks == 0
        if self.directory is not None and (save or number % self.config.image_ticks == 0):
            self._save_fakes()
        if save:
            self._snapshot()
        self.tick_started, self.tick_start_images = time.perf_counter(), seen
        self.maintenance = self.tick_started - now

    def _count_bad_images(self, read: int) -> None:
        if self.config.bad_images == 'skip':
            rows, self.trainer.replaced_rows = self.trainer.replaced_rows, []
            try:
                replaced, lines = self.bad_images.collect(self.communicator, read=read, rows=rows)
            except UserError:
                self._end_together()
                raise
            self.stats.report('Data/bad_images', replaced)
            for line in lines:
                self._log(line)

    def _save_fakes(self) -> None:
        assert self.directory is not None
        picture = self.grid.fakes(self.trainer.average, batch=self.trainer.plan.batch_gpu)
        name = f'fakes{self.trainer.images_seen // 1000:06d}.png'
        self.directory.picture(name, functools.partial(write_png, picture))

    # Snapshots.

    def _snapshot(self) -> None:
        """Metrics, then copies of networks and state to the writer."""
        try:
            self._measure()
        except BaseException:
            self._write(self.trainer.networks(), state=None)
            raise
        self.communicator.progress.enter('snapshot')
        state = self.trainer.state()
        self._write({name: state[name] for name in NETWORKS}, state=state)
        if self.reporter is not None:
            self.reporter.report()

    def _measure(self) -> None:
        if not self.config.metrics:
            return
        seen = self.trainer.images_seen
        self.communicator.progress.enter('metrics')
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

    def _write(self, networks: dict[str, dict[str, Tensor]], *, state: dict[str, Any] | None) -> None:
        """Give a snapshot, and the state unless None, to the writer, when it is done with the last one."""
        if self.directory is None:
            return
        self._collect(wait=True)
        model = self.dataset.head_model
        info = Info(
            images_seen=self.trainer.images_seen,
            head_model=model.name,
            head_model_hash=model.content_hash,
            metrics=self.metrics,
            render_resolution=self.trainer.average.render_resolution,
            framing=framing_of(self.dataset.labels),
        )
        snapshot = Snapshot(config=self.config, info=info, template=model.template, networks=networks)
        progress = {
            'seconds': self.seconds_before + time.perf_counter() - self.started,
            'dataset': fingerprint(self.dataset),
            'metrics': self.metrics,
            'images_read': self.bad_images.read,
            'images_replaced': self.bad_images.replaced,
        }
        folder, keep = self.directory.path, self.options.keep
        self.writer.start(
            functools.partial(write_files, folder, snapshot=snapshot, keep=keep, state=state, info=progress)
        )

    def _collect(self, *, wait: bool = False) -> None:
        """Log what the writer finished; raises the UserError that it met."""
        line = self.writer.finished(wait=wait)
        if line is not None:
            self._log(line)

    def _log(self, text: str) -> None:
        if self.directory is not None:
            self.directory.log(text)
