"""UNets of the mouth synthesis module (paper section 3.2, figure 12): style-modulated and plain."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from torch_utils.ops import upfirdn2d
from training.config import GeneratorConfig
from training.layers import RESAMPLE_TAPS, Conv2d, log2_resolution
from training.stylegan2 import SynthesisBlock, block_ws, channel_width, num_synthesis_ws


class EncoderBlock(nn.Module):
    """One scale of the encoder: adds the planes' projection to the running features, then two convolutions.

    forward(planes [N, P, R, R], x [N, in, R, R] or None) -> x [N, out, R / 2, R / 2].
    """

    def __init__(self, in_channels: int, out_channels: int, *, plane_channels: int) -> None:
        super().__init__()
        self.from_planes = Conv2d(plane_channels, in_channels, kernel_size=1, bias=False)
        self.conv1 = Conv2d(in_channels, in_channels, activation='lrelu')
        self.conv2 = Conv2d(in_channels, out_channels, activation='lrelu', down=2)

    def forward(self, planes: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
        projected = self.from_planes(planes)
        return self.conv2(self.conv1(projected if x is None else x + projected))


class ResidualBlock(nn.Module):
    """x [N, C, R, R] -> (x + two convolutions) / sqrt(2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels, channels, activation='lrelu')
        self.conv2 = Conv2d(channels, channels, activation='lrelu')

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.conv2(self.conv1(x))) * math.sqrt(0.5)


