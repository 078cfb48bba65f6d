"""Datasets of several zips."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from applications.preprocessing.validate import validate
from tests.cases_dataset import SheetHead, make_dataset, user_error
from tests.test_dataset_edits import run, same_item
from training.dataset import HeadDataset

MODEL = SheetHead()


def opened(path: Path, **options) -> HeadDataset:
    return HeadDataset(path, head_model=MODEL, **options)


def sharded(tmp_path: Path, *, heads: str = 'params', count: int = 7) -> tuple[HeadDataset, Path]:
    """A dataset in one zip and the path of the same in shards of 3."""
    whole = make_dataset(tmp_path / 'a.zip', count=count, heads=heads)
    run('repack', whole, '--out', tmp_path / 'shards', '--shard-size=3')
    return opened(whole), tmp_path / 'shards'


@pytest.mark.parametrize('heads', ['params', 'mesh', 'none'])
def test_shards_hold_what_one_zip_holds(tmp_path: Path, heads: str) -> None:
    whole, path = sharded(tmp_path, heads=heads)
    names = [f'shard-{i:05d}.zip' for i in range(3)]
    assert sorted(file.name for file in path.iterdir()) == [*names, 'shards.json']
    parts = opened(path)
    assert parts.names == whole.names
    assert torch.equal(parts.labels, whole.labels)
    for i in (6, 0, 3):
        same_item(parts, i, whole, i)
    if heads != 'none':
        assert torch.equal(parts.head_input([6, 0, 3, 0]).vertices, whole.head_input([6, 0, 3, 0]).vertices)
        assert parts.identities is not None
        assert whole.identities is not None
        assert torch.equal(parts.identities, whole.identities)
    assert [len(opened(path / name)) for name in names] == [3, 3, 1]  # each a dataset of its own
    assert torch.equal(pickle.loads(pickle.dumps(parts)).images([6]), whole.images([6]))


def test_shards_become_one_zip_again(tmp_path: Path) -> None:
    whole, path = sharded(tmp_path)
    run('repack', path, '--out', tmp_path / 'b.zip')
    assert (tmp_path / 'b.zip').read_bytes() == whole.path.read_bytes()


def test_mirror_hash_and_validate_work(tmp_path: Path) -> None:
    whole, path = sharded(tmp_path)
    same_item(opened(path, mirror=True), 13, opened(whole.path, mirror=True), 13)
    assert opened(path).content_hash == opened(path).content_hash != whole.content_hash
    report = validate(path, head_model=MODEL)
    assert (report.images, report.labels, report.count('error')) == (7, 7, 0)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    _, path = sharded(tmp_path)
    (path / 'shard-00001.zip').unlink()
    assert 'shard-00001.zip: this shard is missing' in user_error(lambda: opened(path))


def test_a_shard_too_many_is_named(tmp_path: Path) -> None:
    _, path = sharded(tmp_path)
    (path / 'shard-00003.zip').write_bytes((path / 'shard-00000.zip').read_bytes())
    assert 'shard-00003.zip: not listed' in user_error(lambda: opened(path))


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    _, path = sharded(tmp_path)
    shard = path / 'shard-00002.zip'
    shard.write_bytes(shard.read_bytes()[:-40])
    assert 'shard-00002.zip' in user_error(lambda: opened(path))


def test_an_exchanged_shard_is_named(tmp_path: Path) -> None:
    _, path = sharded(tmp_path)
    (path / 'shard-00001.zip').write_bytes((path / 'shard-00002.zip').read_bytes())
    assert 'shard-00001.zip: holds 1 images, shards.json says 3' in user_error(lambda: opened(path))
    (path / 'shard-00001.zip').write_bytes((path / 'shard-00000.zip').read_bytes())
    assert 'not in ascending order' in user_error(lambda: opened(path))


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    whole, path = sharded(tmp_path)
    shard = path / 'shard-00001.zip'
    image = whole.image_bytes(4)
    shard.write_bytes(shard.read_bytes().replace(image, image[:-20] + bytes(20)))
    assert 'shard-00001.zip: 00000/img00000004.png is damaged' in user_error(lambda: opened(path).images([4]))


def test_a_lost_list_is_an_error(tmp_path: Path) -> None:
    _, path = sharded(tmp_path)
    (path / 'shards.json').unlink()
    assert 'has shards but no shards.json' in user_error(lambda: opened(path))
    (path / 'shards.json').write_text(json.dumps({'shards': []}))
    assert 'not listed' in user_error(lambda: opened(path))


def test_a_failed_run_leaves_nothing(tmp_path: Path) -> None:
    whole = make_dataset(tmp_path / 'a.zip', count=5)
    data = bytearray(whole.read_bytes())
    image = opened(whole).image_bytes(4)
    at = bytes(data).index(image)
    data[at + len(image) // 2] ^= 255
    whole.write_bytes(data)
    run('repack', whole, '--out', tmp_path / 'b', '--shard-size=2', fails=True)
    assert [file.name for file in tmp_path.iterdir()] == ['a.zip']
