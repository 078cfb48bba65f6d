"""Which row of ws each modulated convolution of the generator reads."""

from __future__ import annotations

from training.generator import Generator
from training.stylegan2 import SynthesisBlock, block_ws


def modulated_layers(generator: Generator) -> dict[str, int]:
    """The row of ws [num_ws] that each modulated 3x3 convolution reads, by the prefix of its parameters' names."""
    layers: dict[str, int] = {}
    for name, block in generator.named_modules():
        if not isinstance(block, SynthesisBlock):
            continue
        first = block_ws(block.resolution).start
        if name.startswith('texture.'):
            first += generator.num_half
        if block.in_channels == 0:
            layers[f'{name}.conv1.'] = first
            continue
        for index in range(2):
            row = generator.num_half - 1 if name.startswith('superres.') else first + index
            layers[f'{name}.conv{index}.'] = row
    return layers
