"""A folder of photographs -> a packed dataset with camera labels and head parameters.

Each photograph: find the largest face, fit head and camera, crop as EG3D's FFHQ (align.py),
check, write. Photographs that do not pass are listed with the reason; none is dropped silently.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from applications.preprocessing.align import Crop, crop_from_landmarks, extract, load_photo, recrop
from applications.preprocessing.calibration import landmark_offsets
from applications.preprocessing.detect import Face, FaceDetector, MediaPipeDetector
from applications.preprocessing.fit import CONTOUR, Fit, FitConfig, fit_heads
from applications.preprocessing.report import ReportFolder, draw_overlay
from dnnlib import UserError
from training import cameras
from training.cameras import camera_angles
from training.dataset_writer import DatasetWriter
from training.head import load_head_model
from training.head.model import HeadModel

PHOTO_TYPES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff')
_ROUNDS = 3  # fit, recrop, fit again: after the third the crop moves by less than a pixel
_OVERLAY_SIZE = 640
_FITS = ('image', 'source', 'column', 'row', 'side', 'error_pixels', 'error_percent', 'yaw', 'pitch', 'roll', 'faces')


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotoLimits:
    """What a photograph must pass to get into the dataset."""

    min_side: float = 96.0  # of the crop, pixels of the photograph
    max_outside: float = 0.4  # share of the crop beyond the photograph's border
    max_error: float = 0.08  # mean landmark error without the jaw line, share of the distance between the eyes
    max_yaw: float = 75.0  # degrees


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotoReport:
    """What `convert` did."""

    accepted: tuple[str, ...]  # photographs, relative to the source
    rejected: tuple[tuple[str, str], ...]  # photograph, reason
    error_pixels: np.ndarray  # [accepted, 68] reprojection error, pixels of the crop
    error_relative: np.ndarray  # [accepted, 68] the same as shares of the distance between the eyes
    folder: Path  # overlays and tables (report.ReportFolder)
    seconds: float


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    resolution: int = 512,
    landmarker: str | os.PathLike[str] | None = None,
    detector: FaceDetector | None = None,
    head_model: HeadModel | None = None,
    limits: PhotoLimits = PhotoLimits(),
    overwrite: bool = False,
    batch: int = 4,
    log: Callable[[str], None] = print,
) -> PhotoReport:
    """Photographs under `source` (a folder, or one file) -> a dataset at `out` (zip or folder).

    Each image gets a camera label and HeadParams of `head_model` (default: the embedded head), so the
    dataset trains and drives. Overlays and tables go to the folder `<out without .zip>-report`.
    `detector` defaults to MediaPipe with the model file `landmarker`.

    Raises UserError, with nothing half-written, if `source` holds no photograph, no detector can be
    had, `out` is taken, or no photograph passes `limits`.
    """
    started = time.perf_counter()
    folder = Path(f'{os.fspath(out).removesuffix(".zip")}-report')
    root, names = find_photos(source)
    with contextlib.ExitStack() as stack:
        if detector is None:
            detector = stack.enter_context(MediaPipeDetector(landmarker))
            tested = '' if detector.tested else ', not the file this was tested with'
            log(f'detector: mediapipe with {detector.path} (sha256 {detector.sha256[:16]}{tested})')
        model = load_head_model('makehuman') if head_model is None else head_model
        report = stack.enter_context(ReportFolder(folder))
        writer = stack.enter_context(
            DatasetWriter(
                out,
                resolution=resolution,
                head_model=model.name,
                head_model_hash=model.content_hash,
                overwrite=overwrite,
            )
        )
        run = _Run(root, model=model, detector=detector, limits=limits, writer=writer, report=report)
        with tqdm(total=len(names), unit='photo', desc='from-photos') as bar:
            for start in range(0, len(names), batch):
                run.process(names[start : start + batch])
                bar.update(len(names[start : start + batch]))
        if not run.fits:
            raise UserError(f'{source}: no usable face in {len(names)} photograph(s): {summarize(run.rejected)}')
        report.add_table('fits', _FITS, run.fits)
        report.add_table('rejects', ('source', 'reason'), run.rejected)
    result = PhotoReport(
        accepted=tuple(str(row[1]) for row in run.fits),
        rejected=tuple(run.rejected),
        error_pixels=np.stack(run.errors) * resolution,
        error_relative=np.stack(run.errors) / np.array(run.eye_distances)[:, None],
        folder=folder,
        seconds=time.perf_counter() - started,
    )
    for line in describe(result, out=out, resolution=resolution):
        log(line)
    return result


def find_photos(source: str | os.PathLike[str]) -> tuple[Path, list[str]]:
    """The folder and the sorted relative names of the photographs in it (or of the one file given)."""
    path = Path(source)
    if path.is_file():
        return path.parent, [path.name]
    if not path.is_dir():
        raise UserError(f'--source {source}: no such file or folder')
    names = []
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        names += [
            Path(folder, name).relative_to(path).as_posix()
            for name in files
            if name.lower().endswith(PHOTO_TYPES) and not name.startswith('.')
        ]
    if not names:
        raise UserError(f'--source {source}: holds no photograph ({", ".join(PHOTO_TYPES)})')
    return path, sorted(names)


def fit_and_crop(
    model: HeadModel, faces: list[Face], *, offsets: Tensor | None = None, config: FitConfig | None = None
) -> tuple[list[Crop], Fit]:
    """Detected faces -> crops in which the head lies as EG3D's convention wants it, and the fits in them.

    The iris is used if every face of the batch has one. `offsets` as in fit_heads.
    """
    crops = [crop_from_landmarks(face.landmarks) for face in faces]
    fit: Fit | None = None
    for _ in range(_ROUNDS):
        if fit is not None:
            crops = [recrop(crop, label) for crop, label in zip(crops, fit.label, strict=True)]
        landmarks = [crop.to_crop(face.landmarks) for crop, face in zip(crops, faces, strict=True)]
        iris = [crop.to_crop(face.iris) for crop, face in zip(crops, faces, strict=True) if face.iris is not None]
        both = _tensor(iris) if len(iris) == len(faces) else None
        fit = fit_heads(model, _tensor(landmarks), iris=both, start=fit, offsets=offsets, config=config or FitConfig())
    assert fit is not None
    return crops, fit


def summarize(rejected: list[tuple[str, str]]) -> str:
    """'3 no face found, 1 corrupt picture'."""
    counts = Counter(reason.partition(' (')[0] for _, reason in rejected)
    return ', '.join(f'{count} {reason}' for reason, count in counts.most_common())


def describe(result: PhotoReport, *, out: str | os.PathLike[str], resolution: int) -> list[str]:
    """The closing lines of a run."""
    count = len(result.accepted) + len(result.rejected)
    lines = [
        f'{out}: {len(result.accepted)} of {count} photographs at {resolution} x {resolution}, '
        f'{count / result.seconds:.2f} images/s'
    ]
    for name, errors, unit, scale in (
        ('reprojection error', result.error_pixels, 'pixels', 1.0),
        ('  relative to the distance between the eyes', result.error_relative, '%', 100.0),
    ):
        median, mean, high = np.median(errors), errors.mean(), np.percentile(errors, 95)
        lines.append(f'{name}: median {median * scale:.2f}, mean {mean * scale:.2f}, 95 % {high * scale:.2f} {unit}')
    if result.rejected:
        lines.append(f'rejected: {summarize(list(result.rejected))}; see {result.folder / "rejects.csv"}')
    lines.append(f'overlays: {result.folder / "sheet.png"}')
    return lines


class _Run:
    """One conversion: what goes where, and what came of it."""

    def __init__(
        self,
        root: Path,
        *,
        model: HeadModel,
        detector: FaceDetector,
        limits: PhotoLimits,
        writer: DatasetWriter,
        report: ReportFolder,
    ) -> None:
        self.root, self.model, self.detector, self.limits = root, model, detector, limits
        self.writer, self.report = writer, report
        self.rejected: list[tuple[str, str]] = []
        self.fits: list[tuple[object, ...]] = []
        self.errors: list[np.ndarray] = []  # [68] shares of the image side
        self.eye_distances: list[float] = []  # shares of the image side
        self.offsets = landmark_offsets(detector.name, model.name)
        regions = model.regions
        shown = (regions['face'] | regions['eyes']).cpu()
        self._shown = model.template.faces.cpu()[shown].numpy()
        self._shown_eyes = regions['eyes'].cpu()[shown].numpy()

    def process(self, names: list[str]) -> None:
        """Find, fit, crop, check and write a batch of photographs."""
        found = [item for name in names if (item := self._find(name)) is not None]
        if not found:
            return
        crops, fit = fit_and_crop(self.model, [face for _, _, face, _ in found], offsets=self.offsets)
        vertices = cameras.head_to_world(self.model.forward(fit.params).vertices)
        points = cameras.project(vertices, fit.label)[0].cpu().numpy()
        for index, (name, photo, face, faces) in enumerate(found):
            self._finish(name, photo, face, crops[index], fit[index : index + 1], points[index], faces)

    def _find(self, name: str) -> tuple[str, np.ndarray, Face, int] | None:
        """Load a photograph and find its largest face; a reject otherwise."""
        try:
            photo = load_photo(self.root / name)
        except UserError as error:
            self.rejected.append((name, str(error).rpartition(f'{name}: ')[2]))
            return None
        faces = [face for face in self.detector.detect(photo) if face.finite]
        if not faces:
            self.rejected.append((name, 'no face found'))
            return None
        return name, photo, max(faces, key=lambda face: face.size), len(faces)

    def _finish(
        self, name: str, photo: np.ndarray, face: Face, crop: Crop, fit: Fit, points: np.ndarray, faces: int
    ) -> None:
        given = crop.to_crop(face.landmarks)
        eyes = float(np.linalg.norm(given[36:42].mean(axis=0) - given[42:48].mean(axis=0)))
        error = fit.error[0].cpu().numpy()
        angles = np.degrees(camera_angles(fit.label)[0])
        height, width = photo.shape[:2]
        reason = self._reason(crop, crop.outside(width, height), float(error[CONTOUR.stop :].mean()) / eyes, angles)
        if reason is not None:
            self.rejected.append((name, reason))
        if crop.side > 8 * max(width, height) or crop.outside(width, height) >= 1.0 or not np.isfinite(points).all():
            return  # nothing to show
        if reason is None:
            image = extract(photo, crop, resolution=self.writer.resolution)
            stored = self.writer.add(image, label=fit.label[0].cpu(), head=fit.params.to('cpu'))
            self.errors.append(error)
            self.eye_distances.append(eyes)
            pixels = float(np.median(error)) * self.writer.resolution
            row = [crop.column, crop.row, crop.side, pixels, 100 * float(np.median(error)) / eyes, *angles.tolist()]
            self.fits.append((stored, name, *(f'{value:.3f}' for value in row), faces))
        picture = extract(photo, crop, resolution=_OVERLAY_SIZE)
        overlay = draw_overlay(
            picture,
            vertices=points * _OVERLAY_SIZE,
            faces=self._shown,
            eyes=self._shown_eyes,
            given=given * _OVERLAY_SIZE,
            fitted=fit.landmarks[0].cpu().numpy() * _OVERLAY_SIZE,
        )
        self.report.add_picture(name, np.hstack([picture, overlay]), accepted=reason is None)

    def _reason(self, crop: Crop, outside: float, error: float, angles: np.ndarray) -> str | None:
        """Why a photograph is not good enough, None if it is."""
        limits = self.limits
        if not math.isfinite(crop.side) or not math.isfinite(error):
            return 'fit failed'
        if error > limits.max_error:
            return f'reprojection error too large ({error:.1%} of the distance between the eyes)'
        if crop.side < limits.min_side:
            return f'face too small (crop of {crop.side:.0f} pixels, expected {limits.min_side:.0f})'
        if outside > limits.max_outside:
            return f'crop reaches too far over the border ({outside:.0%} of it)'
        if abs(angles[0]) > limits.max_yaw:
            return f'profile view (yaw {angles[0]:.0f} degrees)'
        return None


def _tensor(points: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(points).astype(np.float32))
