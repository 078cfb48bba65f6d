"""The embedded estimators on freshly rendered people: accuracy, signs, independence of the batch, gradients, files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dnnlib import UserError
from dnnlib.files import sha256_file
from metrics.estimators.base import HeadEstimate
from metrics.estimators.embedded import EmbeddedFeatures, EmbeddedHeadEstimator, EmbeddedIdentity
from metrics.estimators.embedded_network import DEFAULT_PATH, read_embedded
from metrics.estimators.loading import load_features, load_head_estimator, load_identity_embedder
from training import cameras, synthetic
from training import synthetic_params as params
from training.head.makehuman import embedded_head
from training.head.model import HeadParams

SEED = 31337  # neither of the training sets nor of the card
PEOPLE = 8
PARTS = ('head', 'identity', 'features')
FIELDS = ('expression', 'jaw', 'rotation', 'gaze')


@pytest.fixture(scope='module')
def items() -> list[synthetic.Item]:
    return [synthetic.render_index(SEED, index, resolution=64) for index in range(4 * PEOPLE)]


@pytest.fixture(scope='module')
def images(items: list[synthetic.Item]) -> Tensor:
    return torch.from_numpy(np.stack([item.image for item in items]))


@pytest.fixture(scope='module')
def estimator() -> EmbeddedHeadEstimator:
    return EmbeddedHeadEstimator()


@pytest.fixture(scope='module')
def estimate(estimator: EmbeddedHeadEstimator, images: Tensor) -> HeadEstimate:
    return estimator(images)


def field(estimate: HeadEstimate, name: str) -> Tensor:
    value = getattr(estimate, name)
    assert value is not None
    return value


def truth(estimator: EmbeddedHeadEstimator, items: list[synthetic.Item]) -> HeadEstimate:
    heads = HeadParams.cat([item.head for item in items])
    return estimator.targets(heads, torch.from_numpy(np.stack([item.label for item in items])))


Pose = tuple[tuple[float, float], float, tuple[float, float, float]]  # eyes about x and y, jaw, camera
VIEWS = [(0.0, 0.3, 0.0), (0.4, 0.0, 0.0), (0.0, 0.0, -0.25)]  # what turns the head about +x, +y, +z
STILL = (0.0, 0.0, 0.0)
POSES: dict[str, Pose] = {
    **{f'turn{axis}+': ((0.0, 0.0), 0.0, view) for axis, view in enumerate(VIEWS)},
    **{f'turn{axis}-': ((0.0, 0.0), 0.0, (-view[0], -view[1], -view[2])) for axis, view in enumerate(VIEWS)},
    'left': ((0.0, 0.4), 0.0, STILL),
    'right': ((0.0, -0.4), 0.0, STILL),
    'down': ((0.2, 0.0), 0.0, STILL),
    'up': ((-0.2, 0.0), 0.0, STILL),
    'shut': ((0.0, 0.0), 0.0, STILL),
    'open': ((0.0, 0.0), 0.35, STILL),
}


@pytest.fixture(scope='module')
def posed(estimator: EmbeddedHeadEstimator) -> dict[str, HeadEstimate]:
    """Estimates of some people without expression in known poses."""
    studio = synthetic._studio(64)
    pictures: dict[str, list[Tensor]] = {name: [] for name in POSES}
    for person in range(PEOPLE // 2):
        scene, dressed = studio.scene(SEED, 4 * person), studio.dress(SEED, person)
        for name, (eyes, jaw, view) in POSES.items():
            label = cameras.orbit_camera(*(torch.tensor([value]) for value in view[:2]), roll=torch.tensor([view[2]]))
            head = studio.model.neutral().replace(
                identity=scene.head.identity,
                eyes=torch.tensor([[*eyes, 0.0, *eyes, 0.0]]),
                jaw=torch.tensor([[jaw, 0.0, 0.0]]),
            )
            image = studio.draw(dressed, dataclasses.replace(scene, head=head, label=label[0].numpy()))
            pictures[name].append(torch.from_numpy(image.transpose(2, 0, 1).copy()))
    return {name: estimator(torch.stack(images)) for name, images in pictures.items()}


def mean(posed: dict[str, HeadEstimate], pose: str, name: str) -> Tensor:
    return field(posed[pose], name).mean(dim=0)


# Accuracy. The bounds are about 1.3 times the card's held-out errors.


def test_errors_on_new_people_are_bounded(
    estimator: EmbeddedHeadEstimator, estimate: HeadEstimate, items: list[synthetic.Item]
) -> None:
    targets = truth(estimator, items)
    card = json.loads(DEFAULT_PATH.with_suffix('.json').read_text())['held_out']['embedded-head']
    for name in ('expression', 'jaw', 'rotation'):
        error = float((field(estimate, name) - field(targets, name)).abs().mean())
        assert error < 1.3 * card[name], name
        assert 1.3 * card[name] < card[f'{name}_mean_prediction'], name
    seen = torch.tensor([params.sample_blink(SEED, item.index) for item in items]) < 0.5
    gaze = (field(estimate, 'gaze') - field(targets, 'gaze')).abs()[seen]
    assert float(gaze.mean()) < 1.3 * card['gaze']
    assert estimate.valid.float().mean() > 0.9


def test_blinks_smiles_and_jaws_are_read(
    estimator: EmbeddedHeadEstimator, estimate: HeadEstimate, items: list[synthetic.Item]
) -> None:
    """From picture to picture, the estimate goes with the truth."""
    targets, names = truth(estimator, items), embedded_head().expression_names

    def correlation(found: Tensor, true: Tensor) -> float:
        return float(np.corrcoef(found.numpy(), true.numpy())[0, 1])

    for name, least in (
        ('eyeBlinkLeft', 0.6),
        ('eyeBlinkRight', 0.6),
        ('mouthSmileLeft', 0.4),
        ('mouthSmileRight', 0.4),
    ):
        column = names.index(name)
        assert correlation(field(estimate, 'expression')[:, column], field(targets, 'expression')[:, column]) > least, (
            name
        )
    assert correlation(field(estimate, 'jaw')[:, 0], field(targets, 'jaw')[:, 0]) > 0.8


def test_one_person_is_nearer_than_another(images: Tensor) -> None:
    vectors = EmbeddedIdentity().embed(images)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(len(images)), atol=1e-5)
    cosines = (vectors @ vectors.T).reshape(PEOPLE, 4, PEOPLE, 4).mean(dim=(1, 3))
    assert (cosines.argmax(dim=1) == torch.arange(PEOPLE)).all()
    assert cosines.diagonal().mean() - cosines.mean() > 0.4


def test_a_person_is_known_in_another_persons_scene(images: Tensor) -> None:
    """Camera, expression, light and background of somebody else do not hide who it is."""
    embedder = EmbeddedIdentity()
    swapped = [
        synthetic.render_index(SEED, 4 * ((person + 1) % PEOPLE), resolution=64, identity=person)
        for person in range(PEOPLE)
    ]
    assert [item.identity_id for item in swapped] == list(range(PEOPLE))
    own = embedder.embed(images).reshape(PEOPLE, 4, -1).mean(dim=1)
    there = embedder.embed(torch.from_numpy(np.stack([item.image for item in swapped])))
    scene_owner = own.roll(-1, dims=0)
    assert ((there * own).sum(dim=1) > (there * scene_owner).sum(dim=1)).float().mean() > 0.8


def test_targets_speak_the_named_expressions(estimator: EmbeddedHeadEstimator) -> None:
    model = embedded_head()
    smile = model.named_expression('mouthSmileLeft', 0.7)
    found = estimator.targets(smile, cameras.orbit_camera(torch.zeros(1), torch.zeros(1)))
    expected = torch.zeros(1, 52)
    expected[0, model.expression_names.index('mouthSmileLeft')] = 0.7
    assert torch.allclose(field(found, 'expression'), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r'params\.expression: expected shape \[N, 52\]'):
        estimator.targets(smile.replace(expression=torch.zeros(1, 50)), torch.zeros(1, 25))


# Signs, by rendering.


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_sign_of_rotation(posed: dict[str, HeadEstimate], axis: int) -> None:
    """A camera that moves up sees the face look down (+x); to the subject's left: to the picture's left (+y)."""
    size = max(abs(value) for value in VIEWS[axis])
    change = (mean(posed, f'turn{axis}+', 'rotation') - mean(posed, f'turn{axis}-', 'rotation')) / (2 * size)
    assert 0.6 < change[axis] < 1.4
    assert change[torch.arange(3) != axis].abs().max() < 0.3


def test_sign_of_gaze(posed: dict[str, HeadEstimate]) -> None:
    """About +y is to the subject's left (yaw > 0), about +x is down (pitch < 0)."""
    sideways = mean(posed, 'left', 'gaze') - mean(posed, 'right', 'gaze')
    upwards = mean(posed, 'up', 'gaze') - mean(posed, 'down', 'gaze')
    assert ((sideways[:, 0] > 0.4) & (sideways[:, 0] < 1.2)).all()  # 0.8 is right
    assert ((upwards[:, 1] > 0.1) & (upwards[:, 1] < 0.7)).all()  # 0.4 is right


