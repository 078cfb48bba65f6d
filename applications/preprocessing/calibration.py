"""Where a detector's landmarks lie on a head model, as constant offsets in the head frame.

The 68 points of a detector and of a head model carry the same names but are not quite the same
places: some lie 3 mm apart, all in the same direction in every picture. Left alone, that turns into
a wrong pitch of the head and of the eyes. The offsets are measured on renderings of the model,
where the true points are known (tools/calibrate_landmarks.py), and added to the model's points
before they are compared with detected ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training import cameras
from training.head.landmarks import MIRROR
from training.head.model import NUM_LANDMARKS, HeadModel

OFFSETS_FILE = Path(__file__).resolve().parents[2] / 'assets/landmark_offsets.json'
NUM_POINTS = NUM_LANDMARKS + 10  # then 5 of the left iris, 5 of the right
_PRIOR = 0.003  # metres: spread of an offset
_NOISE = 3.0 / 512  # image sides: spread of a detected point
# The mirror image of each point; the irises exchange sides, and their right and left points.
POINT_MIRROR = (
    *MIRROR,
    *(NUM_LANDMARKS + 5 + i for i in (0, 3, 2, 1, 4)),
    *(NUM_LANDMARKS + i for i in (0, 3, 2, 1, 4)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedding:
    """Where K points of a detector lie on a head model, and how they err. Lengths in metres, head frame.

    The detector's errors are shared: a face seen as nodding more than it does moves all of its points. `modes`
    are such patterns, each with an amplitude that is standard normal from picture to picture.
    """

    points: Tensor  # [K] int64: which of the detector's points
    faces: Tensor  # [K] int64: triangles of the model
    barycentrics: Tensor  # [K, 3]
    offsets: Tensor  # [K, 3] constant: from the surface to where the detector sees the point
    modes: Tensor  # [R, K, 3]
    sigma: Tensor  # [K] standard deviation of what is left, in each direction of the image
    iris_sigma: float  # the same of an iris point against its eyeball; the five of an eye count as independent

    def __len__(self) -> int:
        return len(self.points)

    def check(self, model: HeadModel) -> None:
        """ValueError for fields whose shapes disagree, or triangles that the model does not have."""
        count, modes = len(self.points), len(self.modes)
        shapes = {'faces': [count], 'barycentrics': [count, 3], 'offsets': [count, 3], 'sigma': [count]}
        for name, shape in {**shapes, 'modes': [modes, count, 3]}.items():
            found = list(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f'Embedding.{name}: expected shape {shape}, got {found}')
        if count and not 0 <= int(self.faces.min()) <= int(self.faces.max()) < len(model.template.faces):
            raise ValueError(f'Embedding.faces: expected 0 to {len(model.template.faces) - 1}')
        if not bool((self.sigma > 0).all()):
            raise ValueError('Embedding.sigma: expected positive lengths')
        if not self.iris_sigma > 0:
            raise ValueError(f'Embedding.iris_sigma: expected a positive length, got {self.iris_sigma:g}')

    def places(self, vertices: Tensor, model: HeadModel) -> Tensor:
        """Points [N, K, 3] on posed vertices [N, V, 3] in the head frame, with offsets."""
        corners = vertices[:, model.template.faces[self.faces.to(vertices.device)]]
        return (corners * self.barycentrics.to(vertices)[..., None]).sum(dim=2) + self.offsets.to(vertices)

    def exact(self, *, sigma: float) -> Embedding:
        """The same places for points that do not err but for independent noise."""
        return dataclasses.replace(
            self,
            offsets=torch.zeros_like(self.offsets),
            modes=self.modes[:0],
            sigma=torch.full_like(self.sigma, sigma),
            iris_sigma=sigma,
        )

    @staticmethod
    def empty() -> Embedding:
        """No points."""
        none = torch.zeros(0, dtype=torch.int64)
        lengths = torch.zeros(0, 3)
        return Embedding(
            points=none,
            faces=none,
            barycentrics=lengths,
            offsets=lengths,
            modes=lengths[None][:0],
            sigma=lengths[:, 0],
            iris_sigma=1.0,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """What is known of a detector on a head model."""

    offsets: Tensor  # [78, 3] metres, head frame: from the model's 68 landmarks and irises to the detector's
    embedding: Embedding | None

    def digest(self) -> bytes:
        """sha256 of all numbers."""
        found = hashlib.sha256(self.offsets.numpy().tobytes())
        if self.embedding is not None:
            for field in dataclasses.fields(self.embedding):
                value = torch.as_tensor(getattr(self.embedding, field.name))
                found.update(value.numpy().tobytes())
        return found.digest()


def load_calibration(detector: str, model: HeadModel) -> Calibration | None:
    """The calibration of a detector with a model; None if never measured."""
    entry = _table(detector).get(model.name)
    if entry is None:
        return None
    offsets = torch.tensor(entry['offsets_mm']) / 1000
    known = entry.get('embedding')
    if known is None or entry['head_model_hash'] != model.content_hash:  # its triangles are those of one file
        return Calibration(offsets=offsets, embedding=None)
    embedding = Embedding(
        points=torch.tensor(known['points']),
        faces=torch.tensor(known['faces']),
        barycentrics=torch.tensor(known['barycentrics']),
        offsets=torch.tensor(known['offsets_mm']) / 1000,
        modes=torch.tensor(known['modes_um']) / 1e6,
        sigma=torch.tensor(known['sigma_mm']) / 1000,
        iris_sigma=known['iris_sigma_mm'] / 1000,
    )
    return Calibration(offsets=offsets, embedding=embedding)


def mirrored_points(detector: str) -> np.ndarray:
    """For each of a detector's points the one that it becomes in the mirrored picture, int64."""
    return np.array(_table(detector)['mirror'])


def _table(detector: str) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(OFFSETS_FILE.read_text(encoding='utf-8')).get(detector, {})
    return table


def estimate_offsets(
    points: Tensor,  # [N, 78, 3] true points, head frame, metres
    label: Tensor,  # [N, 25]
    turn: Tensor,  # [N, 3, 3] rotation of the skull in the head frame (neck and global pose)
    detected: Tensor,  # [N, 78, 2] in [0, 1]
) -> Tensor:
    """The constant offsets [78, 3], left/right symmetric, that explain detections of known heads best.

    Robust least squares with a zero-mean prior, linear in the offset: it moves a point by millimetres.
    """
    offsets = torch.zeros(NUM_POINTS, 3)
    flip = torch.tensor([-1.0, 1.0, 1.0])
    for _ in range(10):
        moved = points + offsets @ turn.transpose(1, 2)
        image, _ = cameras.project(cameras.head_to_world(moved), label)
        step = 1e-4
        slopes = []
        for axis in torch.eye(3):
            nudged = cameras.head_to_world(moved + step * (turn @ axis)[:, None])
            slopes.append((cameras.project(nudged, label)[0] - image) / step)
        jacobian = torch.stack(slopes, dim=-1) / _NOISE  # [N, 78, 2, 3]
        residual = (detected - image) / _NOISE
        weight = 1 / (1 + residual.square().sum(dim=-1))  # Cauchy: failed detections drop out
        normal = torch.einsum('np,npci,npcj->pij', weight, jacobian, jacobian) + torch.eye(3) / _PRIOR**2
        gradient = torch.einsum('np,npci,npc->pi', weight, jacobian, residual) - offsets / _PRIOR**2
        offsets = offsets + torch.linalg.solve(normal, gradient)
        offsets = 0.5 * (offsets + offsets[list(POINT_MIRROR)] * flip)
    return offsets
