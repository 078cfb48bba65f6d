"""Inside the stages, against the public release's numbers: projection, rasterized uv and planes, mouth boxes, the
volume's coarse and fine samples with the recorded draws, and its small operations (SPEC section 7)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tests.cases_parity import assert_parity, assert_same, decoded
from torch_utils.ops import bias_act, fill_holes, rasterize, upfirdn2d
from torch_utils.ops.planes import sample_planes
from training.cameras import focal_from_fov, orbit_camera, rays, unpack_label
from training.generator import Generator
from training.head.model import HeadInput
from training.legacy import load_generator_state
from training.loss import blur
from training.rasterized_planes import RasterizedPlanes, _view_rotation
from training.volume import VolumeRenderer, importance_depths, importance_shares, ray_weights, stratified_depths


@pytest.fixture(scope='module')
def case(parity_fixture: dict) -> dict:
    return parity_fixture


@pytest.fixture(scope='module')
def generator(case: dict, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    folder = tmp_path_factory.mktemp('topology')
    (folder / 'head.obj').write_text(case['inputs']['obj_text'])
    Image.fromarray(case['inputs']['mask_png'].numpy()).save(folder / 'mask.png')
    files: dict[str, Path] = {'topology': folder / 'head.obj', 'eye_mask': folder / 'mask.png'}
    return load_generator_state(case['G_state'], case['G_kwargs'], **files).requires_grad_(False)


@pytest.fixture(scope='module')
def head(case: dict) -> HeadInput:
    vertices = case['inputs']['v']
    return HeadInput(vertices=vertices[:, :-68], landmarks=vertices[:, -68:])


@pytest.fixture(scope='module')
def rasterized(case: dict, generator: Generator, head: HeadInput) -> RasterizedPlanes:
    texture = generator.texture(case['stages']['ws'][:, 14:])
    return generator.rasterizer(texture, head)


def test_projection_and_uv(case: dict, generator: Generator, head: HeadInput) -> None:
    recorded = case['stages']['raster']
    projected = generator.rasterizer.project(head.vertices)
    landmarks = generator.rasterizer.project(head.landmarks)
    for view in range(4):
        assert_parity(f'vertices, view {view}', projected[view], case, reference=recorded['verts'][view])
        assert_parity(f'landmarks, view {view}', landmarks[view, ..., :2], case, reference=recorded['lm2ds'][view])
        fragments = rasterize.rasterize(recorded['verts'][view], generator.rasterizer.faces, height=256, width=256)
        uv = rasterize.interpolate(fragments, generator.rasterizer.face_uv[None]).permute(0, 3, 1, 2)
        assert_parity(f'uv, view {view}', uv, case, reference=recorded['uv_raster'][view])
        assert_same(f'face ids, view {view}', fragments.face_ids, recorded['pix_to_face'][view].long(), case)
        covered = (fragments.face_ids >= 0)[:, None]
        barycentrics = torch.where(covered, fragments.barycentrics.permute(0, 3, 1, 2), -1)  # the release's background
        assert_parity(f'barycentrics, view {view}', barycentrics, case, reference=recorded['bary'][view])
        depth = torch.where(covered, fragments.depth[:, None], -1)
        assert_parity(f'raster depth, view {view}', depth, case, reference=recorded['zbuf'][view])
    for angles, matrix in case['ops']['angle2matrix'].items():
        degrees = json.loads(angles)
        assert_parity('view rotation', _view_rotation(tuple(degrees)), case, reference=matrix)


def test_alphas(case: dict, generator: Generator, rasterized: RasterizedPlanes) -> None:
    """Coverage without the eyes, with the mouth filled, and what the three slots get of it."""
    recorded = case['stages']['raster']
    for view, vertices in enumerate(recorded['verts']):
        fragments = rasterize.rasterize(vertices, generator.rasterizer.faces, height=256, width=256)
        covered = (fragments.face_ids >= 0).float()[:, None]
        assert_same(f'coverage, view {view}', covered, recorded['alpha_vis'][view].float(), case)
        uv = rasterize.interpolate(fragments, generator.rasterizer.face_uv[None])
        eye_mask = generator.rasterizer.eye_mask[None, None].expand(2, -1, -1, -1)
        mask = F.grid_sample(eye_mask, uv, align_corners=False)
        masked, filled = decoded(recorded['alpha_masked'])[view], decoded(recorded['alpha_filled'])[view]
        assert_parity(f'alpha without eyes, view {view}', mask * covered, case, reference=masked)
        alpha = fill_holes.fill_holes(mask * covered, guarded=False)
        assert_parity(f'alpha filled, view {view}', alpha, case, reference=filled)
    slots = decoded(recorded['alpha_images'])
    assert_parity('alpha of the planes', rasterized.alpha[:, :, 0], case, reference=slots)


def test_rasterized_planes(case: dict, rasterized: RasterizedPlanes) -> None:
    recorded = case['stages']['raster']
    for slot, reference in enumerate(recorded['rendering_images']):
        assert_parity(f'rasterized plane {slot}', rasterized.features[:, slot], case, reference=reference)


def test_mouth_boxes_and_crop(case: dict, generator: Generator, rasterized: RasterizedPlanes) -> None:
    stage = case['stages']['mouth']
    assert generator.teeth is not None
    boxes = generator.teeth.boxes(rasterized.landmarks)
    found = torch.stack([boxes.start[:, 0, 0], boxes.stop[:, 0, 0], boxes.start[:, 0, 1], boxes.stop[:, 0, 1]], dim=1)
    assert_same('mouth boxes', found.long(), stage['boxes'], case)
    crop = generator.teeth.crop(rasterized.features[:, :1], boxes)[:, 0]
    assert_parity('mouth_crop', crop, case, reference=stage['crop'])
    ws = case['stages']['ws'][:, :14]
    completed = generator.teeth(rasterized.features, rasterized.landmarks, ws)
    assert_parity('stitched', completed.planes[:, 0], case)


@pytest.fixture(scope='module')
def planes(case: dict, generator: Generator, head: HeadInput) -> Tensor:
    return generator.deform(generator.identity(case['stages']['ws']), head).features


def test_volume_sample_by_sample(case: dict, generator: Generator, planes: Tensor) -> None:
    """The coarse pass, the weights it gives, the fine samples drawn from them, and the merged result."""
    stage, config = case['stages']['render'], generator.config
    origins, directions = rays(case['inputs']['c'], stage['nrr'])
    assert_parity('ray_origins', origins, case, reference=stage['ray_origins'])
    assert_parity('ray_dirs', directions, case, reference=stage['ray_dirs'])
    rng = torch.Generator().manual_seed(11)
    jitter = torch.rand(stage['jitter'].shape, generator=rng)
    assert_same('recorded draws', jitter, stage['jitter'], case)
    assert_same('recorded draws', torch.rand(stage['u'].shape, generator=rng), stage['u'], case)
    rng.manual_seed(11)
    coarse = stratified_depths(2, stage['nrr'] ** 2, config, rng=rng, like=origins)
    depths = stage['depths_coarse_sub']
    assert_parity('depths_coarse', thinned(coarse, depths), case, reference=depths)
    renderer, decoder = generator.renderer, generator.decoder
    colors, sigma = march(renderer, planes, origins, directions, coarse, decoder)
    assert_parity('sigma_coarse', sigma.flatten(1, 2), case, reference=stage['sigma_coarse'])
    assert_parity('rgb_coarse', thinned(colors, stage['rgb_coarse_sub']), case, reference=stage['rgb_coarse_sub'])
    weights = ray_weights(sigma, coarse)
    assert_parity('coarse weights', weights, case, reference=stage['coarse_march']['weights'])
    shares = importance_shares(2, stage['nrr'] ** 2, config.importance_samples, rng=rng, like=origins)
    fine = importance_depths(coarse, weights, shares)
    assert_parity('depths_fine', fine, case, reference=stage['depths_fine'])
    # Random planes are so steep that the last bit of a depth moves sigma by 1e-3: compared at the recorded depths.
    fine_colors, fine_sigma = march(renderer, planes, origins, directions, stage['depths_fine'], decoder)
    assert_parity('sigma_fine', fine_sigma.flatten(1, 2), case, reference=stage['sigma_fine'], floor='sigma_coarse')
    assert_parity('rgb_fine', thinned(fine_colors, stage['rgb_fine_sub']), case, reference=stage['rgb_fine_sub'])
    traced = renderer(planes, origins, directions, decoder=decoder, rng=torch.Generator().manual_seed(11))
    assert_parity('render features', traced.features, case, reference=stage['features'])
    assert_parity('render depth', traced.depth, case, reference=stage['depth'], floor='image_depth')
    assert_parity('weight_sum', traced.weights, case, reference=stage['weight_sum'])


def march(renderer: VolumeRenderer, planes: Tensor, origins: Tensor, directions: Tensor, depths: Tensor, decoder: Any):
    """Colours and sigma at depths [N, M, D, 1] along rays."""
    return renderer._march(planes, origins, directions, depths, decoder)


def thinned(value: Tensor, like: Tensor) -> Tensor:
    """The rays of `value` [N, M, ...] that were recorded: every so many, or the first."""
    every = value[:, :: value.shape[1] // like.shape[1]][:, : like.shape[1]]
    first = value[:, : like.shape[1]]
    nearer = (every - like).abs().max() < (first - like).abs().max()
    return every if nearer else first


def test_colors_at_points(case: dict, generator: Generator, planes: Tensor) -> None:
    stage = case['stages']['sample_mixed']
    colors, sigma = generator.renderer.query(planes, stage['coords'], generator.decoder)
    assert_parity('sigma at points', sigma, case, reference=stage['sigma'], floor='sigma_coarse')
    assert_parity('rgb at points', colors, case, reference=stage['rgb'])


def test_small_operations(case: dict) -> None:
    ops = case['ops']
    taps = upfirdn2d.setup_filter((1, 3, 3, 1))
    results = {
        'upsample2d': upfirdn2d.upsample2d(ops['x'], taps),
        'downsample2d': upfirdn2d.downsample2d(ops['x'], taps),
        'filter2d': upfirdn2d.filter2d(ops['x'], taps),
        'blur_sigma2': blur(ops['blur_in'], sigma=2.0, border='zero'),
        'fill_mouth_out': fill_holes.fill_holes(ops['fill_mouth_in'], guarded=False),
    }
    for name, result in results.items():
        assert_parity(name, result, case, reference=ops[name])
    # Its bias was not recorded: one unclamped number of each channel tells it.
    unclamped = ops['lrelu_clamp'] / math.sqrt(2)
    bias = (torch.where(unclamped < 0, unclamped * 5, unclamped) - ops['x']).movedim(1, 0).flatten(1)
    where = (ops['lrelu_clamp'].movedim(1, 0).flatten(1).abs() < 0.99).float().argmax(dim=1)
    found = bias_act.bias_act(ops['x'], bias[range(3), where], act='lrelu', clamp=1.0)
    assert_parity('lrelu_clamp', found, case, reference=ops['lrelu_clamp'])
    inside = (slice(None), slice(None), slice(6, -6), slice(6, -6))
    replicated = blur(ops['blur_in'], sigma=2.0)[inside]
    torch.testing.assert_close(replicated, ops['blur_sigma2'][inside], rtol=1e-5, atol=1e-6)
    mean = sample_planes(ops['planes'], ops['plane_coords'], box_size=1.0, aggregation='mean')
    assert_parity('sample_from_planes', mean, case, reference=ops['sample_from_planes_box1'].mean(dim=1))


def test_cameras_of_the_release(case: dict) -> None:
    """Its poses: h and v are angles of which v is spent evenly in height; the sphere's centre is the origin."""
    for pose in case['ops']['lookat']:
        yaw, pitch = pose['h'] - math.pi / 2, math.asin(1 - 2 * pose['v'] / math.pi)
        label = orbit_camera(
            torch.tensor([yaw]),
            torch.tensor([pitch]),
            radius=pose['radius'],
            pivot=tuple(pose['piv']),
            centre=(0, 0, 0),
        )
        assert_parity('camera poses', unpack_label(label)[0], case, reference=pose['m'])
    for degrees, matrix in case['ops']['fov'].items():
        focal = torch.tensor([focal_from_fov(float(degrees))])
        assert_parity('focal length', focal, case, reference=matrix[0, :1])
