"""Meshes made fit for use: parts, decimation, cuts and lids, on solids whose surface is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from applications.mesh_cleanup import closed_at_the_border, cut_far, decimate, keep_largest
from applications.meshes import Mesh, extract_mesh

AXIS = np.linspace(-0.5, 0.5, 41)
GRID = np.stack(np.meshgrid(AXIS, AXIS, AXIS, indexing='ij'))


def ball(radius: float, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> NDArray[np.float32]:
    """A density with level 20 on a sphere."""
    away = GRID - np.array(centre).reshape(3, 1, 1, 1)
    return (20 - 50 * (np.linalg.norm(away, axis=0) - radius)).astype(np.float32)


def volume(mesh: Mesh) -> float:
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    return float(np.einsum('ij,ij->i', corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6)


def is_closed(mesh: Mesh) -> bool:
    """Whether every directed edge has its reverse, as often."""
    edges = mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    forward, counts = np.unique(edges, axis=0, return_counts=True)
    backward, others = np.unique(edges[:, ::-1], axis=0, return_counts=True)
    return np.array_equal(forward, backward) and np.array_equal(counts, others)


def test_the_largest_part_stays() -> None:
    both = np.maximum(ball(0.25, (-0.15, 0, 0)), ball(0.1, (0.35, 0.3, 0)))
    mesh = keep_largest(extract_mesh(both, level=20, half=0.5))
    alone = extract_mesh(ball(0.25, (-0.15, 0, 0)), level=20, half=0.5)
    assert len(mesh.faces) == len(alone.faces)
    assert mesh.faces.max() == len(mesh.vertices) - 1  # no vertex is left without a face
    assert volume(mesh) == pytest.approx(volume(alone), rel=1e-5)


@pytest.mark.parametrize('count', [200, 1500])
def test_a_decimated_ball_is_still_that_ball(count: int) -> None:
    mesh = extract_mesh(ball(0.35), level=20, half=0.5)
    small = decimate(mesh, faces=count)
    assert 0.5 * count < len(small.faces) <= count
    radius = np.linalg.norm(small.vertices, axis=1)
    assert np.abs(radius - 0.35).max() < 0.02
    assert volume(small) == pytest.approx(volume(mesh), rel=0.05)
    assert ((small.normals * small.vertices).sum(axis=1) > 0.8 * radius).all()
    assert is_closed(small)
    assert decimate(mesh, faces=len(mesh.faces)) is mesh


def test_decimation_keeps_edges() -> None:
    """A box loses little at its edges, where vertices at the means of their clusters would cut the corners."""
    inside = 20 - 50 * (np.abs(GRID) - 0.32).max(axis=0)
    mesh = extract_mesh(inside.astype(np.float32), level=20, half=0.5)
    small = decimate(mesh, faces=400)
    assert np.abs(np.abs(small.vertices).max(axis=0) - 0.32).max() < 0.01
    assert volume(small) == pytest.approx(0.64**3, rel=0.03)


def test_a_cut_leaves_what_is_near_as_it_was() -> None:
    both = np.maximum(ball(0.2), ball(0.15, (0.34, 0.34, 0.34)))
    points = np.zeros((1, 3), dtype=np.float32)
    cut = cut_far(both, level=20, half=0.5, points=points, distance=0.3)
    distance = np.linalg.norm(GRID, axis=0)
    assert np.array_equal(cut[distance < 0.19], both[distance < 0.19])
    assert not (cut[distance > 0.31] > 20).any()
    halved = extract_mesh(cut_far(ball(0.4), level=20, half=0.5, points=points, distance=0.25), level=20, half=0.5)
    assert np.abs(np.linalg.norm(halved.vertices, axis=1) - 0.25).max() < 0.01  # a smooth border, not voxels


def test_a_head_that_leaves_the_box_gets_a_lid() -> None:
    large = ball(0.6)
    assert not is_closed(extract_mesh(large, level=20, half=0.5))
    mesh = extract_mesh(closed_at_the_border(large, level=20), level=20, half=0.5)
    assert is_closed(mesh)
    assert volume(mesh) > 0.6
