"""Exact resume in the modes that tests/test_training_resume.py leaves out, and what a run does about faults."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases_dataset import SheetHead, edit_zip, random_labels, random_params
from cases_training import CPU, count_images, open_sheet_dataset, tiny_config

from dnnlib import UserError
from training import grids, loop, manifest, snapshots
from training.bad_images import BadImages
from training.config import to_dict
from training.dataset import HeadDataset
from training.dataset_writer import DatasetWriter
from training.generator import STAGES
from training.run_dataset import dataset_of
from training.run_directory import Change, RunDirectory, changed_fields
from training.trainer import Trainer

BAD = '00000/img00000005.png'


@pytest.fixture(autouse=True)
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sheet heads, and pictures of two columns: they cost more than steps."""
    monkeypatch.setattr(loop, 'open_dataset', open_sheet_dataset)
    monkeypatch.setattr(grids, 'COLUMNS', 2)
    monkeypatch.setattr(grids, 'BLOCKS', 1)


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve 16 px images, three clips of four frames; one image is damaged."""
    path, model = tmp_path_factory.mktemp('modes') / 'clips.zip', SheetHead()
    rng, params, labels = np.random.default_rng(0), random_params(model, 12, seed=0), random_labels(12, seed=0)
    with DatasetWriter(path, resolution=16, head_model=model.name, head_model_hash=model.content_hash) as out:
        for i in range(12):
            image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            out.add(image, label=labels[i], head=params[[i]], clip=(i // 4, i % 4))
    return edit_zip(path, {BAD: b'\x89PNG\r\n\x1a\n and no more'})


def train(outdir: Path, data: Path, *, images: int, workers: int = 0, checkpoint: bool = False, **changes: Any) -> None:
    """A run of batches of two to so many images, with a snapshot a batch; on from where `outdir` ends."""
    named = {
        'kimg': images / 1000, 'batch': 2, 'batch_gpu': 2, 'tick_kimg': 0.002,
        'mirror': False, 'bad_images': 'skip', 'L__r1_interval': 3,
        'L__density_interval': 2, 'L__blur_fade_kimg': 0.02, 'L__pose_swap_fade_kimg': 0.02, **changes,
    }  # fmt: skip
    keep, override = named.pop('keep', None), named.pop('override', False)
    options = loop.RunOptions(
        outdir=str(outdir),
        workers=workers,
        checkpoint=frozenset(STAGES if checkpoint else ()),
        keep=keep,
        override_config=override,
    )
    loop.train(CPU, config=tiny_config(data, **named), options=options, evaluate=count_images)


def weights(outdir: Path, images: int) -> dict[str, Any]:
    """The flattened state at so many images but for the seconds that it took."""
    content = torch.load(outdir / f'training-state-{images:09d}.pt', weights_only=True)
    content['info'] = {k: v for k, v in json.loads(content['info']).items() if k != 'seconds'}
    flat: dict[str, Any] = {}
    todo = [('', content)]
    while todo:
        prefix, value = todo.pop()
        if isinstance(value, dict):
            todo += [(f'{prefix}.{key}', item) for key, item in value.items()]
        else:
            flat[prefix] = value.tolist() if isinstance(value, torch.Tensor) else value
    return flat


def records(outdir: Path) -> list[dict[str, Any]]:
    lines = (outdir / 'stats.jsonl').read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if not key.startswith('Timing')} for line in lines]


MODES: dict[str, dict[str, Any]] = {
    'clips by two processes, past a bad image': {'clip_frames': 2, 'workers': 2, 'augment': 'ada', 'ada_kimg': 0.05},
    'accumulated, mirrored, mixed, bf16, Freeze-D, recomputed': {
        'batch_gpu': 1, 'mirror': True, 'L__style_mixing_prob': 0.9, 'precision': 'bf16', 'freeze_d': 2,
        'checkpoint': True, 'D__mbstd_group_size': 1,
    },
}  # fmt: skip


@pytest.mark.parametrize('mode', MODES)
def test_a_stopped_run_ends_as_one_that_was_not(data: Path, tmp_path: Path, mode: str) -> None:
    options = MODES[mode]
    train(tmp_path / 'whole', data, images=6, **options)
    for images in (4, 6):
        train(tmp_path / 'stopped', data, images=images, **options)
    assert weights(tmp_path / 'whole', 6) == weights(tmp_path / 'stopped', 6)
    assert records(tmp_path / 'whole') == records(tmp_path / 'stopped')
    assert [record['images_seen'] for record in records(tmp_path / 'stopped')] == [2, 4, 6]
    if 'clips' in mode:
        assert sum(record['Data/bad_images']['mean'] for record in records(tmp_path / 'whole')) >= 1
        assert (tmp_path / 'whole' / 'log.txt').read_text().count(f'{BAD} is damaged') == 1


@pytest.fixture(scope='module')
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three batches that kept all its files."""
    folder = tmp_path_factory.mktemp('run') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, 'open_dataset', open_sheet_dataset)
        patch.setattr(grids, 'COLUMNS', 2)
        patch.setattr(grids, 'BLOCKS', 1)
        train(folder, data, images=6, keep=9)
    return folder


