"""Texture -> three rasterized feature planes with alpha (paper section 3.1; SPEC section 3).

The neural texture is rasterized on the posed template mesh from four orthographic views
(front, left, right, top). Plane coordinates are 2 x world / box size, in [-1, 1]; a plane's
pixel i has its centre at -1 + (2 i + 1) / R. Slot 0 is read by the sampler at (x, y),
slot 1 at (x, z), slot 2 at (z, y) as (column, row); rows grow with the coordinate, so a
plane shown as an image is upside down.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from torch_utils.ops import fill_holes, rasterize
from torch_utils.ops.texture_planes import Mirror, sample_mask, texture_planes
from training.cameras import HEAD_SCALE, HEAD_TRANSLATION
from training.config import GeneratorConfig
from training.head.model import HeadInput, HeadTemplate

FRONT, LEFT, RIGHT, TOP = range(4)  # left: seen from +x, the subject's left
VIEW_ANGLES = ((0, 0, 0), (0, 90, 0), (0, -90, 0), (90, 0, 0))  # degrees about x, y, z
# Per layout and view: the plane that it enters (the two sides share one) and how it is turned before.
SLOTS = {'release': (0, 1, 1, 2), 'consistent': (0, 2, 2, 1)}
MIRRORS = {
    'release': (Mirror.NONE,) * 4,
    'consistent': (Mirror.NONE, Mirror.COLUMNS, Mirror.NONE, Mirror.ROWS),
}
MAX_SCALE_CHANGE = 0.1
MAX_TRANSLATION = 0.02  # metres, head frame


@dataclasses.dataclass(frozen=True)
class RasterizedPlanes:
    features: Tensor  # [N, 3, C, R, R]; each plane is channels-last in memory
    alpha: Tensor  # [N, 3, 1, R, R] in [0, 1]: where the dynamic planes replace the static ones
    landmarks: Tensor  # [N, 3, 68, 2] (column, row) of the landmarks on each plane


def _view_rotation(angles: tuple[int, int, int]) -> Tensor:
    """Rz Ry Rx for angles in degrees about x, y, z, with float32's cosine of a right angle (R's). [3, 3]"""
    radians = torch.tensor(angles, dtype=torch.float32) * math.pi / 180
    (cx, cy, cz), (sx, sy, sz) = radians.cos().tolist(), radians.sin().tolist()
    about_x = torch.tensor([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = torch.tensor([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = torch.tensor([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def project_release(points: Tensor, rotations: Tensor) -> Tensor:
    """Head-frame points [N, M, 3] -> (column, row, depth) of the release's four views [4, N, M, 3].

    The release shifts by 0.01 after each rotation, so the four views do not quite agree.
    """
    flip_y = points.new_tensor([1.0, -1.0, 1.0])
    shift = points.new_tensor([0.0, -0.01, -0.01])
    rotated = (points * flip_y)[None] @ rotations[:, None]
    return ((rotated + shift) * (2 * HEAD_SCALE)) * points.new_tensor([1.0, -1.0, -1.0]) + points.new_tensor(
        [0, 0, 10.0]
    )


def project_consistent(points: Tensor, box_size: float) -> Tensor:
    """Head-frame points [N, M, 3] -> (column, row, depth) of four views [4, N, M, 3].

    All views show the same transformed points. The left view's columns are -z and the
    top view's rows are -z here (as a viewer on that side sees them); MIRRORS
    turns the rasterized images into the frames that the sampler reads.
    """
    world = points * HEAD_SCALE + points.new_tensor(HEAD_TRANSLATION)
    x, y, z = (world * (2 / box_size)).unbind(-1)
    views = ((x, y, -z), (-z, y, -x), (z, y, x), (x, -z, -y))
    return torch.stack([torch.stack(view, dim=-1) for view in views]) + points.new_tensor([0, 0, 10.0])


class TemplateTransform(nn.Module):
    """Learned scale and translation of the template within bounds (paper B.1).

    Scale stays within 10 % of 1 and translation within 2 cm, so that training cannot
    move the head out of its box. Starts at the identity.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros([]))
        self.translation = nn.Parameter(torch.zeros(3))

    def forward(self, points: Tensor) -> Tensor:
        scale = 1 + MAX_SCALE_CHANGE * self.scale.tanh()
        return points * scale + MAX_TRANSLATION * self.translation.tanh()


