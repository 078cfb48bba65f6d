"""Cameras, rays and the frames that they connect. Every convention is stated once, here.

World: EG3D's. x to the subject's left, y up, face towards +z, box half-side 0.5.
Camera: OpenCV axes, x right, y down, z forward.
Label: 25 numbers = cam2world 4x4 row-major, then normalized intrinsics 3x3 row-major
(focal 4.2647 and centre 0.5 in units of the image side).
Image coordinates: (column, row) in [0, 1], origin at the top left corner; the centre of
pixel i of an image with side R lies at (i + 0.5) / R.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

FOCAL = 4.2647
RADIUS = 2.7
FRAMING_TOLERANCE = 0.02  # the two framings differ by 0.2 from the front
PIVOT = (0.0, 0.0, 0.2)
HEAD_SCALE = 2.5
HEAD_TRANSLATION = (0.0, 0.025, -0.025)
LABEL_DIM = 25


def head_to_world(points: Tensor) -> Tensor:
    """Head frame (metres) [..., 3] -> world [..., 3] with the constants of the paper's data."""
    return points * HEAD_SCALE + points.new_tensor(HEAD_TRANSLATION)


def world_to_head(points: Tensor) -> Tensor:
    """Inverse of `head_to_world`."""
    return (points - points.new_tensor(HEAD_TRANSLATION)) / HEAD_SCALE


def pack_label(cam2world: Tensor, intrinsics: Tensor) -> Tensor:
    """cam2world [N, 4, 4] and normalized intrinsics [N, 3, 3] -> label [N, 25]."""
    return torch.cat([cam2world.reshape(-1, 16), intrinsics.reshape(-1, 9)], dim=1)


def unpack_label(label: Tensor) -> tuple[Tensor, Tensor]:
    """label [N, 25] -> cam2world [N, 4, 4], normalized intrinsics [N, 3, 3]."""
    if label.ndim != 2 or label.shape[1] < LABEL_DIM:
        raise ValueError(f'label: expected shape [N, 25] (cam2world 16 + intrinsics 9), got {list(label.shape)}')
    return label[:, :16].reshape(-1, 4, 4), label[:, 16:25].reshape(-1, 3, 3)


def intrinsics(count: int = 1, *, focal: float = FOCAL, device: torch.device | None = None) -> Tensor:
    """Normalized pinhole intrinsics [count, 3, 3] with the centre at 0.5 and no skew."""
    matrix = torch.tensor([[focal, 0.0, 0.5], [0.0, focal, 0.5], [0.0, 0.0, 1.0]], device=device)
    return matrix.expand(count, 3, 3).clone()


def focal_from_fov(degrees: float) -> float:
    """Normalized focal length of EG3D's --fov-deg, in its own arithmetic (1.414, and pi to five decimals).

    The angle counts across the diagonal: 18.837 gives 4.2634 (the labels have 4.2647), while the image side spans
    13.4 degrees.
    """
    return 1 / (1.414 * math.tan(degrees * 3.14159 / 360))


def look_at(position: Tensor, target: Tensor, *, up: Tensor | None = None) -> Tensor:
    """Camera-to-world matrices [N, 4, 4] of cameras at `position` [N, 3] that face `target` [N, 3]."""
    up = position.new_tensor([0.0, 1.0, 0.0]).expand_as(position) if up is None else up
    forward = torch.nn.functional.normalize(target - position, dim=-1)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up.expand_as(forward)), dim=-1)
    down = torch.linalg.cross(forward, right)
    matrix = torch.eye(4, dtype=position.dtype, device=position.device).repeat(position.shape[0], 1, 1)
    matrix[:, :3, :3] = torch.stack([right, down, forward], dim=-1)
    matrix[:, :3, 3] = position
    return matrix


