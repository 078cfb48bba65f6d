"""What an inversion minimizes: perceptual, pixel and identity distance of a rendering to a picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from applications.perceptual import Maps, PerceptualNetwork, weighted_mean
from dnnlib import UserError
from training.head.model import HeadInput, HeadTemplate
from training.template_rendering import render_template

REACH = 0.12  # how far hair and ears stand out of the template: share of the image side


class Embedder(Protocol):
    """Whose picture it is, as a unit vector."""

    name: str
    content_hash: str

    def embed(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] in [-1, 1] -> unit vectors [N, F]; differentiable."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """One picture of the person with all that is known of it; a batch of one."""

    image: Tensor  # [1, 3, R, R] in [-1, 1]
    label: Tensor  # camera [1, 25]
    head: HeadInput
    weight: Tensor  # [1, 1, R, R] in (0, 1]: what a pixel counts

    def to(self, device: torch.device | str) -> View:
        return View(
            image=self.image.to(device),
            label=self.label.to(device),
            head=self.head.to(device),
            weight=self.weight.to(device),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """What each term counts; locality is the regularizer of the tuning."""

    perceptual: float = 1.0
    pixel: float = 5.0
    identity: float = 0.1
    locality: float = 1.0
    background: float = 0.2  # of a pixel outside the head against one inside


def parse_weights(texts: Sequence[str]) -> Weights:
    """'NAME=X' ... -> Weights; UserError names what is unknown or not a number of at least 0."""
    known = [field.name for field in dataclasses.fields(Weights)]
    values = {}
    for text in texts:
        name, _, number = text.partition('=')
        if name not in known:
            raise UserError(f'--weight {text}: expected NAME=X with NAME one of {", ".join(known)}')
        try:
            values[name] = float(number)
        except ValueError:
            values[name] = -1.0
        if not 0 <= values[name] < math.inf:
            raise UserError(f'--weight {text}: expected a number of at least 0 after {name}=')
    return Weights(**values)


@dataclasses.dataclass(frozen=True)
class Terms:
    """The loss and what it is made of, scalars."""

    loss: Tensor
    perceptual: Tensor
    pixel: Tensor
    identity: Tensor


@dataclasses.dataclass(frozen=True)
class Target:
    """A picture with what is computed of it once."""

    image: Tensor
    maps: Maps
    embedding: Tensor | None
    weight: Tensor | None


class Objective:
    """Distances of renderings to targets; what depends on a target alone is computed once."""

    def __init__(self, perceptual: PerceptualNetwork, *, weights: Weights, embedder: Embedder | None = None) -> None:
        self.perceptual, self.weights, self.embedder = perceptual, weights, embedder

    def networks(self) -> dict[str, dict[str, str] | None]:
        """Names and hashes of what is compared with."""
        return {
            role: None if network is None else {'name': network.name, 'sha256': network.content_hash}
            for role, network in (('perceptual', self.perceptual), ('identity', self.embedder))
        }

    @torch.no_grad()
    def target(self, image: Tensor, weight: Tensor | None = None) -> Target:
        """A picture [1, 3, R, R] in [-1, 1] and what its places count [1, 1, R, R] (None: all alike)."""
        embedding = None if self.embedder is None else self.embedder.embed(image)
        return Target(image, self.perceptual.maps(image), embedding, weight)

    def terms(self, image: Tensor, target: Target) -> Terms:
        """The loss of a rendering [1, 3, R, R] against a target. `pixel` is a mean square in units of [-1, 1]."""
        perceptual = self.perceptual.distance(self.perceptual.maps(image), target.maps, target.weight)
        pixel = weighted_mean((image - target.image).square(), target.weight)
        identity = image.new_zeros([])
        if self.embedder is not None and target.embedding is not None:
            identity = (1 - (self.embedder.embed(image) * target.embedding).sum(dim=1)).mean()
        w = self.weights
        return Terms(w.perceptual * perceptual + w.pixel * pixel + w.identity * identity, perceptual, pixel, identity)


def head_weight(
    template: HeadTemplate, head: HeadInput, label: Tensor, *, resolution: int, background: float
) -> Tensor:
    """What each pixel counts [1, 1, R, R]: 1 on the template's silhouette and as far around as hair reaches, falling
    softly to `background`."""
    shown = render_template(template, head, label, resolution=resolution, mode='uv')[:, 2:]
    inside = (shown > 0).float()  # the third channel is 1 where there is a face, -1 elsewhere
    return background + (1 - background) * blur(dilate(inside, REACH * resolution), REACH * resolution / 2)


def dilate(mask: Tensor, radius: float) -> Tensor:
    """Mask [N, 1, H, W] grown by `radius` pixels (a disc)."""
    reach = math.ceil(radius)
    offsets = torch.arange(-reach, reach + 1, device=mask.device)
    disc = (offsets[:, None] ** 2 + offsets[None] ** 2 <= radius**2).to(mask.dtype)
    return (F.conv2d(mask, disc[None, None], padding=reach) > 0.5).to(mask.dtype)


def blur(mask: Tensor, sigma: float) -> Tensor:
    """Mask [N, 1, H, W] smoothed by a Gaussian, its border repeated outwards."""
    reach = max(1, math.ceil(2 * sigma))
    offsets = torch.arange(-reach, reach + 1, device=mask.device, dtype=mask.dtype)
    taps = torch.exp(-0.5 * (offsets / max(sigma, 1e-3)) ** 2)
    taps = taps / taps.sum()
    padded = F.pad(mask, [reach] * 4, mode='replicate')
    return F.conv2d(F.conv2d(padded, taps[None, None, None]), taps[None, None, :, None])
