"""Where a detector's landmarks lie on a head model, as constant offsets in the head frame.

The 68 points of a detector and of a head model carry the same names but are not quite the same
places: some lie 3 mm apart, all in the same direction in every picture. Left alone, that turns into
a wrong pitch of the head and of the eyes. The offsets are measured on renderings of the model,
where the true points are known (tools/calibrate_landmarks.py), and added to the model's points
before they are compared with detected ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from training import cameras
from training.head.landmarks import MIRROR
from training.head.model import NUM_LANDMARKS

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


def landmark_offsets(detector: str, model: str) -> Tensor | None:
    """Offsets [78, 3] in metres, head frame, of a detector's points from a model's; None if never measured."""
    table = json.loads(OFFSETS_FILE.read_text(encoding='utf-8'))
    entry = table.get(detector, {}).get(model)
    return None if entry is None else torch.tensor(entry['offsets_mm']) / 1000


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
