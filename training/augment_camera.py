"""Geometric augmentation that keeps cameras true: what moves the image moves the camera that took it.

Roll, zoom and shift of the image plane are what another camera at the same place sees: one that is turned about its
axis, has another focal length and another principal point. So image, raw image and template rendering are resampled
alike and the camera label follows exactly; heads are left as they are. Mirroring is not among them: it changes the head
too, and is the dataset's business (training/mirroring.py).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from training.augment import Draw
from training.cameras import LABEL_DIM, pack_label, unpack_label

ROLL_STD = 0.2  # radians
ZOOM_STD = 0.2  # octaves (StyleGAN2-ADA's scale)
SHIFT_STD = 0.125  # of the image's side (StyleGAN2-ADA's xfrac)


@dataclasses.dataclass(frozen=True)
class CameraMove:
    """Similarities of the image plane: p -> linear (p - centre) + centre + shift, p in image coordinates."""

    linear: Tensor  # [N, 2, 2] rotation times zoom
    shift: Tensor  # [N, 2] (column, row) in units of the image's side

    def images(self, images: Tensor) -> Tensor:
        """images [N, C, R, R] moved; bilinear, what lies outside is reflected. Differentiable to any order."""
        count, channels, size, _ = images.shape
        linear, shift = self.linear.to(images.dtype), self.shift.to(images.dtype)
        centres = (torch.arange(size, dtype=images.dtype, device=images.device) + 0.5) / size - 0.5
        row, column = torch.meshgrid(centres, centres, indexing='ij')
        target = torch.stack([column.flatten(), row.flatten()], dim=-1) - shift[:, None]  # [N, R R, 2]
        source = target @ torch.linalg.inv(linear).transpose(1, 2)
        column, row = ((source + 0.5) * size - 0.5).unbind(-1)  # pixels, centres at whole numbers
        flat, result = images.flatten(2), torch.zeros_like(images.flatten(2))
        for column_index, column_weight in _ends(column):
            for row_index, row_weight in _ends(row):
                index = reflected(row_index, size) * size + reflected(column_index, size)
                corner = flat.gather(2, index[:, None].expand(-1, channels, -1))
                result = result + corner * (column_weight * row_weight)[:, None]
        return result.view_as(images)

    def label(self, label: Tensor) -> Tensor:
        """Cameras that see what `images` shows; the numbers after the 25 of the camera stay. [N, 25 or more]"""
        cam2world, intrinsics = unpack_label(label)
        linear, shift = self.linear.to(label.dtype), self.shift.to(label.dtype)
        # linear x focal = focal' x turn: the turn goes to the pose and leaves an upper triangle to the intrinsics.
        moved = linear @ intrinsics[:, :2, :2]
        sine, cosine = torch.nn.functional.normalize(moved[:, 1], dim=-1).unbind(-1)
        turn = torch.stack([torch.stack([cosine, -sine], dim=-1), torch.stack([sine, cosine], dim=-1)], dim=1)
        inner = intrinsics.clone()
        inner[:, :2, :2] = moved @ turn.transpose(1, 2)
        inner[:, 1, 0] = 0  # exactly
        inner[:, :2, 2] = (linear @ (intrinsics[:, :2, 2] - 0.5)[..., None])[..., 0] + 0.5 + shift
        pose = cam2world.clone()
        pose[:, :3, :2] = cam2world[:, :3, :2] @ turn.transpose(1, 2)
        return torch.cat([pack_label(pose, inner), label[:, LABEL_DIM:]], dim=1)


def draw_move(draw: Draw) -> CameraMove:
    """Roll, zoom and shift, each of a sample with the draw's probability."""
    roll, zoom = draw.normal() * ROLL_STD, torch.exp2(draw.normal() * ZOOM_STD)
    cosine, sine = roll.cos() * zoom, roll.sin() * zoom
    linear = torch.stack([torch.stack([cosine, -sine], dim=-1), torch.stack([sine, cosine], dim=-1)], dim=1)
    return CameraMove(linear, draw.normal(2) * SHIFT_STD)


def reflected(index: Tensor, size: int) -> Tensor:
    """Whole pixel numbers folded back into [0, size) at the image's edges: -1 -> 0, size -> size - 1."""
    folded = index % (2 * size)
    return torch.where(folded < size, folded, 2 * size - 1 - folded)


def _ends(position: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The two whole numbers about each position, with their weights."""
    low = position.floor()
    share = position - low
    return (low.long(), 1 - share), (low.long() + 1, share)
