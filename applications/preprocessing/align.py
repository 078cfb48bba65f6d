"""The square crop of a photograph in EG3D's FFHQ convention, and the way points map through it.

A crop is axis-aligned: the head's in-plane roll stays in the picture and ends up in the camera
(as the paper needs it). Its centre and side are chosen so that the fitted camera looks at
cameras.PIVOT with the fixed focal length, from where the framing says: `crop_from_landmarks` is the first
guess (FFHQ's rule), `recrop` corrects it from a fit.

Framings: 'eg3d' puts the camera at cameras.RADIUS from the world's origin, as the labels of EG3D's FFHQ
do; 'pivot' at cameras.RADIUS from the pivot, as our synthetic data, whose heads are 8 % smaller.

Pixel coordinates are continuous: (column, row), the centre of pixel i at i + 0.5.
"""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError
from torch import Tensor

from dnnlib.errors import UserError
from training import cameras

# FFHQ's crop (side 1) holds more than EG3D's view of it: the ratio of the sides, close enough for a start.
_FFHQ_TO_EG3D = 0.82
FRAMINGS = ('eg3d', 'pivot')


@dataclasses.dataclass(frozen=True)
class Crop:
    """A square of a picture; may reach over its border."""

    column: float  # centre, pixels of the photograph
    row: float
    side: float  # pixels of the photograph

    def to_crop(self, points: np.ndarray) -> np.ndarray:
        """Pixels of the photograph [..., 2] -> crop coordinates in [0, 1]."""
        return (points - np.array([self.column, self.row])) / self.side + 0.5

    def to_photo(self, points: np.ndarray) -> np.ndarray:
        """Crop coordinates in [0, 1] [..., 2] -> pixels of the photograph."""
        return (points - 0.5) * self.side + np.array([self.column, self.row])

    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels of the photograph."""
        half = self.side / 2
        return self.column - half, self.row - half, self.column + half, self.row + half

    def outside(self, width: int, height: int) -> float:
        """The share of the crop's area that lies outside a photograph of this size."""
        left, top, right, bottom = self.box()
        across = max(0.0, min(right, width) - max(left, 0.0))
        down = max(0.0, min(bottom, height) - max(top, 0.0))
        return 1.0 - across * down / self.side**2


def load_photo(path: str | os.PathLike[str]) -> np.ndarray:
    """Any picture file -> uint8 RGB [H, W, 3], turned upright by its EXIF tag.

    Transparency is laid over white; 16-bit and float greyscale are scaled to 8 bits.
    Raises UserError with the reason for a file that is not a whole picture.
    """
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        raise UserError(f'{path}: empty file (0 bytes)')
    try:
        with Image.open(path) as picture:
            picture.load()
            upright = ImageOps.exif_transpose(picture)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = 'not a picture' if isinstance(error, UnidentifiedImageError) else f'corrupt picture ({error})'
        raise UserError(f'{path}: {reason}') from error
    if upright.mode in ('I', 'F') or upright.mode.startswith('I;16'):
        upright = _to_eight_bits(np.asarray(upright).astype(np.float64), wide=upright.mode != 'F')
    if upright.mode in ('RGBA', 'LA', 'PA') or 'transparency' in upright.info:
        layered = upright.convert('RGBA')
        upright = Image.alpha_composite(Image.new('RGBA', layered.size, 'white'), layered)
    return np.array(upright.convert('RGB'))


def _to_eight_bits(values: np.ndarray, *, wide: bool) -> Image.Image:
    """Greyscale samples -> 8 bits: 16-bit integers by their full range, floats by [0, 1] or [0, 255]."""
    full = 65535.0 if wide and values.max(initial=0) > 255 else 255.0 if values.max(initial=0) > 1 else 1.0
    return Image.fromarray((np.nan_to_num(values) / full * 255).round().clip(0, 255).astype(np.uint8))


def crop_from_landmarks(landmarks: np.ndarray) -> Crop:
    """68 landmarks in pixels -> the first crop, by FFHQ's rule on eyes and mouth, without its rotation."""
    if landmarks.shape != (68, 2):
        raise ValueError(f'landmarks: expected shape [68, 2], got {list(landmarks.shape)}')
    right_eye, left_eye = landmarks[36:42].mean(axis=0), landmarks[42:48].mean(axis=0)
    eyes = (right_eye + left_eye) / 2
    down = landmarks[[48, 54]].mean(axis=0) - eyes
    side = max(4.0 * np.linalg.norm(left_eye - right_eye), 3.6 * np.linalg.norm(down))
    centre = eyes + 0.1 * down
    return Crop(float(centre[0]), float(centre[1]), float(side) * _FFHQ_TO_EG3D)


