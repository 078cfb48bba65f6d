"""The number format of convolutions and matrix products: chosen once, by name or by what the device does fast.

Styles, latents, logits, meshes and the volume renderer stay in float32 (`training.layers.full_precision`); parameters
and optimizers always are.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dnnlib.errors import UserError
from torch_utils.ops import library

NAMES = ('fp32', 'bf16', 'fp16')
CHOICES = ('auto', *NAMES)
MAX_SCALE = 2.0**16  # where a loss scale starts; the largest float16 is just below
GROWTH_STEPS = 2000
_TYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """A choice and why it was made."""

    name: str
    device_type: str
    reason: str

    def context(self) -> contextlib.AbstractContextManager:
        """Runs what it holds in this precision."""
        if self.name == 'fp32':
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=_TYPES[self.name])

    @property
    def needs_scaling(self) -> bool:
        """Whether small gradients vanish in it, so that training multiplies its losses (LossScale)."""
        return self.name == 'fp16'

    def __str__(self) -> str:
        return f'{self.name} ({self.reason})'


class LossScale:
    """The factor on a loss that keeps fp16 gradients within range: halved when they overflow, doubled after
    `GROWTH_STEPS` good steps. A power of two, so undoing it is exact. Inactive: 1, and never changed."""

    def __init__(self, *, active: bool) -> None:
        self.active = active
        self.value = MAX_SCALE if active else 1.0
        self.good_steps = 0  # since the last change

    def undo_(self, gradients: Sequence[Tensor]) -> None:
        """Gradients of the scaled loss -> of the loss, in place."""
        if self.value != 1:
            torch._foreach_mul_(list(gradients), 1 / self.value)

    def grow(self) -> None:
        """After a good step."""
        if self.active:
            self.good_steps += 1
            if self.good_steps >= GROWTH_STEPS:
                self.value, self.good_steps = min(self.value * 2, MAX_SCALE), 0

    def shrink(self) -> bool:
        """After gradients that are not finite; False if the scale cannot be the cause."""
        self.good_steps = 0
        if self.value == 1:
            return False
        self.value /= 2
        return True

    def state(self) -> dict[str, float]:
        """For resuming."""
        return {'value': self.value, 'good_steps': self.good_steps}

    def load_state(self, state: Mapping[str, float] | None) -> None:
        """Continue from `state()`; None (a state of a version without scales) starts afresh."""
        if self.active and state is not None:
            self.value, self.good_steps = float(state['value']), int(state['good_steps'])


def choose_precision(name: str, device: torch.device) -> Precision:
    """'fp32', 'bf16', 'fp16', or 'auto': bf16 where the device multiplies it natively, else fp16 on a GPU, else fp32.

    UserError for an unknown name, and for fp16 on a CPU.
    """
    if name not in CHOICES:
        raise UserError(f'--precision: expected one of {", ".join(CHOICES)}, got {name!r}')
    if name == 'fp16' and device.type == 'cpu':
        raise UserError('--precision=fp16: CPUs have no fast float16 convolutions; use bf16 or fp32')
    if name != 'auto':
        return Precision(name=name, device_type=device.type, reason='asked for')
    chosen, reason = _automatic(device)
    return Precision(name=chosen, device_type=device.type, reason=f'auto: {reason}')


def _automatic(device: torch.device) -> tuple[str, str]:
    if device.type == 'cpu':
        flag = library.bf16_instructions()
        if flag is None:
            return 'fp32', 'this processor has no bf16 instructions'
        return 'bf16', f'this processor has {flag}'
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability(device)
        capability = f'compute capability {major}.{minor}'
        return ('bf16', capability) if major >= 8 else ('fp16', f'{capability} has no bf16')
    return 'fp32', f'nothing is known about {device.type} devices'


def lay_out(network: nn.Module, precision: Precision) -> None:
    """Put the weights in the memory format that convolutions are fastest in: channels-last on CPUs, and for 16-bit
    types anywhere."""
    if precision.device_type == 'cpu' or precision.name != 'fp32':
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
