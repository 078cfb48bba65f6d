"""Monitors and warnings: what the numbers mean, when a warning comes and goes, and that none of it changes a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases_dataset import SheetHead, edit_heads, edit_labels, make_dataset
from cases_training import CPU, count_images, open_sheet_dataset, tiny_config, tiny_dataset, tiny_trainer
from torch import Tensor

from training import loop, monitors, reporting, trainer
from training.cameras import head_to_world, project
from training.dataset import HeadDataset
from training.generator import Planes
from training.health import Check, Watch, checks_for, means, non_finite
from training.monitors import Probe, dataset_numbers, image_shares, mouth_region, part_of, relative_change
from training.template_rendering import render_template

CHECKS = {check.name: check for check in checks_for(tiny_config(kimg=1))}


@pytest.fixture(scope='module')
def dataset(tmp_path_factory: pytest.TempPathFactory) -> HeadDataset:
    return tiny_dataset(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def tiny(dataset: HeadDataset) -> tuple[Probe, Any]:
    """A probe and an untrained generator."""
    config = tiny_config(dataset.path)
    generator, _ = trainer.build_networks(config, dataset, device=CPU.device)
    return Probe(config, dataset, device=CPU.device), generator.eval()


# Numbers.


def test_parts_of_the_gradient_make_the_whole(tmp_path: Path) -> None:
    run = tiny_trainer(tmp_path, L__r1_interval=1)
    run.step(next(run.loader()))
    numbers = {name: moments.mean for name, moments in run.stats.collect(CPU).items()}
    parts = {
        'Gmain': {'mapping', 'texture', 'rasterizer', 'static', 'teeth', 'blending', 'decoder', 'superres'},
        'Dmain': {'image', 'mapping'},
    }
    for phase, names in parts.items():
        norms = [numbers[f'Gradient/{phase}/{name}'] for name in names]
        assert math.sqrt(sum(norm**2 for norm in norms)) == pytest.approx(numbers[f'Gradient/{phase}/norm'], rel=1e-5)
    assert 'Gradient/Gdensity/superres' not in numbers
    assert part_of('b64.conv0.weight') == part_of('fromrgb.bias') == 'image'
    assert part_of('blending.unet.0.weight') == 'blending'


def test_shares_follow_alpha(tiny: tuple[Probe, Any]) -> None:
    """The same volume, fed by one source or the other."""
    probe, generator = tiny
    with torch.no_grad():
        identity = generator.identity(generator.map(probe.z[:4], probe.label))
        planes = generator.deform(identity, probe.head)
        shares = {
            alpha: image_shares(
                generator, Planes(planes.features, torch.full_like(planes.alpha, alpha), planes.ws), probe.label
            )
            for alpha in (0.0, 0.25, 1.0)
        }
    whole = shares[1.0][:, 0]
    assert (whole > 0.05).all()
    assert (whole <= 1).all()
    assert torch.equal(shares[1.0][:, 1], torch.zeros(4))
    assert torch.equal(shares[0.0], shares[1.0].flip(1))
    torch.testing.assert_close(shares[0.25], torch.stack([whole * 0.25, whole * 0.75], dim=1))


def test_relative_change_by_hand() -> None:
    board = torch.ones(2, 3, 8, 8)
    board[:, :, ::2] = -1
    region = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    region[:, :, 2:6, 1:7] = True
    assert relative_change(board, -board, region) == pytest.approx(2)
    assert relative_change(board * 0.3 + 0.5, board * -0.3 + 0.5, region) == pytest.approx(2)  # contrast does not count
    assert relative_change(board, board, region) == 0
    outside = torch.where(region, board, 7.0)
    assert relative_change(board, outside, region) == 0
    assert relative_change(board, -board, torch.zeros_like(region)) == 0
    flat = torch.zeros(2, 3, 8, 8)
    assert relative_change(flat, flat + 0.002, region) == pytest.approx(0.1)  # 0.002 over MIN_CONTRAST


def test_mouth_region_holds_the_mouth(tiny: tuple[Probe, Any]) -> None:
    probe, _ = tiny
    region = mouth_region(probe.closed, probe.open, probe.label, resolution=64)
    for head in (probe.closed, probe.open):
        place, _ = project(head_to_world(head.landmarks[:, monitors.MOUTH]), probe.label)
        pixel = (place * 64).floor().long()
        for sample, points in enumerate(pixel):
            inside = ((points >= 0) & (points < 64)).all(dim=1)
            column, row = points[inside].unbind(1)
            assert region[sample, 0, row, column].all()
    assert 0 < region.float().mean() < 0.8


def test_response_is_1_for_the_template_and_0_for_a_still_image(
    tiny: tuple[Probe, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, generator = tiny
    assert probe.template_change > 0.1

    def template(_: Any, __: Any, ___: Any, head: Any, label: Tensor) -> Tensor:
        return render_template(probe.template, head, label, resolution=16, mode='normals') * 0.4 + 0.1

    def still(_: Any, __: Any, ___: Any, head: Any, label: Tensor) -> Tensor:
        return torch.linspace(-1, 1, 16).expand(len(label), 3, 16, 16)

    untrained = probe.measure(generator, batch=4)
    for image, wanted in ((template, 1.0), (still, 0.0)):
        monkeypatch.setattr(Probe, '_image', image)
        numbers = probe.measure(generator, batch=3)
        assert numbers['Monitor/mouth_response'] == pytest.approx(wanted, abs=1e-6)
        for name, value in numbers.items():  # the rest does not depend on the images, nor on the batch
            if name != 'Monitor/mouth_response':
                assert value == pytest.approx(untrained[name], rel=1e-5), name


def test_coverage_is_that_of_the_views(tiny: tuple[Probe, Any]) -> None:
    probe, generator = tiny
    numbers = probe.measure(generator, batch=4)
    with torch.no_grad():
        alpha = generator.rasterizer(torch.zeros(4, 8, 16, 16), probe.head).alpha.mean(dim=(0, 2, 3, 4)).tolist()
    assert [numbers[f'Monitor/alpha_{name}'] for name in ('front', 'top', 'side')] == pytest.approx(alpha)
    assert all(0.01 < value < 0.9 for value in alpha)


def test_dataset_numbers(tmp_path: Path) -> None:
    numbers = dataset_numbers(tiny_dataset(tmp_path))
    assert numbers['Dataset/camera_spread'] > 0.1
    assert 0.001 < numbers['Dataset/head_spread'] < 0.1
    path = make_dataset(tmp_path / 'moved.zip', count=10)
    moved = edit_heads(path, lambda arrays: arrays | {'translation': _some_far(arrays['translation'], 4)})
    numbers = dataset_numbers(HeadDataset(moved, head_model=SheetHead()))
    assert numbers['Dataset/out_of_frame'] == pytest.approx(0.4)


def test_heads_without_parameters_or_jaw(
    tmp_path: Path, tiny: tuple[Probe, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meshes: the model's neutral head opens its jaw. No jaw: no response, instead of a wrong one."""
    _, generator = tiny
    meshes = HeadDataset(make_dataset(tmp_path / 'meshes.zip', heads='mesh'), head_model=SheetHead())
    probe = Probe(tiny_config(meshes.path), meshes, device=CPU.device)
    torch.testing.assert_close(probe.closed.vertices, meshes.head_model.template.vertices.expand(4, -1, -1))
    assert probe.measure(generator, batch=4)['Monitor/mouth_response'] > 0
    monkeypatch.setattr(monitors, 'JAW_OPEN', 0.0)
    stiff = Probe(tiny_config(meshes.path), meshes, device=CPU.device)
    assert 'Monitor/mouth_response' not in stiff.measure(generator, batch=4)


