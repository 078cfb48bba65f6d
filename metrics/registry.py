"""Metric names, and the one function that measures them: for the training loop and for the command.

fid50k_full       all real images against 50,000 generated, official Inception
fid<N>[k]         N generated against N real ones chosen by the seed (all, if there are fewer)
fid<N>[k]_full    N generated against all real ones
fd_random...      the same with the offline stand-in network; not FID, and not comparable with it
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dnnlib import UserError
from metrics.cache import cached_statistics
from metrics.estimators.inception import InceptionFeatures, load_inception
from metrics.estimators.random_features import RandomFeatures
from metrics.features import FeatureExtractor, extract_features
from metrics.frechet import Statistics, frechet_distance, statistics
from metrics.sources import Dataset, DatasetImages, GeneratedImages, ImageSource, batches, choose_indices
from torch_utils.distributed import Communicator

NAME = re.compile(r'(fid|fd_random)([1-9]\d*)(k?)(_full)?')
EXAMPLES = 'fid50k_full, fid5k, fd_random2k_full, fd_random500'
Progress = Callable[[str, int, int], None]  # what, done, total


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A parsed metric name."""

    name: str
    features: str  # 'fid' or 'fd_random'
    num_generated: int
    full: bool  # against all real images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How to measure: what decides a value besides network and data, and where to cache."""

    seed: int = 0
    truncation_psi: float = 1.0
    truncation_cutoff: int | None = None
    batch: int = 16
    cache_dir: str | os.PathLike[str] | None = None  # None: dnnlib.download.default_cache_dir()
    inception: str | None = None  # path or URL; None: the official URL
    inception_sha256: str | None = None  # None: the published one


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """What all metrics of one call share."""

    generator: Any
    dataset: Dataset
    protocol: Protocol
    communicator: Communicator
    subject: dict[str, Any]
    progress: Progress | None


def parse_metric(name: str) -> Metric:
    """'fd_random2k_full' -> Metric; UserError names the grammar."""
    match = NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f'metric {name!r}: unknown; expected fid<N>[k][_full] or fd_random<N>[k][_full], like {EXAMPLES}'
        )
    features, number, thousand, full = match.groups()
    count = int(number) * (1000 if thousand else 1)
    if count < 2:
        raise UserError(f'metric {name!r}: a distance needs at least 2 images')
    return Metric(name=name, features=features, num_generated=count, full=bool(full))


def load_extractor(metric: Metric, protocol: Protocol) -> FeatureExtractor:
    """The feature network that a metric needs, on the CPU."""
    if metric.features == 'fd_random':
        return RandomFeatures()
    return load_inception(protocol.inception, sha256=protocol.inception_sha256, cache_dir=protocol.cache_dir)


def evaluate(
    names: Sequence[str],
    *,
    generator: Any,  # training.generator.Generator
    dataset: Dataset,
    protocol: Protocol,
    communicator: Communicator,
    subject: dict[str, Any] | None = None,  # what was measured, copied into the result (network, kimg, ...)
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Measure a generator against a dataset; one JSON-able result per name, the same on every rank.

    Collective: every rank of `communicator` calls it with the same arguments. UserError for unknown
    names (before any work), a missing Inception, or sizes that do not fit.
    """
    run = _Run(
        generator=generator,
        dataset=dataset,
        protocol=protocol,
        communicator=communicator,
        subject=subject or {},
        progress=progress,
    )
    chosen = [parse_metric(name) for name in names]
    extractors = {metric.features: load_extractor(metric, protocol).to(communicator.device) for metric in chosen}
    return [_measure(metric, extractors[metric.features], run) for metric in chosen]


def _measure(metric: Metric, extractor: FeatureExtractor, run: _Run) -> dict[str, Any]:
    started = time.perf_counter()
    protocol, device = run.protocol, run.communicator.device
    source = GeneratedImages(
        run.generator,
        run.dataset,
        count=metric.num_generated,
        seed=protocol.seed,
        device=device,
        truncation_psi=protocol.truncation_psi,
        truncation_cutoff=protocol.truncation_cutoff,
    )
    real = _real_statistics(metric, extractor, run)
    generated = statistics(_features(source, range(len(source)), extractor, run, what='generated'))
    return {
        'metric': _reported_name(metric, extractor),
        'value': frechet_distance(real, generated),
        **run.subject,
        'seed': protocol.seed,
        'num_real': real.count,
        'num_generated': generated.count,
        'truncation_psi': protocol.truncation_psi,
        'truncation_cutoff': protocol.truncation_cutoff,
        'batch': protocol.batch,
        'precision': getattr(run.generator, 'precision_name', 'fp32'),
        'dataset': run.dataset.name,
        'dataset_images': len(run.dataset),
        'dataset_hash': run.dataset.content_hash,
        'extractor': extractor.name,
        'extractor_hash': extractor.content_hash,
        'device': device.type,
        'ranks': run.communicator.size,
        'versions': {'python': platform.python_version(), 'torch': torch.__version__, 'numpy': np.__version__},
        'seconds': round(time.perf_counter() - started, 2),
    }


def _real_statistics(metric: Metric, extractor: FeatureExtractor, run: _Run) -> Statistics:
    total = len(run.dataset)
    indices = choose_indices(total, None if metric.full else metric.num_generated, seed=run.protocol.seed)
    key: list[Any] = [run.dataset.content_hash, total, extractor.name, extractor.content_hash]
    if len(indices) < total:
        key += [len(indices), run.protocol.seed]
    source = DatasetImages(run.dataset, device=run.communicator.device)
    return cached_statistics(
        key,
        lambda: statistics(_features(source, indices, extractor, run, what='real')),
        cache_dir=run.protocol.cache_dir,
        communicator=run.communicator,
    )


def _features(
    source: ImageSource, indices: Sequence[int], extractor: FeatureExtractor, run: _Run, *, what: str
) -> NDArray[np.float32]:
    """Features [N, D] in the order of `indices`, on every rank; each rank computes its share."""
    communicator = run.communicator
    table = np.zeros((len(indices), extractor.num_features), dtype=np.float32)
    shares = batches(source, indices, batch=run.protocol.batch, rank=communicator.rank, size=communicator.size)
    for where, images in shares:
        table[where] = extract_features([images], extractor)
        communicator.progress.beat()
        if run.progress:
            run.progress(what, where.stop, len(indices))
    if communicator.size > 1:  # exact: a row is zero on all ranks but one
        table = communicator.sum_(torch.from_numpy(table).to(communicator.device)).cpu().numpy()
    return table


def _reported_name(metric: Metric, extractor: FeatureExtractor) -> str:
    """A `fid` over anything but the official Inception is reported under the name of what was used."""
    if isinstance(extractor, InceptionFeatures) and not extractor.official:
        return metric.name.replace('fid', f'fd_{extractor.name}_', 1)
    return metric.name


def write_results(path: str | os.PathLike[str], results: Sequence[dict[str, Any]]) -> None:
    """Append results to a JSON-lines file."""
    with open(path, 'a', encoding='utf-8') as handle:
        handle.write(''.join(json.dumps(result) + '\n' for result in results))
        handle.flush()
        os.fsync(handle.fileno())
