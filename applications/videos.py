"""Videos: camera orbits, latent interpolation, driven expressions; written as mp4.

What is cached where: an identity is made once per latent, planes once per (latent, expression), and a
camera that moves costs a rendering only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from applications import images
from applications.directions import direction_shift
from applications.driving import DEFAULT_FRAMES
from applications.heads import HeadChoice, choose_head, identity_coefficients, network_head_model, own_identity
from applications.mp4 import Sound, write_mp4
from applications.preprocessing.clip import read_frames, video_facts
from applications.reenactment import DEFAULT_FPS, DriverOptions, Motion, drive, is_video
from applications.samples import CameraRig, avatar_latent, seed_latents
from dnnlib import UserError
from dnnlib.files import make_output_folder
from training.checkpoint import LoadedGenerator
from training.generator import Generator, Identity, Planes
from training.head.model import HeadInput
from training.template_rendering import render_template

ORBIT_YAW = 0.35  # radians to either side
ORBIT_PITCH = 0.15
ORBIT_SECONDS = 4.0
MOTIONS = ('orbit', 'interpolate', 'still')
CELLS_AT_ONCE = 4  # heads in one batch: bounds the memory of a large grid


class Latents(Protocol):
    """ws of every frame; `key` is equal for frames that show the same latents."""

    def key(self, frame: int) -> int: ...

    def at(self, frame: int) -> Tensor:
        """ws [cells, num_ws, w_dim]."""


@dataclasses.dataclass(frozen=True)
class StillLatents:
    """The same latents in every frame."""

    ws: Tensor  # [cells, num_ws, w_dim]

    def key(self, frame: int) -> int:
        return 0

    def at(self, frame: int) -> Tensor:
        return self.ws


class LoopedLatents:
    """Periodic cubic interpolation in w through the key latents of each cell."""

    def __init__(self, keys: Tensor, *, frames: int) -> None:  # keys [cells, keys, num_ws, w_dim], at least 2 keys
        from scipy.interpolate import CubicSpline

        values = torch.cat([keys, keys[:, :1]], dim=1).double().cpu().numpy()
        self._spline = CubicSpline(np.linspace(0, 1, values.shape[1]), values, axis=1, bc_type='periodic')
        self._like = keys
        self._frames = frames

    def key(self, frame: int) -> int:
        return frame

    def at(self, frame: int) -> Tensor:
        return torch.from_numpy(self._spline(frame / self._frames)).to(self._like)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that a video shows: `frames` frames of a grid of cells that share heads and cameras."""

    latents: Latents
    heads: HeadInput  # one row a frame, or a single one for all
    labels: Tensor  # cameras [frames or 1, 25]
    frames: int

    def head(self, frame: int) -> HeadInput:
        return self.heads[[0 if len(self.heads) == 1 else frame]]

    def label(self, frame: int) -> Tensor:
        return self.labels[[0 if len(self.labels) == 1 else frame]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """What gen_videos.py was asked for."""

    seeds: tuple[int, ...]
    output: str
    columns: int
    rows: int
    frames: int | None = None  # None: as long as the driver, else DEFAULT_FRAMES
    fps: float | None = None  # None: the driver's, else DEFAULT_FPS
    motions: tuple[str, ...] = ('orbit',)  # of MOTIONS; a driver's camera stands for the orbit
    driver: DriverOptions | None = None
    head_identity: str | None = None  # DATASET[:INDEX] or .npz; None: an avatar's own, else the neutral shape
    own_latent: bool = False  # an avatar's latent instead of the seeds, where the checkpoint has one
    obj_path: str | None = None  # a mesh instead, which nothing drives
    lms_path: str | None = None
    head_model_path: str | None = None
    truncation_psi: float = 1.0
    truncation_cutoff: int | None = None
    directions: tuple[str, ...] = ()  # as applications/directions.py reads them
    with_template: bool = False
    with_driver: bool = False  # the driving video's frames on the left
    scale: int | None = None  # None: cells of at least 256 pixels, for small networks
    crf: int = 18  # 0 lossless, 51 worst


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A scene, its rate, and the video that its driver was seen in."""

    scene: Scene
    fps: float
    video: str | None = None
    rows: Tensor | None = None  # [frames] the video's frame beside each frame


def make_video(
    loaded: LoadedGenerator,
    options: VideoOptions,
    *,
    progress: Callable[[int, int], None],
    report: Callable[[str], None] = print,
) -> int:
    """Render and write the video; returns its number of frames. progress(done, total) counts frames."""
    make_output_folder(Path(options.output).parent)
    _spare_the_driver(options)
    plan = plan_scene(loaded, options, report=report)
    scene = plan.scene
    size = loaded.generator.config.image_resolution
    size *= options.scale or max(1, 256 // size)
    pictures = frame_pictures(
        loaded.generator, scene, columns=options.columns, size=size, with_template=options.with_template
    )
    if options.with_driver and plan.video is not None and plan.rows is not None:
        drivers = driver_pictures(plan.video, plan.rows, height=options.rows * size)
        pictures = (np.concatenate(pair, axis=1) for pair in zip(drivers, pictures, strict=True))

    def counted() -> Iterator[np.ndarray]:
        for done, picture in enumerate(pictures, start=1):
            yield picture
            progress(done, scene.frames)

    sound = None if plan.video is None else _sound(plan.video, seconds=scene.frames / plan.fps)
    return write_mp4(options.output, counted(), fps=plan.fps, crf=options.crf, sound=sound)


def _spare_the_driver(options: VideoOptions) -> None:
    """UserError if the output is the driving video, or if nothing has the pictures that are asked for."""
    source = None if options.driver is None else options.driver.source
    if (
        source is not None
        and all(map(os.path.exists, (source, options.output)))
        and os.path.samefile(source, options.output)
    ):
        raise UserError(f'--output {options.output}: is the driving video itself; choose another name')
    if options.with_driver and (source is None or not is_video(source)):
        raise UserError('--with-driver: only a video given to --drive has pictures of the driver')


def _sound(video: str, *, seconds: float) -> Sound | None:
    """The sound of a driving video, None where it has none (as a folder of pictures)."""
    if not Path(video).is_file():
        return None
    facts = video_facts(video)
    return Sound(source=video, delay=facts.delay, seconds=seconds) if facts.sound else None


@torch.no_grad()
def plan_scene(loaded: LoadedGenerator, options: VideoOptions, *, report: Callable[[str], None] = print) -> Plan:
    """Latents, heads and cameras of every frame; UserError for options that do not fit together."""
    cells = options.columns * options.rows
    seeds = list(options.seeds)
    interpolate = 'interpolate' in options.motions
    if interpolate and (len(seeds) % cells or len(seeds) < 2 * cells):
        raise UserError(f'--seeds: interpolation of {cells} cells needs 2 or more seeds for each, got {len(seeds)}')
    if not interpolate and len(seeds) != cells:
        raise UserError(f'--seeds: a grid of {options.columns}x{options.rows} needs {cells} seeds, got {len(seeds)}')
    rig = CameraRig.of(loaded.config, framing=loaded.info.framing)
    heads, motion = _planned_heads(loaded, options, rig=rig, report=report)
    frames = options.frames or DEFAULT_FRAMES if motion is None else len(heads)
    fps = (options.fps or DEFAULT_FPS) if motion is None else motion.fps
    psi, cutoff = options.truncation_psi, options.truncation_cutoff
    if options.own_latent and loaded.avatar is not None and not interpolate:
        ws = avatar_latent(loaded, loaded.avatar, truncation_psi=psi, truncation_cutoff=cutoff).expand(cells, -1, -1)
    else:
        ws = seed_latents(loaded.generator, seeds, truncation_psi=psi, truncation_cutoff=cutoff, rig=rig)
    shift = direction_shift(options.directions, loaded.generator)
    ws = ws if shift is None else ws + shift
    latents: Latents = StillLatents(ws)
    if interpolate:
        latents = LoopedLatents(ws.reshape(cells, -1, *ws.shape[1:]), frames=frames)
    labels = orbit_labels(frames, fps=fps, rig=rig) if 'orbit' in options.motions else rig.front()
    if motion is not None and motion.labels is not None:
        labels = motion.labels
    scene = Scene(latents=latents, heads=heads, labels=labels, frames=frames)
    video = options.driver.source if options.driver is not None and is_video(options.driver.source) else None
    return Plan(scene=scene, fps=fps, video=video, rows=None if motion is None else motion.rows)


def _planned_heads(
    loaded: LoadedGenerator, options: VideoOptions, *, rig: CameraRig, report: Callable[[str], None]
) -> tuple[HeadInput, Motion | None]:
    """The posed heads: one a frame when driven, else a single one."""
    driven = options.driver is not None or options.head_identity is not None
    if driven and options.obj_path:
        raise UserError('--obj_path: a mesh has no parameters; leave out --drive and --head-identity')
    if not driven:
        choice = HeadChoice(
            obj_path=options.obj_path, lms_path=options.lms_path, head_model_path=options.head_model_path
        )
        return choose_head(choice, loaded), None
    head = network_head_model(loaded, path=options.head_model_path)
    identity = own_identity(loaded, head)
    if options.head_identity is not None:
        identity = identity_coefficients(options.head_identity, head)
    if options.driver is None:
        return head.forward(head.neutral().replace(identity=identity)), None
    motion = drive(options.driver, head, identity=identity, rig=rig, beside=options.output, report=report)
    return head.forward(motion.params), motion


@torch.no_grad()
def render_scene(generator: Generator, scene: Scene) -> Iterator[Tensor]:
    """The pictures [cells, 3, R, R] in [-1, 1] of every frame, on the generator's device."""
    device = next(generator.parameters()).device
    identities: list[Identity] = []
    planes: list[Planes] = []
    latent_key: int | None = None
    shown: HeadInput | None = None
    for frame in range(scene.frames):
        if scene.latents.key(frame) != latent_key:
            latent_key, planes = scene.latents.key(frame), []
            identities = [generator.identity(ws) for ws in scene.latents.at(frame).to(device).split(CELLS_AT_ONCE)]
        head = scene.head(frame).to(device)
        if not planes or shown is None or not _equal(head, shown):
            planes = [generator.deform(identity, head[[0] * len(identity.ws)]) for identity in identities]
            shown = head
        label = scene.label(frame).to(device)
        parts = [generator.render(part, label.expand(len(part.ws), -1)).image for part in planes]
        yield torch.cat(parts).clamp(-1, 1)


def _equal(first: HeadInput, second: HeadInput) -> bool:
    return torch.equal(first.vertices, second.vertices) and torch.equal(first.landmarks, second.landmarks)


def orbit_labels(frames: int, *, fps: float, rig: CameraRig) -> Tensor:
    """Cameras [frames, 25] swaying about the head; a whole number of rounds, so that the video loops."""
    rounds = max(1, round(frames / fps / ORBIT_SECONDS))
    phase = 2 * math.pi * rounds * torch.arange(frames) / max(frames, 1)
    return rig.labels(ORBIT_YAW * phase.sin(), ORBIT_PITCH * phase.cos())


def frame_pictures(
    generator: Generator, scene: Scene, *, columns: int, size: int, with_template: bool
) -> Iterator[np.ndarray]:
    """uint8 pictures [H, W, 3]: the grid of cells of `size` pixels; beside it the template's rendering."""
    for frame, cells in enumerate(render_scene(generator, scene)):
        picture = images.grid(_enlarge(cells, size), columns)
        if with_template:
            device = cells.device
            template = render_template(
                generator.template,
                scene.head(frame).to(device),
                scene.label(frame).to(device),
                resolution=size,
                mode='normals',
            )[0]
            margin = picture.new_full((3, picture.shape[1] - size, size), -1.0)
            picture = torch.cat([picture, torch.cat([template, margin], dim=1)], dim=2)
        yield images.to_array(picture)


def driver_pictures(video: str, rows: Tensor, *, height: int) -> Iterator[np.ndarray]:
    """Frames `rows` [T] (ascending) of a video or folder, uint8 [height, W, 3]; all as wide as the first.

    A frame that can not be read shows the one before (black at the beginning).
    """
    with contextlib.closing(read_frames(video)) as frames:
        shape = next((frame.image.shape for frame in frames if frame.image is not None), (1, 1, 3))
    width = max(1, round(height * shape[1] / shape[0]))
    shown, number = np.zeros((height, width, 3), np.uint8), -1
    with contextlib.closing(read_frames(video)) as frames:
        for row in rows.tolist():
            while number < row and (frame := next(frames, None)) is not None:
                number = frame.number
                if frame.image is not None:
                    resized = Image.fromarray(frame.image).resize((width, height), Image.Resampling.BICUBIC)
                    shown = np.asarray(resized)
            yield shown


def _enlarge(cells: Tensor, size: int) -> Tensor:
    if cells.shape[-1] == size:
        return cells
    return torch.nn.functional.interpolate(cells, size=(size, size), mode='bicubic').clamp(-1, 1)
