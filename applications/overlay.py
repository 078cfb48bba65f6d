"""Heads of a dataset drawn over their pictures: the quickest proof that camera, mesh and image agree."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from applications.preprocessing.report import contact_sheet, draw_overlay
from training import cameras
from training.head.model import HeadInput, HeadModel

_MIN_SIDE = 320  # smaller pictures are enlarged before drawing, pixel by pixel


def project_head(head: HeadInput, label: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heads [N] under cameras [N, 25] -> vertices [N, V, 2], landmarks [N, 68, 2] and landmark depth [N, 68].

    Image coordinates in [0, 1] (training/cameras.py), depth in world units along the optical axis.
    """
    vertices, _ = cameras.project(cameras.head_to_world(head.vertices), label)
    landmarks, depth = cameras.project(cameras.head_to_world(head.landmarks), label)
    return vertices.numpy(), landmarks.numpy(), depth.numpy()


def draw_head(
    image: np.ndarray,  # uint8 [R, R, 3]
    *,
    head: HeadInput,  # one row
    label: Tensor,  # [25]
    model: HeadModel,  # for its faces and eye region
) -> np.ndarray:
    """The picture, at least 320 pixels, with the head's wires, landmarks (red) and irises (green); uint8."""
    factor = -(-_MIN_SIDE // image.shape[0])
    picture = image.repeat(factor, axis=0).repeat(factor, axis=1)
    vertices, landmarks, _ = project_head(head, label[None])
    points = vertices[0] * picture.shape[0]
    skin = model.template.faces[~model.regions['eyes']].numpy()
    wires = draw_overlay(picture, vertices=points, faces=skin, given=points[model.gaze_vertices.reshape(-1).numpy()])
    return draw_overlay(wires, vertices=points, faces=skin[:0], fitted=landmarks[0] * picture.shape[0])


def overlay_sheet(
    images: Tensor,  # uint8 [N, 3, R, R]
    *,
    head: HeadInput,
    label: Tensor,  # [N, 25]
    model: HeadModel,
    columns: int = 4,
) -> np.ndarray:
    """N overlays side by side, uint8 [H, W, 3]."""
    items = zip(images.permute(0, 2, 3, 1).numpy(), label, strict=True)
    drawn = [draw_head(image, head=head[[row]], label=camera, model=model) for row, (image, camera) in enumerate(items)]
    return contact_sheet(drawn, columns=columns, cell=_MIN_SIDE)


def neutral_heads(model: HeadModel, count: int) -> HeadInput:
    """The neutral head `count` times: shows the camera convention of datasets without heads."""
    with torch.no_grad():
        return model.forward(model.neutral(count))
