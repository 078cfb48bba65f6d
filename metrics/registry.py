"""The one function that measures: for the training loop, for calc_metrics.py, for generators and folders of others.

Names: metrics/names.py. Definitions and protocols: docs/metrics.md.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dnnlib import UserError
from metrics.adapter import Adapter
from metrics.estimators.inception import InceptionClasses, load_inception
from metrics.estimators.loading import load_features, load_head_estimator, load_identity_embedder
from metrics.measures import Outcome, measure
from metrics.names import Metric, is_official, parse_metric, reported_name
from metrics.protocol import Protocol, Run, described
from metrics.sources import Dataset, DatasetImages
from metrics.tables import Progress, Workshop
from torch_utils.distributed import Communicator


def load_estimator(metric: Metric, protocol: Protocol) -> Any:
    """What a metric looks through, on the CPU; None for one that needs nothing. UserError if it is not there.

    A word in the metric's name takes its path from the protocol's specification of that word: aed_emoca with
    head='emoca:weights.pt'.
    """
    kind = metric.rules.kind
    if kind == 'head':
        spec = _specification(metric.estimator, protocol.head, 'deca')
        return load_head_estimator(spec, locator=protocol.locator, others=protocol.others)
    if kind == 'identity':
        spec = _specification(metric.estimator, protocol.identity, 'arcface')
        return load_identity_embedder(spec, locator=protocol.locator)
    if kind is None:
        return None
    if kind == 'classes' and metric.estimator not in (None, 'inception'):
        raise UserError(f'metric {metric.name!r}: only the official Inception has classes; write is<N>[k]')
    spec = _specification(metric.estimator, protocol.features, 'inception')
    if kind == 'features' and spec != 'inception':
        return load_features(spec, sha256=protocol.inception_sha256, cache_dir=protocol.cache_dir)
    inception = load_inception(protocol.inception, sha256=protocol.inception_sha256, cache_dir=protocol.cache_dir)
    return InceptionClasses(inception) if kind == 'classes' else inception


def _specification(word: str | None, given: str | None, official: str) -> str:
    """What to load: the name's word, or what the protocol says, or the official one; a path goes with its word."""
    if word is None:
        return given or official
    return given if given and given.partition(':')[0] == word else word


def check_metrics(names: Sequence[str], protocol: Protocol) -> dict[str, Any]:
    """The estimator of each name. UserError for unknown names and for what is missing, before any work."""
    loaded: dict[tuple[str | None, str | None], Any] = {}
    found = {}
    for metric in [parse_metric(name) for name in names]:
        need = (metric.rules.kind, metric.estimator)
        if need not in loaded:
            loaded[need] = load_estimator(metric, protocol)
        found[metric.name] = loaded[need]
    return found


def evaluate(
    names: Sequence[str],
    *,
    subject: Adapter | DatasetImages,  # a generator, or a folder of images
    dataset: Dataset | None,
    protocol: Protocol,
    communicator: Communicator,
    facts: dict[str, Any] | None = None,  # copied into the results (network, kimg, ...)
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Measure `subject` against a dataset; JSON-able results, one a name (two for `pr`), the same on every rank.

    Collective: every rank of `communicator` calls it with the same arguments. UserError for unknown
    names (before any work), a missing estimator, or sizes and head models that do not fit.
    """
    metrics = [parse_metric(name) for name in names]
    estimators = check_metrics(names, protocol)
    placed = {id(it): it.to(communicator.device) for it in estimators.values() if it is not None}
    workshop = Workshop(
        communicator=communicator, batch=protocol.batch, cache_dir=protocol.cache_dir, progress=progress
    )
    run = Run(subject=subject, dataset=dataset, protocol=protocol, workshop=workshop)
    results = []
    for metric in metrics:
        started = time.perf_counter()
        estimator = placed.get(id(estimators[metric.name]))
        for outcome in measure(metric, estimator, run):
            result = _record(metric, outcome, estimator, run, facts or {})
            results.append({**result, 'seconds': round(time.perf_counter() - started, 2)})
    return results


def _record(metric: Metric, outcome: Outcome, estimator: Any, run: Run, facts: dict[str, Any]) -> dict[str, Any]:
    """An outcome with everything that decided it."""
    protocol, communicator, dataset = run.protocol, run.workshop.communicator, run.dataset
    counted = dataclasses.replace(metric, counts=outcome.counts)
    return {
        'metric': reported_name(counted, estimator) + outcome.part,
        'value': outcome.value,
        'interval': outcome.interval,
        'interval_method': outcome.method,
        'floor': outcome.floor,
        'floor_interval': outcome.floor_interval,
        'family': metric.family + outcome.part,
        'official': is_official(metric, estimator),
        'definition': metric.rules.value,
        'better': metric.rules.direction,
        'counts': outcome.counts,
        **outcome.details,
        **described(run.subject),
        **facts,
        'seed': protocol.seed,
        'truncation_psi': run.truncation(metric),
        'truncation_cutoff': protocol.truncation_cutoff,
        'batch': protocol.batch,
        'dataset': None if dataset is None else dataset.name,
        'dataset_images': None if dataset is None else len(dataset),
        'dataset_hash': None if dataset is None else dataset.content_hash,
        'estimator': None if estimator is None else estimator.name,
        'estimator_hash': None if estimator is None else estimator.content_hash,
        'estimator_licence': None if estimator is None else estimator.licence,
        'device': communicator.device.type,
        'ranks': communicator.size,
        'versions': {'python': platform.python_version(), 'torch': torch.__version__, 'numpy': np.__version__},
    }


def write_results(path: str | os.PathLike[str], results: Sequence[dict[str, Any]]) -> None:
    """Append results to a JSON-lines file."""
    with open(path, 'a', encoding='utf-8') as handle:
        handle.write(''.join(json.dumps(result) + '\n' for result in results))
        handle.flush()
        os.fsync(handle.fileno())
