"""Where every rank is, and the end of a run in which one does not get on.

A rank notes its phase and its progress in a `Progress`. A thread of each rank, the `Watch`, publishes them to the
group's key-value store and reads the others'. The lowest rank that has not finished judges: ranks that entered the
fewest collectives and made no progress within the timeout hold up the rest. Its verdict, or the reason of a rank that
fails by itself, is one line that names rank and phase; all ranks end on it, and one of them says it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import torch

from dnnlib.errors import UserError
from torch_utils.progress import FINISHED, LostConnectionError, Progress

TIMEOUT_SECONDS = 1800.0  # more than the slowest phase of a step and than a build of the ops take
MAX_INTERVAL_SECONDS = 1.0  # between two looks
INTERVALS_OF_SILENCE = 3  # after which a rank that lost its connections is taken for dead
JOIN_SECONDS = 5.0  # for the watch's thread to end


class Watch:
    """Publishes this rank's progress and ends the process when a rank does not get on.

    `store` is shared by all ranks. With `quiet`, the process that spawned this one says what happened, from the
    store. Nothing is watched before `start`.
    """

    def __init__(
        self, store: Any, *, rank: int, size: int, progress: Progress, timeout: float, quiet: bool = False
    ) -> None:
        self.store, self.rank, self.size, self.progress = store, rank, size, progress
        self.timeout, self.quiet = timeout, quiet
        self.interval = min(MAX_INTERVAL_SECONDS, timeout / 10)
        self._board = _Board(store)
        self._beats = 0
        self._seen: dict[int, tuple[Any, Any, float, float]] = {}  # rank: marks, beats, and when each changed
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name='watch', daemon=True)

    def start(self) -> None:
        self._publish()
        self.progress.changed = self._publish
        self._thread.start()

    def _publish(self) -> None:
        with contextlib.suppress(RuntimeError):  # the thread will say what it means that the store has gone
            self._board.publish(self.rank, self._record())

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Watch the block, and tell the other ranks why it ended if it did not end well.

        UserError instead of whatever ended it, or SystemExit when another rank has said it already.
        """
        self.start()
        try:
            yield
            self.progress.enter(FINISHED)
        except UserError as error:
            if not self._end(str(error)):
                raise SystemExit(1) from error
            raise
        except LostConnectionError as error:
            self.progress.ending = True
            text = self._loss(error)
            if not self._end(text):
                raise SystemExit(1) from error
            raise UserError(text) from error
        except (Exception, SystemExit) as error:
            if self.size == 1:
                raise
            text = self._failure(error)
            if not self._end(text):
                raise SystemExit(1) from error
            raise UserError(text) from error
        finally:
            self._stop()
            self._publish()
            self.progress.changed = None
            self.progress.close_log()

    def _stop(self) -> None:
        self._ended.set()
        self._thread.join(timeout=JOIN_SECONDS)

    def _end(self, text: str) -> bool:
        """Make `text` the reason why all ranks end; whether it is for this process to say it."""
        self.progress.ending = True
        self._stop()
        self.progress.log(text)
        return self._board.claim(text) and not self.quiet

    def _failure(self, error: BaseException) -> str:
        """The line for an error that is nobody's mistake but the program's; its traceback goes to the terminal."""
        self.progress.log(''.join(traceback.format_exception(error)))
        if isinstance(error, Exception):
            traceback.print_exception(error)
        what = type(error).__name__ + (f': {error}' if str(error) else '')
        return f'rank {self.rank} failed in phase {self.progress.phase}: {what}'

    def _record(self) -> dict[str, Any]:
        progress = self.progress
        return {
            'phase': progress.phase,
            'marks': progress.marks,
            'collectives': progress.collectives,
            'limit': progress.limit,
            'beats': self._beats,
            'host': platform.node(),
            'pid': os.getpid(),
        }

    # The thread.

    def _run(self) -> None:
        while not self._ended.wait(self.interval):
            self._beats += 1
            try:
                self._board.publish(self.rank, self._record())
                text = self._board.verdict()
                if text is None:
                    text = self._judge()
                    if text is not None and self._board.claim(text) and not self.quiet:
                        _say(text)
            except (RuntimeError, OSError) as error:  # torch's errors of stores are RuntimeErrors
                if self._ended.is_set():
                    return
                text = (
                    f'rank {self.rank}, in phase {self.progress.phase}, lost the store that all ranks share: '
                    f'the launcher or rank 0 has gone ({str(error).splitlines()[0]})'
                )
                if not self.quiet:
                    _say(text)
            if text is not None and not self._ended.is_set():
                self._give_up(text)

    def _give_up(self, text: str) -> None:
        """End this process from outside its main thread, which may never return from a collective."""
        self.progress.log(text)
        self.progress.dump_stack()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    def _judge(self) -> str | None:
        records = {}
        for rank in range(self.size):
            record = self._look(rank)
            if record is None or record['phase'] != FINISHED:
                records[rank] = record
            if rank < self.rank and records:
                return self._silence(rank, record)  # a lower rank judges; here only whether it lives
        return self._held_up(records)

    def _look(self, rank: int) -> dict[str, Any] | None:
        record = self._record() if rank == self.rank else self._board.record(rank)
        marks, beats = (record['marks'], record['beats']) if record else (None, None)
        now = time.monotonic()
        before = self._seen.get(rank, (None, None, now, now))
        since_mark = before[2] if before[0] == marks else now
        since_beat = before[3] if before[1] == beats else now
        self._seen[rank] = (marks, beats, since_mark, since_beat)
        return record

    def _silence(self, rank: int, record: dict[str, Any] | None) -> str | None:
        seconds = time.monotonic() - self._seen[rank][3]
        if seconds <= self._limit(record):
            return None
        return f'{_name(rank, record)} gave no sign of life for {seconds:.0f} s, last in {_phase(record)}'

    def _held_up(self, records: dict[int, dict[str, Any] | None]) -> str | None:
        now = time.monotonic()
        fewest = min(_collectives(record) for record in records.values())
        behind = {rank: record for rank, record in records.items() if _collectives(record) == fewest}
        idle = {rank: now - self._seen[rank][2] for rank in behind}
        if any(seconds <= self._limit(behind[rank]) for rank, seconds in idle.items()):
            return None
        if len(behind) == self.size > 1:
            phases = ', '.join(sorted({_phase(record) for record in behind.values()}))
            return f'no rank got on for {min(idle.values()):.0f} s: all are in {phases} (--timeout={self.timeout:g})'
        named = [
            f'{_name(rank, record)} made no progress for {idle[rank]:.0f} s in {_phase(record)}'
            for rank, record in behind.items()
        ]
        waiting = len(records) - len(behind)
        others = f'; {waiting} other{"s wait" if waiting > 1 else " waits"} for it' if waiting else ''
        return f'{"; ".join(named[:4])}{others} (--timeout={self.timeout:g})'

    def _limit(self, record: dict[str, Any] | None) -> float:
        return max(self.timeout, record['limit'] if record else 0.0)

    # After a lost connection.

    def _loss(self, error: BaseException) -> str:
        """Which rank has gone: the one that said so, or whose watch fell silent."""
        first = {rank: record['beats'] for rank in self._others() if (record := self._board.record(rank))}
        deadline = time.monotonic() + INTERVALS_OF_SILENCE * self.interval
        while time.monotonic() < deadline:
            text = self._board.verdict()
            if text is not None:
                return text
            time.sleep(self.interval / 4)
        gone = []
        for rank in self._others():
            record = self._board.record(rank)
            if record is not None and first.get(rank) == record['beats'] and record['phase'] != FINISHED:
                gone.append(f'{_name(rank, record)} ended in {_phase(record)}')
        if gone:
            return f'{"; ".join(gone[:4])} (killed, crashed, or its machine was lost)'
        return f'rank {self.rank} was cut off in phase {self.progress.phase}: {str(error).splitlines()[0]}'

    def _others(self) -> list[int]:
        return [rank for rank in range(self.size) if rank != self.rank]


