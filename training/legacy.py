"""State dicts of the public Next3D release (and back): key map, configs from its constructor arguments.

The release holds four mapping networks, of which only `backbone.mapping` is used, and blocks below the lowest
encoded resolution of its style-UNets that no image depends on; they are dropped by name. Every other unknown or
missing key is an error. `conv_clamp` guards half precision (R: 256) and does nothing to the values of a sound fp32
network; it is not applied. Fp16 layers of the release run in fp32 here.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from dnnlib.errors import UserError
from dnnlib.files import explain_os_error
from training.cameras import LABEL_DIM
from training.config import DiscriminatorConfig, GeneratorConfig, preset
from training.discriminator import DualDiscriminator
from training.generator import Generator
from training.head.model import NUM_LANDMARKS, HeadTemplate
from training.head.obj import read_obj
from training.legacy_pickle import read_legacy_pickle

# Release's prefix -> ours. A name outside these prefixes (and outside the lists below) is unknown.
GENERATOR_PREFIXES = {
    'backbone.mapping.': 'mapping.',
    'texture_backbone.synthesis.': 'texture.synthesis.',
    'backbone.synthesis.': 'static.synthesis.',
    'mouth_backbone.synthesis.': 'teeth.unet.',
    'neural_blending.synthesis.': 'blending.unet.',
    'superresolution.': 'superres.',
    'decoder.net.0.': 'decoder.hidden.',
    'decoder.net.2.': 'decoder.out.',
}
# Networks that the release builds and never uses (R's gmain.no_grad_params), and what it derives from its inputs.
_UNUSED = (
    r'(texture_backbone|mouth_backbone|neural_blending)\.mapping\..*',
    r'mouth_backbone\.synthesis\.(b4|fusion\.4)\..*',
    r'neural_blending\.synthesis\.(b4|b8|b16|b32|fusion\.3)\..*',
    r'superresolution\..*\.(noise_strength|noise_const)',
    r'(.*\.)?resample_filter',
)
_DERIVED = (
    r'(dense_faces|faces|uvfaces|uvcoords|raw_uvcoords|face_uvcoords|uv_face_mask|uv_face_eye_mask|orth_scale|orth_shift'
    r'|dataset_label_std)'
)
_DROPPED = re.compile('|'.join(f'(?:{pattern})' for pattern in (*_UNUSED, _DERIVED)))
_DROPPED_DISCRIMINATOR = re.compile(r'(.*\.)?resample_filter|dataset_label_std')

_HYBRID_RESOLUTIONS = {'SuperresolutionHybrid8XDC': 512, 'SuperresolutionHybrid4X': 256, 'SuperresolutionHybrid2X': 128}
# Arguments that change the arithmetic and that only these values are known for.
_FIXED_RENDERING = {
    'disparity_space_sampling': False,
    'clamp_mode': 'softplus',
    'superresolution_noise_mode': 'none',
    'sr_antialias': True,
    'white_back': False,
}


def load_generator_state(
    state_dict: Mapping[str, Tensor],
    kwargs: Mapping[str, Any],
    *,
    topology: str | os.PathLike[str],
    eye_mask: str | os.PathLike[str],
) -> Generator:
    """The release's generator (eval mode, fp32, no gradients recorded for its buffers) from its own names.

    `kwargs`: the release's constructor arguments. `topology`: the OBJ with uv coordinates; `eye_mask`: a PNG over
    uv, white keeps. Resample filters and derived buffers may be absent. UserError names unknown, missing or
    misshapen keys, an argument that has no counterpart, and a topology other than the one the state was made with.
    """
    config = generator_config(kwargs)
    template = template_from_obj(topology, eye_mask=eye_mask)
    _check_topology(state_dict, template.faces, name='faces', path=topology)
    _check_topology(state_dict, template.uv_faces, name='uvfaces', path=topology)
    return _load(Generator(config, template), rename_generator_state(state_dict), back=release_generator_name)


def load_generator_file(
    path: str | os.PathLike[str],
    *,
    topology: str | os.PathLike[str],
    eye_mask: str | os.PathLike[str],
    name: str = 'G_ema',
) -> Generator:
    """The generator `name` of one of the release's network pickles, read without running any of it; UserError."""
    networks = read_legacy_pickle(path).networks
    if name not in networks:
        raise UserError(f'{path}: holds {", ".join(networks)}, but not {name}')
    network = networks[name]
    if not any(key.startswith('texture_backbone.') for key in network.state_dict):
        raise UserError(f'{path}: {name} has no texture_backbone; expected a generator of Next3D (is it one of EG3D?)')
    return load_generator_state(network.state_dict, network.kwargs, topology=topology, eye_mask=eye_mask)


