"""A CLIP of random weights, small but of the real layout, with a vocabulary to match."""

from __future__ import annotations

import gzip
from pathlib import Path

import torch

from applications.clip.network import ClipNetwork, VisionTransformer

MERGES = ('s t', 't a</w>', 'st a', 'p h', 'o t', 'ot o</w>', 'ph oto</w>', 'a r')
VOCABULARY = 2 * 256 + len(MERGES) + 2
CONTEXT = 40


def random_clip(*, quick: bool = True) -> ClipNetwork:
    """Two layers of 64 channels a tower, images of 32 px in patches of 8."""
    generator = torch.Generator().manual_seed(0)
    vision = VisionTransformer(width=64, layers=2, patch=8, grid=4, dim=16, quick=quick)
    network = ClipNetwork(vision, width=64, layers=2, context=CONTEXT, vocabulary=VOCABULARY, dim=16, quick=quick)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            scale = 0.3 if parameter.ndim > 1 else 0.1
            offset = 1.0 if '.ln_' in f'.{name}' and name.endswith('weight') else 0.0
            parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=generator))
    return network.eval().requires_grad_(False)


def write_vocabulary(path: Path) -> Path:
    """The merges in the layout of CLIP's file, gzipped, with lines to spare."""
    path.write_bytes(gzip.compress('\n'.join(['#version', *MERGES, 'x y', 'z z']).encode()))
    return path


def write_clip(folder: Path) -> Path:
    """Weights (a plain state dict) and vocabulary side by side."""
    torch.save(random_clip().state_dict(), folder / 'clip.pt')
    write_vocabulary(folder / 'bpe_simple_vocab_16e6.txt.gz')
    return folder / 'clip.pt'
