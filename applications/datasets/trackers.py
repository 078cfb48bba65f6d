"""What DECA and SMIRK say of an image -> head parameters of a FLAME model and a camera label.

Both give coefficients of FLAME 2020, a global turn of the head about FLAME's root joint, the jaw, and an
orthographic camera (scale, x, y) for the square that they looked at. Here the turn of the head goes into the camera,
as in EG3D's labels, so the head parameters have no global rotation.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from applications.datasets.importing import Finished, Loaded
from applications.datasets.parameter_files import read_parameters
from applications.datasets.sources import FileIndex
from dnnlib import UserError
from training import cameras
from training.camera_converters import WeakPerspective, weak_to_label
from training.head.landmarks import JAW
from training.head.model import PARAM_FIELDS, HeadModel, HeadParams
from training.head.rotation import axis_angle_matrix

CROP_SIDE = 224  # pixels of the square that both trackers look at
# Our names, and the trackers' (EMOCA's too) with the least number of values.
_KEYS = {
    'deca': {
        'identity': (('shape', 'shapecode'), 1),
        'expression': (('exp', 'expcode'), 1),
        'pose': (('pose', 'posecode'), 6),
        'cam': (('cam',), 3),
    },
    'smirk': {
        'identity': (('shape_params', 'shape'), 1),
        'expression': (('expression_params', 'exp'), 1),
        'pose': (('pose_params', 'pose'), 3),
        'jaw': (('jaw_params', 'jaw'), 3),
        'cam': (('cam',), 3),
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackerFiles:
    """A HeadReader of one parameter file an image."""

    kind: str  # 'deca' or 'smirk'
    files: FileIndex
    num_identity: int
    num_expression: int
    eyes: FileIndex | None = None  # eye poses by another tracker

    def __call__(self, name: str, side: int) -> dict[str, np.ndarray]:
        """identity, expression, jaw [3], eyes [6], turn [3], cam [3], lids [2], dropped [1], crop [3]; float32."""
        path = self.files.find(name)
        content = read_parameters(path)
        values = {field: _vector(content, keys, least, path=path) for field, (keys, least) in _KEYS[self.kind].items()}
        jaw = values['jaw'][:3] if 'jaw' in values else values['pose'][3:6]
        identity, dropped = _fit_width(values['identity'], self.num_identity)
        expression, more = _fit_width(values['expression'], self.num_expression)
        if values['cam'][0] <= 0:
            raise UserError(f'{path}: camera scale is not positive ({values["cam"][0]:.3g})')
        found = {
            'identity': identity, 'expression': expression, 'jaw': jaw, 'eyes': self._eyes(name, content, path),
            'turn': values['pose'][:3], 'cam': values['cam'][:3], 'lids': np.zeros(2),
            'dropped': np.array([dropped + more]), 'crop': _crop(content, side, path=path),
        }  # fmt: skip
        if content.get('eyelid_params') is not None and content['eyelid_params'].size == 2:
            found['lids'] = content['eyelid_params'].reshape(-1)
        return {key: np.asarray(value, dtype=np.float32) for key, value in found.items()}

    def _eyes(self, name: str, content: dict[str, np.ndarray], path: Path) -> np.ndarray:
        """Left and right axis-angle [6]: from the eye file, the parameter file, or straight ahead."""
        if self.eyes is not None:
            path = self.eyes.find(name)
            arrays = read_parameters(path)
            content = {'eye_pose': arrays.get('eye_pose', next(iter(arrays.values()), np.zeros(0)))}
        given = next((content[key] for key in ('eye_pose', 'eye_pose_params') if key in content), None)
        if given is None:
            return np.zeros(6)
        flat = given.reshape(-1)
        if len(flat) not in (4, 6) or not np.isfinite(flat).all():
            raise UserError(f'{path}: eye pose of {len(flat)} numbers instead of 6 (or 4)')
        if len(flat) == 4:  # pitch and yaw of left and right as gaze estimators give them: yaw to the other side
            return np.array([flat[0], -flat[1], 0.0, flat[2], -flat[3], 0.0])
        return flat


def _vector(content: dict[str, np.ndarray], keys: tuple[str, ...], least: int, *, path: Path) -> np.ndarray:
    value = next((content[key] for key in keys if key in content), None)
    if value is None:
        raise UserError(f'{path}: has no {" or ".join(keys)}')
    if value.ndim > 1 and value.shape[0] != 1:
        raise UserError(f'{path}: {keys[0]} has {value.shape[0]} rows; one file an image is expected')
    flat = value.reshape(-1)
    if len(flat) < least:
        raise UserError(f'{path}: {keys[0]} has {len(flat)} numbers instead of {least}')
    if not np.isfinite(flat).all():
        raise UserError(f'{path}: {keys[0]} is not finite (NaN or infinity)')
    return flat


def _fit_width(values: np.ndarray, width: int) -> tuple[np.ndarray, float]:
    """Coefficients cut or padded to the model's width, and the norm of what was cut."""
    kept = np.zeros(width)
    kept[: min(width, len(values))] = values[:width]
    return kept, float(np.linalg.norm(values[width:]))


