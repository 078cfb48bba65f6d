"""Training of the embedded estimators: labels, mirror images, augmentation, one short run, the file it writes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from metrics.estimators.base import HeadEstimate
from metrics.estimators.embedded_network import EmbeddedFile, EmbeddedNetwork, read_embedded, write_embedded
from metrics.estimators.embedded_parts import BROW_HALF, BROW_SHIFT, MOUTH_HALF, MOUTH_SHIFT, eye_patches, face_patches
from tools import train_estimators
from tools.estimators.augment import MAX_SHIFT, augment, spoil
from tools.estimators.data import ATTRIBUTES, CHOICES, Mirror, Pictures, _points, head_labels, load_pictures
from tools.estimators.expressions import fit_expressions, landmarks_in_patches
from tools.estimators.variants import VARIANTS, make_variants
from tools.evaluate_estimators import expression_correlations, head_errors, identity_scores, rounded
from tools.train_estimators import batch_rows, train
from training import cameras, synthetic
from training.dataset import HeadDataset
from training.head.makehuman import embedded_head

COUNT = 8
STEPS = 40


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
    loaded = read_embedded(path)
    assert loaded.header['licence'] == 'CC0 1.0'
    images = pictures.images.float() / 127.5 - 1
    with torch.no_grad():
        before = networks[0].eval().head(images)
        assert torch.allclose(loaded.network.head(images), before, atol=0.05 * float(before.abs().max()))


def test_the_command_makes_all_parts(
    pictures: Pictures, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trunk, gaze and expression; the later parts alone leave the rest as it is, and repeat."""
    monkeypatch.setattr(train_estimators, 'TRAINING_SETS', ((5, COUNT),))
    later = ['--gaze-steps=2', '--expression-steps=2', f'--work={folder}']

    def run(name: str, *options: str) -> EmbeddedFile:
        path = tmp_path / name
        result = CliRunner().invoke(train_estimators.main, [f'--out={path}', *options])
        assert result.exit_code == 0, result.output
        return read_embedded(path)

    made = run('made.npz', '--steps=1', *later)
    training = made.header['training']
    assert training['command'].endswith('--steps=1 --gaze-steps=2 --expression-steps=2 --seed=0')
    assert (training['pictures'], training['people']) == (COUNT, 2)
    again, same = (run(name, f'--trunk={tmp_path / "made.npz"}', '--seed=1', *later) for name in ('a.npz', 'b.npz'))
    assert again.header['training']['trunk'] == training
    assert (tmp_path / 'a.npz').read_bytes() == (tmp_path / 'b.npz').read_bytes()
    assert again.content_hash == same.content_hash
    kept = run('kept.npz', f'--trunk={tmp_path / "made.npz"}', '--seed=1', '--gaze-steps=0', *later[1:])
    images = pictures.images.float() / 127.5 - 1
    changed = (again.network.head(images) - made.network.head(images)).abs().amax(dim=0)
    assert torch.equal(changed[:55] > 0, pictures.head.std(dim=0)[:55] > 1e-3)
    assert (changed[58:] > 0).all()
    assert (changed[55:58] == 0).all()  # rotation
    assert torch.equal(again.network.identity(images), made.network.identity(images))
    assert torch.equal(kept.network.head(images)[:, 58:62], made.network.head(images)[:, 58:62])


def test_expressions_are_learned_from_patches(pictures: Pictures) -> None:
    """Some steps on few pictures tell their expressions apart, which the trunk alone can not."""
    network = EmbeddedNetwork().folded()
    network.head_mean[:62], network.head_scale[:62] = pictures.head.mean(dim=0), pictures.head.std(dim=0)
    network.head_output.weight.zero_()
    network.head_output.bias.zero_()
    saved: list[EmbeddedNetwork] = []
    seen = make_variants(network, pictures, seed=0)
    fit_expressions(network, seen, steps=STEPS, seed=0, save=saved.append)
    assert not saved
    found, wanted = network.folded().head(pictures.images.float() / 127.5 - 1)[:, :55], pictures.head[:, :55]
    assert (found - wanted).square().mean() < 0.8 * wanted.var(dim=0, correction=0).mean()
    assert not any(value.requires_grad for value in network.parameters())


