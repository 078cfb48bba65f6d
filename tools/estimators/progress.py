"""What a training of estimators prints while it goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping

import click
from torch import Tensor


class Progress:
    """Prints the mean of each loss over the last `every` steps, and the processor time since the start."""

    def __init__(self, what: str, *, steps: int, every: int) -> None:
        self._what, self._steps, self._every = what, steps, every
        self._started = time.process_time()
        self._means: dict[str, float] = {}

    def add(self, step: int, losses: Mapping[str, Tensor]) -> bool:
        """The losses of step `step`, counted from 0; whether a line was printed."""
        for name, loss in losses.items():
            self._means[name] = self._means.get(name, 0.0) + float(loss.detach()) / self._every
        if (step + 1) % self._every:
            return False
        terms = '  '.join(f'{name} {value:.3f}' for name, value in self._means.items())
        seconds = time.process_time() - self._started
        click.echo(f'{self._what} step {step + 1}/{self._steps}  {seconds:.0f} CPU s  {terms}')
        self._means.clear()
        return True
