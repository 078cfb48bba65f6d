"""Fit and crop of detected faces, the checks that a picture must pass, and its overlay.

What photographs (photos.py) and videos (video.py) share.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from applications.preprocessing.align import Crop, crop_from_landmarks, extract, recrop
from applications.preprocessing.calibration import Calibration, Embedding
from applications.preprocessing.detect import Face
from applications.preprocessing.fit import CONTOUR, Fit, FitConfig, fit_heads
from applications.preprocessing.report import draw_overlay, encode_jpeg
from training import cameras
from training.head.model import HeadModel, HeadParams

ROUNDS = 3  # fit, recrop, fit again: after the third the crop moves by less than a pixel
_OVERLAY_SIZE = 640


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotoLimits:
    """What a photograph or a frame must pass to get into the dataset."""

    min_side: float = 96.0  # of the crop, pixels of the photograph
    max_outside: float = 0.4  # share of the crop beyond the photograph's border
    max_error: float = 0.08  # mean landmark error without the jaw line, share of the distance between the eyes
    max_yaw: float = 75.0  # degrees

    def reason(self, crop: Crop, size: tuple[int, int], *, error: float, yaw: float) -> str | None:
        """Why a picture of `size` (height, width) is not good enough, None if it is; yaw in degrees."""
        if not math.isfinite(crop.side) or not math.isfinite(error):
            return 'fit failed'
        outside = crop.outside(size[1], size[0])
        if error > self.max_error:
            return f'reprojection error too large ({error:.1%} of the distance between the eyes)'
        if crop.side < self.min_side:
            return f'face too small (crop of {crop.side:.0f} pixels, expected {self.min_side:.0f})'
        if outside > self.max_outside:
            return f'crop reaches too far over the border ({outside:.0%} of it)'
        if abs(yaw) > self.max_yaw:
            return f'profile view (yaw {yaw:.0f} degrees)'
        return None


def fit_and_crop(
    model: HeadModel,
    faces: Sequence[Face],
    *,
    calibration: Calibration | None = None,
    config: FitConfig | None = None,
    framing: str = 'eg3d',
    identity: Tensor | None = None,
    crops: list[Crop] | None = None,
    start: Fit | None = None,
    rounds: int = ROUNDS,
) -> tuple[list[Crop], Fit]:
    """Detected faces -> crops in which the head lies as the framing (align.py) wants it, and the fits in them.

    The iris is used if every face of the batch has one, the points of an embedding if every face has points.
    `identity` [N, num_identity] as in fit_heads; `crops` and `start` are those of similar faces, to begin with.
    """
    crops = crops or [crop_from_landmarks(face.landmarks) for face in faces]
    embedding = None if calibration is None else calibration.embedding
    fit = start
    for turn in range(rounds):
        if turn and fit is not None:
            crops = [recrop(crop, label, framing=framing) for crop, label in zip(crops, fit.label, strict=True)]
        landmarks = [crop.to_crop(face.landmarks) for crop, face in zip(crops, faces, strict=True)]
        iris = [crop.to_crop(face.iris) for crop, face in zip(crops, faces, strict=True) if face.iris is not None]
        points = _embedded_points(crops, faces, embedding)
        fit = fit_heads(
            model,
            _tensor(landmarks),
            iris=_tensor(iris) if len(iris) == len(faces) else None,
            points=points,
            start=fit,
            identity=identity,
            offsets=None if calibration is None else calibration.offsets,
            embedding=None if points is None else embedding,
            config=config or FitConfig(),
        )
    if fit is None:
        raise ValueError(f'rounds: expected at least 1, got {rounds}')
    return crops, fit


def _embedded_points(crops: Sequence[Crop], faces: Sequence[Face], embedding: Embedding | None) -> Tensor | None:
    """The points [N, K, 2] that an embedding knows; None if there is none or a face has no points."""
    known = [face.points for face in faces if face.points is not None]
    if embedding is None or len(known) < len(faces):
        return None
    chosen = embedding.points.numpy()
    return _tensor([crop.to_crop(points[chosen, :2]) for crop, points in zip(crops, known, strict=True)])


def eye_distance(landmarks: np.ndarray) -> float:
    """The distance between the centres of the eyes of 68 landmarks, in their units."""
    return float(np.linalg.norm(landmarks[36:42].mean(axis=0) - landmarks[42:48].mean(axis=0)))


def inner_error(error: np.ndarray, eyes: float) -> float:
    """Mean landmark error [68] without the jaw line, as a share of the distance between the eyes."""
    return float(error[CONTOUR.stop :].mean()) / max(eyes, 1e-9)


class OverlayArtist:
    """Draws crops beside crops with mesh and landmarks; holds what does not change between them."""

    def __init__(self, model: HeadModel) -> None:
        self.model = model
        shown = (model.regions['face'] | model.regions['eyes']).cpu()
        self._faces = model.template.faces.cpu()[shown].numpy()
        self._eyes = model.regions['eyes'].cpu()[shown].numpy()

    def draw(
        self,
        photo: np.ndarray,
        crop: Crop,
        *,
        params: HeadParams,  # one row
        label: Tensor,  # [1, 25]
        given: np.ndarray,  # [68, 2] detected, crop coordinates
        fitted: np.ndarray,  # [68, 2]
    ) -> bytes | None:
        """A JPEG; None where there is nothing to show."""
        height, width = photo.shape[:2]
        vertices = cameras.head_to_world(self.model.forward(params).vertices)
        points = cameras.project(vertices, label)[0][0].cpu().numpy()
        if crop.side > 8 * max(width, height) or crop.outside(width, height) >= 1.0 or not np.isfinite(points).all():
            return None
        picture = extract(photo, crop, resolution=_OVERLAY_SIZE)
        overlay = draw_overlay(
            picture,
            vertices=points * _OVERLAY_SIZE,
            faces=self._faces,
            eyes=self._eyes,
            given=given * _OVERLAY_SIZE,
            fitted=fitted * _OVERLAY_SIZE,
        )
        return encode_jpeg(np.hstack([picture, overlay]))


def _tensor(points: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(points).astype(np.float32))
