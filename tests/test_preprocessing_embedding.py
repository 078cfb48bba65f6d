"""More points than 68: where they lie on the head model, how they err, and what the fits make of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from applications.preprocessing import tasks
from applications.preprocessing.align import Crop
from applications.preprocessing.calibration import Calibration, Embedding, load_calibration, mirrored_points
from applications.preprocessing.clip import Frame
from applications.preprocessing.crops import fit_and_crop
from applications.preprocessing.detect import Face, MediaPipeDetector, face_from_mesh
from applications.preprocessing.embedding import Views, choose_points, estimate_embedding, locate_points
from applications.preprocessing.fit import CONTOUR, SHARES_A_METRE, fit_heads, project_head, project_points
from tests import cases_flame
from tests.cases_preprocessing import FakeDetector, face_in_photo, random_heads
from tools.evaluate_fits import skull_error
from training import cameras
from training.head.flame import FlameHead
from training.head.makehuman import MakeHumanHead, embedded_head
from training.head.model import HeadParams

SIDE = 512
FLIP = torch.tensor([-1.0, 1.0, 1.0])


@pytest.fixture(scope='module')
def model() -> MakeHumanHead:
    return embedded_head()


@pytest.fixture(scope='module')
def stored(model: MakeHumanHead) -> Embedding:
    known = load_calibration('mediapipe', model)
    assert known is not None
    assert known.embedding is not None
    return known.embedding


@pytest.fixture(scope='module')
def heads(model: MakeHumanHead) -> tuple[HeadParams, Tensor]:
    return random_heads(model, 3, seed=40)


def test_stored_embedding_is_whole_and_symmetric(model: MakeHumanHead, stored: Embedding) -> None:
    stored.check(model)
    mirror = mirrored_points('mediapipe')
    assert np.array_equal(mirror[mirror], np.arange(478))
    pairs = torch.searchsorted(stored.points, torch.from_numpy(mirror)[stored.points])
    assert torch.equal(stored.points[pairs], torch.from_numpy(mirror)[stored.points])
    places = stored.places(model.template.vertices[None], model)[0]
    assert torch.allclose(places[pairs] * FLIP, places, atol=3e-4)
    assert torch.equal(stored.sigma[pairs], stored.sigma)
    assert stored.barycentrics.min() >= 0
    assert torch.allclose(stored.barycentrics.sum(dim=1), torch.ones(len(stored)), atol=1e-3)
    assert not model.regions['eyes'][stored.faces].any()
    assert stored.modes.norm(dim=2).max() < 0.02


def test_points_with_a_pixel_of_noise_give_the_pose_within_a_degree(
    model: MakeHumanHead, stored: Embedding, heads: tuple[HeadParams, Tensor]
) -> None:
    params, label = heads
    exact = stored.exact(sigma=1.2 / SIDE / SHARES_A_METRE)
    landmarks, iris = project_head(model, params, label)
    points = project_points(model, params, label, embedding=exact)
    for pixels, degrees in ((0.0, 0.8), (1.0, 1.0)):
        noise = pixels / SIDE * torch.randn(points.shape, generator=torch.Generator().manual_seed(1))
        fit = fit_heads(model, landmarks, iris=iris, points=points + noise, embedding=exact)
        assert skull_error(fit, params=params, label=label).norm(dim=1).mean() < degrees
        assert fit.error[:, CONTOUR.stop :].mean() * SIDE < 1.5


def test_shared_errors_do_not_turn_the_head(
    model: MakeHumanHead, stored: Embedding, heads: tuple[HeadParams, Tensor]
) -> None:
    """Points moved along the strongest mode, twice its spread: explained by it, not by the pose."""
    params, label = heads
    strong = int(stored.modes.square().sum(dim=(1, 2)).argmax())
    moved = dataclasses.replace(stored, offsets=stored.offsets + 2 * stored.modes[strong])
    points = project_points(model, params, label, embedding=moved)
    landmarks, _ = project_head(model, params, label)
    errors = []
    for embedding in (stored, dataclasses.replace(stored, modes=stored.modes[:0])):
        fit = fit_heads(model, landmarks, points=points, embedding=embedding)
        errors.append(float(skull_error(fit, params=params, label=label).norm(dim=1).mean()))
    assert errors[0] < 0.7 * errors[1]


def test_sigma_says_how_much_a_point_counts(model: MakeHumanHead, stored: Embedding) -> None:
    params, label = random_heads(model, 1, seed=41)
    exact = stored.exact(sigma=0.5e-3)
    landmarks, _ = project_head(model, params, label)
    points = project_points(model, params, label, embedding=exact)
    spoiled = points.clone()
    spoiled[:, ::4] += 5 / SIDE
    doubted = exact.sigma.clone()
    doubted[::4] = 1.0
    clean = fit_heads(model, landmarks, points=points, embedding=exact).landmarks
    shifts = []
    for sigma in (doubted, exact.sigma):
        fit = fit_heads(model, landmarks, points=spoiled, embedding=dataclasses.replace(exact, sigma=sigma))
        shifts.append(float((fit.landmarks - clean).norm(dim=-1).mean()) * SIDE)
    assert shifts[0] < 0.3
    assert shifts[1] > 0.6


def test_bad_points_and_embeddings(model: MakeHumanHead, stored: Embedding, tmp_path: Path) -> None:
    landmarks, points = torch.full((2, 68, 2), 0.5), torch.full((2, len(stored), 2), 0.5)
    for given, embedding, message in (
        (points, None, 'points and embedding: expected both or neither'),
        (points[:, 1:], stored, rf"points: expected shape \['N', {len(stored)}, 2\]"),
        (points * torch.nan, stored, 'points: expected finite'),
        (points, dataclasses.replace(stored, modes=stored.modes[:, 1:]), r'Embedding\.modes: expected shape'),
        (points, dataclasses.replace(stored, sigma=0 * stored.sigma), r'Embedding\.sigma: expected positive'),
        (points, dataclasses.replace(stored, faces=stored.faces + 10**5), r'Embedding\.faces: expected 0 to'),
    ):
        with pytest.raises(ValueError, match=message):
            fit_heads(model, landmarks, points=given, embedding=embedding)
    flame = FlameHead(cases_flame.write_folder(tmp_path, cases_flame.arrays()))
    with pytest.raises(ValueError, match='faces'):
        fit_heads(flame, landmarks, points=points, embedding=stored)
    assert load_calibration('mediapipe', flame) is None


def test_faces_go_through_with_and_without_points(model: MakeHumanHead, stored: Embedding) -> None:
    """What a detector gives is used where the model's embedding is known, and else the 68 landmarks are."""
    params, label = random_heads(model, 1, seed=42)
    crop = Crop(300.0, 250.0, 220.0)
    bare = face_in_photo(model, params, label, crop=crop)
    exact = stored.exact(sigma=0.5e-3)
    points = np.full((478, 3), 10.0)
    seen = project_points(model, params, label, embedding=exact)[0].double().numpy()
    points[stored.points.numpy(), :2] = crop.to_photo(seen)
    face = dataclasses.replace(bare, points=points)
    zero = torch.zeros(78, 3)
    fits = [
        fit_and_crop(model, [one], calibration=Calibration(offsets=zero, embedding=embedding), rounds=1)[1]
        for one, embedding in ((bare, None), (face, None), (bare, exact), (face, exact))
    ]
    for other in fits[1:3]:
        assert torch.equal(fits[0].label, other.label)
    assert not torch.equal(fits[0].label, fits[3].label)
    assert skull_error(fits[3], params=params, label=label).norm() < 2.0  # the first crop has another perspective
    frame = Frame(number=0, name='a', image=np.zeros((8, 8, 3), dtype=np.uint8))
    kept = tasks.detect(FakeDetector({0: [face]}), frame).faces[0]
    assert kept.points is not None
    assert np.array_equal(kept.points, points)


