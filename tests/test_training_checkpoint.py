"""Snapshots: what they hold, what they refuse, that loading runs nothing and writing is whole or nothing."""

from __future__ import annotations

import errno
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from cases_dataset import SheetHead, random_labels
from cases_training import ROOT, tiny_config, tiny_trainer

from dnnlib import UserError
from training import checkpoint
from training.checkpoint import Info, Snapshot, load_generator, load_snapshot, load_training_state, save_snapshot
from training.discriminator import DualDiscriminator
from training.generator import Generator
from training.loop import warm_start
from training.snapshots import read_state

KEYS = ROOT / 'tests' / 'data' / 'snapshot_keys.txt'


def _snapshot(seed: int = 0) -> Snapshot:
    torch.manual_seed(seed)
    config, template = tiny_config(), SheetHead().template
    generator, discriminator = Generator(config.generator, template), DualDiscriminator(config.discriminator)
    networks = {'G_ema': generator, 'G': generator, 'D': discriminator}
    return Snapshot(
        config=config,
        info=Info(images_seen=42000, head_model='sheet', head_model_hash='ab', metrics={'fid50k_full': 3.9}),
        template=template,
        networks={name: checkpoint.plain_state(network) for name, network in networks.items()},
    )


@pytest.fixture(scope='module')
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('snapshot') / checkpoint.snapshot_name(42000)
    save_snapshot(path, _snapshot())
    return path


def test_name() -> None:
    assert checkpoint.snapshot_name(42999) == 'network-snapshot-000042.pkl'


def test_round_trip(saved: Path) -> None:
    snapshot, wanted = load_snapshot(saved), _snapshot()
    assert snapshot.config == wanted.config
    assert snapshot.info == wanted.info
    for name, state in wanted.networks.items():
        assert state.keys() == snapshot.networks[name].keys()
        assert all(torch.equal(value, snapshot.networks[name][key]) for key, value in state.items())
    for name, value in wanted.template.state().items():
        assert torch.equal(value, snapshot.template.state()[name])


def test_a_snapshot_is_self_contained(saved: Path) -> None:
    loaded = load_generator(saved)
    assert loaded.head_model_name == 'sheet'
    assert not loaded.generator.training
    assert not any(parameter.requires_grad for parameter in loaded.generator.parameters())
    snapshot = _snapshot()
    generator = Generator(snapshot.config.generator, snapshot.template)
    generator.load_state_dict(snapshot.networks['G_ema'])
    head, label = SheetHead().forward(SheetHead().neutral()), random_labels(1, seed=0)
    z = torch.randn(1, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded.generator(z, label, head).image, generator(z, label, head).image)


def test_equal_content_gives_equal_bytes(saved: Path, tmp_path: Path) -> None:
    save_snapshot(tmp_path / 'again.pkl', _snapshot())
    assert (tmp_path / 'again.pkl').read_bytes() == saved.read_bytes()


def test_the_keys_of_the_tiny_model_are_frozen(saved: Path) -> None:
    """Renaming a parameter breaks every snapshot: bump FORMAT_VERSION and migrate, then write the list anew."""
    content = torch.load(saved, weights_only=True)
    lines = [f'{name} {type(value).__name__}' for name, value in content.items() if not isinstance(value, dict)]
    for name, state in content.items():
        if isinstance(state, dict):
            lines += [f'{name}.{key} {list(value.shape)}' for key, value in state.items()]
    assert '\n'.join(lines) + '\n' == KEYS.read_text()


class _Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_loading_runs_no_code(tmp_path: Path) -> None:
    victim = tmp_path / 'executed'
    plain, packed = tmp_path / 'plain.pkl', tmp_path / 'packed.pkl'
    plain.write_bytes(pickle.dumps({'format': checkpoint.SNAPSHOT_FORMAT, 'attack': _Attack(victim)}))
    torch.save({'format': checkpoint.SNAPSHOT_FORMAT, 'attack': _Attack(victim)}, packed)
    for path in (plain, packed):
        for load in (load_snapshot, load_training_state):
            with pytest.raises(UserError, match=path.name):
                load(path)
    assert not victim.exists()


def _state(**changes: Any) -> dict[str, Any]:
    """A small state file's content."""
    info = {'images_seen': 8, 'seconds': 1.0, 'dataset': 'ab', 'metrics': {}}
    content = {'format': checkpoint.STATE_FORMAT, 'format_version': checkpoint.FORMAT_VERSION, 'config': '{}'}
    return {**content, 'info': json.dumps(info), 'G': {'x': torch.zeros(300)}, **changes}


