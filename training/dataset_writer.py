"""Write a packed dataset (training/dataset_format.py): whole or not at all, and equal bytes for equal content."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from torch import Tensor

from dnnlib import UserError
from dnnlib.files import atomic_write, explain_os_error, make_output_folder
from training.cameras import LABEL_DIM
from training.dataset_format import HEAD_FILE, ZIP_DATE, encode_png, image_header, write_arrays
from training.dataset_labels import LABEL_FILE, label_text
from training.dataset_source import SHARD_FILE
from training.head.model import PARAM_FIELDS, HeadInput, HeadParams

IMAGES_PER_FOLDER = 1000


class DatasetWriter:
    """Collects images, camera labels and heads; the dataset appears at `path` when `close` succeeds.

        with DatasetWriter('data.zip', resolution=64, head_model=model.name, head_model_hash=model.content_hash) as out:
            out.add(image, label=label, head=params)

    A path that ends in .zip becomes a zip, any other a folder. An exception inside the block, a full
    disk or a killed process leave what was at `path` before (an old folder is moved away, then the new
    one moved in). One process writes; producers in other
    processes may hand over PNG bytes (`encode_png`) to share the work of compressing.

    Raises UserError if `path` is taken (unless `overwrite`, which replaces datasets only), not
    writable, or the disk is full. `first` is the number of the first image in the names.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        resolution: int,
        head_model: str = '',
        head_model_hash: str = '',
        overwrite: bool = False,
        first: int = 0,
    ) -> None:
        if resolution < 4 or resolution & (resolution - 1):
            raise UserError(f'resolution: expected a power of two of at least 4, got {resolution}')
        self.path = Path(path)
        self.resolution = resolution
        self._first = first
        self._head_model = (head_model, head_model_hash)
        self._names: list[str] = []
        self._labels: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []  # params: all fields of a row side by side; mesh: landmarks
        self._identities: list[int] = []
        self._clips: list[tuple[int, int]] = []  # clip, frame number
        self._layout: tuple | None = None
        self._meshes: IO[bytes] | None = None
        refuse_to_replace(self.path, overwrite=overwrite)
        make_output_folder(self.path.parent)
        self._stack = contextlib.ExitStack()
        self._sink = _ZipSink(self.path) if self.path.suffix.lower() == '.zip' else _FolderSink(self.path)
        self._stack.enter_context(self._sink.open())

    def __len__(self) -> int:
        return len(self._names)

    def add(
        self,
        image: np.ndarray | bytes,  # uint8 [R, R, 3], or the bytes of a PNG, JPEG or WebP
        *,
        label: np.ndarray | Tensor,  # [25]
        head: HeadParams | HeadInput | None = None,  # one row; the same kind for all images
        identity_id: int | None = None,  # for all images or none; needs a head
        clip: tuple[int, int] | None = None,  # clip and frame number, for all images or none; needs a head
    ) -> str:
        """Append one image and return its name. ValueError for a wrong size, label, clip or kind of head."""
        data = image if isinstance(image, bytes) else encode_png(image)
        suffix, size = image_header(data)
        if size != (self.resolution, self.resolution):
            got = size or 'bytes that are no PNG, JPEG or WebP'
            raise ValueError(f'image: expected {self.resolution} x {self.resolution} pixels, got {got}')
        values = np.asarray(label, dtype=np.float32).reshape(-1)
        if values.shape != (LABEL_DIM,) or not np.isfinite(values).all():
            raise ValueError(f'label: expected {LABEL_DIM} finite numbers, got {values.tolist()}')
        index = self._first + len(self._names)
        name = f'{index // IMAGES_PER_FOLDER:05d}/img{index:08d}{suffix}'
        self._add_head(head, identity_id, clip)
        try:
            self._sink.write(name, data)
        except OSError as error:
            raise explain_os_error(error, self.path) from error
        self._names.append(name)
        self._labels.append(values)
        return name

    def _add_head(
        self, head: HeadParams | HeadInput | None, identity_id: int | None, clip: tuple[int, int] | None
    ) -> None:
        if head is not None and len(head) != 1:
            raise ValueError(f'head: expected one row, got {len(head)}')
        if clip is not None and (head is None or len(clip) != 2):
            raise ValueError(f'clip: expected (clip, frame number) of an image with a head, got {clip}')
        if identity_id is not None and head is None:
            raise ValueError('identity_id: expected with a head, whose table holds it')
        layout: tuple = (type(head), identity_id is not None, clip is not None)
        if isinstance(head, HeadParams):
            layout += tuple(int(getattr(head, name).shape[1]) for name in PARAM_FIELDS)
            row = np.concatenate([_row(getattr(head, name)) for name in PARAM_FIELDS])
        elif isinstance(head, HeadInput):
            layout += (int(head.vertices.shape[1]),)
            row = _row(head.landmarks)
        else:
            row = np.zeros(0, dtype=np.float32)
        if layout != (self._layout or layout):
            raise ValueError('head: expected the same kind, widths, identity_id and clip as of the images before')
        if not np.isfinite(row).all():
            raise ValueError('head: holds numbers that are not finite')
        self._layout = layout
        if isinstance(head, HeadInput):
            self._add_vertices(head.vertices)
        self._rows.append(row)
        if identity_id is not None:
            self._identities.append(identity_id)
        if clip is not None:
            self._clips.append((int(clip[0]), int(clip[1])))

    def _add_vertices(self, vertices: Tensor) -> None:
        """float16: rounds by at most 0.06 mm within 25 cm of the origin, and halves the largest array."""
        try:
            if self._meshes is None:
                self._meshes = self._stack.enter_context(tempfile.TemporaryFile(dir=self.path.parent))  # noqa: SIM115
            self._meshes.write(_row(vertices).astype(np.float16).tobytes())
        except OSError as error:
            raise explain_os_error(error, self.path) from error

    def _head_arrays(self, label_file: bytes) -> dict[str, np.ndarray]:
        layout = self._layout or (type(None), False, False)
        arrays: dict[str, np.ndarray] = {
            'names': np.array([name.encode() for name in self._names]),
            'head_model': np.array(self._head_model[0]),
            'head_model_hash': np.array(self._head_model[1]),
            'labels': np.stack(self._labels),
            'label_checksum': np.array([len(label_file), zlib.crc32(label_file)], dtype=np.int64),
        }
        rows = np.stack(self._rows)
        if layout[0] is HeadParams:
            ends = np.cumsum(layout[3:])
            arrays |= dict(zip(PARAM_FIELDS, np.split(rows, ends[:-1], axis=1), strict=True))
        elif self._meshes is not None:
            self._meshes.flush()
            shape = (len(rows), layout[3], 3)
            arrays['vertices'] = np.memmap(self._meshes, dtype=np.float16, mode='r', shape=shape)  # type: ignore[call-overload]
            arrays['landmarks'] = rows.reshape(len(rows), -1, 3).astype(np.float16)  # as the vertices
        if layout[1]:
            arrays['identity_ids'] = np.array(self._identities, dtype=np.int64)
        if layout[2]:
            arrays['clip_ids'], arrays['frame_numbers'] = np.array(self._clips, dtype=np.int64).T.copy()
        return arrays

    def close(self) -> None:
        """Write labels and heads, then put the dataset in place. UserError if nothing was added."""
        if not self._names:
            self.discard()
            raise UserError(f'{self.path}: no images, so no dataset was written')
        try:
            entries = [label_text(name, label) for name, label in zip(self._names, self._labels, strict=True)]
            labels = ('{"labels": [\n' + ',\n'.join(entries) + '\n]}\n').encode()
            self._sink.write(LABEL_FILE, labels)
            if self._layout is not None and self._layout[0] is not type(None):
                with self._sink.stream(HEAD_FILE) as handle:
                    write_arrays(handle, self._head_arrays(labels))
        except OSError as error:
            failure = explain_os_error(error, self.path)
            self._stack.__exit__(UserError, failure, None)
            raise failure from error
        self._stack.close()

    def discard(self) -> None:
        """Remove everything written so far; `path` stays as it was."""
        with contextlib.suppress(UserError):  # a full disk fails once more while files are closed
            self._stack.__exit__(_DiscardedError, _DiscardedError(), None)

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


