"""The frames of an estimate: rotation, gaze and jaw against projected and rendered heads."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from metrics.estimators.base import HeadEstimate, gaze_angles, head_rotation
from torch_utils.rotations import axis_angle_matrix, matrix_axis_angle
from training import cameras
from training.head.makehuman import MakeHumanHead, embedded_head
from training.head.model import HeadParams

FRONT = cameras.orbit_camera(torch.zeros(1), torch.zeros(1))
TIP, CHIN, BROW = 30, 8, 27  # landmarks


@pytest.fixture(scope='module')
def model() -> MakeHumanHead:
    return embedded_head()


def vectors(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows)


def seen(model: MakeHumanHead, params: HeadParams, label: Tensor = FRONT) -> Tensor:
    """Landmarks [68, 2] in the picture."""
    return cameras.project(cameras.head_to_world(model.forward(params).landmarks), label)[0][0]


def facing(points: Tensor) -> Tensor:
    """Where the nose points in the picture: its tip from its root."""
    return points[TIP] - points[BROW]


# Rotations as vectors.


def test_axis_angle_there_and_back_at_every_angle() -> None:
    rng = torch.Generator().manual_seed(0)
    axes = torch.nn.functional.normalize(torch.randn(200, 3, generator=rng, dtype=torch.float64), dim=1)
    angles = torch.cat([torch.rand(190, generator=rng).double() * math.pi, torch.logspace(-9, -1, 5).double()])
    angles = torch.cat([angles, math.pi - torch.logspace(-7, -2, 5).double()])[:, None]
    assert torch.allclose(matrix_axis_angle(axis_angle_matrix(axes * angles)), axes * angles, atol=2e-6)
    assert torch.equal(matrix_axis_angle(torch.eye(3)), torch.zeros(3))
    beyond = axes[:5] * (math.pi + 0.3)  # the short way round is the other way
    assert torch.allclose(matrix_axis_angle(axis_angle_matrix(beyond)), axes[:5] * (0.3 - math.pi), atol=1e-6)
    with pytest.raises(ValueError, match=r'matrices: expected shape \[\.\.\., 3, 3\]'):
        matrix_axis_angle(torch.zeros(3))


# The head's rotation.


def test_upright_head_before_the_frontal_camera_has_no_rotation(model: MakeHumanHead) -> None:
    assert torch.allclose(head_rotation(model.neutral(), FRONT), torch.zeros(1, 3), atol=1e-6)


def test_signs_of_rotation_are_those_of_the_picture(model: MakeHumanHead) -> None:
    """+x: the face turns down, +y: to the left of the picture, +z: the picture of the head turns clockwise."""
    neutral = model.neutral()
    still = seen(model, neutral)
    size = 0.2
    cases = {0: vectors((size, 0, 0)), 1: vectors((0, -size, 0)), 2: vectors((0, 0, -size))}  # of the head: FLAME's
    for axis, vector in cases.items():
        for field in ('rotation', 'neck'):
            turned = neutral.replace(**{field: vector})
            found = head_rotation(turned, FRONT)[0]
            expected = torch.zeros(3)
            expected[axis] = size
            assert torch.allclose(found, expected, atol=1e-6), (axis, field)
        points = seen(model, neutral.replace(rotation=vector))
        if axis < 2:
            moved = facing(points) - facing(still)
            assert moved[1 - axis] * (1 if axis == 0 else -1) > 0.005
        else:  # clockwise: what was above moves right
            assert (points[BROW] - points[CHIN])[0] > 0.03


def test_camera_and_head_that_move_alike_cancel(model: MakeHumanHead) -> None:
    """A head that turns to where the camera went is seen as before; rotation and neck add up."""
    yaw = 0.4
    label = cameras.orbit_camera(torch.tensor([yaw]), torch.zeros(1))
    follow = model.neutral().replace(rotation=vectors((0, 0.3, 0)), neck=vectors((0, 0.1, 0)))
    assert torch.allclose(head_rotation(follow, label), torch.zeros(1, 3), atol=1e-6)
    # The camera at the subject's left sees a neutral head looking to the left of the picture.
    still = head_rotation(model.neutral(), label)[0]
    assert torch.allclose(still, torch.tensor([0.0, yaw, 0.0]), atol=1e-6)
    assert facing(seen(model, model.neutral(), label))[0] < -0.01


def test_roll_of_the_camera_is_roll_of_the_head(model: MakeHumanHead) -> None:
    label = cameras.orbit_camera(torch.zeros(1), torch.zeros(1), roll=torch.tensor([0.25]))
    assert torch.allclose(head_rotation(model.neutral(), label)[0], torch.tensor([0.0, 0.0, -0.25]), atol=1e-6)


def test_rotation_carries_points_from_the_frontal_view(model: MakeHumanHead) -> None:
    """R of a turned head takes camera coordinates of the neutral head's axes to those that the camera sees."""
    rng = torch.Generator().manual_seed(1)
    params = model.neutral(4).replace(
        rotation=0.4 * torch.randn(4, 3, generator=rng), neck=0.2 * torch.randn(4, 3, generator=rng)
    )
    label = cameras.orbit_camera(*(0.4 * torch.randn(2, 4, generator=rng)), roll=0.3 * torch.randn(4, generator=rng))
    turn = axis_angle_matrix(head_rotation(params, label))
    cam2world = cameras.unpack_label(label)[0][:, :3, :3]
    front = cameras.unpack_label(FRONT)[0][:, :3, :3]
    nose = torch.tensor([0.0, 0.0, 1.0])
    head = axis_angle_matrix(params.rotation) @ axis_angle_matrix(params.neck)
    expected = cam2world.transpose(1, 2) @ (head @ nose)[..., None]
    assert torch.allclose(turn @ (front.transpose(1, 2) @ nose)[..., None], expected, atol=1e-5)