def orbit_camera(
    yaw: Tensor,  # [N] radians; positive: the camera moves to the subject's left (+x)
    pitch: Tensor,  # [N] radians; positive: the camera moves up
    *,
    roll: Tensor | None = None,  # [N] radians about the optical axis; positive: the image turns anticlockwise
    radius: float = RADIUS,
    pivot: tuple[float, float, float] = PIVOT,
    centre: tuple[float, float, float] | None = None,
    focal: float = FOCAL,
) -> Tensor:
    """Labels [N, 25] of cameras on a sphere about `centre` that look at `pivot`; yaw = pitch = 0 faces the head.

    centre None: the pivot, as in our own data. EG3D's and the release's cameras lie about the origin.
    """
    direction = torch.stack([yaw.sin() * pitch.cos(), pitch.sin(), yaw.cos() * pitch.cos()], dim=-1)
    target = yaw.new_tensor(pivot).expand_as(direction)
    middle = target if centre is None else yaw.new_tensor(centre)
    cam2world = look_at(middle + radius * direction, target)
    if roll is not None:
        turn = torch.eye(4, dtype=yaw.dtype, device=yaw.device).repeat(len(yaw), 1, 1)
        turn[:, 0, 0], turn[:, 0, 1] = roll.cos(), -roll.sin()
        turn[:, 1, 0], turn[:, 1, 1] = roll.sin(), roll.cos()
        cam2world = cam2world @ turn
    return pack_label(cam2world, intrinsics(len(yaw), focal=focal, device=yaw.device).to(yaw.dtype))


def camera_angles(label: Tensor) -> np.ndarray:
    """label [N, 25] -> yaw, pitch, roll [N, 3] in radians, as orbit_camera takes them."""
    cam2world, _ = unpack_label(label)
    toward = torch.nn.functional.normalize(cam2world[:, :3, 3] - label.new_tensor(PIVOT), dim=-1)
    yaw, pitch = torch.atan2(toward[:, 0], toward[:, 2]), torch.asin(toward[:, 1].clamp(-1, 1))
    level, _ = unpack_label(orbit_camera(yaw, pitch))
    right, down = level[:, :3, 0], level[:, :3, 1]
    roll = torch.atan2((cam2world[:, :3, 0] * down).sum(dim=1), (cam2world[:, :3, 0] * right).sum(dim=1))
    return torch.stack([yaw, pitch, roll], dim=1).cpu().numpy()


def framing_of(label: Tensor) -> str:
    """How cameras [N, 25] stand: 'pivot' (RADIUS from the pivot), 'eg3d' (RADIUS from the origin), '' (otherwise).

    By their median distances: a few cameras that stand elsewhere change nothing.
    """
    position = unpack_label(label)[0][:, :3, 3]
    for name, centre in (('pivot', PIVOT), ('eg3d', (0.0, 0.0, 0.0))):
        distance = (position - position.new_tensor(centre)).norm(dim=1)
        if len(distance) and abs(float(distance.median()) - RADIUS) < FRAMING_TOLERANCE:
            return name
    return ''


def project(points: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """World points [N, M, 3] -> image coordinates [N, M, 2] in [0, 1], depth along the axis [N, M]."""
    cam2world, matrix = unpack_label(label)
    local = (points - cam2world[:, None, :3, 3]) @ cam2world[:, :3, :3]
    homogeneous = local @ matrix.transpose(1, 2)
    return homogeneous[..., :2] / homogeneous[..., 2:], local[..., 2]


def rays(label: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """label [N, 25] -> origins and unit directions [N, resolution^2, 3], world, rows first."""
    cam2world, matrix = unpack_label(label)
    centres = (torch.arange(resolution, dtype=label.dtype, device=label.device) + 0.5) / resolution
    row, column = torch.meshgrid(centres, centres, indexing='ij')
    column, row = column.reshape(1, -1), row.reshape(1, -1)
    fx, fy, skew = matrix[:, 0, 0, None], matrix[:, 1, 1, None], matrix[:, 0, 1, None]
    cx, cy = matrix[:, 0, 2, None], matrix[:, 1, 2, None]
    x = (column - cx + cy * skew / fy - skew * row / fy) / fx
    y = (row - cy) / fy
    local = torch.stack([x, y, torch.ones_like(x), torch.ones_like(x)], dim=-1)
    points = (cam2world @ local.transpose(1, 2)).transpose(1, 2)[..., :3]
    origins = cam2world[:, None, :3, 3].expand_as(points)
    return origins, torch.nn.functional.normalize(points - origins, dim=-1)


def mirror_label(label: Tensor) -> Tensor:
    """The camera [N, 25] that sees the x-mirrored world as the horizontally flipped image."""
    cam2world, matrix = unpack_label(label)
    flip = torch.ones(4, dtype=label.dtype, device=label.device)
    flip[0] = -1
    mirrored = matrix.clone()
    mirrored[:, 0, 2] = 1 - matrix[:, 0, 2]
    mirrored[:, 0, 1] = -matrix[:, 0, 1]
    return pack_label(flip[:, None] * cam2world * flip, mirrored)
