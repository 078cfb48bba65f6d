"""The packed dataset format: file names, EG3D's label file, the head table, image coding.

A dataset is a zip or a folder with
    00000/img00000000.png ...   8-bit RGB images, all square and of one size
    dataset.json                {"labels": [["00000/img00000000.png", [25 numbers]], ...]} (EG3D's layout)
    head.npz                    optional arrays in the order of the images by name:
        names [M]                              utf-8 bytes
        head_model, head_model_hash            of the model that reads the parameters
        identity .. translation [M, width]     HeadParams, or instead of them
        vertices [M, V, 3], landmarks [M, 68, 3]   a mesh in the head's frame (metres)
        identity_ids [M]                       optional: which images show one person
        clip_ids [M], frame_numbers [M]        optional, both or none: which images are frames of one clip
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import struct
import warnings
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from typing import IO, Any, cast

import numpy as np
from PIL import Image

from dnnlib import UserError
from training.cameras import LABEL_DIM
from training.dataset_source import Source, open_arrays
from training.head.model import FIXED_WIDTHS, NUM_LANDMARKS, PARAM_FIELDS

LABEL_FILE = 'dataset.json'
HEAD_FILE = 'head.npz'
MESH_FIELDS = ('vertices', 'landmarks')
NUMBER_FIELDS = ('identity_ids', 'clip_ids', 'frame_numbers')  # optional
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # fixed, so that equal content is an equal file
_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'


# Images.


def encode_png(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] -> PNG bytes; the same bytes for the same pixels."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'image: expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}')
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format='PNG')
    return buffer.getvalue()


def png_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of PNG bytes, None if they are something else."""
    if data[:8] != _PNG_SIGNATURE or len(data) < 33:
        return None
    return struct.unpack('>II', data[16:24])


def decode_image(data: bytes, *, name: str, verify: bool = False) -> np.ndarray:
    """Image bytes -> uint8 [H, W, 3].

    Grey and palette images become RGB (that is exact); alpha, 16 bits and CMYK are errors, because
    how to flatten them is the user's choice. `verify` checks the PNG's checksums as well.
    Raises UserError naming the image.
    """
    if data[:8] == _PNG_SIGNATURE and len(data) > 24 and data[24] == 16:
        raise UserError(f'{name}: 16-bit image; convert it to 8-bit RGB')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            if verify:
                Image.open(io.BytesIO(data)).verify()
            image = Image.open(io.BytesIO(data))
            image.load()
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise UserError(f'{name}: not a readable image ({error}); replace it or remove it and its label') from error
    transparent = image.mode in ('LA', 'PA', 'RGBA', 'RGBa', 'La') or 'transparency' in image.info
    if transparent or image.mode not in ('RGB', 'L', 'P', '1'):
        what = 'an alpha channel' if transparent else f'colour mode {image.mode}'
        raise UserError(f'{name}: has {what}; flatten it to 8-bit RGB')
    return np.asarray(image if image.mode == 'RGB' else image.convert('RGB'))


def image_mode(data: bytes) -> str:
    """Pillow's name of the stored colour mode ('RGB', 'L', 'P', ...) of a readable image."""
    with Image.open(io.BytesIO(data)) as image:
        return image.mode


# Labels.


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """The label file as read: valid rows, and what is wrong with the others."""

    names: list[str]
    values: np.ndarray  # [K, 25] float32
    problems: list[tuple[str, str]]  # image name, what is wrong


def read_labels(source: Source) -> LabelTable:
    """Parse dataset.json once, without holding it as Python objects. UserError if it is missing or no JSON."""
    if LABEL_FILE not in source:
        inner = next((name for name in source.names if name.endswith('/' + LABEL_FILE)), None)
        hint = f'it lies at {inner}: pack the content of that folder, not the folder' if inner else _NO_LABELS_HINT
        raise UserError(f'{source.path}: has no {LABEL_FILE}; {hint}')
    names: list[str] = []
    values = array('f')
    problems: list[tuple[str, str]] = []
    try:
        for entry in _label_entries(source.read(LABEL_FILE).decode('utf-8-sig')):
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


_NO_LABELS_HINT = 'make a dataset from photographs with `dataset_tool.py from-photos`'


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


def _label_entries(text: str) -> Iterator[Any]:
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


# Heads.


@dataclasses.dataclass(frozen=True)
class HeadTable:
    """head.npz, opened but not read: rows are in the order of `names`."""

    names: list[str]
    head_model: str
    head_model_hash: str
    arrays: dict[str, np.ndarray]  # PARAM_FIELDS or MESH_FIELDS
    identity_ids: np.ndarray | None
    clip_ids: np.ndarray | None = None
    frame_numbers: np.ndarray | None = None

    @property
    def kind(self) -> str:
        return 'params' if PARAM_FIELDS[0] in self.arrays else 'mesh'


def read_heads(source: Source) -> HeadTable | None:
    """The dataset's head table, None if there is no head.npz; UserError if its arrays do not fit together."""
    if HEAD_FILE not in source:
        return None
    arrays = open_arrays(source, HEAD_FILE)
    fields = PARAM_FIELDS if PARAM_FIELDS[0] in arrays else MESH_FIELDS
    missing = [name for name in ('names', 'head_model', 'head_model_hash', *fields) if name not in arrays]
    if missing:
        raise UserError(f'{source.path}: {HEAD_FILE} lacks {", ".join(missing)}; make the dataset again')
    count = len(arrays['names'])
    numbers = [name for name in NUMBER_FIELDS if name in arrays]
    if ('clip_ids' in numbers) != ('frame_numbers' in numbers):
        raise UserError(f'{source.path}: {HEAD_FILE} holds one of clip_ids and frame_numbers; make the dataset again')
    for name in (*fields, *numbers):
        want = _expected_shape(name, count)
        shape = arrays[name].shape
        if len(shape) != len(want) or any(w is not None and w != s for w, s in zip(want, shape, strict=True)):
            text = ', '.join('any' if w is None else str(w) for w in want)
            raise UserError(f'{source.path}: {HEAD_FILE}: {name} has shape {list(shape)} instead of [{text}]')
    return HeadTable(
        names=[name.decode() if isinstance(name, bytes) else name for name in arrays['names'].tolist()],
        head_model=str(arrays['head_model']),
        head_model_hash=str(arrays['head_model_hash']),
        arrays={name: arrays[name] for name in fields},
        **{name: np.array(arrays[name], dtype=np.int64) if name in numbers else None for name in NUMBER_FIELDS},
    )


def _expected_shape(name: str, count: int) -> list[int | None]:
    special: dict[str, list[int | None]] = {
        'vertices': [count, None, 3],
        'landmarks': [count, NUM_LANDMARKS, 3],
        **{number: [count] for number in NUMBER_FIELDS},
    }
    return special.get(name, [count, FIXED_WIDTHS.get(name)])


class _Unseekable:
    """Hides a handle's seek, so that a zip written to a file equals one written inside another zip."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.write = handle.write
        self.flush = handle.flush


def write_arrays(handle: IO[bytes], arrays: dict[str, np.ndarray]) -> None:
    """An uncompressed .npz whose bytes depend on the arrays only; streams, so memory maps may be large."""
    with zipfile.ZipFile(cast(IO[bytes], _Unseekable(handle)), 'w', zipfile.ZIP_STORED) as archive:
        for name, values in arrays.items():
            with archive.open(zipfile.ZipInfo(f'{name}.npy', ZIP_DATE), 'w', force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)
