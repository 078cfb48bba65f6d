"""The dataset of a training run, checked against its config."""

from __future__ import annotations

from dnnlib.errors import UserError
from training.bad_images import TolerantDataset
from training.conditions import dataset_clips
from training.config import TrainConfig
from training.dataset import HeadDataset
from training.head import load_head_model
from training.head.model import HeadModel


def open_dataset(config: TrainConfig, *, head_model: str | None = None) -> HeadDataset:
    """The run's dataset, checked against the config; UserError otherwise. `head_model`: the user's FLAME file."""
    dataset = dataset_of(config)
    if head_model is not None:
        dataset = dataset_of(config, head_model=load_head_model(dataset.head_model_name or '', path=head_model))
    size = config.generator.image_resolution
    if config.discriminator.image_resolution != size:
        raise UserError(f'D.image_resolution: expected G.image_resolution = {size}; set both alike')
    if dataset.resolution != size:
        raise UserError(
            f'--data: {config.data} holds {dataset.resolution} px images, but {config.preset} makes {size} px ones; '
            f'choose another --cfg or make the dataset at {size} px'
        )
    if config.clip_frames > 1:
        dataset_clips(dataset)  # or says why not
    dataset.head_input([0], device='cpu')  # heads and head model are there and fit
    return dataset


def dataset_of(config: TrainConfig, *, head_model: HeadModel | None = None) -> HeadDataset:
    """The dataset of a run, by what it does with bad images; UserError as HeadDataset."""
    if config.bad_images == 'stop':
        return HeadDataset(config.data, mirror=config.mirror, head_model=head_model)
    keep_clips = config.clip_frames > 1
    return TolerantDataset(config.data, mirror=config.mirror, head_model=head_model, keep_clips=keep_clips)
