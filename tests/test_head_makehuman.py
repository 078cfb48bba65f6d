"""The embedded head model: symmetry, parameters, landmarks, uv chart, parts, errors."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor

from training.head import HeadParams, load_head_model
from training.head.landmarks import (
    INNER_LIPS,
    JAW,
    LEFT_BROW,
    LEFT_EYE,
    MIRROR,
    OUTER_LIPS,
    RIGHT_BROW,
    RIGHT_EYE,
    mirror_landmarks,
)
from training.head.makehuman import DEFAULT_PATH, MakeHumanHead, embedded_head
from training.head.model import FIXED_WIDTHS

HEAD = embedded_head()
EXACT = 'donot_use_mm_for_euclid_dist'
FLIP = torch.tensor([-1.0, 1.0, 1.0])


def random_params(count: int, *, seed: int = 0, scale: float = 0.3) -> HeadParams:
    rng = torch.Generator().manual_seed(seed)
    params = HEAD.neutral(count).map(lambda t: scale * torch.randn(t.shape, generator=rng))
    return params.replace(
        identity=torch.randn(params.identity.shape, generator=rng),
        expression=torch.randn(params.expression.shape, generator=rng),
    )


def lip_gap(landmarks: Tensor) -> float:
    return float((landmarks[0, 62] - landmarks[0, 66]).norm())


def test_file_is_small_and_hash_is_its_sha256() -> None:
    assert DEFAULT_PATH.stat().st_size <= 2_000_000
    assert HEAD.content_hash == hashlib.sha256(DEFAULT_PATH.read_bytes()).hexdigest()


def test_interface_counts() -> None:
    assert isinstance(load_head_model('makehuman'), MakeHumanHead)
    assert HEAD.num_identity >= 50
    assert len(HEAD.expression_names) == 52
    assert {'jawOpen', 'eyeBlinkLeft', 'mouthSmileRight', 'tongueOut'} <= set(HEAD.expression_names)
    assert {'face', 'scalp', 'ears', 'eyes', 'neck', 'lips', 'brows'} <= set(HEAD.regions)
    partition = torch.stack([HEAD.regions[n] for n in ('face', 'scalp', 'ears', 'eyes', 'neck')]).sum(dim=0)
    assert bool((partition == 1).all())
    for values in HEAD.vertex_masks.values():
        assert values.shape == (HEAD.template.num_vertices,)
        assert float(values.min()) >= 0
        assert float(values.max()) <= 1
    assert set(HEAD.vertex_masks) >= {'face', 'lips', 'eyelids', 'ears', 'hair'}


def test_neutral_is_the_template_and_sits_in_the_frame() -> None:
    vertices = HEAD.forward(HEAD.neutral()).vertices[0]
    torch.testing.assert_close(vertices, HEAD.template.vertices, atol=1e-7, rtol=0)
    # Landmark eye centres: x apart by the pupils' distance, z in front of the eyeballs' centres.
    pupils = vertices[HEAD.gaze_vertices[:, 0]]
    assert 0.055 < float(pupils[0, 0] - pupils[1, 0]) < 0.068
    centre = HEAD._mean[-2:].mean(dim=0)
    torch.testing.assert_close(centre, torch.tensor([0.0, 0.026, 0.026]), atol=1e-6, rtol=0)
    assert float(vertices[:, 2].max()) > 0.05  # the nose points to +z


def test_template_is_exactly_symmetric_with_mirrored_triangles() -> None:
    vertices, partner = HEAD.template.vertices, HEAD.mirror_vertices
    assert torch.equal(partner[partner], torch.arange(len(partner)))
    assert torch.equal(vertices[partner] * FLIP, vertices)
    triangles = {tuple(sorted(face)) for face in HEAD.template.faces.tolist()}
    assert {tuple(sorted(face)) for face in partner[HEAD.template.faces].tolist()} == triangles


def test_mirror_equals_flipped_vertices() -> None:
    params = random_params(4)
    head, mirrored = HEAD.forward(params), HEAD.forward(HEAD.mirror(params))
    torch.testing.assert_close(mirrored.vertices, head.vertices[:, HEAD.mirror_vertices] * FLIP, atol=1e-6, rtol=0)
    torch.testing.assert_close(mirrored.landmarks, mirror_landmarks(head.landmarks), atol=1e-6, rtol=0)
    parts, mirrored_parts = HEAD.forward_parts(params), HEAD.forward_parts(HEAD.mirror(params))
    for name, part in parts.items():
        distance = torch.cdist(part * FLIP, mirrored_parts[name], compute_mode=EXACT).min(dim=2).values
        assert float(distance.max()) < 1e-6, name
    twice = HEAD.mirror(HEAD.mirror(params))
    for name, value in params.as_dict().items():
        assert torch.equal(getattr(twice, name), value), name


def test_mirror_exchanges_named_expressions() -> None:
    for left in (name for name in HEAD.expression_names if name.endswith('Left')):
        right = HEAD.named_expression(f'{left[:-4]}Right')
        mirrored = HEAD.mirror(HEAD.named_expression(left))
        torch.testing.assert_close(mirrored.expression, right.expression, atol=1e-5, rtol=0)
        torch.testing.assert_close(mirrored.eyes, right.eyes)


def test_batch_independence_and_subsets() -> None:
    params = random_params(3)
    together = HEAD.forward(params).vertices
    for i in range(3):
        alone = HEAD.forward(params[i : i + 1]).vertices[0]
        torch.testing.assert_close(together[i], alone, atol=1e-6, rtol=0)
    some = torch.tensor([7, 4000 % len(together[0]), 12, 3500])
    torch.testing.assert_close(HEAD.positions(params, some), together[:, some], atol=1e-6, rtol=0)


@pytest.mark.parametrize('field', ['identity', 'expression', *FIXED_WIDTHS])
def test_gradient_agrees_with_finite_differences(field: str) -> None:
    params = random_params(1, seed=3, scale=0.2)
    rng = torch.Generator().manual_seed(1)
    direction = torch.randn(getattr(params, field).shape, generator=rng)
    weight = torch.randn(HEAD.template.vertices.shape, generator=rng, dtype=torch.float64) / 100

    def value(t: Tensor) -> Tensor:
        moved = params.replace(**{field: getattr(params, field) + t * direction})
        return (HEAD.forward(moved).vertices[0].double() * weight).sum()

    t = torch.zeros((), requires_grad=True)
    (slope,) = torch.autograd.grad(value(t), t)
    step = 2e-2
    measured = (value(torch.tensor(step)) - value(torch.tensor(-step))) / (2 * step)
    assert abs(float(slope) - float(measured)) <= 0.02 * abs(float(slope)) + 2e-5


def test_gradient_is_finite_at_neutral() -> None:
    params = HEAD.neutral().map(lambda t: t.requires_grad_())
    HEAD.forward(params).vertices.square().sum().backward()
    for name, value in params.as_dict().items():
        assert value.grad is not None, name
        assert bool(torch.isfinite(value.grad).all()), name
        assert float(value.grad.abs().sum()) > 0, name


def test_named_expressions_reproduce_the_targets() -> None:
    count = HEAD.template.num_vertices
    eyeballs = HEAD.gaze_vertices.flatten()
    moved = {}
    for name in HEAD.expression_names:
        params = HEAD.named_expression(name).replace(eyes=torch.zeros(1, 6))
        offset = HEAD.forward(params).vertices[0] - HEAD.template.vertices
        moved[name] = float(offset.norm(dim=1).max())
        assert float(offset[eyeballs].abs().max()) < 1e-6, name
        parts = torch.cat(list(HEAD.forward_parts(params).values()), dim=1)[0] - HEAD._mean[count:-5]
        moved[name] = max(moved[name], float(parts.norm(dim=1).max()))
    assert min(moved.values()) > 5e-4, min(moved, key=lambda name: moved[name])
    weights = torch.rand(2, 52, generator=torch.Generator().manual_seed(0))
    expected = torch.einsum('ni,ivc->nvc', weights, HEAD._targets)
    found = torch.einsum('nk,kcv->nvc', HEAD.expression_coefficients(weights), HEAD._basis[HEAD.num_identity :])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_jaw_opens_about_positive_x() -> None:
    closed = HEAD.forward(HEAD.neutral()).landmarks
    gaps = []
    for angle in (0.1, 0.2, 0.35):
        params = HEAD.neutral()
        params.jaw[0, 0] = angle
        landmarks = HEAD.forward(params).landmarks
        gaps.append(lip_gap(landmarks))
        assert float(landmarks[0, 8, 1]) < float(closed[0, 8, 1])
    assert lip_gap(closed) < 0.006 < gaps[0] < gaps[1] < gaps[2]
    # The joint does what the sculpted target does.
    params = HEAD.neutral()
    params.jaw[0, 0] = HEAD.jaw_open_angle
    by_joint = HEAD.forward(params).vertices
    by_target = HEAD.forward(HEAD.named_expression('jawOpen')).vertices
    assert float((by_joint - by_target).norm(dim=2).mean()) < 1e-3
    parts, rest = HEAD.forward_parts(params), HEAD.forward_parts(HEAD.neutral())
    assert torch.equal(parts['teeth_upper'], rest['teeth_upper'])
    assert float((parts['teeth_lower'] - rest['teeth_lower']).norm(dim=2).min()) > 0.01
    assert float((parts['tongue'] - rest['tongue'])[..., 1].mean()) < -0.002


@pytest.mark.parametrize(('axis', 'sign'), [(0, -1), (1, 1)])
def test_gaze_turns_the_iris(axis: int, sign: int) -> None:
    """About +x the iris goes down (y falls); about +y to the subject's left (x grows)."""
    params = HEAD.neutral()
    params.eyes[0, axis] = params.eyes[0, 3 + axis] = 0.3
    before = HEAD.forward(HEAD.neutral()).vertices[0, HEAD.gaze_vertices]
    after = HEAD.forward(params).vertices[0, HEAD.gaze_vertices]
    moved = sign * (after - before)[..., 1 - axis]
    assert bool((moved > 0.002).all())


