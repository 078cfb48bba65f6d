"""FLAME's files, read without running anything inside them.

The official `generic_model.pkl` is a pickle with numpy arrays, a scipy matrix and chumpy objects. The unpickler here
builds arrays and inert records only; every other name in the pickle is refused.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib import UserError

REQUIRED = ('v_template', 'shapedirs', 'posedirs', 'J_regressor', 'kintree_table', 'weights', 'f')


class Record:
    """Stands in for an object of an unknown library: keeps its state, has no behaviour."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2:  # (__dict__, slots)
            state = {**(state[0] or {}), **(state[1] or {})}
        if isinstance(state, dict):
            vars(self).update({str(key): value for key, value in state.items()})


def _reconstruct_record(cls: type, base: type, state: Any) -> Any:
    """What copyreg does for old classes, but only for inert records."""
    if not issubclass(cls, Record):
        raise pickle.UnpicklingError(f'refused to build {cls!r}')
    return cls()


def _encode(text: str, encoding: str = 'latin1') -> bytes:
    if encoding not in ('latin1', 'latin-1'):
        raise pickle.UnpicklingError(f'unexpected text encoding {encoding!r}')
    return text.encode('latin1')


class _Object:
    """Stands in for `object` where a pickle names it as a base."""


# numpy's own constructors, taken from what numpy writes today, so that old and new module paths mean the same.
_RECONSTRUCT: Callable = np.zeros(0).__reduce__()[0]  # type: ignore[index, assignment]
_SCALAR: Callable = np.float64(0).__reduce__()[0]  # type: ignore[index, assignment]
_FROM_BUFFER: Callable = np.zeros(1).__reduce_ex__(5)[0]  # type: ignore[index, assignment]
_BY_NAME: dict[str, Any] = {
    '_reconstruct': _RECONSTRUCT, 'scalar': _SCALAR, '_frombuffer': _FROM_BUFFER, 'ndarray': np.ndarray,
    'dtype': np.dtype,
}  # fmt: skip
_NUMPY_MODULES = (
    'numpy',
    'numpy.core.multiarray',
    'numpy._core.multiarray',
    'numpy.core.numeric',
    'numpy._core.numeric',
)
_OTHERS: dict[tuple[str, str], Any] = {
    ('copy_reg', '_reconstructor'): _reconstruct_record,
    ('copyreg', '_reconstructor'): _reconstruct_record,
    ('__builtin__', 'object'): _Object,
    ('builtins', 'object'): _Object,
    ('__builtin__', 'set'): set,
    ('builtins', 'set'): set,
    ('collections', 'OrderedDict'): OrderedDict,
    ('_codecs', 'encode'): _encode,
}


class InertUnpickler(pickle.Unpickler):
    """Builds numpy arrays, plain containers and Records for scipy.sparse and chumpy classes; refuses the rest."""

    def find_class(self, module: str, name: str) -> Any:
        if module in _NUMPY_MODULES and name in _BY_NAME:
            return _BY_NAME[name]
        if (module, name) in _OTHERS:
            return _OTHERS[module, name]
        library = module.partition('.')[0]
        if library == 'chumpy' or (
            module.startswith('scipy.sparse') and name in ('csc_matrix', 'csr_matrix', 'csc_array')
        ):
            return type(name, (Record,), {'library': library})
        raise pickle.UnpicklingError(f'it names {module}.{name}, which no FLAME file needs')

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError('it refers to outside objects')


def inert_load(data: bytes, *, path: str | Path) -> Any:
    """Unpickle bytes with InertUnpickler; UserError naming `path` otherwise."""
    try:
        return InertUnpickler(io.BytesIO(data), encoding='latin1').load()
    except MemoryError as error:  # damaged bytes may claim any size
        raise UserError(f'{path}: claims more memory than there is; use the file as downloaded') from error
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise UserError(f'{path}: not a readable FLAME file: {error}; use the file as downloaded') from error


def dense(value: Any, *, path: str | Path, key: str) -> np.ndarray:
    """An array from an array, a chumpy record (its `x`) or a scipy.sparse record."""
    if isinstance(value, Record):
        state = vars(value)
        if 'indptr' in state:
            return _dense_sparse(state, rows_first='csr' in type(value).__name__)
        for name in ('x', 'r'):
            if isinstance(state.get(name), np.ndarray):
                return state[name]
        raise UserError(f'{path}: {key}: a chumpy {type(value).__name__} without a stored array; use the official file')
    array = np.asarray(value)
    if array.dtype == object:
        raise UserError(f'{path}: {key}: expected numbers, got objects; use the official file')
    return array


