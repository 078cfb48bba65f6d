"""What part of a picture an estimator looks at: by landmarks, or where heads stand in pictures of our cameras.

A `Locator` finds the 68 landmarks (iBUG order) of the face in one picture; a detector is such a thing
(applications/estimators). Without one, crops are those of a neutral head before the frontal camera: right for the
datasets and generators of this project, whose cameras all look at the head's centre.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# uint8 [3, H, W] -> landmarks [68, 2] as (column, row) in [0, 1], or None where there is no face.
Locator = Callable[[Tensor], Tensor | None]

# The embedded head, neutral, before the frontal camera; tests compute them again.
FRONTAL_BOX = (0.2574, 0.2874, 0.7426, 0.7694)  # left, top, right, bottom of the 68 landmarks
FRONTAL_FIVE = ((0.3918, 0.3727), (0.6082, 0.3727), (0.5, 0.5), (0.412, 0.6214), (0.588, 0.6214))


def five_points(landmarks: Tensor) -> Tensor:
    """Middles of the right and left eye, tip of the nose, corners of the mouth [5, 2] of 68 landmarks [68, 2]."""
    eyes = [landmarks[36:42].mean(dim=0), landmarks[42:48].mean(dim=0)]
    return torch.stack([*eyes, landmarks[30], landmarks[48], landmarks[54]])


def square_crop(box: Tensor, *, scale: float) -> Tensor:
    """The map [2, 3] from [0, 1]^2 of the crop to the picture: a square about a box [4], `scale` mean sides wide."""
    left, top, right, bottom = box.unbind()
    side = scale * (right - left + bottom - top) / 2
    zero = torch.zeros_like(side)
    row = [(left + right) / 2 - side / 2, (top + bottom) / 2 - side / 2]
    return torch.stack([torch.stack([side, zero, row[0]]), torch.stack([zero, side, row[1]])])


def landmark_box(landmarks: Tensor) -> Tensor:
    """Left, top, right, bottom [4] of landmarks [68, 2]."""
    return torch.cat([landmarks.amin(dim=0), landmarks.amax(dim=0)])


def similarity(source: Tensor, target: Tensor) -> Tensor:
    """The map [2, 3] of scale, turn and shift that carries points `source` [K, 2] nearest to `target` [K, 2]."""
    centre, middle = source.mean(dim=0), target.mean(dim=0)
    x, y = (source - centre).unbind(dim=1)
    u, v = (target - middle).unbind(dim=1)
    size = (x * x + y * y).sum()
    cosine, sine = (x * u + y * v).sum() / size, (x * v - y * u).sum() / size
    linear = torch.stack([torch.stack([cosine, -sine]), torch.stack([sine, cosine])])
    return torch.cat([linear, (middle - linear @ centre)[:, None]], dim=1)


def crop_image(images: Tensor, matrix: Tensor, *, size: int) -> Tensor:
    """Float images [N, 3, H, W] seen through a map [2, 3] (`square_crop`) -> [N, 3, size, size]; differentiable.

    Bilinear; a picture that is larger than the crop needs is reduced first, with a low-pass filter. Outside is black
    (-1).
    """
    matrix = matrix.to(images)
    pixels = float(matrix[:, :2].norm(dim=0).mean()) * images.shape[3]  # of the picture, across the crop
    if pixels > 1.05 * size:
        smaller = [max(1, round(side * size / pixels)) for side in images.shape[2:]]
        images = F.interpolate(images, size=smaller, mode='bilinear', antialias=True, align_corners=False)
    # affine_grid works in [-1, 1] on both sides: p = 2 q - 1.
    linear, shift = matrix[:, :2], matrix[:, 2]
    theta = torch.cat([linear, (linear.sum(dim=1) + 2 * shift - 1)[:, None]], dim=1)
    grid = F.affine_grid(theta.expand(len(images), 2, 3), [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(images + 1, grid, mode='bilinear', padding_mode='zeros', align_corners=False) - 1
