"""Check everything about a packed dataset that training would stumble over, and say how to repair it.

Nothing is assumed: each check works on what the ones before found readable, so that one run lists
all problems. Errors are what makes a dataset unusable or wrong; warnings are what should be looked at.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from applications.overlay import neutral_heads, overlay_sheet, project_head
from dnnlib import UserError
from training.cameras import FOCAL, LABEL_DIM, unpack_label
from training.dataset_format import HeadTable, decode_image, image_mode, match_head_model, read_heads
from training.dataset_labels import LabelTable, read_labels, stored_labels
from training.dataset_source import Source, open_source
from training.head import load_head_model
from training.head.model import PARAM_FIELDS, HeadInput, HeadModel, HeadParams

Progress = Callable[[Iterable, int, str], Iterable]  # items, how many, what they are

_BATCH = 128
_RELABEL = 'make the label again with the tool that fitted the camera'
_REMAKE = 'make the dataset again'


@dataclasses.dataclass(frozen=True)
class Finding:
    """One problem with one item."""

    severity: Literal['error', 'warning']
    kind: str  # the same for all items that have this problem
    item: str  # name of the image or file
    problem: str
    remedy: str

    def line(self) -> str:
        return f'{self.severity:<8}{self.item}: {self.problem}; {self.remedy}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a dataset holds and what is wrong with it."""

    path: Path
    images: int
    labels: int
    resolution: int | None  # the most frequent side of the images
    heads: str  # 'params', 'mesh' or 'none'
    head_model: str
    findings: tuple[Finding, ...]

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def lines(self, *, limit: int | None = 5) -> list[str]:
        """The findings as a table, errors first, at most `limit` of a kind written out."""
        lines = []
        ordered = sorted(self.findings, key=lambda finding: finding.severity)
        for (severity, kind), number in Counter((f.severity, f.kind) for f in ordered).items():
            alike = [finding for finding in ordered if (finding.severity, finding.kind) == (severity, kind)]
            lines += [finding.line() for finding in alike[:limit]]
            if limit is not None and number > limit:
                lines.append(f'{severity:<8}... and {number - limit} more of the same kind ({kind}); --all lists them')
        return lines

    def summary(self) -> str:
        size = f'{self.resolution} x {self.resolution}' if self.resolution else 'unknown size'
        heads = {'params': 'head parameters', 'mesh': 'meshes', 'none': 'no heads'}[self.heads]
        model = f' ({self.head_model})' if self.head_model else ''
        return (
            f'{self.path}: {self.images} images of {size}, {self.labels} labels, {heads}{model};'
            f' {self.count("error")} error(s), {self.count("warning")} warning(s)'
        )


def _silent(items: Iterable, total: int, what: str) -> Iterable:
    return items


def validate(
    path: str | os.PathLike[str],
    *,
    head_model: HeadModel | None = None,
    threads: int = 4,
    progress: Progress = _silent,
) -> Report:
    """Check names, labels, cameras, images, heads and their projections.

    `head_model` replaces the one that the dataset names. `progress` wraps the long loops.
    UserError only if there is no readable zip or folder at `path`.
    """
    source = open_source(path)
    names = source.image_names()
    findings = list(_check_files(source, names))
    table = LabelTable([], np.zeros((0, LABEL_DIM), np.float32), [])
    try:
        table = read_labels(source)
    except UserError as error:
        findings.append(_from_error('labels', source, error))
    findings += _check_label_names(names, table)
    findings += _check_cameras(table)
    sizes: dict[str, tuple[int, int]] = {}
    findings += _check_images(source, names, sizes, threads=threads, progress=progress)
    heads: HeadTable | None = None
    try:
        heads = read_heads(source)
    except UserError as error:
        findings.append(_from_error('heads', source, error))
    if heads is not None:
        findings += _check_head_rows(heads, names)
        findings += _check_stored_labels(source, heads, table)
        findings += _check_projections(heads, table, head_model, path=source.path, progress=progress)
    return Report(
        path=source.path,
        images=len(names),
        labels=len(table.names) + len(table.problems),
        resolution=Counter(sizes.values()).most_common(1)[0][0][0] if sizes else None,
        heads='none' if heads is None else heads.kind,
        head_model='' if heads is None else heads.head_model,
        findings=tuple(findings),
    )


def _from_error(kind: str, source: Source, error: UserError) -> Finding:
    problem, _, remedy = str(error).removeprefix(f'{source.path}: ').partition('; ')
    return Finding('error', kind, source.path.name, problem, remedy)


def _check_files(source: Source, names: list[str]) -> Iterator[Finding]:
    if not names:
        yield Finding('error', 'no images', source.path.name, 'holds no images (.png, .jpg, .webp)', 'add images')
    for name in source.duplicates:
        yield Finding('error', 'duplicate file', name, 'stands in the zip more than once', 'pack the zip again')


