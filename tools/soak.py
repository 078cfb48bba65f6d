"""Kill a small run on several ranks again and again, and compare its end with an uninterrupted run, bit by bit.

    python -m tools.soak --kills=200

A life starts the run (training.loop.train under torch_utils.distributed.run, preset `debug` with everything that has
state), and ends by SIGKILL to one rank, to the process that started the ranks, or to all of them; at a random moment,
or while a snapshot is being written. Prints a line a life and a summary as JSON; exit status 1 unless identical.
Only Linux. Lives are forked from this process, which only imports, so that a start costs a fraction of a second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
import torch._dynamo
import torch.utils.tensorboard

from dnnlib.cli import Command
from dnnlib.errors import UserError
from torch_utils import distributed
from torch_utils.ops import library
from training import grids, loop
from training.cameras import orbit_camera
from training.config import TrainConfig, preset
from training.dataset_writer import DatasetWriter
from training.head import load_head_model
from training.head.model import HeadParams
from training.manifest import STATES_PATTERN, files_by_age, position

TARGETS = {'launcher': 3, 'rank 0': 3, 'other rank': 2, 'all': 2}  # who is killed, and how often in proportion
FILES = ('network-snapshot', 'training-state', 'manifest')
ENDLESS = 1000.0  # kimg
LONGEST_LIFE = 600.0  # seconds before a life counts as hanging
MEASURED = ('Timing', 'Resources')  # numbers of a run that tell of the machine
PATIENCE = 10.0  # seconds of waiting for a file to be seen while it is written; then the moment is as good as any


def make_config(data: str, *, ranks: int, kimg: float) -> TrainConfig:
    """The debug preset with ADA, mixing, fades and lazy terms, and a snapshot every two steps."""
    config = preset(
        'debug',
        {
            'data': data, 'gpus': ranks, 'batch': ranks, 'batch_gpu': 1, 'kimg': kimg, 'augment': 'ada',
            'tick_kimg': 2 * ranks / 1000, 'ada_kimg': 0.5, 'ema_kimg': 0.1, 'D.mbstd_group_size': 1,
            'L.style_mixing_prob': 0.5, 'L.density_interval': 2, 'L.r1_interval': 3, 'L.blur_fade_kimg': 0.2,
            'L.pose_swap_fade_kimg': 0.2,
        },
    )  # fmt: skip
    return dataclasses.replace(config, head_model='makehuman')


def fork(function: Callable[[], Any], *, log: Path) -> int:
    """Call a function in a child with a process group of its own, its output in `log`; the child's pid."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        torch.set_num_threads(1)
        function()
        status = 0
    finally:
        if status:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)


def make_dataset(path: Path) -> None:
    """Noise with random heads and cameras: 20 images of 16 px."""
    count, model, rng = 20, load_head_model('makehuman'), torch.Generator().manual_seed(0)
    yaw, pitch = 0.3 * torch.randn(2, count, generator=rng)
    labels = orbit_camera(yaw, pitch)
    neutral = model.neutral(count).as_dict()
    heads = HeadParams(**{k: v + 0.1 * torch.randn(v.shape, generator=rng) for k, v in neutral.items()})
    with DatasetWriter(path, resolution=16, head_model=model.name, head_model_hash=model.content_hash) as writer:
        for i in range(count):
            image = torch.randint(256, (16, 16, 3), generator=rng, dtype=torch.uint8).numpy()
            writer.add(image, label=labels[i], head=heads[[i]])


def life(config: TrainConfig, outdir: Path, *, workers: int) -> None:
    """A run from its last state on; the ranks are forked instead of spawned, and pictures are small."""
    grids.COLUMNS, grids.BLOCKS = 2, 1
    distributed.START_METHOD = 'fork'  # quick, and the ranks are the launcher's only children
    options = loop.RunOptions(outdir=str(outdir), workers=workers)
    train = functools.partial(loop.train, config=config, options=options, evaluate=_no_metrics)
    distributed.run(train, 'cpu', ranks=config.gpus)


def _no_metrics(*_: Any, **__: Any) -> list[dict[str, Any]]:
    return []


