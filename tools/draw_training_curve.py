"""Draw a metric over training as a PNG, from the metric-*.jsonl of one or more runs.

python -m tools.draw_training_curve runs/synth64/metric-fd_random500_full.jsonl docs/images/synth64_curve.png
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import click

from dnnlib.cli import Command
from dnnlib.errors import UserError
from dnnlib.files import atomic_write

SIZE = (720, 400)
MARGIN = (70, 20, 20, 50)  # left, top, right, bottom


def read_points(path: str) -> tuple[str, list[tuple[float, float]]]:
    """Metric name and (kimg, value) in the order of the file."""
    try:
        rows = [json.loads(line) for line in Path(path).read_text(encoding='utf-8').splitlines() if line.strip()]
        points = [(float(row['kimg']), float(row['value'])) for row in rows]
        name = str(rows[0]['metric'])
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f'{path}: expected JSON lines with metric, kimg and value ({error})') from error
    return name, points


def draw_curve(name: str, points: list[tuple[float, float]]) -> bytes:
    """A line plot as PNG bytes; both axes start at zero."""
    from PIL import Image, ImageDraw

    image = Image.new('RGB', SIZE, 'white')
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = MARGIN[0], MARGIN[1], SIZE[0] - MARGIN[2], SIZE[1] - MARGIN[3]
    x_max, y_max = max(x for x, _ in points) * 1.05, max(y for _, y in points) * 1.1

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / x_max, bottom - (bottom - top) * y / y_max

    for step in range(6):
        x, y = x_max * step / 5, y_max * step / 5
        draw.line([place(0, y), place(x_max, y)], fill='#dddddd')
        draw.text((8, place(0, y)[1] - 6), f'{y:.2f}', fill='black')
        draw.text((place(x, 0)[0] - 10, bottom + 8), f'{x:.1f}', fill='black')
    draw.line([(left, top), (left, bottom), (right, bottom)], fill='black')
    draw.text(((left + right) / 2 - 60, SIZE[1] - 20), 'kimg (thousand real images)', fill='black')
    draw.text((left + 8, top), name, fill='black')
    draw.line([place(*point) for point in points], fill='#1f5fbf', width=2)
    for point in points:
        x, y = place(*point)
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill='#1f5fbf')
    buffer = io.BytesIO()
    image.save(buffer, format='PNG', optimize=True)
    return buffer.getvalue()


@click.command(cls=Command)
@click.argument('metric_file')
@click.argument('target')
def main(metric_file: str, target: str) -> None:
    """Plot METRIC_FILE (JSON lines) over kimg into TARGET (PNG)."""
    name, points = read_points(metric_file)
    with atomic_write(target) as handle:
        handle.write(draw_curve(name, points))


if __name__ == '__main__':
    main()
