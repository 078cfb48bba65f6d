"""The importers behind dataset_tool.py from-release, from-deca, from-smirk and from-eg3d."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from applications.datasets.importing import (
    CHUNK,
    Finisher,
    HeadReader,
    ImportReport,
    Job,
    Output,
    choose_resolution,
    reason_of,
    run_import,
    summarize,
)
from applications.datasets.kept import kept_work
from applications.datasets.mesh_import import (
    FLAME_NAME,
    MeshFiles,
    MeshFinisher,
    expected_vertices,
    find_release,
    probe_meshes,
)
from applications.datasets.parameter_files import SUFFIXES
from applications.datasets.params_import import ParamsFinisher, read_table
from applications.datasets.sources import FileIndex, labelled_jobs
from applications.datasets.trackers import TrackerFiles, TrackerFinisher, head_params, lid_coefficients, read_lids
from applications.preprocessing.mesh_fit import MeshFitter
from dnnlib import UserError
from dnnlib.files import atomic_write
from training.dataset_format import write_arrays
from training.dataset_source import Source, open_source
from training.head import load_head_model
from training.head.model import HeadModel, HeadParams

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """The options that all importers share."""

    out: str
    resolution: int | None = None
    resize: bool = False
    overwrite: bool = False
    workers: int | None = None

    def output(self, source: Source, names: Sequence[str], model: HeadModel | None, *, name: str = '') -> Output:
        return Output(
            path=self.out,
            resolution=choose_resolution(source, names, wanted=self.resolution),
            resize=self.resize,
            head_model=name if model is None else model.name,
            head_model_hash='' if model is None else model.content_hash,
            overwrite=self.overwrite,
            workers=self.workers,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meshes:
    """Where meshes lie and what is made of them."""

    folder: str | os.PathLike[str]
    landmarks: str | os.PathLike[str] | None = None
    scale: float = 1.0
    fit: bool = False
    restart: bool = False  # fit anew what an interrupted run has kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tracker:
    """Where a tracker's files lie."""

    kind: str  # 'deca' or 'smirk'
    folder: str
    eyes: str | None = None
    eyelids: str | None = None

    def reader(self, model: HeadModel) -> TrackerFiles:
        return TrackerFiles(
            kind=self.kind,
            files=FileIndex.scan(self.folder, SUFFIXES, what='parameter'),
            num_identity=model.num_identity,
            num_expression=model.num_expression,
            eyes=None if self.eyes is None else FileIndex.scan(self.eyes, SUFFIXES, what='eye pose'),
        )

    def finisher(self, model: HeadModel, *, resolution: int) -> TrackerFinisher:
        return TrackerFinisher(model, resolution=resolution, lids=self.lids(model))

    def lids(self, model: HeadModel) -> Tensor | None:
        return None if self.eyelids is None else lid_coefficients(model, read_lids(self.eyelids, model))


def open_head_model(choice: str | None) -> HeadModel | None:
    """'makehuman', a FLAME file or folder, or None."""
    if choice is None or choice == 'makehuman':
        return None if choice is None else load_head_model(choice)
    return load_head_model('flame', path=choice)


def import_release(
    root: str,
    *,
    target: Target,
    labels: str | None = None,
    head_model: str | None = None,
    scale: float = 1.0,
    fit: bool = False,
    restart: bool = False,
    log: Log = print,
) -> ImportReport:
    """The public release's folders -> a dataset; see dataset_tool.py from-release."""
    layout = find_release(root, labels=labels)
    source = open_source(layout.images)
    jobs, rejected = labelled_jobs(source, layout.labels)
    meshes = Meshes(folder=layout.meshes, landmarks=layout.landmarks, scale=scale, fit=fit, restart=restart)
    return _import_meshes(source, jobs, rejected, meshes=meshes, target=target, head_model=head_model, log=log)


def import_eg3d(
    data: str,
    *,
    target: Target,
    labels: str | None = None,
    head_model: str | None = None,
    tracker: Tracker | None = None,
    params: str | None = None,
    meshes: Meshes | None = None,
    log: Log = print,
) -> ImportReport:
    """An EG3D dataset and heads from a tracker, a parameter file or meshes -> a dataset with heads."""
    if sum(choice is not None for choice in (tracker, params, meshes)) != 1:
        raise UserError('heads: give exactly one of --deca, --smirk, --params and --meshes')
    source = open_source(data)
    jobs, rejected = labelled_jobs(source, labels)
    if meshes is not None:
        return _import_meshes(source, jobs, rejected, meshes=meshes, target=target, head_model=head_model, log=log)
    if params is not None:
        model = open_head_model(head_model or 'makehuman')
        assert model is not None
        reader = read_table(params, model, names=source.image_names())
        return _run(
            source, jobs, rejected, reader=reader, finisher=ParamsFinisher(), model=model, target=target, log=log
        )
    assert tracker is not None
    return _import_tracker(source, jobs, rejected, tracker=tracker, target=target, head_model=head_model, log=log)


