"""Weights to start a run from: our own snapshots, pickles of the public release, and pickles of EG3D.

Every tensor of the new networks ends in one of three lists: copied, adapted (and how), left at its initialization
(and why). docs/adr/0012 tells what is done to EG3D's networks and what cannot be.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dnnlib.errors import UserError
from torch_utils.rng import derive_seed
from training.checkpoint import Info, Snapshot, is_pickle, load_snapshot, plain_state
from training.config import PRESETS, GeneratorConfig, TrainConfig, preset
from training.discriminator import DualDiscriminator
from training.generator import Generator
from training.legacy import rename_discriminator_state, rename_generator_state
from training.legacy_files import any_generator, family
from training.legacy_pickle import LegacyFile, LegacyNetwork, read_legacy_pickle

# Our names -> EG3D's. Encoders, fusions and residual blocks of the mouth networks have no counterpart.
EG3D_NAMES = (
    (re.compile(r'mapping\.(.*)'), r'backbone.mapping.\1'),
    (re.compile(r'(?:static|texture)\.synthesis\.(.*)'), r'backbone.synthesis.\1'),
    (re.compile(r'(?:teeth|blending)\.unet\.(b\d+\..*)'), r'backbone.synthesis.\1'),
    (re.compile(r'superres\.(.*)'), r'superresolution.\1'),
    (re.compile(r'decoder\.hidden\.(.*)'), r'decoder.net.0.\1'),
    (re.compile(r'decoder\.out\.(.*)'), r'decoder.net.2.\1'),
)
_PLANES = re.compile(r'(static|texture|teeth|blending)\..*\.torgb\.(weight|bias)')
_NO_LAYER = 'EG3D has no such layer'


@dataclasses.dataclass(frozen=True)
class Found:
    """What a file offers for one tensor: a value of its shape, or None; `note` says how it was adapted, or why not."""

    value: Tensor | None
    note: str = ''


Finder = Callable[[str, Tensor], Found]  # name and present value of a tensor of the new network


def start_from(path: str | os.PathLike[str], modules: Mapping[str, nn.Module], config: TrainConfig) -> list[str]:
    """Fill `modules` (G, D, G_ema) with what fits of the file `path`; the report's lines.

    G and G_ema stand in for each other where the file has one of them. UserError if no weight of a network fits.
    """
    finders, lines = _finders(path, config)
    for name, module in modules.items():
        # A generator whose layers are frozen starts as its average, so that both keep the same frozen values.
        wanted = 'G_ema' if name == 'G' and config.freeze_g != 'none' else name
        find = finders.get(wanted) or finders.get({'G': 'G_ema', 'G_ema': 'G'}.get(wanted, wanted))
        if find is None and name == 'D':
            lines.append(f'{name}: {path} holds none; left at its initialization')
            continue
        outcomes = transfer(module, find) if find is not None else {}
        if not any(found.value is not None and key.endswith('.weight') for key, found in outcomes.items()):
            raise UserError(f'--resume: {path}: no tensor of {name} fits this config')
        lines += report(name, outcomes, where=path)
    return lines


@torch.no_grad()
def transfer(module: nn.Module, find: Finder) -> dict[str, Found]:
    """Copy into `module` what `find` offers; what was offered, by name."""
    outcomes = {}
    for name, own in module.state_dict().items():
        found = find(name, own)
        if found.value is not None:
            assert found.value.shape == own.shape, name
            own.copy_(found.value)
        outcomes[name] = found
    return outcomes


def report(network: str, outcomes: Mapping[str, Found], *, where: str | os.PathLike[str]) -> list[str]:
    """One line of counts; then one line for each way of adapting and each reason to leave, with every tensor's name.

    Names that differ in block numbers only are written once, with *, and so are whole subtrees of one outcome.
    """
    adapted = {name: found.note for name, found in outcomes.items() if found.value is not None and found.note}
    left = {name: found.note for name, found in outcomes.items() if found.value is None}
    copied = len(outcomes) - len(adapted) - len(left)
    lines = [
        f'{network}: {copied} copied, {len(adapted)} adapted, {len(left)} left at initialization '
        f'of {len(outcomes)} tensors, from {where}'
    ]
    labels = {name: (found.value is None, found.note) for name, found in outcomes.items()}
    for names, verb in ((adapted, 'adapted'), (left, 'left')):
        for note in dict.fromkeys(names.values()):
            chosen = {name for name, other in names.items() if other == note}
            lines.append(f'  {verb}: {", ".join(summarize(chosen, labels))} ({note})')
    return lines


def summarize(chosen: set[str], labels: Mapping[str, Any]) -> list[str]:
    """Short exact patterns of the names `chosen` among all names `labels`, which must share a label."""
    groups: dict[str, set[str]] = {}
    for name in labels:
        groups.setdefault(re.sub(r'\.(b?)\d+(?=\.)', r'.\1*', name), set()).add(name)
    parts: list[str] = []
    for pattern, names in groups.items():
        if names <= chosen:
            parts.append(pattern)
        else:
            parts += sorted(names & chosen)
    everything = {*groups, *labels}

    def widest(part: str) -> str:
        """The shortest prefix of `part` below which all names are chosen."""
        words = part.split('.')
        for length in range(1, len(words)):
            prefix = '.'.join(words[:length]) + '.'
            below = {name for name in everything if name.startswith(prefix)}
            real = {name for group in below for name in groups.get(group, {group})}
            if real <= chosen and len(real) > 1:
                return prefix + '*'
        return part

    return list(dict.fromkeys(widest(part) for part in parts))


def _finders(path: str | os.PathLike[str], config: TrainConfig) -> tuple[dict[str, Finder], list[str]]:
    """How to find the tensors of each network that a file holds, and warnings."""
    if not is_pickle(path):
        networks = load_snapshot(path).networks
        return {name: (_judge if name == 'D' else _by_name)(state) for name, state in networks.items() if state}, []
    file = read_legacy_pickle(path)
    generator = any_generator(file, where=path)
    if family(generator) == 'eg3d':
        return _eg3d_finders(file, config), _other_rendering(generator, config.generator)
    finders: dict[str, Finder] = {}
    for name, network in file.networks.items():
        if name == 'D':
            resolution = int(network.kwargs.get('img_resolution', 0))
            finders[name] = _judge(rename_discriminator_state(network.state_dict, image_resolution=resolution))
        else:
            finders[name] = _by_name(rename_generator_state(network.state_dict))
    return finders, _other_rendering(generator, config.generator)


def _other_rendering(network: LegacyNetwork, config: GeneratorConfig) -> list[str]:
    """A warning for every place where rays or box are not those that the weights were trained with."""
    rendering = dict(network.kwargs.get('rendering_kwargs') or {})
    names = {'ray_start': 'ray_near', 'ray_end': 'ray_far', 'box_warp': 'box_size'}
    return [
        f'warning: trained with {theirs} {rendering[theirs]}, but G.{ours} is {getattr(config, ours)}'
        for theirs, ours in names.items()
        if theirs in rendering and rendering[theirs] != getattr(config, ours)
    ]


def _by_name(state: Mapping[str, Tensor]) -> Finder:
    return lambda name, own: _fitting(state.get(name), own, missing='not in the file')


def _judge(state: Mapping[str, Tensor], *, missing: str = 'not in the file') -> Finder:
    """By name; a discriminator that sees or is told more than the file's has the same features and logits at first."""

    def find(name: str, own: Tensor) -> Found:
        value = state.get(name)
        if value is not None and name in ('fromrgb.weight', 'mapping.embed.weight'):
            return _widen(value.float(), own, missing=missing)
        return _fitting(value, own, missing=missing)

    return find