class _DiscardedError(Exception):
    """Tells the open contexts of a writer to clean up."""


def _row(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy().astype(np.float32, copy=False).reshape(-1)


def refuse_to_replace(path: Path, *, overwrite: bool) -> None:
    """UserError if `path` is taken, unless `overwrite` and it is a dataset."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise UserError(f'{path}: already exists; choose another name or pass --overwrite')
    if path.is_dir() != (path.suffix.lower() != '.zip') or (
        path.is_dir() and not (path / LABEL_FILE).is_file() and not (path / SHARD_FILE).is_file()
    ):
        raise UserError(f'{path}: is not a dataset of the same kind, so it is not replaced; choose another name')


def replace_folder(temporary: Path, path: Path) -> None:
    """Move a finished folder to `path`; what was there before comes back if that fails."""
    retired = path.with_name(f'.{path.name}.{os.getpid()}.old')
    try:
        if path.exists():
            path.rename(retired)
        try:
            temporary.rename(path)
        except OSError:
            retired.rename(path)
            raise
    finally:
        if path.exists():
            shutil.rmtree(retired, ignore_errors=True)


class _ZipSink:
    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        with atomic_write(self._path) as handle:
            self._archive = zipfile.ZipFile(handle, 'w', zipfile.ZIP_STORED)
            try:
                yield
            except BaseException:
                with contextlib.suppress(OSError, ValueError):
                    self._archive.close()
                raise
            self._archive.close()

    def write(self, name: str, data: bytes) -> None:
        self._archive.writestr(self._info(name), data)

    @contextlib.contextmanager
    def stream(self, name: str) -> Iterator[IO[bytes]]:
        with self._archive.open(self._info(name), 'w', force_zip64=True) as handle:
            yield handle

    @staticmethod
    def _info(name: str) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name, ZIP_DATE)
        info.create_system, info.external_attr = 3, 0o100644 << 16
        return info


class _FolderSink:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        try:
            self._temporary.mkdir()
            yield
            replace_folder(self._temporary, self._path)
        except OSError as error:
            raise explain_os_error(error, self._path) from error
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def write(self, name: str, data: bytes) -> None:
        target = self._temporary / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)

    @contextlib.contextmanager
    def stream(self, name: str) -> Iterator[IO[bytes]]:
        with open(self._temporary / name, 'wb') as handle:
            yield handle
