"""The network of the embedded estimators, trained on the synthetic dataset by tools/train_estimators.py, and its file.

One trunk of strided 3 x 3 convolutions at 64 px, three heads: head parameters, identity, and (in training alone)
everything else that the synthetic dataset knows of a picture, so that the trunk's activations describe all of it.
Gaze, expression and jaw are corrected from pictures of the eyes, brows and mouth (embedded_parts.py).
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
from metrics.estimators.embedded_parts import (
    LEAK,
    NUM_EXPRESSION,
    ExpressionNetwork,
    EyeNetwork,
    Layer,
    eye_patches,
    face_patches,
)

DEFAULT_PATH = Path(__file__).resolve().parents[2] / 'assets/estimators/synthetic.npz'
FORMAT = 'next3d-embedded-estimators'
VERSION = 2
RESOLUTION = 64
WIDTHS = (24, 48, 96, 192)  # channels at 32, 16, 8 and 4 px
BLOCKS = (0, 1, 1, 1)  # residual layers at each
SQUEEZED = 64  # channels of the last map that the heads see, with their places
FINE = 24  # channels of the 8 px map that the head parameters see beside it
# Where eyes are in the 32 px map (rows, columns), and what is made of it: an iris moves by less than a pixel.
EYES = (slice(8, 18), slice(6, 26))
EYE_WIDTH, EYE_HIDDEN = 48, 96
HIDDEN = 192
NUM_IDENTITY = 128
HEAD_SIZES = {'expression': NUM_EXPRESSION, 'jaw': 3, 'rotation': 3, 'gaze': 4, 'face': 1}
_HEADER = 'header'


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
            self.mouth_place = nn.Linear(HIDDEN, 2)
            self.expression = ExpressionNetwork()
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
        eyes = self.eye_places(features)
        gaze = gaze + self.gaze(eye_patches(images, eyes), rotation)
        mouth, brows = face_patches(images, eyes, self.mouth_place(features))
        change = self.expression(mouth, brows, torch.cat([jaw, rotation], dim=1))
        sizes = [NUM_EXPRESSION, HEAD_SIZES['jaw'], HEAD_SIZES['face']]
        parts = zip((expression, jaw, face), change.split(sizes, dim=1), strict=True)
        expression, jaw, face = (base + change for base, change in parts)
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
