"""Random cameras and heads to stylize and to judge under: a dataset's, or draws of the network's own head model."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch
from torch import Tensor

from applications.heads import network_head_model
from applications.samples import CameraRig
from dnnlib import UserError
from training.checkpoint import LoadedGenerator
from training.dataset import HeadDataset
from training.head.model import HeadInput, HeadModel, HeadParams
from training.monitors import jaw_poses

YAW, PITCH = (0.3, 0.75), (0.15, 0.45)  # radians: standard deviation, largest; as the synthetic dataset's
SHAPE = 0.7  # standard deviation of identity coefficients
EXPRESSIONS = 2  # named expressions added up in a drawn head
WEIGHTS = (0.4, 1.0)  # of each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """N cameras and heads, each head also with a relaxed face, and with that face's jaw open."""

    label: Tensor  # [N, 25]
    head: HeadInput
    relaxed: HeadInput
    opened: HeadInput

    def to(self, device: torch.device) -> Scene:
        moved = {name: getattr(self, name).to(device) for name in ('label', 'head', 'relaxed', 'opened')}
        return Scene(**moved)


class SceneSource(Protocol):
    def draw(self, count: int, *, rng: torch.Generator) -> Scene:
        """`count` independent scenes on the CPU; `rng`: CPU."""


class DatasetScenes:
    """Camera and head of one random item a scene, as in training.

    relaxed: the same person without expression; the neutral head, where a dataset has meshes only.
    """

    def __init__(self, dataset: HeadDataset) -> None:
        self.dataset = dataset

    def draw(self, count: int, *, rng: torch.Generator) -> Scene:
        items = torch.randint(len(self.dataset), [count], generator=rng).tolist()
        params = self.dataset.head_params(items)
        relaxed, opened = jaw_poses(self.dataset.head_model, params, count=count)
        return Scene(
            label=self.dataset.label(items), head=self.dataset.head_input(items), relaxed=relaxed, opened=opened
        )


class RandomScenes:
    """Normal cameras about the head, normal shapes, two random named expressions of the head model."""

    def __init__(self, head: HeadModel, rig: CameraRig) -> None:
        self.head, self.rig = head, rig

    def draw(self, count: int, *, rng: torch.Generator) -> Scene:
        yaw, pitch = (
            (torch.randn(count, generator=rng) * deviation).clamp(-most, most) for deviation, most in (YAW, PITCH)
        )
        rows = [self._params(rng) for _ in range(count)]
        params = HeadParams(**{name: torch.cat([row.as_dict()[name] for row in rows]) for name in rows[0].as_dict()})
        relaxed, opened = jaw_poses(self.head, params, count=count)
        return Scene(label=self.rig.labels(yaw, pitch), head=self.head.forward(params), relaxed=relaxed, opened=opened)

    def _params(self, rng: torch.Generator) -> HeadParams:
        params = self.head.neutral()
        identity = torch.randn(params.identity.shape, generator=rng) * SHAPE
        fields = params.replace(identity=identity).as_dict()
        low, high = WEIGHTS
        for index in torch.randperm(len(self.head.expression_names), generator=rng)[:EXPRESSIONS].tolist():
            weight = low + (high - low) * float(torch.rand([], generator=rng))
            unit = self.head.named_expression(self.head.expression_names[index], weight).as_dict()
            fields = {name: value + unit[name] for name, value in fields.items()}
        return HeadParams(**fields)


def open_scenes(loaded: LoadedGenerator, *, data: str | None, head_model: str | None) -> SceneSource:
    """The scenes of a packed dataset (None: random ones) for a network; UserError if they do not fit it."""
    if data is None:
        return RandomScenes(
            network_head_model(loaded, path=head_model), CameraRig.of(loaded.config, framing=loaded.info.framing)
        )
    given = network_head_model(loaded, path=head_model) if head_model else None
    dataset = HeadDataset(data, head_model=given)
    expected = loaded.generator.template.num_vertices
    found = dataset.head_input([0]).vertices.shape[1]
    if found != expected:
        raise UserError(f'{data}: heads have {found} vertices, but the network takes {expected}')
    return DatasetScenes(dataset)
