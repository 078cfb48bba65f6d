"""MobileNetV3, the minimal variants (no squeezing, ReLU, 3 x 3), as SMIRK's weights name them.

Howard et al. 2019; padding and epsilon are TensorFlow's. Channel counts are read from the weights.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from metrics.estimators.weights import State, WeightFile, count_blocks, first_shape, load_state

EPSILON = 1e-3
# First strides of the stages; the first stage is depthwise separable, the last a single convolution.
STRIDES = {'small': (2, 2, 2, 1, 2, 1), 'large': (1, 2, 2, 2, 1, 2, 1)}


class SamePadded(nn.Conv2d):
    """A convolution whose output has ceil(size / stride) pixels; the odd pixel of padding is at the end."""

    def forward(self, x: Tensor) -> Tensor:
        stride, kernel = self.stride[0], self.kernel_size[0]
        total = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[2:]]
        rows, columns = total
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return super().forward(x)


class Separable(nn.Module):
    """Depthwise 3 x 3, then 1 x 1 without activation; adds its input where sizes allow."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.conv_dw = SamePadded(channels_in, channels_in, 3, stride=stride, groups=channels_in, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_in, eps=EPSILON)
        self.conv_pw = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out, eps=EPSILON)
        self.adds = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv_pw(F.relu(self.bn1(self.conv_dw(x)))))
        return x + y if self.adds else y


class Inverted(nn.Module):
    """1 x 1 to more channels, depthwise 3 x 3, 1 x 1 without activation; adds its input where sizes allow."""

    def __init__(self, channels_in: int, middle: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.conv_pw = nn.Conv2d(channels_in, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle, eps=EPSILON)
        self.conv_dw = SamePadded(middle, middle, 3, stride=stride, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle, eps=EPSILON)
        self.conv_pwl = nn.Conv2d(middle, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out, eps=EPSILON)
        self.adds = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv_pw(x)))
        y = self.bn3(self.conv_pwl(F.relu(self.bn2(self.conv_dw(y)))))
        return x + y if self.adds else y


class Pointwise(nn.Module):
    """1 x 1 and activation."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv(x)))


class MobileNet(nn.Module):
    """Images [N, 3, H, W] -> means of the last maps [N, C]."""

    def __init__(self, state: State, *, variant: str, path: Path, card: WeightFile) -> None:
        super().__init__()

        def size(name: str, axis: int = 0) -> int:
            return first_shape(state, name, path=path, card=card)[axis]

        width = size('conv_stem.weight')
        self.conv_stem = SamePadded(3, width, 3, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps=EPSILON)
        stages: list[nn.Module] = []
        strides = STRIDES[variant]
        for number, first in enumerate(strides):
            blocks: list[nn.Module] = []
            for block in range(count_blocks(state, f'blocks.{number}.')):
                name, stride = f'blocks.{number}.{block}', first if block == 0 else 1
                if number == 0:
                    out = size(f'{name}.conv_pw.weight')
                    blocks.append(Separable(width, out, stride=stride))
                elif number < len(strides) - 1:
                    out = size(f'{name}.conv_pwl.weight')
                    blocks.append(Inverted(width, size(f'{name}.conv_pw.weight'), out, stride=stride))
                else:
                    out = size(f'{name}.conv.weight')
                    blocks.append(Pointwise(width, out))
                width = out
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.num_features = width
        load_state(self, state, path=path, card=card)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(F.relu(self.bn1(self.conv_stem(x)))).mean(dim=(2, 3))
