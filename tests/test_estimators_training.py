"""Training of the embedded estimators: labels, mirror images, augmentation, one short run, the file it writes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from metrics.estimators.base import HeadEstimate
from metrics.estimators.embedded_network import read_embedded, write_embedded
from tools.estimators.augment import augment, spoil
from tools.estimators.data import ATTRIBUTES, CHOICES, Mirror, Pictures, _points, head_labels, load_pictures
from tools.evaluate_estimators import head_errors, identity_scores, rounded
from tools.train_estimators import batch_rows, finish, train
from training import cameras, synthetic
from training.dataset import HeadDataset
from training.head.makehuman import embedded_head

COUNT = 8


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('estimators')


@pytest.fixture(scope='module')
def pictures(folder: Path) -> Pictures:
    path = folder / f'synth64-seed5-{COUNT}.zip'
    synthetic.generate(path, num=COUNT, resolution=64, seed=5, workers=0, progress=False)
    return load_pictures(folder, seed=5, num=COUNT)  # finds it


def test_labels_are_those_of_the_dataset(pictures: Pictures, folder: Path) -> None:
    dataset = HeadDataset(folder / f'synth64-seed5-{COUNT}.zip')
    assert torch.equal(pictures.images, dataset.images(range(COUNT)))
    heads = dataset.head_params(range(COUNT))
    assert heads is not None
    named = torch.zeros(COUNT, 52)
    for row in range(COUNT):
        named[row] = pictures.head[row, :52]
    assert torch.allclose(embedded_head().expression_coefficients(named), heads.expression, atol=1e-4)
    assert pictures.person.tolist() == [0] * 4 + [1] * 4
    assert pictures.attributes.shape == (COUNT, sum(ATTRIBUTES.values()))
    assert pictures.choices.shape == (COUNT, len(CHOICES))
    assert torch.equal(pictures.attributes[:, :64], heads.identity)


def test_mirrored_labels_are_those_of_the_mirrored_head(pictures: Pictures, folder: Path) -> None:
    dataset = HeadDataset(folder / f'synth64-seed5-{COUNT}.zip')
    heads = dataset.head_params(range(COUNT))
    assert heads is not None
    chosen = torch.arange(COUNT) % 2 == 0
    batch = Mirror.of_embedded_head().apply(pictures, chosen)
    other, labels = embedded_head().mirror(heads), cameras.mirror_label(dataset.label(range(COUNT)))
    assert torch.allclose(batch.head[chosen], head_labels(other, labels)[chosen], atol=1e-4)
    points = _points(other, labels)
    assert torch.allclose(batch.points[chosen], (points - points.mean(dim=1, keepdim=True))[chosen], atol=1e-4)
    assert torch.allclose(batch.eyes[chosen, 0], 2 * points[chosen, 42:48].mean(dim=1) - 1, atol=1e-4)
    assert torch.equal(batch.images[chosen], pictures.images.flip(3)[chosen])
    assert torch.allclose(batch.attributes[chosen, :64], other.identity[chosen])
    assert torch.equal(batch.eyes_open[chosen], pictures.eyes_open.flip(1)[chosen])
    for field in dataclasses.fields(batch):
        assert torch.equal(getattr(batch, field.name)[~chosen], getattr(pictures, field.name)[~chosen])


def test_augmentation_is_repeatable_and_bounded(pictures: Pictures) -> None:
    images = pictures.images.float() / 127.5 - 1
    first, second, other = (augment(images, rng=torch.Generator().manual_seed(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.abs().max() <= 1
    assert (first - images).abs().mean() < 0.3
    spoilt = spoil(images, rng=torch.Generator().manual_seed(0))
    assert spoilt.shape == images.shape
    assert all((spoilt[row] - images[row]).abs().mean() > 0.05 for row in range(COUNT))


def test_batches_are_pairs_of_one_person() -> None:
    person = torch.arange(64).repeat_interleave(4)
    rows = batch_rows(person, steps=8, seed=0)
    assert rows.shape == (8, 64)
    pairs = rows.reshape(-1, 2)
    assert torch.equal(person[pairs[:, 0]], person[pairs[:, 1]])
    assert sorted(rows[:4].flatten().tolist()) == list(range(256))  # an epoch has each picture once
    assert torch.equal(rows, batch_rows(person, steps=8, seed=0))
    assert not torch.equal(rows, batch_rows(person, steps=8, seed=1))


def test_a_short_run_repeats_and_survives_its_file(pictures: Pictures, tmp_path: Path) -> None:
    """The same seed gives the same network and file; float16 and folding change little."""
    many = Pictures.join([pictures] * 8)
    networks = [train(many, steps=2, seed=0, save=lambda network: None) for _ in range(2)]
    state = networks[0].state_dict()
    assert all(torch.equal(value, state[name]) for name, value in networks[1].state_dict().items())
    assert int(many.person.max()) == 15
    path = tmp_path / 'made.npz'
    write_embedded(path, networks[0], {'licence': 'CC0 1.0', 'head_model': 'makehuman'})
    first = path.read_bytes()
    write_embedded(path, networks[1], {'licence': 'CC0 1.0', 'head_model': 'makehuman'})
    assert path.read_bytes() == first
    loaded, hashes = read_embedded(path), set[str]()
    assert loaded.header['licence'] == 'CC0 1.0'
    images = pictures.images.float() / 127.5 - 1
    with torch.no_grad():
        before = networks[0].eval().head(images)
        assert torch.allclose(loaded.network.head(images), before, atol=0.05 * float(before.abs().max()))
    for _ in range(2):  # the second step: the gaze alone, repeatably
        path.write_bytes(first)
        finish(str(path), many, steps=2, seed=0)
        finished = read_embedded(path)
        changed = (finished.network.head(images) - loaded.network.head(images)).abs().amax(dim=0)
        assert (changed[58:62] > 0).all()
        assert (changed[:58] == 0).all()
        assert finished.header == loaded.header
        hashes.add(finished.content_hash)
    assert len(hashes) == 1


def test_errors_of_the_card(pictures: Pictures) -> None:
    """Right estimates have no error; a shift of one field is that field's error; shut eyes do not count."""
    head = pictures.head.clone()
    head[:, 52] += 0.02
    head[pictures.eyes_open[:, 0] < 0.5, 58:60] += 1.0
    head[:, 58] += 0.1
    expression, jaw, rotation, gaze = head.split([52, 3, 3, 4], dim=1)
    estimate = HeadEstimate(
        expression=expression, jaw=jaw, rotation=rotation, gaze=gaze.reshape(-1, 2, 2), valid=torch.ones(COUNT).bool()
    )
    errors = rounded(head_errors(estimate, pictures))
    assert errors['expression'] == errors['rotation'] == errors['gaze_pitch'] == 0
    assert errors['jaw_opening'] == 0.02
    assert 0 < errors['gaze_yaw'] <= 0.1
    assert errors['rotation_angle'] < 1e-3
    assert errors['rotation_mean_prediction'] > 0.01


def test_scores_of_identities() -> None:
    """Perfect vectors are verified perfectly; random ones at chance."""
    person = torch.arange(40).repeat_interleave(4)
    perfect = torch.eye(40).repeat_interleave(4, dim=0)
    scores = identity_scores(perfect, person)
    assert (scores['cosine_same'], scores['cosine_different'], scores['verification_accuracy']) == (1.0, 0.0, 1.0)
    noise = torch.nn.functional.normalize(torch.randn(160, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    assert abs(identity_scores(noise, person)['verification_accuracy'] - 0.5) < 0.06