def test_embedding_is_measured(model: MakeHumanHead) -> None:
    """Detections made of known places, offsets, one mode and noise give all of them back."""
    params, label = random_heads(model, 40, seed=43)
    rng = torch.Generator().manual_seed(44)
    front = [int(model.template.landmark_faces[row]) for row in (30, 36, 45, 48, 54, 8)]
    mirror = torch.tensor([0, 2, 1, 4, 3, 5])
    truth = Embedding(
        points=torch.arange(6),
        faces=torch.tensor(front),
        barycentrics=model.template.landmark_barycentrics[[30, 36, 45, 48, 54, 8]],
        offsets=0.002 * torch.tensor([[0, 1.0, 0], [1, 0, 0], [-1, 0, 0], [0, -1, 0], [0, -1, 0], [0, 0.5, 0]]),
        modes=torch.tensor([[0, 0.002, 0]]).expand(6, 3)[None],
        sigma=torch.full((6,), 0.3e-3),
        iris_sigma=1e-3,
    )
    sway = torch.randn(40, 1, generator=rng)
    places = truth.places(model.forward(params).vertices, model) + torch.einsum('nr,rkc->nkc', sway, truth.modes)
    seen, _ = cameras.project(cameras.head_to_world(places), label)
    seen = seen + 0.3e-3 * SHARES_A_METRE * torch.randn(seen.shape, generator=rng)
    views = Views(params=params, label=label, points=seen)
    found = estimate_embedding(model, views, truth.faces, truth.barycentrics, mirror, modes=1)
    assert (found.offsets - truth.offsets).norm(dim=1).mean() < 0.001
    assert torch.allclose(found.modes[0].norm(dim=1), torch.full((6,), 0.002), atol=0.0007)
    assert 0.2e-3 < found.sigma.median() < 0.4e-3
    assert estimate_embedding(model, views, truth.faces, truth.barycentrics, mirror, modes=0).sigma.median() > 1e-3

    clean = dataclasses.replace(truth, offsets=torch.zeros(6, 3))
    image = project_points(model, params, label, embedding=clean)
    faces, barycentrics = locate_points(model, dataclasses.replace(views, points=image), mirror)
    located = dataclasses.replace(clean, faces=faces, barycentrics=barycentrics)
    error = (project_points(model, params, label, embedding=located) - image).norm(dim=-1)
    assert error.mean() * SIDE < 1.0


