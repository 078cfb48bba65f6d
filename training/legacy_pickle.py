"""Reads network pickles of EG3D and Next3D's public release without running anything that they contain.

Such a file pickles whole objects ("persistent classes": source text, class name, attributes). Here every class
becomes an inert record of its attributes, the source text is thrown away, and the only callables are those below,
which build tensors and plain containers. Any other name, a truncated stream, or a claim to more memory than the
file holds is refused with a UserError before it takes effect.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import math
import os
import pickle
import pickletools
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnnlib.errors import UserError
from dnnlib.files import explain_os_error

NETWORKS = ('G', 'D', 'G_ema')
MAX_DEPTH = 64  # of nested modules
MAX_TENSORS = 100_000

_DTYPES = {
    'FloatStorage': torch.float32, 'DoubleStorage': torch.float64, 'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16, 'LongStorage': torch.int64, 'IntStorage': torch.int32,
    'ShortStorage': torch.int16, 'CharStorage': torch.int8, 'ByteStorage': torch.uint8, 'BoolStorage': torch.bool,
}  # fmt: skip
# Classes that become inert records: modules of torch and of the three code bases, and numpy's arrays.
_RECORDS = re.compile(
    r'torch\.nn\.modules\.\w+\.\w+'
    r'|(training\w*|torch_utils|dnnlib)(\.\w+)+|_imported_module_\w+\.\w+'
    r'|numpy\.(ndarray|dtype|(_?core)\.(multiarray|numeric)\.(_reconstruct|scalar|_frombuffer))'
    r'|torch\.(float16|bfloat16|float32|float64|int8|int16|int32|int64|uint8|bool|device|Size)'
)
_FORBIDDEN_OPCODES = {
    'INST', 'OBJ', 'EXT1', 'EXT2', 'EXT4', 'PERSID', 'BINPERSID', 'NEXT_BUFFER', 'READONLY_BUFFER',
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class LegacyNetwork:
    """A network as its file describes it."""

    class_name: str
    kwargs: dict[str, Any]  # constructor arguments
    state_dict: dict[str, Tensor]  # on the CPU, as stored
    attributes: dict[str, Tensor]  # tensors that the network keeps outside its state dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class LegacyFile:
    """Content of a network pickle: those of G, D, G_ema that it holds, and the data set's arguments."""

    networks: dict[str, LegacyNetwork]
    training_set_kwargs: dict[str, Any]


def read_legacy_pickle(path: str | os.PathLike[str]) -> LegacyFile:
    """Networks of a pickle of EG3D or of Next3D's release; UserError for anything unsafe, truncated or foreign."""
    target = Path(path)
    try:
        content = _load(io.BytesIO(target.read_bytes()), _LegacyUnpickler)
        if not isinstance(content, dict):
            raise _Refused('expected a dict of networks')
        networks = {name: _network(content[name]) for name in NETWORKS if isinstance(content.get(name), _Record)}
    except OSError as error:
        raise explain_os_error(error, target) from error
    except _Refused as error:
        raise UserError(f'{target}: refused: {error}') from error
    except (pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, EOFError, AttributeError,
            RuntimeError, MemoryError, struct.error, UnicodeDecodeError) as error:  # fmt: skip
        cause = ' '.join(str(error).split()) or type(error).__name__
        raise UserError(f'{target}: not a whole network pickle of EG3D or Next3D ({cause})') from error
    if not networks:
        raise UserError(f'{target}: holds none of {", ".join(NETWORKS)}; expected a network pickle of EG3D or Next3D')
    data = content.get('training_set_kwargs')
    return LegacyFile(networks=networks, training_set_kwargs=dict(data) if isinstance(data, dict) else {})


class _Refused(Exception):
    """Something in the file that is never needed and could do harm."""


