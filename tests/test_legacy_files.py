"""Pickles of the public release in the scripts, converted, and back again."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import cases_flame
import click
import numpy as np
import pytest
import torch
from cases_legacy import (
    PickledModule,
    Size,
    discriminator_kwargs,
    discriminator_shapes,
    eg3d_pickle,
    generator_kwargs,
    random_state,
    release_shapes,
    topology_buffers,
    write_pickle,
    write_topology,
)
from cases_outputs import write_snapshot
from click.testing import CliRunner, Result
from PIL import Image

import gen_samples
import gen_videos
from applications.heads import HeadChoice, choose_head
from applications.samples import CameraRig, seed_latents
from dnnlib import UserError
from training import legacy
from training.checkpoint import ReleaseAssets, load_generator, load_snapshot
from training.head.obj import read_obj, write_obj
from training.legacy import load_discriminator_state, load_generator_state

SIZE = Size(image=128, base=256, most=4, c_dim=25)
CRITIC = Size(image=128, base=256, most=4, c_dim=75)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """release.pkl without and whole.pkl with topology and mask inside; the files beside are named otherwise."""
    folder = tmp_path_factory.mktemp('release')
    obj, mask_file, v = write_topology(folder)
    mesh = read_obj(obj)
    assert mesh.uv is not None
    assert mesh.uv_faces is not None
    state, average = (random_state(release_shapes(SIZE), seed=seed) for seed in (0, 1))
    critic = PickledModule(
        random_state(discriminator_shapes(CRITIC)), 'DualDiscriminator', _init_kwargs=discriminator_kwargs(CRITIC)
    )
    kwargs = generator_kwargs(SIZE)
    write_pickle(
        folder / 'release.pkl',
        G=PickledModule(state, 'TriPlaneGenerator', _init_kwargs=kwargs),
        D=critic,
        G_ema=PickledModule(average, 'TriPlaneGenerator', _init_kwargs=kwargs),
    )
    with Image.open(mask_file) as image:
        mask = torch.from_numpy(np.array(image)).float()[None, None] / 255
    whole = {**topology_buffers(mesh.faces, mesh.uv, mesh.uv_faces), **average}
    write_pickle(
        folder / 'whole.pkl', G_ema=PickledModule(whole, _init_kwargs=kwargs, uv_face_mask=mask, load_lms=True)
    )
    write_obj(folder / 'posed.obj', v[0, :-68], faces=mesh.faces)
    np.savetxt(folder / 'kpt2d.txt', v[0, -68:].numpy())
    return folder


def invoke(command: click.Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def assets(folder: Path) -> ReleaseAssets:
    return ReleaseAssets(topology=str(folder / 'head.obj'), eye_mask=str(folder / 'mask.png'))


def test_the_averaged_generator_is_loaded(folder: Path) -> None:
    loaded = load_generator(folder / 'release.pkl', assets=assets(folder))
    reference = load_generator_state(
        random_state(release_shapes(SIZE), seed=1),
        generator_kwargs(SIZE),
        topology=folder / 'head.obj',
        eye_mask=folder / 'mask.png',
    )
    state = loaded.generator.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in reference.state_dict().items())
    assert loaded.config.preset == 'ffhq128-release'
    assert not loaded.generator.training
    assert not any(parameter.requires_grad for parameter in loaded.generator.parameters())


def test_topology_and_mask_are_found_inside_or_beside(folder: Path, tmp_path: Path) -> None:
    reference = load_generator(folder / 'release.pkl', assets=assets(folder)).generator
    inside = load_generator(folder / 'whole.pkl').generator
    for name in ('faces', 'face_uv', 'eye_mask'):
        torch.testing.assert_close(getattr(inside.rasterizer, name), getattr(reference.rasterizer, name))
    shutil.copy(folder / 'release.pkl', tmp_path / 'release.pkl')
    with pytest.raises(UserError, match='release.pkl: needs the eye mask over uv; .*--eye-mask'):
        load_generator(tmp_path / 'release.pkl')
    shutil.copy(folder / 'mask.png', tmp_path / 'uv_face_eye_mask.png')
    with pytest.raises(UserError, match='release.pkl: needs its topology; .*--topology'):
        load_generator(tmp_path / 'release.pkl')
    shutil.copy(folder / 'head.obj', tmp_path / 'head_template.obj')
    beside = load_generator(tmp_path / 'release.pkl').generator
    assert torch.equal(beside.rasterizer.face_uv, reference.rasterizer.face_uv)


def test_heads_need_landmarks_that_no_obj_has(folder: Path) -> None:
    loaded = load_generator(folder / 'release.pkl', assets=assets(folder))
    head = choose_head(HeadChoice(obj_path=str(folder / 'posed.obj'), lms_path=str(folder / 'kpt2d.txt')), loaded)
    assert head.vertices.shape == (1, 5023, 3)
    torch.testing.assert_close(head.landmarks[0].double(), torch.from_numpy(np.loadtxt(folder / 'kpt2d.txt')).double())
    for choice in (HeadChoice(), HeadChoice(obj_path=str(folder / 'posed.obj'))):
        with pytest.raises(UserError, match='landmarks: this topology does not say where they are; .*--lms_path'):
            choose_head(choice, loaded)
    with pytest.raises(UserError, match="head model 'flame': FLAME is not shipped; give your own"):
        choose_head(HeadChoice(expressions=('jawOpen',)), loaded)


def test_flame_drives_an_imported_network(folder: Path, tmp_path: Path) -> None:
    """With the user's FLAME file the release's network needs no mesh: parameters and landmarks come from there."""
    flame = cases_flame.write_folder(tmp_path / 'flame', cases_flame.arrays())
    shutil.copy(folder / 'release.pkl', tmp_path / 'release.pkl')
    obj = str(flame / 'head_template_mesh.obj')
    loaded = load_generator(
        tmp_path / 'release.pkl', assets=ReleaseAssets(topology=obj, eye_mask=str(folder / 'mask.png'))
    )
    neutral = choose_head(HeadChoice(head_model_path=str(flame)), loaded)
    opened = choose_head(HeadChoice(head_model_path=str(flame), expressions=('jawOpen',)), loaded)
    assert neutral.vertices.shape == opened.vertices.shape == (1, 40, 3)
    assert (neutral.landmarks - opened.landmarks).abs().max() > 1e-3
    other = load_generator(folder / 'release.pkl', assets=assets(folder))
    with pytest.raises(UserError, match='head model flame2020: its faces are not those that the network was trained'):
        choose_head(HeadChoice(head_model_path=str(flame)), other)


def test_landmark_files_of_any_form(folder: Path, tmp_path: Path) -> None:
    loaded = load_generator(folder / 'release.pkl', assets=assets(folder))
    values = np.loadtxt(folder / 'kpt2d.txt').astype(np.float32)
    np.savetxt(tmp_path / 'commas.txt', values, delimiter=', ')
    np.save(tmp_path / 'batch.npy', values[None])
    for name in ('commas.txt', 'batch.npy'):
        choice = HeadChoice(obj_path=str(folder / 'posed.obj'), lms_path=str(tmp_path / name))
        assert np.allclose(choose_head(choice, loaded).landmarks[0].numpy(), values)
    (tmp_path / 'words.txt').write_text('68 points\n')
    values[3] = np.nan
    np.save(tmp_path / 'nan.npy', values)
    for name, message in (('words.txt', 'not a table'), ('nan.npy', 'finite numbers'), ('none.txt', 'No such file')):
        choice = HeadChoice(obj_path=str(folder / 'posed.obj'), lms_path=str(tmp_path / name))
        with pytest.raises((UserError, FileNotFoundError), match=message):
            choose_head(choice, loaded)


def test_a_seed_means_the_same_latent_as_in_the_release(folder: Path) -> None:
    loaded = load_generator(folder / 'whole.pkl')
    generator, rig = loaded.generator, CameraRig.of(loaded.config)
    ws = seed_latents(generator, [7], truncation_psi=1.0, truncation_cutoff=None, rig=rig)
    z = torch.from_numpy(np.random.RandomState(7).randn(1, SIZE.z_dim)).float()
    camera = torch.tensor(
        [[1.0, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 2.7, 0, 0, 0, 1, 4.2647, 0, 0.5, 0, 4.2647, 0.5, 0, 0, 1]]
    )
    torch.testing.assert_close(ws, generator.map(z, camera), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match='--seeds: expected numbers from 0'):
        seed_latents(generator, [2**32], truncation_psi=1.0, truncation_cutoff=None, rig=rig)


def test_scripts_take_the_pickle(folder: Path, tmp_path: Path) -> None:
    common = ['--obj_path', folder / 'posed.obj', '--lms_path', folder / 'kpt2d.txt', '--device=cpu']
    files = ['--topology', folder / 'head.obj', '--eye-mask', folder / 'mask.png']
    result = invoke(
        gen_samples.main, '--network', folder / 'release.pkl', '--outdir', tmp_path / 'out', '--seeds=0', '--yaws=0',
        '--pitches=0.128', '--trunc=0.7', '--trunc-cutoff=14', '--fov-deg=18', *common, *files,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert np.asarray(Image.open(tmp_path / 'out/seed0000.png')).shape == (128, 128, 3)
    video = invoke(
        gen_videos.main, '--network', folder / 'whole.pkl', '--output', tmp_path / 'a.mp4', '--frames=1',
        '--motion=still', *common,
    )  # fmt: skip
    assert video.exit_code == 0, video.output
    driven = invoke(
        gen_videos.main, '--network', folder / 'whole.pkl', '--output', tmp_path / 'b.mp4', '--drive=talk', *common
    )
    assert 'Error: --obj_path: a mesh has no parameters; leave out --drive' in driven.output
    snapshot = write_snapshot(tmp_path / 'own.pkl')
    own = invoke(gen_samples.main, '--network', snapshot, '--outdir', tmp_path / 'x', *files)
    assert 'own.pkl: a snapshot holds its topology; leave out --topology and --eye-mask' in own.output


def test_the_command_converts_and_goes_back(folder: Path, tmp_path: Path) -> None:
    files = ['--topology', folder / 'head.obj', '--eye-mask', folder / 'mask.png']
    result = invoke(legacy.main, folder / 'release.pkl', tmp_path / 'out.pkl', *files)
    assert result.exit_code == 0, result.output
    assert 'topology: 5023 vertices' in result.output
    snapshot = load_snapshot(tmp_path / 'out.pkl')
    assert snapshot.config.discriminator.label_dim == 75
    assert snapshot.config.discriminator.label_noise == 1
    direct = load_generator(folder / 'release.pkl', assets=assets(folder)).generator.state_dict()
    assert all(torch.equal(value, direct[name]) for name, value in snapshot.networks['G_ema'].items())
    assert not torch.equal(snapshot.networks['G']['mapping.w_avg'], snapshot.networks['G_ema']['mapping.w_avg'])

    back = invoke(legacy.main, tmp_path / 'out.pkl', '--export', tmp_path / 'state.pt')
    assert back.exit_code == 0, back.output
    state = torch.load(tmp_path / 'state.pt', weights_only=True)
    paths = {'topology': folder / 'head.obj', 'eye_mask': folder / 'mask.png'}
    again = load_generator_state(state['G_ema'], state['G_kwargs'], **paths).state_dict()
    assert all(torch.equal(value, direct[name]) for name, value in again.items())
    original = random_state(discriminator_shapes(CRITIC))
    assert all(torch.equal(value, original[name]) for name, value in state['D'].items())
    load_discriminator_state(state['D'], state['D_kwargs'])


def test_the_command_keeps_what_it_is_told(folder: Path, tmp_path: Path) -> None:
    result = invoke(legacy.main, folder / 'whole.pkl', tmp_path / 'out.pkl', '--dynamic-planes=front')
    assert result.exit_code == 0, result.output
    assert 'where the neutral vertices lie is not in the file' in result.output
    snapshot = load_snapshot(tmp_path / 'out.pkl')
    assert snapshot.config.generator.dynamic_planes == 'front'
    assert not snapshot.networks['D']
    result = invoke(
        legacy.main, folder / 'release.pkl', tmp_path / 'g.pkl', '--generator-only', '--topology', folder / 'head.obj',
        '--eye-mask', folder / 'mask.png',
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert not load_snapshot(tmp_path / 'g.pkl').networks['D']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['whole.pkl'], 'TARGET, --export: give one of them'),
        (['whole.pkl', 'a', '--export', 'b'], 'TARGET, --export: give one of them'),
        (['absent.pkl', 'out.pkl'], 'absent.pkl: No such file'),
        (['text.pkl', 'out.pkl'], 'text.pkl: not a pickle of EG3D or Next3D'),
        (['cut.pkl', 'out.pkl'], 'cut.pkl: not a whole network pickle'),
        (['hostile.pkl', 'out.pkl'], 'hostile.pkl: refused: it asks for'),
        (['d.pkl', 'out.pkl'], 'd.pkl: holds D .*; expected a generator of Next3D or EG3D'),
        (['whole.pkl', 'out.pkl', '--cfg=debug'], '--cfg, --seed: for files of EG3D'),
        (['eg3d.pkl', 'out.pkl'], '--cfg: for a file of EG3D, the preset to start'),
        (['own.pkl', '--export', 'x.pt'], "only one built like the release has its names, not superres='stylegan2'"),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = arguments[0]
    content = (folder / 'whole.pkl').read_bytes()
    if name == 'eg3d.pkl':
        eg3d_pickle(tmp_path / name, Size(image=128, base=64, most=2))
    elif name == 'own.pkl':
        write_snapshot(tmp_path / name)
    elif name == 'd.pkl':
        write_pickle(tmp_path / name, D=PickledModule(random_state(discriminator_shapes(CRITIC)), _init_kwargs={}))
    elif name != 'absent.pkl':
        hostile = b'\x80\x02cos\nsystem\nX\x01\x00\x00\x00x\x85R.'
        data = {'text.pkl': b'hello', 'cut.pkl': content[:5000], 'hostile.pkl': hostile, 'whole.pkl': content}[name]
        Path(name).write_bytes(data)
    before = sorted(tmp_path.iterdir())
    result = invoke(legacy.main, *arguments)
    assert result.exit_code == 1, result.output
    lines = result.output.strip().splitlines()
    assert len(lines) == 1, result.output
    assert re.search(message, lines[0]), lines[0]
    assert sorted(tmp_path.iterdir()) == before


def test_an_eg3d_file_is_not_drawn(tmp_path: Path) -> None:
    path = eg3d_pickle(tmp_path / 'eg3d.pkl', Size(image=128, base=64, most=2))
    with pytest.raises(UserError, match=r'eg3d.pkl: a generator of EG3D, which has no head to draw; .*--resume'):
        load_generator(path)
