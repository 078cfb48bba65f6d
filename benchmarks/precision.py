"""Does a 16-bit type keep the quality? Image PSNR against fp32, and training curves of both beside each other."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

if not __package__:  # started by its path: import from the root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import click

from dnnlib.cli import Group, parse_int_list
from dnnlib.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
TARGET_DB = 40.0
PEAK = 2.0  # images lie in [-1, 1]
CURVES = ('Loss/G/loss', 'Loss/D/loss')
YAWS = (0.0, 0.4)
NEUTRAL = 'neutral'


@click.group(cls=Group)
def main() -> None:
    """Compare bf16 and fp16 with fp32: `images` on a trained network, `curves` on finished runs."""


@main.command()
@click.option('--network', default=str(ROOT / 'assets' / 'synth64.pkl'), help='Snapshot. Default: the embedded one.')
@click.option('--seeds', default='0-3', show_default=True, help='Like 0,1,4-7.')
@click.option('--expressions', default='neutral,jawOpen,mouthSmileLeft', show_default=True, help='Names, or neutral.')
@click.option('--precision', default='bf16', show_default=True, help='Comma-separated: bf16, fp16.')
@click.option('--device', default='auto', show_default=True, help='auto, cpu, or a torch device name.')
def images(network: str, seeds: str, expressions: str, precision: str, device: str) -> None:
    """PSNR of each image against its fp32 twin: minimum and mean; exit status 1 below 40 dB."""
    numbers = parse_int_list(seeds, option='--seeds')
    names = [part.strip() for part in precision.split(',')]
    if not set(names) <= {'bf16', 'fp16'}:
        raise UserError(f'--precision: expected bf16, fp16 or both, got {precision!r}')
    sound = True
    for name in names:
        found = compare_images(network, numbers, expressions.split(','), name, device)
        values = list(found.values())
        worst = min(found, key=lambda case: found[case])
        sound &= min(values) >= TARGET_DB
        click.echo(
            f'{name}: {len(values)} images, min {min(values):.1f} dB ({worst}), '
            f'mean {statistics.fmean(values):.1f} dB, at least {TARGET_DB:g} dB: '
            f'{"met" if min(values) >= TARGET_DB else "missed"}'
        )
    raise SystemExit(0 if sound else 1)


def psnr(image: Sequence[float] | object, other: object) -> float:
    """Decibels between two images in [-1, 1]; infinite where they are equal."""
    import torch

    error = float((torch.as_tensor(image).double() - torch.as_tensor(other).double()).square().mean())
    return 10 * math.log10(PEAK**2 / error) if error > 0 else math.inf


def compare_images(
    network: str, seeds: Sequence[int], expressions: Sequence[str], precision: str, device: str
) -> dict[str, float]:
    """PSNR by case, over seeds x expressions x two cameras; images clamped to [-1, 1] as files are."""
    import torch

    from applications.samples import CameraRig, seed_z
    from benchmarks.subjects import precision_context
    from torch_utils.devices import choose_device
    from training.checkpoint import load_generator
    from training.head import load_head_model

    chosen = choose_device(device)
    loaded = load_generator(network, device=chosen)
    generator, model = loaded.generator, load_head_model(loaded.head_model_name)
    rig = CameraRig.of(loaded.config)
    found = {}
    for seed, expression, yaw in itertools.product(seeds, expressions, YAWS):
        params = model.neutral(1) if expression == NEUTRAL else model.named_expression(expression)
        head = model.forward(params).to(chosen)
        z, label = seed_z(seed, loaded.config.generator.z_dim).to(chosen), rig.front().to(chosen)
        camera = rig.labels(torch.tensor([yaw]), torch.zeros(1)).to(chosen)
        pictures = []
        for name in ('fp32', precision):
            with torch.no_grad(), precision_context(name, chosen):
                pictures.append(generator(z, label, head, camera=camera).image.float().clamp(-1, 1).cpu())
        found[f'seed {seed}, {expression}, yaw {yaw:g}'] = psnr(*pictures)
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """Mean and spread of one figure over the runs of one precision, at one position."""

    name: str
    kimg: float
    mean: float
    spread: float  # standard deviation over runs (n - 1)
    runs: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One figure of two sets of runs at the last position that all of them reached."""

    baseline: Curve
    other: Curve

    @property
    def margin(self) -> float:
        """What 95 % of differences of equal means stay below, by Welch's t test: few runs make it wide."""
        import scipy.stats

        sets = (self.baseline, self.other)
        parts = [curve.spread**2 / curve.runs for curve in sets]
        if sum(parts) == 0:
            return 0.0
        freedom = sum(parts) ** 2 / sum(p**2 / (curve.runs - 1) for p, curve in zip(parts, sets, strict=True))
        return float(scipy.stats.t.ppf(0.975, freedom)) * math.sqrt(sum(parts))

    @property
    def within_noise(self) -> bool:
        """Whether the means differ by no more than the margin."""
        return abs(self.other.mean - self.baseline.mean) <= self.margin

    def line(self) -> str:
        a, b = self.baseline, self.other
        verdict = 'within noise' if self.within_noise else 'DIFFERENT'
        return (
            f'{a.name:<28} kimg {a.kimg:8.2f}  {a.mean:9.4f} +- {a.spread:.4f} ({a.runs} runs)  '
            f'{b.mean:9.4f} +- {b.spread:.4f} ({b.runs} runs)  difference {b.mean - a.mean:+.4f}, '
            f'margin {self.margin:.4f}: {verdict}'
        )


