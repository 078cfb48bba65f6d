"""project_avatar.py from pictures to a checkpoint that the other scripts take, and one line for each mistake."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import gen_samples
import gen_videos
import project_avatar
from applications import avatars, images, inversion_inputs
from applications.heads import HeadChoice, choose_head, read_params, save_params
from applications.inversion_inputs import MAX_MEGAPIXELS, choose_face, photo_pictures
from applications.preprocessing.align import Crop
from applications.preprocessing.detect import Face
from applications.preprocessing.fit import Fit
from applications.samples import CameraRig, network_framing
from dnnlib import UserError
from dnnlib.files import sha256_file
from tests.cases_outputs import write_dataset, write_snapshot
from tests.cases_preprocessing import FakeDetector, face_in_photo, photo, random_heads
from training import cameras
from training.avatar import Avatar
from training.checkpoint import load_generator, load_snapshot, save_snapshot
from training.config import preset
from training.dataset import HeadDataset
from training.head.makehuman import embedded_head

HEAD = embedded_head()
STEPS = ['--latent-steps=3', '--tuning-steps=2', '--preview=2']


def invoke(command: click.Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def error_line(result: Result) -> str:
    assert result.exit_code == 1, result.output
    errors = [line for line in result.output.strip().splitlines() if line.startswith('Error: ')]
    assert len(errors) == 1, result.output
    assert 'Traceback' not in result.output
    return errors[0]


@pytest.fixture(scope='module')
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_snapshot(tmp_path_factory.mktemp('network') / 'network-snapshot-000004.pkl')


@pytest.fixture(scope='module')
def faces() -> dict[int, list[Face]]:
    """By the first pixel of a photograph: 1 and 2 the same person, 3 nobody, 4 two people, a small one on the left."""
    params, label = random_heads(HEAD, 3, seed=8)
    params = params.replace(identity=params.identity[:1].expand(3, -1))
    crop = Crop(160.0, 140.0, 200.0)
    one, two, other = (face_in_photo(HEAD, params[[i]], label[[i]], crop=crop) for i in range(3))
    small = face_in_photo(HEAD, params[[2]], label[[2]], crop=Crop(60.0, 140.0, 70.0))
    return {1: [one], 2: [two], 4: [other, small]}


@pytest.fixture
def detector(faces: dict[int, list[Face]], monkeypatch: pytest.MonkeyPatch) -> FakeDetector:
    """Stands in for MediaPipe."""
    fake = FakeDetector(faces)

    @contextlib.contextmanager
    def opened(landmarker: str | None) -> Iterator[FakeDetector]:
        yield fake

    monkeypatch.setattr(avatars, 'MediaPipeDetector', opened)
    return fake


@pytest.fixture(scope='module')
def made(network: Path, faces: dict[int, list[Face]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The folder of an avatar of two photographs, and what was printed."""
    folder = tmp_path_factory.mktemp('avatar')
    for key in (1, 2):
        photo(key).save(folder / f'{key}.png')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(avatars, 'MediaPipeDetector', lambda landmarker: contextlib.nullcontext(FakeDetector(faces)))
        result = invoke(
            project_avatar.main, '--network', network, '--image', folder / '1.png', '--image', folder / '2.png',
            '--outdir', folder / 'out', *STEPS,
        )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder, result


def test_photographs_become_a_checkpoint(made: tuple[Path, Result], network: Path) -> None:
    folder, result = made
    out = folder / 'out'
    expected = {'avatar.pkl', 'avatar.json', 'sheet.png', 'preview.png', 'heads.npz', 'cameras.json', 'pivot.npz'}
    assert {path.name for path in out.iterdir()} == expected
    assert 'framing pivot (not recorded; taken from debug)' in result.output
    assert 'dB at the pivot' in result.output
    with Image.open(out / 'sheet.png') as sheet:
        assert sheet.size == (7 * 128, 5 * 128)  # two pictures, views, depth, expressions
    with Image.open(out / 'preview.png') as preview:
        assert preview.size == (2 * 192, 192)

    base, snapshot = load_snapshot(network), load_snapshot(out / 'avatar.pkl')
    assert snapshot.config == base.config
    assert snapshot.info == base.info
    avatar = snapshot.avatar
    assert avatar is not None
    assert avatar.base == sha256_file(network)
    assert avatar.protocol['config']['latent_steps'] == 3
    assert avatar.protocol['perceptual']['name']
    moved = [k for k, v in snapshot.networks['G_ema'].items() if not torch.equal(v, base.networks['G_ema'][k])]
    assert moved
    assert not [name for name in moved if name.startswith(('mapping.', 'rasterizer.'))]

    params = read_params(out / 'heads.npz', HEAD)
    assert torch.equal(params.identity[0], params.identity[1])  # one person
    torch.testing.assert_close(avatar.identity, params.identity[:1])
    assert not torch.equal(params.expression[0], params.expression[1])
    labels = torch.tensor(json.loads((out / 'cameras.json').read_text()))
    assert cameras.framing_of(labels) == 'pivot'
    results = json.loads((out / 'avatar.json').read_text())['results']
    assert results['phases']['tuning']['steps'] == 2
    assert len(results['psnr_tuned']) == 2


