"""Where importers find things: label files of any length, and files that belong to an image by their name."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from applications.datasets.importing import Job
from dnnlib import UserError
from training.cameras import LABEL_DIM
from training.dataset_labels import label_entries
from training.dataset_source import Source


@dataclasses.dataclass(frozen=True)
class FileIndex:
    """The files under a folder by the name of the image that they belong to.

    00000/a.png belongs to 00000/a.obj, to 00000/a/a.obj (DECA's way), or to a.obj anywhere if there is only one.
    """

    root: Path
    what: str  # 'mesh', 'landmarks', ...: for messages
    exact: dict[str, list[str]]
    by_base: dict[str, list[str]]

    @staticmethod
    def scan(root: str | os.PathLike[str], suffixes: Sequence[str], *, what: str) -> FileIndex:
        """UserError if there is no such folder or nothing with one of the suffixes in it."""
        folder = Path(root)
        if not folder.is_dir():
            raise UserError(f'{folder}: no such folder; give the one that holds the {what} files')
        exact: dict[str, list[str]] = {}
        by_base: dict[str, list[str]] = {}
        for where, folders, files in os.walk(folder):
            folders.sort()
            inner = PurePosixPath(Path(where).relative_to(folder).as_posix())
            for file in sorted(files, key=lambda name: _rank(name, suffixes)):
                if _rank(file, suffixes) == len(suffixes):
                    continue
                stem = PurePosixPath(file).stem
                key = inner if inner.name == stem else inner / stem
                exact.setdefault(str(key), []).append((inner / file).as_posix())
                by_base.setdefault(stem, []).append(str(key))
        if not exact:
            raise UserError(f'{folder}: holds no {what} files ({", ".join(suffixes)})')
        return FileIndex(folder, what, exact, by_base)

    def find(self, name: str) -> Path:
        """The file of an image; UserError with the reason if there is none, or several in different folders."""
        stem = str(PurePosixPath(name).with_suffix(''))
        if stem not in self.exact:
            keys = sorted(set(self.by_base.get(PurePosixPath(stem).name, [])))
            if len(keys) > 1:
                raise UserError(f'{name}: several {self.what} files of this name ({", ".join(keys[:3])})')
            if not keys:
                raise UserError(f'{name}: no {self.what} file')
            stem = keys[0]
        return self.root / self.exact[stem][0]


def _rank(name: str, suffixes: Sequence[str]) -> int:
    """Position of the name's suffix in the list, its length if it is not there (or the file is hidden)."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffixes.index(suffix) if suffix in suffixes and not name.startswith('.') else len(suffixes)


def labelled_jobs(source: Source, label_file: str | os.PathLike[str] | None) -> tuple[list[Job], list[tuple[str, str]]]:
    """A Job for each image with a usable label, and (name, reason) for the others.

    label_file: EG3D's JSON, None: dataset.json of the source. Labels keep their first 25 numbers.
    """
    names = source.image_names()
    if not names:
        raise UserError(f'{source.path}: holds no images (.png, .jpg, .webp)')
    labels, problems = _read_labels(source, label_file)
    jobs = [Job(name=name, label=labels[name]) for name in names if name in labels]
    present = set(names)
    rejected = [(name, problem) for name, problem in problems.items()]
    rejected += [(name, 'no label') for name in names if name not in labels and name not in problems]
    rejected += [(name, 'label without image') for name in labels if name not in present]
    rejected += [(name, 'stands in the zip more than once') for name in source.duplicates]
    return jobs, rejected


def _read_labels(
    source: Source, label_file: str | os.PathLike[str] | None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    where = source.path / 'dataset.json' if label_file is None else Path(label_file)
    try:
        data = source.read('dataset.json') if label_file is None else where.read_bytes()
    except (UserError, OSError):
        raise UserError(f'{where}: no such label file; give EG3D labels by --labels=FILE.json') from None
    labels: dict[str, np.ndarray] = {}
    problems: dict[str, str] = {}
    prefix = source.path.name + '/'
    try:
        for entry in label_entries(data.decode('utf-8-sig')):
            name, label, problem = _parse_entry(entry)
            if name not in source and name.startswith(prefix):
                name = name[len(prefix) :]
            if problem:
                problems[name] = problem
            elif name in labels and not np.array_equal(labels[name], label):
                problems[name] = 'two different labels'
            labels[name] = label
    except (json.JSONDecodeError, UnicodeDecodeError, IndexError, RecursionError) as error:
        raise UserError(
            f'{where}: cut short or not JSON after {len(labels)} labels ({error}); make it again'
        ) from error
    return {name: label for name, label in labels.items() if name not in problems}, problems


def _parse_entry(entry: object) -> tuple[str, np.ndarray, str]:
    """Name, label [25] float32, and what is wrong or ''."""
    empty = np.zeros(LABEL_DIM, dtype=np.float32)
    if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
        return str(entry)[:40], empty, 'label entry is not [name, numbers]'
    name = entry[0].replace('\\', '/')
    if not isinstance(entry[1], list) or len(entry[1]) < LABEL_DIM:
        count = len(entry[1]) if isinstance(entry[1], list) else 0
        return name, empty, f'label of {count} numbers instead of {LABEL_DIM}'
    try:
        label = np.array(entry[1][:LABEL_DIM], dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        return name, empty, 'label holds something that is not a number'
    if not np.isfinite(label).all():
        return name, empty, 'label is not finite (NaN or infinity)'
    return name, label, ''
