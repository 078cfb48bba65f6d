"""Samples, shapes and videos: what the scripts write, what is cached, and one line for each mistake."""

from __future__ import annotations

import struct
import subprocess
import types
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from cases_outputs import random_params, tiny_generator, write_dataset, write_snapshot
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

import gen_samples
import gen_videos
from applications import images, meshes
from applications.heads import HeadChoice, choose_head, save_params
from applications.mp4 import write_mp4
from applications.samples import CameraRig, seed_latents
from applications.videos import LoopedLatents, Scene, StillLatents, orbit_labels, render_scene
from dnnlib import UserError
from training import cameras
from training.checkpoint import load_generator
from training.generator import Generator
from training.head.makehuman import embedded_head
from training.head.model import HeadInput
from training.head.obj import write_obj

HEAD = embedded_head()
RIG = CameraRig()


@pytest.fixture(scope='module')
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_snapshot(tmp_path_factory.mktemp('network') / 'network-snapshot-000004.pkl')


@pytest.fixture(scope='module')
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photo-like items with different expressions and identities."""
    return write_dataset(tmp_path_factory.mktemp('data') / 'photos.zip', count=3)


def invoke(command: click.Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def error_line(result: Result) -> str:
    """The single line that a failed script printed."""
    assert result.exit_code == 1, result.output
    errors = [
        line for line in result.output.strip().splitlines() if not line.startswith('out/')
    ]  # files written before
    assert len(errors) == 1, result.output
    assert errors[0].startswith('Error: ')
    return errors[0]


# Pictures.


def test_uint8_is_the_inverse_of_normalization() -> None:
    values = torch.arange(256, dtype=torch.float32)
    assert torch.equal(images.to_uint8(values / 127.5 - 1), values.byte())
    assert images.to_uint8(torch.tensor([-5.0, 5.0])).tolist() == [0, 255]


def test_grid_places_cells_in_reading_order() -> None:
    cells = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 2, 4)
    picture = images.grid(cells, 3)
    assert picture.shape == (3, 4, 12)
    assert picture[0, ::2, ::4].tolist() == [[0, 1, 2], [3, 4, -1]]


def test_depth_colors_are_monotonic_and_use_the_range() -> None:
    depth = torch.linspace(2.0, 3.0, 64).view(1, 1, 8, 8)
    brightness = images.depth_colors(depth)[0].mean(dim=0).flatten()
    assert (brightness[1:] < brightness[:-1]).all()
    assert images.depth_colors(torch.full((1, 1, 2, 2), 2.5)).isfinite().all()
    clipped = images.depth_colors(depth, near=2.4, far=2.6)[0].flatten(1)
    assert torch.equal(clipped[:, 0], clipped[:, 1])


def test_png_round_trip(tmp_path: Path) -> None:
    picture = torch.rand(3, 5, 7) * 2 - 1
    images.save_png(tmp_path / 'a.png', picture)
    with Image.open(tmp_path / 'a.png') as image:
        assert np.array_equal(np.asarray(image), images.to_array(picture))


# Shapes.


def sphere(resolution: int = 33, radius: float = 0.3) -> NDArray[np.float32]:
    axis = np.linspace(-0.5, 0.5, resolution)
    distance = np.linalg.norm(np.stack(np.meshgrid(axis, axis, axis, indexing='ij')), axis=0)
    return (20 - 50 * (distance - radius)).astype(np.float32)


def test_marching_cubes_gives_the_sphere() -> None:
    mesh = meshes.extract_mesh(sphere(), level=20.0, half=0.5)
    radius = np.linalg.norm(mesh.vertices, axis=1)
    assert np.abs(radius - 0.3).max() < 0.003
    assert ((mesh.normals * mesh.vertices).sum(axis=1) > 0.95 * radius).all()  # outward
    corners = mesh.vertices[mesh.faces]
    volume = np.einsum('ij,ij->i', corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    assert volume == pytest.approx(4 / 3 * np.pi * 0.3**3, rel=0.01)  # positive: counter-clockwise from outside


def test_level_choice() -> None:
    grid = sphere()
    assert meshes.choose_level(grid) == meshes.DEFAULT_LEVEL
    assert meshes.choose_level(grid * 0.01) == pytest.approx(float(grid.max() + grid.min()) / 200, rel=1e-4)
    with pytest.raises(UserError, match='no surface there; sigma is between'):
        meshes.choose_level(grid, 1e6)
    with pytest.raises(UserError, match='everywhere'):
        meshes.choose_level(np.zeros((2, 2, 2), dtype='f4'))


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A PLY reader of the test's own, from the format's description."""
    header, _, body = path.read_bytes().partition(b'end_header\n')
    lines = header.decode('ascii').splitlines()
    assert lines[:2] == ['ply', 'format binary_little_endian 1.0']
    kinds = {'float': '<f4', 'uchar': 'u1'}
    fields = [
        (line.split()[2], kinds[line.split()[1]]) for line in lines if line.startswith(('property f', 'property u'))
    ]
    counts = {line.split()[1]: int(line.split()[2]) for line in lines if line.startswith('element')}
    vertices = np.frombuffer(body, dtype=fields, count=counts['vertex'])
    face_type = np.dtype([('count', 'u1'), ('index', '<i4', (3,))])
    faces = np.frombuffer(body, dtype=face_type, offset=vertices.nbytes)
    assert len(faces) == counts['face']
    assert (faces['count'] == 3).all()
    return vertices, faces['index']