def _with_pickle(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes of a file's pickle; its checksums are right."""
    with zipfile.ZipFile(path) as archive:
        files = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in files.items():
            if name.endswith('data.pkl'):
                assert old in data
            archive.writestr(name, data.replace(old, new) if name.endswith('data.pkl') else data)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'config': '[]'}, 'not a usable state'),
        ({'config': 3}, 'not a usable state'),
        ({'config': '[' * 100000}, 'not a usable state'),
        ({'info': '{}'}, 'not a usable state'),
        ({'info': '{"metrics": 3, "seconds": 0, "dataset": "a"}'}, 'not a usable state'),
        ({'info': '{"metrics": {}, "seconds": [], "dataset": "a"}'}, 'not a usable state'),
        ({'format': ['next3d']}, 'expected a next3d-training-state file'),
        ({'format_version': 'x'}, 'format version x'),
        ({3: 4}, 'a key is not a name'),
    ],
)
def test_states_with_wrong_types_inside_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    path = tmp_path / 'training-state-000000008.pt'
    torch.save(_state(**{key: value for key, value in changes.items() if key != 3}) | changes, path)
    with pytest.raises(UserError, match=message) as caught:
        read_state(path)
    assert str(path) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_tensor_larger_than_the_file_is_refused(tmp_path: Path) -> None:
    for number in (2**27, 2**44):
        path = tmp_path / f'{number}.pt'
        torch.save(_state(), path)
        _with_pickle(path, b'M\x2c\x01', b'\x8a\x06' + number.to_bytes(6, 'little'))  # 300 elements
        with pytest.raises(UserError, match='not a file of this project') as caught:
            read_state(path)
        assert '\n' not in str(caught.value)


def test_a_compressed_file_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / 'bomb.pt'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', bytes(10_000_000))
    with pytest.raises(UserError, match='holds compressed archive/data.pkl'):
        read_state(path)


