"""Whole network pickles of the public release as our snapshots, and our snapshots as files with its names."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnnlib.errors import UserError
from dnnlib.files import atomic_write
from training.checkpoint import (
    NETWORKS,
    Info,
    ReleaseAssets,
    Snapshot,
    is_pickle,
    load_snapshot,
    plain_state,
    save_snapshot,
)
from training.config import preset
from training.discriminator import DualDiscriminator
from training.generator import Generator
from training.head.model import HeadTemplate
from training.legacy import (
    build_generator,
    export_discriminator_state,
    export_generator_state,
    load_discriminator_state,
)
from training.legacy_config import discriminator_kwargs, generator_kwargs
from training.legacy_pickle import LegacyFile, LegacyNetwork, read_legacy_pickle
from training.legacy_topology import check_topology, read_eye_mask, template_from_obj, template_from_state

TOPOLOGY_NAMES = ('head_template.obj', 'head_template_mesh.obj')
EYE_MASK_NAMES = ('uv_face_eye_mask.png', 'eye_mask.png')
# The release's topology is FLAME's; which version drives it is the user's to say (--head-model), so no hash.
HEAD_MODEL = 'flame'


def family(network: LegacyNetwork) -> str:
    """'next3d', 'eg3d', or '' for a generator of neither."""
    if any(name.startswith('texture_backbone.') for name in network.state_dict):
        return 'next3d'
    return 'eg3d' if any(name.startswith('backbone.synthesis.') for name in network.state_dict) else ''


def any_generator(file: LegacyFile, *, where: str | os.PathLike[str]) -> LegacyNetwork:
    """Its averaged generator, or the other one; UserError if it has none of EG3D or Next3D."""
    network = file.networks.get('G_ema') or file.networks.get('G')
    if network is None or not family(network):
        held = ', '.join(f'{name} ({network.class_name})' for name, network in file.networks.items())
        raise UserError(f'{where}: holds {held}; expected a generator of Next3D or EG3D')
    return network


def read_release(path: str | os.PathLike[str], *, assets: ReleaseAssets, only: tuple[str, ...] = NETWORKS) -> Snapshot:
    """A pickle of the public release as one of our snapshots; networks that it lacks, or not in `only`, are empty.

    Nothing in the file is run. UserError for a foreign, damaged or hostile file, for keys and arguments that have
    no counterpart, and for a topology or eye mask that is nowhere to be found.
    """
    file = read_legacy_pickle(path)
    generator = any_generator(file, where=path)
    if family(generator) == 'eg3d':
        raise UserError(
            f'{path}: a generator of EG3D, which has no head to draw; start training from it (train.py --resume)'
        )
    if 'G_ema' not in file.networks:
        raise UserError(f'{path}: holds {", ".join(file.networks)}, but not G_ema')
    template = find_template(path, generator, assets)
    networks: dict[str, dict[str, Tensor]] = {name: {} for name in NETWORKS}
    config = None
    for name in (name for name in ('G_ema', 'G') if name in only and name in file.networks):
        built = build_generator(file.networks[name].state_dict, file.networks[name].kwargs, template)
        networks[name], config = plain_state(built), config or built.config
    assert config is not None, only
    train = preset(f'ffhq{config.image_resolution}-release', {'head_model': HEAD_MODEL})
    train = dataclasses.replace(train, generator=config)
    if 'D' in only and 'D' in file.networks:
        discriminator = load_discriminator_state(file.networks['D'].state_dict, file.networks['D'].kwargs)
        networks['D'] = plain_state(discriminator)
        train = dataclasses.replace(train, discriminator=discriminator.config)
    info = Info(images_seen=0, head_model=HEAD_MODEL, head_model_hash='')
    return Snapshot(config=train, info=info, template=template, networks=networks)


def find_template(path: str | os.PathLike[str], network: LegacyNetwork, assets: ReleaseAssets) -> HeadTemplate:
    """Topology and eye mask of a release generator: the files given, else the network's own and those beside `path`.

    The network keeps its mask and its faces; neutral vertices only an OBJ has, so one beside the pickle is preferred.
    """
    folder = Path(path).parent
    topology = assets.topology or _beside(folder, TOPOLOGY_NAMES)
    mask_file = assets.eye_mask or _beside(folder, EYE_MASK_NAMES)
    own = network.attributes.get('uv_face_mask', network.state_dict.get('uv_face_mask'))
    if own is not None and own.ndim >= 2 and not assets.eye_mask:
        mask = own.float().reshape(own.shape[-2:])
    elif mask_file is not None:
        mask = read_eye_mask(mask_file)
    else:
        raise UserError(
            f"{path}: needs the eye mask over uv; give DECA's uv_face_eye_mask.png by --eye-mask, or lay it beside"
        )
    if topology is not None:
        template = template_from_obj(topology, eye_mask=mask)
        check_topology(network.state_dict, template, where=topology)
        return template
    found = template_from_state(network.state_dict, eye_mask=mask, where=str(path))
    if found is None:
        raise UserError(f'{path}: needs its topology; give head_template.obj (DECA) by --topology, or lay it beside')
    return found


def export_file(source: str | os.PathLike[str], target: str | os.PathLike[str], *, assets: ReleaseAssets) -> list[str]:
    """Write the networks of a snapshot (or of a release pickle) with the release's names and constructor arguments.

    The file is a dict of G_ema, G, D (state dicts), G_kwargs and D_kwargs; torch.load(weights_only=True) reads it.
    Returns lines about what was written. UserError if the generator is not of the release's layout.
    """
    snapshot = read_release(source, assets=assets) if is_pickle(source) else load_snapshot(source)
    content: dict[str, Any] = {}
    lines = []
    for name in (name for name in ('G_ema', 'G') if snapshot.networks[name]):
        generator = Generator(snapshot.config.generator, snapshot.template)
        generator.load_state_dict(snapshot.networks[name])
        content[name] = export_generator_state(generator)
        content['G_kwargs'] = generator_kwargs(generator.config)
    if snapshot.networks['D'] and snapshot.config.discriminator.template == 'none':
        discriminator = DualDiscriminator(snapshot.config.discriminator)
        discriminator.load_state_dict(snapshot.networks['D'])
        content['D'] = export_discriminator_state(discriminator)
        content['D_kwargs'] = discriminator_kwargs(discriminator.config)
    elif snapshot.networks['D']:
        lines.append('D: left out; it takes a template rendering, which the release does not have')
    with atomic_write(target) as handle:
        torch.save(content, handle)
    held = [f'{name} ({len(content[name])} tensors)' for name in NETWORKS if name in content]
    return [*lines, f'{target}: {", ".join(held)}, names of the release']


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None,
    *,
    topology: str | None = None,
    eye_mask: str | None = None,
    dynamic_planes: str | None = None,
    generator_only: bool = False,
    cfg: str | None = None,
    seed: int | None = None,
    export: str | None = None,
) -> list[str]:
    """What `python -m training.legacy` does; lines about what was written. UserError for whatever the user can mend."""
    assets = ReleaseAssets(topology=topology, eye_mask=eye_mask)
    if (target is None) == (export is None):
        raise UserError('TARGET, --export: give one of them, the snapshot or the file of release names to write')
    if export is not None:
        return export_file(source, export, assets=assets)
    assert target is not None
    if not is_pickle(source):
        raise UserError(f'{source}: not a pickle of EG3D or Next3D; only such files are converted (--export goes back)')
    generator = any_generator(read_legacy_pickle(source), where=source)
    if family(generator) == 'eg3d':
        from training.warm_start import snapshot_from_eg3d

        snapshot, lines = snapshot_from_eg3d(source, cfg=cfg, seed=seed)
    elif cfg is not None or seed is not None:
        raise UserError('--cfg, --seed: for files of EG3D; a file of Next3D says itself how it is built')
    else:
        snapshot = read_release(source, assets=assets, only=('G_ema', 'G') if generator_only else NETWORKS)
        lines = _describe(snapshot)
    if dynamic_planes is not None:
        config = snapshot.config
        changed = dataclasses.replace(config.generator, dynamic_planes=dynamic_planes)  # type: ignore[arg-type]
        snapshot = dataclasses.replace(snapshot, config=dataclasses.replace(config, generator=changed))
    save_snapshot(target, snapshot)
    return [*lines, f'wrote {target}']


def _describe(snapshot: Snapshot) -> list[str]:
    """Lines about a snapshot that was just imported."""
    config, template = snapshot.config, snapshot.template
    held = [f'{name} ({len(state)} tensors)' for name, state in snapshot.networks.items() if state]
    known = bool(torch.isfinite(template.vertices).all())
    return [
        f'{", ".join(held)}; preset {config.preset}, z {config.generator.z_dim}, w {config.generator.w_dim}',
        f'topology: {template.num_vertices} vertices, {len(template.faces)} faces'
        + ('' if known else '; where the neutral vertices lie is not in the file (--topology adds it)'),
    ]


def _beside(folder: Path, names: tuple[str, ...]) -> str | None:
    return next((str(folder / name) for name in names if (folder / name).is_file()), None)
