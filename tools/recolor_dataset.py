"""Copy a packed dataset with its images recoloured, cameras and heads unchanged: a target domain to stylize towards.

statue: grey stone, without any colour of its own; cartoon: few flat colours and dark outlines. Used in
docs/stylization.md:

    python -m tools.recolor_dataset synth64.zip statue64.zip --style=statue --num=2000
"""

from __future__ import annotations

import click
import numpy as np

from dnnlib.cli import Command
from training.dataset import HeadDataset
from training.dataset_writer import DatasetWriter

LUMA = np.array([0.299, 0.587, 0.114])
SHADOW, LIGHT = np.array([62.0, 60.0, 66.0]), np.array([214.0, 211.0, 203.0])  # of the stone
LEVELS = 4  # of a cartoon's colours
EDGE = 40.0  # difference of brightness to the neighbours that draws an outline


def statue(image: np.ndarray) -> np.ndarray:
    """uint8 [R, R, 3] -> its brightness, stretched, between the stone's shadow and light."""
    luma = image @ LUMA
    low, high = np.percentile(luma, (2, 98))
    share = np.clip((luma - low) / max(high - low, 1.0), 0, 1)[..., None]
    return np.rint(SHADOW + (LIGHT - SHADOW) * share).astype(np.uint8)


def cartoon(image: np.ndarray) -> np.ndarray:
    """uint8 [R, R, 3] -> LEVELS values a channel, dark where brightness changes within two pixels."""
    step = 255.0 / (LEVELS - 1)
    flat = np.rint(np.rint(image / step) * step)
    luma = np.pad(image @ LUMA, 1, mode='edge')
    change = np.hypot(luma[1:-1, 2:] - luma[1:-1, :-2], luma[2:, 1:-1] - luma[:-2, 1:-1])
    return np.where((change > EDGE)[..., None], flat * 0.25, flat).astype(np.uint8)


STYLES = {'statue': statue, 'cartoon': cartoon}


@click.command(cls=Command)
@click.argument('source')
@click.argument('target')
@click.option('--style', type=click.Choice(sorted(STYLES)), required=True)
@click.option('--num', type=click.IntRange(min=1), help='The first NUM images. Default: all.')
def main(source: str, target: str, style: str, num: int | None) -> None:
    """Write the dataset TARGET: SOURCE in another style."""
    dataset = HeadDataset(source)
    model = dataset.head_model
    count = min(num or len(dataset), len(dataset))
    with DatasetWriter(
        target, resolution=dataset.resolution, head_model=model.name, head_model_hash=model.content_hash
    ) as writer:
        for index in range(count):
            params = dataset.head_params([index])
            head = dataset.head_input([index]) if params is None else params
            pixels = dataset.image(index).transpose(1, 2, 0)
            writer.add(STYLES[style](pixels), label=dataset.label([index])[0], head=head)
    click.echo(f'{target}: {count} images of {dataset.resolution} px as {style}')


if __name__ == '__main__':
    main()
