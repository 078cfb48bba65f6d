"""The packed dataset format: file names, EG3D's label file, the head table, image coding.

A dataset is a zip or a folder with
    00000/img00000000.png ...   8-bit RGB images, all square and of one size
    dataset.json                {"labels": [["00000/img00000000.png", [25 numbers]], ...]} (EG3D's layout)
    head.npz                    optional arrays in the order of the images by name:
        names [M]                              utf-8 bytes
        head_model, head_model_hash            of the model that reads the parameters
        identity .. translation [M, width]     HeadParams, or instead of them
        vertices [M, V, 3], landmarks [M, 68, 3]   a mesh in the head's frame (metres), float16
        identity_ids [M]                       optional: which images show one person
        clip_ids [M], frame_numbers [M]        optional, both or none: which images are frames of one clip
        labels [M, 25], label_checksum [2]     optional: dataset.json's numbers again, and its size and crc32
"""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import warnings
import zipfile
import zlib
from typing import IO, Any, cast

import numpy as np
from PIL import Image

from dnnlib import UserError
from training.dataset_source import Source, open_arrays
from training.head.model import FIXED_WIDTHS, NUM_LANDMARKS, PARAM_FIELDS, HeadModel

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


def image_header(data: bytes) -> tuple[str, tuple[int, int] | None]:
    """Suffix of the file name, width and height of PNG, JPEG or WebP bytes; ('', None) for something else."""
    if data[:8] == _PNG_SIGNATURE and len(data) >= 33:
        return '.png', struct.unpack('>II', data[16:24])
    try:
        with Image.open(io.BytesIO(data), formats=('JPEG', 'WEBP')) as image:
            return {'JPEG': '.jpg', 'WEBP': '.webp'}[str(image.format)], image.size
    except OSError:
        return '', None


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

    def layout(self) -> tuple:
        """What tables must share to be rows of one."""
        given = tuple(getattr(self, name) is not None for name in NUMBER_FIELDS)
        shapes = tuple((name, values.shape[1:]) for name, values in self.arrays.items())
        return self.head_model, self.head_model_hash, given, shapes


def read_heads(source: Source) -> HeadTable | None:
    """The dataset's head table, None if there is no head.npz; UserError if its arrays do not fit together."""
    if source.parts:
        return _stack_heads(source)
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


class StackedRows:
    """Arrays [M_i, ...] of several shards as one [M, ...], indexed by rows; nothing is read before."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self._arrays = arrays
        self._starts = np.cumsum([0, *(len(array) for array in arrays)])
        self.shape = (int(self._starts[-1]), *arrays[0].shape[1:])
        self.dtype = arrays[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Rows by list, index array or slice."""
        chosen = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)
        out = np.empty((len(chosen), *self.shape[1:]), dtype=self.dtype)
        part = np.searchsorted(self._starts, chosen, side='right') - 1
        for number in np.unique(part):
            here = part == number
            out[here] = self._arrays[number][chosen[here] - self._starts[number]]
        return out


def match_head_model(heads: HeadTable, model: HeadModel | None, *, path: str | os.PathLike[str]) -> HeadModel:
    """`model`, or the one that the head table names; UserError if its data or widths are not the table's."""
    if model is None:
        from training.head import load_head_model

        model = load_head_model(heads.head_model)
    if heads.head_model_hash and model.content_hash != heads.head_model_hash:
        raise UserError(
            f'{path}: made for head model {heads.head_model} ({heads.head_model_hash[:8]}), but the one here is'
            f' {model.name} ({model.content_hash[:8]}); use that model or make the dataset again'
        )
    widths = {'identity': model.num_identity, 'expression': model.num_expression}
    for name, width in ({'vertices': model.template.num_vertices} if heads.kind == 'mesh' else widths).items():
        if heads.arrays[name].shape[1] != width:
            got = heads.arrays[name].shape[1]
            raise UserError(
                f'{path}: {name} holds {got} per image, head model {model.name} has {width}; use its own model'
            )
    return model


def _stack_heads(source: Source) -> HeadTable | None:
    tables = [read_heads(part) for part in source.parts]
    heads = [table for table in tables if table is not None]
    if not heads:
        return None
    layouts = [None if table is None else table.layout() for table in tables]
    for part, layout in zip(source.parts, layouts, strict=True):
        if layout != layouts[0]:
            raise UserError(f'{part.path}: its heads are of another kind than those of the first shard; copy it again')

    def numbers(name: str) -> np.ndarray | None:
        columns = [getattr(table, name) for table in heads]
        return None if columns[0] is None else np.concatenate(columns)

    return HeadTable(
        names=[name for table in heads for name in table.names],
        head_model=heads[0].head_model,
        head_model_hash=heads[0].head_model_hash,
        arrays={name: StackedRows([table.arrays[name] for table in heads]) for name in heads[0].arrays},  # type: ignore[misc]
        **{name: numbers(name) for name in NUMBER_FIELDS},
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
