"""Writing snapshots and states while training goes on, and finding the state to go on from."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnnlib.errors import UserError
from torch_utils.distributed import Communicator
from training.checkpoint import (
    Snapshot,
    load_training_state,
    save_snapshot,
    save_training_state,
    snapshot_name,
    state_name,
)
from training.conditions import HeadImages
from training.config import TrainConfig, to_dict
from training.manifest import STATES_PATTERN, announce, files_by_age, position, rotate
from training.run_directory import Change, RunDirectory, changed_fields


class BackgroundWriter:
    """Runs one job at a time in a thread. What a job returns or raises comes out of `finished`, once.

    As a context it waits for the job that is under way at the end, and raises its error unless another one is raised.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix='snapshots')
        self._job: Future[str] | None = None

    def start(self, job: Callable[[], str]) -> None:
        """Start a job; the one before must have been collected by `finished(wait=True)`."""
        assert self._job is None
        self._job = self._pool.submit(job)

    def finished(self, *, wait: bool = False) -> str | None:
        """The job's line for the log; None if there is none or it still runs. Raises the job's error."""
        if self._job is None or not (wait or self._job.done()):
            return None
        job, self._job = self._job, None
        return job.result()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.finished(wait=True)
        except UserError:
            if kind is None:
                raise
        finally:
            self._pool.shutdown()


def write_files(folder: Path, *, snapshot: Snapshot, keep: int | None, state: dict[str, Any] | None, info: Any) -> str:
    """Write a network snapshot and then, if given, the state of the same moment; delete what need not be kept.

    The order matters: the state alone decides where a resumed run continues, so it comes last. Returns a line.
    """
    seen = snapshot.info.images_seen
    networks_file = folder / snapshot_name(seen)
    save_snapshot(networks_file, snapshot, announce=announce)
    if state is None:
        return f'saved {networks_file.name}'
    state_file = folder / state_name(seen)
    save_training_state(state_file, config=snapshot.config, info=info, payload=state, announce=announce)
    rotate(folder, keep=keep, at=seen)
    return f'saved {networks_file.name} and {state_file.name}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """A state file's content."""

    file: Path
    config: dict[str, Any]
    payload: dict[str, Any]
    seconds: float  # of training so far
    dataset: str  # training.loop.fingerprint
    metrics: dict[str, float]
    images_read: int  # as training.bad_images.BadImages counts them
    images_replaced: int


def read_state(file: Path) -> ResumePoint:
    """Read one state; UserError if it is damaged or of another make."""
    config, info, payload = load_training_state(file)
    try:
        metrics = {str(name): float(value) for name, value in info['metrics'].items()}
        return ResumePoint(
            file=file,
            config=config,
            payload=payload,
            seconds=float(info['seconds']),
            dataset=str(info['dataset']),
            metrics=metrics,
            images_read=int(info.get('images_read', 0)),
            images_replaced=int(info.get('images_replaced', 0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f'{file}: not a usable state of this version ({type(error).__name__}: {error})') from error


def latest_state(folder: Path, *, log: Callable[[str], None]) -> ResumePoint | None:
    """The latest state that is whole, None where there is no state; broken ones before it are told to `log`.

    UserError if there are states and all are broken.
    """
    files = files_by_age(folder, STATES_PATTERN)
    problems: list[UserError] = []
    for file in files:
        try:
            point = read_state(file)
        except UserError as error:
            problems.append(error)
            continue
        for problem in problems:
            log(f'warning: {problem}; going on from the one before, {file.name}')
        return point
    if problems:
        raise UserError(f'{problems[0]}; no other state is left, so restore it, or remove it to start over')
    return None


def resume_point(
    folder: Path,
    communicator: Communicator,
    *,
    directory: RunDirectory | None,
    config: TrainConfig,
    dataset: str,
    override: bool,
) -> ResumePoint | None:
    """The state to go on from, chosen by rank 0 (which alone has a `directory`) and read by every rank; None: start.

    `dataset` is the fingerprint of the run's dataset. UserError if the state was made with another config or dataset,
    unless `override`. Collective.
    """
    point = None
    if directory is not None:
        point = latest_state(folder, log=directory.log)
        if point is not None:
            changes = changed_fields(point.config, to_dict(config))
            if point.dataset != dataset:
                changes.append(Change('images or cameras in data', point.dataset[:8], dataset[:8]))
            directory.check_state(point.file, changes, override=override)
    chosen = torch.tensor(-1 if point is None else position(point.file), device=communicator.device)
    communicator.broadcast_([chosen])
    number = int(chosen)
    if directory is not None or number < 0:
        return point
    for file in files_by_age(folder, STATES_PATTERN):
        if position(file) == number:
            return read_state(file)
    raise UserError(f'{folder}: this rank does not see the state at {number} images; all nodes must share --outdir')


def fingerprint(dataset: HeadImages) -> str:
    """A hash of a dataset's number of items, resolution and cameras: the same wherever its file lies."""
    digest = hashlib.sha256(f'{len(dataset)} {dataset.resolution}'.encode())
    digest.update(np.ascontiguousarray(dataset.labels.numpy()).tobytes())
    return digest.hexdigest()
