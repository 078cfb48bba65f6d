"""EG3D's 25-number camera label and what other tools call a camera, both ways.

The label's own conventions are in training/cameras.py: cam2world with OpenCV axes (x right, y down, z forward),
intrinsics in units of the image side, image coordinates (column, row) in [0, 1].

    OpenCV               world2cam, the same axes
    OpenGL, Blender      cam2world with x right, y up, z backward (the camera looks along -z)
    pixels               focal lengths and centre in pixels of an image of a given side
    weak perspective     DECA's and SMIRK's (scale, x, y) beside a turn of the head: an orthographic camera

All functions keep the dtype and device of their inputs and are differentiable.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from training.cameras import FOCAL, HEAD_SCALE, HEAD_TRANSLATION, pack_label, unpack_label

_FLIP = (1.0, -1.0, -1.0)  # y and z change sign between OpenCV's and OpenGL's camera axes


def label_to_opencv(label: Tensor) -> tuple[Tensor, Tensor]:
    """label [N, 25] -> world2cam [N, 4, 4] and intrinsics [N, 3, 3] in image sides."""
    cam2world, intrinsics = unpack_label(label)
    return _invert(cam2world), intrinsics


def opencv_to_label(world2cam: Tensor, intrinsics: Tensor) -> Tensor:
    """world2cam [N, 4, 4] (or [N, 3, 4]) with OpenCV axes and intrinsics [N, 3, 3] in image sides -> label [N, 25]."""
    if world2cam.ndim != 3 or world2cam.shape[1] not in (3, 4) or world2cam.shape[2] != 4:
        raise ValueError(f'world2cam: expected shape [N, 4, 4] or [N, 3, 4], got {list(world2cam.shape)}')
    return pack_label(_invert(world2cam), intrinsics)


def label_to_opengl(label: Tensor) -> tuple[Tensor, Tensor]:
    """label [N, 25] -> cam2world [N, 4, 4] of a camera that looks along -z, and intrinsics [N, 3, 3] in image sides."""
    cam2world, intrinsics = unpack_label(label)
    return cam2world * cam2world.new_tensor([*_FLIP, 1.0]), intrinsics


def opengl_to_label(cam2world: Tensor, intrinsics: Tensor) -> Tensor:
    """cam2world [N, 4, 4] of a camera that looks along -z (OpenGL, Blender, NeRF's transforms.json) -> label [N, 25].

    The world must already be ours: x to the subject's left, y up, face to +z (Blender's own has z up).
    """
    if list(cam2world.shape[1:]) != [4, 4]:
        raise ValueError(f'cam2world: expected shape [N, 4, 4], got {list(cam2world.shape)}')
    return pack_label(cam2world * cam2world.new_tensor([*_FLIP, 1.0]), intrinsics)


def to_pixels(intrinsics: Tensor, side: float, *, integer_centres: bool = False) -> Tensor:
    """Intrinsics [N, 3, 3] in image sides -> in pixels of an image of `side` x `side` pixels.

    integer_centres: False where pixel i covers [i, i + 1] (its centre is i + 0.5, as here and in OpenGL);
    True where pixel i has its centre at i (OpenCV, COLMAP before its shift), which moves the centre by half a pixel.
    """
    scale = intrinsics.new_tensor([[side], [side], [1.0]])
    return intrinsics * scale - _half_pixel(intrinsics, integer_centres)


def from_pixels(intrinsics: Tensor, side: float, *, integer_centres: bool = False) -> Tensor:
    """Inverse of `to_pixels`."""
    scale = intrinsics.new_tensor([[side], [side], [1.0]])
    return (intrinsics + _half_pixel(intrinsics, integer_centres)) / scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeakPerspective:
    """An orthographic view as DECA and SMIRK state it, N samples.

    The head point h (metres) is first turned, x = rotation (h - pivot) + pivot, and then seen at
    column = 0.5 + 0.5 scale (x_0 + shift_0), row = 0.5 - 0.5 scale (x_1 + shift_1); depth plays no part.
    """

    scale: Tensor  # [N] image half-sides a metre
    shift: Tensor  # [N, 2] metres: right, up
    rotation: Tensor  # [N, 3, 3] of the head: FLAME's global rotation
    pivot: Tensor  # [N, 3] metres: the root joint, about which FLAME turns

    def __post_init__(self) -> None:
        count = len(self.scale)
        for name, shape in (('scale', []), ('shift', [2]), ('rotation', [3, 3]), ('pivot', [3])):
            value = getattr(self, name)
            if list(value.shape) != [count, *shape]:
                raise ValueError(f'WeakPerspective.{name}: expected shape {[count, *shape]}, got {list(value.shape)}')

    def project(self, points: Tensor) -> Tensor:
        """Head points [N, M, 3] (metres) -> image coordinates [N, M, 2] in [0, 1]."""
        flat = self._turn(points)[..., :2] + self.shift[:, None]
        return 0.5 + 0.5 * self.scale[:, None, None] * flat * flat.new_tensor([1.0, -1.0])

    def _turn(self, points: Tensor) -> Tensor:
        return (points - self.pivot[:, None]) @ self.rotation.transpose(1, 2) + self.pivot[:, None]

    def in_crop(self, column: Tensor, row: Tensor, side: Tensor) -> WeakPerspective:
        """The same view seen in the whole picture, whose part at (column, row) of `side` the tracker saw as its crop.

        column, row (upper left corner) and side are [N], in sides of the whole picture.
        """
        centre = torch.stack([column + side / 2 - 0.5, -(row + side / 2 - 0.5)], dim=1)
        scale = self.scale * side
        return dataclasses.replace(self, scale=scale, shift=self.shift + 2 * centre / scale[:, None])


def weak_to_label(weak: WeakPerspective, reference: Tensor, *, focal: float = FOCAL) -> Tensor:
    """The perspective camera [N, 25] that sees the plane of depth through `reference` exactly as `weak` does.

    reference: a head point [N, 3] or [3] (metres), best the middle of the face. Points in the plane through it,
    parallel to the image, land on the same pixels; nearer ones lie further out and farther ones further in, as
    perspective wants. The turn of the head becomes the camera's: the head itself stays in its own frame.
    """
    reference = reference.to(weak.pivot).expand_as(weak.pivot)
    flip = weak.pivot.new_tensor(_FLIP)
    depth = 2 * focal / weak.scale  # metres of the head
    turned = weak._turn(reference[:, None])[:, 0]
    rotation = flip[:, None] * weak.rotation  # camera from head
    origin = weak.pivot - (weak.rotation @ weak.pivot[..., None])[..., 0]
    shift = torch.cat([weak.shift, torch.zeros_like(weak.shift[:, :1])], dim=1)
    offset = flip * (origin + shift)
    offset = torch.cat([offset[:, :2], offset[:, 2:] + (depth + turned[:, 2])[:, None]], dim=1)
    move = HEAD_SCALE * offset - (rotation @ weak.pivot.new_tensor(HEAD_TRANSLATION)[:, None])[..., 0]
    intrinsics = weak.pivot.new_tensor([[focal, 0.0, 0.5], [0.0, focal, 0.5], [0.0, 0.0, 1.0]])
    return opencv_to_label(
        torch.cat([rotation, move[..., None]], dim=2), intrinsics.expand(len(rotation), 3, 3).contiguous()
    )


def label_to_weak(label: Tensor, reference: Tensor, *, pivot: Tensor) -> WeakPerspective:
    """The orthographic view that agrees with the camera [N, 25] in the plane through `reference`; see weak_to_label.

    reference, pivot: head points [N, 3] or [3], metres. Exact inverse of `weak_to_label` with the same two points.
    ValueError unless focal lengths are equal, the centre is 0.5 and there is no skew.
    """
    world2cam, intrinsics = label_to_opencv(label)
    focal = intrinsics[:, 0, 0]
    wanted = torch.eye(3).to(label) * torch.stack([focal, focal, torch.ones_like(focal)], dim=1)[:, None]
    wanted[:, :2, 2] = 0.5
    if not torch.allclose(intrinsics, wanted, atol=1e-4):
        raise ValueError('label: expected one focal length, centre 0.5 and no skew')
    reference, pivot = reference.to(label).expand(len(label), 3), pivot.to(label).expand(len(label), 3)
    rotation = label.new_tensor(_FLIP)[:, None] * world2cam[:, :3, :3]
    world = HEAD_SCALE * reference + label.new_tensor(HEAD_TRANSLATION)
    seen = (world2cam[:, :3, :3] @ world[..., None])[..., 0] + world2cam[:, :3, 3]  # camera frame, world units
    depth = seen[:, 2:] / HEAD_SCALE
    turned = (rotation @ (reference - pivot)[..., None])[..., 0] + pivot
    shift = seen[:, :2] / HEAD_SCALE * label.new_tensor([1.0, -1.0]) - turned[:, :2]
    return WeakPerspective(scale=2 * focal / depth[:, 0], shift=shift, rotation=rotation, pivot=pivot)


def _invert(matrix: Tensor) -> Tensor:
    """The inverse [N, 4, 4] of rigid motions [N, 3 or 4, 4]."""
    rotation = matrix[:, :3, :3].transpose(1, 2)
    inverse = torch.eye(4).to(matrix).repeat(len(matrix), 1, 1)
    inverse[:, :3, :3] = rotation
    inverse[:, :3, 3] = -(rotation @ matrix[:, :3, 3:])[..., 0]
    return inverse


def _half_pixel(intrinsics: Tensor, integer_centres: bool) -> Tensor:
    shift = torch.zeros_like(intrinsics)
    shift[:, :2, 2] = 0.5 if integer_centres else 0.0
    return shift
