"""Make a small file of a snapshot, to publish: averaged generator and discriminator in half precision.

It is an ordinary snapshot of which G is G_ema. How assets/synth64.pkl was made:

    python -m tools.publish_network runs/synth64/network-snapshot-000030.pkl assets/synth64.pkl
"""

from __future__ import annotations

import dataclasses

import click
import torch

from dnnlib.cli import Command
from dnnlib.files import sha256_file
from training.checkpoint import load_snapshot, save_snapshot


def halve(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Floating-point tensors in float16, which training and inference widen again."""
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


@click.command(cls=Command)
@click.argument('source')
@click.argument('target')
def main(source: str, target: str) -> None:
    """Write SOURCE's averaged generator and discriminator to TARGET in float16."""
    snapshot = load_snapshot(source)
    generator = halve(snapshot.networks['G_ema'])
    networks = {'G_ema': generator, 'G': generator, 'D': halve(snapshot.networks['D'])}
    config = dataclasses.replace(snapshot.config, data='', resume=None)
    save_snapshot(target, dataclasses.replace(snapshot, networks=networks, config=config))
    click.echo(f'{target}: sha256 {sha256_file(target)}')


if __name__ == '__main__':
    main()
