"""The objective in double precision at the smallest size, and directional derivatives by differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases_geometry import ellipsoid_template, posed
from cases_networks import perturb, seeded
from torch import Tensor, nn

from torch_utils.rng import stream
from training import volume
from training.augment import Augment
from training.cameras import orbit_camera
from training.conditions import Conditions
from training.config import TrainConfig, preset
from training.discriminator import DualDiscriminator
from training.generator import Generator
from training.head.model import HeadInput
from training.loss import GanLoss, Latents, Schedule

COUNT = 2
EXPRESSIONS = 3
STEP = 1e-7
QUIET = Schedule(blur_sigma=0.0, swap_probability=0.0)


class Objective:
    """Both networks in float64 with fixed inputs; `term(name)` is one loss, a function of their parameters alone."""

    def __init__(self, *, augment: Augment | None = None, schedule: Schedule = QUIET, **overrides: Any) -> None:
        named = {key.replace('__', '.'): value for key, value in overrides.items()}
        self.config: TrainConfig = preset('debug', {'D.label_dim': 25 + EXPRESSIONS, **named})
        template = ellipsoid_template(rings=6, segments=8)
        torch.manual_seed(0)
        self.generator = perturb(Generator(self.config.generator, template)).double()
        self.discriminator = perturb(DualDiscriminator(self.config.discriminator)).double()
        self.loss = GanLoss(self.generator, self.discriminator, config=self.config.loss, augment=augment)
        self.schedule = schedule
        self.conditions, self.real = (self._conditions(seed) for seed in (1, 2))
        size = self.config.generator.image_resolution
        self.images = torch.randn(COUNT, 3, size, size, generator=seeded(3), dtype=torch.float64).clamp(-1, 1)
        z = torch.randn(2, COUNT, self.config.generator.z_dim, generator=seeded(4), dtype=torch.float64)
        self.latents = Latents(z=z[0], mixed=z[1], cutoff=torch.tensor([2, 3]))

    def _conditions(self, seed: int) -> Conditions:
        angles = torch.randn(2, COUNT, generator=seeded(seed), dtype=torch.float64) * 0.2
        label = orbit_camera(angles[0], angles[1])
        head = posed(self.generator.template, COUNT, seed=seed)
        head = HeadInput(head.vertices.double(), head.landmarks.double())
        expression = torch.randn(COUNT, EXPRESSIONS, generator=seeded(seed + 10), dtype=torch.float64)
        extra = expression[:, : self.config.discriminator.label_dim - 25]
        return Conditions(
            label=label, head=head, discriminator_label=torch.cat([label, extra], dim=1), mapping_label=label.flip(0)
        )

    @staticmethod
    def cast(conditions: Conditions, dtype: torch.dtype) -> Conditions:
        """The conditions of reals in another precision."""
        head = HeadInput(conditions.head.vertices.to(dtype), conditions.head.landmarks.to(dtype))
        label, judged = conditions.label.to(dtype), conditions.discriminator_label.to(dtype)
        return Conditions(label=label, head=head, discriminator_label=judged)

    def term(self, name: str) -> Tensor:
        """The loss of one phase, with the same random numbers each time."""
        rng = stream(5, name)
        if name == 'density':
            return self.loss.generator_density(self.latents, self.conditions, rng=rng).loss
        common: dict[str, Any] = {'schedule': self.schedule, 'rng': rng}
        if name == 'generator':
            return self.loss.generator_main(self.latents, self.conditions, **common).loss
        if name == 'r1':
            return self.loss.discriminator_r1(self.images, self.real, **common).loss
        return self.loss.discriminator_main(
            self.images, self.real, latents=self.latents, conditions=self.conditions, **common
        ).loss

    def network(self, name: str) -> nn.Module:
        """Whose loss the term is."""
        return self.generator if name in ('generator', 'density') else self.discriminator


@dataclasses.dataclass
class Replay:
    """Calls of a function that give the results of the first round again: what autograd takes for constant.

    Generators among the arguments end where the recorded call left them.
    """

    function: Callable[..., Any]
    results: list[tuple[Any, list[Tensor]]] = dataclasses.field(default_factory=list)
    position: int | None = None  # None while recording

    def __call__(self, *args: Any) -> Any:
        generators = [value for value in args if isinstance(value, torch.Generator)]
        if self.position is None:
            self.results.append((self.function(*args), [rng.get_state() for rng in generators]))
            return self.results[-1][0]
        result, states = self.results[self.position]
        self.position += 1
        for rng, state in zip(generators, states, strict=True):
            rng.set_state(state)
        return result


class Constants:
    """Records what has no gradient by design: importance samples, alpha masks, mouth boxes; for D, the fakes."""

    def __init__(self, patch: pytest.MonkeyPatch, objective: Objective, *, fakes: bool) -> None:
        rasterizer = objective.generator.rasterizer
        targets = [(volume, 'importance_depths'), (rasterizer, '_alpha'), (rasterizer, '_plane_landmarks')]
        if fakes:
            targets = [(objective.loss, '_fake')]
        self.replays = []
        for owner, name in targets:
            self.replays.append(Replay(getattr(owner, name)))
            patch.setattr(owner, name, self.replays[-1])

    def rewind(self) -> None:
        for replay in self.replays:
            replay.position = 0


def directions(network: nn.Module) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """A random direction for each sub-network (its name, tensors by parameter name), as large as the parameters."""
    groups: dict[str, dict[str, Tensor]] = {}
    for index, (name, parameter) in enumerate(network.named_parameters()):
        noise = torch.randn(parameter.shape, generator=seeded(100 + index), dtype=torch.float64)
        scale = parameter.detach().square().mean().sqrt() + 0.1
        groups.setdefault(name.partition('.')[0], {})[name] = noise * scale
    yield from groups.items()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slopes:
    """A loss's derivative along one direction, by autograd and by differences of three kinds."""

    exact: float
    central: float
    forward: float
    backward: float


