"""Both networks of a run, from its config and seed."""

from __future__ import annotations

import torch

from dnnlib.errors import UserError
from torch_utils.precision import choose_precision, lay_out
from torch_utils.rng import derive_seed
from training.checkpoint import load_generator
from training.conditions import HeadImages
from training.config import TrainConfig
from training.discriminator import DualDiscriminator
from training.generator import Generator


def build_networks(
    config: TrainConfig, dataset: HeadImages, *, device: torch.device
) -> tuple[Generator, DualDiscriminator]:
    """G and D with initial weights that depend on config.seed alone; the global generators are left as they were.

    UserError for a config that no networks can be built from.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, 'weights'))
        try:
            generator = Generator(config.generator, dataset.head_model.template)
            discriminator = DualDiscriminator(config.discriminator)
        except ValueError as error:
            raise UserError(f'{config.preset}: no networks for this config: {error}') from error
    for network in (generator, discriminator):
        lay_out(network.to(device).train(), choose_precision(config.precision, device))
    return generator, discriminator


def anchor_network(config: TrainConfig, *, device: torch.device) -> Generator | None:
    """The network that `loss.density_anchor` holds on to: the average of what the run started from; None without.

    UserError for a run that started from nothing.
    """
    if config.loss.density_anchor <= 0:
        return None
    if not config.resume:
        raise UserError('L.density_anchor: holds on to the network that --resume names; give it, or leave this out')
    return load_generator(config.resume, device=device, precision=choose_precision(config.precision, device)).generator
