"""Clips: which images are frames of one video, in the file and in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cases_dataset import SheetHead, edit_heads, make_dataset, random_labels, random_params, user_error
from training.dataset import HeadDataset
from training.dataset_writer import DatasetWriter

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
