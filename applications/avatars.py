"""From pictures of a person to a checkpoint of that person: what project_avatar.py does."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from applications.avatar_sheet import draw_sheet
from applications.heads import cpu_template, network_head_model, save_params
from applications.inversion import (
    InversionConfig,
    Locality,
    find_latent,
    latent_statistics,
    tune_generator,
)
from applications.inversion_inputs import (
    Picture,
    dataset_pictures,
    labelled_picture,
    photo_pictures,
    shared_identity,
    view_of,
)
from applications.inversion_losses import Objective, View, Weights
from applications.inversion_novel import drawn_camera, head_source
from applications.inversion_progress import Progress
from applications.perceptual import load_perceptual
from applications.preprocessing.detect import FaceDetector, MediaPipeDetector
from applications.samples import CameraRig, network_framing
from dnnlib import UserError
from dnnlib.files import atomic_write, make_output_folder, sha256_file
from metrics.estimators.embedded_network import DEFAULT_PATH
from metrics.estimators.loading import load_identity_embedder
from training.avatar import Avatar
from training.checkpoint import LoadedGenerator, Snapshot, plain_state, save_snapshot
from training.generator import Generator
from training.head.model import HeadModel, HeadParams

PIVOT_FILE, AVATAR_FILE = 'pivot.npz', 'avatar.pkl'


@dataclasses.dataclass(frozen=True, kw_only=True)
class AvatarOptions:
    """Where the results go, and how often the preview is drawn."""

    outdir: str
    network: str  # the file that `loaded` came from
    preview_every: int = 50  # steps; 0: none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where the pictures come from: photographs, or a dataset, or one crop with `head` and `camera`."""

    images: tuple[str, ...] = ()
    dataset: str | None = None
    head: str | None = None
    camera: str | None = None
    face: str = 'only'  # inversion_inputs.FACES
    framing: str = 'auto'  # or align.FRAMINGS
    landmarker: str | None = None
    head_model_path: str | None = None  # the user's FLAME file, where the network needs it
    detector: FaceDetector | None = None  # None: MediaPipe's


def choose_objective(
    perceptual: str, weights: Weights, *, identity: str = 'auto', device: torch.device | str = 'cpu'
) -> Objective:
    """The losses that options name; `identity`: what load_identity_embedder takes, none, or auto (embedded if its
    file is here)."""
    if identity == 'auto':
        identity = 'embedded' if DEFAULT_PATH.is_file() else 'none'
    embedder = None if identity == 'none' else load_identity_embedder(identity).to(device)
    return Objective(load_perceptual(perceptual).to(device), weights=weights, embedder=embedder)


def gather(
    loaded: LoadedGenerator, inputs: Inputs, *, report: Callable[[str], None]
) -> tuple[list[Picture], HeadModel | None]:
    """The pictures of the person, and the head model that can pose the person (None: the heads are meshes)."""
    resolution = loaded.generator.config.image_resolution
    if inputs.dataset is not None:
        own = loaded.head_model_name == 'makehuman' or inputs.head_model_path is not None
        model = network_head_model(loaded, path=inputs.head_model_path) if own else None
        pictures = dataset_pictures(inputs.dataset, cpu_template(loaded), resolution=resolution, model=model)
        return pictures, known_head(pictures, model)
    model = network_head_model(loaded, path=inputs.head_model_path)
    if inputs.head is not None and inputs.camera is not None:
        crop = inputs.images[0]
        return [
            labelled_picture(crop, head=inputs.head, camera=inputs.camera, model=model, resolution=resolution)
        ], model
    framing, why = inputs.framing, 'asked for'
    if framing == 'auto':
        framing = network_framing(loaded.config, loaded.info.framing)
        why = 'recorded by the network' if loaded.info.framing else f'not recorded; taken from {loaded.config.preset}'
    report(f'framing {framing} ({why})')
    with contextlib.ExitStack() as stack:
        detector = inputs.detector or stack.enter_context(MediaPipeDetector(inputs.landmarker))
        pictures = photo_pictures(
            inputs.images, model, detector, resolution=resolution, framing=framing, face=inputs.face, report=report
        )
    return pictures, model


