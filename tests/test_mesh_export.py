"""export_mesh.py: what is made once, formats, the template's motion, animations, and one line for each mistake."""

from __future__ import annotations

import dataclasses
import io
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import export_mesh
from applications import meshes, template_mesh
from applications.heads import HeadChoice, choose_head, save_params
from applications.mesh_export import ExportOptions, export_meshes, pose, read_latent
from applications.reenactment import DriverOptions
from applications.surfaces import SurfaceOptions, head_surface
from tests.cases_gltf import read_glb
from tests.cases_outputs import random_params, tiny_generator, write_snapshot
from training.avatar import Avatar
from training.cameras import head_to_world
from training.checkpoint import LoadedGenerator, Snapshot, load_generator, plain_state, save_snapshot
from training.head.makehuman import embedded_head
from training.head.obj import read_obj

HEAD = embedded_head()
SMALL = SurfaceOptions(resolution=20)


@pytest.fixture(scope='module')
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_snapshot(tmp_path_factory.mktemp('network') / 'network-snapshot-000004.pkl')


@pytest.fixture(scope='module')
def loaded(network: Path) -> LoadedGenerator:
    return load_generator(network)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(export_mesh.main, [str(argument) for argument in arguments])


def error_line(result: Result) -> str:
    assert result.exit_code == 1, result.output
    (line,) = result.output.strip().splitlines()
    assert line.startswith('Error: ')
    return line


class Calls:
    """How often the parts of a generator run."""

    def __init__(self, loaded: LoadedGenerator) -> None:
        generator = loaded.generator
        self.count = {'texture': 0, 'static': 0, 'rasterizer': 0}
        self.hooks = [
            getattr(generator, name).register_forward_hook(lambda *_, name=name: self._add(name)) for name in self.count
        ]

    def _add(self, name: str) -> None:
        self.count[name] += 1

    def stop(self) -> dict[str, int]:
        for hook in self.hooks:
            hook.remove()
        return self.count


def test_the_networks_run_once_for_all_formats(tmp_path: Path, loaded: LoadedGenerator) -> None:
    calls = Calls(loaded)
    outputs = tuple(str(tmp_path / 'new' / f'a{suffix}') for suffix in ('.obj', '.ply', '.glb'))
    options = ExportOptions(outputs=outputs, surface=dataclasses.replace(SMALL, faces=300))
    posed = pose(loaded, HeadChoice(), driver=None, animatable=False, beside=outputs[0], report=print)
    written = export_meshes(loaded, posed, options, report=lambda line: None)
    assert calls.stop() == {'texture': 1, 'static': 1, 'rasterizer': 1}
    assert [str(path) for path in written] == list(outputs)
    glb, obj = read_glb(written[2]), read_obj(written[0])
    position = glb.attribute(0, 'POSITION')
    assert 20 < len(glb.faces(0)) <= 300
    assert np.array_equal(obj.faces.numpy(), glb.faces(0))
    assert np.allclose(obj.vertices.numpy(), position, atol=1e-6)
    assert np.abs(position).max() < 0.3  # metres
    first = written[0].read_text().splitlines()[0].split()
    linear = glb.attribute(0, 'COLOR_0')[0, :3] / 65535
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.allclose([float(word) for word in first[4:]], srgb, atol=2e-3)
    assert b'element vertex %d\n' % len(position) in written[1].read_bytes()


def test_the_surface_lies_where_the_density_says(loaded: LoadedGenerator) -> None:
    generator = loaded.generator
    head = choose_head(HeadChoice(), loaded)
    ws = torch.zeros(1, generator.num_ws, generator.config.w_dim)
    planes = generator.deform(generator.identity(ws), head)
    surface = head_surface(generator, planes, head, dataclasses.replace(SMALL, resolution=40))
    points = head_to_world(torch.from_numpy(surface.mesh.vertices))
    inner = points.abs().amax(dim=1) < 0.49 * generator.config.box_size  # not on the lids
    sigma = generator.density(planes, points[None])[0, :, 0]
    spread = meshes.density_grid(generator, planes, resolution=8).std()
    assert (sigma - surface.level)[inner].abs().median() < 0.1 * spread
    cut = head_surface(generator, planes, head, dataclasses.replace(SMALL, cut=0.03))
    away = torch.cdist(torch.from_numpy(cut.mesh.vertices), head.vertices[0]).amin(dim=1)
    assert away.max() < 0.03 + 1 / 19 / 2.5  # a voxel, in metres
    assert away.max() < torch.cdist(torch.from_numpy(surface.mesh.vertices), head.vertices[0]).amin(dim=1).max()


