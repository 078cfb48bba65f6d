"""A small symmetric head model and small datasets, shared by tests and benchmarks."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dnnlib import UserError
from training import cameras
from training.dataset_format import HEAD_FILE
from training.dataset_labels import LABEL_FILE
from training.dataset_writer import DatasetWriter
from training.head.landmarks import MIRROR
from training.head.model import HeadInput, HeadModel, HeadParams, HeadTemplate

ROWS, COLUMNS = 13, 13  # a curved sheet, the middle column on the symmetry plane


def rotate(points: Tensor, axis_angle: Tensor) -> Tensor:
    """points [N, V, 3] turned by axis_angle [N, 3]."""
    x, y, z = axis_angle.unbind(1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).reshape(-1, 3, 3)
    return points @ torch.linalg.matrix_exp(cross).transpose(1, 2)


class SheetHead(HeadModel):
    """A curved symmetric sheet of 169 vertices that has an identity, an expression, a jaw and two eyes."""

    name = 'sheet'
    num_identity = 4
    num_expression = 2
    expression_names = ('smile', 'wink')

    def __init__(self) -> None:
        v, u = torch.meshgrid(torch.linspace(1, -1, ROWS), torch.linspace(-1, 1, COLUMNS), indexing='ij')
        points = torch.stack([0.08 * u, 0.12 * v, 0.05 - 0.06 * u**2 - 0.02 * v**2], dim=-1).reshape(-1, 3)
        index = torch.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)
        self.vertex_map = index.flip(1).reshape(-1)
        a, b, c, d = index[:-1, :-1], index[1:, :-1], index[:-1, 1:], index[1:, 1:]
        half = COLUMNS // 2
        left = torch.stack([torch.stack([a, b, d], -1), torch.stack([a, d, c], -1)])[:, :, :half].reshape(-1, 3)
        faces = torch.cat([left, self.vertex_map[left].flip(1)])
        self.template = HeadTemplate(
            vertices=points,
            faces=faces,
            uv=torch.stack([u, v], -1).reshape(-1, 2) / 2 + 0.5,
            uv_faces=faces,
            eye_mask=torch.ones(8, 8),
            **self._landmark_embedding(faces),
        )
        generator = torch.Generator().manual_seed(0)
        basis = 0.003 * torch.randn(6, len(points), 3, generator=generator)
        mirrored = basis[:, self.vertex_map] * torch.tensor([-1.0, 1.0, 1.0])
        self.signs = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0])  # even and odd components
        self.basis = (basis + self.signs[:, None, None] * mirrored) / 2
        self.eye_weights = torch.stack([(points[:, 0] > 0.01), (points[:, 0] < -0.01)]).float()
        self.jaw_weights = (points[:, 1] < 0).float()
        self.regions = {name: torch.ones(len(faces), dtype=torch.bool) for name in ('face', 'eyes', 'neck')}
        self.gaze_vertices = torch.arange(10).reshape(2, 5)
        self.content_hash = hashlib.sha256(b'sheet').hexdigest()

    def _landmark_embedding(self, faces: Tensor) -> dict[str, Tensor]:
        vertex = [0] * 68
        for i, other in enumerate(MIRROR):
            row = 1 + i % (ROWS - 2)
            side = 8 + i % 4
            middle = COLUMNS // 2
            vertex[i] = row * COLUMNS + (middle if i == other else side)
            if other < i:
                vertex[i] = int(self.vertex_map[vertex[other]])
        face = [int((faces == v).any(1).nonzero()[0]) for v in vertex]
        weights = torch.stack([(faces[f] == v).float() for f, v in zip(face, vertex, strict=True)])
        return {'landmark_faces': torch.tensor(face), 'landmark_barycentrics': weights}

    def forward(self, params: HeadParams) -> HeadInput:
        coefficients = torch.cat([params.identity, params.expression], dim=1)
        points = self.template.vertices + torch.einsum('nk,kvc->nvc', coefficients, self.basis)
        for weight, turn in (
            (self.jaw_weights, params.jaw),
            (self.eye_weights[0], params.eyes[:, :3]),
            (self.eye_weights[1], params.eyes[:, 3:]),
        ):
            points = points + weight[:, None] * (rotate(points, turn) - points)
        points = rotate(rotate(points, params.neck), params.rotation) + params.translation[:, None]
        return HeadInput(points, self.template.landmarks(points))

    def mirror(self, params: HeadParams) -> HeadParams:
        turn = torch.tensor([1.0, -1.0, -1.0])
        return HeadParams(
            identity=params.identity * self.signs[:4],
            expression=params.expression * self.signs[4:],
            jaw=params.jaw * turn,
            neck=params.neck * turn,
            eyes=torch.cat([params.eyes[:, 3:] * turn, params.eyes[:, :3] * turn], dim=1),
            rotation=params.rotation * turn,
            translation=params.translation * torch.tensor([-1.0, 1.0, 1.0]),
        )

    def to(self, device: torch.device | str) -> SheetHead:
        if torch.device(device).type != 'cpu':
            raise ValueError('device: this test head stays on the CPU')
        return self

    def named_expression(self, name: str, weight: float = 1.0) -> HeadParams:
        params = self.neutral()
        params.expression[:, self.expression_names.index(name)] = weight
        return params


def random_params(model: HeadModel, count: int, *, seed: int) -> HeadParams:
    """Unit-variance shape, moderate rotations."""
    generator = torch.Generator().manual_seed(seed)
    scale = {'identity': 1.0, 'expression': 0.5, 'translation': 0.01}
    neutral = model.neutral(count).as_dict()
    return HeadParams(**{k: scale.get(k, 0.1) * torch.randn(v.shape, generator=generator) for k, v in neutral.items()})


def random_labels(count: int, *, seed: int) -> Tensor:
    """Orbit cameras [count, 25] with some roll."""
    generator = torch.Generator().manual_seed(seed)
    yaw, pitch, roll = 0.3 * torch.randn(3, count, generator=generator)
    return cameras.orbit_camera(yaw, pitch, roll=roll)


def make_dataset(
    path: Path,
    *,
    count: int = 6,
    resolution: int = 16,
    heads: str = 'params',
    seed: int = 0,
    model: HeadModel | None = None,
) -> Path:
    """A dataset of random images at `path`; heads: 'params', 'mesh' or 'none'."""
    model = model or SheetHead()
    rng = np.random.default_rng(seed)
    labels, params = random_labels(count, seed=seed), random_params(model, count, seed=seed)
    names = (model.name, model.content_hash) if heads != 'none' else ('', '')
    with DatasetWriter(path, resolution=resolution, head_model=names[0], head_model_hash=names[1]) as writer:
        for i in range(count):
            row = params[[i]]
            head = None if heads == 'none' else row if heads == 'params' else model.forward(row)
            image = rng.integers(0, 256, (resolution, resolution, 3), dtype=np.uint8)
            writer.add(image, label=labels[i], head=head, identity_id=None if heads == 'none' else i // 2)
    return path


def edit_zip(path: Path, changes: dict[str, bytes | None]) -> Path:
    """Replace, add or (None) remove files of a zipped dataset."""
    with zipfile.ZipFile(path) as archive:
        files: dict[str, bytes | None] = {name: archive.read(name) for name in archive.namelist()}
    files |= changes
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in files.items():
            if data is not None:
                archive.writestr(name, data)
    return path


def edit_labels(path: Path, change: Callable[[list], list]) -> Path:
    """Rewrite the list of [name, 25 numbers] of a zipped dataset."""
    with zipfile.ZipFile(path) as archive:
        labels = json.loads(archive.read(LABEL_FILE))['labels']
    return edit_zip(path, {LABEL_FILE: json.dumps({'labels': change(labels)}).encode()})


def edit_heads(path: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Path:
    """Rewrite the arrays of head.npz of a zipped dataset."""
    with zipfile.ZipFile(path) as archive, np.load(io.BytesIO(archive.read(HEAD_FILE))) as data:
        arrays = change({name: data[name] for name in data.files})
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return edit_zip(path, {HEAD_FILE: buffer.getvalue()})


def png(width: int, height: int, *, mode: str = 'RGB') -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, format='PNG')
    return buffer.getvalue()


def user_error(call: Callable[[], object]) -> str:
    """The UserError of a call; it must be one line."""
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert '\n' not in text
    return text
