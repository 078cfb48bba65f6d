"""Inputs of the tests and benchmarks of layer_epilogue and scale_channels."""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpilogueCase:
    """One layer's convolution result and operands; `options` are keywords of layer_epilogue."""

    name: str
    x: torch.Tensor
    options: dict[str, torch.Tensor | None]

    @property
    def inputs(self) -> list[torch.Tensor]:
        """The tensors with gradients."""
        return [self.x, *(value for name, value in self.options.items() if value is not None and name != 'taps')]


def epilogue_case(
    shape: tuple[int, int, int, int],
    *,
    filtered: bool,
    scaled: bool = True,
    noise: str | None = 'shared',
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
    device: torch.device | None = None,
    seed: int = 0,
) -> EpilogueCase:
    """A layer with a result of `shape` [N, C, H, W]; a filtered input is one pixel larger.

    noise: 'shared' or 'own' images for the samples, or None.
    """
    rng = torch.Generator().manual_seed(seed)
    samples, channels, height, width = shape
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    size = (height + 1, width + 1) if filtered else (height, width)
    x = torch.randn(samples, channels, *size, generator=rng).to(device, dtype).contiguous(memory_format=memory_format)
    images = samples if noise == 'own' else 1
    operands = {
        'taps': torch.tensor([0.25, 0.8, 0.65, 0.3]) if filtered else None,  # not symmetric, so that a flip shows
        'scale': 0.5 + torch.rand(samples, channels, generator=rng) if scaled else None,
        'noise': torch.randn(images, 1, height, width, generator=rng) if noise else None,
        'bias': torch.randn(channels, generator=rng),
    }
    options = {name: None if value is None else value.to(device, wide) for name, value in operands.items()}
    return EpilogueCase(name=f'{channels}x{height}x{width}', x=x, options=options)


SHAPES = [(2, 19, 9, 7), (1, 3, 1, 1), (2, 1, 2, 5), (1, 40, 33, 70), (3, 32, 8, 1)]
# The layers whose cost counts, of the release's size.
LAYERS = [(1, 128, 512, 512), (1, 256, 256, 256), (1, 128, 256, 256), (1, 512, 64, 64)]
