"""Template renderings agree with the camera: silhouettes, colours, occlusion, modes."""

from __future__ import annotations

import pytest
import torch
from cases_geometry import ellipsoid_template, posed

from training.cameras import head_to_world, orbit_camera, project
from training.template_rendering import correspondence_colors, render_template, vertex_normals

TEMPLATE = ellipsoid_template(rings=40, segments=64, mouth_hole=False)


@pytest.mark.parametrize('mode', ['correspondence', 'uv', 'normals'])
def test_visible_vertices_show_their_colour(mode: str) -> None:
    head = posed(TEMPLATE, 2)
    label = orbit_camera(torch.tensor([0.0, 0.5]), torch.tensor([0.1, -0.2]))
    image = render_template(TEMPLATE, head, label, resolution=256, mode=mode)
    assert image.shape == (2, 3, 256, 256)
    world = head_to_world(head.vertices)
    at, _ = project(world, label)
    rotation = label[:, :16].view(-1, 4, 4)[:, :3, :3]
    normals = vertex_normals(world, TEMPLATE.faces) @ rotation
    colors = {
        'correspondence': correspondence_colors(TEMPLATE).expand(2, -1, -1),
        'uv': torch.cat([TEMPLATE.uv * 2 - 1, torch.ones(len(TEMPLATE.uv), 1)], dim=1).expand(2, -1, -1),
        'normals': normals,
    }[mode]
    seam = (
        (TEMPLATE.uv[:, 0] < 0.03) | (TEMPLATE.uv[:, 0] > 0.97) | (TEMPLATE.uv[:, 1] < 0.1) | (TEMPLATE.uv[:, 1] > 0.9)
    )
    for n in range(2):
        facing = (normals[n, :, 2] < -0.4) & ~seam
        assert facing.sum() > 100
        shown = torch.nn.functional.grid_sample(
            image[n : n + 1], at[n, facing][None, None] * 2 - 1, align_corners=False
        )
        error = (shown[0, :, 0].T - colors[n, facing]).abs()
        assert error.max() < 0.12
        assert error.mean() < 0.02


def test_background_is_minus_one_and_silhouette_fits() -> None:
    head = posed(TEMPLATE, 1, amount=0)
    label = orbit_camera(torch.tensor([0.3]), torch.tensor([0.0]))
    image = render_template(TEMPLATE, head, label, resolution=128, mode='uv')
    covered = image[0, 2] > 0
    assert (image[0][:, ~covered] == -1).all()
    at, _ = project(head_to_world(head.vertices), label)
    columns = covered.any(dim=0).nonzero().flatten()
    assert abs(columns[0].item() - at[0, :, 0].min().item() * 128) < 1.5
    assert abs(columns[-1].item() + 1 - at[0, :, 0].max().item() * 128) < 1.5


def test_unknown_mode_is_named() -> None:
    head = posed(TEMPLATE, 1)
    label = orbit_camera(torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match='mode: expected correspondence'):
        render_template(TEMPLATE, head, label, resolution=16, mode='none')
