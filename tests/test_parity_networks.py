"""Networks against the public release's numbers (SPEC section 7), stage by stage.

Tolerance: four times the noise floor recorded for the stage, or 1e-5 of the largest magnitude where none is.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases_networks import modulated
from tests.cases_parity import assert_gradients, assert_parity
from torch_utils.ops.conv2d_resample import conv2d_resample
from training.blending import BlendingNet
from training.layers import MappingNetwork, filtered_resize
from training.legacy import discriminator_config, generator_config, load_discriminator_state, rename_generator_state
from training.static_planes import StaticPlanes
from training.style_unet import build_mouth_unet
from training.stylegan2 import SynthesisLayer
from training.superres import SuperResolution
from training.texture import TextureGenerator


@pytest.fixture(scope='module')
def case(parity_fixture: dict) -> dict:
    return parity_fixture


@pytest.fixture(scope='module')
def config(case: dict) -> Any:
    return generator_config(case['G_kwargs'])


@pytest.fixture(scope='module')
def load(case: dict) -> Any:
    """load(module, prefix): the module filled with the release's weights of that prefix."""
    state = rename_generator_state(case['G_state'])

    def fill(module: nn.Module, prefix: str) -> nn.Module:
        own = {name[len(prefix) :]: value.float() for name, value in state.items() if name.startswith(prefix)}
        module.load_state_dict(own)
        return module.eval().requires_grad_(False)

    return fill


@pytest.fixture(scope='module')
def front_plane(case: dict, config: Any, load: Any) -> Tensor:
    """The release's front plane (stored thinned out), rebuilt from its texture and recorded uv."""
    texture = load(TextureGenerator(config), 'texture.')(case['stages']['ws'][:, 14:])
    assert_parity('textures', texture, case)
    uv = case['stages']['raster']['uv_raster_front'].permute(0, 2, 3, 1)
    plane = F.grid_sample(texture, uv, align_corners=False)
    assert_parity('front plane', plane, case, reference=case['stages']['raster']['rendering_images'][0])
    return plane


def test_mapping(case: dict, config: Any, load: Any) -> None:
    stage = case['stages']['mapping']
    mapping = MappingNetwork(config.z_dim, config.label_dim, config.w_dim, 28, num_layers=config.mapping_layers)
    load(mapping, 'mapping.')
    torch.testing.assert_close(mapping.w_avg, stage['w_avg_before'], rtol=0, atol=0)
    ws = mapping(case['inputs']['z'], stage['cond'])
    assert_parity('ws', ws, case, reference=stage['ws'])
    assert_parity('psi 0.7', mapping.truncate(ws, 0.7), case, reference=stage['ws_psi07'])
    cut = mapping.truncate(ws, 0.7, cutoff=14)
    assert_parity('psi 0.7, cutoff 14', cut, case, reference=stage['ws_psi07_cut14'])
    mapping.update_w_avg(ws, beta=0.998)
    assert_parity('w_avg', mapping.w_avg, case, reference=stage['w_avg_after_update_emas'])


def test_static_planes(case: dict, config: Any, load: Any) -> None:
    planes = load(StaticPlanes(config), 'static.')(case['stages']['ws'][:, :14])
    assert_parity('static_planes', planes.flatten(1, 2), case)


def test_mouth_network_and_blending_net(case: dict, config: Any, load: Any, front_plane: Tensor) -> None:
    stages = case['stages']
    ws = stages['ws'][:, :14]

    def resize(image: Tensor, height: int, width: int) -> Tensor:
        return F.interpolate(image, size=(height, width), mode='bilinear', align_corners=False, antialias=True)

    boxes = [tuple(box) for box in stages['mouth']['boxes'].tolist()]
    crops = [resize(front_plane[n : n + 1, :, a:b, c:d], 64, 64) for n, (a, b, c, d) in enumerate(boxes)]
    crop = torch.cat(crops)
    assert_parity('mouth_crop', crop, case, reference=stages['mouth']['crop'])
    mouth = load(build_mouth_unet(config), 'teeth.unet.')(crop, ws)
    assert_parity('mouth_out', mouth, case, reference=stages['mouth']['out'])
    stitched = front_plane.clone()
    for n, (a, b, c, d) in enumerate(boxes):
        stitched[n, :, a:b, c:d] = resize(mouth[n : n + 1], b - a, d - c)[0]
    assert_parity('stitched', stitched, case)
    blended = load(BlendingNet(config), 'blending.')(stitched[:, None], mouth[:, None], ws)
    assert_parity('blended_front', blended[:, 0], case)


def test_super_resolution_of_the_generator(case: dict, config: Any, load: Any) -> None:
    stages = case['stages']
    network = load(SuperResolution(config), 'superres.')
    image = network(stages['sr']['x_in'], stages['sr']['rgb_in'], stages['ws'][:, :14])
    assert_parity('image', image, case, reference=stages['out']['image'])


