"""Measure where a detector's landmarks lie on the embedded head: renders it, detects, solves. Run by hand.

    python -m tools.calibrate_landmarks --num=120

Writes assets/landmark_offsets.json (applications/preprocessing/calibration.py). Run it again after a change
of the head model's landmarks or of the detector's index table. Needs the extra [preprocess].
"""

from __future__ import annotations

import json

import click
import numpy as np
import torch
from tqdm import tqdm

from applications.preprocessing.calibration import OFFSETS_FILE, estimate_offsets
from applications.preprocessing.detect import MediaPipeDetector
from dnnlib.cli import Command
from dnnlib.files import atomic_write
from training.head import load_head_model
from training.head.rotation import axis_angle_matrix
from training.synthetic import render_index

RESOLUTION = 512
STRIDE = 4  # images of one identity follow each other: take one of each


@click.command(cls=Command)
@click.option('--num', default=120, show_default=True, help='Renderings, each of another identity.')
@click.option('--seed', default=0, show_default=True, help='Seed of the renderings.')
@click.option('--landmarker', help="MediaPipe's face_landmarker.task.")
def main(num: int, seed: int, landmarker: str | None) -> None:
    """Measure the offsets of MediaPipe's landmarks on the embedded head."""
    model = load_head_model('makehuman')
    points, labels, turns, detected = [], [], [], []
    with MediaPipeDetector(landmarker) as detector:
        for index in tqdm(range(0, STRIDE * num, STRIDE), unit='image'):
            item = render_index(seed, index, resolution=RESOLUTION)
            faces = detector.detect(np.ascontiguousarray(item.image.transpose(1, 2, 0)))
            if not faces or faces[0].iris is None:
                continue
            with torch.no_grad():
                head = model.forward(item.head)
            gaze = head.vertices[:, model.gaze_vertices.reshape(-1)]
            points.append(torch.cat([head.landmarks, gaze], dim=1))
            labels.append(torch.from_numpy(item.label)[None])
            turns.append(axis_angle_matrix(item.head.rotation) @ axis_angle_matrix(item.head.neck))
            face = np.concatenate([faces[0].landmarks, faces[0].iris.reshape(-1, 2)])
            detected.append(torch.from_numpy(face / RESOLUTION).float()[None])
    offsets = estimate_offsets(torch.cat(points), torch.cat(labels), torch.cat(turns), torch.cat(detected))
    entry = {
        'origin': f'python -m tools.calibrate_landmarks --num={num} --seed={seed}: {len(points)} detections',
        'detector_sha256': detector.sha256,
        'head_model_hash': model.content_hash,
        'offsets_mm': [[round(float(x), 2) for x in row] for row in 1000 * offsets],
    }
    with atomic_write(OFFSETS_FILE) as handle:
        handle.write((json.dumps({detector.name: {model.name: entry}}) + '\n').encode())
    click.echo(
        f'{OFFSETS_FILE}: {len(points)} of {num} detected, rms offset {1000 * offsets.norm(dim=1).mean():.2f} mm'
    )


if __name__ == '__main__':
    main()
