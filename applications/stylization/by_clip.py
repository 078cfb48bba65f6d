"""Stylization by CLIP (paper section 4.3 and supplement A.2, C): NADA's losses on random views and expressions."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from applications import images
from applications.stylization.guidance import Guidance, Terms
from applications.stylization.scenes import SceneSource
from dnnlib import UserError
from dnnlib.files import atomic_write
from torch_utils.rng import stream
from training.freezing import frozen_generator_parameters, last_output_layers
from training.generator import STAGES, Generator
from training.layer_rows import modulated_layers

LATENT_RATE = 0.01  # of the steps in w that choose layers (NADA)
LATENT_BATCH = 8
PREVIEWS = 6  # in a run
PREVIEW_COUNT = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """How to train; NADA's values where it has them."""

    steps: int = 300
    batch: int = 4
    lr: float = 0.002
    seed: int = 0
    freeze: str = 'stylization'
    auto_layers: int | None = None  # layers trained in a step, chosen anew for each; None: all that `freeze` leaves
    auto_steps: int = 1  # steps in w that choose them
    checkpoint: bool = False  # recompute stages of the generator in the backward pass


class ClipStylizer:
    """A source generator, its copy that learns, and the step that moves it.

    A step is a function of (weights, optimizer, step number): its draws come from streams of their own, and both
    networks get the same ones, so that their images differ by style alone.
    """

    def __init__(
        self,
        source: Generator,
        guidance: Guidance,
        scenes: SceneSource,
        options: ClipOptions,
        *,
        own: Tensor | None = None,  # ws [1, num_ws, w_dim] of an avatar, who is in every batch
    ) -> None:
        self.own = own
        self.source, self.guidance, self.scenes, self.options = source, guidance, scenes, options
        self.device = next(source.parameters()).device
        self.generator = copy.deepcopy(source).train()
        self.generator.checkpoint = frozenset(STAGES if options.checkpoint else ())
        frozen = frozen_generator_parameters(self.generator, options.freeze)
        self.trained = {name: value for name, value in self.generator.named_parameters() if name not in frozen}
        self.optimizer = torch.optim.Adam(self.trained.values(), lr=options.lr, betas=(0.0, 0.99), fused=True)
        self.layers = modulated_layers(self.generator)

    def step(self, number: int) -> Terms:
        """One update; UserError if its gradients are not finite."""
        learning = set(self.trained)
        if self.options.auto_layers is not None:
            learning &= self.chosen(number)
        for name, parameter in self.trained.items():
            parameter.requires_grad_(name in learning)
        source, stylized = self.pair(number, self.options.batch)
        terms = self.guidance(source, stylized)
        self.optimizer.zero_grad(set_to_none=True)
        terms.loss.backward()
        gradients = [parameter.grad for parameter in self.trained.values() if parameter.grad is not None]
        if not torch.isfinite(nn.utils.get_total_norm(gradients)):
            raise UserError(f'step {number}: gradients are not finite; lower --lr or use --precision=fp32')
        self.optimizer.step()
        return Terms(**{field.name: getattr(terms, field.name).detach() for field in dataclasses.fields(terms)})

    def pair(self, number: int | str, count: int) -> tuple[Tensor, Tensor]:
        """Images of both networks [count, 3, R, R] for the scenes of a step; gradient to the learning one."""
        rng = stream(self.options.seed, 'stylize', number)
        z = torch.randn(count, self.source.config.z_dim, generator=rng).to(self.device)
        scene = self.scenes.draw(count, rng=rng).to(self.device)
        ws = self.source.map(z, scene.label)
        if self.own is not None:
            ws = torch.cat([self.own.to(ws), ws[1:]])

        def draw(generator: Generator) -> Tensor:
            pixels = stream(self.options.seed, 'stylize', number, 'pixels', device=self.device)
            planes = generator.deform(generator.identity(ws, rng=pixels), scene.head, rng=pixels)
            return generator.render(planes, scene.label, rng=pixels).image

        with torch.no_grad():
            source = draw(self.source)
        return source, draw(self.generator)

    def chosen(self, number: int) -> set[str]:
        """NADA's automatic choice: the layers whose rows of w move most in a few steps of the global loss.

        The last toRGB layers, which the paper adds, learn always.
        """
        assert self.options.auto_layers is not None
        for parameter in self.trained.values():
            parameter.requires_grad_(False)
        rng = stream(self.options.seed, 'layers', number)
        z = torch.randn(LATENT_BATCH, self.source.config.z_dim, generator=rng).to(self.device)
        scene = self.scenes.draw(LATENT_BATCH, rng=rng).to(self.device)
        start = self.source.map(z, scene.label).detach().clone()
        ws = start.clone().requires_grad_(True)
        for _ in range(self.options.auto_steps):
            planes = self.generator.deform(self.generator.identity(ws), scene.head)
            image = self.generator.render(planes, scene.label).image
            loss = self.guidance.distance(self.guidance.clip.image_features(image))
            (gradient,) = torch.autograd.grad(loss, [ws])
            ws = (ws - LATENT_RATE * gradient).detach().requires_grad_(True)
        moved = (ws - start).abs().mean(dim=(0, 2))
        best = set(moved.topk(min(self.options.auto_layers, len(moved))).indices.tolist())
        prefixes = tuple(prefix for prefix, row in self.layers.items() if row in best)
        return {name for name in self.trained if name.startswith((*prefixes, *last_output_layers(self.generator)))}


def stylize_by_clip(
    stylizer: ClipStylizer, folder: Path, *, progress: Callable[[int, int, Mapping[str, float]], None]
) -> Generator:
    """All steps; writes stats.jsonl (a line a step) and previews into `folder`. The stylized generator.

    An interrupted run begins anew: it takes minutes, and the same seed gives the same steps.
    """
    options = stylizer.options
    records: list[dict[str, Any]] = []
    for number in range(options.steps):
        if number % max(options.steps // PREVIEWS, 1) == 0:
            _preview(stylizer, folder / f'preview{number:05d}.png')
        terms = stylizer.step(number)
        values = {'loss': float(terms.loss), 'directional': float(terms.directional), 'global': float(terms.overall)}
        records.append({'step': number, **values})
        progress(number + 1, options.steps, values)
    with atomic_write(folder / 'stats.jsonl') as handle:
        handle.write(''.join(json.dumps(record) + '\n' for record in records).encode())
    return stylizer.generator.eval().requires_grad_(False)


@torch.no_grad()
def _preview(stylizer: ClipStylizer, path: Path) -> None:
    """Source above, stylized below, of the same scenes every time."""
    pair = stylizer.pair('preview', PREVIEW_COUNT)
    images.save_png(path, images.grid(torch.cat(pair).clamp(-1, 1).cpu(), PREVIEW_COUNT))
