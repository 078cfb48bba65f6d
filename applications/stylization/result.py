"""What a stylization leaves behind: an ordinary checkpoint, a sheet, and whether geometry and expressions survived."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from applications import images
from applications.heads import cpu_template
from applications.samples import CameraRig, seed_latents
from applications.stylization.scenes import SceneSource
from applications.stylization.survival import SCENES, TRUNCATION, measure_survival
from dnnlib.files import atomic_write
from torch_utils.rng import stream
from training.checkpoint import LoadedGenerator, Snapshot, plain_state, save_snapshot
from training.generator import Generator

RESULT = 'stylized.pkl'
SHEET_SEEDS = (0, 1, 2, 3)
SHEET_YAWS = (0.4, 0.0, -0.4)
SHEET_EXPRESSIONS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stylized:
    """A stylized network beside its source."""

    source: LoadedGenerator
    generator: Generator
    scenes: SceneSource
    discriminator: Mapping[str, Tensor]  # state dict; empty where there is none
    images_seen: int
    how: dict[str, Any]  # everything that decided the result, JSON-able
    seed: int


def finish(result: Stylized, folder: Path, *, say: Callable[[str], None]) -> Path:
    """Measure, draw and write: sheet.png, stylization.json, and last the checkpoint stylized.pkl."""
    generators = (result.source.generator, result.generator)
    survival = measure_survival(*generators, result.scenes, seed=result.seed, count=SCENES)
    for line in survival.lines():
        say(line)
    sheet = folder / 'sheet.png'
    images.save_png(sheet, draw_sheet(result))
    say(str(sheet))
    record = {**result.how, **dataclasses.asdict(survival), 'survives': survival.survives}
    with atomic_write(folder / 'stylization.json') as handle:
        handle.write((json.dumps(record, indent=2) + '\n').encode())
    state = plain_state(result.generator)
    info = dataclasses.replace(result.source.info, images_seen=result.images_seen, metrics={}, stylization=record)
    snapshot = Snapshot(
        config=result.source.config,
        info=info,
        template=cpu_template(result.source),
        networks={'G_ema': state, 'G': state, 'D': dict(result.discriminator)},
        avatar=result.source.avatar,
    )
    path = folder / RESULT
    save_snapshot(path, snapshot)
    say(str(path))
    return path


@torch.no_grad()
def draw_sheet(result: Stylized) -> Tensor:
    """Two rows a seed, or for an avatar two rows, source above stylized: three views of a relaxed face, expressions
    from the front, depth. The picture [3, H, W]."""
    generators = (result.source.generator, result.generator)
    device = next(result.generator.parameters()).device
    rig = CameraRig.of(result.source.config, framing=result.source.info.framing)
    scene = result.scenes.draw(SHEET_EXPRESSIONS, rng=stream(result.seed, 'sheet')).to(device)
    front = rig.front().to(device)
    views = rig.labels(torch.tensor(SHEET_YAWS), torch.zeros(len(SHEET_YAWS))).to(device)
    size = result.generator.config.image_resolution
    cells: list[Tensor] = []
    avatar = result.source.avatar
    if avatar is not None:
        people = avatar.ws.to(device)
    else:
        people = seed_latents(generators[0], SHEET_SEEDS, truncation_psi=TRUNCATION, truncation_cutoff=None, rig=rig)
    for ws in people.split(1):
        for generator in generators:
            identity = generator.identity(ws)
            relaxed = generator.deform(identity, scene.relaxed[[0]])
            row = [generator.render(relaxed, label[None]) for label in views]
            posed = [generator.deform(identity, scene.head[[index]]) for index in range(SHEET_EXPRESSIONS)]
            row += [generator.render(planes, front) for planes in posed]
            depth = images.depth_colors(images.resize(row[len(views) // 2].depth, size))
            cells += [cell[0].clamp(-1, 1).cpu() for cell in (*(view.image for view in row), depth)]
    return images.grid(cells, len(views) + SHEET_EXPRESSIONS + 1)