def _check_label_names(names: list[str], table: LabelTable) -> Iterator[Finding]:
    for name, problem in table.problems:
        yield Finding('error', 'bad label', name, problem, _RELABEL)
    listed = Counter([*table.names, *(name for name, _ in table.problems)])
    present = set(names)
    for name, count in listed.items():
        if count > 1:
            yield Finding('error', 'duplicate label', name, f'has {count} labels', 'keep one of them')
        if name not in present:
            yield Finding('error', 'label without image', name, 'is labelled but not there', 'add it or drop its label')
    for name in names:
        if name not in listed:
            yield Finding('error', 'missing label', name, 'has no label', 'add it to dataset.json or remove the image')


def _check_cameras(table: LabelTable) -> Iterator[Finding]:
    if not table.names:
        return
    cam2world, intrinsics = (part.double().numpy() for part in unpack_label(torch.from_numpy(table.values.copy())))
    rotation = cam2world[:, :3, :3]
    skewed = np.abs(rotation.transpose(0, 2, 1) @ rotation - np.eye(3)).max(axis=(1, 2))
    determinant = np.linalg.det(rotation)
    for row, name in enumerate(table.names):
        matrix = intrinsics[row]
        fx, fy = float(matrix[0, 0]), float(matrix[1, 1])
        if skewed[row] > 1e-3:
            problem = f'camera rotation is not orthonormal (R^T R differs from 1 by {skewed[row]:.2g})'
            yield Finding('error', 'not a rotation', name, problem, _RELABEL)
        elif determinant[row] < 0:
            remedy = 'camera axes must be x right, y down, z forward (OpenCV); convert them'
            yield Finding(
                'error', 'mirrored rotation', name, 'camera rotation is a reflection (determinant -1)', remedy
            )
        if np.abs(cam2world[row, 3] - [0, 0, 0, 1]).max() > 1e-5:
            yield Finding('error', 'last row', name, 'last row of cam2world is not 0 0 0 1', _RELABEL)
        if min(fx, fy) <= 0 or max(fx, fy) > 20:
            problem = f'focal length {fx:.4g}, {fy:.4g} is not in image sides (FFHQ: {FOCAL})'
            yield Finding('error', 'focal length', name, problem, 'divide pixels by the image side')
        elif not (0 <= matrix[0, 2] <= 1 and 0 <= matrix[1, 2] <= 1) or np.abs(matrix[2] - [0, 0, 1]).max() > 1e-5:
            problem = 'intrinsics are not [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with the centre in [0, 1]'
            yield Finding('error', 'intrinsics', name, problem, 'divide pixels by the image side')
    if len(table.names) > 1 and (table.values == table.values[0]).all():
        remedy = 'a generator cannot learn depth from one view; check the camera fits'
        yield Finding('warning', 'constant labels', 'dataset.json', 'all labels are the same', remedy)


def _check_images(
    source: Source,
    names: list[str],
    sizes: dict[str, tuple[int, int]],
    *,
    threads: int,
    progress: Progress,
) -> Iterator[Finding]:
    """Decode every image; `sizes` receives width and height of the readable ones."""

    def check(name: str) -> tuple[str, tuple[int, int] | None, str]:
        try:
            data = source.read(name)
            pixels = decode_image(data, name=name, verify=True)
        except UserError as error:
            return name, None, str(error).removeprefix(f'{source.path}: ').removeprefix(f'{name}: ').removeprefix(name)
        return name, (pixels.shape[1], pixels.shape[0]), image_mode(data)

    with ThreadPoolExecutor(threads) as pool:
        for name, size, text in progress(pool.map(check, names), len(names), 'images'):
            if size is None:
                problem, _, remedy = text.strip().partition('; ')
                yield Finding('error', 'image', name, problem, remedy)
                continue
            sizes[name] = size
            if text != 'RGB':
                problem = f'stored as mode {text}, read as RGB'
                yield Finding('warning', 'not RGB', name, problem, 'convert it to RGB to be sure')
    yield from _check_sizes(sizes)


def _check_sizes(sizes: dict[str, tuple[int, int]]) -> Iterator[Finding]:
    common = Counter(sizes.values()).most_common(1)[0][0] if sizes else (0, 0)
    for name, (width, height) in sizes.items():
        if width != height:
            yield Finding('error', 'not square', name, f'is {width} x {height} pixels', 'crop it to a square')
        elif (width, height) != common:
            problem = f'is {width} x {height} pixels, most are {common[0]} x {common[1]}'
            yield Finding('error', 'other size', name, problem, 'resize it')
    if common[0] == common[1] and common[0] and common[0] & (common[0] - 1):
        problem = f'side of {common[0]} pixels is not a power of two'
        yield Finding('error', 'resolution', 'images', problem, 'resize them to 64, 128, 256 or 512')


def _check_head_rows(heads: HeadTable, names: list[str]) -> Iterator[Finding]:
    rows = Counter(heads.names)
    present = set(names)
    for name, count in rows.items():
        if count > 1:
            yield Finding('error', 'duplicate head', name, f'stands {count} times in head.npz', _REMAKE)
        if name not in present:
            yield Finding('error', 'head without image', name, 'has a head but is not there', _REMAKE)
    for name in names:
        if name not in rows:
            yield Finding('error', 'missing head', name, 'has no row in head.npz', _REMAKE)
    if heads.names != sorted(heads.names):
        yield Finding('error', 'head order', 'head.npz', 'rows are not in the order of the image names', _REMAKE)
    for start in range(0, len(heads.names), _BATCH):
        for field, values in heads.arrays.items():
            block = values[start : start + _BATCH].reshape(len(values[start : start + _BATCH]), -1)
            for row in np.flatnonzero(~np.isfinite(block).all(axis=1)):
                name = heads.names[start + row]
                yield Finding(
                    'error', 'head not finite', name, f'{field} holds a number that is not finite', 'fit it again'
                )


