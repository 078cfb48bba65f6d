"""How to measure: everything that decides a value beside what is measured, and what one call shares."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from dnnlib import UserError
from metrics.adapter import Adapter
from metrics.names import Metric
from metrics.shots import plan
from metrics.sources import Dataset, DatasetImages, ShotImages, choose_indices, person_of_items
from metrics.tables import Workshop


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Seed, truncation, estimators, and where to keep what was computed."""

    seed: int = 0
    truncation_psi: float = 1.0
    truncation_cutoff: int | None = None
    batch: int = 16  # pictures at once on an accelerator
    cache_dir: str | os.PathLike[str] | None = None  # None: dnnlib.download.default_cache_dir()
    inception: str | None = None  # path or URL; None: the official URL
    inception_sha256: str | None = None  # None: the published one
    features: str | None = None  # for metrics that name no estimator; None: the official Inception
    head: str | None = None  # None: DECA
    identity: str | None = None  # None: ArcFace
    locator: Any = None  # finds faces for estimators that crop (metrics.estimators.crops.Locator)
    others: Any = None  # further head estimators by word (metrics.estimators.loading)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What is measured, against what, by whom."""

    subject: Adapter | DatasetImages
    dataset: Dataset | None  # real images, and what heads and cameras are drawn from
    protocol: Protocol
    workshop: Workshop

    def real(self, metric: Metric) -> Dataset:
        """The dataset, or one line that says that the metric needs it."""
        if self.dataset is None:
            raise UserError(f'metric {metric.name!r}: needs real images to compare with; give a dataset by --data')
        return self.dataset

    def pictures(self, metric: Metric) -> ShotImages | DatasetImages:
        """What the metric looks at: pictures made to its plan, or those of a folder that come closest to it."""
        if isinstance(self.subject, DatasetImages):
            return self._chosen(metric, self.subject)
        if metric.family.startswith('ppl') and not self.subject.mixes:
            raise UserError(f'metric {metric.name!r}: {self.subject.name} cannot mix latents (Adapter.mixes is False)')
        dataset, seed = self.real(metric), self.protocol.seed
        return ShotImages(
            self.subject,
            dataset,
            plan(metric, items=len(dataset), seed=seed),
            seed=seed,
            device=self.workshop.communicator.device,
            truncation_psi=self.truncation(metric),
            truncation_cutoff=self.protocol.truncation_cutoff,
        )

    def truncation(self, metric: Metric) -> float:
        """What the metric's definition prescribes, else the protocol's."""
        fixed = metric.rules.truncation_psi
        return self.protocol.truncation_psi if fixed is None else fixed

    def _chosen(self, metric: Metric, images: DatasetImages) -> DatasetImages:
        if metric.family in ('fid3d', 'ppl', 'ppl_z', 'flicker', 'id_crossview', 'id_own_shape'):
            raise UserError(f'metric {metric.name!r}: needs a generator; a folder holds no picture made to order')
        counts, kind = metric.counts, metric.rules.kind
        if kind in ('features', 'classes'):
            rows = choose_indices(len(images), counts[0], seed=self.protocol.seed)
        elif kind == 'identity':
            rows = pairs_of_persons(images.dataset, most=counts[0])
            if not rows:
                raise UserError(
                    f'{images.dataset.name}: no two images are known to show one person (identity_ids in head.npz); '
                    f'metric {metric.name!r} needs such pairs'
                )
        else:
            rows = images_of_persons(images.dataset, persons=counts[0], each=counts[1])
        return DatasetImages(images.dataset, device=images.device, rows=rows)


def images_of_persons(dataset: Dataset, *, persons: int, each: int) -> list[int]:
    """The first `each` items of the first `persons` persons, person by person."""
    by_person: dict[int, list[int]] = {}
    for row, person in enumerate(person_of_items(dataset, range(len(dataset)))):
        by_person.setdefault(person, []).append(row)
    return [row for rows in list(by_person.values())[:persons] for row in rows[:each]]


def pairs_of_persons(dataset: Dataset, *, most: int) -> list[int]:
    """The first two items of each person that has two, one pair after the other; empty where nobody is known."""
    if dataset.identities is None:
        return []
    first: dict[int, int] = {}
    pairs: list[int] = []
    done: set[int] = set()
    for row, person in enumerate(person_of_items(dataset, range(len(dataset)))):
        if person in done or len(pairs) == 2 * most:
            continue
        if person in first:
            pairs += [first[person], row]
            done.add(person)
        else:
            first[person] = row
    return pairs


def described(subject: Adapter | DatasetImages) -> dict[str, Any]:
    """A subject's own part of a result."""
    if isinstance(subject, DatasetImages):
        return {'subject': subject.dataset.name, 'subject_hash': subject.dataset.content_hash, 'precision': 'uint8'}
    return {
        'subject': subject.name,
        'subject_hash': subject.content_hash,
        'precision': subject.precision_name,
    }
