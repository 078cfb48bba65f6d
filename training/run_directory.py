"""A run's folder: its options, log, statistics, and the one process that may write to it.

training_options.json, log.txt, stats.jsonl, metric-<name>.jsonl, sessions.jsonl, TensorBoard events, image grids,
report.html, network-snapshot-<kimg>.pkl, training-state-<images>.pt, manifest.json. The numbers are cut back to the
state's position on resume, so that a killed and resumed run reads like an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from dnnlib.errors import UserError
from dnnlib.files import atomic_write, exclusive, explain_os_error, make_output_folder
from training.config import TrainConfig, to_dict
from training.manifest import position

OPTIONS_FILE = 'training_options.json'
LOCK_SECONDS = 30.0  # the ranks of a killed run need a moment to end

# Fields that may differ when a run is resumed: they decide how long and what is reported, not what is learned; and
# bad_images, since a run that stops at bad images has learned nothing from them.
MAY_CHANGE = {'kimg', 'gpus', 'data', 'tick_kimg', 'snapshot_ticks', 'image_ticks', 'metrics', 'bad_images'}


@dataclasses.dataclass(frozen=True)
class Change:
    """A field that differs between two configs."""

    name: str  # dotted
    before: Any
    after: Any

    def __str__(self) -> str:
        return f'{self.name} ({self.before!r} -> {self.after!r})'


@contextlib.contextmanager
def hold(folder: Path, *, wait: float = LOCK_SECONDS) -> Iterator[None]:
    """The folder for one process alone. If the block fails and wrote nothing, the lock's file is removed as well."""
    busy = f'{folder}: another process is training here; end it or choose another --outdir'
    lock = folder / '.lock'
    with exclusive(lock, wait=wait, busy=busy):
        try:
            yield
        except BaseException:
            if list(folder.iterdir()) == [lock]:
                lock.unlink()
            raise


def changed_fields(
    old: Mapping[str, Any], new: Mapping[str, Any], *, prefix: str = '', default: Mapping[str, Any] | None = None
) -> list[Change]:
    """The fields that differ between two configs as dicts, but for those of MAY_CHANGE.

    A field that the old config does not know (it came later) had its default.
    """
    default = to_dict(TrainConfig()) if default is None else default
    changes = []
    for name in sorted(set(old) | set(new)):
        before, after = old.get(name, default.get(name)), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += changed_fields(before, after, prefix=f'{prefix}{name}.', default=default.get(name, {}))
        elif before != after and prefix + name not in MAY_CHANGE:
            changes.append(Change(prefix + name, before, after))
    return changes


class RunDirectory:
    """Rank 0's writer. Every method raises UserError for a full disk or a folder that became unwritable."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = make_output_folder(path)
        self._events: Any = None
        self._history: list[dict[str, Any]] = []  # of deliberate changes, oldest first
        self._overridden: list[Change] = []  # of this start

    def check_options(self, config: TrainConfig, *, override: bool = False) -> None:
        """Refuse to go on with another config than the folder's; UserError names the changed fields.

        With `override` they are taken as they are, and `begin` writes them down.
        """
        file = self.path / OPTIONS_FILE
        if not file.exists():
            return
        try:
            old = json.loads(file.read_text())
            self._history = [
                {'images_seen': int(entry['images_seen']), 'changes': dict(entry['changes'])}
                for entry in old.pop('history', [])
            ]
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(f'{file}: unreadable ({error}); remove it or choose another --outdir') from error
        self._check(changed_fields(old, to_dict(config)), f'{self.path} holds a run', override=override)

    def check_state(self, file: Path, changes: list[Change], *, override: bool = False) -> None:
        """As check_options, for what changed since a state; changes that were overridden after it are no news."""
        later = [entry for entry in self._history if entry['images_seen'] >= position(file)]
        known = {name for entry in later for name in entry['changes']}
        known |= {change.name for change in self._overridden}
        self._check([change for change in changes if change.name not in known], f'{file}: made', override=override)

    def _check(self, changes: list[Change], what: str, *, override: bool) -> None:
        if changes and not override:
            raise UserError(
                f'{what} with other options: {", ".join(map(str, changes))}; repeat them to resume, choose another'
                ' --outdir, or change them deliberately by --override-config'
            )
        self._overridden += changes

    def begin(self, config: TrainConfig, *, images_seen: int) -> None:
        """Write the options and cut every record back to `images_seen`."""
        if self._overridden:
            changes = {change.name: [change.before, change.after] for change in self._overridden}
            self._history.append({'images_seen': images_seen, 'changes': changes})
            self.log(f'--override-config at kimg {images_seen / 1000:.3f}: {", ".join(map(str, self._overridden))}')
        options = {**to_dict(config), **({'history': self._history} if self._history else {})}
        with atomic_write(self.path / OPTIONS_FILE) as handle:
            handle.write((json.dumps(options, indent=2) + '\n').encode())
        for file in [self.path / 'stats.jsonl', *sorted(self.path.glob('metric-*.jsonl'))]:
            if file.exists():
                _cut_back(file, images_seen)
        for file in self.path.glob('.*.tmp'):  # what a killed write left
            file.unlink()
        self._events = _open_events(self.path, images_seen)

    def log(self, text: str) -> None:
        """One line to the terminal (above a progress bar) and to log.txt."""
        tqdm.write(text)
        self._append('log.txt', text)

    def record(self, name: str, values: dict[str, Any]) -> None:
        """One JSON line to `name`.jsonl; `values` has 'images_seen'."""
        self._append(f'{name}.jsonl', json.dumps(values))

    def scalars(self, values: Mapping[str, float], *, images_seen: int) -> None:
        """Numbers to TensorBoard, by images seen."""
        for name, value in values.items():
            self._events.add_scalar(name, value, images_seen)
        with self._explained('TensorBoard events'):
            self._events.flush()

    def note(self, name: str, text: str, *, images_seen: int) -> None:
        """A text to TensorBoard."""
        self._events.add_text(name, text, images_seen)

    def picture(self, name: str, save: Callable[[IO[bytes]], None]) -> None:
        """An image file that is whole or absent."""
        with atomic_write(self.path / name) as handle:
            save(handle)

    def close(self) -> None:
        if self._events is not None:
            with self._explained('TensorBoard events'):
                self._events.close()

    def _append(self, name: str, line: str) -> None:
        with self._explained(name), open(self.path / name, 'a', encoding='utf-8') as handle:
            handle.write(line + '\n')

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise explain_os_error(error, self.path / name) from error


def _cut_back(file: Path, images_seen: int) -> None:
    """Drop the records after `images_seen`, and a last line that a kill cut short."""
    kept = []
    for line in file.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get('images_seen', 0) <= images_seen:
            kept.append(line)
    with atomic_write(file) as handle:
        handle.write(''.join(f'{line}\n' for line in kept).encode())


def _open_events(folder: Path, images_seen: int) -> Any:
    """A TensorBoard writer that voids earlier events after `images_seen`."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    return SummaryWriter(str(folder), purge_step=images_seen + 1)
