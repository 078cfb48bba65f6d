"""Numbers about a dataset's cameras and heads, and their histograms as a picture."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from dnnlib import UserError
from training.cameras import camera_angles, unpack_label
from training.dataset import HeadDataset
from training.head.makehuman import MakeHumanHead
from training.head.model import HeadParams

_BATCH = 1024
_BINS = 40
_PANEL, _MARGIN = (300, 190), 26
# Landmarks above and below (68 in iBUG order): inner lips; lids of the subject's right and left eye.
_GAPS = {
    'mouth opening (mm)': [(62, 66)],
    'right lids (mm)': [(37, 41), (38, 40)],
    'left lids (mm)': [(43, 47), (44, 46)],
}


def measure(dataset: HeadDataset, *, targets: list[str]) -> dict[str, np.ndarray]:
    """Name with unit -> one number an image [M]; 'images per person' has one a person."""
    angles = np.degrees(camera_angles(dataset.labels))
    values = dict(zip(('yaw (degrees)', 'pitch (degrees)', 'roll (degrees)'), angles.T, strict=True))
    cam2world, _ = unpack_label(dataset.labels)
    values['camera distance'] = cam2world[:, :3, 3].norm(dim=1).numpy()  # from the origin, world units
    if dataset.heads_layout is not None:
        blocks = [_measure_heads(dataset, rows, targets) for rows in np.split(*_cuts(len(dataset.names)))]
        values |= {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    if dataset.identities is not None:
        values['images per person'] = np.unique(dataset.identities.numpy(), return_counts=True)[1].astype(float)
    return values


def _cuts(count: int) -> tuple[np.ndarray, list[int]]:
    return np.arange(count), list(range(_BATCH, count, _BATCH))


def _measure_heads(dataset: HeadDataset, rows: np.ndarray, targets: list[str]) -> dict[str, np.ndarray]:
    params = dataset.head_params(rows)
    if params is not None:
        return _measure_params(dataset, params, targets)
    landmarks = dataset.head_input(rows).landmarks
    return {
        name: torch.stack([(landmarks[:, a] - landmarks[:, b]).norm(dim=1) for a, b in pairs]).mean(0).numpy() * 1000
        for name, pairs in _GAPS.items()
    }


def _measure_params(dataset: HeadDataset, params: HeadParams, targets: list[str]) -> dict[str, np.ndarray]:
    eyes = np.degrees(params.eyes.numpy())
    values = {
        'jaw (degrees)': np.degrees(params.jaw[:, 0].numpy()),
        'mean |expression|': params.expression.abs().mean(dim=1).numpy(),
        'left eye yaw (degrees)': eyes[:, 1],
        'left eye pitch (degrees)': eyes[:, 0],
        'right eye yaw (degrees)': eyes[:, 4],
        'right eye pitch (degrees)': eyes[:, 3],
    }
    if dataset.head_model_name != MakeHumanHead.name:
        return values
    model = dataset.head_model
    assert isinstance(model, MakeHumanHead)
    unknown = [name for name in targets if name not in model.expression_names]
    if unknown:
        raise UserError(f'--targets: unknown {", ".join(unknown)}; known: {", ".join(model.expression_names)}')
    to_weights = torch.linalg.pinv(model.expression_coefficients(torch.eye(len(model.expression_names))))
    weights = (params.expression @ to_weights).numpy().round(4)  # zeros come back as rounding errors
    return values | {name: weights[:, model.expression_names.index(name)] for name in targets}


def summary(values: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation and quantiles of each."""
    quantiles = {'min': 0, '5%': 5, '50%': 50, '95%': 95, 'max': 100}
    return {
        name: {'mean': float(numbers.mean()), 'std': float(numbers.std())}
        | {key: float(np.percentile(numbers, share)) for key, share in quantiles.items()}
        for name, numbers in values.items()
    }


def draw_histograms(values: dict[str, np.ndarray], *, columns: int = 4) -> Image.Image:
    """One panel a quantity: its name, mean and highest count; heights compare within a panel only."""
    width, height = _PANEL
    rows = -(-len(values) // columns)
    picture = Image.new('RGB', (columns * width, rows * height), 'white')
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=12)
    for number, (name, numbers) in enumerate(values.items()):
        left, top = number % columns * width + _MARGIN // 2, number // columns * height
        right, base = left + width - _MARGIN, top + height - _MARGIN
        low, high = float(numbers.min()), float(numbers.max())
        if high - low < 1e-6:
            low, high = low - 0.5, high + 0.5
        counts, _ = np.histogram(numbers, bins=_BINS, range=(low, high))
        step = (right - left) / _BINS
        for i, count in enumerate(counts):
            bar = (base - top - _MARGIN) * count / counts.max()
            draw.rectangle((left + i * step, base - bar, left + (i + 1) * step - 1, base), fill=(70, 110, 170))
        draw.line((left, base, right, base), fill='black')
        draw.text((left, top + 4), f'{name}: {_short(numbers.mean())}, at most {counts.max()}', 'black', font)
        draw.text((left, base + 3), _short(low), 'black', font)
        draw.text((right, base + 3), _short(high), 'black', font, anchor='ra')
    return picture


def _short(value: float) -> str:
    """Three digits; what is zero but for rounding is 0."""
    return '0' if abs(value) < 1e-4 else f'{value:.3g}'
