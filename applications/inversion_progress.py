"""What the user sees of an inversion while it runs, and its numbers afterwards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from applications import images
from applications.inversion import InversionConfig
from applications.inversion_losses import Terms, View

PREVIEW_SIZE = 192  # pixels of a cell


class Progress:
    """A bar for each phase, a preview picture from time to time, and the numbers of both phases."""

    def __init__(self, views: Sequence[View], path: Path, config: InversionConfig, *, every: int) -> None:
        self.views, self.path, self.every = views, path, every
        self.totals = {'latent': config.latent_steps, 'tuning': config.tuning_steps}
        self.losses: dict[str, list[float]] = {}
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self._bar: tqdm | None = None
        self._started = (time.perf_counter(), time.process_time())

    def __call__(self, phase: str, step: int, terms: Terms, image: Tensor) -> None:
        if phase not in self.losses:
            self.close()
            self.losses[phase] = []
            self._bar = tqdm(total=self.totals[phase], desc=phase, unit='step')
            self._started = (time.perf_counter(), time.process_time())
        self.losses[phase].append(float(terms.loss.detach()))
        self.seconds[phase] = time.perf_counter() - self._started[0]
        self.cpu_seconds[phase] = time.process_time() - self._started[1]
        assert self._bar is not None
        self._bar.set_postfix_str(
            f'loss {float(terms.loss.detach()):.4f} perceptual {float(terms.perceptual.detach()):.4f} '
            f'pixel {float(terms.pixel.detach()):.4f} identity {float(terms.identity.detach()):.3f}',
            refresh=False,
        )
        self._bar.update()
        if self.every and (step + 1) % self.every == 0:
            wanted = self.views[step % len(self.views)].image
            cells = [images.resize(cell, PREVIEW_SIZE)[0].clamp(-1, 1).cpu() for cell in (wanted, image)]
            images.save_png(self.path, images.grid(cells, 2))

    def close(self) -> None:
        """End the bar of the present phase."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def summary(self) -> dict[str, Any]:
        """Steps, means of the first and the last losses, and speed by phase."""
        phases = {}
        for phase, losses in self.losses.items():
            few = max(1, len(losses) // 20)
            timed = max(len(losses) - 1, 1)  # the clock starts after the first step
            phases[phase] = {
                'steps': len(losses),
                'first': float(np.mean(losses[:few])),
                'last': float(np.mean(losses[-few:])),
                'steps_per_second': timed / max(self.seconds[phase], 1e-9),
                'cpu_seconds_per_step': self.cpu_seconds[phase] / timed,
            }
        return {'phases': phases}
