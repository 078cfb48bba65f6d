"""State dicts from the files in which CLIP's weights come; nothing that a file contains is ever run.

A TorchScript archive (OpenAI's ViT-B-32.pt) is code and data. Only its data are read here, by an unpickler that turns
every class into an inert record; the code stays unread. A dict saved by torch goes through weights_only, and a
safetensors file is numbers with a JSON table.
"""

from __future__ import annotations

import collections
import json
import math
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from dnnlib.errors import UserError
from dnnlib.files import explain_os_error

_STORAGES = {'FloatStorage': torch.float32, 'HalfStorage': torch.float16, 'BFloat16Storage': torch.bfloat16,
             'DoubleStorage': torch.float64, 'LongStorage': torch.int64, 'IntStorage': torch.int32,
             'ByteStorage': torch.uint8, 'BoolStorage': torch.bool}  # fmt: skip
_SAFETENSORS = {'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16, 'F64': torch.float64,
                'I64': torch.int64, 'I32': torch.int32, 'U8': torch.uint8, 'BOOL': torch.bool}  # fmt: skip
_LISTS = ('build_intlist', 'build_tensorlist', 'build_doublelist', 'build_boollist')
MAX_DEPTH = 32  # of nested modules


def read_weights(path: str) -> tuple[dict[str, Tensor], bool]:
    """(tensors by name, whether the file is a TorchScript archive); UserError in one line for any other file."""
    try:
        with open(path, 'rb') as handle:
            magic = handle.read(10)
        if magic[:2] == b'PK':
            with zipfile.ZipFile(path) as archive:
                scripted = any(name.endswith('/constants.pkl') for name in archive.namelist())
                if scripted:
                    return _read_archive(archive), True
            return _plain(torch.load(path, map_location='cpu', weights_only=True), path), False
        if magic[8:9] == b'{':
            return _read_safetensors(path), False
    except OSError as error:
        raise explain_os_error(error, path) from error
    except UserError:
        raise
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, KeyError, ValueError, TypeError,
            AttributeError, IndexError, struct.error) as error:  # fmt: skip
        cause = ' '.join(str(error).split())[:120]
        raise UserError(f'{path}: damaged, or it holds more than tensors; refused ({cause})') from error
    raise UserError(f"{path}: expected CLIP weights: OpenAI's .pt, a state dict of open_clip, or .safetensors")


def _plain(content: Any, path: str) -> dict[str, Tensor]:
    """A state dict, or one under 'state_dict' as open_clip's training writes it (names may begin with 'module.')."""
    if isinstance(content, dict) and isinstance(content.get('state_dict'), dict):
        content = content['state_dict']
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f'{path}: holds no state dict')
    return {str(name).removeprefix('module.'): value for name, value in content.items() if isinstance(value, Tensor)}


class _Record:
    """Stand-in for a scripted module: its attributes, no behaviour."""

    attributes: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        self.attributes = dict(state)


class _Unpickler(pickle.Unpickler):
    """Reads data.pkl of a TorchScript archive: tensors, containers, and records for everything else scripted."""

    def __init__(self, stream: IO[bytes], archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(stream)
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith('__torch__'):
            return type('Record', (_Record,), {})
        if module == 'torch' and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
            return _tensor
        if (module, name) == ('collections', 'OrderedDict'):
            return collections.OrderedDict
        if module == 'torch.jit._pickle' and name in _LISTS:
            return list
        if (module, name) == ('torch.jit._pickle', 'restore_type_tag'):
            return _untagged
        raise pickle.UnpicklingError(f'it asks for {module}.{name}')

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != 'storage' or not isinstance(dtype, torch.dtype) or not str(key).isdigit():
            raise pickle.UnpicklingError('a storage of unknown layout')
        data = self.archive.read(f'{self.folder}/data/{key}')
        if len(data) != count * dtype.itemsize:
            raise pickle.UnpicklingError(f'storage {key} announces {count} numbers and holds {len(data)} bytes')
        return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Tensor:
    reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if math.prod(size) else 0
    if min((offset, *size, *stride), default=0) < 0 or reach > storage.numel():
        raise pickle.UnpicklingError(f'a tensor of shape {list(size)} over {storage.numel()} numbers')
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _untagged(value: Any, tag: str) -> Any:
    return value


def _read_archive(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    data = next(name for name in archive.namelist() if name.endswith('/data.pkl'))
    folder = data.rpartition('/')[0]
    with archive.open(data) as stream:
        return dict(_named(_Unpickler(stream, archive, folder).load(), '', 0))


def _named(value: Any, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """(dotted name, tensor) of everything below a record."""
    if depth > MAX_DEPTH or not isinstance(value, _Record):
        raise pickle.UnpicklingError('no scripted module')
    for name, item in value.attributes.items():
        if isinstance(item, Tensor):
            yield prefix + name, item
        elif isinstance(item, _Record):
            yield from _named(item, f'{prefix}{name}.', depth + 1)


def _read_safetensors(path: str) -> dict[str, Tensor]:
    data = Path(path).read_bytes()
    (length,) = struct.unpack('<Q', data[:8])
    table = json.loads(data[8 : 8 + length])
    body = memoryview(data)[8 + length :]
    state = {}
    for name, entry in table.items():
        if name == '__metadata__':
            continue
        start, stop = entry['data_offsets']
        dtype = _SAFETENSORS[entry['dtype']]
        if not 0 <= start <= stop <= len(body) or stop - start != math.prod(entry['shape']) * dtype.itemsize:
            raise ValueError(f'{name} does not lie within the file')
        state[name] = torch.frombuffer(bytearray(body[start:stop]), dtype=dtype).reshape(entry['shape'])
    return state
