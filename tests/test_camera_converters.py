"""Each converter by a closed-form example and there and back."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from tests.cases_dataset import random_labels
from training import cameras
from training.camera_converters import (
    WeakPerspective,
    from_pixels,
    label_to_opencv,
    label_to_opengl,
    label_to_weak,
    opencv_to_label,
    opengl_to_label,
    to_pixels,
    weak_to_label,
)
from training.head.rotation import axis_angle_matrix

FRONTAL = cameras.orbit_camera(torch.zeros(1), torch.zeros(1))
POINTS = torch.tensor([[[0.0, 0.0, 0.0], [0.2, 0.1, 0.3], [-0.3, 0.25, -0.1]]])


def labels(count: int = 7) -> Tensor:
    return random_labels(count, seed=3)


def weak_views(count: int = 5, *, seed: int = 0) -> WeakPerspective:
    rng = torch.Generator().manual_seed(seed)
    return WeakPerspective(
        scale=8 + 2 * torch.rand(count, generator=rng),
        shift=0.02 * torch.randn(count, 2, generator=rng),
        rotation=axis_angle_matrix(0.4 * torch.randn(count, 3, generator=rng)),
        pivot=0.03 * torch.randn(count, 3, generator=rng),
    )


def test_opencv_of_the_frontal_camera() -> None:
    world2cam, intrinsics = label_to_opencv(FRONTAL)
    # It stands at z = 2.9 and looks to -z: world x is its x, world y points up against its y.
    expected = torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 2.9], [0, 0, 0, 1]])
    torch.testing.assert_close(world2cam[0], expected)
    assert intrinsics[0, 0, 0] == pytest.approx(4.2647)


@pytest.mark.parametrize('rows', [3, 4])
def test_opencv_there_and_back_and_by_projection(rows: int) -> None:
    label = labels()
    world2cam, intrinsics = label_to_opencv(label)
    torch.testing.assert_close(opencv_to_label(world2cam[:, :rows], intrinsics), label)
    local = POINTS @ world2cam[:, :3, :3].transpose(1, 2) + world2cam[:, None, :3, 3]
    homogeneous = local @ intrinsics.transpose(1, 2)
    expected, depth = cameras.project(POINTS.expand(len(label), -1, -1), label)
    torch.testing.assert_close(homogeneous[..., :2] / homogeneous[..., 2:], expected)
    torch.testing.assert_close(local[..., 2], depth)


def test_opengl_of_the_frontal_camera_has_the_worlds_axes() -> None:
    cam2world, _ = label_to_opengl(FRONTAL)
    expected = torch.eye(4)
    expected[2, 3] = 2.9
    torch.testing.assert_close(cam2world[0], expected)


def test_opengl_there_and_back_and_looks_along_minus_z() -> None:
    label = labels()
    cam2world, intrinsics = label_to_opengl(label)
    torch.testing.assert_close(opengl_to_label(cam2world, intrinsics), label)
    torch.testing.assert_close(torch.linalg.det(cam2world[:, :3, :3]), torch.ones(len(label)))
    ahead = cam2world[:, :3, 3] - 2.0 * cam2world[:, :3, 2]
    middle, depth = cameras.project(ahead[:, None], label)
    torch.testing.assert_close(middle, torch.full_like(middle, 0.5))
    torch.testing.assert_close(depth, torch.full_like(depth, 2.0))


@pytest.mark.parametrize(('integer', 'centre'), [(False, 256.0), (True, 255.5)])
def test_pixels_of_a_512_image(integer: bool, centre: float) -> None:
    matrix = to_pixels(cameras.intrinsics(2), 512, integer_centres=integer)
    expected = torch.tensor([[4.2647 * 512, 0, centre], [0, 4.2647 * 512, centre], [0, 0, 1]])
    torch.testing.assert_close(matrix[1], expected)
    torch.testing.assert_close(from_pixels(matrix, 512, integer_centres=integer), cameras.intrinsics(2))


def test_weak_perspective_by_hand() -> None:
    weak = WeakPerspective(
        scale=torch.tensor([8.0]),
        shift=torch.tensor([[0.01, -0.02]]),
        rotation=axis_angle_matrix(torch.tensor([[0.0, math.pi / 2, 0.0]])),  # the nose points to the image's right
        pivot=torch.tensor([[0.0, -0.1, 0.0]]),
    )
    seen = weak.project(torch.tensor([[[0.0, 0.03, 0.09]]]))
    torch.testing.assert_close(seen[0, 0], torch.tensor([0.5 + 4 * (0.09 + 0.01), 0.5 - 4 * (0.03 - 0.02)]))


def test_weak_camera_of_a_frontal_head_by_hand() -> None:
    weak = dataclasses.replace(weak_views(1), rotation=torch.eye(3)[None], shift=torch.zeros(1, 2))
    label = weak_to_label(weak, torch.tensor([0.0, 0.0, 0.05]))
    position = label[0, :16].reshape(4, 4)[:3, 3]
    # 2 f / scale metres in front of the reference, in world units and the world's frame.
    distance = 2.5 * (2 * 4.2647 / float(weak.scale) + 0.05)
    torch.testing.assert_close(position, torch.tensor([0.0, 0.025, distance - 0.025]))


def test_weak_view_and_its_perspective_camera_agree_in_the_reference_plane() -> None:
    weak = weak_views()
    reference = torch.tensor([0.01, 0.02, 0.06])
    label = weak_to_label(weak, reference)
    # Points of the plane through the reference, parallel to the image.
    across = torch.tensor([[0.0, 0, 0], [0.05, 0, 0], [0, 0.08, 0], [-0.07, -0.06, 0]])
    points = reference + (across @ weak.rotation)
    seen, _ = cameras.project(cameras.head_to_world(points), label)
    torch.testing.assert_close(seen, weak.project(points), atol=2e-6, rtol=0)


def test_weak_there_and_back() -> None:
    weak, reference = weak_views(), torch.tensor([0.0, 0.0, 0.07])
    back = label_to_weak(weak_to_label(weak, reference), reference, pivot=weak.pivot)
    for field in dataclasses.fields(weak):
        torch.testing.assert_close(getattr(back, field.name), getattr(weak, field.name), atol=1e-5, rtol=1e-5)


def test_label_to_weak_there_and_back() -> None:
    label, reference, pivot = labels(), torch.tensor([0.0, 0.01, 0.05]), torch.tensor([0.0, -0.1, -0.02])
    back = weak_to_label(label_to_weak(label, reference, pivot=pivot), reference)
    torch.testing.assert_close(back, label, atol=1e-5, rtol=1e-5)


def test_weak_view_of_a_crop() -> None:
    weak = weak_views()
    column, row, side = torch.tensor([0.1, 0.2, 0.0, 0.3, 0.25]), torch.tensor([0.2, 0.1, 0.0, 0.3, 0.0]), 0.5
    points = 0.05 * torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(1))
    whole = weak.in_crop(column, row, torch.full((5,), side)).project(points)
    expected = weak.project(points) * side + torch.stack([column, row], dim=1)[:, None]
    torch.testing.assert_close(whole, expected)


@pytest.mark.parametrize(
    ('call', 'name'),
    [
        (lambda: opencv_to_label(torch.zeros(2, 4, 3), cameras.intrinsics(2)), 'world2cam'),
        (lambda: opengl_to_label(torch.zeros(2, 3, 4), cameras.intrinsics(2)), 'cam2world'),
        (lambda: dataclasses.replace(weak_views(), shift=torch.zeros(5, 3)), 'shift'),
        (lambda: label_to_weak(labels() + 0.1, torch.zeros(3), pivot=torch.zeros(3)), 'label'),
    ],
)
def test_wrong_shapes_are_named(call, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        call()
