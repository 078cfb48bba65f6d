"""Move a trained network to another style, by a text, by pictures, or by a dataset (paper section 4.3)."""

from __future__ import annotations

from typing import Any

import click

from dnnlib import UserError
from dnnlib.cli import Command, device_option, head_model_option, network_option, rasterizer_option

POSITIVE = click.IntRange(min=1)
RATE = click.FloatRange(min=0, min_open=True)
CLIP_ONLY = ('clip', 'clip_vocab', 'clip_quickgelu', 'data', 'steps', 'direction_weight', 'global_weight',
             'auto_layers', 'auto_steps')  # fmt: skip
IMAGES_ONLY = ('kimg', 'gamma', 'density_reg', 'density_anchor', 'batch_gpu', 'gpus', 'workers')


@click.command(cls=Command)
@network_option()
@click.option(
    '--outdir', required=True, metavar='DIR', help='Folder for stylized.pkl, sheet.png, stylization.json and previews.'
)
@click.option('--text', help='The style in words, like "a statue". Needs CLIP.')
@click.option('--source-text', help='What the network makes now, in words. Default: photo.')
@click.option(
    '--images', metavar='PATH', help='The style in pictures: a packed dataset (trains on it), or a folder (needs CLIP).'
)
@click.option(
    '--freeze',
    type=click.Choice(['stylization', 'none']),
    default='stylization',
    show_default=True,
    help="The paper's rule: toRGB layers but the last, decoder and mapping stay; or nothing does.",
)
@click.option('--batch', type=POSITIVE, help='Images a step. Default: 4 by CLIP; by a dataset as in training.')
@click.option('--lr', type=RATE, default=0.002, show_default=True, help='Learning rate.')
@click.option('--seed', type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    '--clip', metavar='FILE', help="CLIP's weights, or open_clip:NAME:WEIGHTS. Default: from the cache folder."
)
@click.option('--clip-vocab', metavar='FILE', help="CLIP's bpe_simple_vocab_16e6.txt.gz. Default: beside the weights.")
@click.option('--clip-quickgelu', type=bool, help="Weights of OpenAI's kind. Default: if they come in its archive.")
@click.option('--data', metavar='PATH', help='By CLIP: dataset of cameras and heads to draw. Default: random ones.')
@click.option('--steps', type=POSITIVE, help='By CLIP: number of steps. Default: 300.')
@click.option('--direction-weight', type=click.FloatRange(min=0), help='By CLIP: directional loss. Default: 1.')
@click.option('--global-weight', type=click.FloatRange(min=0), help='By CLIP: global loss. Default: 0.2.')
@click.option('--auto-layers', type=POSITIVE, metavar='K', help='By CLIP: train the K layers that matter most.')
@click.option('--auto-steps', type=POSITIVE, help='By CLIP: steps in w that choose them. Default: 1.')
@click.option('--kimg', type=RATE, help='By a dataset: thousand images to train on. Default: 250.')
@click.option('--gamma', type=click.FloatRange(min=0), help='By a dataset: R1. Default: as the network was trained.')
@click.option(
    '--density-anchor',
    type=click.FloatRange(min=0),
    help="By a dataset: hold the density to the source's. Default: 1.",
)
@click.option('--density-reg', type=click.FloatRange(min=0), help='By a dataset: density smoothness. Default: 0.25.')
@click.option('--batch-gpu', type=POSITIVE, help='By a dataset: images at once on a rank.')
@click.option('--gpus', type=POSITIVE, help='By a dataset: number of ranks. Default: 1.')
@click.option('--workers', type=click.IntRange(min=0), help='By a dataset: decoding processes. Default: 0.')
@head_model_option
@click.option('--grad-checkpoint', is_flag=True, help='Less memory, more time: recompute stages of G.')
@click.option('--precision', type=click.Choice(['fp32', 'bf16']), default='fp32', show_default=True)
@device_option
@rasterizer_option
def main(
    network: str, outdir: str, text: str | None, source_text: str | None, images: str | None, **chosen: Any
) -> None:
    """Write OUTDIR/stylized.pkl, an ordinary checkpoint in another style that keeps its geometry and expressions.

    By CLIP an interrupted run begins anew; by a dataset the same command goes on where it was. Whether depth and the
    response to expressions survived is measured, printed and stored.

    \b
    Examples:
        python stylize.py --network=SNAPSHOT --text="a statue" --source-text=photo --clip=ViT-B-32.pt --outdir=out
        python stylize.py --network=SNAPSHOT --images=drawings --clip=ViT-B-32.pt --outdir=out
        python stylize.py --network=SNAPSHOT --images=statues.zip --kimg=250 --batch=32 --gamma=5 --outdir=out
    """
    if (text is None) == (images is None):
        raise UserError('give the style either by --text or by --images')
    if source_text is not None and text is None:
        raise UserError('--source-text: belongs to --text, which is not given')

    from applications.stylization.commands import ImageStyle, TextStyle, by_clip, by_dataset
    from applications.stylization.image_set import is_packed

    dataset = images is not None and is_packed(images)
    for name in CLIP_ONLY if dataset else IMAGES_ONLY:
        if chosen[name] is not None:
            way = f'--images={images} is a packed dataset' if dataset else 'the style is not given by a packed dataset'
            raise UserError(f'--{name.replace("_", "-")}: has no meaning here, since {way}')
    given = {name: value for name, value in chosen.items() if value is not None}
    if dataset:
        assert images is not None
        by_dataset(network, outdir, images, given, say=click.echo)
        return
    style = TextStyle(text=text, source=source_text or 'photo') if text is not None else ImageStyle(folder=str(images))
    by_clip(network, outdir, style, given, say=click.echo, progress=_show_progress)


def _show_progress(done: int, total: int, values: Any) -> None:
    if done % 10 == 0 or done == total:
        losses = ', '.join(f'{name} {value:.4f}' for name, value in values.items())
        click.echo(f'\rstep {done}/{total}: {losses}', nl=done == total, err=True)


if __name__ == '__main__':
    main()
