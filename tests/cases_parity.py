"""Comparison with the parity fixture's thinned-out tensors (SPEC section 7)."""

from __future__ import annotations

import json
import math
import os
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


def decoded(coded: dict) -> Tensor:
    """An alpha of the fixture: 0, 1, or the next of its fractions."""
    values = coded['code'].float()
    values[coded['code'] == 2] = coded['frac']
    return values


def assert_parity(name: str, result: Tensor, case: dict, *, reference: Any = None, floor: str = '') -> None:
    """`result` equals stage `name` (or `reference`) within four noise floors or 1e-5 of the largest magnitude.

    `floor`: the stage whose recorded noise floor counts, if it is another.
    """
    reference = case['stages'][name] if reference is None else reference
    error, magnitude = largest_error(result.detach(), reference)
    spread = noise_floor(case, floor or name)
    bound = 4 * spread if spread > 0 else RELATIVE * magnitude
    record(name, error=error, floor=spread, bound=bound, magnitude=magnitude)
    assert error <= bound, f'{name}: error {error:.3g} above {bound:.3g}'


def assert_same(name: str, result: Tensor, reference: Tensor, case: dict) -> None:
    """Equal in every element."""
    assert result.shape == reference.shape
    different = int((result != reference).sum())
    record(name, error=float(different), floor=0.0, bound=0.0, magnitude=float('nan'))
    assert different == 0, f'{name}: {different} of {reference.numel()} differ'


def record(name: str, *, error: float, floor: float, bound: float, magnitude: float) -> None:
    """Print the figures of one comparison, and keep them where tools/parity_report.py asks for them."""
    print(f'{name}: error {error:.3g}, bound {bound:.3g}, magnitude {magnitude:.3g}')
    path = os.environ.get('NEXT3D_PARITY_RECORD')
    if path:
        test = os.environ.get('PYTEST_CURRENT_TEST', '').partition(' ')[0]
        line = {'test': test, 'name': name, 'error': error, 'floor': floor, 'bound': bound, 'magnitude': magnitude}
        with open(path, 'a', encoding='utf-8') as handle:
            handle.write(json.dumps(line) + '\n')


def assert_gradients(network: nn.Module, recorded: dict, *, rename: Callable[[str], str]) -> None:
    """Every recorded gradient of `network` (norm, first entries), and no gradient besides those.

    Within 1e-5 of the tensor's norm plus that of the whole gradient: the gradients of scalars (noise strengths) are
    sums over all pixels that nearly cancel.
    """
    own = {rename(name): p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert not [name for name in recorded if name not in own]
    whole = math.sqrt(sum(values['norm'] ** 2 for values in recorded.values()))
    worst = (0.0, '')
    for name, values in recorded.items():
        gradient, scale = own[name], values['norm'] + whole
        error = max(
            abs(gradient.norm().item() - values['norm']),
            (gradient.flatten()[:8] - values['head']).abs().max().item(),
        )
        worst = max(worst, (error / scale, name))
        assert error <= RELATIVE * scale, name
    record(f'gradients of {len(recorded)} tensors', error=worst[0], floor=0.0, bound=RELATIVE, magnitude=1.0)
    assert not [name for name, gradient in own.items() if name not in recorded and gradient.abs().max() > 0]
