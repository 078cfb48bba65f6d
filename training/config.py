"""Every choice of the system as frozen dataclasses, and the presets as one table.

The same JSON stands in the run directory and in each checkpoint. Unknown keys raise.
Where the paper (P) and the public release (R) differ, each choice is a field of its own.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from typing import Any, Literal

PlaneLayout = Literal['consistent', 'release']
MouthPlanes = Literal['all', 'front']
MouthSource = Literal['teeth', 'texture', 'static']
DiscTemplate = Literal['none', 'uv', 'normals', 'correspondence']


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Architecture of the generator (paper sections 3.1 to 3.4, supplement B.2)."""

    # Latents and conditioning.
    z_dim: int = 512
    w_dim: int = 512
    label_dim: int = 25
    mapping_layers: int = 2
    label_scale: float = 1.0  # multiplies the conditioning label; 0 = unconditional

    # Backbones: texture, static planes (StyleGAN2 synthesis).
    plane_resolution: int = 256
    plane_channels: int = 32
    channel_base: int = 32768
    channel_max: int = 512

    # Rasterized planes.
    plane_layout: PlaneLayout = 'consistent'  # release: side plane where (x, z) is read, top where (z, y) is
    side_alpha: Literal['union', 'one_sided'] = 'union'  # one_sided (R): the +90 degree view's only
    alpha_fill: Literal['guarded', 'release'] = 'guarded'  # release: floods from pixel (0, 0) even if covered
    template_transform: Literal['learned', 'constant'] = 'learned'  # scale and translation (paper B.1)
    dynamic_planes: Literal['all', 'front'] = 'all'  # front: side and top are static alone (docs/adr/0011)

    # Static planes. eg3d: a fourth, transposed one keeps what EG3D reads at (z, x) (docs/adr/0012).
    # none: no such network, the dynamic planes make the whole image (ablation of Table 2).
    static_planes: Literal['three', 'eg3d', 'none'] = 'three'

    # Mouth: where it comes from (ablation of Table 2) and on which planes.
    mouth_source: MouthSource = 'teeth'
    mouth_planes: MouthPlanes = 'all'
    mouth_resolution: int = 64
    mouth_channels: int = 768  # width of the style-UNet at its input and output (P: 256 x 3)
    mouth_box: Literal['continuous', 'rounded'] = 'continuous'  # rounded (R): whole pixels, so the box jumps
    blending: Literal['shallow', 'release'] = 'shallow'  # release: a style-UNet down to 32^2 on the front plane

    # Volume rendering.
    plane_aggregation: Literal['sum', 'mean'] = 'sum'
    decoder_hidden: int = 64
    render_resolution: int = 64
    depth_samples: int = 48
    importance_samples: int = 48
    ray_near: float = 2.25
    ray_far: float = 3.3
    box_size: float = 1.0

    # Super-resolution.
    image_resolution: int = 512
    superres: Literal['stylegan2', 'hybrid'] = 'stylegan2'  # hybrid (R): EG3D's two blocks
    superres_channels: int = 256  # width of the first block; halves at each doubling
    # R's hybrids have fixed widths (SPEC section 5) and ignore superres_channels.

    def __post_init__(self) -> None:
        if self.static_planes == 'none' and self.mouth_source == 'static':
            raise ValueError("mouth_source: expected teeth or texture with static_planes 'none', got 'static'")
        if self.static_planes == 'none' and self.dynamic_planes == 'front':
            raise ValueError("dynamic_planes: expected all with static_planes 'none', got 'front'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Dual discriminator (paper section 3.5)."""

    image_resolution: int = 512
    label_dim: int = 25  # camera; more: expression coefficients follow (R: 50); -1: all that the head model has
    template: DiscTemplate = 'correspondence'  # three more input channels; none = R
    channel_base: int = 32768
    channel_max: int = 512
    mapping_layers: int = 8
    mbstd_group_size: int = 4
    label_noise: float = 0.0  # standard deviation added to the label (R: 1, the GNARF way)

    def __post_init__(self) -> None:
        if self.label_dim < -1:
            raise ValueError(f'label_dim: expected -1 (camera and all expressions) or more, got {self.label_dim}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Objectives, regularizers and their schedules (paper section 3.6; EG3D)."""

    r1_gamma: float = 4.0
    r1_interval: int = 16
    density_weight: float = 0.25
    density_interval: int = 4
    density_norm: Literal['l2', 'l1'] = 'l2'  # P's equation 2: squared; R: L1
    density_box: float = 0.5  # half-side of the cube sampled; R: 1.0
    density_shift: float = 0.004  # standard deviation of the second point
    density_anchor: float = 0.0  # weight of the squared distance from the density of the network that `resume` names
    style_mixing_prob: float = 0.0
    blur_sigma: float = 10.0  # at the image resolution, fades to 0
    blur_border: Literal['replicate', 'zero'] = 'replicate'  # zero (R): grey creeps in from the image's border
    blur_fade_kimg: float = 200.0
    pose_swap_prob: float = 0.5  # probability of conditioning on another camera, after the fade (from 1)
    pose_swap_fade_kimg: float = 1000.0
    # Side of the volume rendering while training: from this one (None: no change) to G.render_resolution (EG3D).
    render_resolution_initial: int | None = None
    render_fade_start_kimg: float = 0.0
    render_fade_kimg: float = 1000.0

    def __post_init__(self) -> None:
        if self.render_resolution_initial is not None and self.render_resolution_initial < 1:
            raise ValueError(f'render_resolution_initial: expected above 0, got {self.render_resolution_initial}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run: everything that decides its result, and nothing that does not."""

    preset: str = 'ffhq512'
    generator: GeneratorConfig = GeneratorConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    loss: LossConfig = LossConfig()

    # Data.
    data: str = ''  # path of the packed dataset
    head_model: str = 'makehuman'  # name that the dataset states
    mirror: bool = True
    bad_images: Literal['stop', 'skip'] = 'stop'  # skip: the next readable one takes the place of a damaged one
    clip_frames: int = 1  # frames of one clip that D sees together (R: dataset_type=video); 1 = single images

    # Optimization.
    seed: int = 0
    batch: int = 32  # over all ranks
    batch_gpu: int | None = None  # per rank and accumulation round; None = batch / ranks
    gpus: int = 1
    kimg: float = 25000
    g_lr: float = 0.0025
    d_lr: float = 0.002
    adam_beta1: float = 0.0
    adam_beta2: float = 0.99
    ema_kimg: float | None = None  # None = batch * 10 / 32
    ema_rampup: float = 0.05  # not used when the run starts from other weights (resume)
    w_avg_beta: float = 0.998
    augment: Literal['none', 'ada', 'fixed'] = 'none'
    augment_p: float = 0.2  # probability of each augmentation if fixed
    augment_camera: bool = False  # roll, zoom and shift too, with the camera that D is told (docs/adr/0016)
    ada_target: float = 0.6
    ada_kimg: float = 500.0
    freeze_d: int = 0  # convolutions of D that do not learn, counted from the image
    freeze_g: Literal['none', 'stylization'] = 'none'  # what of G stays as it is (training/freezing.py)
    precision: Literal['fp32', 'bf16', 'fp16'] = 'fp32'
    resume: str | None = None  # weights to start from (not the automatic resume of a run)

    # Reporting.
    tick_kimg: float = 4.0
    snapshot_ticks: int = 50
    image_ticks: int = 50
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ('g_lr', 'd_lr', 'kimg'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name}: expected 0 or more, got {getattr(self, name)}')
        if not 0 <= self.augment_p <= 1:
            raise ValueError(f'augment_p: expected a probability from 0 to 1, got {self.augment_p}')


def to_dict(config: Any) -> dict[str, Any]:
    """Config dataclass -> plain JSON-able dict (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type, values: dict[str, Any], *, where: str = '') -> Any:
    """Plain dict -> config dataclass; ValueError names unknown keys and wrong types."""
    hints = typing.get_type_hints(cls)
    names = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - names)
    if unknown:
        raise ValueError(
            f'{where or cls.__name__}: unknown key(s) {", ".join(unknown)}; known: {", ".join(sorted(names))}'
        )
    return cls(**{name: _convert(hints[name], value, f'{where}{name}') for name, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ValueError(f'{where}: expected an object, got {value!r}')
        return from_dict(hint, value, where=f'{where}.')
    origin = typing.get_origin(hint)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ValueError(f'{where}: expected one of {", ".join(map(str, typing.get_args(hint)))}, got {value!r}')
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
        return _convert(hint, value, where)
    if origin is tuple:
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f'{where}: expected {hint.__name__}, got {value!r}')
    if hint is float and not math.isfinite(value):
        raise ValueError(f'{where}: expected a finite number, got {value!r}')
    return value


# Presets. One row a choice, one column a preset; what is not named keeps the default above.
# Prefixes: G. generator, D. discriminator, L. loss, none: TrainConfig.
_RELEASE = {
    'G.plane_layout': 'release', 'G.side_alpha': 'one_sided', 'G.alpha_fill': 'release',
    'G.template_transform': 'constant', 'G.mouth_planes': 'front', 'G.mouth_channels': 0, 'G.mouth_box': 'rounded',
    'G.blending': 'release', 'G.plane_aggregation': 'mean', 'G.superres': 'hybrid',
    'D.template': 'none', 'D.label_dim': 75, 'D.label_noise': 1.0, 'L.density_norm': 'l1', 'L.density_box': 1.0,
    'L.blur_sigma': 10.0, 'L.blur_border': 'zero',
}  # fmt: skip
_SYNTH64 = {
    'G.z_dim': 128, 'G.w_dim': 128, 'G.plane_resolution': 64, 'G.plane_channels': 16, 'G.channel_base': 2048,
    'G.channel_max': 96, 'G.mouth_resolution': 16, 'G.mouth_channels': 96, 'G.decoder_hidden': 32,
    'G.render_resolution': 32, 'G.depth_samples': 12, 'G.importance_samples': 12, 'G.image_resolution': 64,
    'G.superres_channels': 32, 'D.image_resolution': 64, 'D.channel_base': 2048, 'D.channel_max': 128,
    'D.mapping_layers': 2, 'L.r1_gamma': 0.2, 'L.blur_sigma': 1.25, 'L.blur_fade_kimg': 8.0,
    'L.pose_swap_fade_kimg': 20.0, 'batch': 8, 'kimg': 200.0, 'tick_kimg': 1.0, 'snapshot_ticks': 4, 'image_ticks': 4,
}  # fmt: skip
_DEBUG = {
    **_SYNTH64, 'G.z_dim': 16, 'G.w_dim': 16, 'G.plane_resolution': 16, 'G.plane_channels': 8, 'G.channel_base': 128,
    'G.channel_max': 8, 'G.mouth_resolution': 16, 'G.mouth_channels': 24, 'G.decoder_hidden': 8,
    'G.render_resolution': 8, 'G.depth_samples': 4, 'G.importance_samples': 4, 'G.image_resolution': 16,
    'G.superres_channels': 8, 'D.image_resolution': 16, 'D.channel_base': 128, 'D.channel_max': 8, 'batch': 4,
    'kimg': 1, 'tick_kimg': 0.016, 'snapshot_ticks': 1, 'image_ticks': 1,
}  # fmt: skip


def _size(resolution: int, render: int) -> dict[str, Any]:
    return {
        'G.image_resolution': resolution, 'D.image_resolution': resolution, 'G.render_resolution': render,
        'L.blur_sigma': 10.0 * resolution / 512,
    }  # fmt: skip


PRESETS: dict[str, dict[str, Any]] = {
    'ffhq512': _size(512, 64),
    'ffhq256': {**_size(256, 64), 'L.r1_gamma': 1.0},
    'ffhq128': {**_size(128, 64), 'L.r1_gamma': 1.0},
    'ffhq512-release': {**_size(512, 64), **_RELEASE},
    'ffhq256-release': {**_size(256, 64), **_RELEASE},
    'ffhq128-release': {**_size(128, 64), **_RELEASE},
    'synth64': _SYNTH64,
    'debug': _DEBUG,
}


def preset(name: str, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """The TrainConfig of a preset; `overrides` uses the same dotted names and skips None values."""
    if name not in PRESETS:
        raise ValueError(f'preset: expected one of {", ".join(PRESETS)}, got {name!r}')
    flat = {**PRESETS[name], **{key: value for key, value in (overrides or {}).items() if value is not None}}
    nested: dict[str, Any] = {'preset': name}
    groups = {'G': 'generator', 'D': 'discriminator', 'L': 'loss'}
    for key, value in flat.items():
        prefix, _, rest = key.rpartition('.')
        target = nested.setdefault(groups[prefix], {}) if prefix else nested
        target[rest] = value
    return from_dict(TrainConfig, nested)
