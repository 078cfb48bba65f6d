"""OBJ reading and writing: round trips, polygons, index forms, errors with line numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dnnlib import UserError
from training.head.makehuman import embedded_head
from training.head.obj import check_topology, head_vertices, read_obj, write_obj

SQUARE = """# a comment
mtllib nothing.mtl
v 0 0 0
v 1 0 0 0.5
v 1 1 0
v 0 1 0
vt 0 0
vt 1 0
vt 1 1 0
vt 0 1
vn 0 0 1
s off
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_round_trip_of_the_head(tmp_path: Path) -> None:
    template = embedded_head().template
    path = tmp_path / 'head.obj'
    write_obj(path, template.vertices, faces=template.faces, uv=template.uv, uv_faces=template.uv_faces)
    mesh = read_obj(path)
    torch.testing.assert_close(mesh.vertices, template.vertices, atol=1e-7, rtol=1e-6)
    assert torch.equal(mesh.faces, template.faces)
    assert mesh.uv is not None
    assert mesh.uv_faces is not None
    torch.testing.assert_close(mesh.uv, template.uv, atol=1e-6, rtol=0)
    assert torch.equal(mesh.uv_faces, template.uv_faces)
    torch.testing.assert_close(head_vertices(path, template, model='makehuman'), mesh.vertices)
    write_obj(path, template.vertices, faces=template.faces)
    assert read_obj(path).uv is None


@pytest.mark.parametrize(
    ('face', 'has_uv'),
    [
        ('f 1/1 2/2 3/3 4/4', True),
        ('f 1/1/1 2/2/1 3/3/1 4/4/1', True),
        ('f 1//1 2//1 3//1 4//1', False),
        ('f 1 2 3 4', False),
    ],
)
def test_quads_become_triangles(tmp_path: Path, face: str, has_uv: bool) -> None:
    mesh = read_obj(write(tmp_path / 'square.obj', SQUARE + face + '\n'))
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert (mesh.uv_faces is not None) == has_uv
    if mesh.uv_faces is not None:
        assert mesh.uv_faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_negative_indices_count_from_the_end(tmp_path: Path) -> None:
    mesh = read_obj(write(tmp_path / 'square.obj', SQUARE + 'f -4/-4 -3/-3 -2/-2\n'))
    assert mesh.faces.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('v 1 2', 'line 13: expected 3 finite numbers'),
        ('v 1 two 3', 'line 13: expected 3 finite numbers'),
        ('v 1 nan 3', 'line 13: expected 3 finite numbers'),
        ('vt 1', 'line 13: expected 2 finite numbers'),
        ('f 1 2 9', 'line 13: index 9 but only 4 defined'),
        ('f 1 2 0', 'line 13: index 0'),
        ('f 1/9 2/2 3/3', 'line 13: index 9 but only 4 defined'),
        ('f 1 2', 'line 13: a face needs at least 3 corners'),
        ('f a b c', 'line 13: invalid literal'),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / 'bad.obj', SQUARE + line + '\n')
    with pytest.raises(UserError, match=message) as caught:
        read_obj(path)
    assert str(path) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='no such file'):
        read_obj(tmp_path / 'none.obj')
    with pytest.raises(UserError, match='no vertices'):
        read_obj(write(tmp_path / 'empty.obj', ''))


def test_another_topology_is_refused(tmp_path: Path) -> None:
    template = embedded_head().template
    square = read_obj(write(tmp_path / 'square.obj', SQUARE + 'f 1 2 3\n'))
    with pytest.raises(UserError, match='another topology: 4 vertices, but .makehuman. has'):
        check_topology(square, template, path='square.obj', model='makehuman')
    path = tmp_path / 'turned.obj'
    write_obj(path, template.vertices, faces=template.faces.flip(0))
    with pytest.raises(UserError, match='triangle 1 joins other vertices'):
        head_vertices(path, template, model='makehuman')
    write_obj(path, template.vertices, faces=template.faces[:-1])
    with pytest.raises(UserError, match='triangles, but'):
        head_vertices(path, template, model='makehuman')


def test_bad_shape_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'vertices: expected shape \[V, 3\]'):
        write_obj(tmp_path / 'x.obj', torch.zeros(1, 4, 3), faces=torch.zeros(1, 3, dtype=torch.int64))
    assert not (tmp_path / 'x.obj').exists()
