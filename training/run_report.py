"""report.html: a run on one page that needs nothing but itself.

No script, no network, no other file: curves are inline SVG (training/charts.py), pictures are small JPEGs inside the
page. Its size stays under MAX_BYTES however long the run is: curves and tables are thinned out, pictures are few.
"""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnnlib.files import atomic_write
from training import charts
from training.charts import Series, format_number, line_chart
from training.config import PRESETS, TrainConfig, preset, to_dict
from training.health import Change
from training.report_layout import CHARTS, STYLE
from training.report_pictures import data_uri, few
from training.run_records import RunRecords, kimg_of, read_run

REPORT_FILE = 'report.html'
MAX_BYTES = 3_000_000
MAX_GRIDS = 8
MAX_ROWS = 10  # of a metric's table, and of sessions
MAX_CHANGES = 40
NO_NORMS = ('/skipped', '/scale')  # of what lies beside the gradients' norms
MAX_OTHER = 24  # charts of numbers that have no place of their own

HIDDEN = ('Progress/tick', 'Progress/kimg', 'Timing/total_sec', 'images_seen')


def write_report(folder: str | Path, *, compare: list[str] | None = None, target: str | Path | None = None) -> Path:
    """Make the report of a run's folder, beside other runs' curves if asked; returns where it lies.

    Atomic. UserError if a folder is no run's.
    """
    runs = [read_run(path) for path in (folder, *(compare or []))]
    path = Path(target) if target is not None else runs[0].path / REPORT_FILE
    page = make_page(runs)
    with atomic_write(path) as handle:
        handle.write(page.encode('utf-8'))
    return path


def make_page(runs: list[RunRecords]) -> str:
    """The page of the first run; the others appear in its curves and tables."""
    run = runs[0]
    names = _run_names(runs)
    sections = [
        _head(run),
        _warnings(run),
        _section('Metrics', _dashes(names) + _metrics(runs, names) if any(item.metrics for item in runs) else ''),
        _section('Samples', _pictures(run)),
        _section('Curves', _dashes(names) + _charts(runs)),
        _section('Settings', _cards([_settings(item, name) for item, name in zip(runs, names, strict=True)])),
        _section('Sessions', _sessions(run)),
        _other(runs),
    ]
    dark = f'@media(prefers-color-scheme:dark){{{charts.palette(charts.DARK)}}}'
    style = STYLE + charts.STYLE + charts.palette(charts.LIGHT) + dark
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{html.escape(names[0])}</title><style>{style}</style></head><body><main>'
        f'{"".join(sections)}</main></body></html>\n'
    )


def _section(title: str, body: str) -> str:
    return f'<section><h2>{title}</h2>{body}</section>' if body else ''


def _run_names(runs: list[RunRecords]) -> list[str]:
    """Folder names; with the parent's where two are the same."""
    names = [run.path.resolve().name for run in runs]
    return [
        name if names.count(name) == 1 else f'{run.path.resolve().parent.name}/{name}'
        for run, name in zip(runs, names, strict=True)
    ]


def _head(run: RunRecords) -> str:
    last = run.ticks[-1] if run.ticks else {}
    kimg, total = last.get('Progress/kimg', 0.0), run.options.get('kimg')
    share = min(kimg / total, 1.0) if isinstance(total, int | float) and total > 0 else 0.0
    of_total = f' of {format_number(total)}' if isinstance(total, int | float) else ''
    tiles = [('kimg', f'{format_number(kimg)}{of_total}')]
    for title, name, unit in (
        ('images a second', 'Timing/images_per_sec', ''),
        ('hours', 'Timing/total_sec', 'h'),
        ('CPU memory', 'Resources/cpu_gib', ' GiB'),
        ('GPU memory', 'Resources/gpu_gib', ' GiB'),
        ('mouth response', 'Monitor/mouth_response', ''),
    ):
        if name in last:
            value = last[name] / 3600 if unit == 'h' else last[name]
            tiles.append((title, format_number(value) + unit.removeprefix('h')))
    for name, records in run.metrics.items():
        best = _best(records)
        tiles.append((f'best {name}', f'{format_number(best["value"])} at kimg {format_number(kimg_of(best))}'))
    boxes = ''.join(f'<div class="tile"><span>{html.escape(a)}</span><b>{html.escape(b)}</b></div>' for a, b in tiles)
    preset_name = html.escape(str(run.options.get('preset', 'unknown preset')))
    data = html.escape(Path(str(run.options.get('data', ''))).name)
    return (
        f'<h1>{html.escape(run.path.resolve().name)}</h1><p class="sub">{preset_name} on {data or "unknown data"}, '
        f'written {time.strftime("%Y-%m-%d %H:%M")}</p><div class="bar"><i style="width:{share:.1%}"></i></div>'
        f'<div class="tiles">{boxes}</div>'
    )


