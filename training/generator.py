"""The generator, cut where its inputs enter: map, identity, deform, render, density.

Each cut is a cache: an Identity serves every expression of a person, Planes serve every camera.
No call writes state; w_avg is tracked by `generator.mapping.update_w_avg` in the training loop.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from torch_utils.ops.planes import channels_last_planes
from torch_utils.precision import Precision
from training.blending import BlendingNet, blend
from training.cameras import LABEL_DIM, rays
from training.config import GeneratorConfig
from training.head.model import HeadInput, HeadTemplate
from training.layers import MappingNetwork, full_precision
from training.rasterized_planes import TextureRasterizer
from training.recompute import recomputed
from training.static_planes import StaticPlanes
from training.stylegan2 import num_synthesis_ws
from training.superres import SuperResolution
from training.teeth import MouthCompletion
from training.texture import TextureGenerator
from training.volume import Decoder, VolumeRenderer


@dataclasses.dataclass(frozen=True)
class Identity:
    """Who the person is: everything that depends on the latent alone."""

    texture: Tensor  # [N, C, T, T]
    static_planes: Tensor | None  # [N, 3, C, R, R]; None with static_planes = 'none'
    ws: Tensor  # [N, num_ws, w_dim]

    def __getitem__(self, index: slice | Tensor | list[int]) -> Identity:
        static = None if self.static_planes is None else self.static_planes[index]
        return Identity(self.texture[index], static, self.ws[index])


@dataclasses.dataclass(frozen=True)
class Planes:
    """What the face does: blended tri-planes, ready for any camera."""

    features: Tensor  # [N, 3, C, R, R]
    alpha: Tensor  # [N, 3, 1, R, R]: share of the dynamic planes
    ws: Tensor  # [N, num_ws, w_dim]

    def __getitem__(self, index: slice | Tensor | list[int]) -> Planes:
        return Planes(self.features[index], self.alpha[index], self.ws[index])


@dataclasses.dataclass(frozen=True)
class Rendering:
    """One view. Images lie in [-1, 1] (not clamped); depth is the distance from the camera in world units."""

    image: Tensor  # [N, 3, R, R]
    image_raw: Tensor  # [N, 3, r, r]
    depth: Tensor  # [N, 1, r, r]
    weights: Tensor  # [N, 1, r, r]: total opacity
    features: Tensor  # [N, C, r, r]


# Stages that can be recomputed in the backward pass (training/recompute.py).
STAGES = ('texture', 'static', 'teeth', 'blending', 'volume', 'superres')

Method = TypeVar('Method', bound=Callable[..., Any])


def _in_precision(method: Method) -> Method:
    """Runs a method in the generator's own precision, if it has one; else in the caller's."""

    @functools.wraps(method)
    def run(self: Generator, *args: Any, **kwargs: Any) -> Any:
        if self.precision is None:
            return method(self, *args, **kwargs)
        with self.precision.context():
            return method(self, *args, **kwargs)

    return run  # type: ignore[return-value]


class Generator(nn.Module):
    """Next3D's generator (paper section 3). `template` fixes topology, uv and eye mask."""

    def __init__(self, config: GeneratorConfig, template: HeadTemplate) -> None:
        super().__init__()
        self.config = config
        self.template = template
        self.precision: Precision | None = None  # None: as the caller's autocast says
        self.render_resolution = config.render_resolution  # what render() takes for None; smaller early in a fade
        self.checkpoint: frozenset[str] = frozenset()  # of STAGES: recomputed in the backward pass, not kept
        self.num_half = num_synthesis_ws(config.plane_resolution)
        self.num_ws = 2 * self.num_half  # the first half: static, teeth, blending, super-resolution; the last: texture
        self.mapping = MappingNetwork(
            config.z_dim, config.label_dim, config.w_dim, self.num_ws, num_layers=config.mapping_layers
        )
        self.texture = TextureGenerator(config)
        self.rasterizer = TextureRasterizer(config, template)
        self.static = None if config.static_planes == 'none' else StaticPlanes(config)
        uses_teeth = config.mouth_source == 'teeth'
        self.teeth = MouthCompletion(config) if uses_teeth else None
        self.blending = BlendingNet(config) if uses_teeth else None
        self.renderer = VolumeRenderer(config)
        self.decoder = Decoder(config.plane_channels, config.decoder_hidden)
        self.superres = SuperResolution(config)

    @property
    def precision_name(self) -> str:
        """fp32 unless `precision` says otherwise."""
        return 'fp32' if self.precision is None else self.precision.name

    def map(
        self, z: Tensor, label: Tensor | None, *, truncation_psi: float = 1.0, truncation_cutoff: int | None = None
    ) -> Tensor:
        """z [N, z_dim] and the conditioning camera [N, 25] -> ws [N, num_ws, w_dim]; pure.

        `label` None conditions on zeros. `truncation_cutoff` None truncates both halves; the release's
        scripts use 14, which leaves the texture half as it is.
        """
        if z.ndim != 2 or z.shape[1] != self.config.z_dim:
            raise ValueError(f'z: expected [N, {self.config.z_dim}], got {list(z.shape)}')
        label = z.new_zeros(z.shape[0], LABEL_DIM) if label is None else label[:, :LABEL_DIM]
        ws = self.mapping(z, label[:, : self.config.label_dim] * self.config.label_scale)
        return self.mapping.truncate(ws, truncation_psi, cutoff=truncation_cutoff)

    @_in_precision
    def identity(self, ws: Tensor, *, rng: torch.Generator | None = None) -> Identity:
        """Neural texture and static planes; rng None uses the constant noise buffers."""
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.config.w_dim):
            raise ValueError(f'ws: expected [N, {self.num_ws}, {self.config.w_dim}], got {list(ws.shape)}')
        texture = self._stage('texture', self.texture, ws[:, self.num_half :], rng=rng)
        static = None if self.static is None else self._stage('static', self.static, ws[:, : self.num_half], rng=rng)
        return Identity(texture, static, ws)

    @_in_precision
    def deform(self, identity: Identity, head: HeadInput, *, rng: torch.Generator | None = None) -> Planes:
        """Rasterize the texture on the posed head, complete the mouth, blend with the static planes."""
        if len(head) != identity.texture.shape[0]:
            raise ValueError(f'head: expected {identity.texture.shape[0]} samples, got {len(head)}')
        with full_precision(identity.texture):
            rasterized = self.rasterizer(identity.texture, head)
        features, ws = rasterized.features, identity.ws[:, : self.num_half]
        if self.teeth is not None and self.blending is not None:
            completed = self._stage('teeth', self.teeth, features, rasterized.landmarks, ws, rng=rng)
            finished = self._stage('blending', self.blending, completed.planes, completed.mouth, ws, rng=rng)
            features = torch.cat([finished, features[:, finished.shape[1] :]], dim=1)
        if identity.static_planes is not None:
            features = blend(features, identity.static_planes, rasterized.alpha)
        return Planes(channels_last_planes(features), rasterized.alpha, identity.ws)  # laid out once for all cameras

    @_in_precision
    def render(
        self, planes: Planes, label: Tensor, *, resolution: int | None = None, rng: torch.Generator | None = None
    ) -> Rendering:
        """Planes seen by cameras `label` [N, 25]; `resolution`: side of the volume rendering (None: as trained)."""
        size = resolution or self.render_resolution
        with full_precision(planes.features):
            origins, directions = rays(label, size)
            march = functools.partial(self.renderer, decoder=self.decoder)
            traced = self._stage('volume', march, planes.features, origins, directions, rng=rng)
        features, depth, weights = (
            t.transpose(1, 2).reshape(t.shape[0], -1, size, size)
            for t in (traced.features, traced.depth, traced.weights)
        )
        image_raw = features[:, :3]
        image = self._stage('superres', self.superres, features, image_raw, planes.ws[:, : self.num_half])
        return Rendering(image, image_raw, depth, weights, features)

    def _stage(self, name: str, stage: Callable[..., Any], *inputs: Any, rng: torch.Generator | None = None) -> Any:
        options = {} if name == 'superres' else {'rng': rng}  # it alone draws nothing
        if name in self.checkpoint and torch.is_grad_enabled():
            return recomputed(stage, *inputs, **options)
        return stage(*inputs, **options)

    def density(self, planes: Planes, points: Tensor) -> Tensor:
        """sigma (before softplus) [N, M, 1] at world points [N, M, 3]."""
        return self.renderer.density(planes.features, points, self.decoder)

    def forward(
        self,
        z: Tensor,
        label: Tensor,
        head: HeadInput,
        *,
        camera: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        rng: torch.Generator | None = None,
    ) -> Rendering:
        """The five calls composed; `camera` None renders from the conditioning camera."""
        ws = self.map(z, label, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)
        planes = self.deform(self.identity(ws, rng=rng), head, rng=rng)
        return self.render(planes, label if camera is None else camera, rng=rng)