def _crop(content: dict[str, np.ndarray], side: int, *, path: Path) -> np.ndarray:
    """Left, top and side of the square that the tracker saw, in sides of the image; from 'tform' where it is stored."""
    matrix = content.get('tform')
    if matrix is None:
        return np.array([0.0, 0.0, 1.0])
    matrix = matrix.reshape(-1)[:9].reshape(3, 3)
    inverse = np.linalg.inv(matrix if abs(matrix[2, :2]).max() < 1e-9 else matrix.T)
    if abs(inverse[0, 1]) > 1e-6 * abs(inverse[0, 0]):
        raise UserError(f'{path}: tform turns the picture, which a square image cannot follow')
    return np.array([inverse[0, 2], inverse[1, 2], inverse[0, 0] * CROP_SIDE]) / side


class TrackerFinisher:
    """Head parameters, and the image's label or the one that the tracker's camera amounts to."""

    columns: tuple[str, ...] = ('camera', 'landmark_difference_px')

    def __init__(self, model: HeadModel, *, resolution: int, lids: Tensor | None = None) -> None:
        """`lids` [E, 2] as from `lid_coefficients`."""
        self._model, self._resolution = model, resolution
        self._lids = lids
        self._closed = self._dropped = self._count = 0
        self._angles: list[float] = []
        self._pixels: list[float] = []

    def __call__(self, items: list[Loaded]) -> list[Finished]:
        """One Finished for each item."""
        values = {key: torch.from_numpy(np.stack([item.head[key] for item in items])) for key in items[0].head}
        params = head_params(values, self._model, lids=self._lids)
        weak = weak_view(values, self._model, params)
        with torch.no_grad():
            landmarks = self._model.forward(params).landmarks
        found = weak_to_label(weak, landmarks[:, len(JAW) :].mean(dim=1))
        given = [item.label is not None for item in items]
        label = torch.stack(
            [
                torch.from_numpy(np.asarray(item.label)) if item.label is not None else found[i]
                for i, item in enumerate(items)
            ]
        )
        seen = cameras.project(cameras.head_to_world(landmarks), label)[0]
        pixels = (seen - weak.project(landmarks)).norm(dim=-1).mean(dim=1) * self._resolution
        self._angles += [angle for angle, has in zip(_angle(label, found), given, strict=True) if has]
        self._pixels += pixels.tolist()
        self._closed += int((values['lids'].max(dim=1).values > 0.5).sum())
        self._dropped += int((values['dropped'] > 1.0).sum())
        self._count += len(items)
        return [
            Finished(
                label=label[row],
                head=params[[row]],
                row=('label' if given[row] else 'tracker', f'{pixels[row]:.2f}'),
            )
            for row in range(len(items))
        ]

    def notes(self) -> list[str]:
        """How labels and tracker agree, and what of the tracker's output the head model cannot hold."""
        lines = [f"landmarks: label and tracker's camera differ by {np.mean(self._pixels):.2f} pixels on average"]
        if self._angles:
            lines.append(
                f'turn of the head: labels and tracker differ by {np.median(self._angles):.1f} degrees (median)'
            )
        if self._dropped:
            lines.append(f'coefficients beyond the head model: left out in {self._dropped} of {self._count} images')
        if self._closed and self._lids is None:
            lines.append(f"SMIRK's lids: more than half closed in {self._closed} images, lost; pass --eyelids to keep")
        return lines


