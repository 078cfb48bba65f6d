"""Networks: brute-force oracles, gradients of every parameter, batch independence, bad input."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.cases_networks import assert_all_parameters_learn, modulated, perturb, randn, seeded
from torch_utils.ops.conv2d_resample import conv2d_resample
from training.config import GeneratorConfig, preset
from training.discriminator import DualDiscriminator
from training.ema import update_ema
from training.layers import Conv2d, FullyConnected, MappingNetwork, filtered_resize
from training.static_planes import StaticPlanes
from training.style_unet import ShallowUNet, StyleUNet, build_blending_unet, build_mouth_unet
from training.stylegan2 import SynthesisNetwork, block_ws, num_synthesis_ws
from training.superres import SuperResolution
from training.texture import TextureGenerator

DEBUG = preset('debug').generator
FILTER = torch.tensor([1.0, 3.0, 3.0, 1.0]).outer(torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64


def zero_insertion_up(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x2 by definition: zeros between pixels, true convolution by weight, then by the filter with gain 4."""
    batch, channels, height, width = x.shape
    taps = weight.shape[-1] // 2
    canvas = x.new_zeros(batch, channels, 2 * height + 8, 2 * width + 8)
    canvas[:, :, 4:-4:2, 4:-4:2] = x
    spread = F.conv2d(F.pad(canvas, [taps] * 4), weight.flip([2, 3]))
    kernel = 4 * FILTER.to(x)[None, None].expand(weight.shape[0], 1, 4, 4)
    return F.conv2d(spread, kernel, groups=weight.shape[0])[:, :, 2 : 2 + 2 * height, 2 : 2 + 2 * width]


