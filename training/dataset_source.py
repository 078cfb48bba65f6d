"""Where the bytes of a packed dataset lie: one zip or one folder, read at random by many processes.

A source lists its files once and afterwards reads each by one positioned read, without a shared
file pointer, so that threads, forked and spawned workers may use it at the same time.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import weakref
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dnnlib import UserError
from dnnlib.files import explain_os_error
from training.zip_directory import Member, read_directory

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp')
SHARD_FILE = 'shards.json'  # training/dataset_shards.py
_LOCAL_HEADER = 30  # bytes before the name in a zip member
_END_RECORD = 22  # bytes of the zip's end without its comment
_SLACK = 128  # room for the extra field in the one read of a member


class Extent(NamedTuple):
    """A file's bytes on the disk, uncompressed: for memory maps."""

    path: Path
    offset: int
    size: int


class Source(ABC):
    """The files of a dataset by name ('00000/img00000000.png'); names use '/', hidden files are left out."""

    path: Path
    names: list[str]  # sorted
    duplicates: list[str]  # names that occur more than once
    parts: Sequence[Source] = ()  # of a dataset of shards: each has its own labels and heads

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of one file; UserError names a file that is missing or damaged."""

    @abstractmethod
    def extent(self, name: str) -> Extent | None:
        """Where the file's bytes lie, or None where they are compressed."""

    @abstractmethod
    def checksum(self, name: str) -> tuple[int, int]:
        """Size and crc32 of one file."""

    @abstractmethod
    def __contains__(self, name: object) -> bool: ...

    def image_names(self) -> list[str]:
        """Names of all images, sorted."""
        return [name for name in self.names if name.lower().endswith(IMAGE_SUFFIXES)]

    def content_hash(self) -> str:
        """sha256 over names, sizes and crc32 of all files: equal for a zip and its unpacked folder."""
        digest = hashlib.sha256()
        for name in self.names:
            size, crc = self.checksum(name)
            digest.update(f'{name}\0{size}\0{crc:08x}\n'.encode())
        return digest.hexdigest()


def open_source(path: str | os.PathLike[str]) -> Source:
    """The source at `path`; UserError if nothing is there or it is not a readable zip or folder."""
    target = Path(path)
    try:
        if (target / SHARD_FILE).is_file():
            from training.dataset_shards import ShardedSource

            return ShardedSource(target)
        if target.is_dir():
            if any(target.glob('shard-*.zip')):
                raise UserError(f'{target}: has shards but no {SHARD_FILE}, which lists them; copy it as well')
            return FolderSource(target)
        if target.exists():
            return ZipSource(target)
    except OSError as error:
        raise explain_os_error(error, target) from error
    raise UserError(f'{target}: no such dataset; expected a .zip or a folder, e.g. one made by `dataset_tool.py synth`')


def _visible(name: str) -> bool:
    if not name.startswith('.') and '/.' not in name and '__MACOSX' not in name:
        return True
    return not any(part.startswith('.') or part == '__MACOSX' for part in name.split('/'))