@pytest.mark.parametrize(('name', 'resolution'), [('SuperresolutionHybrid8XDC', 512), ('SuperresolutionHybrid2X', 128)])
def test_super_resolution_variants(case: dict, config: Any, name: str, resolution: int) -> None:
    recorded = case['sr_modules'][name]
    network = SuperResolution(dataclasses.replace(config, image_resolution=resolution))
    state = {key: value.float() for key, value in recorded['state'].items() if not key.endswith('noise_strength')}
    network.load_state_dict(state)
    features = recorded['x']
    before = features.clone()
    with torch.no_grad():
        image = network(features, features[:, :3], recorded['ws_last'][:, None].expand(-1, 14, -1))
    assert_parity(name, image, case, reference=recorded['out'])
    torch.testing.assert_close(features, before, rtol=0, atol=0)  # the release's x2 wrote its skip in here


@pytest.fixture(scope='module')
def discriminator(case: dict) -> Any:
    return load_discriminator_state(case['D_state'], case['D_kwargs'])


def discriminator_inputs(case: dict) -> dict[str, Tensor]:
    out, label = case['stages']['out'], case['inputs']['c']
    return {
        'image': torch.cat([out['image'], -out['image'].flip(-1)]),
        'image_raw': torch.cat([out['image_raw'], -out['image_raw'].flip(-1)]),
        'label': torch.cat([label, 0.9 * label.flip(0)]),
    }


@pytest.mark.parametrize('batch', [1, 2, 4])
def test_discriminator_logits(case: dict, discriminator: Any, batch: int) -> None:
    inputs = {name: value[:batch] for name, value in discriminator_inputs(case).items()}
    with torch.no_grad():
        logits = discriminator(**inputs)
    assert_parity('logits', logits, case, reference=case['stages']['disc'][f'logits_b{batch}'])


def test_r1_penalty_and_its_gradients(case: dict, discriminator: Any) -> None:
    stage = case['stages']['r1']
    inputs = discriminator_inputs(case)
    sources = [inputs['image'].requires_grad_(), inputs['image_raw'].requires_grad_()]
    by_image, by_raw = torch.autograd.grad(discriminator(**inputs).sum(), sources, create_graph=True)
    penalty = by_image.square().sum([1, 2, 3]) + by_raw.square().sum([1, 2, 3])
    assert_parity('penalty', penalty.detach(), case, reference=stage['penalty'])
    assert_parity('grad_image', by_image.detach(), case, reference=stage['grad_image'])
    assert_parity('grad_raw', by_raw.detach(), case, reference=stage['grad_raw'])
    discriminator.zero_grad()
    (penalty.mean() * (stage['gamma'] / 2)).backward()
    assert_gradients(discriminator, stage['dparams'], rename=release_name(case))


def test_gradients_of_the_discriminator_on_real_images(case: dict, discriminator: Any) -> None:
    stage = case['stages']['dreal']
    discriminator.zero_grad()
    loss = F.softplus(-discriminator(**discriminator_inputs(case))).mean()
    assert loss.item() == pytest.approx(stage['loss'], rel=1e-6)
    loss.backward()
    assert_gradients(discriminator, stage['dparams'], rename=release_name(case))


def release_name(case: dict) -> Any:
    top = f'b{discriminator_config(case["D_kwargs"]).image_resolution}.fromrgb.'
    return lambda name: name.replace('fromrgb.', top)


def test_filtered_resizing(case: dict) -> None:
    stage, out = case['stages']['filtered_resizing'], case['stages']['out']
    down, up = filtered_resize(out['image'], 32), filtered_resize(out['image_raw'], 256)
    assert_parity('raw_from_image', down, case, reference=stage['raw_from_image'])
    assert_parity('up_raw', up, case, reference=stage['up_raw'])


def test_convolutions(case: dict) -> None:
    ops = case['ops']
    x, w3, w1, styles = ops['x'], ops['w3'], ops['w1'], ops['styles']
    filter2d = {'resample_filter': ops['filter']}
    results = {
        'conv_same': conv2d_resample(x, w3),
        'conv_up': conv2d_resample(x, w3, up=2, **filter2d),
        'conv_down': conv2d_resample(x, w3, down=2, **filter2d),
        'conv1x1_down': conv2d_resample(x, w1, down=2, **filter2d),
        'modconv_same': modulated(x, w3, styles),
        'modconv_torgb': modulated(x, w1, styles, demodulate=False),
        'modconv_up_noise': modulated(x, w3, styles, up=2) + ops['noise'],
        'aa_resize_24': filtered_resize(ops['aa_resize_in'], 24),
        'aa_resize_64': filtered_resize(ops['aa_resize_in'], 64),
    }
    for name, result in results.items():
        assert_parity(name, result, case, reference=ops[name])


def test_synthesis_layer_adds_noise_before_bias_and_activation() -> None:
    torch.manual_seed(0)
    layer = SynthesisLayer(3, 5, w_dim=4, resolution=8)
    assert layer.noise_strength is not None
    nn.init.constant_(layer.noise_strength, 0.5)
    nn.init.constant_(layer.bias, -0.2)
    x, w = torch.randn(2, 3, 8, 8), torch.randn(2, 4)
    noisy = modulated(x, layer.weight, layer.affine(w)) + 0.5 * layer.noise_const - 0.2
    torch.testing.assert_close(layer(x, w), 2**0.5 * F.leaky_relu(noisy, 0.2))
