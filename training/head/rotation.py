"""Skinning by a few joints, mirrored poses. Used by both head models; axis-angle: torch_utils/rotations.py."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_utils.rotations import axis_angle_matrix as axis_angle_matrix
from training.head.model import HeadParams


def skin(vertices: Tensor, weights: Tensor, joints: Tensor, rotations: Tensor, parents: tuple[int, ...]) -> Tensor:
    """Linear blend skinning.

    vertices [N, V, 3] and joints [N, J, 3] of the unposed shape; weights [V, J], rows sum to 1; rotations
    [N, J, 3, 3], each relative to its parent; parents of the joints in order, -1 for the root, parents first.
    Returns the posed vertices [N, V, 3].
    """
    planes = vertices.permute(2, 0, 1).contiguous()
    return skin_planes(planes, weights.T.contiguous(), joints, rotations, parents).permute(1, 2, 0).contiguous()


def skin_planes(planes: Tensor, weights: Tensor, joints: Tensor, rotations: Tensor, parents: tuple[int, ...]) -> Tensor:
    """`skin` with coordinates as planes, so that all arithmetic runs along the vertices.

    planes [3, N, V] and weights [J, V]; returns [3, N, V].
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
    # An affine map for each vertex, by one product: [4 of (x, y, z, 1), 3 to, N, V].
    maps = torch.cat([matrix.transpose(2, 3), shift[:, :, None]], dim=2).permute(2, 3, 0, 1)
    first, second, third, place = (maps.reshape(-1, len(parents)) @ weights).unflatten(0, maps.shape[:3])
    x, y, z = planes
    return torch.addcmul(torch.addcmul(torch.addcmul(place, first, x), second, y), third, z)


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
