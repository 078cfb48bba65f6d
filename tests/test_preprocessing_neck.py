"""The head's rotation divided between camera and neck."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from applications.preprocessing.fit import CONTOUR, project_head
from applications.preprocessing.neck import rotation_vector, split_neck
from tests import cases_flame
from tests.cases_preprocessing import random_heads
from training import cameras
from training.head import load_head_model
from training.head.flame import FlameHead
from training.head.model import HeadModel, HeadParams
from training.head.rotation import axis_angle_matrix


@pytest.fixture(scope='module')
def model() -> HeadModel:
    return load_head_model('makehuman')


def skull_rotation(params: HeadParams, label: Tensor) -> Tensor:
    """Camera from skull [N, 3, 3]."""
    cam2world, _ = cameras.unpack_label(label)
    return cam2world[:, :3, :3].transpose(1, 2) @ axis_angle_matrix(params.rotation) @ axis_angle_matrix(params.neck)


@pytest.mark.parametrize('share', [0.0, 0.4, 1.0])
def test_the_picture_above_the_neck_stays(model: HeadModel, share: float) -> None:
    params, label = random_heads(model, 4, seed=20)
    rng = torch.Generator().manual_seed(21)
    bent = params.replace(
        neck=0.3 * torch.randn(4, 3, generator=rng),
        rotation=0.2 * torch.randn(4, 3, generator=rng),
        translation=0.02 * torch.randn(4, 3, generator=rng),
    )
    for given in (params, bent):
        split, camera = split_neck(model, given, label, share=share)
        before, iris_before = project_head(model, given, label)
        after, iris_after = project_head(model, split, camera)
        assert (after - before)[:, CONTOUR.stop :].abs().max() < 1e-5  # the jaw line's skin reaches the neck
        assert (iris_after - iris_before).abs().max() < 1e-5
        for field in ('identity', 'expression', 'jaw', 'eyes', 'rotation', 'translation'):
            assert torch.equal(getattr(split, field), getattr(given, field))
        assert torch.allclose(skull_rotation(split, camera), skull_rotation(given, label), atol=1e-5)


def test_shares_run_from_the_camera_to_the_neck(model: HeadModel) -> None:
    params, label = random_heads(model, 4, seed=22)
    none, same = split_neck(model, params, label, share=0.0)
    assert none.neck.abs().max() == 0
    assert torch.allclose(same, label, atol=1e-5)
    whole, camera = split_neck(model, params, label, share=1.0)
    rotation = cameras.unpack_label(camera)[0][:, :3, :3]
    assert torch.allclose(rotation, torch.diag(torch.tensor([1.0, -1.0, -1.0])).expand(4, 3, 3), atol=1e-5)
    half, _ = split_neck(model, params, label, share=0.5)
    assert torch.allclose(half.neck, 0.5 * whole.neck, atol=1e-5)
    again, back = split_neck(model, whole, camera, share=0.0)
    assert torch.allclose(back, label, atol=1e-4)
    assert again.neck.abs().max() == 0


def test_a_camera_to_the_left_turns_the_neck_to_the_right(model: HeadModel) -> None:
    """Seen from the subject's left, a body that faces the camera has its head turned to its right."""
    label = cameras.orbit_camera(torch.tensor([0.6]), torch.tensor([0.0]))
    split, _ = split_neck(model, model.neutral(), label, share=1.0)
    assert torch.allclose(split.neck, torch.tensor([[0.0, -0.6, 0.0]]), atol=1e-4)


def test_flame_keeps_its_eyes_in_place(tmp_path: Path) -> None:
    """The made-up FLAME has only its eyeballs in one piece with the skull, and here no pose correctives."""
    arrays = cases_flame.arrays()
    arrays['posedirs'] = 0 * arrays['posedirs']
    flame = FlameHead(cases_flame.write_folder(tmp_path, arrays))
    label = cameras.orbit_camera(torch.tensor([0.5, -0.3]), torch.tensor([0.1, 0.2]), roll=torch.tensor([0.2, 0.0]))
    params = flame.neutral(2).replace(identity=torch.randn(2, 100, generator=torch.Generator().manual_seed(1)))
    split, camera = split_neck(flame, params, label, share=0.7)
    assert split.neck.norm(dim=1).min() > 0.2
    assert (project_head(flame, split, camera)[1] - project_head(flame, params, label)[1]).abs().max() < 1e-5


def test_bad_shares(model: HeadModel) -> None:
    label = cameras.orbit_camera(torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match='share: expected a number in'):
        split_neck(model, model.neutral(), label, share=1.5)


def test_rotation_vector_inverts_the_exponential() -> None:
    rng = torch.Generator().manual_seed(2)
    axes = torch.nn.functional.normalize(torch.randn(200, 3, generator=rng, dtype=torch.float64), dim=1)
    angles = torch.cat([torch.zeros(1), 10.0 ** torch.linspace(-8, -1, 99), torch.linspace(0.1, 3.1415, 100)]).double()
    vectors = axes * angles[:, None]
    assert torch.allclose(rotation_vector(axis_angle_matrix(vectors)), vectors, atol=1e-7)
    half_turn = rotation_vector(axis_angle_matrix(math.pi * axes[:5]))
    assert torch.allclose(axis_angle_matrix(half_turn), axis_angle_matrix(math.pi * axes[:5]), atol=1e-6)
