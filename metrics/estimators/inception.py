"""The official Inception of 2015-12-05 as a TorchScript file of the user's: what `fid` means.

The file (91 MB) is not shipped. It is read from a path, or downloaded once to the cache folder, and
never loaded before its sha256 matches.
"""

from __future__ import annotations

import os
import warnings

import torch
from torch import Tensor

from dnnlib import UserError
from dnnlib.download import fetch
from metrics.features import FeatureExtractor, check_batch

NUM_FEATURES = 2048
OFFICIAL_URL = 'https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt'
OFFICIAL_SHA256 = 'f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4'


class InceptionFeatures(FeatureExtractor):
    """2,048 pool features; the file resizes images itself (TensorFlow's bilinear rule)."""

    num_features = NUM_FEATURES
    licence = "weights: Apache 2.0 (TensorFlow models); the TorchScript file is NVIDIA's"

    def __init__(self, module: torch.jit.ScriptModule, *, sha256: str) -> None:
        self.module = module
        self.content_hash = sha256
        self.name = 'inception-2015-12-05' if sha256 == OFFICIAL_SHA256 else f'inception-{sha256[:8]}'

    @property
    def official(self) -> bool:
        """Whether distances over these features may be called FID."""
        return self.content_hash == OFFICIAL_SHA256

    def to(self, device: torch.device | str) -> InceptionFeatures:
        self.module.to(device)
        return self

    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities [n, classes] of uint8 images: the softmax without bias that the score is defined on."""
        check_batch(images)
        try:
            values = self.module(images, no_output_bias=True)
        except RuntimeError as error:  # TorchScript's word for an unknown argument
            raise UserError(
                f'Inception file (sha256 {self.content_hash[:16]}): gives no class probabilities (no_output_bias); '
                'the Inception score needs the official file'
            ) from error
        if values.ndim != 2 or len(values) != len(images):
            raise UserError(
                f'Inception file (sha256 {self.content_hash[:16]}): expected probabilities [{len(images)}, classes], '
                f'got {list(values.shape)}'
            )
        return values

    def __call__(self, images: Tensor) -> Tensor:
        check_batch(images)
        features = self.module(images, return_features=True)
        if list(features.shape) != [images.shape[0], NUM_FEATURES]:
            raise UserError(
                f'Inception file (sha256 {self.content_hash[:16]}): expected features '
                f'[{images.shape[0]}, {NUM_FEATURES}], got {list(features.shape)}'
            )
        return features


class InceptionClasses(FeatureExtractor):
    """The same file's class probabilities as rows, for the Inception score."""

    num_features = 1008

    def __init__(self, inception: InceptionFeatures) -> None:
        self.inception = inception
        self.name = inception.name
        self.content_hash = f'{inception.content_hash}-classes'
        self.licence = inception.licence

    def to(self, device: torch.device | str) -> InceptionClasses:
        return InceptionClasses(self.inception.to(device))

    def __call__(self, images: Tensor) -> Tensor:
        return self.inception.probabilities(images)


def load_inception(
    source: str | None, *, sha256: str | None = None, cache_dir: str | os.PathLike[str] | None = None
) -> InceptionFeatures:
    """The Inception at a path or URL (None: the official URL), loaded only if its sha256 is as expected.

    sha256 None: the published one of the official file. UserError: missing, other content, not TorchScript.
    """
    expected = (sha256 or OFFICIAL_SHA256).lower()
    path = fetch(source or OFFICIAL_URL, sha256=expected, cache_dir=cache_dir)
    try:
        with warnings.catch_warnings():
            # torch advises against TorchScript, but the official file exists in no other form.
            warnings.simplefilter('ignore', DeprecationWarning)
            module = torch.jit.load(str(path), map_location='cpu')
    except RuntimeError as error:
        raise UserError(f'{path}: not a TorchScript file; expected the Inception of {OFFICIAL_URL}') from error
    return InceptionFeatures(module.eval(), sha256=expected)