def _copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / 'copy'))


def test_a_broken_last_state_falls_back_to_the_one_before(run: Path, data: Path, tmp_path: Path) -> None:
    folder = _copy(run, tmp_path)
    last = folder / 'training-state-000000006.pt'
    last.write_bytes(last.read_bytes()[:-1000])
    train(folder, data, images=6)
    log = (folder / 'log.txt').read_text()
    assert f'warning: {last}: damaged or cut short' in log
    assert 'going on from the one before, training-state-000000004.pt' in log
    assert weights(run, 6) == weights(folder, 6)
    assert [record['images_seen'] for record in records(folder)] == [2, 4, 6]
    assert sorted(path.name for path in folder.glob('*.pt')) == [f'training-state-{n:09d}.pt' for n in (4, 6)]


@pytest.mark.parametrize('damage', ['missing', 'flipped', 'exchanged', 'empty', 'foreign'])
def test_every_damage_falls_back(run: Path, tmp_path: Path, damage: str) -> None:
    folder = _copy(run, tmp_path)
    last, before = (folder / f'training-state-{n:09d}.pt' for n in (6, 4))
    content = bytearray(last.read_bytes())
    if damage == 'missing':
        last.unlink()
    elif damage == 'flipped':
        content[len(content) // 2] ^= 8
        last.write_bytes(content)
    elif damage == 'exchanged':
        shutil.copy(before, last)  # whole, but not what the run wrote
    elif damage == 'empty':
        last.write_bytes(b'')
    else:
        shutil.copy(folder / 'network-snapshot-000000.pkl', last)
    lines: list[str] = []
    point = snapshots.latest_state(folder, log=lines.append)
    assert point is not None
    assert point.file == before
    assert len(lines) == (0 if damage == 'missing' else 1)
    assert all(str(last) in line and before.name in line for line in lines)


def test_no_state_left_is_an_error_and_not_a_new_start(run: Path, data: Path, tmp_path: Path) -> None:
    folder = _copy(run, tmp_path)
    for path in folder.glob('*.pt'):
        path.write_bytes(b'')
    with pytest.raises(UserError, match='000006.pt: not a snapshot or state .* no other state is left'):
        train(folder, data, images=6)


def test_a_changed_config_goes_on_when_told_to(run: Path, data: Path, tmp_path: Path) -> None:
    folder = _copy(run, tmp_path)
    with pytest.raises(UserError, match=r'freeze_d \(0 -> 2\), g_lr \(0.0025 -> 0.1\);.* --override-config$'):
        train(folder, data, images=8, g_lr=0.1, freeze_d=2)
    before = torch.load(folder / 'training-state-000000006.pt', weights_only=True)
    train(folder, data, images=8, g_lr=0.1, freeze_d=2, override=True)
    options = json.loads((folder / 'training_options.json').read_text())
    changes = {'freeze_d': [0, 2], 'g_lr': [0.0025, 0.1]}
    assert options['g_lr'] == 0.1
    assert options['history'] == [{'images_seen': 6, 'changes': changes}]
    assert (
        '--override-config at kimg 0.006: freeze_d (0 -> 2), g_lr (0.0025 -> 0.1)' in (folder / 'log.txt').read_text()
    )
    after = torch.load(folder / 'training-state-000000008.pt', weights_only=True)
    frozen = set(before['optimizer_D']) - set(after['optimizer_D'])
    assert len(frozen) == 4
    assert all(torch.equal(before['D'][name], after['D'][name]) for name in frozen)
    moved = {name for name in after['D'] if not torch.equal(before['D'][name], after['D'][name])}
    assert moved
    assert moved.isdisjoint(frozen)

    with pytest.raises(UserError, match='000008.pt: G_ema: (lacks|has)'):
        train(folder, data, images=10, g_lr=0.1, freeze_d=2, override=True, G__superres_channels=16)


def test_a_change_is_overridden_once(tmp_path: Path) -> None:
    """The last state before a change still has the old config; the run goes on from it without the flag."""
    old, new = tiny_config(seed=1), tiny_config(seed=2)
    changes = changed_fields(to_dict(old), to_dict(new))
    for config, override in ((old, False), (new, True), (new, False)):
        directory = RunDirectory(tmp_path)
        directory.check_options(config, override=override)
        if config is new:
            directory.check_state(tmp_path / 'training-state-000000008.pt', changes, override=override)
        directory.begin(config, images_seen=8)
        directory.close()
    options = json.loads((tmp_path / 'training_options.json').read_text())
    assert options['history'] == [{'images_seen': 8, 'changes': {'seed': [1, 2]}}]
    with pytest.raises(UserError, match=r'made with other options: g_lr \(0.1 -> 0.2\)'):
        directory.check_state(tmp_path / 'training-state-000000008.pt', [*changes, Change('g_lr', 0.1, 0.2)])
    with pytest.raises(UserError, match=r'made with other options: seed'):  # a state that was saved after the change
        directory.check_state(tmp_path / 'training-state-000000009.pt', changes)
    damages: list[Any] = [3, 'x', [1], [{}], [{'changes': {}}], [{'images_seen': 1, 'changes': 5}]]
    for history in damages:
        (tmp_path / 'training_options.json').write_text(json.dumps({**options, 'history': history}))
        with pytest.raises(UserError, match='training_options.json: unreadable'):
            directory.check_options(new)


def test_snapshots_rotate(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / f'network-snapshot-{number:06d}.pkl').touch()
        (tmp_path / f'training-state-{1000 * number:09d}.pt').touch()
    (tmp_path / 'training-state-000009000.pt').touch()  # a broken one: the run fell back from it
    for keep, snapshots_left, states_left in ((None, 3, [2000, 3000]), (2, 2, [2000, 3000]), (1, 1, [3000])):
        manifest.rotate(tmp_path, keep=keep, at=3000)
        assert len(list(tmp_path.glob('network*'))) == snapshots_left
        assert sorted(manifest.position(path) for path in tmp_path.glob('*.pt')) == states_left


def test_the_manifest_fits_before_and_after_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / 'training-state-000000008.pt'
    manifest.verify(path)  # knows nothing of it
    for content in (b'old', b'new'):
        manifest.announce(path, hashlib.sha256(content).hexdigest())
        if content == b'new':
            manifest.verify(path)  # a kill now leaves the old file
        path.write_bytes(content)
        manifest.verify(path)
    path.write_bytes(b'other')
    with pytest.raises(UserError, match=f'{path}: damaged or exchanged'):
        manifest.verify(path)
    path.unlink()
    manifest.announce(tmp_path / 'network-snapshot-000000.pkl', 'ab')
    assert list(manifest.read_manifest(tmp_path)) == ['network-snapshot-000000.pkl']
    for damage in ('', '[]', '{"training-state-000000008.pt": 3}'):
        (tmp_path / manifest.MANIFEST_FILE).write_text(damage)
        assert manifest.read_manifest(tmp_path) == {}


def test_training_goes_on_while_a_snapshot_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped, save, step = threading.Event(), snapshots.save_snapshot, Trainer.step

    def slow_save(*arguments: Any, **options: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            assert stepped.wait(60), 'the loop waits for the writer'
        save(*arguments, **options)

    def noted_step(self: Trainer, real: Any) -> None:
        step(self, real)
        if self.images_seen == 4:
            stepped.set()

    monkeypatch.setattr(snapshots, 'save_snapshot', slow_save)
    monkeypatch.setattr(Trainer, 'step', noted_step)
    train(tmp_path, data, images=4)
    assert stepped.is_set()
    assert len(list(tmp_path.glob('*.pt'))) == 2


def test_the_writer_hands_its_errors_over() -> None:
    def fail() -> str:
        raise UserError('the disk is full')

    with pytest.raises(UserError, match='the disk is full'), snapshots.BackgroundWriter() as writer:
        writer.start(fail)
    with snapshots.BackgroundWriter() as writer:
        assert writer.finished(wait=True) is None
        writer.start(lambda: 'saved')
        assert writer.finished(wait=True) == 'saved'
        assert writer.finished() is None

    def fail_twice() -> None:
        with snapshots.BackgroundWriter() as writer:
            writer.start(fail)
            raise KeyError

    with pytest.raises(KeyError):  # the first error is the one to tell
        fail_twice()


def test_a_killed_loading_process_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.step
    killed: list[Any] = []

    def deadly_step(self: Trainer, real: Any) -> None:
        step(self, real)
        if self.images_seen == 4:
            killed[:] = [multiprocessing.active_children()[0].pid]
            os.kill(killed[0], signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, 'step', deadly_step)
        with pytest.raises(
            UserError, match=r'loads images \(pid \d+\) was killed by signal.*the same command'
        ) as caught:
            train(tmp_path, data, images=4000, workers=1)
    assert str(killed[0]) in str(caught.value)
    assert '\n' not in str(caught.value)
    train(tmp_path, data, images=6, workers=1)
    assert (tmp_path / 'training-state-000000006.pt').exists()


def _open(data: Path, bad_images: str = 'skip', **options: Any) -> HeadDataset:
    return dataset_of(tiny_config(data, bad_images=bad_images, **options), head_model=SheetHead())


def test_a_bad_image_is_named_and_may_be_skipped_later(data: Path) -> None:
    with pytest.raises(UserError, match=f'clips.zip: {BAD}: not a readable image'):
        _open(data, bad_images='stop').readable([4, 5])
    stop, skip = (to_dict(tiny_config(data, bad_images=choice)) for choice in ('stop', 'skip'))
    assert changed_fields(stop, skip) == []


def test_the_next_item_takes_the_place_of_a_bad_one(data: Path, tmp_path: Path) -> None:
    dataset = _open(data)
    chosen, images, replaced = dataset.readable([4, 5, 17])
    assert (chosen, replaced) == ([4, 6, 18], [5, 5])  # 17 is the mirror image of 5
    assert torch.equal(images, dataset.images([4, 6, 18]))
    assert torch.equal(dataset.images([5]), dataset.images([6]))

    worse = shutil.copy(data, tmp_path / 'worse.zip')
    edit_zip(Path(worse), {f'00000/img{n:08d}.png': b'no image' for n in (6, 7)})
    assert _open(Path(worse)).readable([5])[0] == [8]
    assert _open(Path(worse), clip_frames=2).readable([5, 6, 7])[0] == [4, 4, 4]  # frames of the same clip
    edit_zip(Path(worse), {'00000/img00000004.png': b'no image'})
    with pytest.raises(UserError, match='img00000005.png: not a readable image.*no frame of its clip is readable'):
        _open(Path(worse), clip_frames=2).readable([5])


def test_too_many_bad_images_stop_a_run(data: Path) -> None:
    counter = BadImages(_open(data))
    assert counter.collect(CPU, read=100, rows=[5] * 10) == (
        10,
        [f'warning: {data}: {BAD} is damaged, others take its place'],
    )
    assert counter.collect(CPU, read=2000, rows=[5] * 11) == (11, [])
    with pytest.raises(UserError, match=rf'22 of 2110 images read were damaged, more than 1%, among them {BAD}'):
        counter.collect(CPU, read=10, rows=[5])


def test_a_disk_that_fails_is_no_bad_image(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = _open(data)

    def read(name: str) -> bytes:
        raise UserError('Input/output error') from OSError(5, 'Input/output error')

    monkeypatch.setattr(dataset._source, 'read', read)
    with pytest.raises(UserError, match='Input/output error'):
        dataset.readable([1])
