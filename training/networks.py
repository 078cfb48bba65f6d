"""The two networks of a config, with their initial weights."""

from __future__ import annotations

import torch

from torch_utils.precision import choose_precision, lay_out
from torch_utils.rng import derive_seed
from training.conditions import HeadImages
from training.config import TrainConfig
from training.discriminator import DualDiscriminator
from training.generator import Generator
from training.layers import Conv2d


def build_networks(
    config: TrainConfig, dataset: HeadImages, *, device: torch.device
) -> tuple[Generator, DualDiscriminator]:
    """G and D with initial weights that depend on config.seed alone; the global generators are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, 'weights'))
        generator = Generator(config.generator, dataset.head_model.template)
        discriminator = DualDiscriminator(config.discriminator)
    for network in (generator, discriminator):
        lay_out(network.to(device).train(), choose_precision(config.precision, device))
    return generator, discriminator


def frozen_parameters(discriminator: DualDiscriminator, layers: int) -> set[str]:
    """Names of the parameters of the first `layers` convolutions, from the image down (Freeze-D)."""
    names = [name for name, module in discriminator.named_modules() if isinstance(module, Conv2d)]
    return {f'{name}.{kind}' for name in names[:layers] for kind in ('weight', 'bias')}
