"""Small stand-ins for a dataset, a generator and an Inception file."""

from __future__ import annotations

import types
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

RESOLUTION = 32


def blob_images(count: int, *, seed: int, resolution: int = RESOLUTION) -> Tensor:
    """uint8 [count, 3, R, R]: a few coloured blobs and stripes on a gradient, different in each."""
    rng = np.random.default_rng(seed)
    axis = np.linspace(-1, 1, resolution)
    y, x = np.meshgrid(axis, axis, indexing='ij')
    images = np.empty((count, 3, resolution, resolution))
    for i in range(count):
        low, high = rng.uniform(0, 0.6, (2, 3, 1, 1))
        picture = low + (high - low) * (y + 1) / 2
        for _ in range(4):
            cx, cy, size = rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6), rng.uniform(0.15, 0.5)
            inside = ((x - cx) ** 2 + (y - cy) ** 2 < size**2).astype(float)
            stripes = 0.8 + 0.2 * np.sin(rng.uniform(8, 25) * (x + rng.uniform(-1, 1) * y))
            picture = picture * (1 - inside) + inside * stripes * rng.uniform(0.2, 1, (3, 1, 1))
        images[i] = picture
    return torch.from_numpy((images * 255).clip(0, 255).astype(np.uint8))


class BlobDataset:
    """The interface of HeadDataset that metrics use."""

    name = 'blobs'
    resolution = RESOLUTION
    content_hash = 'b' * 64
    head_model_name = 'numbers'
    identities = None

    def __init__(self, count: int = 96) -> None:
        self.pictures = blob_images(count, seed=1)
        self.reads = 0

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def names(self) -> list[str]:
        return [f'{index}.png' for index in range(len(self))]

    def images(self, indices: Sequence[int]) -> Tensor:
        self.reads += len(indices)
        return self.pictures[list(indices)]

    def label(self, indices: Sequence[int]) -> Tensor:
        return torch.arange(25.0).repeat(len(indices), 1) + torch.tensor(list(indices), dtype=torch.float32)[:, None]

    def head_params(self, indices: Sequence[int]) -> None:
        return None

    def head_input(self, indices: Sequence[int], *, device: Any) -> Tensor:
        return torch.tensor(list(indices), dtype=torch.float32)


class BlobGenerator:
    """The five calls, each image a function of its own latent, label and head only."""

    config = types.SimpleNamespace(image_resolution=RESOLUTION, z_dim=8)

    def __init__(self) -> None:
        self.basis = torch.randn(8, 3 * 8 * 8, generator=torch.Generator().manual_seed(0))
        self.labels: list[Tensor] = []

    def map(self, z: Tensor, label: Tensor, *, truncation_psi: float, truncation_cutoff: int | None) -> Tensor:
        self.labels.append(label)
        return z * truncation_psi

    def identity(self, ws: Tensor) -> Tensor:
        return ws

    def deform(self, identity: Tensor, head: Tensor) -> Tensor:
        assert len(identity) == len(head)
        return torch.cat([identity, head[:, None]], dim=1)

    def render(self, planes: Tensor, label: Tensor) -> Any:
        colors = (planes[:, :-1] @ self.basis).view(-1, 3, 8, 8) * 0.25 + 0.01 * planes[:, -1:, None, None]
        image = torch.nn.functional.interpolate(colors, size=RESOLUTION) + 0.001 * label[:, :1, None, None]
        return types.SimpleNamespace(image=image)


class TinyInception(torch.nn.Module):
    """The official file's interface: forward(uint8 images, return_features) -> [n, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Linear(3 * 4 * 4, 2048, bias=False)
        weight = torch.randn(2048, 3 * 4 * 4, generator=torch.Generator().manual_seed(5))
        self.project.weight = torch.nn.Parameter(weight, requires_grad=False)

    def forward(self, images: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        coarse = torch.nn.functional.adaptive_avg_pool2d(images.to(torch.float32) / 255, (4, 4))
        features = torch.relu(self.project(coarse.flatten(1)))
        if return_features:
            return features
        logits = features[:, :1008] / 2
        if not no_output_bias:
            logits = logits + 1
        return logits.softmax(dim=1)


def write_inception(path: Path, module: torch.nn.Module | None = None) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        torch.jit.script(module or TinyInception()).save(str(path))
    return path
