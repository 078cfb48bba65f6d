"""Smoothing over time: noise goes, motion stays, rotations have no axes."""

from __future__ import annotations

import numpy as np
import pytest

from applications.preprocessing.smooth import jitter, smooth_rotations, smooth_signals

FRAMES = 200
BLINKS = (30, 75, 81, 140, 180)  # two of them close together


def blink_curve() -> np.ndarray:
    """Lids at 25 frames a second: closed within three frames, open again within five."""
    frames = np.arange(FRAMES)[:, None] - np.array(BLINKS)
    return np.where(frames < 0, 1 + frames / 3, 1 - frames / 5).clip(0, 1).max(axis=1)


def rotations(angles: np.ndarray) -> np.ndarray:
    """Yaw and then pitch, [T, 2] radians -> [T, 3, 3]."""
    (c, d), (s, t) = np.cos(angles).T, np.sin(angles).T
    zero, one = np.zeros_like(c), np.ones_like(c)
    yaw = np.stack([c, zero, s, zero, one, zero, -s, zero, c], axis=1).reshape(-1, 3, 3)
    pitch = np.stack([one, zero, zero, zero, d, -t, zero, t, d], axis=1).reshape(-1, 3, 3)
    return yaw @ pitch


def test_a_constant_and_a_straight_line_stay() -> None:
    line = np.stack([np.full(50, 3.0), np.linspace(-1, 2, 50)], axis=1)
    assert np.allclose(smooth_signals(line), line, atol=1e-9)
    noisy = line + 0.01 * np.random.default_rng(0).standard_normal(line.shape)
    assert np.abs(smooth_signals(noisy, strength=1e6) - line).max() < 0.008


def test_noise_goes_and_slow_motion_stays() -> None:
    truth = np.sin(np.arange(FRAMES) / 12)[:, None]
    noisy = truth + 0.03 * np.random.default_rng(1).standard_normal(truth.shape)
    smoothed = smooth_signals(noisy)
    assert jitter(smoothed) < 0.3 * jitter(noisy)
    assert np.abs(smoothed - truth).mean() < 0.7 * np.abs(noisy - truth).mean()


@pytest.mark.parametrize('noise', [0.005, 0.02, 0.04])
def test_blinks_keep_their_depth(noise: float) -> None:
    truth = blink_curve()
    noisy = truth + noise * np.random.default_rng(2).standard_normal(FRAMES)
    smoothed = smooth_signals(noisy[:, None])[:, 0]
    depth = np.array([smoothed[at - 1 : at + 2].max() for at in BLINKS])
    assert depth.min() > 0.9
    still = truth == 0
    assert np.abs(smoothed[still]).mean() < 0.8 * np.abs(noisy[still]).mean()


def test_a_jump_of_the_eyes_stays_a_jump() -> None:
    truth = np.where(np.arange(100) < 50, -0.2, 0.2)
    noisy = truth + 0.01 * np.random.default_rng(3).standard_normal(100)
    smoothed = smooth_signals(noisy[:, None])[:, 0]
    assert np.abs(smoothed - truth).max() < 0.06


def test_strength_none_and_short_clips_change_nothing() -> None:
    values = np.random.default_rng(4).standard_normal((20, 3))
    assert np.array_equal(smooth_signals(values, strength=0), values)
    assert np.array_equal(smooth_signals(values[:2]), values[:2])
    steps = [jitter(smooth_signals(values, strength=strength)) for strength in (0, 0.1, 1, 10)]
    assert steps == sorted(steps, reverse=True)


def test_rotations_are_smoothed_as_rotations() -> None:
    frames = np.arange(FRAMES) / 15
    truth = rotations(np.stack([1.5 * np.sin(frames), 0.3 * np.cos(frames)], axis=1))
    noise = rotations(0.01 * np.random.default_rng(5).standard_normal((FRAMES, 2)))
    noisy = truth @ noise
    smoothed = smooth_rotations(noisy)
    assert np.allclose(smoothed @ smoothed.transpose(0, 2, 1), np.eye(3), atol=1e-9)
    assert np.allclose(np.linalg.det(smoothed), 1)
    assert jitter(smoothed.reshape(-1, 9)) < 0.5 * jitter(noisy.reshape(-1, 9))
    assert np.abs(smoothed - truth).mean() < 0.8 * np.abs(noisy - truth).mean()
    turn = rotations(np.array([[2.0, -1.0]]))[0]  # across the wrap of any angle
    assert np.allclose(smooth_rotations(turn @ noisy @ turn.T), turn @ smoothed @ turn.T, atol=1e-9)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r'values: expected finite \[T, C\]'):
        smooth_signals(np.zeros(5))
    with pytest.raises(ValueError, match='expected finite'):
        smooth_signals(np.full((5, 1), np.nan))
    with pytest.raises(ValueError, match=r'matrices: expected shape \[T, 3, 3\]'):
        smooth_rotations(np.zeros((5, 9)))