class Striped(torch.nn.Module):
    """Renders a wall far away, red where x > 0 and blue elsewhere."""

    def render(self, planes: object, label: torch.Tensor) -> Any:
        column = torch.linspace(-1, 1, 64).expand(1, 1, 64, 64)
        image = torch.cat([column.sign(), -torch.ones_like(column), -column.sign()], dim=1)
        return types.SimpleNamespace(image=image, depth=torch.full((1, 1, 64, 64), 9.0))


def test_points_that_no_view_sees_take_the_colour_of_their_neighbours() -> None:
    generator: Any = Striped()
    points = torch.tensor([[0.2, 0.0, 0.1], [0.2, 0.1, 0.1], [-0.2, 0.0, 0.1], [0.21, 0.05, 0.1], [-0.25, 0.0, 0.1]])
    front = torch.tensor([0.0, 0.0, 1.0])
    normals = torch.stack([front, front, front, -front, -front])
    colors = meshes.seen_colors(generator, generator, points, normals, views=((0.0, 0.0),))
    assert torch.allclose(colors[:2], torch.tensor([1.0, -1.0, -1.0]).expand(2, 3), atol=0.02)
    assert torch.allclose(colors[2], torch.tensor([-1.0, -1.0, 1.0]), atol=0.02)
    assert colors[3, 0] > 0.5 > colors[4, 0]  # each near its own side
    none = meshes.seen_colors(generator, generator, points, -normals, views=((0.0, 0.0),))
    assert none.isfinite().all()


def avatar_file(path: Path, loaded: LoadedGenerator, ws: torch.Tensor, identity: torch.Tensor) -> Path:
    snapshot = Snapshot(
        config=loaded.config,
        info=loaded.info,
        template=HEAD.template,
        networks={'G_ema': plain_state(tiny_generator()), 'G': {}, 'D': {}},
        avatar=Avatar(ws=ws, identity=identity, base='', protocol={}),
    )
    save_snapshot(path, snapshot)
    return path


def test_an_avatar_has_its_own_latent_and_shape(tmp_path: Path, network: Path, loaded: LoadedGenerator) -> None:
    generator = loaded.generator
    ws = torch.randn(1, generator.num_ws, generator.config.w_dim, generator=torch.Generator().manual_seed(1))
    params = random_params(seed=2)
    own = avatar_file(tmp_path / 'avatar.pkl', loaded, ws, params.identity)
    np.savez(tmp_path / 'pivot.npz', ws=ws.numpy())
    save_params(tmp_path / 'head.npz', HEAD.neutral().replace(identity=params.identity))
    runs = {
        'own.ply': ['--network', own],
        'same.ply': ['--network', network, '--latent', tmp_path / 'pivot.npz', '--head', tmp_path / 'head.npz'],
        'seed.ply': ['--network', own, '--seeds', 0],
    }
    for name, options in runs.items():
        result = invoke(*options, '--output', tmp_path / name, '--resolution', 16)
        assert result.exit_code == 0, result.output
    files = {name: (tmp_path / name).read_bytes() for name in runs}
    assert files['own.ply'] == files['same.ply']
    assert files['own.ply'] != files['seed.ply']


def test_latents_of_all_shapes(tmp_path: Path) -> None:
    row = np.arange(5, dtype=np.float64)
    np.save(tmp_path / 'row.npy', row)
    np.save(tmp_path / 'rows.npy', np.tile(row, (3, 1)))
    for name in ('row', 'rows'):
        ws = read_latent(str(tmp_path / f'{name}.npy'), num_ws=3, w_dim=5)
        assert torch.equal(ws, torch.arange(5.0).expand(1, 3, 5))


def test_the_template_moves_exactly(tmp_path: Path, network: Path) -> None:
    options = ['--network', network, '--template', '--texture-size', 32]
    result = invoke(*options, '--output', tmp_path / 'rig.glb', '--expression', 'mouthSmileLeft:0.5')
    assert result.exit_code == 0, result.output
    glb = read_glb(tmp_path / 'rig.glb')
    names = glb.json['meshes'][0]['extras']['targetNames']
    assert names == list(HEAD.expression_names)
    base = HEAD.named_expression('mouthSmileLeft', 0.5)
    wide = base.replace(
        expression=base.expression + HEAD.named_expression('jawOpen').expression,
        jaw=base.jaw + HEAD.named_expression('jawOpen').jaw,
    )
    target = glb.json['meshes'][0]['primitives'][0]['targets'][names.index('jawOpen')]['POSITION']
    moved = glb.attribute(0, 'POSITION') + glb.array(target)
    corners = moved[glb.faces(0)]
    expected = HEAD.forward(wide).vertices[0][HEAD.template.faces].numpy()
    assert np.abs(corners - expected).max() < 1e-6
    result = invoke(*options, '--output', tmp_path / 'talk.glb', '--drive=talk', '--frames=6', '--fps=4')
    assert result.exit_code == 0, result.output
    glb = read_glb(tmp_path / 'talk.glb')
    assert len(glb.json['meshes'][0]['extras']['targetNames']) == 6
    assert glb.json['animations'][0]['channels'][0]['target']['path'] == 'weights'


