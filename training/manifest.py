"""manifest.json of a run's folder: the sha256 of every network snapshot and state, and which of them are kept.

A file and its entry cannot change at the same instant, so the entry comes first and names the sha256 of the file
that is about to be replaced as well: whatever a kill leaves behind, the file agrees with its entry.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError
from dnnlib.files import atomic_write, explain_os_error, sha256_file

MANIFEST_FILE = 'manifest.json'
NETWORKS_PATTERN, STATES_PATTERN = 'network-snapshot-*.pkl', 'training-state*.pt'
DEFAULT_STATES = 2  # kept: the last one, and one to fall back to


def announce(path: Path, sha256: str) -> None:
    """Enter the file that is about to appear at `path`, or to replace the one there; drop entries without a file."""
    entries = {name: entry for name, entry in read_manifest(path.parent).items() if (path.parent / name).exists()}
    before = [sha256_file(path)] if path.exists() else []
    entries[path.name] = {'sha256': sha256, 'replaces': before}
    with atomic_write(path.parent / MANIFEST_FILE) as handle:
        handle.write((json.dumps(dict(sorted(entries.items())), indent=1) + '\n').encode())


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Entries by file name; none where there is no manifest or it is damaged, for it guards and does not decide."""
    try:
        entries = json.loads((folder / MANIFEST_FILE).read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {name: entry for name, entry in entries.items() if isinstance(entry, dict)}


def verify(path: Path) -> None:
    """UserError if the manifest beside a file knows it with another sha256; a file that it does not know passes."""
    entry = read_manifest(path.parent).get(path.name)
    if entry is None:
        return
    try:
        found = sha256_file(path)
    except OSError as error:
        raise explain_os_error(error, path) from error
    replaces = entry.get('replaces')
    if found != entry.get('sha256') and found not in (replaces if isinstance(replaces, list) else []):
        raise UserError(f'{path}: damaged or exchanged, its sha256 is not the one in {MANIFEST_FILE}; use another one')


def position(path: Path) -> int:
    """The number in a file's name, by which snapshots and states are ordered; 0 without one."""
    digits = re.search(r'-(\d+)\.', path.name)
    return int(digits[1]) if digits else 0


def files_by_age(folder: Path, pattern: str) -> list[Path]:
    """Snapshots or states of a run, the latest first."""
    return sorted(folder.glob(pattern), key=position, reverse=True)


def rotate(folder: Path, *, keep: int | None, at: int) -> None:
    """Delete all but the last `keep` network snapshots and states (None: all snapshots, DEFAULT_STATES states).

    `at`: images seen at the state just written. States after it are broken ones that the run fell back from: they go.
    """
    states = files_by_age(folder, STATES_PATTERN)
    ahead = [path for path in states if position(path) > at]
    stale = ahead + states[len(ahead) :][keep or DEFAULT_STATES :]
    if keep is not None:
        snapshots = files_by_age(folder, NETWORKS_PATTERN)
        stale += [path for path in snapshots if position(path) <= at // 1000][keep:]
    for path in stale:
        with contextlib.suppress(OSError):  # a file that stays does no harm; the next rotation tries again
            path.unlink()