def make_avatar(
    loaded: LoadedGenerator,
    pictures: Sequence[Picture],
    objective: Objective,
    config: InversionConfig,
    options: AvatarOptions,
    *,
    model: HeadModel | None = None,  # for expressions that no picture shows; None: the heads are meshes
    report: Callable[[str], None] = print,
) -> Path:
    """Invert the pictures of one person; returns the checkpoint.

    Writes into the folder, each file whole or not at all: avatar.pkl, heads.npz and cameras.json (of the pictures),
    avatar.json (what was done and how well), sheet.png, preview.png, and pivot.npz after phase 1, with which the same
    command goes on after an interruption.
    """
    folder = open_folder(options)
    device = next(loaded.generator.parameters()).device
    template = cpu_template(loaded)
    views = [view_of(picture, template, background=objective.weights.background) for picture in pictures]
    views = [view.to(device) for view in views]
    rig = CameraRig.of(loaded.config, framing=loaded.info.framing)
    identity = shared_identity(pictures)
    base = sha256_file(options.network)
    protocol = describe(objective, config, pictures, base=base)
    watch = Progress(views, folder / 'preview.png', config, every=options.preview_every)
    statistics = latent_statistics(loaded.generator, rig.front(), samples=config.mean_samples, seed=config.seed)
    ws = read_pivot(folder / PIVOT_FILE, protocol)
    if ws is None:
        ws = find_latent(loaded.generator, views, objective, statistics, config, watch=watch)
        write_pivot(folder / PIVOT_FILE, ws, protocol)
    else:
        report(f'{folder / PIVOT_FILE}: the latent of an earlier run with the same settings, used again')
    ws = ws.to(device)
    heads = head_source(model, identity, [picture.head for picture in pictures])
    locality = Locality(
        loaded.generator, ws, statistics, objective, config, heads=heads, cameras=lambda rng: drawn_camera(rig, rng)
    )
    tuned = tune_generator(loaded.generator, ws, views, objective, config, locality=locality, watch=watch)
    watch.close()
    results = {
        'pictures': [picture.name for picture in pictures],
        'psnr_pivot': [psnr(loaded.generator, ws, view) for view in views],
        'psnr_tuned': [psnr(tuned, ws, view) for view in views],
        **watch.summary(),
    }
    avatar = Avatar(ws=ws.cpu(), identity=identity, base=base, protocol=protocol)
    write_avatar(folder, loaded, tuned, avatar, pictures, results)
    draw_sheet(folder / 'sheet.png', loaded.generator, tuned, ws, views, rig=rig, model=model, identity=identity)
    for line in summary_lines(folder, results):
        report(line)
    return folder / AVATAR_FILE


def describe(
    objective: Objective, config: InversionConfig, pictures: Sequence[Picture], *, base: str
) -> dict[str, Any]:
    """Everything that decides an avatar, JSON-able: equal for equal inputs."""
    digest = hashlib.sha256()
    for picture in pictures:
        for value in (picture.image, picture.label, picture.head.vertices, picture.head.landmarks):
            digest.update(value.cpu().contiguous().numpy().tobytes())
    return {
        'base': base,
        'pictures': digest.hexdigest(),
        **objective.networks(),
        'weights': dataclasses.asdict(objective.weights),
        'config': dataclasses.asdict(config),
    }


def read_pivot(path: Path, protocol: dict[str, Any]) -> Tensor | None:
    """The latent that an earlier run with the same protocol found, else None; tuning options may differ."""
    try:
        with open(path, 'rb') as handle, np.load(handle, allow_pickle=False) as data:
            ws, text = torch.from_numpy(data['ws']), str(data['protocol'])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return ws if text == _latent_key(protocol) else None


