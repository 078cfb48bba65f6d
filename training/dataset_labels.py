"""Camera labels of a packed dataset: EG3D's label file, and its numbers as head.npz repeats them."""

from __future__ import annotations

import dataclasses
import json
import re
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np

from dnnlib import UserError
from training.cameras import LABEL_DIM
from training.dataset_format import HEAD_FILE
from training.dataset_source import Source, open_arrays

LABEL_FILE = 'dataset.json'
STORED_LABELS = ('labels', 'label_checksum')  # in head.npz
_NO_LABELS_HINT = 'make a dataset from photographs with `dataset_tool.py from-photos`'


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """The label file as read: valid rows, and what is wrong with the others."""

    names: list[str]
    values: np.ndarray  # [K, 25] float32
    problems: list[tuple[str, str]]  # image name, what is wrong


def read_labels(source: Source) -> LabelTable:
    """Parse dataset.json once, without holding it as Python objects. UserError if it is missing or no JSON."""
    if source.parts:
        tables = [read_labels(part) for part in source.parts]
        return LabelTable(
            [name for table in tables for name in table.names],
            np.concatenate([table.values for table in tables]),
            [problem for table in tables for problem in table.problems],
        )
    if LABEL_FILE not in source:
        inner = next((name for name in source.names if name.endswith('/' + LABEL_FILE)), None)
        hint = f'it lies at {inner}: pack the content of that folder, not the folder' if inner else _NO_LABELS_HINT
        raise UserError(f'{source.path}: has no {LABEL_FILE}; {hint}')
    names: list[str] = []
    values = array('f')
    problems: list[tuple[str, str]] = []
    try:
        for entry in label_entries(source.read(LABEL_FILE).decode('utf-8-sig')):
            name, problem = _append_entry(entry, values)
            if problem:
                problems.append((name, problem))
                del values[len(names) * LABEL_DIM :]
            else:
                names.append(name)
    except (json.JSONDecodeError, UnicodeDecodeError, IndexError, RecursionError) as error:
        raise UserError(
            f'{source.path}: {LABEL_FILE} is cut short or not JSON after {len(names)} labels ({error}); make it again'
        ) from error
    table = np.frombuffer(values, dtype=np.float32).reshape(-1, LABEL_DIM)
    finite = np.isfinite(table).all(axis=1)
    if not finite.all():
        problems += [(names[row], 'label holds a number that is not finite') for row in np.flatnonzero(~finite)]
        names, table = [names[row] for row in np.flatnonzero(finite)], table[finite]
    return LabelTable(names, table, problems)


def stored_labels(source: Source) -> np.ndarray | None:
    """The labels [M, 25] float32 that head.npz repeats in the order of its names, so that opening parses no text.

    None where there are none, or where dataset.json has changed since they were written.
    """
    if source.parts:
        tables = [stored_labels(part) for part in source.parts]
        return None if any(table is None for table in tables) else np.concatenate(tables)  # type: ignore[arg-type]
    if HEAD_FILE not in source or LABEL_FILE not in source:
        return None
    arrays = open_arrays(source, HEAD_FILE)
    if not set(STORED_LABELS) <= set(arrays) or not np.array_equal(
        arrays['label_checksum'], source.checksum(LABEL_FILE)
    ):
        return None
    labels = np.array(arrays['labels'])
    good = labels.dtype == np.float32 and labels.shape == (len(arrays['names']), LABEL_DIM)
    return labels if good and np.isfinite(labels).all() else None


def _append_entry(entry: Any, values: array) -> tuple[str, str]:
    """Append a label's numbers to `values`; the image's name, and what is wrong or ''."""
    if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
        return str(entry)[:40], f'label entry is not of the form [name, [{LABEL_DIM} numbers]]'
    name = entry[0].replace('\\', '/')
    label = entry[1]
    if not isinstance(label, list):
        return name, f'label is {label if label is None else type(label).__name__}, not a list of {LABEL_DIM} numbers'
    if len(label) != LABEL_DIM:
        return name, f'label has {len(label)} numbers instead of {LABEL_DIM} (cam2world 16, intrinsics 9)'
    try:
        values.extend(label)
    except (TypeError, OverflowError):
        return name, 'label holds something that is not a number'
    return name, ''


def label_entries(text: str) -> Iterator[Any]:
    """Entries of {"labels": [...]}, decoded one at a time where the key comes first, as EG3D writes it."""
    start = re.match(r'\s*\{\s*"labels"\s*:\s*\[\s*', text)
    if start is None:
        content = json.loads(text)
        labels = content.get('labels') if isinstance(content, dict) else None
        if not isinstance(labels, list):
            raise json.JSONDecodeError('no list "labels"', text[:80], 0)
        yield from labels
        return
    decoder = json.JSONDecoder()
    separator = re.compile(r'\s*,\s*')
    position = start.end()
    while text[position] != ']':
        entry, position = decoder.raw_decode(text, position)
        yield entry
        comma = separator.match(text, position)
        if comma is None:
            position = re.compile(r'\s*').match(text, position).end()  # type: ignore[union-attr]
            break
        position = comma.end()
    json.loads('{"labels":[' + text[position:])  # the rest must close the document


def label_text(name: str, label: np.ndarray) -> str:
    """One entry of dataset.json with the shortest digits that give the same float32."""
    return json.dumps([name, [float(str(value)) for value in np.asarray(label, dtype=np.float32)]])
