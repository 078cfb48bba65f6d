"""Driven by a video: what passes and what never does, gaps, rates, sound, pictures beside it, and bad videos."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

import gen_videos
from applications import tracking
from applications.heads import read_params
from applications.mp4 import Sound, write_mp4
from applications.preprocessing import tasks
from applications.preprocessing.align import Crop
from applications.preprocessing.clip import video_facts
from applications.preprocessing.detect import Face
from applications.preprocessing.sequence import Fitted
from applications.reenactment import (
    DriverOptions,
    Motion,
    TransferOptions,
    bridges,
    drive,
    relative,
    resting_frames,
    tracked_motion,
)
from applications.samples import CameraRig
from applications.tracking import Track, TrackOptions, read_track, save_track, track_video
from applications.videos import VideoOptions, driver_pictures, make_video
from dnnlib import UserError
from tests.cases_outputs import write_dataset, write_snapshot
from tests.cases_preprocessing import FakeDetector, face_in_photo, photo, random_heads
from torch_utils.rotations import axis_angle_matrix, matrix_axis_angle
from training import cameras
from training.checkpoint import load_generator
from training.head.makehuman import embedded_head
from training.head.model import HeadParams

FFMPEG = pytest.importorskip('imageio_ffmpeg').get_ffmpeg_exe()
HEAD = embedded_head()
RIG = CameraRig()
OWN = 0.3 * torch.randn(1, HEAD.num_identity, generator=torch.Generator().manual_seed(8))
ALL = torch.tensor([True] * 5)


@pytest.fixture(scope='module')
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_snapshot(tmp_path_factory.mktemp('network') / 'network-snapshot-000004.pkl')


def made_track(found: Tensor = ALL, *, seed: int = 1, fps: float = 25.0) -> Track:
    """A person with random motion; frames that are not found hold zeros."""
    params, label = random_heads(HEAD, len(found), seed=seed)
    params = params.replace(identity=params.identity[:1].expand(len(found), -1))
    turn = cameras.unpack_label(label)[0][:, :3, :3] @ torch.diag(torch.tensor(tracking.FRONT))
    return Track(
        params=params.map(lambda t: t * found[:, None]),
        camera=matrix_axis_angle(turn) * found[:, None],
        found=found,
        person=found.long() - 1,
        fps=fps,
    )


def motion_of(track: Track, **options: Any) -> Motion:
    return tracked_motion(track, HEAD, identity=OWN, options=TransferOptions(**options), rig=RIG)


def equal(first: HeadParams, second: HeadParams) -> bool:
    return all(torch.equal(value, second.as_dict()[name]) for name, value in first.as_dict().items())


# What passes.


@pytest.mark.parametrize('transfer', ['relative', 'absolute'])
def test_the_drivers_identity_never_passes(transfer: str) -> None:
    track = made_track()
    other = dataclasses.replace(track, params=track.params.replace(identity=track.params.identity + 2.0))
    first, second = (motion_of(t, transfer=transfer, camera=True, neck_share=0.5) for t in (track, other))
    assert first.labels is not None
    assert second.labels is not None
    assert equal(first.params, second.params)
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.params.identity, OWN.expand(5, -1))
    assert not first.params.translation.any()


def test_absolute_transfer_gives_the_drivers_values() -> None:
    track = made_track()
    motion = motion_of(track, transfer='absolute', camera=True)
    for name in ('expression', 'jaw', 'eyes'):
        assert torch.allclose(getattr(motion.params, name), getattr(track.params, name), atol=1e-5)
    assert motion.labels is not None
    angles = cameras.camera_angles(motion.labels)
    _, label = random_heads(HEAD, 5, seed=1)
    assert np.allclose(angles, cameras.camera_angles(label), atol=1e-4)
    assert motion.params.neck.abs().max() < 1e-5  # the camera takes all
    eg3d = tracked_motion(
        track, HEAD, identity=OWN, options=TransferOptions(camera=True), rig=CameraRig(centre=(0.0, 0.0, 0.0))
    )
    assert eg3d.labels is not None
    assert torch.allclose(eg3d.labels[:, [3, 7, 11]].norm(dim=1), torch.tensor(cameras.RADIUS), atol=1e-5)


def test_without_a_camera_the_neck_turns() -> None:
    track = made_track()
    motion = motion_of(track, transfer='absolute')
    assert motion.labels is None
    # Seen from the front, the skull lies as the driver's does under the driver's camera.
    camera = axis_angle_matrix(track.camera)
    assert torch.allclose(axis_angle_matrix(motion.params.neck).transpose(1, 2), camera, atol=1e-4)


def test_relative_transfer_is_the_change_since_rest() -> None:
    track = made_track()
    motion = motion_of(track, transfer='relative', camera=True, neutral_frame=0)
    rest, driven = track.params[[0]], motion.params
    assert torch.allclose(driven.expression, track.params.expression - rest.expression, atol=1e-6)
    for name in ('jaw', 'neck', 'eyes'):
        assert getattr(driven, name)[0].abs().max() < 1e-5, name  # the avatar's own resting face
    assert torch.allclose(driven.jaw[:, 0], (track.params.jaw - rest.jaw)[:, 0], atol=1e-6)
    assert motion.labels is not None
    assert torch.allclose(motion.labels[[0]], RIG.front(), atol=1e-5)
    later = motion_of(track, neutral_frame=3)
    assert torch.allclose(
        later.params.expression[0], track.params.expression[0] - track.params.expression[3], atol=1e-6
    )
    # A constant error of the driver's fit does not pass.
    biased = dataclasses.replace(track, params=track.params.replace(expression=track.params.expression + 0.7))
    shown, expected = (motion_of(t, neutral_frame=0).params.expression for t in (biased, track))
    assert torch.allclose(shown, expected, atol=1e-5)


def test_rotations_are_changed_in_the_order_of_rotations() -> None:
    rng = torch.Generator().manual_seed(3)
    driver, rest, own = (HEAD.neutral(n).map(lambda t: 0.6 * torch.randn(t.shape, generator=rng)) for n in (3, 1, 1))
    moved = relative(driver, rest=rest, own=own)
    expected = axis_angle_matrix(driver.jaw) @ axis_angle_matrix(rest.jaw).transpose(1, 2) @ axis_angle_matrix(own.jaw)
    assert torch.allclose(axis_angle_matrix(moved.jaw), expected, atol=1e-5)
    assert torch.equal(moved.identity, own.identity.expand(3, -1))
    assert torch.equal(moved.rotation, own.rotation.expand(3, -1))


# Gaps and rates.


def test_gaps_are_bridged_and_ends_held() -> None:
    found = torch.tensor([False, True, False, False, True, False])
    lower, upper, share = bridges(found)
    assert lower.tolist() == [1, 1, 1, 1, 4, 4]
    assert upper.tolist() == [1, 1, 4, 4, 4, 4]
    assert torch.allclose(share, torch.tensor([0, 0, 1 / 3, 2 / 3, 0, 0]))
    track = made_track(found)
    motion = motion_of(track, transfer='absolute', camera=True)
    expression = track.params.expression
    assert len(motion.params) == 6
    assert torch.allclose(motion.params.expression[0], expression[1])
    assert torch.allclose(motion.params.expression[2], (2 * expression[1] + expression[4]) / 3, atol=1e-5)
    assert torch.allclose(motion.params.expression[5], expression[4])
    assert motion.labels is not None
    assert torch.allclose(motion.labels[5], motion.labels[4], atol=1e-6)
    with pytest.raises(UserError, match='--neutral-frame 2: no face was found in it'):
        motion_of(track, neutral_frame=2)
    with pytest.raises(UserError, match='--neutral-frame 9: the driver has frames 0 to 5'):
        motion_of(track, neutral_frame=9)


def test_rest_is_found_for_each_person() -> None:
    track = made_track()
    calm = track.params.expression.clone()
    calm[[1, 3]] = 0.0
    params = track.params.replace(expression=calm, jaw=track.params.jaw * torch.tensor([1, 0, 1, 0, 1.0])[:, None])
    camera = torch.tensor([[0, 0.1, 0], [0, 0.1, 0], [0, 0.6, 0], [0, 0.9, 0], [0, 0.7, 0]])
    track = dataclasses.replace(track, params=params, camera=camera, person=torch.tensor([0, 0, 1, 1, 1]))
    driver = track.params.replace(identity=OWN.expand(5, -1))
    face, pose = resting_frames(track, driver, HEAD)
    assert face.tolist() == [1, 1, 3, 3, 3]
    assert pose.tolist() == [0, 0, 4, 4, 4]
    assert [rows.tolist() for rows in resting_frames(track, driver, HEAD, chosen=2)] == [
        [1, 1, 2, 2, 2],
        [0, 0, 2, 2, 2],
    ]
    driven = motion_of(track).params
    assert driven.expression[[1, 3]].abs().max() < 1e-6
    assert driven.neck[[0, 4]].abs().max() < 1e-5
    assert driven.neck[[2, 3]].norm(dim=1).min() > 0.05


def test_another_rate_keeps_the_duration(tmp_path: Path) -> None:
    track = made_track(torch.ones(10, dtype=torch.bool), fps=10.0)
    save_track(tmp_path / 'track.npz', track)
    found = read_track(tmp_path / 'track.npz', HEAD)
    assert found is not None
    assert equal(found.params, track.params)
    lines: list[str] = []
    motions = {}
    for fps in (None, 10.0, 20.0):
        options = DriverOptions(source=str(tmp_path / 'track.npz'), fps=fps)
        motions[fps] = drive(options, HEAD, identity=OWN, rig=RIG, beside='x', report=lines.append)
    assert motions[None].fps == motions[10.0].fps == 10.0
    assert equal(motions[None].params, motions[10.0].params)
    assert len(motions[20.0].params) == 20
    assert motions[20.0].rows is not None
    assert motions[20.0].rows[[0, 10, 19]].tolist() == [0, 5, 9]
    assert lines[0].endswith('10 frames at 10 a second, a face in every one')


def test_relative_transfer_of_exact_parameters(tmp_path: Path) -> None:
    options = DriverOptions(
        source='talk', frames=6, fps=4.0, transfer=TransferOptions(transfer='relative', neutral_frame=3)
    )
    motion = drive(options, HEAD, identity=OWN, rig=RIG, beside='x', report=print)
    assert motion.params.jaw[3].abs().max() < 1e-6
    assert motion.params.jaw[0].abs().max() > 1e-3


# Whole videos.


def make_driver(folder: Path, *, sound: bool, delay: float = 0.0) -> tuple[Path, FakeDetector]:
    """A lossless video of 5 frames at 8 a second with a sound of 0.4 s; frame 2 shows no face."""
    params, label = random_heads(HEAD, 5, seed=2)
    faces = {}
    for index in range(5):
        photo(10 + index, width=121, height=91).save(folder / f'{index}.png')
        if index != 2:
            crop = Crop(60.0, 45.0, 80.0)
            faces[10 + index] = [face_in_photo(HEAD, params[[0]], label[[index]], crop=crop)]
    command = [FFMPEG, '-loglevel', 'error', '-y', '-itsoffset', str(delay), '-framerate', '8']
    command += ['-i', str(folder / '%d.png')]
    if sound:
        command += ['-f', 'lavfi', '-i', 'sine=duration=0.4', '-c:a', 'pcm_s16le']
    path = folder / 'driver.mkv'
    subprocess.run([*command, '-c:v', 'ffv1', '-pix_fmt', 'bgr0', str(path)], check=True)
    return path, FakeDetector(faces)


def facts(path: Path) -> str:
    """ffmpeg's description of a file, and its number of frames."""
    command = [FFMPEG, '-hide_banner', '-i', str(path), '-map', '0:v', '-f', 'null', '-']
    return subprocess.run(command, capture_output=True, check=True).stderr.decode()


