"""Where a rank is in its work: the phase, and signs that it gets on. torch_utils/watch.py tells the other ranks."""

from __future__ import annotations

import contextlib
import faulthandler
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

FINISHED = 'finished'  # the phase after all work


class LostConnectionError(RuntimeError):
    """A collective failed: another rank has gone. Which one, the watch knows."""


class Progress:
    """Where this process is. Written by its main thread, read by its watch."""

    def __init__(self) -> None:
        self.phase = 'start'
        self.marks = 0  # whatever shows that something is being done
        self.collectives = 0  # entered; equal on ranks that are at the same place
        self.limit = 0.0  # seconds that this phase may take where that is more than the timeout
        self.ending = False  # this process knows already that it must end
        self.changed: Callable[[], None] | None = None  # told of each phase
        self._log: IO[str] | None = None

    def enter(self, phase: str, *, limit: float = 0.0) -> None:
        """Begin a phase; `limit` is for those that have a longer one of their own."""
        self.phase, self.limit = phase, limit
        self.marks += 1
        if self.changed is not None:
            self.changed()

    def beat(self) -> None:
        """Show that a long phase gets on."""
        self.marks += 1

    def collective(self) -> None:
        """Called before each collective."""
        self.collectives += 1
        self.marks += 1

    def open_log(self, path: Path, text: str) -> None:
        """Append `text` and, should this process crash or be given up, its stack to a file of this rank alone."""
        self._log = open(path, 'a', encoding='utf-8')  # noqa: SIM115 (until close_log)
        self.log(text)
        faulthandler.enable(self._log)

    def log(self, text: str) -> None:
        """One line to this rank's log, if it has one."""
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.write(f'{time.strftime("%Y-%m-%d %H:%M:%S")} {text}\n')
                self._log.flush()

    def dump_stack(self) -> None:
        """What every thread of this process is doing, to this rank's log."""
        if self._log is not None:
            faulthandler.dump_traceback(self._log, all_threads=True)

    def close_log(self) -> None:
        if self._log is not None:
            faulthandler.disable()
            self._log.close()
            self._log = None
