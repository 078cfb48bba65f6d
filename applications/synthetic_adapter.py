"""The synthetic renderer behind the interface of a generator: what a perfect network would score.

It shows exactly what it is asked for, so that what metrics say of it is what estimators and counts cost; and it
can be made wrong in one respect at a time (tools/measure_sensitivity.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from metrics.adapter import Adapter, Request
from training.head import load_head_model
from training.head.makehuman import MakeHumanHead
from training.head.model import HeadParams
from training.synthetic import HEAD_MODEL
from training.synthetic_params import Person
from training.synthetic_studio import Studio

SEED = 77001  # of persons and scenes: other people and rooms than in datasets of small seeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """One picture to render: a person by number, a scene by number, a head and a camera."""

    person: int
    scene: int
    head: HeadParams  # one row, the person's face shape not yet in it
    label: Tensor  # [25]


class SyntheticAdapter(Adapter):
    """Renders what is asked for; the face shape is the rendered person's. `change` edits a view before it is drawn."""

    name = 'synthetic renderer'

    def __init__(
        self, device: torch.device, *, resolution: int = 64, change: Callable[[View], View] | None = None
    ) -> None:
        model = load_head_model(HEAD_MODEL)
        assert isinstance(model, MakeHumanHead)
        self.resolution = resolution
        self.change = change
        self.studio = Studio(model, resolution=resolution)

    def images(self, request: Request) -> Tensor:
        """See Adapter.images."""
        rows = range(len(request.seeds))
        views = (
            View(
                person=request.seeds[row],
                scene=request.scene[row],
                head=request.params[row : row + 1].to('cpu'),
                label=request.camera[row].cpu(),
            )
            for row in rows
        )
        pictures = [self._draw(self.change(view) if self.change else view) for view in views]
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous().to(request.camera.device)

    def _draw(self, view: View) -> np.ndarray:
        dressed = self.studio.dress(SEED, view.person)
        scene = dataclasses.replace(
            self.studio.scene(SEED, view.scene),
            label=view.label.numpy(),
            head=view.head.replace(identity=_shape(dressed.person)),
        )
        return self.studio.draw(dressed, scene)


def _shape(person: Person) -> Tensor:
    return torch.from_numpy(person.shape)[None]
