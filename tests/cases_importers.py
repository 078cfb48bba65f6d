"""Small data in the layouts of the public release and of trackers, made in the test."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests import cases_flame
from tests.cases_dataset import SheetHead, random_labels, random_params
from training.head.flame import FlameHead
from training.head.model import HeadInput, HeadModel, HeadParams
from training.head.obj import write_obj


def write_image(path: Path, side: int = 16, *, seed: int = 0, width: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, width or side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_labels(path: Path, names: list[str], labels: Tensor, *, more: int = 0) -> None:
    entries = [[name, [*row.tolist(), *([0.5] * more)]] for name, row in zip(names, labels, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'labels': entries}))


class UprightHead(SheetHead):
    """The sheet with landmarks whose eyes lie above the mouth, as a head's do."""

    def _landmark_embedding(self, faces: Tensor) -> dict[str, Tensor]:
        found = super()._landmark_embedding(faces)
        for rows, face in ((range(36, 48), 0), (range(48, 68), len(faces) // 2 - 1)):
            found['landmark_faces'][list(rows)] = face
        return found


@dataclasses.dataclass(frozen=True)
class Release:
    root: Path
    names: list[str]  # of the images, relative to images512x512
    labels: Tensor  # [N, 25]
    heads: HeadInput
    params: HeadParams

    def mesh(self, index: int) -> Path:
        return self.root / 'meshes512x512' / Path(self.names[index]).with_suffix('.obj')

    def landmarks(self, index: int) -> Path:
        return self.root / 'lms512x512' / Path(self.names[index]).with_suffix('.txt')

    def image(self, index: int) -> Path:
        return self.root / 'images512x512' / self.names[index]


def make_release(root: Path, model: HeadModel, *, count: int = 6, scale: float = 1.0, more: int = 50) -> Release:
    """The release's layout with mirrored copies' names, and labels with `more` numbers behind the 25."""
    names = [f'0000{i // 4}/img{i // 2:08d}{"_mirror" if i % 2 else ""}.png' for i in range(count)]
    names.sort()
    params = random_params(model, count, seed=1)
    with torch.no_grad():
        heads = model.forward(params)
    made = Release(root, names, random_labels(count, seed=2), heads, params)
    for index in range(count):
        write_image(made.image(index), seed=index)
        for path in (made.mesh(index), made.landmarks(index)):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_obj(made.mesh(index), heads.vertices[index] * scale, faces=model.template.faces)
        np.savetxt(made.landmarks(index), heads.landmarks[index].numpy() * scale)
    write_labels(root / 'images512x512' / 'dataset.json', names, made.labels, more=more)
    return made


def flame_folder(folder: Path) -> Path:
    return cases_flame.write_folder(folder, cases_flame.arrays())


@dataclasses.dataclass(frozen=True)
class Tracked:
    params: Path
    images: Path
    names: list[str]
    codes: dict[str, np.ndarray]  # [N, width] as the tracker names them
    model: FlameHead


def make_codes(count: int, kind: str, *, seed: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def normal(width: int, size: float) -> np.ndarray:
        return (rng.normal(size=(count, width)) * size).astype(np.float32)

    cam = np.concatenate([8 + normal(1, 0.3), normal(2, 0.02)], axis=1).astype(np.float32)
    jaw = np.abs(normal(3, 0.05))
    if kind == 'deca':
        pose = np.concatenate([normal(3, 0.2), jaw], axis=1)
        return {'shape': normal(100, 0.3), 'exp': normal(50, 0.3), 'pose': pose, 'cam': cam, 'tex': normal(50, 1.0)}
    lids = np.clip(normal(2, 0.5) + 0.4, 0, 1).astype(np.float32)
    return {
        'shape_params': normal(300, 0.3), 'expression_params': normal(50, 0.3), 'pose_params': normal(3, 0.2),
        'jaw_params': jaw, 'cam': cam, 'eyelid_params': lids,
    }  # fmt: skip


def make_tracked(root: Path, kind: str, *, count: int = 4, save: str = 'npz') -> Tracked:
    """Images crops/img0.png ... and DECA's layout of files params/img0/img0.<save>."""
    codes = make_codes(count, kind)
    names = [f'img{i}.png' for i in range(count)]
    for index, name in enumerate(names):
        write_image(root / 'crops' / name, seed=index)
        row = {key: value[index : index + 1] for key, value in codes.items()}
        save_codes(root / 'params' / f'img{index}' / f'img{index}.{save}', row)
    return Tracked(root / 'params', root / 'crops', names, codes, FlameHead(flame_folder(root / 'flame')))


def save_codes(path: Path, row: dict[str, Any]) -> None:
    """One image's arrays in the format that the suffix says."""
    import pickle

    import scipy.io

    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix
    tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in row.items()}
    if kind == '.npz':
        np.savez(path, **row)
    elif kind == '.npy':
        np.save(path, np.array(row, dtype=object), allow_pickle=True)
    elif kind == '.pkl':
        path.write_bytes(pickle.dumps({**tensors, **{f'{key}_array': value for key, value in row.items()}}))
    elif kind == '.pt':
        torch.save({**tensors, 'an_array': next(iter(row.values()))}, path)
    elif kind == '.mat':
        scipy.io.savemat(path, row)
    else:
        path.write_text(json.dumps({key: np.asarray(value).tolist() for key, value in row.items()}))


def rejects(out: Path) -> dict[str, str]:
    """Reasons by source image that an importer left beside `out`."""
    folder = Path(str(out).removesuffix('.zip') + '-report')
    with open(folder / 'rejects.csv', newline='', encoding='utf-8') as handle:
        return dict(list(csv.reader(handle))[1:])
