"""Comparison with the parity fixture's thinned-out tensors (SPEC section 7)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

FLOORS = ('noise_floor_train_mode', 'noise_floor_no_mkldnn', 'noise_floor_repeat')
RELATIVE = 1e-5


def noise_floor(case: dict, name: str) -> float:
    """Largest recorded spread of the release against itself at a stage; 0 where none is recorded."""
    return max(case['stages'][floor].get(name, {}).get('max_abs', 0.0) for floor in FLOORS)


def largest_error(result: Tensor, reference: Any) -> tuple[float, float]:
    """(largest absolute difference, largest magnitude) against a tensor or a thinned-out one with its crop."""
    if isinstance(reference, Tensor):
        assert result.shape == reference.shape
        return (result - reference).abs().max().item(), reference.abs().max().item()
    assert tuple(result.shape) == tuple(reference['shape'])
    (row, column), step = reference['offset'], reference['stride']
    pairs = [(result[..., row::step, column::step], reference['sub'])]
    if 'crop' in reference:
        top, bottom, left, right = reference['crop_box']
        pairs.append((result[..., top:bottom, left:right], reference['crop']))
    error = max((ours - theirs).abs().max().item() for ours, theirs in pairs)
    return error, float(reference['stats']['absmax'])


def assert_parity(name: str, result: Tensor, case: dict, *, reference: Any = None) -> None:
    """`result` equals stage `name` (or `reference`) within four noise floors or 1e-5 of the largest magnitude."""
    reference = case['stages'][name] if reference is None else reference
    error, magnitude = largest_error(result.detach(), reference)
    floor = noise_floor(case, name)
    bound = 4 * floor if floor > 0 else RELATIVE * magnitude
    print(f'{name}: error {error:.3g}, bound {bound:.3g}, magnitude {magnitude:.3g}')
    assert error <= bound, f'{name}: error {error:.3g} above {bound:.3g}'


def assert_gradients(network: nn.Module, recorded: dict, *, rename: Callable[[str], str]) -> None:
    """Every recorded gradient of `network` (norm, first entries), and no gradient besides those.

    Within 1e-5 of the tensor's norm plus that of the whole gradient: the gradients of scalars (noise strengths) are
    sums over all pixels that nearly cancel.
    """
    own = {rename(name): p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert not [name for name in recorded if name not in own]
    whole = math.sqrt(sum(values['norm'] ** 2 for values in recorded.values()))
    for name, values in recorded.items():
        gradient, bound = own[name], RELATIVE * (values['norm'] + whole)
        assert abs(gradient.norm().item() - values['norm']) <= bound, name
        assert (gradient.flatten()[:8] - values['head']).abs().max().item() <= bound, name
    assert not [name for name, gradient in own.items() if name not in recorded and gradient.abs().max() > 0]