def test_gaze_vertices_are_in_order() -> None:
    points = HEAD.template.vertices[HEAD.gaze_vertices]
    assert bool((points[0, :, 0] > 0).all())
    assert bool((points[1, :, 0] < 0).all())
    centre, right, top, left, bottom = points.unbind(dim=1)
    assert bool((right[:, 0] < centre[:, 0]).all())
    assert bool((left[:, 0] > centre[:, 0]).all())
    assert bool((top[:, 1] > centre[:, 1]).all())
    assert bool((bottom[:, 1] < centre[:, 1]).all())


def test_named_looks_move_the_eyes() -> None:
    assert float(HEAD.named_expression('eyeLookOutLeft').eyes[0, 1]) > 0
    assert float(HEAD.named_expression('eyeLookInRight').eyes[0, 4]) > 0
    assert float(HEAD.named_expression('eyeLookOutRight').eyes[0, 4]) < 0
    assert float(HEAD.named_expression('eyeLookDownLeft', 0.5).eyes[0, 0]) > 0


def test_lids_stay_outside_the_eyeballs() -> None:
    params = random_params(6, seed=5, scale=0.0)
    for weight in (0.3, 0.5, 0.7, 1.0):
        closing = HEAD.named_expression('eyeBlinkLeft', weight).expression.expand(6, -1)
        vertices = HEAD.forward(params.replace(expression=closing)).vertices
        rows, floor, pole = HEAD._lids[0]
        joints = (params.identity @ HEAD._joint_basis).reshape(6, 5, 3) + HEAD._mean[-5:]
        radius = (vertices[:, pole] - joints[:, 3]).norm(dim=1)
        ratio = (vertices[:, rows] - joints[:, 3, None]).norm(dim=2) / radius[:, None]
        assert float((ratio - floor).min()) > -1e-4


