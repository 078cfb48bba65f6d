"""Cameras: projection and rays are inverses, mirroring, orbit geometry."""

from __future__ import annotations

import math

import pytest
import torch

from training import cameras


def random_labels(count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    yaw, pitch, roll = (torch.randn(3, count, generator=generator, dtype=torch.float64) * 0.4).unbind()
    label = cameras.orbit_camera(yaw, pitch, roll=roll)
    label[:, 17] = 0.03  # skew
    label[:, 18], label[:, 21] = 0.47, 0.55
    return label


def test_rays_pass_through_their_pixels() -> None:
    label = random_labels()
    origins, directions = cameras.rays(label, 5)
    for distance in (0.5, 2.7):
        image, depth = cameras.project(origins + distance * directions, label)
        centres = (torch.arange(5, dtype=torch.float64) + 0.5) / 5
        expected = torch.stack([centres.repeat(5), centres.repeat_interleave(5)], dim=-1)
        torch.testing.assert_close(image, expected.expand_as(image))
        assert (depth > 0).all()


def test_orbit_camera_axes() -> None:
    label = cameras.orbit_camera(torch.tensor([0.0]), torch.tensor([0.0]))
    image, depth = cameras.project(torch.tensor([[[0.0, 0.0, 0.2], [0.1, 0.0, 0.2], [0.0, 0.1, 0.2]]]), label)
    torch.testing.assert_close(image[0, 0], torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(depth, torch.full((1, 3), 2.7))
    assert image[0, 1, 0] > 0.5, 'the subject left (+x) is on the right of the image'
    assert image[0, 2, 1] < 0.5, 'up in the world is up in the image'


def test_orbit_moves_camera() -> None:
    left = cameras.unpack_label(cameras.orbit_camera(torch.tensor([0.5]), torch.tensor([0.2])))[0][0, :3, 3]
    assert left[0] > 0
    assert left[1] > 0
    assert math.isclose((left - torch.tensor(cameras.PIVOT)).norm().item(), 2.7, rel_tol=1e-5)


def test_rotations_are_rotations() -> None:
    rotation = cameras.unpack_label(random_labels())[0][:, :3, :3]
    identity = torch.eye(3, dtype=torch.float64).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), identity)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(6, dtype=torch.float64))


def test_mirrored_camera_sees_the_mirrored_world_flipped() -> None:
    label = random_labels()
    points = torch.randn(6, 20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.2
    image, depth = cameras.project(points, label)
    flip = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    mirrored, mirrored_depth = cameras.project(points * flip, cameras.mirror_label(label))
    torch.testing.assert_close(mirrored[..., 0], 1 - image[..., 0])
    torch.testing.assert_close(mirrored[..., 1], image[..., 1])
    torch.testing.assert_close(mirrored_depth, depth)
    torch.testing.assert_close(cameras.mirror_label(cameras.mirror_label(label)), label)


def test_focal_matches_the_field_of_view_option() -> None:
    assert math.isclose(cameras.focal_from_fov(18.837), cameras.FOCAL, rel_tol=1e-3)


def test_frames_are_inverses() -> None:
    points = torch.randn(7, 3)
    torch.testing.assert_close(cameras.world_to_head(cameras.head_to_world(points)), points)


def test_bad_label_is_named() -> None:
    with pytest.raises(ValueError, match='label: expected shape'):
        cameras.unpack_label(torch.zeros(2, 16))
