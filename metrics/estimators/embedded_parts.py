"""Layers of the network of the embedded estimators, and what reads enlarged pictures of eyes, brows and mouth.

The trunk knows where they are; in its maps they are too small to be read. The places take no gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAK = 0.1
NUM_EXPRESSION = 52
PATCH = (12, 20)  # pixels of the picture of an eye ...
PATCH_HALF = (0.14, 0.22)  # ... and half its height and width, of half the picture's side
PATCH_WIDTHS, PATCH_HIDDEN = (24, 32, 32), 64
# The same of a mouth with chin and cheeks, and of a brow with lids; both are turned upright.
MOUTH, MOUTH_HALF, MOUTH_HIDDEN = (24, 28), (0.30, 0.35), 128
BROW, BROW_HALF, BROW_HIDDEN = (20, 24), (0.21, 0.25), 96
MOUTH_SHIFT, BROW_SHIFT = -0.02, -0.04  # of the middle of the picture from the place of mouth or eye; upwards
FACE_WIDTHS, FACE_SQUEEZED, FACE_HIDDEN = (24, 40, 64), 32, 128


class Layer(nn.Module):
    """Convolution, batch normalization (until folded), leaky ReLU; adds its input if `residual`."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.convolution = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1)
        self.norm: nn.Module = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.norm(self.convolution(x)), LEAK)
        return x + y if self.residual else y

    def fold(self) -> None:
        """Move the normalization (its running statistics) into the convolution."""
        norm = self.norm
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert self.convolution.bias is not None
        scale = norm.weight.data / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias.data + (self.convolution.bias.data - norm.running_mean) * scale
        self.convolution.weight.data *= scale[:, None, None, None]
        self.convolution.bias.data = shift
        self.norm = nn.Identity()


class EyeNetwork(nn.Module):
    """Pictures of the eyes [N, 2, 3, 12, 20] and the head's rotation [N, 3] -> correction of the gaze [N, 4].

    Everything in standard deviations; zero until trained. The right eye is shown mirrored.
    """

    def __init__(self) -> None:
        super().__init__()
        channels, layers = 3, []
        for number, width in enumerate(PATCH_WIDTHS):
            layers.append(nn.Conv2d(channels, width, 3, stride=1 if number == 0 else 2, padding=1))
            channels = width
        self.convolutions = nn.ModuleList(layers)
        places = -(-PATCH[0] // 4) * -(-PATCH[1] // 4)
        self.hidden = nn.Linear(2 * channels * places + 3, PATCH_HIDDEN)
        self.output = nn.Linear(PATCH_HIDDEN, 4)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, patches: Tensor, rotation: Tensor) -> Tensor:
        x = _contrast(patches.flatten(0, 1))
        for layer in self.convolutions:
            x = F.leaky_relu(layer(x), LEAK)
        x = torch.cat([x.reshape(len(patches), -1), rotation], dim=1)
        return self.output(F.leaky_relu(self.hidden(x), LEAK))


