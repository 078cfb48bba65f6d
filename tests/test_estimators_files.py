"""Estimators from users' weights, on made-up files: names, crops, arithmetic against other code, messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnnlib import UserError
from dnnlib.files import sha256_file
from metrics.estimators import crops
from metrics.estimators.arcface import TEMPLATE, ArcFace, alignment
from metrics.estimators.flame_trackers import DECA_SCALE, FlameTracker
from metrics.estimators.loading import load_features, load_head_estimator, load_identity_embedder
from metrics.estimators.vit import TransformerFeatures
from tests import cases_estimators as cases
from training import cameras
from training.head import load_head_model

Maker = cases.Maker


def pictures(count: int = 3, side: int = 96, *, seed: int = 0) -> Tensor:
    """Smooth random uint8 pictures."""
    rng = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 8, 8, generator=rng) * 255
    large = F.interpolate(small, size=(side, side), mode='bicubic', align_corners=False)
    return large.clamp(0, 255).to(torch.uint8)


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def deca_file(path: Path) -> Path:
    make = Maker(1)
    cases.regression_state(make, '', 236, blocks=(1, 2, 1, 1))
    return save(path / 'deca_model.tar', {'E_flame': make.state, 'E_detail': {}, 'D_detail': {}})


def emoca_file(path: Path) -> Path:
    make = Maker(2)
    cases.regression_state(make, 'deca.E_flame.', 236)
    cases.regression_state(make, 'deca.E_expression.', 50)
    return save(path / 'emoca.ckpt', {'state_dict': make.state})


def smirk_file(path: Path) -> Path:
    make = Maker(3)
    features = cases.mobilenet_state(make, 'smirk_encoder.pose_encoder.encoder.', 'small')
    make.linear('smirk_encoder.pose_encoder.pose_cam_layers.0', 6, features)
    features = cases.mobilenet_state(make, 'smirk_encoder.expression_encoder.encoder.', 'large')
    make.linear('smirk_encoder.expression_encoder.expression_layers.0', 55, features)
    make.weight('smirk_generator.first.weight', 2, 2)
    return save(path / 'SMIRK_em1.pt', make.state)


FILES: dict[str, Callable[[Path], Path]] = {'deca': deca_file, 'emoca': emoca_file, 'smirk': smirk_file}


# FLAME trackers.


@pytest.mark.parametrize('kind', FILES)
def test_tracker_estimates_each_image_by_itself(kind: str, tmp_path: Path) -> None:
    path = FILES[kind](tmp_path)
    estimator = load_head_estimator(f'{kind}:{path}')
    assert (estimator.name, estimator.head_model) == (kind, 'flame')
    assert estimator.content_hash == sha256_file(path)
    images = pictures()
    together = estimator(images)
    assert together.expression is not None
    assert together.jaw is not None
    assert together.rotation is not None
    assert together.gaze is None
    assert list(together.expression.shape) == [3, 50]
    assert together.valid.all()
    for row in range(3):
        alone = estimator(images[row : row + 1])
        for name in ('expression', 'jaw', 'rotation'):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[row])
    assert not torch.equal(together.expression[0], together.expression[1])
    assert len(estimator(images[:0])) == 0


def test_deca_numbers_are_where_deca_puts_them(tmp_path: Path) -> None:
    """shape 100, texture 50, expression 50, pose 6 (turn, jaw), camera 3, light 27; axes turned to the camera's."""
    path = deca_file(tmp_path)
    content = torch.load(path, weights_only=True)
    content['E_flame']['layers.2.weight'].zero_()
    content['E_flame']['layers.2.bias'] = torch.arange(236.0)
    estimate = FlameTracker('deca', save(path, content))(pictures(1))
    assert estimate.expression is not None
    assert estimate.jaw is not None
    assert estimate.rotation is not None
    assert torch.equal(estimate.expression[0], torch.arange(150.0, 200.0))
    assert torch.equal(estimate.jaw[0], torch.tensor([203.0, 204.0, 205.0]))
    assert torch.equal(estimate.rotation[0], torch.tensor([200.0, -201.0, -202.0]))


