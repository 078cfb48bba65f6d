"""Warnings of a run: from the numbers of its ticks to a cause and a remedy.

Each `Check` is a rule on one number. It is raised after `ticks` ticks beyond `raise_at` and cleared after
`clear_ticks` ticks beyond `clear_at`; between the two levels nothing changes, so a warning does not flap. A `Watch`
keeps no state besides what follows from the records of the ticks: reading stats.jsonl again gives the same warnings,
which is how a resumed run and the report know them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from training.config import TrainConfig

Numbers = Mapping[str, float]
KIMG = 'Progress/kimg'
EXPRESSION_SHARE = 0.05  # of the run's length, before an ignored expression is a warning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """A rule on one number. The bad side is above raise_at if that is above clear_at, else below it."""

    name: str
    value: Callable[[Numbers], float | None]  # None: not known at this tick
    raise_at: float
    clear_at: float
    ticks: int = 1  # in a row, to be raised
    clear_ticks: int = 1  # in a row, to be cleared
    from_kimg: float = 0.0
    cause: str  # a format for {value}
    remedy: str

    def beyond(self, value: float, level: float) -> bool:
        """Whether `value` lies on the bad side of `level`."""
        return value > level if self.raise_at > self.clear_at else value < level


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """A warning that was raised or has cleared."""

    name: str
    kimg: float
    raised: bool
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f'warning: {self.cause}; {self.remedy}' if self.raised else f'cleared: {self.cause}'


class Watch:
    """The warnings of a run as its ticks go by."""

    def __init__(self, checks: Iterable[Check]) -> None:
        self.checks = tuple(checks)
        self.active: dict[str, Change] = {}
        self._in_row: dict[str, int] = {}

    def update(self, numbers: Numbers) -> list[Change]:
        """What one tick's numbers raise and clear; `numbers` by the names of stats.jsonl."""
        changes = []
        for check in self.checks:
            value = check.value(numbers)
            if value is None or not math.isfinite(value) or numbers.get(KIMG, 0.0) < check.from_kimg:
                continue
            active = check.name in self.active
            moved = not check.beyond(value, check.clear_at) if active else check.beyond(value, check.raise_at)
            count = self._in_row[check.name] = self._in_row.get(check.name, 0) + 1 if moved else 0
            if count < (check.clear_ticks if active else check.ticks):
                continue
            self._in_row[check.name] = 0
            changes.append(self._change(check, value, numbers.get(KIMG, 0.0), raised=not active))
        return changes

    def _change(self, check: Check, value: float, kimg: float, *, raised: bool) -> Change:
        cause = check.cause.format(value=value)
        change = Change(name=check.name, kimg=kimg, raised=raised, cause=cause, remedy=check.remedy)
        if raised:
            self.active[check.name] = change
        else:
            del self.active[check.name]
        return change


def means(record: Mapping[str, Any]) -> dict[str, float]:
    """A line of stats.jsonl as plain numbers: the mean where moments are stored."""
    numbers = {}
    for name, value in record.items():
        value = value.get('mean') if isinstance(value, Mapping) else value
        if isinstance(value, int | float):
            numbers[name] = float(value)
    return numbers


def non_finite(numbers: Numbers) -> float | None:
    """Share of steps that were skipped for non-finite gradients, at worst 1; 1 if a loss was not finite."""
    skipped = [value for name, value in numbers.items() if name.startswith('Gradient/') and name.endswith('/skipped')]
    losses = [value for name, value in numbers.items() if name.startswith('Loss/')]
    if any(not math.isfinite(value) for value in losses):
        return 1.0
    return max(skipped, default=None)


def _named(name: str) -> Callable[[Numbers], float | None]:
    return lambda numbers: numbers.get(name)


def _winning(numbers: Numbers) -> float | None:
    """The worse judged of reals and fakes: 1 when D is right about every image."""
    real, fake = numbers.get('Loss/signs/real'), numbers.get('Loss/signs/fake')
    return None if real is None or fake is None else min(real, -fake)


def _margin(numbers: Numbers) -> float | None:
    """0 when D judges reals and fakes alike, 1 when it is right about every image."""
    real, fake = numbers.get('Loss/signs/real'), numbers.get('Loss/signs/fake')
    return None if real is None or fake is None else (real - fake) / 2


def checks_for(config: TrainConfig) -> tuple[Check, ...]:
    """Every check, with what depends on the config filled in."""
    return (*_dataset_checks(), *_game_checks(config), *_generator_checks(config), _loading_check())


