"""--rasterizer and NEXT3D_RASTERIZER: who draws, what is said where it cannot be had, and that all choices agree."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import cases_ops
import click
import pytest
import torch
from cases_geometry import ellipsoid_template, posed
from click.testing import CliRunner

from dnnlib import UserError
from dnnlib.cli import Command, rasterizer_option
from torch_utils.ops import library, rasterize
from training.cameras import orbit_camera
from training.config import preset
from training.generator import Generator, Rendering

ROOT = Path(__file__).parent.parent
SCRIPTS = ('train.py', 'gen_samples.py', 'gen_videos.py', 'calc_metrics.py')
WITHOUT = importlib.util.find_spec('pytorch3d') is None


@click.command(cls=Command)
@rasterizer_option
def probe() -> None:
    """Prints who would draw."""
    click.echo(rasterize.chosen_backend() or 'no choice')


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('NEXT3D_RASTERIZER', '')


def test_option_over_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    run = CliRunner().invoke
    assert run(probe, []).output == 'no choice\n'
    assert run(probe, ['--rasterizer=reference']).output == 'reference\n'
    monkeypatch.setenv('NEXT3D_RASTERIZER', 'native')
    assert run(probe, []).output == 'native\n'
    assert run(probe, ['--rasterizer=auto']).output == 'no choice\n'
    assert run(probe, ['--rasterizer=nvdiffrast']).exit_code == 2
    monkeypatch.setenv('NEXT3D_RASTERIZER', 'nvdiffrast')
    result = run(probe, [])
    assert result.exit_code == 1
    assert 'NEXT3D_RASTERIZER: expected auto, native' in result.output


@pytest.mark.skipif(not WITHOUT, reason='PyTorch3D is installed')
@pytest.mark.parametrize('script', SCRIPTS)
def test_missing_pytorch3d_is_one_line(script: str) -> None:
    command = [sys.executable, str(ROOT / script), '--rasterizer=pytorch3d']
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, 'COLUMNS': '200'})
    assert result.returncode == 2
    assert 'Error: --rasterizer=pytorch3d: PyTorch3D is not installed; environment.yml' in result.stderr
    assert 'Traceback' not in result.stderr


def test_environment_reaches_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases_ops.tie_mesh()
    calls = []
    monkeypatch.setattr(rasterize, '_rasterize_reference', lambda *a, **k: calls.append(a))
    monkeypatch.setenv('NEXT3D_RASTERIZER', 'reference')
    rasterize.rasterize(case.vertices, case.faces, height=8, width=8)
    assert len(calls) == 1
    rasterize.rasterize(case.vertices, case.faces, height=8, width=8, backend='native')
    assert len(calls) == 1


def test_native_is_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, '_builds', {'cpu': library.Build(cause='no compiler')})
    monkeypatch.setenv('NEXT3D_RASTERIZER', 'native')
    case = cases_ops.tie_mesh()
    with pytest.raises(UserError, match='native ops for cpu are not available: no compiler'):
        rasterize.rasterize(case.vertices, case.faces, height=8, width=8)


def draw(monkeypatch: pytest.MonkeyPatch, backend: str) -> Rendering:
    """One image of a tiny generator with seeded weights."""
    monkeypatch.setenv('NEXT3D_RASTERIZER', backend)
    torch.manual_seed(0)
    template = ellipsoid_template()
    config = preset('debug').generator
    generator = Generator(config, template).requires_grad_(False)
    label = orbit_camera(torch.tensor([0.2]), torch.tensor([0.0]))
    z = torch.randn(1, config.z_dim, generator=torch.Generator().manual_seed(1))
    return generator(z, label, posed(template, 1))


@pytest.mark.parametrize('backend', ['native', 'reference', 'pytorch3d'])
def test_whole_generator_agrees(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == 'pytorch3d':
        pytest.importorskip('pytorch3d')
    expected, drawn = draw(monkeypatch, 'auto'), draw(monkeypatch, backend)
    assert expected.image.std() > 0
    torch.testing.assert_close(drawn.image, expected.image, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(drawn.depth, expected.depth, atol=1e-5, rtol=1e-4)