def test_smirk_bounds_its_jaw(tmp_path: Path) -> None:
    path = smirk_file(tmp_path)
    content = torch.load(path, weights_only=True)
    layer = 'smirk_encoder.expression_encoder.expression_layers.0'
    content[f'{layer}.weight'].zero_()
    content[f'{layer}.bias'] = torch.cat([torch.arange(52.0), torch.tensor([-0.3, 0.5, -0.5])])
    estimate = FlameTracker('smirk', save(path, content))(pictures(1))
    assert estimate.expression is not None
    assert estimate.jaw is not None
    assert torch.equal(estimate.expression[0], torch.arange(50.0))
    assert torch.equal(estimate.jaw[0], torch.tensor([0.0, 0.2, -0.2]))


def test_resnet_agrees_with_arithmetic_by_hand(tmp_path: Path) -> None:
    """One bottleneck of the made-up DECA, written out with torch's functions."""
    make = Maker(5)
    cases.regression_state(make, '', 236, blocks=(3, 4, 6, 3))  # all of ResNet-50's blocks
    path = save(tmp_path / 'deca_model.tar', {'E_flame': make.state})
    module = FlameTracker('deca', path).module
    block = module.get_submodule('flame.encoder.layer2.0')
    x = torch.randn(2, 8, 12, 12, generator=torch.Generator().manual_seed(0))
    state = make.state

    def norm(y: Tensor, name: str) -> Tensor:
        name = f'encoder.layer2.0.{name}'
        mean, variance = state[f'{name}.running_mean'], state[f'{name}.running_var']
        return F.batch_norm(y, mean, variance, state[f'{name}.weight'], state[f'{name}.bias'], eps=1e-5)

    y = F.relu(norm(F.conv2d(x, state['encoder.layer2.0.conv1.weight']), 'bn1'))
    y = F.relu(norm(F.conv2d(y, state['encoder.layer2.0.conv2.weight'], stride=2, padding=1), 'bn2'))
    y = norm(F.conv2d(y, state['encoder.layer2.0.conv3.weight']), 'bn3')
    y = F.relu(y + norm(F.conv2d(x, state['encoder.layer2.0.downsample.0.weight'], stride=2), 'downsample.1'))
    assert torch.allclose(block(x), y, atol=1e-6)


def test_locator_moves_the_crop_and_says_what_is_valid(tmp_path: Path) -> None:
    """A picture shifted together with its landmarks gives the same estimate; without a face it is not valid."""
    path = deca_file(tmp_path)
    picture = pictures(1, 120)[0]
    small = picture[:, 20:100, 20:100]
    box = torch.tensor(crops.FRONTAL_BOX).reshape(2, 2)
    landmarks = box[torch.arange(68) % 2]  # only their box counts
    shifted = torch.zeros(3, 120, 120, dtype=torch.uint8)
    shifted[:, 33:113, 7:87] = small
    centred = torch.zeros(3, 120, 120, dtype=torch.uint8)
    centred[:, 20:100, 20:100] = small

    def locate(image: Tensor) -> Tensor | None:
        if image.float().mean() < 1:
            return None
        return landmarks + (torch.tensor([-13.0, 13.0]) / 120 if torch.equal(image, shifted) else 0)

    estimator = load_head_estimator(f'deca:{path}', locator=locate)
    estimate = estimator(torch.stack([centred, shifted, torch.zeros_like(centred)]))
    assert estimate.valid.tolist() == [True, True, False]
    assert estimate.expression is not None
    assert torch.allclose(estimate.expression[0], estimate.expression[1], rtol=1e-3, atol=1e-4)
    without = load_head_estimator(f'deca:{path}')(centred[None])
    assert without.expression is not None
    assert torch.equal(without.expression[0], estimate.expression[0])


# Crops.


def test_frontal_crop_is_the_neutral_heads() -> None:
    model = load_head_model('makehuman')
    landmarks = cameras.head_to_world(model.forward(model.neutral()).landmarks)
    seen = cameras.project(landmarks, cameras.orbit_camera(torch.zeros(1), torch.zeros(1)))[0][0]
    assert torch.allclose(crops.landmark_box(seen), torch.tensor(crops.FRONTAL_BOX), atol=1e-3)
    assert torch.allclose(crops.five_points(seen), torch.tensor(crops.FRONTAL_FIVE), atol=1e-3)