def _fitting(value: Tensor | None, own: Tensor, *, missing: str) -> Found:
    if value is None:
        return Found(None, missing)
    if value.shape != own.shape:
        return Found(None, f'another shape: {list(value.shape)} there, {list(own.shape)} here')
    return Found(value)


def _eg3d_finders(file: LegacyFile, config: TrainConfig) -> dict[str, Finder]:
    finders: dict[str, Finder] = {}
    for name, network in file.networks.items():
        if name == 'D':
            resolution = config.discriminator.image_resolution
            state = rename_discriminator_state(network.state_dict, image_resolution=resolution)
            finders[name] = _judge(state, missing=_NO_LAYER)
        else:
            finders[name] = Eg3dGenerator(network, config.generator).find
    return finders


class Eg3dGenerator:
    """Finds the tensors of our generator in one of EG3D."""

    def __init__(self, network: LegacyNetwork, config: GeneratorConfig) -> None:
        self.state, self.kwargs, self.config = network.state_dict, network.kwargs, config
        self.rendering = dict(network.kwargs.get('rendering_kwargs') or {})

    def find(self, name: str, own: Tensor) -> Found:
        match, target = next(
            ((match, target) for pattern, target in EG3D_NAMES if (match := pattern.fullmatch(name))), (None, '')
        )
        if match is None:
            return Found(None, _NO_LAYER)
        value = self.state.get(match.expand(target))
        if name.startswith('superres.'):
            resolution = self.kwargs.get('img_resolution')
            if (self.config.superres, self.config.image_resolution) != ('hybrid', resolution):
                return Found(None, f"EG3D's super-resolution to {resolution} px is another; G.superres=hybrid has it")
        if value is None:
            return Found(None, _NO_LAYER)
        value = value.float()
        if name.startswith('decoder.'):
            return self._decoder(name, value, own)
        planes = _PLANES.fullmatch(name)
        if planes and value.shape[0] == 3 * self.config.plane_channels and value.shape[1:] == own.shape[1:]:
            return self._planes(planes[1], planes[2], value, own)
        return _fitting(value, own, missing=_NO_LAYER)

    def _decoder(self, name: str, value: Tensor, own: Tensor) -> Found:
        """EG3D averages the planes, and may multiply the decoder's learning rate (and so its weights)."""
        multiplier = float(self.rendering.get('decoder_lr_mul', 1))
        notes = [f'times decoder_lr_mul {multiplier:g}'] if multiplier != 1 else []
        value = value * multiplier
        if name == 'decoder.hidden.weight' and self.config.plane_aggregation == 'sum':
            value = value / 3
            notes.append('divided by 3, since planes are summed here and averaged there')
        found = _fitting(value, own, missing=_NO_LAYER)
        return found if found.value is None else Found(value, '; '.join(notes))

    def _planes(self, stage: str, kind: str, value: Tensor, own: Tensor) -> Found:
        """Output layers. EG3D's planes are read at (x, y), (x, z), (z, x); ours at (x, y), (x, z), (z, y)."""
        front, top, third = value.chunk(3)
        empty = torch.zeros_like(third)
        if stage != 'static':
            if own.shape == value.shape:
                return Found(value)
            if own.shape == front.shape:
                return Found(front, "EG3D's front plane of three")
            return _fitting(value, own, missing=_NO_LAYER)
        if self.config.static_planes == 'eg3d':
            note = "EG3D's third plane goes to the transposed fourth; the one at (z, y) starts at 0"
            return Found(torch.cat([front, top, empty, third]), note)
        note = (
            "EG3D's third plane is read at (z, x), where we have none: the one at (z, y) starts at its bias alone; "
            'G.static_planes=eg3d keeps it'
        )
        return Found(torch.cat([front, top, third if kind == 'bias' else empty]), note)


