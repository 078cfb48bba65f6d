"""The picture that shows an avatar at a glance.

A row for each picture (of many, ROWS that are spread over them): input, pivot, tuned, their difference, the template,
depth, what each pixel counts. Then seven views of the tuned network, their depth, and seven expressions
(applications/inversion_novel.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from applications import images
from applications.inversion_losses import View
from applications.inversion_novel import shown_heads
from applications.samples import CameraRig
from training.generator import Generator
from training.head.model import HeadModel
from training.template_rendering import render_template

COLUMNS = 7
YAWS = (-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6)  # radians
MIN_CELL = 128  # pixels
ROWS = 8


@torch.no_grad()
def draw_sheet(
    path: Path,
    base: Generator,
    tuned: Generator,
    ws: Tensor,  # [1, num_ws, w_dim]
    views: Sequence[View],
    *,
    rig: CameraRig,
    model: HeadModel | None,
    identity: Tensor,  # [1, num_identity]
) -> None:
    """Write the sheet; without `model` the last row is left out."""
    size = base.config.image_resolution
    before, after = base.identity(ws), tuned.identity(ws)
    cells: list[Tensor] = []
    for view in [views[i * len(views) // ROWS] for i in range(ROWS)] if len(views) > ROWS else views:
        pivot = base.render(base.deform(before, view.head), view.label).image
        shown = tuned.render(tuned.deform(after, view.head), view.label)
        template = render_template(tuned.template, view.head, view.label, resolution=size, mode='normals')
        cells += [view.image, pivot, shown.image, (shown.image - view.image).abs() - 1, template]
        cells += [images.depth_colors(shown.depth), (2 * view.weight - 1).expand(-1, 3, -1, -1)]
    device = views[0].image.device
    labels = rig.labels(torch.tensor(YAWS), torch.zeros(len(YAWS))).to(device)
    neutral = views[0].head
    if model is not None:
        neutral = model.forward(model.neutral().replace(identity=identity)).to(device)
    planes = tuned.deform(after, neutral)
    around = [tuned.render(planes, label[None]) for label in labels]
    depths = torch.cat([view.depth for view in around])
    near, far = float(depths.min()), float(depths.max())
    cells += [view.image for view in around]
    cells += [images.depth_colors(view.depth, near=near, far=far) for view in around]
    if model is not None:
        front = rig.front().to(device)
        for head in shown_heads(model, identity):
            cells.append(tuned.render(tuned.deform(after, head.to(device)), front).image)
    side = size * max(1, -(-MIN_CELL // size))
    images.save_png(path, images.grid([images.resize(cell, side)[0].clamp(-1, 1).cpu() for cell in cells], COLUMNS))
