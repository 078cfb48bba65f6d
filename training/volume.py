"""Volume rendering of tri-planes (paper section 3.4; SPEC section 2).

Shapes: N samples, M rays or points, D depths along a ray, C plane channels.
Depths are distances along unit rays in world units.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import GeneratorConfig
from training.layers import FullyConnected

# Which two world axes a slot is read at, as (column, row).
PLANE_AXES = ((0, 1), (0, 2), (2, 1))


@dataclasses.dataclass(frozen=True)
class RayRendering:
    features: Tensor  # [N, M, C] in [-1, 1]
    depth: Tensor  # [N, M, 1]
    weights: Tensor  # [N, M, 1]: total opacity of the ray


def sample_planes(planes: Tensor, points: Tensor, *, box_size: float, aggregation: str) -> Tensor:
    """Planes [N, 3, C, R, R] read at world points [N, M, 3] and summed or averaged. [N, M, C]"""
    count, _, channels, size, _ = planes.shape
    coordinates = points * (2 / box_size)
    grid = torch.stack([coordinates[..., list(axes)] for axes in PLANE_AXES], dim=1)  # [N, 3, M, 2]
    sampled = F.grid_sample(planes.reshape(-1, channels, size, size), grid.flatten(0, 1)[:, None], align_corners=False)
    total = sampled.view(count, 3, channels, -1).sum(dim=1).transpose(1, 2)
    return total / 3 if aggregation == 'mean' else total


def stratified_depths(
    count: int, num_rays: int, config: GeneratorConfig, *, rng: torch.Generator | None, like: Tensor
) -> Tensor:
    """Jittered depths [N, M, D, 1] from ray_near to ray_far; rng None puts them mid-step."""
    num = config.depth_samples
    start = torch.linspace(config.ray_near, config.ray_far, num, dtype=like.dtype, device=like.device)
    shape = (count, num_rays, num, 1)
    step = (config.ray_far - config.ray_near) / (num - 1)
    if rng is None:
        jitter = torch.full(shape, 0.5, dtype=like.dtype, device=like.device)
    else:
        jitter = torch.rand(shape, generator=rng, dtype=like.dtype, device=like.device)
    return start.view(1, 1, num, 1) + jitter * step


def ray_weights(sigma: Tensor, depths: Tensor) -> Tensor:
    """Opacity that each interval between two samples adds to its ray, front to back.

    sigma and depths [N, M, D, 1], sorted by depth -> weights [N, M, D - 1, 1].
    """
    delta = depths[:, :, 1:] - depths[:, :, :-1]
    mid_sigma = (sigma[:, :, :-1] + sigma[:, :, 1:]) / 2
    alpha = 1 - torch.exp(-delta * F.softplus(mid_sigma - 1))
    through = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :, :1]), 1 - alpha + 1e-10], dim=2), dim=2)
    return alpha * through[:, :, :-1]


def composite(colors: Tensor, sigma: Tensor, depths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Front-to-back compositing between sample midpoints; the samples may come in any order.

    colors [N, M, D, C], sigma and depths [N, M, D, 1] ->
    colours [N, M, C], weighted depth sum [N, M, 1], total weight [N, M, 1].
    An interval shows the mean of its two ends, so each sample gets half the weight of both its intervals; these
    are put back into the order of the samples instead of sorting the (much wider) colours.
    """
    ordered, order = depths.sort(dim=2)
    weights = ray_weights(sigma.gather(2, order), ordered)
    halves = F.pad(weights, (0, 0, 0, 1)) / 2 + F.pad(weights, (0, 0, 1, 0)) / 2
    share = torch.zeros_like(halves).scatter(2, order, halves)
    mixed = share.flatten(0, 1).transpose(1, 2) @ colors.flatten(0, 1)  # [N M, 1, C]
    return mixed.view(*colors.shape[:2], -1), (share * depths).sum(dim=2), weights.sum(dim=2)