def head_params(values: dict[str, Tensor], model: HeadModel, *, lids: Tensor | None = None) -> HeadParams:
    """Read values [N, ...] -> parameters without neck, global rotation and translation."""
    zeros = torch.zeros_like(values['jaw'])
    fields = {name: values.get(name, zeros) for name in PARAM_FIELDS}
    if lids is not None:
        fields['expression'] = fields['expression'] + values['lids'] @ lids.T
    return HeadParams(**fields)


def weak_view(values: dict[str, Tensor], model: HeadModel, params: HeadParams) -> WeakPerspective:
    """The tracker's orthographic camera in the whole image."""
    cam, crop = values['cam'], values['crop']
    weak = WeakPerspective(
        scale=cam[:, 0], shift=cam[:, 1:], rotation=axis_angle_matrix(values['turn']), pivot=root_joint(model, params)
    )
    return weak.in_crop(crop[:, 0], crop[:, 1], crop[:, 2])


@torch.no_grad()
def root_joint(model: HeadModel, params: HeadParams) -> Tensor:
    """The point [N, 3] about which the model's global rotation turns, found by turning half way round two axes."""
    zeros = torch.zeros_like(params.rotation)
    still = model.forward(params.replace(rotation=zeros)).vertices
    half = [torch.pi, 0.0, 0.0], [0.0, 0.0, torch.pi]
    about_x, about_z = (
        model.forward(params.replace(rotation=zeros + zeros.new_tensor(turn))).vertices for turn in half
    )
    middle = [(still + turned).mean(dim=1) / 2 - params.translation for turned in (about_x, about_z)]
    return torch.stack([middle[1][:, 0], middle[0][:, 1], middle[0][:, 2]], dim=1)


def read_lids(folder: str | Path, model: HeadModel) -> Tensor:
    """SMIRK's l_eyelid.npy and r_eyelid.npy: displacements [2, V, 3] (metres) of closed lids, left first."""
    found = []
    for name in ('l_eyelid.npy', 'r_eyelid.npy'):
        path = Path(folder) / name
        arrays = list(read_parameters(path).values())
        if len(arrays) != 1 or arrays[0].size != 3 * model.template.num_vertices:
            raise UserError(f'{path}: expected one array [{model.template.num_vertices}, 3] for {model.name}')
        found.append(torch.from_numpy(arrays[0].reshape(-1, 3).astype(np.float32)))
    return torch.stack(found)


@torch.no_grad()
def lid_coefficients(model: HeadModel, lids: Tensor) -> Tensor:
    """Expression coefficients [E, 2] whose displacement of the neutral head is nearest to each lid's [2, V, 3].

    Ridge regression: a coefficient of one standard deviation costs as much as 0.1 mm at one vertex.
    """
    count = model.num_expression
    params = model.neutral(count).replace(expression=torch.eye(count))
    basis = (model.forward(params).vertices - model.template.vertices).flatten(1).double()  # [E, 3 V]
    target = lids.flatten(1).double()
    return torch.linalg.solve(basis @ basis.T + 1e-8 * torch.eye(count), basis @ target.T).float()


def _angle(label: Tensor, other: Tensor) -> list[float]:
    """Angles in degrees between the rotations of two labels [N, 25]."""
    first, second = (cameras.unpack_label(item)[0][:, :3, :3].double() for item in (label, other))
    trace = (first.transpose(1, 2) @ second).diagonal(dim1=1, dim2=2).sum(dim=1)
    return torch.rad2deg(torch.arccos(((trace - 1) / 2).clamp(-1, 1))).tolist()
