"""Between avatars of one network: people whose weights, latent and head are weighted means of theirs.

Pivotal tuning starts each avatar from the same weights (paper 4.3), and moves them little, so that a mean of two tuned
networks at the mean of their pivots still draws a head. Networks that were trained apart have no such means.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dnnlib.errors import UserError
from dnnlib.files import sha256_file
from training.avatar import Avatar
from training.checkpoint import Snapshot, is_pickle, load_snapshot


@dataclasses.dataclass(frozen=True, kw_only=True)
class AvatarFile:
    """An avatar's checkpoint, read."""

    path: str
    sha256: str
    snapshot: Snapshot
    avatar: Avatar  # of the snapshot


def read_avatars(paths: Sequence[str | os.PathLike[str]]) -> list[AvatarFile]:
    """The checkpoints of avatars that can be blended; UserError names the first that can not, and why."""
    if len(paths) < 2:
        raise UserError(f'--avatar: blending needs 2 or more, got {len(paths)}')
    files: list[AvatarFile] = []
    for path in map(str, paths):
        snapshot = None if is_pickle(path) else load_snapshot(path)
        if snapshot is None or snapshot.avatar is None:
            raise UserError(f'{path}: no avatar; expected an avatar.pkl of project_avatar.py')
        files.append(AvatarFile(path=path, sha256=sha256_file(path), snapshot=snapshot, avatar=snapshot.avatar))
    for other in files[1:]:
        _check_kin(files[0], other)
    return files


def _check_kin(first: AvatarFile, other: AvatarFile) -> None:
    if other.avatar.base != first.avatar.base:
        raise UserError(
            f'{other.path}: tuned from another network ({other.avatar.base[:12]}) than {first.path} '
            f'({first.avatar.base[:12]}); blend avatars of one --network of project_avatar.py'
        )
    widths = [file.avatar.identity.shape[1] for file in (first, other)]
    if widths[0] != widths[1]:
        raise UserError(
            f"{other.path}: its head has {widths[1]} identity numbers, {first.path}'s {widths[0]}; make both avatars "
            'with the head model, or both from meshes'
        )
    if _facts(first) != _facts(other):
        raise UserError(f'{other.path}: another architecture or head model than {first.path}')


def _facts(file: AvatarFile) -> tuple[object, ...]:
    """What avatars that can be blended have in common."""
    snapshot = file.snapshot
    shapes = {name: (value.shape, value.dtype) for name, value in snapshot.networks['G_ema'].items()}
    info = snapshot.info
    return snapshot.config.generator, info.head_model, info.head_model_hash, file.avatar.ws.shape, shapes


def blend(files: Sequence[AvatarFile], shares: Sequence[float]) -> Snapshot:
    """The avatar whose weights, pivot and identity are the sums of those of `files`, weighted by `shares` (sum 1).

    A share of 1 gives that avatar bit for bit.
    """
    if len(files) != len(shares):
        raise ValueError(f'shares: expected {len(files)} numbers, got {len(shares)}')
    used = [(file, share) for file, share in zip(files, shares, strict=True) if share != 0]

    def mix(values: list[Tensor]) -> Tensor:
        if not values[0].is_floating_point():
            return values[0]
        mixed = used[0][1] * values[0]
        for (_, share), value in zip(used[1:], values[1:], strict=True):
            mixed = mixed + share * value
        return mixed

    states = [file.snapshot.networks['G_ema'] for file, _ in used]
    avatar = Avatar(
        ws=mix([file.avatar.ws for file, _ in used]),
        identity=mix([file.avatar.identity for file, _ in used]),
        base=used[0][0].avatar.base,
        protocol={
            'blend': [{'avatar': file.sha256, 'share': share, 'protocol': file.avatar.protocol} for file, share in used]
        },
    )
    weights = {name: mix([state[name] for state in states]) for name in states[0]}
    return dataclasses.replace(used[0][0].snapshot, networks={'G_ema': weights, 'G': {}, 'D': {}}, avatar=avatar)


def steps_between(count: int, *, steps: int) -> Iterator[list[float]]:
    """Shares of `count` avatars, `steps` from each to the next, both ends included."""
    for first in range(count - 1):
        for share in torch.linspace(0, 1, steps).tolist():
            yield [1 - share if index == first else share if index == first + 1 else 0.0 for index in range(count)]


def normalized(values: Sequence[float], *, count: int) -> list[float]:
    """--shares, a number for each avatar, as parts of 1; UserError."""
    if len(values) != count:
        raise UserError(f'--shares: expected {count} numbers, one for each --avatar, got {len(values)}')
    total = sum(values)
    if min(values) < 0 or not 0 < total < math.inf:
        raise UserError('--shares: expected numbers of 0 or more, not all 0')
    return [value / total for value in values]


def check_target(path: Path, files: Sequence[AvatarFile]) -> None:
    """UserError if a blend at `path` would overwrite one of the avatars."""
    for file in files:
        if path.exists() and os.path.samefile(path, file.path):
            raise UserError(f'{path}: is an --avatar itself; choose another --outdir')