def test_ply_holds_the_mesh(tmp_path: Path) -> None:
    mesh = meshes.extract_mesh(sphere(9), level=20.0, half=0.5)
    meshes.write_ply(tmp_path / 'a.ply', mesh)
    vertices, faces = read_ply(tmp_path / 'a.ply')
    assert np.array_equal(np.stack([vertices[n] for n in 'xyz'], axis=1), mesh.vertices)
    assert np.array_equal(np.stack([vertices[f'n{n}'] for n in 'xyz'], axis=1), mesh.normals)
    assert np.array_equal(faces, mesh.faces)


def test_mrc_header_and_order(tmp_path: Path) -> None:
    grid = np.random.default_rng(0).normal(size=(4, 5, 6)).astype('f4')
    meshes.write_mrc(tmp_path / 'a.mrc', grid, half=0.5)
    data = (tmp_path / 'a.mrc').read_bytes()
    assert len(data) == 1024 + grid.nbytes
    assert struct.unpack_from('<4i', data) == (4, 5, 6, 2)
    assert struct.unpack_from('<3f', data, 40) == (1, 1, 1)
    assert struct.unpack_from('<3i', data, 64) == (1, 2, 3)
    assert data[208:214] == b'MAP DD'
    assert struct.unpack_from('<2f', data, 76) == (grid.min(), grid.max())
    values = np.frombuffer(data, '<f4', offset=1024).reshape(6, 5, 4)  # sections, rows, columns
    assert np.array_equal(values.transpose(2, 1, 0), grid)


class PaintedSphere(torch.nn.Module):
    """Renders a sphere of radius 0.3 whose colour is its normal, on white."""

    def __init__(self) -> None:
        super().__init__()
        self.anything = torch.nn.Parameter(torch.zeros(1))

    def render(self, planes: object, label: torch.Tensor) -> types.SimpleNamespace:
        origins, directions = cameras.rays(label, 96)
        along = (origins * directions).sum(dim=-1, keepdim=True)
        inside = along**2 - (origins**2).sum(dim=-1, keepdim=True) + 0.3**2
        depth = torch.where(inside > 0, -along - inside.clamp_min(0).sqrt(), torch.full_like(along, 3.3))
        color = torch.where(inside > 0, (origins + depth * directions) / 0.3, torch.ones_like(origins))
        maps = [t.transpose(1, 2).reshape(1, -1, 96, 96) for t in (color, depth)]
        return types.SimpleNamespace(image=maps[0], depth=maps[1])


