"""Irises found in the picture itself, finer than a landmark network places them.

A network's iris points follow the eye only in part. Here an iris is a dark disc with a darker pupil in its
middle, seen between the lids. Discs of all centres and radii around the detector's guess are compared with
the picture inside the opening of the lids only, so that a half-hidden iris is found by the part that shows.
Where that gives no clear answer (closed eye, hardly any contrast, an iris of few pixels) the guess stays.

Pixel coordinates of the picture as in detect.py. The window around an eye has its origin at the guess, its
x axis along the line between the corners of the eye, and the expected radius of the iris is RADIUS pixels.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from scipy import ndimage

EYES = (slice(42, 48), slice(36, 42))  # left, right: the 6 landmarks around the lids
RADIUS = 8.0  # window pixels
_SHARE = 0.22  # expected radius over the width of the wider eye; tuned on seed 0 of the synthetic heads
_PUPIL = 0.42  # radius of the pupil over that of the iris
_HALF = (21, 14)  # half width and half height of the window
_REACH = 6  # window pixels that the centre may move
_SCALES = (0.9, 0.95, 1.0, 1.05, 1.1)  # radii to try, shares of RADIUS
_SOFT = 0.8  # window pixels: half width of the edge of a disc
_NEAR = 1.5  # pixels up to this many radii from the centre are compared
_MARGIN = 0.5  # window pixels by which the opening is narrowed at the lower lid
_SHADOW = 0.75  # and at the upper lid, whose lashes and shadow are dark
_GLARE = 0.8  # quantile of the opening at which brightness is cut: reflections say nothing
_DEEP = 2.0  # the pupil is at most this many times darker against the iris than the iris against the eye
_RADIUS_PRIOR, _CENTRE_PRIOR = 2.0, 0.01  # taken off the score for each squared share of the radius
_MIN_RADIUS = 2.0  # pixels of the picture
_MIN_OPENING = 0.15  # distance of the lids over the width of the eye
_MIN_SCORE = 0.72  # multiple correlation of picture and disc
_MIN_CONTRAST = 8.0  # percent of brightness from the iris to its surroundings
_BLACK = 15.0  # grey levels added to all: below, darkness says nothing
_MIN_VISIBLE = 0.3  # share of the disc between the lids


@dataclasses.dataclass(frozen=True)
class _Discs:
    """All discs that are tried: C radii times rows times columns; P pixels of the window."""

    iris: np.ndarray  # [C, P] 1 inside, 0 outside
    iris_square: np.ndarray  # [C, P]
    pupil: np.ndarray  # [C, P]
    pupil_square: np.ndarray  # [C, P]
    near: np.ndarray  # [C, P] 1 where the picture is compared
    penalty: np.ndarray  # [C] taken off the score


def refine_iris(image: np.ndarray, landmarks: np.ndarray, iris: np.ndarray) -> np.ndarray:
    """Iris points [2, 5, 2] moved onto the irises of a picture, uint8 [H, W, 3] RGB; all in pixels.

    landmarks [68, 2] and iris [2, 5, 2] (left, right; centre, then right, top, left, bottom) are a detector's.
    An eye that shows no clear iris keeps its points. The layout of the five points is kept.
    """
    refined = np.array(iris, dtype=np.float64)
    size = max(float(np.linalg.norm(landmarks[lids][3] - landmarks[lids][0])) for lids in EYES)
    for eye, lids in enumerate(EYES):
        circle = find_circle(image, landmarks[lids], iris[eye, 0], radius=_SHARE * size)
        if circle is not None:
            centre, radius = circle
            rim = refined[eye, 1:] - refined[eye, 0]
            guessed = np.linalg.norm(rim, axis=1).mean()
            refined[eye] = centre
            refined[eye, 1:] += rim * (radius / max(guessed, 1e-6))
    return refined


def find_circle(
    image: np.ndarray, lids: np.ndarray, guess: np.ndarray, *, radius: float
) -> tuple[np.ndarray, float] | None:
    """Centre [2] and radius of the iris, pixels; None where it is not clear.

    lids [6, 2]: corner, two points of the upper lid, corner, two of the lower lid back to the first corner.
    guess [2], radius: about where and how large the iris is.
    """
    across = np.asarray(lids[3] - lids[0], dtype=np.float64)
    width = float(np.linalg.norm(across))
    gap = (np.linalg.norm(lids[1] - lids[5]) + np.linalg.norm(lids[2] - lids[4])) / 2
    known = bool(np.isfinite(lids).all() and np.isfinite(guess).all() and np.isfinite(radius))
    if not known or radius < _MIN_RADIUS or width < radius or gap < _MIN_OPENING * width:
        return None
    across /= width
    axes = np.stack([across, [-across[1], across[0]]]) * (radius / RADIUS)  # pixels of the picture per window pixel
    window = _window(image, np.asarray(guess, dtype=np.float64), axes)
    if window is None:
        return None
    found = _search(window, _opening((lids - guess) @ np.linalg.inv(axes)))
    if found is None:
        return None
    offset, scale = found
    return guess + offset @ axes, radius * scale


def _window(image: np.ndarray, centre: np.ndarray, axes: np.ndarray) -> np.ndarray | None:
    """Brightness [rows, columns] around an eye, 100 times its logarithm; None where it lies outside the picture.

    The red channel: irises of every colour are darker in it than the sclera, and skin hardly is. Its logarithm, since
    a pupil differs from a dark iris in share of brightness, not in grey levels.
    """
    step = float(np.linalg.norm(axes[0]))
    reach = step * float(np.hypot(*_HALF)) + 4
    low = np.maximum(np.floor(centre - reach).astype(int), 0)
    high = np.minimum(np.ceil(centre + reach).astype(int), image.shape[1::-1])
    if bool((high - low < 8).any()):
        return None
    part = image[low[1] : high[1], low[0] : high[0], 0].astype(np.float32)
    if step > 1:
        part = ndimage.gaussian_filter(part, 0.45 * step)
    x, y = _grid()
    places = centre + x[..., None] * axes[0] + y[..., None] * axes[1] - low - 0.5
    grey = ndimage.map_coordinates(part, [places[..., 1], places[..., 0]], order=1, mode='nearest')
    return np.asarray(100 * np.log(grey + _BLACK))


def _opening(lids: np.ndarray) -> np.ndarray:
    """Weights [rows, columns]: 1 between the lids, which are cubic curves through their four points."""
    x, y = _grid()
    inside = (x > min(lids[0, 0], lids[3, 0])) & (x < max(lids[0, 0], lids[3, 0]))
    nodes = np.vander(lids[[0, 1, 2, 3], 0], 4), np.vander(lids[[0, 5, 4, 3], 0], 4)
    heights = lids[[0, 1, 2, 3], 1], lids[[0, 5, 4, 3], 1]
    # Least squares of minimal norm: points above each other must not raise an error.
    top, bottom = (
        np.polyval(np.linalg.lstsq(node, height, rcond=None)[0], x) for node, height in zip(nodes, heights, strict=True)
    )
    below, above = np.clip(y - top + 0.5 - _SHADOW, 0, 1), np.clip(bottom - y + 0.5 - _MARGIN, 0, 1)
    return np.asarray(below * above * inside, dtype=np.float32)


def _search(window: np.ndarray, opening: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Offset [2] of the centre in window pixels, and share of RADIUS, of the disc that explains the eye best."""
    seen = opening.ravel() > 0.5
    if seen.sum() < RADIUS**2 * _MIN_VISIBLE:
        return None
    limit = np.quantile(window.ravel()[seen], _GLARE)
    score = _scores(np.minimum(window.ravel(), limit), opening.ravel())
    score = score.reshape(len(_SCALES), 2 * _REACH + 1, 2 * _REACH + 1)
    best = tuple(int(i) for i in np.unravel_index(int(score.argmax()), score.shape))
    if score[best] < _MIN_SCORE:
        return None
    scale, row, column = (i + _peak(score, best, axis) for axis, i in enumerate(best))
    return np.array([column, row]) - _REACH, float(np.interp(scale, range(len(_SCALES)), _SCALES))


