"""Shared fixtures: devices, the parity fixture, a tiny model."""

from __future__ import annotations

import os
from pathlib import Path

# Workers of pytest-xdist, and the processes that their tests start, share the cores. Before torch is imported.
if int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', '1')) > 1:
    os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch


@pytest.fixture(params=['cpu', 'cuda'])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device of this machine; the CUDA twin of a test skips where there is none."""
    if request.param == 'cuda' and not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    return torch.device(request.param)


@pytest.fixture(scope='session')
def parity_fixture() -> dict:
    """Stage outputs of the public release on random weights; its path in NEXT3D_PARITY_FIXTURE."""
    path = os.environ.get('NEXT3D_PARITY_FIXTURE', '')
    if not path or not Path(path).is_file():
        pytest.skip('set NEXT3D_PARITY_FIXTURE to the parity fixture file')
    return torch.load(path, weights_only=True)
