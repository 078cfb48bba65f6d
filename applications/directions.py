"""Directions in w that change one thing: found, kept in an inert .npz, added to latents.

sefa: closed form (Shen and Zhou 2021): the eigenvectors of the matrix of all style vectors, which a step in w
moves most. pca: the axes along which the latents of random seeds spread (Harkonen et al. 2020). Strengths count
standard deviations of random latents along the direction.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import zipfile
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from applications.samples import CameraRig
from dnnlib.errors import UserError
from dnnlib.files import atomic_write, explain_os_error
from torch_utils.rng import stream
from training.generator import Generator
from training.layer_rows import modulated_layers

# What a direction moves: prefixes of the layers that SeFa looks at. Rows: the last half for the texture, else the first
# (the static planes, the mouth and the super-resolution read the same rows); both for all.
PARTS = {
    'all': ('',),
    'texture': ('texture.',),
    'static': ('static.',),
    'teeth': ('teeth.',),
    'superres': ('superres.',),
}
METHODS = ('sefa', 'pca')
SAMPLES = 4096  # latents that show how w spreads
_CHOICE = re.compile(r'(?P<file>.+?):(?P<index>\d+)(?::(?P<strength>[^:]+))?')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Directions:
    """K directions of one network, the most important first."""

    vectors: Tensor  # [K, w_dim] unit
    scales: Tensor  # [K] standard deviation of random latents along each
    rows: Tensor  # bool [num_ws]: the rows of ws that they move
    method: str
    part: str

    def shift(self, index: int, strength: float) -> Tensor:
        """What to add to ws for `strength` standard deviations along a direction. [1, num_ws, w_dim]"""
        step = strength * self.scales[index] * self.vectors[index]
        return (self.rows[:, None] * step)[None]


@torch.no_grad()
def find_directions(
    generator: Generator, *, method: str, part: str, layers: Sequence[int] | None, count: int, rig: CameraRig
) -> Directions:
    """`count` directions of a part of the network; `layers`: rows of that half of ws (None: all)."""
    rows = part_rows(generator, part, layers)
    w = _random_w(generator, rig)
    count = min(count, w.shape[1])
    if method == 'sefa':
        vectors = _sefa(generator, part, rows)[:count]
    elif method == 'pca':
        _, _, right = torch.linalg.svd(w - w.mean(dim=0), full_matrices=False)
        vectors = right[:count]
    else:
        raise ValueError(f'method: expected one of {", ".join(METHODS)}, got {method!r}')
    # A direction and its opposite are the same: let the largest number be positive, so that files can be compared.
    vectors = vectors * vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True)).sign()
    scales = (w @ vectors.t()).std(dim=0)
    return Directions(vectors=vectors.cpu(), scales=scales.cpu(), rows=rows, method=method, part=part)


def part_rows(generator: Generator, part: str, layers: Sequence[int] | None) -> Tensor:
    """The rows of ws that a part reads, or those of its `layers`. bool [num_ws]"""
    if part not in PARTS:
        raise ValueError(f'part: expected one of {", ".join(PARTS)}, got {part!r}')
    half = generator.num_half
    chosen = torch.zeros(half, dtype=torch.bool)
    wanted = list(range(half)) if layers is None else list(layers)
    if not wanted or min(wanted) < 0 or max(wanted) >= half:
        raise UserError(f'--layers: expected numbers from 0 to {half - 1}, got {wanted}')
    chosen[wanted] = True
    none = torch.zeros_like(chosen)
    if part == 'all':
        return torch.cat([chosen, chosen])
    return torch.cat([none, chosen] if part == 'texture' else [chosen, none])


def _random_w(generator: Generator, rig: CameraRig) -> Tensor:
    """w of SAMPLES random seeds, untruncated. [SAMPLES, w_dim]"""
    device = next(generator.parameters()).device
    z = torch.randn(SAMPLES, generator.config.z_dim, generator=stream('directions')).to(device)
    return generator.map(z, rig.front().to(device).expand(SAMPLES, -1))[:, 0]


def _sefa(generator: Generator, part: str, rows: Tensor) -> Tensor:
    """Unit vectors [w_dim, w_dim] by falling effect on the styles of the part's layers at `rows`."""
    prefixes = tuple(name for name, row in modulated_layers(generator).items() if rows[row])
    prefixes = tuple(name for name in prefixes if name.startswith(PARTS[part]))
    if not prefixes:
        raise UserError(f'--part={part}: this network has no such layers at --layers; choose another part or others')
    weights: list[Tensor] = [generator.get_parameter(f'{name}affine.weight') for name in prefixes]
    styles = F.normalize(torch.cat(weights).double(), dim=1)  # every style channel counts alike
    _, vectors = torch.linalg.eigh(styles.t() @ styles)
    return vectors.flip(1).t().float()


