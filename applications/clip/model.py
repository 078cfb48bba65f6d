"""What stylization asks of CLIP: unit features of images and of texts; and where the weights come from."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from applications.clip.network import ClipNetwork, build_clip
from applications.clip.tokenizer import Tokenizer, read_tokenizer
from applications.clip.weights import read_weights
from dnnlib.download import default_cache_dir
from dnnlib.errors import UserError
from dnnlib.files import sha256_file

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of RGB in [0, 1], as all CLIP weights of OpenAI and open_clip expect
STD = (0.26862954, 0.26130258, 0.27577711)
WEIGHTS, VOCABULARY = 'ViT-B-32.pt', 'bpe_simple_vocab_16e6.txt.gz'
PROJECT = 'github.com/openai/CLIP (MIT)'


class Clip(Protocol):
    """Features that can be compared by their scalar product."""

    name: str
    content_hash: str  # of the weights

    def image_features(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1] -> unit features [N, D]; differentiable."""

    def text_features(self, texts: list[str]) -> Tensor:
        """Unit features [N, D]."""


class FileClip:
    """CLIP from a file of the user's; without a tokenizer it knows images only."""

    def __init__(self, network: ClipNetwork, tokenizer: Tokenizer | None, *, name: str, content_hash: str) -> None:
        self.network, self.tokenizer = network, tokenizer
        self.name, self.content_hash = name, content_hash

    def image_features(self, images: Tensor) -> Tensor:
        return F.normalize(self.network.visual(prepare(images, self.network.visual.resolution)), dim=1)

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> Tensor:
        if self.tokenizer is None:
            raise UserError(
                f'--clip-vocab: missing, the byte pairs that CLIP spells texts with; get {VOCABULARY} from {PROJECT} '
                'and lay it beside the weights, or pass its path'
            )
        tokens = self.tokenizer(texts).to(self.network.text_projection.device)
        return F.normalize(self.network.encode_text(tokens), dim=1)


class OpenClip:
    """A model of the open_clip package, which keeps and downloads its weights itself."""

    def __init__(self, name: str, tag: str, *, device: torch.device) -> None:
        import open_clip

        try:
            model = open_clip.create_model(name, pretrained=tag or None)
            self.tokenizer: Any = open_clip.get_tokenizer(name)
        except Exception as error:  # a foreign package: an unknown name, a failed download
            raise UserError(f'--clip=open_clip:{name}:{tag}: {" ".join(str(error).split())[:200]}') from error
        self.model = model.to(device).eval().requires_grad_(False)
        size = self.model.visual.image_size
        self.resolution = size[0] if isinstance(size, tuple) else size
        self.name, self.content_hash = f'open_clip:{name}:{tag}', ''
        self.device = device

    def image_features(self, images: Tensor) -> Tensor:
        return F.normalize(self.model.encode_image(prepare(images, self.resolution)), dim=1)

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> Tensor:
        return F.normalize(self.model.encode_text(self.tokenizer(texts).to(self.device)), dim=1)


def prepare(images: Tensor, resolution: int) -> Tensor:
    """[N, 3, H, W] in [-1, 1] -> [N, 3, resolution, resolution] as CLIP was trained on: bicubic, normalized."""
    if images.shape[-2:] != (resolution, resolution):
        size = (resolution, resolution)
        images = F.interpolate(images, size=size, mode='bicubic', align_corners=False, antialias=True)
    mean, std = (images.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    return (images / 2 + 0.5 - mean) / std


def load_clip(
    source: str | None, *, vocabulary: str | None = None, quick: bool | None = None, device: torch.device
) -> Clip:
    """CLIP from `source`: a file, 'open_clip:NAME:WEIGHTS', or None: the file in the cache folder.

    vocabulary: file of merges; None: beside the weights, or in the cache folder. quick: whether the weights were
    trained with OpenAI's GELU; None: if they come in OpenAI's archive. UserError says what is missing and where it is.
    """
    if source is not None and source.startswith('open_clip:'):
        if importlib.util.find_spec('open_clip') is None:
            raise UserError(f'--clip={source}: open_clip is not installed; pip install open_clip_torch, or give a file')
        _, name, tag = [*source.split(':'), '', ''][:3]
        return OpenClip(name, tag, device=device)
    folder = default_cache_dir() / 'clip'
    path = Path(source) if source is not None else folder / WEIGHTS
    if not path.is_file():
        raise UserError(
            f'--clip: {path}: no such file; get the weights {WEIGHTS} and {VOCABULARY} from {PROJECT} and lay both '
            f'into {folder}, or pass --clip=FILE, or --clip=open_clip:ViT-B-32:laion2b_s34b_b79k with open_clip'
        )
    state, scripted = read_weights(str(path))
    network = build_clip(state, quick=scripted if quick is None else quick, where=str(path)).to(device)
    found = vocabulary or next((str(f) for f in (path.parent / VOCABULARY, folder / VOCABULARY) if f.is_file()), None)
    tokenizer = None
    if found is not None:
        tokenizer = read_tokenizer(found, vocabulary=network.vocabulary, context=network.context)
    return FileClip(network, tokenizer, name=path.name, content_hash=sha256_file(path))