@dataclasses.dataclass
class Soak:
    """A run, and what was done to it."""

    outdir: Path
    config: TrainConfig
    workers: int
    dice: random.Random
    targets: Counter[str] = dataclasses.field(default_factory=Counter)
    moments: Counter[str] = dataclasses.field(default_factory=Counter)
    stale: set[str] = dataclasses.field(default_factory=set)  # what earlier lives left
    span: float = 3.0  # seconds from the start of a life to its second snapshot, as last seen

    def kill_one(self, number: int) -> None:
        """One life and its end; UserError if it ends by itself."""
        log = self.outdir.with_name('life.log')
        start = functools.partial(life, self.config, self.outdir, workers=self.workers)
        before, began = self._state(), time.monotonic()
        self.stale = set(os.listdir(self.outdir)) if self.outdir.exists() else set()
        launcher = fork(start, log=log)
        if self.dice.random() < 0.5:
            delay = self.dice.uniform(0, self.span)
            self._wait(launcher, log, lambda: time.monotonic() - began > delay)
        else:
            self._wait_for_write(launcher, log, self.dice.choice(FILES), times=self.dice.choice((1, 1, 2)))
            time.sleep(self.dice.uniform(0, 0.04))
        moment = self._moment(log)
        target = self._kill(launcher)
        self._reap(launcher)
        self.targets[target] += 1
        self.moments[moment] += 1
        seconds, after = time.monotonic() - began, self._state()
        click.echo(f'kill {number}: {target} while {moment} after {seconds:.2f} s, state {before} -> {after}')

    def _wait(self, launcher: int, log: Path, done: Callable[[], bool]) -> None:
        began = time.monotonic()
        while not done():
            if os.waitid(os.P_PID, launcher, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                raise UserError(f'a life ended by itself: {log.read_text()[-2000:]}')
            if time.monotonic() - began > LONGEST_LIFE:
                raise UserError(f'a life hangs: {log.read_text()[-2000:]}')
            time.sleep(0.002)

    def _wait_for_write(self, launcher: int, log: Path, file: str, *, times: int) -> None:
        began = time.monotonic()
        for number in range(times):
            if number:
                self._wait(launcher, log, lambda: self._writing() != file)
            self._wait(launcher, log, lambda: self._writing() == file or time.monotonic() - began > PATIENCE)
        if times > 1:
            self.span = time.monotonic() - began

    def _writing(self) -> str:
        """Which of FILES is being written, '' if none is; the manifest goes before the file that it announces."""
        with contextlib.suppress(OSError):
            names = set(os.listdir(self.outdir)) - self.stale
            found = {file for file in FILES for name in names if re.match(rf'\.{file}.*tmp$', name)}
            return 'manifest' if 'manifest' in found else ''.join(found)
        return ''

    def _moment(self, log: Path) -> str:
        file = self._writing()
        if file:
            return f'writing {file}'
        return 'stepping' if re.search('resumed|items of', log.read_text()) else 'starting'

    def _kill(self, launcher: int) -> str:
        ranks = children(launcher)
        target = self.dice.choices(list(TARGETS), list(TARGETS.values()))[0]
        if len(ranks) < self.config.gpus:  # the ranks are not there yet
            target = 'launcher'
        if target == 'all':
            os.killpg(launcher, signal.SIGKILL)
        else:
            victims = {'launcher': [launcher], 'rank 0': ranks[:1], 'other rank': ranks[1:]}[target]
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.dice.choice(victims), signal.SIGKILL)
        return target

    def _reap(self, launcher: int) -> None:
        """Wait for the launcher; ranks that outlive it for a moment are the next life's to cope with."""
        began = time.monotonic()
        while os.waitpid(launcher, os.WNOHANG)[0] == 0:
            if time.monotonic() - began > LONGEST_LIFE:
                os.killpg(launcher, signal.SIGKILL)
                raise UserError('a run with a killed rank hangs instead of ending')
            time.sleep(0.01)

    def _state(self) -> int:
        files = files_by_age(self.outdir, STATES_PATTERN)
        return position(files[0]) if files else 0

    def finish(self) -> TrainConfig:
        """Let the run end two snapshots later; its config."""
        kimg = (self._state() + 2 * round(1000 * self.config.tick_kimg)) / 1000
        config = dataclasses.replace(self.config, kimg=kimg)
        complete(config, self.outdir, workers=self.workers)
        return config


