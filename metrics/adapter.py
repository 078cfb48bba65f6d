"""What a generator must offer to be measured: pictures on request. Ours is one; others are ten lines of the user's.

    class Mine(Adapter):
        name, resolution = 'mine', 256
        def __init__(self, device):
            self.net = load('mine.pt').to(device)
        def images(self, request):
            z = torch.stack([torch.randn(512, generator=torch.Generator().manual_seed(s)) for s in request.seeds])
            picture = self.net(z, camera=request.camera, expression=request.params.expression)
            return (picture * 127.5 + 128).clamp(0, 255).to(torch.uint8)

Equal seeds must show one person. Each picture may depend on nothing but its own row of the request.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from dnnlib.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """N pictures to make; tensors lie on the device of the run."""

    seeds: list[int]  # [N] below 2^32; a seed is a person
    conditioning: Tensor  # [N, 25] camera that the person was drawn with (EG3D's conditioning)
    camera: Tensor  # [N, 25] cam2world 4 x 4 (OpenCV axes), normalized intrinsics 3 x 3
    params: Any  # training.head.HeadParams of N rows; None where the dataset holds meshes or nothing
    head: Any  # training.head.HeadInput: vertices [N, V, 3], landmarks [N, 68, 3], metres; None without heads
    scene: list[int]  # [N] number of the picture: for what an adapter draws beyond the request (light, background)
    truncation_psi: float = 1.0
    truncation_cutoff: int | None = None
    seeds_to: list[int] | None = None  # with `mix`: latents on the way from seeds to seeds_to (path lengths only)
    mix: Tensor | None = None  # [N], may exceed 1
    mix_space: str = 'w'  # or 'z'


class Adapter(ABC):
    """A generator of pictures. `content_hash` is the key under which results are kept; None keeps none."""

    name: str = 'adapter'
    resolution: int
    content_hash: str | None = None
    mixes: bool = False  # whether `images` heeds seeds_to and mix
    precision_name: str = 'fp32'

    @abstractmethod
    def images(self, request: Request) -> Tensor:
        """uint8 [N, 3, R, R]."""


class NetworkAdapter(Adapter):
    """A training.generator.Generator: latents from seeds, conditioned on the person's camera, no random noise."""

    mixes = True

    def __init__(self, generator: Any, *, content_hash: str | None = None, name: str = 'network') -> None:
        self.generator = generator
        self.name = name
        self.content_hash = content_hash
        self.resolution = int(generator.config.image_resolution)
        self.precision_name = getattr(generator, 'precision_name', 'fp32')

    def images(self, request: Request) -> Tensor:
        if request.head is None:
            raise UserError('--data: the dataset has no heads (head.npz), but the network needs them')
        ws = self._latents(request)
        planes = self.generator.deform(self.generator.identity(ws), request.head)
        image = self.generator.render(planes, request.camera).image
        return (image * 127.5 + 128).clamp(0, 255).to(torch.uint8)

    def _latents(self, request: Request) -> Tensor:
        device = request.camera.device
        truncation = {'truncation_psi': request.truncation_psi, 'truncation_cutoff': request.truncation_cutoff}
        z = self._draw(request.seeds).to(device)
        if request.seeds_to is None or request.mix is None:
            return self.generator.map(z, request.conditioning, **truncation)
        other = self._draw(request.seeds_to).to(device)
        if request.mix_space == 'z':
            return self.generator.map(_slerp(z, other, request.mix), request.conditioning, **truncation)
        ws = self.generator.map(z, request.conditioning, **truncation)
        return torch.lerp(
            ws,
            self.generator.map(other, request.conditioning, **truncation),
            request.mix.view(-1, *[1] * (ws.ndim - 1)),
        )

    def _draw(self, seeds: list[int]) -> Tensor:
        width = self.generator.config.z_dim
        return torch.stack([torch.randn(width, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def _slerp(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Points on the great circle from `first` to `second` [N, D], directions only; lengths as `first` has them."""
    length = first.norm(dim=1, keepdim=True)
    a, b = (torch.nn.functional.normalize(z, dim=1) for z in (first, second))
    across = torch.nn.functional.normalize(b - (a * b).sum(dim=1, keepdim=True) * a, dim=1)
    angle = share[:, None] * torch.acos((a * b).sum(dim=1, keepdim=True).clamp(-1, 1))
    return (a * angle.cos() + across * angle.sin()) * length
