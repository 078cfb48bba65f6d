"""Vision transformers of CLIP, DINO and DINOv2 from the user's weights, as image features.

One transformer of our own; each family's names are mapped to it. Sizes are read from the weights (heads are 64 wide
in all of them); position embeddings of another size are resized by plain bicubic interpolation. Pictures are resized to
224 px with a bicubic low-pass filter. Checked on made-up weights of the same names and shapes; the published files were
not at hand.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnnlib import UserError
from dnnlib.files import sha256_file
from metrics.estimators import weights
from metrics.estimators.base import as_float, on_device, one_by_one
from metrics.estimators.weights import State, WeightFile, count_blocks, first_shape, load_state
from metrics.features import FeatureExtractor, check_batch

SIZE = 224
HEAD_WIDTH = 64
# Mean and standard deviation of the pictures in [0, 1] that each was trained with.
NORMALIZATION = {
    'clip': ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    'dino': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# CLIP's names and ours: whole names, then parts of names.
CLIP_WHOLE = {'class_embedding': 'cls_token', 'positional_embedding': 'pos_embed', 'proj': 'projection'}
CLIP_PARTS = {
    'conv1.': 'patch_embed.proj.',
    'ln_pre.': 'norm_pre.',
    'ln_post.': 'norm.',
    'transformer.resblocks.': 'blocks.',
    'ln_1.': 'norm1.',
    'ln_2.': 'norm2.',
    'in_proj_': 'qkv.',
    'out_proj.': 'proj.',
    'c_fc.': 'fc1.',
    'c_proj.': 'fc2.',
}


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, width = x.shape
        parts = self.qkv(x).reshape(count, tokens, 3, width // HEAD_WIDTH, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        return self.proj(mixed.transpose(1, 2).reshape(count, tokens, width))


class Perceptron(nn.Module):
    def __init__(self, width: int, hidden: int, *, quick: bool) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.quick = quick  # CLIP's approximation of GELU

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))


class Scale(nn.Module):
    """DINOv2's factors per channel behind a branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, *, epsilon: float, quick: bool, scaled: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=epsilon), nn.LayerNorm(width, eps=epsilon)
        self.attn, self.mlp = Attention(width), Perceptron(width, hidden, quick=quick)
        self.ls1: nn.Module = Scale(width) if scaled else nn.Identity()
        self.ls2: nn.Module = Scale(width) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    def __init__(self, width: int, patch: int, *, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class VisionTransformer(nn.Module):
    """Float images [N, 3, H, W] in [-1, 1] -> the class token's features [N, D]; differentiable."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, state: State, *, family: str, path: Path, card: WeightFile) -> None:
        super().__init__()
        width, _, patch, _ = first_shape(state, 'patch_embed.proj.weight', path=path, card=card)
        hidden = first_shape(state, 'blocks.0.mlp.fc1.weight', path=path, card=card)[0]
        places = first_shape(state, 'pos_embed', path=path, card=card)[1]
        if width % HEAD_WIDTH:
            raise UserError(f'{path}: width {width} is no multiple of {HEAD_WIDTH}; expected {card.file}')
        clip = family == 'clip'
        epsilon = 1e-5 if clip else 1e-6
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, places, width))
        registers = state['register_tokens'].shape[1] if 'register_tokens' in state else 0
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        self.patch_embed = PatchEmbedding(width, patch, bias='patch_embed.proj.bias' in state)
        self.norm_pre: nn.Module = nn.LayerNorm(width, eps=epsilon) if clip else nn.Identity()
        scaled = 'blocks.0.ls1.gamma' in state
        blocks = [
            Block(width, hidden, epsilon=epsilon, quick=clip, scaled=scaled)
            for _ in range(count_blocks(state, 'blocks.'))
        ]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.projection = nn.Parameter(torch.zeros_like(state['projection'])) if 'projection' in state else None
        self.num_features = width if self.projection is None else self.projection.shape[1]
        mean, deviation = (torch.tensor(values)[:, None, None] for values in NORMALIZATION[family])
        self.register_buffer('mean', mean, persistent=False)
        self.register_buffer('deviation', deviation, persistent=False)
        load_state(self, state, path=path, card=card)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2:] != (SIZE, SIZE):
            images = F.interpolate(images, size=(SIZE, SIZE), mode='bicubic', antialias=True, align_corners=False)
        x = self.patch_embed(((images + 1) / 2 - self.mean) / self.deviation)
        positions = self._positions(x.shape[2], x.shape[3])
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1) + positions
        if self.register_tokens is not None:
            x = torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], dim=1)
        x = self.norm(self.blocks(self.norm_pre(x))[:, 0])
        return x if self.projection is None else x @ self.projection

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Position embeddings [1, 1 + rows * columns, width], resized where trained at another size."""
        own = self.pos_embed.shape[1] - 1
        if own == rows * columns:
            return self.pos_embed
        side = round(own**0.5)
        grid = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(rows, columns), mode='bicubic', align_corners=False)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


class TransformerFeatures(FeatureExtractor):
    """Features of 'clip' or 'dino' weights at `path`. Distances over them are not FID and carry this name."""

    def __init__(self, family: str, path: str | os.PathLike[str]) -> None:
        card = weights.CLIP if family == 'clip' else weights.DINO
        source = weights.find_weights(path, card, spec=family)
        content = weights.read_tensors(source, card)
        for wrapper in ('state_dict', 'model', 'teacher'):
            content = content.get(wrapper, content)
        state = _clip_state(content) if family == 'clip' else _dino_state(content)
        self.module = VisionTransformer(state, family=family, path=source, card=card)
        self.num_features = self.module.num_features
        self.content_hash = sha256_file(source)
        self.licence = card.licence
        self.name = f'{family}-{self.content_hash[:8]}'

    def to(self, device: torch.device | str) -> TransformerFeatures:
        """See FeatureExtractor.to."""
        return on_device(self, device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """See FeatureExtractor.__call__."""
        check_batch(images)
        return one_by_one(self.module, as_float(images))


def _clip_state(content: Mapping[str, Any]) -> State:
    """CLIP's names -> ours; of a whole CLIP only the image encoder."""
    own = weights.take_prefix(content, 'visual.') or weights.take_prefix(content, '')
    state = {}
    for name, value in own.items():
        for theirs, ours in CLIP_PARTS.items():
            name = name.replace(theirs, ours)
        state[CLIP_WHOLE.get(name, name)] = value
    if 'cls_token' in state and state['cls_token'].ndim == 1:
        state['cls_token'] = state['cls_token'][None, None]
    if 'pos_embed' in state and state['pos_embed'].ndim == 2:
        state['pos_embed'] = state['pos_embed'][None]
    return state


def _dino_state(content: Mapping[str, Any]) -> State:
    """DINO's and DINOv2's names are ours."""
    return weights.take_prefix({name.removeprefix('backbone.'): value for name, value in content.items()}, '')