def children(pid: int) -> list[int]:
    """Child processes, oldest first."""
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
    return []


def complete(config: TrainConfig, outdir: Path, *, workers: int) -> None:
    """A life that nobody ends; UserError with what it printed if it fails."""
    log = outdir.with_name('life.log')
    child = fork(functools.partial(life, config, outdir, workers=workers), log=log)
    if os.waitpid(child, 0)[1] != 0:
        raise UserError(f'a life that nobody killed failed: {log.read_text()[-2000:]}')


def differences(one: Path, other: Path) -> list[str]:
    """Names of what differs between the last states, the network snapshots and the records of two runs."""
    states = [torch.load(files_by_age(folder, STATES_PATTERN)[0], weights_only=True) for folder in (one, other)]
    for state in states:
        del state['info']  # holds seconds
    found = list(_differ(*states))
    for path in sorted(one.glob('network-snapshot-*.pkl')):
        if path.read_bytes() != (other / path.name).read_bytes():
            found.append(path.name)
    if _records(one) != _records(other):
        found.append('stats.jsonl')
    return found


def _differ(one: Any, other: Any, name: str = '') -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            line
            for key in {**one, **other}
            for line in _differ(one.get(key), other.get(key), f'{name}.{key}'.strip('.'))
        ]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [name]
    return [] if one == other else [name]


def _records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / 'stats.jsonl').read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(MEASURED)} for line in lines]


@click.command(cls=Command)
@click.option('--kills', type=click.IntRange(min=0), default=200, show_default=True, help='Lives that are ended.')
@click.option('--ranks', type=click.IntRange(min=1), default=2, show_default=True, help='Ranks of the run.')
@click.option('--workers', type=click.IntRange(min=0), default=1, show_default=True, help='Loading processes a rank.')
@click.option('--seed', type=int, default=0, show_default=True, help='Of the moments and the victims.')
@click.option('--minutes', type=float, help='Kill no more after this long, and compare what there is.')
@click.option('--out', metavar='DIR', help='Keep the runs here; must be empty. Default: a temporary folder.')
def main(kills: int, ranks: int, workers: int, seed: int, minutes: float | None, out: str | None) -> None:
    """Kill a run at random moments and compare its end with an uninterrupted one."""
    library.load('cpu')
    with contextlib.ExitStack() as stack:
        folder = Path(out or stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f'--out: {folder} is not empty')
        began = time.monotonic()
        data = folder / 'data.zip'
        if os.waitpid(fork(functools.partial(make_dataset, data), log=folder / 'life.log'), 0)[1]:
            raise UserError(f'no dataset: {(folder / "life.log").read_text()[-2000:]}')
        config = make_config(str(data), ranks=ranks, kimg=ENDLESS)
        soak = Soak(outdir=folder / 'killed', config=config, workers=workers, dice=random.Random(seed))
        while soak.targets.total() < kills and (minutes is None or time.monotonic() - began < 60 * minutes):
            soak.kill_one(soak.targets.total() + 1)
        config = soak.finish()
        complete(config, folder / 'whole', workers=workers)
        found = differences(folder / 'whole', folder / 'killed')
        summary = {
            'kills': soak.targets.total(), 'ranks': ranks, 'workers': workers, 'seed': seed,
            'targets': dict(soak.targets), 'moments': dict(soak.moments),
            'steps': round(1000 * config.kimg) // config.batch, 'seconds': round(time.monotonic() - began),
            'fallbacks': (folder / 'killed' / 'log.txt').read_text().count('going on from the one before'),
            'left_over': [path.name for path in (folder / 'killed').glob('.*.tmp')],
            'differences': found, 'identical': not found,
        }  # fmt: skip
        click.echo(json.dumps(summary, indent=1))
        if found or summary['left_over']:
            raise UserError(f'not identical: {", ".join(found[:3])}, left over: {summary["left_over"]}')


if __name__ == '__main__':
    main()
