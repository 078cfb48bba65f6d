"""Videos to data: decoding, tracking, fitting and smoothing of known heads, faults, continuing."""

from __future__ import annotations

import csv
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from applications.preprocessing import sequence
from applications.preprocessing.align import Crop
from applications.preprocessing.clip import FrameChoice, read_frames
from applications.preprocessing.detect import Face
from applications.preprocessing.fit import project_head
from applications.preprocessing.neck import split_neck
from applications.preprocessing.pool import WorkFolder
from applications.preprocessing.smooth import jitter
from applications.preprocessing.track import Seen, track
from applications.preprocessing.video import VideoOptions, convert_video
from dnnlib import UserError
from tests.cases_preprocessing import FakeDetector, face_in_photo, photo, random_heads
from training import cameras
from training.cameras import camera_angles
from training.dataset import HeadDataset
from training.head import load_head_model
from training.head.model import HeadModel, HeadParams

FFMPEG = pytest.importorskip('imageio_ffmpeg').get_ffmpeg_exe()
BLINKS = (20, 60, 95, 101, 150, 182)
SMALL = VideoOptions(resolution=64)


@pytest.fixture(scope='module')
def model() -> HeadModel:
    return load_head_model('makehuman')


def encode(path: Path, *options: str, count: int = 6, size: str = '64x48') -> Path:
    """A test video made by ffmpeg."""
    source = ['-f', 'lavfi', '-i', f'testsrc=size={size}:rate=10:duration={count / 10}']
    subprocess.run([FFMPEG, '-loglevel', 'error', '-y', *source, *options, str(path)], check=True)
    return path


def driven(model: HeadModel, count: int) -> tuple[HeadParams, Tensor]:
    """A person who talks, blinks, looks around and turns: params and labels [count, ...]."""
    t = torch.arange(count, dtype=torch.float32)
    since = t[:, None] - torch.tensor(BLINKS)
    lids = torch.where(since < 0, 1 + since / 4, 1 - since / 6).clamp(0, 1).amax(dim=1, keepdim=True)
    smile = 0.3 * (1 + torch.sin(t / 25))[:, None]
    expression = lids * (model.named_expression('eyeBlinkLeft').expression)
    expression = expression + lids * model.named_expression('eyeBlinkRight').expression
    for name in ('mouthSmileLeft', 'mouthSmileRight'):
        expression = expression + smile * model.named_expression(name).expression
    jaw = torch.zeros(count, 3)
    jaw[:, 0] = 0.09 * (1 + torch.sin(t / 7))
    eyes = torch.zeros(count, 6)
    eyes[:, 1] = eyes[:, 4] = 0.2 * torch.sin(t / 18)
    eyes[:, 0] = eyes[:, 3] = 0.1 * torch.cos(t / 23)
    person, _ = random_heads(model, 1, seed=5)
    params = model.neutral(count).replace(
        identity=person.identity.expand(count, -1).clone(), expression=expression, jaw=jaw, eyes=eyes
    )
    label = cameras.orbit_camera(0.35 * torch.sin(t / 20), 0.1 * torch.cos(t / 30), roll=0.1 * torch.sin(t / 27))
    return params, label


def noisy_faces(model: HeadModel, params: HeadParams, label: Tensor, *, pixels: float) -> list[Face]:
    """What a detector with noise (pixels at 512) sees of heads in a moving crop of a video."""
    landmarks, iris = project_head(model, params, label)
    rng = np.random.default_rng(0)
    faces = []
    for i in range(len(params)):
        crop = Crop(400.0 + 60 * np.sin(i / 30), 300.0 + 20 * np.cos(i / 22), 512.0)
        points = crop.to_photo(landmarks[i].double().numpy()) + pixels * rng.standard_normal((68, 2))
        seen = crop.to_photo(iris[i].double().numpy()) + pixels * rng.standard_normal((2, 5, 2))
        faces.append(Face(landmarks=points, iris=seen))
    return faces


