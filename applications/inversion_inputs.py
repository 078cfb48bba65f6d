"""The pictures that an avatar is made of: photographs, items of a dataset, or a crop with its head and camera."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from applications.heads import read_numbers, read_params, row
from applications.inversion_losses import View, head_weight
from applications.preprocessing.align import extract, load_photo
from applications.preprocessing.calibration import load_calibration
from applications.preprocessing.crops import PhotoLimits, eye_distance, fit_and_crop, inner_error
from applications.preprocessing.detect import Face, FaceDetector
from applications.preprocessing.photos import PHOTO_TYPES, find_photos
from dnnlib import UserError
from dnnlib.cli import parse_int_list
from training.cameras import LABEL_DIM, camera_angles
from training.head.model import HeadInput, HeadModel, HeadParams, HeadTemplate

MAX_MEGAPIXELS = 100
FACES = 'only, largest, or a number from 1 on, counted from the left'
_LIMITS = PhotoLimits()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A crop of one person and what is known of it; `params` None where the head is a mesh."""

    name: str
    image: Tensor  # [1, 3, R, R] in [-1, 1]
    label: Tensor  # camera [1, 25]
    head: HeadInput
    params: HeadParams | None


def photo_pictures(
    sources: Sequence[str],
    model: HeadModel,
    detector: FaceDetector,
    *,
    resolution: int,
    framing: str,
    face: str = 'only',
    limits: PhotoLimits = _LIMITS,
    report: Callable[[str], None] = print,
) -> list[Picture]:
    """Photographs (files and folders) of one person -> crops with cameras and heads that share one identity.

    `face`: which one of several in a picture, FACES. UserError, naming the photograph: no face, several and no choice,
    a picture that cannot be read or is too large, a face that `limits` refuse. With a folder none is left out silently.
    """
    photos = {path: _read(path) for path in _files(sources)}
    faces = [choose_face(path, detector.detect(photo), face) for path, photo in photos.items()]
    calibration = load_calibration(detector.name, model)
    crops, fit = fit_and_crop(model, faces, calibration=calibration, framing=framing)
    if len(faces) > 1:  # one person: the mean of what each picture says of the shape, then all again with it
        shared = fit.params.identity.mean(dim=0, keepdim=True).expand(len(faces), -1)
        crops, fit = fit_and_crop(model, faces, calibration=calibration, framing=framing, identity=shared, crops=crops)
    pictures = []
    for index, (path, photo) in enumerate(photos.items()):
        label, params = fit.label[[index]].cpu(), fit.params[[index]].to('cpu')
        error = inner_error(fit.error[index].cpu().numpy(), eye_distance(crops[index].to_crop(faces[index].landmarks)))
        yaw = float(np.degrees(camera_angles(label)[0, 0]))
        size = (int(photo.shape[0]), int(photo.shape[1]))
        reason = limits.reason(crops[index], size, error=error, yaw=yaw)
        if reason is not None:
            raise UserError(f'{path}: {reason}; choose another photograph')
        report(f'{path}: yaw {yaw:.0f} degrees, landmarks within {error:.1%} of the distance between the eyes')
        image = _image(extract(photo, crops[index], resolution=resolution))
        pictures.append(Picture(name=str(path), image=image, label=label, head=model.forward(params), params=params))
    return pictures


