"""The four training phases at batch 2: forward, backward and the optimizer's step; an image's share of them; and
what recomputing costs and saves."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.release import BATCH, PHASE_WEIGHTS
from benchmarks.subjects import Subject, precision_context
from benchmarks.timing import WARM_UP_RUNS, Measurement, now, peak_bytes, start_peak
from torch_utils.rng import stream
from training.generator import STAGES
from training.loss import GanLoss, Latents, Schedule

RECOMPUTED = 'recomputed Gmain'  # with --grad-checkpoint; first, since memory that later rows leave resident counts
ROWS = (RECOMPUTED, *PHASE_WEIGHTS, 'image')


def phase_losses(subject: Subject) -> dict[str, Callable[[], Tensor]]:
    """The loss of each phase, without blur and augmentation (the state of a run after its fades)."""
    loss = GanLoss(subject.generator, subject.discriminator, config=subject.config.loss, augment=None)
    latents, conditions, images = Latents(z=subject.z), subject.conditions, subject.images
    schedule = Schedule(blur_sigma=0.0, swap_probability=0.5)
    rng = stream(0, 'benchmark', 'pixels', device=subject.device)

    def generator_main() -> Tensor:
        return loss.generator_main(latents, conditions, schedule=schedule, rng=rng).loss

    return {
        RECOMPUTED: generator_main,
        'Gmain': generator_main,
        'Greg': lambda: loss.generator_density(latents, conditions, rng=rng).loss,
        'Dmain': lambda: (
            loss.discriminator_main(
                images, conditions, latents=latents, conditions=conditions, schedule=schedule, rng=rng
            ).loss
        ),
        'Dreg': lambda: loss.discriminator_r1(images, conditions, schedule=schedule, rng=rng).loss,
    }


def measure(subject: Subject, *, precision: str, runs: int, names: frozenset[str]) -> Iterator[Measurement]:
    """The phases in `names` (all of them for 'image'), in one process with all states of training."""
    device = subject.device
    networks = {'G': subject.generator.train(), 'D': subject.discriminator.train()}
    optimizers = {key: _optimizer(network) for key, network in networks.items()}
    whole = 'image' in names
    taken: dict[str, tuple[float, ...]] = {}
    peaks: list[int] = []
    for phase, loss in phase_losses(subject).items():
        if phase not in names and not (whole and phase in PHASE_WEIGHTS):
            continue
        player = 'D' if phase.startswith('D') else 'G'
        subject.generator.checkpoint = frozenset(STAGES if phase == RECOMPUTED else ())
        for key, network in networks.items():
            network.requires_grad_(key == player)
        start_peak(device)
        taken[phase] = _run_phase(loss, optimizers[player], precision=precision, runs=runs, device=device)
        peak = peak_bytes(device)
        peaks += [] if peak is None or phase == RECOMPUTED else [peak]
        if phase in names:
            yield Measurement(group='training', name=phase, precision=precision, seconds=taken[phase], peak_bytes=peak)
    if whole:
        # Run by run: the n-th run of each phase makes the n-th training image.
        parts = [[weight / BATCH * value for value in taken[name]] for name, weight in PHASE_WEIGHTS.items()]
        yield Measurement(
            group='training',
            name='image',
            precision=precision,
            seconds=tuple(sum(values) for values in zip(*parts, strict=True)),
            peak_bytes=max(peaks, default=None),
        )


def _optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """Adam as training uses it, with its moments in place."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-6, betas=(0.0, 0.99), eps=1e-8, fused=True)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def _run_phase(
    loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, *, precision: str, runs: int, device: torch.device
) -> tuple[float, ...]:
    times = []
    for _ in range(WARM_UP_RUNS + runs):
        start = now(device)
        optimizer.zero_grad(set_to_none=True)
        with precision_context(precision, device):
            value = loss()
        value.backward()
        optimizer.step()
        times.append(now(device) - start)
    optimizer.zero_grad(set_to_none=True)
    return tuple(times[WARM_UP_RUNS:])
