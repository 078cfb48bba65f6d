"""The restricted reader of legacy network pickles: files built here in that format, and hostile ones."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dnnlib import UserError
from training.legacy_pickle import read_legacy_pickle

SOURCE = "raise SystemExit('the embedded source was run')"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Stand-ins for the release's modules, so that pickle can name their classes and functions."""

    class EasyDict(dict):
        def __setattr__(self, name: str, value: Any) -> None:
            self[name] = value

    def _reconstruct_persistent_obj(meta: Any) -> None:
        raise AssertionError('the release runs the embedded source here')

    class Decoder(nn.Module):  # a module that the release pickles by reference
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 2))

    class Persistent(nn.Module):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__()
            self._init_args = args
            self._init_kwargs = EasyDict(kwargs)

        def __reduce__(self) -> tuple:
            state = super().__reduce__()[2]
            name = type(self).__name__
            meta = {'type': 'class', 'version': 6, 'module_src': SOURCE, 'class_name': name, 'state': state}
            return _reconstruct_persistent_obj, (meta,)

    class Generator(Persistent):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.rendering_kwargs = kwargs['rendering_kwargs']
            self.inner = Persistent(size=3)
            self.inner.weight = nn.Parameter(torch.arange(6.0).view(2, 3).t())  # not contiguous
            self.inner.register_buffer('scale', torch.tensor(2.5, dtype=torch.float16))
            self.inner.register_buffer('scratch', torch.zeros(2), persistent=False)
            self.decoder = Decoder()
            self.layers = nn.ModuleList([nn.Linear(2, 2)])

    contents: dict[str, dict[str, Any]] = {
        'dnnlib.util': {'EasyDict': EasyDict},
        'torch_utils.persistence': {'_reconstruct_persistent_obj': _reconstruct_persistent_obj},
        'training_avatar_texture.triplane': {'Decoder': Decoder},
    }
    for module_name, members in contents.items():
        module = types.ModuleType(module_name)
        for name, member in members.items():
            member.__module__ = module_name
            member.__qualname__ = name
            setattr(module, name, member)
        monkeypatch.setitem(sys.modules, module_name, module)
    monkeypatch.setitem(sys.modules, 'training_avatar_texture', types.ModuleType('training_avatar_texture'))
    return types.SimpleNamespace(EasyDict=EasyDict, Generator=Generator)


def network_file(modules: types.SimpleNamespace, protocol: int) -> tuple[bytes, nn.Module]:
    torch.manual_seed(0)
    generator = modules.Generator(z_dim=4, rendering_kwargs=modules.EasyDict(ray_start=2.25))
    content = {
        'G': generator,
        'D': None,
        'G_ema': generator,
        'training_set_kwargs': modules.EasyDict(path='x.zip', resolution=64),
        'augment_pipe': None,
    }
    return pickle.dumps(content, protocol=protocol), generator


@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_reads_what_the_release_writes_without_running_it(
    modules: types.SimpleNamespace, tmp_path: Path, protocol: int
) -> None:
    data, generator = network_file(modules, protocol)
    path = tmp_path / 'network.pkl'
    path.write_bytes(data)
    content = read_legacy_pickle(path)
    assert set(content.networks) == {'G', 'G_ema'}
    network = content.networks['G_ema']
    assert network.class_name == 'Generator'
    assert network.kwargs['z_dim'] == 4
    assert network.kwargs['rendering_kwargs']['ray_start'] == 2.25
    assert content.training_set_kwargs == {'path': 'x.zip', 'resolution': 64}
    expected = generator.state_dict()
    assert set(network.state_dict) == set(expected)
    for name, value in expected.items():
        assert network.state_dict[name].dtype == value.dtype
        torch.testing.assert_close(network.state_dict[name], value, rtol=0, atol=0)