def test_chosen_points_come_in_pairs_and_spread() -> None:
    places = torch.tensor([[-3.0, 0, 0], [-1.0, 0, 0], [0.0, 0, 0], [1.0, 0, 0], [3.0, 0, 0], [0, 9.0, 0]])
    mirror = torch.tensor([4, 3, 2, 1, 0, 5])
    sigma = torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0, 7.0])
    assert choose_points(places, sigma, mirror, count=3, limit=2.0).tolist() == [0, 2, 4]
    sharp = torch.tensor([1.0, 0.4, 0.5, 1.0, 1.0, 7.0])
    assert choose_points(places, sharp, mirror, count=2, limit=2.0).tolist() == [1, 3]
    assert choose_points(places, sigma, mirror, count=9, limit=2.0).tolist() == [0, 1, 2, 3, 4]


def test_both_views_of_the_mirror_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The face and its mirror image differ by what the network does differently; another face is left alone."""
    mirror = mirrored_points('mediapipe')
    rng = np.random.default_rng(0)
    truth = rng.uniform(40, 80, (478, 3))
    error = rng.normal(0, 1, (478, 3))

    def look(image: np.ndarray) -> list[Face]:
        near, far = truth + error, truth * (1, 1, 1) + (200, 0, 0)
        if image[0, 0, 0] == 0:
            return [face_from_mesh(near, blendshapes={'jawOpen': 0.5}), face_from_mesh(far)]
        return [face_from_mesh((truth - error)[mirror] * (-1, 1, 1) + (320, 0, 0))]

    detector = object.__new__(MediaPipeDetector)
    monkeypatch.setattr(detector, '_mirror', mirror, raising=False)
    monkeypatch.setattr(detector, '_look', look)
    image = np.zeros((100, 320, 3), dtype=np.uint8)
    image[:, -1] = 255
    first, second = detector._detect(image)
    assert first.points is not None
    assert second.points is not None
    assert np.allclose(first.points, truth)
    assert first.blendshapes == {'jawOpen': 0.5}
    assert np.array_equal(second.points, truth + (200, 0, 0))
