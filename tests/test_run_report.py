"""report.html: whole whatever the run's folder looks like, nothing outside itself, bounded in size."""

from __future__ import annotations

import html.parser
import io
import json
import math
import re
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases_dataset import user_error
from click.testing import CliRunner
from PIL import Image

from tools import make_report
from training.charts import Series, format_number, line_chart, thin_out, ticks_between
from training.config import preset, to_dict
from training.report_pictures import MAX_JPEG, data_uri, few
from training.run_records import read_run
from training.run_report import MAX_BYTES, MAX_GRIDS, make_page, write_report


def tick(images_seen: int, **numbers: Any) -> dict[str, Any]:
    """A line of stats.jsonl."""
    return {
        'images_seen': images_seen,
        'Progress/kimg': images_seen / 1000,
        'Timing/images_per_sec': 2.5,
        'Loss/G/loss': {'num': 4, 'mean': 0.7, 'std': 0.1},
        'Loss/signs/real': {'num': 4, 'mean': 0.2, 'std': 0.1},
        'Loss/signs/fake': {'num': 4, 'mean': -0.2, 'std': 0.1},
        'Gradient/Gmain/texture': {'num': 4, 'mean': 0.02, 'std': 0.1},
        'Gradient/Gmain/skipped': {'num': 4, 'mean': 0.0, 'std': 0.0},
        'Monitor/mouth_response': 0.8,
        **{name.replace('__', '/'): value for name, value in numbers.items()},
    }


