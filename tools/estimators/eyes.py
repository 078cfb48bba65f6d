"""The second step of training: where the eyes are, and the gaze from pictures of them; the rest stays as it is."""

from __future__ import annotations

import dataclasses

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.estimators.base import as_float
from metrics.estimators.embedded_network import HEAD_SIZES, EmbeddedNetwork, EyeNetwork, eye_patches
from tools.estimators.augment import augment
from tools.estimators.data import Mirror, Pictures
from torch_utils.rng import stream

VARIANTS = 3  # augmented copies of each picture
BATCH = 128
LEARNING_RATE = 3e-3
RIDGE = 1e-3  # of the mean square of a feature
TOLERANCE = 0.25  # standard deviations
REPORT_EVERY = 500


def fit_gaze(network: EmbeddedNetwork, pictures: Pictures, *, steps: int, seed: int) -> None:
    """Fill `eye_places` (least squares) and `gaze` (gradient descent) of a network whose other parts are trained."""
    seen = _variants(network, pictures, seed=seed)
    _solve_places(network.eye_places, seen.features, seen.places)
    with torch.no_grad():
        found = network.eye_places(seen.features)
        parts = zip(seen.images.split(BATCH), found.split(BATCH), strict=True)
        patches = torch.cat([eye_patches(as_float(images), places) for images, places in parts])
        units = network.head_output(seen.features)
    _, _, rotation, gaze, _ = units.split(list(HEAD_SIZES.values()), dim=1)
    start = sum(HEAD_SIZES[name] for name in ('expression', 'jaw', 'rotation'))
    columns = slice(start, start + HEAD_SIZES['gaze'])
    wanted = (seen.head[:, columns] - network.head_mean[columns]) / network.head_scale[columns] - gaze
    weight = seen.eyes_open.clamp(0, 1).repeat_interleave(2, dim=1)
    click.echo(f'places of the eyes: {32 * float((found - seen.places).abs().mean()):.2f} pixels off')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # initial weights
        network.gaze = EyeNetwork()
    optimizer = torch.optim.AdamW(network.gaze.parameters(), lr=LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    total = 0.0
    for step in range(steps):
        rows = torch.randint(len(patches), (BATCH,), generator=stream('estimators', seed, 'eyes', step))
        error = F.smooth_l1_loss(
            network.gaze(patches[rows], rotation[rows]), wanted[rows], beta=TOLERANCE, reduction='none'
        )
        loss = (error * weight[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += float(loss.detach()) / REPORT_EVERY
        if (step + 1) % REPORT_EVERY == 0:
            click.echo(f'gaze step {step + 1}/{steps}  {total:.3f}')
            total = 0.0
    network.gaze.requires_grad_(False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Variants:
    """Augmented copies of the pictures, half of them mirrored, and what the trained parts see in them."""

    features: Tensor  # [M, 192]
    images: Tensor  # [M, 3, 64, 64] uint8
    head: Tensor  # [M, 62]
    eyes_open: Tensor  # [M, 2]
    places: Tensor  # [M, 4] in [-1, 1]


@torch.no_grad()
def _variants(network: EmbeddedNetwork, pictures: Pictures, *, seed: int) -> _Variants:
    mirror = Mirror.of_embedded_head()
    parts = []
    for variant in range(VARIANTS):
        for number, rows in enumerate(torch.arange(len(pictures)).split(BATCH)):
            rng = stream('estimators', seed, 'eye-variants', variant, number)
            batch = mirror.apply(pictures.rows(rows), torch.rand(len(rows), generator=rng) < 0.5)
            changed, matrix = augment(batch.images.float() / 127.5 - 1, rng=rng)
            images = ((changed + 1) * 127.5).round().to(torch.uint8)
            features = network.head_features(network.activations(as_float(images)))
            places = (batch.eyes - matrix[:, None, :, 2]) / matrix[:, None, 0, [0]]
            parts.append((features, images, batch.head, batch.eyes_open, places.flatten(1)))
    features, images, head, eyes_open, places = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return _Variants(features=features, images=images, head=head, eyes_open=eyes_open, places=places)


@torch.no_grad()
def _solve_places(layer: torch.nn.Linear, features: Tensor, places: Tensor) -> None:
    """The regularized least squares solution."""
    mean, middle = features.mean(dim=0), places.mean(dim=0)
    centred = (features - mean).double()
    normal = centred.T @ centred / len(centred)
    normal += RIDGE * normal.diagonal().mean() * torch.eye(len(normal), dtype=torch.float64)
    weight = torch.linalg.solve(normal, centred.T @ (places - middle).double() / len(centred)).T.float()
    layer.weight.copy_(weight)
    layer.bias.copy_(middle - weight @ mean)