def _dataset_checks() -> tuple[Check, ...]:
    return (
        Check(
            name='constant cameras',
            value=_named('Dataset/camera_spread'),
            raise_at=1e-4,
            clear_at=1e-3,
            cause='all cameras of the dataset are the same (their numbers deviate by {value:.1e})',
            remedy='a 3D head cannot be learned from one view; check how the cameras were made (docs/conventions.md)',
        ),
        Check(
            name='constant heads',
            value=_named('Dataset/head_spread'),
            raise_at=1e-5,
            clear_at=1e-4,
            cause='all heads of the dataset are the same (vertices deviate by {value:.1e} m)',
            remedy='expressions cannot be learned; store the fitted head of each image (docs/datasets.md)',
        ),
        Check(
            name='head out of frame',
            value=_named('Dataset/out_of_frame'),
            raise_at=0.05,
            clear_at=0.02,
            cause='{value:.0%} of the heads lie outside their image',
            remedy='cameras and heads do not fit: check units (metres), frames and cropping with `dataset_tool.py '
            'validate` (docs/conventions.md)',
        ),
    )


def _game_checks(config: TrainConfig) -> tuple[Check, ...]:
    half_gamma = config.loss.r1_gamma / 2

    def weighted_r1(numbers: Numbers) -> float | None:
        penalty = numbers.get('Loss/D/r1')
        return None if penalty is None else penalty * half_gamma

    return (
        Check(
            name='D wins',
            value=_winning,
            raise_at=0.9,
            clear_at=0.8,
            ticks=4,
            cause='the discriminator is right about nearly every image (signs beyond {value:.2f} on both sides)',
            remedy='raise --gamma, use --aug=ada or more images, or lower --dlr',
        ),
        Check(
            name='D loses',
            value=_margin,
            raise_at=0.05,
            clear_at=0.15,
            ticks=8,
            cause='the discriminator cannot tell real from generated images (margin of signs {value:.2f}, chance is 0)',
            remedy='lower --gamma, raise --dlr or lower --glr; if it began with high learning rates, start from an '
            'earlier snapshot (--resume)',
        ),
        Check(
            name='R1 explodes',
            value=weighted_r1,
            raise_at=10.0,
            clear_at=3.0,
            cause='the R1 term is {value:.1f}, many times the adversarial loss',
            remedy='lower --dlr or --gamma, and use --precision=fp32',
        ),
        Check(
            name='non-finite',
            value=non_finite,
            raise_at=1e-9,
            clear_at=0.0,
            clear_ticks=4,
            cause='{value:.1%} of the steps of a phase were not finite',
            remedy='use --precision=fp32, lower --glr and --dlr, or raise --gamma; look for broken heads in the data',
        ),
    )


def _generator_checks(config: TrainConfig) -> tuple[Check, ...]:
    from_kimg = EXPRESSION_SHARE * config.kimg
    return (
        Check(
            name='alpha empty',
            value=_named('Monitor/alpha_front'),
            raise_at=0.01,
            clear_at=0.02,
            cause='the head covers {value:.1%} of the front plane',
            remedy='the mesh lies outside the planes or is too small: heads are in metres, in the head frame '
            '(docs/conventions.md)',
        ),
        Check(
            name='alpha full',
            value=_named('Monitor/alpha_front'),
            raise_at=0.9,
            clear_at=0.8,
            cause='the head covers {value:.0%} of the front plane',
            remedy='the mesh is too large: heads are in metres, not in millimetres (docs/conventions.md)',
        ),
        Check(
            name='expression ignored',
            value=_named('Monitor/mouth_response'),
            raise_at=0.15,
            clear_at=0.25,
            ticks=3,
            from_kimg=from_kimg,
            cause=f'after {from_kimg:.3g} kimg the mouth does not follow the jaw (mouth response {{value:.2f}}, '
            'the template has 1)',
            remedy='check that heads belong to their images and that --disc-template is not none; more varied '
            'expressions help (`dataset_tool.py rebalance`)',
        ),
        Check(
            name='w collapses',
            value=_named('Monitor/w_spread'),
            raise_at=0.02,
            clear_at=0.05,
            ticks=2,
            cause='the mapping network gives nearly the same w to every latent (relative spread {value:.3f})',
            remedy='all persons will look alike: start from an earlier snapshot (--resume) with a lower --glr',
        ),
    )


def _loading_check() -> Check:
    return Check(
        name='slow data',
        value=_named('Timing/data_share'),
        raise_at=0.3,
        clear_at=0.2,
        ticks=2,
        cause='{value:.0%} of the training time is spent waiting for images',
        remedy='raise --workers, or keep the dataset on a faster disk',
    )