@main.command()
@click.option('--baseline', 'baseline', multiple=True, required=True, metavar='RUN', help='fp32 run; at least twice.')
@click.option('--other', 'other', multiple=True, required=True, metavar='RUN', help='bf16 run; at least twice.')
@click.option('--window', type=click.FloatRange(0, 1), default=0.25, show_default=True, help='Share averaged, last.')
def curves(baseline: tuple[str, ...], other: tuple[str, ...], window: float) -> None:
    """Losses and metrics of runs that differ in seed and precision alone, at equal kimg; exit status 1 if they differ.

    A run is the folder of train.py. Losses are averaged over the last part (--window) of what all runs have seen;
    metrics are taken at the last position that all of them have. Two sets are within noise unless Welch's t test, with
    the spread over the runs of each set, tells them apart at 95 %.
    """
    if min(len(baseline), len(other)) < 2:
        raise UserError('--baseline, --other: give each at least twice (other seeds); one run has no spread')
    found = list(compare_runs(baseline, other, window=window))
    for one in found:
        click.echo(one.line())
    raise SystemExit(0 if all(one.within_noise for one in found) else 1)


def compare_runs(baseline: Sequence[str], other: Sequence[str], *, window: float) -> Iterator[Comparison]:
    """Comparisons of the losses, then of every metric that all runs have."""
    losses = {run: read_losses(Path(run)) for run in (*baseline, *other)}
    end = min(max(position for position, _ in rows) for rows in losses.values())
    start = end * (1 - window)

    def mean_of(run: str, name: str) -> float:
        values = [values[name] for kimg, values in losses[run] if start <= kimg <= end and name in values]
        if not values:
            raise UserError(f'{run}: stats.jsonl has no {name} between kimg {start:.2f} and {end:.2f}')
        return statistics.fmean(values)

    for name in CURVES:
        sets = [[mean_of(run, name) for run in runs] for runs in (baseline, other)]
        yield Comparison(baseline=_curve(name, end, sets[0]), other=_curve(name, end, sets[1]))
    metrics = {run: read_metrics(Path(run)) for run in (*baseline, *other)}
    for name in sorted(set.intersection(*(set(values) for values in metrics.values()))):
        common = set.intersection(*(set(values[name]) for values in metrics.values()))
        if common:
            last = max(common)
            sets = [[metrics[run][name][last] for run in runs] for runs in (baseline, other)]
            yield Comparison(baseline=_curve(name, last, sets[0]), other=_curve(name, last, sets[1]))


def _curve(name: str, kimg: float, values: Sequence[float]) -> Curve:
    return Curve(name=name, kimg=kimg, mean=statistics.fmean(values), spread=statistics.stdev(values), runs=len(values))


def read_losses(run: Path) -> list[tuple[float, dict[str, float]]]:
    """(kimg, means of the losses) of each tick of a run."""
    rows = [
        (
            float(record['Progress/kimg']),
            {name: float(record[name]['mean']) for name in CURVES if name in record},
        )
        for record in _records(run / 'stats.jsonl', 'Progress/kimg')
    ]
    if not rows:
        raise UserError(f'{run}: stats.jsonl is empty')
    return rows


def read_metrics(run: Path) -> Mapping[str, dict[float, float]]:
    """Metric -> value by kimg, from a run's metric-*.jsonl."""
    found: dict[str, dict[float, float]] = {}
    for path in sorted(run.glob('metric-*.jsonl')):
        for record in _records(path, 'metric', 'value', 'images_seen'):
            found.setdefault(str(record['metric']), {})[record['images_seen'] / 1000] = float(record['value'])
    return found


def _records(path: Path, *keys: str) -> list[dict]:
    """The lines of a JSON-lines file, which must all have `keys`."""
    try:
        records = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]
        missing = {key for record in records for key in keys if key not in record}
        if missing:
            raise ValueError(f'a line has no {", ".join(sorted(missing))}')
        return records
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: cannot be read ({error}); a run is the --outdir of train.py') from error


if __name__ == '__main__':
    main()
