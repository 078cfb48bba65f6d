"""latents.py blend: its ends are the avatars, what lies between is a person of its own, others are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import gen_samples
import latents
from applications.avatar_blend import blend, normalized, read_avatars, steps_between
from applications.heads import HeadChoice, choose_head
from applications.images import to_array
from applications.samples import CameraRig
from dnnlib import UserError
from tests.cases_outputs import random_params, write_avatar, write_snapshot
from training.avatar import Avatar
from training.checkpoint import load_generator, load_snapshot, save_snapshot

SIZE = 16


def write_person(path: Path, network: Path, *, seed: int) -> Path:
    """An avatar whose weights, latent and identity are a person's own."""
    snapshot = load_snapshot(network)
    rng = torch.Generator().manual_seed(seed)
    weights = {
        name: value + 0.05 * value.std() * torch.randn(value.shape, generator=rng)
        if name.endswith('.weight') and not name.startswith('mapping.')
        else value
        for name, value in snapshot.networks['G_ema'].items()
    }
    avatar = load_snapshot(write_avatar(path, network)).avatar
    assert avatar is not None
    own = Avatar(
        ws=avatar.ws + torch.randn(avatar.ws.shape, generator=rng),
        identity=10 * random_params(seed=seed).identity,
        base='ab' * 32,
        protocol={'seed': seed},
    )
    save_snapshot(path, dataclasses.replace(snapshot, networks={'G_ema': weights, 'G': {}, 'D': {}}, avatar=own))
    return path