def write_pivot(path: Path, ws: Tensor, protocol: dict[str, Any]) -> None:
    """What `read_pivot` reads."""
    with atomic_write(path) as handle:
        np.savez(handle, ws=ws.cpu().numpy(), protocol=np.array(_latent_key(protocol)))


def _latent_key(protocol: dict[str, Any]) -> str:
    """The part of a protocol that phase 1 depends on."""
    config = {
        name: value
        for name, value in protocol['config'].items()
        if not name.startswith(('tuning', 'locality', 'plateau'))
    }
    weights = {name: value for name, value in protocol['weights'].items() if name != 'locality'}
    return json.dumps({**protocol, 'config': config, 'weights': weights}, sort_keys=True)


@torch.no_grad()
def psnr(generator: Generator, ws: Tensor, view: View) -> float:
    """dB of a view's rendering, over the whole picture."""
    image = generator.render(generator.deform(generator.identity(ws), view.head), view.label).image
    return float(10 * torch.log10(4 / (image.clamp(-1, 1) - view.image).square().mean().clamp_min(1e-10)))


def write_avatar(
    folder: Path,
    loaded: LoadedGenerator,
    tuned: Generator,
    avatar: Avatar,
    pictures: Sequence[Picture],
    results: dict[str, Any],
) -> None:
    """The checkpoint and the tables of a run."""
    cameras = [picture.label.flatten().tolist() for picture in pictures]
    _write_json(folder / 'cameras.json', cameras)
    params = [picture.params for picture in pictures if picture.params is not None]
    if params:
        save_params(folder / 'heads.npz', HeadParams.cat(params))
    snapshot = Snapshot(
        config=loaded.config,
        info=loaded.info,
        template=cpu_template(loaded),
        networks={'G_ema': plain_state(tuned), 'G': {}, 'D': {}},
        avatar=avatar,
    )
    save_snapshot(folder / AVATAR_FILE, snapshot)
    _write_json(folder / 'avatar.json', {**avatar.protocol, 'results': results})


def _write_json(path: Path, content: Any) -> None:
    with atomic_write(path) as handle:
        handle.write((json.dumps(content, indent=1) + '\n').encode())


def summary_lines(folder: Path, results: dict[str, Any]) -> list[str]:
    """What the user reads at the end."""
    lines = [
        f'{name}: {before:.1f} dB at the pivot, {after:.1f} dB tuned'
        for name, before, after in zip(results['pictures'], results['psnr_pivot'], results['psnr_tuned'], strict=True)
    ]
    for phase, numbers in results['phases'].items():
        lines.append(
            f'{phase}: {numbers["steps"]} steps, loss {numbers["first"]:.4f} -> {numbers["last"]:.4f}, '
            f'{numbers["steps_per_second"]:.2f} steps/s ({numbers["cpu_seconds_per_step"]:.2f} s of CPU a step)'
        )
    return [*lines, f'{folder / AVATAR_FILE}, {folder / "sheet.png"}']


def known_head(pictures: Sequence[Picture], model: HeadModel | None) -> HeadModel | None:
    """The head model if it can pose the person: the pictures have its parameters. UserError if they do not fit it."""
    if model is None or any(picture.params is None for picture in pictures):
        return None
    for picture in pictures:
        assert picture.params is not None
        if picture.params.identity.shape[1] != model.num_identity:
            raise UserError(
                f'{picture.name}: {picture.params.identity.shape[1]} identity numbers, but head model {model.name} of '
                f'the network takes {model.num_identity}'
            )
    return model


def open_folder(options: AvatarOptions) -> Path:
    """The folder of the results, writable; UserError if the network itself would be overwritten."""
    folder = make_output_folder(options.outdir)
    target = folder / AVATAR_FILE
    if os.path.exists(options.network) and target.exists() and os.path.samefile(options.network, target):
        raise UserError(f'--outdir {options.outdir}: --network is its {AVATAR_FILE}; choose another folder')
    return folder