def _some_far(translation: np.ndarray, count: int) -> np.ndarray:
    """Zero, but 5 m to the side for the first `count`."""
    far = np.zeros_like(translation)
    far[:count, 0] = 5
    return far


# Warnings, by numbers.


def signs(real: float, fake: float) -> dict[str, float]:
    return {'Loss/signs/real': real, 'Loss/signs/fake': fake}


Level = tuple[str, dict[str, float], dict[str, float], dict[str, float], dict[str, float]]


def level(name: str, number: str, *values: float) -> Level:
    """A check of one number, and its values as in LEVELS."""
    bad, less, kept, good = ({number: value} for value in values)
    return name, bad, less, kept, good


# Name, then numbers that raise it, that are just not enough, that keep it, that clear it.
LEVELS: list[Level] = [
    level('constant cameras', 'Dataset/camera_spread', 0.9e-4, 1.1e-4, 0.9e-3, 1.1e-3),
    level('constant heads', 'Dataset/head_spread', 0.9e-5, 1.1e-5, 0.9e-4, 1.1e-4),
    level('head out of frame', 'Dataset/out_of_frame', 0.051, 0.05, 0.021, 0.02),
    ('D wins', signs(0.91, -0.95), signs(0.89, -1), signs(0.99, -0.81), signs(0.79, -1)),
    ('D loses', signs(0.04, -0.04), signs(0.06, -0.06), signs(0.28, -0.0), signs(0.2, -0.12)),
    level('R1 explodes', 'Loss/D/r1', 101.0, 99.0, 31.0, 29.0),  # gamma / 2 is 0.1
    level('non-finite', 'Gradient/Gmain/skipped', 0.01, 0.0, 0.001, 0.0),
    level('alpha empty', 'Monitor/alpha_front', 0.009, 0.011, 0.019, 0.021),
    level('alpha full', 'Monitor/alpha_front', 0.91, 0.89, 0.81, 0.79),
    level('expression ignored', 'Monitor/mouth_response', 0.14, 0.16, 0.24, 0.26),
    level('w collapses', 'Monitor/w_spread', 0.019, 0.021, 0.049, 0.051),
    level('slow data', 'Timing/data_share', 0.31, 0.29, 0.21, 0.19),
]


