"""A reader and checker of GLB files, from the format's specification and not from our writer."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {5121: 1, 5123: 2, 5125: 4, 5126: 4}
KINDS = {5121: 'u1', 5123: '<u2', 5125: '<u4', 5126: '<f4'}
WIDTHS = {'SCALAR': 1, 'VEC2': 2, 'VEC3': 3, 'VEC4': 4}


@dataclasses.dataclass(frozen=True)
class Glb:
    """A file's document and bytes."""

    json: dict[str, Any]
    data: bytes

    def array(self, index: int) -> np.ndarray:
        """The numbers [N, K] of an accessor, as they are stored."""
        accessor = self.json['accessors'][index]
        view = self.json['bufferViews'][accessor['bufferView']]
        width = WIDTHS[accessor['type']]
        start = view['byteOffset'] + accessor.get('byteOffset', 0)
        values = np.frombuffer(self.data, KINDS[accessor['componentType']], accessor['count'] * width, start)
        return values.reshape(-1, width)

    def attribute(self, mesh: int, name: str) -> np.ndarray:
        """An attribute of a mesh's only primitive."""
        return self.array(self.json['meshes'][mesh]['primitives'][0]['attributes'][name])

    def faces(self, mesh: int) -> np.ndarray:
        """[F, 3]"""
        return self.array(self.json['meshes'][mesh]['primitives'][0]['indices']).reshape(-1, 3)


def read_glb(path: Path) -> Glb:
    """The file, with everything checked that the specification demands of what our files contain."""
    content = path.read_bytes()
    magic, version, length = struct.unpack_from('<4sII', content)
    assert (magic, version, length) == (b'glTF', 2, len(content))
    json_length, kind = struct.unpack_from('<I4s', content, 12)
    assert kind == b'JSON'
    assert json_length % 4 == 0
    document = json.loads(content[20 : 20 + json_length])
    data_length, kind = struct.unpack_from('<I4s', content, 20 + json_length)
    assert kind == b'BIN\0'
    assert data_length % 4 == 0
    data = content[28 + json_length :]
    assert len(data) == data_length
    assert 0 <= data_length - document['buffers'][0]['byteLength'] < 4
    glb = Glb(document, data)
    _check_accessors(glb)
    for mesh in document['meshes']:
        _check_mesh(glb, mesh)
    for node in document['scenes'][document['scene']]['nodes']:
        assert 0 <= document['nodes'][node]['mesh'] < len(document['meshes'])
    for animation in document.get('animations', []):
        _check_animation(glb, animation)
    for image in document.get('images', []):
        view = document['bufferViews'][image['bufferView']]
        assert data[view['byteOffset'] :].startswith(b'\x89PNG')
    return glb


def _check_accessors(glb: Glb) -> None:
    end = 0
    for view in glb.json['bufferViews']:
        assert view['byteOffset'] >= end  # none overlap
        end = view['byteOffset'] + view['byteLength']
        assert end <= glb.json['buffers'][0]['byteLength']
    for index, accessor in enumerate(glb.json['accessors']):
        view = glb.json['bufferViews'][accessor['bufferView']]
        size = SIZES[accessor['componentType']]
        width = size * WIDTHS[accessor['type']]
        assert view['byteOffset'] % size == 0
        assert accessor['count'] > 0
        assert accessor['count'] * width == view['byteLength']
        if view.get('target') == 34962:
            assert width % 4 == 0  # vertex attributes start at multiples of four
        values = glb.array(index)
        assert np.isfinite(values.astype(float)).all()
        for name, bound in (('min', values.min(axis=0)), ('max', values.max(axis=0))):
            if name in accessor:
                assert np.array_equal(np.array(accessor[name], dtype='<f4'), bound)


def _check_mesh(glb: Glb, mesh: dict[str, Any]) -> None:
    (primitive,) = mesh['primitives']
    accessors = glb.json['accessors']
    count = accessors[primitive['attributes']['POSITION']]['count']
    for name, index in primitive['attributes'].items():
        assert accessors[index]['count'] == count, name
    assert {'min', 'max'} <= set(accessors[primitive['attributes']['POSITION']])
    length = np.linalg.norm(glb.array(primitive['attributes']['NORMAL']), axis=1)
    assert np.abs(length - 1).max() < 1e-4
    indices = glb.array(primitive['indices'])
    assert len(indices) % 3 == 0
    assert indices.max() < count
    for target in primitive.get('targets', []):
        assert {'min', 'max'} <= set(accessors[target['POSITION']])
        assert accessors[target['POSITION']]['count'] == count
    assert len(mesh.get('weights', [])) == len(primitive.get('targets', []))
    material = glb.json['materials'][primitive['material']]
    assert set(material['extensions']) <= set(glb.json['extensionsUsed'])
    if 'COLOR_0' in primitive['attributes']:
        color = accessors[primitive['attributes']['COLOR_0']]
        assert color['normalized'] or color['componentType'] == 5126
    texture = material['pbrMetallicRoughness'].get('baseColorTexture')
    if texture is not None:
        assert 'TEXCOORD_0' in primitive['attributes']
        assert 0 <= glb.json['textures'][texture['index']]['source'] < len(glb.json['images'])


def _check_animation(glb: Glb, animation: dict[str, Any]) -> None:
    targets = [tuple(channel['target'].values()) for channel in animation['channels']]
    assert len(set(targets)) == len(targets)
    for channel in animation['channels']:
        sampler = animation['samplers'][channel['sampler']]
        times, values = glb.array(sampler['input'])[:, 0], glb.array(sampler['output'])
        assert {'min', 'max'} <= set(glb.json['accessors'][sampler['input']])
        assert times[0] >= 0
        assert (np.diff(times) > 0).all()
        assert sampler['interpolation'] in ('LINEAR', 'STEP')
        node = glb.json['nodes'][channel['target']['node']]
        if channel['target']['path'] == 'weights':
            targets_of_mesh = glb.json['meshes'][node['mesh']]['primitives'][0]['targets']
            assert values.size == len(times) * len(targets_of_mesh)
        else:
            assert channel['target']['path'] == 'scale'
            assert values.shape == (len(times), 3)
