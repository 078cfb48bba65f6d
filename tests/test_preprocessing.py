"""Photographs to data: the solver, the fit, the crop, reading pictures, the whole conversion."""

from __future__ import annotations

import csv
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from applications.preprocessing import detect
from applications.preprocessing.align import Crop, crop_from_landmarks, extract, load_photo, recrop
from applications.preprocessing.detect import MediaPipeDetector, find_landmarker
from applications.preprocessing.fit import CONTOUR, fit_heads, project_head
from applications.preprocessing.photos import camera_angles, convert, find_photos, fit_and_crop
from applications.preprocessing.solver import levenberg_marquardt
from dnnlib import UserError
from tests.cases_preprocessing import FakeDetector, face_in_photo, photo, random_heads
from training import cameras
from training.dataset import HeadDataset
from training.head import load_head_model
from training.head.model import HeadModel

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
    crops, fit = fit_and_crop(model, faces)
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


# Reading pictures.


def test_photo_is_turned_upright_by_exif(tmp_path: Path) -> None:
    picture = photo(7)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    picture.save(tmp_path / 'turned.png', exif=exif)
    loaded = load_photo(tmp_path / 'turned.png')
    assert loaded.shape == (320, 280, 3)
    assert np.array_equal(loaded, np.rot90(np.asarray(picture), k=-1))


@pytest.mark.parametrize('mode', ['L', 'LA', 'P', 'RGBA', 'CMYK', '1', 'I;16', 'F'])
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (16, 1))
    path = tmp_path / ('picture.png' if mode not in ('CMYK', 'F') else 'picture.tif')
    if mode == 'I;16':
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(grey).convert(mode).save(path)
    loaded = load_photo(path)
    assert loaded.shape == (16, 32, 3)
    assert loaded.dtype == np.uint8
    if mode != '1':
        assert np.abs(loaded.astype(int) - grey[..., None]).max() <= 2


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    Image.new('RGBA', (4, 4), (10, 20, 30, 0)).save(tmp_path / 'clear.png')
    assert (load_photo(tmp_path / 'clear.png') == 255).all()


