"""The device that a script runs on: asked for by name, or this machine's accelerator, or the CPU."""

from __future__ import annotations

import torch

from dnnlib.errors import UserError


def choose_device(name: str = 'auto') -> torch.device:
    """'auto' (accelerator if there is one, else CPU), 'cpu', or a torch device name; UserError if it is not there."""
    if name == 'auto':
        found = torch.accelerator.current_accelerator(check_available=True)
        return found if found is not None else torch.device('cpu')
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f'--device {name}: not available on this machine ({reason}); use auto or cpu') from error
    return device
