"""Pivotal tuning inversion (paper 4.3 and supplement C; PTI): a person's pictures -> a latent and tuned weights.

Phase 1 looks for the latent, the pivot, with the network as it is. Phase 2 keeps the pivot and tunes the network to
the pictures, while a locality regularizer holds on to what the network drew around the pivot, seen from other
cameras with other expressions. One picture a step; everything is a function of the seed.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from applications.inversion_losses import Objective, Target, Terms, View
from dnnlib import UserError
from torch_utils.rng import stream
from training.generator import Generator
from training.head.model import HeadInput

Space = Literal['w', 'w+']
Watch = Callable[[str, int, Terms, Tensor], None]  # phase, step, terms, rendering [1, 3, R, R]

# What the tuning leaves alone: the mapping is not used, and the template's place is what the heads were fitted in.
FROZEN = ('mapping.', 'rasterizer.')
PLATEAU_STEPS = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """Lengths, rates and schedules of both phases."""

    space: Space = 'w+'  # w: one row for all layers; w+: each layer its own
    latent_steps: int = 450
    latent_rate: float = 0.1  # of Adam, at most
    rate_rampup: float = 0.05  # share of the steps
    rate_rampdown: float = 0.25
    noise: float = 0.05  # added to each number of the latent, in the spread of w (a length); fades out
    noise_ramp: float = 0.75  # share of the steps
    mean_samples: int = 10000  # for mean and spread of w
    tuning_steps: int = 500
    tuning_rate: float = 1e-3
    plateau: float = (
        0.0  # tuning ends when its mean loss falls by less than this share in PLATEAU_STEPS steps; 0: never
    )
    locality_interval: int = 4  # steps between two of the regularizer
    locality_radius: float = 0.5  # from the pivot, in the mean distance of latents from their mean
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class LatentStatistics:
    """Of w for the front camera."""

    mean: Tensor  # [w_dim]
    deviation: float  # root mean square distance from the mean
    samples: Tensor  # [M, w_dim]


@torch.no_grad()
def latent_statistics(generator: Generator, front: Tensor, *, samples: int, seed: int) -> LatentStatistics:
    """Mean and spread of w, conditioned on the camera `front` [1, 25]."""
    device = next(generator.parameters()).device
    z = torch.randn(samples, generator.config.z_dim, generator=stream(seed, 'mean latent')).to(device)
    w = generator.map(z, front.to(device).expand(samples, -1))[:, 0]
    mean = w.mean(dim=0)
    return LatentStatistics(mean, float((w - mean).square().sum(dim=1).mean().sqrt()), w)


def latent_rate(config: InversionConfig, step: int) -> float:
    """Learning rate of step `step` of phase 1: a linear rise, then a cosine fall at the end (StyleGAN2's projector)."""
    t = step / config.latent_steps
    down = min(1.0, (1.0 - t) / config.rate_rampdown)
    up = min(1.0, (step + 1) / max(config.rate_rampup * config.latent_steps, 1.0))
    return config.latent_rate * (0.5 - 0.5 * math.cos(math.pi * down)) * up


def noise_scale(config: InversionConfig, step: int, *, deviation: float) -> float:
    """Standard deviation of what is added to each number of the latent at step `step`; quadratically to 0."""
    t = step / config.latent_steps
    return deviation * config.noise * max(0.0, 1.0 - t / config.noise_ramp) ** 2


def find_latent(
    generator: Generator,
    views: Sequence[View],
    objective: Objective,
    statistics: LatentStatistics,
    config: InversionConfig,
    *,
    watch: Watch | None = None,
) -> Tensor:
    """Phase 1: ws [1, num_ws, w_dim] whose renderings come nearest to the views. The network is not written to.

    UserError if the loss is no longer a number.
    """
    rows = 1 if config.space == 'w' else generator.num_ws
    latent = statistics.mean.repeat(1, rows, 1).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([latent], lr=config.latent_rate)
    targets = [objective.target(view.image, view.weight) for view in views]
    rng = stream(config.seed, 'latent noise')
    for step in range(config.latent_steps):
        view, target = views[step % len(views)], targets[step % len(views)]
        for group in optimizer.param_groups:
            group['lr'] = latent_rate(config, step)
        scale = noise_scale(config, step, deviation=statistics.deviation)
        ws = latent + scale * torch.randn(latent.shape, generator=rng).to(latent.device)
        terms, image = _evaluate(generator, ws.expand(-1, generator.num_ws, -1), view, objective, target)
        optimizer.zero_grad(set_to_none=True)
        _check(terms, 'latent', step, config.latent_rate)
        terms.loss.backward()
        optimizer.step()
        if watch is not None:
            watch('latent', step, terms, image)
    return latent.detach().expand(-1, generator.num_ws, -1).clone()


def _evaluate(
    generator: Generator, ws: Tensor, view: View, objective: Objective, target: Target
) -> tuple[Terms, Tensor]:
    planes = generator.deform(generator.identity(ws), view.head)
    image = generator.render(planes, view.label).image
    return objective.terms(image, target), image.detach()


def _check(terms: Terms, phase: str, step: int, rate: float) -> None:
    if not bool(terms.loss.isfinite()):
        raise UserError(f'{phase} phase: the loss is not finite at step {step}; lower its rate ({rate:g})')


class Locality:
    """PTI's regularizer: a little away from the pivot the tuned network must draw what the original one draws.

    Each draw has a camera and a head of its own, so that shape and expressions survive as well.
    """

    def __init__(
        self,
        base: Generator,
        pivot: Tensor,  # ws [1, num_ws, w_dim]
        statistics: LatentStatistics,
        objective: Objective,
        config: InversionConfig,
        *,
        heads: Callable[[torch.Generator], HeadInput],
        cameras: Callable[[torch.Generator], Tensor],  # [1, 25]
    ) -> None:
        self.base, self.pivot, self.statistics = base, pivot, statistics
        self.objective, self.config = objective, config
        self.heads, self.cameras = heads, cameras

    def neighbour(self, rng: torch.Generator) -> Tensor:
        """ws at the radius from the pivot, towards a random latent. [1, num_ws, w_dim]"""
        index = int(torch.randint(len(self.statistics.samples), [1], generator=rng))
        direction = F.normalize(self.statistics.samples[index] - self.pivot, dim=-1)
        return self.pivot + self.config.locality_radius * self.statistics.deviation * direction

    def loss(self, tuned: Generator, step: int) -> Tensor:
        """Distance (perceptual and pixels) of the two networks' pictures of one draw, a scalar."""
        rng = stream(self.config.seed, 'locality', step)
        ws = self.neighbour(rng)
        head, label = self.heads(rng).to(ws.device), self.cameras(rng).to(ws.device)
        with torch.no_grad():
            wanted = self.base.render(self.base.deform(self.base.identity(ws), head), label).image
            target = dataclasses.replace(self.objective.target(wanted), embedding=None)
        image = tuned.render(tuned.deform(tuned.identity(ws), head), label).image
        return self.objective.terms(image, target).loss


def tuned_parameters(generator: Generator) -> dict[str, torch.nn.Parameter]:
    """The parameters that phase 2 may change, by name."""
    return {name: value for name, value in generator.named_parameters() if not name.startswith(FROZEN)}


def tune_generator(
    base: Generator,
    ws: Tensor,
    views: Sequence[View],
    objective: Objective,
    config: InversionConfig,
    *,
    locality: Locality | None = None,
    watch: Watch | None = None,
) -> Generator:
    """Phase 2: a copy of `base`, in evaluation mode, tuned to the views at the pivot ws [1, num_ws, w_dim]; neither
    is written to. UserError if the loss is no longer a number."""
    tuned = copy.deepcopy(base)
    parameters = tuned_parameters(tuned)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(list(parameters.values()), lr=config.tuning_rate, betas=(0.9, 0.999), fused=True)
    targets = [objective.target(view.image, view.weight) for view in views]
    recent: list[float] = []
    for step in range(config.tuning_steps):
        view, target = views[step % len(views)], targets[step % len(views)]
        terms, image = _evaluate(tuned, ws, view, objective, target)
        optimizer.zero_grad(set_to_none=True)
        _check(terms, 'tuning', step, config.tuning_rate)
        terms.loss.backward()
        if locality is not None and objective.weights.locality > 0 and step % config.locality_interval == 0:
            (objective.weights.locality * config.locality_interval * locality.loss(tuned, step)).backward()
        optimizer.step()
        if watch is not None:
            watch('tuning', step, terms, image)
        recent.append(float(terms.loss.detach()))
        if flat(recent, plateau=config.plateau):
            break
    return tuned.requires_grad_(False)


def flat(losses: Sequence[float], *, plateau: float) -> bool:
    """Whether the mean of the last PLATEAU_STEPS losses is less than a share `plateau` below that of those before."""
    if plateau <= 0 or len(losses) < 2 * PLATEAU_STEPS or len(losses) % PLATEAU_STEPS:
        return False
    before, now = (sum(part) for part in (losses[-2 * PLATEAU_STEPS : -PLATEAU_STEPS], losses[-PLATEAU_STEPS:]))
    return now > (1 - plateau) * before
