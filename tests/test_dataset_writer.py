"""training/dataset_writer.py: whole or absent, whatever happens."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dnnlib import UserError
from tests.cases_dataset import SheetHead, make_dataset, png, random_labels, random_params
from training import dataset_writer
from training.dataset import HeadDataset
from training.dataset_writer import DatasetWriter
from training.head.model import HeadParams

MODEL = SheetHead()
LABEL = random_labels(1, seed=0)[0]
IMAGE = np.zeros((16, 16, 3), np.uint8)


def test_takes_png_bytes_and_arrays(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / 'a.zip', resolution=16) as writer:
        assert writer.add(png(16, 16), label=LABEL) == '00000/img00000000.png'
        writer.add(IMAGE, label=LABEL.numpy())
        assert len(writer) == 2
    dataset = HeadDataset(tmp_path / 'a.zip')
    np.testing.assert_array_equal(dataset.image(0), dataset.image(1))


@pytest.mark.parametrize('name', ['a.zip', 'a', 'deep/er/a.zip'])
@pytest.mark.parametrize('heads', ['params', 'mesh'])
def test_failure_inside_the_block_leaves_nothing(tmp_path: Path, name: str, heads: str) -> None:
    params = random_params(MODEL, 1, seed=0)

    def interrupted() -> None:
        with DatasetWriter(tmp_path / name, resolution=16) as writer:
            writer.add(IMAGE, label=LABEL, head=params if heads == 'params' else MODEL.forward(params))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path for path in tmp_path.rglob('*') if not path.is_dir()] == []
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize('name', ['a.zip', 'a'])
@pytest.mark.parametrize('moment', ['image', 'end'])
def test_full_disk(tmp_path: Path, name: str, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write after the first fails with ENOSPC."""
    path = make_dataset(tmp_path / name)
    before = HeadDataset(path).content_hash

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write() -> None:
        with DatasetWriter(path, resolution=16, overwrite=True) as writer:
            writer.add(IMAGE, label=LABEL, head=random_params(MODEL, 1, seed=0))
            if moment == 'image':
                monkeypatch.setattr(writer._sink, 'write', fail)
                writer.add(IMAGE, label=LABEL, head=random_params(MODEL, 1, seed=0))
            monkeypatch.setattr(dataset_writer, 'write_arrays', fail)

    with pytest.raises(UserError, match='disk is full'):
        write()
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert HeadDataset(path).content_hash == before


def _write_and_die(path: Path) -> None:
    writer = DatasetWriter(path, resolution=16, overwrite=True)
    for _ in range(3):
        writer.add(IMAGE, label=LABEL)
    os._exit(9)


@pytest.mark.parametrize('name', ['a.zip', 'a'])
def test_killed_process_leaves_the_old_dataset(tmp_path: Path, name: str) -> None:
    path = make_dataset(tmp_path / name)
    before = HeadDataset(path).content_hash
    process = multiprocessing.get_context('fork').Process(target=_write_and_die, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert HeadDataset(path).content_hash == before


@pytest.mark.parametrize('name', ['a.zip', 'a'])
def test_replaces_only_when_told_and_only_datasets(tmp_path: Path, name: str) -> None:
    path = make_dataset(tmp_path / name)
    with pytest.raises(UserError, match=r'already exists; .* --overwrite'):
        DatasetWriter(path, resolution=16)
    with DatasetWriter(path, resolution=16, overwrite=True) as writer:
        writer.add(IMAGE, label=LABEL)
    assert len(HeadDataset(path)) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    home = tmp_path / 'home'
    home.mkdir()
    (home / 'letter.txt').write_text('keep me')
    with pytest.raises(UserError, match='is not a dataset'):
        DatasetWriter(home, resolution=16, overwrite=True)
    assert (home / 'letter.txt').exists()


def test_empty_folder_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / 'a').mkdir()
    with DatasetWriter(tmp_path / 'a', resolution=16) as writer:
        writer.add(IMAGE, label=LABEL)
    assert len(HeadDataset(tmp_path / 'a')) == 1


def test_nothing_added(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='no images'):
        with DatasetWriter(tmp_path / 'a.zip', resolution=16):
            pass
    assert list(tmp_path.iterdir()) == []


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='file'):
        DatasetWriter(tmp_path / 'file' / 'a.zip', resolution=16)


def test_rejects_what_does_not_fit(tmp_path: Path) -> None:
    params = random_params(MODEL, 2, seed=0)
    with pytest.raises(UserError, match='power of two'):
        DatasetWriter(tmp_path / 'b.zip', resolution=24)
    with DatasetWriter(tmp_path / 'a.zip', resolution=16) as writer:
        writer.add(IMAGE, label=LABEL, head=params[[0]], identity_id=3)
        for image, label, head, identity, expected in (
            (png(8, 8), LABEL, params[[0]], 3, r'expected 16 x 16 pixels, got \(8, 8\)'),
            (b'GIF', LABEL, params[[0]], 3, 'no PNG'),
            (IMAGE.astype(np.float32), LABEL, params[[0]], 3, 'expected uint8'),
            (IMAGE, LABEL[:16], params[[0]], 3, 'expected 25 finite numbers'),
            (IMAGE, LABEL * float('nan'), params[[0]], 3, 'expected 25 finite numbers'),
            (IMAGE, LABEL, params, 3, 'expected one row'),
            (IMAGE, LABEL, None, 3, 'identity_id'),
            (IMAGE, LABEL, None, None, 'same kind'),
            (IMAGE, LABEL, MODEL.forward(params[[0]]), 3, 'same kind'),
            (IMAGE, LABEL, params[[0]], None, 'same kind'),
            (IMAGE, LABEL, params[[0]].map(lambda t: t * torch.inf), 3, 'not finite'),
        ):
            with pytest.raises(ValueError, match=expected):
                writer.add(image, label=label, head=head, identity_id=identity)
    dataset = HeadDataset(tmp_path / 'a.zip', head_model=None)
    assert len(dataset) == 1
    row = dataset.head_params([0])
    assert isinstance(row, HeadParams)
    torch.testing.assert_close(row.identity, params.identity[:1], rtol=0, atol=0)