def test_blink_closes_the_lids() -> None:
    def opening(landmarks: Tensor) -> Tensor:
        return (landmarks[0, [37, 38, 43, 44], 1] - landmarks[0, [41, 40, 47, 46], 1]).abs()

    before = opening(HEAD.forward(HEAD.neutral()).landmarks)
    after = opening(HEAD.forward(HEAD.named_expression('eyeBlinkLeft')).landmarks)
    assert bool((after[2:] < 0.3 * before[2:]).all())
    torch.testing.assert_close(after[:2], before[:2], atol=1e-4, rtol=0)


def test_landmark_order() -> None:
    points = HEAD.forward(HEAD.neutral()).landmarks[0]
    torch.testing.assert_close(points, mirror_landmarks(points), atol=1e-6, rtol=0)
    assert [MIRROR[MIRROR[i]] for i in range(68)] == list(range(68))
    x, y = points[:, 0], points[:, 1]
    for group in (RIGHT_BROW, RIGHT_EYE):
        assert bool((x[list(group)] < 0).all())
    for group in (LEFT_BROW, LEFT_EYE):
        assert bool((x[list(group)] > 0).all())
    assert bool((x[list(JAW)].diff() > 0).all())
    assert bool((y[list(range(9))].diff() < 0).all())
    assert bool((y[27:34].diff()[:3] < 0).all())
    assert int(x[list(OUTER_LIPS)].argmin()) == 0
    assert int(x[list(OUTER_LIPS)].argmax()) == 6
    assert int(x[list(INNER_LIPS)].argmin()) == 0
    assert float(y[37]) > float(y[41])
    assert float(y[51]) > float(y[62]) >= float(y[66]) > float(y[57]) > float(y[8])
    assert float(y[19]) > float(y[37]) > float(y[30]) > float(y[51])
    assert float(x[36]) < float(x[39]) < float(x[42]) < float(x[45])


