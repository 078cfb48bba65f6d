"""Volume rendering of tri-planes (paper section 3.4; SPEC section 2).

Shapes: N samples, M rays or points, D depths along a ray, C plane channels.
Depths are distances along unit rays in world units.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_utils.ops.planes import channels_last_planes, query_field
from training.config import GeneratorConfig
from training.layers import FullyConnected, full_precision

RAYS_AT_ONCE = 2048  # without gradients, of all samples together: their samples stay in the cache


@dataclasses.dataclass(frozen=True)
class RayRendering:
    features: Tensor  # [N, M, C] in [-1, 1]
    depth: Tensor  # [N, M, 1]
    weights: Tensor  # [N, M, 1]: total opacity of the ray


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
    # Softplus as minus a log-sigmoid: unlike torch's softplus it does not depend on an element's place in memory.
    alpha = 1 - torch.exp(delta * F.logsigmoid(1 - mid_sigma))
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


def importance_shares(count: int, num_rays: int, num: int, *, rng: torch.Generator | None, like: Tensor) -> Tensor:
    """Shares [N, M, num] in [0, 1) of a ray's weight; rng None spaces them evenly."""
    if rng is None:
        even = (torch.arange(num, dtype=like.dtype, device=like.device) + 0.5) / num
        return even.expand(count, num_rays, num)
    drawn = torch.rand((count * num_rays, num), generator=rng, dtype=like.dtype, device=like.device)
    return drawn.view(count, num_rays, num)


@torch.no_grad()
def importance_depths(depths: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """New depths [N, M, K, 1] where the coarse weights [N, M, D - 1, 1] reach the shares u [N, M, K]; no gradient."""
    count, num_rays, num_coarse, _ = depths.shape
    num = u.shape[2]
    u = u.reshape(count * num_rays, num)
    z = depths.reshape(count * num_rays, num_coarse)
    smooth = weights.reshape(count * num_rays, 1, num_coarse - 1)
    smooth = F.avg_pool1d(F.max_pool1d(smooth, 2, stride=1, padding=1), 2, stride=1)[:, 0] + 0.01
    bins = (z[:, :-1] + z[:, 1:]) / 2
    inner = smooth[:, 1:-1] + 1e-5
    pdf = inner / inner.sum(dim=1, keepdim=True)
    cdf = torch.cat([torch.zeros_like(pdf[:, :1]), pdf.cumsum(dim=1)], dim=1)
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

    def forward(
        self, planes: Tensor, points: Tensor, *, box_size: float, aggregation: str, of_colors: bool = True
    ) -> tuple[Tensor | None, Tensor]:
        """Colours [N, M, C] in (-0.001, 1.001) (None unless of_colors) and sigma [N, M, 1] at points [N, M, 3]."""
        with full_precision(planes):
            hidden, out = (
                (layer.weight * layer.weight_gain, layer.bias * layer.bias_gain) for layer in (self.hidden, self.out)
            )
            return query_field(
                planes, points, hidden, out, box_size=box_size, aggregation=aggregation, of_colors=of_colors
            )


class VolumeRenderer(nn.Module):
    """Coarse pass, importance samples, merged compositing."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config

    def query(self, planes: Tensor, points: Tensor, decoder: Decoder) -> tuple[Tensor, Tensor]:
        """Colours [N, M, C] and sigma [N, M, 1] at world points [N, M, 3]."""
        config = self.config
        colors, sigma = decoder(planes, points, box_size=config.box_size, aggregation=config.plane_aggregation)
        return colors, sigma

    def density(self, planes: Tensor, points: Tensor, decoder: Decoder) -> Tensor:
        """sigma [N, M, 1] alone; cheaper."""
        config = self.config
        return decoder(planes, points, box_size=config.box_size, aggregation=config.plane_aggregation, of_colors=False)[
            1
        ]

    def forward(
        self, planes: Tensor, origins: Tensor, directions: Tensor, *, decoder: Decoder, rng: torch.Generator | None
    ) -> RayRendering:
        """Planes [N, 3, C, R, R] along rays [N, M, 3]; rng None is deterministic (midpoints).

        Without gradients the rays go through in parts, which bounds the memory and changes no bit of the result.
        """
        count, num_rays, _ = origins.shape
        planes = channels_last_planes(planes)
        depths = stratified_depths(count, num_rays, self.config, rng=rng, like=origins)
        shares = importance_shares(count, num_rays, self.config.importance_samples, rng=rng, like=origins)
        at_once = num_rays if torch.is_grad_enabled() else max(1, RAYS_AT_ONCE // count)
        parts = [
            self._trace(planes, decoder, *part)
            for part in zip(*(t.split(at_once, dim=1) for t in (origins, directions, depths, shares)), strict=True)
        ]
        features, weighted_depth, total = (torch.cat(t, dim=1) for t in zip(*(p[:3] for p in parts), strict=True))
        # Clamped to each sample's own range; the release takes the whole batch's.
        nearest = torch.cat([part[3] for part in parts], dim=1).amin(dim=1, keepdim=True)  # [N, 1, 1]
        farthest = torch.cat([part[4] for part in parts], dim=1).amax(dim=1, keepdim=True)
        safe = torch.where(total > 0, total, torch.ones_like(total))
        depth = torch.where(total > 0, weighted_depth / safe, farthest)
        depth = torch.minimum(torch.maximum(depth, nearest), farthest)
        return RayRendering(features * 2 - 1, depth, total)

    def _trace(
        self, planes: Tensor, decoder: Decoder, origins: Tensor, directions: Tensor, depths: Tensor, shares: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What `composite` returns for rays [N, M, 3], then the nearest and farthest depth of each ray [N, M, 1]."""
        colors, sigma = self._march(planes, origins, directions, depths, decoder)
        if shares.shape[2] > 0:
            with torch.no_grad():
                fine = importance_depths(depths, ray_weights(sigma, depths), shares)
            fine_colors, fine_sigma = self._march(planes, origins, directions, fine, decoder)
            depths = torch.cat([depths, fine], dim=2)
            colors, sigma = torch.cat([colors, fine_colors], dim=2), torch.cat([sigma, fine_sigma], dim=2)
        return *composite(colors, sigma, depths), depths.amin(dim=2), depths.amax(dim=2)

    def _march(
        self, planes: Tensor, origins: Tensor, directions: Tensor, depths: Tensor, decoder: Decoder
    ) -> tuple[Tensor, Tensor]:
        count, num_rays, num, _ = depths.shape
        points = (origins[:, :, None] + depths * directions[:, :, None]).reshape(count, -1, 3)
        colors, sigma = self.query(planes, points, decoder)
        return colors.view(count, num_rays, num, -1), sigma.view(count, num_rays, num, 1)
