"""One training step: networks, optimizers, phases (StyleGAN2-ADA's order, lazily regularized).

A step is a function of (state, images seen): every draw comes from a stream named by seed, images
seen, phase and micro-batch, so a state saved between steps continues bit by bit.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dnnlib.errors import UserError
from torch_utils.distributed import Communicator
from torch_utils.precision import choose_precision, lay_out
from torch_utils.rng import derive_seed, stream
from torch_utils.stats import Stats
from training.augment import Augment, adapted_probability
from training.checkpoint import load_state, plain_state
from training.conditions import Conditions, ConditionSource, HeadImages
from training.config import TrainConfig
from training.discriminator import DualDiscriminator
from training.ema import ema_beta, update_ema
from training.freezing import frozen_generator_parameters
from training.generator import Generator
from training.layers import Conv2d
from training.loss import GanLoss, Latents, Schedule
from training.sampler import BatchPlan, MicroBatchIndices, load_micro_batches

ADA_INTERVAL = 4  # steps between changes of the augmentation probability
MAX_SKIPPED_STEPS = 10  # in a row, before the run is given up


class DivergedError(UserError):
    """Gradients stayed non-finite for too long."""


@dataclasses.dataclass(frozen=True)
class RealBatch:
    """One micro-batch of the dataset."""

    images: Tensor  # [N, 3, R, R] in [-1, 1]
    conditions: Conditions


def _laid_out_like(value: Tensor, parameter: Tensor) -> Tensor:
    """`value` in the memory format of its parameter, which the fused optimizer takes for granted."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


class Player:
    """One network with its optimizer; `interval` is its lazy regularizer's (0: none)."""

    def __init__(self, network: nn.Module, config: TrainConfig, *, lr: float, interval: int, frozen: set[str]) -> None:
        self.network = network
        self.parameters = [value for name, value in network.named_parameters() if name not in frozen]
        for name in frozen:
            network.get_parameter(name).requires_grad_(False)
        # The regularizer's steps come on top, so learning rate and momenta shrink to match (StyleGAN2).
        ratio = interval / (interval + 1) if interval else 1.0
        betas = (config.adam_beta1**ratio, config.adam_beta2**ratio)
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr * ratio, betas=betas, eps=1e-8, fused=True)

    def requires_grad(self, wanted: bool) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(wanted)

    def state(self) -> dict[int, Any]:
        """The optimizer's tensors on the CPU, by parameter number."""
        return {
            index: {name: value.detach().to('cpu', copy=True) for name, value in entry.items()}
            for index, entry in self.optimizer.state_dict()['state'].items()
        }

    def load_state(self, state: Mapping[int, Any]) -> None:
        groups = self.optimizer.state_dict()['param_groups']
        shaped = {
            index: {name: _laid_out_like(value, self.parameters[index]) for name, value in entry.items()}
            for index, entry in state.items()
        }
        self.optimizer.load_state_dict({'state': shaped, 'param_groups': groups})


