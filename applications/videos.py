"""Videos: camera orbits, latent interpolation, driven expressions; written as mp4.

What is cached where: an identity is made once per latent, planes once per (latent, expression), and a
camera that moves costs a rendering only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from torch import Tensor

from applications import images
from applications.directions import direction_shift
from applications.driving import DEFAULT_FRAMES, DriveOptions, drive_sequence, transfer
from applications.heads import HeadChoice, choose_head, identity_coefficients, network_head_model, own_identity
from applications.samples import CameraRig, avatar_latent, seed_latents
from dnnlib import UserError
from dnnlib.files import explain_os_error, make_output_folder
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
    fps: float = 30.0
    motions: tuple[str, ...] = ('orbit',)  # of MOTIONS
    drive: str | None = None  # a demo's name, a packed dataset, or an .npz of HeadParams
    drive_items: tuple[int, ...] | None = None
    head_identity: str | None = None  # DATASET[:INDEX] or .npz; None: an avatar's own, else the neutral shape
    own_latent: bool = False  # an avatar's latent instead of the seeds, where the checkpoint has one
    obj_path: str | None = None  # a mesh instead, which nothing drives
    lms_path: str | None = None
    head_model_path: str | None = None
    truncation_psi: float = 1.0
    truncation_cutoff: int | None = None
    directions: tuple[str, ...] = ()  # as applications/directions.py reads them
    with_template: bool = False
    scale: int | None = None  # None: cells of at least 256 pixels, for small networks
    crf: int = 18  # 0 lossless, 51 worst


def make_video(loaded: LoadedGenerator, options: VideoOptions, *, progress: Callable[[int, int], None]) -> int:
    """Render and write the video; returns its number of frames. progress(done, total) counts frames."""
    scene = plan_scene(loaded, options)
    make_output_folder(Path(options.output).parent)
    scale = options.scale or max(1, 256 // loaded.generator.config.image_resolution)
    pictures = frame_pictures(
        loaded.generator, scene, columns=options.columns, scale=scale, with_template=options.with_template
    )

    def counted() -> Iterator[np.ndarray]:
        for done, picture in enumerate(pictures, start=1):
            yield picture
            progress(done, scene.frames)

    return write_mp4(options.output, counted(), fps=options.fps, crf=options.crf)


@torch.no_grad()
def plan_scene(loaded: LoadedGenerator, options: VideoOptions) -> Scene:
    """Latents, heads and cameras of every frame; UserError for options that do not fit together."""
    cells = options.columns * options.rows
    seeds = list(options.seeds)
    interpolate = 'interpolate' in options.motions
    if interpolate and (len(seeds) % cells or len(seeds) < 2 * cells):
        raise UserError(f'--seeds: interpolation of {cells} cells needs 2 or more seeds for each, got {len(seeds)}')
    if not interpolate and len(seeds) != cells:
        raise UserError(f'--seeds: a grid of {options.columns}x{options.rows} needs {cells} seeds, got {len(seeds)}')
    heads = _planned_heads(loaded, options)
    frames = len(heads) if options.drive else options.frames or DEFAULT_FRAMES
    rig = CameraRig.of(loaded.config, framing=loaded.info.framing)
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
    labels = orbit_labels(frames, fps=options.fps, rig=rig) if 'orbit' in options.motions else rig.front()
    return Scene(latents=latents, heads=heads, labels=labels, frames=frames)


def _planned_heads(loaded: LoadedGenerator, options: VideoOptions) -> HeadInput:
    """The posed heads: one a frame when driven, else a single one."""
    driven = options.drive is not None or options.head_identity is not None
    if driven and options.obj_path:
        raise UserError('--obj_path: a mesh has no parameters; leave out --drive and --head-identity')
    if not driven:
        choice = HeadChoice(
            obj_path=options.obj_path, lms_path=options.lms_path, head_model_path=options.head_model_path
        )
        return choose_head(choice, loaded)
    head = network_head_model(loaded, path=options.head_model_path)
    identity = own_identity(loaded, head)
    if options.head_identity is not None:
        identity = identity_coefficients(options.head_identity, head)
    if options.drive is None:
        return head.forward(head.neutral().replace(identity=identity))
    drive = DriveOptions(source=options.drive, items=options.drive_items, frames=options.frames, fps=options.fps)
    return head.forward(transfer(drive_sequence(drive, head), identity=identity, head=head))


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
    generator: Generator, scene: Scene, *, columns: int, scale: int, with_template: bool
) -> Iterator[np.ndarray]:
    """uint8 pictures [H, W, 3]: the grid of cells, enlarged by a whole factor; beside it the template's rendering."""
    size = generator.config.image_resolution * scale
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


def _enlarge(cells: Tensor, size: int) -> Tensor:
    if cells.shape[-1] == size:
        return cells
    return torch.nn.functional.interpolate(cells, size=(size, size), mode='bicubic').clamp(-1, 1)


def write_mp4(path: str | os.PathLike[str], pictures: Iterable[np.ndarray], *, fps: float, crf: int = 18) -> int:
    """Encode uint8 pictures [H, W, 3] of one size as H.264 and return how many there were.

    Odd sizes get a black row or column (4:2:0 needs even ones). crf: 0 (lossless) to 51 (worst). The
    file is whole or absent; UserError if it cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f'.{target.stem}.{os.getpid()}.tmp.mp4')
    count = 0
    try:
        temporary.touch()  # ffmpeg's own words for an unwritable folder are longer
        pictures = iter(pictures)
        first = next(pictures, None)
        if first is None:
            raise UserError(f'{target}: no frames to write')
        with _encoder(temporary, _even(first), fps=fps, crf=crf, target=target) as pipe:
            for picture in itertools.chain([first], pictures):
                pipe.write(_even(picture).tobytes())
                count += 1
        os.replace(temporary, target)
    except OSError as error:
        raise explain_os_error(error, target) from error
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _even(picture: np.ndarray) -> np.ndarray:
    return np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)))


@contextlib.contextmanager
def _encoder(file: Path, first: np.ndarray, *, fps: float, crf: int, target: Path) -> Iterator[IO[bytes]]:
    """A pipe into ffmpeg for raw RGB frames like `first`; UserError with ffmpeg's first line if it fails."""
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), '-y', '-loglevel', 'error', '-f', 'rawvideo', '-pix_fmt', 'rgb24']
    command += ['-s', f'{first.shape[1]}x{first.shape[0]}', '-r', f'{fps:g}', '-i', '-', '-an']
    command += ['-c:v', 'libx264', '-pix_fmt', 'yuv420p', '-crf', str(crf), '-movflags', '+faststart', str(file)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log)
        assert process.stdin is not None
        broken = False
        try:
            yield process.stdin
        except BrokenPipeError:
            broken = True
        except BaseException:
            process.kill()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
        if broken or process.returncode:
            log.seek(0)
            reason = (log.read().decode(errors='replace').strip().splitlines() or ['no message'])[-1]
            raise UserError(f'{target}: ffmpeg could not write it: {reason}')
