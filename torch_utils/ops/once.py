"""Ops whose gradients have none themselves."""

from __future__ import annotations

from typing import Any

import torch


def no_second_order(op: str) -> None:
    """Let a second derivative of next3d::<op> raise RuntimeError; torch would take it for zero after a warning.

    To be called once <op>_backward is defined.
    """

    def backward(ctx: Any, *grads: torch.Tensor) -> tuple:
        raise RuntimeError(f"{op}: differentiable once only; backend='reference' has more")

    torch.library.register_autograd(f'next3d::{op}_backward', backward)
