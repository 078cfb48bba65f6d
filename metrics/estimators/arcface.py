"""ArcFace (Deng et al. 2019) from the user's weights: insightface's IResNet, or any ONNX face embedder at 112 px.

Checked on made-up weights of the same names and shapes; the published files were not at hand.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnnlib import UserError
from dnnlib.files import sha256_file
from metrics.estimators import weights
from metrics.estimators.base import IdentityEmbedder, as_float, check_images, on_device
from metrics.estimators.crops import FRONTAL_FIVE, Locator, crop_image, five_points, similarity
from metrics.estimators.resnet import ImprovedResNet

# Where ArcFace's training pictures of 112 x 112 pixels have the right and left eye, the nose, the mouth's corners.
TEMPLATE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))


def alignment(points: Tensor) -> Tensor:
    """The map [2, 3] from [0, 1]^2 of the aligned crop to a picture with these five points [5, 2] in [0, 1]."""
    return similarity(torch.tensor(TEMPLATE, device=points.device) / ImprovedResNet.SIZE, points)


class OnnxNetwork(nn.Module):
    """An ONNX graph with one picture in and one vector out, on the CPU; without gradients."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        if importlib.util.find_spec('onnxruntime') is None:
            raise UserError(f'{path}: reading ONNX needs onnxruntime; run `pip install onnxruntime`, or give a .pth')
        runtime: Any = importlib.import_module('onnxruntime')
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1  # one order of sums, whatever the machine
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
        except Exception as error:  # onnxruntime's errors share no class of their own
            raise UserError(f'{path}: not an ONNX graph that onnxruntime can run ({str(error)[:120]})') from error
        self.input = self.session.get_inputs()[0].name

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxNetwork:
        return self  # a session has no state

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            raise UserError('an ONNX face embedder has no gradients; use an ArcFace .pth as a loss')
        rows = [self.session.run(None, {self.input: image.cpu().numpy()})[0] for image in images.split(1)]
        return torch.cat([torch.from_numpy(row).reshape(1, -1) for row in rows]).to(images)


class ArcFaceModule(nn.Module):
    """Float images [N, 3, H, W] in [-1, 1] of frontal heads -> unit vectors; differentiable (not with ONNX)."""

    frontal: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer('frontal', alignment(torch.tensor(FRONTAL_FIVE)))

    def aligned(self, images: Tensor, matrix: Tensor) -> Tensor:
        """The same with a map [2, 3] of the crop, as `alignment` makes it."""
        return F.normalize(self.network(crop_image(images, matrix, size=ImprovedResNet.SIZE)), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.aligned(images, self.frontal)


class ArcFace(IdentityEmbedder):
    """A face embedder by its weights (.pth, .pt) or graph (.onnx).

    With a `locator` each picture is aligned by its landmarks (where there is a face); without, and in `module`, as
    a frontal head before our cameras is.
    """

    def __init__(self, path: str | os.PathLike[str], *, locator: Locator | None = None) -> None:
        source = weights.find_weights(path, weights.ARCFACE, spec='arcface')
        network = OnnxNetwork(source) if source.suffix.lower() == '.onnx' else _read_network(source)
        self.module = ArcFaceModule(network)
        self.name = 'arcface-onnx' if isinstance(network, OnnxNetwork) else 'arcface'
        self.content_hash = sha256_file(source)
        self.licence = weights.ARCFACE.licence
        self.locator = locator
        with torch.no_grad():
            self.num_features = int(self.module(torch.zeros(1, 3, 112, 112)).shape[1])

    def embed(self, images: Tensor) -> Tensor:
        """See IdentityEmbedder.embed."""
        if self.locator is None:
            return super().embed(images)
        check_images(images)
        assert isinstance(self.module, ArcFaceModule)
        rows = []
        for image in images.split(1):
            seen = image[0] if image.dtype == torch.uint8 else (127.5 * image[0].detach() + 128).clamp(0, 255).byte()
            landmarks = self.locator(seen)
            matrix = self.module.frontal if landmarks is None else alignment(five_points(landmarks.float()))
            rows.append(self.module.aligned(as_float(image), matrix))
        return torch.cat(rows) if rows else images.new_zeros(0, self.num_features, dtype=torch.float32)

    def to(self, device: torch.device | str) -> ArcFace:
        """See IdentityEmbedder.to."""
        return on_device(self, device)


def _read_network(path: Path) -> ImprovedResNet:
    state = weights.read_tensors(path, weights.ARCFACE)
    for wrapper in ('state_dict', 'model'):
        state = state.get(wrapper, state)
    names = {name.removeprefix('module.').removeprefix('backbone.'): value for name, value in state.items()}
    return ImprovedResNet(weights.take_prefix(names, ''), path=path, card=weights.ARCFACE)
