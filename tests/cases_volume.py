"""Inputs of the tests and benchmarks of volume rendering: planes, points inside and outside, a decoder's weights."""

from __future__ import annotations

import dataclasses

import torch

from torch_utils.ops.planes import channels_last_planes
from training import cameras


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlaneCase:
    """Planes [N, 3, C, R, R] and world points [N, M, 3]; the box has side `box_size`."""

    name: str
    planes: torch.Tensor
    points: torch.Tensor
    box_size: float = 1.0

    def to(self, device: torch.device, dtype: torch.dtype) -> PlaneCase:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return dataclasses.replace(self, planes=self.planes.to(device, dtype), points=self.points.to(device, wide))


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def odd_points() -> torch.Tensor:
    """Borders, corners, texel centres of a 4 x 4 plane, far away, and what is no number. [1, M, 3] in box 1."""
    nan, inf = float('nan'), float('inf')
    rows = [
        [0.5, 0.5, 0.5],
        [-0.5, -0.5, -0.5],
        [0.5, -0.5, 0.0],
        [0.375, -0.125, 0.125],
        [0.625, 0.0, 0.0],
        [-0.624, 0.3, 0.624],
        [0.51, -0.51, 0.2],
        [1e30, 0.0, 0.0],
        [inf, 0.1, 0.1],
        [0.1, -inf, 0.1],
        [0.1, 0.2, nan],
        [nan, nan, nan],
        [0.0, 0.0, 0.0],
    ]
    return torch.tensor(rows)[None]


def plane_cases() -> list[PlaneCase]:
    """Channel counts around the vector's width, all layouts in memory, one texel, no points."""
    last = channels_last_planes(noise(2, 3, 32, 8, 8, seed=1))
    stacked = noise(2, 96, 6, 6, seed=2).to(memory_format=torch.channels_last).unflatten(1, (3, 32))
    return [
        PlaneCase(name='channels_last', planes=last, points=noise(2, 301, 3, seed=3) * 0.4),
        PlaneCase(name='stacked', planes=stacked, points=noise(2, 50, 3, seed=4) * 0.4, box_size=1.5),
        PlaneCase(name='plain', planes=noise(1, 3, 5, 7, 7, seed=5), points=noise(1, 40, 3, seed=6) * 0.4),
        PlaneCase(name='shared', planes=last[:1].expand(2, -1, -1, -1, -1), points=noise(2, 20, 3, seed=7) * 0.3),
        PlaneCase(name='crop', planes=last[:, :, 3:24, 1:6, 2:7], points=noise(2, 30, 3, seed=8) * 0.4),
        PlaneCase(name='odd', planes=noise(1, 3, 19, 4, 4, seed=9), points=odd_points()),
        PlaneCase(name='texel', planes=noise(1, 3, 1, 1, 1, seed=10), points=noise(1, 30, 3, seed=11) * 0.7),
        PlaneCase(name='empty', planes=last, points=torch.zeros(2, 0, 3)),
    ]


def decoder_weights(channels: int, hidden: int, colors: int, *, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Hidden weight and bias, output weight and bias."""
    return (
        noise(hidden, channels, seed=seed) / channels**0.5,
        noise(hidden, seed=seed + 1),
        noise(1 + colors, hidden, seed=seed + 2) / hidden**0.5,
        noise(1 + colors, seed=seed + 3),
    )


def frontal_points(*, samples: int = 1, resolution: int = 64, depths: int = 48) -> torch.Tensor:
    """The points [N, M, 3] of a frontal view, ray after ray: one pass of a rendering at release size."""
    label = cameras.orbit_camera(torch.zeros(samples), torch.zeros(samples))
    origins, directions = cameras.rays(label, resolution)
    along = torch.linspace(2.25, 3.3, depths)[:, None]
    return (origins[:, :, None] + along * directions[:, :, None]).flatten(1, 2)


def release_planes(*, samples: int = 1) -> torch.Tensor:
    """Planes [N, 3, 32, 256, 256] of noise as the blending leaves them, channels adjacent."""
    return channels_last_planes(noise(samples, 3, 32, 256, 256, seed=12))
