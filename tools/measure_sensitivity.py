"""Do the metrics measure what they are named after? A perfect generator, made wrong in one respect at a time.

    python -m tools.measure_sensitivity --data=data/synth64.zip --out=docs/images/metric_sensitivity.png

The synthetic renderer plays the generator (applications/synthetic_adapter.py). Each corruption is applied at growing
strengths; a metric that should notice must move steadily, one that should not must stay within its interval.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from applications.synthetic_adapter import SyntheticAdapter, View
from dnnlib.cli import Command
from dnnlib.errors import UserError
from metrics.adapter import Adapter, Request
from tools.draw_sensitivity import draw_panels
from torch_utils.rotations import axis_angle_matrix

METRICS = {
    'fid': 'fid_synth{images}_full',
    'aed': 'aed_synth{persons}x{each}',
    'jaw': 'jaw_synth{persons}x{each}',
    'response': 'expression_response_synth{persons}x{each}',
    'apd': 'apd_synth{persons}x{each}',
    'apd*': 'apd_no_roll_synth{persons}x{each}',
    'gaze': 'gaze_synth{persons}x{each}',
    'id': 'id_synth{pairs}',
    'flicker': 'flicker{clips}x6',
}
# Corruption -> metrics that must notice it.
MUST_NOTICE = {
    'blur': ('fid',),
    'colour': ('fid',),
    'identity swap': ('id',),
    'expression offset': ('aed',),
    'expression loss': ('response', 'aed'),
    'frozen mouth': ('jaw',),
    'roll': ('apd',),
    'gaze offset': ('gaze',),
    'shaking': ('flicker',),
}
# ... and metrics that must not, by their definition.
MUST_IGNORE = {
    'identity swap': ('aed', 'apd', 'gaze'),
    'expression offset': ('apd', 'gaze', 'id'),
    'roll': ('apd*', 'gaze'),
    'gaze offset': ('apd', 'apd*', 'jaw', 'id'),
    'frozen mouth': ('apd*', 'gaze', 'id'),
}
STRENGTHS = (0.0, 1 / 3, 2 / 3, 1.0)


def blurred(images: Tensor, strength: float) -> Tensor:
    """Gaussian blur of up to 3 % of the side."""
    sigma = 0.03 * images.shape[3] * strength
    reach = int(3 * sigma) + 1
    taps = torch.exp(-((torch.arange(-reach, reach + 1.0) / sigma) ** 2) / 2)
    taps = (taps / taps.sum()).repeat(3, 1, 1, 1)
    padded = torch.nn.functional.pad(images.float(), (reach,) * 4, mode='reflect')
    rows = torch.nn.functional.conv2d(padded, taps, groups=3)
    return torch.nn.functional.conv2d(rows, taps.transpose(2, 3), groups=3).round().byte()


def tinted(images: Tensor, strength: float) -> Tensor:
    """Red up and blue down by up to 25 %."""
    gains = torch.tensor([1 + 0.25 * strength, 1.0, 1 - 0.25 * strength])[:, None, None]
    return (images.float() * gains).round().clamp(0, 255).byte()


def shaken(images: Tensor, strength: float, scenes: list[int], heads: Tensor) -> Tensor:
    """Brightness that jumps by up to 20 levels from one head pose to the next."""
    signs = torch.sign(torch.sin(1e4 * heads.double().sum(dim=1))).float()
    return (images.float() + 20 * strength * signs[:, None, None, None]).round().clamp(0, 255).byte()


def swapped(view: View, strength: float) -> View:
    """Another person in that share of the pictures."""
    share = (view.scene * 0.6180339887) % 1
    return dataclasses.replace(view, person=view.person + 1 + view.scene) if share < strength else view


def grinning(view: View, strength: float) -> View:
    """The same smile and raised brows on top of every expression."""
    from training.head.makehuman import embedded_head

    head = embedded_head()
    extra = sum(head.named_expression(name).expression for name in _GRIN)
    return _with(view, expression=view.head.expression + strength * extra)


_GRIN = ('mouthSmileLeft', 'mouthSmileRight', 'browInnerUp', 'browOuterUpLeft', 'browOuterUpRight')


def weakened(view: View, strength: float) -> View:
    """All expression coefficients shrink towards neutral."""
    return _with(view, expression=(1 - strength) * view.head.expression)


def closed(view: View, strength: float) -> View:
    """The jaw opens less and less, in the end not at all."""
    return _with(view, jaw=(1 - strength) * view.head.jaw)


def rolled(view: View, strength: float) -> View:
    """The camera turns about its axis by up to 0.3 radians."""
    turn = torch.eye(4)
    turn[:3, :3] = axis_angle_matrix(torch.tensor([0.0, 0.0, 0.3 * strength]))
    label = view.label.clone()
    label[:16] = (label[:16].view(4, 4) @ turn).flatten()
    return dataclasses.replace(view, label=label)


def looking_aside(view: View, strength: float) -> View:
    """Both eyes turn to one side by up to 0.5 radians."""
    turn = torch.tensor([0.0, 0.5 * strength, 0.0])
    return _with(view, eyes=view.head.eyes + torch.cat([turn, turn]))


def _with(view: View, **fields: Tensor) -> View:
    return dataclasses.replace(view, head=view.head.replace(**fields))


OF_VIEWS: dict[str, Callable[[View, float], View]] = {
    'identity swap': swapped,
    'expression offset': grinning,
    'expression loss': weakened,
    'frozen mouth': closed,
    'roll': rolled,
    'gaze offset': looking_aside,
}
OF_IMAGES: dict[str, Callable[[Tensor, float], Tensor]] = {'blur': blurred, 'colour': tinted}


class Wrong(Adapter):
    """The renderer with one corruption; clean pictures are rendered once for all that change pixels alone."""

    name = 'corrupted renderer'

    def __init__(
        self, renderer: SyntheticAdapter, corruption: str, strength: float, *, clean: dict[str, Tensor]
    ) -> None:
        self.renderer = renderer
        self.resolution = renderer.resolution
        self.corruption = corruption
        self.strength = strength
        self.clean = clean

    def images(self, request: Request) -> Tensor:
        """See Adapter.images."""
        change = OF_VIEWS.get(self.corruption)
        if change is not None and self.strength > 0:
            self.renderer.change = lambda view: change(view, self.strength)
            try:
                return self.renderer.images(request)
            finally:
                self.renderer.change = None
        images = self._clean(request)
        if self.strength == 0:
            return images
        if self.corruption == 'shaking':
            return shaken(images, self.strength, request.scene, request.params.expression)
        return OF_IMAGES[self.corruption](images, self.strength)

    def _clean(self, request: Request) -> Tensor:
        key = json.dumps([request.seeds, request.scene, request.camera.tolist(), request.params.jaw.tolist()])
        if key not in self.clean:
            self.clean[key] = self.renderer.images(request)
        return self.clean[key]


Rows = list[dict[str, Any]]


def measure_all(
    dataset: Any,
    *,
    counts: dict[str, int],
    corruptions: list[str],
    metrics: Sequence[str] = tuple(METRICS),
    report: Callable[[str], None],
    found: dict[str, Rows] | None = None,
) -> Iterator[dict[str, Rows]]:
    """Corruption -> one row a strength: {metric: result}, the first without any corruption.

    Yields what there is after each corruption; those in `found` are taken from there.
    """
    from metrics.protocol import Protocol
    from metrics.registry import evaluate
    from torch_utils.distributed import Communicator

    renderer = SyntheticAdapter(torch.device('cpu'), resolution=dataset.resolution)
    clean: dict[str, Tensor] = {}
    names = {short: METRICS[short].format(**counts) for short in metrics}
    found = dict(found or {})
    untouched = next((rows[0] for rows in found.values()), None)
    for corruption in corruptions:
        if corruption in found:
            continue
        rows: Rows = []
        for strength in STRENGTHS:
            if strength == 0 and untouched is not None:
                rows.append(untouched)
                continue
            results = evaluate(
                list(names.values()),
                subject=Wrong(renderer, corruption, strength, clean=clean),
                dataset=dataset,
                protocol=Protocol(),
                communicator=Communicator(torch.device('cpu')),
            )
            row = dict(zip(names, results, strict=True))
            untouched = untouched or row
            rows.append(row)
            values = ', '.join(f'{short} {result["value"]:.4g}' for short, result in row.items())
            report(f'{corruption} {strength:.2f}: {values}')
        found[corruption] = rows
        yield found


def judged(corruption: str, metric: str, rows: list[dict[str, Any]]) -> str:
    """'notices', 'ignores', or '' for what neither is demanded; an exclamation mark where it does not hold."""
    values = [row[metric]['value'] for row in rows]
    worse = [-value for value in values] if rows[0][metric]['better'] in ('higher', 'one') else values
    if metric in MUST_NOTICE[corruption]:
        return 'notices' if all(a < b for a, b in zip(worse, worse[1:], strict=False)) else 'notices not steadily!'
    if metric in MUST_IGNORE.get(corruption, ()):
        low, high = rows[0][metric]['interval']
        margin = high - low
        return 'ignores' if low - margin <= values[-1] <= high + margin else 'moves!'
    return ''


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a row a corruption, each cell from clean to fully corrupted."""
    lines = ['| corruption | ' + ' | '.join(METRICS) + ' |', '|---' * (len(METRICS) + 1) + '|']
    for corruption, rows in found.items():
        cells = []
        for metric in METRICS:
            first, last = rows[0][metric]['value'], rows[-1][metric]['value']
            verdict = judged(corruption, metric, rows)
            text = f'{first:.3g} → {last:.3g}'
            cells.append(f'**{text}**' if verdict == 'notices' else f'{text} ({verdict})' if verdict else text)
        lines.append(f'| {corruption} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


@click.command(cls=Command)
@click.option('--data', required=True, help='Packed synthetic dataset: real images, cameras and heads.')
@click.option('--out', required=True, help='Picture to write; the numbers go beside it as .json, the table to stdout.')
@click.option('--images', default=128, show_default=True, help='Images of the Frechet distance.')
@click.option('--persons', default=16, show_default=True, help='Identities that are animated.')
@click.option('--each', default=4, show_default=True, help='Images of each.')
@click.option('--pairs', default=32, show_default=True, help='Image pairs of id.')
@click.option('--clips', default=4, show_default=True, help='Clips of flicker.')
@click.option('--only', help='Comma-separated corruptions. Default: all.')
def main(data: str, out: str, only: str | None, **counts: int) -> None:
    """Measure how each metric answers to each corruption; print the table, draw the picture.

    What the .json beside the picture holds from the same settings is not measured again.
    """
    from dnnlib.files import atomic_write
    from metrics.estimators.embedded import EmbeddedFeatures
    from training.dataset import HeadDataset

    chosen = only.split(',') if only else list(MUST_NOTICE)
    unknown = [name for name in chosen if name not in MUST_NOTICE]
    if unknown:
        raise click.UsageError(f'--only: unknown {", ".join(unknown)}; expected {", ".join(MUST_NOTICE)}')
    dataset, path = HeadDataset(data), Path(out).with_suffix('.json')
    made_with = {'counts': counts, 'data': dataset.content_hash, 'estimator': EmbeddedFeatures().content_hash}
    found = read_earlier(path, made_with)
    options: dict[str, Any] = {
        'counts': counts,
        'corruptions': chosen,
        'report': lambda text: click.echo(text, err=True),
    }
    for so_far in measure_all(dataset, found=found, **options):
        found = so_far
        with atomic_write(path) as handle:
            handle.write(json.dumps({'made_with': made_with, 'found': found}, indent=1).encode())
    found = {name: found[name] for name in MUST_NOTICE if name in found}
    with atomic_write(out) as handle:
        handle.write(draw_panels(found, STRENGTHS, bold=MUST_NOTICE))
    click.echo(table(found))


def read_earlier(path: Path, made_with: dict[str, Any]) -> dict[str, Rows]:
    """What an earlier or interrupted run of the same settings has measured."""
    if not path.is_file():
        return {}
    try:
        earlier = json.loads(path.read_text(encoding='utf-8'))
        return earlier['found'] if earlier['made_with'] == made_with else {}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f'{path}: not written by this tool; move it away') from error


if __name__ == '__main__':
    main()
