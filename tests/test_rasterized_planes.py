"""Rasterized planes: what the sampler reads at a visible vertex is the texture at that vertex."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cases_geometry import ellipsoid_template, posed

from torch_utils.ops.planes import sample_planes
from training.cameras import HEAD_SCALE, HEAD_TRANSLATION, head_to_world
from training.config import GeneratorConfig, from_dict, to_dict
from training.rasterized_planes import LEFT, RIGHT, TOP, TemplateTransform, TextureRasterizer

CONFIG = GeneratorConfig(plane_resolution=128, plane_channels=4, template_transform='constant')
TEMPLATE = ellipsoid_template(mouth_hole=False)


def uv_texture(size: int = 256) -> torch.Tensor:
    """Channels: u and v where u > 0.5 (the subject's left half, x > 0), then u and v where u < 0.5."""
    centres = (torch.arange(size) + 0.5) / size
    v, u = torch.meshgrid(1 - centres, centres, indexing='ij')
    left = (u > 0.5).float()
    return torch.stack([u * left, v * left, u * (1 - left), v * (1 - left)])[None]


def visible(direction: tuple[float, float, float]) -> torch.Tensor:
    """Vertices of the (convex) template that face `direction` and lie off the seams of the texture."""
    radii = torch.tensor([0.08, 0.11, 0.09])
    normal = torch.nn.functional.normalize(TEMPLATE.vertices / radii**2, dim=-1)
    facing = (normal @ torch.tensor(direction)) > 0.35
    off_seam = (TEMPLATE.vertices[:, 0].abs() > 0.012) & (TEMPLATE.vertices[:, 1].abs() < 0.1)
    return facing & off_seam


@pytest.mark.parametrize(
    ('slot', 'direction'), [(0, (0, 0, 1.0)), (1, (0, 1.0, 0)), (2, (1.0, 0, 0)), (2, (-1.0, 0, 0))]
)
def test_sampler_finds_the_texture_at_every_visible_vertex(slot: int, direction: tuple[float, float, float]) -> None:
    rasterizer = TextureRasterizer(CONFIG, TEMPLATE)
    head = posed(TEMPLATE, 2, amount=0.001)
    out = rasterizer(uv_texture().expand(2, -1, -1, -1), head)
    chosen = visible(direction)
    assert chosen.sum() > 30
    features = torch.zeros_like(out.features)
    features[:, slot] = out.features[:, slot]
    read = sample_planes(features, head_to_world(head.vertices[:, chosen]), box_size=1.0, aggregation='sum')
    uv = TEMPLATE.uv[chosen]
    left = (uv[:, :1] > 0.5).float()
    expected = torch.cat([uv * left, uv * (1 - left)], dim=1)
    halves = slice(0, 2) if direction[0] > 0 else slice(2, 4) if direction[0] < 0 else slice(0, 4)
    error = (read - expected)[..., halves].abs()
    assert error.max() < 0.03
    assert error.mean() < 0.004


def test_release_layout_swaps_side_and_top() -> None:
    """The quirk, as SPEC section 3 states it: slot 1 holds the unmirrored sides, slot 2 the top view."""
    release = TextureRasterizer(dataclasses.replace(CONFIG, plane_layout='release', side_alpha='one_sided'), TEMPLATE)
    head = posed(TEMPLATE, 1)
    alpha = release(uv_texture(), head).alpha
    views = release.project(head.vertices)
    assert alpha.shape == (1, 3, 1, 128, 128)
    for slot, view in ((1, LEFT), (2, TOP)):
        rows = (alpha[0, slot, 0].sum(dim=1) > 0).nonzero().flatten()
        low, high = (2 * rows[0] + 1) / 128 - 1, (2 * rows[-1] + 1) / 128 - 1
        assert abs(low - views[view, 0, :, 1].min()) < 0.06
        assert abs(high - views[view, 0, :, 1].max()) < 0.06


def test_release_projection_matches_the_measured_coordinates() -> None:
    release = TextureRasterizer(dataclasses.replace(CONFIG, plane_layout='release'), TEMPLATE)
    points = torch.randn(1, 40, 3) * 0.05
    x, y, z = points.unbind(-1)
    views = release.project(points)
    expected = [(5 * x, 5 * (y + 0.01)), (-5 * z, 5 * (y + 0.01)), (5 * z, 5 * (y + 0.01)), (5 * x, -5 * (z - 0.01))]
    for view, (column, row) in zip(views, expected, strict=True):
        torch.testing.assert_close(view[..., 0], column, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(view[..., 1], row, atol=1e-5, rtol=1e-5)


def test_depth_grows_away_from_the_viewer() -> None:
    rasterizer = TextureRasterizer(CONFIG, TEMPLATE)
    near = torch.tensor([[[0.0, 0, 0.05], [0.05, 0, 0], [-0.05, 0, 0], [0, 0.05, 0]]])
    depth = rasterizer.project(near)[..., 2]
    far = rasterizer.project(-near)[..., 2]
    for view in range(4):
        assert depth[view, 0, view] < far[view, 0, view]


def test_both_sides_are_united() -> None:
    """Half a head, seen from one side only, must be opaque in the united side plane."""
    keep = TEMPLATE.vertices[TEMPLATE.faces].mean(dim=1)[:, 0] < 0  # the subject's right half
    half = dataclasses.replace(
        TEMPLATE,
        faces=TEMPLATE.faces[keep],
        uv_faces=TEMPLATE.uv_faces[keep],
        landmark_faces=torch.zeros(68, dtype=torch.int64),
    )
    head = posed(half, 1)
    union = TextureRasterizer(CONFIG, half)(uv_texture(), head).alpha[0, 2]
    one = TextureRasterizer(dataclasses.replace(CONFIG, side_alpha='one_sided'), half)(uv_texture(), head).alpha[0, 2]
    assert union.sum() > 2000
    assert one.sum() < 0.2 * union.sum()


@pytest.mark.parametrize(('source', 'closed'), [('teeth', True), ('texture', True), ('static', False)])
def test_mouth_hole_is_filled_unless_static_planes_show_through(source: str, closed: bool) -> None:
    template = ellipsoid_template(rings=40, segments=64)
    config = from_dict(GeneratorConfig, {**to_dict(CONFIG), 'mouth_source': source})
    rasterizer = TextureRasterizer(config, template)
    head = posed(template, 1, amount=0)
    alpha = rasterizer(uv_texture(), head).alpha[0, 0, 0]
    mouth = 2 * (HEAD_SCALE * torch.tensor([0.0, -0.045]) + torch.tensor(HEAD_TRANSLATION[:2]))
    column, row = ((mouth + 1) * 64).long().tolist()
    assert (alpha[row, column] == 1) == closed


def test_learned_transform_gets_a_gradient_and_stays_in_bounds() -> None:
    rasterizer = TextureRasterizer(dataclasses.replace(CONFIG, template_transform='learned'), TEMPLATE)
    head = posed(TEMPLATE, 2)
    out = rasterizer(uv_texture().expand(2, -1, -1, -1), head)
    (out.features * torch.randn(out.features.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    for parameter in rasterizer.transform.parameters():
        assert parameter.grad is not None
        assert (parameter.grad != 0).all()
    assert isinstance(rasterizer.transform, TemplateTransform)
    with torch.no_grad():
        rasterizer.transform.scale.fill_(1e6)
        rasterizer.transform.translation.fill_(-1e6)
    moved = rasterizer.transform(torch.tensor([[[0.1, 0.0, 0.0]]]))
    torch.testing.assert_close(moved, torch.tensor([[[0.11 - 0.02, -0.02, -0.02]]]))


def test_samples_do_not_see_each_other() -> None:
    rasterizer = TextureRasterizer(CONFIG, TEMPLATE)
    head = posed(TEMPLATE, 3)
    texture = torch.randn(3, 4, 64, 64, generator=torch.Generator().manual_seed(2))
    both, one = rasterizer(texture, head), rasterizer(texture[1:2], head[1:2])
    for name in ('features', 'alpha', 'landmarks'):
        torch.testing.assert_close(getattr(both, name)[1:2], getattr(one, name))


def test_another_topology_is_refused() -> None:
    rasterizer = TextureRasterizer(CONFIG, TEMPLATE)
    other = ellipsoid_template(rings=10)
    with pytest.raises(ValueError, match=r'vertices: expected \[N, \d+, 3\] for this template'):
        rasterizer(uv_texture(), posed(other, 1))


def test_right_view_is_seen_from_the_right() -> None:
    rasterizer = TextureRasterizer(CONFIG, TEMPLATE)
    points = torch.tensor([[[-0.05, 0.0, 0.02]]])
    assert rasterizer.project(points)[RIGHT, 0, 0, 2] < rasterizer.project(points)[LEFT, 0, 0, 2]
