"""Metrics of a snapshot, of another's generator or of a folder: what calc_metrics.py runs, on one rank or several."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

from applications.estimators.landmarks import LandmarkEstimator, LandmarkLocator
from applications.measured import load_adapter, open_images
from applications.preprocessing.detect import MediaPipeDetector
from dnnlib import UserError
from dnnlib.files import sha256_file
from metrics.adapter import Adapter, NetworkAdapter
from metrics.names import parse_metric
from metrics.protocol import Protocol
from metrics.registry import evaluate, write_results
from metrics.sources import DatasetImages
from metrics.tables import Progress
from torch_utils.distributed import Communicator
from torch_utils.precision import choose_precision
from training.checkpoint import load_generator
from training.dataset import HeadDataset
from training.head.model import HeadModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One run of calc_metrics.py; of network, adapter and images exactly one is given."""

    metrics: tuple[str, ...]
    protocol: Protocol
    network: str | None = None
    adapter: str | None = None  # FILE.py:CLASS
    images: str | None = None  # a packed dataset, or a folder of images without labels
    data: str | None = None  # None: what the network was trained on
    name: str | None = None  # of the row in reports; None: the file's
    mirror: bool | None = None  # None: as in training, else not
    head_model_path: str | None = None  # the user's FLAME file, for datasets of FLAME parameters
    out: str | None = None  # JSON lines to append to
    precision: str = 'fp32'  # of the network, by torch_utils.precision.choose_precision
    locate: bool = False  # find faces for estimators that crop, instead of trusting the cameras' framing
    show: Callable[[str], None] = print  # gets one line a result, on rank 0


def run_evaluation(evaluation: Evaluation, communicator: Communicator) -> None:
    """Measure, print a line a metric, append the results; every rank of `communicator` calls it."""
    if not evaluation.metrics:
        raise UserError('--metrics: names none; calc_metrics.py --help lists them')
    for name in evaluation.metrics:
        parse_metric(name)
    if evaluation.out and communicator.is_main:
        write_results(evaluation.out, [])  # not writable: known before the work, not after
    subject, dataset, facts = _opened(evaluation, communicator)
    protocol = _with_detector(evaluation, dataset)
    if evaluation.locate:
        facts['located'] = True
    if evaluation.name:
        facts['name'] = evaluation.name
    results = evaluate(
        evaluation.metrics,
        subject=subject,
        dataset=dataset,
        protocol=protocol,
        communicator=communicator,
        facts=facts,
        progress=progress_bar() if communicator.is_main and sys.stderr.isatty() else None,
    )
    if communicator.is_main:
        for result in results:
            evaluation.show(summary(result))
        if evaluation.out:
            write_results(evaluation.out, results)


def _with_detector(evaluation: Evaluation, dataset: HeadDataset | None) -> Protocol:
    """The protocol with what needs a face detector: the estimator 'landmarks', and crops by detected faces."""

    def landmarks(path: str) -> LandmarkEstimator:
        if dataset is None:
            raise UserError("--head-estimator=landmarks: fits a dataset's head model; give it by --data")
        return LandmarkEstimator(MediaPipeDetector(path or None), dataset.head_model)

    locator = LandmarkLocator(MediaPipeDetector(None)) if evaluation.locate else None
    return dataclasses.replace(evaluation.protocol, locator=locator, others={'landmarks': landmarks})


Opened = tuple[Adapter | DatasetImages, HeadDataset | None, dict[str, Any]]


def _opened(evaluation: Evaluation, communicator: Communicator) -> Opened:
    """What is measured, against what, and the facts about it that results carry."""
    device = communicator.device
    if evaluation.network:
        precision = choose_precision(evaluation.precision, device)
        loaded = load_generator(evaluation.network, device=device, precision=precision)
        path = evaluation.data or loaded.config.data
        if not path:
            raise UserError('--data: the network does not say what it was trained on; give a dataset')
        mirror = loaded.config.mirror if evaluation.mirror is None else evaluation.mirror
        dataset = HeadDataset(path, mirror=mirror, head_model=_head_model(evaluation, loaded.head_model_name))
        digest = sha256_file(evaluation.network)
        facts = {
            'network': evaluation.network,
            'network_hash': digest,
            'kimg': loaded.info.images_seen / 1000,
        }
        return NetworkAdapter(loaded.generator, content_hash=digest), dataset, facts
    given = None
    if evaluation.data:
        model = _head_model(evaluation, None)
        given = HeadDataset(evaluation.data, mirror=bool(evaluation.mirror), head_model=model)
    if evaluation.adapter:
        if given is None:
            raise UserError('--data: missing; cameras and heads are drawn from a dataset')
        return load_adapter(evaluation.adapter, device), given, {'adapter': evaluation.adapter}
    assert evaluation.images is not None
    images = open_images(evaluation.images, head_model=_head_model(evaluation, None))
    return DatasetImages(images, device=device), given, {'images': evaluation.images}


def _head_model(evaluation: Evaluation, name: str | None) -> HeadModel | None:
    if not evaluation.head_model_path:
        return None
    from training.head import load_head_model

    return load_head_model(name or 'flame', path=evaluation.head_model_path)


def summary(result: dict[str, Any]) -> str:
    """A result on one line."""
    text = f'{result["metric"]}: {result["value"]:.4f}'
    if result['interval']:
        text += f' [{result["interval"][0]:.4f}, {result["interval"][1]:.4f}]'
    if result['floor'] is not None:
        text += f', floor {result["floor"]:.4f}'
    real = f' against {result["num_real"]} real' if 'num_real' in result else ''
    return (
        f'{text}  ({result["num_generated"]} images{real}, seed {result["seed"]}, {result["precision"]}, '
        f'{result["estimator"] or "no estimator"}, {result["seconds"]:.0f} s)'
    )


def progress_bar() -> Progress:
    """A callback that keeps one line of progress on stderr."""

    def show(what: str, done: int, total: int) -> None:
        end = '\n' if done >= total else ''
        sys.stderr.write(f'\r{what}: {done}/{total}{end}')
        sys.stderr.flush()

    return show


def split_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """'a,b' or ['a', 'b'] -> ('a', 'b')."""
    parts = names.split(',') if isinstance(names, str) else list(names)
    return tuple(name.strip() for name in parts if name.strip())
