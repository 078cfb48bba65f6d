"""DECA, EMOCA and SMIRK from the user's weights: FLAME's expression and jaw, and the turn of the head.

Networks of our own that read the published weights by their names; none of the trackers' code runs. They see a
square of 224 px about the face (crops.py). Their camera is orthographic: the turn of the head is relative to the
line of sight, which near the middle of the picture is the camera's axis. They say nothing of the gaze.

Written from the published descriptions and checked on made-up weights of the same names and shapes; the published
files were not at hand.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnnlib.files import sha256_file
from metrics.estimators import weights
from metrics.estimators.base import (
    FACING,
    DrivingParams,
    HeadEstimate,
    HeadEstimator,
    as_float,
    head_rotation,
    on_device,
)
from metrics.estimators.crops import FRONTAL_BOX, Locator, crop_image, landmark_box, square_crop
from metrics.estimators.mobilenet import MobileNet
from metrics.estimators.resnet import ResNet
from metrics.estimators.weights import State, WeightFile, first_shape, load_state, read_tensors, take_prefix
from metrics.features import check_batch

SIZE = 224
NUM_EXPRESSION = 50
# The order of DECA's 236 numbers.
DECA_SIZES = {'shape': 100, 'texture': 50, 'expression': NUM_EXPRESSION, 'pose': 6, 'camera': 3, 'light': 27}
NUM_DECA = sum(DECA_SIZES.values())
DECA_SCALE = 1.25 * 1.1  # side of the crop in mean sides of the box of the 68 landmarks
SMIRK_SCALE = 1.4
SMIRK_OUTPUTS = {'small': 6, 'large': NUM_EXPRESSION + 5}  # turn and camera; expression, lids and jaw
MAX_SIDEWAYS = 0.2  # radians: SMIRK's bound on the jaw's turn and tilt


class RegressionNetwork(nn.Module):
    """ResNet-50 and two linear layers, as DECA and EMOCA name them."""

    def __init__(self, state: State, outputs: int, *, path: Path, card: WeightFile) -> None:
        super().__init__()
        self.encoder = ResNet(take_prefix(state, 'encoder.'), path=path, card=card)
        hidden, features = first_shape(state, 'layers.0.weight', path=path, card=card)
        self.layers = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
        load_state(self, state, path=path, card=card)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(self.encoder(images))


class DecaModule(nn.Module):
    """Crops [N, 3, 224, 224] in [0, 1] -> expression [N, 50], jaw [N, 3], turn [N, 3] in FLAME's axes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        content = read_tensors(path, weights.DECA)
        state = content.get('E_flame')
        flame = take_prefix(state if isinstance(state, dict) else {}, '')
        self.flame = RegressionNetwork(flame, NUM_DECA, path=path, card=weights.DECA)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, _, expression, pose, _, _ = self.flame(images).split(list(DECA_SIZES.values()), dim=1)
        return expression, pose[:, 3:], pose[:, :3]


class EmocaModule(nn.Module):
    """As DecaModule; the expression comes from a network of its own."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        content = read_tensors(path, weights.EMOCA)
        content = content.get('state_dict', content)
        flat = {
            f'{part}.{name}' if isinstance(value, dict) else part: tensor
            for part, value in content.items()
            for name, tensor in (value.items() if isinstance(value, dict) else [('', value)])
        }
        flat = {name.removeprefix('deca.'): tensor for name, tensor in flat.items()}
        self.flame = RegressionNetwork(take_prefix(flat, 'E_flame.'), NUM_DECA, path=path, card=weights.EMOCA)
        own = take_prefix(flat, 'E_expression.')
        self.expression = RegressionNetwork(own, NUM_EXPRESSION, path=path, card=weights.EMOCA)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pose = self.flame(images).split(list(DECA_SIZES.values()), dim=1)[3]
        return self.expression(images), pose[:, 3:], pose[:, :3]


class SmirkModule(nn.Module):
    """As DecaModule, from two MobileNets; lids (the two numbers after the expression) are not part of the estimate."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        content = read_tensors(path, weights.SMIRK)
        state = {name.removeprefix('smirk_encoder.'): value for name, value in content.items()}
        self.pose, self.pose_output = self._part(state, 'pose_encoder.', 'pose_cam_layers.0', 'small', path)
        self.expression, self.expression_output = self._part(
            state, 'expression_encoder.', 'expression_layers.0', 'large', path
        )

    @staticmethod
    def _part(state: State, prefix: str, output: str, variant: str, path: Path) -> tuple[MobileNet, nn.Linear]:
        own = take_prefix(state, prefix)
        network = MobileNet(take_prefix(own, 'encoder.'), variant=variant, path=path, card=weights.SMIRK)
        layer = nn.Linear(network.num_features, SMIRK_OUTPUTS[variant])
        load_state(layer, take_prefix(own, f'{output}.'), path=path, card=weights.SMIRK)
        return network, layer

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        turn = self.pose_output(self.pose(images))[:, :3]
        values = self.expression_output(self.expression(images))
        jaw = values[:, NUM_EXPRESSION + 2 :]
        jaw = torch.cat([F.relu(jaw[:, :1]), jaw[:, 1:].clamp(-MAX_SIDEWAYS, MAX_SIDEWAYS)], dim=1)
        return values[:, :NUM_EXPRESSION], jaw, turn