def test_vertex_colors_come_from_the_views_that_see_them() -> None:
    mesh = meshes.extract_mesh(sphere(), level=20.0, half=0.5)
    generator: Any = PaintedSphere()
    colors = meshes.color_mesh(mesh, generator, planes=generator).colors
    assert colors is not None
    seen = mesh.normals[:, 2] > 0.3  # three views from the front half
    error = np.abs(colors[seen] / 127.5 - 1 - mesh.normals[seen])
    assert np.median(error) < 0.02
    assert np.quantile(error, 0.99) < 0.15


def test_density_grid_equals_single_queries() -> None:
    generator = tiny_generator()
    head = choose_neutral()
    planes = generator.deform(generator.identity(torch.zeros(1, generator.num_ws, generator.config.w_dim)), head)
    grid = meshes.density_grid(generator, planes, resolution=5, chunk=7)
    for index in ((0, 0, 0), (4, 2, 1), (1, 3, 4)):
        point = torch.tensor(index).float() / 4 - 0.5
        assert grid[index] == pytest.approx(generator.density(planes, point[None, None]).item(), rel=1e-4, abs=1e-4)


def choose_neutral() -> HeadInput:
    return HEAD.forward(HEAD.neutral())


# gen_samples.


def test_samples_and_shapes(tmp_path: Path, network: Path) -> None:
    out = tmp_path / 'new' / 'folder'
    result = invoke(
        gen_samples.main, '--network', network, '--outdir', out, '--seeds', '0,2', '--shapes', '--shape-res', 24,
        '--expression', 'jawOpen', '--expression', 'eyeBlinkLeft:0.5',
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    expected = {f'seed000{seed}.{end}' for seed in (0, 2) for end in ('png', 'ply', 'mrc')} | {'sheet.png'}
    assert {path.name for path in out.iterdir()} == expected
    with Image.open(out / 'seed0000.png') as image:
        assert image.size == (3 * 16, 16)
    with Image.open(out / 'sheet.png') as image:
        assert image.size == (6 * 16, 2 * 16)
    vertices, faces = read_ply(out / 'seed0000.ply')
    assert len(faces) > 10
    assert {'red', 'green', 'blue', 'nx'} <= set(vertices.dtype.names or ())
    assert struct.unpack_from('<3i', (out / 'seed0002.mrc').read_bytes()) == (24, 24, 24)


def test_a_seed_does_not_depend_on_its_neighbours(tmp_path: Path, network: Path) -> None:
    for name, seeds in (('a', '3,1'), ('b', '1')):
        result = invoke(
            gen_samples.main, '--network', network, '--outdir', tmp_path / name, '--seeds', seeds, '--yaws=0'
        )
        assert result.exit_code == 0, result.output
    assert (tmp_path / 'a/seed0001.png').read_bytes() == (tmp_path / 'b/seed0001.png').read_bytes()
    assert (tmp_path / 'a/seed0001.png').read_bytes() != (tmp_path / 'a/seed0003.png').read_bytes()


def test_obj_and_parameters_and_dataset_give_one_head(tmp_path: Path, network: Path, dataset: Path) -> None:
    loaded = load_generator(network)
    params = random_params(seed=1)
    save_params(tmp_path / 'head.npz', params)
    posed = HEAD.forward(params)
    obj = tmp_path / 'head.obj'
    write_obj(obj, posed.vertices[0], faces=HEAD.template.faces)
    np.savetxt(tmp_path / 'lms.txt', posed.landmarks[0].numpy())
    np.save(tmp_path / 'lms.npy', posed.landmarks[0].numpy())
    choices = [
        HeadChoice(params_path=str(tmp_path / 'head.npz')),
        HeadChoice(obj_path=str(obj)),
        HeadChoice(obj_path=str(obj), lms_path=str(tmp_path / 'lms.txt')),
        HeadChoice(obj_path=str(obj), lms_path=str(tmp_path / 'lms.npy')),
        HeadChoice(data=str(dataset), index=1),
    ]
    for choice in choices:
        head = choose_head(choice, loaded)
        torch.testing.assert_close(head.vertices, posed.vertices, rtol=0, atol=1e-6)
        torch.testing.assert_close(head.landmarks, posed.landmarks, rtol=0, atol=1e-6)


def test_expressions_add_up(network: Path, dataset: Path) -> None:
    loaded = load_generator(network)
    neutral = choose_head(HeadChoice(), loaded)
    torch.testing.assert_close(neutral.vertices, choose_neutral().vertices, rtol=0, atol=1e-7)
    smile = choose_head(HeadChoice(expressions=('mouthSmileLeft:0.5', 'mouthSmileLeft:0.5')), loaded)
    whole = HEAD.forward(HEAD.named_expression('mouthSmileLeft'))
    torch.testing.assert_close(smile.vertices, whole.vertices, rtol=0, atol=1e-6)
    with_identity = choose_head(HeadChoice(data=str(dataset), index=2, expressions=('jawOpen',)), loaded)
    assert (
        with_identity.vertices - choose_head(HeadChoice(data=str(dataset), index=2), loaded).vertices
    ).abs().max() > 1e-3


# Videos.


class Counted:
    """Counts the calls of a generator's stages."""

    def __init__(self, generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = {'identity': 0, 'deform': 0, 'render': 0}
        for name in self.calls:
            monkeypatch.setattr(generator, name, self._wrap(name, getattr(generator, name)))

    def _wrap(self, name: str, function):
        def call(*arguments, **options):
            self.calls[name] += 1
            return function(*arguments, **options)

        return call


def frames_of(generator: Generator, scene: Scene) -> list[torch.Tensor]:
    return list(render_scene(generator, scene))


def test_a_moving_camera_only_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = tiny_generator()
    counted = Counted(generator, monkeypatch)
    ws = seed_latents(generator, [0, 1], truncation_psi=1.0, truncation_cutoff=None, rig=RIG)
    pictures = frames_of(
        generator,
        Scene(latents=StillLatents(ws), heads=choose_neutral(), labels=orbit_labels(5, fps=30, rig=RIG), frames=5),
    )
    assert counted.calls == {'identity': 1, 'deform': 1, 'render': 5}
    assert not torch.equal(pictures[0], pictures[2])


def test_a_driven_face_keeps_its_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = tiny_generator()
    counted = Counted(generator, monkeypatch)
    ws = seed_latents(generator, [0], truncation_psi=1.0, truncation_cutoff=None, rig=RIG)
    opening = HEAD.neutral(4).replace(jaw=torch.tensor([[0.0, 0, 0], [0.3, 0, 0], [0.3, 0, 0], [0.0, 0, 0]]))
    scene = Scene(
        latents=StillLatents(ws), heads=HEAD.forward(opening), labels=orbit_labels(1, fps=30, rig=RIG), frames=4
    )
    pictures = frames_of(generator, scene)
    assert counted.calls == {'identity': 1, 'deform': 3, 'render': 4}  # the third frame's head is the second's
    assert not torch.equal(pictures[0], pictures[1])
    assert torch.equal(pictures[1], pictures[2])
    assert torch.equal(pictures[0], pictures[3])


def test_cells_of_a_grid_equal_single_renderings() -> None:
    generator = tiny_generator()
    ws = seed_latents(generator, list(range(6)), truncation_psi=0.7, truncation_cutoff=None, rig=RIG)
    labels = orbit_labels(1, fps=30, rig=RIG)
    together = frames_of(generator, Scene(latents=StillLatents(ws), heads=choose_neutral(), labels=labels, frames=1))[0]
    for cell in (0, 5):
        single = Scene(latents=StillLatents(ws[[cell]]), heads=choose_neutral(), labels=labels, frames=1)
        torch.testing.assert_close(together[[cell]], frames_of(generator, single)[0], rtol=1e-4, atol=1e-4)


def test_interpolation_is_periodic_and_meets_its_keys() -> None:
    keys = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    track = LoopedLatents(keys, frames=12)
    for number in range(3):
        torch.testing.assert_close(track.at(4 * number), keys[:, number])
    torch.testing.assert_close(track.at(12), track.at(0))
    steps = [(track.at(frame + 1) - track.at(frame)).norm() for frame in range(12)]
    assert max(steps) < 6 * min(steps)


def test_orbit_is_a_loop_around_the_front() -> None:
    labels = orbit_labels(240, fps=30, rig=RIG)
    positions = labels[:, [3, 7, 11]]
    torch.testing.assert_close(positions[0], orbit_labels(120, fps=30, rig=RIG)[0, [3, 7, 11]])
    torch.testing.assert_close(positions[:120], positions[120:], rtol=0, atol=1e-5)  # two rounds
    assert positions[:, 0].max() > 0.8
    torch.testing.assert_close(positions[:, 0].mean(), torch.tensor(0.0), rtol=0, atol=1e-4)


def read_mp4(path: Path, height: int, width: int) -> np.ndarray:
    """All frames [T, height, width, 3] of a video of that size."""
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), '-loglevel', 'error', '-i', str(path), '-f', 'rawvideo']
    data = subprocess.run([*command, '-pix_fmt', 'rgb24', '-'], capture_output=True, check=True).stdout
    return np.frombuffer(data, np.uint8).reshape(-1, height, width, 3)


