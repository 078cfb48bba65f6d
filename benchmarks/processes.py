"""Whole commands, from the start of Python to its end: what a user waits for."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.ops import import_cases
from benchmarks.timing import Measurement
from dnnlib.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
BUILD = "from torch_utils.ops import library; build = library.load('cpu'); assert build.compiled, build.cause"
NETWORK = 'assets/synth64.pkl'
# Row -> command; {out} is a fresh folder, {data} a dataset of 16 small images.
COMMANDS = {
    'import click': 'python -c "import click"',
    'gen_samples.py --help': 'python gen_samples.py --help',
    'gen_samples.py 2 seeds': f'python gen_samples.py --network={NETWORK} --outdir={{out}} --seeds=0,1',
    'gen_videos.py 30 frames': f'python gen_videos.py --network={NETWORK} --output={{out}}/orbit.mp4 --frames=30',
    'train.py debug 8 steps': (
        'python train.py --cfg=debug --outdir={out}/run --data={data} --batch=4 --kimg=0.032 --tick=0.032'
    ),
}
FIRST_BUILD = 'first build of the ops'
ROWS = (*COMMANDS, FIRST_BUILD)


def run_once(command: str, *, folder: Path = ROOT, environment: dict[str, str] | None = None) -> float:
    """Seconds of one command, started in `folder`; 'python' is this interpreter. UserError where it fails."""
    words = shlex.split(command)
    if not words:
        raise UserError('--pair: expected two commands, got an empty one')
    words = [sys.executable, *words[1:]] if words[0] == 'python' else words
    start = time.perf_counter()
    try:
        result = subprocess.run(
            words, cwd=folder, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise UserError(f'{command}: cannot be started ({error.strerror})') from error
    seconds = time.perf_counter() - start
    if result.returncode != 0:
        lines = (result.stderr or result.stdout).strip().splitlines() or ['no output']
        raise UserError(f'{command}: exit status {result.returncode}: {lines[-1]}')
    return seconds


def alternate(commands: dict[str, str], *, runs: int, **options: object) -> dict[str, tuple[float, ...]]:
    """Seconds of each command by row: one run of each in turn, `runs` times after a warm-up, so that the machine's
    drift meets all of them alike.
    """
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(1 + runs):
        for name, command in commands.items():
            with tempfile.TemporaryDirectory() as out:
                seconds = run_once(command.replace('{out}', out), **options)  # type: ignore[arg-type]
            times[name] += [seconds] if turn else []
    return {name: tuple(values) for name, values in times.items()}


def measure(*, runs: int, names: frozenset[str]) -> Iterator[Measurement]:
    """The rows `names`; the commands take turns. The first build is run once, into an empty cache."""
    chosen = {name: command for name, command in COMMANDS.items() if name in names}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / 'data.zip'
        if any('{data}' in command for command in chosen.values()):
            import_cases('cases_outputs').write_dataset(data, count=16)
        chosen = {name: command.replace('{data}', str(data)) for name, command in chosen.items()}
        for name, seconds in alternate(chosen, runs=runs).items():
            yield Measurement(group='processes', name=name, precision='-', seconds=seconds)
        if FIRST_BUILD in names:
            environment = {'TORCH_EXTENSIONS_DIR': str(Path(folder) / 'ops')}
            once = run_once(f'python -c {shlex.quote(BUILD)}', environment=environment)
            yield Measurement(
                group='processes', name=FIRST_BUILD, precision='-', seconds=(once,), note='with an empty cache, once'
            )