def save_directions(path: str | os.PathLike[str], directions: Directions) -> None:
    """Write an .npz of plain arrays, whole or not at all."""
    with atomic_write(path) as handle:
        np.savez(
            handle,
            vectors=directions.vectors.numpy(),
            scales=directions.scales.numpy(),
            rows=directions.rows.numpy(),
            method=np.array(directions.method),
            part=np.array(directions.part),
        )


def load_directions(path: str | os.PathLike[str]) -> Directions:
    """Read what save_directions wrote; UserError for anything else."""
    try:
        if not zipfile.is_zipfile(path) and os.path.exists(path):
            raise zipfile.BadZipFile('it is no .npz file')
        with np.load(path, allow_pickle=False) as data:
            content = {name: np.asarray(data[name]) for name in ('vectors', 'scales', 'rows', 'method', 'part')}
    except OSError as error:
        raise explain_os_error(error, path) from error
    except (zipfile.BadZipFile, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path}: no directions (latents.py directions makes them): {error}') from error
    vectors, scales, rows = (torch.from_numpy(content[name]) for name in ('vectors', 'scales', 'rows'))
    fits = vectors.ndim == 2 and scales.shape == vectors.shape[:1] and rows.ndim == 1 and rows.dtype == torch.bool
    if not fits or not torch.isfinite(vectors).all() or not torch.isfinite(scales).all():
        raise UserError(f'{path}: no directions: its arrays do not fit each other, or are not finite')
    return Directions(
        vectors=vectors.float(),
        scales=scales.float(),
        rows=rows,
        method=str(content['method']),
        part=str(content['part']),
    )


def direction_shift(choices: Sequence[str], generator: Generator) -> Tensor | None:
    """The sum of 'FILE:INDEX' or 'FILE:INDEX:STRENGTH' (strength 1 by default) for a network, on its device.

    [1, num_ws, w_dim]; None without choices. UserError names what does not fit.
    """
    if not choices:
        return None
    total = torch.zeros(1, generator.num_ws, generator.config.w_dim)
    for text in choices:
        match = _CHOICE.fullmatch(text)
        try:
            strength = float(match['strength'] or 1.0) if match else math.nan
        except ValueError:
            strength = math.nan
        if match is None or not math.isfinite(strength):
            raise UserError(f'--direction {text}: expected FILE:INDEX or FILE:INDEX:STRENGTH, like directions.npz:0:2')
        directions, index = load_directions(match['file']), int(match['index'])
        found = (len(directions.rows), directions.vectors.shape[1])
        if found != (generator.num_ws, generator.config.w_dim):
            raise UserError(
                f'{match["file"]}: directions for ws of {found[0]} x {found[1]}, but the network has '
                f'{generator.num_ws} x {generator.config.w_dim}; find its own by latents.py directions'
            )
        if index >= len(directions.vectors):
            raise UserError(f'--direction {text}: no such direction; the file has 0 to {len(directions.vectors) - 1}')
        total += directions.shift(index, strength)
    return total.to(next(generator.parameters()).device)
