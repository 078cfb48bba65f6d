"""From pictures to values: one function a kind of metric, each with its interval and its floor.

A floor is what perfect pictures would score: the same code on the dataset's own images, whose labels are known.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnnlib import UserError
from metrics import animation, bootstrap, distributions
from metrics.bootstrap import Interval
from metrics.features import check_batch
from metrics.frechet import frechet_distance, statistics
from metrics.names import Metric
from metrics.protocol import Run, pairs_of_persons
from metrics.shots import PATH_STEP
from metrics.sources import DatasetImages, Frames, ShotImages, choose_indices
from metrics.tables import GROUP, Rows
from torch_utils.rng import numpy_stream

FLOOR_IMAGES = 1000


class NoFaceError(UserError):
    """The estimator found no face in any picture."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """One number of a metric. `part` is appended to the reported name."""

    value: float
    interval: Interval | None
    method: str  # of the interval
    counts: tuple[int, ...]  # as they were, which for a folder may be fewer than asked
    part: str = ''
    floor: float | None = None
    floor_interval: Interval | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


def measure(metric: Metric, estimator: Any, run: Run) -> list[Outcome]:
    """The values of a metric on what `run` measures. Collective."""
    if metric.family == 'flicker':
        return [_flicker(metric, run)]
    if metric.rules.kind == 'head':
        return [_head(metric, estimator, run)]
    if metric.rules.kind == 'identity':
        return [_identity(metric, estimator, run)]
    if metric.family.startswith('ppl'):
        return [_path_length(metric, estimator, run)]
    return _classes(metric, estimator, run) if metric.family == 'is' else _distribution(metric, estimator, run)


def feature_rows(source: Frames, estimator: Any, run: Run, *, what: str) -> Rows:
    """What `estimator` says of every image of a source, by rows."""

    @torch.no_grad()
    def compute(indices: Sequence[int]) -> Rows:
        images = source.images(indices)
        check_batch(images)
        if hasattr(estimator, 'embed'):
            return _numbers(estimator.embed(images))
        said = estimator(images)
        return _numbers(said) if isinstance(said, Tensor) else animation.pack(said)

    key = [*source.key, estimator.name, estimator.content_hash]
    return run.workshop.table(key, len(source), compute, what=what, keep=source.keep)


def _numbers(values: Tensor) -> Rows:
    return values.to(torch.float32).cpu().numpy()


# Distances between sets of pictures.


def _distribution(metric: Metric, extractor: Any, run: Run) -> list[Outcome]:
    dataset, device, seed = run.real(metric), run.workshop.communicator.device, run.protocol.seed
    source = run.pictures(metric)
    generated = feature_rows(source, extractor, run, what='generated')
    chosen = choose_indices(len(dataset), None if metric.full else metric.counts[0], seed=seed)
    real = feature_rows(DatasetImages(dataset, device=device, rows=chosen), extractor, run, what='real')
    if min(len(real), len(generated)) < 2:
        raise UserError(f'metric {metric.name!r}: needs at least 2 images on both sides')
    floors: list[float | None] = [None, None]
    if metric.full and len(dataset.names) >= 4:
        sample = _held_out(dataset, min(len(generated), len(dataset) // 2), seed=seed)
        floors = [value for _, value, _, _ in _compare(metric, real[~sample], real[sample], run, error=False)]
    outcomes = []
    for (part, value, interval, method), floor in zip(
        _compare(metric, real, generated, run, error=True), floors, strict=False
    ):
        outcomes.append(
            Outcome(
                part=part,
                value=value,
                interval=interval,
                method=method,
                counts=(len(generated), *metric.counts[1:]),
                floor=floor,
                details={'num_real': len(real), 'num_generated': len(generated)},
            )
        )
    return outcomes


def _held_out(dataset: Any, count: int, *, seed: int) -> NDArray[np.bool_]:
    """Which items [len(dataset)] are a sample of about `count`; an image and its mirror image stay on one side."""
    pictures = len(dataset.names)
    share = min(max(round(count * pictures / len(dataset)), 2), pictures - 2)
    sample = np.isin(np.arange(pictures), numpy_stream('metric-floor', seed, pictures).permutation(pictures)[:share])
    return np.tile(sample, len(dataset) // pictures)


Compared = tuple[str, float, Interval | None, str]  # part, value, interval, how


def _compare(metric: Metric, real: Rows, generated: Rows, run: Run, *, error: bool) -> list[Compared]:
    seed = run.protocol.seed
    if metric.family == 'kid':
        value, spread = distributions.kid(real, generated, seed=seed)
        interval = bootstrap.normal_interval(value, spread) if np.isfinite(spread) else None
        return [('', value, interval, 'normal, subsampling')]
    if metric.family == 'pr':
        device = run.workshop.communicator.device
        found = []
        for part, manifold, points in (('_precision', real, generated), ('_recall', generated, real)):
            if len(manifold) <= metric.counts[1]:
                raise UserError(f'metric {metric.name!r}: needs more than {metric.counts[1]} images on both sides')
            hits = distributions.inside(manifold, points, neighbours=metric.counts[1], device=device).astype(float)
            interval = bootstrap.ratio_interval(hits, np.ones(len(hits)), seed=seed) if error else None
            found.append((part, float(hits.mean()), interval, 'percentile bootstrap over points'))
        return found
    against = statistics(real)
    value = frechet_distance(against, statistics(generated))
    if not error:
        return [('', value, None, '')]
    spread = bootstrap.refit_error(
        len(generated), lambda rows: frechet_distance(against, statistics(generated[rows])), seed=seed
    )
    return [('', value, bootstrap.normal_interval(value, spread), f'normal, {bootstrap.REFITS} bootstrap refits')]


def _classes(metric: Metric, extractor: Any, run: Run) -> list[Outcome]:
    rows = feature_rows(run.pictures(metric), extractor, run, what='generated')
    if len(rows) < distributions.SPLITS:
        raise UserError(f'metric {metric.name!r}: needs at least {distributions.SPLITS} images')
    scores = distributions.inception_score(rows)
    interval = bootstrap.ratio_interval(scores, np.ones(len(scores)), seed=run.protocol.seed)
    return [
        Outcome(
            value=float(scores.mean()),
            interval=interval,
            method='percentile bootstrap over splits',
            counts=(len(rows),),
            details={'splits_deviation': float(scores.std()), 'num_generated': len(rows)},
        )
    ]


def _path_length(metric: Metric, extractor: Any, run: Run) -> Outcome:
    rows = feature_rows(run.pictures(metric), extractor, run, what='generated')
    lengths = distributions.path_lengths(rows, step=PATH_STEP)
    return Outcome(
        value=float(lengths.mean()),
        interval=bootstrap.ratio_interval(lengths, np.ones(len(lengths)), seed=run.protocol.seed),
        method='percentile bootstrap over pairs',
        counts=metric.counts,
        details={'step': PATH_STEP, 'num_generated': len(rows)},
    )


# Faithfulness of the animation.


def _head(metric: Metric, estimator: Any, run: Run) -> Outcome:
    source = run.pictures(metric)
    value, interval, found = _animated(metric, estimator, source, run, what='generated')
    floor, floor_interval = None, None
    if run.dataset is not None and run.dataset.head_params([0]) is not None:
        rows = choose_indices(len(run.dataset), min(len(source), FLOOR_IMAGES), seed=run.protocol.seed)
        own = DatasetImages(run.dataset, device=run.workshop.communicator.device, rows=rows)
        with contextlib.suppress(NoFaceError):  # then there is no floor, but there may be a value
            floor, floor_interval, _ = _animated(metric, estimator, own, run, what='real')
    persons = len(set(source.groups))
    return Outcome(
        value=value,
        interval=interval,
        method='percentile bootstrap over identities',
        counts=(persons, -(-len(source) // persons)),
        floor=floor,
        floor_interval=floor_interval,
        details={'num_generated': len(source), 'num_without_face': len(source) - found},
    )


def _animated(
    metric: Metric, estimator: Any, source: DatasetImages | ShotImages, run: Run, *, what: str
) -> tuple[float, Interval, int]:
    """Value, interval and number of images with a face."""
    dataset = source.dataset
    params, cameras = source.driving(range(len(source)))
    if params is None:
        raise UserError(
            f'{dataset.name}: holds no head parameters (head.npz with meshes or nothing), so there is nothing to'
            f' compare estimates with; metric {metric.name!r} needs them'
        )
    if estimator.head_model not in (None, dataset.head_model_name):
        raise UserError(
            f'{estimator.name}: estimates parameters of {estimator.head_model}, but {dataset.name} is driven by'
            f' {dataset.head_model_name}; choose another estimator or dataset'
        )
    found = animation.unpack(feature_rows(source, estimator, run, what=what))
    wanted = estimator.targets(params, cameras)
    valid = found.valid.cpu().numpy()
    if not valid.any():
        raise NoFaceError(f'{estimator.name}: found no face in any of {len(source)} images of {dataset.name}')
    if metric.family == 'expression_response':
        above, below = animation.response_terms(_kept(found), _kept(wanted, found.valid), estimator=estimator.name)
    else:
        above = animation.errors(metric.family, _kept(found), _kept(wanted, found.valid), estimator=estimator.name)
        below = np.ones(len(above))
    persons = np.unique(np.array(source.groups)[valid], return_inverse=True)[1]
    sums = [np.bincount(persons, weights=terms).astype(np.float64) for terms in (above, below)]
    if not below.sum():
        raise UserError(f'metric {metric.name!r}: the driving expressions do not differ')
    return (
        float(above.sum() / below.sum()),
        bootstrap.ratio_interval(sums[0], sums[1], seed=run.protocol.seed),
        int(valid.sum()),
    )


def _kept(estimate: Any, rows: Tensor | None = None) -> Any:
    """The rows where a face was found."""
    chosen = (estimate.valid if rows is None else rows).cpu()
    fields = {name: value if value is None else value.cpu()[chosen] for name, value in vars(estimate).items()}
    return type(estimate)(**fields)


def _identity(metric: Metric, embedder: Any, run: Run) -> Outcome:
    root = metric.family == 'id_agora'
    value, interval, pairs = _likeness(run.pictures(metric), embedder, run, root=root, what='generated')
    floor, floor_interval = None, None
    if run.dataset is not None and (rows := pairs_of_persons(run.dataset, most=metric.counts[0])):
        own = DatasetImages(run.dataset, device=run.workshop.communicator.device, rows=rows)
        floor, floor_interval, _ = _likeness(own, embedder, run, root=root, what='real')
    return Outcome(
        value=value,
        interval=interval,
        method='percentile bootstrap over identities',
        counts=(pairs,),
        floor=floor,
        floor_interval=floor_interval,
        details={'num_generated': 2 * pairs},
    )


def _likeness(source: Frames, embedder: Any, run: Run, *, root: bool, what: str) -> tuple[float, Interval, int]:
    cosines = animation.pair_cosines(feature_rows(source, embedder, run, what=what))

    def transform(means: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sqrt(np.maximum(means, 0)) if root else means

    interval = bootstrap.ratio_interval(cosines, np.ones(len(cosines)), seed=run.protocol.seed, transform=transform)
    return float(transform(np.array(cosines.mean()))), interval, len(cosines)


def _flicker(metric: Metric, run: Run) -> Outcome:
    source, (clips, frames) = run.pictures(metric), metric.counts

    def compute(indices: Sequence[int]) -> Rows:
        rows = []
        for clip in indices:
            shots = range(clip * frames, (clip + 1) * frames)
            parts = [source.images(shots[start : start + GROUP]) for start in range(0, frames, GROUP)]
            rows.append(animation.clip_differences(torch.cat(parts)))
        return np.concatenate(rows)

    key = [*source.key, 'flicker', frames]
    rows = run.workshop.table(key, clips, compute, what='clips', keep=source.keep)
    second, first = rows.astype(np.float64).T
    moves = bool(first.sum())
    return Outcome(
        value=float(second.sum() / first.sum()) if moves else 0.0,
        interval=bootstrap.ratio_interval(second, first, seed=run.protocol.seed) if moves else None,
        method='percentile bootstrap over clips',
        counts=metric.counts,
        details={'num_generated': clips * frames},
    )
