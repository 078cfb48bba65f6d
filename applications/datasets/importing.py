"""What all importers share: read images and heads by several processes, write a dataset, list what was left out.

An importer gives a Source of images, one Job for each image, a reader (name and side of an image -> arrays of its
head, in a worker) and a finisher (a batch of loaded items -> label and head, in this process).
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import csv
import dataclasses
import io
import multiprocessing
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dnnlib import UserError
from dnnlib.files import atomic_write
from torch_utils.workers import start_worker, usable_cores
from training.dataset_format import decode_image, encode_png, image_header, image_mode
from training.dataset_source import Source
from training.dataset_writer import DatasetWriter
from training.head.model import HeadInput, HeadParams

CHUNK = 16  # images that a worker reads, and heads that are finished, at once
_FEW = 64  # images for which starting processes costs more than it saves


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One image to import."""

    name: str  # in its source
    label: np.ndarray | None = None  # [25], None: the finisher finds it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a worker read of one image."""

    name: str
    png: bytes
    label: np.ndarray | None
    head: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """What goes into the dataset for one image."""

    label: Tensor  # [25]
    head: HeadParams | HeadInput  # one row
    row: tuple[object, ...] = ()  # further columns of items.csv


class HeadReader(Protocol):
    """Reads one image's head; pickled to the workers. UserError with the reason if it cannot be used."""

    def __call__(self, name: str, side: int) -> dict[str, np.ndarray]: ...


class Finisher(Protocol):
    """Turns loaded items into labels and heads, and says at the end what it noticed."""

    columns: tuple[str, ...]  # of Finished.row

    def __call__(self, items: list[Loaded]) -> list[Finished]: ...

    def notes(self) -> list[str]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """Where and how the dataset is written."""

    path: str
    resolution: int
    resize: bool = False  # resample square images of another size instead of rejecting them
    head_model: str = ''
    head_model_hash: str = ''
    overwrite: bool = False
    workers: int | None = None  # processes; 0 = this one, None = one a core

    @property
    def report(self) -> Path:
        return Path(f'{self.path.removesuffix(".zip")}-report')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What `run_import` did."""

    accepted: tuple[str, ...]  # image names in the source
    rejected: tuple[tuple[str, str], ...]  # image name, reason
    seconds: float
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loader:
    """Reads an image and its head; lives in the workers."""

    source: Source
    reader: HeadReader
    resolution: int
    resize: bool

    def __call__(self, jobs: Sequence[Job]) -> list[Loaded | tuple[str, str]]:
        return [self._load(job) for job in jobs]

    def _load(self, job: Job) -> Loaded | tuple[str, str]:
        try:
            png, side = prepare_image(
                self.source.read(job.name), name=job.name, resolution=self.resolution, resize=self.resize
            )
            return Loaded(name=job.name, png=png, label=job.label, head=self.reader(job.name, side))
        except UserError as error:
            return job.name, reason_of(error)


def reason_of(error: UserError) -> str:
    """The error without the file's path in front."""
    return re.sub(r'^\S.*?: (?=\S)', '', ' '.join(str(error).split()), count=1)


def prepare_image(data: bytes, *, name: str, resolution: int, resize: bool) -> tuple[bytes, int]:
    """Image bytes -> PNG bytes of resolution x resolution in RGB, and the side it had; unchanged bytes where they fit.

    UserError with the reason for what is not readable, not square, or of another size (unless `resize`).
    """
    pixels = decode_image(data, name=name)
    height, width = pixels.shape[:2]
    if height != width:
        raise UserError(f'{name}: not square ({width} x {height} pixels)')
    if width != resolution:
        if not resize:
            raise UserError(f'{name}: another size ({width} x {height} pixels; --resize resamples)')
        size = (resolution, resolution)
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    elif image_header(data)[0] == '.png' and image_mode(data) == 'RGB':
        return data, width
    return encode_png(pixels), width


def choose_resolution(source: Source, names: Sequence[str], *, wanted: int | None) -> int:
    """`wanted`, or the side of the first readable image if that is a power of two; UserError otherwise."""
    if wanted is not None:
        return wanted
    for name in names:
        try:
            side = decode_image(source.read(name), name=name).shape[0]
        except UserError:
            continue
        if side >= 4 and not side & (side - 1):
            return int(side)
        raise UserError(
            f'{source.path}: {name} has a side of {side} pixels, datasets a power of two; pass --resolution, --resize'
        )
    raise UserError(f'{source.path}: holds no readable image')


