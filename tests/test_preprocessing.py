"""Photographs to data: the solver, the fit and the crop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from applications.preprocessing.align import Crop, crop_from_landmarks, extract, recrop
from applications.preprocessing.calibration import NUM_POINTS, POINT_MIRROR, estimate_offsets, load_calibration
from applications.preprocessing.fit import CONTOUR, fit_heads, project_head
from applications.preprocessing.photos import fit_and_crop
from applications.preprocessing.solver import levenberg_marquardt
from tests.cases_preprocessing import face_in_photo, random_heads
from training import cameras
from training.cameras import camera_angles
from training.head import load_head_model
from training.head.model import HeadModel
from training.head.rotation import axis_angle_matrix

SIDE = 512  # pixels of the crops in which errors are counted


@pytest.fixture(scope='module')
def model() -> HeadModel:
    return load_head_model('makehuman')


# Solver.


def test_solver_equals_the_closed_form_of_a_linear_problem() -> None:
    rng = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 2, 4, generator=rng)
    target = torch.randn(3, 6, 2, generator=rng)
    precision = torch.diag(torch.tensor([0.5, 1.0, 2.0, 0.0]))
    solution = levenberg_marquardt(
        lambda values, index: torch.einsum('fcp,np->nfc', matrix, values) - target[index],
        torch.zeros(3, 4),
        columns=torch.tensor([0, 1, 3]),
        precision=precision,
        robust=1e6,
        iterations=50,
        tolerance=1e-12,
    )
    flat = matrix.reshape(12, 4)[:, [0, 1, 3]]
    normal = flat.T @ flat + precision[[0, 1, 3]][:, [0, 1, 3]]
    expected = torch.linalg.solve(normal, flat.T @ target.reshape(3, 12).T).T
    assert torch.allclose(solution[:, [0, 1, 3]], expected, atol=1e-4)
    assert (solution[:, 2] == 0).all()


def test_solver_counts_outliers_linearly() -> None:
    """The minimum over one unknown of sum huber(x - t) is the Huber mean."""
    target = torch.tensor([0.0, 0.1, -0.1, 0.05, 100.0]).reshape(1, 5, 1)
    solution = levenberg_marquardt(
        lambda values, index: values[:, None] - target[index],
        torch.full((1, 1), 30.0),
        columns=torch.tensor([0]),
        precision=torch.zeros(1, 1),
        robust=1.0,
        iterations=200,
        tolerance=1e-10,
    )
    assert solution.item() == pytest.approx((0.05 + 1.0) / 4, abs=1e-3)


# Fit.


def test_positions_are_rows_of_the_mesh(model: HeadModel) -> None:
    params, _ = random_heads(model, 2, seed=0)
    lids = model.template.faces[model.template.landmark_faces[36:48]].reshape(-1)
    chosen = torch.cat([torch.arange(0, model.template.num_vertices, 37), lids, model.gaze_vertices.reshape(-1)])
    assert torch.allclose(model.positions(params, chosen), model.forward(params).vertices[:, chosen], atol=1e-6)


def test_fit_recovers_heads_from_exact_landmarks(model: HeadModel) -> None:
    params, label = random_heads(model, 6, seed=1)
    landmarks, iris = project_head(model, params, label)
    fit = fit_heads(model, landmarks, iris=iris)
    assert fit.error.mean() * SIDE < 0.5
    assert fit.error[:, CONTOUR.stop :].max() * SIDE < 2.0
    gaze = torch.rad2deg((fit.params.eyes - params.eyes).abs())[:, [0, 1, 3, 4]]
    assert gaze.mean() < 1.0
    assert gaze.max() < 2.0
    turned = cameras.unpack_label(fit.label)[0][:, :3, :3] @ cameras.unpack_label(label)[0][:, :3, :3].transpose(1, 2)
    angle = torch.rad2deg(torch.acos(((turned.diagonal(dim1=1, dim2=2).sum(dim=1) - 1) / 2).clamp(-1, 1)))
    assert angle.max() < 3.0


def test_fitted_cameras_are_valid_labels(model: HeadModel) -> None:
    params, label = random_heads(model, 2, seed=2)
    landmarks, _ = project_head(model, params, label)
    fit = fit_heads(model, landmarks)
    cam2world, intrinsics = cameras.unpack_label(fit.label)
    assert torch.allclose(cam2world[:, :3, :3] @ cam2world[:, :3, :3].transpose(1, 2), torch.eye(3), atol=1e-5)
    assert (torch.linalg.det(cam2world[:, :3, :3]) > 0.99).all()
    assert torch.equal(intrinsics, cameras.intrinsics(2))
    again, _ = project_head(model, fit.params, fit.label)
    assert torch.allclose(again, fit.landmarks, atol=1e-5)
    assert torch.allclose((again - landmarks).norm(dim=-1), fit.error, atol=1e-5)
    assert (fit.params.neck == 0).all()
    assert (fit.params.eyes == 0).all()
    assert fit.iris_error is None


@pytest.mark.parametrize('name', ['eyeBlinkLeft', 'eyeBlinkRight'])
def test_blinks_survive(model: HeadModel, name: str) -> None:
    """The fitted lids close as far as the given ones, also under landmark noise of a pixel."""
    shut = model.named_expression(name)
    label = cameras.orbit_camera(torch.tensor([0.2]), torch.tensor([0.0]))
    landmarks, iris = project_head(model, shut, label)
    noise = torch.randn(landmarks.shape, generator=torch.Generator().manual_seed(3)) / SIDE
    for given, tolerance in ((landmarks, 0.06), (landmarks + noise, 0.25)):
        fit = fit_heads(model, given, iris=iris)
        for upper, lower in ((37, 41), (38, 40), (43, 47), (44, 46)):
            open_gap = project_head(model, model.neutral(), label)[0][0, [upper, lower]].diff(dim=0).norm()
            wanted = given[0, [upper, lower]].diff(dim=0).norm()
            got = fit.landmarks[0, [upper, lower]].diff(dim=0).norm()
            assert abs(got - wanted) < tolerance * open_gap


def test_samples_of_a_batch_are_independent(model: HeadModel) -> None:
    params, label = random_heads(model, 3, seed=4)
    landmarks, iris = project_head(model, params, label)
    together = fit_heads(model, landmarks, iris=iris)
    alone = fit_heads(model, landmarks[1:2], iris=iris[1:2])
    assert torch.allclose(together.landmarks[1], alone.landmarks[0], atol=2e-4)
    assert torch.allclose(together.label[1], alone.label[0], atol=2e-3)


def test_an_outlier_on_the_jaw_line_does_not_move_the_face(model: HeadModel) -> None:
    params, label = random_heads(model, 1, seed=5)
    landmarks, _ = project_head(model, params, label)
    spoiled = landmarks.clone()
    spoiled[:, 2] += 60 / SIDE
    clean, fit = fit_heads(model, landmarks), fit_heads(model, spoiled)
    assert (fit.landmarks - clean.landmarks)[:, CONTOUR.stop :].norm(dim=-1).mean() * SIDE < 1.0


def test_offsets_of_the_detector_are_measured_and_undone(model: HeadModel) -> None:
    """Points seen at constant places beside the model's give those places, and then the same fit as exact ones."""
    params, label = random_heads(model, 12, seed=9)
    rng = torch.Generator().manual_seed(10)
    params = params.replace(neck=0.2 * torch.randn(12, 3, generator=rng))
    offsets = 0.003 * torch.randn(NUM_POINTS, 3, generator=rng)
    offsets = 0.5 * (offsets + offsets[list(POINT_MIRROR)] * torch.tensor([-1.0, 1.0, 1.0]))
    with torch.no_grad():
        head = model.forward(params)
    points = torch.cat([head.landmarks, head.vertices[:, model.gaze_vertices.reshape(-1)]], dim=1)
    turn = axis_angle_matrix(params.neck)
    seen, _ = cameras.project(cameras.head_to_world(points + offsets @ turn.transpose(1, 2)), label)
    seen[0] += 0.1  # a detection that failed
    measured = estimate_offsets(points, label, turn, seen)
    error = (measured - offsets).norm(dim=1)
    assert error.mean() < 0.0008  # metres; of 3 mm and more, seen from a few sides only
    assert (measured - offsets)[:, :2].norm(dim=1).mean() < 0.0003

    params, label = random_heads(model, 2, seed=11)
    landmarks, iris = project_head(model, params, label, offsets=offsets)
    fit = fit_heads(model, landmarks, iris=iris, offsets=offsets)
    assert fit.error.mean() * SIDE < 0.5
    assert torch.rad2deg((fit.params.eyes - params.eyes).abs()).max() < 2.0
    with pytest.raises(ValueError, match='offsets: expected shape'):
        fit_heads(model, landmarks, offsets=offsets[:68])