class TextureRasterizer(nn.Module):
    """Rasterizes a texture on posed template meshes into the three planes.

    Gradients flow to the texture and, through the barycentrics, to the template transform.
    The alpha masks carry no gradient. All samples and views go through one native call.
    """

    faces: Tensor
    face_uv: Tensor
    eye_mask: Tensor
    rotations: Tensor

    def __init__(self, config: GeneratorConfig, template: HeadTemplate) -> None:
        super().__init__()
        self.config = config
        self.num_vertices = template.num_vertices
        self.transform = TemplateTransform() if config.template_transform == 'learned' else nn.Identity()
        uv = torch.stack([2 * template.uv[:, 0] - 1, 1 - 2 * template.uv[:, 1]], dim=-1)
        # The views look at the mesh through a mirror (rows grow upwards), hence the reversed winding.
        order = [0, 2, 1]
        self.register_buffer('faces', template.faces[:, order].contiguous(), persistent=False)
        self.register_buffer('face_uv', uv[template.uv_faces][:, order].contiguous(), persistent=False)
        self.register_buffer('eye_mask', template.eye_mask.float(), persistent=False)
        rotations = torch.stack([_view_rotation(angles) for angles in VIEW_ANGLES])
        self.register_buffer('rotations', rotations, persistent=False)

    def project(self, points: Tensor) -> Tensor:
        """Head-frame points [N, M, 3] -> (column, row, depth) in the four views [4, N, M, 3]."""
        points = self.transform(points)
        if self.config.plane_layout == 'release':
            return project_release(points, self.rotations)
        return project_consistent(points, self.config.box_size)

    def forward(self, texture: Tensor, head: HeadInput) -> RasterizedPlanes:
        """texture [N, C, T, T] and a posed head -> planes; ValueError on another topology."""
        if head.vertices.shape[1] != self.num_vertices:
            raise ValueError(
                f'vertices: expected [N, {self.num_vertices}, 3] for this template, got {list(head.vertices.shape)}'
            )
        size, layout = self.config.plane_resolution, self.config.plane_layout
        projected = self.project(head.vertices)
        fragments = rasterize.rasterize(projected.flatten(0, 1), self.faces, height=size, width=size)
        features = texture_planes(
            fragments,
            self.face_uv,
            texture,
            slots=SLOTS[layout],
            mirrors=MIRRORS[layout],
            background=self._shows_background(),
        )
        alpha = self._combine_alpha(self._alpha(fragments))
        return RasterizedPlanes(features, alpha, self._plane_landmarks(head.landmarks))

    def _shows_background(self) -> bool:
        """Whether planes hold the texture's centre, not zeros, where there is no mesh: someone reads them there."""
        config = self.config
        return config.plane_layout == 'release' or config.mouth_source == 'texture' or config.static_planes == 'none'

    def _alpha(self, fragments: rasterize.Fragments) -> Tensor:
        """Coverage without the eyeballs, with interior holes closed; all ones without static planes. [4, N, 1, R, R]"""
        alpha = sample_mask(fragments, self.face_uv, self.eye_mask).unsqueeze(1)
        if self.config.static_planes == 'none':
            return torch.ones_like(alpha).unflatten(0, (4, -1))
        if self.config.mouth_source != 'static':
            alpha = fill_holes.fill_holes(alpha, guarded=self.config.alpha_fill == 'guarded')
        return alpha.unflatten(0, (4, -1))

    def _combine_alpha(self, views: Tensor) -> Tensor:
        """Views [4, N, 1, R, R] -> planes [N, 3, 1, R, R]."""
        layout = self.config.plane_layout
        left, top = views[LEFT], views[TOP]
        if layout == 'consistent':
            left, top = left.flip(-1), top.flip(-2)  # MIRRORS
        if self.config.side_alpha == 'one_sided':
            side = (left > 0).to(views.dtype)  # the release binarizes this one alone
        else:
            side = torch.maximum(left, views[RIGHT])
        slots = (views[FRONT], side, top) if layout == 'release' else (views[FRONT], top, side)
        alpha = torch.stack(slots, dim=1)
        if self.config.dynamic_planes == 'front':
            alpha[:, 1:] = 0
        return alpha

    def _plane_landmarks(self, landmarks: Tensor) -> Tensor:
        """Where the landmarks fall on each plane. [N, 3, 68, 2]"""
        views = self.project(landmarks)[..., :2].detach()
        if self.config.plane_layout == 'release':
            return torch.stack([views[FRONT], views[LEFT], views[TOP]], dim=1)
        top = views[TOP] * views.new_tensor([1.0, -1.0])
        return torch.stack([views[FRONT], top, views[RIGHT]], dim=1)