def run_import(
    source: Source,
    jobs: Sequence[Job],
    *,
    reader: HeadReader,
    finisher: Finisher,
    output: Output,
    rejected: Sequence[tuple[str, str]] = (),  # names that are out already, and why
    log: Callable[[str], None] = print,
) -> ImportReport:
    """Read, finish and write all jobs in order; nothing half-written stays if it is interrupted.

    Tables in the folder `<out>-report`: items.csv (image of the dataset, image of the source, ...), rejects.csv.
    UserError if `output.path` is taken or no image is usable.
    """
    started = time.perf_counter()
    out = list(rejected)
    accepted: list[str] = []
    rows: list[tuple[object, ...]] = []
    loader = _Loader(source=source, reader=reader, resolution=output.resolution, resize=output.resize)
    with (
        DatasetWriter(
            output.path,
            resolution=output.resolution,
            head_model=output.head_model,
            head_model_hash=output.head_model_hash,
            overwrite=output.overwrite,
        ) as writer,
        tqdm(total=len(jobs), unit='image') as bar,
    ):
        for results in _read(loader, jobs, workers=output.workers):
            good = [item for item in results if isinstance(item, Loaded)]
            out += [item for item in results if not isinstance(item, Loaded)]
            for item, done in zip(good, finisher(good) if good else [], strict=True):
                stored = writer.add(item.png, label=done.label, head=done.head)
                accepted.append(item.name)
                rows.append((stored, item.name, *done.row))
            bar.update(len(results))
        if not accepted:
            raise UserError(f'{source.path}: no usable image of {len(jobs) + len(rejected)}: {summarize(out)}')
        _write_tables(output.report, (('image', 'source', *finisher.columns), rows), out)
    notes = tuple(finisher.notes())
    report = ImportReport(
        accepted=tuple(accepted), rejected=tuple(out), seconds=time.perf_counter() - started, notes=notes
    )
    for line in _describe(report, output):
        log(line)
    return report


def summarize(rejected: Sequence[tuple[str, str]]) -> str:
    """'3 no mesh, 1 not square'."""
    kinds = Counter(re.sub(r'-?\d[\d.e+-]*', '#', reason.partition(' (')[0]) for _, reason in rejected)
    return ', '.join(f'{count} x {kind}' for kind, count in kinds.most_common()) or 'nothing'


def _describe(report: ImportReport, output: Output) -> list[str]:
    total = len(report.accepted) + len(report.rejected)
    size = f'{output.resolution} x {output.resolution}'
    rate = total / max(report.seconds, 1e-9)
    lines = [f'{output.path}: {len(report.accepted)} of {total} images at {size}, {rate:.1f} images/s', *report.notes]
    if report.rejected:
        lines.append(f'rejected: {summarize(report.rejected)}; see {output.report / "rejects.csv"}')
    return lines


def _write_tables(folder: Path, items: tuple[Sequence[str], Sequence], rejected: Sequence[tuple[str, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, header, rows in (('items', *items), ('rejects', ('source', 'reason'), rejected)):
        text = io.StringIO(newline='')
        csv.writer(text).writerows([header, *rows])
        with atomic_write(folder / f'{name}.csv') as handle:
            handle.write(text.getvalue().encode())


def _read(loader: _Loader, jobs: Sequence[Job], *, workers: int | None) -> Iterator[list[Loaded | tuple[str, str]]]:
    """Loaded chunks in order, with a bounded number under way."""
    chunks = [jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK)]
    if workers is None:
        workers = usable_cores() if len(jobs) > _FEW else 0
    if workers == 0:
        yield from map(loader, chunks)
        return
    context = multiprocessing.get_context('spawn')
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(loader,)
    )
    with pool:
        pending: deque[concurrent.futures.Future] = deque()
        try:
            for chunk in chunks:
                pending.append(pool.submit(_work, chunk))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError('a reading process died (out of memory?); try fewer --workers') from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_worker_loader: list[_Loader] = []


def _start_worker(loader: _Loader) -> None:
    start_worker()
    _worker_loader[:] = [loader]


def _work(jobs: Sequence[Job]) -> list[Loaded | tuple[str, str]]:
    return _worker_loader[0](jobs)