def test_faces_wind_outwards() -> None:
    """The mesh about the head's middle: the enclosed volume is positive, the brows look to +z."""
    vertices, faces = HEAD.template.vertices.double(), HEAD.template.faces
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    normal = torch.linalg.cross(b - a, c - a)
    centre = (a + b + c) / 3
    assert float((normal * (centre - vertices.mean(dim=0))).sum()) > 0
    brow = HEAD.regions['brows']
    assert bool((normal[brow, 2] > 0).all())
    eyes = HEAD.regions['eyes']
    joints = HEAD._mean[-2:].double()
    nearest = joints[torch.cdist(centre[eyes], joints).argmin(dim=1)]
    assert bool(((centre[eyes] - nearest) * normal[eyes]).sum(dim=1).gt(0).all())
    for name, part in HEAD.parts.items():
        points = HEAD.forward_parts(HEAD.neutral())[name][0].double()[part.faces]
        volume = torch.linalg.det(points - points.mean(dim=(0, 1))).sum()
        assert float(volume) > 0, name


def uv_counts(size: int) -> np.ndarray:
    """How many uv triangles cover each texel centre."""
    counts = np.zeros((size, size), dtype=int)
    corners = (HEAD.template.uv.double() * size)[HEAD.template.uv_faces].numpy()
    for a, b, c in corners:
        low = np.floor(np.minimum(np.minimum(a, b), c) - 0.5).astype(int).clip(0)
        high = np.ceil(np.maximum(np.maximum(a, b), c)).astype(int)
        x, y = np.meshgrid(np.arange(low[0], high[0] + 1) + 0.5, np.arange(low[1], high[1] + 1) + 0.5)
        inside = np.ones_like(x, dtype=bool)
        for p, q in ((a, b), (b, c), (c, a)):
            inside &= (q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0]) > 1e-9
        counts[low[1] : high[1] + 1, low[0] : high[0] + 1] += inside
    return counts


def test_uv_has_no_flips_no_overlap_and_a_margin() -> None:
    uv, uv_faces = HEAD.template.uv, HEAD.template.uv_faces
    assert float(uv.min()) > 0.005
    assert float(uv.max()) < 0.995
    a, b, c = (uv[uv_faces[:, k]].double() for k in range(3))
    doubled = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    assert float(doubled.min()) > 0
    counts = uv_counts(384)
    assert counts.max() == 1
    assert counts.mean() > 0.75
    share = {name: float(doubled[mask].sum() / 2) for name, mask in HEAD.regions.items()}
    assert 0.3 < share['face'] < 0.6
    assert share['scalp'] > 0.15