def test_every_check_has_levels() -> None:
    assert [row[0] for row in LEVELS] == list(CHECKS)


@pytest.mark.parametrize(('name', 'bad', 'less', 'kept', 'good'), LEVELS, ids=[row[0] for row in LEVELS])
def test_a_warning_comes_once_and_goes(
    name: str, bad: dict[str, float], less: dict[str, float], kept: dict[str, float], good: dict[str, float]
) -> None:
    check = CHECKS[name]
    watch, kimg = Watch([check]), 1.0

    def raised(numbers: dict[str, float], times: int) -> list[bool]:
        return [change.raised for _ in range(times) for change in watch.update({'Progress/kimg': kimg, **numbers})]

    assert raised(less, 20) == []
    assert raised(bad, check.ticks - 1) == []
    assert raised(less, 1) == []  # not in a row
    assert raised(bad, check.ticks) == [True]
    assert raised(bad, 20) == []  # once
    assert raised(kept, 20) == []  # between the levels: stays
    assert raised({}, 20) == []  # unknown: stays
    assert raised({key: math.nan for key in good if name != 'non-finite'}, 20) == []
    assert list(watch.active) == [name]
    assert raised(good, check.clear_ticks - 1) == []
    assert raised(good, 1) == [False]
    assert not watch.active
    assert raised(kept, 20) == [] or name == 'non-finite'  # between the levels: stays away


def test_a_warning_names_cause_and_remedy() -> None:
    (change,) = Watch([CHECKS['alpha empty']]).update({'Monitor/alpha_front': 0.004})
    assert str(change).startswith('warning: the head covers 0.4% of the front plane; the mesh lies outside')
    for check in CHECKS.values():
        assert '{value' in check.cause
        assert len(check.remedy) > 20


def test_an_ignored_expression_has_time() -> None:
    watch = Watch([CHECKS['expression ignored']])
    for kimg, wanted in ((0.01, 0), (0.049, 0), (0.05, 0), (0.06, 0), (0.07, 1)):  # 5 % of 1 kimg, three ticks
        assert len(watch.update({'Progress/kimg': kimg, 'Monitor/mouth_response': 0.0})) == wanted


def test_non_finite_looks_at_every_phase_and_loss() -> None:
    assert non_finite({}) is None
    assert non_finite({'Gradient/Gmain/skipped': 0.0, 'Gradient/Dr1/skipped': 0.5}) == 0.5
    assert non_finite({'Gradient/Gmain/skipped': 0.0, 'Loss/D/r1': math.inf}) == 1


def test_reading_the_records_again_gives_the_same_warnings() -> None:
    generator = np.random.default_rng(0)
    ticks = [{'Progress/kimg': i / 10, 'Timing/data_share': float(v)} for i, v in enumerate(generator.random(60) * 0.6)]
    whole, first = Watch(CHECKS.values()), Watch(CHECKS.values())
    changes = [change for tick in ticks for change in whole.update(tick)]
    assert len(changes) > 2
    for tick in ticks[:30]:
        first.update(tick)
    again = Watch(CHECKS.values())
    for line in [json.dumps(tick) for tick in ticks[:30]]:
        again.update(means(json.loads(line)))
    assert again.active == first.active
    assert [c for t in ticks[30:] for c in again.update(t)] == [c for t in ticks[30:] for c in first.update(t)]


def test_means_of_a_record() -> None:
    record = {'images_seen': 8, 'a': {'num': 1, 'mean': 0.5, 'std': 0}, 'b': 2, 'c': None, 'd': 'text'}
    assert means(record) == {'images_seen': 8.0, 'a': 0.5, 'b': 2.0}


def test_levels_are_apart() -> None:
    for check in CHECKS.values():
        assert check.raise_at != check.clear_at
    upwards = Check(name='x', value=lambda _: 0, raise_at=2, clear_at=1, cause='{value}', remedy='')
    assert upwards.beyond(3, 2)
    assert not upwards.beyond(1, 2)


