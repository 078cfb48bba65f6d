"""The 68 iBUG landmarks: index groups and the left/right exchange.

Order, by the subject's sides: 0-16 jaw from the right ear to the left, 17-21 right brow, 22-26 left brow,
27-30 bridge of the nose, 31-35 nostrils, 36-41 right eye, 42-47 left eye, 48-59 outer lips from the right corner
over the upper lip (54: left corner), 60-67 inner lips likewise.
"""

from __future__ import annotations

import torch
from torch import Tensor

JAW = range(0, 17)
RIGHT_BROW, LEFT_BROW = range(17, 22), range(22, 27)
NOSE = range(27, 36)
RIGHT_EYE, LEFT_EYE = range(36, 42), range(42, 48)
OUTER_LIPS, INNER_LIPS = range(48, 60), range(60, 68)
RIGHT_MOUTH_CORNER, LEFT_MOUTH_CORNER = 48, 54

_PAIRS = {
    **{i: 16 - i for i in range(8)}, **{i: 43 - i for i in RIGHT_BROW}, 31: 35, 32: 34,
    36: 45, 37: 44, 38: 43, 39: 42, 40: 47, 41: 46, 48: 54, 49: 53, 50: 52, 58: 56, 59: 55, 60: 64, 61: 63, 67: 65,
}  # fmt: skip
# The landmark at the mirrored place, for each of the 68.
MIRROR: tuple[int, ...] = tuple({**_PAIRS, **{b: a for a, b in _PAIRS.items()}}.get(i, i) for i in range(68))


def mirror_landmarks(landmarks: Tensor) -> Tensor:
    """Landmarks [..., 68, 3] of the mirrored head (x -> -x)."""
    flip = torch.tensor([-1.0, 1.0, 1.0], dtype=landmarks.dtype, device=landmarks.device)
    return landmarks[..., list(MIRROR), :] * flip