def _check_stored_labels(source: Source, heads: HeadTable, table: LabelTable) -> Iterator[Finding]:
    stored = stored_labels(source)
    if stored is not None and table.names == heads.names and not np.array_equal(stored, table.values):
        yield Finding('error', 'stored labels', 'head.npz', 'repeats other labels than dataset.json holds', _REMAKE)


def _check_projections(
    heads: HeadTable,
    table: LabelTable,
    model: HeadModel | None,
    *,
    path: Path,
    progress: Progress,
) -> Iterator[Finding]:
    """Is the head in the picture, upright in size, and in front of the camera?"""
    try:
        model = match_head_model(heads, model, path=path)
    except UserError as error:
        problem, _, remedy = str(error).removeprefix(f'{path}: ').partition('; ')
        yield Finding('error', 'head model', 'head.npz', problem, remedy)
        return
    label_row = {name: row for row, name in enumerate(table.names)}
    shared = [(row, label_row[name]) for row, name in enumerate(heads.names) if name in label_row]
    starts = range(0, len(shared), _BATCH)
    for start in progress(starts, len(starts), 'heads'):
        rows, labels = (list(part) for part in zip(*shared[start : start + _BATCH], strict=True))
        head = load_heads(heads, rows, model)
        _, points, depth = project_head(head, torch.from_numpy(table.values[labels]))
        for row, point, distance in zip(rows, points, depth, strict=True):
            yield from _check_projection(heads.names[row], point, distance)


def load_heads(heads: HeadTable, rows: list[int], model: HeadModel) -> HeadInput:
    """Meshes of some rows of a head table, whatever else is wrong with the dataset."""
    arrays = {name: torch.from_numpy(np.array(values[rows], np.float32)) for name, values in heads.arrays.items()}
    if heads.kind == 'mesh':
        return HeadInput(arrays['vertices'], arrays['landmarks'])
    with torch.no_grad():
        return model.forward(HeadParams(**{name: arrays[name] for name in PARAM_FIELDS}))


def draw_sheet(
    path: str | os.PathLike[str], report: Report, *, head_model: HeadModel | None = None, count: int = 16
) -> np.ndarray:
    """Overlays of up to `count` images as one picture, uint8 [H, W, 3]: first those with findings, then others evenly.

    Datasets without heads get the neutral embedded head, which shows whether the camera convention is right.
    UserError if no image can be drawn.
    """
    source = open_source(path)
    table, heads = read_labels(source), read_heads(source)
    unreadable = {finding.item for finding in report.findings if finding.kind in ('image', 'not square', 'other size')}
    label_row = {name: row for row, name in enumerate(table.names)}
    head_row = None if heads is None else {name: row for row, name in enumerate(heads.names)}
    good = [
        n
        for n in source.image_names()
        if n in label_row and n not in unreadable and (head_row is None or n in head_row)
    ]
    if not good:
        raise UserError(f'{path}: no readable image with label and head to draw')
    suspects = [name for name in dict.fromkeys(finding.item for finding in report.findings) if name in set(good)]
    evenly = [good[i] for i in np.linspace(0, len(good) - 1, min(count, len(good))).astype(int)]
    chosen = list(dict.fromkeys([*suspects[: count // 2], *evenly]))[:count]
    if heads is None or head_row is None:
        model = load_head_model('makehuman') if head_model is None else head_model
        head = neutral_heads(model, len(chosen))
    else:
        model = match_head_model(heads, head_model, path=path)
        head = load_heads(heads, [head_row[name] for name in chosen], model)
    images = np.stack([decode_image(source.read(name), name=name) for name in chosen]).transpose(0, 3, 1, 2)
    label = torch.from_numpy(table.values[[label_row[name] for name in chosen]])
    return overlay_sheet(torch.from_numpy(images.copy()), head=head, label=label, model=model)


def _check_projection(name: str, points: np.ndarray, depth: np.ndarray) -> Iterator[Finding]:
    frames = 'check that camera and head are in the same frame and in metres'
    if not np.isfinite(points).all():
        return  # already listed: a number that is not finite
    outside = ((points < 0) | (points > 1)).any(axis=1).mean()
    extent = (points.max(axis=0) - points.min(axis=0)).max()
    if depth.min() <= 0:
        yield Finding('error', 'behind camera', name, 'head lies behind the camera', frames)
    elif outside > 0.5:
        yield Finding(
            'error', 'outside', name, f'{outside:.0%} of the landmarks project outside of the picture', frames
        )
    elif extent < 0.1:
        yield Finding('warning', 'tiny head', name, f'landmarks span only {extent:.1%} of the picture', frames)
