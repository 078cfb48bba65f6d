"""Mistakes that any script may be given: one line that names the thing, exit status 1 or 2, nothing left behind."""

from __future__ import annotations

import dataclasses
import fcntl
from pathlib import Path
from typing import Any

import click
import pytest
from cases_dataset import edit_zip, png
from cases_outputs import write_dataset, write_snapshot
from click.testing import CliRunner

import calc_metrics
import export_mesh
import gen_samples
import gen_videos
import latents
import project_avatar
import stylize
import train
from dnnlib.cli import MAX_LISTED, parse_float_list, parse_int_list
from dnnlib.errors import UserError
from dnnlib.files import output_folder
from training.config import preset
from training.run_directory import hold

SCRIPTS: dict[str, Any] = {
    'calc_metrics': calc_metrics.main,
    'export_mesh': export_mesh.main,
    'gen_samples': gen_samples.main,
    'gen_videos': gen_videos.main,
    'latents': latents.main,
    'project_avatar': project_avatar.main,
    'stylize': stylize.main,
    'train': train.main,
}
SAMPLES = 'gen_samples --network=net.pkl --outdir=out --seeds=0'


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, a damaged one, a dataset with heads and one without, a picture and a text."""
    path = tmp_path_factory.mktemp('mistakes')
    network = write_snapshot(path / 'net.pkl').read_bytes()
    (path / 'cut.pkl').write_bytes(network[: len(network) // 2])
    write_dataset(path / 'faces.zip', count=2)
    edit_zip(write_dataset(path / 'bare.zip', count=2), {'head.npz': None})
    (path / 'picture.png').write_bytes(png(16, 16))
    (path / 'text.txt').write_text('no data')
    (path / 'empty').mkdir()
    return path


@pytest.mark.parametrize(
    ('command', 'expected'),
    [
        (f'{SAMPLES} --trunc=nan', "'--trunc': nan is not a finite number"),
        (f'{SAMPLES} --fov-deg=nan', "'--fov-deg': nan is not a finite number"),
        (f'{SAMPLES} --yaws=0,inf', '--yaws: expected numbers like'),
        (f'{SAMPLES},4294967296', '--seeds: expected numbers like 0,3,5-8,10-90/2, below 2^32'),
        (f'{SAMPLES} --expression=jawOpen:nan', '--expression'),
        (f'{SAMPLES} --direction=picture.png:0', 'picture.png: no directions'),
        (f'{SAMPLES} --direction=picture.png:0:inf', '--direction picture.png:0:inf: expected FILE:INDEX'),
        (f'{SAMPLES} --head=picture.png', 'picture.png: not an .npz file of HeadParams'),
        (f'{SAMPLES} --head=picture.png --head-model=text.txt', 'text.txt: not a file of the embedded head model'),
        (f'{SAMPLES} --head-model=text.txt', 'text.txt: not a file of the embedded head model'),
        (f'{SAMPLES} --obj_path=a.obj --head-model=text.txt', '--head-model: is not read with --obj_path'),
        (f'{SAMPLES} --data=bare.zip', 'bare.zip: has images and cameras but no heads'),
        ('latents interpolate --network=net.pkl --outdir=out --yaw=nan', "'--yaw': nan is not a finite number"),
        ('latents truncate --network=net.pkl --outdir=out --psis=nan', '--psis: expected numbers like'),
        ('latents mix --network=net.pkl --outdir=out --layers=x', '--layers: expected numbers like'),
        ('latents mix --network=net.pkl --outdir=out --layers=40', '--layers: expected numbers from 0 to'),
        ('latents mix --network=net.pkl --outdir=new/out --rows=avatar', 'the network is no avatar'),
        ('latents directions --network=net.pkl --outdir=out --seed=avatar', 'the network is no avatar'),
        (
            'latents interpolate --network=net.pkl --outdir=out --seeds=avatar,1 --space=z',
            '--space=z: an avatar has no z',
        ),
        ('latents mix --network=cut.pkl --outdir=out', 'cut.pkl: damaged or cut short'),
        ('calc_metrics --network=net.pkl --data=faces.zip --metrics=', '--metrics: names none'),
        ('calc_metrics --network=net.pkl --data=faces.zip --metrics=aed --head-estimator=deca:x', 'x: no such file'),
        ('calc_metrics --network=net.pkl --data=bare.zip --metrics=fd_random2_full', 'dataset has no heads (head.npz)'),
        ('calc_metrics --network=picture.png --data=faces.zip --metrics=fd_random2', 'picture.png: not a snapshot'),
        ('calc_metrics report picture.png --out=tables.md', 'picture.png: line 1 is no result'),
        ('project_avatar --network=cut.pkl --data=faces.zip:0 --outdir=out', 'cut.pkl: damaged or cut short'),
        ('project_avatar --network=net.pkl --data=bare.zip:0 --outdir=out', 'bare.zip: has images and cameras but'),
        ('stylize --network=cut.pkl --images=faces.zip --outdir=out', 'cut.pkl: damaged or cut short'),
        ('stylize --network=net.pkl --images=empty --outdir=out', 'empty: holds no picture'),
        ('stylize --network=net.pkl --images=faces.zip --outdir=out --lr=nan', "'--lr': nan is not a finite number"),
        ('train --cfg=debug --data=bare.zip --outdir=out', 'bare.zip: has images and cameras but no heads'),
        ('train --cfg=debug --data=faces.zip --outdir=out --kimg=nan', "'--kimg': nan is not a finite number"),
        ('train --cfg=debug --data=faces.zip --outdir=out --glr=-1', "'--glr': -1.0 is not in the range"),
        ('train --cfg=debug --data=faces.zip --outdir=out --set=g_lr=NaN', 'g_lr: expected a finite number'),
        ('train --cfg=debug --data=faces.zip --outdir=out --set=d_lr=-1', 'd_lr: expected 0 or more'),
    ],
)
def test_one_line_and_nothing_left(folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, expected: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv('NEXT3D_CACHE_DIR', str(folder.parent / 'cache'))
    before = sorted(folder.rglob('*'))
    script, *options = command.split()
    done = CliRunner().invoke(SCRIPTS[script], options)
    assert done.exit_code in (1, 2), done.output
    assert isinstance(done.exception, SystemExit), done.exception
    last = done.output.splitlines()[-1]
    assert last.startswith('Error: ')
    assert expected in last
    assert 'unsafely' not in last  # numpy's advice to unpickle
    assert sorted(folder.rglob('*')) == before


def test_a_wrong_resume_leaves_no_run_behind(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The corrected command is not refused as another run's."""
    monkeypatch.chdir(folder)
    options = ['--cfg=debug', '--data=faces.zip', f'--outdir={tmp_path}/runs/new', '--mirror=false', '--resume=cut.pkl']
    done = CliRunner().invoke(train.main, options)
    assert done.exit_code == 1
    assert 'cut.pkl: damaged or cut short' in done.output
    assert list(tmp_path.iterdir()) == []


