"""Made-up weight files with the names and, but for their widths, the shapes of published estimators."""

from __future__ import annotations

import torch
from torch import Tensor

State = dict[str, Tensor]


class Maker:
    """Random tensors under names."""

    def __init__(self, seed: int) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.state: State = {}

    def weight(self, name: str, *shape: int) -> None:
        fan = max(1, int(torch.tensor(shape[1:]).prod())) if len(shape) > 1 else 4
        self.state[name] = torch.randn(shape, generator=self.rng) * (0.7 / fan**0.5)

    def linear(self, name: str, out: int, into: int) -> None:
        self.weight(f'{name}.weight', out, into)
        self.weight(f'{name}.bias', out)

    def norm(self, name: str, width: int, *, batch: bool = True) -> None:
        self.state[f'{name}.weight'] = 0.5 + torch.rand(width, generator=self.rng)
        self.weight(f'{name}.bias', width)
        if batch:
            self.weight(f'{name}.running_mean', width)
            self.state[f'{name}.running_var'] = 0.5 + torch.rand(width, generator=self.rng)
            self.state[f'{name}.num_batches_tracked'] = torch.tensor(7)


def bottleneck_state(make: Maker, prefix: str, *, blocks: tuple[int, ...], width: int = 2) -> int:
    """ResNet-50's names, which has (3, 4, 6, 3) blocks; returns the number of features."""
    make.weight(f'{prefix}conv1.weight', width, 3, 7, 7)
    make.norm(f'{prefix}bn1', width)
    into = width
    for stage, count in enumerate(blocks):
        middle = width * 2**stage
        for block in range(count):
            name = f'{prefix}layer{stage + 1}.{block}'
            shapes = [(middle, into, 1, 1), (middle, middle, 3, 3), (4 * middle, middle, 1, 1)]
            for number, shape in enumerate(shapes, start=1):
                make.weight(f'{name}.conv{number}.weight', *shape)
                make.norm(f'{name}.bn{number}', shape[0])
            if block == 0:
                make.weight(f'{name}.downsample.0.weight', 4 * middle, into, 1, 1)
                make.norm(f'{name}.downsample.1', 4 * middle)
            into = 4 * middle
    return into


def regression_state(make: Maker, prefix: str, outputs: int, *, blocks: tuple[int, ...] = (1, 1, 1, 1)) -> None:
    """DECA's encoder: a ResNet and two layers."""
    features = bottleneck_state(make, f'{prefix}encoder.', blocks=blocks)
    make.linear(f'{prefix}layers.0', 8, features)
    make.linear(f'{prefix}layers.2', outputs, 8)


def mobilenet_state(make: Maker, prefix: str, variant: str, *, width: int = 4) -> int:
    """The minimal MobileNetV3's names; returns the number of features."""
    counts = {'small': (1, 2, 3, 2, 3, 1), 'large': (1, 2, 3, 4, 2, 3, 1)}[variant]
    make.weight(f'{prefix}conv_stem.weight', width, 3, 3, 3)
    make.norm(f'{prefix}bn1', width)
    into = width
    for stage, count in enumerate(counts):
        out = width + 2 * stage
        for block in range(count):
            name = f'{prefix}blocks.{stage}.{block}'
            if stage == 0:
                shapes = {'conv_dw': (into, 1, 3, 3), 'conv_pw': (into, into, 1, 1)}
                out = into
            elif stage == len(counts) - 1:
                shapes = {'conv': (3 * into, into, 1, 1)}
                out = 3 * into
            else:
                middle = 2 * into
                shapes = {
                    'conv_pw': (middle, into, 1, 1), 'conv_dw': (middle, 1, 3, 3), 'conv_pwl': (out, middle, 1, 1)
                }  # fmt: skip
            for number, (part, shape) in enumerate(shapes.items(), start=1):
                make.weight(f'{name}.{part}.weight', *shape)
                make.norm(f'{name}.bn{number}', shape[0])
            into = out
    return into


def arcface_state(make: Maker, *, blocks: tuple[int, ...], width: int = 2, outputs: int = 16) -> None:
    """IResNet's names; IResNet-50 has (3, 4, 14, 3) blocks."""
    make.weight('conv1.weight', width, 3, 3, 3)
    make.norm('bn1', width)
    make.weight('prelu.weight', width)
    into = width
    for stage, count in enumerate(blocks):
        channels = width * 2**stage
        for block in range(count):
            name = f'layer{stage + 1}.{block}'
            make.norm(f'{name}.bn1', into)
            make.weight(f'{name}.conv1.weight', channels, into, 3, 3)
            make.norm(f'{name}.bn2', channels)
            make.weight(f'{name}.prelu.weight', channels)
            make.weight(f'{name}.conv2.weight', channels, channels, 3, 3)
            make.norm(f'{name}.bn3', channels)
            if block == 0:
                make.weight(f'{name}.downsample.0.weight', channels, into, 1, 1)
                make.norm(f'{name}.downsample.1', channels)
            into = channels
    make.norm('bn2', into)
    make.linear('fc', outputs, 49 * into)
    make.norm('features', outputs)


def dino_state(make: Maker, *, width: int = 64, patch: int = 56, depth: int = 2, second: bool = False) -> None:
    """DINO's names; `second`: DINOv2's, trained at another size, with registers."""
    places = 9 if second else (224 // patch) ** 2
    make.weight('cls_token', 1, 1, width)
    make.weight('pos_embed', 1, 1 + places, width)
    make.weight('patch_embed.proj.weight', width, 3, patch, patch)
    make.weight('patch_embed.proj.bias', width)
    for number in range(depth):
        for norm in ('norm1', 'norm2'):
            make.norm(f'blocks.{number}.{norm}', width, batch=False)
        make.linear(f'blocks.{number}.attn.qkv', 3 * width, width)
        make.linear(f'blocks.{number}.attn.proj', width, width)
        make.linear(f'blocks.{number}.mlp.fc1', 4 * width, width)
        make.linear(f'blocks.{number}.mlp.fc2', width, 4 * width)
        if second:
            make.weight(f'blocks.{number}.ls1.gamma', width)
            make.weight(f'blocks.{number}.ls2.gamma', width)
    make.norm('norm', width, batch=False)
    if second:
        make.weight('mask_token', 1, width)
        make.weight('register_tokens', 1, 4, width)


def clip_state(make: Maker, *, width: int = 64, patch: int = 56, depth: int = 2, outputs: int = 24) -> None:
    """CLIP's names: the image encoder, and something of the text's."""
    make.weight('visual.class_embedding', width)
    make.weight('visual.positional_embedding', 1 + (224 // patch) ** 2, width)
    make.weight('visual.conv1.weight', width, 3, patch, patch)
    for norm in ('ln_pre', 'ln_post'):
        make.norm(f'visual.{norm}', width, batch=False)
    make.weight('visual.proj', width, outputs)
    for number in range(depth):
        name = f'visual.transformer.resblocks.{number}'
        make.norm(f'{name}.ln_1', width, batch=False)
        make.norm(f'{name}.ln_2', width, batch=False)
        make.weight(f'{name}.attn.in_proj_weight', 3 * width, width)
        make.weight(f'{name}.attn.in_proj_bias', 3 * width)
        make.linear(f'{name}.attn.out_proj', width, width)
        make.linear(f'{name}.mlp.c_fc', 4 * width, width)
        make.linear(f'{name}.mlp.c_proj', width, 4 * width)
    make.weight('positional_embedding', 77, 8)
