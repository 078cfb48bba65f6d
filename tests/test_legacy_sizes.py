"""Release-style state dicts of other sizes through the documented calls, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cases_legacy import (
    Size,
    discriminator_kwargs,
    discriminator_shapes,
    generator_kwargs,
    random_state,
    release_shapes,
    resample_filters,
    topology_buffers,
    write_topology,
)
from PIL import Image
from torch import Tensor

from dnnlib import UserError
from training.cameras import orbit_camera
from training.head.model import HeadInput
from training.head.obj import read_obj
from training.legacy import (
    export_discriminator_state,
    export_generator_state,
    load_discriminator_state,
    load_generator_state,
)
from training.legacy_config import discriminator_config, generator_config
from training.legacy_config import discriminator_kwargs as kwargs_of_discriminator
from training.legacy_config import generator_kwargs as kwargs_of_generator

SIZES = {
    'quick': Size(),
    '512': Size(image=512, z_dim=8, w_dim=32, base=1024, most=12),
    '128': Size(image=128, z_dim=5, w_dim=512, base=256, most=6),
}


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Tensor]:
    return write_topology(tmp_path_factory.mktemp('topology'))


def test_the_names_and_shapes_are_those_of_the_release(parity_fixture: dict) -> None:
    size = Size(z_dim=48, w_dim=64, base=2048, most=40)
    for key, shapes in (('G_state', release_shapes(size)), ('D_state', discriminator_shapes(size))):
        recorded = {name: tuple(value.shape) for name, value in parity_fixture[key].items()}
        derived = {'faces', 'uvcoords', 'uvfaces'} if key == 'G_state' else set()
        assert derived <= set(recorded)
        assert shapes == {name: shape for name, shape in recorded.items() if name not in derived}


@pytest.mark.parametrize('name', SIZES)
def test_the_documented_calls(name: str, files: tuple[Path, Path, Tensor]) -> None:
    size = SIZES[name]
    state_dict, kwargs = random_state(release_shapes(size)), generator_kwargs(size)
    v, z, label = files[2], torch.randn(1, size.z_dim), orbit_camera(torch.zeros(1), torch.zeros(1))
    with torch.no_grad():
        G = load_generator_state(state_dict, kwargs, topology=str(files[0]), eye_mask=str(files[1]))
        D = load_discriminator_state(random_state(discriminator_shapes(size)), discriminator_kwargs(size))
        ws = G.map(z, label)
        identity = G.identity(ws)
        planes = G.deform(identity, HeadInput(vertices=v[:, :-68], landmarks=v[:, -68:]))
        out = G.render(planes, label, resolution=8, rng=torch.Generator().manual_seed(11))
        sigma = G.density(planes, torch.rand(1, 5, 3) - 0.5)
        logits = D(image=out.image, image_raw=out.image_raw, label=label)
    assert not G.training
    assert not D.training
    assert ws.shape == (1, 28, size.w_dim)
    assert out.image.shape == (1, 3, size.image, size.image)
    assert (out.image_raw.shape, out.depth.shape) == ((1, 3, 8, 8), (1, 1, 8, 8))
    assert (sigma.shape, logits.shape) == ((1, 5, 1), (1, 1))
    assert all(bool(t.isfinite().all()) for t in (out.image, sigma, logits))
    same = {name: value for name, value in export_generator_state(G).items() if name in state_dict}
    assert all(torch.equal(value, state_dict[name]) for name, value in same.items())
    assert len(same) == len(G.state_dict())


def test_derived_buffers_filters_and_half_precision(files: tuple[Path, Path, Tensor], tmp_path: Path) -> None:
    size = Size()
    state, kwargs = random_state(release_shapes(size)), generator_kwargs(size)
    mesh = read_obj(files[0])
    assert mesh.uv is not None
    assert mesh.uv_faces is not None
    derived = topology_buffers(mesh.faces, mesh.uv, mesh.uv_faces)
    noise = {'superresolution.block0.conv0.noise_const': torch.zeros(128, 128)}
    whole = {**derived, **noise, **resample_filters(list(state)), 'dataset_label_std': torch.ones(75), **state}
    paths = {'topology': files[0], 'eye_mask': files[1]}
    reference = load_generator_state(state, kwargs, **paths).state_dict()
    for other in (whole, {name: value.bfloat16().float() for name, value in state.items()}):
        loaded = load_generator_state(other, kwargs, **paths).state_dict()
        assert loaded.keys() == reference.keys()
    rounded = {name: value.bfloat16() if value.is_floating_point() else value for name, value in state.items()}
    exact = load_generator_state(rounded, kwargs, **paths)
    assert {value.dtype for value in exact.state_dict().values()} == {torch.float32}
    with pytest.raises(UserError, match='its texture coordinates are not those of the state'):
        load_generator_state({**state, 'uvcoords': derived['uvcoords'] + 0.01}, kwargs, **paths)
    with pytest.raises(UserError, match=r'its faces are not those of the state \(uvfaces\)'):
        load_generator_state({**state, 'uvfaces': derived['uvfaces'].flip(1)}, kwargs, **paths)


def test_the_eye_mask_is_read_as_the_release_reads_it(files: tuple[Path, Path, Tensor], tmp_path: Path) -> None:
    """Any size, the nearest of its texels on a grid of 256, the blue channel of a coloured file."""
    picture = np.random.default_rng(0).integers(0, 256, (512, 384, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / 'mask.png')
    size = Size()
    state = random_state(release_shapes(size))
    loaded = load_generator_state(state, generator_kwargs(size), topology=files[0], eye_mask=tmp_path / 'mask.png')
    rows, columns = np.arange(256) * 2, np.arange(256) * 3 // 2
    expected = torch.from_numpy(picture[rows][:, columns, 2]).float() / 255
    torch.testing.assert_close(loaded.template.eye_mask, expected, rtol=0, atol=0)


def test_arguments_survive_the_way_back() -> None:
    for size in SIZES.values():
        config = generator_config(generator_kwargs(size))
        assert generator_config(kwargs_of_generator(config)) == config
        critic = discriminator_config({**discriminator_kwargs(size), 'epilogue_kwargs': {'mbstd_group_size': None}})
        assert discriminator_config(kwargs_of_discriminator(critic)) == critic


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'c_dim': 75}, 'c_dim: expected 25'),
        ({'mapping_kwargs': {'num_layers': 2, 'lr_multiplier': 0.1}}, r'mapping_kwargs.lr_multiplier: only 0.01'),
        ({'architecture': 'orig'}, "architecture: only 'skip'"),
        ({'rendering': {'white_back': True}}, 'rendering_kwargs.white_back: only False'),
        ({'rendering': {'decoder_lr_mul': 10}}, 'rendering_kwargs.decoder_lr_mul: only 1'),
        ({'rendering': {'ray_start': 'auto'}}, 'rendering_kwargs.ray_start: expected a number'),
        ({'rendering': {'superresolution_module': 'a.SuperresolutionHybrid8X'}}, 'superresolution_module: expected'),
    ],
)
def test_arguments_without_a_counterpart_are_refused(change: dict, message: str) -> None:
    kwargs = {**generator_kwargs(Size()), **{name: value for name, value in change.items() if name != 'rendering'}}
    kwargs['rendering_kwargs'] = {**kwargs['rendering_kwargs'], **change.get('rendering', {})}
    with pytest.raises(UserError, match=message):
        generator_config(kwargs)


def test_the_label_counts_as_the_release_counts_it() -> None:
    kwargs = generator_kwargs(Size())
    rendering = kwargs['rendering_kwargs']
    assert generator_config(kwargs).label_scale == 1
    assert (
        generator_config({**kwargs, 'rendering_kwargs': {**rendering, 'c_gen_conditioning_zero': True}}).label_scale
        == 0
    )
    without = {name: value for name, value in rendering.items() if name != 'c_scale'}
    assert generator_config({**kwargs, 'rendering_kwargs': without}).label_scale == 0  # R's default


def test_discriminators_that_are_others_are_refused() -> None:
    size = Size()
    state, kwargs = random_state(discriminator_shapes(size)), discriminator_kwargs(size)
    with pytest.raises(UserError, match='unknown key.* mapping2'):
        load_discriminator_state({**state, 'mapping2.fc0.weight': torch.zeros(1)}, kwargs)
    with pytest.raises(UserError, match='cmap_dim: only its default'):
        load_discriminator_state(state, {**kwargs, 'cmap_dim': 3})
    loaded = load_discriminator_state({**state, **resample_filters(list(state))}, kwargs)
    exported = export_discriminator_state(loaded)
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[name], value) for name, value in state.items())
