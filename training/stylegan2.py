"""StyleGAN2 synthesis with the skip architecture: layers, blocks, network."""

from __future__ import annotations

import math

import torch
from torch import nn

from torch_utils.ops import bias_act, conv2d, upfirdn2d
from torch_utils.ops.layer_epilogue import layer_epilogue
from torch_utils.ops.modulated_conv import folds, modulated_conv2d
from training.layers import RESAMPLE_TAPS, FullyConnected, at_least_float32, demodulation, derived, log2_resolution


def num_synthesis_ws(resolution: int) -> int:
    """Rows of ws that a synthesis network from 4^2 up to `resolution` reads (256: 14)."""
    return 2 * log2_resolution(resolution) - 2


def block_ws(resolution: int) -> slice:
    """Rows of ws read by the block of this resolution: its convolutions and its output layer, which shares
    its row with the next block's first convolution (4: [0:2], 8: [1:4], 16: [3:6], ...)."""
    start = 2 * log2_resolution(resolution) - 5
    return slice(max(start, 0), start + 3)


def channel_width(resolution: int, *, channel_base: int, channel_max: int) -> int:
    """Feature channels at a resolution: channel_base / resolution, at most channel_max."""
    return max(1, min(channel_base // resolution, channel_max))


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution (optionally after upsampling by two), noise, bias, leaky ReLU.

    x [N, in, H, W], w [N, w_dim] -> [N, out, resolution, resolution]. With `use_noise`: rng None adds the constant
    `noise_const`, else fresh normal noise per sample, both times `noise_strength`.
    """

    noise_const: torch.Tensor
    taps: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        w_dim: int,
        resolution: int,
        up: int = 1,
        use_noise: bool = True,
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.up = up
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros([])) if use_noise else None
        if use_noise:
            self.register_buffer('noise_const', torch.randn(resolution, resolution))
        # Per axis; the sum of 2 makes up for the zeros of the transposed convolution.
        self.register_buffer('taps', torch.tensor(RESAMPLE_TAPS) * (2 / sum(RESAMPLE_TAPS)), persistent=False)

    def forward(self, x: torch.Tensor, w: torch.Tensor, *, rng: torch.Generator | None = None) -> torch.Tensor:
        styles = self.affine(w)
        x = modulated_conv2d(x, self._laid_out_weight(x), styles, up=self.up)
        energy = derived(self, self.weight, ('energy',), lambda: self.weight.square().sum(dim=(2, 3)))
        noise = None
        if self.noise_strength is not None:
            noise = self.noise_const[None, None]
            if rng is not None:
                shape = (x.shape[0], 1, self.resolution, self.resolution)
                noise = torch.randn(shape, generator=rng, device=x.device, dtype=self.noise_strength.dtype)
            noise = noise * self.noise_strength
        return layer_epilogue(
            x,
            bias=self.bias,
            taps=self.taps if self.up == 2 else None,
            scale=demodulation(energy, styles),
            noise=noise,
        )

    def _laid_out_weight(self, x: torch.Tensor) -> torch.Tensor:
        """The weight as the convolution of x wants it; itself where it is multiplied by the styles first."""
        if folds(x, self.weight):
            return self.weight
        dtype = conv2d.compute_type(x)

        def compute() -> torch.Tensor:
            if self.up == 1:
                return self.weight.to(dtype)
            turned = self.weight.transpose(0, 1).to(dtype)  # what a transposed convolution reads
            return turned.contiguous(memory_format=torch.channels_last).transpose(0, 1)

        if self.training or torch.is_grad_enabled():
            return self.weight  # its gradient wants the parameter itself
        return derived(self, self.weight, ('laid out', dtype), compute)


class OutputLayer(nn.Module):
    """Modulated 1x1 convolution without demodulation: x [N, in, H, W], w [N, w_dim] -> [N, out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, *, w_dim: int) -> None:
        super().__init__()
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.weight_gain = 1 / math.sqrt(in_channels)

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        styles = self.affine(w) * self.weight_gain
        x = at_least_float32(modulated_conv2d(x, self.weight, styles))
        return bias_act.bias_act(x, self.bias)


class SynthesisBlock(nn.Module):
    """Two synthesis layers and an output layer whose result is added to the (upsampled) image so far.

    forward(x, image, ws [N, 2 or 3, w_dim]) -> (x [N, out, resolution, resolution], image [N, image_channels, ...]).
    in_channels = 0: the block starts from its learned constant (x = None) and reads two rows of ws, else three.
    up = 1: keeps the resolution. image None starts a new image; the image given is never written to.
    """

    resample_filter: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        w_dim: int,
        resolution: int,
        image_channels: int,
        up: int = 2,
        use_noise: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.resolution = resolution
        self.up = up
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(
                in_channels, out_channels, w_dim=w_dim, resolution=resolution, up=up, use_noise=use_noise
            )
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim=w_dim, resolution=resolution, use_noise=use_noise)
        self.torgb = OutputLayer(out_channels, image_channels, w_dim=w_dim)
        self.register_buffer('resample_filter', upfirdn2d.setup_filter(RESAMPLE_TAPS), persistent=False)

    def forward(
        self,
        x: torch.Tensor | None,
        image: torch.Tensor | None,
        *,
        ws: torch.Tensor,
        rng: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = iter(ws.unbind(dim=1))
        if self.in_channels == 0:
            x = self.const.unsqueeze(0).expand(ws.shape[0], -1, -1, -1)
        else:
            assert x is not None
            x = self.conv0(x, next(rows), rng=rng)
        x = self.conv1(x, next(rows), rng=rng)
        output = self.torgb(x, next(rows))
        if image is None:
            return x, output
        if self.up == 2:
            image = upfirdn2d.upsample2d(image, self.resample_filter)
        return x, image + output


class SynthesisNetwork(nn.Module):
    """Blocks from 4^2 to `resolution`: ws [N, num_ws, w_dim] -> [N, out_channels, resolution, resolution].

    rng None: constant noise buffers (deterministic); else fresh noise in every layer.
    """

    def __init__(
        self,
        w_dim: int,
        resolution: int,
        out_channels: int,
        *,
        channel_base: int,
        channel_max: int,
    ) -> None:
        super().__init__()
        self.w_dim = w_dim
        self.resolution = resolution
        self.num_ws = num_synthesis_ws(resolution)
        self.block_resolutions = [2**i for i in range(2, log2_resolution(resolution) + 1)]
        channels = 0
        for block_resolution in self.block_resolutions:
            width = channel_width(block_resolution, channel_base=channel_base, channel_max=channel_max)
            block = SynthesisBlock(
                channels, width, w_dim=w_dim, resolution=block_resolution, image_channels=out_channels
            )
            setattr(self, f'b{block_resolution}', block)
            channels = width

    def forward(self, ws: torch.Tensor, *, rng: torch.Generator | None = None) -> torch.Tensor:
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(f'ws: expected [N, {self.num_ws}, {self.w_dim}], got {list(ws.shape)}')
        x: torch.Tensor | None = None
        image: torch.Tensor | None = None
        for resolution in self.block_resolutions:
            x, image = getattr(self, f'b{resolution}')(x, image, ws=ws[:, block_ws(resolution)], rng=rng)
        assert image is not None
        return image
