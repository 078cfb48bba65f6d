"""StyleGAN-NADA's two losses over CLIP features: where images should move, and where they should arrive.

Directional: the change from the source network's image to the stylized one is parallel to the change from the source
text to the target text. Global: the stylized image is close to the target. All features have unit length.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from applications.clip.model import Clip
from applications.preprocessing.align import load_photo
from applications.preprocessing.photos import PHOTO_TYPES
from dnnlib import UserError

# Sentences around a text: their mean says what is common to them, which is the text.
TEMPLATES = ('{}', 'a picture of {}', 'a cropped picture of {}', 'a close view of {}', 'a good picture of {}',
             'a picture of one {}', 'an image of {}', 'the look of {}')  # fmt: skip

SMALL_CHANGE = 0.05  # length in feature space, where unrelated pictures lie about 1 apart


@dataclasses.dataclass(frozen=True, kw_only=True)
class Terms:
    loss: Tensor  # [] weighted sum
    directional: Tensor  # [] 1 - cosine, mean over images
    overall: Tensor  # [] 1 - cosine to the target: the global loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
    """A style as CLIP sees it."""

    clip: Clip
    direction: Tensor  # [D] unit: from the source to the target
    targets: Tensor  # [T, D] unit: what stylized images should be close to
    direction_weight: float
    global_weight: float

    def __call__(self, source: Tensor, stylized: Tensor) -> Terms:
        """Images [N, 3, H, W] in [-1, 1] of the same latents, cameras and heads; gradient to `stylized`."""
        with torch.no_grad():
            before = self.clip.image_features(source)
        after = self.clip.image_features(stylized)
        # At first nothing has changed, and the cosine's gradient would be without bound: Adam would remember it for
        # hundreds of steps. So a small change counts by its length along the direction.
        cosine = F.cosine_similarity(after - before, self.direction[None], dim=1, eps=SMALL_CHANGE)
        directional, overall = (1 - cosine).mean(), self.distance(after)
        loss = self.direction_weight * directional + self.global_weight * overall
        return Terms(loss=loss, directional=directional, overall=overall)

    def distance(self, features: Tensor) -> Tensor:
        """The global loss of unit features [N, D]."""
        return (1 - features @ self.targets.t()).mean()


def text_guidance(clip: Clip, *, source: str, target: str, direction_weight: float, global_weight: float) -> Guidance:
    """From one text to another."""
    texts = [clip.text_features([template.format(text) for template in TEMPLATES]) for text in (source, target)]
    direction = _direction(texts[0], texts[1], what=f'--text {target!r} and --source-text {source!r}')
    return Guidance(
        clip=clip,
        direction=direction,
        targets=texts[1],
        direction_weight=direction_weight,
        global_weight=global_weight,
    )


def image_guidance(
    clip: Clip, pictures: list[Tensor], generated: Tensor, *, direction_weight: float, global_weight: float
) -> Guidance:
    """From images [M, 3, H, W] of the source network to pictures, each [1, 3, H, W] of a size of its own."""
    with torch.no_grad():
        targets = torch.cat([clip.image_features(picture) for picture in pictures])
        source = clip.image_features(generated)
    return Guidance(
        clip=clip,
        direction=_direction(source, targets, what='--images and the images of --network'),
        targets=targets,
        direction_weight=direction_weight,
        global_weight=global_weight,
    )


def _direction(source: Tensor, target: Tensor, *, what: str) -> Tensor:
    change = target.mean(dim=0) - source.mean(dim=0)
    if float(change.norm()) < 1e-4:
        raise UserError(f'{what}: look the same to CLIP; choose texts or pictures that differ')
    return F.normalize(change, dim=0)


def read_pictures(folder: str) -> list[Tensor]:
    """The pictures of a folder, their central squares, each [1, 3, S, S] in [-1, 1]; UserError names a bad one."""
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f'--images {folder}: no such folder')
    files = sorted(file for file in root.rglob('*') if file.suffix.lower() in PHOTO_TYPES and file.name[0] != '.')
    if not files:
        raise UserError(f'--images {folder}: holds no picture ({", ".join(PHOTO_TYPES)})')
    pictures = []
    for file in files:
        pixels = torch.from_numpy(load_photo(file)).movedim(-1, 0)[None].float() / 127.5 - 1
        side = min(pixels.shape[-2:])
        top, left = ((length - side) // 2 for length in pixels.shape[-2:])
        pictures.append(pixels[..., top : top + side, left : left + side])
    return pictures
