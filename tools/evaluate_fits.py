"""How well the fits recover heads that are known exactly. Run by hand; the result is in docs/datasets.md.

    python -m tools.evaluate_fits --num=90 --seed=1

Rendered heads of the synthetic dataset, one image of each person: the pose of the skull, the gaze of open and of
closed eyes, the jaw and the named expressions, from exact landmarks, from landmarks with noise, and (unless
--no-detect) from what MediaPipe finds in the rendering. tools/calibrate_landmarks.py measures on seed 0: give another.
"""

from __future__ import annotations

import click
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from applications.preprocessing.calibration import Embedding, load_calibration
from applications.preprocessing.detect import MediaPipeDetector
from applications.preprocessing.fit import SHARES_A_METRE, Fit, FitConfig, fit_heads, project_head, project_points
from applications.preprocessing.neck import rotation_vector
from dnnlib.cli import Command
from training import cameras
from training.head import load_head_model
from training.head.makehuman import MakeHumanHead
from training.head.model import HeadParams
from training.head.rotation import axis_angle_matrix
from training.synthetic import render_index
from training.synthetic_params import sample_camera
from training.synthetic_studio import Studio

RESOLUTION = 512
STRIDE = 4  # images of one identity follow each other: take one of each
CLOSED = 0.15  # distance of the lids over the width of the eye, below which nobody could tell the gaze
_BATCH = 10
_GROUPS = ('brow', 'eye', 'cheek', 'nose', 'jaw', 'mouth')


@click.command(cls=Command)
@click.option('--num', default=90, show_default=True, help='Heads, each of another identity.')
@click.option('--seed', default=1, show_default=True, help='Seed of the heads; 0 is the calibration.')
@click.option('--noise', default=1.0, show_default=True, help='Noise of the landmarks, pixels at 512.')
@click.option('--detect/--no-detect', default=True, show_default=True, help='Render and detect as well (slow).')
@click.option('--landmarker', help="MediaPipe's face_landmarker.task.")
def main(num: int, seed: int, noise: float, detect: bool, landmarker: str | None) -> None:
    """Errors of pose, gaze, jaw and expression on synthetic heads, as a table."""
    model = load_head_model('makehuman')
    assert isinstance(model, MakeHumanHead)
    studio = Studio(model, resolution=64)
    indices = range(0, STRIDE * num, STRIDE)
    params = HeadParams.cat([studio.head_params(seed, index) for index in indices])
    label = torch.from_numpy(np.stack([sample_camera(seed, index) for index in indices]))
    with torch.no_grad():
        landmarks, iris = project_head(model, params, label)
    rng = torch.Generator().manual_seed(seed)

    def shaken(points: Tensor) -> Tensor:
        return points + noise / RESOLUTION * torch.randn(points.shape, generator=rng)

    known = load_calibration('mediapipe', model)
    assert known is not None
    assert known.embedding is not None
    describe('exact landmarks', _fit(model, landmarks, iris), model=model, params=params, label=label)
    title = f'landmarks with {noise:g} px of noise'
    landmarks, iris = shaken(landmarks), shaken(iris)
    describe(title, _fit(model, landmarks, iris), model=model, params=params, label=label)
    exact = known.embedding.exact(sigma=FitConfig().landmark_sigma / SHARES_A_METRE)
    with torch.no_grad():
        points = shaken(project_points(model, params, label, embedding=exact))
    fit = _fit(model, landmarks, iris, points=points, embedding=exact)
    describe(f'{len(exact)} points with {noise:g} px of noise', fit, model=model, params=params, label=label)
    if detect:
        chosen = known.embedding.points
        found, seen, seen_iris, points = _detect(seed, list(indices), chosen=chosen, landmarker=landmarker)
        title = f'detected by MediaPipe ({len(found)} of {num} found)'
        fit = _fit(model, seen, seen_iris, offsets=known.offsets)
        describe(f'{title}, 68 landmarks', fit, model=model, params=params[found], label=label[found])
        fit = _fit(model, seen, seen_iris, points=points, offsets=known.offsets, embedding=known.embedding)
        describe(f'{title}, {len(chosen)} points', fit, model=model, params=params[found], label=label[found])


def describe(title: str, fit: Fit, *, model: MakeHumanHead, params: HeadParams, label: Tensor) -> None:
    """Print mean absolute errors of a fit of known heads (params and label [N, 25])."""
    pose = skull_error(fit, params=params, label=label)
    click.echo(f'\n{title}')
    across = pose.norm(dim=1).mean()
    click.echo(f'  head pose {across:.2f} degrees (pitch {pose[:, 0].abs().mean():.2f}, ', nl=False)
    click.echo(f'yaw {pose[:, 1].abs().mean():.2f}, roll {pose[:, 2].abs().mean():.2f})')
    opening, wanted, got = lid_opening(model, params), gaze_angles(params.eyes), gaze_angles(fit.params.eyes)
    seen, seen_got = camera_gaze(params, label), camera_gaze(fit.params, fit.label)
    for name, chosen in (('open', opening >= CLOSED), ('closed', opening < CLOSED)):
        if not bool(chosen.any()):
            continue
        yaw, pitch = (got - wanted)[chosen].abs().mean(dim=0).tolist()
        still = wanted[chosen].abs().mean(dim=0).tolist()
        click.echo(f'  gaze, {int(chosen.sum())} {name} eyes: yaw {yaw:.2f}, pitch {pitch:.2f} degrees ', nl=False)
        click.echo(f'(looking straight ahead would give {still[0]:.2f}, {still[1]:.2f})')
        yaw, pitch = (seen_got - seen)[chosen].abs().mean(dim=0).tolist()
        click.echo(f'    seen from the camera (head pose and eyes together): yaw {yaw:.2f}, pitch {pitch:.2f} degrees')
    jaw = torch.rad2deg((fit.params.jaw - params.jaw).abs().mean(dim=0))
    click.echo(f'  jaw: opening {jaw[0]:.2f}, sideways {jaw[1]:.2f}, twist {jaw[2]:.2f} degrees')
    true, fitted = expression_weights(model, params), expression_weights(model, fit.params)
    for group in _GROUPS:
        columns = [i for i, name in enumerate(model.expression_names) if name.startswith(group)]
        error = (fitted - true)[:, columns].abs().mean()
        zero = true[:, columns].abs().mean()
        click.echo(f'  expression weights {group}*: {error:.3f} (all zero would give {zero:.3f})')


