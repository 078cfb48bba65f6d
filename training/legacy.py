"""State dicts of the public Next3D release, in and out, and the command that converts its files.

The release holds four mapping networks, of which only `backbone.mapping` is used, and blocks below the lowest
encoded resolution of its style-UNets that no image depends on; they are dropped by name. Every other unknown or
missing key is an error. `conv_clamp` guards half precision (R: 256) and does nothing to the values of a sound fp32
network; it is not applied. Fp16 layers of the release run in fp32 here.

python -m training.legacy --help shows the command; whole files are read by training/legacy_files.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import click
from torch import Tensor, nn

from dnnlib.cli import Command
from dnnlib.errors import UserError
from training.config import preset
from training.discriminator import DualDiscriminator
from training.generator import Generator
from training.head.model import HeadTemplate
from training.legacy_config import discriminator_config, generator_config
from training.legacy_topology import check_topology, derived_buffers, template_from_obj

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
# Choices that decide which tensors a generator has.
_STRUCTURE = (
    'superres', 'blending', 'mouth_source', 'mouth_planes', 'mouth_resolution', 'mouth_channels', 'static_planes',
    'template_transform', 'plane_resolution', 'plane_channels', 'decoder_hidden', 'label_dim',
)  # fmt: skip


def load_generator_state(
    state_dict: Mapping[str, Tensor],
    kwargs: Mapping[str, Any],
    *,
    topology: str | os.PathLike[str],
    eye_mask: str | os.PathLike[str],
) -> Generator:
    """The release's generator (eval mode, fp32) from its own names.

    `kwargs`: the release's constructor arguments. `topology`: the OBJ with uv coordinates; `eye_mask`: a PNG over
    uv, white keeps. Resample filters and derived buffers may be absent. UserError names unknown, missing or
    misshapen keys, an argument that has no counterpart, and a topology other than the one the state was made with.
    """
    template = template_from_obj(topology, eye_mask=eye_mask)
    check_topology(state_dict, template, where=topology)
    return build_generator(state_dict, kwargs, template)


def build_generator(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any], template: HeadTemplate) -> Generator:
    """`load_generator_state` for a topology at hand."""
    network = Generator(generator_config(kwargs), template)
    return _load(network, rename_generator_state(state_dict), back=release_generator_name)


def load_discriminator_state(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> DualDiscriminator:
    """The release's discriminator (eval mode, fp32) from its own names and arguments; UserError as above."""
    config = discriminator_config(kwargs)
    back = {ours: release for release, ours in _discriminator_names(config.image_resolution).items()}
    renamed = rename_discriminator_state(state_dict, image_resolution=config.image_resolution)
    return _load(DualDiscriminator(config), renamed, back=lambda name: _replace_prefix(name, back) or name)


def export_generator_state(generator: Generator) -> dict[str, Tensor]:
    """A generator of the release's layout as a state dict with the release's names, its topology buffers included
    (but not what it never uses). UserError names a choice that the release does not have.
    """
    config = generator.config
    release = preset(f'ffhq{config.image_resolution}-release').generator if config.superres == 'hybrid' else None
    for name in _STRUCTURE:
        wanted = None if release is None else getattr(release, name)
        if getattr(config, name) != wanted:
            raise UserError(
                f'generator: only one built like the release has its names, not {name}={getattr(config, name)!r}'
            )
    state = {release_generator_name(name): value.detach().clone() for name, value in generator.state_dict().items()}
    return {**derived_buffers(generator.template), **state}


def export_discriminator_state(discriminator: DualDiscriminator) -> dict[str, Tensor]:
    """A discriminator's state dict with the release's names; UserError if it takes a template rendering."""
    if discriminator.config.template != 'none':
        raise UserError('discriminator: it takes a template rendering, which the release does not have')
    back = {ours: release for release, ours in _discriminator_names(discriminator.config.image_resolution).items()}
    state = discriminator.state_dict()
    return {_replace_prefix(name, back) or name: value.detach().clone() for name, value in state.items()}


def rename_discriminator_state(state_dict: Mapping[str, Tensor], *, image_resolution: int) -> dict[str, Tensor]:
    """The release's (and EG3D's) names -> ours, without resample filters."""
    names = _discriminator_names(image_resolution)
    kept = {name: value for name, value in state_dict.items() if not _DROPPED_DISCRIMINATOR.fullmatch(name)}
    return {_replace_prefix(name, names) or name: value for name, value in kept.items()}


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


def _discriminator_names(image_resolution: int) -> dict[str, str]:
    """Release's prefix -> ours, where they differ."""
    return {f'b{image_resolution}.fromrgb.': 'fromrgb.'}


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


@click.command(cls=Command)
@click.argument('source')
@click.argument('target', required=False)
@click.option('--topology', metavar='OBJ', help='head_template.obj of DECA. Default: beside SOURCE, or inside it.')
@click.option('--eye-mask', metavar='PNG', help='uv_face_eye_mask.png of DECA. Default: inside SOURCE, or beside it.')
@click.option('--dynamic-planes', type=click.Choice(['all', 'front']), help='front: for weights trained so (ADR 11).')
@click.option('--generator-only', is_flag=True, help='Leave the discriminator out.')
@click.option('--cfg', help='Preset to start from a file of EG3D, which has no head networks.')
@click.option('--seed', type=click.IntRange(min=0), help='Of the weights that a file of EG3D does not have.')
@click.option('--export', metavar='PT', help="Write SOURCE with the release's names; TARGET may be left out.")
def main(source: str, target: str | None, **options: Any) -> None:
    """Convert SOURCE, a pickle of Next3D's public release or of EG3D, to the snapshot TARGET.

    No code in SOURCE is run. SOURCE may also be a snapshot, with --export.

    \b
    Examples:
        python -m training.legacy next3d_ffhq_512.pkl release.pkl --topology=head_template.obj
        python -m training.legacy ffhqrebalanced512-64.pkl start.pkl --cfg=ffhq512
        python -m training.legacy network-snapshot-001000.pkl --export=state.pt
    """
    from training.legacy_files import convert

    for line in convert(source, target, **options):
        click.echo(line)


if __name__ == '__main__':
    main()
