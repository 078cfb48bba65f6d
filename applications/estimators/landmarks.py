"""A face detector as an estimator: landmarks and our fit of any head model, and the locator of others' crops.

others = {'landmarks': lambda path: LandmarkEstimator(MediaPipeDetector(path or None), model)}
estimator = load_head_estimator('landmarks', others=others)
"""

from __future__ import annotations

import copy
import hashlib

import numpy as np
import torch
from torch import Tensor

from applications.preprocessing.calibration import load_calibration
from applications.preprocessing.detect import Face, FaceDetector
from applications.preprocessing.fit import FitConfig, fit_heads
from metrics.estimators.base import DrivingParams, HeadEstimate, HeadEstimator, gaze_angles, head_rotation
from metrics.features import check_batch
from training.head.model import HeadModel

ENLARGE_BELOW = 256  # pixels: detectors miss faces in smaller pictures


class LandmarkLocator:
    """The landmarks of the largest face, as metrics.estimators.crops.Locator wants them."""

    def __init__(self, detector: FaceDetector) -> None:
        self.detector = detector

    def __call__(self, image: Tensor) -> Tensor | None:
        """uint8 [3, H, W] -> landmarks [68, 2] in [0, 1], or None."""
        face = self.face(image)
        return None if face is None else torch.from_numpy(_shares(face.landmarks, image)).float()

    def face(self, image: Tensor) -> Face | None:
        """The largest face, in pixels of the picture."""
        pixels = np.ascontiguousarray(image.cpu().numpy().transpose(1, 2, 0))
        factor = -(-ENLARGE_BELOW // min(pixels.shape[:2]))
        if factor > 1:
            large = torch.nn.functional.interpolate(
                image[None].cpu().float(), scale_factor=factor, mode='bicubic', align_corners=False
            )
            pixels = np.ascontiguousarray(large[0].round().clamp(0, 255).byte().numpy().transpose(1, 2, 0))
        faces = [face for face in self.detector.detect(pixels) if face.finite]
        if not faces:
            return None
        largest = max(faces, key=lambda face: face.size)
        factor = max(factor, 1)
        iris, points = (None if known is None else known / factor for known in (largest.iris, largest.points))
        return Face(landmarks=largest.landmarks / factor, iris=iris, points=points)


class LandmarkEstimator(HeadEstimator):
    """Head parameters of any head model by fitting it to the landmarks (applications/preprocessing/fit.py).

    `expression` holds the model's own coefficients. The neck is fitted as part of the head's turn.
    """

    licence = 'MIT (the fit); the detector has its own'

    def __init__(self, detector: FaceDetector, model: HeadModel, *, config: FitConfig | None = None) -> None:
        self.model = model
        self.config = config or FitConfig()
        self.locator = LandmarkLocator(detector)
        self.calibration = load_calibration(detector.name, model)
        self.name = f'landmarks-{detector.name}'
        self.head_model = model.name
        digest = hashlib.sha256(f'{getattr(detector, "sha256", "")} {model.content_hash} {self.config}'.encode())
        if self.calibration is not None:
            digest.update(self.calibration.digest())
        self.content_hash = digest.hexdigest()

    def to(self, device: torch.device | str) -> LandmarkEstimator:
        """A copy; detector and fit stay on the CPU."""
        return copy.copy(self)

    def __call__(self, images: Tensor) -> HeadEstimate:
        """See HeadEstimator.__call__."""
        check_batch(images)
        rows = [self._estimate(image) for image in images]
        return HeadEstimate.cat(rows) if rows else self._nothing(0, images.device)

    def _estimate(self, image: Tensor) -> HeadEstimate:
        face = self.locator.face(image)
        if face is None:
            return self._nothing(1, image.device)
        known = self.calibration
        embedding = None if known is None or face.points is None else known.embedding
        points = None
        if embedding is not None and face.points is not None:
            points = _tensor(face.points[embedding.points.numpy(), :2], image)
        fit = fit_heads(
            self.model,
            _tensor(face.landmarks, image),
            iris=None if face.iris is None else _tensor(face.iris, image),
            points=points,
            offsets=None if known is None else known.offsets,
            embedding=embedding,
            config=self.config,
        )
        return self.targets(fit.params.to(image.device), fit.label.to(image.device))

    def _nothing(self, count: int, device: torch.device) -> HeadEstimate:
        return HeadEstimate(
            expression=torch.zeros(count, self.model.num_expression, device=device),
            jaw=torch.zeros(count, 3, device=device),
            rotation=torch.zeros(count, 3, device=device),
            gaze=torch.zeros(count, 2, 2, device=device),
            valid=torch.zeros(count, dtype=torch.bool, device=device),
        )

    def targets(self, params: DrivingParams, cameras: Tensor) -> HeadEstimate:
        """See HeadEstimator.targets."""
        if params.expression.shape[1] != self.model.num_expression:
            raise ValueError(
                f'params.expression: expected shape [N, {self.model.num_expression}] ({self.model.name}), '
                f'got {list(params.expression.shape)}'
            )
        return HeadEstimate(
            expression=params.expression,
            jaw=params.jaw,
            rotation=head_rotation(params, cameras),
            gaze=gaze_angles(params.eyes),
            valid=torch.ones(len(cameras), dtype=torch.bool, device=cameras.device),
        )


def _tensor(points: np.ndarray, image: Tensor) -> Tensor:
    """Pixels [...] -> shares of the picture's sides [1, ...]."""
    return torch.from_numpy(_shares(points, image)).float()[None]


def _shares(points: np.ndarray, image: Tensor) -> np.ndarray:
    """Pixels -> shares of the picture's sides."""
    return points / np.array([image.shape[2], image.shape[1]])
