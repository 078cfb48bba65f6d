"""Dual discriminator (paper section 3.5): image, raw image and template rendering, conditioned on a label."""

from __future__ import annotations

import math

import torch
from torch import nn

from dnnlib.errors import UserError
from training.config import DiscriminatorConfig
from training.layers import (
    Conv2d,
    FullyConnected,
    MappingNetwork,
    at_least_float32,
    filtered_resize,
    log2_resolution,
)
from training.stylegan2 import channel_width


class DiscriminatorBlock(nn.Module):
    """Residual block: x [N, in, R, R] -> [N, out, R / 2, R / 2]; both branches scaled by sqrt(1/2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv0 = Conv2d(in_channels, in_channels, activation='lrelu')
        self.conv1 = Conv2d(in_channels, out_channels, activation='lrelu', down=2)
        self.skip = Conv2d(in_channels, out_channels, kernel_size=1, bias=False, down=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gain = math.sqrt(0.5)
        return self.skip(x, gain=gain) + self.conv1(self.conv0(x), gain=gain)


def minibatch_std(x: torch.Tensor, *, group_size: int) -> torch.Tensor:
    """x [N, C, H, W] -> [N, C + 1, H, W]: one more channel, the mean over features and pixels of the standard
    deviation within each group. Groups hold every (N / size)-th sample; their size is the largest divisor of N
    up to `group_size`, so any batch works (a group of one has deviation 1e-4).
    """
    batch, channels, height, width = x.shape
    size = next(size for size in range(min(group_size, batch), 0, -1) if batch % size == 0)
    groups = at_least_float32(x).reshape(size, batch // size, channels, height, width)
    variance = (groups - groups.mean(dim=0)).square().mean(dim=0)
    deviation = (variance + 1e-8).sqrt().mean(dim=(1, 2, 3))  # [N / size]
    deviation = deviation.to(x.dtype).repeat(size)  # [N]
    return torch.cat([x, deviation.view(batch, 1, 1, 1).expand(-1, 1, height, width)], dim=1)


class DiscriminatorEpilogue(nn.Module):
    """x [N, C, 4, 4] -> [N, out_features]."""

    def __init__(self, channels: int, out_features: int, *, mbstd_group_size: int) -> None:
        super().__init__()
        self.mbstd_group_size = mbstd_group_size
        self.conv = Conv2d(channels + 1, channels, activation='lrelu')
        self.fc = FullyConnected(channels * 16, channels, activation='lrelu')
        self.out = FullyConnected(channels, out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(minibatch_std(x, group_size=self.mbstd_group_size))
        return self.out(self.fc(x.flatten(1)))


class DualDiscriminator(nn.Module):
    """Realism of (image, raw image[, template rendering]) given a label: logits [N, 1].

    image [N, 3, R, R], image_raw [N, 3, r, r] (resized to R with antialiasing), template [N, 3, R, R] if and only if
    config.template is not 'none'; all in [-1, 1]. label [N, label_dim] (None if label_dim = 0) is projected onto the
    features. With config.label_noise and an rng, the label gets normal noise of `label_noise` times the batch's
    standard deviation per dimension (none at batch 1); the caller's tensor is left alone.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.image_channels = 6 if config.template == 'none' else 9
        top = log2_resolution(config.image_resolution, name='image_resolution')
        if top < 3:
            raise ValueError(f'image_resolution: expected at least 8, got {config.image_resolution}')
        self.block_resolutions = [2**i for i in range(top, 2, -1)]

        def width(resolution: int) -> int:
            return channel_width(resolution, channel_base=config.channel_base, channel_max=config.channel_max)

        self.fromrgb = Conv2d(self.image_channels, width(config.image_resolution), kernel_size=1, activation='lrelu')
        for resolution in self.block_resolutions:
            setattr(self, f'b{resolution}', DiscriminatorBlock(width(resolution), width(resolution // 2)))
        self.mapping = None
        if config.label_dim > 0:
            self.mapping = MappingNetwork(0, config.label_dim, width(4), None, num_layers=config.mapping_layers)
        out_features = width(4) if config.label_dim > 0 else 1
        self.b4 = DiscriminatorEpilogue(width(4), out_features, mbstd_group_size=config.mbstd_group_size)

    def first_layers(self, count: int) -> set[str]:
        """Names of the parameters of the first `count` convolutions, from the image down (for Freeze-D).

        UserError beyond the residual blocks: what judges their features must be able to learn.
        """
        blocks = {name: module for name, module in self.named_modules() if not name.startswith('b4.')}
        names = [name for name, module in blocks.items() if isinstance(module, Conv2d)]
        if count > len(names):
            raise UserError(f'freeze_d: expected at most {len(names)}, the convolutions before the last, got {count}')
        return {name for name, _ in self.named_parameters() if name.rpartition('.')[0] in names[:count]}

    def forward(
        self,
        *,
        image: torch.Tensor,
        image_raw: torch.Tensor,
        label: torch.Tensor | None,
        template: torch.Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> torch.Tensor:
        x = self.fromrgb(self._stack(image, image_raw, template))
        for resolution in self.block_resolutions:
            x = getattr(self, f'b{resolution}')(x)
        x = self.b4(x)
        if self.mapping is None:
            return x
        condition = self.mapping(None, self._noisy(label, rng))
        return (x * condition).sum(dim=1, keepdim=True) / math.sqrt(condition.shape[1])

    def _stack(self, image: torch.Tensor, image_raw: torch.Tensor, template: torch.Tensor | None) -> torch.Tensor:
        """The input channels [N, 6 or 9, R, R]; ValueError names the argument that does not fit."""
        size = self.config.image_resolution
        if image.ndim != 4 or image.shape[1:] != (3, size, size):
            raise ValueError(f'image: expected [N, 3, {size}, {size}], got {list(image.shape)}')
        if image_raw.ndim != 4 or image_raw.shape[:2] != image.shape[:2]:
            raise ValueError(f'image_raw: expected [{image.shape[0]}, 3, r, r], got {list(image_raw.shape)}')
        inputs = [image, filtered_resize(image_raw, size)]
        if self.config.template == 'none':
            if template is not None:
                raise ValueError("template: expected None for a discriminator with template 'none'")
        elif template is None or template.shape != image.shape:
            got = None if template is None else list(template.shape)
            raise ValueError(f'template: expected {list(image.shape)}, got {got}')
        else:
            inputs.append(template)
        return torch.cat(inputs, dim=1)

    def _noisy(self, label: torch.Tensor | None, rng: torch.Generator | None) -> torch.Tensor | None:
        scale = self.config.label_noise
        if label is None or rng is None or scale == 0 or label.shape[0] == 1:
            return label
        noise = torch.randn(label.shape, generator=rng, device=label.device, dtype=label.dtype)
        return label + noise * label.std(dim=0) * scale
