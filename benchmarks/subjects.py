"""What is measured: networks of a preset with random weights, a head with as many faces as FLAME's, cameras."""

from __future__ import annotations

import contextlib
import dataclasses
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from torch_utils.rng import stream
from training import cameras
from training.conditions import Conditions
from training.config import TrainConfig, preset
from training.discriminator import DualDiscriminator
from training.generator import Generator
from training.head.makehuman import embedded_head
from training.head.model import HeadInput, HeadTemplate
from training.networks import build_networks

FLAME_FACES = 9976
TYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def precision_context(name: str, device: torch.device) -> contextlib.AbstractContextManager:
    """What --precision does around a forward pass."""
    if name == 'fp32':
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=TYPES[name])


def split_faces(template: HeadTemplate, *, num_faces: int) -> tuple[HeadTemplate, Tensor]:
    """The template with its largest faces cut in three at their centres until it has `num_faces`, and the corners
    [K, 3] of those faces: the means of their (posed) positions are the new vertices, the last K.

    Surface and uv map stay as they are. ValueError where the number cannot be reached.
    """
    cuts, odd = divmod(num_faces - len(template.faces), 2)
    if odd or not 0 <= cuts <= len(template.faces):
        raise ValueError(f'num_faces: {len(template.faces)} faces cannot be cut into {num_faces}')
    a, b, c = template.vertices[template.faces].unbind(1)
    order = torch.linalg.cross(b - a, c - a).norm(dim=1).argsort(descending=True, stable=True)
    chosen, kept = order[:cuts], order[cuts:].sort().values

    def cut(points: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
        a, b, c = faces[chosen].unbind(1)
        middle = len(points) + torch.arange(cuts)
        parts = [torch.stack(corners, dim=1) for corners in ((a, b, middle), (b, c, middle), (c, a, middle))]
        return torch.cat([points, points[faces[chosen]].mean(dim=1)]), torch.cat([faces[kept], *parts])

    vertices, faces = cut(template.vertices, template.faces)
    uv, uv_faces = cut(template.uv, template.uv_faces)
    # Landmarks are handed over as points, so nobody asks this template where they are.
    landmarks = {name: getattr(template, name)[:0] for name in ('landmark_faces', 'landmark_barycentrics')}
    finer = dataclasses.replace(template, vertices=vertices, faces=faces, uv=uv, uv_faces=uv_faces, **landmarks)
    return finer, template.faces[chosen]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """Networks and the inputs of one batch."""

    config: TrainConfig
    generator: Generator
    discriminator: DualDiscriminator
    z: Tensor  # [N, z_dim]
    conditions: Conditions
    images: Tensor  # [N, 3, R, R] in [-1, 1]
    device: torch.device

    @property
    def head(self) -> HeadInput:
        return self.conditions.head

    @property
    def label(self) -> Tensor:
        return self.conditions.label


def build_subject(cfg: str, *, batch: int, device: torch.device) -> Subject:
    """Networks of the preset `cfg` as training builds them, and `batch` samples of the neutral head."""
    config = preset(cfg)
    model = embedded_head()
    neutral = model.forward(model.neutral(batch))
    template, corners = split_faces(model.template, num_faces=FLAME_FACES)
    centres = neutral.vertices[:, corners].mean(dim=2)
    head = HeadInput(torch.cat([neutral.vertices, centres], dim=1), neutral.landmarks).to(device)
    stand_in: Any = SimpleNamespace(head_model=SimpleNamespace(template=template))  # all that build_networks asks for
    generator, discriminator = build_networks(config, stand_in, device=device)
    rng = stream(0, 'benchmark')
    label = cameras.orbit_camera(torch.linspace(-0.2, 0.2, batch), torch.zeros(batch))
    extra = max(config.discriminator.label_dim - cameras.LABEL_DIM, 0)
    conditions = Conditions(
        label=label.to(device),
        head=head,
        discriminator_label=torch.cat([label, torch.randn(batch, extra, generator=rng)], dim=1).to(device),
        mapping_label=label.to(device),
    )
    resolution = config.generator.image_resolution
    return Subject(
        config=config,
        generator=generator,
        discriminator=discriminator,
        z=torch.randn(batch, config.generator.z_dim, generator=rng).to(device),
        conditions=conditions,
        images=torch.randn(batch, 3, resolution, resolution, generator=rng).to(device),
        device=device,
    )
