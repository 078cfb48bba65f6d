"""Random streams that are a function of what they are for, not of what was drawn before.

A stream is named by keys such as (seed, images seen, micro-batch, purpose). Nothing has to be
saved to resume a run, and adding a draw somewhere changes no other stream.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(*keys: int | str) -> int:
    """A seed in [0, 2^63) from integers and names; equal keys give equal seeds on every machine."""
    text = '\x1f'.join(f'{type(key).__name__}:{key}' for key in keys)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'little') >> 1


def stream(*keys: int | str, device: torch.device | str = 'cpu') -> torch.Generator:
    """A torch generator on `device`, seeded by its keys."""
    return torch.Generator(device=device).manual_seed(derive_seed(*keys))


def numpy_stream(*keys: int | str) -> np.random.Generator:
    """A numpy generator seeded by its keys."""
    return np.random.default_rng(derive_seed(*keys))