def fake_fit(context: object, item: tuple[tuple[Face, ...], Tensor]) -> Fitted:
    """Heads whose jaw opens by where the face lies, instead of fits (those have tests of their own)."""
    faces, identity = item
    count = len(faces)
    jaw = torch.tensor([[0.01 * float(face.landmarks.mean()) % 0.3, 0.0, 0.0] for face in faces])
    return Fitted(
        crops=(Crop(60.0, 45.0, 80.0),) * count,
        params=HEAD.neutral(count).replace(identity=identity.expand(count, -1), jaw=jaw),
        label=RIG.front().expand(count, -1),
        landmarks=torch.zeros(count, 68, 2),
        error=torch.zeros(count, 68),
    )


@pytest.fixture
def quick_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, 'fit_identity', lambda context, faces: torch.ones(1, HEAD.num_identity))
    monkeypatch.setattr(tasks, 'fit_block', fake_fit)


@pytest.mark.usefixtures('quick_fits')
def test_a_driven_video_keeps_frames_rate_and_sound(tmp_path: Path, network: Path) -> None:
    driver, detector = make_driver(tmp_path, sound=True)
    assert video_facts(driver).fps == 8.0
    loaded = load_generator(network)
    lines: list[str] = []
    kept = tmp_path / 'kept.npz'
    options = VideoOptions(
        seeds=(0,), output=str(tmp_path / 'out.mp4'), columns=1, rows=1, motions=('still',), scale=2,
        driver=DriverOptions(source=str(driver), track=TrackOptions(detector=detector, kept=str(kept))),
        with_driver=True, with_template=True,
    )  # fmt: skip
    assert make_video(loaded, options, progress=lambda done, total: None, report=lines.append) == 5
    assert lines == [f'{driver}: 5 frames at 8 a second, 1 filled in (1 no face found)']
    text = facts(tmp_path / 'out.mp4')
    assert '8 fps' in text
    assert re.search(r'frame=\s*5 ', text)
    assert 'Audio: aac' in text
    assert f' {43 + 2 * 32 + 1}x32' in text  # driver, cell and template, and a column to make it even
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != '.png') == [
        'driver.mkv', 'kept.npz', 'out.mp4',
    ]  # fmt: skip
    # The second time nothing is tracked: a detector that knows no face changes nothing.
    first = read_track(kept, HEAD)
    again = track_video(
        driver, HEAD, TrackOptions(detector=FakeDetector({}), kept=str(kept)), beside='x', report=lines.append
    )
    assert first is not None
    assert equal(first.params, again.params)
    assert 'used again' in lines[-1]
    assert first.found.tolist() == [True, True, False, True, True]
    # The same parameters drive without the video, and another video is tracked anew.
    npz = drive(DriverOptions(source=str(kept)), HEAD, identity=OWN, rig=RIG, beside='x', report=lines.append)
    assert npz.fps == 8.0
    assert len(npz.params) == 5
    assert read_track(kept, HEAD, content='of another') is None
    assert equal(read_params(kept, HEAD), first.params)


