"""The network of the embedded estimators, trained on the synthetic dataset by tools/train_estimators.py, and its file.

One trunk of strided 3 x 3 convolutions at 64 px, three heads: head parameters, identity, and (in training alone)
everything else that the synthetic dataset knows of a picture, so that the trunk's activations describe all of it.
The file is an npz of float16 weights with batch normalization folded away, and a JSON header.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnnlib import UserError
from dnnlib.files import atomic_write, sha256_file

DEFAULT_PATH = Path(__file__).resolve().parents[2] / 'assets/estimators/synthetic.npz'
FORMAT = 'next3d-embedded-estimators'
VERSION = 1
RESOLUTION = 64
WIDTHS = (24, 48, 96, 192)  # channels at 32, 16, 8 and 4 px
BLOCKS = (0, 1, 1, 1)  # residual layers at each
SQUEEZED = 64  # channels of the last map that the heads see, with their places
FINE = 24  # channels of the 8 px map that the head parameters see beside it
# Where eyes are in the 32 px map (rows, columns), and what is made of it: an iris moves by less than a pixel.
EYES = (slice(8, 18), slice(6, 26))
EYE_WIDTH, EYE_HIDDEN = 48, 96
PATCH = (12, 20)  # pixels of the picture of an eye ...
PATCH_HALF = (0.14, 0.22)  # ... and half its height and width, of half the picture's side
PATCH_WIDTHS, PATCH_HIDDEN = (24, 32, 32), 64
HIDDEN = 192
NUM_EXPRESSION = 52
NUM_IDENTITY = 128
HEAD_SIZES = {'expression': NUM_EXPRESSION, 'jaw': 3, 'rotation': 3, 'gaze': 4, 'face': 1}
LEAK = 0.1
_HEADER = 'header'


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
        x = patches.flatten(0, 1)
        x = x - x.mean(dim=(1, 2, 3), keepdim=True)
        x = x / (x.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-3).sqrt()
        for layer in self.convolutions:
            x = F.leaky_relu(layer(x), LEAK)
        x = torch.cat([x.reshape(len(patches), -1), rotation], dim=1)
        return self.output(F.leaky_relu(self.hidden(x), LEAK))


def eye_patches(images: Tensor, places: Tensor) -> Tensor:
    """Images [N, 3, 64, 64] about the eyes' centres [N, 4] (left, right; column, row in [-1, 1]) -> [N, 2, 3, 12, 20].

    The places take no gradient; the right eye is mirrored.
    """
    patches = []
    for eye, side in enumerate((1.0, -1.0)):
        matrix = images.new_zeros(len(images), 2, 3)
        matrix[:, 0, 0], matrix[:, 1, 1] = side * PATCH_HALF[1], PATCH_HALF[0]
        matrix[:, :, 2] = places.detach()[:, 2 * eye : 2 * eye + 2]
        grid = F.affine_grid(matrix, [len(images), 3, *PATCH], align_corners=False)
        patches.append(F.grid_sample(images, grid, mode='bilinear', padding_mode='border', align_corners=False))
    return torch.stack(patches, dim=1)


class EmbeddedNetwork(nn.Module):
    """Float images [N, 3, H, W] in [-1, 1], of any size -> activations, head parameters, identity; differentiable."""

    head_mean: Tensor
    head_scale: Tensor
    expression_names: Tensor

    def __init__(self) -> None:
        super().__init__()
        stages, channels = [], 3
        for width, blocks in zip(WIDTHS, BLOCKS, strict=True):
            layers = [Layer(channels, width, stride=2)]
            layers += [Layer(width, width, residual=True) for _ in range(blocks)]
            stages.append(nn.Sequential(*layers))
            channels = width
        self.stages = nn.ModuleList(stages)
        places = (RESOLUTION // 2 ** len(WIDTHS)) ** 2
        self.head_squeeze = nn.Conv2d(channels, SQUEEZED, 1)
        self.head_fine = nn.Conv2d(WIDTHS[-2], FINE, 1)
        self.eyes = nn.Sequential(Layer(WIDTHS[0], EYE_WIDTH), Layer(EYE_WIDTH, EYE_WIDTH, stride=2))
        self.eyes_hidden = nn.Linear(EYE_WIDTH * 5 * 10, EYE_HIDDEN)
        self.head_hidden = nn.Linear(SQUEEZED * places + FINE * 4 * places + EYE_HIDDEN, HIDDEN)
        self.head_output = nn.Linear(HIDDEN, sum(HEAD_SIZES.values()))
        self.identity_squeeze = nn.Conv2d(channels, SQUEEZED, 1)
        self.identity_output = nn.Linear(SQUEEZED * places, NUM_IDENTITY)
        with torch.random.fork_rng(devices=[]):  # trained after the rest, whose weights do not depend on this
            self.eye_places = nn.Linear(HIDDEN, 4)
            self.gaze = EyeNetwork()
        # Training works in units of one standard deviation; named expression = coefficients @ expression_names.
        self.register_buffer('head_mean', torch.zeros(sum(HEAD_SIZES.values())))
        self.register_buffer('head_scale', torch.ones(sum(HEAD_SIZES.values())))
        self.register_buffer('expression_names', torch.zeros(NUM_EXPRESSION, NUM_EXPRESSION))

    @staticmethod
    def resized(images: Tensor) -> Tensor:
        """Images of any size at 64 px, with a low-pass filter."""
        size = (RESOLUTION, RESOLUTION)
        if images.shape[2:] == size:
            return images
        return F.interpolate(images, size=size, mode='bilinear', antialias=True, align_corners=False)

    def activations(self, images: Tensor) -> list[Tensor]:
        """Maps of the four stages: [N, 24, 32, 32], [N, 48, 16, 16], [N, 96, 8, 8], [N, 192, 4, 4]."""
        maps = [self.resized(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def head_features(self, maps: list[Tensor]) -> Tensor:
        """Maps -> what head parameters are read from [N, 192]."""
        eyes = self.eyes(maps[0][:, :, EYES[0], EYES[1]]).flatten(1)
        parts = [self.head_squeeze(maps[-1]).flatten(1), self.head_fine(maps[-2]).flatten(1), self.eyes_hidden(eyes)]
        x = F.leaky_relu(torch.cat(parts, dim=1), LEAK)
        return F.leaky_relu(self.head_hidden(x), LEAK)

    def head(self, images: Tensor) -> Tensor:
        """Head parameters [N, 63]: expression, jaw, rotation, gaze (left yaw, pitch, right yaw, pitch), face logit."""
        images = self.resized(images)
        features = self.head_features(self.activations(images))
        units = self.head_output(features)  # in standard deviations
        expression, jaw, rotation, gaze, face = units.split(list(HEAD_SIZES.values()), dim=1)
        gaze = gaze + self.gaze(eye_patches(images, self.eye_places(features)), rotation)
        units = torch.cat([expression, jaw, rotation, gaze, face], dim=1)
        return units * self.head_scale + self.head_mean

    def identity_vector(self, last: Tensor) -> Tensor:
        """Last map -> unit vectors [N, 128]."""
        x = F.leaky_relu(self.identity_squeeze(last), LEAK).flatten(1)
        return F.normalize(self.identity_output(x), dim=1)

    def identity(self, images: Tensor) -> Tensor:
        """Unit vectors [N, 128]."""
        return self.identity_vector(self.activations(images)[-1])

    def folded(self) -> EmbeddedNetwork:
        """A copy without batch normalization, as it is stored."""
        other = copy.deepcopy(self)
        for module in list(other.modules()):
            if isinstance(module, Layer) and not isinstance(module.norm, nn.Identity):
                module.fold()
        return other.eval().requires_grad_(False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddedFile:
    """A file of embedded estimators."""

    network: EmbeddedNetwork  # folded, float32, on the CPU, without gradients of its weights
    header: dict[str, Any]  # how it was made: format, version, head_model, head_model_hash, licence, training
    content_hash: str  # sha256 of the file


def write_embedded(path: str | os.PathLike[str], network: EmbeddedNetwork, header: dict[str, Any]) -> None:
    """Store a trained network, folded, in float16 (buffers in float32)."""
    buffers = {'head_mean', 'head_scale', 'expression_names'}
    arrays: dict[str, Any] = {
        name: value.contiguous().numpy().astype(np.float32 if name in buffers else np.float16)
        for name, value in network.folded().state_dict().items()
    }
    text = json.dumps({'format': FORMAT, 'version': VERSION, **header}, sort_keys=True)
    arrays[_HEADER] = np.frombuffer(text.encode(), dtype=np.uint8)
    with atomic_write(path) as handle:
        np.savez(handle, **arrays)


def read_embedded(path: str | os.PathLike[str] = DEFAULT_PATH) -> EmbeddedFile:
    """The estimators in a file; UserError, one line: none there, damaged, of another kind or version."""
    source = Path(path)
    remedy = 'restore it, or train it again (python -m tools.train_estimators)'
    if not source.is_file():
        raise UserError(f'{source}: the file of the embedded estimators is missing; {remedy}')
    try:
        with open(source, 'rb') as handle, np.load(handle, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        header = json.loads(arrays.pop(_HEADER).tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f'{source}: not a file of embedded estimators, or damaged ({error}); {remedy}') from error
    if header.get('format') != FORMAT or header.get('version') != VERSION:
        found = f'{header.get("format")!r} version {header.get("version")!r}'
        raise UserError(f'{source}: holds {found}, expected {FORMAT!r} version {VERSION}; {remedy}')
    network = EmbeddedNetwork().folded()
    try:
        network.load_state_dict({name: torch.from_numpy(value.astype(np.float32)) for name, value in arrays.items()})
    except RuntimeError as error:
        first = ' '.join(str(error).split())[:160]
        raise UserError(f'{source}: its weights do not fit this version ({first}); {remedy}') from error
    return EmbeddedFile(network=network, header=header, content_hash=sha256_file(source))
