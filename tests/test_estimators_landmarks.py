"""The landmark estimator: a detector that sees exactly, at any size of picture, gives the driving parameters back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from applications.estimators.landmarks import LandmarkEstimator, LandmarkLocator
from applications.preprocessing.detect import Face
from applications.preprocessing.fit import FitConfig, project_head
from metrics.estimators.loading import load_head_estimator
from tests.cases_preprocessing import random_heads
from training.head.makehuman import MakeHumanHead, embedded_head


class Seer:
    """Finds the n-th known head in pictures of grey n, nothing in others, and remembers the sizes it was shown."""

    name = 'seer'

    def __init__(self, model: MakeHumanHead, count: int) -> None:
        self.params, self.label = random_heads(model, count, seed=5)
        self.landmarks, self.iris = project_head(model, self.params, self.label)
        self.sizes: list[tuple[int, int]] = []

    def detect(self, image: np.ndarray) -> list[Face]:
        height, width = image.shape[:2]
        self.sizes.append((height, width))
        number = int(image[0, 0, 0])
        if number >= len(self.landmarks):
            return []
        scale = np.array([width, height])
        face = Face(
            landmarks=self.landmarks[number].double().numpy() * scale, iris=self.iris[number].double().numpy() * scale
        )
        far = Face(landmarks=0.2 * face.landmarks, iris=None)
        return [far, face]


@pytest.fixture(scope='module')
def seer() -> Seer:
    return Seer(embedded_head(), 2)


def flat(number: int, height: int, width: int) -> torch.Tensor:
    return torch.full((3, height, width), number, dtype=torch.uint8)


def test_fit_gives_pose_and_gaze_back(seer: Seer) -> None:
    model = embedded_head()
    config = FitConfig(iterations=3)  # enough for exact landmarks
    estimator = load_head_estimator(
        'landmarks:x', others={'landmarks': lambda path: LandmarkEstimator(seer, model, config=config)}
    )
    assert (estimator.name, estimator.head_model) == ('landmarks-seer', 'makehuman')
    images = torch.stack([flat(200, 64, 64), flat(1, 64, 64)])
    estimate = estimator(images)
    assert estimate.valid.tolist() == [False, True]
    targets = estimator.targets(seer.params, seer.label)
    for name, bound in (('rotation', 0.05), ('jaw', 0.05), ('gaze', 0.06)):
        found, expected = getattr(estimate, name)[1], getattr(targets, name)[1]
        assert (found - expected).abs().mean() < bound, name
    assert len(estimator(images[:0])) == 0
    with pytest.raises(ValueError, match=r'params\.expression: expected shape \[N, 52\]'):
        estimator.targets(seer.params.replace(expression=torch.zeros(2, 50)), seer.label)


def test_locator_enlarges_small_pictures_and_takes_the_largest_face(seer: Seer) -> None:
    locator = LandmarkLocator(seer)
    seer.sizes.clear()
    for height, width in ((64, 64), (300, 400)):
        found = locator(flat(0, height, width))
        assert found is not None
        assert torch.allclose(found, seer.landmarks[0], atol=1e-5)
    assert seer.sizes == [(256, 256), (300, 400)]
    assert locator(flat(99, 64, 64)) is None