def test_the_baked_picture_fits_the_uv(monkeypatch: pytest.MonkeyPatch, loaded: LoadedGenerator) -> None:
    """Bake places instead of colours: at its uv every vertex then finds itself."""
    monkeypatch.setattr(
        template_mesh, 'seen_colors', lambda generator, planes, points, normals, **_: (points / 0.6).clamp(-1, 1)
    )
    head = choose_head(HeadChoice(), loaded)
    anything: Any = None
    picture = template_mesh.bake_texture(loaded.generator, anything, head, size=256)
    shape = template_mesh.template_shape(HEAD.template, head.vertices[0], picture, name='a', targets={})
    assert shape.texture is not None
    texels = np.asarray(Image.open(io.BytesIO(shape.texture))).astype(float) / 127.5 - 1
    assert shape.uv is not None
    columns, rows = (shape.uv * [256, -256] + [0, 256]).clip(0, 255).astype(int).T
    world = template_mesh.in_volume(loaded.generator, torch.from_numpy(shape.vertices)).numpy()
    error = np.abs(texels[rows, columns] - world / 0.6).max(axis=1)
    assert np.median(error) < 0.01
    assert np.quantile(error, 0.98) < 0.06


def test_an_animated_surface_is_made_frame_by_frame(tmp_path: Path, loaded: LoadedGenerator) -> None:
    calls = Calls(loaded)
    output = str(tmp_path / 'talk.glb')
    driver = DriverOptions(source='talk', frames=3, fps=8)
    posed = pose(loaded, HeadChoice(), driver=driver, animatable=False, beside=output, report=print)
    options = ExportOptions(outputs=(output,), surface=dataclasses.replace(SMALL, resolution=16))
    export_meshes(loaded, posed, options, report=lambda line: None)
    assert calls.stop() == {'texture': 1, 'static': 1, 'rasterizer': 3}
    glb = read_glb(tmp_path / 'talk.glb')
    assert [node['name'] for node in glb.json['nodes']] == ['frame0000', 'frame0001', 'frame0002']
    assert glb.json['animations'][0]['channels'][0]['target']['path'] == 'scale'


def test_several_people_get_files_of_their_own(tmp_path: Path, network: Path) -> None:
    result = invoke('--network', network, '--output', tmp_path / 'a.ply', '--seeds=0,2', '--resolution=12')
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a-seed0000.ply', 'a-seed0002.ply']


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['--output=a.stl'], "--output a.stl: unknown format '.stl'; expected one of .obj, .ply, .glb"),
        (['--output=a.obj', '--template'], '--output a.obj: --template is written as .glb alone'),
        (['--output=a.ply', '--drive=talk'], '--output a.ply: --drive is written as .glb alone'),
        (['--level=1e9'], 'no surface there; sigma is between'),
        (['--cut=1e-5'], 'within 1e-05 m of the head mesh; sigma is between'),
        (['--output=text.npz/a.glb'], 'text.npz: '),
        (['--latent=text.npz'], 'text.npz: expected ws of'),
        (['--latent=short.npy'], 'short.npy: expected ws of'),
        (['--latent=absent.npy'], 'absent.npy: No such file'),
        (['--drive=shout', '--output=a.glb'], '--drive shout: no such file'),
        (['--drive=text.mp4', '--output=a.glb'], '--drive text.mp4: no frame could be read'),
        (['--drive=talk', '--output=a.glb', '--expression=jawOpen'], '--drive: poses the head itself'),
    ],
    ids=lambda value: None if isinstance(value, str) else ' '.join(value),
)
def test_mistakes(
    tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ('text.npz', 'text.mp4'):
        Path(name).write_text('neither an archive nor a video')
    np.save('short.npy', np.zeros(3))
    output = [] if any(argument.startswith('--output') for argument in arguments) else ['--output=a.ply']
    before = sorted(tmp_path.iterdir())
    assert expected in error_line(invoke('--network', network, '--resolution=12', *output, *arguments))
    assert sorted(tmp_path.iterdir()) == before
