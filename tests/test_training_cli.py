"""train.py: a run from end to end, and one clear line for every mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cases_dataset import make_dataset
from cases_training import ROOT
from click.testing import CliRunner, Result
from PIL import Image

import train
from training import loop, run_directory, snapshots
from training.checkpoint import load_generator
from training.head import load_head_model


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten random 16 px images with makehuman heads."""
    return make_dataset(
        tmp_path_factory.mktemp('data') / 'heads.zip', count=10, resolution=16, model=load_head_model('makehuman')
    )


def run(*arguments: str) -> Result:
    return CliRunner().invoke(train.main, [*arguments, '--device=cpu'])


def refused(result: Result, message: str) -> None:
    """One line that begins with Error, exit status 1 or click's 2, no traceback."""
    assert result.exit_code in (1, 2), result.output
    lines = [line for line in result.output.splitlines() if line.strip()]
    if result.exit_code == 1:
        assert len(lines) == 1, result.output
    assert lines[-1].startswith('Error: '), result.output
    assert message in lines[-1]
    assert 'Traceback' not in result.output


def test_a_run_from_end_to_end(data: Path, tmp_path: Path) -> None:
    out = tmp_path / 'run'
    options = (f'--outdir={out}', '--cfg=debug', f'--data={data}', '--kimg=0.008', '--tick=0.004', '--batch_gpu=2')
    result = run(*options)
    assert result.exit_code == 0, result.output
    assert 'tick 1' in result.output
    names = {file.name for file in out.iterdir() if not file.name.startswith('events')}
    assert names == {
        '.lock',
        'fakes000000.png',
        'log.txt',
        'network-snapshot-000000.pkl',
        'reals.png',
        'report.html',
        'sessions.jsonl',
        'stats.jsonl',
        'manifest.json',
        'training-state-000000004.pt',
        'training-state-000000008.pt',
        'training_options.json',
    }
    with Image.open(out / 'fakes000000.png') as grid, Image.open(out / 'reals.png') as reals:
        assert grid.size == (8 * 16, 8 * 16)
        assert reals.size == (8 * 16, 2 * 16)
    stats = [json.loads(line) for line in (out / 'stats.jsonl').read_text().splitlines()]
    assert [record['images_seen'] for record in stats] == [4, 8]
    assert stats[0]['Loss/scores/real']['num'] == 4
    loaded = load_generator(out / 'network-snapshot-000000.pkl')
    assert (loaded.head_model_name, loaded.info.images_seen, loaded.info.framing) == ('makehuman', 8, 'pivot')
    assert json.loads((out / 'training_options.json').read_text())['data'] == str(data)

    longer = run(*(option.replace('0.008', '0.012') for option in options))
    assert longer.exit_code == 0
    assert 'resumed' in longer.output
    assert 'kimg 0.012' in longer.output
    refused(run(*options, '--gamma=3'), 'loss.r1_gamma (0.2 -> 3.0)')


def test_dry_run_writes_nothing(data: Path, tmp_path: Path) -> None:
    out = tmp_path / 'run'
    result = run(f'--outdir={out}', '--cfg=debug', f'--data={data}', '--dry-run', '--set', 'G.depth_samples=6')
    assert result.exit_code == 0, result.output
    config = json.loads(result.output[: result.output.index('dry run')])
    assert config['generator']['depth_samples'] == 6
    assert config['batch_gpu'] == 4
    assert config['head_model'] == 'makehuman'
    assert re.search(
        r'one step of 4 images on 1 rank\(s\) in .* s: Gmain \d.*, Gdensity \d.*, Dmain \d.*, Dr1 \d', result.output
    )
    assert 'estimated memory of a rank at batch-gpu 4: ' in result.output
    assert 'measured peak of rank 0, the whole process, in GiB: cpumem ' in result.output
    assert not out.exists()