def pivot_distance(toward: Tensor, *, framing: str) -> Tensor:
    """How far from the pivot a camera stands that sees it from direction `toward` [N, 3] (unit); [N]."""
    if framing not in FRAMINGS:
        raise ValueError(f'framing: expected one of {", ".join(FRAMINGS)}, got {framing!r}')
    if framing == 'pivot':
        return torch.full_like(toward[:, 0], cameras.RADIUS)
    pivot = toward.new_tensor(cameras.PIVOT)
    along = toward @ pivot
    return (along.square() + cameras.RADIUS**2 - pivot.square().sum()).sqrt() - along


def aimed_label(rotation: Tensor, *, framing: str) -> Tensor:
    """Labels [N, 25] of cameras with rotation [N, 3, 3] (camera to world) that stand exactly as the framing says."""
    forward = rotation[:, :, 2]
    distance = pivot_distance(-forward, framing=framing)
    cam2world = torch.eye(4, dtype=rotation.dtype, device=rotation.device).repeat(len(rotation), 1, 1)
    cam2world[:, :3, :3] = rotation
    cam2world[:, :3, 3] = forward.new_tensor(cameras.PIVOT) - distance[:, None] * forward
    return cameras.pack_label(cam2world, cameras.intrinsics(len(rotation), device=rotation.device).to(rotation))


def recrop(crop: Crop, label: Tensor, *, framing: str = 'eg3d') -> Crop:
    """The crop in which the camera fitted in `crop` (label [25]) would look at the pivot from where it should stand.

    Fit, recrop and fit again: a move of the crop is a turn of the camera only to first order.
    One call moves the centre by at most half a side and changes the side by at most a factor of two.
    """
    pivot = label.new_tensor(cameras.PIVOT).reshape(1, 1, 3)
    at, _ = cameras.project(pivot, label[None])
    away = label.reshape(-1)[:16].reshape(4, 4)[:3, 3] - pivot.reshape(3)
    distance = max(float(away.norm()), 1e-6)
    wanted = float(pivot_distance(away[None] / distance, framing=framing))
    centre = crop.to_photo(at[0, 0].double().clamp(0, 1).cpu().numpy())
    scale = min(max(wanted / distance, 0.5), 2.0)
    return Crop(float(centre[0]), float(centre[1]), crop.side * scale)


def extract(photo: np.ndarray, crop: Crop, *, resolution: int) -> np.ndarray:
    """The crop of a photograph uint8 [H, W, 3], resampled (antialiased) to uint8 [resolution, resolution, 3].

    Pixel-exact in the sense of `Crop.to_crop`. Beyond the border the picture is mirrored and
    blurred, more so with distance, as FFHQ does, so that no edge shows.
    """
    height, width = photo.shape[:2]
    left, top, right, bottom = crop.box()
    margin = int(np.ceil(4 * max(1.0, crop.side / resolution))) + 1  # the resampling filter's reach
    outer = [int(np.floor(left)) - margin, int(np.floor(top)) - margin]
    outer += [int(np.ceil(right)) + margin, int(np.ceil(bottom)) + margin]
    inner = [max(outer[0], 0), max(outer[1], 0), min(outer[2], width), min(outer[3], height)]
    if inner[0] >= inner[2] or inner[1] >= inner[3]:
        raise ValueError(f'crop: {crop} lies outside the photograph of {width} x {height}')
    part = photo[inner[1] : inner[3], inner[0] : inner[2]]
    pads = [inner[0] - outer[0], inner[1] - outer[1], outer[2] - inner[2], outer[3] - inner[3]]
    if any(pads):
        part = _mirror_border(part, pads, blur=0.02 * crop.side)
    box = (left - outer[0], top - outer[1], right - outer[0], bottom - outer[1])
    picture = Image.fromarray(np.ascontiguousarray(part))
    return np.asarray(picture.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box))


def _mirror_border(part: np.ndarray, pads: list[int], *, blur: float) -> np.ndarray:
    """Extend left, top, right, bottom by mirroring; the new pixels fade into a blurred copy."""
    left, top, right, bottom = pads
    padded = np.pad(part, ((top, bottom), (left, right), (0, 0)), mode='symmetric')
    soft = np.asarray(Image.fromarray(padded).filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32)
    height, width = padded.shape[:2]
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    beyond_x = np.maximum(left - columns, columns - (width - 1 - right))
    beyond_y = np.maximum(top - rows, rows - (height - 1 - bottom))
    share = np.clip(np.maximum(beyond_x, beyond_y) / max(4 * blur, 1.0), 0.0, 1.0)[..., None]
    return (padded + share * (soft - padded)).round().clip(0, 255).astype(np.uint8)