class _Sealed(type):
    """Classes that a pickle's BUILD opcode cannot alter."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise _Refused(f'it sets {name!r} on a class')


class _Record(metaclass=_Sealed):
    """Stand-in for an object of any class: keeps what it was made of, has no behaviour."""

    class_name = ''

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.state: dict[str, Any] = {}

    def __new__(cls, *args: Any, **kwargs: Any) -> _Record:
        self = super().__new__(cls)
        self.__init__(*args, **kwargs)  # type: ignore[misc]  # a pickle's NEWOBJ calls only __new__
        return self

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2:  # (attributes, slots)
            state = {**(state[0] or {}), **(state[1] or {})} if all(isinstance(s, dict | None) for s in state) else {}
        self.state = dict(state) if isinstance(state, dict) else {}


class _EasyDict(dict, metaclass=_Sealed):
    """dnnlib's dict with attributes, without the attributes."""

    def __setstate__(self, state: Any) -> None:
        """Its attributes are its items: nothing more to restore."""


class _Call:
    """A permitted callable; sealed like the classes."""

    __slots__ = ('_function',)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise _Refused('it alters a function')


class _Budget:
    """Bytes that may still be built: a file that names its content again and again must not multiply it."""

    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise _Refused('it unfolds to several times its own size')


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    numel: int
    data: Tensor | None = None  # [numel]


def _persistent(meta: Any) -> _Record:
    """A persistent object: its class's name and its attributes; the source text beside them is not looked at."""
    if not isinstance(meta, dict) or meta.get('type') != 'class' or not isinstance(meta.get('class_name'), str):
        raise _Refused('a persistent object of unknown layout')
    record = _Record()
    record.state = dict(meta.get('state') or {})
    record.state['__class_name__'] = meta['class_name']
    return record