def test_options_reach_the_config() -> None:
    given = {
        '--batch=8': ('batch', 8),
        '--gamma=3': ('loss.r1_gamma', 3.0),
        '--glr=0.1': ('g_lr', 0.1),
        '--aug=ada': ('augment', 'ada'),
        '--target=0.7': ('ada_target', 0.7),
        '--mirror=0': ('mirror', False),
        '--snap=7': ('image_ticks', 7),
        '--metrics=none': ('metrics', []),
        '--gen_pose_cond=false': ('generator.label_scale', 0.0),
        '--neural_rendering_resolution_final=4': ('generator.render_resolution', 4),
        '--mouth=texture': ('generator.mouth_source', 'texture'),
        '--mouth-planes=front': ('generator.mouth_planes', 'front'),
        '--disc-template=none': ('discriminator.template', 'none'),
        '--mbstd-group=2': ('discriminator.mbstd_group_size', 2),
        '--style_mixing_prob=0.9': ('loss.style_mixing_prob', 0.9),
        '--density-reg=0': ('loss.density_weight', 0.0),
        '--set=G.plane_layout=release': ('generator.plane_layout', 'release'),
        '--freezed=2': ('freeze_d', 2),
        '--p=0.3': ('augment_p', 0.3),
        '--neural_rendering_resolution_initial=4': ('loss.render_resolution_initial', 4),
        '--neural-rendering-resolution-fade-kimg=7': ('loss.render_fade_kimg', 7.0),
    }
    seen: dict[str, Any] = {}

    def stop(config: Any, *, head_model: str | None) -> Any:
        from training.config import to_dict

        seen.update(to_dict(config))
        raise train.UserError('enough')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, 'prepare', stop)
        refused(run('--outdir=x', '--cfg=debug', '--data=x', *given), 'enough')
    for name, wanted in given.values():
        value: Any = seen
        for part in name.split('.'):
            value = value[part]
        assert value == wanted, name


def test_every_option_is_a_config_field_or_read() -> None:
    options = {parameter.name for parameter in train.main.params}
    elsewhere = {
        'outdir',
        'cfg',
        'metrics',
        'assignments',
        'workers',
        'device',
        'head_model',
        'dry_run',
        'rasterizer',
    } | {'grad_checkpoint', 'keep', 'override_config', 'timeout', 'max_skipped'}
    assert options == set(train.FIELDS) | elsewhere


