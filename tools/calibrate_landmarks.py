"""Measure where a detector's points lie on the embedded head: renders it, detects, solves. Run by hand.

    python -m tools.calibrate_landmarks --num=150

Writes assets/landmark_offsets.json (applications/preprocessing/calibration.py). Run it again after a change
of the head model's landmarks or of the detector's index table. Needs the extra [preprocess].
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from applications.preprocessing.calibration import OFFSETS_FILE, Embedding, estimate_offsets
from applications.preprocessing.detect import Face, MediaPipeDetector
from applications.preprocessing.embedding import Views, choose_points, estimate_embedding, locate_points
from dnnlib.cli import Command
from dnnlib.files import atomic_write
from training.head.makehuman import MakeHumanHead, embedded_head
from training.head.model import HeadParams
from training.head.rotation import axis_angle_matrix
from training.synthetic import Item, render_index

RESOLUTION = 512
STRIDE = 4  # images of one identity follow each other: take one of each
SURFACE = 468  # of the detector's points; the others are the irises


@click.command(cls=Command)
@click.option('--num', default=150, show_default=True, help='Renderings, each of another identity.')
@click.option('--seed', default=0, show_default=True, help='Seed of the renderings.')
@click.option('--points', default=120, show_default=True, help='Points of the embedding: more are slower to fit.')
@click.option('--modes', default=8, show_default=True, help='Patterns of errors that the points share.')
@click.option('--max-spread', default=2.2, show_default=True, help='Leave out points that err by more, mm.')
@click.option(
    '--iris-sigma', default=1.8, show_default=True, help='How far irises are off against fitted eyeballs, mm.'
)
@click.option('--landmarker', help="MediaPipe's face_landmarker.task.")
def main(
    num: int, seed: int, points: int, modes: int, max_spread: float, iris_sigma: float, landmarker: str | None
) -> None:
    """Measure the offsets and the embedding of MediaPipe's points on the embedded head."""
    model = embedded_head()
    seen: list[tuple[Item, Face]] = []
    with MediaPipeDetector(landmarker) as detector:
        for index in tqdm(range(0, STRIDE * num, STRIDE), unit='image'):
            item = render_index(seed, index, resolution=RESOLUTION)
            faces = detector.detect(np.ascontiguousarray(item.image.transpose(1, 2, 0)))
            if faces and faces[0].iris is not None and faces[0].points is not None:
                seen.append((item, faces[0]))
    table = json.loads(OFFSETS_FILE.read_text(encoding='utf-8'))
    mirror = torch.tensor(table[detector.name]['mirror'][:SURFACE])
    offsets = measure_offsets(model, seen)
    embedding = measure_embedding(model, seen, mirror, count=points, modes=modes, limit=max_spread / 1000)
    embedding = dataclasses.replace(embedding, iris_sigma=iris_sigma / 1000)
    options = f'--num={num} --seed={seed} --points={points} --modes={modes} --max-spread={max_spread:g}'
    options += f' --iris-sigma={iris_sigma:g}'
    table[detector.name][model.name] = {
        'origin': f'python -m tools.calibrate_landmarks {options}: {len(seen)} detections',
        'detector_sha256': detector.sha256,
        'head_model_hash': model.content_hash,
        'offsets_mm': _rounded(1000 * offsets, 2),
        'embedding': embedding_entry(embedding),
    }
    with atomic_write(OFFSETS_FILE) as handle:
        handle.write((json.dumps(table, separators=(',', ':')) + '\n').encode())
    click.echo(f'{OFFSETS_FILE}: {len(seen)} of {num} detected')
    click.echo(f'68 landmarks and irises: rms offset {1000 * offsets.norm(dim=1).mean():.2f} mm')
    shared = embedding.modes.square().sum(dim=(0, 2)).sqrt().median()
    click.echo(f'{len(embedding)} points: shared errors {1000 * shared:.2f} mm, others ', nl=False)
    click.echo(f'{1000 * embedding.sigma.median():.2f} mm (medians)')


def measure_offsets(model: MakeHumanHead, seen: list[tuple[Item, Face]]) -> Tensor:
    """Offsets [78, 3] of the 68 landmarks and the irises, metres."""
    points, turns, detected = [], [], []
    for item, face in seen:
        assert face.iris is not None
        with torch.no_grad():
            head = model.forward(item.head)
        points.append(torch.cat([head.landmarks, head.vertices[:, model.gaze_vertices.reshape(-1)]], dim=1))
        turns.append(axis_angle_matrix(item.head.rotation) @ axis_angle_matrix(item.head.neck))
        places = np.concatenate([face.landmarks, face.iris.reshape(-1, 2)])
        detected.append(torch.from_numpy(places / RESOLUTION).float()[None])
    labels = torch.stack([torch.from_numpy(item.label) for item, _ in seen])
    return estimate_offsets(torch.cat(points), labels, torch.cat(turns), torch.cat(detected))


def measure_embedding(
    model: MakeHumanHead, seen: list[tuple[Item, Face]], mirror: Tensor, *, count: int, modes: int, limit: float
) -> Embedding:
    """The embedding of at least `count` of the points whose spread is at most `limit` metres."""
    views = Views(
        params=HeadParams.cat([item.head for item, _ in seen]),
        label=torch.stack([torch.from_numpy(item.label) for item, _ in seen]),
        points=torch.stack([_surface_points(face) for _, face in seen]),
    )
    faces, barycentrics = locate_points(model, views, mirror)
    spread = estimate_embedding(model, views, faces, barycentrics, mirror, modes=0)
    places = spread.places(model.template.vertices[None], model)[0] - spread.offsets
    chosen = choose_points(places, spread.sigma, mirror, count=count, limit=limit)
    pairs = torch.searchsorted(chosen, mirror[chosen])
    some = dataclasses.replace(views, points=views.points[:, chosen])
    embedding = estimate_embedding(model, some, faces[chosen], barycentrics[chosen], pairs, modes=modes)
    return dataclasses.replace(embedding, points=chosen)


def embedding_entry(embedding: Embedding) -> dict[str, Any]:
    """What calibration.load_calibration reads."""
    return {
        'points': embedding.points.tolist(),
        'faces': embedding.faces.tolist(),
        'barycentrics': _rounded(embedding.barycentrics, 4),
        'offsets_mm': _rounded(1000 * embedding.offsets, 2),
        'modes_um': (1e6 * embedding.modes).round().int().tolist(),
        'iris_sigma_mm': round(1000 * embedding.iris_sigma, 3),
        'sigma_mm': [round(float(x), 3) for x in 1000 * embedding.sigma],
    }


def _surface_points(face: Face) -> Tensor:
    assert face.points is not None
    return torch.from_numpy(face.points[:SURFACE, :2] / RESOLUTION).float()


def _rounded(rows: Tensor, digits: int) -> list[list[float]]:
    return [[round(float(x), digits) for x in row] for row in rows]


if __name__ == '__main__':
    main()