def differences(value: Callable[[], Tensor], network: nn.Module, direction: dict[str, Tensor]) -> dict[str, float]:
    """The slope of value() along a direction, from both sides of the present parameters and across them."""
    parameters = dict(network.named_parameters())

    def at(amount: float) -> float:
        with torch.no_grad():
            kept = {name: parameters[name].clone() for name in direction}
            for name, vector in direction.items():
                parameters[name].add_(vector, alpha=amount)
        result = float(value().detach())
        with torch.no_grad():
            for name, before in kept.items():
                parameters[name].copy_(before)
        return result

    low, here, high = at(-STEP), at(0.0), at(STEP)
    return {
        'central': (high - low) / (2 * STEP),
        'forward': (high - here) / STEP,
        'backward': (here - low) / STEP,
    }


def gradients(objective: Objective, name: str) -> dict[str, Tensor]:
    """Autograd's, by parameter name; zeros where there is none."""
    network = objective.network(name)
    objective.generator.requires_grad_(network is objective.generator)
    objective.discriminator.requires_grad_(network is objective.discriminator)
    parameters = dict(network.named_parameters())
    values = torch.autograd.grad(objective.term(name), list(parameters.values()), allow_unused=True)
    return {
        key: torch.zeros_like(parameter) if value is None else value
        for (key, parameter), value in zip(parameters.items(), values, strict=True)
    }


def slopes(objective: Objective, name: str, *, networks: tuple[str, ...] | None = None) -> dict[str, Slopes]:
    """Along a random direction of each sub-network, or of those named."""
    network = objective.network(name)
    with pytest.MonkeyPatch.context() as patch:
        constants = Constants(patch, objective, fakes=network is objective.discriminator)
        exact = gradients(objective, name)

        def value() -> Tensor:
            constants.rewind()
            return objective.term(name)

        return {
            group: Slopes(
                exact=sum(float((exact[key] * vector).sum()) for key, vector in direction.items()),
                **differences(value, network, direction),
            )
            for group, direction in directions(network)
            if networks is None or group in networks
        }