@pytest.mark.parametrize('side', [40, 128, 400])
def test_crop_puts_points_where_the_map_says(side: int) -> None:
    """A bright spot at a known place of the crop, drawn through the map, is found there, at any size."""
    matrix = crops.square_crop(torch.tensor(crops.FRONTAL_BOX), scale=DECA_SCALE)
    turn = torch.tensor([[0.9, -0.2], [0.2, 0.9]])
    matrix = torch.cat([turn @ matrix[:, :2], matrix[:, 2:] + 0.1], dim=1)
    place = torch.tensor([0.3, 0.6])
    column, row = matrix[:, :2] @ place + matrix[:, 2]
    centres = (torch.arange(side) + 0.5) / side
    spot = torch.exp(-((centres[:, None] - row) ** 2 + (centres[None] - column) ** 2) / (2 * 0.04**2))
    crop = crops.crop_image((2 * spot - 1).expand(1, 3, side, side), matrix, size=100)[0, 0] + 1
    centres = (torch.arange(100) + 0.5) / 100
    found = torch.stack([(crop.sum(dim=0) * centres).sum(), (crop.sum(dim=1) * centres).sum()]) / crop.sum()
    assert torch.allclose(found, place, atol=0.004)


def test_alignment_carries_the_template_to_the_face() -> None:
    template = torch.tensor(TEMPLATE) / 112
    turn = torch.tensor([[0.4, -0.1], [0.1, 0.4]])
    points = template @ turn.T + torch.tensor([0.3, 0.2])
    assert torch.allclose(alignment(points), torch.cat([turn, torch.tensor([[0.3], [0.2]])], dim=1), atol=1e-5)


# Identity.


def test_arcface_is_a_unit_vector_with_gradients_and_takes_locators(tmp_path: Path) -> None:
    make = Maker(7)
    cases.arcface_state(make, blocks=(1, 2, 1, 1))
    path = save(tmp_path / 'backbone.pth', make.state)
    embedder = load_identity_embedder(f'arcface:{path}')
    assert (embedder.name, embedder.num_features) == ('arcface', 16)
    images = pictures(2, 128)
    vectors = embedder.embed(images)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2), atol=1e-5)
    assert torch.equal(vectors[1:], embedder.embed(images[1:]))
    floats = (images.float() / 127.5 - 1).requires_grad_()
    assert torch.equal(embedder.embed(floats), vectors)
    embedder.module(floats)[:, 0].sum().backward()
    assert floats.grad is not None
    assert floats.grad.abs().sum() > 0
    frontal = torch.zeros(68, 2)
    for rows, point in zip(([*range(36, 42)], [*range(42, 48)], [30], [48], [54]), crops.FRONTAL_FIVE, strict=True):
        frontal[rows] = torch.tensor(point)
    located = load_identity_embedder(f'arcface:{path}', locator=lambda image: frontal)
    assert torch.allclose(located.embed(images), vectors, atol=1e-5)
    moved = load_identity_embedder(f'arcface:{path}', locator=lambda image: frontal + 0.1)
    assert not torch.allclose(moved.embed(images), vectors, atol=1e-3)


