"""Part of a fitted head's rotation moved from the camera into the neck.

The fits leave the neck at zero: the camera takes the whole rotation of the head, as EG3D's labels do, and
the body turns with the head. `split_neck` gives a share of it to the neck and turns the camera back by as
much, so that the picture of everything above the neck stays the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dnnlib import UserError
from training import cameras
from training.head.model import HeadModel, HeadParams
from training.head.rotation import axis_angle_matrix

# Camera from world for a body that stands upright and faces the camera.
_FACING = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))


def check_share(share: float) -> None:
    """UserError if a command's --neck-share is outside [0, 1]."""
    if not 0.0 <= share <= 1.0:
        raise UserError(
            f'--neck-share {share:g}: expected 0 (the camera takes the whole rotation) to 1 (the neck does)'
        )


def split_neck(model: HeadModel, params: HeadParams, label: Tensor, *, share: float) -> tuple[HeadParams, Tensor]:
    """The same picture of the skull with `share` of the head's rotation in the neck: new params and label [N, 25].

    The head's rotation is the skull's, from a body that stands upright and faces the camera. share 0: the neck is
    straight and the camera takes all (as EG3D); 1: the body faces the camera and the neck takes all. What the neck
    held before does not matter, only where the skull is. Everything that turns with the neck as one piece keeps its
    place in the image; skin between skull and body moves, from the jaw line downwards.

    ValueError for a share outside [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f'share: expected a number in [0, 1], got {share}')
    cam2world, intrinsics = cameras.unpack_label(label.double())
    from_world = cam2world[:, :3, :3].transpose(1, 2)
    body, before = (axis_angle_matrix(vectors.double()) for vectors in (params.rotation, params.neck))
    skull = from_world @ body @ before
    turn = rotation_vector(skull.new_tensor(_FACING).T @ skull)
    after = axis_angle_matrix(share * turn)
    bent = params.replace(neck=(share * turn).to(params.neck))
    camera = skull @ after.transpose(1, 2) @ body.transpose(1, 2)
    # The eyeballs move with the skull as one piece: their mean says where it went.
    at, to = (cameras.head_to_world(_eyes(model, p)) for p in (params, bent))
    shift = (from_world @ (at - cam2world[:, :3, 3])[..., None] - camera @ to[..., None])[..., 0]
    turned = cam2world.clone()
    turned[:, :3, :3] = camera.transpose(1, 2)
    turned[:, :3, 3] = -(turned[:, :3, :3] @ shift[..., None])[..., 0]
    return bent, cameras.pack_label(turned, intrinsics).to(label)


def rotation_vector(matrices: Tensor) -> Tensor:
    """Axis-angle vectors [..., 3] (radians, length at most pi) of rotation matrices [..., 3, 3]."""
    # 4 q q^T of the quaternion q = (w, x, y, z); its longest row is the best conditioned multiple of q.
    diagonal = matrices.diagonal(dim1=-2, dim2=-1)
    trace = diagonal.sum(dim=-1)
    odd = matrices - matrices.transpose(-1, -2)
    outer = torch.zeros(*matrices.shape[:-2], 4, 4, dtype=matrices.dtype, device=matrices.device)
    outer[..., 1:, 1:] = matrices + matrices.transpose(-1, -2)
    outer[..., 0, 1:] = outer[..., 1:, 0] = torch.stack([odd[..., 2, 1], odd[..., 0, 2], odd[..., 1, 0]], dim=-1)
    outer[..., 0, 0] = 1 + trace
    outer[..., [1, 2, 3], [1, 2, 3]] = 1 - trace[..., None] + 2 * diagonal
    longest = outer.norm(dim=-1).argmax(dim=-1)
    q = outer.gather(-2, longest[..., None, None].expand(*longest.shape, 1, 4))[..., 0, :]
    q = torch.nn.functional.normalize(torch.where(q[..., :1] < 0, -q, q), dim=-1)
    size = q[..., 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(size, q[..., :1])
    return q[..., 1:] * torch.where(size < 1e-9, torch.full_like(size, 2.0), angle / size.clamp(min=1e-9))


def _eyes(model: HeadModel, params: HeadParams) -> Tensor:
    """The mean [N, 3] of the gaze vertices, float64, head frame."""
    used = model.gaze_vertices.reshape(-1)
    with torch.no_grad():
        return model.positions(params, used).double().mean(dim=1)
