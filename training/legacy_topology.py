"""Topology, uv and eye mask of the public release: from the user's files, or from the buffers of a network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dnnlib.errors import UserError
from dnnlib.files import explain_os_error
from training.head.model import HeadTemplate
from training.head.obj import read_obj

EYE_MASK_SIZE = 256  # the release picks the nearest texels of whatever size the file has
RELEASE_VERTICES = 5023  # the release splits vertices and landmarks here, whatever the topology
UV_TOLERANCE = 1e-4


def template_from_obj(topology: str | os.PathLike[str], *, eye_mask: str | os.PathLike[str] | Tensor) -> HeadTemplate:
    """HeadTemplate of an OBJ with uv and an eye mask over uv (a PNG, or [S, S] in [0, 1]).

    An OBJ says nothing of landmarks, so the template has none: heads must bring theirs. UserError if a file is
    missing or unusable.
    """
    mesh = read_obj(Path(topology))
    if mesh.uv is None or mesh.uv_faces is None:
        raise UserError(f'{topology}: has no texture coordinates (vt); pass the OBJ that the network was trained with')
    return HeadTemplate(
        vertices=mesh.vertices.float(),
        faces=mesh.faces.long(),
        uv=mesh.uv.float(),
        uv_faces=mesh.uv_faces.long(),
        eye_mask=eye_mask if isinstance(eye_mask, Tensor) else read_eye_mask(eye_mask),
        **_no_landmarks(),
    )


def template_from_state(state_dict: Mapping[str, Tensor], *, eye_mask: Tensor, where: str) -> HeadTemplate | None:
    """The HeadTemplate that a network's own buffers describe, or None if they do not.

    Nothing says where its neutral vertices lie: they are NaN, and heads must come from elsewhere.
    """
    if not {'faces', 'uvfaces', 'uvcoords'} <= set(state_dict):
        return None
    faces, uv_faces = (state_dict[name].reshape(-1, 3).long() for name in ('faces', 'uvfaces'))
    signed = state_dict['uvcoords'].reshape(-1, 3)[:, :2].float()  # (2u - 1, 1 - 2v)
    uv = (signed * torch.tensor([1.0, -1.0]) + 1) / 2
    if 'raw_uvcoords' in state_dict:
        uv = state_dict['raw_uvcoords'].reshape(-1, 2).float()
    try:
        return HeadTemplate(
            vertices=torch.full([RELEASE_VERTICES, 3], float('nan')),
            faces=faces,
            uv=uv,
            uv_faces=uv_faces,
            eye_mask=eye_mask,
            **_no_landmarks(),
        )
    except ValueError as error:
        raise UserError(f'{where}: its topology buffers do not fit together ({error}); pass --topology') from error


def read_eye_mask(path: str | os.PathLike[str]) -> Tensor:
    """A picture over uv, white keeps -> [256, 256] in [0, 1], read as the release reads it (blue channel, nearest)."""
    try:
        with Image.open(path) as image:
            mask = np.array(image.convert('RGB'))[:, :, 2]
    except UnidentifiedImageError as error:
        raise UserError(f'{path}: not an image; expected the eye mask over uv as a PNG') from error
    except OSError as error:
        raise explain_os_error(error, path) from error
    scaled = torch.from_numpy(mask).float()[None, None] / 255
    return torch.nn.functional.interpolate(scaled, size=(EYE_MASK_SIZE, EYE_MASK_SIZE))[0, 0]


def check_topology(state_dict: Mapping[str, Tensor], template: HeadTemplate, *, where: str | os.PathLike[str]) -> None:
    """UserError unless what a state says of its faces and uv is what the template has; it may say nothing."""
    for name, faces in (('faces', template.faces), ('uvfaces', template.uv_faces)):
        stored = state_dict.get(name)
        if stored is not None and not torch.equal(stored.reshape(-1, 3).long().cpu(), faces.cpu()):
            raise UserError(
                f'{where}: its faces are not those of the state ({name}); pass the OBJ the network was trained with'
            )
    stored = state_dict.get('uvcoords')
    if stored is None:
        return
    expected = derived_buffers(template)['uvcoords']
    if stored.shape != expected.shape or float((stored.float().cpu() - expected).abs().max()) > UV_TOLERANCE:
        raise UserError(
            f'{where}: its texture coordinates are not those of the state; pass the OBJ the network was trained with'
        )


def derived_buffers(template: HeadTemplate) -> dict[str, Tensor]:
    """What the release keeps of its topology: faces and uvfaces [1, F, 3], uvcoords [1, T, 3] = (2u-1, 1-2v, 1)."""
    u, v = template.uv.unbind(dim=1)
    return {
        'faces': template.faces[None].clone(),
        'uvfaces': template.uv_faces[None].clone(),
        'uvcoords': torch.stack([2 * u - 1, 1 - 2 * v, torch.ones_like(u)], dim=1)[None],
    }


def _no_landmarks() -> dict[str, Tensor]:
    return {'landmark_faces': torch.zeros(0, dtype=torch.long), 'landmark_barycentrics': torch.zeros(0, 3)}
