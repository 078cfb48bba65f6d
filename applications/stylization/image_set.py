"""Stylization by a dataset: the ordinary training run, started from a network whose geometry layers are frozen.

What AvatarArtist reports for this family of networks: batch 32, 200 to 300 thousand images, learning rates of 0.002,
adaptive augmentation, R1 of 5 and density smoothness of 0.25 (at 512 px). As in any run that starts from trained
weights (EG3D), images are not blurred at first and augmentation may rise five times as fast.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dnnlib import UserError
from torch_utils.distributed import run
from training.checkpoint import is_pickle, load_snapshot, snapshot_name
from training.config import TrainConfig
from training.generator import STAGES
from training.loop import RunOptions, prepare, train

ADA_KIMG = 100.0  # to full augmentation
REPORTS, SNAPSHOTS = 40, 8  # in a run


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSetOptions:
    """What of a network's own training configuration is replaced; None keeps it."""

    network: str
    data: str  # packed dataset in the target style
    outdir: str
    kimg: float
    batch: int | None = None
    batch_gpu: int | None = None
    gpus: int = 1
    lr: float = 0.002
    gamma: float | None = None
    density: float = 0.25
    anchor: float = 1.0  # how firmly the density is held to the source's
    seed: int = 0
    freeze: str = 'stylization'
    precision: str = 'fp32'
    workers: int = 0
    head_model: str | None = None
    checkpoint: bool = False  # gradient checkpointing


def is_packed(path: str) -> bool:
    """Whether `path` is a packed dataset, or at least no folder of plain pictures."""
    source = Path(path)
    return not source.is_dir() or (source / 'dataset.json').is_file() or any(source.glob('*.zip'))


def image_set_config(own: TrainConfig, options: ImageSetOptions) -> TrainConfig:
    """The training run that stylizes; `own`: the network's configuration."""
    batch = options.batch or own.batch
    batch_gpu = options.batch_gpu or max(batch // options.gpus, 1)
    if batch % (options.gpus * batch_gpu):
        raise UserError(f'--batch: {batch} is not divisible by --gpus x --batch-gpu = {options.gpus} x {batch_gpu}')
    loss = dataclasses.replace(
        own.loss,
        r1_gamma=own.loss.r1_gamma if options.gamma is None else options.gamma,
        density_weight=options.density,
        density_anchor=options.anchor,
        blur_fade_kimg=0.0,
        pose_swap_fade_kimg=0.0,
    )
    # The average must have left the source behind at the end of a short run.
    half_life = min(batch * 10 / 32, options.kimg / 20)
    return dataclasses.replace(
        own,
        loss=loss,
        data=options.data,
        clip_frames=1,
        seed=options.seed,
        batch=batch,
        batch_gpu=batch_gpu,
        gpus=options.gpus,
        kimg=options.kimg,
        g_lr=options.lr,
        d_lr=options.lr,
        ema_kimg=half_life,
        augment='ada',
        ada_kimg=ADA_KIMG,
        freeze_g=options.freeze,  # type: ignore[arg-type]
        precision=options.precision,  # type: ignore[arg-type]
        resume=options.network,
        tick_kimg=options.kimg / REPORTS,
        snapshot_ticks=REPORTS // SNAPSHOTS,
        image_ticks=REPORTS // SNAPSHOTS,
        metrics=(),
    )


def own_config(network: str) -> TrainConfig:
    """How a network was made, as far as its file says."""
    if is_pickle(network):
        from training.checkpoint import ReleaseAssets
        from training.legacy_files import read_release

        return read_release(network, assets=ReleaseAssets(), only=('G_ema', 'D')).config
    return load_snapshot(network).config


def train_on_images(options: ImageSetOptions, device_type: str, *, say: Callable[[str], None]) -> Path:
    """Run, or go on with, the training in options.outdir; the snapshot that it ends with."""
    config = prepare(image_set_config(own_config(options.network), options), head_model=options.head_model)
    say(
        f'{config.kimg:g} kimg at batch {config.batch} on {options.data}; the same command again goes on where it was '
        'interrupted'
    )
    settings = RunOptions(
        outdir=options.outdir,
        workers=options.workers,
        head_model=options.head_model,
        checkpoint=frozenset(STAGES if options.checkpoint else ()),
    )
    run(functools.partial(train, config=config, options=settings, evaluate=_no_metrics), device_type, ranks=config.gpus)
    steps = math.ceil(config.kimg * 1000 / config.batch)
    return Path(options.outdir) / snapshot_name(steps * config.batch)


def _no_metrics(names: tuple[str, ...], **subjects: Any) -> list[dict[str, Any]]:
    """This run measures nothing on its way: config.metrics is empty."""
    return []
