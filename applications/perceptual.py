"""Perceptual distances as plug-ins: maps of features, compared place by place so that a mask can weigh them.

    embedded        the network that was trained on the synthetic dataset (metrics/estimators/embedded.py)
    random          fixed random filters at four scales (metrics/estimators/random_features.py): contrast and texture
    lpips:FOLDER    LPIPS: VGG16's features and the linear heads, from the user's own files

Each has a name and a hash that stand in every result. Values of different networks are not comparable.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dnnlib import UserError
from dnnlib.files import explain_os_error
from metrics.estimators.embedded import EmbeddedFeatures
from metrics.estimators.embedded_network import DEFAULT_PATH, WIDTHS
from metrics.estimators.random_features import LEVEL_GAINS, RandomFeatures

Maps = list[Tensor]  # [N, C, h, w] a layer


class PerceptualNetwork(ABC):
    """Feature maps of an image, and how much each channel counts."""

    name: str
    content_hash: str  # sha256 of whatever decides the distance

    @abstractmethod
    def maps(self, images: Tensor) -> Maps:
        """Images [N, 3, H, W] in [-1, 1] -> a map a layer; differentiable."""

    @abstractmethod
    def channel_weights(self) -> list[Tensor]:
        """What a squared difference counts in each channel, [C] a layer."""

    @abstractmethod
    def to(self, device: torch.device | str) -> PerceptualNetwork:
        """The same network on `device`."""

    def distance(self, maps: Maps, others: Maps, weight: Tensor | None = None) -> Tensor:
        """Distance of two images from their maps, a scalar: the weighted mean over places, summed over layers.

        `weight` [N, 1, H, W], at least somewhere above 0, is averaged down to each layer's size; None: all alike.
        """
        total = maps[0].new_zeros([])
        for first, second, channels in zip(maps, others, self.channel_weights(), strict=True):
            places = ((first - second).square() * channels[:, None, None]).sum(dim=1, keepdim=True)
            total = total + weighted_mean(places, weight)
        return total


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of values [N, C, h, w] over everything, weighed by weight [N, 1, H, W] averaged to h x w."""
    if weight is None:
        return values.mean()
    fitting = F.interpolate(weight, size=values.shape[-2:], mode='area')
    return (values * fitting).sum() / (fitting.sum() * values.shape[1])


class RandomPerceptual(PerceptualNetwork):
    """Responses of the random filters of `RandomFeatures` before they are pooled."""

    def __init__(self, features: RandomFeatures | None = None) -> None:
        self.features = features or RandomFeatures()
        self.name = self.features.name
        self.content_hash = self.features.content_hash

    def to(self, device: torch.device | str) -> RandomPerceptual:
        return RandomPerceptual(self.features.to(device))

    def maps(self, images: Tensor) -> Maps:
        maps: Maps = []
        for level, gain in enumerate(LEVEL_GAINS):
            images = F.avg_pool2d(images, 2) if level else images
            for filters, scale in ((self.features.first, gain), (self.features.second, 1.0)):
                padded = F.pad(images if filters is self.features.first else maps[-1], (1, 1, 1, 1), mode='replicate')
                maps.append(F.conv2d(padded, filters).relu() * scale)
        return maps

    def channel_weights(self) -> list[Tensor]:
        counts = [self.features.first.shape[0], self.features.second.shape[0]] * len(LEVEL_GAINS)
        return [self.features.first.new_full([count], 1 / (count * len(counts))) for count in counts]


class EmbeddedPerceptual(PerceptualNetwork):
    """Activations of the embedded feature network, each place's scaled to length 1: its `FeatureModule.distance`."""

    def __init__(self, features: EmbeddedFeatures | None = None) -> None:
        self.features = features or EmbeddedFeatures()
        self.name = self.features.name
        self.content_hash = self.features.content_hash

    def to(self, device: torch.device | str) -> EmbeddedPerceptual:
        return EmbeddedPerceptual(self.features.to(device))

    def maps(self, images: Tensor) -> Maps:
        return [unit_length(level) for level in self.features.module.network.activations(images)]

    def channel_weights(self) -> list[Tensor]:
        weights = next(self.features.module.parameters())
        return [weights.new_full([width], 0.5) for width in WIDTHS]


# VGG16 as torchvision numbers it: the convolutions of LPIPS's five slices; a pooling stands before all but the first.
_SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_WIDTHS = (64, 128, 256, 512, 512)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS's normalization of images in [-1, 1]
_HEAD = re.compile(r'lin(\d)\.model\.1\.weight')


