"""Axis-angle rotations, skinning by a few joints. Used by both head models."""

from __future__ import annotations

import torch
from torch import Tensor

from training.head.model import HeadParams


def axis_angle_matrix(vectors: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of axis-angle vectors [..., 3] (radians); smooth everywhere, identity at 0."""
    squared = (vectors * vectors).sum(dim=-1, keepdim=True)[..., None]
    small = squared < 1e-6
    safe = torch.where(small, torch.ones_like(squared), squared)
    angle = safe.sqrt()
    # sin(a)/a and (1 - cos a)/a^2, by their series near zero so that gradients exist there too.
    first = torch.where(small, 1 - squared / 6, angle.sin() / angle)
    second = torch.where(small, 0.5 - squared / 24, (1 - angle.cos()) / safe)
    x, y, z = vectors.unbind(dim=-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(*vectors.shape[:-1], 3, 3)
    return torch.eye(3, dtype=vectors.dtype, device=vectors.device) + first * skew + second * (skew @ skew)


def skin(vertices: Tensor, weights: Tensor, joints: Tensor, rotations: Tensor, parents: tuple[int, ...]) -> Tensor:
    """Linear blend skinning.

    vertices [N, V, 3] and joints [N, J, 3] of the unposed shape; weights [V, J], rows sum to 1; rotations
    [N, J, 3, 3], each relative to its parent; parents of the joints in order, -1 for the root, parents first.
    Returns the posed vertices [N, V, 3].
    """
    turned: list[Tensor] = []  # rotation of joint j in the model's frame
    moved: list[Tensor] = []  # where joint j goes
    for j, parent in enumerate(parents):
        if parent < 0:
            turned.append(rotations[:, j])
            moved.append(joints[:, j])
        else:
            offset = joints[:, j] - joints[:, parent]
            turned.append(turned[parent] @ rotations[:, j])
            moved.append(moved[parent] + (turned[parent] @ offset[:, :, None])[:, :, 0])
    matrix = torch.stack(turned, dim=1)
    shift = torch.stack(moved, dim=1) - (matrix @ joints[..., None])[..., 0]
    # An affine map for each vertex, by one product; coordinates as planes, so that all sums run along the vertices.
    maps = torch.cat([matrix.transpose(2, 3).flatten(2), shift], dim=2).transpose(1, 2)  # [N, 12, J]
    count = len(maps)
    first, second, third, place = (maps.reshape(12 * count, -1) @ weights.T).reshape(count, 4, 3, -1).unbind(dim=1)
    x, y, z = vertices.transpose(1, 2).contiguous().split(1, dim=1)
    planes = torch.addcmul(torch.addcmul(torch.addcmul(place, first, x), second, y), third, z)
    return planes.transpose(1, 2).contiguous()


def mirror_rotation(vectors: Tensor) -> Tensor:
    """Axis-angle vectors [..., 3] of the mirrored rotation (x -> -x)."""
    return vectors * torch.tensor([1.0, -1.0, -1.0], dtype=vectors.dtype, device=vectors.device)


def mirror_pose(params: HeadParams, *, identity: Tensor, expression: Tensor) -> HeadParams:
    """The x-mirrored pose of `params` with coefficients that the caller has mirrored; the eyes change places."""
    flip = torch.tensor([-1.0, 1.0, 1.0], device=params.translation.device)
    return HeadParams(
        identity=identity,
        expression=expression,
        jaw=mirror_rotation(params.jaw),
        neck=mirror_rotation(params.neck),
        eyes=torch.cat([mirror_rotation(params.eyes[:, 3:]), mirror_rotation(params.eyes[:, :3])], dim=1),
        rotation=mirror_rotation(params.rotation),
        translation=params.translation * flip,
    )
