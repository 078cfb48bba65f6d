"""Rotations as axis-angle vectors (radians) and as matrices."""

from __future__ import annotations

import torch
from torch import Tensor


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


def matrix_axis_angle(matrices: Tensor) -> Tensor:
    """Axis-angle vectors [..., 3], of length 0 to pi, of rotation matrices [..., 3, 3].

    By way of the unit quaternion, from the row of its outer product that is longest, so that it is accurate at
    every angle; the gradient is undefined at angle 0 and pi.
    """
    if matrices.shape[-2:] != (3, 3):
        raise ValueError(f'matrices: expected shape [..., 3, 3], got {list(matrices.shape)}')
    xx, xy, xz, yx, yy, yz, zx, zy, zz = matrices.flatten(-2).unbind(dim=-1)
    rows = torch.stack(  # 4 q q^T, q = (w, x, y, z)
        [
            torch.stack([1 + xx + yy + zz, zy - yz, xz - zx, yx - xy], dim=-1),
            torch.stack([zy - yz, 1 + xx - yy - zz, yx + xy, xz + zx], dim=-1),
            torch.stack([xz - zx, yx + xy, 1 - xx + yy - zz, zy + yz], dim=-1),
            torch.stack([yx - xy, xz + zx, zy + yz, 1 - xx - yy + zz], dim=-1),
        ],
        dim=-2,
    )
    longest = rows.square().sum(dim=-1).argmax(dim=-1)
    quaternion = torch.take_along_dim(rows, longest[..., None, None], dim=-2)[..., 0, :]
    quaternion = torch.nn.functional.normalize(quaternion, dim=-1)
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    sine = quaternion[..., 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, quaternion[..., :1])
    # angle / sine tends to 2 at the identity.
    return quaternion[..., 1:] * torch.where(sine < 1e-6, torch.full_like(sine, 2.0), angle / sine.clamp(min=1e-6))
