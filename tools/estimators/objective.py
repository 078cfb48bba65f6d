"""What the embedded network is trained for: head parameters, telling people apart, describing the picture."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.estimators.embedded_network import HEAD_SIZES, NUM_IDENTITY, WIDTHS, EmbeddedNetwork
from tools.estimators.data import CHOICES, Pictures

MARGIN, TEMPERATURE = 0.25, 20.0  # of the cosines between a picture and the people
TOLERANCE = 0.25  # standard deviations: below, errors count squared, above by their size
THUMBNAIL = 4
WEIGHTS = {
    'expression': 3.0,
    'jaw': 1.0,
    'rotation': 2.0,
    'gaze': 2.0,
    'face': 0.2,
    'identity': 0.2,
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
        self.head, self.attributes = Scales.of(pictures.head), Scales.of(pictures.attributes)
        size = pictures.head.shape[1]
        network.head_mean[:size], network.head_scale[:size] = self.head.mean, self.head.deviation
        self.people = nn.Parameter(torch.randn(int(pictures.person.max()) + 1, NUM_IDENTITY))
        width = WIDTHS[-2] + WIDTHS[-1]
        self.describe = nn.Linear(width, pictures.attributes.shape[1])
        self.choose = nn.ModuleList([nn.Linear(width, len(options)) for options in CHOICES.values()])
        self.thumbnail = nn.Linear(width, 3 * THUMBNAIL**2)

    def forward(self, images: Tensor, batch: Pictures, spoilt: Tensor, *, margin: float) -> dict[str, Tensor]:
        """Loss terms, unweighted, of augmented float images, their labels, and pictures that show no face."""
        count = len(images)
        maps = self.network.activations(torch.cat([images, spoilt]))
        units = self.network.head_units(maps[-1])
        losses = self._head(units[:count], batch)
        faces = torch.cat([units.new_ones(count), units.new_zeros(len(spoilt))])
        losses['face'] = F.binary_cross_entropy_with_logits(units[:, -1], faces)
        losses['identity'] = self._identity(maps[-1][:count], batch.person, margin)
        pooled = torch.cat([level[:count].mean(dim=(2, 3)) for level in maps[-2:]], dim=1)
        losses['attributes'] = _robust(self.describe(pooled), self.attributes.units(batch.attributes)).mean()
        terms = [F.cross_entropy(layer(pooled), batch.choices[:, k]) for k, layer in enumerate(self.choose)]
        losses['choices'] = torch.stack(terms).mean()
        small = F.adaptive_avg_pool2d(batch.images.float() / 127.5 - 1, THUMBNAIL).flatten(1)
        losses['thumbnail'] = _robust(2 * self.thumbnail(pooled), 2 * small).mean()
        return losses

    def _head(self, units: Tensor, batch: Pictures) -> dict[str, Tensor]:
        size = batch.head.shape[1]
        error = _robust(units[:, :size], self.head.units(batch.head))
        # Nobody sees where a shut eye looks.
        seen = torch.ones_like(error)
        seen[:, -4:] = batch.eyes_open.clamp(0, 1).repeat_interleave(2, dim=1)
        names = [name for name in HEAD_SIZES if name != 'face']
        parts = (error * seen).split([HEAD_SIZES[name] for name in names], dim=1)
        return {name: part.mean() for name, part in zip(names, parts, strict=True)}

    def _identity(self, last: Tensor, person: Tensor, margin: float) -> Tensor:
        """Softmax over cosines to one direction a person, the right one's lessened by a margin."""
        cosines = self.network.identity_vector(last) @ F.normalize(self.people, dim=1).T
        handicap = torch.zeros_like(cosines).scatter_(1, person[:, None], margin)
        return F.cross_entropy(TEMPERATURE * (cosines - handicap), person)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()


def _robust(values: Tensor, targets: Tensor) -> Tensor:
    return F.smooth_l1_loss(values, targets, beta=TOLERANCE, reduction='none')