def import_tracker(
    tracker: Tracker,
    *,
    images: str | None,
    target: Target,
    labels: str | None = None,
    head_model: str | None = None,
    log: Log = print,
) -> ImportReport | None:
    """Trackers' files and the crops they belong to -> a dataset; without images -> an .npz of HeadParams."""
    if images is None:
        _write_params(
            tracker, out=target.out, model=_flame(head_model, tracker, log), overwrite=target.overwrite, log=log
        )
        return None
    source = open_source(images)
    if labels is None:
        jobs = [Job(name=name) for name in source.image_names()]
        rejected = [(name, 'stands in the zip more than once') for name in source.duplicates]
        if not jobs:
            raise UserError(f'{images}: holds no images (.png, .jpg, .webp)')
    else:
        jobs, rejected = labelled_jobs(source, labels)
    return _import_tracker(source, jobs, rejected, tracker=tracker, target=target, head_model=head_model, log=log)


def _import_tracker(
    source: Source,
    jobs: Sequence[Job],
    rejected: Sequence[tuple[str, str]],
    *,
    tracker: Tracker,
    target: Target,
    head_model: str | None,
    log: Log,
) -> ImportReport:
    model = _flame(head_model, tracker, log)
    output = target.output(source, [job.name for job in jobs], model)
    finisher = tracker.finisher(model, resolution=output.resolution)
    return run_import(
        source, jobs, reader=tracker.reader(model), finisher=finisher, output=output, rejected=rejected, log=log
    )


def _flame(head_model: str | None, tracker: Tracker, log: Log) -> HeadModel:
    if head_model is None or head_model == 'makehuman':
        raise UserError(
            f'--head-model: {tracker.kind.upper()} gives coefficients of FLAME; pass your own generic_model.pkl'
        )
    model = load_head_model('flame', path=head_model)
    if model.name != FLAME_NAME:
        log(f'warning: {tracker.kind.upper()} gives coefficients of {FLAME_NAME}, this is {model.name}: faces differ')
    return model


def _import_meshes(
    source: Source,
    jobs: Sequence[Job],
    rejected: Sequence[tuple[str, str]],
    *,
    meshes: Meshes,
    target: Target,
    head_model: str | None,
    log: Log,
) -> ImportReport:
    model = open_head_model(head_model)
    if model is None and (meshes.fit or meshes.landmarks is None):
        what = '--fit' if meshes.fit else 'meshes without landmark files (lms512x512)'
        raise UserError(f'{what}: needs the head model of the meshes; pass --head-model=FILE (your FLAME) or makehuman')
    reader = MeshFiles(
        meshes=FileIndex.scan(meshes.folder, ('.obj',), what='mesh'),
        landmarks=None if meshes.landmarks is None else FileIndex.scan(meshes.landmarks, ('.txt',), what='landmark'),
        num_vertices=expected_vertices(model),
        scale=meshes.scale,
    )
    probe_meshes(reader, jobs, model)
    run = functools.partial(_run, source, jobs, rejected, reader=reader, model=model, target=target, log=log)
    if model is None or not meshes.fit:
        return run(finisher=MeshFinisher(None if model is None else model.template))
    with kept_work(target.out, what='fits', restart=meshes.restart, log=log) as kept:
        return run(finisher=MeshFinisher(model.template, fitter=MeshFitter(model), kept=kept))


def _run(
    source: Source,
    jobs: Sequence[Job],
    rejected: Sequence[tuple[str, str]],
    *,
    reader: HeadReader,
    finisher: Finisher,
    model: HeadModel | None,
    target: Target,
    log: Log,
) -> ImportReport:
    output = target.output(source, [job.name for job in jobs], model, name=FLAME_NAME)
    return run_import(source, jobs, reader=reader, finisher=finisher, output=output, rejected=rejected, log=log)


def _write_params(tracker: Tracker, *, out: str, model: HeadModel, overwrite: bool, log: Log) -> None:
    """All parameter files in the order of their names -> one .npz of HeadParams, which gen_videos.py --drive takes."""
    if not out.endswith('.npz'):
        raise UserError(f'--out {out}: without --images the result is a parameter file; give a name ending in .npz')
    if Path(out).exists() and not overwrite:
        raise UserError(f'{out}: already exists; choose another name or pass --overwrite')
    reader = tracker.reader(model)
    lids = tracker.lids(model)
    rejected: list[tuple[str, str]] = []
    parts: list[HeadParams] = []
    batch: list[dict[str, np.ndarray]] = []

    def flush() -> None:
        if batch:
            values = {key: torch.from_numpy(np.stack([item[key] for item in batch])) for key in batch[0]}
            parts.append(head_params(values, model, lids=lids))
            batch.clear()

    for name in tqdm(sorted(reader.files.exact), unit='file'):
        try:
            batch.append(reader(name, 1))
        except UserError as error:
            rejected.append((name, reason_of(error)))
        if len(batch) == CHUNK:
            flush()
    flush()
    for name, reason in rejected:
        log(f'rejected: {name}: {reason}')
    if not parts:
        raise UserError(f'{tracker.folder}: no usable parameter file: {summarize(rejected)}')
    params = HeadParams.cat(parts)
    with atomic_write(out) as handle:
        write_arrays(handle, {name: value.numpy() for name, value in params.as_dict().items()})
    log(f'{out}: {len(params)} rows of head parameters for {model.name}, {len(rejected)} rejected')