def test_uv_is_upright_and_symmetric() -> None:
    u, v = HEAD.landmark_uv.unbind(dim=1)
    assert float(v[19]) > float(v[37]) > float(v[30]) > float(v[57]) > float(v[8])
    assert float(u[36]) < float(u[30]) < float(u[45])
    torch.testing.assert_close(u[list(MIRROR)], 1 - u, atol=2e-4, rtol=0)
    torch.testing.assert_close(v[list(MIRROR)], v, atol=2e-4, rtol=0)


def test_eye_mask_drops_the_eyeballs_only() -> None:
    mask, template = HEAD.template.eye_mask, HEAD.template
    size = len(mask)
    centre = template.uv[template.uv_faces].mean(dim=1)
    row, column = ((1 - centre[:, 1]) * size).long(), (centre[:, 0] * size).long()
    value = mask[row, column]
    assert bool((value[HEAD.regions['eyes']] == 0).all())
    assert bool((value[~HEAD.regions['eyes']] == 1).all())


def test_skinning_weights_are_a_partition() -> None:
    weights = HEAD._weights.T
    assert float(weights.min()) >= 0
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(weights)), atol=1e-5, rtol=0)
    # Neighbours differ little: no tearing.
    skin = HEAD.template.faces[~HEAD.regions['eyes']]
    for k in range(3):
        step = (weights[skin[:, k]] - weights[skin[:, (k + 1) % 3]]).abs().max()
        assert float(step) < 0.45


def test_neck_turns_the_face_and_leaves_the_neck_edge() -> None:
    params = HEAD.neutral()
    params.neck[0, 1] = 0.5
    before, after = HEAD.forward(HEAD.neutral()), HEAD.forward(params)
    assert float(after.landmarks[0, 30, 0] - before.landmarks[0, 30, 0]) > 0.02  # the nose to the subject's left
    lowest = HEAD.template.vertices[:, 1].argsort()[:20]
    assert float((after.vertices - before.vertices)[0, lowest].norm(dim=1).max()) < 0.012


def test_translation_and_rotation_are_rigid() -> None:
    params = random_params(1, seed=9)
    still = params.replace(rotation=torch.zeros(1, 3), translation=torch.zeros(1, 3))
    a, b = HEAD.forward(still).vertices[0, ::200], HEAD.forward(params).vertices[0, ::200]
    torch.testing.assert_close(
        torch.cdist(a, a, compute_mode=EXACT), torch.cdist(b, b, compute_mode=EXACT), atol=1e-6, rtol=0
    )


def test_errors_name_the_field() -> None:
    params = HEAD.neutral(2)
    with pytest.raises(ValueError, match=r'identity: expected shape \[2, '):
        HEAD.forward(params.replace(identity=torch.zeros(2, 3)))
    with pytest.raises(ValueError, match=r'weights: expected shape \[N, 52\]'):
        HEAD.expression_coefficients(torch.zeros(1, 51))
    with pytest.raises(ValueError, match="'frown': unknown"):
        HEAD.named_expression('frown')
    with pytest.raises(ValueError, match='unknown; use'):
        load_head_model('smpl')
    with pytest.raises(ValueError, match='not shipped'):
        load_head_model('flame2020')
    with pytest.raises(ValueError, match='missing'):
        load_head_model('makehuman', path='/nowhere/head.npz')


def test_to_gives_the_same_head_on_each_device(device: torch.device) -> None:
    moved, params = HEAD.to(device), random_params(2)
    for value in (moved.template.faces, moved.parts['tongue'].faces, moved.regions['face'], moved._lids[0][0]):
        assert value.device.type == device.type
    found = moved.forward(params.to(device)).vertices.cpu()
    torch.testing.assert_close(found, HEAD.forward(params).vertices, atol=1e-5, rtol=0)
    assert HEAD.template.faces.device.type == 'cpu'