def test_sound_stays_in_step_with_late_pictures(tmp_path: Path) -> None:
    driver, _ = make_driver(tmp_path, sound=True, delay=0.5)
    assert video_facts(driver).delay == pytest.approx(0.5, abs=0.01)
    pictures = [np.full((16, 16, 3), 40 * k, np.uint8) for k in range(5)]
    write_mp4(tmp_path / 'out.mp4', pictures, fps=8, sound=Sound(source=driver, delay=0.5, seconds=5 / 8))
    written = video_facts(tmp_path / 'out.mp4')
    assert written.sound
    assert written.fps == 8.0
    assert written.delay == pytest.approx(0.5, abs=0.01)
    assert re.search(r'frame=\s*5 ', facts(tmp_path / 'out.mp4'))  # the sound is over before the pictures
    write_mp4(tmp_path / 'short.mp4', pictures[:2], fps=8, sound=Sound(source=driver, seconds=0.25))
    assert 'Duration: 00:00:00.2' in facts(tmp_path / 'short.mp4')  # sound beyond the pictures is cut
    silent = tmp_path / 'silent'
    silent.mkdir()
    driver, _ = make_driver(silent, sound=False)
    assert not video_facts(driver).sound


def test_pictures_of_the_driver(tmp_path: Path) -> None:
    for index in range(4):
        Image.fromarray(np.full((20, 31, 3), 50 * index, np.uint8)).save(tmp_path / f'{index}.png')
    (tmp_path / '2.png').write_bytes(b'')
    shown = list(driver_pictures(str(tmp_path), torch.tensor([0, 0, 1, 2, 3]), height=40))
    assert {picture.shape for picture in shown} == {(40, 62, 3)}
    assert [int(picture.mean()) for picture in shown] == [0, 0, 50, 50, 150]


