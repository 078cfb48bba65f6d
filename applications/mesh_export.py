"""Heads of a network as meshes for other programs: what export_mesh.py does.

What is cached: a person's identity is made once, planes once for each different head; density and colours only read
them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from applications.gltf import Shape, write_glb
from applications.heads import HeadChoice, choose_head, choose_params, cpu_template, network_head_model
from applications.mesh_files import check_suffixes, mesh_shape, write_mesh
from applications.reenactment import DriverOptions, drive
from applications.samples import CameraRig, avatar_latent, seed_latents
from applications.surfaces import SurfaceOptions, head_surface
from applications.template_mesh import bake_texture, expression_targets, template_shape
from dnnlib import UserError
from dnnlib.files import make_output_folder
from training.checkpoint import LoadedGenerator
from training.generator import Identity, Planes
from training.head.model import HeadInput, HeadModel, HeadParams

EMBEDDED = 'makehuman'  # the head model that needs no file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Posed:
    """The heads to export."""

    heads: HeadInput  # [T, ...]
    model: HeadModel | None = None  # None: the heads are meshes without parameters
    params: HeadParams | None = None  # [T, ...]
    fps: float | None = None  # None: a still head


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is written, of whom."""

    outputs: tuple[str, ...]  # of one person each; several people get their names before the suffix
    seeds: tuple[int, ...] = (0,)
    own_latent: bool = False  # an avatar's latent instead of the seeds, where the checkpoint has one
    latent: str | None = None  # a file of ws instead
    truncation_psi: float = 1.0
    truncation_cutoff: int | None = None
    surface: SurfaceOptions = SurfaceOptions()
    template: bool = False  # the head mesh instead of the network's surface
    texture_size: int = 512  # of the template's picture

    def check(self, *, animated: bool) -> None:
        """UserError if a file can not hold what is asked for."""
        only = '--template' if self.template else '--drive' if animated else None
        check_suffixes(self.outputs, only_glb=only)


@torch.no_grad()
def pose(
    loaded: LoadedGenerator,
    choice: HeadChoice,
    *,
    driver: DriverOptions | None,
    animatable: bool,  # whether the parameters of a still head are needed
    beside: str,
    report: Callable[[str], None],
) -> Posed:
    """The chosen head, or every head that a driver makes of its shape."""
    if driver is None:
        heads = choose_head(choice, loaded)
        if not animatable or choice.obj_path:
            return Posed(heads=heads)
        if loaded.head_model_name != EMBEDDED and choice.head_model_path is None:
            report(f'--template without expressions: name the head model {loaded.head_model_name} with --head-model')
            return Posed(heads=heads)
        model = network_head_model(loaded, path=choice.head_model_path)
        return Posed(heads=heads, model=model, params=choose_params(choice, loaded, model))
    if choice.obj_path or choice.expressions:
        raise UserError('--drive: poses the head itself; leave out --obj_path and --expression')
    model = network_head_model(loaded, path=choice.head_model_path)
    identity = choose_params(choice, loaded, model).identity
    rig = CameraRig.of(loaded.config, framing=loaded.info.framing)
    motion = drive(driver, model, identity=identity, rig=rig, beside=beside, report=report)
    return Posed(heads=model.forward(motion.params), model=model, params=motion.params, fps=motion.fps)


@torch.no_grad()
def export_meshes(
    loaded: LoadedGenerator, posed: Posed, options: ExportOptions, *, report: Callable[[str], None]
) -> list[Path]:
    """Write every file, each whole or not at all; returns them."""
    options.check(animated=posed.fps is not None)
    for output in options.outputs:
        make_output_folder(Path(output).parent)
    written = []
    people = list(_people(loaded, options))
    for name, ws in people:
        paths = [Path(output) for output in options.outputs]
        if len(people) > 1:
            paths = [path.with_name(f'{path.stem}-{name}{path.suffix}') for path in paths]
        identity = loaded.generator.identity(ws)
        if options.template:
            shape = _template(loaded, identity, posed, options, name=name)
            for path in paths:
                write_glb(path, [shape], fps=posed.fps)
            what = f'{len(shape.targets)} {"frames" if posed.fps else "expressions"} as morph targets'
            counts = (len(shape.vertices), len(shape.faces))
        elif posed.fps is not None:
            shapes = list(_frames(loaded, identity, posed, options, report=report))
            for path in paths:
                write_glb(path, shapes, fps=posed.fps)
            what = f'{len(posed.heads)} frames at {posed.fps:g} a second'
            counts = (sum(len(shape.vertices) for shape in shapes), sum(len(shape.faces) for shape in shapes))
        else:
            surface = head_surface(
                loaded.generator, _planes(loaded, identity, posed.heads[:1]), posed.heads[:1], options.surface
            )
            for path in paths:
                write_mesh(path, surface.mesh, name=name)
            what = f'at sigma {surface.level:.3g} ({surface.found})'
            counts = (len(surface.mesh.vertices), len(surface.mesh.faces))
        for path in paths:
            report(f'{path}: {counts[0]} vertices, {counts[1]} faces, {what}')
        written += paths
    return written


