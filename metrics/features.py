"""Feature networks as plug-ins, and the one consumer of image batches.

Images reach a metric only as an iterable of uint8 batches [n, 3, H, W]; whether a dataset or a
generator made them is not known here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class FeatureExtractor(ABC):
    """A fixed map from an image to a feature vector, identified by name and content hash."""

    name: str  # stands in every result
    content_hash: str  # sha256 of whatever decides the features
    licence: str  # one line
    num_features: int

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 images [n, 3, H, W] -> float32 features [n, num_features] on the images' device.

        Each image by itself: the features of an image do not depend on its batch.
        """

    @abstractmethod
    def to(self, device: torch.device | str) -> FeatureExtractor:
        """The same extractor with its weights on `device`."""


def check_batch(images: Tensor) -> None:
    """Raise ValueError unless `images` is a uint8 tensor [n, 3, H, W]."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f'images: expected uint8 [n, 3, H, W], got {images.dtype} {list(images.shape)}')


@torch.no_grad()
def extract_features(batches: Iterable[Tensor], extractor: FeatureExtractor) -> NDArray[np.float32]:
    """Features [N, num_features] of all images of an iterable of uint8 batches, in its order."""
    rows: list[NDArray[np.float32]] = []
    for images in batches:
        check_batch(images)
        rows.append(extractor(images).to(torch.float32).cpu().numpy())
    if not rows:
        return np.zeros((0, extractor.num_features), dtype=np.float32)
    return np.concatenate(rows)
