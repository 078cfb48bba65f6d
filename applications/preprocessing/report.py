"""What from-photos and from-video leave beside the dataset: pictures of mesh on photograph, and tables."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image, ImageDraw

from dnnlib import UserError
from dnnlib.files import explain_os_error

_LANCZOS = Image.Resampling.LANCZOS
_MESH = (0, 200, 255, 90)
_EYES = (255, 60, 255, 70)
_GIVEN = (60, 255, 60, 255)
_FITTED = (255, 50, 50, 255)


def draw_overlay(
    image: np.ndarray,  # uint8 [H, W, 3]
    *,
    vertices: np.ndarray,  # [V, 2] pixels
    faces: np.ndarray,  # [F, 3]: the faces to draw
    eyes: np.ndarray | None = None,  # bool [F]: drawn in another colour
    given: np.ndarray | None = None,  # [K, 2] pixels: detected landmarks, green
    fitted: np.ndarray | None = None,  # [K, 2] pixels: the model's, red
) -> np.ndarray:
    """The picture with the front-facing part of a mesh as wires and two sets of landmarks; uint8 [H, W, 3]."""
    corners = vertices[faces]  # [F, 3, 2]
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    # Counter-clockwise from outside; rows grow downwards, which turns the sign.
    front = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0] < 0
    layer = Image.new('RGBA', (image.shape[1], image.shape[0]))
    draw = ImageDraw.Draw(layer)
    is_eye = np.zeros(len(faces), dtype=bool) if eyes is None else eyes
    for colour, chosen in ((_MESH, front & ~is_eye), (_EYES, front & is_eye)):
        for a, b in _edges(faces[chosen]):
            draw.line([*vertices[a], *vertices[b]], fill=colour)
    if given is not None and fitted is not None:
        for one, other in zip(given, fitted, strict=True):
            draw.line([*one, *other], fill=_FITTED)
    for points, colour in ((given, _GIVEN), (fitted, _FITTED)):
        for x, y in [] if points is None else points:
            draw.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=colour)
    return np.asarray(Image.alpha_composite(Image.fromarray(image).convert('RGBA'), layer).convert('RGB'))


def _edges(faces: np.ndarray) -> np.ndarray:
    """Each edge of the faces once, [E, 2]."""
    pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return np.unique(np.sort(pairs, axis=1), axis=0)


def contact_sheet(pictures: list[np.ndarray], *, columns: int, cell: int) -> np.ndarray:
    """Pictures uint8 [H, W, 3] side by side, each scaled to `cell` pixels of width, white between them."""
    if not pictures:
        raise ValueError('pictures: expected at least one')
    small = [Image.fromarray(picture) for picture in pictures]
    small = [item.resize((cell, max(1, round(cell * item.height / item.width))), _LANCZOS) for item in small]
    columns, pitch = min(columns, len(small)), max(item.height for item in small)
    sheet = Image.new('RGB', (columns * cell, -(-len(small) // columns) * pitch), 'white')
    for index, item in enumerate(small):
        sheet.paste(item, (index % columns * cell, index // columns * pitch))
    return np.asarray(sheet)


def encode_jpeg(picture: np.ndarray) -> bytes:
    """uint8 [H, W, 3] -> JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, 'JPEG', quality=88)
    return buffer.getvalue()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came out of a conversion of photographs or frames ("items")."""

    rejected: tuple[tuple[str, str], ...]  # item, reason
    error_pixels: np.ndarray  # [accepted, 68] reprojection error of what was written, pixels of the crop
    error_relative: np.ndarray  # [accepted, 68] the same as shares of the distance between the eyes
    folder: Path  # overlays and tables (report.ReportFolder)
    seconds: float
    resumed: int  # items that an earlier, interrupted run had finished


def summarize(rejected: list[tuple[str, str]]) -> str:
    """'3 no face found, 1 corrupt picture'."""
    counts = Counter(reason.partition(' (')[0] for _, reason in rejected)
    return ', '.join(f'{count} {reason}' for reason, count in counts.most_common())


def outcome_lines(result: Outcome) -> list[str]:
    """Errors, rejects and where to look."""
    lines = error_lines(result.error_pixels, result.error_relative)
    if result.rejected:
        lines.append(f'rejected: {summarize(list(result.rejected))}; see {result.folder / "rejects.csv"}')
    return [*lines, f'overlays: {result.folder / "sheet.png"}']


def error_lines(pixels: np.ndarray, relative: np.ndarray) -> list[str]:
    """Reprojection errors [K, 68] in pixels and in shares of the distance between the eyes, as two lines."""
    lines = []
    for name, errors, unit, scale in (
        ('reprojection error', pixels, 'pixels', 1.0),
        ('  relative to the distance between the eyes', relative, '%', 100.0),
    ):
        median, mean, high = np.median(errors), errors.mean(), np.percentile(errors, 95)
        lines.append(f'{name}: median {median * scale:.2f}, mean {mean * scale:.2f}, 95 % {high * scale:.2f} {unit}')
    return lines


class ReportFolder:
    """A folder that appears at `path` when the block ends without error, and not at all otherwise.

        overlays/<name>.jpg    accepted pictures: crop beside crop with mesh and landmarks
        rejected/<name>.jpg    the same for those whose fit was not good enough
        sheet.png              the first overlays together
        fits.csv, rejects.csv  one line a picture

    An earlier report at `path` is replaced; UserError if something else is there.
    """

    def __init__(self, path: str | os.PathLike[str], *, sheet_cells: int = 36) -> None:
        self.path = Path(path)
        self._temporary = self.path.with_name(f'.{self.path.name}.{os.getpid()}.tmp')
        self._sheet: list[np.ndarray] = []
        self._sheet_cells = sheet_cells
        if self.path.exists() and not (self.path / 'rejects.csv').is_file():
            raise UserError(f'{self.path}: exists and is not an earlier report; move it away or choose another --out')

    def add_picture(self, name: str, jpeg: bytes, *, accepted: bool) -> None:
        """Save one overlay (encode_jpeg); `name` is the photograph's path or the frame's name."""
        folder = self._temporary / ('overlays' if accepted else 'rejected')
        if accepted and len(self._sheet) < self._sheet_cells:
            self._sheet.append(np.asarray(Image.open(io.BytesIO(jpeg))))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f'{name.replace("/", "__")}.jpg').write_bytes(jpeg)
        except OSError as error:
            raise explain_os_error(error, self.path) from error

    def add_table(self, name: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Write `name`.csv."""
        try:
            with open(self._temporary / f'{name}.csv', 'w', newline='', encoding='utf-8') as handle:
                csv.writer(handle).writerows([header, *rows])
        except OSError as error:
            raise explain_os_error(error, self.path) from error

    def __enter__(self) -> ReportFolder:
        try:
            self._temporary.mkdir(parents=True)
        except OSError as error:
            raise explain_os_error(error, self.path) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self._sheet:
                    sheet = contact_sheet(self._sheet, columns=2, cell=960)
                    Image.fromarray(sheet).save(self._temporary / 'sheet.png')
                if self.path.exists():
                    shutil.rmtree(self.path)
                self._temporary.rename(self.path)
        except OSError as failure:
            raise explain_os_error(failure, self.path) from failure
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)