@torch.no_grad()
def importance_depths(depths: Tensor, weights: Tensor, num: int, *, rng: torch.Generator | None) -> Tensor:
    """New depths [N, M, num, 1] drawn where the coarse weights [N, M, D - 1, 1] are; no gradient."""
    count, num_rays, num_coarse, _ = depths.shape
    z = depths.reshape(count * num_rays, num_coarse)
    smooth = weights.reshape(count * num_rays, 1, num_coarse - 1)
    smooth = F.avg_pool1d(F.max_pool1d(smooth, 2, stride=1, padding=1), 2, stride=1)[:, 0] + 0.01
    bins = (z[:, :-1] + z[:, 1:]) / 2
    inner = smooth[:, 1:-1] + 1e-5
    pdf = inner / inner.sum(dim=1, keepdim=True)
    cdf = torch.cat([torch.zeros_like(pdf[:, :1]), pdf.cumsum(dim=1)], dim=1)
    if rng is None:
        u = ((torch.arange(num, dtype=z.dtype, device=z.device) + 0.5) / num).expand(z.shape[0], num)
    else:
        u = torch.rand((z.shape[0], num), generator=rng, dtype=z.dtype, device=z.device)
    index = torch.searchsorted(cdf, u.contiguous(), right=True)
    below, above = (index - 1).clamp(min=0), index.clamp(max=inner.shape[1])
    cdf_below, bin_below = cdf.gather(1, below), bins.gather(1, below)
    width = cdf.gather(1, above) - cdf_below
    width = torch.where(width < 1e-5, torch.ones_like(width), width)
    new = bin_below + (u - cdf_below) / width * (bins.gather(1, above) - bin_below)
    return new.view(count, num_rays, num, 1)


class Decoder(nn.Module):
    """MLP: C -> hidden (softplus) -> 1 + C; sigma first, colours through a widened sigmoid."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.hidden = FullyConnected(channels, hidden)
        self.out = FullyConnected(hidden, 1 + channels)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features [N, M, C] -> colours [N, M, C] in (-0.001, 1.001), sigma [N, M, 1]."""
        x = self.out(F.softplus(self.hidden(features.flatten(0, 1))))
        x = x.view(*features.shape[:2], -1)
        return x[..., 1:].sigmoid() * 1.002 - 0.001, x[..., :1]

    def density(self, features: Tensor) -> Tensor:
        """features [N, M, C] -> sigma [N, M, 1] alone."""
        return self.forward(features)[1]


class VolumeRenderer(nn.Module):
    """Coarse pass, importance samples, merged compositing."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config

    def query(self, planes: Tensor, points: Tensor, decoder: Decoder) -> tuple[Tensor, Tensor]:
        """Colours [N, M, C] and sigma [N, M, 1] at world points [N, M, 3]."""
        config = self.config
        return decoder(sample_planes(planes, points, box_size=config.box_size, aggregation=config.plane_aggregation))

    def forward(
        self, planes: Tensor, origins: Tensor, directions: Tensor, *, decoder: Decoder, rng: torch.Generator | None
    ) -> RayRendering:
        """Planes [N, 3, C, R, R] along rays [N, M, 3]; rng None is deterministic (midpoints)."""
        count, num_rays, _ = origins.shape
        depths = stratified_depths(count, num_rays, self.config, rng=rng, like=origins)
        colors, sigma = self._march(planes, origins, directions, depths, decoder)
        if self.config.importance_samples > 0:
            with torch.no_grad():
                fine = importance_depths(depths, ray_weights(sigma, depths), self.config.importance_samples, rng=rng)
            fine_colors, fine_sigma = self._march(planes, origins, directions, fine, decoder)
            depths = torch.cat([depths, fine], dim=2)
            colors, sigma = torch.cat([colors, fine_colors], dim=2), torch.cat([sigma, fine_sigma], dim=2)
        features, weighted_depth, total = composite(colors, sigma, depths)
        # Clamped to each sample's own range; the release takes the whole batch's.
        nearest, farthest = depths.amin(dim=(1, 2))[:, None], depths.amax(dim=(1, 2))[:, None]  # [N, 1, 1]
        safe = torch.where(total > 0, total, torch.ones_like(total))
        depth = torch.where(total > 0, weighted_depth / safe, farthest)
        depth = torch.minimum(torch.maximum(depth, nearest), farthest)
        return RayRendering(features * 2 - 1, depth, total)

    def _march(
        self, planes: Tensor, origins: Tensor, directions: Tensor, depths: Tensor, decoder: Decoder
    ) -> tuple[Tensor, Tensor]:
        count, num_rays, num, _ = depths.shape
        points = (origins[:, :, None] + depths * directions[:, :, None]).reshape(count, -1, 3)
        colors, sigma = self.query(planes, points, decoder)
        return colors.view(count, num_rays, num, -1), sigma.view(count, num_rays, num, 1)