def camera_gaze(params: HeadParams, label: Tensor) -> Tensor:
    """Yaw to the right of the picture and pitch up of each eye [N, 2, 2] against the camera's axis, degrees."""
    skull = _skull_to_camera(params, label)
    eyes = axis_angle_matrix(params.eyes.reshape(-1, 2, 3))
    x, y, z = (skull[:, None] @ eyes)[..., 2].unbind(dim=-1)
    return torch.rad2deg(torch.stack([torch.atan2(x, -z), torch.asin(-y.clamp(-1, 1))], dim=-1))


def skull_error(fit: Fit, *, params: HeadParams, label: Tensor) -> Tensor:
    """Rotation [N, 3] in degrees from the true to the fitted orientation of the camera, seen from the skull."""
    wanted, got = _skull_to_camera(params, label), _skull_to_camera(fit.params, fit.label)
    return torch.rad2deg(rotation_vector(wanted.transpose(1, 2) @ got))


def _skull_to_camera(params: HeadParams, label: Tensor) -> Tensor:
    """Rotation [N, 3, 3]."""
    camera = cameras.unpack_label(label)[0][:, :3, :3].transpose(1, 2)
    return camera @ axis_angle_matrix(params.rotation) @ axis_angle_matrix(params.neck)


def gaze_angles(eyes: Tensor) -> Tensor:
    """Axis-angles [N, 6] -> yaw to the subject's left and pitch up of each eye [N, 2, 2], degrees."""
    forward = axis_angle_matrix(eyes.reshape(-1, 2, 3))[..., 2]
    yaw, pitch = torch.atan2(forward[..., 0], forward[..., 2]), torch.asin(forward[..., 1].clamp(-1, 1))
    return torch.rad2deg(torch.stack([yaw, pitch], dim=-1))


def lid_opening(model: MakeHumanHead, params: HeadParams) -> Tensor:
    """Mean distance of the lids over the width of the eye [N, 2], left then right."""
    with torch.no_grad():
        points = model.forward(params).landmarks
    eyes = []
    for corners, lids in (((42, 45), ((43, 47), (44, 46))), ((36, 39), ((37, 41), (38, 40)))):
        width = (points[:, corners[0]] - points[:, corners[1]]).norm(dim=1)
        gaps = torch.stack([(points[:, top] - points[:, low]).norm(dim=1) for top, low in lids], dim=1)
        eyes.append(gaps.mean(dim=1) / width)
    return torch.stack(eyes, dim=1)


def expression_weights(model: MakeHumanHead, params: HeadParams) -> Tensor:
    """Expression coefficients -> weights [N, 52] of the named targets."""
    count = len(model.expression_names)
    table = model.expression_coefficients(torch.eye(count))  # [52, num_expression]
    return params.expression @ torch.linalg.pinv(table)


def _fit(
    model: MakeHumanHead,
    landmarks: Tensor,  # [N, 68, 2]
    iris: Tensor,  # [N, 2, 5, 2]
    *,
    points: Tensor | None = None,  # [N, K, 2]
    offsets: Tensor | None = None,
    embedding: Embedding | None = None,
) -> Fit:
    """fit_heads in batches, with a bar."""
    fits = []
    for start in tqdm(range(0, len(landmarks), _BATCH), unit='batch', desc='fitting'):
        rows = slice(start, start + _BATCH)
        some = None if points is None else points[rows]
        fits.append(
            fit_heads(model, landmarks[rows], iris=iris[rows], points=some, offsets=offsets, embedding=embedding)
        )
    return Fit(
        params=HeadParams.cat([fit.params for fit in fits]),
        label=torch.cat([fit.label for fit in fits]),
        landmarks=torch.cat([fit.landmarks for fit in fits]),
        error=torch.cat([fit.error for fit in fits]),
        iris_error=None,
    )


def _detect(
    seed: int, indices: list[int], *, chosen: Tensor, landmarker: str | None
) -> tuple[list[int], Tensor, Tensor, Tensor]:
    """Rows of the renderings with a face, its landmarks [F, 68, 2], irises [F, 2, 5, 2] and chosen points [F, K, 2]."""
    found, landmarks, iris, points = [], [], [], []
    with MediaPipeDetector(landmarker) as detector:
        for row, index in enumerate(tqdm(indices, unit='image', desc='rendering')):
            item = render_index(seed, index, resolution=RESOLUTION)
            faces = detector.detect(np.ascontiguousarray(item.image.transpose(1, 2, 0)))
            if faces and faces[0].iris is not None and faces[0].points is not None:
                found.append(row)
                landmarks.append(torch.from_numpy(faces[0].landmarks / RESOLUTION).float())
                iris.append(torch.from_numpy(faces[0].iris / RESOLUTION).float())
                points.append(torch.from_numpy(faces[0].points[chosen.numpy(), :2] / RESOLUTION).float())
    return found, torch.stack(landmarks), torch.stack(iris), torch.stack(points)


if __name__ == '__main__':
    main()
