"""Pictures of what latents do: interpolation, mixing of texture and static codes, truncation, directions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from applications import images
from applications.directions import Directions
from applications.samples import CameraRig, seed_z
from dnnlib.errors import UserError
from training.generator import Generator
from training.head.model import HeadInput

BATCH = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """Everything about a sheet's cells but the latent."""

    generator: Generator
    head: HeadInput  # of one head
    label: Tensor  # [1, 25]
    rig: CameraRig  # its front camera is what latents are conditioned on
    own: Tensor | None = None  # ws [1, num_ws, w_dim] of an avatar
    truncation_psi: float = 1.0
    truncation_cutoff: int | None = None

    @torch.no_grad()
    def cells(self, ws: Tensor) -> list[Tensor]:
        """Images [3, R, R] in [-1, 1] on the CPU of ws [N, num_ws, w_dim]."""
        device = next(self.generator.parameters()).device
        head, label = self.head.to(device), self.label.to(device)
        found: list[Tensor] = []
        for part in ws.to(device).split(BATCH):
            count = len(part)
            planes = self.generator.deform(self.generator.identity(part), head[[0] * count])
            found += self.generator.render(planes, label.expand(count, -1)).image.clamp(-1, 1).cpu().unbind()
        return found

    @torch.no_grad()
    def map(self, z: Tensor) -> Tensor:
        """z [N, z_dim] -> truncated ws."""
        device = next(self.generator.parameters()).device
        label = self.rig.front().to(device).expand(len(z), -1)
        ws = self.generator.map(z.to(device), label)
        return self.truncate(ws, self.truncation_psi)

    def truncate(self, ws: Tensor, psi: float) -> Tensor:
        return self.generator.mapping.truncate(ws, psi, cutoff=self.truncation_cutoff)

    def people(self, people: Sequence[int | None]) -> Tensor:
        """Truncated ws [N, num_ws, w_dim] of seeds; None: the avatar's own."""
        return torch.cat([self._person(person) for person in people])

    def _person(self, person: int | None) -> Tensor:
        if person is not None:
            return self.map(seed_z(person, self.generator.config.z_dim))
        if self.own is None:
            raise UserError('--seeds: the network is no avatar (project_avatar.py makes them); give numbers')
        return self.truncate(self.own.to(self.generator.mapping.w_avg), self.truncation_psi)


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Between two latents [z_dim] along the great circle, norms interpolated; straight where they are parallel."""
    norms = first.norm(), second.norm()
    a, b = first / norms[0], second / norms[1]
    angle = math.acos(float((a @ b).clamp(-1, 1)))
    if math.sin(angle) < 1e-4:
        return torch.lerp(first, second, share)
    unit = (math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(angle)
    return unit * torch.lerp(norms[0], norms[1], share)


def interpolation_sheet(view: View, keys: Sequence[int | None], *, steps: int, space: str) -> Tensor:
    """A row from each key seed to the next in `steps` pictures; space: w (straight) or z (great circle)."""
    if len(keys) < 2:
        raise UserError(f'--seeds: interpolation needs 2 or more, got {len(keys)}')
    shares = [step / (steps - 1) for step in range(steps)]
    cells: list[Tensor] = []
    for first, second in zip(keys, keys[1:], strict=False):
        if space == 'z':
            if first is None or second is None:
                raise UserError('--space=z: an avatar has no z; use --space=w')
            start, end = (seed_z(seed, view.generator.config.z_dim)[0] for seed in (first, second))
            ws = view.map(torch.stack([slerp(start, end, share) for share in shares]))
        else:
            start, end = view.people([first, second])
            ws = torch.stack([torch.lerp(start, end, share) for share in shares])
        cells += view.cells(ws)
    return images.grid(cells, steps)


def mixing_sheet(view: View, rows: Sequence[int | None], columns: Sequence[int | None], *, taken: Tensor) -> Tensor:
    """A grid: each row's seed with the rows `taken` (bool [num_ws]) of ws from each column's seed.

    The unmixed columns stand above, the unmixed rows at the left; the corner is empty.
    """
    left, above = view.people(rows), view.people(columns)
    size = view.generator.config.image_resolution
    cells = [torch.full((3, size, size), -1.0), *view.cells(above)]
    mask = taken[:, None].to(left.device)
    for person, picture in zip(left, view.cells(left), strict=True):
        cells += [picture, *view.cells(torch.where(mask, above, person))]
    return images.grid(cells, len(columns) + 1)


def truncation_sheet(view: View, seeds: Sequence[int | None], psis: Sequence[float]) -> Tensor:
    """A row a seed, a column a psi."""
    cells: list[Tensor] = []
    untruncated = dataclasses.replace(view, truncation_psi=1.0).people(seeds)
    for ws in untruncated:
        cells += view.cells(torch.cat([view.truncate(ws[None], psi) for psi in psis]))
    return images.grid(cells, len(psis))


def direction_sheet(view: View, ws: Tensor, directions: Directions, *, sigmas: float, steps: int) -> Tensor:
    """A row a direction, from -sigmas to +sigmas standard deviations along it, from one latent [1, num_ws, w_dim]."""
    strengths = torch.linspace(-sigmas, sigmas, steps).tolist()
    cells: list[Tensor] = []
    for index in range(len(directions.vectors)):
        shifts = torch.cat([directions.shift(index, strength) for strength in strengths]).to(ws)
        cells += view.cells(ws + shifts)
    return images.grid(cells, steps)
