"""The embedded estimators: head parameters, identity and image features for the synthetic dataset.

They know rendered heads of the embedded model and pictures like these, and work offline at once. Their values are
not comparable with those of DECA, ArcFace or Inception, and results name them. Held-out errors:
assets/estimators/synthetic.json, made by tools/evaluate_estimators.py.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from metrics.estimators.base import (
    DrivingParams,
    HeadEstimate,
    HeadEstimator,
    IdentityEmbedder,
    as_float,
    gaze_angles,
    head_rotation,
    on_device,
    one_by_one,
)
from metrics.estimators.embedded_network import (
    DEFAULT_PATH,
    HEAD_SIZES,
    NUM_IDENTITY,
    WIDTHS,
    EmbeddedNetwork,
    read_embedded,
)
from metrics.features import FeatureExtractor, check_batch


class _Module(nn.Module):
    """A part of the network of a file, without gradients of its weights."""

    def __init__(self, network: EmbeddedNetwork) -> None:
        super().__init__()
        self.network = network


class HeadModule(_Module):
    """Float images [N, 3, H, W] in [-1, 1] -> [N, 63]: see EmbeddedNetwork.head; differentiable."""

    def forward(self, images: Tensor) -> Tensor:
        return self.network.head(images)


class IdentityModule(_Module):
    """Float images [N, 3, H, W] in [-1, 1] -> unit vectors [N, 128]; differentiable."""

    def forward(self, images: Tensor) -> Tensor:
        return self.network.identity(images)


class FeatureModule(_Module):
    """Float images [N, 3, H, W] in [-1, 1] -> [N, 288], the means of the last two maps; differentiable."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([level.mean(dim=(2, 3)) for level in self.network.activations(images)[-2:]], dim=1)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """Perceptual distance [N] of two batches of float images, in the manner of LPIPS; differentiable.

        Each pixel's activations are scaled to unit length; squared differences are averaged over the pixels of a
        map and summed over the four maps. 0 for equal images, 8 at most.
        """
        terms = []
        for left, right in zip(self.network.activations(first), self.network.activations(second), strict=True):
            difference = nn.functional.normalize(left, dim=1) - nn.functional.normalize(right, dim=1)
            terms.append(difference.square().sum(dim=1).mean(dim=(1, 2)) / 2)
        return torch.stack(terms).sum(dim=0)


class EmbeddedHeadEstimator(HeadEstimator):
    """52 named expressions, jaw, rotation and gaze of the embedded head, from pictures of any size.

    `expression` holds the weights of the named targets (ARKit's names, HeadModel.expression_names). `valid` is the
    network's own opinion on whether the picture shows an upright face.
    """

    name = 'embedded-head'
    head_model = 'makehuman'

    def __init__(self, path: str | os.PathLike[str] = DEFAULT_PATH) -> None:
        file = read_embedded(path)
        self.content_hash = file.content_hash
        self.licence = file.header['licence']
        self.module = HeadModule(file.network)

    def to(self, device: torch.device | str) -> EmbeddedHeadEstimator:
        """See HeadEstimator.to."""
        return on_device(self, device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> HeadEstimate:
        """See HeadEstimator.__call__."""
        check_batch(images)
        values = one_by_one(self.module, as_float(images))
        expression, jaw, rotation, gaze, face = values.split(list(HEAD_SIZES.values()), dim=1)
        return HeadEstimate(
            expression=expression, jaw=jaw, rotation=rotation, gaze=gaze.reshape(-1, 2, 2), valid=face[:, 0] > 0
        )

    def targets(self, params: DrivingParams, cameras: Tensor) -> HeadEstimate:
        """See HeadEstimator.targets; for parameters of the embedded head (52 expression coefficients)."""
        basis = self.module.network.expression_names.to(params.expression.device)
        if params.expression.shape[1:] != basis.shape[:1]:
            raise ValueError(
                f'params.expression: expected shape [N, {len(basis)}] (the embedded head model), '
                f'got {list(params.expression.shape)}'
            )
        return HeadEstimate(
            expression=params.expression @ basis,
            jaw=params.jaw,
            rotation=head_rotation(params, cameras),
            gaze=gaze_angles(params.eyes),
            valid=torch.ones(len(cameras), dtype=torch.bool, device=cameras.device),
        )


class EmbeddedIdentity(IdentityEmbedder):
    """128 numbers that are alike for all pictures of a synthetic person (face, hair, glasses, clothes)."""

    name = 'embedded-identity'
    num_features = NUM_IDENTITY

    def __init__(self, path: str | os.PathLike[str] = DEFAULT_PATH) -> None:
        file = read_embedded(path)
        self.content_hash = file.content_hash
        self.licence = file.header['licence']
        self.module = IdentityModule(file.network)

    def to(self, device: torch.device | str) -> EmbeddedIdentity:
        """See IdentityEmbedder.to."""
        return on_device(self, device)


class EmbeddedFeatures(FeatureExtractor):
    """288 features that describe a synthetic picture: person, hair, clothes, light, background, pose.

    `module` is differentiable and has `distance`. Distances over these features are called fid_synth, kid_synth, ...
    """

    name = 'embedded-features'
    num_features = WIDTHS[-2] + WIDTHS[-1]

    def __init__(self, path: str | os.PathLike[str] = DEFAULT_PATH) -> None:
        file = read_embedded(path)
        self.content_hash = file.content_hash
        self.licence = file.header['licence']
        self.module = FeatureModule(file.network)

    def to(self, device: torch.device | str) -> EmbeddedFeatures:
        """See FeatureExtractor.to."""
        return on_device(self, device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """See FeatureExtractor.__call__."""
        check_batch(images)
        return one_by_one(self.module, as_float(images))