def _widen(value: Tensor, own: Tensor, *, missing: str) -> Found:
    """More inputs [out, in, ...]: the new ones start at 0, the old ones keep their effect under equalized gains."""
    before, after = value.shape[1], own.shape[1]
    if before >= after or value.shape[0] != own.shape[0]:
        return _fitting(value, own, missing=missing)
    added = value.new_zeros(value.shape[0], after - before, *value.shape[2:])
    note = f'inputs {before} to {after - 1} are new and start at 0'
    return Found(torch.cat([value * math.sqrt(after / before), added], dim=1), note)


def snapshot_from_eg3d(
    path: str | os.PathLike[str], *, cfg: str | None, seed: int | None
) -> tuple[Snapshot, list[str]]:
    """A snapshot of the preset `cfg` on the embedded head, started from a pickle of EG3D; and the report's lines."""
    from training.head.makehuman import embedded_head

    if cfg not in PRESETS:
        raise UserError(f'--cfg: for a file of EG3D, the preset to start: one of {", ".join(PRESETS)}; got {cfg}')
    config = preset(cfg, {'seed': seed})
    head = embedded_head()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, 'weights'))
        generator = Generator(config.generator, head.template)
        discriminator = DualDiscriminator(config.discriminator)
    modules = {'G': generator, 'D': discriminator, 'G_ema': copy.deepcopy(generator)}
    lines = start_from(path, modules, config)
    snapshot = Snapshot(
        config=config,
        info=Info(images_seen=0, head_model=head.name, head_model_hash=head.content_hash),
        template=head.template,
        networks={name: plain_state(module) for name, module in modules.items()},
    )
    return snapshot, lines