def _scores(grey: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Multiple correlation [C] of the picture [P] with each iris and its pupil, both darker; -1 where impossible.

    Weighted least squares of grey = a - b * iris - c * pupil for all discs at once.
    """
    discs = _discs()
    grey = (grey - grey.mean()) / 100  # keeps single precision exact enough
    columns = np.stack([weight, weight * grey, weight * grey**2], axis=1).astype(np.float32)
    total, first, second = (discs.near @ columns).T
    total = np.maximum(total, 1e-6)
    iris, iris_grey, _ = (discs.iris @ columns).T
    pupil, pupil_grey, _ = (discs.pupil @ columns).T
    # Centred second moments; those with grey are positive where the disc is darker.
    ii = np.maximum(discs.iris_square @ weight - iris**2 / total, 1e-6)
    pp = np.maximum(discs.pupil_square @ weight - pupil**2 / total, 1e-6)
    ip = pupil - iris * pupil / total
    gg = np.maximum(second - first**2 / total, 1e-6)
    ig, pg = iris * first / total - iris_grey, pupil * first / total - pupil_grey
    dark = (ii * pg - ip * ig) / np.maximum(ii * pp - ip**2, 1e-6)
    dark = np.clip(dark, 0, _DEEP * np.maximum(ig / ii, 0))
    ring = np.maximum((ig - dark * ip) / ii, 0)
    explained = 2 * (ring * ig + dark * pg) - ring**2 * ii - 2 * ring * dark * ip - dark**2 * pp
    score = np.sqrt(np.maximum(explained, 0) / gg) - discs.penalty
    visible = iris / discs.iris.sum(axis=1)
    return np.where((visible > _MIN_VISIBLE) & (100 * ring > _MIN_CONTRAST), score, -1.0)


def _peak(score: np.ndarray, best: tuple[int, ...], axis: int) -> float:
    """Where between -0.5 and 0.5 the parabola through the best score and its neighbours along an axis peaks."""
    place = best[axis]
    if place in (0, score.shape[axis] - 1):
        return 0.0
    places = ((*best[:axis], place + step, *best[axis + 1 :]) for step in (-1, 0, 1))
    before, peak, after = (float(score[where]) for where in places)
    return float(np.clip(0.5 * (before - after) / min(before - 2 * peak + after, -1e-9), -0.5, 0.5))


@functools.lru_cache(maxsize=1)
def _discs() -> _Discs:
    steps = np.arange(-_REACH, _REACH + 1)
    scale, row, column = (part.reshape(-1, 1) for part in np.meshgrid(_SCALES, steps, steps, indexing='ij'))
    x, y = _grid()
    distance = np.hypot(x.ravel() - column, y.ravel() - row)

    def disc(radius: np.ndarray) -> np.ndarray:
        return np.asarray(np.clip((radius - distance) / (2 * _SOFT) + 0.5, 0, 1), dtype=np.float32)

    iris, pupil = disc(RADIUS * scale), disc(_PUPIL * RADIUS * scale)
    near = (distance < _NEAR * RADIUS * scale).astype(np.float32)
    penalty = _RADIUS_PRIOR * (scale - 1) ** 2 + _CENTRE_PRIOR * (row**2 + column**2) / RADIUS**2
    return _Discs(iris, iris**2, pupil, pupil**2, near, penalty[:, 0])


@functools.lru_cache(maxsize=1)
def _grid() -> tuple[np.ndarray, np.ndarray]:
    """x and y [rows, columns] of the pixels of the window."""
    y, x = np.mgrid[-_HALF[1] : _HALF[1] + 1, -_HALF[0] : _HALF[0] + 1].astype(np.float32)
    return x, y
