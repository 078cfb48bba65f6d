"""The two ways of stylize.py from options to files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from applications.clip.model import Clip, load_clip
from applications.stylization.by_clip import ClipOptions, ClipStylizer, stylize_by_clip
from applications.stylization.guidance import Guidance, image_guidance, read_pictures, text_guidance
from applications.stylization.image_set import ImageSetOptions, train_on_images
from applications.stylization.result import Stylized, finish
from applications.stylization.scenes import SceneSource, open_scenes
from dnnlib.errors import UserError
from dnnlib.files import make_output_folder, sha256_file
from torch_utils.devices import choose_device
from torch_utils.precision import choose_precision
from torch_utils.rng import stream
from training.checkpoint import LoadedGenerator, is_pickle, load_generator, load_snapshot
from training.dataset import HeadDataset

SOURCE_IMAGES = 16  # of the network, that stand for where it comes from when the style is given by pictures (NADA)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextStyle:
    text: str
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageStyle:
    folder: str


def by_clip(
    network: str,
    outdir: str,
    style: TextStyle | ImageStyle,
    given: Mapping[str, Any],  # options of stylize.py that have a value
    *,
    say: Callable[[str], None],
    progress: Callable[[int, int, Mapping[str, float]], None],
) -> None:
    """Stylize by CLIP's losses; everything that can be wrong is looked at before the first step."""
    device = choose_device(given['device'])
    pictures = read_pictures(style.folder) if isinstance(style, ImageStyle) else []
    clip = _load_clip(given, device, with_pictures=bool(pictures))
    precision = choose_precision(given['precision'], device)
    loaded = load_generator(network, device=device, precision=precision)
    scenes = open_scenes(loaded, data=given.get('data'), head_model=given.get('head_model'))
    weights = {
        'direction_weight': given.get('direction_weight', 1.0),
        'global_weight': given.get('global_weight', 0.2),
    }
    guidance: Guidance
    if isinstance(style, TextStyle):
        guidance = text_guidance(clip, source=style.source, target=style.text, **weights)
    else:
        generated = _source_images(loaded, scenes, seed=given['seed'])
        guidance = image_guidance(clip, [picture.to(device) for picture in pictures], generated, **weights)
    named = {
        'steps': 'steps', 'batch': 'batch', 'lr': 'lr', 'seed': 'seed', 'freeze': 'freeze',
        'auto_layers': 'auto_layers', 'auto_steps': 'auto_steps', 'grad_checkpoint': 'checkpoint',
    }  # fmt: skip
    options = ClipOptions(**{field: given[name] for name, field in named.items() if name in given})
    folder = make_output_folder(outdir)
    own = None if loaded.avatar is None else loaded.avatar.ws
    stylizer = ClipStylizer(loaded.generator, guidance, scenes, options, own=own)
    count = sum(parameter.numel() for parameter in stylizer.trained.values())
    say(f'{clip.name}: {options.steps} steps of {options.batch} images, {count / 1e6:.2f} M parameters learn')
    generator = stylize_by_clip(stylizer, folder, progress=progress)
    how = {
        'method': 'clip',
        **dataclasses.asdict(style),
        **weights,
        **dataclasses.asdict(options),
        'clip': clip.name,
        'clip_hash': clip.content_hash,
        'source_network': network,
        'source_hash': sha256_file(network),
    }
    result = Stylized(
        source=loaded,
        generator=generator,
        scenes=scenes,
        discriminator={} if is_pickle(network) else load_snapshot(network).networks['D'],
        images_seen=loaded.info.images_seen,
        how=how,
        seed=options.seed,
    )
    finish(result, folder, say=say)


def _load_clip(given: Mapping[str, Any], device: torch.device, *, with_pictures: bool) -> Clip:
    try:
        return load_clip(
            given.get('clip'),
            vocabulary=given.get('clip_vocab'),
            quick=given.get('clip_quickgelu'),
            device=device,
        )
    except UserError as error:
        if not with_pictures:
            raise
        raise UserError(
            f'{error}; or train on the pictures, without CLIP, once they are a dataset with cameras and heads '
            '(dataset_tool.py from-photos)'
        ) from error


@torch.no_grad()
def _source_images(loaded: LoadedGenerator, scenes: SceneSource, *, seed: int) -> torch.Tensor:
    """[SOURCE_IMAGES, 3, R, R] of the network as it is."""
    generator = loaded.generator
    device = next(generator.parameters()).device
    rng = stream(seed, 'source images')
    parts = []
    for _ in range(SOURCE_IMAGES // 4):
        z = torch.randn(4, generator.config.z_dim, generator=rng).to(device)
        scene = scenes.draw(4, rng=rng).to(device)
        parts.append(generator(z, scene.label, scene.head).image)
    return torch.cat(parts)


def by_dataset(network: str, outdir: str, data: str, given: Mapping[str, Any], *, say: Callable[[str], None]) -> None:
    """Train on a packed dataset with the layer rule, then finish as by_clip does."""
    device = choose_device(given['device'])
    precision = choose_precision(given['precision'], device)
    source = load_generator(network, device=device, precision=precision)
    scenes = open_scenes(source, data=data, head_model=given.get('head_model'))
    size, wanted = HeadDataset(data).resolution, source.config.generator.image_resolution
    if size != wanted:
        raise UserError(f'--images: {data} holds {size} px images, but the network makes {wanted} px ones; repack it')
    named = {
        'batch': 'batch', 'batch_gpu': 'batch_gpu', 'gpus': 'gpus', 'lr': 'lr', 'gamma': 'gamma',
        'density_reg': 'density', 'density_anchor': 'anchor', 'seed': 'seed', 'freeze': 'freeze', 'workers': 'workers',
        'head_model': 'head_model', 'grad_checkpoint': 'checkpoint',
    }  # fmt: skip
    options = ImageSetOptions(
        network=network,
        data=data,
        outdir=outdir,
        kimg=given.get('kimg', 250.0),
        precision=precision.name,
        **{field: given[name] for name, field in named.items() if name in given},
    )
    path = train_on_images(options, device.type, say=say)
    trained = load_snapshot(path)
    stylized = load_generator(path, device=device, precision=precision)
    how = {
        'method': 'dataset',
        **{name: value for name, value in dataclasses.asdict(options).items() if name not in ('outdir', 'workers')},
        'source_network': network,
        'source_hash': sha256_file(network),
    }
    result = Stylized(
        source=dataclasses.replace(source, config=trained.config, info=trained.info),
        generator=stylized.generator,
        scenes=scenes,
        discriminator=trained.networks['D'],
        images_seen=source.info.images_seen + trained.info.images_seen,
        how=how,
        seed=options.seed,
    )
    finish(result, make_output_folder(outdir), say=say)
