"""Cameras and heads that no picture of the person shows: for the locality regularizer and the sheet."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from applications.driving import express
from applications.samples import CameraRig
from training.head.model import HeadInput, HeadModel

YAW, PITCH = 0.35, 0.15  # standard deviation of drawn cameras, radians
LARGEST = 0.8  # weight of a drawn expression
GAZE = 0.15  # standard deviation of drawn eyes, radians
JAW = 0.25  # radians, at most

# What the sheet shows, both sides of a face alike: names of the embedded head; those that a model lacks are left out.
SHOWN: dict[str, dict[str, float]] = {
    'neutral': {},
    'jawOpen': {'jawOpen': 0.8},
    'mouthSmile': {'mouthSmile': 0.9},
    'mouthPucker': {'mouthPucker': 0.9},
    'eyeBlink': {'eyeBlink': 1.0},
    'browInnerUp': {'browInnerUp': 0.9},
}


def drawn_camera(rig: CameraRig, rng: torch.Generator) -> Tensor:
    """A random camera [1, 25] around the front."""
    yaw, pitch = (scale * torch.randn(1, generator=rng).clamp(-2, 2) for scale in (YAW, PITCH))
    return rig.labels(yaw, pitch)


def drawn_head(model: HeadModel, identity: Tensor, rng: torch.Generator) -> HeadInput:
    """The person [1, num_identity] with a random expression, jaw and gaze."""
    params = model.neutral().replace(identity=identity)
    names = model.expression_names
    for index in torch.randint(max(len(names), 1), [2 if names else 0], generator=rng).tolist():
        unit = model.named_expression(names[index], LARGEST * float(torch.rand(1, generator=rng)))
        params = params.replace(expression=params.expression + unit.expression)
    gaze = GAZE * torch.randn(2, generator=rng).clamp(-2, 2)
    eye = torch.stack([gaze[0], gaze[1], gaze.new_zeros([])])
    jaw = torch.zeros(1, 3)
    jaw[0, 0] = JAW * torch.rand(1, generator=rng)
    return model.forward(params.replace(jaw=jaw, eyes=torch.cat([eye, eye])[None]))


def shown_heads(model: HeadModel, identity: Tensor) -> list[HeadInput]:
    """The person [1, num_identity] with the expressions of SHOWN, and looking to the left."""
    heads = []
    for weights in SHOWN.values():
        params = express(model, {name: torch.tensor([value]) for name, value in weights.items()})
        heads.append(model.forward(params.replace(identity=identity)))
    turned = torch.tensor([[0.0, 0.35, 0.0, 0.0, 0.35, 0.0]])
    heads.append(model.forward(model.neutral().replace(identity=identity, eyes=turned)))
    return heads


Draw = Callable[[torch.Generator], HeadInput]


def head_source(model: HeadModel | None, identity: Tensor, heads: list[HeadInput]) -> Draw:
    """Heads for the locality regularizer: drawn ones, or, where the head is a mesh without parameters, those given."""
    if model is None or not identity.shape[1]:
        return lambda rng: heads[int(torch.randint(len(heads), [1], generator=rng))]
    return lambda rng: drawn_head(model, identity, rng)
