"""The second step of training: where the eyes are, and the gaze from pictures of them; the rest stays as it is."""

from __future__ import annotations

import click
import torch
import torch.nn.functional as F

from metrics.estimators.base import as_float
from metrics.estimators.embedded_network import HEAD_SIZES, EmbeddedNetwork
from metrics.estimators.embedded_parts import EyeNetwork, eye_patches
from tools.estimators.progress import Progress
from tools.estimators.variants import BATCH, Variants, solve_places
from torch_utils.rng import stream

LEARNING_RATE = 3e-3
TOLERANCE = 0.25  # standard deviations
REPORT_EVERY = 500


def fit_gaze(network: EmbeddedNetwork, seen: Variants, *, steps: int, seed: int) -> None:
    """Fill `eye_places` (least squares) and `gaze` (gradient descent) of a network whose other parts are trained."""
    solve_places(network.eye_places, seen.features, seen.eyes)
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
    click.echo(f'places of the eyes: {32 * float((found - seen.eyes).abs().mean()):.2f} pixels off')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # initial weights
        network.gaze = EyeNetwork()
    optimizer = torch.optim.AdamW(network.gaze.parameters(), lr=LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    progress = Progress('gaze', steps=steps, every=REPORT_EVERY)
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
        progress.add(step, {'loss': loss})
    network.gaze.requires_grad_(False)