class StyleUNet(nn.Module):
    """Encoder of planes, style-modulated StyleGAN2 decoder with the encoder's features as content at every scale.

    forward(x [N, in_channels, in_resolution, in_resolution], ws) -> [N, out_channels, out_resolution, out_resolution].
    ws [N, at least .num_ws, w_dim]: rows of a synthesis network that starts at 4^2; each decoder block picks the
    rows of its resolution. The encoder halves from in_resolution to bottleneck_resolution; the decoder has the blocks
    2 x bottleneck_resolution to out_resolution. A 3x3 convolution fuses features so far and encoded features of the
    same scale before each block that has such features; only what is used is built. `widths(resolution)` gives the
    number of feature channels of both halves. Noise as in SynthesisNetwork (rng None: constant).
    """

    resample_filter: torch.Tensor

    def __init__(
        self,
        w_dim: int,
        in_channels: int,
        out_channels: int,
        *,
        in_resolution: int,
        out_resolution: int,
        bottleneck_resolution: int,
        widths: Callable[[int], int],
        residual_blocks: int = 0,
    ) -> None:
        super().__init__()
        top, end = log2_resolution(in_resolution), log2_resolution(out_resolution)
        low = log2_resolution(bottleneck_resolution, name='bottleneck_resolution')
        if not low < top or not low < end:
            raise ValueError(
                f'bottleneck_resolution: expected below {min(in_resolution, out_resolution)}, '
                f'got {bottleneck_resolution}'
            )
        self.w_dim = w_dim
        self.in_shape = (in_channels, in_resolution, in_resolution)
        self.num_ws = num_synthesis_ws(out_resolution)
        self.encoder_resolutions = [2**i for i in range(top, low, -1)]
        self.encoder = nn.ModuleList(
            EncoderBlock(widths(resolution), widths(resolution // 2), plane_channels=in_channels)
            for resolution in self.encoder_resolutions
        )
        self.residual = nn.Sequential(*(ResidualBlock(widths(bottleneck_resolution)) for _ in range(residual_blocks)))
        self.block_resolutions = [2**i for i in range(low + 1, end + 1)]
        self.fusion = nn.ModuleList()
        for resolution in self.block_resolutions:
            source, width = resolution // 2, widths(resolution // 2)
            if source < in_resolution:  # this scale has encoded features; the lowest has nothing else
                inputs = width if source == bottleneck_resolution else 2 * width
                self.fusion.append(Conv2d(inputs, width))
            block = SynthesisBlock(
                width, widths(resolution), w_dim=w_dim, resolution=resolution, image_channels=out_channels
            )
            setattr(self, f'b{resolution}', block)
        self.register_buffer('resample_filter', upfirdn2d.setup_filter(RESAMPLE_TAPS), persistent=False)

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Features of every encoded scale, the lowest first."""
        features: list[torch.Tensor] = []
        planes, running = x, None
        for index, block in enumerate(self.encoder):
            if index > 0:
                planes = upfirdn2d.downsample2d(planes, self.resample_filter)
            running = block(planes, running)
            features.append(running)
        return features[::-1]

    def forward(self, x: torch.Tensor, ws: torch.Tensor, *, rng: torch.Generator | None = None) -> torch.Tensor:
        if x.ndim != 4 or x.shape[1:] != self.in_shape:
            raise ValueError(f'x: expected [N, {", ".join(map(str, self.in_shape))}], got {list(x.shape)}')
        if ws.ndim != 3 or ws.shape[1] < self.num_ws or ws.shape[2] != self.w_dim:
            raise ValueError(f'ws: expected [N, {self.num_ws} or more, {self.w_dim}], got {list(ws.shape)}')
        contents = self.encode(x)
        contents[0] = self.residual(contents[0])
        features: torch.Tensor | None = None
        image: torch.Tensor | None = None
        for index, resolution in enumerate(self.block_resolutions):
            if index < len(self.fusion):
                content = contents[index]
                features = self.fusion[index](content if features is None else torch.cat([features, content], dim=1))
            block = getattr(self, f'b{resolution}')
            features, image = block(features, image, ws=ws[:, block_ws(resolution)], rng=rng)
        assert image is not None
        return image


class ShallowUNet(nn.Module):
    """Plain UNet of three scales whose output is a correction of its first channels; near the identity at first.

    x [N, in_channels, R, R] -> x[:, :out_channels] + correction [N, out_channels, R, R]; R divisible by 4.
    `width` is the number of feature channels at full resolution; below it is doubled.
    """

    def __init__(self, in_channels: int, out_channels: int, *, width: int) -> None:
        super().__init__()
        if out_channels > in_channels:
            raise ValueError(f'out_channels: expected at most in_channels = {in_channels}, got {out_channels}')
        self.out_channels = out_channels
        self.enter = Conv2d(in_channels, width, activation='lrelu')
        self.down1 = Conv2d(width, 2 * width, activation='lrelu', down=2)
        self.down2 = Conv2d(2 * width, 2 * width, activation='lrelu', down=2)
        self.middle = Conv2d(2 * width, 2 * width, activation='lrelu')
        self.up2 = Conv2d(2 * width, 2 * width, activation='lrelu', up=2)
        self.merge2 = Conv2d(4 * width, 2 * width, activation='lrelu')
        self.up1 = Conv2d(2 * width, width, activation='lrelu', up=2)
        self.merge1 = Conv2d(2 * width, width, activation='lrelu')
        self.leave = Conv2d(width, out_channels, kernel_size=1, init_std=0.05)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        full = self.enter(x)
        half = self.down1(full)
        low = self.middle(self.down2(half))
        half = self.merge2(torch.cat([self.up2(low), half], dim=1))
        full = self.merge1(torch.cat([self.up1(half), full], dim=1))
        return x[:, : self.out_channels] + self.leave(full)


def build_mouth_unet(config: GeneratorConfig) -> StyleUNet:
    """G_teeth: mouth crops [N, planes x C, mouth_resolution, mouth_resolution] -> planes x C channels.

    mouth_channels > 0 (P, figure 12): that width at the top scale, encoder to an eighth of the resolution, two
    residual blocks there, output at mouth_resolution; the 768 feature maps of figure 12 are mapped to the plane
    channels by the last modulated 1x1 convolution. mouth_channels = 0 (R): the backbone's widths, encoder to 4^2,
    output at plane_resolution.
    """
    channels = config.plane_channels * (3 if config.mouth_planes == 'all' else 1)
    resolution = config.mouth_resolution
    paper = config.mouth_channels > 0

    def widths(at: int) -> int:
        if paper and at == resolution:
            return config.mouth_channels
        return channel_width(at, channel_base=config.channel_base, channel_max=config.channel_max)

    return StyleUNet(
        config.w_dim,
        channels,
        channels,
        in_resolution=resolution,
        out_resolution=resolution if paper else config.plane_resolution,
        bottleneck_resolution=max(4, resolution // 8) if paper else 4,
        widths=widths,
        residual_blocks=2 if paper else 0,
    )


def build_blending_unet(config: GeneratorConfig) -> StyleUNet:
    """R's blending net: one plane [N, C, R, R] -> [N, C, R, R], encoder down to an eighth (256: 32)."""
    return StyleUNet(
        config.w_dim,
        config.plane_channels,
        config.plane_channels,
        in_resolution=config.plane_resolution,
        out_resolution=config.plane_resolution,
        bottleneck_resolution=max(4, config.plane_resolution // 8),
        widths=lambda at: channel_width(at, channel_base=config.channel_base, channel_max=config.channel_max),
    )
