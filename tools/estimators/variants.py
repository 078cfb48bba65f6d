"""Augmented copies of pictures, and what the trained trunk sees in them: what the later steps of training work on."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from metrics.estimators.base import as_float
from metrics.estimators.embedded_network import EmbeddedNetwork
from tools.estimators.augment import augment, spoil
from tools.estimators.data import Mirror, Pictures
from torch_utils.rng import stream

VARIANTS = 3  # augmented copies of each picture
BATCH = 128
NUM_SPOILT = 16  # of a batch, that are shown without a face too
RIDGE = 1e-3  # of the mean square of a feature


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variants:
    """M augmented copies of pictures, half of them mirrored, and S that show no face."""

    features: Tensor  # [M, 192]
    images: Tensor  # [M, 3, 64, 64] uint8
    head: Tensor  # [M, 62]
    eyes_open: Tensor  # [M, 2]
    landmarks: Tensor  # [M, 68, 2] column and row in [-1, 1]
    spoilt_features: Tensor  # [S, 192]
    spoilt_images: Tensor  # [S, 3, 64, 64] uint8

    @property
    def eyes(self) -> Tensor:
        """Their centres [M, 4]: left, right."""
        return torch.cat([self.landmarks[:, 42:48].mean(dim=1), self.landmarks[:, 36:42].mean(dim=1)], dim=1)

    @property
    def mouth(self) -> Tensor:
        """Its centre [M, 2]."""
        return self.landmarks[:, 48:68].mean(dim=1)


@torch.no_grad()
def make_variants(network: EmbeddedNetwork, pictures: Pictures, *, seed: int) -> Variants:
    """VARIANTS copies of all pictures, in order."""
    mirror = Mirror.of_embedded_head()
    parts = []
    for variant in range(VARIANTS):
        for number, rows in enumerate(torch.arange(len(pictures)).split(BATCH)):
            rng = stream('estimators', seed, 'variants', variant, number)
            batch = mirror.apply(pictures.rows(rows), torch.rand(len(rows), generator=rng) < 0.5)
            changed, matrix = augment(batch.images.float() / 127.5 - 1, rng=rng)
            spoilt = _stored(spoil(changed[:NUM_SPOILT], rng=rng))
            images = _stored(changed)
            points = 2 * (batch.points[:, :68] - batch.points[:, 42:48].mean(dim=1, keepdim=True)) + batch.eyes[:, :1]
            landmarks = (points - matrix[:, None, :, 2]) / matrix[:, None, 0, [0]]
            seen, spoilt_seen = (network.head_features(network.activations(as_float(x))) for x in (images, spoilt))
            parts.append((seen, images, batch.head, batch.eyes_open, landmarks, spoilt_seen, spoilt))
    names = [field.name for field in dataclasses.fields(Variants)]
    return Variants(**{name: torch.cat(column) for name, column in zip(names, zip(*parts, strict=True), strict=True)})


def _stored(images: Tensor) -> Tensor:
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def solve_places(layer: torch.nn.Linear, features: Tensor, places: Tensor) -> None:
    """Fill the layer with the regularized least squares solution of places [M, P] from features [M, 192]."""
    mean, middle = features.mean(dim=0), places.mean(dim=0)
    centred = (features - mean).double()
    normal = centred.T @ centred / len(centred)
    normal += RIDGE * normal.diagonal().mean() * torch.eye(len(normal), dtype=torch.float64)
    weight = torch.linalg.solve(normal, centred.T @ (places - middle).double() / len(centred)).T.float()
    layer.weight.copy_(weight)
    layer.bias.copy_(middle - weight @ mean)