def test_onnx_without_its_runtime_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'w600k_r50.onnx'
    path.write_bytes(b'graph')
    monkeypatch.setattr('metrics.estimators.arcface.importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match='pip install onnxruntime') as caught:
        ArcFace(path)
    assert '\n' not in str(caught.value)


# Transformers.


class Reference(nn.Module):
    """DINO's block with torch's own attention."""

    def __init__(self, state: cases.State, prefix: str, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, width // 64, batch_first=True)
        weights = {'in_proj_weight': 'qkv.weight', 'in_proj_bias': 'qkv.bias'}
        weights |= {'out_proj.weight': 'proj.weight', 'out_proj.bias': 'proj.bias'}
        self.attention.load_state_dict({ours: state[f'{prefix}attn.{name}'] for ours, name in weights.items()})
        self.state, self.prefix, self.width = state, prefix, width

    def forward(self, x: Tensor) -> Tensor:
        def get(name: str) -> tuple[Tensor, Tensor]:
            return self.state[f'{self.prefix}{name}.weight'], self.state[f'{self.prefix}{name}.bias']

        y = F.layer_norm(x, (self.width,), *get('norm1'), eps=1e-6)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = F.layer_norm(x, (self.width,), *get('norm2'), eps=1e-6)
        return x + F.linear(F.gelu(F.linear(y, *get('mlp.fc1'))), *get('mlp.fc2'))


@torch.no_grad()
def test_dino_agrees_with_torchs_attention(tmp_path: Path) -> None:
    make = Maker(9)
    cases.dino_state(make, width=128)
    features = load_features(f'dino:{save(tmp_path / "dino.pth", make.state)}')
    assert isinstance(features, TransformerFeatures)
    image = pictures(1, 224)
    state = make.state
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (image.float() / 255 - mean[:, None, None]) / deviation[:, None, None]
    x = F.conv2d(x, state['patch_embed.proj.weight'], state['patch_embed.proj.bias'], stride=56)
    x = torch.cat([state['cls_token'], x.flatten(2).transpose(1, 2)], dim=1) + state['pos_embed']
    for number in range(2):
        x = Reference(state, f'blocks.{number}.', 128)(x)
    expected = F.layer_norm(x, (128,), state['norm.weight'], state['norm.bias'], eps=1e-6)[:, 0]
    assert torch.allclose(features(image), expected, atol=1e-4)


def test_other_transformers_load_and_treat_each_image_alone(tmp_path: Path) -> None:
    second, clip = Maker(10), Maker(11)
    cases.dino_state(second, second=True)
    cases.clip_state(clip)
    half = {name: value.half() for name, value in clip.state.items()}
    specs = {
        f'dino:{save(tmp_path / "dinov2.pth", second.state)}': 64,
        f'clip:{save(tmp_path / "clip.pt", half)}': 24,
    }
    images = pictures(2, 64)
    for spec, width in specs.items():
        features = load_features(spec)
        assert features.num_features == width
        rows = features(images)
        assert rows.dtype == torch.float32
        assert torch.equal(rows[1:], features(images[1:]))
        assert features.name.startswith(spec[:4])


# Messages.


@pytest.mark.parametrize(
    ('load', 'spec', 'page'),
    [
        (load_head_estimator, 'deca', 'yfeng95/DECA'),
        (load_head_estimator, 'emoca', 'radekd91/emoca'),
        (load_head_estimator, 'smirk', 'georgeretsi/smirk'),
        (load_identity_embedder, 'arcface', 'deepinsight/insightface'),
        (load_features, 'clip', '40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af'),
        (load_features, 'dino', 'facebookresearch/dinov2'),
    ],
)
def test_missing_weights_say_what_where_and_licence(load: Callable, spec: str, page: str, tmp_path: Path) -> None:
    for text, place in ((f'{spec}:{tmp_path / "none.pt"}', str(tmp_path / 'none.pt')), (spec, f'{spec}:PATH')):
        with pytest.raises(UserError) as caught:
            load(text)
        message = str(caught.value)
        assert all(part in message for part in (page, 'licence: ', place))
        assert '\n' not in message


@pytest.mark.parametrize('load', [load_head_estimator, load_identity_embedder, load_features])
def test_unknown_names_list_the_known(load: Callable) -> None:
    with pytest.raises(UserError, match='known: embedded'):
        load('nothing:x')


def test_files_that_are_damaged_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = deca_file(tmp_path)
    content = torch.load(path, weights_only=True)
    del content['E_flame']['encoder.layer2.1.bn2.running_var']
    with pytest.raises(UserError, match=r'layer2\.1\.bn2\.running_var is missing'):
        FlameTracker('deca', save(tmp_path / 'lacking.tar', content))
    content['E_flame']['layers.2.weight'] = torch.zeros(200, 8)
    content['E_flame']['encoder.layer2.1.bn2.running_var'] = torch.ones(4)
    with pytest.raises(UserError, match=r'layers\.2\.weight has shape \[200, 8\], expected \[236, 8\]'):
        FlameTracker('deca', save(tmp_path / 'short.tar', content))
    cut = tmp_path / 'cut.tar'
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match='damaged'):
        FlameTracker('deca', cut)
    with pytest.raises(UserError, match='missing'):
        FlameTracker('deca', save(tmp_path / 'other.tar', {'G_ema': {}}))
    with pytest.raises(UserError, match='holds Tensor'):
        FlameTracker('deca', save(tmp_path / 'tensor.tar', torch.zeros(3)))


class _Trap:
    def __reduce__(self) -> tuple:
        return np.savetxt, ('trap.txt', [1.0])


def test_a_file_with_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / 'deca_model.tar', {'E_flame': _Trap()})
    with pytest.raises(UserError, match='not opened for safety'):
        FlameTracker('deca', path)
    assert not (tmp_path / 'trap.txt').exists()
