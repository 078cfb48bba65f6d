"""Draw docs/images/synthetic_sheet.png: what the embedded dataset looks like, large and at training size."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image

from dnnlib.cli import Command
from dnnlib.files import atomic_write, make_output_folder

LARGE, SMALL = 128, 64
COLUMNS, SMALL_ROWS = 8, 3  # columns of large images; twice as many small ones


@click.command(cls=Command)
@click.option('--out', default='docs/images/synthetic_sheet.png', show_default=True, help='PNG to write.')
@click.option('--seed', default=0, show_default=True, help='Seed of the dataset.')
def main(out: str, seed: int) -> None:
    """Two rows of one image a person at 128 px, then rows of 64 px with each person's four images."""
    from training.synthetic import render_index
    from training.synthetic_params import IMAGES_PER_IDENTITY

    def rows(indices: range, resolution: int, columns: int) -> np.ndarray:
        images = [render_index(seed, index, resolution=resolution).image.transpose(1, 2, 0) for index in indices]
        lines = [np.concatenate(images[k : k + columns], axis=1) for k in range(0, len(images), columns)]
        return np.concatenate(lines)

    count = 2 * COLUMNS * IMAGES_PER_IDENTITY
    large = rows(range(0, count, IMAGES_PER_IDENTITY), LARGE, COLUMNS)
    small = rows(range(count, count + 2 * SMALL_ROWS * COLUMNS), SMALL, 2 * COLUMNS)
    sheet = Image.fromarray(np.concatenate([large, small]))
    make_output_folder(Path(out).parent)
    with atomic_write(out) as handle:
        sheet.save(handle, format='PNG', optimize=True)
    click.echo(f'{out}: {Path(out).stat().st_size // 1024} kB')


if __name__ == '__main__':
    main()
