"""Meshes and landmarks beside images (the public release's layout, or any) -> heads of a dataset."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from applications.datasets.importing import Finished, Job, Loaded
from applications.datasets.mesh_files import EXTENT, check_frame, read_landmarks, read_vertices, suggest_scale
from applications.datasets.sources import FileIndex
from applications.preprocessing.mesh_fit import MeshFitter
from applications.preprocessing.pool import WorkFolder
from dnnlib import UserError
from training.head.model import HeadInput, HeadModel, HeadParams, HeadTemplate
from training.head.obj import check_topology, read_obj

FLAME_VERTICES = 5023
FLAME_NAME = 'flame2020'  # what DECA, and so the release, uses
_PROBED = 8  # meshes looked at before the work begins


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshFiles:
    """A HeadReader of OBJ files and landmark texts."""

    meshes: FileIndex
    landmarks: FileIndex | None  # None: from the head model's embedding
    num_vertices: int
    scale: float = 1.0  # metres in a unit of the files

    def __call__(self, name: str, side: int) -> dict[str, np.ndarray]:
        """'vertices' [V, 3] and, where there are files, 'landmarks' [68, 3], metres."""
        path = self.meshes.find(name)
        vertices = read_vertices(path) * self.scale
        if len(vertices) != self.num_vertices:
            raise UserError(f'{path}: wrong number of vertices ({len(vertices)} instead of {self.num_vertices})')
        found = {'vertices': vertices.astype(np.float32)}
        landmarks = None
        if self.landmarks is not None:
            landmarks = read_landmarks(self.landmarks.find(name)) * self.scale
            found['landmarks'] = landmarks.astype(np.float32)
        check_frame(vertices, landmarks, path=path)
        return found


class MeshFinisher:
    """Meshes as they are, or (with a fitter) the parameters that make them."""

    def __init__(
        self, template: HeadTemplate | None, *, fitter: MeshFitter | None = None, kept: WorkFolder | None = None
    ) -> None:
        self.columns: tuple[str, ...] = () if fitter is None else ('fit_mean_mm', 'fit_max_mm')
        self._template, self._fitter, self._kept = template, fitter, kept
        self._rounding = 0.0  # metres, the largest
        self._means: list[float] = []
        self._maxima: list[float] = []
        self._highs: list[float] = []

    def __call__(self, items: list[Loaded]) -> list[Finished]:
        """One Finished for each item."""
        labels = [torch.from_numpy(np.asarray(item.label)) for item in items]
        vertices = torch.from_numpy(np.stack([item.head['vertices'] for item in items]))
        if self._fitter is not None:
            return self._fit(vertices, labels)
        landmarks = self._landmarks(items, vertices)
        head = HeadInput(vertices, landmarks)
        for values in (vertices, landmarks):
            self._rounding = max(self._rounding, float((values - values.half().float()).norm(dim=-1).max()))
        return [Finished(label=label, head=head[[row]]) for row, label in enumerate(labels)]

    def _landmarks(self, items: list[Loaded], vertices: Tensor) -> Tensor:
        if 'landmarks' in items[0].head or self._template is None:
            return torch.from_numpy(np.stack([item.head['landmarks'] for item in items]))
        return self._template.landmarks(vertices)

    def _fit(self, vertices: Tensor, labels: Sequence[Tensor]) -> list[Finished]:
        params, means, highs, maxima = self._fitted(vertices)
        self._means += means
        self._highs += highs
        self._maxima += maxima
        return [
            Finished(label=label, head=params[[row]], row=(f'{means[row]:.4f}', f'{maxima[row]:.4f}'))
            for row, label in enumerate(labels)
        ]

    def _fitted(self, vertices: Tensor) -> tuple[HeadParams, list[float], list[float], list[float]]:
        """Parameters, and mean, 95 % and largest error (mm) of each mesh; from an earlier run if it kept them."""
        assert self._fitter is not None
        key = f'{self._fitter.model.content_hash} {hashlib.sha256(vertices.numpy().tobytes()).hexdigest()}'
        found = None if self._kept is None else self._kept.load(key)
        if found is None:
            fit = self._fitter.fit(vertices)
            error = fit.error.cpu() * 1000
            measured = (error.mean(dim=1), error.quantile(0.95, dim=1), error.max(dim=1).values)
            found = (fit.params.to('cpu'), *(values.tolist() for values in measured))
            if self._kept is not None:
                self._kept.save(key, found)
        return found

    def notes(self) -> list[str]:
        """Rounding or fit error in millimetres."""
        if self._fitter is None:
            return [f'stored as float16: rounded by at most {self._rounding * 1000:.3f} mm']
        mean, high, most = np.mean(self._means), np.mean(self._highs), np.max(self._maxima)
        return [f'fit error of the vertices: mean {mean:.3f}, 95 % {high:.3f}, max {most:.3f} mm']


def probe_meshes(files: MeshFiles, jobs: Sequence[Job], model: HeadModel | None) -> None:
    """UserError with the remedy before the work begins, if the first meshes are of another size or topology."""
    extents: list[float] = []
    for job in jobs[: 4 * _PROBED]:
        try:
            path = files.meshes.find(job.name)
            vertices = read_vertices(path)
        except UserError:
            continue  # will be on the reject list
        if model is not None and not extents:
            check_topology(read_obj(path), model.template, path=path, model=model.name)
        extents.append(float(np.ptp(vertices, axis=0).max()))
        if len(extents) == _PROBED:
            break
    extent = float(np.median(extents)) if extents else 0.0
    if extents and not EXTENT[0] <= extent * files.scale <= EXTENT[1]:
        raise UserError(
            f'{files.meshes.root}: the meshes measure {extent * files.scale:.3g} m, heads {EXTENT[0]:g} to'
            f' {EXTENT[1]:g} m; they are scaled already: pass --mesh-scale={suggest_scale(extent):g} to undo it'
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReleaseLayout:
    """The folders of the public release under one root."""

    images: Path
    meshes: Path
    landmarks: Path | None
    labels: Path


def find_release(root: str | os.PathLike[str], *, labels: str | None) -> ReleaseLayout:
    """images512x512, meshes512x512, lms512x512 (other sizes too) and the label file; UserError names what lacks."""
    folder = Path(root)
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder; give the one that holds images512x512 and meshes512x512')
    found: dict[str, Path | None] = {}
    for kind in ('images', 'meshes', 'lms'):
        matches = sorted(path for path in folder.glob(f'{kind}*') if path.is_dir())
        if len(matches) > 1:
            names = ', '.join(path.name for path in matches)
            raise UserError(f'{folder}: several folders of {kind} ({names}); leave one in a root of its own')
        found[kind] = matches[0] if matches else None
    images, meshes = found['images'], found['meshes']
    if images is None or meshes is None:
        raise UserError(f'{folder}: has no {"images512x512" if images is None else "meshes512x512"} folder')
    return ReleaseLayout(
        images=images, meshes=meshes, landmarks=found['lms'], labels=Path(labels) if labels else _label_file(images)
    )


def _label_file(images: Path) -> Path:
    """dataset.json beside the images or above them, or the only other dataset*.json that is not of expressions."""
    for where in (images, images.parent):
        if (where / 'dataset.json').is_file():
            return where / 'dataset.json'
        others = [path for path in sorted(where.glob('dataset*.json')) if not path.stem.endswith(('_exp', '_gaze'))]
        if len(others) > 1:
            raise UserError(f'{where}: several label files ({", ".join(p.name for p in others)}); choose by --labels')
        if others:
            return others[0]
    raise UserError(f'{images}: no dataset.json (EG3D labels) there; give it by --labels=FILE.json')


def expected_vertices(model: HeadModel | None) -> int:
    """Vertices that each mesh must have: the head model's, FLAME's without one."""
    return FLAME_VERTICES if model is None else model.template.num_vertices