def test_variants_know_where_the_face_went(pictures: Pictures) -> None:
    """Landmarks follow shift, zoom and mirror image: their offsets from the picture's own are one shift each."""
    seen = make_variants(EmbeddedNetwork().folded(), pictures, seed=0)
    assert len(seen.images) == VARIANTS * COUNT
    assert len(seen.spoilt_images) == VARIANTS * COUNT
    assert (seen.eyes[:, 0] > seen.eyes[:, 2]).all()  # the left eye is on the right
    assert (seen.mouth[:, 1] > seen.eyes[:, 1]).all()
    direct = (seen.eyes[:COUNT].reshape(-1, 2, 2) - pictures.eyes).abs().amax(dim=(1, 2))
    other = (
        (seen.eyes[:COUNT].reshape(-1, 2, 2).flip(1) * torch.tensor([-1.0, 1.0]) - pictures.eyes).abs().amax(dim=(1, 2))
    )
    assert (torch.minimum(direct, other) < MAX_SHIFT + 0.03).all()
    assert ((direct > 0) & (other > 0)).all()


@pytest.mark.parametrize('roll', [0.0, 0.3])
def test_patches_are_upright_and_mirrored(roll: float) -> None:
    """On a picture whose colours are the place: what each patch shows, and which way."""
    line = (torch.arange(64) + 0.5) / 32 - 1
    image = torch.stack([line.expand(64, 64), line[:, None].expand(64, 64), torch.zeros(64, 64)])[None]
    right = torch.tensor([math.cos(roll), math.sin(roll)])
    down = torch.tensor([-math.sin(roll), math.cos(roll)])
    eyes, mouth = torch.cat([0.2 * right - 0.1 * down, -0.2 * right - 0.1 * down])[None], (0.3 * down)[None]
    lower, brows = face_patches(image, eyes, mouth)

    def check(patch: torch.Tensor, middle: torch.Tensor, half: tuple[float, float], side: int) -> None:
        rows, columns = patch.shape[1:]
        assert torch.allclose(patch[:2].mean(dim=(1, 2)), middle, atol=1e-4)
        across = (patch[:2, :, -1] - patch[:2, :, 0]).mean(dim=1)
        along = (patch[:2, -1] - patch[:2, 0]).mean(dim=1)
        assert torch.allclose(across, side * 2 * half[1] * (1 - 1 / columns) * right, atol=1e-4)
        assert torch.allclose(along, 2 * half[0] * (1 - 1 / rows) * down, atol=1e-4)

    check(lower[0], mouth[0] + MOUTH_SHIFT * down, MOUTH_HALF, 1)
    check(brows[0, 0], eyes[0, :2] + BROW_SHIFT * down, BROW_HALF, 1)
    check(brows[0, 1], eyes[0, 2:] + BROW_SHIFT * down, BROW_HALF, -1)
    straight = eye_patches(image, eyes)
    assert torch.allclose(straight[0, :, :2].mean(dim=(2, 3)), eyes.reshape(2, 2), atol=1e-4)
    # Landmarks are told in the same frame.
    landmarks = mouth[:, None].repeat(1, 68, 1) + MOUTH_HALF[1] * right
    assert torch.allclose(
        landmarks_in_patches(landmarks, eyes, mouth)[0][0, [0, 20]], torch.tensor([1.0, 0.0]), atol=1e-5
    )


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
    each = expression_correlations(estimate, pictures)
    names = embedded_head().expression_names
    assert set(each) == {
        name for name, values in zip(names, pictures.head[:, :52].T, strict=True) if values.std() > 0.01
    }
    assert all(abs(value - 1) < 1e-5 for value in each.values())
    backwards = dataclasses.replace(estimate, expression=-expression)
    assert all(abs(value + 1) < 1e-5 for value in expression_correlations(backwards, pictures).values())


def test_scores_of_identities() -> None:
    """Perfect vectors are verified perfectly; random ones at chance."""
    person = torch.arange(40).repeat_interleave(4)
    perfect = torch.eye(40).repeat_interleave(4, dim=0)
    scores = identity_scores(perfect, person)
    assert (scores['cosine_same'], scores['cosine_different'], scores['verification_accuracy']) == (1.0, 0.0, 1.0)
    noise = torch.nn.functional.normalize(torch.randn(160, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    assert abs(identity_scores(noise, person)['verification_accuracy'] - 0.5) < 0.06
