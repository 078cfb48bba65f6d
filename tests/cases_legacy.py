"""Networks of EG3D and of the public release as their files hold them, at any size, with random numbers.

Names and shapes are written out here from the facts (SPEC sections 1, 4, 5), not from our own networks; a test
compares them with the parity fixture where it is at hand.
"""

from __future__ import annotations

import dataclasses
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
SUPERRES = {  # module -> input and output channels and resolution of the two blocks
    'SuperresolutionHybrid8XDC': (512, ((32, 256, 256), (256, 128, 512))),
    'SuperresolutionHybrid4X': (256, ((32, 128, 128), (128, 64, 256))),
    'SuperresolutionHybrid2X': (128, ((32, 128, 64), (128, 64, 128))),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How large a network is; the defaults are quick."""

    z_dim: int = 12
    w_dim: int = 16
    c_dim: int = 25
    base: int = 512
    most: int = 8
    image: int = 256
    planes: int = 256  # resolution of the backbones; the release knows 256 only
    channels: int = 32  # of a plane; likewise 32

    def width(self, resolution: int) -> int:
        return min(self.base // resolution, self.most)

    @property
    def module(self) -> str:
        return next(name for name, (resolution, _) in SUPERRES.items() if resolution == self.image)


def _mapping(prefix: str, z: int, c: int, w: int, *, layers: int, average: bool = True) -> Shapes:
    shapes: Shapes = {f'{prefix}w_avg': (w,)} if average else {}
    shapes |= {f'{prefix}embed.weight': (w, c), f'{prefix}embed.bias': (w,)}
    for index in range(layers):
        shapes[f'{prefix}fc{index}.weight'] = (w, (z + w if z else w) if index == 0 else w)
        shapes[f'{prefix}fc{index}.bias'] = (w,)
    return shapes


def _layer(prefix: str, inputs: int, outputs: int, w: int, *, kernel: int = 3) -> Shapes:
    return {
        f'{prefix}weight': (outputs, inputs, kernel, kernel),
        f'{prefix}bias': (outputs,),
        f'{prefix}affine.weight': (inputs, w),
        f'{prefix}affine.bias': (inputs,),
    }


def _block(prefix: str, inputs: int, width: int, resolution: int, w: int, *, out: int, const: bool = True) -> Shapes:
    shapes: Shapes = {f'{prefix}const': (width, resolution, resolution)} if inputs == 0 else {}
    for name, source in (('conv0.', inputs), ('conv1.', width)):
        if source:
            shapes |= _layer(prefix + name, source, width, w)
            shapes[f'{prefix}{name}noise_strength'] = ()
            if const:
                shapes[f'{prefix}{name}noise_const'] = (resolution, resolution)
    return shapes | _layer(f'{prefix}torgb.', width, out, w, kernel=1)


def _synthesis(prefix: str, size: Size, out: int) -> Shapes:
    shapes: Shapes = {}
    resolution = 4
    while resolution <= size.planes:
        inputs = 0 if resolution == 4 else size.width(resolution // 2)
        shapes |= _block(f'{prefix}b{resolution}.', inputs, size.width(resolution), resolution, size.w_dim, out=out)
        resolution *= 2
    return shapes


def _style_unet(prefix: str, size: Size, top: int, low: int) -> Shapes:
    shapes = _synthesis(prefix, size, 32)
    scales = [2**i for i in range(top.bit_length() - 1, low.bit_length() - 2, -1)]
    for index, resolution in enumerate(scales[:-1]):
        width, lower = size.width(resolution), size.width(resolution // 2)
        shapes |= {
            f'{prefix}encoder.{index}.fromrgb.weight': (width, 32, 1, 1),
            f'{prefix}encoder.{index}.conv1.weight': (width, width, 3, 3),
            f'{prefix}encoder.{index}.conv1.bias': (width,),
            f'{prefix}encoder.{index}.conv2.weight': (lower, width, 3, 3),
            f'{prefix}encoder.{index}.conv2.bias': (lower,),
        }
    for index, resolution in enumerate(reversed(scales)):
        width = size.width(resolution)
        shapes[f'{prefix}fusion.{index}.weight'] = (width, width if resolution == low else 2 * width, 3, 3)
        shapes[f'{prefix}fusion.{index}.bias'] = (width,)
    return shapes


def eg3d_shapes(size: Size) -> Shapes:
    """What EG3D's generator holds, but for resample filters."""
    shapes = _mapping('backbone.mapping.', size.z_dim, size.c_dim, size.w_dim, layers=2)
    shapes |= _synthesis('backbone.synthesis.', size, 3 * size.channels)
    for index, (inputs, width, resolution) in enumerate(SUPERRES[size.module][1]):
        inputs = size.channels if index == 0 else inputs
        shapes |= _block(f'superresolution.block{index}.', inputs, width, resolution, size.w_dim, out=3, const=False)
    hidden, channels = 64, size.channels
    shapes |= {'decoder.net.0.weight': (hidden, channels), 'decoder.net.0.bias': (hidden,)}
    return shapes | {'decoder.net.2.weight': (1 + channels, hidden), 'decoder.net.2.bias': (1 + channels,)}


def release_shapes(size: Size) -> Shapes:
    """What the release's generator holds, but for resample filters and the topology's buffers."""
    shapes = eg3d_shapes(size)
    for name in ('texture_backbone', 'mouth_backbone', 'neural_blending'):
        shapes |= _mapping(f'{name}.mapping.', size.z_dim, size.c_dim, size.w_dim, layers=2)
    shapes |= _synthesis('texture_backbone.synthesis.', size, 32)
    shapes |= _style_unet('mouth_backbone.synthesis.', size, 64, 4)
    return shapes | _style_unet('neural_blending.synthesis.', size, 256, 32)


def discriminator_shapes(size: Size) -> Shapes:
    """What the discriminator of either holds, but for resample filters."""
    shapes = _mapping('mapping.', 0, size.c_dim, size.width(4), layers=8, average=False)
    resolution = size.image
    shapes[f'b{resolution}.fromrgb.weight'] = (size.width(resolution), 6, 1, 1)
    shapes[f'b{resolution}.fromrgb.bias'] = (size.width(resolution),)
    while resolution > 4:
        width, lower, prefix = size.width(resolution), size.width(resolution // 2), f'b{resolution}.'
        shapes |= {f'{prefix}conv0.weight': (width, width, 3, 3), f'{prefix}conv0.bias': (width,)}
        shapes |= {f'{prefix}conv1.weight': (lower, width, 3, 3), f'{prefix}conv1.bias': (lower,)}
        shapes[f'{prefix}skip.weight'] = (lower, width, 1, 1)
        resolution //= 2
    width = size.width(4)
    shapes |= {'b4.conv.weight': (width, width + 1, 3, 3), 'b4.conv.bias': (width,)}
    shapes |= {'b4.fc.weight': (width, 16 * width), 'b4.fc.bias': (width,)}
    return shapes | {'b4.out.weight': (width, width), 'b4.out.bias': (width,)}


def random_state(shapes: Shapes, *, seed: int = 0) -> dict[str, Tensor]:
    """Numbers for every name; noise strengths and biases small."""
    rng = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        scale = 0.1 if name.endswith(('bias', 'noise_strength')) else 1.0
        state[name] = scale * torch.randn(shape, generator=rng)
        if name.endswith('affine.bias'):
            state[name] += 1
    return state


def topology_buffers(faces: Tensor, uv: Tensor, uv_faces: Tensor) -> dict[str, Tensor]:
    """The buffers that the release's generator derives from its OBJ; `uv` [T, 2] with v up."""
    ones = torch.ones(len(uv), 1)
    signed = torch.cat([uv, ones], dim=1) * 2 - 1
    signed[:, 1] = -signed[:, 1]
    return {
        'dense_faces': torch.zeros(1, 7, 3, dtype=torch.long),
        'faces': faces[None],
        'raw_uvcoords': uv[None],
        'uvcoords': signed[None],
        'uvfaces': uv_faces[None],
        'face_uvcoords': signed[uv_faces][None],
    }


def resample_filters(names: list[str]) -> dict[str, Tensor]:
    """The filters that blocks and layers of either code base register."""
    prefixes = {name.rpartition('.')[0] for name in names if name.endswith('.weight') and 'mapping' not in name}
    return {f'{prefix}.resample_filter': torch.ones(4, 4) / 16 for prefix in prefixes}


def generator_kwargs(size: Size) -> dict[str, Any]:
    """Constructor arguments as the release's train script makes them (EG3D's are a part of them)."""
    return {
        'z_dim': size.z_dim, 'c_dim': size.c_dim, 'w_dim': size.w_dim, 'img_resolution': size.image,
        'img_channels': 3, 'topology_path': 'data/ffhq/head_template.obj', 'sr_num_fp16_res': 4, 'num_fp16_res': 0,
        'conv_clamp': None, 'fused_modconv_default': 'inference_only', 'mapping_kwargs': {'num_layers': 2},
        'channel_base': size.base, 'channel_max': size.most, 'sr_kwargs': {'channel_base': size.base},
        'rendering_kwargs': {
            'image_resolution': size.image, 'disparity_space_sampling': False, 'clamp_mode': 'softplus',
            'superresolution_module': f'training.superresolution.{size.module}', 'c_gen_conditioning_zero': False,
            'gpc_reg_prob': 0.5, 'c_scale': 1, 'superresolution_noise_mode': 'none', 'density_reg': 0.25,
            'decoder_lr_mul': 1, 'sr_antialias': True, 'depth_resolution': 48, 'depth_resolution_importance': 48,
            'ray_start': 2.25, 'ray_end': 3.3, 'box_warp': 1, 'avg_camera_radius': 2.7,
            'avg_camera_pivot': [0, 0, 0.2],
        },
    }  # fmt: skip


def discriminator_kwargs(size: Size) -> dict[str, Any]:
    return {
        'c_dim': size.c_dim, 'img_resolution': size.image, 'img_channels': 3, 'channel_base': size.base,
        'channel_max': size.most, 'num_fp16_res': 4, 'conv_clamp': 256, 'disc_c_noise': 1,
        'block_kwargs': {'freeze_layers': 0}, 'mapping_kwargs': {}, 'epilogue_kwargs': {'mbstd_group_size': 4},
    }  # fmt: skip


class PickledModule:
    """A module of the release as it pickles itself: source text, class name, attributes, submodules likewise."""

    def __init__(self, state: dict[str, Tensor], class_name: str = 'Module', **attributes: Any) -> None:
        self.class_name = class_name
        children: dict[str, dict[str, Tensor]] = {}
        self.state: dict[str, Any] = {'_parameters': {}, '_buffers': {}, **attributes}
        for name, value in state.items():
            child, dot, rest = name.partition('.')
            if dot:
                children.setdefault(child, {})[rest] = value
            elif value.is_floating_point():
                self.state['_parameters'][name] = torch.nn.Parameter(value, requires_grad=False)
            else:
                self.state['_buffers'][name] = value
        self.state['_modules'] = {name: PickledModule(child) for name, child in children.items()}

    def __reduce__(self) -> tuple:
        reconstruct = sys.modules['torch_utils.persistence']._reconstruct_persistent_obj
        meta = {'type': 'class', 'version': 6, 'module_src': '1 / 0', 'class_name': self.class_name}
        return reconstruct, ({**meta, 'state': self.state},)


def _reconstruct_persistent_obj(meta: dict) -> None:
    raise AssertionError('the release runs the embedded source here')


def write_pickle(path: Path, **networks: PickledModule | None) -> Path:
    """A network pickle as training loops write it, with a stand-in for the module that it names."""
    name = 'torch_utils.persistence'
    standin = types.ModuleType(name)
    vars(standin)['_reconstruct_persistent_obj'] = _reconstruct_persistent_obj
    _reconstruct_persistent_obj.__module__ = name
    content = {'augment_pipe': None, 'training_set_kwargs': {'path': 'ffhq.zip'}, **networks}
    before = sys.modules.get(name)
    sys.modules[name] = standin
    try:
        path.write_bytes(pickle.dumps(content))
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
    return path


def eg3d_pickle(path: Path, size: Size, *, names: tuple[str, ...] = ('G', 'D', 'G_ema'), **rendering: Any) -> Path:
    """A pickle of EG3D with different weights in G, D and G_ema."""
    kwargs = generator_kwargs(size)
    kwargs['rendering_kwargs'] |= rendering
    networks: dict[str, PickledModule] = {}
    for seed, name in enumerate(names):
        if name == 'D':
            state = random_state(discriminator_shapes(size), seed=seed)
            networks[name] = PickledModule(state, 'DualDiscriminator', _init_kwargs=discriminator_kwargs(size))
        else:
            state = random_state(eg3d_shapes(size), seed=seed)
            state |= resample_filters(list(state))
            networks[name] = PickledModule(state, 'TriPlaneGenerator', _init_kwargs=kwargs)
    return write_pickle(path, **networks)


def write_topology(folder: Path) -> tuple[Path, Path, Tensor]:
    """An OBJ of 5,023 vertices (a bent grid) with uv, an eye mask, and posed vertices with landmarks [1, 5091, 3]."""
    rows, columns = 71, 71  # 5,041 would be too many: the last vertices of the grid are left out
    v, u = np.divmod(np.arange(5023), columns)
    uv = np.stack([u / (columns - 1), 1 - v / (rows - 1)], axis=1)
    angle = (uv[:, 0] - 0.5) * 5
    vertices = np.stack([0.08 * np.sin(angle), 0.2 * (uv[:, 1] - 0.5), 0.08 * np.cos(angle) - 0.03], axis=1)
    index = np.arange(rows * columns).reshape(rows, columns)
    quads = np.stack([index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]], axis=-1).reshape(-1, 4)
    quads = quads[(quads < 5023).all(axis=1)]
    faces = np.concatenate([quads[:, :3], quads[:, [0, 2, 3]]]) + 1
    lines = [f'v {x:.7f} {y:.7f} {z:.7f}' for x, y, z in vertices] + [f'vt {a:.7f} {b:.7f}' for a, b in uv]
    lines += [f'f {a}/{a} {b}/{b} {c}/{c}' for a, b, c in faces]
    (folder / 'head.obj').write_text('\n'.join(lines) + '\n')
    mask = np.full((256, 256), 255, np.uint8)
    mask[60:90, 60:100] = 0
    Image.fromarray(mask).save(folder / 'mask.png')
    landmarks = vertices[np.linspace(1500, 3500, 68).astype(int)]
    return (
        folder / 'head.obj',
        folder / 'mask.png',
        torch.from_numpy(np.concatenate([vertices, landmarks])).float()[None],
    )
