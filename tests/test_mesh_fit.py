"""Meshes made by a head model go back to its parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from applications.preprocessing.mesh_fit import MeshFitter
from tests.cases_dataset import random_params
from tests.cases_importers import flame_folder
from training.head import load_head_model
from training.head.flame import FlameHead
from training.head.model import HeadModel


@pytest.fixture(scope='module')
def fitter() -> MeshFitter:
    return MeshFitter(load_head_model('makehuman'))


def made(model: HeadModel, *, seed: int = 1) -> tuple:
    params = random_params(model, 2, seed=seed)
    with torch.no_grad():
        return params, model.forward(params).vertices


def test_parameters_of_the_embedded_head_come_back(fitter: MeshFitter) -> None:
    params, vertices = made(fitter.model)
    fit = fitter.fit(vertices)
    assert float(fit.error.mean()) < 2e-6
    assert float(fit.error.max()) < 3e-5
    for name, tolerance in (('identity', 0.02), ('jaw', 2e-3), ('neck', 2e-3), ('eyes', 2e-3), ('rotation', 2e-3)):
        torch.testing.assert_close(getattr(fit.params, name), getattr(params, name), atol=tolerance, rtol=0)


def test_a_head_turned_and_moved_far(fitter: MeshFitter) -> None:
    _, vertices = made(fitter.model)
    turn = torch.tensor([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])  # a quarter turn
    fit = fitter.fit(vertices @ turn.T + torch.tensor([0.3, -0.2, 0.1]))
    assert float(fit.error.mean()) < 2e-6


def test_noise_is_not_fitted_but_reported(fitter: MeshFitter) -> None:
    _, vertices = made(fitter.model)
    noise = 1e-3 * torch.randn(vertices.shape, generator=torch.Generator().manual_seed(0))
    error = fitter.fit(vertices + noise).error
    # Almost all of it must stay: 3,958 vertices against some 130 unknowns.
    assert float(error.mean()) == pytest.approx(float(noise.norm(dim=-1).mean()), rel=0.05)


def test_a_flame_file_of_few_vertices(tmp_path: Path) -> None:
    """40 vertices and 170 unknowns: parameters are free, but the mesh must be met."""
    model = FlameHead(flame_folder(tmp_path / 'flame'))
    _, vertices = made(model)
    assert float(MeshFitter(model).fit(vertices).error.mean()) < 2e-4


@pytest.mark.parametrize('shape', [(1, 5, 3), (3958, 3)])
def test_wrong_shapes_are_named(fitter: MeshFitter, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match='vertices: expected'):
        fitter.fit(torch.zeros(shape))


def test_infinite_vertices_are_refused(fitter: MeshFitter) -> None:
    with pytest.raises(ValueError, match='finite'):
        fitter.fit(fitter.model.template.vertices[None] / 0)
