"""Residual networks as DECA (ResNet-50) and ArcFace (IResNet) name their weights; sizes are read from the weights."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.estimators.weights import State, WeightFile, count_blocks, first_shape, load_state

STAGES = (1, 2, 3, 4)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (strided), 1 x 1 convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, channels_in: int, channels: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            shortcut = nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    """Images [N, 3, 224, 224] -> means of the last maps [N, C]."""

    def __init__(self, state: State, *, path: Path, card: WeightFile) -> None:
        super().__init__()
        width = first_shape(state, 'conv1.weight', path=path, card=card)[0]
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        for stage in STAGES:
            channels = first_shape(state, f'layer{stage}.0.conv1.weight', path=path, card=card)[0]
            channels_out = first_shape(state, f'layer{stage}.0.conv3.weight', path=path, card=card)[0]
            blocks = []
            for number in range(count_blocks(state, f'layer{stage}.')):
                stride = 2 if stage > 1 and number == 0 else 1
                blocks.append(Bottleneck(width, channels, channels_out, stride=stride))
                width = channels_out
            self.add_module(f'layer{stage}', nn.Sequential(*blocks))
        self.num_features = width
        load_state(self, state, path=path, card=card)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        for stage in STAGES:
            x = self.get_submodule(f'layer{stage}')(x)
        return x.mean(dim=(2, 3))


class ImprovedBlock(nn.Module):
    """Normalization, 3 x 3, normalization, PReLU, 3 x 3 (strided), normalization (Duta et al. 2020; ArcFace's)."""

    def __init__(self, channels_in: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1:
            shortcut = nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(y)) + self.downsample(x)


class ImprovedResNet(nn.Module):
    """Aligned faces [N, 3, 112, 112] in [-1, 1] -> vectors [N, D], not normalized."""

    SIZE = 112

    def __init__(self, state: State, *, path: Path, card: WeightFile) -> None:
        super().__init__()
        width = first_shape(state, 'conv1.weight', path=path, card=card)[0]
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        for stage in STAGES:
            channels = first_shape(state, f'layer{stage}.0.conv1.weight', path=path, card=card)[0]
            blocks = []
            for number in range(count_blocks(state, f'layer{stage}.')):
                blocks.append(ImprovedBlock(width, channels, stride=2 if number == 0 else 1))
                width = channels
            self.add_module(f'layer{stage}', nn.Sequential(*blocks))
        self.bn2 = nn.BatchNorm2d(width)
        places = (self.SIZE // 2 ** len(STAGES)) ** 2
        self.num_features = first_shape(state, 'fc.weight', path=path, card=card)[0]
        self.fc = nn.Linear(width * places, self.num_features)
        self.features = nn.BatchNorm1d(self.num_features)
        load_state(self, state, path=path, card=card)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in STAGES:
            x = self.get_submodule(f'layer{stage}')(x)
        return self.features(self.fc(torch.flatten(self.bn2(x), 1)))
