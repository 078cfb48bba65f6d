"""Known heads, cameras and a detector that sees them exactly, for tests of preprocessing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from applications.preprocessing.align import Crop
from applications.preprocessing.detect import Face
from applications.preprocessing.fit import project_head
from training import cameras
from training.head.model import HeadModel, HeadParams

MOUTH_AND_LIDS = ('jawOpen', 'mouthSmileLeft', 'mouthSmileRight', 'mouthPucker', 'browInnerUp', 'eyeBlinkRight')


def random_heads(model: HeadModel, count: int, *, seed: int) -> tuple[HeadParams, Tensor]:
    """Varied people, expressions, gazes and cameras: params and labels [count, 25]."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    params = model.neutral(count)
    expression = torch.zeros_like(params.expression)
    for name in MOUTH_AND_LIDS:
        weight = torch.rand(count, 1, generator=rng) * 0.6
        expression += weight * model.named_expression(name).expression
    jaw = torch.zeros(count, 3)
    jaw[:, 0] = torch.rand(count, generator=rng) * 0.2
    gaze = torch.zeros(count, 6)
    gaze[:, [0, 3]] = normal(count, 1).clamp(-2, 2) * 0.12
    gaze[:, [1, 4]] = normal(count, 1).clamp(-2, 2) * 0.2
    identity = 0.6 * normal(count, model.num_identity).clamp(-2, 2)
    label = cameras.orbit_camera(
        normal(count).clamp(-2, 2) * 0.25, normal(count).clamp(-2, 2) * 0.12, roll=normal(count).clamp(-2, 2) * 0.1
    )
    return params.replace(identity=identity, expression=expression, jaw=jaw, eyes=gaze), label


def face_in_photo(model: HeadModel, params: HeadParams, label: Tensor, *, crop: Crop) -> Face:
    """What a perfect detector reports of one head [1, ...] seen in `crop` of a photograph."""
    landmarks, iris = project_head(model, params, label)
    return Face(landmarks=crop.to_photo(landmarks[0].double().numpy()), iris=crop.to_photo(iris[0].double().numpy()))


class FakeDetector:
    """Knows the faces of each photograph by the red value of its first pixel."""

    name = 'fake'

    def __init__(self, faces: Mapping[int, list[Face]]) -> None:
        self.faces = faces

    def detect(self, image: np.ndarray) -> list[Face]:
        return list(self.faces.get(int(image[0, 0, 0]), []))


def photo(key: int, *, width: int = 320, height: int = 280) -> Image.Image:
    """A smooth picture whose first pixel's red value is `key`."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    values = np.stack([0 * rows + 128, columns * 255 // width, rows * 255 // height], axis=-1).astype(np.uint8)
    values[0, 0, 0] = key
    return Image.fromarray(values)
