"""Image grids of a run: real images, and the averaged generator's image, raw image, depth and template."""

from __future__ import annotations

from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torch_utils.rng import numpy_stream, stream
from training.conditions import ConditionSource, HeadImages
from training.config import TrainConfig
from training.generator import Generator
from training.template_rendering import render_template

COLUMNS = 8
BLOCKS = 2


class GridSource:
    """The same latents, cameras and heads for every grid of a run."""

    def __init__(self, config: TrainConfig, dataset: HeadImages, *, device: torch.device) -> None:
        self.config, self.dataset = config, dataset
        count = COLUMNS * BLOCKS
        items = numpy_stream(config.seed, 'grid').integers(len(dataset), size=count).tolist()
        rng = stream(config.seed, 'grid', 'latents')
        self.items = items
        self.z = torch.randn(count, config.generator.z_dim, generator=rng).to(device)
        self.conditions = ConditionSource(dataset, label_dim=25, device=device).real(items)

    def reals(self) -> Image.Image:
        """The dataset items whose cameras and heads the fakes take."""
        return to_image(self.dataset.images(self.items), columns=COLUMNS)

    @torch.no_grad()
    def fakes(self, generator: Generator, *, batch: int) -> Image.Image:
        """Blocks of four rows: image, raw image, depth (near is bright), template rendering."""
        rows: list[Tensor] = []
        size = self.config.generator.image_resolution
        for start in range(0, len(self.z), batch):
            part = slice(start, start + batch)
            label, head = self.conditions.label[part], self.conditions.head[part]
            out = generator(self.z[part], label, head)
            near, far = self.config.generator.ray_near, self.config.generator.ray_far
            depth = (1 - (out.depth - near) / (far - near)) * 2 - 1
            template = render_template(generator.template, head, label, resolution=size, mode=self._template_mode())
            small = [torch.nn.functional.interpolate(t, size=(size, size)) for t in (out.image_raw, depth)]
            rows.append(torch.stack([out.image, small[0], small[1].expand_as(out.image), template]))
        pictures = torch.cat(rows, dim=1)  # [4, count, 3, R, R]
        blocks = pictures.unflatten(1, (BLOCKS, COLUMNS)).transpose(0, 1).flatten(0, 2)
        return to_image((blocks * 127.5 + 128).clamp(0, 255).to(torch.uint8), columns=COLUMNS)

    def _template_mode(self) -> str:
        mode = self.config.discriminator.template
        return 'correspondence' if mode == 'none' else mode


def to_image(images: Tensor, *, columns: int) -> Image.Image:
    """uint8 images [columns x rows, 3, R, R] -> one picture, rows first."""
    rows = images.unflatten(0, (-1, columns)).cpu()  # [rows, columns, 3, R, R]
    pixels = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return Image.fromarray(np.ascontiguousarray(pixels.numpy()))


def write_png(image: Image.Image, handle: IO[Any]) -> None:
    """For RunDirectory.picture."""
    image.save(handle, format='PNG')
