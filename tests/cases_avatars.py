"""Pictures that the tiny network can make itself, so that their inversion has a known answer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from applications.inversion_inputs import Picture
from applications.inversion_losses import Objective, Weights
from applications.perceptual import RandomPerceptual
from applications.samples import CameraRig
from tests.cases_outputs import random_params
from training.generator import Generator
from training.head.makehuman import embedded_head
from training.head.model import HeadParams


class Colours:
    """An embedder that tells people by the mean colour of their pictures."""

    name = 'colours'
    content_hash = 'none'

    def embed(self, images: Tensor) -> Tensor:
        return torch.nn.functional.normalize(images.mean(dim=(2, 3)) + 1.5, dim=1)


def objective(**weights: float) -> Objective:
    """The losses of the tests."""
    return Objective(RandomPerceptual(), weights=Weights(**weights), embedder=Colours())


@torch.no_grad()
def made_pictures(generator: Generator, *, count: int = 1) -> list[Picture]:
    """One person of the network from the side, with other expressions."""
    rng = torch.Generator().manual_seed(5)
    ws = generator.map(torch.randn(1, generator.config.z_dim, generator=rng), None)
    params = random_params(seed=5, count=count)
    params = params.replace(identity=params.identity[:1].expand(count, -1))
    labels = CameraRig().labels(0.3 * torch.randn(count, generator=rng), torch.zeros(count))
    identity, pictures = generator.identity(ws), []
    for index in range(count):
        one: HeadParams = params[[index]]
        head = embedded_head().forward(one)
        image = generator.render(generator.deform(identity, head), labels[[index]]).image.clamp(-1, 1)
        pictures.append(Picture(name=f'made {index}', image=image, label=labels[[index]], head=head, params=one))
    return pictures


def recorder(log: list[tuple[str, int, float]]) -> Callable[..., None]:
    """A watch that notes phase, step and loss."""
    return lambda phase, step, terms, image: log.append((phase, step, float(terms.loss.detach())))
