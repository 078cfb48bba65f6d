"""Producers of image batches, addressed by index: a dataset, or an adapter that is shown a plan of shots.

Image `index` of a source is a function of that index alone, so that a result depends neither on the
batch size nor on how the indices were shared out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from dnnlib import UserError
from metrics.adapter import Adapter, Request
from metrics.shots import Shot
from torch_utils.rng import derive_seed, numpy_stream


class ImageSource(Protocol):
    """Images by index."""

    def __len__(self) -> int: ...

    def images(self, indices: Sequence[int]) -> Tensor:
        """uint8 [n, 3, H, W]."""


class Frames(ImageSource, Protocol):
    """Images whose head parameters and cameras are known."""

    @property
    def key(self) -> list[Any]:
        """What decides the pixels of one subject, as JSON."""

    @property
    def keep(self) -> bool:
        """Whether `key` names the subject's content, so that results may outlast the call."""

    @property
    def groups(self) -> list[int]:
        """The person of each image."""

    def driving(self, indices: Sequence[int]) -> tuple[Any, Tensor]:
        """Head parameters (None: unknown) and cameras [n, 25]."""


class Dataset(Protocol):
    """The part of training.dataset.HeadDataset that metrics use."""

    name: str
    resolution: int

    @property
    def content_hash(self) -> str: ...

    @property
    def head_model_name(self) -> str | None: ...

    @property
    def names(self) -> list[str]: ...

    @property
    def identities(self) -> Tensor | None: ...

    def __len__(self) -> int: ...

    def images(self, indices: Any) -> Tensor: ...

    def label(self, indices: Any) -> Tensor: ...

    def head_params(self, indices: Any) -> Any: ...

    def head_input(self, indices: Any, *, device: torch.device) -> Any: ...

    def pose(self, params: Any, *, device: torch.device) -> Any: ...


