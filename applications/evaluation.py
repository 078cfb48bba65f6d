"""Metrics of a snapshot against a dataset: what calc_metrics.py runs, on one rank or several."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence

from dnnlib import UserError
from dnnlib.files import sha256_file
from metrics.registry import Progress, Protocol, evaluate, parse_metric, write_results
from torch_utils.distributed import Communicator
from torch_utils.precision import choose_precision
from training.checkpoint import load_generator
from training.dataset import HeadDataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One run of calc_metrics.py."""

    network: str
    metrics: tuple[str, ...]
    protocol: Protocol
    data: str | None = None  # None: what the network was trained on
    mirror: bool | None = None  # None: as in training
    head_model_path: str | None = None  # the user's FLAME file, for datasets of FLAME parameters
    out: str | None = None  # JSON lines to append to
    precision: str = 'fp32'  # of the generator, by torch_utils.precision.choose_precision
    show: Callable[[str], None] = print  # gets one line a result, on rank 0


def run_evaluation(evaluation: Evaluation, communicator: Communicator) -> None:
    """Measure, print a line a metric, append the results; every rank of `communicator` calls it."""
    for name in evaluation.metrics:
        parse_metric(name)
    if evaluation.out and communicator.is_main:
        write_results(evaluation.out, [])  # not writable: known before the work, not after
    precision = choose_precision(evaluation.precision, communicator.device)
    loaded = load_generator(evaluation.network, device=communicator.device, precision=precision)
    path = evaluation.data or loaded.config.data
    if not path:
        raise UserError('--data: the network does not say what it was trained on; give a dataset')
    head_model = None
    if evaluation.head_model_path:
        from training.head import load_head_model

        head_model = load_head_model(loaded.head_model_name, path=evaluation.head_model_path)
    mirror = loaded.config.mirror if evaluation.mirror is None else evaluation.mirror
    dataset = HeadDataset(path, mirror=mirror, head_model=head_model)
    subject = {
        'network': evaluation.network,
        'network_hash': sha256_file(evaluation.network),
        'kimg': loaded.info.images_seen / 1000,
    }
    results = evaluate(
        evaluation.metrics,
        generator=loaded.generator,
        dataset=dataset,
        protocol=evaluation.protocol,
        communicator=communicator,
        subject=subject,
        progress=progress_bar() if communicator.is_main and sys.stderr.isatty() else None,
    )
    if communicator.is_main:
        for result in results:
            evaluation.show(
                f'{result["metric"]}: {result["value"]:.4f}  ({result["num_generated"]} generated against '
                f'{result["num_real"]} real, seed {result["seed"]}, {result["precision"]}, {result["extractor"]}, '
                f'{result["seconds"]:.0f} s)'
            )
        if evaluation.out:
            write_results(evaluation.out, results)


def progress_bar() -> Progress:
    """A callback that keeps one line of progress on stderr."""

    def show(what: str, done: int, total: int) -> None:
        end = '\n' if done >= total else ''
        sys.stderr.write(f'\r{what} images: {done}/{total}{end}')
        sys.stderr.flush()

    return show


def split_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """'a,b' or ['a', 'b'] -> ('a', 'b')."""
    parts = names.split(',') if isinstance(names, str) else list(names)
    return tuple(name.strip() for name in parts if name.strip())
