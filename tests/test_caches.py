"""Which networks run for what: a camera costs a rendering, an expression no identity, a shape nothing but queries."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest
import torch
from cases_outputs import tiny_generator

from applications import meshes
from applications.samples import CameraRig, SampleOptions, seed_latents, view_labels, write_samples, write_shape
from applications.videos import LoopedLatents, Scene, StillLatents, orbit_labels, render_scene
from training.generator import Generator
from training.head.makehuman import embedded_head
from training.head.model import HeadInput

HEAD = embedded_head()
RIG = CameraRig()
IDENTITY = ('texture', 'static')
EXPRESSION = ('rasterizer', 'teeth', 'blending')
CAMERA = ('renderer', 'superres')


class Stages:
    """A small generator and how often each of its networks has run."""

    def __init__(self) -> None:
        self.generator = tiny_generator()
        self.calls: collections.Counter[str] = collections.Counter()
        for name in (*IDENTITY, *EXPRESSION, *CAMERA, 'decoder'):
            self.generator.get_submodule(name).register_forward_hook(self._counter(name))

    def _counter(self, name: str):
        def count(*_: object) -> None:
            self.calls[name] += 1

        return count

    def expect(self, *, identities: int, expressions: int, cameras: int) -> None:
        expected = dict.fromkeys(IDENTITY, identities) | dict.fromkeys(EXPRESSION, expressions)
        expected |= dict.fromkeys(CAMERA, cameras)
        assert {name: self.calls[name] for name in expected} == expected


@pytest.fixture
def stages() -> Stages:
    return Stages()


def latents(generator: Generator, seeds: list[int]) -> torch.Tensor:
    return seed_latents(generator, seeds, truncation_psi=1.0, truncation_cutoff=None, rig=RIG)


def neutral() -> HeadInput:
    return HEAD.forward(HEAD.neutral())


def test_orbit(stages: Stages) -> None:
    ws = latents(stages.generator, [0, 1])
    labels = orbit_labels(5, fps=30, rig=RIG)
    pictures = list(
        render_scene(stages.generator, Scene(latents=StillLatents(ws), heads=neutral(), labels=labels, frames=5))
    )
    stages.expect(identities=1, expressions=1, cameras=5)
    assert not torch.equal(pictures[0], pictures[2])


def test_driven_face(stages: Stages) -> None:
    angles = torch.tensor([0.0, 0.1, 0.2, 0.3])
    heads = HEAD.forward(HEAD.neutral(4).replace(jaw=torch.stack([angles, 0 * angles, 0 * angles], dim=1)))
    scene = Scene(
        latents=StillLatents(latents(stages.generator, [0])),
        heads=heads,
        labels=orbit_labels(4, fps=30, rig=RIG),
        frames=4,
    )
    assert len(list(render_scene(stages.generator, scene))) == 4
    stages.expect(identities=1, expressions=4, cameras=4)


def test_interpolation(stages: Stages) -> None:
    ws = latents(stages.generator, [0, 1])
    track = LoopedLatents(ws[None], frames=3)
    scene = Scene(latents=track, heads=neutral(), labels=RIG.front(), frames=3)
    assert len(list(render_scene(stages.generator, scene))) == 3
    stages.expect(identities=3, expressions=3, cameras=3)


def test_shape_queries_cached_planes(stages: Stages, tmp_path: Path) -> None:
    generator = stages.generator
    options = SampleOptions(seeds=(0,), outdir=str(tmp_path), labels=RIG.front(), shape_resolution=16)
    with torch.no_grad():
        planes = generator.deform(generator.identity(latents(generator, [0])), neutral())
        stages.calls.clear()
        meshes.density_grid(generator, planes, resolution=8, chunk=128)  # 16 lines of 8 points at once
        assert stages.calls == {'decoder': 4}
        stages.calls.clear()
        write_shape(generator, planes, tmp_path / 'shape', options, report=lambda line: None)
    stages.expect(identities=0, expressions=0, cameras=3)  # the views that colour the vertices


def test_samples_and_shapes_share_planes(stages: Stages, tmp_path: Path) -> None:
    labels = view_labels([-0.3, 0.0, 0.3], [0.0], rig=RIG)
    options = SampleOptions(seeds=(0, 1), outdir=str(tmp_path), labels=labels, shape_resolution=16)
    write_samples(stages.generator, neutral(), options, report=lambda line: None)
    stages.expect(identities=2, expressions=2, cameras=2 * (3 + 3))


def test_planes_are_laid_out_once(stages: Stages) -> None:
    """Cached planes have the layout that rendering and queries read, so a new camera copies no plane."""
    generator = stages.generator
    with torch.no_grad():
        planes = generator.deform(generator.identity(latents(generator, [0])), neutral())
    assert planes.features.stride(2) == 1
    assert planes[[0]].features.stride(2) == 1
    assert planes[0:1].features.data_ptr() == planes.features.data_ptr()


def test_density_grid_is_bounded(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    """No query holds more points than a chunk, and chunks change nothing."""
    generator = stages.generator
    with torch.no_grad():
        planes = generator.deform(generator.identity(latents(generator, [0])), neutral())
    sizes: list[int] = []
    query = generator.density

    def watched(planes, points: torch.Tensor) -> torch.Tensor:
        sizes.append(points.shape[1])
        return query(planes, points)

    monkeypatch.setattr(generator, 'density', watched)
    seen: list[tuple[int, int]] = []
    parts = meshes.density_grid(
        generator, planes, resolution=9, chunk=100, progress=lambda done, total: seen.append((done, total))
    )
    assert max(sizes) <= 100
    assert sum(sizes) == 9**3
    assert seen[-1] == (9**3, 9**3)
    sizes.clear()
    assert (parts == meshes.density_grid(generator, planes, resolution=9)).all()
    assert sizes == [9**3]
