"""Whether geometry and the answer to expressions survive a stylization (the "3D consistency" of paper section 4.3).

Both are measured on the same latents, cameras and heads for the source and the stylized network, inside the drawn
template, and neither depends on colours: a statue may be grey, but it must keep its nose and open its mouth. The
mouth response is the one that training watches (training/monitors.py), over more persons.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from applications.stylization.scenes import Scene, SceneSource
from torch_utils.rng import stream
from training.generator import Generator
from training.monitors import relative_change, template_response
from training.template_rendering import render_template

SCENES = 32
TRUNCATION = 0.7
BATCH = 4
LEAST_DEPTH = 0.9  # correlation of depths
LEAST_RESPONSE = 0.8  # of the source's response to expressions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survival:
    """What is left of a source network's geometry and expressions in a stylized one."""

    depth_correlation: float  # mean over scenes of the Pearson correlation of the two depths
    depth_correlation_least: float  # of the worst scene
    mouth_response_before: float  # of the source, mean over groups of BATCH scenes
    mouth_response_after: float
    scenes: int

    @property
    def survives(self) -> bool:
        kept = self.mouth_response_after >= LEAST_RESPONSE * self.mouth_response_before
        return self.depth_correlation >= LEAST_DEPTH and kept

    def lines(self) -> list[str]:
        """For the terminal."""
        lost = 'GEOMETRY OR EXPRESSIONS ARE LOST; use a lower --lr, or fewer --steps or --kimg'
        return [
            f'depth: correlation with the source {self.depth_correlation:.3f} (worst of {self.scenes} scenes '
            f'{self.depth_correlation_least:.3f}, wanted at least {LEAST_DEPTH} on average)',
            f'mouth response: {self.mouth_response_before:.3f} before, {self.mouth_response_after:.3f} '
            f'after (wanted at least {LEAST_RESPONSE:.0%} of before)',
            'geometry and expressions survive' if self.survives else lost,
        ]


@torch.no_grad()
def measure_survival(source: Generator, stylized: Generator, scenes: SceneSource, *, seed: int, count: int) -> Survival:
    """Compare two networks of one architecture; both on the same device."""
    device = next(source.parameters()).device
    depths: list[Tensor] = []
    responses: list[list[float]] = []
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        rng = stream(seed, 'survival', start)
        z = torch.randn(size, source.config.z_dim, generator=rng).to(device)
        scene = scenes.draw(size, rng=rng).to(device)
        looks = [_look(generator, z, scene) for generator in (source, stylized)]
        depths.append(correlation(looks[0].depth, looks[1].depth, _coverage(source, scene)))
        region, wanted = template_response(
            source.template, scene.relaxed, scene.opened, scene.label, resolution=source.config.image_resolution
        )
        changes = [relative_change(look.closed, look.opened, region) for look in looks]
        responses.append([change / wanted if wanted > 0 else 0.0 for change in changes])
    depth, response = torch.cat(depths), torch.tensor(responses).mean(dim=0)
    return Survival(
        depth_correlation=float(depth.mean()),
        depth_correlation_least=float(depth.min()),
        mouth_response_before=float(response[0]),
        mouth_response_after=float(response[1]),
        scenes=count,
    )


class _Look(NamedTuple):
    """A generator's images of a scene [N, 3, R, R] with closed and open jaw, and the depth [N, 1, r, r] of its head."""

    closed: Tensor
    opened: Tensor
    depth: Tensor


def _look(generator: Generator, z: Tensor, scene: Scene) -> _Look:
    identity = generator.identity(generator.map(z, scene.label, truncation_psi=TRUNCATION))
    closed, opened, posed = (
        generator.render(generator.deform(identity, head), scene.label)
        for head in (scene.relaxed, scene.opened, scene.head)
    )
    return _Look(closed.image, opened.image, posed.depth)


def _coverage(generator: Generator, scene: Scene) -> Tensor:
    """Where the template is drawn, at the resolution of depths. bool [N, 1, r, r]"""
    size = generator.config.render_resolution
    return render_template(generator.template, scene.head, scene.label, resolution=size, mode='uv')[:, 2:] > 0


def correlation(first: Tensor, second: Tensor, where: Tensor) -> Tensor:
    """Pearson correlation a sample of [N, 1, R, R] over the pixels `where` (bool, same shape). [N]; 0 if constant."""
    weights = where.flatten(1).double()
    total = weights.sum(dim=1, keepdim=True).clamp(min=1)

    def centred(values: Tensor) -> Tensor:
        flat = values.flatten(1).double()
        return (flat - (flat * weights).sum(dim=1, keepdim=True) / total) * weights

    a, b = centred(first), centred(second)
    scale = (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()
    return torch.where(scale > 0, (a * b).sum(dim=1) / scale.clamp(min=1e-30), 0).float()
