"""Closing the holes of an alpha mask (the mouth, the eyes' rim): what the outside cannot reach becomes opaque.

Open are the pixels with 0 <= 255 alpha <= 254. The outside is flooded over open pixels, four-connected; pixels that
the flood does not reach become 1, the others keep their value.
"""

from __future__ import annotations

import torch

from torch_utils.ops import library

library.define('fill_holes(Tensor alpha, bool guarded) -> Tensor')


def fill_holes(alpha: torch.Tensor, *, guarded: bool, backend: str | None = None) -> torch.Tensor:
    """Alpha [N, 1, H, W] in [0, 1] with its holes set to 1; the result carries no gradient.

    guarded=False floods from pixel (0, 0) only, as the public release does: a mesh that covers that pixel makes the
    whole background opaque. guarded=True floods from every open pixel of the border. `backend`: 'native',
    'reference', or None for the choice of NEXT3D_OPS.
    """
    if alpha.ndim != 4 or alpha.shape[1] != 1 or not alpha.is_floating_point():
        raise ValueError(f'alpha: expected floats [N, 1, H, W], got {alpha.dtype} {list(alpha.shape)}')
    alpha = alpha.detach()
    exact = alpha if alpha.dtype == torch.float64 else alpha.float()
    if library.use_native(alpha.device, backend=backend):
        return torch.ops.next3d.fill_holes(exact[:, 0], guarded).unsqueeze(1).to(alpha.dtype)
    level = exact[:, 0] * 255
    reached = _flood_reference((level >= 0) & (level <= 254), guarded=guarded)
    return torch.where(reached.unsqueeze(1), alpha, 1)


def _flood_reference(open_pixels: torch.Tensor, *, guarded: bool) -> torch.Tensor:
    """The twin: spread along rows and columns in both directions until nothing changes."""
    reached = torch.zeros_like(open_pixels)
    if open_pixels.numel() == 0:
        return reached
    if guarded:
        reached[:, [0, -1]] = True
        reached[:, :, [0, -1]] = True
    else:
        reached[:, 0, 0] = True
    reached &= open_pixels
    while True:
        before = reached
        for dim in (2, 1):
            for reverse in (False, True):
                reached = _sweep(open_pixels, reached, dim=dim, reverse=reverse)
        if torch.equal(before, reached):
            return reached


def _sweep(open_pixels: torch.Tensor, reached: torch.Tensor, *, dim: int, reverse: bool) -> torch.Tensor:
    """Open pixels whose last reached pixel along `dim` comes after their last closed one."""
    if reverse:
        return _sweep(open_pixels.flip(dim), reached.flip(dim), dim=dim, reverse=False).flip(dim)
    shape = [-1 if axis == dim else 1 for axis in range(3)]
    position = torch.arange(1, open_pixels.shape[dim] + 1, device=reached.device, dtype=torch.int32).view(shape)
    last_reached = (position * reached).cummax(dim).values
    last_closed = (position * ~open_pixels).cummax(dim).values
    return open_pixels & (last_reached > last_closed)


@torch.library.register_fake('next3d::fill_holes')
def _fake(alpha: torch.Tensor, guarded: bool) -> torch.Tensor:
    return torch.empty_like(alpha, memory_format=torch.contiguous_format)