def test_too_little_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(_state(), tmp_path / 'a.pt')

    def load(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(torch, 'load', load)
    with pytest.raises(UserError, match='a.pt: needs more memory than there is'):
        read_state(tmp_path / 'a.pt')


def test_states_that_do_not_fit_the_trainer_are_refused(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.step(next(trainer.loader()))
    state = trainer.state()
    name = next(iter(state['optimizer_G']))
    entry = state['optimizer_G'][name]
    for key, value, message in (
        ('G', 5, 'G: expected tensors by name'),
        ('G', {**state['G'], 'mapping.w_avg': 'x'}, 'G: expected tensors by name'),
        ('optimizer_G', 7, 'not a complete training state'),
        ('optimizer_G', {name: {'step': 1}}, f'optimizer_G: {name}: not a state of Adam'),
        ('optimizer_G', {name: {**entry, 'exp_avg': torch.zeros(2, 7)}}, f'{name}: has another shape'),
        ('optimizer_D', {'none.weight': entry}, 'optimizer_D: has unknown none.weight'),
        ('counters', None, 'not a complete training state'),
        ('counters', {**state['counters'], 'images_seen': 'many'}, 'not a complete training state'),
        ('signs', torch.zeros(3), 'not a complete training state'),
        ('signs', 'x', 'not a complete training state'),
    ):
        with pytest.raises(UserError, match=message) as caught:
            trainer.load_state({**state, key: value}, where='a.pt')
        assert str(caught.value).startswith('a.pt: ')
        assert '\n' not in str(caught.value)
    numbered = dict(enumerate(state['optimizer_G'].values()))  # states of the first version
    trainer.load_state({**state, 'optimizer_G': numbered}, where='a.pt')
    assert trainer.state()['optimizer_G'].keys() == state['optimizer_G'].keys()


def _damage(saved: Path, path: Path, kind: str) -> None:
    data = bytearray(saved.read_bytes())
    if kind == 'truncated':
        data = data[: len(data) // 2]
    elif kind == 'flipped':
        data[len(data) // 2] ^= 1
    elif kind == 'empty':
        data = bytearray()
    elif kind == 'text':
        data = bytearray(b'hello world')
    path.write_bytes(data)
    if kind == 'other zip':
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('image.png', b'x')


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('truncated', 'damaged or cut short'),
        ('flipped', 'damaged at .* .checksum'),
        ('empty', 'not a snapshot or state of this project'),
        ('text', 'not a snapshot or state of this project'),
        ('other zip', 'not a file of this project'),
    ],
)
def test_damaged_and_foreign_files_are_refused(saved: Path, tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / 'bad.pkl'
    _damage(saved, path, kind)
    with pytest.raises(UserError, match=message) as caught:
        load_generator(path)
    assert str(path) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'none.pkl: No such file'):
        load_snapshot(tmp_path / 'none.pkl')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'format': 'next3d-training-state'}, 'expected a next3d-snapshot file, got next3d-training-state'),
        ({'format_version': 99}, 'format version 99, but this program reads 1; update it'),
        ({'config': '{"sead": 1}'}, 'unknown key.* sead'),
        ({'config': '{'}, 'not a usable snapshot'),
        ({'info': '{}'}, 'not a usable snapshot'),
        ({'template': {}}, 'not a usable snapshot'),
    ],
)
def test_files_of_other_makes_are_refused(saved: Path, tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / 'changed.pkl'
    torch.save({**torch.load(saved, weights_only=True), **change}, path)
    with pytest.raises(UserError, match=message):
        load_snapshot(path)


def test_keys_that_do_not_fit_are_named(saved: Path, tmp_path: Path) -> None:
    content = torch.load(saved, weights_only=True)
    state = content['G_ema']
    for change, message in (
        ({'mapping.fc9.weight': torch.zeros(1)}, 'G_ema: has unknown mapping.fc9.weight;'),
        ({'mapping.w_avg': torch.zeros(3)}, 'G_ema: has other shapes for mapping.w_avg;'),
    ):
        torch.save({**content, 'G_ema': {**state, **change}}, tmp_path / 'x.pkl')
        with pytest.raises(UserError, match=message):
            load_generator(tmp_path / 'x.pkl')
    torch.save({**content, 'G_ema': {}}, tmp_path / 'x.pkl')
    with pytest.raises(UserError, match='G_ema: lacks .* and [0-9]+ more; was it made by another version'):
        load_generator(tmp_path / 'x.pkl')


@pytest.mark.parametrize('after', [0, 1000, 200000])
def test_a_full_disk_leaves_the_old_file(saved: Path, tmp_path: Path, monkeypatch: Any, after: int) -> None:
    path = tmp_path / saved.name
    path.write_bytes(saved.read_bytes())

    class Full:
        def __init__(self, handle: Any) -> None:
            self.handle, self.written = handle, 0

        def write(self, data: Any) -> int:
            self.written += len(data)
            if self.written > after:
                raise OSError(errno.ENOSPC, 'No space left on device')
            return self.handle.write(data)

        def flush(self) -> None:
            self.handle.flush()

    writer = checkpoint._Writer
    monkeypatch.setattr(checkpoint, '_Writer', lambda handle: writer(Full(handle)))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f'{path}: the disk is full'):
        save_snapshot(path, _snapshot(seed=1))
    assert path.read_bytes() == saved.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_dev_full_is_one_line(tmp_path: Path) -> None:
    """The real thing, where the system has it: every write to /dev/full fails."""
    if not Path('/dev/full').exists():
        pytest.skip('no /dev/full')
    with os.fdopen(os.open('/dev/full', os.O_WRONLY), 'wb', buffering=0) as handle:
        writer = checkpoint._Writer(handle)
        torch.save({'x': torch.zeros(100000)}, writer)  # type: ignore[arg-type]
        assert writer.error is not None
        assert writer.error.errno == errno.ENOSPC


def test_warm_start_copies_what_fits(saved: Path, tmp_path: Path) -> None:
    same = tiny_trainer(tmp_path, resume=str(saved))
    lines = warm_start(same, same.config)
    assert all(torch.equal(value, _snapshot().networks['G'][key]) for key, value in same.networks()['G'].items())
    assert [line.split(':')[0] for line in lines] == ['G', 'D', 'G_ema']
    assert all(' 0 adapted, 0 left' in line for line in lines)

    wider = tiny_trainer(tmp_path, resume=str(saved), G__superres_channels=16)
    assert any('left: superres.block0.' in line for line in warm_start(wider, wider.config))
    nothing = torch.load(saved, weights_only=True)
    torch.save({**nothing, 'G': {'other': torch.zeros(1)}}, tmp_path / 'nothing.pkl')
    foreign = tiny_trainer(tmp_path, resume=str(tmp_path / 'nothing.pkl'))
    with pytest.raises(UserError, match='--resume: .*no tensor of G fits'):
        warm_start(foreign, foreign.config)