class _Board:
    """The records and the one verdict, in a store of torch.distributed."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def publish(self, rank: int, record: dict[str, Any]) -> None:
        self.store.set(f'progress/{rank}', json.dumps(record))

    def record(self, rank: int) -> dict[str, Any] | None:
        key = f'progress/{rank}'
        return json.loads(self.store.get(key)) if self.store.check([key]) else None

    def verdict(self) -> str | None:
        return self.store.get('verdict').decode() if self.store.check(['verdict']) else None

    def claim(self, text: str) -> bool:
        """Make `text` the verdict unless there is one; whether it is."""
        try:
            first = self.store.add('verdicts', 1) == 1
            if first:
                self.store.set('verdict', text)
        except RuntimeError:
            return True  # nobody is left to say it
        return first


def last_phase(store: Any, rank: int) -> str:
    """'phase Gmain', where a rank was when it last published; for the process that spawned it."""
    return _phase(_Board(store).record(rank))


def has_finished(store: Any, rank: int) -> bool:
    """Whether a rank came to its end."""
    record = _Board(store).record(rank)
    return record is not None and record['phase'] == FINISHED


def verdict(store: Any) -> str | None:
    """Why the run ended, if a rank said so."""
    return _Board(store).verdict()


def local_store() -> Any:
    """A store for a run of one process."""
    return torch.distributed.HashStore()


def _collectives(record: dict[str, Any] | None) -> int:
    return record['collectives'] if record else -1


def _phase(record: dict[str, Any] | None) -> str:
    return f'phase {record["phase"]}' if record else 'phase start'


def _name(rank: int, record: dict[str, Any] | None) -> str:
    return f'rank {rank} ({record["host"]}, process {record["pid"]})' if record else f'rank {rank}'


def _say(text: str) -> None:
    sys.stderr.write(f'Error: {text}\n')
    sys.stderr.flush()
