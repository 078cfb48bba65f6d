"""from-video in a process of its own that kills itself: python -m tests.cases_killed_video FRAMES OUT SAVES.

After SAVES kept results the process sends itself SIGKILL, which no handler sees.
"""

from __future__ import annotations

import os
import signal
import sys
import unittest.mock
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from applications.preprocessing import crops
from applications.preprocessing.align import Crop
from applications.preprocessing.fit import Fit
from applications.preprocessing.pool import WorkFolder
from applications.preprocessing.video import VideoOptions, convert_video
from tests.cases_preprocessing import FakeDetector, face_in_photo, photo
from training import cameras
from training.head.makehuman import embedded_head
from training.head.model import HeadModel

FRAMES = 4


def make_frames(folder: Path) -> None:
    """Frames that `detector` knows."""
    folder.mkdir()
    for index in range(FRAMES):
        photo(index + 1).save(folder / f'{index}.png')


def detector() -> FakeDetector:
    """One head that opens its mouth and turns."""
    model = embedded_head()
    faces = {}
    for index in range(FRAMES):
        params = model.named_expression('jawOpen', 0.1 * index)
        label = cameras.orbit_camera(torch.tensor([0.1 * index]), torch.zeros(1))
        faces[index + 1] = [face_in_photo(model, params, label, crop=Crop(160.0, 140.0, 200.0))]
    return FakeDetector(faces)


def fitted(model: HeadModel, landmarks: Tensor, **options: Any) -> Fit:
    """In place of fits, which are slow and tested elsewhere: the neutral head, its jaw as wide as the landmarks are."""
    params = model.neutral(len(landmarks))
    jaw = params.jaw.clone()
    jaw[:, 0] = 0.1 * (landmarks[:, :, 1].amax(dim=1) - landmarks[:, :, 1].amin(dim=1))
    label = cameras.orbit_camera(torch.zeros(len(jaw)), torch.zeros(len(jaw)))
    error = torch.zeros(landmarks.shape[:2])
    return Fit(params=params.replace(jaw=jaw), label=label, landmarks=landmarks, error=error, iris_error=None)


def convert(frames: Path, out: Path, *, kill_after: int = 0) -> tuple[list[str], int]:
    """What was printed, and how many results were kept; SIGKILL after `kill_after` of them (0: never)."""
    lines: list[str] = []
    saved: list[str] = []
    save = WorkFolder.save

    def counted(self: WorkFolder, key: str, result: Any) -> None:
        save(self, key, result)
        saved.append(key)
        if len(saved) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    patch = unittest.mock.patch.object
    with patch(WorkFolder, 'save', counted), patch(crops, 'fit_heads', fitted):
        options = VideoOptions(resolution=64)
        model = embedded_head()
        convert_video(frames, out, options=options, detector=detector(), head_model=model, log=lines.append)
    return lines, len(saved)


if __name__ == '__main__':
    convert(Path(sys.argv[1]), Path(sys.argv[2]), kill_after=int(sys.argv[3]))
