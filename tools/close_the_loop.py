"""Drive a face with known parameters, film it, run from-video on the film, compare. Run by hand.

    python -m tools.close_the_loop --frames=120                                     # the synthetic renderer
    python -m tools.close_the_loop --frames=120 --network=out/me/avatar.pkl         # a network, or an avatar

Prints the correlation of what was found with what was put in, for each parameter. Needs the extra [preprocess].
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from applications.heads import own_identity
from applications.mp4 import write_mp4
from applications.preprocessing.crops import PhotoLimits
from applications.preprocessing.video import VideoOptions, convert_video
from applications.samples import CameraRig, avatar_latent, seed_latents
from dnnlib import UserError
from dnnlib.cli import Command
from training import cameras
from training.cameras import camera_angles
from training.checkpoint import load_generator
from training.dataset import HeadDataset
from training.head.makehuman import MakeHumanHead, embedded_head
from training.head.model import HeadModel, HeadParams
from training.synthetic_studio import Studio

_BLINK_EVERY = 37  # frames


def drive(model: MakeHumanHead, frames: int) -> tuple[HeadParams, Tensor]:
    """Heads and cameras [frames, ...] in which every parameter moves with a period of its own."""
    t = torch.arange(frames, dtype=torch.float32)

    def wave(period: float) -> Tensor:
        return torch.sin(2 * torch.pi * t / period)

    def lids(first: int) -> Tensor:
        since = (t - first) % _BLINK_EVERY
        return torch.maximum(1 - since / 6, 1 - (_BLINK_EVERY - since) / 4).clamp(0, 1)

    weights = torch.zeros(frames, len(model.expression_names))
    shares = {
        'eyeBlinkLeft': lids(10),
        'eyeBlinkRight': torch.where(t % (2 * _BLINK_EVERY) < _BLINK_EVERY, lids(10), 0),
    }
    shares |= dict.fromkeys(('mouthSmileLeft', 'mouthSmileRight'), 0.4 * (1 + wave(53)))
    for name, values in shares.items():
        weights[:, model.expression_names.index(name)] = values
    zero = torch.zeros(frames)
    pitch, yaw = 0.12 * wave(43), 0.3 * wave(61)
    gaze = torch.stack([pitch, yaw, zero], dim=1)
    head = model.neutral(frames).replace(
        expression=model.expression_coefficients(weights),
        jaw=torch.stack([0.12 * (1 + wave(23)), zero, zero], dim=1),
        eyes=torch.cat([gaze, gaze], dim=1),
    )
    return head, cameras.orbit_camera(0.35 * wave(79), 0.15 * wave(59), roll=0.12 * wave(71))


def measures(model: HeadModel, head: HeadParams, label: Tensor) -> dict[str, np.ndarray]:
    """What is compared, [frames] each; angles in degrees, distances in millimetres."""
    with torch.no_grad():
        points = model.forward(head).landmarks.numpy() * 1000

    def gap(pairs: list[tuple[int, int]]) -> np.ndarray:
        return np.mean([np.linalg.norm(points[:, a] - points[:, b], axis=-1) for a, b in pairs], axis=0)

    yaw, pitch, roll = np.degrees(camera_angles(label)).T
    eyes = np.degrees(head.eyes.reshape(-1, 2, 3).mean(dim=1).numpy())
    return {
        'mouth opening (inner lips, mm)': gap([(61, 67), (62, 66), (63, 65)]),
        'jaw angle (degrees)': np.degrees(head.jaw[:, 0].numpy()),
        'smile (width of the mouth, mm)': gap([(48, 54)]),
        'blink left (lid distance, mm)': gap([(43, 47), (44, 46)]),
        'blink right (lid distance, mm)': gap([(37, 41), (38, 40)]),
        'gaze yaw (degrees)': eyes[:, 1],
        'gaze pitch (degrees)': eyes[:, 0],
        'head yaw (degrees)': yaw,
        'head pitch (degrees)': pitch,
        'head roll (degrees)': roll,
    }


def film_synthetic(head: HeadParams, label: Tensor, *, resolution: int, person: int) -> Iterator[np.ndarray]:
    """The synthetic renderer's pictures of a person, uint8 [R, R, 3]."""
    studio = Studio(embedded_head(), resolution=resolution)
    dressed = studio.dress(0, person)
    shape = torch.from_numpy(dressed.person.shape)[None]
    scene = studio.scene(0, 4 * person)
    for i in range(len(head)):
        posed = head[[i]].replace(identity=shape)
        yield studio.draw(dressed, dataclasses.replace(scene, label=label[i].numpy(), head=posed))


