"""The third step of training: expression, jaw and whether there is a face, from pictures of mouth and brows."""

from __future__ import annotations

from collections.abc import Callable

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from metrics.estimators.base import as_float
from metrics.estimators.embedded_network import HEAD_SIZES, EmbeddedNetwork
from metrics.estimators.embedded_parts import (
    BROW_HALF,
    BROW_HIDDEN,
    MOUTH_HALF,
    MOUTH_HIDDEN,
    NUM_EXPRESSION,
    ExpressionNetwork,
    face_patches,
    upright,
)
from tools.estimators.objective import Scales
from tools.estimators.progress import Progress
from tools.estimators.variants import Variants, solve_places
from torch_utils.rng import stream
from training.head.landmarks import MIRROR

BATCH, NUM_SPOILT = 32, 4
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.05
TOLERANCE = 1.0  # standard deviations: below, errors count squared, above by their size
JITTER = 0.02  # of the places, of half the picture's side
DROPPED = 0.1  # share of what is seen in the patches that is left out
WEIGHTS = {'expression': 3.0, 'jaw': 1.0, 'face': 0.1, 'points': 1.0}
REPORT_EVERY = 500
LEFT_BROW = (*range(22, 27), *range(42, 48))
RIGHT_BROW = tuple(MIRROR[point] for point in LEFT_BROW)
POSE = slice(NUM_EXPRESSION, NUM_EXPRESSION + HEAD_SIZES['jaw'] + HEAD_SIZES['rotation'])


class _Objective(nn.Module):
    """The network and what training alone needs: the landmarks in each patch, which teach sooner than the labels."""

    def __init__(self, network: ExpressionNetwork, seen: Variants, places: Tensor) -> None:
        super().__init__()
        self.network = network
        targets = landmarks_in_patches(seen.landmarks, *places.split([4, 2], dim=1))
        self.scales = [Scales.of(values) for values in targets]
        self.mouth_points = nn.Linear(MOUTH_HIDDEN, targets[0].shape[1])
        self.brow_points = nn.Linear(BROW_HIDDEN, targets[1].shape[1] // 2)

    def forward(
        self, images: Tensor, places: Tensor, pose: Tensor, landmarks: Tensor, *, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Corrections [N, 56] of images about places [N, 6]; the error of the landmarks [L, 68, 2] of the first L."""
        eyes, mouth = places.split([4, 2], dim=1)
        lower, brows = self.network.seen(*face_patches(images, eyes, mouth))
        count = len(landmarks)
        targets = landmarks_in_patches(landmarks, eyes[:count], mouth[:count])
        found = self.mouth_points(lower[:count]), self.brow_points(brows[:count]).flatten(1)
        errors = [_robust(x, scales.units(y)) for x, y, scales in zip(found, targets, self.scales, strict=True)]
        return self.network.combined(_thinned(lower, rng), _thinned(brows, rng), pose), torch.cat(errors, dim=1).mean()


def landmarks_in_patches(landmarks: Tensor, eyes: Tensor, mouth: Tensor) -> tuple[Tensor, Tensor]:
    """Landmarks [N, 68, 2] of mouth [N, 40] and brows and lids [N, 44] from the places, in halves of the patch."""
    right, down = upright(eyes)

    def inside(points: Tensor, middle: Tensor, size: tuple[float, float], side: int) -> Tensor:
        away = points - middle[:, None]
        across, along = (
            (away * right[:, None]).sum(dim=2) / (side * size[1]),
            (away * down[:, None]).sum(dim=2) / size[0],
        )
        return torch.cat([across, along], dim=1)

    left_brow = inside(landmarks[:, LEFT_BROW], eyes[:, :2], BROW_HALF, 1)
    right_brow = inside(landmarks[:, RIGHT_BROW], eyes[:, 2:], BROW_HALF, -1)
    return inside(landmarks[:, 48:68], mouth, MOUTH_HALF, 1), torch.cat([left_brow, right_brow], dim=1)


def fit_expressions(
    network: EmbeddedNetwork,
    seen: Variants,
    *,
    steps: int,
    seed: int,
    save: Callable[[EmbeddedNetwork], None],
) -> None:
    """Fill `mouth_place` and `expression` of a network whose other parts are trained; `save` gets it now and then."""
    solve_places(network.mouth_place, seen.features, seen.mouth)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # initial weights
        network.expression = ExpressionNetwork()
        with torch.no_grad():
            features = torch.cat([seen.features, seen.spoilt_features])
            places = torch.cat([network.eye_places(features), network.mouth_place(features)], dim=1)
            units = network.head_output(features)
        count = len(seen.images)
        objective = _Objective(network.expression, seen, places[:count])
        convert_conv2d_weight_memory_format(objective, torch.channels_last)
    off = 32 * float((places[:count, 4:] - seen.mouth).abs().mean())
    click.echo(f'place of the mouth: {off:.2f} pixels off')
    wanted = (seen.head - network.head_mean[:-1]) / network.head_scale[:-1].clamp(min=1e-4)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    progress = Progress('expression', steps=steps, every=REPORT_EVERY)
    for step in range(steps):
        rng = stream('estimators', seed, 'expressions', step)
        rows = torch.randint(count, (BATCH,), generator=rng)
        spoilt = torch.randint(len(seen.spoilt_images), (NUM_SPOILT,), generator=rng)
        both = torch.cat([rows, count + spoilt])
        where = places[both] + JITTER * torch.randn(len(both), 6, generator=rng)
        images = as_float(torch.cat([seen.images[rows], seen.spoilt_images[spoilt]]))
        change, points = objective(images, where, units[both, POSE], seen.landmarks[rows], rng=rng)
        losses = _losses(units[both], change, wanted[rows]) | {'points': points}
        optimizer.zero_grad()
        torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum().backward()
        optimizer.step()
        schedule.step()
        if progress.add(step, losses):
            save(network)
    network.expression.requires_grad_(False)


def _losses(units: Tensor, change: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Terms for the trunk's estimates [N, 63] and corrections [N, 56]; rows that nothing is wanted of show no face."""
    count, jaw = len(wanted), slice(NUM_EXPRESSION, NUM_EXPRESSION + HEAD_SIZES['jaw'])
    error = _robust((units[:, : jaw.stop] + change[:, : jaw.stop])[:count], wanted[:, : jaw.stop])
    faces = torch.cat([units.new_ones(count), units.new_zeros(len(units) - count)])
    return {
        'expression': error[:, : jaw.start].mean(),
        'jaw': error[:, jaw].mean(),
        'face': F.binary_cross_entropy_with_logits(units[:, -1] + change[:, -1], faces),
    }


def _thinned(values: Tensor, rng: torch.Generator) -> Tensor:
    """Values of which some are zero, so that no few of them decide."""
    return values * (torch.rand(values.shape, generator=rng) >= DROPPED) / (1 - DROPPED)


def _robust(values: Tensor, targets: Tensor) -> Tensor:
    return F.smooth_l1_loss(values, targets, beta=TOLERANCE, reduction='none')
