"""A video -> a packed dataset of clips with camera labels and head parameters.

Decode and detect every chosen frame; follow one person (track.py); fit identity and frames, smooth
(sequence.py); decode again, crop and write. Detections and fits are kept in a work folder until the
dataset is complete, so that a run that was interrupted goes on. Frames left out are listed with the reason.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from applications.preprocessing import sequence, tasks
from applications.preprocessing.calibration import Calibration, load_calibration
from applications.preprocessing.clip import Frame, FrameChoice, read_frames
from applications.preprocessing.crops import PhotoLimits, eye_distance
from applications.preprocessing.detect import FaceDetector
from applications.preprocessing.neck import check_share, split_neck
from applications.preprocessing.photos import describe_detector
from applications.preprocessing.pool import WorkFolder, check_workers, file_key, ordered_map
from applications.preprocessing.report import Outcome, ReportFolder, outcome_lines, summarize
from applications.preprocessing.sequence import Fitted
from applications.preprocessing.track import Clip, Seen, track
from dnnlib import UserError
from dnnlib.files import remove_leftovers
from training.cameras import camera_angles
from training.dataset_writer import DatasetWriter
from training.head import load_head_model
from training.head.model import HeadModel

_OVERLAYS = 60  # pictures of the report, spread over the video
_FITS = (
    *('image', 'clip', 'frame', 'source', 'column', 'row', 'side', 'error_pixels', 'error_percent'),
    *('yaw', 'pitch', 'roll', 'faces'),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """How a video becomes a dataset."""

    resolution: int = 512
    frames: FrameChoice = FrameChoice()
    limits: PhotoLimits = PhotoLimits()
    framing: str = 'eg3d'  # align.py
    faces: str = 'largest'  # photos.FACES
    smooth: float = 1.0  # strength; 0: not
    neck_share: float = 0.0  # neck.split_neck

    def __post_init__(self) -> None:
        if not 0 <= self.smooth <= 1000:
            raise UserError(f'--strength {self.smooth:g}: expected 0 (no smoothing) to 1000')
        check_share(self.neck_share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoReport(Outcome):
    """What `convert_video` did; `resumed`: frames whose faces an earlier run had found."""

    frames: int  # looked at
    clips: int


def convert_video(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    options: VideoOptions = VideoOptions(),
    landmarker: str | os.PathLike[str] | None = None,
    detector: FaceDetector | None = None,
    head_model: HeadModel | None = None,
    workers: int | None = 0,
    restart: bool = False,
    overwrite: bool = False,
    log: Callable[[str], None] = print,
) -> VideoReport:
    """A video file or a folder of frames -> a dataset at `out` (zip or folder) with clip numbers.

    Overlays and tables go to `<out without .zip>-report`, unfinished work to `-work`. The rest as photos.convert.
    """
    started = time.perf_counter()
    base = os.fspath(out).removesuffix('.zip')
    model = load_head_model('makehuman') if head_model is None else head_model
    report = ReportFolder(f'{base}-report')
    detector_name = describe_detector(detector, landmarker, log=log)
    kept = {
        'source': str(Path(source).resolve()),
        'content': content_key(source),
        'head_model': model.content_hash,
        'detector': detector_name,
        **dataclasses.asdict(options),
    }
    open_writer = functools.partial(
        DatasetWriter,
        out,
        resolution=options.resolution,
        head_model=model.name,
        head_model_hash=model.content_hash,
        overwrite=overwrite,
    )
    open_writer().discard()  # refuses before the work
    remove_leftovers(out)
    work = WorkFolder(f'{base}-work', kept, restart=restart)
    calibration = load_calibration(detector_name.partition(' ')[0], model)
    stages = Stages(source, work, model=model, calibration=calibration, options=options, workers=check_workers(workers))
    with work.removed_if_empty():
        frames = stages.detect(detector, landmarker, log=log)
    written, rejected = stages.fit(frames)
    writer = open_writer()
    with report, writer:
        report.add_table('fits', _FITS, stages.write(written, frames, writer=writer, report=report))
        report.add_table('rejects', ('source', 'reason'), rejected)
    work.remove()
    errors = np.stack([item.fitted.error[0].numpy() for item in written])
    eyes = np.array([eye_distance(item.given) for item in written])
    result = VideoReport(
        frames=len(frames),
        clips=len({item.clip for item in written}),
        rejected=tuple(rejected),
        error_pixels=errors * options.resolution,
        error_relative=errors / eyes[:, None],
        folder=report.path,
        seconds=time.perf_counter() - started,
        resumed=stages.resumed,
    )
    for line in describe_video(result, out=out, resolution=options.resolution):
        log(line)
    return result


def describe_video(result: VideoReport, *, out: str | os.PathLike[str], resolution: int) -> list[str]:
    """The closing lines of a run."""
    speed = (result.frames - result.resumed) / result.seconds
    lines = [
        f'{out}: {len(result.error_pixels)} of {result.frames} frames in {result.clips} clip(s) '
        f'at {resolution} x {resolution}, {speed:.2f} images/s'
    ]
    return [*lines, *outcome_lines(result)]


class Stages:
    """The steps of one conversion over its work folder and processes; applications/tracking.py takes the first two."""

    def __init__(
        self,
        source: str | os.PathLike[str],
        work: WorkFolder,
        *,
        model: HeadModel,
        calibration: Calibration | None,
        options: VideoOptions,
        workers: int,
    ) -> None:
        self.source, self.work, self.options = source, work, options
        self.model, self.calibration, self.workers = model, calibration, workers
        self.resumed = 0

    def detect(
        self,
        detector: FaceDetector | None,
        landmarker: str | os.PathLike[str] | None,
        *,
        log: Callable[[str], None],
    ) -> list[Seen]:
        """The faces of every chosen frame. UserError if there is no frame."""
        numbers: list[int] = []
        known = self.work.load('numbers')
        self.resumed = self.work.count() if known is None else len(known)
        if self.resumed:
            log(f'{self.work.path}: continuing, {self.resumed} frames are done')
        if known is None:
            context = (tasks.open_detector, (detector, landmarker))
            for seen in self._map(tasks.detect, self._new_frames(numbers), context, title='detecting'):
                self.work.save(f'seen {seen.number}', seen)
            if not numbers:
                first = self.options.frames.start
                raise UserError(f'--source {self.source}: no frame from number {first} on; choose a smaller --start')
            self.work.save('numbers', numbers)
        numbers = known or numbers
        return [self.work.load(f'seen {number}') for number in numbers]

    def fit(self, frames: list[Seen]) -> tuple[list[tasks.Written], list[tuple[str, str]]]:
        """Fitted and smoothed frames in the order of the video, and (frame, reason) of all others."""
        clips, missing = track(frames, several=self.options.faces)
        rejected = [(frames[row].name, reason) for row, reason in missing]
        written: list[tasks.Written] = []
        runs = 0
        for clip, raw in zip(clips, self._fit_clips(clips), strict=True):
            good, bad = sequence.good_runs(clip, raw, frames, self.options.limits)
            rejected += [(frames[clip.rows[position]].name, reason) for position, reason in bad]
            for start, end in good:
                smoothed = sequence.smooth_run(
                    self.model,
                    clip.faces[start:end],
                    raw.part(start, end),
                    strength=self.options.smooth,
                    framing=self.options.framing,
                    calibration=self.calibration,
                )
                for i in range(end - start):
                    fitted = smoothed.part(i, i + 1)
                    given = fitted.crops[0].to_crop(clip.faces[start + i].landmarks)
                    written.append(tasks.Written(row=clip.rows[start + i], clip=runs, given=given, fitted=fitted))
                runs += 1
        if not written:
            self.work.remove()
            raise UserError(f'{self.source}: no usable face in {len(frames)} frame(s): {summarize(rejected)}')
        return written, rejected

    def _fit_clips(self, clips: list[Clip]) -> list[Fitted]:
        people = sorted({clip.person for clip in clips})
        faces = [sequence.identity_faces([clip for clip in clips if clip.person == person]) for person in people]
        found = self._kept([f'person {person}' for person in people], faces, tasks.fit_identity, title='identities')
        starts = [(c, s) for c, clip in enumerate(clips) for s in range(0, len(clip.rows), sequence.BLOCK)]
        blocks = [(clips[c].faces[s : s + sequence.BLOCK], found[people.index(clips[c].person)]) for c, s in starts]
        fits = self._kept([f'fit {c} {s}' for c, s in starts], blocks, tasks.fit_block, title='fitting')
        return [
            Fitted.join([fit for (owner, _), fit in zip(starts, fits, strict=True) if owner == c])
            for c in range(len(clips))
        ]

    def write(
        self, written: list[tasks.Written], frames: list[Seen], *, writer: DatasetWriter, report: ReportFolder
    ) -> list[tuple[object, ...]]:
        """Crop the frames of a second decoding into the dataset; the rows of fits.csv."""
        rows: list[tuple[object, ...]] = []
        shown = {int(i) for i in np.linspace(0, len(written) - 1, min(_OVERLAYS, len(written)))}
        wanted = {frames[item.row].number: index for index, item in enumerate(written)}

        def items() -> Iterator[tuple[np.ndarray, tasks.Written, bool]]:
            for frame in read_frames(self.source, self.options.frames):
                index = wanted.get(frame.number)
                if index is not None and frame.image is not None:
                    yield frame.image, written[index], index in shown

        context = (tasks.open_artist, (self.model, self.options.resolution))
        angles = np.degrees(camera_angles(torch.cat([item.fitted.label for item in written])))
        for item, (png, overlay), angle in zip(
            written, self._map(tasks.crop, items(), context, title='writing'), angles, strict=True
        ):
            seen, fitted, crop = frames[item.row], item.fitted, item.fitted.crops[0]
            head, label = split_neck(self.model, fitted.params, fitted.label, share=self.options.neck_share)
            name = writer.add(png, label=label[0], head=head, clip=(item.clip, seen.number))
            median, eyes = float(fitted.error.median()), eye_distance(item.given)
            values = [
                crop.column,
                crop.row,
                crop.side,
                median * writer.resolution,
                100 * median / eyes,
                *angle.tolist(),
            ]
            texts = (f'{value:.3f}' for value in values)
            rows.append((name, item.clip, seen.number, seen.name, *texts, len(seen.faces)))
            if overlay is not None:
                report.add_picture(seen.name, overlay, accepted=True)
        return rows

    def _new_frames(self, numbers: list[int]) -> Iterator[Frame]:
        """The chosen frames that are not kept yet; all of their numbers go into the list."""
        for frame in read_frames(self.source, self.options.frames):
            numbers.append(frame.number)
            if not self.work.has(f'seen {frame.number}'):
                yield frame

    def _kept(self, keys: list[str], items: list[Any], function: Callable[..., Any], *, title: str) -> list[Any]:
        """Results of the items, computed where the work folder has none."""
        todo = [(key, item) for key, item in zip(keys, items, strict=True) if not self.work.has(key)]
        context = (tasks.open_model, (self.model, self.calibration, self.options.framing))
        results = self._map(function, [item for _, item in todo], context, title=title)
        for (key, _), result in zip(todo, results, strict=True):
            self.work.save(key, result)
        return [self.work.load(key) for key in keys]

    def _map(
        self, function: Callable[..., Any], items: Iterable[Any], context: tuple[Any, tuple[Any, ...]], *, title: str
    ) -> Iterator[Any]:
        """The results in order; with a single item no processes are started."""
        total = len(items) if isinstance(items, list) else None
        workers = 0 if total is not None and total < 2 else self.workers
        results = ordered_map(function, items, workers=workers, make_context=context[0], arguments=context[1])
        yield from tqdm(results, total=total, desc=title, disable=total == 0)


def content_key(source: str | os.PathLike[str]) -> str:
    """What changes when the video, or a picture of the folder, does."""
    path = Path(source)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    text = '\n'.join(f'{file.name} {file_key(file)}' for file in files)
    return hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:16]
