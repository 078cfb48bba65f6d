"""Driving sequences: demos, loops between key poses, resampling, and that identity never passes."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from applications.driving import SEQUENCE_NAMES, demo_sequence, resample, sequence_between, transfer
from dnnlib import UserError
from training.head.makehuman import MakeHumanHead, embedded_head
from training.head.model import HeadParams

HEAD = embedded_head()
LANDMARK_LIPS = (62, 66)  # inner lips: upper, lower


def random_params(count: int, *, seed: int) -> HeadParams:
    rng = torch.Generator().manual_seed(seed)
    return HEAD.neutral(count).map(lambda t: 0.3 * torch.randn(t.shape, generator=rng))


@pytest.mark.parametrize('name', SEQUENCE_NAMES)
def test_demos_are_smooth_and_rest_at_both_ends(name: str) -> None:
    params = demo_sequence(name, HEAD, frames=160, fps=40)
    assert len(params) == 160
    for field in ('identity', 'rotation', 'translation'):
        assert not getattr(params, field).any(), field
    moved = HEAD.forward(params).vertices - HEAD.template.vertices
    assert moved[0].norm(dim=-1).max() < 1e-6
    assert moved[-1].norm(dim=-1).max() < 1e-6
    assert moved.norm(dim=-1).max() > 2e-3
    assert (moved[1:] - moved[:-1]).norm(dim=-1).max() < 0.012  # metres in a 40th of a second
    assert demo_sequence(name, HEAD, frames=0, fps=40).jaw.shape == (0, 3)


def test_talking_opens_and_closes_the_mouth() -> None:
    params = demo_sequence('talk', HEAD, frames=120, fps=30)
    landmarks = HEAD.forward(params).landmarks
    gap = landmarks[:, LANDMARK_LIPS[0], 1] - landmarks[:, LANDMARK_LIPS[1], 1]
    openings = (gap > 0.008).int().diff().clamp_min(0).sum()
    assert openings >= 4
    assert gap.min() < 0.002


def test_blink_closes_the_eyes_briefly() -> None:
    params = demo_sequence('blink', HEAD, frames=160, fps=40)
    landmarks = HEAD.forward(params).landmarks
    lids = landmarks[:, 37, 1] - landmarks[:, 41, 1]
    closed = (lids < 0.4 * lids[0]).float().mean()
    assert 0.03 < closed < 0.3


def test_gaze_moves_the_eyes_alone() -> None:
    params = demo_sequence('gaze', HEAD, frames=160, fps=40)
    assert params.eyes[:, 1].max() > 0.4
    assert params.eyes[:, 1].min() < -0.4
    assert torch.equal(params.eyes[:, :3], params.eyes[:, 3:])
    assert not params.jaw.any()
    assert not params.neck.any()
    left = HEAD.forward(HEAD.neutral().replace(eyes=torch.tensor([[0, 0.4, 0, 0, 0.4, 0]])))
    iris = HEAD.gaze_vertices[0, 0]
    assert left.vertices[0, iris, 0] > HEAD.template.vertices[iris, 0]  # +y turns the gaze to the subject's left (+x)


def test_signs_of_jaw_and_neck() -> None:
    opened = HEAD.forward(HEAD.neutral().replace(jaw=torch.tensor([[0.3, 0.0, 0.0]]))).landmarks[0]
    neutral = HEAD.forward(HEAD.neutral()).landmarks[0]
    assert opened[8, 1] < neutral[8, 1] - 0.01  # the chin goes down
    turned = HEAD.forward(HEAD.neutral().replace(neck=torch.tensor([[0.0, 0.3, 0.0]]))).landmarks[0]
    assert turned[30, 0] > neutral[30, 0] + 0.01  # the nose goes to the subject's left
    nodded = HEAD.forward(HEAD.neutral().replace(neck=torch.tensor([[0.3, 0.0, 0.0]]))).landmarks[0]
    assert nodded[30, 1] < neutral[30, 1] - 0.01


def test_sequence_between_visits_its_keys_and_loops() -> None:
    keys = random_params(3, seed=0)
    params = sequence_between(keys, frames=30)
    for number in range(3):
        for name, value in params[[10 * number]].as_dict().items():
            torch.testing.assert_close(value, keys.as_dict()[name][[number]], rtol=0, atol=1e-6)
    step = (params.expression[1:] - params.expression[:-1]).norm(dim=1)
    assert (params.expression[-1] - params.expression[0]).norm() <= step.max() + 1e-6


def test_a_single_key_alternates_with_the_neutral_face() -> None:
    key = random_params(1, seed=1)
    params = sequence_between(key, frames=20, neutral=HEAD.neutral())
    assert not params.expression[0].any()
    torch.testing.assert_close(params.expression[[10]], key.expression)
    torch.testing.assert_close(params.identity, key.identity.expand(20, -1))
    with pytest.raises(ValueError, match='neutral'):
        sequence_between(key, frames=20)


def test_rotations_take_the_shortest_arc() -> None:
    start, end = HEAD.neutral(), HEAD.neutral()
    start = start.replace(neck=torch.tensor([[0.0, math.pi - 0.2, 0.0]]))
    end = end.replace(neck=torch.tensor([[0.0, -math.pi + 0.2, 0.0]]))
    middle = resample(HeadParams.cat([start, end]), frames=3).neck[1]
    angle = (Rotation.from_rotvec([0, math.pi, 0]).inv() * Rotation.from_rotvec(middle.numpy())).magnitude()
    assert angle < 1e-5


def test_resample_keeps_the_ends() -> None:
    params = random_params(5, seed=2)
    assert resample(params, frames=5) is params
    longer = resample(params, frames=9)
    for name, value in longer[[0, 2, 8]].as_dict().items():
        torch.testing.assert_close(value, params.as_dict()[name][[0, 1, 4]], rtol=0, atol=1e-5)
    assert len(resample(params[[0]], frames=4)) == 4


def test_only_expression_and_pose_transfer() -> None:
    driver, identity = random_params(4, seed=3), torch.randn(1, HEAD.num_identity)
    moved = transfer(driver, identity=identity, head=HEAD)
    for field in ('expression', 'jaw', 'neck', 'eyes'):
        assert torch.equal(getattr(moved, field), getattr(driver, field))
    assert torch.equal(moved.identity, identity.expand(4, -1))
    assert not moved.rotation.any()
    assert not moved.translation.any()
    other = driver.replace(identity=driver.identity + 1)
    assert torch.equal(transfer(other, identity=identity, head=HEAD).identity, moved.identity)
    with pytest.raises(UserError, match='3 expression numbers, but head model makehuman takes'):
        transfer(driver.replace(expression=torch.zeros(4, 3)), identity=identity, head=HEAD)
    with pytest.raises(UserError, match='identity: expected'):
        transfer(driver, identity=identity[:, :3], head=HEAD)


def test_unknown_sequence() -> None:
    with pytest.raises(UserError, match='expected one of talk, blink, gaze, turn, all'):
        demo_sequence('shout', HEAD, frames=10, fps=10)


class JawOnly(MakeHumanHead):
    """A head model without named expressions."""

    def __init__(self) -> None:
        super().__init__()
        self.expression_names = ()


def test_demos_without_named_expressions() -> None:
    head = JawOnly()
    talking = demo_sequence('talk', head, frames=60, fps=30)
    assert talking.jaw[:, 0].max() > 0.1
    assert not talking.expression.any()
    assert len(demo_sequence('all', head, frames=61, fps=30)) == 61
    with pytest.raises(UserError, match='has no expression eyeBlink'):
        demo_sequence('blink', head, frames=10, fps=30)
