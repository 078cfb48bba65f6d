"""GLB files, read back by a checker that knows the specification (cases_gltf.py) and, where it is here, by trimesh."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from applications.gltf import Shape, linear_from_srgb, write_glb
from tests.cases_gltf import read_glb

TETRAHEDRON = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], dtype=np.float32)
FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
NORMALS = np.array([[-1, -1, -1], [1, 0, 0], [0, 0, 0], [0, 0, 1]], dtype=np.float32)
COLORS = np.array([[0, 128, 255], [10, 20, 30], [200, 100, 50], [255, 255, 255]], dtype=np.uint8)


def solid(name: str = 'solid', **fields: Any) -> Shape:
    return dataclasses.replace(Shape(name=name, vertices=TETRAHEDRON, faces=FACES, normals=NORMALS), **fields)


def png(size: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), 77, np.uint8)).save(buffer, format='PNG')
    return buffer.getvalue()


def test_colours_are_linear_and_normals_unit(tmp_path: Path) -> None:
    write_glb(tmp_path / 'a.glb', [solid(colors=COLORS)])
    glb = read_glb(tmp_path / 'a.glb')
    assert np.array_equal(glb.attribute(0, 'POSITION'), TETRAHEDRON)
    assert np.array_equal(glb.faces(0), FACES)
    linear = glb.attribute(0, 'COLOR_0')[:, :3] / 65535
    assert linear[0, 1] == pytest.approx(0.2158605, abs=1e-5)  # sRGB 128
    back = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.array_equal(np.rint(255 * back), COLORS)
    assert np.allclose(glb.attribute(0, 'NORMAL')[0], -1 / np.sqrt(3))
    assert (linear_from_srgb(np.array([0, 255])) == [0, 1]).all()


def test_a_texture_counts_v_from_the_top(tmp_path: Path) -> None:
    uv = np.array([[0, 0], [1, 0], [0, 1], [0.5, 0.75]], dtype=np.float32)
    write_glb(tmp_path / 'a.glb', [solid(uv=uv, texture=png())])
    glb = read_glb(tmp_path / 'a.glb')
    assert np.array_equal(glb.attribute(0, 'TEXCOORD_0'), uv * [1, -1] + [0, 1])
    assert len(glb.json['images']) == 1


def test_targets_in_turn(tmp_path: Path) -> None:
    targets = {'up': np.full((4, 3), 0.5, np.float32), 'out': TETRAHEDRON * 2}
    write_glb(tmp_path / 'still.glb', [solid(targets=targets)])
    glb = read_glb(tmp_path / 'still.glb')
    mesh = glb.json['meshes'][0]
    assert mesh['extras']['targetNames'] == ['up', 'out']
    assert np.array_equal(glb.array(mesh['primitives'][0]['targets'][1]['POSITION']), TETRAHEDRON * 2)
    assert 'animations' not in glb.json
    write_glb(tmp_path / 'moving.glb', [solid(targets=targets)], fps=10)
    glb = read_glb(tmp_path / 'moving.glb')
    (sampler,) = glb.json['animations'][0]['samplers']
    assert np.allclose(glb.array(sampler['input'])[:, 0], [0, 0.1])
    assert np.array_equal(glb.array(sampler['output']).reshape(2, 2), np.eye(2))


def test_of_a_flip_book_one_page_shows_at_a_time(tmp_path: Path) -> None:
    write_glb(tmp_path / 'a.glb', [solid(f'page{k}') for k in range(4)], fps=5)
    glb = read_glb(tmp_path / 'a.glb')
    animation = glb.json['animations'][0]
    for moment, expected in ((0.0, 0), (0.1, 0), (0.25, 1), (0.5, 2), (0.79, 3), (0.8, 3)):
        shown = []
        for channel in animation['channels']:
            sampler = animation['samplers'][channel['sampler']]
            times, values = glb.array(sampler['input'])[:, 0], glb.array(sampler['output'])
            at = max(int(np.searchsorted(times, np.float32(moment), side='right')) - 1, 0)
            if values[at].all():
                shown.append(channel['target']['node'])
        assert shown == [expected], moment
    assert [node['scale'][0] for node in glb.json['nodes']] == [1, 0, 0, 0]
    assert len(glb.json['materials']) == 1


@pytest.mark.parametrize(
    'damage',
    [
        lambda content: content[:-4],  # cut short
        lambda content: content.replace(b'"count":4', b'"count":5', 1),
        lambda content: content.replace(b'"max":[1.0,2.0,3.0]', b'"max":[1.0,2.0,4.0]', 1),
    ],
)
def test_the_checker_sees_damage(tmp_path: Path, damage) -> None:
    write_glb(tmp_path / 'a.glb', [solid(colors=COLORS)])
    whole = (tmp_path / 'a.glb').read_bytes()
    damaged = damage(whole)
    assert damaged != whole
    (tmp_path / 'a.glb').write_bytes(damaged)
    with pytest.raises((AssertionError, ValueError)):
        read_glb(tmp_path / 'a.glb')


def test_trimesh_reads_what_was_written(tmp_path: Path) -> None:
    trimesh = pytest.importorskip('trimesh')
    write_glb(tmp_path / 'a.glb', [solid(colors=COLORS)])
    scene = trimesh.load(tmp_path / 'a.glb', process=False)
    (mesh,) = scene.geometry.values()
    assert np.array_equal(mesh.vertices, TETRAHEDRON)
    assert np.array_equal(mesh.faces, FACES)
    assert mesh.volume == pytest.approx(1.0)
    uv = np.array([[0, 0], [1, 0], [0, 1], [0.5, 0.75]], dtype=np.float32)
    write_glb(tmp_path / 'b.glb', [solid(uv=uv, texture=png(8))])
    (mesh,) = trimesh.load(tmp_path / 'b.glb', process=False).geometry.values()
    assert np.allclose(mesh.visual.uv, uv)  # trimesh turns v back
    assert mesh.visual.material.baseColorTexture.size == (8, 8)
