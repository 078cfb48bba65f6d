"""What a build of the native ops tells: its progress, why it failed and what to do, what it was made of."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

POLL_SECONDS = 0.2
LONGEST_CAUSE = 400
RECORD = 'build.json'
LOG = 'build.log'

# What the message of a failure contains -> what to do about it. The first that fits counts.
REMEDIES = (
    (r'No space left on device|Disk quota exceeded', 'free some space, or point {variable} to a folder with room'),
    (
        r'Permission denied|Read-only file system|Not a directory|Operation not permitted',
        'point {variable} to a folder that can be written to and holds executables',
    ),
    (
        r'[Kk]illed signal|out of memory|[Mm]emory exhausted|Cannot allocate memory',
        'the memory did not suffice: set MAX_JOBS=1 and start again',
    ),
    (r'is not installed|no C\+\+ compiler found|nvcc not found|has no CUDA|there are no kernels', ''),
    (r'--version fails', 'this compiler does not run: reinstall it, or set CXX to another one'),
    (r'cannot find -l|undefined reference|ld returned|linker command failed', 'install what the linker misses'),
    (
        r'error: unrecognized|bad value|unknown argument',
        'the compiler is too old or too strange: set CXX to another one',
    ),
    (r'build.* failed|Error building|error:', 'set CXX to another compiler (g++ 9 or newer, clang++ 10 or newer)'),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildRecord:
    """What a library in the cache was made with."""

    compiler: str  # first line of its --version
    flags: tuple[str, ...]
    seconds: float
    date: str  # UTC


def write_record(folder: Path, record: BuildRecord) -> None:
    """Beside the library; no harm if that fails."""
    with contextlib.suppress(OSError):
        (folder / RECORD).write_text(json.dumps(dataclasses.asdict(record)), encoding='utf-8')


def read_record(library: Path) -> BuildRecord | None:
    """The record of a library in the cache; None where there is none."""
    try:
        values: dict[str, Any] = json.loads((library.parent / RECORD).read_text(encoding='utf-8'))
        return BuildRecord(**{**values, 'flags': tuple(values['flags'])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def cause_of(error: Exception) -> str:
    """The one line of an error, or of the output of ninja and compiler that it holds, that tells what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # A linker's complaint comes before the `error:` of the driver that called it.
    for pattern in (
        r'\bld(\.\w+)?: (?!warning)|undefined reference',
        r'\berror: (?!ld returned|linker command)',
        r'\berror:',
    ):
        found = next((line for line in lines if re.search(pattern, line) and not _is_command(line)), None)
        if found is not None:
            return found[:LONGEST_CAUSE]
    return _said_after_failure(lines)[:LONGEST_CAUSE]


def _is_command(line: str) -> bool:
    """Whether ninja shows what it runs."""
    return line.startswith('[') or ' -c ' in line or ' -shared ' in line


def _said_after_failure(lines: list[str]) -> str:
    """What follows ninja's FAILED and the command; else the first line."""
    start = next((index for index, line in enumerate(lines) if line.startswith('FAILED:')), None)
    if start is None:
        return lines[0]
    said = [line for line in lines[start:] if not _is_command(line) and not line.startswith(('FAILED:', 'ninja:'))]
    return said[0] if said else f'the compiler fails without a word ({lines[start]})'


def remedy_for(error: Exception, *, variable: str = 'TORCH_EXTENSIONS_DIR') -> str:
    """What a user can do about a failed build; empty where the cause says it already."""
    text = str(error)
    for pattern, remedy in REMEDIES:
        if re.search(pattern, text):
            return remedy.format(variable=variable)
    if isinstance(error, OSError):
        return f'point {variable} to a folder that can be written to'
    return 'report this with the output of doctor.py'


def write_log(folder: Path, error: Exception) -> Path | None:
    """Everything that the build printed; None where not even that can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOG).write_text(f'{error}\n', encoding='utf-8')
    except OSError:
        return None
    return folder / LOG


@contextlib.contextmanager
def progress(name: str, work: Path, *, steps: int, stream: TextIO | None = None) -> Iterator[None]:
    """Tell on stderr that `name` is being built in the folder `work`: on a terminal with the number of finished files,
    counted as they appear and kept up to date in one line; elsewhere in one line at the start.
    """
    out = sys.stderr if stream is None else stream
    title = f'Building {name} (once, up to a minute) in {work.parent} ...'
    if not out.isatty():
        print(title, file=out, flush=True)
        yield
        return
    print(title, file=out, flush=True)
    done, start = threading.Event(), time.monotonic()

    def show(end: str = '') -> None:
        finished = sum(path.suffix in ('.o', '.so') for path in work.iterdir()) if work.is_dir() else 0
        out.write(f'\r[{min(finished, steps)}/{steps}] {time.monotonic() - start:.0f} s{end}')
        out.flush()

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            show()

    watcher = threading.Thread(target=watch, daemon=True)
    show()
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        show('\n')
