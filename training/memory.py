"""Bytes that one rank of a run needs, computed without needing them: the phases run on tensors that have shapes only.

The formula: parameters and buffers of G and D, the averaged generator, two Adam moments and the gradients of every
trained parameter, the flat buffer of the exchange where there are several ranks, and the largest sum of tensors that
live at one moment of a phase beyond these. The last part is counted while the training losses themselves run, forward
and backward, so it follows every option of the config. What the process needs besides (Python, torch's libraries, a
GPU's context) and what allocators and convolution algorithms add is measured elsewhere: docs/scaling.md.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torch_utils.precision import Precision
from torch_utils.rng import stream
from training.augment import Augment
from training.conditions import Conditions, ConditionSource, HeadImages
from training.config import TrainConfig
from training.discriminator import DualDiscriminator
from training.generator import Generator
from training.loss import GanLoss, Latents, Schedule
from training.networks import build_networks

GIB = 2**30
NOWHERE = torch.device('meta')  # tensors with shapes only


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes of one rank, by what they hold."""

    batch_gpu: int
    parameters: int  # of G and D, with buffers
    average: int  # the averaged generator
    gradients: int
    optimizer: int
    exchange: int  # gradients on their way between ranks
    activations: int  # the most that is alive beyond the others, in the phase that needs most
    phase: str  # that one

    @property
    def total(self) -> int:
        moving = max(self.exchange, self.activations)  # never both
        return self.parameters + self.average + self.gradients + self.optimizer + moving

    def line(self) -> str:
        """For people, in GiB."""
        names = ('parameters', 'average', 'gradients', 'optimizer', 'exchange', 'activations')
        parts = ', '.join(f'{name} {getattr(self, name) / GIB:.3f}' for name in names)
        return (
            f'estimated memory of a rank at batch-gpu {self.batch_gpu}: {self.total / GIB:.2f} GiB '
            f'({parts} in {self.phase}), and the process itself'
        )


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages made while it is active, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0  # a check wants to see a number; there is none, and this one passes
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self._add(value)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()

        def gone(_: Any) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def estimate(
    config: TrainConfig,
    dataset: HeadImages,
    *,
    batch_gpu: int,
    ranks: int,
    precision: Precision,
    checkpoint: frozenset[str] = frozenset(),
) -> Estimate:
    """What one of `ranks` ranks needs at `batch_gpu` images at once; `checkpoint`: stages recomputed."""
    generator, discriminator = build_networks(config, dataset, device=torch.device('cpu'))
    source = ConditionSource(dataset, label_dim=config.discriminator.label_dim, device=torch.device('cpu'))
    generator.checkpoint = checkpoint
    conditions = source.fake(batch_gpu, swap_probability=0.5, rng=stream(config.seed, 'memory'))
    conditions = _on_device(conditions, NOWHERE)
    sizes = {network: _bytes(network.parameters()) for network in (generator, discriminator)}
    buffers = {network: _bytes(network.buffers()) for network in (generator, discriminator)}
    for network in (generator, discriminator):
        network.to(NOWHERE)
    peaks: dict[str, int] = {}
    for phase, loss in _phase_losses(config, generator, discriminator, conditions).items():
        player = generator if phase.startswith('G') else discriminator
        generator.requires_grad_(player is generator)
        discriminator.requires_grad_(player is discriminator)
        with LiveBytes() as live:
            with precision.context():
                value = loss()
            value.backward()
        peaks[phase] = live.peak - _bytes(p.grad for p in player.parameters() if p.grad is not None)
        player.zero_grad(set_to_none=True)
    phase = max(peaks, key=lambda name: peaks[name])
    trained = sum(sizes.values())
    return Estimate(
        batch_gpu=batch_gpu,
        parameters=trained + sum(buffers.values()),
        average=sizes[generator] + buffers[generator],
        gradients=trained,
        optimizer=2 * trained,
        exchange=max(sizes.values()) if ranks > 1 else 0,
        activations=peaks[phase],
        phase=phase,
    )


def _phase_losses(
    config: TrainConfig, generator: Generator, discriminator: DualDiscriminator, conditions: Conditions
) -> dict[str, Callable[[], Tensor]]:
    """The four phases at the start of a run, where the blur is widest."""
    count, size = len(conditions.head), config.generator.image_resolution
    augment = Augment() if config.augment == 'ada' else None
    loss = GanLoss(generator, discriminator, config=config.loss, augment=augment)
    schedule = Schedule.at(config.loss, images_seen=0)
    latents = Latents(z=torch.empty(count, config.generator.z_dim, device=NOWHERE))
    images, rng = torch.empty(count, 3, size, size, device=NOWHERE), stream(config.seed, 'memory')

    def discriminator_main() -> Tensor:
        return loss.discriminator_main(
            images, conditions, latents=latents, conditions=conditions, schedule=schedule, rng=rng
        ).loss

    losses: dict[str, Callable[[], Tensor]] = {
        'Gmain': lambda: loss.generator_main(latents, conditions, schedule=schedule, rng=rng).loss,
        'Dmain': discriminator_main,
    }
    if config.loss.density_weight > 0:
        losses['Gdensity'] = lambda: loss.generator_density(latents, conditions, rng=rng).loss
    if config.loss.r1_gamma > 0:
        losses['Dr1'] = lambda: loss.discriminator_r1(images, conditions, schedule=schedule, rng=rng).loss
    return losses


def _on_device(conditions: Conditions, device: torch.device) -> Conditions:
    assert conditions.mapping_label is not None
    return Conditions(
        label=conditions.label.to(device),
        head=conditions.head.to(device),
        discriminator_label=conditions.discriminator_label.to(device),
        mapping_label=conditions.mapping_label.to(device),
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
