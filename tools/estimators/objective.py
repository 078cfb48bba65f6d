"""What the embedded network is trained for: head parameters, telling people apart, describing the picture."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.estimators.embedded_network import HEAD_SIZES, WIDTHS, EmbeddedNetwork
from tools.estimators.data import CHOICES, Pictures

TEMPERATURE = 0.1  # of the cosines between two pictures
TOLERANCE = 0.25  # standard deviations: below, errors count squared, above by their size
THUMBNAIL = 4
WEIGHTS = {
    'expression': 3.0,
    'jaw': 1.0,
    'rotation': 2.0,
    'gaze': 3.0,
    'face': 0.1,
    'points': 3.0,
    'identity': 0.4,
    'attributes': 1.0,
    'choices': 0.2,
    'thumbnail': 1.0,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scales:
    """Mean and standard deviation of labels; a label that never varies has scale 0 and is predicted as its mean."""

    mean: Tensor
    deviation: Tensor

    @staticmethod
    def of(values: Tensor) -> Scales:
        deviation = values.std(dim=0)
        return Scales(mean=values.mean(dim=0), deviation=torch.where(deviation < 1e-4, 0 * deviation, deviation))

    def units(self, values: Tensor) -> Tensor:
        scale = torch.where(self.deviation > 0, self.deviation, torch.ones_like(self.deviation))
        return torch.where(self.deviation > 0, (values - self.mean) / scale, torch.zeros_like(values))


class Objective(nn.Module):
    """Holds the parts of the network that training alone needs."""

    def __init__(self, network: EmbeddedNetwork, pictures: Pictures) -> None:
        super().__init__()
        self.network = network
        self.head_scales, self.attribute_scales = Scales.of(pictures.head), Scales.of(pictures.attributes)
        size = pictures.head.shape[1]
        network.head_mean[:size], network.head_scale[:size] = self.head_scales.mean, self.head_scales.deviation
        self.point_scales = Scales.of(landmark_targets(pictures.points))
        self.points = nn.Linear(network.head_output.in_features, len(self.point_scales.mean))
        width = WIDTHS[-2] + WIDTHS[-1]
        self.describe = nn.Linear(width, pictures.attributes.shape[1])
        self.choose = nn.ModuleList([nn.Linear(width, len(options)) for options in CHOICES.values()])
        self.thumbnail = nn.Linear(width, 3 * THUMBNAIL**2)

    def forward(self, images: Tensor, batch: Pictures, spoilt: Tensor) -> dict[str, Tensor]:
        """Loss terms, unweighted, of augmented float images, their labels, and pictures that show no face."""
        count = len(images)
        maps = self.network.activations(torch.cat([images, spoilt]))
        features = self.network.head_features(maps)
        units = self.network.head_output(features)
        losses = self._head(units[:count], batch)
        faces = torch.cat([units.new_ones(count), units.new_zeros(len(spoilt))])
        losses['face'] = F.binary_cross_entropy_with_logits(units[:, -1], faces)
        losses['identity'] = self._identity(maps[-1][:count], batch.person)
        landmarks = self.point_scales.units(landmark_targets(batch.points))
        losses['points'] = _robust(self.points(features[:count]), landmarks).mean()
        pooled = torch.cat([level[:count].mean(dim=(2, 3)) for level in maps[-2:]], dim=1)
        losses['attributes'] = _robust(self.describe(pooled), self.attribute_scales.units(batch.attributes)).mean()
        terms = [F.cross_entropy(layer(pooled), batch.choices[:, k]) for k, layer in enumerate(self.choose)]
        losses['choices'] = torch.stack(terms).mean()
        small = F.adaptive_avg_pool2d(batch.images.float() / 127.5 - 1, THUMBNAIL).flatten(1)
        losses['thumbnail'] = _robust(2 * self.thumbnail(pooled), 2 * small).mean()
        return losses

    def _head(self, units: Tensor, batch: Pictures) -> dict[str, Tensor]:
        size = batch.head.shape[1]
        error = _robust(units[:, :size], self.head_scales.units(batch.head))
        # Nobody sees where a shut eye looks.
        seen = torch.ones_like(error)
        seen[:, -4:] = batch.eyes_open.clamp(0, 1).repeat_interleave(2, dim=1)
        names = [name for name in HEAD_SIZES if name != 'face']
        parts = (error * seen).split([HEAD_SIZES[name] for name in names], dim=1)
        return {name: part.mean() for name, part in zip(names, parts, strict=True)}

    def _identity(self, last: Tensor, person: Tensor) -> Tensor:
        """Each picture picks the others of its person among the batch (Khosla et al. 2020)."""
        vectors = self.network.identity_vector(last)
        oneself = torch.eye(len(vectors), dtype=torch.bool)
        logits = (vectors @ vectors.T / TEMPERATURE).masked_fill(oneself, -torch.inf)
        same = (person[:, None] == person) & ~oneself
        chosen = F.log_softmax(logits, dim=1).masked_fill(~same, 0.0).sum(dim=1)
        return -(chosen / same.sum(dim=1)).mean()


def landmark_targets(points: Tensor) -> Tensor:
    """Points [N, 70, 2] -> [N, 152]: the points, where each iris is in its eye, how open eyes and mouth are.

    In the picture these are what expression, jaw and gaze look like: they teach sooner than the parameters do.
    """
    eyes = torch.stack([points[:, 42:48].mean(dim=1), points[:, 36:42].mean(dim=1)], dim=1)  # left, right
    iris = points[:, 68:] - eyes
    lids = [points[:, [low]] - points[:, [high]] for low, high in ((46, 44), (40, 38))]
    lips = points[:, [66]] - points[:, [62]]
    corners = points[:, [54]] - points[:, [48]]
    return torch.cat([points, iris, *lids, lips, corners], dim=1).flatten(1)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()


def _robust(values: Tensor, targets: Tensor) -> Tensor:
    return F.smooth_l1_loss(values, targets, beta=TOLERANCE, reduction='none')