def lid_gap(model: HeadModel, params: HeadParams) -> np.ndarray:
    """Mean distance of the lids [T], metres."""
    points = model.forward(params).landmarks
    return (points[:, [37, 38, 43, 44]] - points[:, [41, 40, 47, 46]]).norm(dim=-1).mean(dim=1).numpy()


@pytest.mark.slow
def test_smoothing_halves_the_jitter_and_keeps_the_blinks(model: HeadModel) -> None:
    """200 frames with one pixel of noise: what is required of every kind of parameter."""
    count = 200
    params, label = driven(model, count)
    faces = noisy_faces(model, params, label, pixels=1.0)
    clip = sequence.Clip(person=0, rows=tuple(range(count)), faces=tuple(faces))
    identity = sequence.fit_identity(model, sequence.identity_faces([clip]), calibration=None, framing='pivot')
    blocks = [faces[s : s + sequence.BLOCK] for s in range(0, count, sequence.BLOCK)]
    raw = sequence.Fitted.join(
        [sequence.fit_block(model, block, identity, calibration=None, framing='pivot') for block in blocks]
    )
    unsmoothed, smoothed = (
        sequence.smooth_run(model, faces, raw, strength=strength, framing='pivot', calibration=None)
        for strength in (0.0, 1.0)
    )
    assert torch.equal(smoothed.params.identity, raw.params.identity)

    def signals(fit: sequence.Fitted) -> dict[str, np.ndarray]:
        rotation = fit.label[:, :16].reshape(-1, 4, 4)[:, :3, :3].reshape(-1, 9)
        return {
            'camera': rotation.numpy(),
            'jaw': fit.params.jaw.numpy(),
            'expression': fit.params.expression.numpy(),
            'gaze': fit.params.eyes.numpy(),
        }

    for name, before in signals(unsmoothed).items():
        ratio = jitter(signals(smoothed)[name]) / jitter(before)
        print(f'{name}: jitter {ratio:.2f} of the unsmoothed')
        assert ratio < 0.5, name
    depths = []
    for fit in (unsmoothed, smoothed):
        gap = lid_gap(model, fit.params)
        depths.append(np.mean([np.median(gap) - gap[at - 1 : at + 2].min() for at in BLINKS]))
    print(f'blinks keep {depths[1] / depths[0]:.2f} of their depth')
    assert depths[1] > 0.9 * depths[0]
    turned = np.degrees(np.abs(camera_angles(smoothed.label) - camera_angles(label)))
    print('camera angles off by', turned.mean(axis=0), 'degrees')
    assert (turned.mean(axis=0) < 2.0).all()
    away = smoothed.label[:, [3, 7, 11]] - torch.tensor(cameras.PIVOT)
    assert torch.allclose(away.norm(dim=1), torch.tensor(cameras.RADIUS), atol=1e-5)  # exactly where it should stand


# Decoding.


def test_frames_of_a_video(tmp_path: Path) -> None:
    path = encode(tmp_path / 'zoë.mp4', '-pix_fmt', 'yuv420p')
    frames = list(read_frames(path))
    assert [frame.number for frame in frames] == list(range(6))
    assert frames[0].image is not None
    assert frames[0].image.shape == (48, 64, 3)
    chosen = list(read_frames(path, FrameChoice(every=2, start=1, max_frames=2)))
    assert [frame.number for frame in chosen] == [1, 3]
    assert chosen[0].image is not None
    assert frames[1].image is not None
    assert np.array_equal(chosen[0].image, frames[1].image)
    assert [frame.number for frame in read_frames(path, FrameChoice(end=3))] == [0, 1, 2]


