"""Clips: which images are frames of one video, in the file and in training."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cases_dataset import SheetHead, edit_heads, make_dataset, random_labels, random_params, user_error
from tests.cases_training import tiny_config
from torch_utils.distributed import Communicator
from torch_utils.stats import Stats
from train import make_config
from training.conditions import ConditionSource
from training.dataset import HeadDataset
from training.dataset_writer import DatasetWriter
from training.loss import Schedule
from training.sampler import BatchPlan, ClipOrder, MicroBatchIndices, across
from training.trainer import Trainer

MODEL = SheetHead()


def write_clips(path: Path, clips: list[int]) -> HeadDataset:
    """One 16-px image for each entry of `clips`, frames counted within their clip from 10 on."""
    params, labels = random_params(MODEL, len(clips), seed=0), random_labels(len(clips), seed=0)
    with DatasetWriter(path, resolution=16, head_model=MODEL.name, head_model_hash=MODEL.content_hash) as out:
        for i, clip in enumerate(clips):
            frame = 10 + clips[:i].count(clip)
            out.add(np.full((16, 16, 3), i, np.uint8), label=labels[i], head=params[[i]], clip=(clip, frame))
    return HeadDataset(path, head_model=MODEL)


# File.


@pytest.mark.parametrize('name', ['a.zip', 'a'])
def test_clips_come_back(tmp_path: Path, name: str) -> None:
    dataset = write_clips(tmp_path / name, [7, 7, 3, 7, 3])
    assert dataset.clips is not None
    assert [values.tolist() for values in dataset.clips] == [[7, 7, 3, 7, 3], [10, 11, 10, 12, 11]]
    mirrored = HeadDataset(dataset.path, head_model=MODEL, mirror=True).item_clips()
    assert mirrored is not None
    assert mirrored.tolist() == [1, 1, 0, 1, 0, 3, 3, 2, 3, 2]


def test_no_clips_is_none(tmp_path: Path) -> None:
    dataset = HeadDataset(make_dataset(tmp_path / 'a.zip'), head_model=MODEL)
    assert dataset.clips is None
    assert dataset.item_clips() is None


def test_clips_are_for_all_images_or_none(tmp_path: Path) -> None:
    image, label, head = np.zeros((16, 16, 3), np.uint8), random_labels(1, seed=0), random_params(MODEL, 1, seed=0)
    out = DatasetWriter(tmp_path / 'a.zip', resolution=16, head_model=MODEL.name, head_model_hash=MODEL.content_hash)
    out.add(image, label=label, head=head, clip=(0, 0))
    with pytest.raises(ValueError, match='identity_id and clip as of the images before'):
        out.add(image, label=label, head=head)
    with pytest.raises(ValueError, match='clip: expected'):
        out.add(image, label=label, clip=(0, 1))
    out.discard()


def test_half_a_clip_table_is_refused(tmp_path: Path) -> None:
    path = write_clips(tmp_path / 'a.zip', [0, 0]).path
    edit_heads(path, lambda arrays: {k: v for k, v in arrays.items() if k != 'frame_numbers'})
    assert 'one of clip_ids and frame_numbers' in user_error(lambda: HeadDataset(path, head_model=MODEL))


# Order.

CLIPS = np.array([5, 0, 0, 5, 5, 0, 9, 5, 0, 0])  # lengths 5, 4, 1


def test_every_group_is_one_clip_and_every_item_comes() -> None:
    order = ClipOrder(CLIPS, frames=2, seed=1)
    assert order.size == 6
    epochs = [[order[6 * epoch + i] for i in range(6)] for epoch in range(3)]
    for epoch in epochs:
        assert all(len(set(CLIPS[group])) == 1 and len(group) == 2 for group in epoch)
        assert sorted({item for group in epoch for item in group}) == list(range(10))
        assert all(a != b for a, b in epoch if CLIPS[a] != 9)
    assert epochs[0] != epochs[1] != epochs[2]
    again = ClipOrder(CLIPS, frames=2, seed=1)
    assert [again[i] for i in reversed(range(18))] == [order[i] for i in reversed(range(18))]


def _indices(plan: BatchPlan, rank: int, start: int) -> MicroBatchIndices:
    return MicroBatchIndices(len(CLIPS), seed=0, plan=plan, rank=rank, start=start, clips=CLIPS, clip_frames=2)


@pytest.mark.parametrize('ranks', [1, 2, 3])
def test_ranks_share_out_the_same_groups(ranks: int) -> None:
    alone = list(itertools.islice(_indices(BatchPlan(batch=24, batch_gpu=4), 0, 24), 18))
    plan = BatchPlan(batch=24, batch_gpu=4, ranks=ranks)
    shares = [list(itertools.islice(_indices(plan, rank, 24), 18 // ranks)) for rank in range(ranks)]
    assert [shares[i % ranks][i // ranks] for i in range(18)] == alone
    for micro in alone:
        assert CLIPS[micro[0]] == CLIPS[micro[2]]
        assert CLIPS[micro[1]] == CLIPS[micro[3]]


def test_a_later_start_continues_the_groups() -> None:
    plan = BatchPlan(batch=8, batch_gpu=4)
    whole = list(itertools.islice(_indices(plan, 0, 0), 10))
    assert list(itertools.islice(_indices(plan, 0, 16), 6)) == whole[4:]


def test_frames_must_divide_the_micro_batch() -> None:
    with pytest.raises(ValueError, match='clip_frames: 2 does not divide batch_gpu = 3'):
        _indices(BatchPlan(batch=6, batch_gpu=3), 0, 0)


@pytest.mark.parametrize(('group', 'frames'), [(4, 2), (2, 4), (4, 4)])
def test_the_minibatch_statistic_compares_frames(group: int, frames: int) -> None:
    """The discriminator's groups, as minibatch_std forms them, hold whole clips or frames of one clip."""
    clip = across(torch.arange(8 // frames)[:, None].expand(-1, frames))
    for members in clip.reshape(group, 8 // group).T.tolist():
        assert all(members.count(one) == min(group, frames) for one in members)


# Training.


def test_fakes_are_frames_of_one_clip(tmp_path: Path) -> None:
    dataset = write_clips(tmp_path / 'a.zip', [0, 0, 0, 1, 1, 2])
    source = ConditionSource(dataset, label_dim=25, device=torch.device('cpu'), clip_frames=2)
    seen = set()
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        conditions = source.fake(4, swap_probability=0.5, rng=rng)
        assert conditions.mapping_label is not None
        assert torch.equal(conditions.mapping_label[:2], conditions.mapping_label[2:])
        rows = [int((dataset.labels == label).all(1).nonzero()) for label in conditions.label]
        clips = np.array([0, 0, 0, 1, 1, 2])[rows]
        assert clips[:2].tolist() == clips[2:].tolist()
        seen |= set(rows)
    assert seen == set(range(6))


def clip_trainer(dataset: HeadDataset, **changes) -> Trainer:
    config = tiny_config(dataset.path, batch=4, batch_gpu=4, **changes)
    return Trainer(config, dataset=dataset, communicator=Communicator(torch.device('cpu')), stats=Stats())


def test_the_trainer_draws_clips(tmp_path: Path) -> None:
    trainer = clip_trainer(write_clips(tmp_path / 'a.zip', [0, 0, 0, 1, 1, 2]), clip_frames=2, L__style_mixing_prob=0.5)
    schedule = Schedule.at(trainer.config.loss, images_seen=0, augment_probability=0.0)
    latents, _, _ = trainer.fake_inputs('Gmain', 0, schedule)
    assert latents.mixed is not None
    assert latents.cutoff is not None
    for values in (latents.z, latents.mixed, latents.cutoff):
        assert torch.equal(values[:2], values[2:])
    assert not torch.equal(latents.z[0], latents.z[1])
    trainer.step(next(trainer.loader()))
    assert trainer.images_seen == 4


def test_datasets_without_clips_say_so(tmp_path: Path) -> None:
    plain = HeadDataset(make_dataset(tmp_path / 'a.zip'), head_model=MODEL)
    assert '--clip-frames=1' in user_error(lambda: clip_trainer(plain, clip_frames=2))
    wrong = {'data': 'a.zip', 'batch': 8, 'batch_gpu': 4, 'clip_frames': 3}
    assert 'does not divide --batch-gpu 4' in user_error(lambda: make_config('debug', wrong))
