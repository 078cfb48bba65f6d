"""The clearest answers of metrics to known corruptions of a perfect generator; all of them: docs/metrics.md."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from metrics.estimators.loading import load_features
from metrics.features import extract_features
from metrics.frechet import frechet_distance, statistics
from tools.draw_sensitivity import COLUMNS, PANEL, draw_panels
from tools.measure_sensitivity import MUST_NOTICE, OF_IMAGES, OF_VIEWS, blurred, judged, measure_all, tinted
from training.dataset import HeadDataset
from training.synthetic import generate

COUNTS = {'images': 16, 'persons': 3, 'each': 2, 'pairs': 4, 'clips': 1}


@pytest.fixture(scope='module')
def dataset(tmp_path_factory: pytest.TempPathFactory) -> HeadDataset:
    path = tmp_path_factory.mktemp('data') / 'heads.zip'
    generate(path, num=16, resolution=64, seed=5, workers=0, progress=False)
    return HeadDataset(path)


@pytest.mark.parametrize(('corruption', 'metric'), [('roll', 'apd'), ('identity swap', 'id'), ('shaking', 'flicker')])
def test_a_metric_notices_what_it_is_named_after(
    dataset: HeadDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corruption: str, metric: str
) -> None:
    monkeypatch.setenv('NEXT3D_CACHE_DIR', str(tmp_path))
    options: dict[str, Any] = {'counts': COUNTS, 'corruptions': [corruption], 'metrics': [metric]}
    found = next(measure_all(dataset, **options, report=lambda _: None))
    assert not list(measure_all(dataset, **options, report=pytest.fail, found=found))
    values = [row[metric]['value'] for row in found[corruption]]
    assert judged(corruption, metric, found[corruption]) == 'notices', values


@pytest.mark.parametrize('corrupt', [blurred, tinted])
def test_the_frechet_distance_grows_with_what_spoils_all_pictures(dataset: HeadDataset, corrupt) -> None:
    images, extractor = dataset.images(range(16)), load_features('synth')
    clean = statistics(extract_features([images], extractor))
    spoilt = [statistics(extract_features([corrupt(images, share)], extractor)) for share in (1 / 3, 2 / 3, 1)]
    values = [frechet_distance(clean, other) for other in spoilt]
    assert 0.01 < values[0] < values[1] < values[2]


def test_every_corruption_has_a_maker_and_zero_strength_changes_nothing() -> None:
    assert {*OF_VIEWS, *OF_IMAGES, 'shaking'} == set(MUST_NOTICE)
    images = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    assert torch.equal(tinted(images, 0), images)
    assert (blurred(images, 0.01).int() - images.int()).abs().max() <= 1


def test_verdicts_are_told_apart() -> None:
    def rows(*values: float) -> list[dict]:
        return [{'apd': {'value': value, 'better': 'lower', 'interval': [0.09, 0.11]}} for value in values]

    assert judged('roll', 'apd', rows(0.1, 0.2, 0.3)) == 'notices'
    assert judged('roll', 'apd', rows(0.1, 0.3, 0.2)) == 'notices not steadily!'
    assert judged('gaze offset', 'apd', rows(0.1, 0.2, 0.11)) == 'ignores'
    assert judged('gaze offset', 'apd', rows(0.1, 0.1, 0.2)) == 'moves!'
    assert judged('blur', 'apd', rows(0.1, 0.9)) == ''


def test_the_picture_has_a_panel_a_metric() -> None:
    rows: Any = [
        {'apd': {'value': value, 'interval': [0.1, 0.2]}, 'id': {'value': 1, 'interval': None}} for value in (0.1, 0.3)
    ]
    with Image.open(io.BytesIO(draw_panels({'roll': rows}, (0.0, 1.0), bold={'roll': ('apd',)}))) as picture:
        assert picture.width == COLUMNS * PANEL[0]
        assert len(picture.convert('RGB').getcolors(1 << 20)) > 5
