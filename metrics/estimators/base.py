"""Estimators as plug-ins: head parameters and identity from images, each with a name, a hash and a licence note.

Feature extractors have the same three and live in metrics/features.py. Names are resolved by loading.py.

Frames of an estimate, whoever makes it (docs/estimators.md):
    rotation  axis-angle vector (radians) of the matrix R that turns an upright head facing the camera into the one
              that is seen, in OpenCV camera axes (x right, y down, z forward). Zero: upright, facing the camera.
              +x: the face turns down; +y: towards the left of the picture (the subject's right); +z: the picture of
              the head turns clockwise. The neck is part of it.
    jaw       axis-angle vector (radians) in the head's axes (x to the subject's left, y up, z to the front);
              +x opens the mouth.
    gaze      yaw and pitch (radians) of each eye's direction in the head's axes; yaw > 0 to the subject's left,
              pitch > 0 up.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from torch_utils.rotations import axis_angle_matrix, matrix_axis_angle

# An upright head that faces an OpenCV camera: its x (subject's left) is the camera's right, its y up, its z towards it.
FACING = (1.0, -1.0, -1.0)


Moved = TypeVar('Moved')


class DrivingParams(Protocol):
    """What `targets` reads of training.head.HeadParams; every field is [N, width] float32."""

    @property
    def expression(self) -> Tensor: ...
    @property
    def jaw(self) -> Tensor: ...
    @property
    def neck(self) -> Tensor: ...
    @property
    def eyes(self) -> Tensor: ...
    @property
    def rotation(self) -> Tensor: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadEstimate:
    """Head parameters of N images in one estimator's space, float32; None: what it can not give."""

    expression: Tensor | None  # [N, E] in the estimator's own basis
    jaw: Tensor | None  # [N, 3]
    rotation: Tensor | None  # [N, 3]
    gaze: Tensor | None  # [N, 2, 2]: left, right eye; yaw, pitch
    valid: Tensor  # [N] bool: False where no face was found; the other rows are then meaningless

    def __post_init__(self) -> None:
        count = self.valid.shape[0] if self.valid.ndim else 0
        expected = {'expression': (count, None), 'jaw': (count, 3), 'rotation': (count, 3), 'gaze': (count, 2, 2)}
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is None:
                continue
            same = value.ndim == len(shape) and all(
                want is None or size == want for size, want in zip(value.shape, shape, strict=False)
            )
            if not same:
                want = ', '.join('E' if size is None else str(size) for size in shape)
                raise ValueError(f'HeadEstimate.{name}: expected shape [{want}], got {list(value.shape)}')

    def __len__(self) -> int:
        return int(self.valid.shape[0])

    @staticmethod
    def cat(items: list[HeadEstimate]) -> HeadEstimate:
        """The rows of several estimates of one estimator."""

        def join(name: str) -> Tensor | None:
            values = [getattr(item, name) for item in items]
            return None if values[0] is None else torch.cat(values)

        fields = {name: join(name) for name in ('expression', 'jaw', 'rotation', 'gaze')}
        return HeadEstimate(**fields, valid=torch.cat([item.valid for item in items]))


class HeadEstimator(ABC):
    """A fixed map from an image to head parameters."""

    name: str  # stands in every result
    content_hash: str  # sha256 of whatever decides the estimates
    licence: str  # one line
    head_model: str | None  # name of the head model whose parameters `targets` takes; None: any

    @abstractmethod
    def __call__(self, images: Tensor) -> HeadEstimate:
        """uint8 images [N, 3, H, W] -> their head parameters, on the images' device.

        Each image by itself: its estimate does not depend on its batch, to the last bit.
        """

    @abstractmethod
    def targets(self, params: DrivingParams, cameras: Tensor) -> HeadEstimate:
        """Driving parameters [N, ...] and cameras [N, 25] in the space of the estimates, to compare with them."""

    @abstractmethod
    def to(self, device: torch.device | str) -> HeadEstimator:
        """The same estimator with its weights on `device`."""


class IdentityEmbedder(ABC):
    """A fixed map from an image to a unit vector that is the same for all pictures of a person."""

    name: str
    content_hash: str
    licence: str
    num_features: int
    module: torch.nn.Module  # float32 images [N, 3, H, W] in [-1, 1] -> [N, num_features]; differentiable

    def embed(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W], uint8 or float in [-1, 1] -> unit vectors [N, num_features] on their device.

        Each image by itself, to the last bit. Gradients reach float images.
        """
        check_images(images)
        return one_by_one(self.module, as_float(images))

    @abstractmethod
    def to(self, device: torch.device | str) -> IdentityEmbedder:
        """The same embedder with its weights on `device`."""


def on_device(estimator: Moved, device: torch.device | str) -> Moved:
    """A copy of an estimator, embedder or extractor whose `module` is on `device`; the original keeps its own."""
    other: Any = copy.copy(estimator)
    other.module = copy.deepcopy(other.module).to(device)
    return other


def check_images(images: Tensor) -> None:
    """Raise ValueError unless `images` is [N, 3, H, W], uint8 or float32."""
    if images.dtype not in (torch.uint8, torch.float32) or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f'images: expected uint8 or float32 [N, 3, H, W], got {images.dtype} {list(images.shape)}')


def as_float(images: Tensor) -> Tensor:
    """uint8 images -> float32 in [-1, 1]; float images as they are."""
    return images.to(torch.float32) / 127.5 - 1 if images.dtype == torch.uint8 else images


def one_by_one(module: torch.nn.Module, images: Tensor) -> Tensor:
    """`module` on each image [1, 3, H, W] alone, concatenated.

    Convolutions and matrix products choose their algorithm by the batch, and so their rounding.
    """
    if not len(images):
        return module(images.new_zeros(1, *images.shape[1:]))[:0]
    return torch.cat([module(image) for image in images.split(1)])


def head_rotation(params: DrivingParams, cameras: Tensor) -> Tensor:
    """Rotation [N, 3] of the heads `params` seen by `cameras` [N, 25], as HeadEstimate.rotation states it."""
    if cameras.ndim != 2 or cameras.shape[1] < 25:
        raise ValueError(f'cameras: expected shape [N, 25], got {list(cameras.shape)}')
    facing = torch.diag(cameras.new_tensor(FACING))
    cam2world = cameras[:, :16].reshape(-1, 4, 4)[:, :3, :3]
    head2world = axis_angle_matrix(params.rotation) @ axis_angle_matrix(params.neck)
    return matrix_axis_angle(cam2world.transpose(1, 2) @ head2world @ facing)


def gaze_angles(eyes: Tensor) -> Tensor:
    """HeadParams.eyes [N, 6] (two axis-angle vectors: left, right) -> yaw and pitch [N, 2, 2]."""
    if eyes.ndim != 2 or eyes.shape[1] != 6:
        raise ValueError(f'eyes: expected shape [N, 6], got {list(eyes.shape)}')
    direction = axis_angle_matrix(eyes.reshape(-1, 2, 3))[..., 2]  # where the eye's z points
    yaw = torch.atan2(direction[..., 0], direction[..., 2])
    return torch.stack([yaw, torch.asin(direction[..., 1].clamp(-1, 1))], dim=-1)