def test_no_face_in_the_whole_video(tmp_path: Path) -> None:
    driver, _ = make_driver(tmp_path, sound=False)
    with pytest.raises(UserError, match=r'no usable face in 5 frame\(s\): 5 no face found'):
        track_video(
            driver, HEAD, TrackOptions(detector=FakeDetector({})), beside=tmp_path / 'out.mp4', report=lambda line: None
        )
    assert not list(tmp_path.glob('*tracking*'))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(gen_videos.main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['--drive=absent.mp4'], '--drive absent.mp4: no such video'),
        (['--drive=empty.mp4'], '--drive empty.mp4: empty file (0 bytes)'),
        (['--drive=text.mp4'], '--drive text.mp4: no frame could be read'),
        (['--drive=sound.mp4'], '--drive sound.mp4: has no video stream'),
        (['--drive=folder'], '--drive folder: holds no picture'),
        (['--drive=text.xyz'], "--drive text.xyz: unknown format '.xyz'; expected a video (.mp4"),
        (['--drive=driver.mkv', '--output=driver.mkv'], 'driver.mkv: is the driving video itself'),
        (['--drive=talk', '--with-driver'], '--with-driver: only a video given to --drive'),
        (['--drive=talk', '--drive-camera'], '--drive-camera: talk has no camera'),
        (['--drive=talk', '--save-params=a.npz'], '--save-params: belongs to a video'),
        (['--drive=talk', '--transfer=relative', '--neutral-frame=99'], '--neutral-frame 99: the driver has frames 0'),
        (['--drive=driver.mkv', '--neck-share=2'], '--neck-share 2: expected 0'),
        (['--drive=driver.mkv', '--landmarker=absent.task'], '--landmarker absent.task: no such file'),
        (['--drive=driver.mkv', '--output=text.xyz/a.mp4'], 'text.xyz: '),
        (['--drive=driver.mkv', '--save-params=text.xyz/a.npz'], 'text.xyz: '),
        (['--drive=driver.mkv', '--save-params=text.mp4'], '--save-params text.mp4: is there and holds no tracking'),
    ],
    ids=lambda value: None if isinstance(value, str) else ' '.join(value),
)
def test_mistakes(
    tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    if '--landmarker' in expected and importlib.util.find_spec('mediapipe') is None:
        pytest.skip('mediapipe is not installed, which is said first')
    monkeypatch.chdir(tmp_path)
    for name in ('text.mp4', 'text.xyz'):
        Path(name).write_text('no video')
    Path('empty.mp4').write_bytes(b'')
    Path('folder').mkdir()
    if 'sound.mp4' in arguments[0]:
        command = [FFMPEG, '-loglevel', 'error', '-f', 'lavfi', '-i', 'sine=duration=0.2', 'sound.mp4']
        subprocess.run(command, check=True)
    if 'driver.mkv' in arguments[0]:
        make_driver(tmp_path, sound=False)
    before = sorted(path.name for path in tmp_path.iterdir())
    output = [] if any(argument.startswith('--output') for argument in arguments) else ['--output=a.mp4']
    result = invoke('--network', network, '--frames=2', *output, *arguments)
    assert result.exit_code == 1, result.output
    (line,) = result.output.strip().splitlines()
    assert line.startswith('Error: ')
    assert expected in line
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_dataset_folder_is_no_folder_of_frames(tmp_path: Path, network: Path) -> None:
    write_dataset(tmp_path / 'data', count=2)
    result = invoke('--network', network, '--output', tmp_path / 'a.mp4', '--drive', tmp_path / 'data', '--frames=3')
    assert result.exit_code == 0, result.output