@torch.no_grad()
def film_network(
    network: str, head: HeadParams, label: Tensor, *, resolution: int, person: int
) -> Iterator[np.ndarray]:
    """A network's pictures of a seed, or of an avatar's person, enlarged to uint8 [resolution, resolution, 3]."""
    loaded = load_generator(network)
    generator, model = loaded.generator, embedded_head()
    if loaded.head_model_name != model.name:
        raise UserError(f'{network}: expected a network trained with head model {model.name}')
    if loaded.avatar is not None:
        ws = avatar_latent(loaded, loaded.avatar, truncation_psi=1.0, truncation_cutoff=None)
    else:
        rig = CameraRig.of(loaded.config, framing=loaded.info.framing)
        ws = seed_latents(generator, [person], truncation_psi=0.7, truncation_cutoff=None, rig=rig)
    identity = generator.identity(ws)
    head = head.replace(identity=own_identity(loaded, model).expand(len(head), -1))
    for i in range(len(head)):
        image = generator.render(generator.deform(identity, model.forward(head[[i]])), label[[i]]).image[0]
        pixels = ((image + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        yield np.asarray(Image.fromarray(pixels).resize((resolution, resolution), Image.Resampling.BICUBIC))


@click.command(cls=Command)
@click.option('--network', help='Snapshot or avatar to film. Default: the synthetic renderer.')
@click.option('--frames', default=120, show_default=True)
@click.option('--resolution', default=512, show_default=True, help='Side of the film in pixels.')
@click.option('--person', default=3, show_default=True, help='Identity number, or seed of a network that is no avatar.')
@click.option('--keep', help='Folder for film, dataset and report. Default: a temporary one.')
@click.option('--workers', default=0, show_default=True)
def main(network: str | None, frames: int, resolution: int, person: int, keep: str | None, workers: int) -> None:
    """Print the correlation of driven and recovered parameters."""
    model = embedded_head()
    head, label = drive(model, frames)
    pictures = (
        film_synthetic(head, label, resolution=resolution, person=person)
        if network is None
        else film_network(network, head, label, resolution=resolution, person=person)
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_mp4(str(folder / 'film.mp4'), tqdm(pictures, total=frames, desc='filming'), fps=25, crf=12)
        options = VideoOptions(resolution=64, limits=PhotoLimits(max_error=0.2), framing='pivot')
        convert_video(
            folder / 'film.mp4', folder / 'loop.zip', options=options, workers=workers, overwrite=True, log=click.echo
        )
        data = HeadDataset(folder / 'loop.zip')
        rows = list(range(len(data)))
        found, clips = data.head_params(rows), data.clips
        if found is None or clips is None:
            raise UserError(f'{folder / "loop.zip"}: expected heads and clips')
        numbers = clips[1]
        truth = measures(model, head[numbers], label[numbers])
        recovered = measures(model, found, data.label(rows))
    click.echo(
        f'\n| {len(rows)} of {frames} frames | correlation | driven, spread | recovered, spread |\n|---|---|---|---|'
    )
    for name, values in truth.items():
        other = recovered[name]
        correlation = np.corrcoef(values, other)[0, 1]
        click.echo(f'| {name} | {correlation:.3f} | {values.std():.2f} | {other.std():.2f} |')


if __name__ == '__main__':
    main()