def test_odd_sizes_and_turned_videos(tmp_path: Path) -> None:
    odd = encode(tmp_path / 'odd.mkv', '-c:v', 'ffv1', size='63x47')
    image = next(iter(read_frames(odd))).image
    assert image is not None
    assert image.shape == (47, 63, 3)
    plain = encode(tmp_path / 'plain.mp4', '-pix_fmt', 'yuv420p')
    command = [FFMPEG, '-loglevel', 'error', '-display_rotation', '90', '-i', str(plain), '-c', 'copy']
    subprocess.run([*command, str(tmp_path / 'turned.mp4')], check=True)
    image = next(iter(read_frames(tmp_path / 'turned.mp4'))).image
    assert image is not None
    assert image.shape == (64, 48, 3)


def test_sources_that_are_no_videos(tmp_path: Path) -> None:
    (tmp_path / 'empty.mp4').write_bytes(b'')
    (tmp_path / 'text.mp4').write_text('no video at all')
    command = [FFMPEG, '-loglevel', 'error', '-f', 'lavfi', '-i', 'sine=duration=0.2', str(tmp_path / 'sound.wav')]
    subprocess.run(command, check=True)
    (tmp_path / 'folder').mkdir()
    for name, message in {
        'absent.mp4': 'no such video',
        'empty.mp4': r'empty file \(0 bytes\)',
        'text.mp4': 'no frame could be read',
        'sound.wav': 'has no video stream',
        'folder': 'holds no picture',
    }.items():
        with pytest.raises(UserError, match=message):
            list(read_frames(tmp_path / name))
    video = encode(tmp_path / 'short.mp4', '-pix_fmt', 'yuv420p')
    options = VideoOptions(resolution=64, frames=FrameChoice(start=100))
    with pytest.raises(UserError, match='no frame from number 100 on'):
        convert_video(video, tmp_path / 'out.zip', options=options, detector=FakeDetector({}))
    assert not (tmp_path / 'out-work').exists()
    for choice in ({'every': 0}, {'start': 3, 'end': 3}, {'max_frames': 0}):
        with pytest.raises(UserError, match='expected'):
            FrameChoice(**choice)


# Tracking.


def face_at(column: float, *, size: float = 100.0) -> Face:
    grid = np.stack([np.linspace(0, size, 68), np.linspace(0, size, 68)], axis=1)
    return Face(landmarks=grid + [column, 50.0])


def seen(number: int, *faces: Face, grey: float = 0.5) -> Seen:
    picture = np.full((16, 16), grey, dtype=np.float32)
    return Seen(number=number, name=f'frame {number}', size=(300, 600), faces=faces, thumbnail=picture)


def test_the_same_face_is_followed_not_the_largest() -> None:
    frames = [seen(0, face_at(0.0))]
    frames += [seen(i, face_at(300.0, size=180.0), face_at(5.0 * i)) for i in range(1, 5)]
    clips, rejected = track(frames)
    assert not rejected
    assert [clip.rows for clip in clips] == [(0, 1, 2, 3, 4)]
    assert all(face.size == 100.0 for face in clips[0].faces)
    clips, rejected = track(frames, several='reject')
    assert [clip.rows for clip in clips] == [(0,)]
    assert {reason for _, reason in rejected} == {'several faces (2)'}


def test_cuts_jumps_and_lost_faces_begin_new_clips() -> None:
    frames = [seen(0, face_at(0.0)), seen(1, face_at(1.0)), seen(2), seen(3, face_at(2.0))]  # lost and back
    frames += [seen(4, face_at(400.0)), seen(5, face_at(401.0))]  # a jump
    frames += [seen(6, face_at(402.0), grey=0.9)]  # a cut to someone at the same place
    clips, rejected = track(frames)
    assert [clip.rows for clip in clips] == [(0, 1), (3,), (4, 5), (6,)]
    assert [clip.person for clip in clips] == [0, 0, 1, 2]
    assert rejected == [(2, 'no face found')]


# The whole conversion.


