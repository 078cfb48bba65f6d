"""The whole generator against the public release's numbers, through the documented calls (SPEC section 7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dnnlib import UserError
from tests.cases_legacy import PickledModule, write_pickle
from tests.cases_parity import assert_gradients, assert_parity, decoded
from training.checkpoint import ReleaseAssets, load_generator
from training.generator import Generator, Identity, Planes
from training.head.model import HeadInput
from training.legacy import (
    export_discriminator_state,
    export_generator_state,
    load_discriminator_state,
    load_generator_state,
    release_generator_name,
)


@pytest.fixture(scope='module')
def case(parity_fixture: dict) -> dict:
    return parity_fixture


@pytest.fixture(scope='module')
def files(case: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp('topology')
    (folder / 'head.obj').write_text(case['inputs']['obj_text'])
    Image.fromarray(case['inputs']['mask_png'].numpy()).save(folder / 'mask.png')
    return {'topology': folder / 'head.obj', 'eye_mask': folder / 'mask.png'}


@pytest.fixture(scope='module')
def generator(case: dict, files: dict[str, Path]) -> Generator:
    return load_generator_state(case['G_state'], case['G_kwargs'], **files)


@pytest.fixture(scope='module')
def head(case: dict) -> HeadInput:
    vertices = case['inputs']['v']
    return HeadInput(vertices=vertices[:, :-68], landmarks=vertices[:, -68:])


@pytest.fixture(scope='module')
def identity(case: dict, generator: Generator) -> Identity:
    with torch.no_grad():
        return generator.identity(case['stages']['ws'])


@pytest.fixture(scope='module')
def planes(generator: Generator, identity: Identity, head: HeadInput) -> Planes:
    with torch.no_grad():
        return generator.deform(identity, head)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_map_truncates_as_recorded(case: dict, generator: Generator) -> None:
    stage, z = case['stages']['mapping'], case['inputs']['z']
    with torch.no_grad():
        for name, psi, cutoff in [('ws', 1.0, None), ('ws_psi07', 0.7, None), ('ws_psi07_cut14', 0.7, 14)]:
            ws = generator.map(z, stage['cond'], truncation_psi=psi, truncation_cutoff=cutoff)
            assert_parity(name, ws, case, reference=stage[name])


def test_identity_and_planes(case: dict, generator: Generator, identity: Identity, planes: Planes) -> None:
    assert_parity('textures', identity.texture, case)
    assert identity.static_planes is not None
    assert_parity('static_planes', identity.static_planes.flatten(1, 2), case)
    assert_parity('blended_planes', planes.features, case)


def test_alpha(case: dict, planes: Planes) -> None:
    recorded = case['stages']['raster']['alpha_images']
    assert_parity('alpha', planes.alpha[:, :, 0], case, reference=decoded(recorded))


@pytest.mark.parametrize('resolution', [32, 64])
def test_render(case: dict, generator: Generator, planes: Planes, resolution: int) -> None:
    label = case['inputs']['c']
    with torch.no_grad():
        out = generator.render(planes, label, resolution=resolution, rng=seeded(11 if resolution == 32 else 12))
    if resolution == 32:
        recorded = case['stages']['out']
        image, depth = recorded['image'], recorded['image_depth']
        assert_parity('features', out.features.flatten(2).transpose(1, 2), case, reference=render_features(case))
    else:
        recorded = case['stages']['out_nrr64']
        image, depth = recorded['image_sub'], recorded['depth']
    assert_parity('image', out.image, case, reference=image)
    assert_parity('image_raw', out.image_raw, case, reference=recorded['image_raw'])
    assert_parity('image_depth', out.depth, case, reference=depth)


def render_features(case: dict) -> Tensor:
    return case['stages']['render']['features']


def test_density(case: dict, generator: Generator, planes: Planes) -> None:
    stage = case['stages']['sample_mixed']
    with torch.no_grad():
        sigma = generator.density(planes, stage['coords'])
    assert_parity('sigma_coarse', sigma, case, reference=stage['sigma'])


def planes_with_gradient(case: dict, generator: Generator, head: HeadInput) -> Planes:
    generator.zero_grad()
    ws = generator.map(case['inputs']['z'], case['stages']['mapping']['cond'])
    return generator.deform(generator.identity(ws), head)


def test_gradients_of_the_generator_loss(case: dict, generator: Generator, head: HeadInput) -> None:
    stage, label = case['stages']['gmain'], case['inputs']['c']
    discriminator = load_discriminator_state(case['D_state'], case['D_kwargs'])
    out = generator.render(planes_with_gradient(case, generator, head), label, resolution=32, rng=seeded(11))
    logits = discriminator(image=out.image, image_raw=out.image_raw, label=label)
    assert_parity('logits', logits, case, reference=stage['logits'])
    loss = F.softplus(-logits).mean()
    assert loss.item() == pytest.approx(stage['loss'], rel=1e-5)
    loss.backward()
    assert_gradients(generator, stage['gparams'], rename=release_generator_name)
    ours = {release_generator_name(name) for name, _ in generator.named_parameters()}
    assert not ours & set(stage['no_grad_params'])  # what the release never trains is not built


def test_gradients_of_the_density_loss(case: dict, generator: Generator, head: HeadInput) -> None:
    stage = case['stages']['greg']
    points = torch.cat([stage['initial'], stage['perturbed']], dim=1)
    first, second = generator.density(planes_with_gradient(case, generator, head), points).chunk(2, dim=1)
    loss = F.l1_loss(first, second) * case['G_kwargs']['rendering_kwargs']['density_reg']
    assert loss.item() == pytest.approx(stage['loss'], rel=1e-5)
    loss.backward()
    assert_gradients(generator, stage['gparams'], rename=release_generator_name)


def test_export_gives_the_names_and_numbers_back(case: dict, generator: Generator) -> None:
    for exported, original in [
        (export_generator_state(generator), case['G_state']),
        (export_discriminator_state(load_discriminator_state(case['D_state'], case['D_kwargs'])), case['D_state']),
    ]:
        assert set(exported) <= set(original)
        assert all(torch.equal(value, original[name].float()) for name, value in exported.items())


def test_a_network_pickle_of_the_release_is_read(
    case: dict, files: dict[str, Path], generator: Generator, tmp_path: Path
) -> None:
    path = write_pickle(
        tmp_path / 'release.pkl',
        G_ema=PickledModule(case['G_state'], _init_kwargs=case['G_kwargs']),
        D=PickledModule(case['D_state'], _init_kwargs=case['D_kwargs']),
    )
    assets = ReleaseAssets(topology=str(files['topology']), eye_mask=str(files['eye_mask']))
    loaded = load_generator(path, assets=assets).generator
    assert all(torch.equal(value, generator.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_unknown_missing_and_misshapen_keys_are_refused(case: dict, files: dict[str, Path]) -> None:
    state, kwargs = case['G_state'], case['G_kwargs']
    weight = 'mouth_backbone.synthesis.b64.conv0.weight'
    without = {name: value for name, value in state.items() if name != weight}
    smaller: dict[str, Any] = {**kwargs, 'channel_max': 32}
    for bad_state, bad_kwargs, message in [
        ({**state, 'extra.weight': state[weight]}, kwargs, 'unknown key.* extra.weight'),
        ({**state, weight + '.x': state[weight]}, kwargs, f'unknown key.* {weight}.x'),
        (without, kwargs, f'missing key.* {weight}'),
        ({**state, weight: state[weight][:1]}, kwargs, f'{weight} has shape'),
        (state, smaller, 'has shape .* are the kwargs those of this state'),
        (state, {**kwargs, 'img_resolution': 512}, 'superresolution_module: expected'),
        ({**state, 'faces': state['faces'].flip(1)}, kwargs, 'its faces are not those of the state'),
    ]:
        with pytest.raises(UserError, match=message):
            load_generator_state(bad_state, bad_kwargs, **files)
    partial = {name: value for name, value in case['D_state'].items() if name != 'b4.out.bias'}
    with pytest.raises(UserError, match='missing key.* b4.out.bias'):
        load_discriminator_state(partial, case['D_kwargs'])
    with pytest.raises(UserError, match=r'unknown key.* b512.conv0.weight'):
        load_discriminator_state({**case['D_state'], 'b512.conv0.weight': state[weight]}, case['D_kwargs'])


def test_derived_buffers_may_be_present_or_absent(case: dict, files: dict[str, Path], generator: Generator) -> None:
    state = dict(case['G_state'])
    for name in ('faces', 'uvfaces', 'uvcoords', 'mouth_backbone.mapping.w_avg', 'texture_backbone.mapping.fc0.bias'):
        del state[name]
    state['dense_faces'] = torch.zeros(1, 3)
    state['backbone.synthesis.b8.resample_filter'] = torch.ones(4, 4)
    state['superresolution.block0.conv0.noise_const'] = torch.zeros(128, 128)
    other = load_generator_state(state, case['G_kwargs'], **files)
    assert all(torch.equal(value, generator.state_dict()[name]) for name, value in other.state_dict().items())
    discriminator = {**case['D_state'], 'b256.conv1.resample_filter': torch.ones(4, 4)}
    assert not load_discriminator_state(discriminator, case['D_kwargs']).training
