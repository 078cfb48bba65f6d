"""FLAME from the user's licensed files: shape, expression, jaw, neck, eyes, pose correctives, blend skinning."""

from __future__ import annotations

import copy
import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dnnlib import UserError
from dnnlib.files import sha256_file
from training.head.flame_file import FlameArrays, read_embedding, read_flame
from training.head.model import HeadInput, HeadModel, HeadParams, HeadTemplate, move_tensors
from training.head.obj import read_obj
from training.head.rotation import axis_angle_matrix, mirror_pose, skin

MAX_IDENTITY, MAX_EXPRESSION = 100, 50  # coefficients in use (paper supplement; DECA's choice)
LAYOUTS = {400: 300, 150: 100}  # total directions -> where the expressions begin
EYE_MASK_SIZE = 256
IRIS_ANGLE = math.radians(24.0)  # half-angle of the iris seen from the eyeball's centre
MODEL_NAMES = ('generic_model.pkl', 'flame2023.pkl', 'flame2023_no_jaw.pkl', 'generic_model.npz')
EMBEDDING_NAMES = ('landmark_embedding.npy', 'landmark_embedding.npz')
STATIC_NAMES = ('flame_static_embedding.pkl', 'flame_static_embedding.npz')
DYNAMIC_NAMES = ('flame_dynamic_embedding.npy', 'flame_dynamic_embedding.npz')
UV_NAMES = ('head_template_mesh.obj', 'head_template.obj', 'template.obj')
# What FLAME can show by its joints alone: (jaw, left eye, right eye) axis-angles at weight 1.
POSES: dict[str, tuple[tuple[float, float, float], ...]] = {
    'jawOpen': ((0.36, 0, 0), (0, 0, 0), (0, 0, 0)),
    'jawLeft': ((0, 0.12, 0), (0, 0, 0), (0, 0, 0)),
    'jawRight': ((0, -0.12, 0), (0, 0, 0), (0, 0, 0)),
    'eyeLookUpLeft': ((0, 0, 0), (-0.45, 0, 0), (0, 0, 0)),
    'eyeLookUpRight': ((0, 0, 0), (0, 0, 0), (-0.45, 0, 0)),
    'eyeLookDownLeft': ((0, 0, 0), (0.45, 0, 0), (0, 0, 0)),
    'eyeLookDownRight': ((0, 0, 0), (0, 0, 0), (0.45, 0, 0)),
    'eyeLookInLeft': ((0, 0, 0), (0, -0.5, 0), (0, 0, 0)),
    'eyeLookInRight': ((0, 0, 0), (0, 0, 0), (0, 0.5, 0)),
    'eyeLookOutLeft': ((0, 0, 0), (0, 0.5, 0), (0, 0, 0)),
    'eyeLookOutRight': ((0, 0, 0), (0, 0, 0), (0, -0.5, 0)),
}