def _dense_sparse(state: dict[str, Any], *, rows_first: bool) -> np.ndarray:
    shape = tuple(int(n) for n in state['_shape' if '_shape' in state else 'shape'])
    matrix = np.zeros(shape)
    outer = np.repeat(np.arange(len(state['indptr']) - 1), np.diff(state['indptr']))
    where = (outer, state['indices']) if rows_first else (state['indices'], outer)
    np.add.at(matrix, where, state['data'])
    return matrix


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlameArrays:
    """The arrays of a FLAME file, float32 or int64."""

    template: np.ndarray  # [V, 3]
    shape_directions: np.ndarray  # [V, 3, S + E]
    pose_directions: np.ndarray  # [V, 3, 9 (J - 1)]
    joint_regressor: np.ndarray  # [J, V]
    parents: tuple[int, ...]  # [J], -1 for the root
    weights: np.ndarray  # [V, J]
    faces: np.ndarray  # [F, 3]
    uses_chumpy: bool


def read_flame(path: str | Path) -> FlameArrays:
    """Read `generic_model.pkl`, `flame2023*.pkl` or an .npz of the same keys; UserError otherwise."""
    source = Path(path)
    if not source.is_file():
        raise UserError(f'{source}: no such file; give the path of your FLAME generic_model.pkl or flame2023.pkl')
    if source.suffix == '.npz':
        try:
            with np.load(source, allow_pickle=False) as data:
                raw: Any = {name: data[name] for name in data.files}
        except (ValueError, OSError) as error:
            raise UserError(f'{source}: not a readable .npz of plain arrays: {error}') from error
    else:
        raw = inert_load(source.read_bytes(), path=source)
    if not isinstance(raw, dict):
        raise UserError(
            f'{source}: expected a dictionary of arrays, got {type(raw).__name__}; use the file as downloaded'
        )
    missing = [key for key in REQUIRED if key not in raw]
    if missing:
        raise UserError(f'{source}: not a FLAME model: no {", ".join(missing)}; use generic_model.pkl or flame2023.pkl')
    arrays = {key: dense(raw[key], path=source, key=key) for key in REQUIRED}
    num_vertices, joints = len(arrays['v_template']), arrays['weights'].shape[-1]
    expected = {
        'v_template': (num_vertices, 3), 'shapedirs': (num_vertices, 3, arrays['shapedirs'].shape[-1]),
        'posedirs': (num_vertices, 3, 9 * (joints - 1)), 'J_regressor': (joints, num_vertices),
        'kintree_table': (2, joints), 'weights': (num_vertices, joints), 'f': (len(arrays['f']), 3),
    }  # fmt: skip
    for key, shape in expected.items():
        if arrays[key].shape != shape:
            raise UserError(f'{source}: {key}: expected shape {list(shape)}, got {list(arrays[key].shape)}')
    if joints != 5:
        raise UserError(
            f'{source}: {joints} joints; FLAME has 5 (root, neck, jaw, two eyes); is this another body model?'
        )
    parents = tuple(int(p) if 0 <= int(p) < joints else -1 for p in arrays['kintree_table'][0].astype(np.int64))
    return FlameArrays(
        template=arrays['v_template'].astype(np.float32), shape_directions=arrays['shapedirs'].astype(np.float32),
        pose_directions=arrays['posedirs'].astype(np.float32), joint_regressor=arrays['J_regressor'].astype(np.float32),
        parents=(-1, *parents[1:]), weights=arrays['weights'].astype(np.float32), faces=arrays['f'].astype(np.int64),
        uses_chumpy=any(isinstance(raw[key], Record) and 'indptr' not in vars(raw[key]) for key in REQUIRED),
    )  # fmt: skip


def _read_npy_object(path: Path) -> Any:
    """The object inside an .npy file of a pickled dictionary, unpickled inertly."""
    data = path.read_bytes()
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        reader(stream)
    except ValueError as error:
        raise UserError(f'{path}: not a readable .npy file: {error}') from error
    loaded = inert_load(data[stream.tell() :], path=path)
    return loaded.item() if isinstance(loaded, np.ndarray) and loaded.dtype == object and loaded.size == 1 else loaded


def read_embedding(path: str | Path) -> dict[str, np.ndarray]:
    """Landmark tables of an .npy (pickled dictionary), .npz or .pkl file, by name."""
    source = Path(path)
    if not source.is_file():
        raise UserError(f'{source}: no such file; give a FLAME landmark embedding (.npy, .npz or .pkl)')
    if source.suffix == '.npz':
        with np.load(source, allow_pickle=False) as data:
            raw: Any = {name: data[name] for name in data.files}
    elif source.suffix == '.npy':
        raw = _read_npy_object(source)
    else:
        raw = inert_load(source.read_bytes(), path=source)
    if not isinstance(raw, dict):
        raise UserError(f'{source}: expected a dictionary of landmark tables, got {type(raw).__name__}')
    return {str(key): dense(value, path=source, key=str(key)) for key, value in raw.items()}
