"""Gradient checkpointing of one stage: its inner tensors are computed anew in the backward pass instead of kept.

About a third more work for the generator, and the memory of one stage instead of all of them. Results are the same:
a stage draws the same random numbers both times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def recomputed(stage: Callable[..., Any], *inputs: Any, **options: torch.Generator | None) -> Any:
    """stage(*inputs[, rng=rng]), keeping only `inputs` for the backward pass. Autocast is restored there too."""
    rng = options.get('rng')
    state = None if rng is None else rng.get_state()
    calls = 0

    def run(*tensors: Any) -> Any:
        nonlocal calls
        calls += 1
        own = rng
        if calls > 1 and rng is not None and state is not None:
            own = torch.Generator(rng.device)
            own.set_state(state)
        return stage(*tensors, **{'rng': own} if options else {})

    return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)