def test_mp4_has_every_frame_and_even_sizes(tmp_path: Path) -> None:
    pictures = [np.full((33, 47, 3), value, np.uint8) for value in range(40, 200, 20)]
    assert write_mp4(tmp_path / 'a.mp4', iter(pictures), fps=24) == len(pictures)
    frames = read_mp4(tmp_path / 'a.mp4', 34, 48)
    assert frames.shape == (len(pictures), 34, 48, 3)
    assert np.abs(frames[:, 5:28, 5:40].mean(axis=(1, 2, 3)) - np.arange(40, 200, 20)).max() < 4
    assert [path.name for path in tmp_path.iterdir()] == ['a.mp4']


def test_a_failed_video_leaves_nothing(tmp_path: Path) -> None:
    def broken():
        yield np.zeros((16, 16, 3), np.uint8)
        raise UserError('no more')

    with pytest.raises(UserError, match='no more'):
        write_mp4(tmp_path / 'a.mp4', broken(), fps=24)
    with pytest.raises(UserError, match='no frames'):
        write_mp4(tmp_path / 'b.mp4', iter([]), fps=24)
    assert not list(tmp_path.iterdir())


def test_video_of_a_talking_head(tmp_path: Path, network: Path) -> None:
    result = invoke(
        gen_videos.main, '--network', network, '--output', tmp_path / 'new/talk.mp4', '--seeds=0,1', '--drive=talk',
        '--frames=12', '--fps=8', '--with-template', '--scale=2', '--motion=still',
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    frames = read_mp4(tmp_path / 'new/talk.mp4', 32, 96).astype(int)
    assert frames.shape == (12, 32, 96, 3)
    cells, template = frames[:, :, :64], frames[:, :, 64:]
    assert np.abs(template[0] - template[4]).max() > 40  # the mesh moves
    assert np.abs(cells[0] - cells[4]).max() > 8  # and so does the face


def test_video_driven_by_photos_npz_and_interpolation(tmp_path: Path, network: Path, dataset: Path) -> None:
    save_params(tmp_path / 'track.npz', random_params(seed=3, count=7))
    runs: dict[str, tuple[list[object], int, tuple[int, int]]] = {
        'photos': (['--drive', dataset, '--frames=6', '--head-identity', f'{dataset}:1'], 6, (16, 16)),
        'photo': (['--drive', dataset, '--drive-items=2', '--frames=5'], 5, (16, 16)),
        'track': (['--drive', tmp_path / 'track.npz'], 7, (16, 16)),
        'walk': (['--motion=orbit+interpolate', '--seeds=0-3', '--grid=1x2', '--frames=4'], 4, (32, 16)),
    }
    for name, (options, count, size) in runs.items():
        path = tmp_path / f'{name}.mp4'
        result = invoke(gen_videos.main, '--network', network, '--output', path, '--scale=1', *options)
        assert result.exit_code == 0, f'{name}: {result.output}'
        assert len(read_mp4(path, *size)) == count, name


# Mistakes.


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['--seeds', '3-1'], '--seeds: expected numbers like'),
        (['--seeds', 'a'], '--seeds: expected numbers like'),
        (['--yaws', '0,0.1', '--pitches', '0,0,0'], '--pitches: expected one number or as many as --yaws'),
        (['--network', 'absent.pkl'], 'absent.pkl: No such file'),
        (['--network', 'text.pkl'], 'text.pkl: not a snapshot'),
        (['--network', 'cut.pkl'], 'cut.pkl: damaged or cut short'),
        (['--obj_path', 'cube.obj'], "cube.obj: another topology: 4 vertices, but 'makehuman' has"),
        (['--lms_path', 'short.txt'], '--lms_path: belongs to --obj_path'),
        (['--obj_path', 'head.obj', '--lms_path', 'short.txt'], 'short.txt: expected 68 x 3'),
        (['--head', 'text.pkl'], 'text.pkl: '),
        (['--head', 'narrow.npz'], 'narrow.npz: 64 identity and 3 expression numbers, but head model makehuman'),
        (['--head', 'wide.npz', '--index', '9'], 'wide.npz: index 9 is out of range; it has 1'),
        (['--data', 'absent.zip'], 'absent.zip: no such dataset'),
        (['--expression', 'grin'], "--expression 'grin': unknown to head model makehuman; known: browDownLeft"),
        (['--expression', 'jawOpen:much'], 'expected NAME or NAME:WEIGHT'),
        (['--head', 'wide.npz', '--data', 'x.zip'], 'params_path and data given; choose one'),
        (['--outdir', 'text.pkl/out'], 'text.pkl/out: Not a directory'),
        (['--shapes', '--shape-res', '4', '--shape-level', '1e9'], 'no surface there'),
        (['--device', 'abacus'], '--device abacus: not available'),
    ],
    ids=lambda value: None if isinstance(value, str) else ' '.join(value),
)
def test_gen_samples_mistakes(
    tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path('text.pkl').write_text('not a network')
    Path('cut.pkl').write_bytes(network.read_bytes()[:20000])
    np.savetxt('short.txt', np.zeros((67, 3)))
    write_obj('cube.obj', torch.eye(4)[:, :3], faces=torch.tensor([[0, 1, 2], [0, 2, 3]]))
    if 'head.obj' in arguments:
        write_obj('head.obj', HEAD.template.vertices, faces=HEAD.template.faces)
    save_params('wide.npz', HEAD.neutral())
    save_params('narrow.npz', HEAD.neutral().replace(expression=torch.zeros(1, 3)))
    options = ['--network', str(network), '--outdir', 'out', '--seeds', '0', *arguments]
    assert expected in error_line(invoke(gen_samples.main, *options))


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['--seeds=0-2', '--grid=2x2'], '--seeds: a grid of 2x2 needs 4 seeds, got 3'),
        (['--seeds=0', '--motion=interpolate'], 'needs 2 or more seeds for each, got 1'),
        (['--grid=two'], '--grid: expected WxH'),
        (['--motion=spin'], '--motion: expected orbit'),
        (['--drive=shout'], '--drive shout: no such file; expected a dataset'),
        (['--drive=absent.npz'], '--drive absent.npz: no such file'),
        (['--drive=text.npz'], 'text.npz: '),
        (['--output=text.npz/a.mp4'], 'text.npz: '),
        (['--head-identity=absent.zip:3'], 'absent.zip: no such dataset'),
    ],
    ids=lambda value: None if isinstance(value, str) else ' '.join(value),
)
def test_gen_videos_mistakes(
    tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path('text.npz').write_text('not an archive')
    options = ['--network', str(network), '--output', 'a.mp4', '--frames=2', *arguments]
    assert expected in error_line(invoke(gen_videos.main, *options))
    assert not list(tmp_path.glob('**/*.mp4'))