def make_run(folder: Path, ticks: list[dict[str, Any]], **options: Any) -> Path:
    """A run's folder with these ticks, a metric, a grid and reals; options by dotted name with '__' for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {key.replace('__', '.'): value for key, value in options.items()}
    config = to_dict(preset('debug', {'data': 'some/where/tiny.zip', 'kimg': 0.1, **named}))
    (folder / 'training_options.json').write_text(json.dumps(config))
    (folder / 'stats.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in ticks))
    values = [(8, 3.0), (16, 1.25), (24, 2.0)]
    lines = [
        {'metric': 'fd', 'value': value, 'images_seen': seen, 'snapshot': f's{seen}.pkl'} for seen, value in values
    ]
    (folder / 'metric-fd.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    for name, color in (('reals.png', 'red'), ('fakes000000.png', 'blue'), ('fakes000001.png', 'green')):
        Image.new('RGB', (128, 64), color).save(folder / name)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / 'some run', [tick(8 * i) for i in range(1, 6)])


class Page(html.parser.HTMLParser):
    """What a page refers to, and whether its elements are closed in order."""

    VOID = {'meta', 'img', 'br', 'line', 'path'}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ''
        self.feed(text)
        self.close()
        assert not self.open, self.open
        assert '<script' not in text.lower()
        for svg in re.findall(r'<svg.*?</svg>', text, flags=re.DOTALL):
            xml.etree.ElementTree.fromstring(svg)
        styles = ''.join(re.findall(r'<style>(.*?)</style>', text, flags=re.DOTALL))
        assert 'url(' not in styles
        assert '@import' not in styles
        assert all(link.startswith('data:image/jpeg;base64,') for link in self.links)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [str(value) for name, value in attrs if name in ('src', 'href', 'srcset', 'data', 'xlink:href')]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Closed at once, as SVG's shapes are."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f' {data}'


def test_a_page_of_its_own(run: Path) -> None:
    path = write_report(run)
    assert path == run / 'report.html'
    page = Page(path.read_text(encoding='utf-8'))
    for text in (
        'some run',
        'debug',
        'tiny.zip',
        '0.04 of 0.1',
        'Mouth response',
        'texture 0.02',
        'None at the last',
    ):
        assert text in page.text, text
    assert 'skipped' not in page.text.split('Other numbers')[0]
    assert len(page.links) == 3
    assert not list(run.glob('.*.tmp'))


def test_the_best_snapshot_is_marked(run: Path) -> None:
    text = write_report(run).read_text()
    (best,) = re.findall(r'<tr class=best>(.*?)</tr>', text)
    assert best == '<td>0.016</td><td>1.2500</td><td>s16.pkl</td>'
    assert '1.25 at kimg 0.016' in text


def test_settings_that_differ_from_the_preset(tmp_path: Path) -> None:
    run = make_run(tmp_path / 'run', [tick(8)], L__r1_gamma=3.0, batch=8)
    table = write_report(run).read_text().split('<h2>Settings</h2>')[1].split('<details>')[0]
    assert '<td>loss.r1_gamma</td><td>0.2</td><td>3.0</td>' in table
    assert '<td>batch</td><td>4</td><td>8</td>' in table
    assert 'g_lr' not in table


def test_warnings_are_shown_with_cause_and_remedy(tmp_path: Path) -> None:
    bad, good = {'Monitor/alpha_front': 0.001}, {'Monitor/alpha_front': 0.2, 'Timing/data_share': 0.9}
    run = make_run(tmp_path / 'run', [tick(8, **bad), tick(16, **good), tick(24, **good)])
    page = Page(write_report(run).read_text())
    active, history = page.text.split('All that was raised and cleared')
    assert '90% of the training time is spent waiting for images' in active
    assert 'raise --workers' in active
    assert 'front plane' not in active
    assert 'the head covers 0.1% of the front plane' in history


def test_a_damaged_folder(run: Path) -> None:
    """Half a line, no JSON, wrong types, NaN, a number written twice, broken pictures, unknown options."""
    with open(run / 'stats.jsonl', 'a') as file:
        for record in (tick(48, Loss__G__loss=math.nan), tick(56, Loss__G__loss={'mean': 'x'}), tick(40, extra=7.0)):
            file.write(json.dumps(record) + '\n')
        file.write('[1, 2]\nnull\n\x00\n{"images_seen": "many"}\n' + '[' * 100_000 + '\n')
        file.write('{"images_seen": NaN, "a": 1}\n{"images_seen": 64, "Progress/kimg": 0.0')
    (run / 'metric-fd.jsonl').write_text('{"value": NaN, "images_seen": 8}\n{"value": 2}\nhello\n')
    (run / 'metric-other.jsonl').write_bytes(b'\xff\xfe')
    (run / 'fakes000002.png').write_bytes(b'no picture')
    (run / 'fakes000003.png').write_bytes((run / 'reals.png').read_bytes()[:60])
    (run / 'reals.png').unlink()
    (run / 'sessions.jsonl').write_text('{"images_seen": 0, "device": "<b>cpu</b>"}\n{"device": 3}\n{"images_')
    records = read_run(run)
    assert [record['images_seen'] for record in records.ticks] == [8, 16, 24, 32, 40, 48, 56]
    assert records.ticks[4]['extra'] == 7
    page = Page(write_report(run).read_text())
    assert '<b>cpu</b>' in page.text
    assert len(page.links) == 2
    options = json.loads((run / 'training_options.json').read_text())
    (run / 'training_options.json').write_text(json.dumps({**options, 'history': [{'images_seen': 8}]}))
    config = read_run(run).config  # what the folder keeps beside the config does not hide it
    assert config is not None
    assert config.kimg == 0.1
    for text in ('{"preset": ["x"], "kimg": "long", "more": {"a": [1]}}', '[]', '{"preset'):
        (run / 'training_options.json').write_text(text)
        Page(write_report(run).read_text())


def test_almost_nothing(tmp_path: Path) -> None:
    (tmp_path / 'training_options.json').write_text('{}')
    assert 'Nothing was recorded yet' in Page(write_report(tmp_path).read_text()).text


def test_no_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / 'none'):
        result = CliRunner().invoke(make_report.main, [str(path)])
        assert result.exit_code == 1
        assert result.output == f'Error: {path}: not the folder of a run (it has neither ' + (
            'training_options.json nor stats.jsonl)\n'
        )
    assert 'not the folder of a run' in user_error(lambda: write_report(tmp_path))


def test_several_runs_by_the_command(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / 'second', [tick(8 * i, Loss__G__loss=0.5) for i in range(1, 9)], batch=8)
    same = make_run(tmp_path / 'deep' / 'second', [tick(8)])
    target = tmp_path / 'compared.html'
    command = [str(run), '--compare', str(other), '--compare', str(same), '--out', str(target)]
    result = CliRunner().invoke(make_report.main, command)
    assert (result.exit_code, result.output) == (0, f'{target}\n')
    page = Page(target.read_text())
    assert 'deep/second' in page.text
    assert 'loss 0.7 / 0.5 / 0.7' in page.text
    assert 'path class="s0 dash"' in target.read_text()
    assert not (run / 'report.html').exists()


def test_size_is_bounded(tmp_path: Path) -> None:
    """A long run with many numbers, many flapping warnings and pictures that do not compress."""
    rng = np.random.default_rng(0)
    names = [f'Gradient/Gmain/part{i}' for i in range(12)] + [f'More/number{i}' for i in range(40)]
    values = rng.lognormal(size=(1500, len(names)))
    ticks = [
        tick(1000 * i, Timing__data_share=float(i % 4 > 1), **dict(zip(names, map(float, row), strict=True)))
        for i, row in enumerate(values)
    ]
    run = make_run(tmp_path / 'run', ticks)
    noise = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (640, 640, 3), dtype=np.uint8)).save(noise, format='PNG', compress_level=0)
    for index in range(30):
        (run / f'fakes{index:06d}.png').write_bytes(noise.getvalue())
    path = write_report(run)
    assert path.stat().st_size < MAX_BYTES
    page = Page(path.read_text())
    assert len(page.links) == MAX_GRIDS + 1
    assert all(len(link) < MAX_JPEG * 4 / 3 + 100 for link in page.links)
    assert 'kimg 29' in page.text


# Curves.


def finite(points: list[tuple[float, float]]) -> list[float]:
    return [y for _, y in points if math.isfinite(y)]


def test_thinning_keeps_spikes() -> None:
    points = [(float(i), math.sin(i / 500)) for i in range(10_000)]
    points[7777] = (7777.0, 50.0)
    points[1234] = (1234.0, math.nan)
    few_points = thin_out(points)
    assert len(few_points) <= 240
    assert (7777.0, 50.0) in few_points
    assert min(finite(few_points)) == min(finite(points))
    assert [x for x, _ in few_points] == sorted(x for x, _ in few_points)
    assert thin_out(points[:240]) == points[:240]


def test_ticks_are_round() -> None:
    assert ticks_between(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks_between(-0.3, 0.31) == pytest.approx([-0.2, 0, 0.2])
    assert ticks_between(0, 25_000) == [0, 5000, 10_000, 15_000, 20_000, 25_000]
    assert ticks_between(3, 3) == [3]


def test_numbers_are_short() -> None:
    numbers = {
        0.0: '0',
        1.0: '1',
        25_000.0: '25,000',
        1234.5: '1,234',
        0.012345: '0.0123',
        1e-7: '1e-07',
        3.14159: '3.14',
    }
    assert {value: format_number(value) for value in numbers} == numbers
    assert format_number(math.nan) == 'nan'


def test_a_chart_breaks_where_numbers_are_missing() -> None:
    points = [(1.0, 1.0), (2.0, math.nan), (3.0, 3.0), (4.0, 4.0)]
    figure = line_chart('a < b', [Series(name='x & y', points=points)], x_label='kimg')
    (path,) = re.findall(r' d="([^"]*)"', figure)
    assert path.count('M') == 2
    assert path.count('L') == 1
    assert path.count('h.01') == 1  # the lone first point is a dot
    assert 'a &lt; b' in figure
    assert '<title>kimg 3\nx &amp; y 3</title>' in figure
    assert line_chart('t', [Series(name='x', points=[(1.0, math.nan)])], x_label='kimg') == ''
    assert line_chart('t', [], x_label='kimg') == ''


def test_points_lie_where_the_axes_say() -> None:
    """The path's ends are at the labelled ticks, on both kinds of axis."""
    for log, values in ((False, [0.0, 10.0]), (True, [0.001, 1000.0])):
        points = [(0.0, values[0]), (6.0, values[1])]
        figure = line_chart('t', [Series(name='x', points=points)], x_label='kimg', log=log)
        start, stop = re.findall(r'[ML]([\d.]+) ([\d.]+)', re.findall(r' d="([^"]*)"', figure)[0])
        labels = dict(re.findall(r'<text x="[\d.]+" y="([\d.]+)" text-anchor="end">([^<k]+)<', figure))
        rows = {label: float(y) - 4 for y, label in labels.items()}
        for (_, y), value in ((start, values[0]), (stop, values[1])):
            assert rows[format_number(value)] == pytest.approx(float(y), abs=0.11)
    narrow = line_chart('t', [Series(name='x', points=[(0.0, 1.1), (1.0, 1.3)])], x_label='kimg', log=True)
    assert narrow.count('class="grid"') > 2
    assert 'M' not in line_chart('t', [Series(name='x', points=[(0.0, 0.0)])], x_label='kimg', log=True)


def test_few() -> None:
    assert few(list(range(100)), 4) == [0, 33, 66, 99]
    assert few([1, 2], 4) == [1, 2]


def test_pictures_are_small(tmp_path: Path) -> None:
    Image.new('RGB', (3000, 1500), 'red').save(tmp_path / 'large.png')
    import base64

    data = base64.b64decode(data_uri(tmp_path / 'large.png').partition(',')[2])
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ('JPEG', (640, 320))
    assert data_uri(tmp_path / 'none.png') == ''


def test_the_page_does_not_depend_on_the_clock_but_for_its_date(run: Path) -> None:
    records = [read_run(run)]
    pages = [re.sub(r'written [\d :-]+', '', make_page(records)) for _ in range(2)]
    assert pages[0] == pages[1]