class Lpips(PerceptualNetwork):
    """LPIPS on VGG16: unit-length channels after each slice, weighed by learned heads."""

    name = 'lpips-vgg'

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """`tensors` by torchvision's names (features.N.weight) and LPIPS's (linN.model.1.weight)."""
        shapes = _lpips_shapes()
        for name, shape in shapes.items():
            found = 'nothing' if name not in tensors else str(list(tensors[name].shape))
            if found != str(shape):
                raise ValueError(f'{name}: expected {shape}, got {found}; these are not the weights of LPIPS on VGG16')
        self.tensors = {name: tensors[name].detach().float() for name in shapes}
        digest = hashlib.sha256(self.name.encode())
        for name in shapes:
            digest.update(self.tensors[name].cpu().contiguous().numpy().astype('<f4').tobytes())
        self.content_hash = digest.hexdigest()

    def to(self, device: torch.device | str) -> Lpips:
        return Lpips({name: value.to(device) for name, value in self.tensors.items()})

    def maps(self, images: Tensor) -> Maps:
        if min(images.shape[2:]) < 2 ** (len(_SLICES) - 1):
            raise ValueError(f'images: expected a side of at least 16, got {list(images.shape[2:])}')
        shift, scale = (images.new_tensor(values)[:, None, None] for values in (_SHIFT, _SCALE))
        x = (images - shift) / scale
        maps = []
        for index, layers in enumerate(_SLICES):
            x = F.max_pool2d(x, 2) if index else x
            for layer in layers:
                weight, bias = (self.tensors[f'features.{layer}.{kind}'] for kind in ('weight', 'bias'))
                x = F.conv2d(x, weight, bias, padding=1).relu()
            maps.append(unit_length(x))
        return maps

    def channel_weights(self) -> list[Tensor]:
        return [self.tensors[f'lin{n}.model.1.weight'].flatten() for n in range(len(_SLICES))]


def _lpips_shapes() -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    before = 3
    for index, (layers, width) in enumerate(zip(_SLICES, _WIDTHS, strict=True)):
        for layer in layers:
            shapes |= {f'features.{layer}.weight': [width, before, 3, 3], f'features.{layer}.bias': [width]}
            before = width
        shapes[f'lin{index}.model.1.weight'] = [1, width, 1, 1]
    return shapes


def unit_length(maps: Tensor) -> Tensor:
    """[N, C, h, w] with the channels of every place scaled to length 1."""
    return maps / (maps.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()


def load_lpips(folder: str | Path) -> Lpips:
    """LPIPS from the user's files; UserError that says which are missing. Runs nothing that is in them.

    The folder holds, under any name ending in .pth or .pt: torchvision's VGG16 (keys features.N.weight) and LPIPS's
    heads for VGG (keys linN.model.1.weight).
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"--perceptual=lpips:{folder}: no such folder; it must hold VGG16's and LPIPS's weights (.pth)")
    found: dict[str, Tensor] = {}
    for file in sorted(path.iterdir()):
        if file.suffix in ('.pth', '.pt'):
            content = _read_tensors(file)
            found |= {name: value for name, value in content.items() if name.startswith('features.')}
            # AlexNet's and SqueezeNet's heads have other widths: the first tells.
            heads = {name: value for name, value in content.items() if _HEAD.fullmatch(name)}
            if heads and heads.get('lin0.model.1.weight', torch.empty(0)).numel() == 64 and len(heads) == len(_SLICES):
                found |= heads
    for what, needed in (("torchvision's vgg16 (features.0.weight ...)", 'features.28.weight'),
                         ("LPIPS's heads for VGG (lin0.model.1.weight ...)", 'lin0.model.1.weight')):  # fmt: skip
        if needed not in found:
            raise UserError(f'--perceptual=lpips:{folder}: no .pth file there holds {what}')
    try:
        return Lpips(found)
    except ValueError as error:
        raise UserError(f'--perceptual=lpips:{folder}: {error}') from error


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location='cpu', weights_only=True)
    except OSError as error:
        raise explain_os_error(error, file) from error
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError) as error:
        raise UserError(f'{file}: not a file of plain tensors; refused') from error
    if not isinstance(content, dict):
        raise UserError(f'{file}: expected a dict of tensors, got {type(content).__name__}')
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def load_perceptual(choice: str) -> PerceptualNetwork:
    """'embedded' or 'embedded:FILE', 'random', 'lpips:FOLDER', or 'auto' (embedded if its file is here); UserError
    otherwise."""
    if choice == 'auto':
        choice = 'embedded' if DEFAULT_PATH.is_file() else 'random'
    if choice == 'random':
        return RandomPerceptual()
    kind, _, path = choice.partition(':')
    if kind == 'embedded':
        return EmbeddedPerceptual(EmbeddedFeatures(path or DEFAULT_PATH))
    if kind == 'lpips' and path:
        return load_lpips(path)
    raise UserError(f'--perceptual: expected auto, embedded, random or lpips:FOLDER, got {choice!r}')
