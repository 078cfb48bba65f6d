"""Hole filling against a breadth-first search, its twin, and the public release's recorded output."""

from __future__ import annotations

from collections import deque

import cases_ops
import pytest
import torch

from torch_utils.ops import library
from torch_utils.ops.fill_holes import fill_holes

BACKENDS = ['native', 'reference']
MASKS = dict(cases_ops.mask_cases())


def brute_force(alpha: torch.Tensor, *, guarded: bool) -> torch.Tensor:
    """Pixel by pixel, with a queue."""
    filled = torch.ones_like(alpha)
    height, width = alpha.shape[2:]
    border = [(y, x) for y in range(height) for x in range(width) if y in (0, height - 1) or x in (0, width - 1)]
    for mask, result in zip(alpha[:, 0], filled[:, 0], strict=True):
        is_open = ((mask * 255 >= 0) & (mask * 255 <= 254)).tolist()
        queue = deque((y, x) for y, x in (border if guarded else [(0, 0)]) if is_open[y][x])
        for y, x in queue:
            is_open[y][x] = False
        while queue:
            y, x = queue.popleft()
            result[y, x] = mask[y, x]
            for row, column in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if 0 <= row < height and 0 <= column < width and is_open[row][column]:
                    is_open[row][column] = False
                    queue.append((row, column))
    return filled


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('guarded', [False, True])
@pytest.mark.parametrize('name', MASKS)
def test_brute_force(name: str, guarded: bool, backend: str, device: torch.device) -> None:
    alpha = MASKS[name].to(device)
    filled = fill_holes(alpha, guarded=guarded, backend=backend)
    assert torch.equal(filled.cpu(), brute_force(alpha.cpu(), guarded=guarded))


@pytest.mark.parametrize('backend', BACKENDS)
def test_guard(backend: str, device: torch.device) -> None:
    """A mesh over pixel (0, 0) makes the background opaque in the release's rule, not in the guarded one."""
    alpha = torch.zeros(1, 1, 8, 8, device=device)
    alpha[..., 0, 0] = 1
    alpha[..., 3:6, 3:6] = 1
    alpha[..., 4, 4] = 0
    assert (fill_holes(alpha, guarded=False, backend=backend) == 1).all()
    guarded = fill_holes(alpha, guarded=True, backend=backend)
    assert guarded.sum() == 10
    assert guarded[0, 0, 4, 4] == 1


def test_result_is_data(device: torch.device) -> None:
    alpha = torch.rand(1, 1, 4, 4, device=device, requires_grad=True)
    assert not fill_holes(alpha, guarded=True).requires_grad
    assert fill_holes(torch.rand(2, 1, 5, 3, dtype=torch.float64), guarded=False).dtype == torch.float64


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_other_types_agree(dtype: torch.dtype, device: torch.device) -> None:
    alpha = MASKS['masks'].to(device, dtype)
    native, reference = (fill_holes(alpha, guarded=True, backend=backend) for backend in BACKENDS)
    assert native.dtype == dtype
    assert torch.equal(native, reference)


def test_threads_change_nothing() -> None:
    alpha = (torch.rand(5, 1, 64, 48, generator=torch.Generator().manual_seed(1)) > 0.42).float()
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(fill_holes(alpha, guarded=True, backend='native'))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], result) for result in results)


def test_empty_batch() -> None:
    for backend in BACKENDS:
        assert fill_holes(torch.zeros(0, 1, 4, 4), guarded=True, backend=backend).shape == (0, 1, 4, 4)


def test_opcheck(device: torch.device) -> None:
    library.use_native(device, backend='native')
    alpha = (torch.rand(2, 9, 7, device=device) > 0.3).float()
    torch.library.opcheck(torch.ops.next3d.fill_holes.default, (alpha, True))


@pytest.mark.parametrize('alpha', [torch.zeros(2, 3, 4, 4), torch.zeros(4, 4), torch.zeros(1, 1, 4, 4).int()])
def test_bad_input(alpha: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r'alpha: expected floats \[N, 1, H, W\]'):
        fill_holes(alpha, guarded=True)


@pytest.mark.parametrize('backend', BACKENDS)
def test_parity_with_release(backend: str, parity_fixture: dict) -> None:
    def decode(coded: dict) -> torch.Tensor:
        alpha = coded['code'].float()
        alpha[coded['code'] == 2] = coded['frac']
        return alpha

    recorded = parity_fixture['stages']['raster']
    masked, expected = decode(recorded['alpha_masked']), decode(recorded['alpha_filled'])
    assert (masked != expected).sum() > 1000
    for view in range(4):
        assert torch.equal(fill_holes(masked[view], guarded=False, backend=backend), expected[view])
