"""The head model interface: parameters in, mesh and landmarks out.

Frames and units
----------------
Head frame: metres, x to the subject's left, y up, face towards +z (FLAME's).
Rotations are axis-angle vectors in radians. The generator maps the head frame
to the world by `world = 2.5 * head + (0, 0.025, -0.025)` (training/cameras.py).

Shapes: N samples, V vertices, F faces, T uv coordinates.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dnnlib.errors import UserError

PARAM_FIELDS = ('identity', 'expression', 'jaw', 'neck', 'eyes', 'rotation', 'translation')
FIXED_WIDTHS = {'jaw': 3, 'neck': 3, 'eyes': 6, 'rotation': 3, 'translation': 3}
NUM_LANDMARKS = 68


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadParams:
    """What a head model is driven by; every field is [N, width], float32.

    identity and expression are coefficients in units of one standard deviation.
    jaw, neck and rotation are axis-angle (radians); eyes holds two axis-angle
    vectors, left eye (the subject's) then right; translation is in metres.
    """

    identity: Tensor  # [N, num_identity]
    expression: Tensor  # [N, num_expression]
    jaw: Tensor  # [N, 3]
    neck: Tensor  # [N, 3]
    eyes: Tensor  # [N, 6]: left, right
    rotation: Tensor  # [N, 3]: global
    translation: Tensor  # [N, 3]: global, metres

    def __post_init__(self) -> None:
        count = self.identity.shape[0] if self.identity.ndim else 0
        for name in PARAM_FIELDS:
            value = getattr(self, name)
            width = FIXED_WIDTHS.get(name)
            if value.ndim != 2 or value.shape[0] != count or (width is not None and value.shape[1] != width):
                want = f'[{count}, {width if width is not None else "width"}]'
                raise ValueError(f'HeadParams.{name}: expected shape {want}, got {list(value.shape)}')

    def __len__(self) -> int:
        return int(self.identity.shape[0])

    def __getitem__(self, index: slice | Tensor | list[int]) -> HeadParams:
        """Rows by slice, list or index tensor (the batch dimension stays)."""
        return self.map(lambda t: t[index])

    def map(self, function) -> HeadParams:
        """A new HeadParams with `function` applied to every field."""
        return HeadParams(**{name: function(getattr(self, name)) for name in PARAM_FIELDS})

    def to(self, device: torch.device | str) -> HeadParams:
        return self.map(lambda t: t.to(device))

    def replace(self, **fields: Tensor) -> HeadParams:
        return dataclasses.replace(self, **fields)

    def as_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in PARAM_FIELDS}

    @staticmethod
    def from_dict(values: Mapping[str, Tensor]) -> HeadParams:
        missing = [name for name in PARAM_FIELDS if name not in values]
        if missing:
            raise ValueError(f'HeadParams: missing field(s) {", ".join(missing)}')
        fields = {name: torch.as_tensor(values[name], dtype=torch.float32) for name in PARAM_FIELDS}
        return HeadParams(**fields)

    @staticmethod
    def cat(items: list[HeadParams]) -> HeadParams:
        fields = {name: torch.cat([getattr(item, name) for item in items]) for name in PARAM_FIELDS}
        return HeadParams(**fields)


@dataclasses.dataclass(frozen=True)
class HeadInput:
    """A posed head as the generator takes it, in the head frame (metres)."""

    vertices: Tensor  # [N, V, 3]
    landmarks: Tensor  # [N, 68, 3]

    def __post_init__(self) -> None:
        if self.vertices.ndim != 3 or self.vertices.shape[2] != 3:
            raise ValueError(f'vertices: expected shape [N, V, 3], got {list(self.vertices.shape)}')
        expected = [self.vertices.shape[0], NUM_LANDMARKS, 3]
        if list(self.landmarks.shape) != expected:
            raise ValueError(f'landmarks: expected shape {expected}, got {list(self.landmarks.shape)}')

    def __len__(self) -> int:
        return int(self.vertices.shape[0])

    def __getitem__(self, index: slice | Tensor | list[int]) -> HeadInput:
        return HeadInput(self.vertices[index], self.landmarks[index])

    def to(self, device: torch.device | str) -> HeadInput:
        return HeadInput(self.vertices.to(device), self.landmarks.to(device))


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadTemplate:
    """Topology and neutral shape: all that the generator keeps of a head model."""

    vertices: Tensor  # [V, 3] float32, neutral, head frame
    faces: Tensor  # [F, 3] int64, counter-clockwise seen from outside
    uv: Tensor  # [T, 2] float32 in [0, 1], v up (OBJ convention)
    uv_faces: Tensor  # [F, 3] int64 into uv
    eye_mask: Tensor  # [S, S] float32 in [0, 1] over uv, row 0 at v = 1; 1 keeps, 0 drops (eyeballs)
    landmark_faces: Tensor  # [68] int64 into faces; empty where nobody says where the landmarks are (an OBJ alone)
    landmark_barycentrics: Tensor  # [68, 3] float32, or [0, 3]

    def __post_init__(self) -> None:
        num_faces = self.faces.shape[0]
        if self.faces.ndim != 2 or self.faces.shape[1] != 3:
            raise ValueError(f'faces: expected shape [F, 3], got {list(self.faces.shape)}')
        if list(self.uv_faces.shape) != [num_faces, 3]:
            raise ValueError(f'uv_faces: expected shape [{num_faces}, 3], got {list(self.uv_faces.shape)}')
        if num_faces and int(self.faces.max()) >= self.vertices.shape[0]:
            raise ValueError(f'faces: index {int(self.faces.max())} but only {self.vertices.shape[0]} vertices')
        if num_faces and int(self.uv_faces.max()) >= self.uv.shape[0]:
            raise ValueError(f'uv_faces: index {int(self.uv_faces.max())} but only {self.uv.shape[0]} uv coordinates')

    @property
    def num_vertices(self) -> int:
        return int(self.vertices.shape[0])

    def state(self) -> dict[str, Tensor]:
        """Plain tensors, for a checkpoint."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @staticmethod
    def from_state(state: Mapping[str, Tensor]) -> HeadTemplate:
        return HeadTemplate(**dict(state))

    @property
    def has_landmarks(self) -> bool:
        return len(self.landmark_faces) > 0

    def landmarks(self, vertices: Tensor) -> Tensor:
        """Barycentric landmarks [N, 68, 3] of posed vertices [N, V, 3]; differentiable. UserError if it has none."""
        if not self.has_landmarks:
            raise UserError(
                'landmarks: this topology does not say where they are; give the 68 points beside the mesh '
                "(--obj_path with --lms_path), or the user's FLAME file (--head-model)"
            )
        corners = self.faces[self.landmark_faces].to(vertices.device)  # [68, 3]
        weights = self.landmark_barycentrics.to(vertices)
        return (vertices.index_select(1, corners.reshape(-1)).unflatten(1, corners.shape) * weights[..., None]).sum(2)


class HeadModel(ABC):
    """A parametric head. Implementations: MakeHumanHead (embedded), FlameHead (user's file).

    All tensors live on the CPU until `to(device)`; `forward` is differentiable
    in every parameter and treats each sample by itself.
    """

    name: str  # 'makehuman' or 'flame2020', ...: stored with datasets and checkpoints
    content_hash: str  # sha256 of the model's data
    template: HeadTemplate
    num_identity: int
    num_expression: int
    expression_names: tuple[str, ...]  # what named_expression accepts (embedded head: the 52 ARKit names)
    regions: Mapping[str, Tensor]  # name -> bool [F]; always has 'face', 'eyes', 'neck'
    gaze_vertices: Tensor  # [2, 5] int64: left, right eye; centre, then right, top, left, bottom of the iris

    @abstractmethod
    def forward(self, params: HeadParams) -> HeadInput:
        """Params -> posed vertices [N, V, 3] and landmarks [N, 68, 3], head frame, metres."""

    def positions(self, params: HeadParams, vertices: Tensor) -> Tensor:
        """Posed positions [N, K, 3] of the vertices [K] alone: `forward(params).vertices[:, vertices]`.

        For fitting, which needs a few hundred points and their derivatives many times.
        """
        return self.forward(params).vertices[:, vertices]

    @abstractmethod
    def mirror(self, params: HeadParams) -> HeadParams:
        """The parameters of the left/right mirrored head (x -> -x)."""

    @abstractmethod
    def to(self, device: torch.device | str) -> HeadModel:
        """The same model with its tensors on `device`."""

    @abstractmethod
    def named_expression(self, name: str, weight: float = 1.0) -> HeadParams:
        """Parameters [1, ...] of a neutral head showing one named expression ('jawOpen', ...)."""

    def neutral(self, count: int = 1) -> HeadParams:
        """All-zero parameters for `count` samples."""
        device = self.template.vertices.device
        widths = {'identity': self.num_identity, 'expression': self.num_expression, **FIXED_WIDTHS}
        return HeadParams(**{name: torch.zeros(count, widths[name], device=device) for name in PARAM_FIELDS})


def move_tensors(value: Any, device: torch.device | str) -> Any:
    """`value` with every tensor inside it (tuples, dicts, dataclasses) on `device`; other things as they are."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(move_tensors(item, device) for item in value)
    if isinstance(value, dict):
        return {key: move_tensors(item, device) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: move_tensors(getattr(value, field.name), device) for field in dataclasses.fields(value)}
        return type(value)(**fields)
    return value