class FolderSource(Source):
    """A folder and all folders below it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        names = []
        for folder, _, files in os.walk(path):
            inner = Path(folder).relative_to(path).as_posix()
            prefix = '' if inner == '.' else f'{inner}/'
            names += [prefix + file for file in files]
        self.names = sorted(filter(_visible, names))
        self.duplicates = []
        self._known = frozenset(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise explain_os_error(error, self.path / name) from error

    def extent(self, name: str) -> Extent | None:
        file = self.path / name
        return Extent(file, 0, file.stat().st_size)

    def checksum(self, name: str) -> tuple[int, int]:
        data = self.read(name)
        return len(data), zlib.crc32(data)


class ZipSource(Source):
    """A zip, best stored without compression. The directory is parsed once; members are never opened by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        members = [member for member in _read_members(path) if _visible(member.name)]
        members.sort(key=lambda member: member.name)
        self.names = [member.name for member in members]
        self.duplicates = sorted(name for name, count in Counter(self.names).items() if count > 1)
        self._index = np.array([member[1:] for member in members], dtype=np.int64).reshape(-1, 6)
        self._rows = {name: row for row, name in enumerate(self.names)}
        self._open()

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != '_descriptor'}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def _row(self, name: str) -> list[int]:
        if name not in self._rows:
            raise UserError(f'{self.path}: holds no file {name}')
        return self._index[self._rows[name]].tolist()

    def read(self, name: str) -> bytes:
        offset, packed, size, crc, method, flags = self._row(name)
        if flags & 1 or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f'{self.path}: {name} is encrypted or packed by an unknown method; store it uncompressed')
        start, block = self._data_start(name, offset, packed)
        if start + packed > len(block):
            start, block = 0, os.pread(self._descriptor, packed, offset + start)
        data = block[start : start + packed]
        try:
            data = zlib.decompress(data, -15) if method == zipfile.ZIP_DEFLATED else data
        except zlib.error:
            data = b''
        if len(data) != size or zlib.crc32(data) != crc:
            raise UserError(f'{self.path}: {name} is damaged (wrong checksum); copy or make the dataset again')
        return data

    def _data_start(self, name: str, offset: int, packed: int) -> tuple[int, bytes]:
        """Distance of the data from the member's header, and the bytes from that header on."""
        block = os.pread(self._descriptor, _LOCAL_HEADER + len(name.encode()) + _SLACK + packed, offset)
        if len(block) < _LOCAL_HEADER or block[:4] != b'PK\x03\x04':
            raise UserError(f'{self.path}: {name} is not where the zip says; copy or make the dataset again')
        name_length, extra_length = struct.unpack_from('<HH', block, 26)
        return _LOCAL_HEADER + name_length + extra_length, block

    def extent(self, name: str) -> Extent | None:
        offset, _, size, _, method, flags = self._row(name)
        if flags & 1 or method != zipfile.ZIP_STORED:
            return None
        return Extent(self.path, offset + self._data_start(name, offset, 0)[0], size)

    def checksum(self, name: str) -> tuple[int, int]:
        _, _, size, crc, _, _ = self._row(name)
        return size, crc


def _read_members(path: Path) -> list[Member]:
    """The files of a zip; UserError if it is none or cut short."""
    members = read_directory(path)
    if members is not None:
        return members
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            end = path.stat().st_size - _END_RECORD - len(archive.comment)
        with open(path, 'rb') as handle:
            handle.seek(end)
            if handle.read(4) != b'PK\5\6':  # the last directory found is that of head.npz inside
                raise zipfile.BadZipFile('its end is missing')
    except (zipfile.BadZipFile, struct.error, UnicodeDecodeError) as error:
        raise UserError(
            f'{path}: not a zip, or cut short ({error}); copy or download it again, or point to a folder'
        ) from error
    return [
        Member(i.filename, i.header_offset, i.compress_size, i.file_size, i.CRC, i.compress_type, i.flag_bits)
        for i in infos
    ]


class _ExtentReader(io.RawIOBase):
    """An extent as a file of its own (a zip within a zip)."""

    def __init__(self, extent: Extent) -> None:
        self._extent = extent
        self._position = 0
        self._file = open(extent.path, 'rb', buffering=0)  # noqa: SIM115 - closed by close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._extent.size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer) -> int:
        want = min(len(buffer), max(self._extent.size - self._position, 0))
        data = os.pread(self._file.fileno(), want, self._extent.offset + self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def open_arrays(source: Source, name: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file of the source; uncompressed ones are memory maps, nothing is read ahead.

    Raises UserError if it is no .npz or holds Python objects (which are never loaded).
    """
    try:
        extent = source.extent(name)
        raw = io.BytesIO(source.read(name)) if extent is None else io.BufferedReader(_ExtentReader(extent))
        with raw, zipfile.ZipFile(raw) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith('.npy')]
            return {info.filename[:-4]: _open_array(archive, info, raw, extent) for info in members}
    except (zipfile.BadZipFile, ValueError, EOFError, struct.error, zlib.error, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'{source.path}: {name} is not a readable .npz ({error}); make the dataset again') from error


def _open_array(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, raw: io.BufferedIOBase, extent: Extent | None
) -> np.ndarray:
    with archive.open(info) as member:
        if extent is None or info.compress_type != zipfile.ZIP_STORED or info.file_size < 4096:
            return np.lib.format.read_array(member, allow_pickle=False)
        version = np.lib.format.read_magic(member)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = header[version](member)
        position = member.tell()
    if dtype.hasobject:
        raise ValueError(f'{info.filename} holds Python objects')
    if position + int(np.prod(shape)) * dtype.itemsize > info.file_size:
        raise ValueError(f'{info.filename} is cut short')
    raw.seek(info.header_offset + 26)
    name_length, extra_length = struct.unpack('<HH', raw.read(4))
    start = extent.offset + info.header_offset + _LOCAL_HEADER + name_length + extra_length + position
    return np.memmap(extent.path, dtype=dtype, mode='r', offset=start, shape=shape, order='F' if fortran else 'C')