class FlameHead(HeadModel):
    """FLAME 2020 or 2023, read from the user's files without running anything in them.

    `path` is the model file, or a folder that holds it; the landmark embedding and the OBJ with uv coordinates are
    looked for beside it unless given. Landmarks: the static embedding of all 68 points; where only FLAME's dynamic
    contour exists, its frontal row serves as the contour for every pose. Pose order: root (rotation), neck, jaw,
    left eye, right eye. FLAME's template and bases are nearly but not exactly symmetric, so `mirror` is the least
    squares fit of the mirrored shape, and exact only for a symmetric model.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        landmarks: str | Path | None = None,
        dynamic_landmarks: str | Path | None = None,
        uv: str | Path | None = None,
        name: str | None = None,
    ) -> None:
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        source = _find(folder, MODEL_NAMES, 'FLAME model') if Path(path).is_dir() else Path(path)
        arrays = read_flame(source)
        total = arrays.shape_directions.shape[2]
        if total not in LAYOUTS:
            raise UserError(f'{source}: {total} shape and expression directions; expected one of {sorted(LAYOUTS)}')
        begin = LAYOUTS[total]
        newer = '2023' in source.name or (not arrays.uses_chumpy and '2020' not in source.name)
        self.name = name if name and name != 'flame' else ('flame2023' if newer else 'flame2020')
        self.num_identity = min(MAX_IDENTITY, begin)
        self.num_expression = min(MAX_EXPRESSION, total - begin)
        directions = torch.from_numpy(arrays.shape_directions)
        self._identity = directions[:, :, : self.num_identity].contiguous()
        self._expression = directions[:, :, begin : begin + self.num_expression].contiguous()
        self._pose = torch.from_numpy(arrays.pose_directions)
        self._regressor = torch.from_numpy(arrays.joint_regressor)
        self._weights = torch.from_numpy(arrays.weights)
        self._parents = arrays.parents
        self._mirror_maps: tuple[Tensor, Tensor] | None = None
        self.expression_names = tuple(POSES) + tuple(f'expression{i:02d}' for i in range(self.num_expression))
        uv_path = Path(uv) if uv else _find(folder, UV_NAMES, 'OBJ with uv coordinates')
        embedding, embedding_files = _landmark_embedding(folder, landmarks, dynamic_landmarks)
        self._build_template(arrays, uv_path, embedding)
        files = (source, uv_path, *embedding_files)
        self.content_hash = hashlib.sha256(''.join(sha256_file(file) for file in files).encode()).hexdigest()

    def _build_template(self, arrays: FlameArrays, uv_path: Path, embedding: tuple[np.ndarray, np.ndarray]) -> None:
        mesh = read_obj(uv_path)
        faces = torch.from_numpy(arrays.faces)
        if mesh.uv is None or mesh.uv_faces is None:
            raise UserError(
                f'{uv_path}: no uv coordinates on its faces; give an OBJ of the FLAME template with vt lines'
            )
        if list(mesh.faces.shape) != list(faces.shape) or not bool((mesh.faces == faces).all()):
            raise UserError(
                f'{uv_path}: its triangles are not those of the FLAME model; give the OBJ of the same template'
            )
        landmark_faces, barycentrics = embedding
        if landmark_faces.max() >= len(faces):
            raise UserError(f'landmark embedding: triangle {landmark_faces.max()} but the model has {len(faces)}')
        vertices = torch.from_numpy(arrays.template)
        dominant = self._weights[faces].sum(dim=1).argmax(dim=1)
        eyes, depth = dominant >= 3, vertices[faces].mean(dim=1)[:, 2]
        neck = dominant == 0
        centre = float((self._regressor @ vertices)[1, 2])
        self.regions = {'eyes': eyes, 'neck': neck, 'face': ~eyes & ~neck & (depth > centre)}
        self.template = HeadTemplate(
            vertices=vertices,
            faces=faces,
            uv=mesh.uv,
            uv_faces=mesh.uv_faces,
            eye_mask=1 - uv_coverage(mesh.uv, mesh.uv_faces[eyes], EYE_MASK_SIZE),
            landmark_faces=torch.from_numpy(landmark_faces.astype(np.int64)),
            landmark_barycentrics=torch.from_numpy(barycentrics.astype(np.float32)),
        )
        self.gaze_vertices = self._find_gaze()

    def _find_gaze(self) -> Tensor:
        """[2, 5] eyeball vertices nearest to the iris centre and its subject's-right, top, left and bottom border."""
        vertices = self.template.vertices
        joints = self._regressor @ vertices
        found = []
        s, c = math.sin(IRIS_ANGLE), math.cos(IRIS_ANGLE)
        wanted = torch.tensor([[0, 0, 1.0], [-s, 0, c], [0, s, c], [s, 0, c], [0, -s, c]])
        for joint in (3, 4):
            index = torch.nonzero(self._weights[:, joint] > 0.5)[:, 0]
            if not len(index):
                index = self._weights[:, joint].argmax()[None]
            direction = torch.nn.functional.normalize(vertices[index] - joints[joint], dim=1)
            found.append(index[(wanted @ direction.T).argmax(dim=1)])
        return torch.stack(found)

    def forward(self, params: HeadParams) -> HeadInput:
        """See HeadModel.forward."""
        self._check(params)
        count = len(params)
        shape = torch.einsum('vck,nk->nvc', self._identity, params.identity)
        shape = shape + torch.einsum('vck,nk->nvc', self._expression, params.expression)
        vertices = self.template.vertices + shape
        joints = torch.einsum('jv,nvc->njc', self._regressor, vertices)
        vectors = torch.stack([params.rotation, params.neck, params.jaw, params.eyes[:, :3], params.eyes[:, 3:]], dim=1)
        rotations = axis_angle_matrix(vectors)
        bend = (rotations[:, 1:] - torch.eye(3, device=rotations.device)).reshape(count, -1)
        vertices = vertices + torch.einsum('vck,nk->nvc', self._pose, bend)
        posed = skin(vertices, self._weights, joints, rotations, self._parents) + params.translation[:, None]
        return HeadInput(posed, self.template.landmarks(posed))

    def _check(self, params: HeadParams) -> None:
        for field, width in (('identity', self.num_identity), ('expression', self.num_expression)):
            value = getattr(params, field)
            if value.shape[1] != width:
                raise ValueError(
                    f'HeadParams.{field}: expected shape [{len(params)}, {width}], got {list(value.shape)}'
                )

    def mirror(self, params: HeadParams) -> HeadParams:
        """See HeadModel.mirror; a least-squares fit (class docstring)."""
        self._check(params)
        if self._mirror_maps is None:
            self._mirror_maps = self._fit_mirror(self._identity), self._fit_mirror(self._expression)
        return mirror_pose(
            params,
            identity=params.identity @ self._mirror_maps[0],
            expression=params.expression @ self._mirror_maps[1],
        )

    def _fit_mirror(self, basis: Tensor) -> Tensor:
        """[K, K]: row vector of coefficients -> coefficients whose shape is nearest to the mirrored one."""
        flip = torch.tensor([-1.0, 1.0, 1.0], device=basis.device)
        vertices = self.template.vertices
        # The vertex nearest to each vertex's mirror image stands for it.
        partner = torch.cat([_nearest(part * flip, vertices) for part in vertices.split(512)])
        mirrored = basis[partner] * flip[:, None]
        width = basis.shape[2]
        flat, target = basis.reshape(-1, width).double(), mirrored.reshape(-1, width).double()
        # Directions of zero size (padded files) have no mirror image to fit: pinv drops them.
        return (torch.linalg.pinv(flat.T @ flat, rtol=1e-10) @ (flat.T @ target)).T.float()

    def named_expression(self, name: str, weight: float = 1.0) -> HeadParams:
        """See HeadModel.named_expression: jaw and gaze names of ARKit, or 'expression07' for one coefficient."""
        params = self.neutral()
        if name not in self.expression_names:
            raise UserError(f'expression {name!r}: {self.name} knows only {", ".join(self.expression_names)}')
        if name in POSES:
            jaw, left, right = (torch.tensor(v, device=params.jaw.device)[None] * weight for v in POSES[name])
            return params.replace(jaw=jaw, eyes=torch.cat([left, right], dim=1))
        coefficients = params.expression.clone()
        coefficients[0, int(name.removeprefix('expression'))] = weight
        return params.replace(expression=coefficients)

    def to(self, device: torch.device | str) -> FlameHead:
        """See HeadModel.to."""
        moved = copy.copy(self)
        vars(moved).update({key: move_tensors(value, device) for key, value in vars(self).items()})
        return moved


