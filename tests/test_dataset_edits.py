"""dataset_tool.py stats, mirror, rebalance, merge, split, repack."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from applications.datasets import edit
from applications.datasets.edit import rebalanced_rows
from dataset_tool import main
from dnnlib import UserError
from tests.cases_dataset import edit_heads, make_dataset
from training import cameras
from training.dataset import HeadDataset
from training.dataset_format import encode_png
from training.dataset_writer import DatasetWriter
from training.head import load_head_model
from training.head.makehuman import embedded_head


def run(*args: object, fails: bool = False) -> str:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert (result.exit_code != 0) == fails, result.output
    return result.output


def made(path: Path, **options) -> Path:
    return make_dataset(path, model=load_head_model('makehuman'), **options)


def same_item(a: HeadDataset, i: int, b: HeadDataset, j: int) -> None:
    one, two = a.batch([i]), b.batch([j])
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.label, two.label)
    assert (one.head is None) == (two.head is None)
    if one.head is not None and two.head is not None:
        assert (one.head.vertices - two.head.vertices).abs().max() < 2e-5
        assert (one.head.landmarks - two.head.landmarks).abs().max() < 2e-5


@pytest.mark.parametrize('heads', ['params', 'mesh', 'none'])
def test_mirror_equals_the_mirroring_dataset(tmp_path: Path, heads: str) -> None:
    path = made(tmp_path / 'a.zip', count=3, heads=heads)
    assert 'images/s' in run('mirror', path, '--out', tmp_path / 'b.zip')
    written, wanted = HeadDataset(tmp_path / 'b.zip'), HeadDataset(path, mirror=True)
    assert len(written) == len(wanted) == 6
    for i in range(6):
        same_item(written, i, wanted, i)
    if heads != 'none':
        assert written.identities is not None
        assert written.identities.tolist() == [0, 0, 1, 0, 0, 1]
    for row in range(3):
        assert written.image_bytes(row) == wanted.image_bytes(row)


def test_an_interrupted_mirror_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was encoded is not encoded again, and the dataset is that of an uninterrupted run."""
    path = made(tmp_path / 'a.zip')
    run('mirror', path, '--out', tmp_path / 'whole.zip')
    encoded: list[int] = []
    allowed = [3]

    def encode(pixels: np.ndarray) -> bytes:
        if len(encoded) == allowed[0]:
            raise KeyboardInterrupt
        encoded.append(1)
        return encode_png(pixels)

    monkeypatch.setattr(edit, 'BLOCK', 2)
    monkeypatch.setattr(edit, 'encode_png', encode)
    command = ('mirror', path, '--out', tmp_path / 'b.zip', '--workers=1')
    run(*command, fails=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ['a.zip', 'b-work', 'whole.zip']
    allowed[0] = 100
    assert 'b-work: continuing, 1 batches of encoded pictures are done' in run(*command)
    assert len(encoded) == 3 + 4  # of 6; the third was of an unfinished block
    assert (tmp_path / 'b.zip').read_bytes() == (tmp_path / 'whole.zip').read_bytes()
    assert not (tmp_path / 'b-work').exists()

    allowed[0] = len(encoded) + 3
    run(*command, '--overwrite', fails=True)
    allowed[0], before = 100, len(encoded)
    assert 'continuing' not in run(*command, '--overwrite', '--restart')
    assert len(encoded) == before + 6


def test_rebalance_repeats_rare_yaws(tmp_path: Path) -> None:
    yaw = torch.tensor([0.0, 0.01, -0.02, 0.03, 0.02, 0.9, -0.5, -0.55])
    labels = cameras.orbit_camera(yaw, torch.zeros(8))
    rows, before, after = rebalanced_rows(labels, bins=3, max_copies=3)
    assert before.tolist() == [2, 5, 1]
    assert after.tolist() == [4, 5, 3]  # 5 / 2 rounds to 2; 5 / 1 is cut at 3
    assert rows.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 5]
    with DatasetWriter(tmp_path / 'a.zip', resolution=16) as out:
        for i, label in enumerate(labels):
            out.add(np.full((16, 16, 3), i, np.uint8), label=label)
    text = run('rebalance', tmp_path / 'a.zip', '--out', tmp_path / 'b.zip', '--bins=3', '--max-copies=3')
    assert 'before     after' in text
    written = HeadDataset(tmp_path / 'b.zip')
    assert written.images(range(12))[:, 0, 0, 0].tolist() == rows.tolist()
    assert torch.equal(written.labels, labels[rows])


