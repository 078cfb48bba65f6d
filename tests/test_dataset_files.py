"""The files that importers read: meshes, landmarks, arrays by name; damaged and malicious ones too."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from applications.datasets.mesh_files import read_landmarks, read_vertices, suggest_scale
from applications.datasets.parameter_files import read_parameters
from tests.cases_dataset import user_error
from tests.cases_importers import (
    save_codes,
)

# Files.


def test_vertices_with_other_lines_and_colours_between(tmp_path: Path) -> None:
    path = tmp_path / 'a.obj'
    path.write_bytes(b'mtllib a.mtl\r\nv 1 2 3 0.5 0.5 0.5\r\nvn 0 0 1\r\nv 4 5e-1 -6 0.5 0.5 0.5\r\nf 1 2 1\r\n')
    np.testing.assert_array_equal(read_vertices(path), [[1, 2, 3], [4, 0.5, -6]])


def test_landmarks_keep_the_first_68_rows_and_three_columns(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(70, 4))
    np.savetxt(tmp_path / 'a.txt', values, delimiter=', ', header='x y z visible')
    np.testing.assert_allclose(read_landmarks(tmp_path / 'a.txt'), values[:68, :3])


def test_suggested_scale_brings_a_head_to_its_size() -> None:
    assert suggest_scale(0.7) == pytest.approx(0.4)
    assert suggest_scale(280.0) == pytest.approx(0.001)


@pytest.mark.parametrize('kind', ['npz', 'npy', 'pkl', 'pt', 'mat', 'json'])
def test_every_kind_of_parameter_file(tmp_path: Path, kind: str) -> None:
    row = {'shape': np.arange(5, dtype=np.float32)[None], 'cam': np.array([[8, 0.1, 0.2]], dtype=np.float32)}
    save_codes(tmp_path / f'a.{kind}', row)
    found = read_parameters(tmp_path / f'a.{kind}')
    for key, value in row.items():
        np.testing.assert_allclose(found[key], value)


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize('kind', ['pkl', 'npy', 'pt', 'npz'])
def test_malicious_pickles_are_not_run(tmp_path: Path, kind: str) -> None:
    mark, path = tmp_path / 'ran', tmp_path / f'a.{kind}'
    content = {'shape': Evil(mark)}
    if kind == 'pt':
        torch.save(content, path)
    elif kind == 'pkl':
        path.write_bytes(pickle.dumps(content))
    else:
        holder = np.empty((), dtype=object)
        holder[()] = content
        (np.save if kind == 'npy' else np.savez)(path, holder, allow_pickle=True)  # type: ignore[operator]
    assert str(path) in user_error(lambda: read_parameters(path))
    assert not mark.exists()


@pytest.mark.parametrize(
    ('name', 'data'),
    [
        ('a.npz', b'PK\x03\x04cut'),
        ('a.npy', b'\x93NUMPY'),
        ('a.pkl', pickle.dumps({'a': np.zeros(9)})[:-20]),
        ('a.pt', b'nothing'),
        ('a.mat', b'MATLAB 5.0'),
        ('a.json', b'[1, 2'),
        ('a.json', b'[1, 2]'),
        ('a.txt', b'1 2 3'),
    ],
)
def test_damaged_parameter_files_are_named(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert name in user_error(lambda: read_parameters(tmp_path / name))
    assert 'no such file' in user_error(lambda: read_parameters(tmp_path / f'missing{Path(name).suffix}')) or (
        name == 'a.txt'
    )