class Trainer:
    """The state of a run and the step that advances it; the same on every rank but for the data it sees."""

    def __init__(self, config: TrainConfig, *, dataset: HeadImages, communicator: Communicator, stats: Stats) -> None:
        assert config.batch_gpu is not None
        self.config, self.dataset, self.communicator, self.stats = config, dataset, communicator, stats
        self.device = communicator.device
        self.precision = choose_precision(config.precision, self.device)
        self.plan = BatchPlan(batch=config.batch, batch_gpu=config.batch_gpu, ranks=communicator.size)
        self.source = ConditionSource(
            dataset,
            label_dim=config.discriminator.label_dim,
            device=self.device,
            clip_frames=config.clip_frames,
        )
        self.generator, self.discriminator = build_networks(config, dataset, device=self.device)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        loss, density = config.loss, config.loss.density_weight > 0
        self.density_interval = loss.density_interval if density else 0
        self.r1_interval = loss.r1_interval if loss.r1_gamma > 0 else 0
        frozen = frozen_parameters(self.discriminator, config.freeze_d)
        fixed = frozen_generator_parameters(self.generator, config.freeze_g)
        self.g = Player(self.generator, config, lr=config.g_lr, interval=self.density_interval, frozen=fixed)
        self.d = Player(self.discriminator, config, lr=config.d_lr, interval=self.r1_interval, frozen=frozen)
        self.discriminator.requires_grad_(False)
        self.loss = GanLoss(
            self.generator, self.discriminator, config=loss, augment=Augment() if config.augment == 'ada' else None
        )
        self.images_seen = 0
        self.skipped_in_row = 0
        self.augment_probability = 0.0
        self.signs = torch.zeros(2, device=self.device)  # sum and number of signs of real logits

    # Data.

    def loader(self, *, workers: int = 0) -> Iterator[list[RealBatch]]:
        """Endless batches of this rank from the current position on, one list of micro-batches a step."""
        order = MicroBatchIndices(
            len(self.dataset),
            seed=self.config.seed,
            plan=self.plan,
            rank=self.communicator.rank,
            start=self.images_seen,
            clips=self.source.clips,
            clip_frames=self.config.clip_frames,
        )
        batches = load_micro_batches(self.dataset, order, workers=workers, pin_memory=self.device.type != 'cpu')
        while True:
            yield [
                RealBatch(images.to(self.device, non_blocking=True).float() / 127.5 - 1, self.source.real(indices))
                for indices, images in itertools.islice(batches, self.plan.rounds)
            ]

    def fake_inputs(self, phase: str, micro: int, schedule: Schedule) -> tuple[Latents, Conditions, torch.Generator]:
        """Latents and conditions of one micro-batch of fakes, and the stream for everything on the device."""
        count, config = self.plan.batch_gpu, self.config
        rng = stream(config.seed, self.images_seen, phase, micro, 'conditions')
        groups = count // config.clip_frames  # one person each

        def frames(values: Tensor) -> Tensor:
            """[groups, ...] -> [count, ...] on the device, laid out as the frames of a real micro-batch."""
            return values.repeat(config.clip_frames, *[1] * (values.ndim - 1)).to(self.device)

        z = torch.randn(groups, config.generator.z_dim, generator=rng)
        conditions = self.source.fake(count, swap_probability=schedule.swap_probability, rng=rng)
        latents = Latents(z=frames(z))
        if config.loss.style_mixing_prob > 0:
            layers = self.generator.num_ws // 2
            mixed = torch.randn(groups, config.generator.z_dim, generator=rng)
            cutoff = torch.randint(1, layers, [groups], generator=rng)
            chosen = torch.rand(groups, generator=rng) < config.loss.style_mixing_prob
            cutoff = torch.where(chosen, cutoff, layers)
            latents = Latents(z=frames(z), mixed=frames(mixed), cutoff=frames(cutoff))
        return latents, conditions, self._pixels(phase, micro)

    def _pixels(self, phase: str, micro: int) -> torch.Generator:
        return stream(self.config.seed, self.images_seen, phase, micro, 'pixels', device=self.device)

    # Steps.

    def step(self, real: list[RealBatch]) -> None:
        """All phases that are due, then the averages; raises DivergedError after too many skipped steps."""
        schedule = Schedule.at(
            self.config.loss, images_seen=self.images_seen, augment_probability=self.augment_probability
        )
        number = self.images_seen // self.config.batch
        self.g.requires_grad(True)
        self._generator_main(schedule)
        if self.density_interval and number % self.density_interval == 0:
            self._generator_density(schedule)
        self.g.requires_grad(False)
        self.d.requires_grad(True)
        self._discriminator_main(real, schedule)
        if self.r1_interval and number % self.r1_interval == 0:
            self._discriminator_r1(real, schedule)
        self.d.requires_grad(False)

        half_life = self.config.batch * 10 / 32 if self.config.ema_kimg is None else self.config.ema_kimg
        beta = ema_beta(
            images_seen=self.images_seen,
            batch=self.config.batch,
            half_life_kimg=half_life,
            rampup=None if self.config.resume else self.config.ema_rampup,
        )
        update_ema(self.average, self.generator, beta=beta)
        self.images_seen += self.config.batch
        if self.config.augment == 'ada' and (number + 1) % ADA_INTERVAL == 0:
            self._adapt()

    def _generator_main(self, schedule: Schedule) -> None:
        def loss(_: int, micro: int) -> Tensor:
            latents, conditions, rng = self.fake_inputs('Gmain', micro, schedule)
            terms = self.loss.generator_main(latents, conditions, schedule=schedule, rng=rng)
            self.stats.report('Loss/G/loss', terms.loss)
            return terms.loss

        self.optimize('Gmain', self.g, loss)

    def _generator_density(self, schedule: Schedule) -> None:
        def loss(_: int, micro: int) -> Tensor:
            latents, conditions, rng = self.fake_inputs('Gdensity', micro, schedule)
            terms = self.loss.generator_density(latents, conditions, rng=rng)
            self.stats.report('Loss/G/density', terms.penalty)
            return terms.loss * self.density_interval

        self.optimize('Gdensity', self.g, loss)

    def _discriminator_main(self, real: list[RealBatch], schedule: Schedule) -> None:
        mean_w = torch.zeros(self.config.generator.w_dim, device=self.device)

        def loss(turn: int, micro: int) -> Tensor:
            latents, conditions, rng = self.fake_inputs('Dmain', micro, schedule)
            batch = real[turn]
            terms = self.loss.discriminator_main(
                batch.images, batch.conditions, latents=latents, conditions=conditions, schedule=schedule, rng=rng
            )
            self.stats.report('Loss/D/loss', terms.loss)
            for name, logits in (('fake', terms.logits_fake), ('real', terms.logits_real)):
                self.stats.report(f'Loss/scores/{name}', logits)
                self.stats.report(f'Loss/signs/{name}', logits.sign())
            signs = terms.logits_real.sign()
            self.signs += torch.stack([signs.sum(), torch.full_like(signs.sum(), signs.numel())])
            mean_w.add_(terms.ws[:, 0].mean(dim=0) / self.plan.rounds)
            return terms.loss

        if self.optimize('Dmain', self.d, loss):
            self.communicator.mean_([mean_w])
            self.generator.mapping.update_w_avg(mean_w[None, None], beta=self.config.w_avg_beta)

    def _discriminator_r1(self, real: list[RealBatch], schedule: Schedule) -> None:
        def loss(turn: int, micro: int) -> Tensor:
            batch = real[turn]
            terms = self.loss.discriminator_r1(
                batch.images, batch.conditions, schedule=schedule, rng=self._pixels('Dr1', micro)
            )
            self.stats.report('Loss/D/r1', terms.penalty)
            return terms.loss * self.r1_interval

        self.optimize('Dr1', self.d, loss)

    def optimize(self, phase: str, player: Player, loss: Callable[[int, int], Tensor]) -> bool:
        """Accumulate `loss(round, micro-batch)` over this rank's rounds, average over ranks, step.

        A step with non-finite gradients is skipped, counted and reported. True if the step was made.
        """
        player.optimizer.zero_grad(set_to_none=True)
        for turn, micro in enumerate(self.plan.micro_batches(self.communicator.rank)):
            with self.precision.context():
                value = loss(turn, micro)
            (value / self.plan.rounds).backward()
        gradients = [parameter.grad for parameter in player.parameters if parameter.grad is not None]
        self.communicator.mean_(gradients)
        norm = float(nn.utils.get_total_norm(gradients))
        finite = math.isfinite(norm)
        self.stats.report(f'Gradient/{phase}/skipped', 0.0 if finite else 1.0)
        if not finite:
            self._skip(phase)
            return False
        self.stats.report(f'Gradient/{phase}/norm', norm)
        self.skipped_in_row = 0
        player.optimizer.step()
        return True

    def _skip(self, phase: str) -> None:
        self.skipped_in_row += 1
        if self.skipped_in_row >= MAX_SKIPPED_STEPS:
            raise DivergedError(
                f'{phase}: {self.skipped_in_row} steps in a row had non-finite gradients at kimg '
                f'{self.images_seen / 1000:.1f}; lower the learning rate, raise --gamma, or use --precision=fp32'
            )

    def _adapt(self) -> None:
        """One step of the augmentation probability, from the signs of real logits since the last one."""
        total, count = self.communicator.sum_(self.signs.clone()).tolist()
        self.signs.zero_()
        self.augment_probability = adapted_probability(
            self.augment_probability,
            sign=total / max(count, 1),
            target=self.config.ada_target,
            images=self.config.batch * ADA_INTERVAL,
            ramp_kimg=self.config.ada_kimg,
        )

    # State.

    def networks(self) -> dict[str, dict[str, Tensor]]:
        """State dicts on the CPU, as snapshots name them."""
        modules = {'G_ema': self.average, 'G': self.generator, 'D': self.discriminator}
        return {name: plain_state(module) for name, module in modules.items()}

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, besides the config. Collective: all ranks call it and agree."""
        return {
            **self.networks(),
            'optimizer_G': self.g.state(),
            'optimizer_D': self.d.state(),
            'counters': {
                'images_seen': self.images_seen,
                'skipped_in_row': self.skipped_in_row,
                'augment_probability': self.augment_probability,
            },
            'signs': self.communicator.sum_(self.signs.clone()).cpu(),
        }

    def load_state(self, state: Mapping[str, Any], *, where: str) -> None:
        """Continue from `state()`; UserError if it does not fit."""
        try:
            load_state(self.average, state['G_ema'], where=f'{where}: G_ema')
            load_state(self.generator, state['G'], where=f'{where}: G')
            load_state(self.discriminator, state['D'], where=f'{where}: D')
            self.g.load_state(state['optimizer_G'])
            self.d.load_state(state['optimizer_D'])
            counters = state['counters']
            self.images_seen = int(counters['images_seen'])
            self.skipped_in_row = int(counters['skipped_in_row'])
            self.augment_probability = float(counters['augment_probability'])
            # The signs are summed over ranks whenever they are used: one rank carries the sum.
            self.signs.copy_(state['signs'] * (1.0 if self.communicator.is_main else 0.0))
        except (KeyError, TypeError) as error:
            raise UserError(f'{where}: not a complete training state ({error}); remove it to start over') from error


def build_networks(
    config: TrainConfig, dataset: HeadImages, *, device: torch.device
) -> tuple[Generator, DualDiscriminator]:
    """G and D with initial weights that depend on config.seed alone; the global generators are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, 'weights'))
        generator = Generator(config.generator, dataset.head_model.template)
        discriminator = DualDiscriminator(config.discriminator)
    for network in (generator, discriminator):
        lay_out(network.to(device).train(), choose_precision(config.precision, device))
    return generator, discriminator


def frozen_parameters(discriminator: DualDiscriminator, layers: int) -> set[str]:
    """Names of the parameters of the first `layers` convolutions, from the image down (Freeze-D)."""
    names = [name for name, module in discriminator.named_modules() if isinstance(module, Conv2d)]
    return {f'{name}.{kind}' for name in names[:layers] for kind in ('weight', 'bias')}
