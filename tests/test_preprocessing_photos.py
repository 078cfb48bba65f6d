"""Photographs to data: reading pictures, the detector, the whole conversion."""

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
from applications.preprocessing.align import Crop, aimed_label, load_photo
from applications.preprocessing.detect import MediaPipeDetector, find_landmarker
from applications.preprocessing.fit import project_head
from applications.preprocessing.neck import split_neck
from applications.preprocessing.photos import convert, find_photos
from dnnlib import UserError
from tests.cases_preprocessing import FakeDetector, face_in_photo, photo, random_heads
from training import cameras
from training.dataset import HeadDataset
from training.head import load_head_model
from training.head.model import HeadModel, HeadParams


@pytest.fixture(scope='module')
def model() -> HeadModel:
    return load_head_model('makehuman')


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
    bad = detect.Face(landmarks=good[0].landmarks[::-1].copy(), iris=good[0].iris)
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
    landmarks, _ = project_head(model, stored, dataset.label([0, 1, 2]))
    with open(result.folder / 'fits.csv', encoding='utf-8') as handle:
        rows = list(csv.DictReader(handle))
    crops = [Crop(float(row['column']), float(row['row']), float(row['side'])) for row in rows]
    faces = [detector.faces[1][0], detector.faces[2][0], detector.faces[5][1]]  # the larger one of two
    for index, (crop, face) in enumerate(zip(crops, faces, strict=True)):
        assert np.abs(landmarks[index].numpy() - crop.to_crop(face.landmarks)).mean() * 64 < 0.3
    assert [row['faces'] for row in rows] == ['1', '1', '2']
    assert (result.folder / 'sheet.png').is_file()
    assert (result.folder / 'overlays' / 'sub__zoë.png.jpg').is_file()
    assert (result.folder / 'rejected' / 'odd.png.jpg').is_file()
    with open(result.folder / 'rejects.csv', encoding='utf-8') as handle:
        assert {row['source']: row['reason'] for row in csv.DictReader(handle)} == reasons
    printed = capsys.readouterr().out
    assert 'reprojection error: median' in printed
    assert '3 of 7 photographs' in printed
    assert 'images/s' in printed


def test_result_depends_neither_on_workers_nor_on_an_interruption(tmp_path: Path, model: HeadModel) -> None:
    detector = make_photos(tmp_path / 'photos', model)
    (tmp_path / 'photos' / 'zero.png').write_bytes(b'')
    (tmp_path / 'photos' / 'album.jpg').mkdir()  # a folder that is named like a picture

    class Stops(FakeDetector):
        calls = 0

        def detect(self, image: np.ndarray) -> list[detect.Face]:
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().detect(image)

    stopping = Stops(detector.faces)
    first = tmp_path / 'a.zip'
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / 'photos', first, resolution=64, detector=stopping, head_model=model)
    assert not first.exists()
    with pytest.raises(UserError, match=r'other options \(faces was largest, is now reject\).*--restart'):
        convert(tmp_path / 'photos', first, resolution=64, detector=stopping, head_model=model, faces='reject')
    result = convert(tmp_path / 'photos', first, resolution=64, detector=stopping, head_model=model)
    assert result.resumed == 3  # the broken file and two with pixels
    assert stopping.calls == 7  # six readable photographs, one of them twice
    assert dict(result.rejected)['zero.png'] == 'empty file (0 bytes)'
    second = tmp_path / 'b.zip'
    convert(tmp_path / 'photos', second, resolution=64, detector=detector, head_model=model, workers=2)
    assert first.read_bytes() == second.read_bytes()
    assert not list(tmp_path.glob('*-work'))


def test_photographs_with_several_faces_can_be_left_out(tmp_path: Path, model: HeadModel) -> None:
    detector = make_photos(tmp_path / 'photos', model)
    out = tmp_path / 'data'
    result = convert(
        tmp_path / 'photos', out, resolution=64, detector=detector, head_model=model, faces='reject', framing='pivot'
    )
    assert dict(result.rejected)['two.png'] == 'several faces (2)'
    place = HeadDataset(out).label([0, 1])[:, [3, 7, 11]]
    assert ((place - torch.tensor(cameras.PIVOT)).norm(dim=1) - cameras.RADIUS).abs().max() < 0.02
    convert(tmp_path / 'photos', tmp_path / 'eg3d', resolution=64, detector=detector, head_model=model)
    place = HeadDataset(tmp_path / 'eg3d').label([0, 1])[:, [3, 7, 11]]
    assert (place.norm(dim=1) - cameras.RADIUS).abs().max() < 0.02


def test_a_share_of_the_rotation_goes_to_the_neck(tmp_path: Path, model: HeadModel) -> None:
    """The skull lands where it did without a share, the neck holds half of its rotation; the work folder knows it."""
    detector = make_photos(tmp_path / 'photos', model)

    def run(name: str, share: float) -> tuple[HeadParams, torch.Tensor]:
        out = tmp_path / name
        convert(
            tmp_path / 'photos', out, resolution=64, detector=detector, head_model=model, neck_share=share, workers=0
        )
        dataset = HeadDataset(out)
        params = dataset.head_params([0, 1, 2])
        assert params is not None
        return params, dataset.label([0, 1, 2])

    straight, label = run('straight', 0.0)
    bent, camera = run('bent', 0.5)
    assert (straight.neck == 0).all()
    whole, _ = split_neck(model, straight, label, share=1.0)
    assert whole.neck.norm(dim=1).min() > 0.05
    assert torch.allclose(bent.neck, 0.5 * whole.neck, atol=1e-4)
    seen, before = (project_head(model, p, c)[1] for p, c in ((bent, camera), (straight, label)))
    assert torch.allclose(seen, before, atol=1e-4)

    class Stops(FakeDetector):
        def detect(self, image: np.ndarray) -> list[detect.Face]:
            raise KeyboardInterrupt

    folder, out = tmp_path / 'photos', tmp_path / 'c.zip'
    with pytest.raises(KeyboardInterrupt):
        convert(folder, out, resolution=64, detector=Stops({}), head_model=model, neck_share=0.5)
    with pytest.raises(UserError, match=r'other options \(neck_share was 0\.5, is now 0\.0\).*--restart'):
        convert(folder, out, resolution=64, detector=detector, head_model=model)
    with pytest.raises(UserError, match=r'--neck-share 1\.5: expected 0'):
        convert(folder, out, resolution=64, detector=detector, head_model=model, neck_share=1.5)


@pytest.mark.parametrize('framing', ['eg3d', 'pivot'])
def test_cameras_stand_where_the_framing_says(framing: str) -> None:
    centre = (0.0, 0.0, 0.0) if framing == 'eg3d' else None
    label = cameras.orbit_camera(
        torch.tensor([0.0, 0.6]), torch.tensor([0.0, -0.3]), roll=torch.tensor([0.0, 0.2]), centre=centre
    )
    rotation = cameras.unpack_label(label)[0][:, :3, :3]
    assert torch.allclose(aimed_label(rotation, framing=framing), label, atol=1e-5)


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
    iris = model.template.vertices[model.gaze_vertices]
    assert (iris[:, 1, 0] < iris[:, 0, 0]).all()  # MESH_TO_IRIS counts on the subject's right coming first
    assert (iris[:, 2, 1] > iris[:, 0, 1]).all()
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
    assert (np.median(result.error_relative, axis=1) < 0.05).all()