def test_other_scripts_draw_the_person(made: tuple[Path, Result], tmp_path: Path) -> None:
    path = made[0] / 'out' / 'avatar.pkl'
    result = invoke(gen_samples.main, '--network', path, '--outdir', tmp_path / 'own', '--yaws=0.2')
    assert result.exit_code == 0, result.output
    assert {file.name for file in (tmp_path / 'own').iterdir()} == {'avatar.png', 'sheet.png'}
    loaded = load_generator(path)
    assert loaded.avatar is not None
    head = HEAD.forward(HEAD.neutral().replace(identity=loaded.avatar.identity))
    with torch.no_grad():
        planes = loaded.generator.deform(loaded.generator.identity(loaded.avatar.ws), head)
        image = loaded.generator.render(planes, CameraRig().labels(torch.tensor([0.2]), torch.zeros(1))).image
    with Image.open(tmp_path / 'own' / 'avatar.png') as drawn:
        assert np.array_equal(np.asarray(drawn), images.to_array(image[0].clamp(-1, 1)))

    opened = choose_head(HeadChoice(expressions=('jawOpen:0.5',)), loaded)
    unit = HEAD.named_expression('jawOpen', 0.5).replace(identity=loaded.avatar.identity)
    torch.testing.assert_close(opened.vertices, HEAD.forward(unit).vertices)

    result = invoke(gen_samples.main, '--network', path, '--outdir', tmp_path / 'seeds', '--seeds=3', '--yaws=0')
    assert {file.name for file in (tmp_path / 'seeds').iterdir()} == {'seed0003.png', 'sheet.png'}
    for name, options in (('own', []), ('seed', ['--seeds=0'])):
        result = invoke(
            gen_videos.main, '--network', path, '--output', tmp_path / f'{name}.mp4', '--frames=2', '--drive=talk',
            '--scale=1', *options,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
    assert (tmp_path / 'own.mp4').read_bytes() != (tmp_path / 'seed.mp4').read_bytes()


def test_known_labels_need_no_detector(network: Path, tmp_path: Path) -> None:
    """A dataset's item and the same crop with its head and camera give the same avatar, and touch no base file."""
    data = write_dataset(tmp_path / 'data.zip', count=3)
    before = sha256_file(network)
    dataset = HeadDataset(data)
    Image.fromarray(dataset.image(1).transpose(1, 2, 0)).save(tmp_path / 'crop.png')
    params = dataset.head_params([0, 1])
    assert params is not None
    save_params(tmp_path / 'heads.npz', params)
    np.save(tmp_path / 'camera.npy', dataset.label([1]).numpy())
    short: list[object] = ['--network', network, '--latent-steps=1', '--tuning-steps=1', '--preview=0']
    runs: dict[str, list[object]] = {
        'a': ['--data', f'{data}:1'],
        'b': [
            '--image',
            tmp_path / 'crop.png',
            '--head',
            tmp_path / 'heads.npz:1',
            '--camera',
            tmp_path / 'camera.npy',
        ],
    }
    for name, options in runs.items():
        result = invoke(project_avatar.main, *short, *options, '--outdir', tmp_path / name)
        assert result.exit_code == 0, result.output
    first, second = (load_snapshot(tmp_path / name / 'avatar.pkl') for name in runs)
    assert first.avatar is not None
    assert second.avatar is not None
    assert first.avatar.protocol == second.avatar.protocol
    assert torch.equal(first.avatar.ws, second.avatar.ws)
    assert sha256_file(network) == before

    # The same command goes on after the latent; other tuning does too, another latent phase does not.
    (tmp_path / 'a' / 'avatar.pkl').unlink()
    again = invoke(project_avatar.main, *short, *runs['a'], '--outdir', tmp_path / 'a')
    assert 'pivot.npz: the latent of an earlier run' in again.output
    third = load_snapshot(tmp_path / 'a' / 'avatar.pkl')
    assert all(torch.equal(v, third.networks['G_ema'][k]) for k, v in first.networks['G_ema'].items())
    pivot, protocol = tmp_path / 'a' / 'pivot.npz', first.avatar.protocol
    assert avatars.read_pivot(pivot, {**protocol, 'config': {**protocol['config'], 'tuning_steps': 9}}) is not None
    assert avatars.read_pivot(pivot, {**protocol, 'config': {**protocol['config'], 'seed': 9}}) is None
    pivot.write_bytes(pivot.read_bytes()[:99])
    assert avatars.read_pivot(pivot, protocol) is None


# What a checkpoint holds.


def test_an_avatar_is_added_to_a_snapshot_and_nothing_else(network: Path, tmp_path: Path) -> None:
    """The keys of an avatar's file are frozen; a file without one reads as before."""
    base = load_snapshot(network)
    assert base.avatar is None
    generator = load_generator(network).generator
    avatar = Avatar(
        ws=torch.ones(1, generator.num_ws, 16), identity=torch.zeros(1, 64), base='ab', protocol={'seed': 1}
    )
    save_snapshot(tmp_path / 'a.pkl', dataclasses.replace(base, avatar=avatar))
    content, old = (torch.load(path, weights_only=True) for path in (tmp_path / 'a.pkl', network))
    assert set(content) - set(old) == {'avatar'}
    assert {name: type(value).__name__ for name, value in content['avatar'].items()} == {
        'ws': 'Tensor', 'identity': 'Tensor', 'base': 'str', 'protocol': 'str',
    }  # fmt: skip
    loaded = load_generator(tmp_path / 'a.pkl')
    assert loaded.avatar is not None
    assert loaded.avatar.protocol == {'seed': 1}
    other = Avatar(ws=torch.ones(1, 3, 16), identity=torch.zeros(1, 64), base='ab', protocol={})
    save_snapshot(tmp_path / 'b.pkl', dataclasses.replace(base, avatar=other))
    with pytest.raises(UserError, match='b.pkl: damaged: its avatar has a latent'):
        load_generator(tmp_path / 'b.pkl')
    del content['avatar']['base']
    torch.save(content, tmp_path / 'c.pkl')
    with pytest.raises(UserError, match='c.pkl: not a usable snapshot'):
        load_generator(tmp_path / 'c.pkl')
    with pytest.raises(ValueError, match=r'ws: expected \[1, num_ws, w_dim\]'):
        Avatar(ws=torch.ones(2, 3), identity=torch.zeros(1, 64), base='', protocol={})


def test_framing_of_cameras() -> None:
    yaw, pitch = torch.linspace(-0.6, 0.6, 9), torch.linspace(-0.3, 0.3, 9)
    assert cameras.framing_of(cameras.orbit_camera(yaw, pitch)) == 'pivot'
    assert cameras.framing_of(cameras.orbit_camera(yaw, pitch, centre=(0.0, 0.0, 0.0))) == 'eg3d'
    assert cameras.framing_of(cameras.orbit_camera(yaw, pitch, radius=3.5)) == ''
    assert cameras.framing_of(torch.empty(0, 25)) == ''


def test_the_network_says_how_it_wants_photographs() -> None:
    assert network_framing(preset('synth64'), '') == 'pivot'
    assert network_framing(preset('ffhq512-release'), '') == 'eg3d'
    assert network_framing(preset('ffhq512'), 'eg3d') == 'eg3d'
    assert CameraRig.of(preset('ffhq512'), framing='eg3d').centre == (0.0, 0.0, 0.0)
    assert CameraRig.of(preset('ffhq512-release'), framing='pivot').centre is None


# Photographs.


def test_one_of_two_faces(faces: dict[int, list[Face]], tmp_path: Path) -> None:
    photo(4).save(tmp_path / '4.png')

    def columns(face: str) -> float:
        return float(choose_face(tmp_path / '4.png', faces[4], face).landmarks[:, 0].mean())

    assert columns('1') < 110 < columns('2')
    assert columns('largest') == columns('2')
    for face, message in (
        ('only', '4.png: 2 faces; choose by --face=largest, or --face=1 to 2 from the left'),
        ('3', '--face 3: .*4.png has 2; expected only, largest, or a number'),
        ('left', '--face left: '),
    ):
        with pytest.raises(UserError, match=message):
            columns(face)


def test_a_face_that_is_too_small_is_refused(
    faces: dict[int, list[Face]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits of from-photos hold; the fit is given, since it is slow and tested elsewhere."""
    photo(4).save(tmp_path / '4.png')
    fit = Fit(
        params=HEAD.neutral(),
        label=CameraRig().front(),
        landmarks=torch.zeros(1, 68, 2),
        error=torch.zeros(1, 68),
        iris_error=None,
    )
    monkeypatch.setattr(
        inversion_inputs, 'fit_and_crop', lambda model, found, **options: ([Crop(60.0, 140.0, 70.0)], fit)
    )
    with pytest.raises(UserError, match=r'4.png: face too small .*; choose another photograph'):
        photo_pictures([str(tmp_path)], HEAD, FakeDetector(faces), resolution=16, framing='pivot', face='1')


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        ([], '--image, --data: give one of them'),
        (['--image', '1.png', '--data', 'x.zip'], '--image, --data: give one of them'),
        (['--image', '1.png', '--head', 'h.npz'], '--head, --camera: give both or none'),
        (['--image', 'none.png'], '--image none.png: no such file or folder'),
        (['--image', 'empty'], '--image empty: holds no photograph'),
        (['--image', '3.png'], '3.png: no face found'),
        (['--image', '4.png'], '4.png: 2 faces; choose by --face=largest'),
        (['--image', 'cut.png'], 'cut.png: corrupt picture'),
        (['--image', 'text.jpg'], 'text.jpg: not a picture'),
        (['--image', 'huge.png'], f'huge.png: 20000 x 6000 pixels; expected at most {MAX_MEGAPIXELS} megapixels'),
        (['--image', '1.png', '--network', 'state.pkl'], 'expected a next3d-snapshot file, got next3d-training-state'),
        (['--image', '1.png', '--network', 'd_only.pkl'], 'd_only.pkl: G_ema: lacks'),
        (['--image', '1.png', '--network', 'text.jpg'], 'text.jpg: not a snapshot'),
        (['--image', '1.png', '--perceptual', 'lpips:none'], 'lpips:none: no such folder; it must hold'),
        (['--image', '1.png', '--perceptual', 'vgg'], '--perceptual: expected'),
        (['--image', '1.png', '--weight', 'pixels=1'], '--weight pixels=1: expected NAME=X'),
        (['--image', '1.png', '--outdir', 'text.jpg/out'], 'text.jpg/out: Not a directory'),
        (['--data', 'none.zip:1'], 'none.zip: no such dataset'),
        (['--image', '1.png', '--head', 'none.npz', '--camera', 'c.txt'], 'none.npz: No such file'),
        (['--image', '1.png', '--head', 'h.npz', '--camera', 'c.txt'], '1.png: 320 x 280 pixels; with --head'),
    ],
    ids=lambda value: None if isinstance(value, str) else ' '.join(value),
)
def test_mistakes(
    tmp_path: Path,
    network: Path,
    detector: FakeDetector,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for key in (1, 3, 4):
        photo(key).save(f'{key}.png')
    Path('empty').mkdir()
    Path('text.jpg').write_text('no picture')
    Path('cut.png').write_bytes(Path('1.png').read_bytes()[:300])
    if 'huge.png' in arguments:
        Image.new('1', (20000, 6000)).save('huge.png')
    if '--camera' in arguments:
        save_params('h.npz', HEAD.neutral())
        Path('c.txt').write_text(' '.join('1' for _ in range(25)))
    if 'state.pkl' in arguments or 'd_only.pkl' in arguments:
        content = torch.load(network, weights_only=True)
        torch.save({**content, 'format': 'next3d-training-state'}, 'state.pkl')
        torch.save({**content, 'G_ema': {}}, 'd_only.pkl')
    options = ['--network', str(network), '--outdir', 'out', *STEPS, *arguments]
    assert expected in error_line(invoke(project_avatar.main, *options))
    assert not list(tmp_path.glob('**/avatar*'))


def test_a_missing_landmark_model_is_one_line(tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo(1).save(tmp_path / '1.png')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: object())
    result = invoke(
        project_avatar.main, '--network', network, '--image', tmp_path / '1.png', '--outdir', tmp_path / 'out',
        '--landmarker', tmp_path / 'none.task',
    )  # fmt: skip
    assert 'none.task: no such file; give the path of a face_landmarker.task' in error_line(result)


def test_the_base_is_never_overwritten(made: tuple[Path, Result], detector: FakeDetector) -> None:
    folder = made[0]
    path = folder / 'out' / 'avatar.pkl'
    before = sha256_file(path)
    result = invoke(
        project_avatar.main, '--network', path, '--image', folder / '1.png', '--outdir', folder / 'out', *STEPS
    )
    assert '--network is its avatar.pkl; choose another folder' in error_line(result)
    assert sha256_file(path) == before