def test_corrupt_pictures_give_the_reason(tmp_path: Path) -> None:
    photo(1).save(tmp_path / 'whole.png')
    data = (tmp_path / 'whole.png').read_bytes()
    (tmp_path / 'cut.png').write_bytes(data[: len(data) // 2])
    (tmp_path / 'text.jpg').write_text('no picture')
    with pytest.raises(UserError, match=r'cut\.png: corrupt picture'):
        load_photo(tmp_path / 'cut.png')
    with pytest.raises(UserError, match=r'text\.jpg: not a picture'):
        load_photo(tmp_path / 'text.jpg')


# The whole conversion.


def make_photos(folder: Path, model: HeadModel) -> FakeDetector:
    """Two good ones (one with a non-ASCII name), no face, a small face, two faces, a bad fit; a broken file."""
    params, label = random_heads(model, 3, seed=8)
    crop = Crop(160.0, 140.0, 200.0)
    good = [face_in_photo(model, params[[i]], label[[i]], crop=crop) for i in range(3)]
    small = face_in_photo(model, params[[0]], label[[0]], crop=Crop(100.0, 100.0, 60.0))
    spoiled = good[0].landmarks + 12 * np.random.default_rng(0).standard_normal((68, 2))
    bad = detect.Face(landmarks=spoiled)
    (folder / 'sub').mkdir(parents=True)
    for key, name in enumerate(['a.png', 'sub/zoë.png', 'empty.png', 'small.png', 'two.png', 'odd.png'], start=1):
        photo(key).save(folder / name)
    (folder / 'broken.jpg').write_bytes(b'\xff\xd8\xff no')
    (folder / 'notes.txt').write_text('not a photograph')
    return FakeDetector({1: [good[0]], 2: [good[1]], 4: [small], 5: [small, good[2]], 6: [bad]})


def test_folder_becomes_a_dataset(tmp_path: Path, model: HeadModel, capsys: pytest.CaptureFixture[str]) -> None:
    detector = make_photos(tmp_path / 'photos', model)
    out = tmp_path / 'data.zip'
    result = convert(tmp_path / 'photos', out, resolution=64, detector=detector, head_model=model)
    assert result.accepted == ('a.png', 'sub/zoë.png', 'two.png')
    reasons = dict(result.rejected)
    assert set(reasons) == {'empty.png', 'small.png', 'odd.png', 'broken.jpg'}
    assert reasons['empty.png'] == 'no face found'
    assert reasons['small.png'].startswith('face too small')
    assert reasons['odd.png'].startswith('reprojection error too large')
    assert reasons['broken.jpg'] in ('not a picture',) or reasons['broken.jpg'].startswith('corrupt picture')
    assert np.median(result.error_pixels) < 0.3

    dataset = HeadDataset(out)
    assert len(dataset) == 3
    assert dataset.resolution == 64
    assert dataset.image(0).shape == (3, 64, 64)
    stored = dataset.head_params([0, 1, 2])
    assert stored is not None
    landmarks, _ = project_head(model, stored, torch.as_tensor(np.array(dataset.label([0, 1, 2]))))
    with open(result.folder / 'fits.csv', encoding='utf-8') as handle:
        rows = list(csv.DictReader(handle))
    crops = [Crop(float(row['column']), float(row['row']), float(row['side'])) for row in rows]
    faces = [detector.faces[1][0], detector.faces[2][0], detector.faces[5][1]]  # the larger one of two
    for index, (crop, face) in enumerate(zip(crops, faces, strict=True)):
        assert np.abs(landmarks[index].numpy() - crop.to_crop(face.landmarks)).mean() * 64 < 0.3
    assert [row['faces'] for row in rows] == ['1', '1', '2']
    assert (result.folder / 'sheet.jpg').is_file()
    assert (result.folder / 'overlays' / 'sub__zoë.png.jpg').is_file()
    assert (result.folder / 'rejected' / 'odd.png.jpg').is_file()
    with open(result.folder / 'rejects.csv', encoding='utf-8') as handle:
        assert {row['source']: row['reason'] for row in csv.DictReader(handle)} == reasons
    printed = capsys.readouterr().out
    assert 'reprojection error: median' in printed
    assert '3 of 7 photographs' in printed
    assert 'images/s' in printed


def test_no_usable_face_leaves_nothing_behind(tmp_path: Path, model: HeadModel) -> None:
    (tmp_path / 'photos').mkdir()
    photo(1).save(tmp_path / 'photos' / 'a.png')
    with pytest.raises(UserError, match=r'no usable face in 1 photograph\(s\): 1 no face found'):
        convert(tmp_path / 'photos', tmp_path / 'out.zip', detector=FakeDetector({}), head_model=model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['photos']


def test_output_is_not_replaced_unasked(tmp_path: Path, model: HeadModel) -> None:
    (tmp_path / 'photos').mkdir()
    photo(1).save(tmp_path / 'photos' / 'a.png')
    (tmp_path / 'out.zip').write_bytes(b'mine')
    with pytest.raises(UserError, match=r'out\.zip: already exists'):
        convert(tmp_path / 'photos', tmp_path / 'out.zip', detector=FakeDetector({}), head_model=model)
    (tmp_path / 'new-report').mkdir()
    (tmp_path / 'new-report' / 'mine.txt').write_text('mine')
    with pytest.raises(UserError, match='is not an earlier report'):
        convert(tmp_path / 'photos', tmp_path / 'new.zip', detector=FakeDetector({}), head_model=model)
    assert (tmp_path / 'new-report' / 'mine.txt').read_text() == 'mine'
    assert not (tmp_path / 'new.zip').exists()


def test_missing_sources(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='no such file or folder'):
        find_photos(tmp_path / 'absent')
    (tmp_path / '.hidden').mkdir()
    photo(1).save(tmp_path / '.hidden' / 'a.png')
    with pytest.raises(UserError, match='holds no photograph'):
        find_photos(tmp_path)
    photo(1).save(tmp_path / 'B.PNG')
    assert find_photos(tmp_path)[1] == ['B.PNG']
    assert find_photos(tmp_path / 'B.PNG') == (tmp_path, ['B.PNG'])


# The detector.


def test_mesh_points_map_to_the_68(model: HeadModel) -> None:
    """The index tables are left/right consistent: each landmark once, and the iris rows in order."""
    assert detect.MESH_TO_68.shape == (68,)
    assert len(set(detect.MESH_TO_68.tolist())) == 68
    assert sorted(detect.MESH_TO_IRIS.reshape(-1).tolist()) == list(range(468, 478))
    points = np.random.default_rng(0).standard_normal((478, 3))
    face = detect.face_from_mesh(points)
    assert np.array_equal(face.landmarks[30], points[4, :2])
    assert face.iris is not None
    assert np.array_equal(face.iris[1, 0], points[468, :2])
    with pytest.raises(ValueError, match=r'expected shape \[478, 3\]'):
        detect.face_from_mesh(points[:468])


def test_missing_model_file_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match='no such file; give the path of a face_landmarker.task'):
        find_landmarker(tmp_path / 'absent.task')
    monkeypatch.setattr(detect, 'CARRIER', 'a-distribution-that-is-not-installed')
    with pytest.raises(UserError, match='give its path with --landmarker'):
        find_landmarker()


def test_missing_mediapipe_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='mediapipe is not installed; run `pip install'):
        MediaPipeDetector()


@pytest.fixture
def mediapipe_detector() -> MediaPipeDetector:
    if importlib.util.find_spec('mediapipe') is None:
        pytest.skip('mediapipe is not installed')
    try:
        return MediaPipeDetector(os.environ.get('NEXT3D_LANDMARKER') or None)
    except UserError as error:
        pytest.skip(str(error))


def test_mediapipe_finds_no_face_in_a_ramp(mediapipe_detector: MediaPipeDetector) -> None:
    with mediapipe_detector:
        assert mediapipe_detector.detect(np.asarray(photo(1))) == []


def test_mediapipe_fits_real_portraits(mediapipe_detector: MediaPipeDetector, tmp_path: Path, model: HeadModel) -> None:
    folder = os.environ.get('NEXT3D_PHOTOS', '')
    if not os.path.isdir(folder):
        pytest.skip('set NEXT3D_PHOTOS to a folder of portraits')
    with mediapipe_detector:
        result = convert(folder, tmp_path / 'out.zip', resolution=256, detector=mediapipe_detector, head_model=model)
    assert not result.rejected
    assert np.median(result.error_relative) < 0.03
