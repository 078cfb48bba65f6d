"""Layers shared by all networks: equalized learning rate, resampling and modulated convolutions, mapping network."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import torch
from torch import nn

from torch_utils.ops import bias_act, conv2d, upfirdn2d
from torch_utils.ops.conv2d_resample import conv2d_resample

RESAMPLE_TAPS = (1, 3, 3, 1)


def log2_resolution(resolution: int, *, name: str = 'resolution') -> int:
    """log2 of a power of two of at least 4; ValueError otherwise."""
    exponent = resolution.bit_length() - 1
    if resolution < 4 or resolution != 2**exponent:
        raise ValueError(f'{name}: expected a power of two of at least 4, got {resolution}')
    return exponent


def normalize_2nd_moment(x: torch.Tensor, *, eps: float = 1e-8) -> torch.Tensor:
    """x [N, C] scaled to unit mean square over C."""
    return x * (x.square().mean(dim=1, keepdim=True) + eps).rsqrt()


def full_precision(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """Suspends autocast on the device of x: styles, latents and logits stay in fp32 under --precision=bf16."""
    device = conv2d.autocast_device(x)
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """x itself, or in float32 if its type has 16 bits."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def filtered_resize(image: torch.Tensor, size: int) -> torch.Tensor:
    """image [N, C, H, W] -> [N, C, size, size], bilinear with antialiasing; unchanged if it has this size."""
    if image.shape[-2:] == (size, size):
        return image
    return nn.functional.interpolate(image, size=(size, size), mode='bilinear', align_corners=False, antialias=True)


def derived(module: nn.Module, weight: nn.Parameter, kind: tuple, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """compute(), a function of `weight` and of `kind` alone: kept with the weight while a module in evaluation mode
    needs no gradient of it, and computed anew once the weight has changed."""
    if module.training or (weight.requires_grad and torch.is_grad_enabled()):
        return compute()
    kept = weight.__dict__.setdefault('next3d_derived', {})
    state = (weight._version, weight.data_ptr())
    if kind not in kept or kept[kind][0] != state:
        with torch.no_grad():
            kept[kind] = (state, compute())
    return kept[kind][1]


class FullyConnected(nn.Module):
    """y = act(x W^T + b) with equalized learning rate: x [N, in] -> [N, out]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: str = 'linear',
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full([out_features], float(bias_init)))
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight * self.weight_gain
        bias = self.bias if self.bias_gain == 1 else self.bias * self.bias_gain
        with full_precision(x):
            x = at_least_float32(x)
            if self.activation == 'linear':
                return torch.addmm(bias, x, weight.t())
            return bias_act.bias_act(x @ weight.t(), bias, act=self.activation)


class Conv2d(nn.Module):
    """3x3 or 1x1 convolution with equalized learning rate, optional up- or downsampling, bias, activation.

    x [N, in, H, W] -> [N, out, H * up / down, W * up / down]. `forward(x, gain=g)` scales the result.
    """

    resample_filter: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        bias: bool = True,
        activation: str = 'linear',
        up: int = 1,
        down: int = 1,
        init_std: float = 1.0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.up = up
        self.down = down
        self.weight = nn.Parameter(init_std * torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.act_gain = math.sqrt(2) if activation == 'lrelu' else 1.0
        self.register_buffer('resample_filter', upfirdn2d.setup_filter(RESAMPLE_TAPS), persistent=False)

    def forward(self, x: torch.Tensor, *, gain: float = 1.0) -> torch.Tensor:
        dtype = conv2d.compute_type(x)
        kind = ('equalized', dtype)
        weight = derived(self, self.weight, kind, lambda: (self.weight * self.weight_gain).to(dtype))
        x = conv2d_resample(x, weight, resample_filter=self.resample_filter, up=self.up, down=self.down)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return bias_act.bias_act(x, bias, act=self.activation, gain=self.act_gain * gain)


def demodulation(energy: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    """1 / norm of each output channel's kernel when scaled by styles [N, C]; energy [O, C]: the sums of the squares
    of its weights over the taps. [N, O]"""
    with full_precision(styles):
        return (styles.square() @ energy.t() + 1e-8).rsqrt()


class MappingNetwork(nn.Module):
    """z [N, z_dim] and label [N, label_dim] -> ws [N, num_ws, w_dim] (or [N, w_dim] with num_ws = None).

    Latent and embedded label are each normalized by their second moment and concatenated. z_dim = 0 or
    label_dim = 0 leave that input out (pass None). Pure: the mean `w_avg` moves only by `update_w_avg`.
    """

    w_avg: torch.Tensor

    def __init__(
        self,
        z_dim: int,
        label_dim: int,
        w_dim: int,
        num_ws: int | None,
        *,
        num_layers: int,
        lr_multiplier: float = 0.01,
    ) -> None:
        super().__init__()
        if z_dim <= 0 and label_dim <= 0:
            raise ValueError('z_dim, label_dim: expected at least one above 0')
        if num_layers < 1:
            raise ValueError(f'num_layers: expected at least 1, got {num_layers}')
        self.z_dim = z_dim
        self.label_dim = label_dim
        self.w_dim = w_dim
        self.num_ws = num_ws
        self.num_layers = num_layers
        self.embed = FullyConnected(label_dim, w_dim) if label_dim > 0 else None
        in_features = z_dim + (w_dim if label_dim > 0 else 0)
        for index in range(num_layers):
            features = in_features if index == 0 else w_dim
            layer = FullyConnected(features, w_dim, activation='lrelu', lr_multiplier=lr_multiplier)
            setattr(self, f'fc{index}', layer)
        if num_ws is not None:
            self.register_buffer('w_avg', torch.zeros(w_dim))

    def forward(self, z: torch.Tensor | None, label: torch.Tensor | None) -> torch.Tensor:
        inputs = []
        for name, value, width in (('z', z, self.z_dim), ('label', label, self.label_dim)):
            if width == 0:
                continue
            if value is None or value.ndim != 2 or value.shape[1] != width:
                got = None if value is None else list(value.shape)
                raise ValueError(f'{name}: expected [N, {width}], got {got}')
            if name == 'label':
                assert self.embed is not None
                value = self.embed(value)
            inputs.append(normalize_2nd_moment(value))
        x = torch.cat(inputs, dim=1) if len(inputs) > 1 else inputs[0]
        for index in range(self.num_layers):
            x = getattr(self, f'fc{index}')(x)
        return x if self.num_ws is None else x.unsqueeze(1).expand(-1, self.num_ws, -1)

    @torch.no_grad()
    def update_w_avg(self, ws: torch.Tensor, *, beta: float) -> None:
        """Move w_avg towards the batch mean of ws [N, num_ws, w_dim] (first row): avg <- mean + beta (avg - mean)."""
        self.w_avg.copy_(ws[:, 0].detach().float().mean(dim=0).lerp(self.w_avg, beta))

    def truncate(self, ws: torch.Tensor, psi: float, *, cutoff: int | None = None) -> torch.Tensor:
        """Interpolate ws [N, num_ws, w_dim] towards w_avg: w_avg + psi (ws - w_avg); only rows below `cutoff`."""
        if psi == 1:
            return ws
        cutoff = ws.shape[1] if cutoff is None else cutoff
        return torch.cat([self.w_avg.lerp(ws[:, :cutoff], psi), ws[:, cutoff:]], dim=1)
