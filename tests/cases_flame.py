"""A made-up file of FLAME's structure: a symmetric lump with five joints. No licensed data."""

from __future__ import annotations

import io
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

FLIP = np.array([-1.0, 1.0, 1.0])


def arrays(seed: int = 0, *, directions: int = 400) -> dict[str, np.ndarray]:
    """Plain arrays with FLAME's keys: 40 vertices in mirrored pairs, symmetric and antisymmetric directions."""
    rng = np.random.default_rng(seed)
    half = rng.normal(size=(20, 3)) * [0.05, 0.1, 0.06]
    half[:, 0] = np.abs(half[:, 0]) + 0.01
    half[:6] = np.array([0.03, 0.03, 0.03]) + 0.012 * _unit(rng.normal(size=(6, 3)))  # the left eyeball
    template = np.concatenate([half, half * FLIP])
    partner = np.concatenate([np.arange(20, 40), np.arange(20)])

    def symmetric(count: int) -> np.ndarray:
        left = rng.normal(size=(20, 3, count)) * 0.003
        sign = np.where(np.arange(count) % 2 == 0, 1.0, -1.0)
        return np.concatenate([left, left * FLIP[:, None] * sign])

    weights = np.zeros((40, 5))
    weights[:20, :3] = rng.dirichlet([1, 1, 1], size=20)
    weights[:6] = 0
    weights[:6, 3] = 1
    weights[20:] = weights[:20][:, [0, 1, 2, 4, 3]]
    regressor = np.zeros((5, 40))
    for j in range(3):
        row = rng.dirichlet(np.ones(20)) / 2
        regressor[j] = np.concatenate([row, row])
    regressor[3, :6] = 1 / 6
    regressor[4, 20:26] = 1 / 6
    left = np.array([[i, i + 1, i + 2] for i in range(18)])
    faces = np.concatenate([left, partner[left][:, [0, 2, 1]]])
    return {
        'v_template': template, 'shapedirs': symmetric(directions), 'posedirs': _pose_directions(rng),
        'J_regressor': regressor, 'weights': weights, 'f': faces.astype(np.uint32),
        'kintree_table': np.array([[4294967295, 0, 1, 1, 1], [0, 1, 2, 3, 4]], dtype=np.int64),
    }  # fmt: skip


def _pose_directions(rng: np.random.Generator) -> np.ndarray:
    """[40, 3, 36] that respect mirroring: R becomes F R F, the eyes change places."""
    left = rng.normal(size=(20, 3, 4, 3, 3)) * 0.0003
    right = left[:, :, [0, 1, 3, 2]] * FLIP[:, None, None, None] * FLIP[:, None] * FLIP
    return np.concatenate([left, right]).reshape(40, 3, 36)


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def pickled(values: dict[str, np.ndarray]) -> bytes:
    """The official file's form: protocol 2, chumpy objects for some arrays, a scipy matrix for the regressor."""
    chumpy, ch = types.ModuleType('chumpy'), types.ModuleType('chumpy.ch')

    class Ch:
        def __init__(self, x: np.ndarray) -> None:
            self.x = x
            self._dirty_vars: set[str] = set()

    Ch.__module__, Ch.__qualname__ = 'chumpy.ch', 'Ch'
    vars(ch)['Ch'] = Ch
    saved = {name: sys.modules.get(name) for name in ('chumpy', 'chumpy.ch')}
    sys.modules.update({'chumpy': chumpy, 'chumpy.ch': ch})
    try:
        content: dict[str, Any] = dict(values)
        for key in ('v_template', 'shapedirs', 'posedirs', 'weights'):
            content[key] = Ch(values[key])
        content['J_regressor'] = scipy.sparse.csc_matrix(values['J_regressor'])
        content['bs_style'] = 'lbs'
        stream = io.BytesIO()
        pickle.dump(content, stream, protocol=2)
    finally:
        for name, module in saved.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    return stream.getvalue()


def write_folder(folder: Path, values: dict[str, np.ndarray], *, model: str = 'generic_model.pkl') -> Path:
    """A folder as FlameHead takes it: model, landmark_embedding.npy, head_template_mesh.obj."""
    folder.mkdir(parents=True, exist_ok=True)
    if model.endswith('.npz'):
        np.savez(folder / model, **values)  # type: ignore[arg-type]
    else:
        (folder / model).write_bytes(pickled(values))
    write_embedding(folder / 'landmark_embedding.npy', embedding(len(values['f'])))
    write_uv(folder / 'head_template_mesh.obj', values)
    return folder


def embedding(num_faces: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Landmark tables as DECA's file has them."""
    rng = np.random.default_rng(seed)
    faces, weights = rng.integers(num_faces, size=68), rng.dirichlet([1, 1, 1], size=68)
    others, other_weights = rng.integers(num_faces, size=(79, 17)), rng.dirichlet([1, 1, 1], size=(79, 17))
    others[0], other_weights[0] = faces[:17], weights[:17]
    return {
        'full_lmk_faces_idx': faces[None], 'full_lmk_bary_coords': weights[None],
        'static_lmk_faces_idx': faces[17:], 'static_lmk_bary_coords': weights[17:],
        'dynamic_lmk_faces_idx': others, 'dynamic_lmk_bary_coords': other_weights,
    }  # fmt: skip


def write_embedding(path: Path, tables: dict[str, np.ndarray]) -> None:
    """An .npy of a pickled dictionary."""
    holder = np.empty((), dtype=object)
    holder[()] = tables
    np.save(path, holder, allow_pickle=True)


def write_uv(path: Path, values: dict[str, np.ndarray]) -> None:
    rng = np.random.default_rng(2)
    lines = ['v {} {} {}'.format(*v) for v in values['v_template']]
    lines += ['vt {} {}'.format(*t) for t in rng.random((len(values['v_template']), 2))]
    lines += ['f ' + ' '.join(f'{i + 1}/{i + 1}' for i in face) for face in values['f'].tolist()]
    path.write_text('\n'.join(lines) + '\n')


def skin_by_hand(
    values: dict[str, np.ndarray], shape: np.ndarray, expression: np.ndarray, pose: np.ndarray
) -> np.ndarray:
    """One posed head, vertex by vertex, in 4 x 4 matrices and float64: the oracle. pose [5, 3] axis-angles."""
    from scipy.spatial.transform import Rotation

    directions = values['shapedirs']
    vertices = values['v_template'].copy()
    for k, c in enumerate(shape):
        vertices = vertices + directions[:, :, k] * c
    for k, c in enumerate(expression):
        vertices = vertices + directions[:, :, 300 + k] * c
    joints = values['J_regressor'] @ vertices
    matrices = [Rotation.from_rotvec(p).as_matrix() for p in pose]
    feature = np.concatenate([(m - np.eye(3)).reshape(-1) for m in matrices[1:]])
    vertices = vertices + values['posedirs'] @ feature
    chain: list[np.ndarray] = []
    for j, parent in enumerate([-1, 0, 1, 1, 1]):
        local = np.eye(4)
        local[:3, :3] = matrices[j]
        local[:3, 3] = joints[j] - (joints[parent] if parent >= 0 else 0)
        chain.append(local if parent < 0 else chain[parent] @ local)
    out = np.zeros_like(vertices)
    for v, point in enumerate(vertices):
        for j in range(5):
            moved = chain[j] @ np.append(point - joints[j], 1.0)
            out[v] += values['weights'][v, j] * moved[:3]
    return out
