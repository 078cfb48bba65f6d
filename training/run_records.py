"""Reading what a run has written, whatever its state: running, killed in the middle of a line, of another version."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError
from training.config import TrainConfig, from_dict
from training.health import KIMG, Change, Watch, checks_for, means

Points = list[tuple[float, float]]  # (kimg, value)
CONFIG_FIELDS = {field.name for field in dataclasses.fields(TrainConfig)}
GRID = re.compile(r'fakes(\d+)\.png')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecords:
    """A run folder's numbers and the names of its pictures."""

    path: Path
    options: dict[str, Any]  # the config in training_options.json; empty if there is none
    ticks: list[dict[str, float]]  # by images seen, each once
    metrics: dict[str, list[dict[str, Any]]]  # metric -> its records by images seen
    sessions: list[dict[str, Any]]  # who started or went on, in the order of time
    grids: list[tuple[int, Path]]  # (kimg, picture)
    reals: Path | None

    def series(self, name: str) -> Points:
        """One number over kimg; ticks that lack it are left out, NaN stays."""
        return [(tick[KIMG], tick[name]) for tick in self.ticks if name in tick and KIMG in tick]

    def names(self, prefix: str) -> list[str]:
        """Names of the ticks' numbers that begin with `prefix`, sorted."""
        return sorted({name for tick in self.ticks for name in tick if name.startswith(prefix)})

    @property
    def config(self) -> TrainConfig | None:
        """The run's config; None if this version does not understand it."""
        try:
            return from_dict(TrainConfig, self.options)
        except (ValueError, TypeError, AttributeError):
            return None

    def warnings(self) -> tuple[list[Change], list[Change]]:
        """What is raised at the end, and everything that was raised and cleared on the way."""
        watch = Watch(checks_for(self.config or TrainConfig()))
        changes = [change for tick in self.ticks for change in watch.update(tick)]
        return list(watch.active.values()), changes


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The records of a JSON lines file; lines that are no record (cut short by a kill) are left out."""
    records = []
    try:
        lines = file.read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def read_run(path: str | Path) -> RunRecords:
    """Everything that the report shows of a run. UserError if `path` is no run's folder."""
    folder = Path(path)
    options = folder / 'training_options.json'
    if not options.is_file() and not (folder / 'stats.jsonl').is_file():
        raise UserError(f'{folder}: not the folder of a run (it has neither {options.name} nor stats.jsonl)')
    metrics = {}
    for file in sorted(folder.glob('metric-*.jsonl')):
        records = [record for record in read_lines(file) if _number(record.get('value')) is not None]
        if records := _by_images_seen(records):
            metrics[file.stem.removeprefix('metric-')] = records
    grids = [(int(match[1]), file) for file in folder.iterdir() if (match := GRID.fullmatch(file.name))]
    reals = folder / 'reals.png'
    return RunRecords(
        path=folder,
        options={name: value for name, value in _read_object(options).items() if name in CONFIG_FIELDS},
        ticks=[means(record) for record in _by_images_seen(read_lines(folder / 'stats.jsonl'))],
        metrics=metrics,
        sessions=[
            item for item in read_lines(folder / 'sessions.jsonl') if _number(item.get('images_seen')) is not None
        ],
        grids=sorted(grids),
        reals=reals if reals.is_file() else None,
    )


def kimg_of(record: dict[str, Any]) -> float:
    """A record's place."""
    return float(record['images_seen']) / 1000


def _by_images_seen(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sorted, the last record of each place: what a resumed run wrote again replaces what it wrote before."""
    places = {
        place: record for record in records if (place := _number(record.get('images_seen'))) is not None and place >= 0
    }
    return [places[place] for place in sorted(places)]


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding='utf-8', errors='replace'))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