def make_frames(folder: Path, model: HeadModel, count: int) -> FakeDetector:
    """A folder of frames of one moving head; frame 3 shows no face and frame 5 is broken."""
    folder.mkdir(parents=True)
    params, label = driven(model, count)
    faces = {}
    for i in range(count):
        photo(i + 1).save(folder / f'{i:03d}.png')
        if i != 3:
            crop = Crop(160.0 + i, 140.0, 200.0)
            faces[i + 1] = [face_in_photo(model, params[[i]], label[[i]], crop=crop)]
    (folder / '005.png').write_bytes(b'')
    return FakeDetector(faces)


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding='utf-8') as handle:
        return list(csv.DictReader(handle))


@pytest.mark.slow
def test_frames_become_clips_whatever_the_workers(tmp_path: Path, model: HeadModel) -> None:
    detector = make_frames(tmp_path / 'frames', model, 10)
    out = tmp_path / 'one.zip'
    result = convert_video(tmp_path / 'frames', out, options=SMALL, detector=detector, head_model=model)
    assert dict(result.rejected) == {'003.png': 'no face found', '005.png': 'empty file (0 bytes)'}
    assert (result.frames, result.clips, len(result.error_pixels)) == (10, 3, 8)
    assert np.median(result.error_pixels) < 0.3
    assert sorted(path.name for path in tmp_path.iterdir()) == ['frames', 'one-report', 'one.zip']
    rows = read_rows(result.folder / 'fits.csv')
    assert [(row['clip'], row['frame']) for row in rows] == [
        ('0', '0'), ('0', '1'), ('0', '2'), ('1', '4'), ('2', '6'), ('2', '7'), ('2', '8'), ('2', '9'),
    ]  # fmt: skip
    dataset = HeadDataset(out)
    heads = dataset.head_params(list(range(8)))
    assert heads is not None
    assert (heads.identity == heads.identity[0]).all()
    label = dataset.label(list(range(8)))
    assert torch.allclose(label[:, [3, 7, 11]].norm(dim=1), torch.tensor(cameras.RADIUS), atol=1e-5)
    at, _ = cameras.project(torch.tensor(cameras.PIVOT).expand(8, 1, 3), label)
    assert torch.allclose(at, torch.tensor(0.5), atol=1e-5)
    convert_video(
        tmp_path / 'frames', tmp_path / 'two.zip', options=SMALL, detector=detector, head_model=model, workers=2
    )
    assert out.read_bytes() == (tmp_path / 'two.zip').read_bytes()


def test_a_share_of_the_rotation_goes_to_the_neck(tmp_path: Path, model: HeadModel) -> None:
    detector = make_frames(tmp_path / 'frames', model, 3)
    datasets = []
    for name, share in (('straight', 0.0), ('bent', 0.6)):
        options = VideoOptions(resolution=64, smooth=0.0, neck_share=share)
        convert_video(tmp_path / 'frames', tmp_path / name, options=options, detector=detector, head_model=model)
        dataset = HeadDataset(tmp_path / name)
        head = dataset.head_params([0, 1, 2])
        assert head is not None
        datasets.append((head, dataset.label([0, 1, 2])))
    (straight, label), (bent, camera) = datasets
    wanted, turned = split_neck(model, straight, label, share=0.6)
    assert wanted.neck.norm(dim=1).min() > 0.01
    assert torch.allclose(bent.neck, wanted.neck, atol=1e-5)
    assert torch.allclose(camera, turned, atol=1e-5)
    with pytest.raises(UserError, match=r'--neck-share -0\.1: expected 0'):
        VideoOptions(neck_share=-0.1)


