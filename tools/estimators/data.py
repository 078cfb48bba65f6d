"""Synthetic pictures and everything that is known of them, as tensors; their mirror images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metrics.estimators.base import gaze_angles, head_rotation
from metrics.estimators.embedded_network import RESOLUTION
from training import cameras, synthetic
from training import synthetic_params as params
from training.dataset import HeadDataset
from training.head.landmarks import MIRROR as LANDMARK_MIRROR
from training.head.makehuman import embedded_head
from training.head.model import HeadParams

PATTERNS, NECKLINES = ('plain', 'stripes', 'checks'), ('crew', 'v', 'high', 'shirt')
GLASSES = ('none', 'round', 'square')
CHOICES = {
    'hair_style': params.HAIR_STYLES,
    'glasses': GLASSES,
    'pattern': PATTERNS,
    'neckline': NECKLINES,
    'background': params.BACKGROUNDS,
}
ATTRIBUTES = {
    'identity': 64,
    'skin': 3,
    'lips': 3,
    'iris': 3,
    'brow': 3,
    'hair': 3,
    'clothes': 3,
    'accent': 3,
    'beard': 2,
    'freckles': 1,
    'hair_shape': 4,
    'light_direction': 3,
    'light_colour': 3,
    'ambient': 6,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """N pictures with labels."""

    images: Tensor  # [N, 3, 64, 64] uint8
    head: Tensor  # [N, 62] named expression, jaw, rotation, gaze
    eyes_open: Tensor  # [N, 2]: left, right; 1 open, 0 shut
    points: Tensor  # [N, 70, 2] landmarks and iris centres (left, right) in the picture, from their middle
    eyes: Tensor  # [N, 2, 2] their centres (left, right) in the picture, column and row in [-1, 1]
    person: Tensor  # [N] int64, numbered from 0 over all datasets
    attributes: Tensor  # [N, sum of ATTRIBUTES]
    choices: Tensor  # [N, len(CHOICES)] int64

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, index: Tensor) -> Pictures:
        return Pictures(**{field.name: getattr(self, field.name)[index] for field in dataclasses.fields(self)})

    @staticmethod
    def join(parts: list[Pictures]) -> Pictures:
        """All pictures of several datasets, whose people differ."""
        fields = {name.name: torch.cat([getattr(part, name.name) for part in parts]) for name in FIELDS}
        counts = [int(part.person.max()) + 1 for part in parts]
        starts = [sum(counts[:k]) for k in range(len(parts))]
        fields['person'] = torch.cat([part.person + start for part, start in zip(parts, starts, strict=True)])
        return Pictures(**fields)


FIELDS = dataclasses.fields(Pictures)


def load_pictures(folder: Path, *, seed: int, num: int) -> Pictures:
    """The synthetic dataset of this seed and size, rendered to `folder` unless it is there already."""
    path = folder / f'synth{RESOLUTION}-seed{seed}-{num}.zip'
    if not path.is_file():
        synthetic.generate(path, num=num, resolution=RESOLUTION, seed=seed)
    dataset = HeadDataset(path)
    rows = range(num)
    heads = dataset.head_params(rows)
    assert heads is not None
    numbers = [params.identity_of(index) for index in rows]
    people = {n: params.sample_person(seed, n, num_identity=heads.identity.shape[1]) for n in set(numbers)}
    lights = [params.sample_light(seed, index) for index in rows]
    persons = [people[n] for n in numbers]
    attributes = [
        _attributes(person, light, shape)
        for person, light, shape in zip(persons, lights, heads.identity.numpy(), strict=True)
    ]
    scenes = [str(params.stream(seed, 'backdrop', index).choice(params.BACKGROUNDS)) for index in rows]
    choices = [_choices(person, scene) for person, scene in zip(persons, scenes, strict=True)]
    points = _points(heads, dataset.label(rows))
    blinks = torch.tensor([params.sample_blink(seed, index) for index in rows], dtype=torch.float32)
    return Pictures(
        images=dataset.images(rows),
        head=head_labels(heads, dataset.label(rows)),
        eyes_open=1 - blinks,
        points=points - points.mean(dim=1, keepdim=True),
        eyes=2 * torch.stack([points[:, 42:48].mean(dim=1), points[:, 36:42].mean(dim=1)], dim=1) - 1,
        person=torch.tensor(numbers),
        attributes=torch.from_numpy(np.stack(attributes)).float(),
        choices=torch.tensor(choices),
    )


def expression_names_matrix() -> Tensor:
    """The matrix [52, 52] with weights of the named expressions = coefficients @ matrix."""
    model = embedded_head()
    return torch.linalg.inv(model.expression_coefficients(torch.eye(len(model.expression_names))).double()).float()


def head_labels(heads: HeadParams, cameras: Tensor) -> Tensor:
    """Named expression, jaw, rotation and gaze [N, 62] as the head estimator gives them."""
    named = heads.expression @ expression_names_matrix()
    return torch.cat(
        [named, heads.jaw, head_rotation(heads, cameras), gaze_angles(heads.eyes).flatten(1)],
        dim=1,
    )


@torch.no_grad()
def _points(heads: HeadParams, labels: Tensor) -> Tensor:
    model, parts = embedded_head(), []
    for start in range(0, len(heads), 100):
        rows = slice(start, start + 100)
        posed = model.forward(heads[rows])
        points = torch.cat([posed.landmarks, posed.vertices[:, model.gaze_vertices[:, 0]]], dim=1)
        parts.append(cameras.project(cameras.head_to_world(points), labels[rows])[0])
    return torch.cat(parts)


def _attributes(person: params.Person, light: params.Light, shape: np.ndarray) -> np.ndarray:
    hair = person.hair
    values = [shape, person.skin, person.lips, person.iris, person.brow_colour, hair.colour]
    values += [person.clothes, person.clothes_accent, np.array([person.beard, 100 * person.beard_length])]
    values += [np.array([person.freckles]), np.array([hair.thickness, hair.length, hair.hairline, hair.waviness])]
    values += [light.direction, light.colour, light.ambient.reshape(-1)]
    return np.concatenate(values)


def _choices(person: params.Person, background: str) -> list[int]:
    chosen = (person.hair.style, person.glasses, person.clothes_pattern, person.neckline, background)
    return [options.index(value) for options, value in zip(CHOICES.values(), chosen, strict=True)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mirror:
    """How labels change when the picture is flipped."""

    head_order: Tensor  # [62] int64
    head_signs: Tensor  # [62]
    attribute_signs: Tensor  # [A]
    point_order: Tensor  # [70] int64

    @staticmethod
    def of_embedded_head() -> Mirror:
        names = list(embedded_head().expression_names)
        sides = {'Left': 'Right', 'Right': 'Left'}
        order = []
        for name in names:
            side = next((side for side in sides if name.endswith(side)), None)
            order.append(names.index(name.removesuffix(side) + sides[side]) if side else names.index(name))
        start = len(names)
        order += [start + k for k in (0, 1, 2, 3, 4, 5, 8, 9, 6, 7)]  # jaw, rotation, right eye, left eye
        signs = [1.0] * start + [1, -1, -1] * 2 + [-1, 1] * 2
        model = embedded_head()
        neutral = model.neutral().map(torch.ones_like)
        parity = model.mirror(neutral).identity[0].sign()
        attributes = torch.ones(sum(ATTRIBUTES.values()))
        attributes[: len(parity)] = parity
        position = 0
        for name, width in ATTRIBUTES.items():
            if name == 'light_direction':
                attributes[position] = -1
            position += width
        return Mirror(
            head_order=torch.tensor(order),
            head_signs=torch.tensor(signs),
            attribute_signs=attributes,
            point_order=torch.tensor([*LANDMARK_MIRROR, 69, 68]),
        )

    def apply(self, batch: Pictures, chosen: Tensor) -> Pictures:
        """The batch with the rows chosen [N] (bool) flipped. The person stays: faces are nearly symmetric."""
        rows, flip = chosen[:, None], torch.tensor([-1.0, 1.0])
        return dataclasses.replace(
            batch,
            images=torch.where(chosen[:, None, None, None], batch.images.flip(3), batch.images),
            head=torch.where(rows, batch.head[:, self.head_order] * self.head_signs, batch.head),
            eyes_open=torch.where(rows, batch.eyes_open.flip(1), batch.eyes_open),
            eyes=torch.where(rows[..., None], batch.eyes.flip(1) * flip, batch.eyes),
            points=torch.where(rows[..., None], batch.points[:, self.point_order] * flip, batch.points),
            attributes=torch.where(rows, batch.attributes * self.attribute_signs, batch.attributes),
        )
