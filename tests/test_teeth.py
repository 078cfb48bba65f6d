"""Mouth boxes, crop and paste against torch's own antialiased resizing, and their round trip."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from training.teeth import MouthBoxes, crop_weights, mouth_boxes, paste_weights


def resize(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(image[None], size=size, mode='bilinear', align_corners=False, antialias=True)[0]


@pytest.mark.parametrize('box', [(10, 40, 5, 35), (58, 104, 105, 151), (0, 16, 100, 128), (3, 7, 90, 120)])
@pytest.mark.parametrize('out', [16, 64])
def test_crop_equals_slicing_and_resizing(box: tuple[int, int, int, int], out: int) -> None:
    plane = torch.randn(3, 160, 160, dtype=torch.float64)
    top, bottom, left, right = box
    rows = crop_weights(torch.tensor(float(top)).double(), torch.tensor(float(bottom)).double(), 160, out)
    columns = crop_weights(torch.tensor(float(left)).double(), torch.tensor(float(right)).double(), 160, out)
    expected = resize(plane[:, top:bottom, left:right], (out, out))
    torch.testing.assert_close(rows @ plane @ columns.T, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize('box', [(10, 40), (58, 104), (0, 16), (3, 90)])
def test_paste_equals_resizing_into_the_box(box: tuple[int, int]) -> None:
    source = torch.randn(2, 64, 64, dtype=torch.float64)
    start, stop = (torch.tensor(float(value), dtype=torch.float64) for value in box)
    weights, coverage = paste_weights(start, stop, 128, 64)
    pasted = weights @ source @ weights.T
    length = box[1] - box[0]
    expected = torch.zeros(2, 128, 128, dtype=torch.float64)
    expected[:, box[0] : box[1], box[0] : box[1]] = resize(source, (length, length))
    torch.testing.assert_close(pasted, expected, atol=1e-6, rtol=1e-6)
    inside = torch.zeros(128, dtype=torch.float64)
    inside[box[0] : box[1]] = 1
    torch.testing.assert_close(coverage, inside)


def landmarks_with_mouth(centre: tuple[float, float], half: float) -> torch.Tensor:
    points = torch.zeros(1, 1, 68, 2)
    points[0, 0, :, 0], points[0, 0, :, 1] = centre
    points[0, 0, 48, 0] -= half
    points[0, 0, 54, 0] += half
    return points


def test_rounded_box_is_the_documented_rule() -> None:
    landmarks = landmarks_with_mouth((0.1, -0.4), 0.15)
    boxes = mouth_boxes(landmarks, 256, rounding='rounded')
    size = int(1.2 * 2 * 0.15 * 128)
    centre_row, centre_column = 128 * -0.4 + 128, 128 * 0.1 + 128
    assert boxes.start[0, 0].tolist() == [int(centre_row - size // 2), int(centre_column - size // 2)]
    assert boxes.stop[0, 0].tolist() == [int(centre_row + size // 2), int(centre_column + size // 2)]


def test_rounded_box_is_clamped_at_the_border() -> None:
    boxes = mouth_boxes(landmarks_with_mouth((-0.95, 0.97), 0.2), 256, rounding='rounded')
    assert (boxes.start >= 0).all()
    assert (boxes.stop <= 256).all()
    assert (boxes.stop > boxes.start).all()


def test_continuous_box_moves_smoothly() -> None:
    """A mouth that moves by a tenth of a pixel changes crop and paste by little; the rounded box jumps."""
    plane = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0))
    plane = F.avg_pool2d(plane[None], 9, stride=1, padding=4)[0]

    def crop(shift: float, rounding: str) -> torch.Tensor:
        boxes = mouth_boxes(landmarks_with_mouth((0.1 + shift, -0.4), 0.2), 64, rounding=rounding)
        weights = crop_weights(boxes.start[0, 0], boxes.stop[0, 0], 64, 16)
        return weights[0] @ plane @ weights[1].T

    shifts = torch.linspace(0, 0.04, 13).tolist()
    steps = {}
    for rounding in ('continuous', 'rounded'):
        crops = [crop(shift, rounding) for shift in shifts]
        steps[rounding] = max((b - a).abs().max().item() for a, b in zip(crops[:-1], crops[1:], strict=True))
    assert steps['continuous'] < 0.3 * steps['rounded']


@pytest.mark.parametrize('centre', [(0.0, 0.0), (-1.3, 0.2), (2.5, -2.5)])
def test_boxes_off_the_plane_stay_finite(centre: tuple[float, float]) -> None:
    for rounding in ('continuous', 'rounded'):
        boxes = mouth_boxes(landmarks_with_mouth(centre, 0.1), 64, rounding=rounding)
        weights = crop_weights(boxes.start, boxes.stop, 64, 16)
        pasted, coverage = paste_weights(boxes.start, boxes.stop, 64, 16)
        for value in (weights, pasted, coverage):
            assert torch.isfinite(value).all()


def test_constant_survives_the_round_trip() -> None:
    boxes = MouthBoxes(torch.tensor([[[10.3, 20.7]]]), torch.tensor([[[30.9, 41.3]]]))
    crop = crop_weights(boxes.start, boxes.stop, 64, 16)
    paste, coverage = paste_weights(boxes.start, boxes.stop, 64, 16)
    plane = torch.full((1, 1, 64, 64), 3.0)
    cropped = crop[:, :, 0] @ plane @ crop[:, :, 1].transpose(-1, -2)
    torch.testing.assert_close(cropped, torch.full_like(cropped, 3.0))
    back = paste[:, :, 0] @ cropped @ paste[:, :, 1].transpose(-1, -2)
    inside = (coverage[0, 0, 0, :, None] * coverage[0, 0, 1, None, :]) == 1
    torch.testing.assert_close(back[0, 0][inside], torch.full_like(back[0, 0][inside], 3.0))