def test_every_truncation_is_refused(modules: types.SimpleNamespace, tmp_path: Path) -> None:
    data, _ = network_file(modules, 4)
    path = tmp_path / 'network.pkl'
    for length in [*range(0, len(data) - 1, max(1, len(data) // 150)), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match='network.pkl'):
            read_legacy_pickle(path)


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.reduced = (function, args)

    def __reduce__(self) -> tuple:
        return self.reduced


def by_name(module: str, name: str, *arguments: bytes) -> bytes:
    return b'c' + module.encode() + b'\n' + name.encode() + b'\n(' + b''.join(arguments) + b'tR.'


def legacy_storage(numel: int) -> bytes:
    stream = io.BytesIO()
    torch.save(torch.zeros(4).untyped_storage(), stream, _use_new_zipfile_serialization=False)
    return stream.getvalue().replace(struct.pack('<q', 4), struct.pack('<q', numel))


def hostile_files() -> dict[str, bytes]:
    marker = "__import__('os').environ.__setitem__('HOSTILE', '1')"
    ok: collections.OrderedDict[str, int] = collections.OrderedDict()
    return {
        'os.system': pickle.dumps({'G': Call(os.system, 'touch hostile')}),
        'eval': pickle.dumps({'G': Call(eval, marker)}),
        'exec': pickle.dumps(Call(exec, marker)),
        'nested reduce': pickle.dumps({'G': [{'x': (ok, Call(getattr, Call(__import__, 'os'), 'system'))}]}),
        'subprocess': by_name('subprocess', 'Popen', b'Vid\n'),
        'builtins by alias': by_name('__builtin__', 'eval', b'V1\n'),
        'module function': by_name('torch', 'load', b'Vx\n'),
        'dotted name': b'\x80\x04\x8c\x0bcollections\x8c\x17OrderedDict.__init__.x.y\x93.',
        'functools': by_name('functools', 'partial', b'Vx\n'),
        'huge bytearray': pickle.dumps(Call(bytearray, 10**12)),
        'huge numpy': by_name('numpy', 'zeros', b'I1000000000000\n'),
        'memo bomb': b'\x80\x02Nr\xff\xff\xff\x7f.',
        'old instance': b'(S"id"\nios\nsystem\n.',
        'persistent id': b'Pabc\n.',
        'extension': b'\x82\x01.',
        'huge frame': b'\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.',
        'huge string': b'\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x0fab.',
        'alters a function': (
            b'\x80\x02}X\x01\x00\x00\x00Gctorch._utils\n_rebuild_parameter\nN}X\x08\x00\x00\x00__code__K\x01s\x86bs.'
        ),
        'alters a class': b'\x80\x02}X\x01\x00\x00\x00Gcdnnlib.util\nEasyDict\nN}X\x01\x00\x00\x00xK\x01s\x86bs.',
        'storage too small': pickle.dumps(Call(torch.storage._load_from_bytes, legacy_storage(10**12))),
        'nothing of use': pickle.dumps({'weights': [1, 2, 3]}),
        'no dict': pickle.dumps([1, 2]),
        'text': b'hello world',
        'empty': b'',
    }


@pytest.mark.parametrize('name', hostile_files())
def test_hostile_files_are_refused_and_nothing_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('HOSTILE', raising=False)
    path = tmp_path / 'network.pkl'
    path.write_bytes(hostile_files()[name])
    with pytest.raises(UserError) as caught:
        read_legacy_pickle(path)
    assert '\n' not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ['network.pkl']
    assert 'HOSTILE' not in os.environ


def tensor_pickle(size: tuple[int, ...], stride: tuple[int, ...], repeats: int = 1) -> bytes:
    storage = torch.zeros(1000)._typed_storage()

    class View:
        def __reduce__(self) -> tuple:
            return torch._utils._rebuild_tensor_v2, (storage, 0, size, stride, False, collections.OrderedDict())

    return pickle.dumps([View() for _ in range(repeats)])


@pytest.mark.filterwarnings('ignore:TypedStorage is deprecated')
@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (tensor_pickle((10**6, 10**6), (0, 0)), 'a tensor of shape'),
        (tensor_pickle((1001,), (1,)), 'a tensor of shape'),
        (tensor_pickle((2,), (-1,)), 'a tensor of shape'),
        (tensor_pickle((1000,), (1,), repeats=50), 'unfolds to several times its own size'),
    ],
)
def test_tensors_cannot_claim_more_than_the_file_holds(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / 'network.pkl'
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_legacy_pickle(path)


def test_what_a_graphics_card_held_is_read_on_the_cpu(modules: types.SimpleNamespace, tmp_path: Path) -> None:
    """The release leaves the renderer's axes where they last were; old versions of torch name the storage after it."""
    stream = io.BytesIO()
    torch.save(torch.arange(4.0)._typed_storage(), stream, _use_new_zipfile_serialization=False)
    for name in (b'ctorch\n', b'ctorch.cuda\n'):
        moved = (
            stream.getvalue().replace(b'X\x03\x00\x00\x00cpu', b'X\x06\x00\x00\x00cuda:0').replace(b'ctorch\n', name)
        )

        class Axes:
            def __init__(self, data: bytes) -> None:
                self.data = data

            def __reduce__(self) -> tuple:
                storage = Call(torch.storage._load_from_bytes, self.data)
                return torch._utils._rebuild_tensor_v2, (storage, 0, (2, 2), (2, 1), False, collections.OrderedDict())

        generator = modules.Generator(z_dim=4, rendering_kwargs=modules.EasyDict())
        generator.plane_axes = Axes(moved)
        (tmp_path / 'network.pkl').write_bytes(pickle.dumps({'G_ema': generator}))
        network = read_legacy_pickle(tmp_path / 'network.pkl').networks['G_ema']
        assert torch.equal(network.attributes['plane_axes'], torch.arange(4.0).view(2, 2))
        assert 'plane_axes' not in network.state_dict


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='No such file'):
        read_legacy_pickle(tmp_path / 'absent.pkl')
