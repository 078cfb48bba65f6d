"""Starting from EG3D: same volume, same logits where the config allows it, and an exact report in every case."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases_geometry import ellipsoid_template
from cases_legacy import (
    PickledModule,
    Size,
    discriminator_kwargs,
    discriminator_shapes,
    eg3d_pickle,
    eg3d_shapes,
    generator_kwargs,
    random_state,
    release_shapes,
    write_pickle,
)
from cases_training import tiny_trainer
from click.testing import CliRunner
from torch import Tensor, nn

from dnnlib import UserError
from training import legacy
from training.checkpoint import load_snapshot
from training.config import TrainConfig, preset
from training.discriminator import DualDiscriminator
from training.generator import Generator
from training.legacy import load_discriminator_state
from training.loop import warm_start
from training.stylegan2 import SynthesisNetwork
from training.warm_start import Found, start_from, summarize, transfer

SIZE = Size(planes=32, channels=4, image=128)


def config(**overrides: Any) -> TrainConfig:
    """A config that a network of SIZE fits; overrides by dotted name with '__' for the dot."""
    fitting = {
        'G.z_dim': 12, 'G.w_dim': 16, 'G.plane_resolution': 32, 'G.plane_channels': 4, 'G.channel_base': 512,
        'G.channel_max': 8, 'G.decoder_hidden': 64, 'G.image_resolution': 128, 'G.render_resolution': 16,
        'G.superres': 'hybrid', 'D.image_resolution': 128, 'D.channel_base': 512, 'D.channel_max': 8,
        'D.mapping_layers': 8,
    }  # fmt: skip
    return preset('debug', {**fitting, **{name.replace('__', '.'): value for name, value in overrides.items()}})


def networks(chosen: TrainConfig) -> dict[str, nn.Module]:
    torch.manual_seed(3)
    template = ellipsoid_template()
    return {
        'G': Generator(chosen.generator, template),
        'D': DualDiscriminator(chosen.discriminator),
        'G_ema': Generator(chosen.generator, template),
    }


@pytest.fixture(scope='module')
def eg3d(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eg3d_pickle(tmp_path_factory.mktemp('eg3d') / 'eg3d.pkl', SIZE)


def eg3d_planes(state: dict[str, Tensor], ws: Tensor) -> Tensor:
    """The planes [N, 3, C, R, R] of EG3D's backbone, before anything is converted."""
    backbone = SynthesisNetwork(16, 32, 12, channel_base=512, channel_max=8)
    prefix = 'backbone.synthesis.'
    backbone.load_state_dict({name[len(prefix) :]: v for name, v in state.items() if name.startswith(prefix)})
    return backbone(ws).unflatten(1, (3, -1))


def eg3d_volume(state: dict[str, Tensor], planes: Tensor, points: Tensor, *, lr_mul: float = 1.0) -> Tensor:
    """sigma and features [N, M, 1 + C] as EG3D has them: planes read at (x, y), (x, z), (z, x) and averaged."""
    features = []
    for number, axes in enumerate(((0, 1), (0, 2), (2, 0))):
        grid = 2 * points[:, None, :, list(axes)]
        features.append(F.grid_sample(planes[:, number], grid, align_corners=False)[:, :, 0].transpose(1, 2))
    x = torch.stack(features).mean(dim=0)
    for layer in (0, 2):
        weight, bias = state[f'decoder.net.{layer}.weight'] * lr_mul, state[f'decoder.net.{layer}.bias'] * lr_mul
        x = F.linear(x, weight / weight.shape[1] ** 0.5, bias)
        x = F.softplus(x) if layer == 0 else x
    return x


