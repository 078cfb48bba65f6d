"""Constructor arguments of the public release <-> our configs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dnnlib.errors import UserError
from training.cameras import LABEL_DIM
from training.config import DiscriminatorConfig, GeneratorConfig, preset

HYBRID_RESOLUTIONS = {'SuperresolutionHybrid8XDC': 512, 'SuperresolutionHybrid4X': 256, 'SuperresolutionHybrid2X': 128}
WHOLE_BATCH = 2**30  # a minibatch-std group of at least any batch

# Arguments that change the arithmetic and that only these values are known for.
_FIXED_RENDERING = {
    'disparity_space_sampling': False,
    'clamp_mode': 'softplus',
    'superresolution_noise_mode': 'none',
    'sr_antialias': True,
    'white_back': False,
    'decoder_lr_mul': 1,
}
_FIXED_MAPPING = {'embed_features': None, 'layer_features': None, 'activation': 'lrelu', 'lr_multiplier': 0.01}
_FIXED_SYNTHESIS = {'architecture': 'skip', 'use_noise': True, 'activation': 'lrelu', 'resample_filter': [1, 3, 3, 1]}
_FIXED_DISCRIMINATOR = {'img_channels': 3, 'architecture': 'resnet'}
_FIXED_EPILOGUE = {'mbstd_num_channels': 1, 'activation': 'lrelu'}


def generator_config(kwargs: Mapping[str, Any]) -> GeneratorConfig:
    """GeneratorConfig of the release's constructor arguments; UserError names what has no counterpart."""
    rendering = _required(kwargs, 'rendering_kwargs', 'generator')
    mapping = dict(kwargs.get('mapping_kwargs') or {})
    _check_fixed(rendering, _FIXED_RENDERING, 'rendering_kwargs.')
    _check_fixed(mapping, _FIXED_MAPPING, 'mapping_kwargs.')
    _check_fixed(kwargs, _FIXED_SYNTHESIS, '')
    resolution = _required(kwargs, 'img_resolution', 'generator')
    module = str(rendering.get('superresolution_module', '')).rpartition('.')[2]
    if HYBRID_RESOLUTIONS.get(module) != resolution:
        known = ', '.join(f'{name} for {size}' for name, size in HYBRID_RESOLUTIONS.items())
        raise UserError(f'superresolution_module: expected {known}; got {module or "none"} for {resolution}')
    if _required(kwargs, 'c_dim', 'generator') != LABEL_DIM:
        raise UserError(f'c_dim: expected {LABEL_DIM} (a camera), got {kwargs["c_dim"]}')
    return dataclasses.replace(
        preset(f'ffhq{resolution}-release').generator,
        z_dim=_required(kwargs, 'z_dim', 'generator'),
        w_dim=_required(kwargs, 'w_dim', 'generator'),
        label_dim=LABEL_DIM,
        mapping_layers=mapping.get('num_layers', 8),
        label_scale=label_scale(rendering),
        channel_base=kwargs.get('channel_base', 32768),
        channel_max=kwargs.get('channel_max', 512),
        depth_samples=rendering.get('depth_resolution', 48),
        importance_samples=rendering.get('depth_resolution_importance', 48),
        ray_near=_number(_required(rendering, 'ray_start', 'rendering_kwargs'), 'ray_start'),
        ray_far=_number(_required(rendering, 'ray_end', 'rendering_kwargs'), 'ray_end'),
        box_size=_number(rendering.get('box_warp', 1), 'box_warp'),
    )


def label_scale(rendering: Mapping[str, Any]) -> float:
    """What EG3D and the release multiply the generator's label by; 0 where they do not say."""
    return 0.0 if rendering.get('c_gen_conditioning_zero') else float(rendering.get('c_scale', 0))


def discriminator_config(kwargs: Mapping[str, Any]) -> DiscriminatorConfig:
    """DiscriminatorConfig of the release's constructor arguments (EG3D's have the same names)."""
    mapping, epilogue = dict(kwargs.get('mapping_kwargs') or {}), dict(kwargs.get('epilogue_kwargs') or {})
    _check_fixed(kwargs, _FIXED_DISCRIMINATOR, '')
    _check_fixed(mapping, _FIXED_MAPPING, 'mapping_kwargs.')
    _check_fixed(epilogue, _FIXED_EPILOGUE, 'epilogue_kwargs.')
    base, most = kwargs.get('channel_base', 32768), kwargs.get('channel_max', 512)
    if kwargs.get('cmap_dim') not in (None, min(base // 4, most)):
        raise UserError(f'cmap_dim: only its default can be imported, got {kwargs["cmap_dim"]}')
    group = epilogue.get('mbstd_group_size', 4)
    return DiscriminatorConfig(
        image_resolution=_required(kwargs, 'img_resolution', 'discriminator'),
        label_dim=_required(kwargs, 'c_dim', 'discriminator'),
        template='none',
        channel_base=base,
        channel_max=most,
        mapping_layers=mapping.get('num_layers', 8),
        mbstd_group_size=WHOLE_BATCH if group is None else group,
        label_noise=float(kwargs.get('disc_c_noise', 0)),
    )


def generator_kwargs(config: GeneratorConfig) -> dict[str, Any]:
    """The release's constructor arguments of a generator of its layout; `generator_config` reads them back."""
    module = next(name for name, size in HYBRID_RESOLUTIONS.items() if size == config.image_resolution)
    return {
        'z_dim': config.z_dim,
        'c_dim': config.label_dim,
        'w_dim': config.w_dim,
        'img_resolution': config.image_resolution,
        'img_channels': 3,
        'mapping_kwargs': {'num_layers': config.mapping_layers},
        'channel_base': config.channel_base,
        'channel_max': config.channel_max,
        'num_fp16_res': 0,
        'sr_num_fp16_res': 0,
        'rendering_kwargs': {
            **{name: value for name, value in _FIXED_RENDERING.items() if name != 'white_back'},
            'image_resolution': config.image_resolution,
            'superresolution_module': f'training_avatar_texture.superresolution.{module}',
            'c_gen_conditioning_zero': config.label_scale == 0,
            'c_scale': config.label_scale,
            'depth_resolution': config.depth_samples,
            'depth_resolution_importance': config.importance_samples,
            'ray_start': config.ray_near,
            'ray_end': config.ray_far,
            'box_warp': config.box_size,
            'avg_camera_radius': 2.7,
            'avg_camera_pivot': [0, 0, 0.2],
        },
    }


def discriminator_kwargs(config: DiscriminatorConfig) -> dict[str, Any]:
    """The release's constructor arguments of a discriminator without template rendering."""
    group = config.mbstd_group_size
    return {
        'c_dim': config.label_dim,
        'img_resolution': config.image_resolution,
        'img_channels': 3,
        'channel_base': config.channel_base,
        'channel_max': config.channel_max,
        'num_fp16_res': 0,
        'disc_c_noise': config.label_noise,
        'mapping_kwargs': {'num_layers': config.mapping_layers},
        'epilogue_kwargs': {'mbstd_group_size': None if group == WHOLE_BATCH else group},
    }


def _check_fixed(values: Mapping[str, Any], fixed: Mapping[str, Any], where: str) -> None:
    for name, value in fixed.items():
        given = values.get(name, value)
        if (list(given) if isinstance(given, tuple) else given) != value:
            raise UserError(f'{where}{name}: only {value!r} can be imported, got {given!r}')


def _required(kwargs: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in kwargs:
        raise UserError(f"kwargs: {where} argument {name!r} is missing; pass the release's constructor arguments")
    return kwargs[name]


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f'rendering_kwargs.{name}: expected a number, got {value!r}') from None
