"""The training set: images, camera labels and heads of a packed dataset, by index.

Format: training/dataset_format.py. EG3D's datasets (no head.npz) open too; only their heads are missing.
With `mirror`, indices from the number of images M on are the mirror images: picture, camera, head
parameters or mesh, and landmarks change sides together, so that the mirrored mesh projected by the
mirrored camera is the flipped projection.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib import UserError
from torch_utils.workers import in_runs
from training import cameras
from training.dataset_format import HEAD_FILE, HeadTable, decode_image, match_head_model, read_heads
from training.dataset_labels import read_labels, stored_labels
from training.dataset_source import open_source
from training.head.model import PARAM_FIELDS, HeadInput, HeadModel, HeadParams
from training.mirroring import mirror_mesh, mirror_vertex_map

Indices = Sequence[int] | np.ndarray | Tensor
_THREADED_SIDE = 128  # smaller images are decoded by one thread: Python's share of the work, the larger, has one anyway
_MESH_BATCH = 64  # heads evaluated at once: their temporaries stay in the cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Items of a dataset; `head` and `params` are None where the dataset has none."""

    indices: Tensor  # [N] int64, CPU
    image: Tensor  # [N, 3, R, R] uint8
    label: Tensor  # [N, 25]
    head: HeadInput | None
    params: HeadParams | None