def _warnings(run: RunRecords) -> str:
    active, changes = run.warnings()
    if not run.ticks:
        return _section('Warnings', '<p>Nothing was recorded yet.</p>')
    body = ''.join(
        f'<div class="warning"><b>{html.escape(change.name)}</b> since kimg {format_number(change.kimg)}: '
        f'{html.escape(change.cause)}.<br>Remedy: {html.escape(change.remedy)}.</div>'
        for change in active
    )
    return _section('Warnings', (body or '<p class="fine">None at the last tick.</p>') + _history(changes))


def _history(changes: list[Change]) -> str:
    if not changes:
        return ''
    rows = [(format_number(change.kimg), 'raised' if change.raised else 'cleared', change.cause) for change in changes]
    left_out = len(rows) - MAX_CHANGES
    more = f'<p class="sub">The last {MAX_CHANGES} of {len(rows)}.</p>' if left_out > 0 else ''
    table = _table(('kimg', '', 'what'), rows[-MAX_CHANGES:])
    return f'<details><summary>All that was raised and cleared</summary>{more}{table}</details>'


def _best(records: list[dict[str, Any]]) -> dict[str, Any]:
    """All of our metrics are distances: lower is better."""
    return min(records, key=lambda record: record['value'])


def _metrics(runs: list[RunRecords], names: list[str]) -> str:
    """A metric's curve, then its table in each run."""
    cards = []
    for metric in sorted({metric for run in runs for metric in run.metrics}):
        series = []
        for number, run in enumerate(runs):
            points = [(kimg_of(record), float(record['value'])) for record in run.metrics.get(metric, [])]
            series.append(Series(name=metric, points=points, run=number))
        cards.append(line_chart(metric, series, x_label='kimg', note='Lower is better.'))
        for run, name in zip(runs, names, strict=True):
            if metric in run.metrics:
                table = _metric_table(run.metrics[metric])
                cards.append(f'<div class="sub">{html.escape(name)}, {html.escape(metric)}</div>{table}')
    return _cards(cards)


