"""A panel a metric, a line a corruption: how values answer to growing corruptions, as a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

PANEL = (330, 230)
MARGIN = (52, 24, 12, 24)  # left, top, right, bottom
COLUMNS = 3
COLOURS = ('#1f5fbf', '#d9541e', '#2e8b3d', '#8b3fb0', '#b5872a', '#c2287a', '#1c9aa0', '#6b6b6b', '#202020')

Found = Mapping[str, Sequence[Mapping[str, Mapping[str, Any]]]]  # corruption -> a row a strength: metric -> result


def draw_panels(found: Found, strengths: Sequence[float], *, bold: Mapping[str, Sequence[str]]) -> bytes:
    """PNG bytes. Grey: the clean value's interval; thick lines: corruptions that `bold` lists the metric for."""
    from PIL import Image, ImageDraw

    metrics = list(next(iter(found.values()))[0])
    rows = -(-len(metrics) // COLUMNS)
    legend = 26
    image = Image.new('RGB', (COLUMNS * PANEL[0], rows * PANEL[1] + legend), 'white')
    draw = ImageDraw.Draw(image)
    for number, metric in enumerate(metrics):
        corner = (number % COLUMNS * PANEL[0], number // COLUMNS * PANEL[1])
        _panel(draw, corner, metric, found, strengths, bold)
    for number, corruption in enumerate(found):
        x = 10 + number * (COLUMNS * PANEL[0] - 10) // len(found)
        y = rows * PANEL[1] + 12
        draw.line([(x, y), (x + 16, y)], fill=COLOURS[number % len(COLOURS)], width=3)
        draw.text((x + 20, y - 6), corruption, fill='black')
    buffer = io.BytesIO()
    image.save(buffer, format='PNG', optimize=True)
    return buffer.getvalue()


def _panel(
    draw: Any,
    corner: tuple[int, int],
    metric: str,
    found: Found,
    strengths: Sequence[float],
    bold: Mapping[str, Sequence[str]],
) -> None:
    lines = {corruption: [float(row[metric]['value']) for row in rows] for corruption, rows in found.items()}
    interval = next(iter(found.values()))[0][metric]['interval'] or (lines[next(iter(lines))][0],) * 2
    values = [value for line in lines.values() for value in line] + list(interval)
    low, high = min(values), max(values)
    low, high = low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)
    left, top = corner[0] + MARGIN[0], corner[1] + MARGIN[1]
    right, bottom = corner[0] + PANEL[0] - MARGIN[2], corner[1] + PANEL[1] - MARGIN[3]

    def place(strength: float, value: float) -> tuple[float, float]:
        return left + (right - left) * strength / strengths[-1], bottom - (bottom - top) * (value - low) / (high - low)

    draw.rectangle([(left, place(0, interval[1])[1]), (right, place(0, interval[0])[1])], fill='#e4e4e4')
    for step in range(3):
        value = low + (high - low) * step / 2
        draw.line([place(0, value), place(strengths[-1], value)], fill='#cccccc')
        draw.text((corner[0] + 4, place(0, value)[1] - 6), f'{value:.3g}', fill='black')
    draw.text((left, corner[1] + 6), metric, fill='black')
    draw.text((left, bottom + 4), 'clean', fill='#555555')
    draw.text((right - 46, bottom + 4), 'strongest', fill='#555555')
    for number, (corruption, line) in enumerate(lines.items()):
        points = [place(strength, value) for strength, value in zip(strengths, line, strict=True)]
        draw.line(points, fill=COLOURS[number % len(COLOURS)], width=3 if metric in bold[corruption] else 1)
