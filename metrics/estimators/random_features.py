"""The offline stand-in for Inception: fixed random convolutions at several scales.

Not FID, and never reported under that name: distances over these features are called fd_random.
They compare colour, contrast, texture at four scales and the coarse layout of a picture, which is
enough to follow a training run and to rank corruptions; they know nothing about faces.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from metrics.features import FeatureExtractor, check_batch

LEVELS = 4  # image pyramid: full, 1/2, 1/4, 1/8
CHANNELS = 12  # per layer and level; each gives a mean and a standard deviation
LAYOUT_SIZE = 8  # the picture reduced to 8 x 8 ...
LAYOUT_FEATURES = 64  # ... and projected to this many numbers
LAYOUT_GAIN = 0.5
# Natural pictures have less contrast at finer scales: these gains give each level about equal weight.
LEVEL_GAINS = (8.0, 5.6, 4.0, 2.8)
VERSION = 'random-conv-1'  # any change of the arithmetic below needs another name


def counter_weights(stream: int, count: int) -> NDArray[np.float32]:
    """`count` pseudo-random weights of mean 0 and variance 1, the same on every machine and version.

    The splitmix64 mixing function of a counter; four 16-bit pieces of each value are summed, so that
    the result is bell-shaped and exact in integers (no library's generator, no rounding).
    """
    with np.errstate(over='ignore'):
        state = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(stream << 32)) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    pieces = sum(((state >> np.uint64(16 * i)) & np.uint64(0xFFFF)).astype(np.int64) for i in range(4))
    centred = np.asarray(pieces) - 2 * 0xFFFF  # four uniforms: variance 4 * 65536^2 / 12
    return (centred / (65536.0 * np.sqrt(1.0 / 3.0))).astype(np.float32)


class RandomFeatures(FeatureExtractor):
    """256 numbers an image: pooled means and deviations of random filters, and a coarse layout.

    Works at any resolution of at least 8; values of different resolutions are not comparable.
    """

    name = VERSION
    licence = 'ours; no data'
    num_features = LEVELS * CHANNELS * 4 + LAYOUT_FEATURES

    def __init__(self) -> None:
        fan_first, fan_second = 3 * 9, CHANNELS * 9
        # The first filters are blind to flat colour, which the layout sees.
        self.first = _filters(0, CHANNELS, 3, gain=fan_first**-0.5, zero_mean=True)
        self.second = _filters(1, CHANNELS, CHANNELS, gain=(2 / fan_second) ** 0.5)
        width = 3 * LAYOUT_SIZE * LAYOUT_SIZE
        layout = counter_weights(2, LAYOUT_FEATURES * width).reshape(LAYOUT_FEATURES, width)
        self.layout = torch.from_numpy(layout * np.float32(width**-0.5))
        digest = hashlib.sha256(f'{VERSION} {LAYOUT_GAIN} {LEVEL_GAINS}'.encode())
        for weights in (self.first, self.second, self.layout):
            digest.update(weights.numpy().astype('<f4').tobytes())
        self.content_hash = digest.hexdigest()

    def to(self, device: torch.device | str) -> RandomFeatures:
        other = RandomFeatures()
        other.first, other.second = self.first.to(device), self.second.to(device)
        other.layout = self.layout.to(device)
        return other

    def __call__(self, images: Tensor) -> Tensor:
        check_batch(images)
        if min(images.shape[2:]) < 2 ** (LEVELS - 1):
            raise ValueError(f'images: expected a side of at least {2 ** (LEVELS - 1)}, got {list(images.shape[2:])}')
        x = images.to(torch.float32) / 127.5 - 1.0
        coarse = F.interpolate(x, size=(LAYOUT_SIZE, LAYOUT_SIZE), mode='area')
        features = [coarse.flatten(1) @ self.layout.T * LAYOUT_GAIN]
        for level, gain in enumerate(LEVEL_GAINS):
            if level:
                x = F.avg_pool2d(x, 2)
            y = F.conv2d(F.pad(x, (1, 1, 1, 1), mode='replicate'), self.first).relu() * gain
            features.append(_pooled(y))
            y = F.conv2d(F.pad(y, (1, 1, 1, 1), mode='replicate'), self.second).relu()
            features.append(_pooled(y))
        return torch.cat(features, dim=1)


def _filters(stream: int, channels_out: int, channels_in: int, *, gain: float, zero_mean: bool = False) -> Tensor:
    weights = counter_weights(stream, channels_out * channels_in * 9).reshape(channels_out, channels_in, 3, 3)
    exact = weights.astype(np.float64) * gain
    if zero_mean:
        exact -= exact.mean(axis=(2, 3), keepdims=True)
    return torch.from_numpy(exact.astype(np.float32))


def _pooled(maps: Tensor) -> Tensor:
    """[n, C, H, W] -> mean and standard deviation over the picture [n, 2 C]."""
    mean = maps.mean(dim=(2, 3))
    spread = ((maps - mean[:, :, None, None]) ** 2).mean(dim=(2, 3)).sqrt()
    return torch.cat([mean, spread], dim=1)
