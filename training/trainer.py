"""One training step: networks, optimizers, phases (StyleGAN2-ADA's order, lazily regularized).

A step is a function of (state, images seen): every draw comes from a stream named by seed, images
seen, phase and micro-batch, so a state saved between steps continues bit by bit.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dnnlib.errors import UserError
from torch_utils.distributed import Communicator
from torch_utils.precision import choose_precision
from torch_utils.rng import stream
from torch_utils.stats import Stats
from training.augment import Augment, adapted_probability
from training.checkpoint import load_state, plain_state
from training.conditions import Conditions, ConditionSource, HeadImages
from training.config import TrainConfig
from training.ema import ema_beta, update_ema
from training.freezing import frozen_generator_parameters
from training.loss import GanLoss, Latents, Schedule
from training.monitors import report_gradients
from training.networks import anchor_network, build_networks
from training.player import Player
from training.sampler import BatchPlan, MicroBatchIndices, load_micro_batches

ADA_INTERVAL = 4  # steps between changes of the augmentation probability
MAX_SKIPPED_STEPS = 10  # in a row, before the run is given up, unless told otherwise


class DivergedError(UserError):
    """Gradients stayed non-finite for too long."""


@dataclasses.dataclass(frozen=True)
class RealBatch:
    """One micro-batch of the dataset."""

    images: Tensor  # [N, 3, R, R] in [-1, 1]
    conditions: Conditions


class Trainer:
    """The state of a run and the step that advances it; the same on every rank but for the data it sees."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        dataset: HeadImages,
        communicator: Communicator,
        stats: Stats,
        max_skipped: int = MAX_SKIPPED_STEPS,
    ) -> None:
        assert config.batch_gpu is not None
        self.config, self.dataset, self.communicator, self.stats = config, dataset, communicator, stats
        self.max_skipped, self.device = max_skipped, communicator.device
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
        loss, density = config.loss, max(config.loss.density_weight, config.loss.density_anchor) > 0
        self.density_interval = loss.density_interval if density else 0
        self.r1_interval = loss.r1_interval if loss.r1_gamma > 0 else 0
        play = functools.partial(Player, config=config, scaled=self.precision.needs_scaling)
        frozen = frozen_generator_parameters(self.generator, config.freeze_g)
        self.g = play(self.generator, lr=config.g_lr, interval=self.density_interval, frozen=frozen)
        frozen = self.discriminator.first_layers(config.freeze_d)
        self.d = play(self.discriminator, lr=config.d_lr, interval=self.r1_interval, frozen=frozen)
        self.discriminator.requires_grad_(False)
        augment = Augment(camera=config.augment_camera) if config.augment != 'none' else None
        anchor = anchor_network(config, device=self.device)
        self.loss = GanLoss(self.generator, self.discriminator, config=loss, augment=augment, anchor=anchor)
        self.images_seen = self.skipped_in_row = self.skipped = 0  # skipped: steps of the whole run
        self.notices: list[str] = []  # what happened, for the log; emptied by its reader
        self.augment_probability = config.augment_p if config.augment == 'fixed' else 0.0
        self.replaced_rows: list[int] = []  # of the dataset, on this rank: images that were not readable
        self.signs = torch.zeros(2, device=self.device)  # sum and number of signs of real logits
        self._follow_schedule()

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
            self.communicator.progress.enter('data')
            step = []
            for indices, images, replaced in itertools.islice(batches, self.plan.rounds):
                self.replaced_rows += replaced
                images = images.to(self.device, non_blocking=True).float() / 127.5 - 1
                step.append(RealBatch(images, self.source.real(indices)))
            yield step

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

    def schedule(self) -> Schedule:
        """Of the next step."""
        return Schedule.at(
            self.config.loss,
            images_seen=self.images_seen,
            augment_probability=self.augment_probability,
            render_resolution=self.config.generator.render_resolution,
        )

    def _follow_schedule(self) -> None:
        """Both generators render by themselves, for pictures and measurements, at the size that is trained."""
        for generator in (self.generator, self.average):
            generator.render_resolution = self.schedule().render_resolution or generator.render_resolution

    def step(self, real: list[RealBatch]) -> None:
        """All phases that are due, then the averages; raises DivergedError after too many skipped steps."""
        schedule = self.schedule()
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
        self._follow_schedule()
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
        self.communicator.progress.enter(phase)
        player.optimizer.zero_grad(set_to_none=True)
        for turn, micro in enumerate(self.plan.micro_batches(self.communicator.rank)):
            with self.precision.context():
                value = loss(turn, micro)
            (value * player.scale.value / self.plan.rounds).backward()
            self.communicator.progress.beat()
        gradients = [parameter.grad for parameter in player.parameters if parameter.grad is not None]
        self.communicator.mean_(gradients)
        player.scale.undo_(gradients)
        norm = float(nn.utils.get_total_norm(gradients))
        finite = math.isfinite(norm)
        self.stats.report(f'Gradient/{phase}/skipped', 0.0 if finite else 1.0)
        if player.scale.active:
            self.stats.report(f'Gradient/{phase}/scale', player.scale.value)
        if not finite:
            self._skip(phase, player)
            return False
        self.stats.report(f'Gradient/{phase}/norm', norm)
        report_gradients(self.stats, phase, player.network)
        self.skipped_in_row = 0
        player.scale.grow()
        player.optimizer.step()
        return True

    def _skip(self, phase: str, player: Player) -> None:
        """Report what is not finite, by sub-network; DivergedError after too many in a row."""
        bad = player.non_finite()
        for part, share in bad.items():
            self.stats.report(f'Gradient/{phase}/nonfinite/{part}', share)
        first, *others = bad
        then = f', then {", ".join(others)}' if others else ''
        where = f'first in {first} ({bad[first]:.2%} of its numbers){then}'
        kimg = f'kimg {self.images_seen / 1000:.3f}'
        self.skipped += 1
        if player.scale.shrink():
            self.notices.append(f'{phase}: overflow at {kimg}, {where}; skipped, loss scale now {player.scale.value:g}')
            return
        self.skipped_in_row += 1
        self.notices.append(f'{phase}: non-finite gradients at {kimg}, {where}; step skipped')
        if self.skipped_in_row >= self.max_skipped:
            raise DivergedError(
                f'{phase}: {self.skipped_in_row} steps in a row had non-finite gradients at {kimg}, {where}; '
                'lower the learning rate, raise --gamma, or use --precision=fp32'
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
                'skipped': self.skipped,
                'loss_scale_G': self.g.scale.state(),
                'loss_scale_D': self.d.scale.state(),
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
            self.g.load_state(state['optimizer_G'], where=f'{where}: optimizer_G')
            self.d.load_state(state['optimizer_D'], where=f'{where}: optimizer_D')
            counters = state['counters']
            self.images_seen = int(counters['images_seen'])
            self.skipped_in_row = int(counters['skipped_in_row'])
            self.skipped = int(counters.get('skipped', 0))
            self.g.scale.load_state(counters.get('loss_scale_G'))
            self.d.scale.load_state(counters.get('loss_scale_D'))
            if self.config.augment == 'ada':
                self.augment_probability = float(counters['augment_probability'])
            self._follow_schedule()
            # The signs are summed over ranks whenever they are used: one rank carries the sum.
            self.signs.copy_(state['signs'] * (1.0 if self.communicator.is_main else 0.0))
        except UserError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            reason = f'{type(error).__name__}: {error}'.splitlines()[0]
            raise UserError(f'{where}: not a complete training state ({reason}); remove it to start over') from error
