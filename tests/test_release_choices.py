"""The release presets, choice by choice (SPEC), and what the fields do that no other test touches."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cases_geometry import ellipsoid_template, posed
from PIL import Image

from dnnlib import UserError
from training.cameras import orbit_camera
from training.config import TrainConfig, preset, to_dict
from training.dataset import HeadDataset
from training.head import load_head_model
from training.head.obj import write_obj
from training.legacy_topology import template_from_obj
from training.loss import blur
from training.rasterized_planes import TextureRasterizer
from training.run_directory import changed_fields
from training.static_planes import StaticPlanes

ROOT = Path(__file__).resolve().parent.parent
RELEASE = {
    # SPEC section 1: sizes
    'z_dim': 512, 'w_dim': 512, 'label_dim': 25, 'mapping_layers': 2, 'label_scale': 1.0, 'plane_resolution': 256,
    'plane_channels': 32, 'channel_base': 32768, 'channel_max': 512, 'render_resolution': 64, 'depth_samples': 48,
    'importance_samples': 48, 'ray_near': 2.25, 'ray_far': 3.3, 'box_size': 1.0, 'decoder_hidden': 64,
    # sections 2 to 5: what the paper does otherwise
    'plane_aggregation': 'mean', 'plane_layout': 'release', 'side_alpha': 'one_sided', 'alpha_fill': 'release',
    'template_transform': 'constant', 'mouth_source': 'teeth', 'mouth_planes': 'front', 'mouth_box': 'rounded',
    'mouth_resolution': 64, 'mouth_channels': 0, 'blending': 'release', 'superres': 'hybrid', 'dynamic_planes': 'all',
    'static_planes': 'three', 'superres_channels': 256,
}  # fmt: skip
RELEASE_D = {
    'label_dim': 75, 'template': 'none', 'label_noise': 1.0, 'channel_base': 32768, 'channel_max': 512,
    'mapping_layers': 8, 'mbstd_group_size': 4,
}  # fmt: skip
RELEASE_LOSS = {
    'r1_gamma': 4.0, 'r1_interval': 16, 'density_weight': 0.25, 'density_interval': 4, 'density_norm': 'l1',
    'density_box': 1.0, 'density_shift': 0.004, 'density_anchor': 0.0, 'style_mixing_prob': 0.0,
    'blur_sigma': 10.0, 'blur_border': 'zero', 'blur_fade_kimg': 200.0, 'pose_swap_prob': 0.5,
    'pose_swap_fade_kimg': 1000.0, 'render_resolution_initial': None, 'render_fade_start_kimg': 0.0,
    'render_fade_kimg': 1000.0,
}  # fmt: skip


@pytest.mark.parametrize('resolution', [512, 256, 128])
def test_release_presets_take_the_releases_side_everywhere(resolution: int) -> None:
    config = preset(f'ffhq{resolution}-release')
    assert dataclasses.asdict(config.generator) == {**RELEASE, 'image_resolution': resolution}
    assert dataclasses.asdict(config.discriminator) == {**RELEASE_D, 'image_resolution': resolution}
    assert dataclasses.asdict(config.loss) == RELEASE_LOSS
    run = (config.batch, config.g_lr, config.d_lr, config.adam_beta1, config.adam_beta2, config.w_avg_beta)
    assert run == (32, 0.0025, 0.002, 0.0, 0.99, 0.998)
    assert (config.ema_kimg, config.ema_rampup) == (None, 0.05)  # batch x 10 / 32


def test_each_choice_can_be_taken_alone() -> None:
    paper, release = preset('ffhq512'), preset('ffhq512-release')
    for group, prefix in (('generator', 'G'), ('discriminator', 'D'), ('loss', 'L')):
        ours, theirs = getattr(paper, group), getattr(release, group)
        for field in dataclasses.fields(ours):
            value = getattr(theirs, field.name)
            if value != getattr(ours, field.name):
                mixed = preset('ffhq512', {f'{prefix}.{field.name}': value})
                assert getattr(mixed, group) == dataclasses.replace(ours, **{field.name: value})


def test_front_alone_is_dynamic() -> None:
    template = ellipsoid_template()
    config = dataclasses.replace(preset('debug').generator, dynamic_planes='front')
    texture, head = torch.randn(1, config.plane_channels, 16, 16), posed(template, count=1)
    front = TextureRasterizer(config, template)(texture, head)
    everything = TextureRasterizer(preset('debug').generator, template)(texture, head)
    assert torch.equal(front.alpha[:, 0], everything.alpha[:, 0])
    assert not front.alpha[:, 1:].any()
    assert everything.alpha[:, 1:].flatten(2).amax(dim=2).min() == 1


def test_the_fourth_static_plane_is_transposed_into_the_second() -> None:
    config = dataclasses.replace(preset('debug').generator, static_planes='eg3d')
    static = StaticPlanes(config)
    ws = torch.randn(2, static.num_ws, config.w_dim)
    made = static.synthesis(ws).unflatten(1, (4, -1))
    planes = static(ws)
    assert planes.shape == (2, 3, config.plane_channels, 16, 16)
    torch.testing.assert_close(planes[:, 1], made[:, 1] + made[:, 3].transpose(2, 3))
    torch.testing.assert_close(planes[:, [0, 2]], made[:, [0, 2]])


def test_blur_with_zeros_beyond_the_border() -> None:
    ones = torch.ones(1, 3, 32, 32)
    zero = blur(ones, sigma=2.0, border='zero')
    torch.testing.assert_close(zero[..., 8:24, 8:24], ones[..., 8:24, 8:24])
    assert 0.2 < zero[0, 0, 0, 0] < 0.45  # a corner keeps about a quarter
    torch.testing.assert_close(blur(ones, sigma=2.0), ones)


def test_a_config_from_before_a_field_can_be_resumed() -> None:
    new = to_dict(preset('debug'))
    old = json.loads(json.dumps(new))
    del old['generator']['static_planes'], old['loss']['blur_border']
    assert changed_fields(old, new) == []
    changed = to_dict(preset('debug', {'G.static_planes': 'eg3d'}))
    assert [str(change) for change in changed_fields(old, changed)] == ["generator.static_planes ('three' -> 'eg3d')"]
    assert to_dict(TrainConfig())['generator']['static_planes'] == 'three'


def test_an_obj_does_not_tell_landmarks(tmp_path: Path) -> None:
    head = load_head_model('makehuman').template
    write_obj(tmp_path / 'a.obj', head.vertices, faces=head.faces, uv=head.uv, uv_faces=head.uv_faces)
    template = template_from_obj(tmp_path / 'a.obj', eye_mask=head.eye_mask)
    assert not template.has_landmarks
    assert type(template).from_state(template.state()).has_landmarks is False
    with pytest.raises(UserError, match='landmarks: this topology does not say where they are'):
        template.landmarks(head.vertices[None])
    (tmp_path / 'text.png').write_text('no picture')
    with pytest.raises(UserError, match=r'text.png: not an image; expected the eye mask'):
        template_from_obj(tmp_path / 'a.obj', eye_mask=tmp_path / 'text.png')


def test_the_recipe_for_the_releases_folders_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python block of docs/migrating.md, on the embedded head instead of FLAME."""
    monkeypatch.chdir(tmp_path)
    head = load_head_model('makehuman')
    pose = head.forward(head.neutral())
    for name in ('images512x512/00000', 'meshes512x512/00000', 'lms512x512/00000'):
        (tmp_path / 'ffhq' / name).mkdir(parents=True)
    label = orbit_camera(torch.zeros(1), torch.zeros(1))[0].tolist()
    labels = []
    for index in range(2):
        stem = f'00000/img{index:08d}'
        png = io.BytesIO()
        Image.fromarray(np.full((512, 512, 3), 40 * index, np.uint8)).save(png, 'PNG')
        (tmp_path / f'ffhq/images512x512/{stem}.png').write_bytes(png.getvalue())
        write_obj(tmp_path / f'ffhq/meshes512x512/{stem}.obj', pose.vertices[0], faces=head.template.faces)
        np.savetxt(tmp_path / f'ffhq/lms512x512/{stem}.txt', pose.landmarks[0].numpy())
        labels.append([f'{stem}.png', label])
    (tmp_path / 'ffhq/images512x512/dataset.json').write_text(json.dumps({'labels': labels}))
    page = (ROOT / 'docs/migrating.md').read_text()
    block = re.search(r'```python\n(import json.*?)```', page, re.DOTALL)
    assert block is not None
    recipe = block[1].replace("load_head_model('flame2020', path='generic_model.pkl')", "load_head_model('makehuman')")
    exec(compile(recipe, 'docs/migrating.md', 'exec'), {})
    dataset = HeadDataset(tmp_path / 'ffhq512.zip')
    assert (len(dataset), dataset.resolution) == (2, 512)
    found = dataset.head_input([1], device='cpu')
    torch.testing.assert_close(found.vertices, pose.vertices, rtol=0, atol=1e-4)  # stored in half precision
    torch.testing.assert_close(found.landmarks, pose.landmarks, rtol=0, atol=1e-4)
