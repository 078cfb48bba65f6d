"""One person through the frames of a video: which face to follow, and where a clip ends.

A face is the same person's if it lies where the face before lay, at about its size. A cut (the whole
picture changes), a lost face or a jump starts a new clip; a face that comes back soon at the same place is
still the same person, whose identity the clips share.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from applications.preprocessing.detect import Face

_MAX_SHIFT = 0.5  # face sizes from one frame to the next
_MAX_GROWTH = 1.4
_MAX_CHANGE = 0.18  # mean difference of two thumbnails, share of full scale: above it is a cut
_MAX_GAP = 25  # frames after which a face that comes back counts as another person
THUMBNAIL = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What detection keeps of one frame."""

    number: int
    name: str
    size: tuple[int, int]  # height, width
    faces: tuple[Face, ...]
    thumbnail: np.ndarray  # [16, 16] grey in [0, 1]
    problem: str = ''  # why the frame cannot be used at all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """Consecutive frames of one person."""

    person: int
    rows: tuple[int, ...]  # indices into the frames
    faces: tuple[Face, ...]


def thumbnail(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> means of a 16 x 16 grid of its green channel, in [0, 1]."""
    rows = np.linspace(0, image.shape[0], THUMBNAIL + 1).astype(int)
    columns = np.linspace(0, image.shape[1], THUMBNAIL + 1).astype(int)
    grey = image[..., 1]
    cells = [
        [float(grey[r0 : max(r1, r0 + 1), c0 : max(c1, c0 + 1)].mean()) for c0, c1 in itertools.pairwise(columns)]
        for r0, r1 in itertools.pairwise(rows)
    ]
    return np.array(cells, dtype=np.float32) / 255


def track(frames: Sequence[Seen], *, several: str = 'largest') -> tuple[list[Clip], list[tuple[int, str]]]:
    """Frames -> clips, and (index, reason) of the frames in none.

    `several` is what happens where a clip begins in a frame with more than one face: 'largest' takes the
    largest, 'reject' leaves out every frame with several faces.
    """
    clips: list[Clip] = []
    rejected: list[tuple[int, str]] = []
    rows: list[int] = []
    chosen: list[Face] = []
    person, last = -1, None  # the face seen last and its row

    def end_clip() -> None:
        if rows:
            clips.append(Clip(person=person, rows=tuple(rows), faces=tuple(chosen)))
            rows.clear()
            chosen.clear()

    for row, frame in enumerate(frames):
        usable = [face for face in frame.faces if face.finite]
        reason = frame.problem or ('' if usable else 'no face found')
        if not reason and several == 'reject' and len(usable) > 1:
            reason = f'several faces ({len(usable)})'
        if reason:
            rejected.append((row, reason))
            end_clip()
            continue
        cut = row > 0 and frames[row - 1].problem == '' and _is_cut(frames[row - 1], frame)
        near = None if last is None or cut else _continuation(last[1], usable)
        if near is None or not rows:
            end_clip()
        if near is None or last is None or row - last[0] > _MAX_GAP:
            near, person = max(usable, key=lambda face: face.size), person + 1
        last = (row, near)
        rows.append(row)
        chosen.append(near)
    end_clip()
    return clips, rejected


def _is_cut(before: Seen, after: Seen) -> bool:
    return before.size != after.size or float(np.abs(before.thumbnail - after.thumbnail).mean()) > _MAX_CHANGE


def _continuation(before: Face, faces: Sequence[Face]) -> Face | None:
    """The face that continues the one before, None if none does."""
    middle = before.landmarks.mean(axis=0)
    shift, face = min(
        ((float(np.linalg.norm(face.landmarks.mean(axis=0) - middle)), face) for face in faces),
        key=lambda pair: pair[0],
    )
    growth = max(face.size, before.size) / max(min(face.size, before.size), 1e-6)
    return face if shift <= _MAX_SHIFT * before.size and growth <= _MAX_GROWTH else None