TRACKERS = {
    'deca': (DecaModule, weights.DECA, DECA_SCALE),
    'emoca': (EmocaModule, weights.EMOCA, DECA_SCALE),
    'smirk': (SmirkModule, weights.SMIRK, SMIRK_SCALE),
}


class FlameTracker(HeadEstimator):
    """50 expression coefficients of FLAME, jaw and rotation, by the tracker `kind` ('deca', 'emoca', 'smirk').

    With a `locator` each crop follows the landmarks of its picture and faces that it does not find are not valid;
    without one, the crop is the same for all pictures: that of a frontal head.
    """

    head_model = 'flame'

    def __init__(self, kind: str, path: str | os.PathLike[str], *, locator: Locator | None = None) -> None:
        build, card, self.scale = TRACKERS[kind]
        source = weights.find_weights(path, card, spec=kind)
        self.module: nn.Module = build(source).eval()
        self.name = kind
        self.content_hash = sha256_file(source)
        self.licence = card.licence
        self.locator = locator

    def to(self, device: torch.device | str) -> FlameTracker:
        """See HeadEstimator.to."""
        return on_device(self, device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> HeadEstimate:
        """See HeadEstimator.__call__."""
        check_batch(images)
        rows, valid = [], []
        for image in images:
            landmarks = self.locator(image) if self.locator else None
            box = torch.tensor(FRONTAL_BOX) if landmarks is None else landmark_box(landmarks)
            matrix = square_crop(box.to(torch.float32), scale=self.scale)
            crop = (crop_image(as_float(image[None]), matrix, size=SIZE) + 1) / 2
            rows.append(torch.cat(self.module(crop), dim=1))
            valid.append(self.locator is None or landmarks is not None)
        values = torch.cat(rows) if rows else torch.zeros(0, NUM_EXPRESSION + 6, device=images.device)
        expression, jaw, turn = values.split([NUM_EXPRESSION, 3, 3], dim=1)
        # FLAME's axes are x right, y up, z towards the viewer: half a turn about x from the camera's.
        return HeadEstimate(
            expression=expression,
            jaw=jaw,
            rotation=turn * turn.new_tensor(FACING),
            gaze=None,
            valid=torch.tensor(valid, dtype=torch.bool, device=images.device),
        )

    def targets(self, params: DrivingParams, cameras: Tensor) -> HeadEstimate:
        """See HeadEstimator.targets; for FLAME's parameters. Coefficients beyond the 50th are left out."""
        expression = params.expression[:, :NUM_EXPRESSION]
        if expression.shape[1] < NUM_EXPRESSION:
            raise ValueError(
                f'params.expression: expected shape [N, {NUM_EXPRESSION}] or more (FLAME), '
                f'got {list(params.expression.shape)}'
            )
        return HeadEstimate(
            expression=expression,
            jaw=params.jaw,
            rotation=head_rotation(params, cameras),
            gaze=None,
            valid=torch.ones(len(cameras), dtype=torch.bool, device=cameras.device),
        )