class DatasetImages:
    """Items `rows` of a dataset (None: all) on `device`, with their own labels."""

    def __init__(self, dataset: Dataset, *, device: torch.device, rows: Sequence[int] | None = None) -> None:
        self.dataset = dataset
        self.device = device
        self.rows = list(range(len(dataset)) if rows is None else rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def keep(self) -> bool:
        return True

    @property
    def key(self) -> list[Any]:
        whole = self.rows == list(range(len(self.dataset)))
        return ['dataset', self.dataset.content_hash, len(self.dataset), None if whole else self.rows]

    @property
    def groups(self) -> list[int]:
        """The person of each image where the dataset says so, else a person an image; mirrored ones are others."""
        return person_of_items(self.dataset, self.rows)

    def images(self, indices: Sequence[int]) -> Tensor:
        return self.dataset.images([self.rows[index] for index in indices]).to(self.device)

    def driving(self, indices: Sequence[int]) -> tuple[Any, Tensor]:
        rows = [self.rows[index] for index in indices]
        params = self.dataset.head_params(rows)
        return None if params is None else params.to(self.device), self.dataset.label(rows).to(self.device)


def person_of_items(dataset: Dataset, rows: Sequence[int]) -> list[int]:
    """A number for each item's person; without identities, the item itself."""
    if dataset.identities is None:
        return list(rows)
    known = dataset.identities.tolist()
    shift = max(known) + 1
    return [known[row % len(known)] + shift * (row // len(known)) for row in rows]


class ShotImages:
    """The pictures that an adapter makes of a plan."""

    def __init__(
        self,
        adapter: Adapter,
        dataset: Dataset,
        shots: list[Shot],
        *,
        seed: int,
        device: torch.device,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
    ) -> None:
        if adapter.resolution != dataset.resolution:
            raise UserError(
                f'{dataset.name}: images are {dataset.resolution} px but {adapter.name} makes '
                f'{adapter.resolution} px; measure against a dataset of its own size'
            )
        self.adapter = adapter
        self.dataset = dataset
        self.shots = shots
        self.seed = seed
        self.device = device
        self.truncation_psi = truncation_psi
        self.truncation_cutoff = truncation_cutoff

    def __len__(self) -> int:
        return len(self.shots)

    @property
    def keep(self) -> bool:
        return self.adapter.content_hash is not None

    @property
    def key(self) -> list[Any]:
        data = [self.dataset.content_hash, len(self.dataset)]
        fields = [list(vars(shot).values()) for shot in self.shots]
        made_by = [self.adapter.content_hash, self.adapter.precision_name, self.device.type]
        return ['shots', *made_by, *data, self.seed, self.truncation_psi, self.truncation_cutoff, fields]

    @property
    def groups(self) -> list[int]:
        return [shot.person for shot in self.shots]

    @torch.no_grad()
    def images(self, indices: Sequence[int]) -> Tensor:
        shots = [self.shots[index] for index in indices]
        moving = shots[0].person_to is not None
        params = self._params(shots)
        made = self.adapter.images(
            Request(
                seeds=[self._latent(shot.person) for shot in shots],
                conditioning=self.dataset.label([shot.origin for shot in shots]).to(self.device),
                camera=self.dataset.label([shot.camera for shot in shots]).to(self.device),
                params=None if params is None else params.to(self.device),
                head=self._heads(shots, params),
                scene=[shot.scene for shot in shots],
                truncation_psi=self.truncation_psi,
                truncation_cutoff=self.truncation_cutoff,
                seeds_to=[self._latent(shot.person_to or 0) for shot in shots] if moving else None,
                mix=torch.tensor([shot.mix for shot in shots], device=self.device) if moving else None,
                mix_space=shots[0].mix_space,
            )
        )
        return _checked(made, [len(shots), 3, self.adapter.resolution, self.adapter.resolution], self.adapter.name)

    def driving(self, indices: Sequence[int]) -> tuple[Any, Tensor]:
        shots = [self.shots[index] for index in indices]
        params = self._params(shots)
        cameras = self.dataset.label([shot.camera for shot in shots]).to(self.device)
        return None if params is None else params.to(self.device), cameras

    def _latent(self, person: int) -> int:
        return derive_seed('metric-latent', self.seed, person) % 2**32

    def _params(self, shots: list[Shot]) -> Any:
        """Head parameters of the shots, None where the dataset has none."""
        params = self.dataset.head_params([shot.head for shot in shots])
        if params is None:
            return None
        if any(shot.own_shape and shot.origin != shot.head for shot in shots):
            shapes = [shot.origin if shot.own_shape else shot.head for shot in shots]
            params = params.replace(identity=self.dataset.head_params(shapes).identity)
        if any(shot.head_to is not None for shot in shots):
            ends = self.dataset.head_params([shot.head if shot.head_to is None else shot.head_to for shot in shots])
            share = torch.tensor([shot.progress for shot in shots])[:, None]
            moved = {
                name: torch.lerp(value, getattr(ends, name), share)
                for name, value in params.as_dict().items()
                if name != 'identity'
            }
            params = params.replace(**moved)
        return params

    def _heads(self, shots: list[Shot], params: Any) -> Any:
        """Meshes of the shots on the device, None where the dataset has no heads."""
        if self.dataset.head_model_name is None:
            return None
        changed = any(shot.head_to is not None or (shot.own_shape and shot.origin != shot.head) for shot in shots)
        if params is not None and changed:
            return self.dataset.pose(params, device=self.device)
        heads = self.dataset.head_input([shot.head for shot in shots], device=self.device)
        if all(shot.head_to is None for shot in shots):
            return heads
        ends = self.dataset.head_input([shot.head_to for shot in shots], device=self.device)
        share = torch.tensor([shot.progress for shot in shots], device=self.device)[:, None, None]
        vertices = torch.lerp(heads.vertices, ends.vertices, share)
        return type(heads)(vertices, torch.lerp(heads.landmarks, ends.landmarks, share))


def _checked(images: Tensor, shape: list[int], name: str) -> Tensor:
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or list(images.shape) != shape:
        got = f'{images.dtype} {list(images.shape)}' if isinstance(images, Tensor) else type(images).__name__
        raise UserError(f'{name}: images() must return a uint8 tensor {shape}, got {got}')
    return images


def choose_indices(total: int, count: int | None, *, seed: int) -> list[int]:
    """All indices below `total`, or `count` of them without repetition, in ascending order."""
    if count is None or count >= total:
        return list(range(total))
    return sorted(int(i) for i in numpy_stream('metric-subset', seed, total).permutation(total)[:count])