def _people(loaded: LoadedGenerator, options: ExportOptions) -> Iterator[tuple[str, Tensor]]:
    """Name and ws [1, num_ws, w_dim] of everyone."""
    generator = loaded.generator
    psi, cutoff = options.truncation_psi, options.truncation_cutoff
    if options.latent is not None:
        ws = read_latent(options.latent, num_ws=generator.num_ws, w_dim=generator.config.w_dim)
        ws = ws.to(next(generator.parameters()).device)
        yield Path(options.latent).stem, generator.mapping.truncate(ws, psi, cutoff=cutoff)
    elif options.own_latent and loaded.avatar is not None:
        yield 'avatar', avatar_latent(loaded, loaded.avatar, truncation_psi=psi, truncation_cutoff=cutoff)
    else:
        rig = CameraRig.of(loaded.config, framing=loaded.info.framing)
        for seed in options.seeds:
            yield (
                f'seed{seed:04d}',
                seed_latents(generator, [seed], truncation_psi=psi, truncation_cutoff=cutoff, rig=rig),
            )


def read_latent(path: str, *, num_ws: int, w_dim: int) -> Tensor:
    """ws [1, num_ws, w_dim] from an .npy, or from `ws` of an .npz (project_avatar.py's pivot.npz); [w_dim] serves all
    layers. UserError otherwise."""
    expected = f'{path}: expected ws of {num_ws} x {w_dim} finite numbers in an .npy, or as `ws` in an .npz'
    try:
        content = np.load(path, allow_pickle=False)
        values = content if isinstance(content, np.ndarray) else content['ws']
    except (ValueError, KeyError, EOFError) as error:
        raise UserError(f'{expected} ({error})') from error
    if values.dtype.kind not in 'fiu' or not np.isfinite(values).all():
        raise UserError(f'{expected}, got {values.dtype} {list(values.shape)}')
    ws = torch.from_numpy(values.astype(np.float32))
    if ws.shape not in ((1, num_ws, w_dim), (num_ws, w_dim), (w_dim,)):
        raise UserError(f'{expected}, got {list(ws.shape)}')
    return ws.expand(num_ws, w_dim)[None] if ws.ndim < 3 else ws


def _planes(loaded: LoadedGenerator, identity: Identity, head: HeadInput) -> Planes:
    device = next(loaded.generator.parameters()).device
    return loaded.generator.deform(identity, head.to(device))


def _frames(
    loaded: LoadedGenerator,
    identity: Identity,
    posed: Posed,
    options: ExportOptions,
    *,
    report: Callable[[str], None],
) -> Iterator[Shape]:
    """The network's own surface in every frame: its vertices have nothing to do with those of the frame before."""
    for frame in range(len(posed.heads)):
        head = posed.heads[[frame]]
        surface = head_surface(loaded.generator, _planes(loaded, identity, head), head, options.surface)
        if (frame + 1) % 10 == 0:
            report(f'{frame + 1} of {len(posed.heads)} frames')
        yield mesh_shape(surface.mesh, name=f'frame{frame:04d}')


def _template(loaded: LoadedGenerator, identity: Identity, posed: Posed, options: ExportOptions, *, name: str) -> Shape:
    """The head mesh of the first frame, with the other frames or all named expressions as targets."""
    first = posed.heads[:1]
    planes = _planes(loaded, identity, first)
    picture = bake_texture(loaded.generator, planes, first, size=options.texture_size)
    targets: dict[str, Tensor] = {}
    if posed.fps is not None:
        targets = {f'frame{frame:04d}': posed.heads.vertices[frame] for frame in range(len(posed.heads))}
    elif posed.model is not None and posed.params is not None:
        targets = expression_targets(posed.model, posed.params[:1])
    return template_shape(cpu_template(loaded), first.vertices[0], picture, name=name, targets=targets)
