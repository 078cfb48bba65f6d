"""The embedded head model: MakeHuman's CC0 head, baked by tools/bake_makehuman_head.py."""

from __future__ import annotations

import copy
import dataclasses
import functools
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dnnlib import UserError
from dnnlib.files import sha256_file
from training.head.model import HeadInput, HeadModel, HeadParams, HeadTemplate, move_tensors
from training.head.rotation import axis_angle_matrix, mirror_pose, skin_planes

DEFAULT_PATH = Path(__file__).resolve().parents[2] / 'assets/makehuman_head.npz'
PART_NAMES = ('teeth_upper', 'teeth_lower', 'tongue')
PARENTS = (-1, 0, 1, 1, 1)  # root, neck, jaw, left eye, right eye
LID_REACH, LID_CLEARANCE = 1.6, 1.02  # in eyeball radii: which vertices count as lids, and their distance
# Rotation (radians, about x then y) of an eye at weight 1 of the named looks; left eye's signs for In and Out.
LOOK_ANGLES = {
    'eyeLookUp': (-0.45, 0.0),
    'eyeLookDown': (0.45, 0.0),
    'eyeLookIn': (0.0, -0.5),
    'eyeLookOut': (0.0, 0.5),
}

Lid = tuple[Tensor, Tensor, int]  # rows of an eye's lids, least distances to its centre (radii), row of its pole


@dataclasses.dataclass(frozen=True)
class Part:
    """Something inside the head that the template leaves out: teeth or tongue."""

    faces: Tensor  # [F, 3] int64 into the part's own vertices, counter-clockwise seen from outside
    uv: Tensor  # [T, 2] float32
    uv_faces: Tensor  # [F, 3] int64