@pytest.mark.parametrize('kernel', [1, 3])
def test_conv2d_resample_follows_the_definition(kernel: int) -> None:
    x, weight = randn(2, 3, 6, 6).double(), randn(4, 3, kernel, kernel, seed=1).double()
    filter2d = FILTER.double()
    same = conv2d_resample(x, weight)
    torch.testing.assert_close(same, F.conv2d(x, weight, padding=kernel // 2))
    up = conv2d_resample(x, weight, resample_filter=filter2d, up=2)
    torch.testing.assert_close(up, zero_insertion_up(x, weight))
    # Down: filter over a padded image, convolve at stride 1 without further padding, keep every second pixel.
    pad = kernel // 2 + 1
    depthwise = filter2d[None, None].expand(3, 1, 4, 4)
    reference = F.conv2d(F.conv2d(F.pad(x, [pad] * 4), depthwise, groups=3), weight)[:, :, ::2, ::2]
    down = conv2d_resample(x, weight, resample_filter=filter2d, down=2)
    torch.testing.assert_close(down, reference)


def test_conv2d_resample_differentiates_twice() -> None:
    x = randn(1, 2, 4, 4).double().requires_grad_()
    weight = randn(2, 2, 3, 3, seed=1).double().requires_grad_()
    for direction in ({'up': 2}, {'down': 2}):
        assert torch.autograd.gradgradcheck(
            lambda x, w, d=direction: conv2d_resample(x, w, resample_filter=FILTER.double(), **d), (x, weight)
        )


@pytest.mark.parametrize('demodulate', [True, False])
def test_modulated_convolution_equals_per_sample_kernels(demodulate: bool) -> None:
    x, weight, styles = randn(3, 4, 5, 5), randn(6, 4, 3, 3, seed=1), 1 + randn(3, 4, seed=2)
    result = modulated(x, weight, styles, demodulate=demodulate)
    for index in range(3):
        kernel = weight * styles[index].view(1, -1, 1, 1)
        if demodulate:
            kernel = kernel / (kernel.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        reference = F.conv2d(x[index : index + 1], kernel, padding=1)
        torch.testing.assert_close(result[index : index + 1], reference, rtol=1e-4, atol=1e-5)


def test_equalized_learning_rate_keeps_unit_variance() -> None:
    torch.manual_seed(0)
    layer = FullyConnected(256, 512, lr_multiplier=0.01)
    assert layer(randn(64, 256, seed=1)).std().item() == pytest.approx(1, abs=0.05)
    assert layer.weight.std().item() == pytest.approx(100, rel=0.02)
    conv = Conv2d(64, 64, activation='lrelu')
    assert conv(randn(2, 64, 16, 16, seed=1)).square().mean().item() == pytest.approx(1, abs=0.15)


def test_mapping_is_pure_and_truncates() -> None:
    torch.manual_seed(0)
    mapping = MappingNetwork(16, 25, 8, 6, num_layers=2)
    z, label = randn(5, 16), randn(5, 25, seed=1)
    ws = mapping(z, label)
    assert ws.shape == (5, 6, 8)
    assert mapping.w_avg.abs().max() == 0
    torch.testing.assert_close(ws, mapping(10 * z, label), rtol=1e-4, atol=1e-6)  # only the direction of z counts
    mapping.update_w_avg(ws, beta=0.9)
    torch.testing.assert_close(mapping.w_avg, 0.1 * ws[:, 0].mean(dim=0).detach())
    half = mapping.truncate(ws, 0.5, cutoff=2)
    torch.testing.assert_close(half[:, :2], (ws[:, :2] + mapping.w_avg) / 2)
    torch.testing.assert_close(half[:, 2:], ws[:, 2:])
    torch.testing.assert_close(mapping.truncate(ws, 0)[:, 5], mapping.w_avg.expand(5, -1))
    assert mapping.truncate(ws, 1) is ws
    assert 'embed.weight' not in MappingNetwork(16, 0, 8, 6, num_layers=2).state_dict()
    assert MappingNetwork(16, 0, 8, 6, num_layers=2)(z, None).shape == (5, 6, 8)
    with pytest.raises(ValueError, match=r'z: expected \[N, 16\], got \[5, 15\]'):
        mapping(z[:, :15], label)
    with pytest.raises(ValueError, match=r'label: expected \[N, 25\], got None'):
        mapping(z, None)


def test_block_slices_are_those_of_the_release() -> None:
    slices = {resolution: block_ws(resolution) for resolution in (4, 8, 16, 32, 64, 128, 256)}
    assert [(s.start, s.stop) for s in slices.values()] == [
        (0, 2), (1, 4), (3, 6), (5, 8), (7, 10), (9, 12), (11, 14),
    ]  # fmt: skip
    assert [num_synthesis_ws(resolution) for resolution in (4, 16, 64, 256)] == [2, 6, 10, 14]


def test_synthesis_noise_batch_independence_and_gradients() -> None:
    torch.manual_seed(0)
    network = perturb(SynthesisNetwork(8, 16, 5, channel_base=128, channel_max=12))
    ws = randn(3, network.num_ws, 8)
    result = network(ws)
    assert result.shape == (3, 5, 16, 16)
    torch.testing.assert_close(result, network(ws))  # constant noise
    for index in range(3):
        torch.testing.assert_close(result[index : index + 1], network(ws[index : index + 1]), rtol=1e-4, atol=1e-5)
    noisy = network(ws, rng=seeded(1))
    assert (noisy - result).abs().max() > 1e-3
    torch.testing.assert_close(noisy, network(ws, rng=seeded(1)))
    assert_all_parameters_learn(network, result.square().mean())
    with pytest.raises(ValueError, match=r'ws: expected \[N, 6, 8\], got \[3, 5, 8\]'):
        network(ws[:, :5])
    with pytest.raises(ValueError, match='resolution: expected a power of two'):
        SynthesisNetwork(8, 24, 5, channel_base=128, channel_max=12)


def test_channels_last_gives_the_same_numbers() -> None:
    torch.manual_seed(0)
    conv = Conv2d(8, 8, activation='lrelu', down=2)
    unet = perturb(ShallowUNet(6, 3, width=4))
    discriminator = perturb(DualDiscriminator(preset('debug').discriminator))
    x = randn(2, 8, 8, 8)
    torch.testing.assert_close(conv(x.to(memory_format=torch.channels_last)), conv(x))
    y = randn(2, 6, 8, 8)
    torch.testing.assert_close(unet(y.to(memory_format=torch.channels_last)), unet(y), rtol=1e-4, atol=1e-5)
    inputs = {'image': randn(2, 3, 16, 16), 'image_raw': randn(2, 3, 8, 8), 'template': randn(2, 3, 16, 16, seed=1)}
    label = randn(2, 25)
    plain = discriminator(**inputs, label=label)
    discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = {name: value.to(memory_format=torch.channels_last) for name, value in inputs.items()}
    torch.testing.assert_close(discriminator(**inputs, label=label), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('stage', [TextureGenerator, StaticPlanes])
def test_backbones(stage: type) -> None:
    torch.manual_seed(0)
    network = stage(DEBUG)
    out = perturb(network)(randn(2, network.num_ws, DEBUG.w_dim))
    size = DEBUG.plane_resolution
    expected = (2, 8, size, size) if stage is TextureGenerator else (2, 3, 8, size, size)
    assert out.shape == expected
    assert_all_parameters_learn(network, out.square().mean())


MOUTHS = {
    'paper': GeneratorConfig(w_dim=8, channel_base=256, channel_max=12, plane_channels=4, mouth_channels=24),
    'paper front': GeneratorConfig(
        w_dim=8, channel_base=256, channel_max=12, plane_channels=4, mouth_channels=24, mouth_planes='front'
    ),
    'release': GeneratorConfig(
        w_dim=8, channel_base=256, channel_max=12, plane_channels=4, mouth_channels=0, mouth_planes='front'
    ),
    'debug': DEBUG,
}


@pytest.mark.parametrize('name', MOUTHS)
def test_mouth_unet(name: str) -> None:
    torch.manual_seed(0)
    config = MOUTHS[name]
    unet = perturb(build_mouth_unet(config))
    channels = config.plane_channels * (3 if config.mouth_planes == 'all' else 1)
    crop = randn(2, channels, config.mouth_resolution, config.mouth_resolution)
    ws = randn(2, num_synthesis_ws(config.plane_resolution), config.w_dim)
    out = unet(crop, ws)
    size = config.plane_resolution if config.mouth_channels == 0 else config.mouth_resolution
    assert out.shape == (2, channels, size, size)
    torch.testing.assert_close(out[1:], unet(crop[1:], ws[1:]), rtol=1e-4, atol=1e-5)
    assert (unet(crop, ws, rng=seeded()) - out).abs().max() > 1e-3
    assert_all_parameters_learn(unet, out.square().mean())
    with pytest.raises(ValueError, match='x: expected'):
        unet(crop[:, 1:], ws)


def test_paper_mouth_unet_has_figure_12_sizes() -> None:
    with torch.device('meta'):
        unet = build_mouth_unet(GeneratorConfig())
    assert unet.encoder_resolutions == [64, 32, 16]  # features at 32, 16, 8
    assert unet.block_resolutions == [16, 32, 64]
    assert unet.get_parameter('b64.conv1.weight').shape == (768, 768, 3, 3)  # 768 feature maps of 64^2
    assert unet.get_parameter('encoder.0.from_planes.weight').shape == (768, 96, 1, 1)
    assert unet.get_parameter('b64.torgb.weight').shape == (96, 768, 1, 1)


def test_style_unet_refuses_a_bottleneck_that_is_not_below() -> None:
    with pytest.raises(ValueError, match='bottleneck_resolution: expected below 16, got 16'):
        StyleUNet(8, 3, 3, in_resolution=16, out_resolution=32, bottleneck_resolution=16, widths=lambda at: 4)


def test_blending_unets() -> None:
    torch.manual_seed(0)
    release = perturb(build_blending_unet(DEBUG))
    plane = randn(2, 8, 16, 16)
    out = release(plane, randn(2, 6, DEBUG.w_dim))
    assert out.shape == plane.shape
    assert_all_parameters_learn(release, out.square().mean())

    shallow = ShallowUNet(16, 8, width=8)
    stacked = randn(2, 16, 16, 16)
    out = shallow(stacked)
    assert out.shape == (2, 8, 16, 16)
    assert (out - stacked[:, :8]).square().mean() < 0.02  # starts near the identity
    assert_all_parameters_learn(shallow, out.square().mean())
    with pytest.raises(ValueError, match='out_channels: expected at most in_channels = 3, got 8'):
        ShallowUNet(3, 8, width=8)


@pytest.mark.parametrize(
    ('superres', 'render', 'image'),
    [('stylegan2', 8, 64), ('stylegan2', 8, 16), ('hybrid', 64, 128), ('hybrid', 64, 256)],
)
def test_super_resolution(superres: Any, render: int, image: int) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(
        DEBUG, superres=superres, render_resolution=render, image_resolution=image, superres_channels=32
    )
    network = perturb(SuperResolution(config))
    features, ws = randn(1, 8, render, render), randn(1, 6, config.w_dim)
    before = features.clone()
    out = network(features, features[:, :3], ws)
    assert out.shape == (1, 3, image, image)
    torch.testing.assert_close(features, before, rtol=0, atol=0)  # the skip is not written into the caller's image
    assert not any('noise' in name for name in network.state_dict())
    torch.testing.assert_close(out, network(features, features[:, :3], torch.cat([ws, 9 + ws], dim=1)))
    assert network(features[..., ::2, ::2], features[:, :3, ::2, ::2], ws).shape == out.shape
    assert_all_parameters_learn(network, out.square().mean())


def test_super_resolution_sizes() -> None:
    network = SuperResolution(
        dataclasses.replace(DEBUG, render_resolution=8, image_resolution=64, superres_channels=32)
    )
    widths = [getattr(network, f'block{index}').conv1.weight.shape[0] for index in range(3)]
    assert (network.num_blocks, widths) == (3, [32, 16, 8])
    same = SuperResolution(dataclasses.replace(DEBUG, render_resolution=16, image_resolution=16))
    assert not list(same.parameters())
    rgb = randn(1, 3, 16, 16)
    assert same(randn(1, 8, 16, 16), rgb, randn(1, 6, 16)) is rgb
    with pytest.raises(ValueError, match="superres 'hybrid' exists for 512, 256, 128, got 64"):
        SuperResolution(dataclasses.replace(DEBUG, superres='hybrid', image_resolution=64))
    with pytest.raises(ValueError, match='image_resolution: expected at least render_resolution = 32, got 16'):
        SuperResolution(dataclasses.replace(DEBUG, render_resolution=32, image_resolution=16))


def test_filtered_resize_keeps_the_mean() -> None:
    image = randn(1, 3, 32, 32)
    torch.testing.assert_close(filtered_resize(image, 8).mean(), image.mean(), rtol=0.1, atol=0.02)
    assert filtered_resize(image, 32) is image
    assert math.isclose(filtered_resize(torch.ones(1, 3, 8, 8), 24).min().item(), 1, rel_tol=1e-6)


def test_bf16_autocast_stays_close_and_ends_in_float32() -> None:
    torch.manual_seed(0)
    texture = perturb(TextureGenerator(DEBUG))
    mouth = perturb(build_mouth_unet(DEBUG))
    superres = perturb(SuperResolution(DEBUG))
    discriminator = perturb(DualDiscriminator(preset('debug').discriminator))
    ws, crop, features = randn(2, 6, 16), randn(2, 24, 16, 16), randn(2, 8, 8, 8)
    image, label = randn(2, 3, 16, 16), randn(2, 25)

    def results() -> list[torch.Tensor]:
        return [
            texture(ws),
            mouth(crop, ws),
            superres(features, features[:, :3], ws),
            discriminator(image=image, image_raw=image[..., ::2, ::2], label=label, template=image),
        ]

    exact = results()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        rounded = results()
    for one, other in zip(exact, rounded, strict=True):
        assert other.dtype == torch.float32
        assert 0 < (one - other).square().mean() < 1e-3 * one.square().mean()
    torch.stack([result.square().mean() for result in rounded]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in texture.parameters())


def test_derived_weights_follow_the_weights() -> None:
    """In evaluation mode casts and sums are kept; every way of changing a weight is noticed."""
    torch.manual_seed(0)
    network = perturb(SynthesisNetwork(8, 16, 4, channel_base=128, channel_max=16)).eval().requires_grad_(False)
    convolution = Conv2d(4, 4).eval().requires_grad_(False)
    other = {name: value + 0.1 for name, value in network.state_dict().items()}
    ws = randn(2, network.num_ws, 8)

    def results() -> list[torch.Tensor]:
        with torch.no_grad():
            plain = network(ws), convolution(randn(1, 4, 8, 8))
            with torch.autocast('cpu', torch.bfloat16):
                return [*plain, network(ws)]

    def fresh() -> list[torch.Tensor]:
        for module in (network, convolution):
            module.train()
        values = results()
        for module in (network, convolution):
            module.eval()
        return values

    def kept() -> int:
        return sum(len(p.__dict__.get('next3d_derived', {})) for m in (network, convolution) for p in m.parameters())

    assert kept() == 0
    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: network.load_state_dict(other),
        lambda: update_ema(network, perturb(copy.deepcopy(network)), beta=0.5),
        lambda: network.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        lambda: convolution.weight.mul_(3),
    ]
    for change in changes:
        with torch.no_grad():
            change()
        expected = fresh()
        for _ in range(2):
            for ours, theirs in zip(results(), expected, strict=True):
                torch.testing.assert_close(ours, theirs)
        assert kept() > 10
    network.requires_grad_(True)
    assert network(ws).requires_grad