def test_points_mirror_in_pairs(model: HeadModel) -> None:
    assert [POINT_MIRROR[i] for i in POINT_MIRROR] == list(range(NUM_POINTS))
    head = model.forward(model.neutral())
    points = torch.cat([head.landmarks[0], head.vertices[0, model.gaze_vertices.reshape(-1)]])
    assert torch.allclose(points[list(POINT_MIRROR)] * torch.tensor([-1.0, 1.0, 1.0]), points, atol=2e-4)


def test_stored_offsets_are_whole_and_symmetric(model: HeadModel) -> None:
    known = load_calibration('mediapipe', model)
    assert known is not None
    assert list(known.offsets.shape) == [NUM_POINTS, 3]
    assert known.offsets.norm(dim=1).max() < 0.02
    flipped = known.offsets[list(POINT_MIRROR)] * torch.tensor([-1.0, 1.0, 1.0])
    assert torch.allclose(flipped, known.offsets, atol=2e-5)
    assert load_calibration('another detector', model) is None


@pytest.mark.parametrize(
    ('landmarks', 'message'),
    [
        (torch.zeros(1, 67, 2), r"landmarks: expected shape \['N', 68, 2\], got \[1, 67, 2\]"),
        (torch.full((1, 68, 2), torch.nan), 'finite'),
    ],
)
def test_bad_landmarks(model: HeadModel, landmarks: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_heads(model, landmarks)


# Crop.


def test_points_go_to_the_crop_and_back() -> None:
    crop = Crop(120.5, 80.25, 200.0)
    points = np.random.default_rng(0).uniform(-50, 400, (10, 2))
    assert np.allclose(crop.to_photo(crop.to_crop(points)), points)
    assert np.allclose(crop.to_crop(np.array([crop.box()[:2], crop.box()[2:]])), [[0, 0], [1, 1]])
    assert crop.outside(320, 280) == pytest.approx(1 - 200 * 180.25 / 200**2, abs=0.01)


@pytest.mark.parametrize('crop', [Crop(160.3, 140.7, 100.0), Crop(150.0, 140.0, 250.0), Crop(100.2, 90.9, 33.3)])
def test_extraction_is_exact_to_a_fraction_of_a_pixel(crop: Crop) -> None:
    """A ramp's values tell where each resampled pixel came from."""
    columns, rows = np.meshgrid(np.arange(320) + 0.5, np.arange(280) + 0.5)
    ramp = np.stack([columns / 320, rows / 280, 0 * rows], axis=-1) * 255
    image = extract(ramp.round().astype(np.uint8), crop, resolution=64)
    centres = (np.arange(64) + 0.5) / 64
    where = crop.to_photo(np.stack(np.meshgrid(centres, centres), axis=-1))
    expected = where / [320, 280] * 255
    assert np.abs(image[..., :2] - expected).mean() < 0.5
    assert np.abs(image[..., :2] - expected).max() < 1.6


def test_border_is_mirrored_and_soft() -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image = extract(noise, Crop(10.0, 30.0, 64.0), resolution=64)
    assert image.shape == (64, 64, 3)
    assert np.array_equal(image[32, 30:60], noise[30, 8:38])  # inside: untouched
    assert image[:, :10].std() < 0.6 * noise.std()  # far outside: blurred
    with pytest.raises(ValueError, match='outside the photograph'):
        extract(noise, Crop(-500.0, 30.0, 64.0), resolution=64)


def test_recrop_centres_the_pivot_at_the_usual_distance(model: HeadModel) -> None:
    params, label = random_heads(model, 3, seed=6)
    hidden = [Crop(300.0, 250.0, 220.0), Crop(150.0, 200.0, 90.0), Crop(400.0, 380.0, 500.0)]
    faces = [face_in_photo(model, params[[i]], label[[i]], crop=crop) for i, crop in enumerate(hidden)]
    crops, fit = fit_and_crop(model, faces, framing='pivot')
    at, _ = cameras.project(torch.tensor(cameras.PIVOT).expand(3, 1, 3), fit.label)
    assert (at - 0.5).abs().max() * SIDE < 2.0
    distance = (cameras.unpack_label(fit.label)[0][:, :3, 3] - torch.tensor(cameras.PIVOT)).norm(dim=1)
    assert (distance - cameras.RADIUS).abs().max() < 0.01 * cameras.RADIUS
    for crop, wanted in zip(crops, hidden, strict=True):
        assert abs(crop.side / wanted.side - 1) < 0.08
        assert np.hypot(crop.column - wanted.column, crop.row - wanted.row) < 0.04 * wanted.side
    assert np.abs(camera_angles(fit.label) - camera_angles(label)).max() < np.radians(4.0)
    for index, (crop, face) in enumerate(zip(crops, faces, strict=True)):
        error = np.linalg.norm(crop.to_crop(face.landmarks) - fit.landmarks[index].numpy(), axis=-1)
        assert error.mean() * SIDE < 0.7


def test_camera_angles_invert_the_orbit() -> None:
    yaw, pitch, roll = torch.tensor([[0.4, -0.3], [0.1, -0.2], [0.25, -0.5]])
    angles = camera_angles(cameras.orbit_camera(yaw, pitch, roll=roll))
    assert np.allclose(angles, torch.stack([yaw, pitch, roll], dim=1).numpy(), atol=1e-5)


def test_roll_of_the_head_becomes_roll_of_the_camera(model: HeadModel) -> None:
    """The first crop does not turn with the head: the photograph turned by an angle gives that angle."""
    label = cameras.orbit_camera(torch.tensor([0.1]), torch.tensor([0.0]), roll=torch.tensor([0.4]))
    face = face_in_photo(model, model.neutral(), label, crop=Crop(200.0, 200.0, 150.0))
    first = crop_from_landmarks(face.landmarks)
    assert 0.6 < first.side / 150.0 < 1.6
    _, fit = fit_and_crop(model, [face])
    assert camera_angles(fit.label)[0, 2] == pytest.approx(0.4, abs=0.02)
    moved = recrop(first, fit.label[0])
    assert 0.5 <= moved.side / first.side <= 2.0


def test_a_known_identity_is_kept_and_helps(model: HeadModel) -> None:
    """With the person's true shape given, expression and camera come back, and the identity is not touched."""
    params, label = random_heads(model, 3, seed=11)
    landmarks, _ = project_head(model, params, label)
    fit = fit_heads(model, landmarks, identity=params.identity)
    assert torch.equal(fit.params.identity, params.identity)
    assert float(fit.error.mean()) * 512 < 0.6
    with pytest.raises(ValueError, match='identity: expected shape'):
        fit_heads(model, landmarks, identity=params.identity[:2])
