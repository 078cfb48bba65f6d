"""What others made, opened for measuring: a generator behind the user's own Python, or a folder of images."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib import UserError
from dnnlib.files import sha256_file
from metrics.adapter import Adapter
from training.dataset import HeadDataset
from training.dataset_format import decode_image
from training.dataset_labels import LABEL_FILE
from training.dataset_source import open_source
from training.head.model import HeadModel


def load_adapter(spec: str, device: torch.device) -> Adapter:
    """FILE.py:CLASS -> CLASS(device). The file is the user's program and runs as such.

    Results are kept under the file's sha256, joined with the adapter's own `content_hash` where it sets one.
    UserError for a missing file or class, and for one that is no adapter.
    """
    file, colon, name = spec.rpartition(':')
    if not colon or not file.endswith('.py'):
        raise UserError(f'--adapter: expected FILE.py:CLASS, got {spec!r}')
    if not Path(file).is_file():
        raise UserError(f'{file}: no such file; --adapter names a Python file and a class in it')
    module = _run(Path(file))
    made = getattr(module, name, None)
    if not inspect.isclass(made):
        known = [key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == 'adapter']
        raise UserError(f'{file}: has no class {name}; it has {", ".join(known) or "none"}')
    build: Any = made
    adapter = build(device)
    resolution = getattr(adapter, 'resolution', None)
    if not isinstance(adapter, Adapter) or not isinstance(resolution, int):
        raise UserError(f'{spec}: must derive from metrics.adapter.Adapter and set `resolution` to its image side')
    weights = adapter.content_hash
    if weights is not None:
        adapter.content_hash = f'{sha256_file(file)}-{weights}'
    return adapter


def _run(path: Path) -> Any:
    found = importlib.util.spec_from_file_location('adapter', path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules['adapter'] = module  # dataclasses of the file look themselves up
    try:
        found.loader.exec_module(module)
    except Exception as error:
        raise UserError(f'{path}: {type(error).__name__}: {error}; the adapter file does not run') from error
    return module


class UnlabelledImages:
    """A folder or zip of images without labels, as metrics read a dataset."""

    head_model_name = None
    identities = None

    def __init__(self, path: str) -> None:
        self.name = Path(path).stem
        self._path = path
        self._source = open_source(Path(path))
        self.names = self._source.image_names()
        if not self.names:
            raise UserError(f'{path}: holds no images (.png, .jpg, .webp)')
        first = self._decode(0)
        if first.shape[1] != first.shape[2]:
            raise UserError(f'{path}: {self.names[0]} is not square; crop the images as the dataset is cropped')
        self.resolution = int(first.shape[1])

    @property
    def content_hash(self) -> str:
        return self._source.content_hash()

    def __len__(self) -> int:
        return len(self.names)

    def images(self, indices: Any) -> Tensor:
        images = [self._decode(int(index)) for index in indices]
        for index, image in zip(indices, images, strict=True):
            if image.shape[1:] != (self.resolution, self.resolution):
                size = f'{image.shape[2]} x {image.shape[1]}'
                raise UserError(f'{self._path}: {self.names[index]} is {size}, the first image {self.resolution}')
        return torch.stack(images)

    def label(self, indices: Any) -> Tensor:
        """Zeros [n, 25]: the cameras are not known."""
        return torch.zeros(len(indices), 25)

    def head_params(self, indices: Any) -> None:
        """None: the heads are not known."""

    def head_input(self, indices: Any, *, device: torch.device) -> None:
        """None: the heads are not known."""

    def pose(self, params: Any, *, device: torch.device) -> None:
        """None: there is no head model."""

    def _decode(self, row: int) -> Tensor:
        name = self.names[row]
        pixels = decode_image(self._source.read(name), name=f'{self._path}: {name}')
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def open_images(path: str, *, head_model: HeadModel | None) -> HeadDataset | UnlabelledImages:
    """A packed dataset (its labels drive paired metrics), or images alone. UserError for anything else."""
    source = open_source(Path(path))
    if source.parts or LABEL_FILE in source:
        return HeadDataset(path, head_model=head_model)
    return UnlabelledImages(path)
