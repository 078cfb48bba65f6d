"""The objective (paper section 3.6; SPEC section 6): four terms, returned and never reported from here.

Non-saturating logistic GAN loss on image pairs (image, raw image) with the template rendering
beside them, R1 on real pairs, and smoothness of the density. Shapes: N samples, R image and
r render resolution; images in [-1, 1].
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from training.augment import Augment, Draw
from training.augment_camera import draw_move
from training.cameras import LABEL_DIM
from training.conditions import Conditions
from training.config import LossConfig
from training.discriminator import DualDiscriminator
from training.generator import Generator
from training.layers import at_least_float32, full_precision
from training.template_rendering import render_template

DENSITY_POINTS = 1000  # a sample; as many again shifted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """What depends on the images seen so far."""

    blur_sigma: float  # pixels of the image it is applied to
    swap_probability: float
    augment_probability: float = 0.0
    render_resolution: int | None = None  # side of raw images, fake and real; None: the generator's own

    @staticmethod
    def at(
        config: LossConfig, *, images_seen: int, augment_probability: float = 0.0, render_resolution: int | None = None
    ) -> Schedule:
        """The schedule after `images_seen` images: blur fades to 0, pose swapping from 1 to its final value, the side
        of the volume rendering from its initial to its final value `render_resolution`."""
        kimg = images_seen / 1000
        swap = fade(kimg, length=config.pose_swap_fade_kimg)
        if render_resolution is not None and config.render_resolution_initial is not None:
            left = fade(max(kimg - config.render_fade_start_kimg, 0.0), length=config.render_fade_kimg)
            render_resolution += round((config.render_resolution_initial - render_resolution) * left)
        return Schedule(
            blur_sigma=config.blur_sigma * fade(kimg, length=config.blur_fade_kimg),
            swap_probability=config.pose_swap_prob + (1 - config.pose_swap_prob) * swap,
            augment_probability=augment_probability,
            render_resolution=render_resolution,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latents:
    """Latent codes [N, z_dim]; `mixed` replaces the later ws from `cutoff` [N] on (style mixing)."""

    z: Tensor
    mixed: Tensor | None = None
    cutoff: Tensor | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """What the discriminator sees."""

    image: Tensor  # [N, 3, R, R]
    image_raw: Tensor  # [N, 3, r, r]
    template: Tensor | None  # [N, 3, R, R]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorTerms:
    loss: Tensor  # []
    logits: Tensor  # [N, 1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorTerms:
    loss: Tensor  # []
    logits_real: Tensor  # [N, 1]
    logits_fake: Tensor  # [N, 1]
    ws: Tensor  # [N, num_ws, w_dim] of the fakes, no gradient; feeds w_avg


@dataclasses.dataclass(frozen=True, kw_only=True)
class PenaltyTerms:
    loss: Tensor  # [] weighted, before the lazy interval's factor
    penalty: Tensor  # [N] or [] unweighted


def fade(position: float, *, length: float) -> float:
    """1 at position 0, falling linearly to 0 at `length` (0 at once when length is 0)."""
    return max(1 - position / length, 0.0) if length > 0 else 0.0


def blur_kernel(sigma: float) -> Tensor:
    """exp2(-(x / sigma)^2) for |x| <= floor(3 sigma), normalized to sum 1. [2 floor(3 sigma) + 1]"""
    size = math.floor(sigma * 3)
    offsets = torch.arange(-size, size + 1, dtype=torch.float64)
    kernel = (offsets / sigma).square().neg().exp2()
    return (kernel / kernel.sum()).float()


def blur(images: Tensor, *, sigma: float, border: str = 'replicate') -> Tensor:
    """Separable `blur_kernel` over images [N, C, H, W] with replicated (or zero) borders; sigma in pixels.

    Unchanged when floor(3 sigma) is 0. Differentiable to any order.
    """
    size = math.floor(sigma * 3)
    if size < 1:
        return images
    count, channels, height, width = images.shape
    kernel = blur_kernel(sigma).to(images)
    mode = 'constant' if border == 'zero' else 'replicate'
    flat = images.reshape(count * channels, 1, height, width)
    with full_precision(images):
        flat = F.conv2d(F.pad(flat, (size, size, 0, 0), mode=mode), kernel[None, None, None, :])
        flat = F.conv2d(F.pad(flat, (0, 0, size, size), mode=mode), kernel[None, None, :, None])
    return flat.reshape(images.shape)


def raw_from_image(images: Tensor, resolution: int) -> Tensor:
    """Real images [N, 3, R, R] as the volume renderer would see them: antialiased resize to [N, 3, r, r]."""
    return F.interpolate(images, size=(resolution, resolution), mode='bilinear', align_corners=False, antialias=True)


def mix_ws(ws: Tensor, mixed: Tensor, cutoff: Tensor) -> Tensor:
    """ws [N, num_ws, w_dim] with layers >= cutoff [N] taken from `mixed`, in both halves alike.

    The halves feed the static-side and the texture networks (SPEC section 1); mixing them at the
    same layer keeps texture and static planes of one make.
    """
    layer = torch.arange(ws.shape[1], device=ws.device) % (ws.shape[1] // 2)
    return torch.where((layer[None, :] >= cutoff[:, None])[..., None], mixed, ws)


class GanLoss:
    """The four terms for one generator and one discriminator; holds no state of its own."""

    def __init__(
        self,
        generator: Generator,
        discriminator: DualDiscriminator,
        *,
        config: LossConfig,
        augment: Augment | None,
        anchor: Generator | None = None,  # whose density is held on to; shares the mapping network's weights
    ) -> None:
        self.generator = generator
        self.discriminator = discriminator
        self.config = config
        self.augment = augment
        self.anchor = anchor

    def generator_main(
        self, latents: Latents, conditions: Conditions, *, schedule: Schedule, rng: torch.Generator
    ) -> GeneratorTerms:
        """softplus(-D(fake)), mean over samples."""
        pair, _ = self._fake(latents, conditions, schedule, rng)
        logits = self._judge(pair, conditions, schedule, rng)
        return GeneratorTerms(loss=F.softplus(-logits).mean(), logits=logits.detach())

    def generator_density(self, latents: Latents, conditions: Conditions, *, rng: torch.Generator) -> PenaltyTerms:
        """The density at uniform points of the cube against the density at slightly shifted ones (equation 2).

        With an anchor its mean squared distance from the anchor's density is added, with a weight of its own.
        """
        ws, _ = self._ws(latents, conditions)
        planes = self.generator.deform(self.generator.identity(ws, rng=rng), conditions.head, rng=rng)
        shape = [latents.z.shape[0], DENSITY_POINTS, 3]
        device = latents.z.device
        points = (torch.rand(shape, generator=rng, device=device) * 2 - 1) * self.config.density_box
        shifted = points + torch.randn(shape, generator=rng, device=device) * self.config.density_shift
        sigma = self.generator.density(planes, torch.cat([points, shifted], dim=1))
        first, second = at_least_float32(sigma).chunk(2, dim=1)
        difference = (first - second).abs() if self.config.density_norm == 'l1' else (first - second).square()
        penalty = difference.mean()
        loss = penalty * self.config.density_weight
        if self.anchor is not None:
            with torch.no_grad():
                held = self.anchor.deform(self.anchor.identity(ws, rng=None), conditions.head, rng=None)
                wanted = self.anchor.density(held, torch.cat([points, shifted], dim=1))
            distance = (at_least_float32(sigma) - at_least_float32(wanted)).square().mean()
            loss = loss + distance * self.config.density_anchor
        return PenaltyTerms(loss=loss, penalty=penalty.detach())

    def discriminator_main(
        self,
        images: Tensor,  # [N, 3, R, R] real
        real: Conditions,
        *,
        latents: Latents,
        conditions: Conditions,
        schedule: Schedule,
        rng: torch.Generator,
    ) -> DiscriminatorTerms:
        """softplus(D(fake)) + softplus(-D(real)), mean over samples; the generator runs without gradient."""
        with torch.no_grad():
            pair, ws = self._fake(latents, conditions, schedule, rng)
            real_pair = self._real(images, real, schedule)
        logits_fake = self._judge(pair, conditions, schedule, rng)
        logits_real = self._judge(real_pair, real, schedule, rng)
        return DiscriminatorTerms(
            loss=F.softplus(logits_fake).mean() + F.softplus(-logits_real).mean(),
            logits_real=logits_real.detach(),
            logits_fake=logits_fake.detach(),
            ws=ws,
        )

    def discriminator_r1(
        self, images: Tensor, real: Conditions, *, schedule: Schedule, rng: torch.Generator
    ) -> PenaltyTerms:
        """gamma / 2 (|dD/d image|^2 + |dD/d raw|^2) on real pairs before augmentation; the template is left out."""
        with torch.no_grad():
            pair = self._real(images, real, schedule)
        pair.image.requires_grad_(True)
        pair.image_raw.requires_grad_(True)
        logits = self._judge(pair, real, schedule, rng)
        gradients = torch.autograd.grad(logits.sum(), [pair.image, pair.image_raw], create_graph=True)
        of_image, of_raw = (at_least_float32(gradient).square().sum(dim=[1, 2, 3]) for gradient in gradients)
        penalty = of_image + of_raw
        return PenaltyTerms(loss=(penalty * (self.config.r1_gamma / 2)).mean(), penalty=penalty.detach())

    def _ws(self, latents: Latents, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """The ws to generate from, and the unmixed ones that w_avg follows."""
        assert conditions.mapping_label is not None
        ws = self.generator.map(latents.z, conditions.mapping_label)
        if latents.mixed is None or latents.cutoff is None:
            return ws, ws
        return mix_ws(ws, self.generator.map(latents.mixed, conditions.mapping_label), latents.cutoff), ws

    def _fake(
        self, latents: Latents, conditions: Conditions, schedule: Schedule, rng: torch.Generator
    ) -> tuple[Pair, Tensor]:
        ws, unmixed = self._ws(latents, conditions)
        planes = self.generator.deform(self.generator.identity(ws, rng=rng), conditions.head, rng=rng)
        out = self.generator.render(planes, conditions.label, resolution=schedule.render_resolution, rng=rng)
        pair = Pair(image=out.image, image_raw=out.image_raw, template=self._template(conditions))
        return pair, unmixed.detach()

    def _real(self, images: Tensor, conditions: Conditions, schedule: Schedule) -> Pair:
        """The real pair; its raw image is blurred here, its image in `_judge` as the fakes' are."""
        raw = raw_from_image(images, schedule.render_resolution or self.generator.render_resolution)
        raw = blur(raw, sigma=schedule.blur_sigma, border=self.config.blur_border)
        return Pair(image=images.clone(), image_raw=raw, template=self._template(conditions))

    def _template(self, conditions: Conditions) -> Tensor | None:
        mode = self.discriminator.config.template
        if mode == 'none':
            return None
        resolution = self.generator.config.image_resolution
        with full_precision(conditions.label):
            return render_template(
                self.generator.template, conditions.head, conditions.label, resolution=resolution, mode=mode
            )

    def _judge(self, pair: Pair, conditions: Conditions, schedule: Schedule, rng: torch.Generator) -> Tensor:
        image = blur(pair.image, sigma=schedule.blur_sigma, border=self.config.blur_border)
        raw, template, label = pair.image_raw, pair.template, conditions.discriminator_label
        probability = schedule.augment_probability
        if self.augment is not None and probability > 0:
            if self.augment.camera:
                move = draw_move(Draw(image.shape[0], probability, rng, image.device))
                image, raw = move.images(image), move.images(raw)
                template = None if template is None else move.images(template)
                label = move.label(label) if label.shape[1] >= LABEL_DIM else label
            image, raw = self.augment(image, raw, probability=probability, rng=rng)
        return self.discriminator(image=image, image_raw=raw, label=label, template=template, rng=rng)
