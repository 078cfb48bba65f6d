"""Fits of a tracked person's frames: one identity, each frame begun from its neighbour, then smoothed.

Crop and camera of a frame are two halves of one fact: where the head lies. The camera's rotation (on
SO(3)) and the crop's centre and side are smoothed; the camera's place then follows from its rotation
and the framing, so every written label keeps the convention exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from applications.preprocessing.align import Crop, aimed_label, crop_from_landmarks
from applications.preprocessing.calibration import Calibration
from applications.preprocessing.crops import PhotoLimits, eye_distance, fit_and_crop, inner_error
from applications.preprocessing.detect import Face
from applications.preprocessing.fit import Fit, project_head
from applications.preprocessing.smooth import smooth_params, smooth_rotations, smooth_signals
from applications.preprocessing.track import Clip, Seen
from training import cameras
from training.cameras import camera_angles
from training.head.model import HeadModel, HeadParams

BLOCK = 32  # frames that are fitted in one go
_ANCHOR = 8  # every so many frames one is fitted from scratch; the others start from the nearest of these
_IDENTITY_FRAMES = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """Fits of consecutive frames; plain values, so that they can be kept and sent."""

    crops: tuple[Crop, ...]
    params: HeadParams  # [T, ...]
    label: Tensor  # [T, 25]
    landmarks: Tensor  # [T, 68, 2] the model's, crop coordinates
    error: Tensor  # [T, 68] shares of the image side

    def __len__(self) -> int:
        return len(self.crops)

    def part(self, start: int, end: int) -> Fitted:
        """Frames start to end - 1."""
        return Fitted(
            crops=self.crops[start:end],
            params=self.params[start:end],
            label=self.label[start:end],
            landmarks=self.landmarks[start:end],
            error=self.error[start:end],
        )

    @staticmethod
    def join(parts: Sequence[Fitted]) -> Fitted:
        """Frames of several blocks one after the other."""
        return Fitted(
            crops=tuple(crop for part in parts for crop in part.crops),
            params=HeadParams.cat([part.params for part in parts]),
            label=torch.cat([part.label for part in parts]),
            landmarks=torch.cat([part.landmarks for part in parts]),
            error=torch.cat([part.error for part in parts]),
        )


def identity_faces(clips: Sequence[Clip]) -> list[Face]:
    """Faces of one person for its identity: spread over time, of each stretch the one that moves least."""
    moving = []
    for clip in clips:
        points = np.stack([face.landmarks for face in clip.faces])
        speed = np.linalg.norm(np.gradient(points, axis=0), axis=-1).mean(axis=1) if len(points) > 1 else np.ones(1)
        moving += [(float(v) / face.size, face) for v, face in zip(speed, clip.faces, strict=True)]
    stretches = np.array_split(np.arange(len(moving)), min(_IDENTITY_FRAMES, len(moving)))
    return [min((moving[i] for i in rows), key=lambda pair: pair[0])[1] for rows in stretches]


def fit_identity(model: HeadModel, faces: Sequence[Face], *, calibration: Calibration | None, framing: str) -> Tensor:
    """The identity [1, num_identity] of a person from several faces: the mean of the fits, without the worst third."""
    _, fit = fit_and_crop(model, faces, calibration=calibration, framing=framing)
    order = torch.argsort(fit.error.mean(dim=1))
    kept = order[: max(1, -(-2 * len(faces) // 3))]
    return fit.params.identity[kept].mean(dim=0, keepdim=True).cpu()


def fit_block(
    model: HeadModel, faces: Sequence[Face], identity: Tensor, *, calibration: Calibration | None, framing: str
) -> Fitted:
    """Consecutive faces of a person with known identity [1, num_identity]."""
    anchors = list(range(min(_ANCHOR // 2, len(faces) - 1), len(faces), _ANCHOR))
    known = identity.expand(len(faces), -1)
    crops, fit = fit_and_crop(
        model, [faces[i] for i in anchors], calibration=calibration, framing=framing, identity=known[: len(anchors)]
    )
    nearest = [min(range(len(anchors)), key=lambda a: abs(anchors[a] - i)) for i in range(len(faces))]
    first = [crop_from_landmarks(face.landmarks) for face in faces]
    begun = [_carried(crops[a], first[anchors[a]], first[i]) for i, a in enumerate(nearest)]
    crops, fit = fit_and_crop(
        model,
        faces,
        calibration=calibration,
        framing=framing,
        identity=known,
        crops=begun,
        start=fit[nearest],
        rounds=2,
    )
    return _fitted(crops, fit)


def smooth_run(
    model: HeadModel,
    faces: Sequence[Face],
    raw: Fitted,
    *,
    strength: float,
    framing: str,
    calibration: Calibration | None,
) -> Fitted:
    """Consecutive frames smoothed (strength 0: not), every camera exactly where the framing says."""
    rotations, _ = cameras.unpack_label(raw.label.double())
    turned = rotations[:, :3, :3].numpy()
    places = np.array([[crop.column, crop.row, np.log(crop.side)] for crop in raw.crops])
    params = raw.params
    if strength > 0 and len(raw) > 2:
        turned = smooth_rotations(turned, strength=strength)
        places = smooth_signals(places, strength=strength)
        params = smooth_params(model, params, strength=strength)
    label = aimed_label(torch.from_numpy(turned), framing=framing).float()
    crops = [Crop(float(column), float(row), float(np.exp(side))) for column, row, side in places]
    offsets = None if calibration is None else calibration.offsets
    with torch.no_grad():
        landmarks, _ = project_head(model, params, label, offsets=offsets)
    given = np.stack([crop.to_crop(face.landmarks) for crop, face in zip(crops, faces, strict=True)])
    error = (landmarks - torch.from_numpy(given).to(landmarks)).norm(dim=-1)
    return Fitted(crops=tuple(crops), params=params, label=label, landmarks=landmarks, error=error)


def good_runs(
    clip: Clip, fitted: Fitted, frames: Sequence[Seen], limits: PhotoLimits
) -> tuple[list[tuple[int, int]], list[tuple[int, str]]]:
    """Stretches [start, end) of a clip whose frames all pass, and (position in the clip, reason) of the others."""
    angles = np.degrees(camera_angles(fitted.label))
    rejected, runs, start = [], [], 0
    for position, (row, face, crop) in enumerate(zip(clip.rows, clip.faces, fitted.crops, strict=True)):
        eyes = eye_distance(crop.to_crop(face.landmarks))
        error = inner_error(fitted.error[position].numpy(), eyes)
        reason = limits.reason(crop, frames[row].size, error=error, yaw=float(angles[position, 0]))
        if reason is not None:
            rejected.append((position, reason))
            runs.append((start, position))
            start = position + 1
    runs.append((start, len(clip.rows)))
    return [(first, end) for first, end in runs if end > first], rejected


def _carried(crop: Crop, guess: Crop, other: Crop) -> Crop:
    """The crop that lies to the first guess `other` as `crop` lies to `guess`."""
    scale = other.side / guess.side
    column = other.column + (crop.column - guess.column) * scale
    return Crop(column, other.row + (crop.row - guess.row) * scale, crop.side * scale)


def _fitted(crops: list[Crop], fit: Fit) -> Fitted:
    return Fitted(
        crops=tuple(crops),
        params=fit.params.to('cpu'),
        label=fit.label.cpu(),
        landmarks=fit.landmarks.cpu(),
        error=fit.error.cpu(),
    )
