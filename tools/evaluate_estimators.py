"""Measure the embedded estimators on people and pictures that they never saw, and write their card. Run by hand.

    python -m tools.evaluate_estimators --work=runs/estimators

Writes assets/estimators/synthetic.json: what the file is, how it was trained, sha256, and the held-out errors that
stand beside a metric as its floor.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dnnlib.cli import Command
from dnnlib.files import atomic_write, make_output_folder
from metrics.estimators.base import HeadEstimate
from metrics.estimators.embedded import EmbeddedFeatures, EmbeddedHeadEstimator, EmbeddedIdentity
from metrics.estimators.embedded_network import DEFAULT_PATH, read_embedded
from metrics.frechet import frechet_distance, statistics
from tools.estimators.augment import spoil
from tools.estimators.data import ATTRIBUTES, Pictures, load_pictures
from torch_utils.rng import stream
from torch_utils.rotations import axis_angle_matrix, matrix_axis_angle
from training.head.makehuman import embedded_head

HELD_OUT = (2002, 1200)  # seed, images: 300 people
RIDGE = 0.5  # of the linear readout, in variances of a feature
LEAST = 1e-3  # standard deviation of a weight that varies
OPEN = 0.5  # gaze counts for eyes more open than this


def head_errors(estimate: HeadEstimate, pictures: Pictures) -> dict[str, float]:
    """Mean absolute errors per field, and those of an estimator that always says the mean."""
    expression, jaw, rotation, gaze = pictures.head.split([52, 3, 3, 4], dim=1)
    assert estimate.expression is not None
    assert estimate.jaw is not None
    assert estimate.rotation is not None
    assert estimate.gaze is not None
    visible = (pictures.eyes_open > OPEN)[:, :, None].expand(-1, -1, 2)
    looking = gaze.reshape(-1, 2, 2)
    active = expression.abs() > 0.05
    turn = axis_angle_matrix(estimate.rotation).transpose(1, 2) @ axis_angle_matrix(rotation)

    def error(values: Tensor, truth: Tensor, where: Tensor | None = None) -> float:
        difference = (values - truth).abs()
        return float(difference.mean() if where is None else difference[where].mean())

    def correlation(values: Tensor, truth: Tensor) -> float:
        return float(np.corrcoef(values.flatten().numpy(), truth.flatten().numpy())[0, 1])

    return {
        'expression': error(estimate.expression, expression),
        'expression_mean_prediction': error(expression.mean(dim=0), expression),
        'expression_where_active': error(estimate.expression, expression, active),
        'expression_where_active_zero_prediction': error(torch.zeros_like(expression), expression, active),
        'expression_correlation': correlation(estimate.expression, expression),
        'jaw': error(estimate.jaw, jaw),
        'jaw_mean_prediction': error(jaw.mean(dim=0), jaw),
        'jaw_opening': error(estimate.jaw[:, 0], jaw[:, 0]),
        'rotation': error(estimate.rotation, rotation),
        'rotation_mean_prediction': error(rotation.mean(dim=0), rotation),
        'rotation_angle': float(matrix_axis_angle(turn).norm(dim=1).mean()),
        'gaze': error(estimate.gaze, looking, visible),
        'gaze_mean_prediction': error(looking.mean(dim=0), looking, visible),
        'gaze_yaw': error(estimate.gaze[..., 0], looking[..., 0], visible[..., 0]),
        'gaze_pitch': error(estimate.gaze[..., 1], looking[..., 1], visible[..., 1]),
        'gaze_yaw_correlation': correlation(estimate.gaze[..., 0][visible[..., 0]], looking[..., 0][visible[..., 0]]),
        'found': float(estimate.valid.float().mean()),
    }


def expression_correlations(estimate: HeadEstimate, pictures: Pictures) -> dict[str, float]:
    """How the estimate of each weight that varies goes with the truth, from picture to picture."""
    assert estimate.expression is not None
    names, truth = embedded_head().expression_names, pictures.head[:, : len(embedded_head().expression_names)]
    pairs = zip(names, estimate.expression.T.numpy(), truth.T.numpy(), strict=True)
    return {name: float(np.corrcoef(found, true)[0, 1]) for name, found, true in pairs if true.std() > LEAST}


def identity_scores(vectors: Tensor, person: Tensor) -> dict[str, float]:
    """Cosines of same and different people, and verification accuracy at the threshold of the other half."""
    left, right = torch.triu_indices(len(vectors), len(vectors), offset=1)
    cosine, same = (vectors @ vectors.T)[left, right], person[left] == person[right]
    half = int(person.max()) // 2

    def accuracy(threshold: Tensor, chosen: Tensor) -> Tensor:
        """Mean of the rates of both kinds of pair."""
        hit, rejected = cosine[chosen & same] > threshold, cosine[chosen & ~same] <= threshold
        return (hit.float().mean() + rejected.float().mean()) / 2

    first = (person[left] <= half) & (person[right] <= half)
    second = (person[left] > half) & (person[right] > half)
    candidates = torch.linspace(0, 1, 101)
    threshold = candidates[torch.stack([accuracy(value, first) for value in candidates]).argmax()]
    return {
        'cosine_same': float(cosine[same].mean()),
        'cosine_different': float(cosine[~same].mean()),
        'verification_accuracy': float(accuracy(threshold, second)),
        'verification_threshold': float(threshold),
    }


def feature_scores(extractor: EmbeddedFeatures, pictures: Pictures) -> dict[str, Any]:
    """What a linear readout finds in the features (share of variance explained), and how distances react."""
    features = extractor(pictures.images)
    half = len(features) // 2
    inputs = ((features - features[:half].mean(dim=0)) / (features[:half].std(dim=0) + 1e-6)).double()
    targets = (pictures.attributes - pictures.attributes[:half].mean(dim=0)).double()
    normal = inputs[:half].T @ inputs[:half] / half + RIDGE * torch.eye(inputs.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(normal, inputs[:half].T @ targets[:half] / half)
    residual = (inputs[half:] @ weights - targets[half:]).square().mean(dim=0)
    explained = (1 - residual / targets[half:].square().mean(dim=0)).split(list(ATTRIBUTES.values()))
    blurred = F.avg_pool2d(pictures.images[half:].float(), 3, stride=1, padding=1).round().to(torch.uint8)
    real = statistics(features[:half].numpy())
    return {
        'explained': {name: float(part.mean()) for name, part in zip(ATTRIBUTES, explained, strict=True)},
        'fd_other_half': float(frechet_distance(real, statistics(features[half:].numpy()))),
        'fd_other_half_blurred': float(frechet_distance(real, statistics(extractor(blurred).numpy()))),
    }


def evaluate(path: Path, folder: Path) -> dict[str, Any]:
    """The held-out part of the card."""
    seed, num = HELD_OUT
    pictures = load_pictures(folder, seed=seed, num=num)
    estimator = EmbeddedHeadEstimator(path)
    estimate = estimator(pictures.images)
    errors, each = head_errors(estimate, pictures), expression_correlations(estimate, pictures)
    errors['expression_correlation_each'] = float(np.mean(list(each.values())))
    none = spoil(pictures.images.float(), rng=stream('estimators', 'held-out'))
    errors['found_without_face'] = float(estimator(none.to(torch.uint8)).valid.float().mean())
    return {
        'seed': seed,
        'images': num,
        'people': int(pictures.person.max()) + 1,
        'embedded-head': errors,
        'embedded-head-correlation': each,
        'embedded-identity': identity_scores(EmbeddedIdentity(path).embed(pictures.images), pictures.person),
        'embedded-features': feature_scores(EmbeddedFeatures(path), pictures),
    }


def rounded(value: Any) -> Any:
    """The numbers of a card with four digits behind the point."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


@click.command(cls=Command)
@click.option('--work', default='runs/estimators', show_default=True, help='Folder of the rendered datasets.')
@click.option('--file', 'path', default=str(DEFAULT_PATH), show_default='assets/estimators/synthetic.npz')
@click.option('--out', help='Card to write. Default: beside the file, ending in .json.')
def main(work: str, path: str, out: str | None) -> None:
    """Measure the embedded estimators on held-out pictures."""
    torch.set_num_threads(1)
    file = read_embedded(Path(path))
    card = {
        'file': Path(path).name,
        'sha256': file.content_hash,
        **file.header,
        'units': 'expression: weights of named targets; rotations and gaze: radians; means of absolute errors',
        'held_out': rounded(evaluate(Path(path), make_output_folder(work))),
    }
    target = Path(out) if out else Path(path).with_suffix('.json')
    text = json.dumps(card, indent=2)
    with atomic_write(target) as handle:
        handle.write((text + '\n').encode())
    click.echo(text)


if __name__ == '__main__':
    main()
