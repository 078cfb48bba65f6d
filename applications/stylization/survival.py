"""Whether geometry and the answer to expressions survive a stylization (the "3D consistency" of paper section 4.3).

Both are measured on the same latents, cameras and heads for the source and the stylized network, inside the drawn
template, and neither depends on colours: a statue may be grey, but it must keep its nose and open its mouth.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from applications.stylization.scenes import Scene, SceneSource
from torch_utils.rng import stream
from training.generator import Generator
from training.template_rendering import render_template

SCENES = 32
TRUNCATION = 0.7
BATCH = 4
LEAST_DEPTH = 0.9  # correlation of depths
LEAST_RESPONSE = 0.8  # of the source's response to expressions
VISIBLE = 0.05  # change of the template's normals, of 2, that counts as moved


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survival:
    """What is left of a source network's geometry and expressions in a stylized one."""

    depth_correlation: float  # mean over scenes of the Pearson correlation of the two depths
    depth_correlation_least: float  # of the worst scene
    expression_response_before: float  # as `expression_response`, of the source
    expression_response_after: float
    scenes: int

    @property
    def survives(self) -> bool:
        kept = self.expression_response_after >= LEAST_RESPONSE * self.expression_response_before
        return self.depth_correlation >= LEAST_DEPTH and kept

    def lines(self) -> list[str]:
        """For the terminal."""
        lost = 'GEOMETRY OR EXPRESSIONS ARE LOST; use a lower --lr, or fewer --steps or --kimg'
        return [
            f'depth: correlation with the source {self.depth_correlation:.3f} (worst of {self.scenes} scenes '
            f'{self.depth_correlation_least:.3f}, wanted at least {LEAST_DEPTH} on average)',
            f'expression response: {self.expression_response_before:.3f} before, {self.expression_response_after:.3f} '
            f'after (wanted at least {LEAST_RESPONSE:.0%} of before)',
            'geometry and expressions survive' if self.survives else lost,
        ]


@torch.no_grad()
def measure_survival(source: Generator, stylized: Generator, scenes: SceneSource, *, seed: int, count: int) -> Survival:
    """Compare two networks of one architecture; both on the same device."""
    device = next(source.parameters()).device
    depths: list[Tensor] = []
    responses: list[Tensor] = []
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        rng = stream(seed, 'survival', start)
        z = torch.randn(size, source.config.z_dim, generator=rng).to(device)
        scene = scenes.draw(size, rng=rng).to(device)
        pairs = [_look(generator, z, scene) for generator in (source, stylized)]
        seen = _seen(source, scene)
        depths.append(correlation(pairs[0][1], pairs[1][1], seen[1]))
        responses.append(torch.stack([expression_response(images, seen) for images, _ in pairs]))
    depth, response = torch.cat(depths), torch.cat(responses, dim=1).mean(dim=1)
    return Survival(
        depth_correlation=float(depth.mean()),
        depth_correlation_least=float(depth.min()),
        expression_response_before=float(response[0]),
        expression_response_after=float(response[1]),
        scenes=count,
    )


def _look(generator: Generator, z: Tensor, scene: Scene) -> tuple[Tensor, Tensor]:
    """Images [2, N, 3, R, R] (posed, relaxed) and the depth [N, 1, r, r] of the posed head."""
    identity = generator.identity(generator.map(z, scene.label, truncation_psi=TRUNCATION))
    posed, relaxed = (
        generator.render(generator.deform(identity, head), scene.label) for head in (scene.head, scene.relaxed)
    )
    return torch.stack([posed.image, relaxed.image]), posed.depth


def _seen(generator: Generator, scene: Scene) -> tuple[Tensor, Tensor]:
    """How much the template's normals change between posed and relaxed [N, 1, R, R], and where the posed one is
    drawn at the resolution of depths [N, 1, r, r]."""
    sizes = (generator.config.image_resolution, generator.config.render_resolution)
    posed, relaxed = (
        render_template(generator.template, head, scene.label, resolution=sizes[0], mode='normals')
        for head in (scene.head, scene.relaxed)
    )
    coverage = render_template(generator.template, scene.head, scene.label, resolution=sizes[1], mode='uv')[:, 2:] > 0
    return (posed - relaxed).abs().mean(dim=1, keepdim=True), coverage


def expression_response(images: Tensor, seen: tuple[Tensor, Tensor]) -> Tensor:
    """How well an image changes where its mesh does: the correlation, over all pixels, of the image's change with
    the template's. images [2, N, 3, R, R]: posed, relaxed. [N]; 0: it does not follow. 0 also if nothing is moved.
    """
    change = (images[0] - images[1]).abs().mean(dim=1, keepdim=True)
    moved = (seen[0] > VISIBLE).float() * seen[0]
    return correlation(change, moved, torch.ones_like(change, dtype=torch.bool))


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
