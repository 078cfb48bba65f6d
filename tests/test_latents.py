"""latents.py: what its sheets show and what its directions do, down to gen_samples.py; mistakes are one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from cases_dataset import user_error
from cases_outputs import tiny_generator, write_avatar, write_snapshot
from click.testing import CliRunner
from PIL import Image

import gen_samples
import latents
from applications.directions import (
    direction_shift,
    find_directions,
    load_directions,
    part_rows,
    save_directions,
)
from applications.images import to_array
from applications.latent_sheets import View, interpolation_sheet, mixing_sheet, slerp, truncation_sheet
from applications.samples import CameraRig, seed_latents
from applications.videos import VideoOptions, plan_scene
from training.checkpoint import load_generator
from training.generator import Generator
from training.head.makehuman import embedded_head
from training.head.model import HeadInput
from training.layer_rows import modulated_layers

RIG = CameraRig()
SIZE = 16


@pytest.fixture(scope='module')
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_snapshot(tmp_path_factory.mktemp('network') / 'net.pkl')


@pytest.fixture(scope='module')
def generator() -> Generator:
    return tiny_generator()


@pytest.fixture(scope='module')
def view(generator: Generator) -> View:
    head = embedded_head()
    return View(generator=generator, head=head.forward(head.neutral()), label=RIG.front(), rig=RIG)


def cell(sheet: torch.Tensor, row: int, column: int) -> torch.Tensor:
    return sheet[:, row * SIZE : (row + 1) * SIZE, column * SIZE : (column + 1) * SIZE]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(latents.main, [*map(str, arguments), '--device=cpu'])
    assert 'Traceback' not in result.output
    return result.output if result.exit_code == 0 else f'exit {result.exit_code}: {result.output.splitlines()[-1]}'


def test_slerp_keeps_to_the_circle() -> None:
    first, second = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])
    middle = slerp(first, second, 0.5)
    torch.testing.assert_close(middle, torch.tensor([1.0, 1.0]) * 3 / 2**0.5)
    torch.testing.assert_close(slerp(first, second, 0.0), first)
    torch.testing.assert_close(slerp(first, second, 1.0), second)
    torch.testing.assert_close(slerp(first, 2 * first, 0.25), torch.tensor([2.5, 0.0]))


def test_interpolation_goes_from_seed_to_seed(view: View) -> None:
    for space in ('w', 'z'):
        sheet = interpolation_sheet(view, [0, 1, 2], steps=3, space=space)
        assert sheet.shape == (3, 2 * SIZE, 3 * SIZE)
        for row, column, seed in ((0, 0, 0), (0, 2, 1), (1, 0, 1), (1, 2, 2)):
            expected = view.cells(view.people([seed]))[0]
            torch.testing.assert_close(cell(sheet, row, column), expected, rtol=0, atol=1e-4)
        assert not torch.allclose(cell(sheet, 0, 1), cell(sheet, 0, 0), atol=1e-3)


def test_mixing_takes_one_half(view: View) -> None:
    generator = view.generator
    texture = part_rows(generator, 'texture', None)
    assert texture.tolist() == [False] * generator.num_half + [True] * generator.num_half
    sheet = mixing_sheet(view, [0, 1], [2, 0], taken=texture)
    assert sheet.shape == (3, 3 * SIZE, 3 * SIZE)
    assert cell(sheet, 0, 0).unique().tolist() == [-1]
    torch.testing.assert_close(cell(sheet, 0, 2), cell(sheet, 1, 0))  # seed 0 above and at the left
    torch.testing.assert_close(cell(sheet, 1, 2), cell(sheet, 1, 0))  # with its own texture: itself
    ws = view.people([1, 2])
    expected = view.cells(torch.cat([ws[0, : generator.num_half], ws[1, generator.num_half :]])[None])[0]
    torch.testing.assert_close(cell(sheet, 2, 1), expected)


def test_truncation_ends_at_the_mean_and_at_the_seed(view: View) -> None:
    sheet = truncation_sheet(view, [0, 1], [0, 0.5, 1])
    torch.testing.assert_close(cell(sheet, 0, 0), cell(sheet, 1, 0))
    torch.testing.assert_close(cell(sheet, 1, 2), view.cells(view.people([1]))[0])


@torch.no_grad()
def test_sefa_is_the_closed_form(generator: Generator) -> None:
    """The first direction changes the (unit) styles of its layers more than any other direction does."""
    found = find_directions(generator, method='sefa', part='texture', layers=[2, 3], count=4, rig=RIG)
    names = [name for name, row in modulated_layers(generator).items() if row - generator.num_half in (2, 3)]
    weights = torch.cat([generator.get_parameter(f'{name}affine.weight') for name in names])
    unit = weights / weights.norm(dim=1, keepdim=True)
    effects = (found.vectors @ unit.t()).norm(dim=1)
    assert effects.tolist() == sorted(effects.tolist(), reverse=True)
    others = torch.nn.functional.normalize(
        torch.randn(500, weights.shape[1], generator=torch.Generator().manual_seed(0)), dim=1
    )
    assert float((others @ unit.t()).norm(dim=1).max()) <= float(effects[0]) + 1e-5
    torch.testing.assert_close(found.vectors @ found.vectors.t(), torch.eye(4), rtol=0, atol=1e-5)
    assert found.rows.nonzero().flatten().tolist() == [generator.num_half + 2, generator.num_half + 3]


@torch.no_grad()
def test_pca_follows_the_spread_of_w(generator: Generator) -> None:
    found = find_directions(generator, method='pca', part='all', layers=None, count=5, rig=RIG)
    assert found.scales.tolist() == sorted(found.scales.tolist(), reverse=True)
    z = torch.randn(3000, generator.config.z_dim, generator=torch.Generator().manual_seed(5))
    w = generator.map(z, RIG.front().expand(3000, -1))[:, 0]
    torch.testing.assert_close((w @ found.vectors.t()).std(dim=0), found.scales, rtol=0.1, atol=0)


def test_a_direction_moves_its_part_alone(generator: Generator, tmp_path: Path) -> None:
    found = find_directions(generator, method='sefa', part='static', layers=None, count=2, rig=RIG)
    save_directions(tmp_path / 'a:b.npz', found)  # a colon in the name
    again = load_directions(tmp_path / 'a:b.npz')
    assert torch.equal(again.vectors, found.vectors)
    assert (again.method, again.part) == ('sefa', 'static')
    shift = direction_shift([f'{tmp_path}/a:b.npz:1:-2', f'{tmp_path}/a:b.npz:0'], generator)
    assert shift is not None
    torch.testing.assert_close(shift, found.shift(1, -2) + found.shift(0, 1))
    assert not shift[:, generator.num_half :].any()
    torch.testing.assert_close(shift[0, 3].norm(), (4 * found.scales[1] ** 2 + found.scales[0] ** 2).sqrt())
    assert direction_shift([], generator) is None


def test_commands_write_their_sheets(network: Path, tmp_path: Path) -> None:
    common = (f'--network={network}', f'--outdir={tmp_path}', '--trunc=0.8')
    sizes = {
        'interpolate': (['--seeds=0,1', '--steps=3', '--space=z'], (3, 1)),
        'mix': (['--rows=0', '--columns=1,2', '--layers=0-2', '--expression=jawOpen'], (3, 2)),
        'truncate': (['--seeds=0', '--psis=0,1', '--yaw=0.3'], (2, 1)),
        'directions': (['--count=2', '--steps=3', '--part=teeth'], (3, 2)),
    }
    for command, (options, (columns, rows)) in sizes.items():
        assert f'{command}.png' in run(command, *common, *options)
        with Image.open(tmp_path / f'{command}.png') as sheet:
            assert sheet.size == (columns * SIZE, rows * SIZE)
    assert not list(tmp_path.glob('.*.tmp'))


def test_scripts_follow_a_direction(network: Path, generator: Generator, tmp_path: Path) -> None:
    found = find_directions(generator, method='sefa', part='all', layers=None, count=1, rig=RIG)
    save_directions(tmp_path / 'd.npz', found)
    direction = f'--direction={tmp_path / "d.npz"}:0:3'
    common = [f'--network={network}', f'--outdir={tmp_path}', '--seeds=0', '--yaws=0', '--device=cpu']
    pictures = []
    for options in ([], [direction]):
        result = CliRunner().invoke(gen_samples.main, [*common, *options])
        assert result.exit_code == 0, result.output
        with Image.open(tmp_path / 'seed0000.png') as picture:
            pictures.append(np.asarray(picture).astype(int))
    expected = generator.identity(
        seed_latents(generator, [0], truncation_psi=1, truncation_cutoff=None, rig=RIG) + found.shift(0, 3)
    )
    head = embedded_head().template
    posed = HeadInput(head.vertices[None], head.landmarks(head.vertices[None]))
    image = generator.render(generator.deform(expected, posed), RIG.front()).image[0]
    assert np.abs(pictures[0] - pictures[1]).max() > 2
    assert np.abs(pictures[1] - to_array(image.clamp(-1, 1))).max() <= 1
    still = VideoOptions(seeds=(0,), output='x.mp4', columns=1, rows=1, motions=('still',))
    loaded = load_generator(network)
    ws = [
        plan_scene(loaded, dataclasses.replace(still, directions=given)).scene.latents.at(0)
        for given in ((), (direction.removeprefix('--direction='),))
    ]
    torch.testing.assert_close(ws[1] - ws[0], found.shift(0, 3))


def test_an_avatar_stands_among_seeds(network: Path, tmp_path: Path) -> None:
    avatar = load_generator(write_avatar(tmp_path / 'avatar.pkl', network))
    assert avatar.avatar is not None
    head = embedded_head()
    own = View(
        generator=avatar.generator,
        head=head.forward(head.neutral()),
        label=RIG.front(),
        rig=RIG,
        own=avatar.avatar.ws,
    )
    sheet = interpolation_sheet(own, [None, 1], steps=2, space='w')
    torch.testing.assert_close(cell(sheet, 0, 0), own.cells(avatar.avatar.ws)[0])
    assert '--space=w' in user_error(lambda: interpolation_sheet(own, [None, 1], steps=2, space='z'))
    common = (f'--outdir={tmp_path}', '--columns=1', '--rows=avatar')
    assert 'mix.png' in run('mix', f'--network={tmp_path / "avatar.pkl"}', *common)
    assert 'the network is no avatar' in run('mix', f'--network={network}', *common)


def test_mistakes_are_one_line(network: Path, generator: Generator, tmp_path: Path) -> None:
    common = (f'--network={network}', f'--outdir={tmp_path / "out"}')
    assert run('interpolate', *common, '--seeds=3').startswith('exit 1: Error: --seeds: interpolation needs 2')
    assert 'expected numbers from 0 to' in run('mix', *common, '--layers=40')
    assert 'Error: --psis' in run('truncate', *common, '--psis=a')
    assert 'no.pkl' in run('directions', f'--network={tmp_path / "no.pkl"}', common[1])
    assert "--expression 'x': unknown" in run('mix', *common, '--expression=x')
    found = find_directions(generator, method='sefa', part='all', layers=None, count=2, rig=RIG)
    save_directions(tmp_path / 'd.npz', found)
    file = str(tmp_path / 'd.npz')
    assert 'the file has 0 to 1' in user_error(lambda: direction_shift([f'{file}:2'], generator))
    for wrong in (file, f'{file}:x', f'{file}:0:much'):
        assert 'expected FILE:INDEX' in user_error(lambda wrong=wrong: direction_shift([wrong], generator))
    assert 'No such file' in user_error(lambda: direction_shift([f'{tmp_path}/none.npz:0'], generator))
    (tmp_path / 'text.npz').write_text('hello')
    assert 'no directions' in user_error(lambda: direction_shift([f'{tmp_path}/text.npz:0'], generator))
    np.savez(tmp_path / 'evil.npz', vectors=np.array([{}], dtype=object), scales=1, rows=1, method='', part='')
    assert 'no directions' in user_error(lambda: direction_shift([f'{tmp_path}/evil.npz:0'], generator))
    other = type(found)(**{**vars(found), 'rows': found.rows[:-2]})
    save_directions(tmp_path / 'other.npz', other)
    assert 'find its own' in user_error(lambda: direction_shift([f'{tmp_path}/other.npz:0'], generator))