def _tensor(budget: _Budget, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    if not isinstance(storage, _Storage) or storage.data is None:
        raise _Refused('a tensor without data')
    numel = math.prod(size)
    reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if numel else 0
    if min((offset, *size, *stride), default=0) < 0 or max(numel, reach) > storage.numel:
        raise _Refused(f'a tensor of shape {list(size)} over {storage.numel} stored numbers')
    budget.take(numel * storage.dtype.itemsize)
    return storage.data.as_strided(tuple(size), tuple(stride), offset).clone(memory_format=torch.contiguous_format)


def _parameter(tensor: Any, *rest: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise _Refused('a parameter that is no tensor')
    return tensor


def _storage_from_bytes(budget: _Budget, data: Any) -> _Storage:
    """torch's sequential format with one storage in it: three headers, the object, its keys, size and raw numbers."""
    if not isinstance(data, bytes):
        raise _Refused('a storage that is no byte string')
    budget.take(len(data))
    stream = io.BytesIO(data)
    for _ in range(3):
        _load(stream, _StorageUnpickler)
    storage = _load(stream, _StorageUnpickler)
    keys = _load(stream, _StorageUnpickler)
    (numel,) = struct.unpack('<q', stream.read(8))
    raw = stream.read()
    if not isinstance(storage, _Storage) or not isinstance(keys, list) or len(keys) != 1:
        raise _Refused('a storage of unknown layout')
    if numel != storage.numel or len(raw) != numel * storage.dtype.itemsize:
        raise _Refused(f'a storage that announces {storage.numel} numbers and holds {len(raw)} bytes')
    flat = torch.frombuffer(bytearray(raw), dtype=storage.dtype) if raw else torch.empty(0, dtype=storage.dtype)
    return _Storage(storage.dtype, numel, flat)


def _reconstructor(cls: Any, base: Any, state: Any) -> Any:
    if not isinstance(cls, _Sealed):
        raise _Refused('an object of a class outside the list')
    return cls()


def _encode(budget: _Budget, text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != 'latin1':
        raise _Refused('an unusual byte string')
    budget.take(len(text))
    return text.encode('latin1')


_BUILDERS: dict[str, Callable[..., Any]] = {  # called with the file's budget first
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch.storage._load_from_bytes': _storage_from_bytes,
    '_codecs.encode': _encode,
}
_NAMES: dict[str, Any] = {
    'torch_utils.persistence._reconstruct_persistent_obj': _Call(_persistent),
    'torch._utils._rebuild_parameter': _Call(_parameter),
    'copyreg._reconstructor': _Call(_reconstructor),
    'copy_reg._reconstructor': _Call(_reconstructor),
    'collections.OrderedDict': collections.OrderedDict,
    'dnnlib.util.EasyDict': _EasyDict,
    **{f'{module}.set': set for module in ('builtins', '__builtin__')},
    **{f'{module}.object': _Call(object) for module in ('builtins', '__builtin__')},
}


class _LegacyUnpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, **options: Any) -> None:
        super().__init__(stream, **options)
        self.budget = _Budget(4 * len(stream.getbuffer()))

    def find_class(self, module: str, name: str) -> Any:
        full = f'{module}.{name}'
        if full in _BUILDERS:
            return _Call(functools.partial(_BUILDERS[full], self.budget))
        if full in _NAMES:
            return _NAMES[full]
        if _RECORDS.fullmatch(full):
            return _Sealed('_Record', (_Record,), {'class_name': full})
        raise _Refused(f'it asks for {full}, which is outside the list of an importable file')


class _StorageUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in ('torch', 'torch.cuda') and name in _DTYPES:
            return _Storage(_DTYPES[name], 0)
        raise _Refused(f'a storage that asks for {module}.{name}')

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, _, _, numel, view = pid
        if kind != 'storage' or not isinstance(storage_type, _Storage) or view is not None:
            raise _Refused('a storage of unknown layout')
        return _Storage(storage_type.dtype, int(numel))


def _load(stream: io.BytesIO, unpickler: type[pickle.Unpickler]) -> Any:
    """One pickle of `stream`, after a pass over its opcodes that builds nothing."""
    start = stream.tell()
    forbidden = _FORBIDDEN_OPCODES - ({'PERSID', 'BINPERSID'} if unpickler is _StorageUnpickler else set())
    for count, (opcode, argument, _) in enumerate(_opcodes(stream)):
        if opcode.name in forbidden:
            raise _Refused(f'it uses the pickle operation {opcode.name}')
        if 'PUT' in opcode.name and int(argument) > count:  # the memo is an array as long as its largest index
            raise _Refused('its memo index runs ahead of its content')
    stream.seek(start)
    return unpickler(stream, encoding='latin1').load()


def _opcodes(stream: io.BytesIO) -> Iterator[tuple[Any, Any, Any]]:
    try:
        yield from pickletools.genops(stream)
    except ValueError as error:
        raise ValueError(f'truncated or damaged: {error}') from error


def _network(record: _Record) -> LegacyNetwork:
    kwargs = record.state.get('_init_kwargs')
    if not isinstance(kwargs, dict):
        raise _Refused('a network without its constructor arguments')
    return LegacyNetwork(
        class_name=str(record.state.get('__class_name__', record.class_name)),
        kwargs={**kwargs, **{key: record.state[key] for key in ('rendering_kwargs',) if key in record.state}},
        state_dict=dict(_state(record, '', 0, [0])),
        attributes={name: value for name, value in record.state.items() if isinstance(value, Tensor)},
    )


def _state(record: _Record, prefix: str, depth: int, total: list[int]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the record's parameters and persistent buffers and of its submodules."""
    if depth > MAX_DEPTH:
        raise _Refused(f'modules nested more than {MAX_DEPTH} deep')
    transient = record.state.get('_non_persistent_buffers_set') or ()
    for kind in ('_parameters', '_buffers'):
        for name, value in dict(record.state.get(kind) or {}).items():
            if isinstance(value, Tensor) and not (kind == '_buffers' and name in transient):
                yield f'{prefix}{name}', value
    for name, module in dict(record.state.get('_modules') or {}).items():
        if isinstance(module, _Record):
            total[0] += 1
            if total[0] > MAX_TENSORS:
                raise _Refused(f'more than {MAX_TENSORS} modules')
            yield from _state(module, f'{prefix}{name}.', depth + 1, total)
