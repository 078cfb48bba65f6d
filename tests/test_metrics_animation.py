"""Animation metrics on pictures whose content is known: every definition has a value on paper."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases_animation import NumberAdapter, NumberDataset, NumberEstimator, NumberIdentity, columns
from torch import Tensor

from dnnlib import UserError
from metrics import registry
from metrics.adapter import Adapter
from metrics.animation import clip_differences, pack, unpack, yaw_pitch
from metrics.bootstrap import ratio_interval
from metrics.names import parse_metric, reported_name
from metrics.protocol import Protocol
from metrics.shots import plan
from metrics.sources import DatasetImages
from torch_utils.distributed import Communicator
from torch_utils.rotations import axis_angle_matrix, matrix_axis_angle

CPU = Communicator(torch.device('cpu'))
ROUNDING = 2e-4  # of the pictures' 16 bits


@pytest.fixture(autouse=True)
def _numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv('NEXT3D_CACHE_DIR', str(tmp_path / 'cache'))
    monkeypatch.setattr(registry, 'load_head_estimator', lambda spec, **_: NumberEstimator())
    monkeypatch.setattr(registry, 'load_identity_embedder', lambda spec, **_: NumberIdentity())


def measure(name: str, subject: Adapter | DatasetImages, **protocol: Any) -> dict[str, Any]:
    return registry.evaluate(
        [name], subject=subject, dataset=NumberDataset(), protocol=Protocol(**protocol), communicator=CPU
    )[0]


def shifted(name: str, *amounts: float) -> NumberAdapter:
    """A generator that shows one quantity wrong by fixed amounts, the others right."""

    def change(numbers: Tensor) -> Tensor:
        numbers = numbers.clone()
        numbers[:, columns(name)] += torch.tensor(amounts)
        return numbers

    return NumberAdapter(change)


@pytest.mark.parametrize(
    ('family', 'quantity', 'expected'),
    [
        ('aed', 'expression', (0.3 + 0.4) / 4),
        ('aed_l1', 'expression', 0.7),
        ('aed_l2', 'expression', 0.5),
        ('aed_rmse', 'expression', 0.25),
        ('aed_agora', 'expression', 0.25),
        ('apd', 'rotation', 0.7 / 3),
        ('apd_l1', 'rotation', 0.7),
        ('apd_l2', 'rotation', 0.5),
        ('apd_rmse', 'rotation', 0.5 / math.sqrt(3)),
        ('apd_jaw', 'rotation', 0.7 / 6),
        ('apd_jaw', 'jaw', 0.7 / 6),
        ('jaw', 'jaw', 0.7 / 3),
    ],
)
def test_distances_are_as_defined(family: str, quantity: str, expected: float) -> None:
    amounts = (0.3, -0.4, 0.0, 0.0)[: columns(quantity).stop - columns(quantity).start]
    result = measure(f'{family}10x3', shifted(quantity, *amounts))
    assert result['value'] == pytest.approx(expected, abs=ROUNDING)
    assert result['floor'] == pytest.approx(0, abs=ROUNDING)
    assert result['interval'] == pytest.approx([expected, expected], abs=ROUNDING)  # every image errs by the same
    assert result['truncation_psi'] == (0.7 if family == 'aed_agora' else 1)


def test_gaze_is_an_angle_in_degrees() -> None:
    result = measure('gaze10x3', shifted('gaze', 0.1, 0.0, 0.0, 0.0))  # yaw of one eye, seldom far from level
    assert result['value'] == pytest.approx(math.degrees(0.1) / 2, rel=0.05)
    assert measure('gaze10x3', shifted('expression', 1, 1, 1, 1))['value'] == pytest.approx(0, abs=0.02)


def test_roll_of_the_picture_moves_apd_and_not_apd_without_roll() -> None:
    def roll(numbers: Tensor) -> Tensor:
        numbers = numbers.clone()
        turn = axis_angle_matrix(torch.tensor([[0.0, 0.0, 0.25]]))
        turned = turn @ axis_angle_matrix(numbers[:, columns('rotation')])
        numbers[:, columns('rotation')] = matrix_axis_angle(turned)
        return numbers

    assert measure('apd10x3', NumberAdapter(roll))['value'] > 0.08
    assert measure('apd_no_roll10x3', NumberAdapter(roll))['value'] < ROUNDING


def test_yaw_and_pitch_are_the_factors() -> None:
    yaw, pitch, roll = torch.tensor([0.4]), torch.tensor([-0.3]), torch.tensor([0.7])
    zero = torch.zeros(1)
    turns = [torch.stack(axis, dim=1) for axis in ((zero, zero, roll), (zero, yaw, zero), (pitch, zero, zero))]
    matrix = axis_angle_matrix(turns[0]) @ axis_angle_matrix(turns[1]) @ axis_angle_matrix(turns[2])
    torch.testing.assert_close(yaw_pitch(matrix_axis_angle(matrix)), torch.tensor([[0.4, -0.3]]))


@pytest.mark.parametrize('share', [0.0, 0.5, 1.0])
def test_expression_response_is_the_share_that_is_shown(share: float) -> None:
    def weaken(numbers: Tensor) -> Tensor:
        numbers = numbers.clone()
        numbers[:, columns('expression')] = share * numbers[:, columns('expression')] + 0.4  # a fixed grin besides
        return numbers

    result = measure('expression_response10x4', NumberAdapter(weaken))
    assert result['value'] == pytest.approx(share, abs=1e-3)
    assert result['floor'] == pytest.approx(1, abs=1e-3)


def test_identity() -> None:
    assert measure('id20', NumberAdapter())['value'] == pytest.approx(1, abs=1e-3)
    rng = torch.Generator().manual_seed(0)

    def forget(numbers: Tensor) -> Tensor:
        numbers = numbers.clone()
        numbers[:, columns('identity')] += torch.randn(len(numbers), 6, generator=rng)
        return numbers

    noise = NumberAdapter(forget)
    first = measure('id40', noise)
    assert 0.2 < first['value'] < 0.95
    assert first['interval'][0] < first['value'] < first['interval'][1]
    assert measure('id_agora40', NumberAdapter())['truncation_psi'] == 0.7
    assert first['floor'] < 0.5  # the made-up dataset's pictures of a person share nothing


def test_images_without_a_face_are_counted_and_left_out() -> None:
    blank = NumberAdapter(lambda numbers: numbers)
    blank.images = lambda request, make=blank.images: _every_second_black(make(request))  # type: ignore[method-assign]
    result = measure('aed10x4', blank)
    assert result['num_without_face'] == 20
    assert result['value'] == pytest.approx(0, abs=ROUNDING)
    blank.images = lambda request: torch.zeros(len(request.seeds), 3, 16, 16, dtype=torch.uint8)  # type: ignore[method-assign]
    with pytest.raises(UserError, match='found no face in any of 40 images'):
        measure('aed10x4', blank)


def _every_second_black(images: Tensor) -> Tensor:
    images[::2] = 0
    return images


# Protocols.


def test_animation_draws_a_person_once_and_a_driver_an_image() -> None:
    shots = plan(parse_metric('aed'), items=700, seed=0)
    assert len(shots) == 10000
    persons = {shot.person for shot in shots}
    assert len(persons) == 500
    assert all(len({shot.origin for shot in shots[20 * p : 20 * p + 20]}) == 1 for p in range(500))
    assert len({shot.head for shot in shots}) > 690
    assert all(shot.head == shot.camera for shot in shots)
    assert shots[:80] == plan(parse_metric('aed4x20'), items=700, seed=0)
    assert shots != plan(parse_metric('aed'), items=700, seed=1)


def test_identity_draws_two_poses_and_two_sets_from_pools_of_two_thousand() -> None:
    shots = plan(parse_metric('id'), items=70000, seed=0)
    first, second = shots[0::2], shots[1::2]
    assert len(first) == 1000
    assert all(a.person == b.person and a.origin == b.origin for a, b in zip(first, second, strict=True))
    assert sum(a.camera == b.camera for a, b in zip(first, second, strict=True)) < 10
    assert 500 < len({shot.camera for shot in shots}) <= 2000
    assert 500 < len({shot.head for shot in shots}) <= 2000
    crossview = plan(parse_metric('id_crossview'), items=70000, seed=0)
    assert all(a.head == b.head for a, b in zip(crossview[0::2], crossview[1::2], strict=True))


def test_shape_belongs_to_the_person_or_to_the_set() -> None:
    dataset, adapter = NumberDataset(), NumberAdapter()
    for name, own in (('aed6x2', True), ('id6', False), ('id_own_shape6', True)):
        adapter.requests.clear()
        measure(name, adapter)
        shots = plan(parse_metric(name), items=len(dataset), seed=0)
        shapes = torch.cat([request.params.identity for request in adapter.requests])
        wanted = [shot.origin if own else shot.head for shot in shots]
        assert torch.equal(shapes, dataset.params.identity[wanted])
        expressions = torch.cat([request.params.expression for request in adapter.requests])
        assert torch.equal(expressions, dataset.params.expression[[shot.head for shot in shots]])


def test_fid3d_shuffles_cameras_against_persons() -> None:
    straight, shuffled = (plan(parse_metric(name), items=5000, seed=0) for name in ('fid500', 'fid3d500'))
    assert all(shot.camera == shot.origin == shot.head for shot in straight)
    assert [shot.origin for shot in straight] == [shot.origin for shot in shuffled]
    assert sum(shot.camera == shot.origin for shot in shuffled) < 5


def test_flicker() -> None:
    ramp = torch.arange(8).view(8, 1, 1, 1).expand(8, 3, 4, 4).to(torch.uint8)
    assert clip_differences(ramp).tolist() == [[0.0, 2.0]]
    shaken = ramp.clone()
    shaken[1::2] += 5
    assert clip_differences(shaken).tolist() == [[10.0, 2.0]]
    result = measure('flicker6x5', NumberAdapter())
    assert result['metric'] == 'flicker6x5'
    assert result['estimator'] is None
    assert measure('flicker6x5', _Frozen())['value'] == 0


class _Frozen(NumberAdapter):
    def images(self, request: Any) -> Tensor:
        return torch.full((len(request.seeds), 3, 16, 16), 7, dtype=torch.uint8)


# Folders.


def test_a_folder_is_measured_by_its_own_labels() -> None:
    images = DatasetImages(NumberDataset(), device=CPU.device)
    result = measure('aed', images)
    assert result['value'] == pytest.approx(0, abs=ROUNDING)
    assert result['metric'] == 'aed_numbers12x4'
    result = measure('id', images)
    assert result['counts'] == (12,)
    assert result['value'] == result['floor']
    for name in ('flicker', 'id_crossview', 'ppl_random50', 'fid3d_random20'):
        with pytest.raises(UserError, match='needs a generator'):
            measure(name, images)


# Names, intervals, packing.


def test_only_the_official_estimator_gives_the_bare_name() -> None:
    estimator = NumberEstimator()
    assert reported_name(parse_metric('aed'), estimator) == 'aed_numbers'
    assert reported_name(parse_metric('aed_smirk50x4'), estimator) == 'aed_smirk50x4'
    estimator.name = 'deca'
    assert reported_name(parse_metric('aed'), estimator) == 'aed'
    assert reported_name(parse_metric('aed50x4'), estimator) == 'aed50x4'
    assert reported_name(parse_metric('apd_no_roll_deca'), estimator) == 'apd_no_roll'


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    other = NumberEstimator()
    other.head_model = 'flame2020'
    monkeypatch.setattr(registry, 'load_head_estimator', lambda spec, **_: other)
    with pytest.raises(UserError, match='estimates parameters of flame2020, but numbers is driven by numbers'):
        measure('aed2x2', NumberAdapter())
    small = NumberAdapter()
    small.images = lambda request: torch.zeros(1, 3, 4, 4)  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r'images\(\) must return a uint8 tensor \[2, 3, 16, 16\], got torch.float32'):
        measure('id1', small)
    unable = NumberAdapter()
    unable.mixes = False
    with pytest.raises(UserError, match='cannot mix latents'):
        measure('ppl_random5', unable)
    with pytest.raises(UserError, match='give a dataset by --data'):
        registry.evaluate(['fd_random9'], subject=NumberAdapter(), dataset=None, protocol=Protocol(), communicator=CPU)


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        values = rng.normal(1, 2, 60)
        low, high = ratio_interval(values, np.ones(60), seed=seed)
        hits += low < 1 < high
    assert 180 <= hits <= 198
    assert ratio_interval(values, np.ones(60), seed=3) == ratio_interval(values, np.ones(60), seed=3)


def test_packed_estimates_come_back() -> None:
    estimate = NumberEstimator()(NumberDataset().images([0, 1, 2]))
    again = unpack(pack(estimate))
    for name in ('expression', 'jaw', 'rotation', 'gaze', 'valid'):
        assert torch.equal(getattr(again, name), getattr(estimate, name))
    less = type(estimate)(expression=None, jaw=None, rotation=estimate.rotation, gaze=None, valid=estimate.valid)
    again = unpack(pack(less))
    assert again.expression is None
    assert again.jaw is None
    assert again.gaze is None