class MakeHumanHead(HeadModel):
    """Identity (principal components), 52 named expressions, jaw, neck and eyes; always available.

    Coefficients are in standard deviations: identities drawn from N(0, 1) are plausible and varied; expression
    coefficients of N(0, 1) give every named target a weight of standard deviation 0.25. Every basis component is
    even or odd under mirroring, so `mirror` is exact. Rotations have FLAME's senses: the jaw about +x opens the
    mouth; an eye about +y looks to the subject's left, about +x down; the neck about +x nods, about +y turns to
    the subject's left. `rotation` turns everything about the root joint at the base of the neck.
    """

    name = 'makehuman'
    parts: dict[str, Part]
    vertex_masks: dict[str, Tensor]  # soft masks [V] in [0, 1]: face, lips, eyelids, ears, hair
    iris_radius_uv: float  # iris radius as a fraction of the eyeball's disc in the uv chart
    mirror_vertices: Tensor  # [V] int64: the vertex at (-x, y, z)
    landmark_uv: Tensor  # [68, 2] float32: where the landmarks lie in the uv chart
    jaw_open_angle: float  # radians about +x of the jaw in the sculpted target jawOpen

    def __init__(self, path: str | Path | None = None) -> None:
        source = Path(path) if path is not None else DEFAULT_PATH
        if not source.is_file():
            raise UserError(
                f'{source}: the embedded head model is missing; restore it or run tools/bake_makehuman_head.py'
            )
        self.content_hash = sha256_file(source)
        try:
            with zipfile.ZipFile(source), np.load(source) as data:
                arrays = {name: data[name] for name in data.files}
            self._read_shapes(arrays)
            self._read_topology(arrays)
        except (zipfile.BadZipFile, EOFError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise UserError(f'{source}: not a file of the embedded head model ({error})') from error

    def _read_shapes(self, arrays: dict[str, np.ndarray]) -> None:
        mirror = torch.from_numpy(arrays['mirror'].astype(np.int64))
        rows = len(mirror)
        half = torch.nonzero(mirror >= torch.arange(rows))[:, 0]
        flip = torch.tensor([-1.0, 1.0, 1.0])

        def complete(values: Tensor, parity: Tensor) -> Tensor:
            """Values [K, H, 3] of one half -> [K, rows, 3] by each component's parity."""
            full = torch.zeros(len(values), rows, 3)
            full[:, mirror[half]] = values * flip * parity[:, None, None]
            full[:, half] = values
            middle = half[mirror[half] == half]
            # On the midline even components have no x, odd ones nothing else.
            keep = torch.where(parity[:, None] > 0, 1 - flip.lt(0).float(), flip.lt(0).float())
            full[:, middle] *= keep[:, None]
            return full

        mean = torch.from_numpy(arrays['mean'])[None]
        self._mean = complete(mean, torch.ones(1))[0]
        self._identity_parity = torch.from_numpy(arrays['identity_parity'].astype(np.float32))
        shapes = (
            torch.from_numpy(arrays['identity'].astype(np.float32))
            * torch.from_numpy(arrays['identity_step'])[:, None, None]
        )
        identity = complete(shapes, self._identity_parity).reshape(len(shapes), -1)
        self.expression_names = tuple(str(name) for name in arrays['expression_names'])
        stored = iter(torch.from_numpy(arrays['targets'].astype(np.float32)) * float(arrays['targets_step']))
        left: dict[str, Tensor] = {n: next(stored) for n in self.expression_names if not n.endswith('Right')}
        even = [n for n in left if not n.endswith('Left')]
        middle = complete(torch.stack([left[n] for n in even])[:, half], torch.ones(len(even)))
        targets = dict(zip(even, middle, strict=True))
        for name, target in left.items():
            if name.endswith('Left'):
                targets[name] = target
                targets[f'{name[:-4]}Right'] = target[mirror] * flip
        self._targets = torch.stack([targets[n] for n in self.expression_names])
        transform = torch.from_numpy(arrays['expression_transform'])
        self._expression_parity = torch.from_numpy(arrays['expression_parity'].astype(np.float32))
        mixed = torch.tensordot(transform.double(), self._targets.double(), dims=1).float()
        expression = complete(mixed[:, half], self._expression_parity).reshape(len(mixed), -1)
        basis = torch.cat([identity, expression])
        self._basis = basis.reshape(len(basis), -1, 3).transpose(1, 2).contiguous()  # [identity + expression, 3, rows]
        self._mean_planes = self._mean.T.contiguous()  # [3, rows]
        # transform = std * orthogonal, so the inverse is its transpose over std^2.
        self._to_coefficients = transform.T / transform.square().sum(dim=1)
        self._weights = torch.from_numpy(arrays['weights']).T.contiguous()  # [joints, rows]
        self._lids = self._find_lids(arrays, mirror)
        self._mirror_rows = mirror
        self.num_identity, self.num_expression = len(shapes), len(mixed)
        self._joint_basis = identity[:, -15:].contiguous()  # [identity, joints * 3]

    def _find_lids(self, arrays: dict[str, np.ndarray], mirror: Tensor) -> tuple[Lid, ...]:
        """Per eye: rows of the lids, how near (in eyeball radii) each may come to the eyeball's centre, its pole."""
        num_skin = int((self._weights[3:, : int(arrays['num_vertices'])].sum(dim=0) == 0).sum())
        left_pole = int(arrays['gaze_vertices'][0, 0])
        centre = self._mean[-2]
        radius = (self._mean[left_pole] - centre).norm()
        ratio = (self._mean[:num_skin] - centre).norm(dim=1) / radius
        rows = torch.nonzero(ratio < LID_REACH)[:, 0]
        floor = ratio[rows].clamp(max=LID_CLEARANCE)
        return (rows, floor, left_pole), (mirror[rows], floor, int(mirror[left_pole]))

    def _read_topology(self, arrays: dict[str, np.ndarray]) -> None:
        def integers(name: str) -> Tensor:
            return torch.from_numpy(arrays[name].astype(np.int64))

        count = int(arrays['num_vertices'])
        faces = integers('faces')
        bits = arrays['eye_mask']
        size = int(np.sqrt(8 * len(bits)))
        mask = np.unpackbits(bits)[: size * size].reshape(size, size)
        self.template = HeadTemplate(
            vertices=self._mean[:count].clone(),
            faces=faces,
            uv=torch.from_numpy(arrays['uv']),
            uv_faces=integers('uv_faces'),
            eye_mask=torch.from_numpy(mask.astype(np.float32)),
            landmark_faces=integers('landmark_faces'),
            landmark_barycentrics=torch.from_numpy(arrays['landmark_barycentrics']),
        )
        masks = np.unpackbits(arrays['regions'])[: len(arrays['region_names']) * len(faces)].reshape(-1, len(faces))
        corners = self.template.uv[self.template.uv_faces[self.template.landmark_faces]]
        self.landmark_uv = (corners * self.template.landmark_barycentrics[..., None]).sum(dim=1)
        self.regions: Mapping[str, Tensor] = {
            str(name): torch.from_numpy(mask.astype(bool))
            for name, mask in zip(arrays['region_names'], masks, strict=True)
        }
        self.vertex_masks = {
            str(name): torch.from_numpy(mask.astype(np.float32) / 255)
            for name, mask in zip(arrays['mask_names'], arrays['masks'], strict=True)
        }
        self.gaze_vertices = integers('gaze_vertices')
        self.iris_radius_uv = float(arrays['iris_radius_uv'])
        self.mirror_vertices = self._mirror_rows[:count]
        self.jaw_open_angle = float(arrays['jaw_open_angle'])
        self._part_sizes = tuple(int(x) for x in arrays['part_sizes'])
        self.parts = {
            name: Part(integers(f'{name}_faces'), torch.from_numpy(arrays[f'{name}_uv']), integers(f'{name}_uv_faces'))
            for name in PART_NAMES
        }

    def _check(self, params: HeadParams) -> None:
        for field, width in (('identity', self.num_identity), ('expression', self.num_expression)):
            value = getattr(params, field)
            if value.shape[1] != width:
                raise ValueError(
                    f'HeadParams.{field}: expected shape [{len(params)}, {width}], got {list(value.shape)}'
                )

    def _posed_rows(self, params: HeadParams, rows: slice | Tensor, *, lids: tuple[Lid, ...] = ()) -> Tensor:
        self._check(params)
        coefficients = torch.cat([params.identity, params.expression], dim=1)
        mean, basis, weights = self._mean_planes, self._basis, self._weights
        if isinstance(rows, Tensor):
            mean, basis, weights = (x.index_select(-1, rows) for x in (mean, basis, weights))
            rows = slice(None)
        planes = torch.addmm(mean.view(-1), coefficients, basis.view(len(basis), -1)).unflatten(1, mean.shape)
        planes = planes.transpose(0, 1)[..., rows]  # [3, N, rows]
        joints = self._mean[-5:] + (params.identity @ self._joint_basis).unflatten(1, (5, 3))
        vectors = torch.stack([params.rotation, params.neck, params.jaw, params.eyes[:, :3], params.eyes[:, 3:]], dim=1)
        planes = self._keep_lids_outside(planes, joints, lids=lids)
        posed = skin_planes(planes, weights[:, rows], joints, axis_angle_matrix(vectors), PARENTS)
        return (posed + params.translation.T[..., None]).permute(1, 2, 0).contiguous()

    def _keep_lids_outside(self, planes: Tensor, joints: Tensor, *, lids: tuple[Lid, ...]) -> Tensor:
        """Push lid vertices out of the eyeballs: half-closed lids would cut the corner between open and shut.

        planes [3, N, rows] and joints [N, 5, 3], unposed.
        """
        pushed = []
        for eye, (rows, floor, pole) in enumerate(lids):
            centre = joints[:, 3 + eye].T[..., None]
            radius = (planes[..., pole, None] - centre).square().sum(dim=0).sqrt()
            offset = planes.index_select(2, rows) - centre
            push = (floor * radius / offset.square().sum(dim=0).sqrt()).clamp(min=1.0)
            pushed.append(torch.addcmul(centre, offset, push))
        if not pushed:
            return planes
        return planes.index_copy(2, torch.cat([rows for rows, _, _ in lids]), torch.cat(pushed, dim=2))

    def forward(self, params: HeadParams) -> HeadInput:
        """See HeadModel.forward."""
        vertices = self._posed_rows(params, slice(0, self.template.num_vertices), lids=self._lids)
        return HeadInput(vertices, self.template.landmarks(vertices))

    def positions(self, params: HeadParams, vertices: Tensor) -> Tensor:
        """See HeadModel.positions."""
        count, lids = len(vertices), []
        rows = torch.cat([vertices, torch.tensor([pole for _, _, pole in self._lids], device=vertices.device)])
        for eye, (lid_rows, floor, _) in enumerate(self._lids):
            table = floor.new_zeros(self.template.num_vertices)
            table[lid_rows] = floor
            used = torch.nonzero(table[rows])[:, 0]
            lids.append((used, table[rows[used]], count + eye))
        return self._posed_rows(params, rows, lids=tuple(lids))[:, :count]

    def forward_parts(self, params: HeadParams) -> dict[str, Tensor]:
        """Posed vertices [N, Vp, 3] of teeth_upper, teeth_lower and tongue, head frame, metres."""
        start = self.template.num_vertices
        posed = self._posed_rows(params, slice(start, start + sum(self._part_sizes)))
        return dict(zip(PART_NAMES, posed.split(self._part_sizes, dim=1), strict=True))

    def mirror(self, params: HeadParams) -> HeadParams:
        """See HeadModel.mirror; exact up to float rounding."""
        self._check(params)
        return mirror_pose(
            params,
            identity=params.identity * self._identity_parity,
            expression=params.expression * self._expression_parity,
        )

    def expression_coefficients(self, weights: Tensor) -> Tensor:
        """Weights [N, 52] of the named targets -> expression coefficients [N, num_expression]."""
        expected = len(self.expression_names)
        if weights.ndim != 2 or weights.shape[1] != expected:
            raise ValueError(f'weights: expected shape [N, {expected}], got {list(weights.shape)}')
        return weights @ self._to_coefficients

    def from_weights(self, weights: Tensor) -> HeadParams:
        """A head of mean identity under named-target weights [N, 52]; the eyeballs follow the eyeLook targets.

        mouthClose corrects jawOpen and should not exceed it, as with ARKit.
        """
        params = self.neutral(len(weights))
        eyes = params.eyes.clone()
        for i, name in enumerate(self.expression_names):
            for side, column, sign in (('Left', 0, 1.0), ('Right', 3, -1.0)):
                pitch, yaw = LOOK_ANGLES.get(name.removesuffix(side), (0.0, 0.0)) if name.endswith(side) else (0.0, 0.0)
                eyes[:, column] += pitch * weights[:, i]
                eyes[:, column + 1] += sign * yaw * weights[:, i]
        return params.replace(expression=self.expression_coefficients(weights), eyes=eyes)

    def named_expression(self, name: str, weight: float = 1.0) -> HeadParams:
        """See HeadModel.named_expression; the names are ARKit's (expression_names)."""
        if name not in self.expression_names:
            raise UserError(f'expression {name!r}: unknown; known: {", ".join(self.expression_names)}')
        weights = torch.zeros(1, len(self.expression_names), device=self._mean.device)
        weights[0, self.expression_names.index(name)] = weight
        if name == 'mouthClose':  # ARKit defines it on top of jawOpen: it brings the lips of an open jaw together
            weights[0, self.expression_names.index('jawOpen')] = weight
        return self.from_weights(weights)

    def to(self, device: torch.device | str) -> MakeHumanHead:
        """See HeadModel.to."""
        moved = copy.copy(self)
        vars(moved).update({key: move_tensors(value, device) for key, value in vars(self).items()})
        return moved


@functools.lru_cache(maxsize=1)
def embedded_head() -> MakeHumanHead:
    """The embedded model, read once per process."""
    return MakeHumanHead()