def _metric_table(records: list[dict[str, Any]]) -> str:
    best = _best(records)
    shown = few(records, MAX_ROWS)
    if best not in shown:
        shown = sorted([*shown, best], key=kimg_of)
    rows = [
        (format_number(kimg_of(record)), f'{record["value"]:.4f}', str(record.get('snapshot', ''))) for record in shown
    ]
    return _table(('kimg', 'value', 'snapshot'), rows, best=shown.index(best))


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, best: int | None = None) -> str:
    head = ''.join(f'<th>{html.escape(cell)}</th>' for cell in header)
    body = ''.join(
        f'<tr{" class=best" if index == best else ""}>{"".join(f"<td>{html.escape(cell)}</td>" for cell in row)}</tr>'
        for index, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _dashes(names: list[str]) -> str:
    """Which run has which line, if there are several."""
    if len(names) == 1:
        return ''
    keys = (
        f'<i class="key {charts.DASHES[index % len(charts.DASHES)]}"></i>{html.escape(name)}'
        for index, name in enumerate(names)
    )
    return f'<p class="sub chart">{" &nbsp; ".join(keys)}</p>'


def _chart(runs: list[RunRecords], title: str, wanted: tuple[str, ...], *, log: bool, note: str) -> str:
    """One figure of the numbers `wanted` of all runs."""
    prefix = wanted[0] if wanted[0].endswith('/') else None
    series = []
    for number, run in enumerate(runs):
        found = run.names(prefix) if prefix else wanted
        lasts = [name.rpartition('/')[2] for name in wanted]
        for color, name in enumerate(name for name in found if not name.endswith(NO_NORMS)):
            alike = not prefix and lasts.count(name.rpartition('/')[2]) > 1
            label = ' '.join(name.split('/')[-2 if alike else -1 :]).replace('_', ' ')
            series.append(Series(name=label, points=run.series(name), color=color, run=number))
    return line_chart(title, series, x_label='kimg', log=log, note=note)


def _charts(runs: list[RunRecords]) -> str:
    figures = [_chart(runs, title, wanted, log=log, note=note) for title, wanted, log, note in CHARTS]
    return _cards(figures)


def _other(runs: list[RunRecords]) -> str:
    """Numbers that have no chart above, folded away."""
    shown = {name for _, wanted, _, _ in CHARTS for name in wanted}
    prefixes = tuple(name for name in shown if name.endswith('/'))
    rest = [
        name
        for name in runs[0].names('')
        if name not in shown and name not in HIDDEN and not name.startswith(('Dataset/', *prefixes))
    ]
    figures = [_chart(runs, name, (name,), log=False, note='') for name in rest[:MAX_OTHER]]
    cards = _cards(figures)
    return f'<details><summary>Other numbers</summary>{cards}</details>' if cards else ''


def _cards(figures: list[str]) -> str:
    cards = ''.join(f'<div class="card">{figure}</div>' for figure in figures if figure)
    return f'<div class="charts">{cards}</div>' if cards else ''


def _pictures(run: RunRecords) -> str:
    named = [(f'kimg {kimg}', path) for kimg, path in few(run.grids, MAX_GRIDS)]
    if run.reals is not None:
        named.append(('real images', run.reals))
    figures = [
        f'<figure><img alt="{caption}" src="{uri}"><figcaption>{caption}</figcaption></figure>'
        for caption, path in named
        if (uri := data_uri(path))
    ]
    note = '<p class="sub">Rows: image, raw image, depth, template.</p>' if run.grids else ''
    return f'{note}<div class="pictures">{"".join(figures)}</div>' if figures else ''


def _settings(run: RunRecords, name: str) -> str:
    """What differs from the preset, then everything."""
    chosen = str(run.options.get('preset'))
    known = chosen in PRESETS
    usual = _flat(to_dict(preset(chosen) if known else TrainConfig()))
    rows = [
        (key, _text(usual.get(key)), _text(value))
        for key, value in _flat(run.options).items()
        if usual.get(key) != value
    ]
    if not run.options:
        return ''
    origin = html.escape(chosen) if known else 'default'
    table = _table(('setting', origin, name), rows) if rows else f'<p>All as in {origin}.</p>'
    everything = _table(('setting', 'value'), [(key, _text(value)) for key, value in _flat(run.options).items()])
    return f'{table}<details><summary>All settings</summary>{everything}</details>'


def _flat(values: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """Nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f'{prefix}{key}.') if isinstance(value, dict) else {f'{prefix}{key}': value}
    return flat


def _text(value: Any) -> str:
    return '–' if value is None else ', '.join(map(str, value)) if isinstance(value, list) else str(value)


def _sessions(run: RunRecords) -> str:
    """When and where the run was started and went on."""
    if not run.sessions:
        return ''
    sessions = run.sessions[-MAX_ROWS:]
    columns = [key for key in dict.fromkeys(key for item in sessions for key in item) if key != 'images_seen']
    rows = [(format_number(kimg_of(item)), *(_text(item.get(key)) for key in columns)) for item in sessions]
    return f'<div class="card">{_table(("from kimg", *columns), rows)}</div>'