def test_the_help_teaches_the_everyday_options_first() -> None:
    """Every option stands under one heading; the first two hold 25, and every option's text is printed."""
    listed = [name for names in train.SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(str(parameter.name) for parameter in train.main.params)
    assert sum(len(names) for names in list(train.SECTIONS.values())[:2]) <= 25
    text = CliRunner().invoke(train.main, ['--help']).output
    places = [text.index(f'\n{heading}:\n') for heading in train.SECTIONS]
    assert places == sorted(places)
    for parameter in train.main.params:
        assert re.search(rf'^  ({"|".join(parameter.opts)})\b', text, re.MULTILINE), parameter.name


MISTAKES = [
    (['--cfg=synth64'], '--data: missing, the dataset to train on; make the embedded one by `python dataset_tool.py'),
    (['--cfg=ffhq9000', '--data={data}'], '--cfg: expected one of ffhq512, ffhq256'),
    (['--cfg=debug', '--data={tmp}/none.zip'], 'none.zip: no such dataset'),
    (['--cfg=debug', '--data={tmp}/text.zip'], 'text.zip: not a zip'),
    (['--cfg=debug', '--data={tmp}/unlabelled.zip'], 'unlabelled.zip'),
    (['--cfg=debug', '--data={tmp}/headless.zip'], 'headless.zip: has images and cameras but no heads'),
    (['--cfg=synth64', '--data={data}'], '--data: {data} holds 16 px images, but synth64 makes 64 px ones'),
    (['--cfg=debug', '--data={data}', '--batch=6', '--batch-gpu=4'], '--batch: 6 is not divisible by --gpus x'),
    (['--cfg=debug', '--data={data}', '--batch=5', '--gpus=2'], '--batch: 5 is not divisible by --gpus x'),
    (['--cfg=debug', '--data={data}', '--batch=0'], '--batch'),
    (
        ['--cfg=debug', '--data={data}', '--batch-gpu=some'],
        "--batch-gpu: expected a number of images or auto, got 'some'",
    ),
    (
        ['--cfg=debug', '--data={data}', '--grad-checkpoint=nose'],
        "--grad-checkpoint: unknown stage 'nose'; expected all",
    ),
    (['--cfg=debug', '--data={data}', '--set=depth'], '--set depth: expected KEY=VALUE'),
    (['--cfg=debug', '--data={data}', '--set=X.y=1'], '--set X.y=1: expected KEY=VALUE'),
    (['--cfg=debug', '--data={data}', '--set=G.depth=1'], 'unknown key(s) depth'),
    (['--cfg=debug', '--data={data}', '--set=G.depth_samples=many'], 'depth_samples: expected int'),
    (['--cfg=debug', '--data={data}', '--disc-template=wild'], 'template: expected one of none, uv'),
    (['--cfg=debug', '--data={data}', '--metrics=fid'], "metric 'fid': unknown"),
    (['--cfg=debug', '--data={data}', '--resume={tmp}/text.zip'], 'text.zip: not a snapshot'),
    (['--cfg=debug', '--data={data}', '--resume={data}'], 'heads.zip: not a file of this project'),
    (['--cfg=debug', '--data={data}', '--outdir={tmp}/text.zip/run'], 'text.zip/run'),
    (['--cfg=debug', '--data={data}', '--outdir=/proc/run'], '/proc/run'),
]


@pytest.fixture(scope='module')
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import zipfile

    folder = tmp_path_factory.mktemp('bad')
    (folder / 'text.zip').write_text('hello world')
    make_dataset(folder / 'headless.zip', heads='none')
    with zipfile.ZipFile(folder / 'headless.zip') as source, zipfile.ZipFile(folder / 'unlabelled.zip', 'w') as target:
        for name in source.namelist():
            if name != 'dataset.json':
                target.writestr(name, source.read(name))
    return folder


@pytest.mark.parametrize(
    ('arguments', 'message'), MISTAKES, ids=[' '.join(case[0][1:]) or 'no data' for case in MISTAKES]
)
def test_mistakes_are_one_clear_line(
    data: Path, bad_files: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    filled = [text.format(data=data, tmp=bad_files) for text in arguments]
    result = run(f'--outdir={tmp_path / "run"}', *filled)
    refused(result, message.format(data=data))
    left = list((tmp_path / 'run').glob('*')) if (tmp_path / 'run').exists() else []
    assert not [file for file in left if file.suffix in ('.pkl', '.pt') or file.name.endswith('.tmp')]


def test_a_full_disk_ends_the_run_in_one_line(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first snapshot still fits, the next does not: it stays, with the state that belongs to it."""
    import errno

    options = (f'--outdir={tmp_path}', '--cfg=debug', f'--data={data}', '--tick=0.004')
    assert run(*options, '--kimg=0.004').exit_code == 0
    before = {
        name: (tmp_path / name).read_bytes()
        for name in ('network-snapshot-000000.pkl', 'training-state-000000004.pt', 'manifest.json')
    }

    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(snapshots, 'save_snapshot', _with(fsync, snapshots.save_snapshot))
    result = run(*options, '--kimg=0.008')
    assert result.exit_code == 1
    # The thread that writes the snapshot or the loop that writes the report meets it first.
    assert re.search(rf'Error: {tmp_path}/(manifest.json|report.html): the disk is full; free', result.output)
    assert 'Traceback' not in result.output
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert not list(tmp_path.glob('.*.tmp'))


def _with(fsync: Any, function: Any) -> Any:
    """`function` on a disk whose fsync is `fsync`."""

    def wrapped(*arguments: Any, **options: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr('dnnlib.files.os.fsync', fsync)
            function(*arguments, **options)

    return wrapped


def test_a_full_disk_while_logging(tmp_path: Path) -> None:
    if not Path('/dev/full').exists():
        pytest.skip('no /dev/full')
    directory = run_directory.RunDirectory(tmp_path)
    (tmp_path / 'stats.jsonl').symlink_to('/dev/full')
    with pytest.raises(train.UserError, match='stats.jsonl: the disk is full'):
        directory.record('stats', {'images_seen': 1})


def test_help_is_quick_and_complete() -> None:
    code = (
        'import sys, train\n'
        'from click.testing import CliRunner\n'
        "assert '--gamma' in CliRunner().invoke(train.main, ['--help']).output\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, timeout=60)


def test_two_ranks_from_the_command_line(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, 'train.py', f'--outdir={tmp_path}', '--cfg=debug', f'--data={data}', '--gpus=2']
    more = ['--kimg=0.004', '--metrics=fd_random4', '--device=cpu']
    done = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert 'ranks 2' in done.stdout
    record = json.loads((tmp_path / 'stats.jsonl').read_text())
    assert record['Loss/scores/real']['num'] == 4
    assert record['Timing/data_sec']['num'] == 2  # both ranks wait for their data
    assert 0.05 < record['Monitor/alpha_front'] < 0.5
    assert 'Monitor/mouth_response' not in record  # a mouth of 3 pixels
    metric = json.loads((tmp_path / 'metric-fd_random4.jsonl').read_text())
    assert (metric['images_seen'], metric['num_generated']) == (4, 4)
    assert load_generator(tmp_path / 'network-snapshot-000000.pkl').info.metrics == {'fd_random4': metric['value']}


def test_threads_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_utils import distributed

    seen: list[int] = []
    monkeypatch.setattr(torch, 'set_num_threads', seen.append)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    distributed.limit_threads(2)
    monkeypatch.delenv('OMP_NUM_THREADS')
    monkeypatch.setattr('os.sched_getaffinity', lambda _: set(range(8)))
    distributed.limit_threads(2)
    assert seen == [4]
