"""Files of numbers by name, as trackers leave them, read without running anything that they contain.

.npz, .npy (of a dictionary), .pkl, .pt, .mat and .json; what is not an array of numbers is left out.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnnlib import UserError
from training.head.flame_file import InertUnpickler

SUFFIXES = ('.npz', '.npy', '.json', '.pkl', '.pickle', '.pt', '.pth', '.mat')
_REMEDY = 'save plain arrays, e.g. numpy.savez(path, **arrays)'
# numpy's own constructors: torch's restricted reader needs them named to build arrays.
_NUMPY = [np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0], np.ndarray, np.dtype]  # type: ignore[index]
_NUMPY += [type(np.dtype(kind)) for kind in ('f4', 'f8', 'f2', 'i4', 'i8', 'u1', '?')]


class TensorUnpickler(InertUnpickler):
    """InertUnpickler that also builds torch tensors."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
            return torch._utils._rebuild_tensor_v2
        if (module, name) == ('torch.storage', '_load_from_bytes'):
            return _load_storage
        try:
            return super().find_class(module, name)
        except pickle.UnpicklingError as error:
            raise pickle.UnpicklingError(f'it names {module}.{name}, which is not data') from error


def _load_storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True, map_location='cpu')


def read_parameters(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays of numbers by name; a nested dictionary gives 'outer.inner', a single array without a name 'values'.

    UserError, one line, for a file that is missing, cut short, of another kind, or that wants code to run.
    """
    source = Path(path)
    reader = _READERS.get(source.suffix.lower())
    if reader is None:
        raise UserError(f'{source}: unknown kind of file; expected one of {", ".join(SUFFIXES)}')
    if not source.is_file():
        raise UserError(f'{source}: no such file')
    try:
        content = reader(source)
    except NotImplementedError as error:  # scipy, of MATLAB 7.3 files
        raise UserError(f'{source}: a MATLAB 7.3 file, which is not read; {_REMEDY}') from error
    except Exception as error:  # a damaged file may fail anywhere in four libraries' readers
        cause = ' '.join(str(error).split()) or type(error).__name__
        refused = isinstance(error, pickle.UnpicklingError)
        what = 'refused, nothing of it was run' if refused else 'cannot be read'
        raise UserError(f'{source}: {what} ({cause[:160]}); {_REMEDY}') from error
    if isinstance(content, np.ndarray | torch.Tensor):
        content = {'values': content}
    if not isinstance(content, Mapping):
        raise UserError(f'{source}: holds a {type(content).__name__}, expected arrays by name; {_REMEDY}')
    return dict(_numbers(content, ''))


def _numbers(content: Mapping, prefix: str) -> list[tuple[str, np.ndarray]]:
    found = []
    for key, value in content.items():
        name = f'{prefix}{key}'
        if isinstance(value, Mapping):
            found += _numbers(value, f'{name}.')
            continue
        if isinstance(value, torch.Tensor):
            value = value.detach().float().numpy()
        if isinstance(value, list | tuple | int | float):
            try:
                value = np.array(value, dtype=np.float64)
            except (TypeError, ValueError):  # text, or rows of unequal length
                continue
        if isinstance(value, np.ndarray | np.generic) and np.asarray(value).dtype.kind in 'fiu':
            found.append((name, np.asarray(value, dtype=np.float64)))
    return found


def _read_npz(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if member.endswith('.npy'):
                content[member[:-4]] = _npy(archive.read(member))
    return content


def _npy(data: bytes) -> Any:
    """The array of .npy bytes, or the one object in it."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    _, _, dtype = read_header(stream)
    if not dtype.hasobject:
        stream.seek(0)
        return np.lib.format.read_array(stream, allow_pickle=False)
    value = TensorUnpickler(stream, encoding='latin1').load()
    return value.item() if isinstance(value, np.ndarray) and value.size == 1 else value


def _read_torch(path: Path) -> Any:
    with torch.serialization.safe_globals(_NUMPY):
        return torch.load(path, weights_only=True, map_location='cpu')


def _read_mat(path: Path) -> dict[str, Any]:
    import scipy.io

    return {name: value for name, value in scipy.io.loadmat(path).items() if not name.startswith('__')}


_READERS: dict[str, Callable[[Path], Any]] = {
    '.npz': _read_npz,
    '.npy': lambda path: _npy(path.read_bytes()),
    '.json': lambda path: json.loads(path.read_text(encoding='utf-8-sig')),
    '.pkl': lambda path: TensorUnpickler(io.BytesIO(path.read_bytes()), encoding='latin1').load(),
    '.pt': _read_torch,
    '.mat': _read_mat,
}
_READERS |= {'.pickle': _READERS['.pkl'], '.pth': _READERS['.pt']}
