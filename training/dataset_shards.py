"""Datasets of several zips: a folder with shard-00000.zip, ... and shards.json, which lists them.

Each shard is a dataset of its own whose image numbers go on where the shard before ends, so the names
of all shards are different and sorted. shards.json says how many images each shard must have: a missing,
damaged or exchanged shard is an error that names it, never a smaller dataset.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

from dnnlib import UserError
from dnnlib.files import explain_os_error, make_output_folder
from training.dataset_source import SHARD_FILE, Extent, Source, ZipSource
from training.dataset_writer import DatasetWriter, refuse_to_replace, replace_folder


class ShardedSource(Source):
    """The images of all shards as one source; labels and heads are read shard by shard (`parts`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: list[ZipSource] = []
        for name, images in _read_list(path):
            shard = path / name
            if not shard.is_file():
                raise UserError(f'{shard}: this shard is missing ({SHARD_FILE} lists it); copy it again')
            part = ZipSource(shard)
            if len(part.image_names()) != images:
                raise UserError(
                    f'{shard}: holds {len(part.image_names())} images, {SHARD_FILE} says {images}; copy it again'
                )
            self.parts.append(part)
        self._part_of = {name: number for number, part in enumerate(self.parts) for name in part.image_names()}
        counts = Counter(name for part in self.parts for name in part.image_names())
        self.duplicates = sorted(name for name, count in counts.items() if count > 1)
        self.duplicates += [name for part in self.parts for name in part.duplicates]
        self.names = [name for part in self.parts for name in part.image_names()]
        if self.names != sorted(self.names) or self.duplicates:
            raise UserError(f'{path}: image names of its shards are not in ascending order; write it again by `repack`')

    def __contains__(self, name: object) -> bool:
        return name in self._part_of

    def _part(self, name: str) -> ZipSource:
        if name not in self._part_of:
            raise UserError(f'{self.path}: holds no file {name}')
        return self.parts[self._part_of[name]]

    def read(self, name: str) -> bytes:
        return self._part(name).read(name)

    def extent(self, name: str) -> Extent | None:
        return self._part(name).extent(name)

    def checksum(self, name: str) -> tuple[int, int]:
        return self._part(name).checksum(name)

    def content_hash(self) -> str:
        """sha256 over the shards' names and content hashes: not that of the same images in one zip."""
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(f'{part.path.name}\0{part.content_hash()}\n'.encode())
        return digest.hexdigest()


def _read_list(path: Path) -> list[tuple[str, int]]:
    try:
        entries = json.loads((path / SHARD_FILE).read_text())['shards']
        listed = [(str(entry['name']), int(entry['images'])) for entry in entries]
    except OSError as error:
        raise explain_os_error(error, path / SHARD_FILE) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path / SHARD_FILE}: not a list of shards ({error!r}); copy it again') from error
    extra = sorted(file.name for file in path.glob('shard-*.zip') if file.name not in dict(listed))
    if extra:
        raise UserError(f'{path / extra[0]}: not listed in {SHARD_FILE}; copy {SHARD_FILE} again, or remove this shard')
    if not listed:
        raise UserError(f'{path / SHARD_FILE}: lists no shards; make the dataset again')
    return listed


class ShardedWriter:
    """DatasetWriter's interface for a folder of zips with at most `shard_size` images each; whole or not at all."""

    def __init__(
        self, path: str | os.PathLike[str], *, shard_size: int, overwrite: bool = False, **options: Any
    ) -> None:
        if shard_size < 1:
            raise ValueError(f'shard_size: expected at least 1, got {shard_size}')
        self.path = Path(path)
        if self.path.suffix.lower() == '.zip':
            raise UserError(f'{path}: a dataset of shards is a folder; choose a name without .zip')
        refuse_to_replace(self.path, overwrite=overwrite)
        make_output_folder(self.path.parent)
        self._shard_size, self._options = shard_size, options
        self._temporary = self.path.with_name(f'.{self.path.name}.{os.getpid()}.tmp')
        try:
            self._temporary.mkdir()
        except OSError as error:
            raise explain_os_error(error, self.path) from error
        self._counts: list[int] = []
        self._current: DatasetWriter | None = None

    def __len__(self) -> int:
        return sum(self._counts) + (0 if self._current is None else len(self._current))

    def add(self, image: Any, **item: Any) -> str:
        """As DatasetWriter.add."""
        if self._current is not None and len(self._current) == self._shard_size:
            self._finish_shard()
        if self._current is None:
            shard = self._temporary / f'shard-{len(self._counts):05d}.zip'
            self._current = DatasetWriter(shard, first=len(self), **self._options)
        return self._current.add(image, **item)

    def _finish_shard(self) -> None:
        if self._current is not None:
            self._current.close()
            self._counts.append(len(self._current))
            self._current = None

    def close(self) -> None:
        """Write shards.json, then put the folder in place. UserError if nothing was added."""
        try:
            if not len(self):
                raise UserError(f'{self.path}: no images, so no dataset was written')
            self._finish_shard()
            shards = [{'name': f'shard-{i:05d}.zip', 'images': count} for i, count in enumerate(self._counts)]
            (self._temporary / SHARD_FILE).write_text(json.dumps({'shards': shards}, indent=1) + '\n')
            replace_folder(self._temporary, self.path)
        except OSError as error:
            raise explain_os_error(error, self.path) from error
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def discard(self) -> None:
        """Remove everything written so far; `path` stays as it was."""
        if self._current is not None:
            with contextlib.suppress(UserError):
                self._current.discard()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> ShardedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()
