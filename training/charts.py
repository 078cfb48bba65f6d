"""Line charts as inline SVG: axes, labels, a legend with the last values, and values under the pointer.

No scripts and no colours in the markup: series are told apart by the classes s0 to s9 of STYLE, which knows light and
dark, and by dashes for the runs that are compared.
"""

from __future__ import annotations

import dataclasses
import html
import math

Points = list[tuple[float, float]]
WIDTH, HEIGHT = 420, 210
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 36  # margins
MAX_POINTS = 240  # of a line; longer ones keep the lowest and highest value of each stretch
MAX_BANDS = 48  # places where the pointer shows values
STYLE = """
figure.chart{margin:0;min-width:0}
.chart figcaption{display:flex;flex-wrap:wrap;gap:.1rem .9rem;align-items:baseline;font-size:.8rem;color:var(--dim)}
.chart figcaption b{color:var(--ink);font-size:.95rem;flex-basis:100%}
.chart svg{width:100%;height:auto;display:block;margin-top:.3rem}
.chart text{font-size:12px;fill:var(--dim);font-variant-numeric:tabular-nums}
.chart .grid{stroke:var(--line);stroke-width:1}
.chart .axis{stroke:var(--dim);stroke-width:1}
.chart path{fill:none;stroke-width:1.5;stroke-linejoin:round;stroke-linecap:round}
.chart .dash{stroke-dasharray:5 4}.chart .dots{stroke-dasharray:1.5 4}
.chart .band{fill:transparent}.chart .band:hover{fill:var(--ink);fill-opacity:.07}
.chart .note{font-size:.8rem;color:var(--dim);margin:.2rem 0 0}
.key{display:inline-block;width:1.1rem;height:0;border-top:3px solid;margin-right:.35rem;vertical-align:.25em}
.key.dash{border-top-style:dashed}.key.dots{border-top-style:dotted}
"""
LIGHT = ('#2b6cb0', '#c2571a', '#2f855a', '#8a4fbf', '#b7791f', '#b83280', '#0987a0', '#4a5568', '#8d6e4f', '#5a5fcf')
DARK = ('#7ab8f5', '#f2a56b', '#7fcf9f', '#c3a0ee', '#e3c06a', '#f08cc0', '#66cfe0', '#b5bfcc', '#cdb08f', '#a3a8ff')
DASHES = ('', 'dash', 'dots')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """A line; the same number of compared runs has one name, one colour, and a `run` each."""

    name: str
    points: Points  # (x, y) with ascending x; a y that is not finite breaks the line
    color: int = 0
    run: int = 0

    @property
    def style(self) -> str:
        """CSS classes."""
        return f's{self.color % len(LIGHT)} {DASHES[self.run % len(DASHES)]}'.rstrip()


def palette(colors: tuple[str, ...]) -> str:
    """CSS rules for the colours of the series."""
    return ''.join(
        f'.chart path.s{index}{{stroke:{color}}}.key.s{index}{{color:{color}}}' for index, color in enumerate(colors)
    )


def line_chart(title: str, series: list[Series], *, x_label: str, log: bool = False, note: str = '') -> str:
    """A figure; empty text if no series has a finite value. `log`: logarithmic ordinate, without values <= 0."""
    drawn = [dataclasses.replace(line, points=_drawable(line.points, log=log)) for line in series]
    drawn = [line for line in drawn if any(math.isfinite(y) for _, y in line.points)]
    if not drawn:
        return ''
    everything = [(x, y) for line in drawn for x, y in line.points if math.isfinite(y)]
    scale = _Scale(everything, log=log)
    body = [_axes(scale, x_label)]
    body += [f'<path class="{line.style}" d="{_path(thin_out(line.points), scale)}"/>' for line in drawn]
    body.append(_bands(drawn, scale, x_label))
    keys = ''.join(
        f'<span><i class="key {lines[0].style}"></i>{html.escape(name)} '
        f'{" / ".join(format_number(_last(line.points)) for line in lines)}</span>'
        for name, lines in _by_name(drawn).items()
    )
    caption = f'<figcaption><b>{html.escape(title)}</b>{keys}</figcaption>'
    foot = f'<p class="note">{html.escape(note)}</p>' if note else ''
    return (
        f'<figure class="chart">{caption}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}">{"".join(body)}</svg>{foot}</figure>'
    )


