"""Pictures and shapes of seeds: what gen_samples.py does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from applications import images, meshes
from dnnlib import UserError
from dnnlib.files import make_output_folder
from training import cameras
from training.avatar import Avatar
from training.checkpoint import LoadedGenerator
from training.config import TrainConfig
from training.generator import Generator, Planes
from training.head.model import HeadInput
from training.template_rendering import render_template


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraRig:
    """Cameras that look at the head as those of the training data do."""

    focal: float = cameras.FOCAL
    centre: tuple[float, float, float] | None = None  # of the sphere that they stand on; None: the pivot

    @staticmethod
    def of(config: TrainConfig, *, framing: str = '', focal: float = cameras.FOCAL) -> CameraRig:
        """The rig of a network: about the origin or the pivot, as `network_framing` says."""
        eg3d = network_framing(config, framing) == 'eg3d'
        return CameraRig(focal=focal, centre=(0.0, 0.0, 0.0) if eg3d else None)

    def labels(self, yaw: Tensor, pitch: Tensor) -> Tensor:
        """Labels [N, 25] from angles [N] in radians."""
        return cameras.orbit_camera(yaw, pitch, centre=self.centre, focal=self.focal)

    def front(self) -> Tensor:
        """The camera [1, 25] that scripts condition on, whatever camera they draw."""
        return self.labels(torch.zeros(1), torch.zeros(1))


def network_framing(config: TrainConfig, recorded: str) -> str:
    """'eg3d' or 'pivot' (cameras.framing_of): what the checkpoint records of its training data; where it records
    nothing, EG3D's for the release's presets, else the synthetic data's."""
    return recorded or ('eg3d' if config.preset.endswith('-release') else 'pivot')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """What to draw and where."""

    seeds: tuple[int, ...]  # not read for an avatar's own latent
    outdir: str
    labels: Tensor  # [views, 25]
    truncation_psi: float = 1.0
    truncation_cutoff: int | None = None
    shift: Tensor | None = None  # [1, num_ws, w_dim] added to every ws (applications/directions.py)
    shape_resolution: int | None = None  # None: no shapes
    shape_level: float | None = None
    rig: CameraRig = CameraRig()  # where the camera stands that the latents are conditioned on


def view_labels(yaws: list[float], pitches: list[float], *, rig: CameraRig) -> Tensor:
    """Camera labels [views, 25]; a single yaw or pitch serves all views."""
    count = max(len(yaws), len(pitches))
    if {len(yaws), len(pitches)} - {1, count}:
        raise UserError(f'--pitches: expected one number or as many as --yaws, got {len(pitches)} for {len(yaws)} yaws')
    yaw = torch.tensor(yaws).expand(count) if len(yaws) == 1 else torch.tensor(yaws)
    pitch = torch.tensor(pitches).expand(count) if len(pitches) == 1 else torch.tensor(pitches)
    return rig.labels(yaw, pitch)


def seed_latents(
    generator: Generator,
    seeds: list[int] | tuple[int, ...],
    *,
    truncation_psi: float,
    truncation_cutoff: int | None,
    rig: CameraRig,
) -> Tensor:
    """ws [seeds, num_ws, w_dim]; each seed's is its own, whatever the others are: z as EG3D and the release draw it."""
    device = next(generator.parameters()).device
    z = torch.cat([seed_z(seed, generator.config.z_dim) for seed in seeds])
    label = rig.front().to(device).expand(len(seeds), -1)
    return generator.map(z.to(device), label, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)


def seed_z(seed: int, z_dim: int) -> Tensor:
    """The latent [1, z_dim] that a seed stands for in EG3D, in the public release and here; a seed below 2^32."""
    if not 0 <= seed < 2**32:
        raise UserError(f'--seeds: expected numbers from 0 to {2**32 - 1}, got {seed}')
    return torch.from_numpy(np.random.RandomState(seed).randn(1, z_dim)).float()


def avatar_latent(
    loaded: LoadedGenerator, avatar: Avatar, *, truncation_psi: float, truncation_cutoff: int | None
) -> Tensor:
    """ws [1, num_ws, w_dim] of an avatar's checkpoint on the generator's device."""
    ws = avatar.ws.to(next(loaded.generator.parameters()).device)
    return loaded.generator.mapping.truncate(ws, truncation_psi, cutoff=truncation_cutoff)


@torch.no_grad()
def write_samples(
    generator: Generator,
    head: HeadInput,  # of one head
    options: SampleOptions,
    *,
    latent: Tensor | None = None,  # ws [1, num_ws, w_dim] of an avatar, instead of the seeds
    report: Callable[[str], None],
) -> list[Path]:
    """seed0000.png (its views side by side; avatar.png for `latent`), sheet.png, with shapes seed0000.ply and .mrc.

    The sheet has a row a seed: every view, then raw image, depth and template of the middle one.
    Returns the files written; `report` gets a line for each.
    """
    folder = make_output_folder(options.outdir)
    device = next(generator.parameters()).device
    head, labels = head.to(device), options.labels.to(device)
    size = generator.config.image_resolution
    middle = len(labels) // 2
    template = render_template(generator.template, head, labels[[middle]], resolution=size, mode='normals')
    cells: list[Tensor] = []
    written: list[Path] = []
    for name, ws in _people(generator, options, latent):
        planes = generator.deform(generator.identity(ws), head)
        views = [generator.render(planes, label[None]) for label in labels]
        row = [view.image for view in views]
        row += [images.resize(views[middle].image_raw, size)]
        row += [images.depth_colors(images.resize(views[middle].depth, size)), template]
        cells += [cell[0].clamp(-1, 1).cpu() for cell in row]
        path = folder / f'{name}.png'
        images.save_png(path, images.grid([view.image[0].clamp(-1, 1).cpu() for view in views], len(views)))
        written.append(path)
        report(str(path))
        if options.shape_resolution is not None:
            written += write_shape(generator, planes, folder / name, options, report=report)
    sheet = folder / 'sheet.png'
    images.save_png(sheet, images.grid(cells, len(labels) + 3))
    report(str(sheet))
    return [*written, sheet]


def _people(generator: Generator, options: SampleOptions, latent: Tensor | None) -> Iterator[tuple[str, Tensor]]:
    """Name and ws [1, num_ws, w_dim] of everyone to draw."""
    shift = 0 if options.shift is None else options.shift
    if latent is not None:
        yield 'avatar', latent + shift
        return
    for seed in options.seeds:
        ws = seed_latents(
            generator,
            [seed],
            truncation_psi=options.truncation_psi,
            truncation_cutoff=options.truncation_cutoff,
            rig=options.rig,
        )
        yield f'seed{seed:04d}', ws + shift


def write_shape(
    generator: Generator, planes: Planes, stem: Path, options: SampleOptions, *, report: Callable[[str], None]
) -> list[Path]:
    """`stem`.ply (coloured surface) and `stem`.mrc (density) of cached planes."""
    assert options.shape_resolution is not None
    half = generator.config.box_size / 2
    sigma = meshes.density_grid(generator, planes, resolution=options.shape_resolution)
    level = meshes.choose_level(sigma, options.shape_level)
    mesh = meshes.color_mesh(meshes.extract_mesh(sigma, level=level, half=half), generator, planes)
    ply, mrc = stem.with_suffix('.ply'), stem.with_suffix('.mrc')
    meshes.write_ply(ply, mesh)
    meshes.write_mrc(mrc, sigma, half=half)
    report(f'{ply}: {len(mesh.vertices)} vertices at sigma {level:.3g}')
    report(str(mrc))
    return [ply, mrc]