# Gaze.


def test_gaze_angles_are_those_of_the_irises(model: MakeHumanHead) -> None:
    """Yaw > 0 to the subject's left (right of the picture), pitch > 0 up."""
    eyes = torch.zeros(1, 6)
    eyes[0, 1], eyes[0, 3] = 0.3, -0.2  # left eye to the left; right eye up
    gaze = gaze_angles(eyes)[0]
    assert torch.allclose(gaze, torch.tensor([[0.3, 0.0], [0.0, 0.2]]), atol=1e-6)
    centres = model.gaze_vertices[:, 0]

    def irises(params: HeadParams) -> Tensor:
        points = cameras.head_to_world(model.forward(params).vertices[:, centres])
        return cameras.project(points, FRONT)[0][0]

    moved = irises(model.neutral().replace(eyes=eyes)) - irises(model.neutral())
    assert moved[0, 0] > 0.003
    assert moved[1, 1] < -0.003
    assert abs(moved[0, 1]) < 0.001
    assert abs(moved[1, 0]) < 0.001


# Shapes.


def test_wrong_shapes_name_the_argument(model: MakeHumanHead) -> None:
    with pytest.raises(ValueError, match=r'cameras: expected shape \[N, 25\]'):
        head_rotation(model.neutral(), torch.zeros(1, 16))
    with pytest.raises(ValueError, match=r'eyes: expected shape \[N, 6\]'):
        gaze_angles(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r'HeadEstimate\.gaze: expected shape \[2, 2, 2\], got \[2, 4\]'):
        HeadEstimate(
            expression=None, jaw=None, rotation=None, gaze=torch.zeros(2, 4), valid=torch.ones(2, dtype=torch.bool)
        )


def test_estimates_join() -> None:
    parts = [
        HeadEstimate(
            expression=torch.full((n, 5), float(n)), jaw=None, rotation=torch.zeros(n, 3), gaze=None,
            valid=torch.ones(n, dtype=torch.bool),
        )
        for n in (1, 2)
    ]  # fmt: skip
    joined = HeadEstimate.cat(parts)
    assert len(joined) == 3
    assert joined.jaw is None
    assert joined.expression is not None
    assert joined.expression[:, 0].tolist() == [1.0, 2.0, 2.0]