def test_jaw_opens_about_x(posed: dict[str, HeadEstimate]) -> None:
    assert mean(posed, 'shut', 'jaw')[0].abs() < 0.05
    assert 0.25 < mean(posed, 'open', 'jaw')[0] < 0.45  # 0.35 is right


def test_pictures_without_a_face_are_not_valid(estimator: EmbeddedHeadEstimator, images: Tensor) -> None:
    upside_down = images.flip(2)
    assert estimator(upside_down).valid.float().mean() < 0.05


# One image at a time, sizes, gradients.


def test_an_image_alone_gives_the_same_bits(estimate: HeadEstimate, images: Tensor) -> None:
    estimator, embedder, features = EmbeddedHeadEstimator(), EmbeddedIdentity(), EmbeddedFeatures()
    vectors, rows = embedder.embed(images[:5]), features(images[:5])
    for index in (0, 3):
        alone = estimator(images[index : index + 1])
        for name in FIELDS:
            assert torch.equal(field(alone, name)[0], field(estimate, name)[index])
        assert torch.equal(embedder.embed(images[index : index + 1])[0], vectors[index])
        assert torch.equal(features(images[index : index + 1])[0], rows[index])
    assert len(estimator(images[:0])) == len(embedder.embed(images[:0])) == len(features(images[:0])) == 0