class HeadDataset:
    """Random access to a packed dataset.

    Opening reads the label file once and the first image, no other; heads stay on the disk until
    asked for. Use it from any number of threads and processes; it pickles without its caches.
    `head_model` replaces the model that the dataset names (needed for FLAME, whose file is the user's).
    Decoded images are kept in memory when all of them take at most `cache_bytes`.

    Raises UserError, one line: nothing at `path`, cut short, no images, no dataset.json, an image
    without a label, a bad label, heads that do not fit the images, a head model of other content.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        mirror: bool = False,
        head_model: HeadModel | None = None,
        cache_bytes: int = 1 << 30,
        decode_threads: int = 8,
    ) -> None:
        self.path = Path(path)
        self.name = self.path.stem
        self.mirror = mirror
        self._decode_threads = decode_threads
        self._source = open_source(self.path)
        self._names = self._source.image_names()
        if not self._names:
            raise UserError(f'{path}: holds no images (.png, .jpg, .webp)')
        self._heads = read_heads(self._source)
        self.labels = self._match_labels()  # [M, 25] float32, not mirrored
        if self._heads is not None and self._heads.names != self._names:
            raise UserError(
                f'{path}: {HEAD_FILE} lists {len(self._heads.names)} images, not exactly the {len(self._names)} that'
                ' are there; run `dataset_tool.py validate` on it and make it again'
            )
        first = decode_image(self._source.read(self._names[0]), name=f'{path}: {self._names[0]}')
        if first.shape[0] != first.shape[1]:
            size = f'{first.shape[1]} x {first.shape[0]}'
            raise UserError(f'{path}: {self._names[0]} is {size} pixels; images must be square, crop them')
        self.resolution = int(first.shape[0])
        self._given_model = head_model
        self._reset_caches()
        if head_model is not None and self._heads is not None:
            _ = self.head_model  # fits, or says why not
        self._use_cache = len(self._names) * first.size <= cache_bytes

    def _match_labels(self) -> Tensor:
        if self._heads is not None and self._heads.names == self._names:
            stored = stored_labels(self._source)
            if stored is not None:
                return torch.from_numpy(stored)
        table = read_labels(self._source)
        if table.problems:
            name, problem = table.problems[0]
            more = f' (and {len(table.problems) - 1} more)' if len(table.problems) > 1 else ''
            raise UserError(f'{self.path}: {name}: {problem}{more}; `dataset_tool.py validate` lists all')
        if table.names == self._names:
            return torch.from_numpy(table.values.copy())
        rows = {name: row for row, name in enumerate(table.names)}
        missing = [name for name in self._names if name not in rows]
        if missing:
            count = f'{len(missing)} of {len(self._names)} images have no label'
            raise UserError(f'{self.path}: {count}, the first is {missing[0]}; add them to dataset.json or remove them')
        return torch.from_numpy(table.values[[rows[name] for name in self._names]])

    def __getstate__(self) -> dict[str, Any]:
        dropped = ('_heads', 'head_model', '_vertex_map', '_models', '_cache', '_cached')
        return {key: value for key, value in self.__dict__.items() if key not in dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._heads = read_heads(self._source)
        self._reset_caches()

    def _reset_caches(self) -> None:
        self._models: dict[torch.device, HeadModel] = {}
        self._cache: np.ndarray | None = None
        self._cached = np.zeros(len(self._names), dtype=bool)

    # What it holds.

    def __len__(self) -> int:
        """Number of items: M, or 2 M with `mirror`."""
        return len(self._names) * (2 if self.mirror else 1)

    @property
    def names(self) -> list[str]:
        """Names of the M images, in order."""
        return self._names

    @property
    def identities(self) -> Tensor | None:
        """Person shown by each of the M images [M] int64, None where unknown."""
        ids = None if self._heads is None else self._heads.identity_ids
        return None if ids is None else torch.from_numpy(ids)

    @property
    def clips(self) -> tuple[Tensor, Tensor] | None:
        """Clip and frame number of each of the M images, [M] int64 each; None for images without clips."""
        if self._heads is None or self._heads.clip_ids is None or self._heads.frame_numbers is None:
            return None
        return torch.from_numpy(self._heads.clip_ids), torch.from_numpy(self._heads.frame_numbers)

    def item_clips(self) -> np.ndarray | None:
        """Clip of each item [len(self)] int64, counted from 0; mirrored clips are clips of their own."""
        if self.clips is None:
            return None
        _, clips = np.unique(self.clips[0].numpy(), return_inverse=True)
        return np.concatenate([clips, clips + clips.max() + 1]) if self.mirror else clips

    @cached_property
    def content_hash(self) -> str:
        """sha256 over all files' names, sizes and checksums: the key under which results are cached.

        Equal for a zip and its unpacked folder, blind to `mirror`. A folder's files are read in full.
        """
        return self._source.content_hash()

    @property
    def heads_layout(self) -> tuple | None:
        """Head model, its hash, numbers given, widths: what datasets that are merged must share; None without heads."""
        return None if self._heads is None else self._heads.layout()

    @property
    def head_model_name(self) -> str | None:
        """The head model that the dataset states, None without heads."""
        return None if self._heads is None else self._heads.head_model

    @cached_property
    def head_model(self) -> HeadModel:
        """The model that turns the dataset's parameters into meshes; UserError if it is another one."""
        return match_head_model(self._need_heads(), self._given_model, path=self.path)

    def _need_heads(self) -> HeadTable:
        if self._heads is None:
            raise UserError(
                f'{self.path}: has images and cameras but no heads ({HEAD_FILE}); make a dataset with heads by'
                ' `dataset_tool.py from-photos` or `synth`'
            )
        return self._heads

    def _split(self, indices: Indices) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the unmirrored arrays [N], and which items are mirrored [N]."""
        items = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(items) and (items.min() < 0 or items.max() >= len(self)):
            raise IndexError(f'index: expected 0 to {len(self) - 1}, got {items.min()} to {items.max()}')
        return items % len(self._names), items >= len(self._names)

    # Items.

    def image(self, index: int) -> np.ndarray:
        """One image, uint8 [3, R, R], a copy."""
        return self.images([index])[0].numpy()

    def image_bytes(self, row: int) -> bytes:
        """The file of one of the M images, as it lies in the dataset."""
        return self._source.read(self._names[row])

    def decode(self, index: int) -> np.ndarray:
        """One image uint8 [3, R, R], read past the cache and in this thread."""
        rows, mirrored = self._split([index])
        pixels = self._decode(int(rows[0]))
        return pixels[:, :, ::-1] if mirrored[0] else pixels

    def images(self, indices: Indices) -> Tensor:
        """Images uint8 [N, 3, R, R], large ones decoded by several threads. UserError names one that is damaged."""
        rows, mirrored = self._split(indices)
        unique, places = np.unique(rows, return_inverse=True)
        missing = unique[~self._cached[unique]] if self._use_cache else unique
        fresh = self._decode_all(missing)
        if self._use_cache:
            if self._cache is None:
                self._cache = np.empty((len(self._names), *fresh.shape[1:]), dtype=np.uint8)
            self._cache[missing] = fresh
            self._cached[missing] = True
            images = self._cache[rows]
        else:
            images = fresh[places.reshape(-1)]
        images[mirrored] = images[mirrored, ..., ::-1]
        return torch.from_numpy(images)

    def _decode_all(self, rows: np.ndarray) -> np.ndarray:
        """Images uint8 [len(rows), 3, R, R]."""
        images = np.empty((len(rows), 3, self.resolution, self.resolution), dtype=np.uint8)

        def decode(places: range) -> None:
            for place in places:
                images[place] = self._decode(int(rows[place]))

        in_runs(decode, len(rows), threads=1 if self.resolution < _THREADED_SIDE else self._decode_threads)
        return images

    def readable(self, indices: Indices) -> tuple[list[int], Tensor, list[int]]:
        """(items, their images, rows replaced): what was asked for or an error; see training/bad_images.py."""
        return np.asarray(indices).tolist(), self.images(indices), []

    def _decode(self, row: int) -> np.ndarray:
        """One of the M images, uint8 [3, R, R]."""
        name = self._names[row]
        pixels = decode_image(self._source.read(name), name=f'{self.path}: {name}')
        if pixels.shape[:2] != (self.resolution, self.resolution):
            size = f'{pixels.shape[1]} x {pixels.shape[0]}'
            raise UserError(f'{self.path}: {name} is {size} pixels, the first image {self.resolution}; make them equal')
        return pixels.transpose(2, 0, 1)

    def label(self, indices: Indices) -> Tensor:
        """Camera labels [N, 25]."""
        rows, mirrored = self._split(indices)
        label = self.labels[torch.from_numpy(rows)]
        return torch.where(torch.from_numpy(mirrored)[:, None], cameras.mirror_label(label), label)

    def head_params(self, indices: Indices) -> HeadParams | None:
        """Head parameters of N items, None where the dataset holds meshes or no heads."""
        if self._heads is None or self._heads.kind == 'mesh':
            return None
        rows, mirrored = self._split(indices)
        params = HeadParams.from_dict({name: _rows(self._heads.arrays[name], rows) for name in PARAM_FIELDS})
        if mirrored.any():
            other = self.head_model.mirror(params).as_dict()
            side = torch.from_numpy(mirrored)[:, None]
            params = HeadParams(**{k: torch.where(side, other[k], v) for k, v in params.as_dict().items()})
        return params

    def head_input(self, indices: Indices, *, device: torch.device | str = 'cpu') -> HeadInput:
        """Meshes and landmarks of N items on `device`, by the head model or from the stored meshes.

        Mirrored items mirror the mesh itself, which is exact even where the model's `mirror` of parameters is
        not (FLAME); a model without left/right symmetry falls back to that. No gradient. UserError without heads.
        """
        self._need_heads()
        items = np.asarray(indices, dtype=np.int64).reshape(-1)
        parts = [items[start : start + _MESH_BATCH] for start in range(0, max(len(items), 1), _MESH_BATCH)]
        heads = [self._head_batch(part, torch.device(device)) for part in parts]
        if len(heads) == 1:
            return heads[0]
        return HeadInput(torch.cat([h.vertices for h in heads]), torch.cat([h.landmarks for h in heads]))

    @torch.no_grad()
    def pose(self, params: HeadParams, *, device: torch.device | str = 'cpu') -> HeadInput:
        """Meshes and landmarks of any parameters of the dataset's head model on `device`; no gradient."""
        device = torch.device(device)
        if device not in self._models:
            self._models[device] = self.head_model.to(device)
        return self._models[device].forward(params.to(device))

    @torch.no_grad()
    def _head_batch(self, items: np.ndarray, device: torch.device) -> HeadInput:
        rows, mirrored = self._split(items)
        heads = self._need_heads()
        if heads.kind == 'params':
            by_params = mirrored.any() and self._vertex_map is None
            params = self.head_params(items if by_params else rows)
            assert params is not None
            head = self.pose(params, device=device)
            mirrored = mirrored & (not by_params)
        else:
            head = HeadInput(_rows(heads.arrays['vertices'], rows), _rows(heads.arrays['landmarks'], rows)).to(device)
        if not mirrored.any():
            return head
        if self._vertex_map is None:
            raise UserError(f'{self.path}: meshes of {heads.head_model} have no left/right symmetry; use --mirror=0')
        other = mirror_mesh(head, self._vertex_map)
        side = torch.from_numpy(mirrored).to(device)[:, None, None]
        vertices = torch.where(side, other.vertices, head.vertices)
        return HeadInput(vertices, torch.where(side, other.landmarks, head.landmarks))

    @cached_property
    def _vertex_map(self) -> Tensor | None:
        """The head's left/right symmetry, None if its mesh has none."""
        try:
            return mirror_vertex_map(self.head_model.template)
        except UserError:
            return None

    def batch(self, indices: Indices, *, device: torch.device | str = 'cpu') -> Batch:
        """Everything about N items, on `device`."""
        return Batch(
            indices=torch.from_numpy(np.array(indices, dtype=np.int64).reshape(-1)),
            image=self.images(indices).to(device),
            label=self.label(indices).to(device),
            head=None if self._heads is None else self.head_input(indices, device=device),
            params=None if (params := self.head_params(indices)) is None else params.to(device),
        )


def _rows(array: np.ndarray, rows: np.ndarray) -> Tensor:
    """Rows of a (memory-mapped, perhaps float16) array as float32."""
    return torch.from_numpy(np.array(array[rows], dtype=np.float32))