def test_only_empty_folders_of_ones_own_are_removed(tmp_path: Path) -> None:
    def fail(path: Path, *, written: bool) -> None:
        with output_folder(path) as made, hold(made):
            if written:
                (made / 'file').touch()
            raise ValueError('no')

    (tmp_path / 'old').mkdir()
    for name, written in (('old', False), ('new/deep', False), ('full/deep', True)):
        with pytest.raises(ValueError, match='no'):
            fail(tmp_path / name, written=written)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*'))
    assert left == ['full', 'full/deep', 'full/deep/.lock', 'full/deep/file', 'old']


def test_a_lock_that_was_removed_meanwhile_is_none(tmp_path: Path) -> None:
    """Who waited for the file of a failed process must not share the folder with who made a new one."""
    flock = fcntl.flock

    def removed_first(handle: Any, operation: int) -> None:
        monkeypatch.undo()
        (tmp_path / '.lock').unlink()
        flock(handle, operation)

    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(fcntl, 'flock', removed_first)
    with hold(tmp_path), pytest.raises(UserError, match='another process'), hold(tmp_path, wait=0):
        pass


def test_lists_of_numbers() -> None:
    assert parse_int_list('0,3, 5-7', option='--seeds') == [0, 3, 5, 6, 7]
    assert parse_int_list('1,10-17/3,5/2', option='--seeds') == [1, 10, 13, 16, 5]
    for wrong in (
        '',
        '-1',
        '5-4',
        '1.5',
        'a',
        '3-',
        '4294967296',
        '99999999999999999999',
        '1-5/',
        '1-5/0',
        '5-1/-1',
        '/2',
    ):
        with pytest.raises(UserError, match='--seeds: expected numbers'):
            parse_int_list(wrong, option='--seeds')
    with pytest.raises(UserError, match=f'--seeds: expected at most {MAX_LISTED} numbers'):
        parse_int_list('7,0-4000000000', option='--seeds')
    assert parse_float_list('0.4,-1e-1', option='--yaws') == [0.4, -0.1]
    for wrong in ('', 'nan', '1,inf', 'x'):
        with pytest.raises(UserError, match='--yaws: expected numbers'):
            parse_float_list(wrong, option='--yaws')


def test_configs_take_finite_rates_only() -> None:
    for name, value in (('g_lr', -1e-3), ('kimg', -1.0), ('d_lr', float('nan')), ('L.r1_gamma', float('inf'))):
        with pytest.raises(ValueError, match=name.split('.')[-1]):
            preset('debug', {name: value})
    with pytest.raises(ValueError, match='g_lr'):
        dataclasses.replace(preset('debug'), g_lr=-1.0)


def test_scripts_name_shared_options_alike() -> None:
    """One wording for one thing, in every script that has it."""
    texts: dict[str, set[str]] = {}
    commands: list[click.Command] = []
    for command in SCRIPTS.values():
        commands += [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
    for command in commands:
        for option in command.params:
            if isinstance(option, click.Option):
                texts.setdefault(option.opts[0], set()).add(option.help or '')
    alike = ('--network', '--trunc', '--trunc-cutoff', '--topology', '--eye-mask', '--rasterizer')
    for name in (*alike, '--direction', '--expression', '--index', '--lms_path'):
        assert len(texts[name]) == 1, texts[name]
