"""2-D convolution composed with FIR up- or downsampling by two (StyleGAN2's order of operations)."""

from __future__ import annotations

import torch

from torch_utils.ops import conv2d, upfirdn2d


def conv2d_resample(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    resample_filter: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
) -> torch.Tensor:
    """'Same' convolution of x [N, C, H, W] by weight [O, C, k, k] (k odd), at H * up / down.

    up = 1: correlation with `weight`. up = 2: transposed convolution with stride 2, which equals zero insertion
    and true convolution (the kernel is mirrored in comparison with up = 1), then the filter with gain 4.
    down = 2: the filter, then a convolution with stride 2. `resample_filter`: [fh, fw] with sum 1, or None (no
    filtering; only for up = down = 1). Any order of gradients.
    """
    out_channels, in_channels, kernel, kernel_width = weight.shape
    if x.ndim != 4 or x.shape[1] != in_channels or kernel != kernel_width or kernel % 2 == 0:
        raise ValueError(
            f'x, weight: expected [N, C, H, W] and [O, C, k, k], got {list(x.shape)}, {list(weight.shape)}'
        )
    if up == 1 and down == 1:
        return conv2d.conv2d(x, weight, padding=kernel // 2)
    if resample_filter is None or (up, down) not in ((2, 1), (1, 2)):
        raise ValueError(f'up, down: expected (1, 1), (2, 1) or (1, 2) with a resample_filter, got ({up}, {down})')
    taps = resample_filter.shape[-1]

    if down == 2:
        before, after = kernel // 2 + (taps - 1) // 2, kernel // 2 + (taps - 2) // 2
        padding = (before, after, before, after)
        if kernel == 1:  # the strided filter and the 1x1 convolution commute: filter a quarter of the pixels
            return conv2d.conv2d(upfirdn2d.upfirdn2d(x, resample_filter, down=2, padding=padding), weight)
        return conv2d.conv2d(upfirdn2d.upfirdn2d(x, resample_filter, padding=padding), weight, stride=2)

    before = kernel // 2 + (taps + 1) // 2 - (kernel - 1)
    after = kernel // 2 + (taps - 2) // 2 - (kernel - 2)
    x = conv2d.conv_transpose2d(x, weight.transpose(0, 1))
    return upfirdn2d.upfirdn2d(x, resample_filter, padding=(before, after, before, after), gain=4)