def test_merge_keeps_persons_apart(tmp_path: Path) -> None:
    a, b = made(tmp_path / 'a.zip', count=4), made(tmp_path / 'b', count=3, seed=1)
    run('merge', a, b, '--out', tmp_path / 'c.zip')
    written, parts = HeadDataset(tmp_path / 'c.zip'), [HeadDataset(a), HeadDataset(b)]
    assert written.identities is not None
    assert written.identities.tolist() == [0, 0, 1, 1, 2, 2, 3]
    for i in range(7):
        same_item(written, i, parts[i // 4], i % 4)
        assert written.image_bytes(i) == parts[i // 4].image_bytes(i % 4)


def test_merge_counts_unknown_persons_singly(tmp_path: Path) -> None:
    a, b = made(tmp_path / 'a.zip', count=2), made(tmp_path / 'b.zip', count=2, seed=1)
    edit_heads(b, lambda arrays: {k: v for k, v in arrays.items() if k != 'identity_ids'})
    run('merge', a, b, '--out', tmp_path / 'c.zip')
    identities = HeadDataset(tmp_path / 'c.zip').identities
    assert identities is not None
    assert identities.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(('options', 'reason'), [({'resolution': 32}, '32 px images'), ({'heads': 'mesh'}, 'fit both')])
def test_merge_refuses_what_does_not_fit(tmp_path: Path, options: dict, reason: str) -> None:
    a, b = made(tmp_path / 'a.zip', count=2), made(tmp_path / 'b.zip', count=2, **options)
    assert reason in run('merge', a, b, '--out', tmp_path / 'c.zip', fails=True)
    assert not (tmp_path / 'c.zip').exists()


def test_split_keeps_persons_together(tmp_path: Path) -> None:
    path = made(tmp_path / 'a.zip', count=10)
    outs = [tmp_path / 'train.zip', tmp_path / 'test.zip']
    run('split', path, '--out-a', outs[0], '--out-b', outs[1], '--fraction=0.6', '--seed=3')
    parts = [HeadDataset(out) for out in outs]
    assert [len(part) for part in parts] == [6, 4]
    persons = [set(part.identities.tolist()) for part in parts if part.identities is not None]
    assert len(persons) == 2
    assert not persons[0] & persons[1]
    assert persons[0] | persons[1] == set(range(5))
    source = HeadDataset(path)
    files = [part.image_bytes(i) for part in parts for i in range(len(part))]
    assert sorted(files) == sorted(source.image_bytes(i) for i in range(10))


def test_split_says_what_is_missing(tmp_path: Path) -> None:
    path = made(tmp_path / 'a.zip', heads='none')
    outs = ['--out-a', tmp_path / 'x.zip', '--out-b', tmp_path / 'y.zip']
    assert 'pass --by-image' in run('split', path, *outs, '--count=2', fails=True)
    assert 'one of --fraction and --count' in run('split', path, *outs, fails=True)
    assert not (tmp_path / 'x.zip').exists()
    run('split', path, *outs, '--count=2', '--by-image')
    assert [len(HeadDataset(tmp_path / name)) for name in ('x.zip', 'y.zip')] == [2, 4]


def test_split_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = made(tmp_path / 'a.zip')
    (tmp_path / 'y.zip').write_bytes(b'taken')
    run('split', path, '--out-a', tmp_path / 'x.zip', '--out-b', tmp_path / 'y.zip', '--count=2', fails=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ['a.zip', 'y.zip']


def test_no_part_of_a_split_appears_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path / 'a.zip')
    outs = ['--out-a', tmp_path / 'x.zip', '--out-b', tmp_path / 'y']
    run('split', path, *outs, '--count=4')
    before = {file: file.read_bytes() for file in tmp_path.rglob('*') if file.is_file()}
    close, closed = DatasetWriter.close, []

    def fail_second(self: DatasetWriter) -> None:
        closed.append(self)
        if len(closed) == 2:
            raise UserError('the disk is full')
        close(self)

    with monkeypatch.context() as patch:
        patch.setattr(DatasetWriter, 'close', fail_second)
        assert 'the disk is full' in run('split', path, *outs, '--count=2', '--overwrite', fails=True)
    assert {file: file.read_bytes() for file in tmp_path.rglob('*') if file.is_file()} == before
    run('split', path, *outs, '--count=2', '--overwrite')
    assert [len(HeadDataset(tmp_path / name)) for name in ('x.zip', 'y')] == [2, 4]
    run('split', path, '--out-a', tmp_path / 's', '--out-b', tmp_path / 't', '--count=2', '--shard-size=1')
    assert [len(HeadDataset(tmp_path / name)) for name in ('s', 't')] == [2, 4]
    assert 'named twice' in run('split', path, '--out-a', 'x.zip', '--out-b', './x.zip', '--count=2', fails=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ['a.zip', 's', 't', 'x.zip', 'y']


def test_stats_measure_and_draw(tmp_path: Path) -> None:
    model = embedded_head()
    weights = torch.zeros(2, len(model.expression_names))
    weights[1, model.expression_names.index('eyeBlinkLeft')] = 0.8
    params = model.from_weights(weights)
    params = params.replace(eyes=torch.tensor([[0.1, 0.2, 0.0, 0.3, -0.4, 0.0]] * 2))
    labels = cameras.orbit_camera(torch.tensor([0.3, -0.1]), torch.tensor([0.2, 0.2]), roll=torch.tensor([0.05, 0.05]))
    path = tmp_path / 'a.zip'
    with DatasetWriter(path, resolution=16, head_model=model.name, head_model_hash=model.content_hash) as out:
        for i in range(2):
            out.add(np.zeros((16, 16, 3), np.uint8), label=labels[i], head=params[[i]], identity_id=4)
    values = json.loads(run('stats', path, '--out', tmp_path / 's.png', '--json'))['stats']
    assert values['yaw (degrees)']['max'] == pytest.approx(np.degrees(0.3), abs=0.01)
    assert values['pitch (degrees)']['mean'] == pytest.approx(np.degrees(0.2), abs=0.01)
    assert values['roll (degrees)']['mean'] == pytest.approx(np.degrees(0.05), abs=0.01)
    assert values['left eye yaw (degrees)']['mean'] == pytest.approx(np.degrees(0.2), abs=0.01)
    assert values['right eye pitch (degrees)']['mean'] == pytest.approx(np.degrees(0.3), abs=0.01)
    assert values['eyeBlinkLeft']['max'] == pytest.approx(0.8, abs=1e-3)
    assert values['eyeBlinkRight']['max'] == pytest.approx(0.0, abs=1e-3)
    assert values['images per person']['max'] == 2
    assert len(set(Image.open(tmp_path / 's.png').convert('L').tobytes())) > 3
    assert 'images/s' in run('stats', path, '--out', tmp_path / 's.png')


@pytest.mark.parametrize('heads', ['mesh', 'none'])
def test_stats_of_other_datasets(tmp_path: Path, heads: str) -> None:
    text = run('stats', made(tmp_path / 'a.zip', heads=heads), '--out', tmp_path / 's.png')
    assert ('mouth opening (mm)' in text) == (heads == 'mesh')