def thin_out(points: Points, *, limit: int = MAX_POINTS) -> Points:
    """At most `limit` points: of each stretch the lowest and the highest, in their order, so that spikes stay."""
    if len(points) <= limit:
        return points
    kept: Points = []
    stretches = limit // 2
    for index in range(stretches):
        part = points[index * len(points) // stretches : (index + 1) * len(points) // stretches]
        finite = [i for i, (_, y) in enumerate(part) if math.isfinite(y)] or [0]
        ends = {min(finite, key=lambda i: part[i][1]), max(finite, key=lambda i: part[i][1])}
        kept += [part[i] for i in sorted(ends)]
    return kept


def ticks_between(low: float, high: float, *, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from `low` to `high`, about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def format_number(value: float) -> str:
    """Three significant digits; whole numbers up to a million in full."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or (abs(value) >= 1 and abs(value) < 1e6 and value == round(value)):
        return f'{value:,.0f}'
    if 1000 <= abs(value) < 1e6:
        return f'{value:,.0f}'
    return f'{value:.3g}'


class _Scale:
    """Data to picture."""

    def __init__(self, points: Points, *, log: bool) -> None:
        self.log = log
        xs, ys = [x for x, _ in points], [self._value(y) for _, y in points]
        self.x_low, self.x_high = _widened(min(xs), max(xs), share=0.0)
        self.y_low, self.y_high = _widened(min(ys), max(ys), share=0.06)

    def _value(self, y: float) -> float:
        return math.log10(y) if self.log else y

    def x(self, x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (x - self.x_low) / (self.x_high - self.x_low)

    def y(self, y: float) -> float:
        share = (self._value(y) - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def y_ticks(self) -> list[float]:
        if not self.log:
            return ticks_between(self.y_low, self.y_high)
        low, high = math.floor(self.y_low), math.ceil(self.y_high)
        factors = (1,) if high - low > 2 else (1, 2, 5)
        step = max(1, (high - low) // 6)
        values = [factor * 10.0**power for power in range(low, high + 1, step) for factor in factors]
        inside = [value for value in values if self.y_low <= math.log10(value) <= self.y_high]
        return inside if len(inside) > 1 else ticks_between(10**self.y_low, 10**self.y_high)


def _widened(low: float, high: float, *, share: float) -> tuple[float, float]:
    """A range with a margin; a single value gets room around it."""
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-12):
        room = abs(low) * 0.1
        return (low - room, high + room) if room else (low, 1.0)
    return low - (high - low) * share, high + (high - low) * share


def _by_name(series: list[Series]) -> dict[str, list[Series]]:
    """The same number of several runs together."""
    groups: dict[str, list[Series]] = {}
    for line in series:
        groups.setdefault(line.name, []).append(line)
    return groups


def _drawable(points: Points, *, log: bool) -> Points:
    return [(x, y if math.isfinite(y) and (y > 0 or not log) else math.nan) for x, y in points]


def _last(points: Points) -> float:
    return next(y for _, y in reversed(points) if math.isfinite(y))


def _path(points: Points, scale: _Scale) -> str:
    """Moves and lines; a lone point becomes a dot by its round cap."""
    commands, pen_down = [], False
    for index, (x, y) in enumerate(points):
        if not math.isfinite(y):
            pen_down = False
            continue
        alone = not pen_down and (index + 1 == len(points) or not math.isfinite(points[index + 1][1]))
        commands.append(f'{"L" if pen_down else "M"}{scale.x(x):.1f} {scale.y(y):.1f}' + ('h.01' if alone else ''))
        pen_down = True
    return ''.join(commands)


def _axes(scale: _Scale, x_label: str) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value in scale.y_ticks():
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{format_number(value)}</text>')
    for value in ticks_between(scale.x_low, scale.x_high, count=5):
        x = scale.x(value)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{format_number(value)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text x="{right}" y="{HEIGHT - 5}" text-anchor="end">{html.escape(x_label)}</text>')
    return ''.join(parts)


def _bands(series: list[Series], scale: _Scale, x_label: str) -> str:
    """Upright stripes that name the values below the pointer."""
    places = sorted({x for line in series for x, _ in line.points})
    if len(places) > MAX_BANDS:
        places = [places[index * len(places) // MAX_BANDS] for index in range(MAX_BANDS)]
    known = {name: [dict(line.points) for line in lines] for name, lines in _by_name(series).items()}
    edges = [scale.x(x) for x in places]
    parts = []
    for index, x in enumerate(places):
        left = LEFT if index == 0 else (edges[index - 1] + edges[index]) / 2
        right = WIDTH - RIGHT if index + 1 == len(places) else (edges[index] + edges[index + 1]) / 2
        lines = [
            f'{name} {" / ".join(format_number(values.get(x, math.nan)) for values in runs)}'
            for name, runs in known.items()
            if any(x in values for values in runs)
        ]
        text = html.escape('\n'.join([f'{x_label} {format_number(x)}', *lines]))
        parts.append(
            f'<rect class="band" x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"><title>{text}</title></rect>'
        )
    return ''.join(parts)