def test_larger_pictures_give_nearly_the_same(estimate: HeadEstimate, images: Tensor) -> None:
    large = F.interpolate(images.float(), scale_factor=4, mode='bicubic', align_corners=False)
    found = EmbeddedHeadEstimator()(large.round().clamp(0, 255).to(torch.uint8))
    assert (field(found, 'rotation') - field(estimate, 'rotation')).abs().mean() < 0.02


@pytest.mark.parametrize('part', [EmbeddedHeadEstimator, EmbeddedIdentity, EmbeddedFeatures])
def test_gradients_reach_the_image_and_no_weight(part: type, images: Tensor) -> None:
    module = part().module
    floats = (images[:2].float() / 127.5 - 1).requires_grad_()
    module(floats).square().sum().backward()
    assert floats.grad is not None
    assert (floats.grad.flatten(1).norm(dim=1) > 0).all()
    assert not any(value.requires_grad for value in module.parameters())


def test_perceptual_distance_grows_with_damage(images: Tensor) -> None:
    distance = EmbeddedFeatures().module.distance
    clean = (images[:8].float() / 127.5 - 1).requires_grad_()
    assert torch.equal(distance(clean, clean), torch.zeros(8))
    small, large = (distance(clean, clean + size * torch.randn(clean.shape)) for size in (0.05, 0.3))
    other = distance(clean, clean.roll(4, dims=0))
    assert (small > 0).all()
    assert (small < large).all()
    assert (small < other).all()
    small.sum().backward()
    assert clean.grad is not None
    assert clean.grad.abs().sum() > 0


# Files.


def test_card_describes_the_file() -> None:
    card = json.loads(DEFAULT_PATH.with_suffix('.json').read_text())
    assert card['sha256'] == sha256_file(DEFAULT_PATH)
    assert card['licence'] == 'CC0 1.0'
    assert card['head_model_hash'] == embedded_head().content_hash
    assert DEFAULT_PATH.stat().st_size < 4 * 2**20
    estimator, embedder = load_head_estimator('embedded'), load_identity_embedder('embedded')
    features = load_features('synth')  # the word of metric names
    assert {estimator.content_hash, embedder.content_hash, features.content_hash} == {card['sha256']}
    assert (estimator.name, embedder.name, features.name) == tuple(f'embedded-{part}' for part in PARTS)


def test_missing_damaged_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='is missing; restore it'):
        load_head_estimator(f'embedded:{tmp_path / "none.npz"}')
    content = DEFAULT_PATH.read_bytes()
    damaged = tmp_path / 'damaged.npz'
    damaged.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match='or damaged'):
        read_embedded(damaged)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    damaged.write_bytes(bytes(flipped))
    with pytest.raises(UserError, match='or damaged'):
        read_embedded(damaged)
    np.savez(tmp_path / 'other.npz', header=np.frombuffer(b'{"format": "other"}', dtype=np.uint8))
    with pytest.raises(UserError, match='expected .* version 2'):
        read_embedded(tmp_path / 'other.npz')
    with np.load(DEFAULT_PATH) as data:
        arrays = {name: data[name] for name in data.files if name != 'identity_output.bias'}
    np.savez(tmp_path / 'lacking.npz', **arrays)
    with pytest.raises(UserError, match=r'do not fit .*identity_output\.bias') as caught:
        read_embedded(tmp_path / 'lacking.npz')
    assert '\n' not in str(caught.value)
