"""A tiny snapshot and a tiny dataset on the embedded head model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from training.avatar import Avatar
from training.cameras import orbit_camera
from training.checkpoint import Info, Snapshot, load_snapshot, plain_state, save_snapshot
from training.config import preset
from training.dataset_writer import DatasetWriter
from training.generator import Generator
from training.head.makehuman import embedded_head
from training.head.model import HeadParams


def tiny_generator() -> Generator:
    """The debug preset with random weights, made to answer to its inputs."""
    head = embedded_head()
    torch.manual_seed(0)
    generator = Generator(preset('debug').generator, head.template).eval().requires_grad_(False)
    generator.decoder.out.weight[0] *= 20  # a density that varies in space, so that there is a surface
    return generator


def write_snapshot(path: Path, *, data: str = '') -> Path:
    """A snapshot of `tiny_generator` as training writes it (G and D are not read by the scripts)."""
    head = embedded_head()
    snapshot = Snapshot(
        config=preset('debug', {'data': data}),
        info=Info(images_seen=4000, head_model=head.name, head_model_hash=head.content_hash),
        template=head.template,
        networks={'G_ema': plain_state(tiny_generator()), 'G': {}, 'D': {}},
    )
    save_snapshot(path, snapshot)
    return path


def write_avatar(path: Path, network: Path) -> Path:
    """The snapshot `network` as the checkpoint of a person whose latent it would not draw by itself."""
    snapshot = load_snapshot(network)
    config = snapshot.config.generator
    shape = (1, Generator(config, snapshot.template).num_ws, config.w_dim)
    ws = torch.randn(shape, generator=torch.Generator().manual_seed(9))
    avatar = Avatar(ws=ws, identity=random_params(seed=7).identity, base='', protocol={})
    save_snapshot(path, dataclasses.replace(snapshot, avatar=avatar))
    return path


def write_dataset(path: Path, *, count: int, resolution: int = 16) -> Path:
    """Noise images with random cameras, expressions and identities of the embedded head."""
    head = embedded_head()
    rng, torch_rng = np.random.default_rng(0), torch.Generator().manual_seed(0)
    labels = orbit_camera(0.3 * torch.randn(count, generator=torch_rng), torch.zeros(count))
    with DatasetWriter(path, resolution=resolution, head_model=head.name, head_model_hash=head.content_hash) as writer:
        for index in range(count):
            image = rng.integers(0, 256, (resolution, resolution, 3), dtype=np.uint8)
            writer.add(image, label=labels[index].numpy(), head=random_params(seed=index))
    return path


def random_params(*, seed: int, count: int = 1) -> HeadParams:
    """Small random parameters of the embedded head, at its place."""
    rng = torch.Generator().manual_seed(seed)
    params = embedded_head().neutral(count)
    moved = params.map(lambda t: 0.1 * torch.randn(t.shape, generator=rng))
    return moved.replace(rotation=params.rotation, translation=params.translation)
