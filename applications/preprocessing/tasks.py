"""What the processes of from-video do: each function takes its process's context and one item."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from applications.preprocessing import sequence
from applications.preprocessing.align import extract
from applications.preprocessing.calibration import Calibration
from applications.preprocessing.clip import Frame
from applications.preprocessing.crops import OverlayArtist
from applications.preprocessing.detect import Face, FaceDetector, MediaPipeDetector
from applications.preprocessing.sequence import Fitted
from applications.preprocessing.track import THUMBNAIL, Seen, thumbnail
from training.dataset_format import encode_png
from training.head.model import HeadModel

FitContext = tuple[HeadModel, 'Calibration | None', str]  # with framing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """One frame of the dataset."""

    row: int  # of the list of frames
    clip: int
    given: np.ndarray  # [68, 2] detected, crop coordinates
    fitted: Fitted  # one row


@contextlib.contextmanager
def open_detector(detector: FaceDetector | None, landmarker: str | os.PathLike[str] | None) -> Iterator[FaceDetector]:
    """The given detector, or MediaPipe's."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(MediaPipeDetector(landmarker)) if detector is None else detector


@contextlib.contextmanager
def open_model(model: HeadModel, calibration: Calibration | None, framing: str) -> Iterator[FitContext]:
    """Context of the fits."""
    yield model, calibration, framing


@contextlib.contextmanager
def open_artist(model: HeadModel, resolution: int) -> Iterator[tuple[OverlayArtist, int]]:
    """Context of `crop`: who draws overlays, and the resolution."""
    yield OverlayArtist(model), resolution


def detect(detector: FaceDetector, frame: Frame) -> Seen:
    """The faces of a frame, with what tracking needs."""
    if frame.image is None:
        blank = np.zeros((THUMBNAIL, THUMBNAIL), dtype=np.float32)
        return Seen(number=frame.number, name=frame.name, size=(0, 0), faces=(), thumbnail=blank, problem=frame.problem)
    faces = tuple(
        Face(landmarks=face.landmarks, iris=face.iris, points=face.points) for face in detector.detect(frame.image)
    )
    size = (int(frame.image.shape[0]), int(frame.image.shape[1]))
    return Seen(number=frame.number, name=frame.name, size=size, faces=faces, thumbnail=thumbnail(frame.image))


def fit_identity(context: FitContext, faces: list[Face]) -> Tensor:
    """A person's identity [1, num_identity]."""
    model, calibration, framing = context
    return sequence.fit_identity(model, faces, calibration=calibration, framing=framing)


def fit_block(context: FitContext, item: tuple[tuple[Face, ...], Tensor]) -> Fitted:
    """Consecutive faces of a person with its identity."""
    model, calibration, framing = context
    return sequence.fit_block(model, item[0], item[1], calibration=calibration, framing=framing)


def crop(context: tuple[OverlayArtist, int], item: tuple[np.ndarray, Written, bool]) -> tuple[bytes, bytes | None]:
    """Frame, its fit, whether it is shown -> PNG of the crop, JPEG of the overlay."""
    artist, resolution = context
    image, written, shown = item
    fitted, crop = written.fitted, written.fitted.crops[0]
    png = encode_png(extract(image, crop, resolution=resolution))
    if not shown:
        return png, None
    fit = fitted.landmarks[0].numpy()
    return png, artist.draw(image, crop, params=fitted.params, label=fitted.label, given=written.given, fitted=fit)
