"""The iris in the picture: drawn eyes with known circles, and eyes that show none."""

import numpy as np
import pytest
from scipy import ndimage

from applications.preprocessing.iris import EYES, find_circle, refine_iris

WIDTH = 44.0  # pixels from corner to corner
RADIUS = 9.4
BROWN, BLUE = (70, 45, 30), (80, 125, 165)


def lids(centre: tuple[float, float], *, up: float = 9.0, down: float = 8.0) -> np.ndarray:
    """6 points around an eye, lids `up` above and `down` below the line of the corners."""
    x = WIDTH * np.array([-0.5, -0.17, 0.17, 0.5, 0.17, -0.17])
    y = np.array([0, -up, -up, 0, down, down])
    return np.stack([x, y], axis=1) + centre


def draw(
    circles: list[tuple[float, float]],
    contours: list[np.ndarray],
    *,
    colour: tuple[int, int, int] = BROWN,
    radius: float = RADIUS,
    skin: tuple[int, int, int] = (190, 140, 120),
    blur: float = 0.8,
    pupil: bool = True,
    noise: float = 2.0,
) -> np.ndarray:
    """A picture [120, 200, 3] of eyes: lid curves as parabolas of cubic order, anti-aliased by 4 x 4 samples."""
    over = 4
    y, x = (np.mgrid[0 : 120 * over, 0 : 200 * over] + 0.5) / over
    picture = np.broadcast_to(np.array(skin, dtype=np.float64), (*x.shape, 3)).copy()
    for (column, row), contour in zip(circles, contours, strict=True):
        top, bottom = (
            np.poly1d(np.polyfit(contour[rows, 0], contour[rows, 1], 3)) for rows in ([0, 1, 2, 3], [0, 5, 4, 3])
        )
        inside = (x > contour[0, 0]) & (x < contour[3, 0]) & (y > top(x)) & (y < bottom(x))
        distance = np.hypot(x - column, y - row)
        picture[inside] = (225, 220, 218)
        picture[inside & (distance < radius)] = colour
        if pupil:
            picture[inside & (distance < 0.4 * radius)] = (12, 10, 10)
    picture = picture.reshape(120, over, 200, over, 3).mean(axis=(1, 3))
    picture = ndimage.gaussian_filter(picture, (blur, blur, 0))
    picture += np.random.default_rng(0).normal(0, noise, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def error(image: np.ndarray, contour: np.ndarray, true: tuple[float, float], guess: tuple[float, float]) -> float:
    found = find_circle(image, contour, np.array(guess), radius=RADIUS)
    assert found is not None
    return float(np.linalg.norm(found[0] - true))


@pytest.mark.parametrize('shift', [(0.0, 0.0), (0.37, -0.21), (-4.4, 1.3), (5.2, -1.6)])
@pytest.mark.parametrize('colour', [BROWN, BLUE])
def test_centre_is_found_below_a_pixel(shift: tuple[float, float], colour: tuple[int, int, int]) -> None:
    """Anywhere between the lids, from a guess 3 pixels off."""
    true = (100 + shift[0], 60 + shift[1])
    contour = lids((100, 60))
    image = draw([true], [contour], colour=colour)
    assert error(image, contour, true, (true[0] - 2.4, true[1] + 1.8)) < 0.35


@pytest.mark.parametrize(('up', 'row'), [(5.0, 58.0), (3.0, 59.0), (8.0, 54.0)])
def test_half_hidden_iris_keeps_its_centre(up: float, row: float) -> None:
    """A lid that covers the top of the disc does not pull its centre down, as the middle of what shows would."""
    contour = lids((100, 60), up=up)
    image = draw([(101.3, row)], [contour])
    assert error(image, contour, (101.3, row), (100.0, row + 2.5)) < 0.6


@pytest.mark.parametrize(
    ('blur', 'noise', 'pupil', 'limit'), [(2.0, 2.0, True, 0.4), (0.8, 12.0, True, 0.5), (0.8, 2.0, False, 0.6)]
)
def test_blur_noise_and_a_missing_pupil(blur: float, noise: float, pupil: bool, limit: float) -> None:
    contour = lids((100, 60))
    image = draw([(102.6, 60.4)], [contour], blur=blur, noise=noise, pupil=pupil)
    assert error(image, contour, (102.6, 60.4), (100.5, 61.5)) < limit


def test_lids_a_pixel_and_a_half_off() -> None:
    contour = lids((100, 60))
    image = draw([(102.6, 59.4)], [contour])
    assert error(image, contour + [0.5, 1.5], (102.6, 59.4), (101.0, 61.0)) < 0.7


def test_reflection_on_the_iris() -> None:
    contour = lids((100, 60))
    image = draw([(98.2, 60.0)], [contour])
    image[55:59, 100:104] = 255
    assert error(image, contour, (98.2, 60.0), (99.5, 61.5)) < 0.6


def test_tilted_eye_in_a_large_picture() -> None:
    """Turned by 90 degrees and three times as large: the same place."""
    contour = lids((100, 60))
    image = draw([(102.6, 59.4)], [contour])
    large = np.rot90(np.repeat(np.repeat(image, 3, axis=0), 3, axis=1))
    turned = np.stack([3 * contour[:, 1], 600 - 3 * contour[:, 0]], axis=1)
    found = find_circle(large, turned, np.array([3 * 61.0, 600 - 3 * 101.0]), radius=3 * RADIUS)
    assert found is not None
    assert np.linalg.norm(found[0] - [3 * 59.4, 600 - 3 * 102.6]) < 3 * 0.35
    assert abs(found[1] / (3 * RADIUS) - 1) < 0.08


def test_no_answer_without_an_iris() -> None:
    """Closed, plain, tiny, outside, not finite: the caller keeps what it has."""
    contour = lids((100, 60))
    image, guess = draw([(100, 60)], [contour]), np.array([100.0, 60.0])
    assert find_circle(image, contour, guess, radius=RADIUS) is not None
    assert find_circle(image, lids((100, 60), up=1.5, down=1.5), guess, radius=RADIUS) is None
    assert find_circle(np.full_like(image, 128), contour, guess, radius=RADIUS) is None
    assert find_circle(draw([(500, 60)], [contour]), contour, guess, radius=RADIUS) is None
    assert find_circle(image, contour, guess, radius=1.5) is None
    assert find_circle(image, contour + 1000, guess + 1000, radius=RADIUS) is None
    assert find_circle(image, contour, guess * np.nan, radius=RADIUS) is None
    assert find_circle(image, np.zeros((6, 2)), guess, radius=RADIUS) is None


def test_points_of_a_face_move_in_their_layout() -> None:
    """The open eye's five points move onto its iris; the closed eye keeps the detector's."""
    landmarks = np.zeros((68, 2))
    landmarks[EYES[0]] = lids((150, 60))
    landmarks[EYES[1]] = lids((50, 60))
    rim = 10.0 * np.array([[0, 0], [-1, 0], [0, -1], [1, 0], [0, 1]])
    guess = np.stack([rim + [151, 61.5], rim + [50, 60]])
    image = draw([(153.2, 59.5)], [landmarks[EYES[0]]])
    refined = refine_iris(image, landmarks, guess)
    assert refined.shape == (2, 5, 2)
    assert np.linalg.norm(refined[0, 0] - [153.2, 59.5]) < 0.4
    arms = refined[0, 1:] - refined[0, 0]
    assert np.allclose(np.abs(arms).sum(axis=1), RADIUS, atol=1.0)
    assert np.array_equal(np.sign(np.round(arms, 6)), np.sign(rim[1:]))
    assert np.array_equal(refined[1], guess[1])
    assert np.array_equal(guess[0, 0], [151, 61.5])