# Runs from end to end.


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Any:
    """train(data, outdir, **config) -> lines of log.txt."""
    monkeypatch.setattr(loop, 'open_dataset', open_sheet_dataset)

    def run(data: Path, outdir: Path, **changes: Any) -> list[str]:
        config = tiny_config(data, **{'tick_kimg': 0.004, 'snapshot_ticks': 9, 'image_ticks': 9, **changes})
        loop.train(CPU, config=config, options=loop.RunOptions(outdir=str(outdir)), evaluate=count_images)
        return (outdir / 'log.txt').read_text().splitlines()

    return run


def warned(lines: list[str], start: str) -> int:
    return sum(line.startswith(f'warning: {start}') for line in lines)


def test_constant_labels(train: Any, tmp_path: Path) -> None:
    """Warned of before the first step, once, also when the run goes on; in TensorBoard and in the report."""
    data = edit_labels(make_dataset(tmp_path / 'same.zip'), lambda rows: [[name, rows[0][1]] for name, _ in rows])
    edit_heads(data, lambda arrays: {name: _like_first(value) for name, value in arrays.items()})
    lines = train(data, tmp_path / 'run', kimg=0.008)
    first_tick = next(index for index, line in enumerate(lines) if line.startswith('tick'))
    again = train(data, tmp_path / 'run', kimg=0.012)
    assert any(line.startswith('resumed') for line in again)
    for start in ('all cameras of the dataset are the same', 'all heads of the dataset are the same'):
        assert warned(lines[:first_tick], start) == 1
        assert warned(again, start) == 1
    assert 'all cameras of the dataset are the same' in (tmp_path / 'run' / 'report.html').read_text()
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = accumulator.EventAccumulator(str(tmp_path / 'run'))
    events.Reload()
    assert 'Warnings/text_summary' in events.Tags()['tensors']
    assert [event.step for event in events.Scalars('Monitor/alpha_front')] == [4, 8, 12]


def _like_first(value: np.ndarray) -> np.ndarray:
    """Every row as the first, where there is one for each item."""
    return np.repeat(value[:1], len(value), axis=0) if value.ndim == 2 and value.dtype.kind == 'f' else value


def test_a_mesh_outside_the_view(train: Any, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / 'far.zip')
    edit_heads(data, lambda arrays: arrays | {'translation': arrays['translation'] + np.float32(5)})
    lines = train(data, tmp_path / 'run', kimg=0.008, L__density_weight=0.0)
    assert warned(lines, '100% of the heads lie outside their image') == 1
    assert warned(lines, 'the head covers 0.0% of the front plane; the mesh lies outside the planes') == 1
    records = [json.loads(line) for line in (tmp_path / 'run' / 'stats.jsonl').read_text().splitlines()]
    assert [record['Monitor/alpha_front'] for record in records] == [0, 0]


def test_an_ignored_expression(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator whose volume is the same everywhere."""
    build = trainer.build_networks

    def build_blind(*arguments: Any, **options: Any) -> Any:
        generator, discriminator = build(*arguments, **options)
        with torch.no_grad():
            generator.decoder.out.weight.zero_()
        return generator, discriminator

    monkeypatch.setattr(trainer, 'build_networks', build_blind)
    data = make_dataset(tmp_path / 'tiny.zip')
    lines = train(data, tmp_path / 'run', kimg=0.016, g_lr=1e-9)
    assert warned(lines, 'after 0.0008 kimg the mouth does not follow the jaw (mouth response 0.00') == 1


def test_monitors_change_nothing_of_the_result(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_dataset(tmp_path).path
    options = {'kimg': 0.012, 'batch_gpu': 2, 'augment': 'ada', 'ada_kimg': 0.1, 'mirror': True}
    torch.manual_seed(0)
    train(data, tmp_path / 'with', **options)
    drawn = torch.get_rng_state()
    monkeypatch.setattr(Probe, 'measure', lambda *_, **__: {})
    monkeypatch.setattr(reporting, 'dataset_numbers', lambda _: {})
    monkeypatch.setattr(trainer, 'report_gradients', lambda *_: None)
    torch.manual_seed(0)
    train(data, tmp_path / 'without', **options)
    assert torch.equal(torch.get_rng_state(), drawn)
    first, second = (
        torch.load(tmp_path / name / 'training-state-000000012.pt', weights_only=True) for name in ('with', 'without')
    )
    assert 'Monitor/' in (tmp_path / 'with' / 'stats.jsonl').read_text()
    assert 'Monitor/' not in (tmp_path / 'without' / 'stats.jsonl').read_text()
    _same(first, second)


def _same(first: Any, second: Any, where: str = '') -> None:
    """Bit by bit, but for the seconds."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            if key != 'info':
                _same(first[key], second[key], f'{where}.{key}')
    elif isinstance(first, Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where