@pytest.fixture(scope='module')
def people(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp('people')
    network = write_snapshot(folder / 'net.pkl')
    return [write_person(folder / f'{name}.pkl', network, seed=seed) for seed, name in enumerate('ab')]


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(latents.main, ['blend', *map(str, arguments), '--device=cpu'])
    assert 'Traceback' not in result.output
    return result.exit_code, result.output.splitlines()[-1]


def test_ends_are_the_avatars_bit_for_bit_and_the_middle_is_the_mean(people: list[Path]) -> None:
    files = read_avatars(people)
    for index, shares in enumerate(([1.0, 0.0], [0.0, 1.0])):
        end, own = blend(files, shares), files[index].snapshot
        assert end.avatar is not None
        assert own.avatar is not None
        assert end.networks['G_ema'].keys() == own.networks['G_ema'].keys()
        for name, value in own.networks['G_ema'].items():
            assert torch.equal(end.networks['G_ema'][name], value), name
        assert torch.equal(end.avatar.ws, own.avatar.ws)
        assert torch.equal(end.avatar.identity, own.avatar.identity)
    middle = blend(files, [0.25, 0.75])
    assert middle.avatar is not None
    pairs = [
        (middle.avatar.ws, [file.avatar.ws for file in files]),
        (middle.avatar.identity, [file.avatar.identity for file in files]),
        *(
            (value, [file.snapshot.networks['G_ema'][name] for file in files])
            for name, value in middle.networks['G_ema'].items()
        ),
    ]
    for value, (first, second) in pairs:
        torch.testing.assert_close(value, (0.25 * first + 0.75 * second).to(value.dtype))
    assert [entry['protocol'] for entry in middle.avatar.protocol['blend']] == [{'seed': 0}, {'seed': 1}]
    with pytest.raises(ValueError, match='shares: expected 2 numbers, got 1'):
        blend(files, [1.0])


def test_shares() -> None:
    assert list(steps_between(3, steps=2)) == [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert list(steps_between(2, steps=3)) == [[1, 0], [0.5, 0.5], [0, 1]]
    assert normalized([1, 3], count=2) == [0.25, 0.75]
    for wrong in ([1.0], [0.0, 0.0], [-1.0, 2.0], [1e308, 1e308]):
        with pytest.raises(UserError, match='--shares: expected'):
            normalized(wrong, count=2)


@torch.no_grad()
def test_the_sheet_and_a_checkpoint_that_scripts_take(people: list[Path], tmp_path: Path) -> None:
    given = [f'--avatar={path}' for path in people]
    status, last = run(*given, f'--outdir={tmp_path}', '--steps=3', '--shares=1,1', '--expression=jawOpen')
    assert status == 0, last
    assert {path.name for path in tmp_path.iterdir()} == {'avatar.pkl', 'blend.png'}
    with Image.open(tmp_path / 'blend.png') as picture:
        sheet = np.asarray(picture)
    assert sheet.shape == (SIZE, 3 * SIZE, 3)

    start, middle, end = np.split(sheet, 3, axis=1)

    def drawn(path: Path) -> np.ndarray:
        loaded = load_generator(path)
        assert loaded.avatar is not None
        head = choose_head(HeadChoice(expressions=('jawOpen',)), loaded)
        planes = loaded.generator.deform(loaded.generator.identity(loaded.avatar.ws), head)
        return to_array(loaded.generator.render(planes, CameraRig().front()).image[0].clamp(-1, 1))

    for cell, path in ((start, people[0]), (end, people[1]), (middle, tmp_path / 'avatar.pkl')):
        assert np.array_equal(cell, drawn(path))
    for other in (start, end):
        assert np.abs(middle.astype(int) - other).max() > 5
    samples = CliRunner().invoke(
        gen_samples.main,
        [f'--network={tmp_path / "avatar.pkl"}', f'--outdir={tmp_path / "samples"}', '--yaws=0', '--device=cpu'],
    )
    assert samples.exit_code == 0, samples.output
    assert (tmp_path / 'samples' / 'avatar.png').is_file()


def test_strangers_are_refused_in_one_line(people: list[Path], tmp_path: Path) -> None:
    first = people[0]
    snapshot = load_snapshot(people[1])
    avatar = snapshot.avatar
    assert avatar is not None
    others: dict[str, dict[str, Any]] = {
        'base': {'avatar': dataclasses.replace(avatar, base='cd' * 32)},
        'mesh': {'avatar': dataclasses.replace(avatar, identity=torch.zeros(1, 0))},
        'head': {'info': dataclasses.replace(snapshot.info, head_model_hash='x')},
        'none': {'avatar': None},
    }
    for name, changes in others.items():
        save_snapshot(tmp_path / f'{name}.pkl', dataclasses.replace(snapshot, **changes))
    expected = {
        'base': 'base.pkl: tuned from another network (cdcdcdcdcdcd) than',
        'mesh': 'mesh.pkl: its head has 0 identity numbers',
        'head': 'head.pkl: another architecture or head model than',
        'none': 'none.pkl: no avatar; expected an avatar.pkl of project_avatar.py',
        'absent': 'absent.pkl: No such file',
    }
    out = tmp_path / 'out'
    for name, message in expected.items():
        status, last = run(f'--avatar={first}', f'--avatar={tmp_path / name}.pkl', f'--outdir={out}')
        assert (status, message in last) == (1, True), last
    both = [f'--avatar={path}' for path in people]
    for arguments, message in (
        (both[:1], '--avatar: blending needs 2 or more, got 1'),
        ([*both, '--shares=1'], '--shares: expected 2 numbers'),
        ([*both, '--shares=a,b'], '--shares: expected numbers like'),
        ([*both, '--shares=1,1', '--expression=x'], "--expression 'x': unknown"),
    ):
        status, last = run(*arguments, f'--outdir={out}')
        assert (status, message in last) == (1, True), last
    assert not out.exists()
    (tmp_path / 'own').mkdir()
    own = (tmp_path / 'own' / 'avatar.pkl').resolve()
    own.write_bytes(first.read_bytes())
    status, last = run(f'--avatar={own}', both[1], f'--outdir={own.parent}', '--shares=1,1')
    assert 'is an --avatar itself; choose another --outdir' in last
    assert own.read_bytes() == first.read_bytes()