def test_no_face_in_any_frame(tmp_path: Path, model: HeadModel) -> None:
    (tmp_path / 'frames').mkdir()
    photo(1).save(tmp_path / 'frames' / 'a.png')
    with pytest.raises(UserError, match=r'no usable face in 1 frame\(s\): 1 no face found'):
        convert_video(tmp_path / 'frames', tmp_path / 'out.zip', detector=FakeDetector({}), head_model=model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['frames']


class FailingDetector(FakeDetector):
    """Stops the program at the frame whose key is `at`, the first time."""

    def __init__(self, inner: FakeDetector, *, at: int) -> None:
        super().__init__(inner.faces)
        self.at, self.calls = at, 0

    def detect(self, image: np.ndarray) -> list[Face]:
        self.calls += 1
        if int(image[0, 0, 0]) == self.at:
            self.at = -1
            raise KeyboardInterrupt
        return super().detect(image)


@pytest.mark.slow
def test_an_interrupted_run_goes_on(tmp_path: Path, model: HeadModel, capsys: pytest.CaptureFixture[str]) -> None:
    detector = FailingDetector(make_frames(tmp_path / 'frames', model, 10), at=8)
    out = tmp_path / 'out.zip'

    def run() -> None:
        convert_video(tmp_path / 'frames', out, options=SMALL, detector=detector, head_model=model)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert not out.exists()
    assert (tmp_path / 'out-work').is_dir()
    with pytest.raises(UserError, match=r'other options \(resolution was 64, is now 128\).*--restart'):
        convert_video(
            tmp_path / 'frames', out, options=VideoOptions(resolution=128), detector=detector, head_model=model
        )
    run()
    assert detector.calls == 10  # nine readable frames, one of them twice: none that was done is done again
    assert 'continuing' in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ['frames', 'out-report', 'out.zip']
    whole = out.read_bytes()
    convert_video(tmp_path / 'frames', tmp_path / 'b.zip', options=SMALL, detector=detector, head_model=model)
    assert whole == (tmp_path / 'b.zip').read_bytes()


def test_work_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work' / 'mine.txt').write_text('mine')
    with pytest.raises(UserError, match='not the work folder of an earlier run'):
        WorkFolder(tmp_path / 'work', {'a': 1}, restart=True)
    assert (tmp_path / 'work' / 'mine.txt').is_file()
    work = WorkFolder(tmp_path / 'new', {'a': 1})
    work.save('x', 5)
    assert WorkFolder(tmp_path / 'new', {'a': 1}).load('x') == 5
    assert WorkFolder(tmp_path / 'new', {'a': 2}, restart=True).load('x') is None


@pytest.mark.slow
def test_a_killed_command_continues(tmp_path: Path) -> None:
    """SIGKILL in the middle of from-photos; the second run ends with what the first would have made."""
    if importlib.util.find_spec('mediapipe') is None:
        pytest.skip('mediapipe is not installed')
    folder = os.environ.get('NEXT3D_PHOTOS', '')
    if not os.path.isdir(folder):
        pytest.skip('set NEXT3D_PHOTOS to a folder of portraits')
    command = [sys.executable, 'dataset_tool.py', 'from-photos', f'--source={folder}', '--resolution=64']
    command += [f'--out={tmp_path / "out.zip"}', '--workers=1']
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob('out-work/*.done')) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob('out-work/*.done'))
    assert not (tmp_path / 'out.zip').exists()
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert 'continuing' in result.stdout
    assert (tmp_path / 'out.zip').is_file()
    assert not (tmp_path / 'out-work').exists()
    Image.open(tmp_path / 'out-report' / 'sheet.png').load()


def test_kept_results_run_nothing(tmp_path: Path) -> None:
    """A result that names a function is refused, not called; records with tensors and arrays come back."""
    work = WorkFolder(tmp_path / 'work', {})
    face = Face(landmarks=np.arange(136.0).reshape(68, 2), blendshapes={'jawOpen': 0.5})
    work.save('good', (face, torch.arange(3.0)))
    again, tensor = work.load('good')
    assert np.array_equal(again.landmarks, face.landmarks)
    assert torch.equal(tensor, torch.arange(3.0))

    class Bomb:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / 'ran',)

    work.save('bad', Bomb())
    with pytest.raises(UserError, match='not readable'):
        work.load('bad')
    assert not (tmp_path / 'ran').exists()

    work._file('huge').write_bytes(b'\x80\x04\x8e' + (2**44).to_bytes(8, 'little'))  # a string of 16 TiB
    with pytest.raises(UserError, match='claims more memory'):
        work.load('huge')