@pytest.mark.parametrize('aggregation', ['mean', 'sum'])
@pytest.mark.parametrize('lr_mul', [1, 10])
@torch.no_grad()
def test_the_volume_of_the_static_planes_is_that_of_eg3d(aggregation: str, lr_mul: int, tmp_path: Path) -> None:
    path = eg3d_pickle(tmp_path / 'eg3d.pkl', SIZE, names=('G', 'G_ema'), decoder_lr_mul=lr_mul)
    chosen = config(G__static_planes='eg3d', G__plane_aggregation=aggregation)
    modules = networks(chosen)
    start_from(path, modules, chosen)
    points = torch.rand(2, 200, 3) - 0.5
    for seed, name in enumerate(('G', 'G_ema')):
        generator, state = modules[name], random_state(eg3d_shapes(SIZE), seed=seed)
        assert isinstance(generator, Generator)
        assert generator.static is not None
        z, label = torch.randn(2, 12), torch.randn(2, 25)
        ws = generator.map(z, label)[:, : generator.num_half]
        expected = eg3d_volume(state, eg3d_planes(state, ws), points, lr_mul=lr_mul)
        colors, sigma = generator.renderer.query(generator.static(ws), points, generator.decoder)
        torch.testing.assert_close(sigma, expected[..., :1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(colors, expected[..., 1:].sigmoid() * 1.002 - 0.001, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_with_three_planes_the_third_keeps_what_is_constant(eg3d: Path) -> None:
    chosen = config()
    modules = networks(chosen)
    lines = start_from(eg3d, modules, chosen)
    generator, state = modules['G'], random_state(eg3d_shapes(SIZE))
    assert isinstance(generator, Generator)
    assert generator.static is not None
    ws = generator.map(torch.randn(2, 12), torch.randn(2, 25))[:, : generator.num_half]
    planes = generator.static(ws)
    torch.testing.assert_close(planes[:, :2], eg3d_planes(state, ws)[:, :2])
    flat = {name: value * (0 if name.endswith('torgb.weight') else 1) for name, value in state.items()}
    torch.testing.assert_close(planes[:, 2], eg3d_planes(flat, ws)[:, 2])
    assert any('static.synthesis.b*.torgb.' in line and 'G.static_planes=eg3d keeps it' in line for line in lines)


def test_every_tensor_is_accounted_for(eg3d: Path) -> None:
    """Copied ones equal the file's, the others are untouched or adapted as reported, and counts add up."""
    chosen = config()
    modules, fresh = networks(chosen), networks(chosen)['G'].state_dict()
    lines = start_from(eg3d, modules, chosen)
    source, after = random_state(eg3d_shapes(SIZE)), modules['G'].state_dict()
    same = {
        'mapping.fc1.weight': 'backbone.mapping.fc1.weight',
        'mapping.w_avg': 'backbone.mapping.w_avg',
        'static.synthesis.b4.const': 'backbone.synthesis.b4.const',
        'static.synthesis.b32.conv1.noise_const': 'backbone.synthesis.b32.conv1.noise_const',
        'texture.synthesis.b16.conv0.affine.weight': 'backbone.synthesis.b16.conv0.affine.weight',
        'superres.block1.conv1.weight': 'superresolution.block1.conv1.weight',
        'decoder.out.bias': 'decoder.net.2.bias',
    }
    for ours, theirs in same.items():
        assert torch.equal(after[ours], source[theirs]), ours
    front = source['backbone.synthesis.b8.torgb.weight'][:4]
    assert torch.equal(after['texture.synthesis.b8.torgb.weight'], front)
    untouched = [name for name in fresh if name.startswith(('teeth.unet.encoder', 'teeth.unet.fusion', 'rasterizer'))]
    assert len(untouched) > 10
    assert all(torch.equal(after[name], fresh[name]) for name in untouched)
    header = next(line for line in lines if line.startswith('G:')).split()
    copied, adapted, left, total = (int(header[i]) for i in (1, 3, 5, 10))
    assert copied + adapted + left == total == len(fresh)
    assert any(line.startswith('  left: ') and 'teeth.unet.encoder.*' in line for line in lines)


def test_the_style_unets_of_the_release_preset_start_from_the_backbone(tmp_path: Path) -> None:
    """Decoder blocks of teeth and blending are EG3D's, as in the release; their output layers are its front plane."""
    size = Size(image=128, base=512, most=6)
    path = eg3d_pickle(tmp_path / 'eg3d.pkl', size, names=('G', 'G_ema'))
    overrides = {'G.z_dim': 12, 'G.w_dim': 16, 'G.channel_base': 512, 'G.channel_max': 6, 'D.channel_max': 6}
    chosen = preset('ffhq128-release', {**overrides, 'D.channel_base': 512})
    modules = networks(chosen)
    start_from(path, modules, chosen)
    source, after = random_state(eg3d_shapes(size)), modules['G'].state_dict()
    for stage, blocks in (('teeth', (8, 16, 32, 64, 128, 256)), ('blending', (64, 128, 256))):
        names = [name for name in after if name.startswith(f'{stage}.unet.b')]
        assert {int(name.split('.')[2][1:]) for name in names} == set(blocks)
        for name in names:
            theirs = source[f'backbone.synthesis.{name.removeprefix(f"{stage}.unet.")}']
            front = theirs[:32] if name.endswith(('torgb.weight', 'torgb.bias')) else theirs
            assert torch.equal(after[name], front), name


@pytest.mark.parametrize(('template', 'label_dim'), [('none', 25), ('correspondence', 25), ('uv', 75)])
@torch.no_grad()
def test_the_discriminator_starts_with_the_logits_of_eg3d(eg3d: Path, template: str, label_dim: int) -> None:
    chosen = config(D__template=template, D__label_dim=label_dim)
    modules = networks(chosen)
    start_from(eg3d, modules, chosen)
    theirs = load_discriminator_state(random_state(discriminator_shapes(SIZE), seed=1), discriminator_kwargs(SIZE))
    image, raw, label = torch.randn(3, 3, 128, 128), torch.randn(3, 3, 16, 16), torch.randn(3, label_dim)
    extra = None if template == 'none' else torch.randn(3, 3, 128, 128)
    ours = modules['D'](image=image, image_raw=raw, label=label, template=extra)
    expected = theirs(image=image, image_raw=raw, label=label[:, :25])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_named(eg3d: Path, tmp_path: Path) -> None:
    chosen = config(G__channel_max=6, G__superres='stylegan2', G__ray_near=2.0)
    lines = start_from(eg3d, networks(chosen), chosen)
    assert 'warning: trained with ray_start 2.25, but G.ray_near is 2.0' in lines
    assert any('another shape: [8, 8, 3, 3] there, [6, 6, 3, 3] here' in line for line in lines)
    assert any(
        "superres.* (EG3D's super-resolution to 128 px is another; G.superres=hybrid has it)" in line for line in lines
    )
    other = config(G__w_dim=8, G__z_dim=4, G__channel_max=3, G__decoder_hidden=5, G__superres='stylegan2')
    with pytest.raises(UserError, match='--resume: .*eg3d.pkl: no tensor of G fits this config'):
        start_from(eg3d, networks(other), other)


def test_files_with_some_networks(tmp_path: Path) -> None:
    chosen = config()
    only = eg3d_pickle(tmp_path / 'only.pkl', SIZE, names=('G_ema',))
    modules = networks(chosen)
    lines = start_from(only, modules, chosen)
    assert f'D: {only} holds none; left at its initialization' in lines
    assert torch.equal(modules['G'].state_dict()['mapping.w_avg'], modules['G_ema'].state_dict()['mapping.w_avg'])
    odd = write_pickle(tmp_path / 'odd.pkl', G_ema=PickledModule({'net.weight': torch.zeros(2)}, _init_kwargs={}))
    with pytest.raises(UserError, match=r'odd.pkl: holds G_ema \(Module\); expected a generator of Next3D or EG3D'):
        start_from(odd, modules, chosen)


def test_a_pickle_of_the_release_is_copied_whole(tmp_path: Path) -> None:
    size = Size(image=128, base=512, most=4)
    critic = dataclasses.replace(size, c_dim=75)
    path = write_pickle(
        tmp_path / 'release.pkl',
        G=PickledModule(random_state(release_shapes(size)), _init_kwargs=generator_kwargs(size)),
        D=PickledModule(random_state(discriminator_shapes(critic)), _init_kwargs=discriminator_kwargs(critic)),
        G_ema=PickledModule(random_state(release_shapes(size), seed=1), _init_kwargs=generator_kwargs(size)),
    )
    overrides = {'G.z_dim': 12, 'G.w_dim': 16, 'G.channel_base': 512, 'G.channel_max': 4}
    chosen = preset('ffhq128-release', {**overrides, 'D.channel_base': 512, 'D.channel_max': 4})
    modules = networks(chosen)
    for line, name in zip(start_from(path, modules, chosen), ('G', 'D', 'G_ema'), strict=True):
        total = len(modules[name].state_dict())
        assert line.startswith(f'{name}: {total} copied, 0 adapted, 0 left at initialization of {total} tensors')


def test_a_run_starts_from_eg3d(tmp_path: Path) -> None:
    size = Size(planes=16, channels=8, image=128, z_dim=16, base=128, most=8)
    path = eg3d_pickle(tmp_path / 'eg3d.pkl', size)
    trainer = tiny_trainer(tmp_path, resume=str(path))
    lines = warm_start(trainer, trainer.config)
    assert [line.split(':')[0] for line in lines if not line.startswith('  ')] == ['G', 'D', 'G_ema']
    assert torch.equal(
        trainer.average.state_dict()['mapping.w_avg'], random_state(eg3d_shapes(size), seed=2)['backbone.mapping.w_avg']
    )
    trainer.step(next(trainer.loader()))
    result = CliRunner().invoke(legacy.main, [str(path), str(tmp_path / 'start.pkl'), '--cfg=debug', '--seed=4'])
    assert result.exit_code == 0, result.output
    assert 'adapted, ' in result.output
    snapshot = load_snapshot(tmp_path / 'start.pkl')
    assert snapshot.config.seed == 4
    again = tiny_trainer(tmp_path, resume=str(tmp_path / 'start.pkl'))
    assert all('  ' not in line[:2] for line in warm_start(again, again.config))


def test_summaries_are_exact() -> None:
    labels = {
        'a.b4.w': 1, 'a.b8.w': 1, 'a.b4.v': 2, 'a.b8.v': 2, 'c.0.w': 1, 'c.1.w': 1, 'd.b4.w': 1, 'd.b8.w': 2, 'e': 1,
    }  # fmt: skip
    chosen = functools.partial(summarize, labels=labels)
    assert chosen({name for name, label in labels.items() if label == 1}) == ['a.b*.w', 'c.*', 'd.b4.w', 'e']
    assert chosen({name for name, label in labels.items() if label == 2}) == ['a.b*.v', 'd.b8.w']


def test_transfer_leaves_what_is_not_found() -> None:
    layer = nn.Linear(2, 2)
    before = layer.bias.detach().clone()
    outcomes = transfer(layer, lambda name, own: Found(torch.ones_like(own)) if name == 'weight' else Found(None, 'no'))
    assert torch.equal(layer.weight, torch.ones(2, 2))
    assert torch.equal(layer.bias, before)
    assert outcomes['bias'].note == 'no'
