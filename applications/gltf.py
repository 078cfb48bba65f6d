"""GLB files (glTF 2.0, binary): meshes with vertex colours or a texture, morph targets, and two kinds of animation.

glTF's frame is ours: metres, y up, the face towards +z. Colours are the network's, which have their light in them,
and so materials are unlit (KHR_materials_unlit; a viewer without it shades them as rough paint). Vertex colours are
linear in glTF and sRGB in a picture: they are converted here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnnlib.files import atomic_write

_MAGIC, _JSON, _BIN = 0x46546C67, 0x4E4F534A, 0x004E4942
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_COMPONENTS = {np.dtype('<f4'): 5126, np.dtype('<u4'): 5125, np.dtype('<u2'): 5123}
_TYPES = {1: 'SCALAR', 2: 'VEC2', 3: 'VEC3', 4: 'VEC4'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """What one node of a file shows; either colours, or uv and texture, or neither."""

    name: str
    vertices: NDArray[np.float32]  # [V, 3] metres
    faces: NDArray[np.integer]  # [F, 3] counter-clockwise seen from outside
    normals: NDArray[np.float32]  # [V, 3] unit
    colors: NDArray[np.uint8] | None = None  # [V, 3] sRGB
    uv: NDArray[np.float32] | None = None  # [V, 2], v up as in OBJ
    texture: bytes | None = None  # a PNG
    targets: Mapping[str, NDArray[np.float32]] = dataclasses.field(default_factory=dict)  # displacements [V, 3]


def write_glb(path: str | os.PathLike[str], shapes: Sequence[Shape], *, fps: float | None = None) -> None:
    """Write the shapes as one file, whole or not at all.

    fps None: a still scene. Else one animation: of a single shape with targets, target k is fully on at k / fps and
    mixed linearly with its neighbours between; of several shapes, shape k alone is shown from k / fps on (the others
    are scaled to zero, in steps), which every viewer with animations plays.
    """
    if not shapes:
        raise ValueError('shapes: expected at least one')
    document = _Document()
    for shape in shapes:
        document.add(shape)
    if fps is not None and len(shapes) == 1 and shapes[0].targets:
        document.play_targets(len(shapes[0].targets), fps=fps)
    elif fps is not None:
        document.play_nodes(len(shapes), fps=fps)
    with atomic_write(path) as handle:
        handle.write(document.encode())


def linear_from_srgb(values: NDArray[np.uint8]) -> NDArray[np.float64]:
    """sRGB bytes -> linear intensities in [0, 1]."""
    x = values / 255.0
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


class _Document:
    """A glTF document under construction, with the bytes that its accessors read."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.json: dict[str, Any] = {
            'asset': {'version': '2.0', 'generator': 'next3d'},
            'extensionsUsed': ['KHR_materials_unlit'],
            'scene': 0,
            'scenes': [{'nodes': []}],
            **{name: [] for name in ('nodes', 'meshes', 'materials', 'accessors', 'bufferViews')},
        }

    def add(self, shape: Shape) -> None:
        """A node with its mesh and material."""
        attributes = {
            'POSITION': self._accessor(shape.vertices.astype('<f4'), target=_ARRAY_BUFFER, bounds=True),
            'NORMAL': self._accessor(_unit(shape.normals), target=_ARRAY_BUFFER),
        }
        if shape.colors is not None:
            linear = np.rint(linear_from_srgb(shape.colors) * 65535)
            opaque = np.concatenate([linear, np.full((len(linear), 1), 65535)], axis=1)
            attributes['COLOR_0'] = self._accessor(opaque.astype('<u2'), target=_ARRAY_BUFFER, normalized=True)
        if shape.uv is not None:
            down = np.stack([shape.uv[:, 0], 1 - shape.uv[:, 1]], axis=1)  # glTF counts v from the top
            attributes['TEXCOORD_0'] = self._accessor(down.astype('<f4'), target=_ARRAY_BUFFER)
        indices = self._accessor(shape.faces.reshape(-1).astype('<u4'), target=_ELEMENT_ARRAY_BUFFER)
        primitive: dict[str, Any] = {
            'attributes': attributes, 'indices': indices, 'material': self._material(shape.texture), 'mode': 4,
        }  # fmt: skip
        mesh: dict[str, Any] = {'name': shape.name, 'primitives': [primitive]}
        if shape.targets:
            primitive['targets'] = [
                {'POSITION': self._accessor(moved.astype('<f4'), target=_ARRAY_BUFFER, bounds=True)}
                for moved in shape.targets.values()
            ]
            mesh['weights'] = [0.0] * len(shape.targets)
            mesh['extras'] = {'targetNames': list(shape.targets)}
        self.json['scenes'][0]['nodes'].append(len(self.json['nodes']))
        self.json['nodes'].append({'name': shape.name, 'mesh': len(self.json['meshes'])})
        self.json['meshes'].append(mesh)

    def play_targets(self, count: int, *, fps: float) -> None:
        """Target k of node 0 alone at k / fps."""
        times = self._times(np.arange(count) / fps)
        weights = self._accessor(np.eye(count).reshape(-1).astype('<f4'))
        self._animate([(0, 'weights', times, weights)], interpolation='LINEAR')

    def play_nodes(self, count: int, *, fps: float) -> None:
        """Node k alone from k / fps to (k + 1) / fps."""
        tracks = []
        for node in range(count):
            shown = [(node / fps, 1.0), ((node + 1) / fps, float(node == count - 1))]  # the last one stays
            keys = shown if node == 0 else [(0.0, 0.0), *shown]
            times = self._times(np.array([time for time, _ in keys]))
            scale = np.array([[value] * 3 for _, value in keys], dtype='<f4')
            tracks.append((node, 'scale', times, self._accessor(scale)))
            self.json['nodes'][node]['scale'] = [float(node == 0)] * 3  # where nothing is played, the first
        self._animate(tracks, interpolation='STEP')

    def encode(self) -> bytes:
        """The file's bytes."""
        self.json['buffers'] = [{'byteLength': len(self.data)}]
        text = json.dumps(self.json, separators=(',', ':')).encode()
        text += b' ' * (-len(text) % 4)
        body = bytes(self.data) + b'\0' * (-len(self.data) % 4)
        chunks = struct.pack('<II', len(text), _JSON) + text + struct.pack('<II', len(body), _BIN) + body
        return struct.pack('<III', _MAGIC, 2, 12 + len(chunks)) + chunks

    def _animate(self, tracks: list[tuple[int, str, int, int]], *, interpolation: str) -> None:
        samplers = [{'input': times, 'output': out, 'interpolation': interpolation} for _, _, times, out in tracks]
        channels = [
            {'sampler': index, 'target': {'node': node, 'path': what}}
            for index, (node, what, _, _) in enumerate(tracks)
        ]
        self.json['animations'] = [{'name': 'sequence', 'samplers': samplers, 'channels': channels}]

    def _material(self, texture: bytes | None) -> int:
        """A new material for a texture, else the one that all shapes without texture share."""
        surface: dict[str, Any] = {'metallicFactor': 0.0, 'roughnessFactor': 1.0}
        material: dict[str, Any] = {
            'name': 'texture' if texture else 'paint',
            'pbrMetallicRoughness': surface,
            'doubleSided': True,
            'extensions': {'KHR_materials_unlit': {}},
        }
        if texture is not None:
            image = {'bufferView': self._view(texture), 'mimeType': 'image/png'}
            self.json.setdefault('images', []).append(image)
            self.json.setdefault('textures', []).append({'source': len(self.json['images']) - 1})
            surface['baseColorTexture'] = {'index': len(self.json['textures']) - 1}
        elif material in self.json['materials']:
            return self.json['materials'].index(material)
        self.json['materials'].append(material)
        return len(self.json['materials']) - 1

    def _times(self, seconds: NDArray[np.float64]) -> int:
        return self._accessor(seconds.astype('<f4'), bounds=True)

    def _accessor(
        self, values: NDArray[Any], *, target: int | None = None, bounds: bool = False, normalized: bool = False
    ) -> int:
        """[N] or [N, K] numbers; `bounds` adds min and max, which positions and times must have."""
        rows = values if values.ndim == 2 else values[:, None]
        entry: dict[str, Any] = {
            'bufferView': self._view(np.ascontiguousarray(rows).tobytes(), target=target),
            'componentType': _COMPONENTS[values.dtype],
            'count': len(rows),
            'type': _TYPES[rows.shape[1]],
        }
        if bounds:
            entry |= {'min': rows.min(axis=0).astype(float).tolist(), 'max': rows.max(axis=0).astype(float).tolist()}
        if normalized:
            entry['normalized'] = True
        self.json['accessors'].append(entry)
        return len(self.json['accessors']) - 1

    def _view(self, content: bytes, *, target: int | None = None) -> int:
        self.data += b'\0' * (-len(self.data) % 4)
        view = {'buffer': 0, 'byteOffset': len(self.data), 'byteLength': len(content)}
        self.data += content
        self.json['bufferViews'].append(view if target is None else {**view, 'target': target})
        return len(self.json['bufferViews']) - 1


def _unit(normals: NDArray[np.floating]) -> NDArray[np.float32]:
    """Normals of length one; (0, 0, 1) where there is none."""
    length = np.linalg.norm(normals.astype(np.float64), axis=1, keepdims=True)
    unit = np.where(length > 1e-6, normals / np.maximum(length, 1e-6), [0.0, 0.0, 1.0])
    return unit.astype('<f4')
