"""Rows against ceilings, the release and the targets: all the arithmetic of a benchmark's results."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from benchmarks import ceilings
from benchmarks.release import TARGETS, Reference, Target, recorded, references, work
from benchmarks.timing import Measurement

NOT_MEASURED = 'not measured'
LEAST_GFLOP = 0.1  # below, arithmetic bounds nothing
UNITS = {
    'seconds': 'at most {:.4g} s',
    'ratio': '{:g}x',
    'ratio_without': '{:g}x w/o rasterizer',
    'fraction': '{:.0%} of ceiling',
    'floors': 'at most {:g} floors',
    'peak_share': 'at most {:.0%} of memory',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """A target and how it was met."""

    target: Target
    value: float | None  # None: not measured

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return self.value <= self.target.value if self.target.at_most else self.value >= self.target.value

    @property
    def closeness(self) -> float | None:
        """How much of the target is reached: 1 where it is met, 0.5 at half the wanted speed."""
        if self.value is None:
            return None
        share = self.target.value / self.value if self.target.at_most else self.value / self.target.value
        return min(share, 1.0)

    def __str__(self) -> str:
        wanted = f'{UNITS[self.target.kind].format(self.target.value)}'
        if self.closeness is None:
            return f'{wanted}: {NOT_MEASURED}'
        return f'{wanted}: {"met" if self.met else f"{self.closeness:.0%} of it"}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A measurement and all that it is compared with; None where it cannot be."""

    measured: Measurement
    gflop: float | None = None
    gflop_source: str = ''
    floor: float | None = None  # seconds at the ceilings
    fraction: float | None = None  # floor / seconds
    release: float | None = None  # seconds that the release would take here and now
    ratio: float | None = None  # release / seconds
    ratio_without: float | None = None  # of all but the release's rasterizer
    normalized_by: str = ''
    verdicts: tuple[Verdict, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the inverse is `row_from_dict`."""
        return dataclasses.asdict(self)


def row_from_dict(values: dict[str, Any]) -> Row:
    """A row of a JSON record."""
    verdicts = tuple(Verdict(target=Target(**one['target']), value=one['value']) for one in values['verdicts'])
    return Row(**{**values, 'measured': Measurement.from_dict(values['measured']), 'verdicts': verdicts})


def compare(measured: Measurement, *, rates: ceilings.Rates, full_size: bool) -> Row:
    """A row at the ceilings `rates` around it. Networks of another size have no recorded work and no release."""
    sized = full_size or measured.group in ('ops', 'processes')
    gflop, source, floor = _bounds(measured, rates) if sized else (None, '', None)
    reference = references().get((measured.group, measured.name)) if sized else None
    scale, by = (None, '') if reference is None else _scale(reference, rates)
    row = Row(measured=measured, gflop=gflop, gflop_source=source, floor=floor, normalized_by=by)
    if floor is not None:
        row = dataclasses.replace(row, fraction=floor / measured.median)
    if reference is not None and scale is not None:
        without = reference.without * scale
        release = reference.rasterizer + (reference.seconds - reference.rasterizer) * scale
        row = dataclasses.replace(
            row,
            release=release,
            ratio=release / measured.median,
            ratio_without=without / measured.median if reference.rasterizer and without > 0 else None,
        )
    return dataclasses.replace(row, verdicts=tuple(_verdicts(row)) if sized else ())


def _bounds(measured: Measurement, rates: ceilings.Rates) -> tuple[float | None, str, float | None]:
    """GFLOP, where that figure comes from, and the seconds of the floor."""
    if measured.bytes_moved is not None:
        speed = ceilings.bandwidth(rates)
        return None, '', None if speed is None else measured.bytes_moved / speed / 1e9
    name = 'training image' if (measured.group, measured.name) == ('training', 'image') else measured.name
    done = work().get(name) if measured.group in ('stages', 'training') else None
    if not done or sum(done.values()) < LEAST_GFLOP or measured.precision not in ceilings.DTYPE_NAMES:
        return None, '', None
    return sum(done.values()), 'counted', ceilings.floor_seconds(done, ceilings.bounds(rates), measured.precision)


def _scale(reference: Reference, rates: ceilings.Rates) -> tuple[float | None, str]:
    """By how much the release's times (without its rasterizer) change from its machine to this one, and by what."""
    if reference.scale == 'none':
        return 1.0, 'nothing'
    known = recorded()['ceilings']
    if reference.scale == 'bandwidth':
        there, here = ceilings.bandwidth(known), ceilings.bandwidth(rates)
        return (None, '') if there is None or here is None else (there / here, 'bandwidth')
    done = work()[reference.work]
    there, here = ceilings.floor_seconds(done, known, 'fp32'), ceilings.floor_seconds(done, rates, 'fp32')
    return (None, '') if there is None or here is None else (here / there, 'fp32 convolutions')


def _verdicts(row: Row) -> Iterator[Verdict]:
    measured = row.measured
    memory = (
        None if measured.peak_bytes is None else measured.peak_bytes / (recorded()['training_batch2_peak_mb'] * 1e6)
    )
    values = {
        'seconds': measured.median,
        'ratio': row.ratio,
        'ratio_without': row.ratio_without,
        'fraction': row.fraction,
        'floors': None if row.floor is None else measured.median / row.floor,
        'peak_share': memory,
    }
    for target in TARGETS:
        if (target.group, target.name) == (measured.group, measured.name) and target.precision in (
            '',
            measured.precision,
        ):
            yield Verdict(target=target, value=values[target.kind])