def _files(sources: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for source in sources:
        if not os.path.exists(source):
            raise UserError(f'--image {source}: no such file or folder')
        try:
            root, names = find_photos(source)
        except UserError as error:
            raise UserError(f'--image {source}: holds no photograph ({", ".join(PHOTO_TYPES)})') from error
        files += [root / name for name in names]
    return list(dict.fromkeys(files))


def _read(path: Path) -> np.ndarray:
    """A photograph of a size that is sensible, uint8 [H, W, 3]."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # the limit here is MAX_MEGAPIXELS
            with Image.open(path) as picture:
                width, height = picture.size
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return load_photo(path)  # which says what is wrong
    except Image.DecompressionBombError as error:
        raise UserError(f'{path}: {error}; expected at most {MAX_MEGAPIXELS} megapixels, make it smaller') from error
    if width * height > MAX_MEGAPIXELS * 1e6:
        raise UserError(
            f'{path}: {width} x {height} pixels; expected at most {MAX_MEGAPIXELS} megapixels, make it smaller'
        )
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', Image.DecompressionBombWarning)
        return load_photo(path)


def choose_face(path: Path, found: list[Face], wanted: str) -> Face:
    """The one of the faces found in a picture that `wanted` (FACES) means; UserError if that is not one."""
    faces = sorted((face for face in found if face.finite), key=lambda face: float(face.landmarks[:, 0].mean()))
    if not faces:
        raise UserError(f'{path}: no face found; expected a photograph of one face, large enough and not in profile')
    if wanted == 'largest' or (wanted == 'only' and len(faces) == 1):
        return max(faces, key=lambda face: face.size)
    if wanted == 'only':
        raise UserError(
            f'{path}: {len(faces)} faces; choose by --face=largest, or --face=1 to {len(faces)} from the left'
        )
    if not wanted.isdigit() or not 1 <= int(wanted) <= len(faces):
        raise UserError(f'--face {wanted}: {path} has {len(faces)}; expected {FACES}')
    return faces[int(wanted) - 1]


def dataset_pictures(source: str, template: HeadTemplate, *, resolution: int, model: HeadModel | None) -> list[Picture]:
    """DATASET:ITEMS (like data.zip:3 or data.zip:0-3; item 0 by default) -> pictures with the known labels.

    UserError for an item that is not there, heads of another topology, images smaller than the network's.
    """
    from training.dataset import HeadDataset

    path, numbers = source, [0]
    stem, _, tail = source.rpartition(':')
    if stem and tail[:1].isdigit():
        path, numbers = stem, parse_int_list(tail, option='--data')
    dataset = HeadDataset(path, head_model=model)
    for number in numbers:
        if not 0 <= number < len(dataset):
            raise UserError(f'--data {path}: item {number} is out of range; it has {len(dataset)}')
    head, params = dataset.head_input(numbers), dataset.head_params(numbers)
    if head.vertices.shape[1] != template.num_vertices:
        found = f'{head.vertices.shape[1]} vertices'
        raise UserError(f'--data {path}: heads have {found}, but the network takes {template.num_vertices}')
    if params is not None and model is not None and dataset.head_model_name == model.name:
        shared = params.identity.mean(dim=0, keepdim=True)
        params = params.replace(identity=shared.expand(len(numbers), -1))
        head = model.forward(params)
    pictures = dataset.images(numbers).permute(0, 2, 3, 1).numpy()
    label = dataset.label(numbers)
    return [
        Picture(
            name=f'{path}:{number}',
            image=_image(resized(pictures[index], resolution)),
            label=label[[index]],
            head=head[[index]],
            params=None if params is None else params[[index]],
        )
        for index, number in enumerate(numbers)
    ]


def labelled_picture(path: str, *, head: str, camera: str, model: HeadModel, resolution: int) -> Picture:
    """A square crop with its head (FILE.npz[:ROW] of HeadParams) and its camera (25 numbers, .npy or text)."""
    file, _, tail = head.rpartition(':')
    name, index = (file, int(tail)) if file and tail.isdigit() else (head, 0)
    params = row(read_params(name, model), index, where=name)
    pixels = _read(Path(path))
    if pixels.shape[0] != pixels.shape[1]:
        size = f'{pixels.shape[1]} x {pixels.shape[0]}'
        raise UserError(f'{path}: {size} pixels; with --head and --camera the picture must be the square crop itself')
    return Picture(
        name=path,
        image=_image(resized(pixels, resolution)),
        label=read_camera(camera),
        head=model.forward(params),
        params=params,
    )


def read_camera(path: str) -> Tensor:
    """A camera label [1, 25] from a .npy or a text file of 25 numbers (docs/conventions.md)."""
    return read_numbers(path, what=str(LABEL_DIM), count=LABEL_DIM)[None]


def resized(pixels: np.ndarray, resolution: int) -> np.ndarray:
    """A square picture uint8 [H, H, 3] at another size, antialiased."""
    if pixels.shape[0] == resolution:
        return pixels
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(picture.resize((resolution, resolution), Image.Resampling.LANCZOS))


def _image(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1


def view_of(picture: Picture, template: HeadTemplate, *, background: float) -> View:
    """A picture with what its pixels count."""
    size = picture.image.shape[-1]
    weight = head_weight(template, picture.head, picture.label, resolution=size, background=background)
    return View(image=picture.image, label=picture.label, head=picture.head, weight=weight)


def shared_identity(pictures: Sequence[Picture]) -> Tensor:
    """The person's shape [1, num_identity]; [1, 0] where the heads are meshes."""
    params = [picture.params for picture in pictures if picture.params is not None]
    if len(params) < len(pictures):
        return torch.zeros(1, 0)
    return torch.cat([value.identity for value in params]).mean(dim=0, keepdim=True)