class PatchReader(nn.Module):
    """Patches [N, 3, H, W] -> hidden numbers [N, hidden]."""

    def __init__(self, size: tuple[int, int], hidden: int) -> None:
        super().__init__()
        layers, channels = [], 3
        for number, width in enumerate(FACE_WIDTHS):
            layers.append(Layer(channels, width, stride=1 if number == 0 else 2))
            channels = width
        self.layers = nn.Sequential(*layers)
        self.squeeze = nn.Conv2d(channels, FACE_SQUEEZED, 1)
        self.hidden = nn.Linear(FACE_SQUEEZED * (size[0] // 4) * (size[1] // 4), hidden)

    def forward(self, patches: Tensor) -> Tensor:
        x = F.leaky_relu(self.squeeze(self.layers(_contrast(patches))), LEAK)
        return F.leaky_relu(self.hidden(x.flatten(1)), LEAK)


class ExpressionNetwork(nn.Module):
    """Pictures of mouth [N, 3, 24, 28] and brows [N, 2, 3, 20, 24], jaw and rotation [N, 6] -> corrections [N, 56].

    Of expression, jaw and the face's logit, in standard deviations; zero until trained.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mouth = PatchReader(MOUTH, MOUTH_HIDDEN)
        self.brow = PatchReader(BROW, BROW_HIDDEN)
        self.hidden = nn.Linear(MOUTH_HIDDEN + 2 * BROW_HIDDEN + 6, FACE_HIDDEN)
        self.output = nn.Linear(FACE_HIDDEN, NUM_EXPRESSION + 4)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def seen(self, mouth: Tensor, brows: Tensor) -> tuple[Tensor, Tensor]:
        """What is read from the mouth [N, 128] and from either brow [N, 2, 96]."""
        return self.mouth(mouth), self.brow(brows.flatten(0, 1)).reshape(len(brows), 2, -1)

    def combined(self, mouth: Tensor, brows: Tensor, pose: Tensor) -> Tensor:
        """What is seen, jaw and rotation -> corrections [N, 56]."""
        x = torch.cat([mouth, brows.flatten(1), pose], dim=1)
        return self.output(F.leaky_relu(self.hidden(x), LEAK))

    def forward(self, mouth: Tensor, brows: Tensor, pose: Tensor) -> Tensor:
        return self.combined(*self.seen(mouth, brows), pose)


def _contrast(patches: Tensor) -> Tensor:
    """Patches without their mean, of contrast one."""
    x = patches - patches.mean(dim=(1, 2, 3), keepdim=True)
    return x / (x.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-3).sqrt()


def _cut(images: Tensor, middle: Tensor, right: Tensor, down: Tensor, size: tuple[int, int]) -> Tensor:
    """What lies at most `right` and `down` from `middle`, all [N, 2] (column, row; of half a side) -> [N, 3, *size]."""
    matrix = torch.stack([right, down, middle], dim=2)
    grid = F.affine_grid(matrix, [len(images), 3, *size], align_corners=False)
    return F.grid_sample(images, grid, mode='bilinear', padding_mode='border', align_corners=False)


def eye_patches(images: Tensor, places: Tensor) -> Tensor:
    """Images [N, 3, 64, 64] about the eyes' centres [N, 4] (left, right; column, row in [-1, 1]) -> [N, 2, 3, 12, 20].

    The right eye is mirrored.
    """
    height, width = PATCH_HALF
    down = images.new_tensor([[0.0, height]]).expand(len(images), 2)
    patches = []
    for middle, side in zip(places.detach().split(2, dim=1), (width, -width), strict=True):
        right = images.new_tensor([[side, 0.0]]).expand(len(images), 2)
        patches.append(_cut(images, middle, right, down, PATCH))
    return torch.stack(patches, dim=1)


def upright(eyes: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors [N, 2] in the picture along the line of the eyes [N, 4], to the left eye, and down from it."""
    right = F.normalize(eyes[:, :2] - eyes[:, 2:], dim=1)
    return right, torch.stack([-right[:, 1], right[:, 0]], dim=1)


def face_patches(images: Tensor, eyes: Tensor, mouth: Tensor) -> tuple[Tensor, Tensor]:
    """Images [N, 3, 64, 64] about mouth [N, 2] and eyes [N, 4] -> mouth [N, 3, 24, 28], brows [N, 2, 3, 20, 24].

    Turned so that the line of the eyes is level; the right brow is mirrored.
    """
    eyes, mouth = eyes.detach(), mouth.detach()
    right, down = upright(eyes)
    height, width = MOUTH_HALF
    lower = _cut(images, mouth + MOUTH_SHIFT * down, width * right, height * down, MOUTH)
    height, width = BROW_HALF
    brows = [
        _cut(images, eye + BROW_SHIFT * down, side * right, height * down, BROW)
        for eye, side in zip(eyes.split(2, dim=1), (width, -width), strict=True)
    ]
    return lower, torch.stack(brows, dim=1)
