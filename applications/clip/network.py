"""CLIP's two transformers, with the parameter names of OpenAI's and open_clip's files, sized by the tensors found."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dnnlib.errors import UserError

HEAD_WIDTH = 64  # of every attention head of ViT-B/32, B/16 and L/14


class QuickGelu(nn.Module):
    """The sigmoid approximation that OpenAI's weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Attention and a two-layer perceptron, each on normalized input and added to it. x [N, L, width]"""

    def __init__(self, width: int, *, quick: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // HEAD_WIDTH, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module('c_fc', nn.Linear(width, 4 * width))
        self.mlp.add_module('gelu', QuickGelu() if quick else nn.GELU())
        self.mlp.add_module('c_proj', nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        normal = self.ln_1(x)
        x = x + self.attn(normal, normal, normal, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, *, quick: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, quick=quick) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VisionTransformer(nn.Module):
    """images [N, 3, S, S], normalized by CLIP's statistics -> features [N, dim]."""

    def __init__(self, *, width: int, layers: int, patch: int, grid: int, dim: int, quick: bool) -> None:
        super().__init__()
        self.resolution = patch * grid
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(grid * grid + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, quick=quick)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, dim))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches), 1, -1)
        x = torch.cat([first, patches], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class ClipNetwork(nn.Module):
    """Both towers. `encode_text` takes token numbers [N, context]; the largest of a row ends its text."""

    def __init__(
        self,
        vision: VisionTransformer,
        *,
        width: int,
        layers: int,
        context: int,
        vocabulary: int,
        dim: int,
        quick: bool,
    ) -> None:
        super().__init__()
        self.visual = vision
        self.context, self.vocabulary = context, vocabulary
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.zeros(context, width))
        self.transformer = Transformer(width, layers, quick=quick)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, dim))
        self.logit_scale = nn.Parameter(torch.zeros([]))

    def encode_text(self, tokens: Tensor) -> Tensor:
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        future = torch.full([tokens.shape[1]] * 2, -math.inf, device=x.device).triu(1)
        x = self.ln_final(self.transformer(x, future))
        return x[torch.arange(len(x), device=x.device), tokens.argmax(dim=1)] @ self.text_projection


def build_clip(state: Mapping[str, Tensor], *, quick: bool, where: str) -> ClipNetwork:
    """The network that a state dict belongs to, with its weights in float32; UserError if it is no such ViT."""
    if 'visual.layer1.0.conv1.weight' in state:
        raise UserError(f'{where}: a ResNet CLIP; expected a ViT (ViT-B/32, ViT-B/16 or ViT-L/14)')
    needed = ('visual.conv1.weight', 'visual.positional_embedding', 'visual.proj', 'text_projection',
              'token_embedding.weight', 'positional_embedding', 'ln_final.weight')  # fmt: skip
    missing = [name for name in needed if name not in state]
    if missing:
        raise UserError(f"{where}: no CLIP in OpenAI's or open_clip's layout: it lacks {', '.join(missing[:3])}")
    patches, dim = state['visual.conv1.weight'], state['visual.proj'].shape[1]
    width, text_width = patches.shape[0], state['ln_final.weight'].shape[0]
    if width % HEAD_WIDTH or text_width % HEAD_WIDTH or width in (1280, 1408, 1664):
        raise UserError(f'{where}: width {width}; expected a ViT with heads of {HEAD_WIDTH} (ViT-B/32, B/16 or L/14)')
    vision = VisionTransformer(
        width=width,
        layers=_layers(state, 'visual.transformer'),
        patch=patches.shape[-1],
        grid=math.isqrt(state['visual.positional_embedding'].shape[0] - 1),
        dim=dim,
        quick=quick,
    )
    context, vocabulary = state['positional_embedding'].shape[0], state['token_embedding.weight'].shape[0]
    layers = _layers(state, 'transformer')
    network = ClipNetwork(
        vision, width=text_width, layers=layers, context=context, vocabulary=vocabulary, dim=dim, quick=quick
    )
    own = network.state_dict()
    wrong = [name for name in own if name not in state or state[name].shape != own[name].shape]
    if wrong:
        raise UserError(f'{where}: not a whole CLIP: {", ".join(wrong[:3])} missing or of another shape')
    network.load_state_dict({name: state[name].float() for name in own})
    return network.eval().requires_grad_(False)


def _layers(state: Mapping[str, Tensor], prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r'\.resblocks\.(\d+)\.')
    return 1 + max((int(match[1]) for name in state if (match := pattern.match(name))), default=-1)
