"""Heads with a closed form, for tests and benchmarks: an ellipsoid template with uv, eyes and a mouth hole."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.head.model import HeadInput, HeadTemplate


def ellipsoid_template(*, rings: int = 24, segments: int = 32, mouth_hole: bool = True) -> HeadTemplate:
    """A head-sized ellipsoid in the head frame: longitude and latitude as uv, two eye spots, an open mouth."""
    latitude = torch.linspace(-math.pi / 2 + 0.05, math.pi / 2 - 0.05, rings)
    longitude = torch.linspace(-math.pi, math.pi, segments + 1)
    phi, lam = torch.meshgrid(latitude, longitude, indexing='ij')
    vertices = torch.stack([0.08 * phi.cos() * lam.sin(), 0.11 * phi.sin(), 0.09 * phi.cos() * lam.cos()], dim=-1)
    uv = torch.stack([lam / (2 * math.pi) + 0.5, phi / math.pi + 0.5], dim=-1)
    width = segments + 1
    faces = []
    for ring in range(rings - 1):
        for segment in range(segments):
            a, b = ring * width + segment, ring * width + segment + 1
            quad = [[a, b, b + width], [a, b + width, a + width]]
            centre = vertices.view(-1, 3)[[a, b, a + width, b + width]].mean(dim=0)
            if mouth_hole and centre[2] > 0 and abs(centre[0]) < 0.02 and abs(centre[1] + 0.045) < 0.008:
                continue
            faces += quad
    face_tensor = torch.tensor(faces)
    mask = torch.ones(64, 64)
    mask[22:28, 22:28] = 0
    mask[22:28, 36:42] = 0
    landmark_faces, weights = _landmarks(vertices.view(-1, 3), face_tensor)
    return HeadTemplate(
        vertices=vertices.view(-1, 3),
        faces=face_tensor,
        uv=uv.reshape(-1, 2),
        uv_faces=face_tensor.clone(),
        eye_mask=mask,
        landmark_faces=landmark_faces,
        landmark_barycentrics=weights,
    )


def _landmarks(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """68 points at face centres: spread over the front, 48 to 59 on an ellipse around the mouth."""
    centres = vertices[faces].mean(dim=1)
    angle = torch.linspace(math.pi, -math.pi, 13)[:-1]
    mouth = torch.stack([0.028 * angle.cos(), -0.045 + 0.014 * angle.sin()], dim=-1)
    spread = torch.linspace(0, 1, 56)
    other = torch.stack([0.06 * (spread * 40).sin(), 0.08 * (2 * spread - 1)], dim=-1)
    target = torch.cat([other[:48], mouth, other[48:]])
    distance = torch.cdist(target, centres[:, :2]) + 10.0 * (centres[None, :, 2] < 0)
    return distance.argmin(dim=1), torch.full((68, 3), 1 / 3)


def posed(template: HeadTemplate, count: int = 1, *, seed: int = 0, amount: float = 0.002) -> HeadInput:
    """Smoothly perturbed copies of the template with their landmarks."""
    generator = torch.Generator().manual_seed(seed)
    shift = amount * torch.randn(count, 1, 3, generator=generator)
    stretch = 1 + 10 * amount * torch.randn(count, 1, 3, generator=generator)
    vertices = template.vertices[None] * stretch + shift
    return HeadInput(vertices, template.landmarks(vertices))