def load_discriminator_state(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> DualDiscriminator:
    """The release's discriminator (eval mode, fp32) from its own names and arguments; UserError as above."""
    config = discriminator_config(kwargs)
    network = DualDiscriminator(config)
    names = _discriminator_names(config)
    renamed = {}
    for name, value in state_dict.items():
        if not _DROPPED_DISCRIMINATOR.fullmatch(name):
            prefix = next((prefix for prefix in names if name.startswith(prefix)), '')
            renamed[names.get(prefix, '') + name.removeprefix(prefix)] = value
    back = {ours: release for release, ours in names.items()}
    return _load(network, renamed, back=lambda name: _replace_prefix(name, back) or name)


def template_from_obj(topology: str | os.PathLike[str], *, eye_mask: str | os.PathLike[str]) -> HeadTemplate:
    """HeadTemplate of an OBJ with uv and a PNG mask over uv. An OBJ says nothing of landmarks: pass them yourself
    (the template's own are all on its first vertex). UserError if either file is missing or unusable.
    """
    mesh = read_obj(Path(topology))
    if mesh.uv is None or mesh.uv_faces is None:
        raise UserError(f'{topology}: has no texture coordinates (vt); pass the OBJ that the network was trained with')
    try:
        with Image.open(eye_mask) as image:
            mask = np.array(image.convert('RGB'))[:, :, 0]
    except UnidentifiedImageError as error:
        raise UserError(f'{eye_mask}: not an image; expected the eye mask over uv as a PNG') from error
    except OSError as error:
        raise explain_os_error(error, eye_mask) from error
    return HeadTemplate(
        vertices=mesh.vertices.float(),
        faces=mesh.faces.long(),
        uv=mesh.uv.float(),
        uv_faces=mesh.uv_faces.long(),
        eye_mask=torch.from_numpy(mask).float() / 255,
        landmark_faces=torch.zeros(NUM_LANDMARKS, dtype=torch.long),
        landmark_barycentrics=torch.tensor([1.0, 0.0, 0.0]).repeat(NUM_LANDMARKS, 1),
    )


def export_generator_state(generator: Generator) -> dict[str, Tensor]:
    """A generator of the release's layout as a state dict with the release's names (without what it never uses)."""
    if generator.config.superres != 'hybrid' or generator.config.blending != 'release':
        raise UserError(
            "generator: only one built like the release (superres 'hybrid', blending 'release') has its names"
        )
    return {release_generator_name(name): value.detach().clone() for name, value in generator.state_dict().items()}


def export_discriminator_state(discriminator: DualDiscriminator) -> dict[str, Tensor]:
    """A discriminator's state dict with the release's names."""
    back = {ours: release for release, ours in _discriminator_names(discriminator.config).items()}
    state = discriminator.state_dict()
    return {_replace_prefix(name, back) or name: value.detach().clone() for name, value in state.items()}


def rename_generator_state(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The release's names -> ours; unused networks and derived buffers are left out, unknown names are a UserError."""
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, value in state_dict.items():
        if _DROPPED.fullmatch(name):
            continue
        ours = _replace_prefix(name, GENERATOR_PREFIXES)
        if ours is None:
            unknown.append(name)
            continue
        renamed[re.sub(r'^((?:teeth|blending)\.unet\.encoder\.\d+)\.fromrgb\.', r'\1.from_planes.', ours)] = value
    _refuse('unknown', unknown)
    return renamed


def generator_config(kwargs: Mapping[str, Any]) -> GeneratorConfig:
    """GeneratorConfig of the release's constructor arguments; UserError names what has no counterpart."""
    rendering = _required(kwargs, 'rendering_kwargs', 'generator')
    for name, value in _FIXED_RENDERING.items():
        if rendering.get(name, value) != value:
            raise UserError(f'rendering_kwargs.{name}: only {value!r} can be imported, got {rendering[name]!r}')
    if rendering.get('decoder_lr_mul', 1) != 1:
        raise UserError(f'rendering_kwargs.decoder_lr_mul: only 1 can be imported, got {rendering["decoder_lr_mul"]!r}')
    resolution = _required(kwargs, 'img_resolution', 'generator')
    module = str(rendering.get('superresolution_module', '')).rpartition('.')[2]
    if _HYBRID_RESOLUTIONS.get(module) != resolution:
        known = ', '.join(f'{name} for {size}' for name, size in _HYBRID_RESOLUTIONS.items())
        raise UserError(f'superresolution_module: expected {known}; got {module or "none"} for {resolution}')
    if _required(kwargs, 'c_dim', 'generator') != LABEL_DIM:
        raise UserError(f'c_dim: expected {LABEL_DIM} (a camera), got {kwargs["c_dim"]}')
    return dataclasses.replace(
        preset(f'ffhq{resolution}-release').generator,
        z_dim=_required(kwargs, 'z_dim', 'generator'),
        w_dim=_required(kwargs, 'w_dim', 'generator'),
        label_dim=LABEL_DIM,
        mapping_layers=dict(kwargs.get('mapping_kwargs') or {}).get('num_layers', 8),
        label_scale=0.0 if rendering.get('c_gen_conditioning_zero') else float(rendering.get('c_scale', 1)),
        channel_base=kwargs.get('channel_base', 32768),
        channel_max=kwargs.get('channel_max', 512),
        depth_samples=rendering.get('depth_resolution', 48),
        importance_samples=rendering.get('depth_resolution_importance', 48),
        ray_near=float(_required(rendering, 'ray_start', 'rendering_kwargs')),
        ray_far=float(_required(rendering, 'ray_end', 'rendering_kwargs')),
        box_size=float(rendering.get('box_warp', 1)),
    )


def discriminator_config(kwargs: Mapping[str, Any]) -> DiscriminatorConfig:
    """DiscriminatorConfig of the release's constructor arguments."""
    channels = kwargs.get('img_channels', 3)
    if channels != 3:
        raise UserError(f'img_channels: expected 3, got {channels}')
    if kwargs.get('architecture', 'resnet') != 'resnet':
        raise UserError(f"architecture: only 'resnet' can be imported, got {kwargs['architecture']!r}")
    epilogue = dict(kwargs.get('epilogue_kwargs') or {})
    if epilogue.get('mbstd_num_channels', 1) != 1:
        raise UserError(f'epilogue_kwargs.mbstd_num_channels: expected 1, got {epilogue["mbstd_num_channels"]}')
    return DiscriminatorConfig(
        image_resolution=_required(kwargs, 'img_resolution', 'discriminator'),
        label_dim=_required(kwargs, 'c_dim', 'discriminator'),
        template='none',
        channel_base=kwargs.get('channel_base', 32768),
        channel_max=kwargs.get('channel_max', 512),
        mapping_layers=dict(kwargs.get('mapping_kwargs') or {}).get('num_layers', 8),
        mbstd_group_size=epilogue.get('mbstd_group_size', 4),
        label_noise=float(kwargs.get('disc_c_noise', 0)),
    )


def _discriminator_names(config: DiscriminatorConfig) -> dict[str, str]:
    """Release's prefix -> ours, where they differ."""
    return {f'b{config.image_resolution}.fromrgb.': 'fromrgb.'}


def _replace_prefix(name: str, prefixes: Mapping[str, str]) -> str | None:
    """`name` with the first matching prefix replaced, or None."""
    for prefix, replacement in prefixes.items():
        if name.startswith(prefix):
            return replacement + name[len(prefix) :]
    return None


def release_generator_name(name: str) -> str:
    """Our name -> the release's."""
    back = {ours: release for release, ours in GENERATOR_PREFIXES.items()}
    release = _replace_prefix(re.sub(r'(\.encoder\.\d+)\.from_planes\.', r'\1.fromrgb.', name), back)
    assert release is not None, name
    return release


def _load(network: Any, state: Mapping[str, Tensor], *, back: Callable[[str], str]) -> Any:
    """Fill `network` exactly; errors speak in the release's names."""
    assert isinstance(network, nn.Module)
    own = network.state_dict()
    _refuse('unknown', [back(name) for name in state if name not in own])
    _refuse('missing', [back(name) for name in own if name not in state])
    shapes = [name for name in own if own[name].shape != state[name].shape]
    if shapes:
        name = shapes[0]
        raise UserError(
            f'state_dict: {back(name)} has shape {list(state[name].shape)}, but the arguments give '
            f'{list(own[name].shape)} ({len(shapes)} key(s) differ); are the kwargs those of this state?'
        )
    network.load_state_dict({name: value.detach().float() for name, value in state.items()})
    return network.float().eval()


def _refuse(problem: str, names: list[str]) -> None:
    if names:
        more = f' and {len(names) - 3} more' if len(names) > 3 else ''
        raise UserError(f'state_dict: {problem} key(s) {", ".join(sorted(names)[:3])}{more}')


def _required(kwargs: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in kwargs:
        raise UserError(f"kwargs: {where} argument {name!r} is missing; pass the release's constructor arguments")
    return kwargs[name]


def _check_topology(
    state_dict: Mapping[str, Tensor], faces: Tensor, *, name: str, path: str | os.PathLike[str]
) -> None:
    stored = state_dict.get(name)
    if stored is not None and not torch.equal(stored.reshape(-1, 3).long().cpu(), faces.cpu()):
        raise UserError(
            f'{path}: its faces are not those of the state ({name}); pass the OBJ the network was trained with'
        )
