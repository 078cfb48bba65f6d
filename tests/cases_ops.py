"""Inputs of the op tests and benchmarks: meshes, masks, resampling and activation settings."""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshCase:
    """Vertices [N, V, 3] in the image plane, faces [F, 3], and the image they are drawn into."""

    name: str
    vertices: torch.Tensor
    faces: torch.Tensor
    height: int
    width: int

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> MeshCase:
        return dataclasses.replace(self, vertices=self.vertices.to(device, dtype), faces=self.faces.to(device))


def sphere(rings: int, segments: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit sphere [V, 3], faces [F, 3] that the rasterizer sees from outside at negative z."""
    phi = torch.linspace(0.02, torch.pi - 0.02, rings)[:, None]
    theta = (torch.arange(segments) * 2 * torch.pi / segments)[None]
    points = torch.stack([phi.sin() * theta.cos(), phi.cos().expand(-1, segments), phi.sin() * theta.sin()], dim=-1)
    row, column = torch.meshgrid(torch.arange(rings - 1), torch.arange(segments), indexing='ij')
    right = (column + 1) % segments
    a, b = row * segments + column, row * segments + right
    c, d = a + segments, b + segments
    faces = torch.stack([torch.stack([a, b, c], -1), torch.stack([b, d, c], -1)], dim=2)
    return points.flatten(0, 1), faces.reshape(-1, 3)


def head_like(*, views: int = 4, faces: int = 10_000) -> MeshCase:
    """A sphere of about `faces` triangles in `views` poses at 256 x 256: the load of one image's planes."""
    rings = int((faces / 4) ** 0.5) + 1
    points, triangles = sphere(rings, 2 * rings)
    angle = torch.arange(views) * 0.7
    turned = torch.stack(
        [
            points[:, 0] * angle[:, None].cos() + points[:, 2] * angle[:, None].sin(),
            points[:, 1].expand(views, -1),
            points[:, 2] * angle[:, None].cos() - points[:, 0] * angle[:, None].sin(),
        ],
        dim=-1,
    )
    vertices = turned * torch.tensor([0.5, 0.6, 0.5]) + torch.tensor([0.0, 0.0, 10.0])
    return MeshCase(name='head_like', vertices=vertices, faces=triangles, height=256, width=256)


def random_soup(seed: int, *, samples: int, num_faces: int, height: int, width: int, spread: float) -> MeshCase:
    """Random triangles of all sizes, many crossing the border or lying outside it."""
    rng = torch.Generator().manual_seed(seed)
    vertices = torch.randn(samples, 3 * num_faces // 2 + 3, 3, generator=rng) * spread
    vertices[..., 2] = vertices[..., 2] / spread + 10
    faces = torch.randint(0, vertices.shape[1], (num_faces, 3), generator=rng)
    return MeshCase(name=f'soup{seed}', vertices=vertices, faces=faces, height=height, width=width)


def tie_mesh() -> MeshCase:
    """The same triangles several times, shuffled, and coplanar neighbours that share edges through pixel centres."""
    grid = torch.linspace(-0.875, 0.875, 8)
    y, x = torch.meshgrid(grid, grid, indexing='ij')
    points = torch.stack([x, y, torch.full_like(x, 3.0)], dim=-1).reshape(1, -1, 3)
    row, column = torch.meshgrid(torch.arange(7), torch.arange(7), indexing='ij')
    a = (row * 8 + column).flatten()
    faces = torch.cat([torch.stack([a, a + 8, a + 1], -1), torch.stack([a + 1, a + 8, a + 9], -1)])
    faces = faces.repeat(3, 1)
    order = torch.randperm(len(faces), generator=torch.Generator().manual_seed(3))
    return MeshCase(name='ties', vertices=points.expand(2, -1, -1).clone(), faces=faces[order], height=24, width=16)


def hostile_mesh() -> MeshCase:
    """Non-finite, huge, tiny, collapsed and back-facing triangles around one ordinary triangle."""
    nan, inf = float('nan'), float('inf')
    triangles = torch.tensor(
        [
            [[-0.5, -0.5, 5.0], [0.0, 0.6, 5.0], [0.6, -0.5, 6.0]],  # ordinary
            [[0.6, -0.5, 1.0], [0.0, 0.6, 1.0], [-0.5, -0.5, 1.0]],  # from behind, nearer
            [[nan, -0.5, 1.0], [0.0, 0.6, 1.0], [0.6, -0.5, 1.0]],
            [[-0.5, -0.5, nan], [0.0, 0.6, 1.0], [0.6, -0.5, 1.0]],
            [[-inf, -0.5, 1.0], [0.0, 0.6, 1.0], [0.6, -0.5, 1.0]],
            [[-0.5, -0.5, -inf], [0.0, 0.6, 1.0], [0.6, -0.5, 1.0]],
            [[-0.5, -0.5, 1.0], [0.0, 0.0, 1.0], [0.5, 0.5, 1.0]],  # collinear
            [[0.1, 0.1, 1.0], [0.1, 0.1, 1.0], [0.1, 0.1, 1.0]],  # a point
            [[0.0, 0.0, 1.0], [0.0, 1e-5, 1.0], [1e-5, 0.0, 1.0]],  # area below the epsilon
            [[-1e30, -1e30, 1.0], [0.0, 1e30, 1.0], [1e30, -1e30, 1.0]],  # area overflows
            [[-1e4, -1e4, 9.0], [0.0, 1e4, 9.0], [1e4, -1e4, 9.0]],  # covers everything, behind
            [[-0.5, -0.5, 3e38], [0.0, 0.6, 3e38], [0.6, -0.5, 3e38]],
            [[5.0, 5.0, 1.0], [5.0, 6.0, 1.0], [6.0, 5.0, 1.0]],  # outside
        ]
    )
    vertices = triangles.reshape(1, -1, 3)
    return MeshCase(
        name='hostile', vertices=vertices, faces=torch.arange(vertices.shape[1]).view(-1, 3), height=31, width=20
    )


def mesh_cases() -> list[MeshCase]:
    """All meshes on which every rasterizer must agree exactly."""
    points, triangles = sphere(9, 14)
    vertices = torch.stack([points * 0.7, points * 1.3, points * torch.tensor([0.02, 0.02, 1.0])])
    return [
        MeshCase(name='sphere', vertices=vertices + torch.tensor([0, 0, 5.0]), faces=triangles, height=32, width=32),
        random_soup(1, samples=3, num_faces=60, height=33, width=47, spread=0.8),
        random_soup(2, samples=1, num_faces=400, height=40, width=24, spread=0.1),
        random_soup(3, samples=2, num_faces=15, height=1, width=64, spread=3.0),
        tie_mesh(),
        hostile_mesh(),
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextureCase:
    """Fragments of four views of `samples` meshes, uv of their faces (some outside the texture), and textures."""

    face_ids: torch.Tensor  # [4 * N, H, W]
    barycentrics: torch.Tensor  # [4 * N, H, W, 3]
    face_uv: torch.Tensor  # [F, 3, 2]
    texture: torch.Tensor  # [N, C, T, U]


def texture_case(
    *, samples: int = 2, channels: int = 19, size: int = 12, dtype: torch.dtype = torch.float32
) -> TextureCase:
    """Random fragments, a third of them background; an odd number of channels and unequal sides catch layout slips."""
    rng = torch.Generator().manual_seed(11)
    shape = (4 * samples, size, size + 3)
    face_ids = torch.randint(-10, 20, shape, generator=rng).clamp(min=-1)
    weights = torch.rand(*shape, 3, generator=rng, dtype=dtype)
    barycentrics = torch.where(face_ids[..., None] >= 0, weights / weights.sum(-1, keepdim=True), 0)
    face_uv = 2.4 * torch.rand(20, 3, 2, generator=rng, dtype=dtype) - 1.2
    texture = torch.randn(samples, channels, 9, 14, generator=rng, dtype=dtype)
    return TextureCase(face_ids=face_ids, barycentrics=barycentrics, face_uv=face_uv, texture=texture)


def mask_cases() -> list[tuple[str, torch.Tensor]]:
    """Alpha masks [N, 1, H, W]: rings, soft rims, a covered corner, spirals, noise."""
    rng = torch.Generator().manual_seed(5)
    y, x = torch.meshgrid(torch.arange(40) - 19.5, torch.arange(33) - 16.0, indexing='ij')
    radius = (x.square() + y.square()).sqrt()
    ring = ((radius > 6) & (radius < 12)).float()
    soft = torch.sigmoid(4 * (2 - (radius - 10).abs()))
    corner = ring.clone()
    corner[:3, :3] = 1
    full, empty = torch.ones_like(ring), torch.zeros_like(ring)
    spiral = torch.ones(40, 33)
    for turn in range(0, 16, 4):
        spiral[turn : 40 - turn, turn] = 0
        spiral[39 - turn, turn : 33 - turn] = 0
        spiral[turn + 2 : 40 - turn, 32 - turn] = 0
        spiral[turn + 2, turn + 4 : 33 - turn] = 0
        spiral[turn + 2 : turn + 5, turn + 4] = 0
    noise = torch.rand(40, 33, generator=rng)
    dense = (noise > 0.4).float() * noise.clamp(0.99, 1)
    stacked = torch.stack([ring, soft, corner, full, empty, spiral, noise, (noise > 0.45).float(), dense])
    odd = torch.tensor([[-0.1, 254.0 / 255, 254.5 / 255, 1.0, float('nan'), 0.0]])
    return [('masks', stacked.unsqueeze(1)), ('odd', odd[None, None]), ('pixel', torch.zeros(2, 1, 1, 1))]


RESAMPLINGS: dict[str, dict] = {
    'identity': {},
    'blur': {'padding': (2, 1, 2, 1)},
    'up2': {'up': 2, 'padding': (2, 1, 2, 1), 'gain': 4.0},
    'down2': {'down': 2, 'padding': 1},
    'up3_down2': {'up': 3, 'down': 2, 'padding': (4, 0, 1, 3)},
    'up2_down4': {'up': 2, 'down': 4, 'padding': 3},
    'mixed_axes': {'up': (2, 1), 'down': (1, 3), 'padding': (0, 5, 2, 2)},
    'crop': {'up': 2, 'padding': (-1, -2, -3, 1)},
    'pad_beyond': {'padding': (9, 0, 0, 11), 'flip_filter': True},
    'negative_gain': {'gain': -0.5, 'padding': 2, 'flip_filter': True},
}


def filters() -> dict[str, torch.Tensor]:
    """The usual filter, one that is no outer product, one with zeros, single taps."""
    rng = torch.Generator().manual_seed(7)
    binomial = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    gappy = torch.randn(3, 5, generator=rng)
    gappy[1] = 0
    return {
        'binomial': torch.outer(binomial, binomial),
        'taps': torch.tensor([0.5, -1.0, 0.25]),
        'general': torch.randn(4, 3, generator=rng),
        'gappy': gappy,
        'zero': torch.zeros(2, 2),
        'row': torch.randn(1, 6, generator=rng),
        'one': torch.full((1, 1), 2.0),
    }
