"""Pictures small enough to lie inside a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image

MAX_SIDE = 640  # pixels
MAX_JPEG = 130_000  # bytes
Item = TypeVar('Item')


def few(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of them, evenly spaced, with the first and the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def data_uri(path: Path) -> str:
    """The picture as a JPEG of at most MAX_SIDE pixels and MAX_JPEG bytes; empty text if the file is no picture."""
    try:
        with Image.open(path) as image:
            picture = image.convert('RGB')
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow raises for broken files
        return ''
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    data = _jpeg(picture, quality=85)
    while len(data) > MAX_JPEG:
        picture.thumbnail((picture.width * 3 // 4, picture.height * 3 // 4), Image.Resampling.LANCZOS)
        data = _jpeg(picture, quality=75)
    return 'data:image/jpeg;base64,' + base64.b64encode(data).decode('ascii')


def _jpeg(picture: Image.Image, *, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format='JPEG', quality=quality, optimize=True)
    return buffer.getvalue()