def _find(folder: Path, names: tuple[str, ...], what: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f'{folder}: no {what}; expected one of {", ".join(names)} there')


def _nearest(points: Tensor, vertices: Tensor) -> Tensor:
    return torch.cdist(points, vertices, compute_mode='donot_use_mm_for_euclid_dist').argmin(dim=1)


def _landmark_embedding(
    folder: Path, static: str | Path | None, dynamic: str | Path | None
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[Path, ...]]:
    """Faces [68], barycentrics [68, 3] and the files they came from."""
    both = [folder / name for name in EMBEDDING_NAMES if (folder / name).is_file()]
    first = Path(static) if static else both[0] if both else _find(folder, STATIC_NAMES, 'landmark embedding')
    files: tuple[Path, ...] = (first,)
    tables = read_embedding(first)
    if 'full_lmk_faces_idx' not in tables and 'dynamic_lmk_faces_idx' not in tables:
        second = Path(dynamic) if dynamic else _find(folder, DYNAMIC_NAMES, 'contour embedding')
        files = (first, second)
        contour = read_embedding(second)
        tables = {**{f'contour_{key}': value for key, value in contour.items()}, **tables}
    faces: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    if 'full_lmk_faces_idx' in tables:
        faces, weights = [tables['full_lmk_faces_idx'].reshape(-1)], [tables['full_lmk_bary_coords'].reshape(-1, 3)]
    else:
        for faces_key, weights_key, rows in (
            ('dynamic_lmk_faces_idx', 'dynamic_lmk_bary_coords', 17),
            ('contour_lmk_face_idx', 'contour_lmk_b_coords', 17),
            ('static_lmk_faces_idx', 'static_lmk_bary_coords', 51), ('lmk_face_idx', 'lmk_b_coords', 51),
        ):  # fmt: skip
            if faces_key in tables and weights_key in tables:
                # Row 0 of the contour's table is the frontal one.
                faces.append(tables[faces_key].reshape(-1)[:rows])
                weights.append(tables[weights_key].reshape(-1, 3)[:rows])
    joined = np.concatenate(faces) if faces else np.zeros(0)
    if len(joined) != 68 or sum(len(w) for w in weights) != 68:
        raise UserError(f'{first}: {len(joined)} landmarks; expected 68 (17 of the contour and 51 of the face)')
    return (joined.astype(np.int64), np.concatenate(weights)), files


def uv_coverage(uv: Tensor, uv_faces: Tensor, size: int) -> Tensor:
    """[size, size] in {0, 1}, row 0 at v = 1: texels whose centre lies in a uv triangle or within half a texel."""
    image = torch.zeros(size, size)
    corners = torch.stack([uv[:, 0] * size, (1 - uv[:, 1]) * size], dim=1)[uv_faces].double()
    for triangle in corners:
        low = (triangle.min(dim=0).values - 1.0).floor().long().clamp(0, size - 1).tolist()
        high = (triangle.max(dim=0).values + 1.0).ceil().long().clamp(1, size).tolist()
        x, y = torch.meshgrid(torch.arange(low[0], high[0]) + 0.5, torch.arange(low[1], high[1]) + 0.5, indexing='xy')
        inside = torch.ones_like(x, dtype=torch.bool)
        edge, other = triangle[1] - triangle[0], triangle[2] - triangle[0]
        turn = 1.0 if float(edge[0] * other[1] - edge[1] * other[0]) >= 0 else -1.0
        for k in range(3):
            a, b = triangle[k], triangle[(k + 1) % 3]
            length = float((b - a).norm()) or 1.0
            inside &= turn * ((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])) / length >= -0.5
        image[low[1] : high[1], low[0] : high[0]][inside] = 1
    return image
