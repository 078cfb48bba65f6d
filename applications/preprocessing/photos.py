"""A folder of photographs -> a packed dataset with camera labels and head parameters.

Each photograph: find the face, fit head and camera, crop as EG3D's FFHQ (align.py), check, write.
Photographs that do not pass are listed with the reason; none is dropped silently. What is finished is
kept in a work folder until the dataset is complete, so that a run that was interrupted goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from applications.preprocessing.align import Crop, extract, load_photo
from applications.preprocessing.calibration import Calibration, load_calibration
from applications.preprocessing.crops import (
    OverlayArtist,
    PhotoLimits,
    eye_distance,
    fit_and_crop,
    inner_error,
)
from applications.preprocessing.detect import Face, FaceDetector, MediaPipeDetector
from applications.preprocessing.fit import Fit
from applications.preprocessing.neck import check_share, split_neck
from applications.preprocessing.pool import WorkFolder, check_workers, file_key, ordered_map
from applications.preprocessing.report import Outcome, ReportFolder, outcome_lines, summarize
from dnnlib import UserError
from dnnlib.files import remove_leftovers
from training.cameras import camera_angles
from training.dataset_format import encode_png
from training.dataset_writer import DatasetWriter
from training.head import load_head_model
from training.head.model import HeadModel, HeadParams

PHOTO_TYPES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff')
FACES = ('largest', 'reject')
_FITS = ('image', 'source', 'column', 'row', 'side', 'error_pixels', 'error_percent', 'yaw', 'pitch', 'roll', 'faces')
_LIMITS = PhotoLimits()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotoReport(Outcome):
    """What `convert` did."""

    accepted: tuple[str, ...]  # photographs, relative to the source


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotoWorker:
    """What a process needs to convert photographs."""

    root: Path
    model: HeadModel
    detector: FaceDetector
    calibration: Calibration | None
    artist: OverlayArtist
    resolution: int
    limits: PhotoLimits
    framing: str
    faces: str
    neck_share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Done:
    """What came of one photograph."""

    name: str
    reason: str | None  # of the rejection
    overlay: bytes | None = None
    png: bytes = b''
    label: np.ndarray | None = None
    head: dict[str, np.ndarray] | None = None
    error: np.ndarray | None = None  # [68] shares of the image side
    eyes: float = 1.0  # share of the image side
    row: tuple[object, ...] = ()  # of fits.csv without the image's name


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    resolution: int = 512,
    landmarker: str | os.PathLike[str] | None = None,
    detector: FaceDetector | None = None,
    head_model: HeadModel | None = None,
    limits: PhotoLimits = _LIMITS,
    framing: str = 'eg3d',
    faces: str = 'largest',
    neck_share: float = 0.0,
    workers: int | None = 0,
    restart: bool = False,
    overwrite: bool = False,
    log: Callable[[str], None] = print,
) -> PhotoReport:
    """Photographs under `source` (a folder, or one file) -> a dataset at `out` (zip or folder).

    Each image gets a camera label and HeadParams of `head_model` (default: the embedded head), so the
    dataset trains and drives. Overlays and tables go to the folder `<out without .zip>-report`, finished
    photographs until then to `-work`. `detector` defaults to MediaPipe with the model file `landmarker`.
    `framing`: align.py; `faces`: what to do with several in a picture, FACES; `neck_share`: neck.split_neck;
    `workers`: processes, 0 = this one, None = one a core.

    Raises UserError, with nothing half-written, if `source` holds no photograph, no detector can be
    had, `out` is taken, or no photograph passes `limits`.
    """
    check_share(neck_share)
    started = time.perf_counter()
    base = os.fspath(out).removesuffix('.zip')
    root, names = find_photos(source)
    model = load_head_model('makehuman') if head_model is None else head_model
    report = ReportFolder(f'{base}-report')
    workers = min(check_workers(workers), len(names))
    options = {
        'source': str(root.resolve()),
        'resolution': resolution,
        'head_model': model.content_hash,
        'limits': dataclasses.asdict(limits),
        'framing': framing,
        'faces': faces,
        'neck_share': neck_share,
        'detector': describe_detector(detector, landmarker, log=log),
    }
    open_writer = functools.partial(
        DatasetWriter,
        out,
        resolution=resolution,
        head_model=model.name,
        head_model_hash=model.content_hash,
        overwrite=overwrite,
    )
    open_writer().discard()  # refuses before the work
    remove_leftovers(out)
    work = WorkFolder(f'{base}-work', options, restart=restart)
    arguments = (root, model, detector, landmarker, resolution, limits, framing, faces, neck_share)
    done, resumed = _convert_all(root, names, work=work, workers=workers, arguments=arguments, log=log)
    gathered = _assemble(done, open_writer(), report, remove=work.remove, source=source)
    result = dataclasses.replace(gathered, seconds=time.perf_counter() - started, resumed=resumed)
    for line in describe(result, out=out, resolution=resolution):
        log(line)
    return result


def _convert_all(
    root: Path,
    names: list[str],
    *,
    work: WorkFolder,
    workers: int,
    arguments: tuple[Any, ...],
    log: Callable[[str], None],
) -> tuple[list[_Done], int]:
    """What came of each photograph, and how many were done before."""
    keys = [f'{name}\n{file_key(root / name)}' for name in names]
    todo = [(name, key) for name, key in zip(names, keys, strict=True) if not work.has(key)]
    before = len(names) - len(todo)
    if before:
        log(f'{work.path}: continuing, {before} of {len(names)} photographs are done')
    if todo:
        remaining = [name for name, _ in todo]
        results = ordered_map(_convert_one, remaining, workers=workers, make_context=_make_worker, arguments=arguments)
        with tqdm(total=len(names), initial=before, unit='photo', desc='from-photos') as bar:
            for (_, key), done in zip(todo, results, strict=True):
                work.save(key, done)
                bar.update()
    return [work.load(key) for key in keys], before


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


def describe_detector(
    detector: FaceDetector | None, landmarker: str | os.PathLike[str] | None, *, log: Callable[[str], None]
) -> str:
    """Name of a detector with what its results depend on; logs it. UserError if there is none."""
    if detector is None:
        with MediaPipeDetector(landmarker) as detector:
            tested = '' if detector.tested else ', not the file this was tested with'
            log(f'detector: mediapipe with {detector.path} (sha256 {detector.sha256[:16]}{tested})')
    return f'{detector.name} {getattr(detector, "sha256", "")}'.strip()


def describe(result: PhotoReport, *, out: str | os.PathLike[str], resolution: int) -> list[str]:
    """The closing lines of a run."""
    count = len(result.accepted) + len(result.rejected)
    lines = [
        f'{out}: {len(result.accepted)} of {count} photographs at {resolution} x {resolution}, '
        f'{(count - result.resumed) / result.seconds:.2f} images/s'
    ]
    return [*lines, *outcome_lines(result)]


@contextlib.contextmanager
def _make_worker(
    root: Path,
    model: HeadModel,
    detector: FaceDetector | None,
    landmarker: str | os.PathLike[str] | None,
    resolution: int,
    limits: PhotoLimits,
    framing: str,
    faces: str,
    neck_share: float,
) -> Iterator[PhotoWorker]:
    with contextlib.ExitStack() as stack:
        detector = stack.enter_context(MediaPipeDetector(landmarker)) if detector is None else detector
        yield PhotoWorker(
            root=root,
            model=model,
            detector=detector,
            calibration=load_calibration(detector.name, model),
            artist=OverlayArtist(model),
            resolution=resolution,
            limits=limits,
            framing=framing,
            faces=faces,
            neck_share=neck_share,
        )


def _convert_one(worker: PhotoWorker, name: str) -> _Done:
    """Find, fit, crop and check one photograph."""
    try:
        photo = load_photo(worker.root / name)
    except UserError as error:
        return _Done(name=name, reason=str(error).rpartition(f'{name}: ')[2])
    found = [face for face in worker.detector.detect(photo) if face.finite]
    if not found:
        return _Done(name=name, reason='no face found')
    if len(found) > 1 and worker.faces == 'reject':
        return _Done(name=name, reason=f'several faces ({len(found)})')
    face = max(found, key=lambda face: face.size)
    crops, fit = fit_and_crop(worker.model, [face], calibration=worker.calibration, framing=worker.framing)
    return _finish(worker, name, photo, face, crops[0], fit, len(found))


def _finish(worker: PhotoWorker, name: str, photo: np.ndarray, face: Face, crop: Crop, fit: Fit, faces: int) -> _Done:
    given = crop.to_crop(face.landmarks)
    eyes = eye_distance(given)
    error = fit.error[0].cpu().numpy()
    angles = np.degrees(camera_angles(fit.label)[0])
    size = (int(photo.shape[0]), int(photo.shape[1]))
    reason = worker.limits.reason(crop, size, error=inner_error(error, eyes), yaw=float(angles[0]))
    params = fit.params.to('cpu')
    fitted = fit.landmarks[0].cpu().numpy()
    overlay = worker.artist.draw(photo, crop, params=params, label=fit.label, given=given, fitted=fitted)
    if reason is not None:
        return _Done(name=name, reason=reason, overlay=overlay)
    median = float(np.median(error))
    params, label = split_neck(worker.model, params, fit.label.cpu(), share=worker.neck_share)
    row = [crop.column, crop.row, crop.side, median * worker.resolution, 100 * median / eyes, *angles.tolist()]
    return _Done(
        name=name,
        reason=None,
        overlay=overlay,
        png=encode_png(extract(photo, crop, resolution=worker.resolution)),
        label=label[0].numpy(),
        head={key: value.numpy() for key, value in params.as_dict().items()},
        error=error,
        eyes=eyes,
        row=(name, *(f'{value:.3f}' for value in row), faces),
    )


def _assemble(
    done: list[_Done],
    writer: DatasetWriter,
    report: ReportFolder,
    *,
    remove: Callable[[], None],
    source: str | os.PathLike[str],
) -> PhotoReport:
    """Dataset and report from the finished photographs; `remove` is called when nothing more can come of them."""
    rejected = [(item.name, item.reason) for item in done if item.reason is not None]
    good = [item for item in done if item.reason is None]
    if not good:
        writer.discard()
        remove()
        raise UserError(f'{source}: no usable face in {len(done)} photograph(s): {summarize(rejected)}')
    with contextlib.ExitStack() as stack:
        stack.enter_context(report)
        stack.enter_context(writer)
        rows = []
        for item in done:
            if item.reason is None and item.head is not None and item.label is not None:
                head = HeadParams.from_dict({key: torch.from_numpy(value) for key, value in item.head.items()})
                rows.append((writer.add(item.png, label=item.label, head=head), *item.row))
            if item.overlay is not None:
                report.add_picture(item.name, item.overlay, accepted=item.reason is None)
        report.add_table('fits', _FITS, rows)
        report.add_table('rejects', ('source', 'reason'), rejected)
    remove()
    errors = np.stack([item.error for item in good if item.error is not None])
    return PhotoReport(
        accepted=tuple(item.name for item in good),
        rejected=tuple(rejected),
        error_pixels=errors * writer.resolution,
        error_relative=errors / np.array([item.eyes for item in good])[:, None],
        folder=report.path,
        seconds=0.0,
        resumed=0,
    )
