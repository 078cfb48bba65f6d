"""stylize.py's way by CLIP with a stand-in for CLIP: statistics of colours and edges instead of what pictures mean.

It shows the machinery on a CPU and without any download: losses, layer rule, checks of survival. Used in
docs/stylization.md:

    python -m tools.stylize_by_statistics assets/synth64.pkl statue64.zip out/statistics --steps=60
"""

from __future__ import annotations

import dataclasses

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from applications.stylization.by_clip import ClipOptions, ClipStylizer, stylize_by_clip
from applications.stylization.guidance import image_guidance
from applications.stylization.result import Stylized, finish
from applications.stylization.scenes import DatasetScenes, open_scenes
from dnnlib import UserError
from dnnlib.cli import Command
from dnnlib.files import make_output_folder
from training.checkpoint import load_generator, load_snapshot
from training.dataset import HeadDataset

LUMA = (0.299, 0.587, 0.114)
PICTURES = 64


class ColourStatistics:
    """Stands in for CLIP: means and deviations of colours, chroma, and edges of brightness, as a unit vector."""

    name, content_hash = 'colour statistics', ''

    def image_features(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1] -> [N, 11]."""
        flat = images.flatten(2)
        chroma = (flat - flat.roll(1, dims=1)).square().mean(dim=2).add(1e-6).sqrt()
        luma = (images * images.new_tensor(LUMA)[:, None, None]).sum(dim=1)
        edges = [luma.diff(dim=axis).square().mean(dim=(1, 2)).add(1e-6).sqrt() for axis in (1, 2)]
        values = torch.cat([flat.mean(dim=2), flat.std(dim=2), chroma, torch.stack(edges, dim=1)], dim=1)
        return F.normalize(values, dim=1)

    def text_features(self, texts: list[str]) -> Tensor:
        raise UserError('statistics of colours know no texts')


@click.command(cls=Command)
@click.argument('network')
@click.argument('data')
@click.argument('outdir')
@click.option('--steps', type=click.IntRange(min=1), default=60, show_default=True)
@click.option('--batch', type=click.IntRange(min=1), default=4, show_default=True)
@click.option('--lr', type=click.FloatRange(min=0, min_open=True), default=0.002, show_default=True)
def main(network: str, data: str, outdir: str, steps: int, batch: int, lr: float) -> None:
    """Move NETWORK towards the colours of the packed dataset DATA; its cameras and heads are drawn as well."""
    loaded, folder = load_generator(network), make_output_folder(outdir)
    scenes = open_scenes(loaded, data=data, head_model=None)
    assert isinstance(scenes, DatasetScenes)
    dataset: HeadDataset = scenes.dataset
    images = dataset.images(list(range(min(PICTURES, len(dataset))))).float() / 127.5 - 1
    options = ClipOptions(steps=steps, batch=batch, lr=lr)
    scene = scenes.draw(16, rng=torch.Generator().manual_seed(0))
    z = torch.randn(16, loaded.generator.config.z_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        generated = loaded.generator(z, scene.label, scene.head).image
    guidance = image_guidance(
        ColourStatistics(), list(images.split(1)), generated, direction_weight=1.0, global_weight=1.0
    )
    generator = stylize_by_clip(ClipStylizer(loaded.generator, guidance, scenes, options), folder, progress=_show)
    result = Stylized(
        source=loaded,
        generator=generator,
        scenes=scenes,
        discriminator=load_snapshot(network).networks['D'],
        images_seen=loaded.info.images_seen,
        how={'method': 'statistics', 'data': data, **dataclasses.asdict(options)},
        seed=options.seed,
    )
    finish(result, folder, say=click.echo)


def _show(done: int, total: int, values: object) -> None:
    if done % 10 == 0 or done == total:
        click.echo(f'step {done}/{total}: {values}', err=True)


if __name__ == '__main__':
    main()
