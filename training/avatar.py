"""What makes a checkpoint one person's: the latent, the shape of the head, and how both were found (paper 4.3)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Avatar:
    """A person in a network whose weights were tuned around the person's latent."""

    ws: Tensor  # [1, num_ws, w_dim]
    identity: Tensor  # [1, num_identity] coefficients of the head model; [1, 0] where the head was a mesh
    base: str  # sha256 of the network's file before tuning
    protocol: dict[str, Any]  # everything else that decided the result, JSON-able

    def __post_init__(self) -> None:
        if self.ws.ndim != 3 or self.ws.shape[0] != 1:
            raise ValueError(f'ws: expected [1, num_ws, w_dim], got {list(self.ws.shape)}')
        if self.identity.ndim != 2 or self.identity.shape[0] != 1:
            raise ValueError(f'identity: expected [1, num_identity], got {list(self.identity.shape)}')

    def state(self) -> dict[str, Any]:
        """Plain tensors and strings, for a checkpoint."""
        return {
            'ws': self.ws,
            'identity': self.identity,
            'base': self.base,
            'protocol': json.dumps(self.protocol, sort_keys=True),
        }

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Avatar:
        return Avatar(**{**state, 'protocol': json.loads(state['protocol'])})
