"""How well a driven avatar follows its driver: film a driver with known parameters, drive with the film, look. By hand.

    python -m tools.measure_reenactment --network=assets/synth64.pkl --frames=120

The synthetic renderer films a person whose every parameter moves with a period of its own; the film is tracked and
drives the network as gen_videos.py --drive=film.mp4 --drive-camera does; a head estimator then reads the parameters off
the network's pictures. Printed are correlations with the truth: of what was tracked and transferred, of what the
estimator reads off the avatars (the mean over the seeds), and, as the most that it can tell, off the driver's own
frames. Needs the extra [preprocess].
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import numpy as np
import torch
from tqdm import tqdm

from applications.heads import network_head_model, own_identity
from applications.mp4 import write_mp4
from applications.preprocessing.clip import read_frames
from applications.reenactment import DriverOptions, TransferOptions, drive
from applications.samples import CameraRig, avatar_latent, seed_latents
from applications.tracking import TrackOptions
from applications.videos import Scene, StillLatents, render_scene
from dnnlib import UserError
from dnnlib.cli import Command, parse_int_list
from metrics.estimators.base import HeadEstimate, HeadEstimator
from metrics.estimators.loading import load_head_estimator
from tools.close_the_loop import drive as driver_motion
from tools.close_the_loop import film_synthetic
from training.checkpoint import load_generator
from training.head.makehuman import embedded_head

FPS = 25.0


def measures(estimate: HeadEstimate, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """What is compared, [frames] each; angles in degrees."""
    assert estimate.expression is not None
    assert estimate.jaw is not None
    assert estimate.rotation is not None
    assert estimate.gaze is not None

    def shown(*chosen: str) -> np.ndarray:
        assert estimate.expression is not None
        return estimate.expression[:, [names.index(name) for name in chosen]].mean(dim=1).numpy()

    gaze, rotation = np.degrees(estimate.gaze.mean(dim=1).numpy()), np.degrees(estimate.rotation.numpy())
    return {
        'jaw (degrees)': np.degrees(estimate.jaw[:, 0].numpy()),
        'smile (weight)': shown('mouthSmileLeft', 'mouthSmileRight'),
        'blink, left eye (weight)': shown('eyeBlinkLeft'),
        'blink, right eye (weight)': shown('eyeBlinkRight'),
        'gaze yaw (degrees)': gaze[:, 0],
        'gaze pitch (degrees)': gaze[:, 1],
        'head yaw (degrees)': rotation[:, 1],
        'head pitch (degrees)': rotation[:, 0],
        'head roll (degrees)': rotation[:, 2],
    }


def estimated(estimator: HeadEstimator, pictures: torch.Tensor) -> HeadEstimate:
    """Of uint8 pictures [N, 3, H, W], a few at a time."""
    return HeadEstimate.cat([estimator(part) for part in tqdm(pictures.split(8), desc='estimating')])


@click.command(cls=Command)
@click.option('--network', required=True, help='Snapshot or avatar, of the embedded head model.')
@click.option('--estimator', 'spec', default='embedded', show_default=True, help='Of head parameters.')
@click.option('--frames', default=120, show_default=True)
@click.option('--resolution', default=384, show_default=True, help='Side of the film in pixels.')
@click.option('--person', default=3, show_default=True, help='Identity number of the driver.')
@click.option('--seeds', default='0,3,5', show_default=True, help='Of a network that is no avatar.')
@click.option('--transfer', type=click.Choice(['relative', 'absolute']), default='relative', show_default=True)
@click.option('--keep', help='Folder for film and tracking, which a second run uses again. Default: a temporary one.')
def main(
    network: str, spec: str, frames: int, resolution: int, person: int, seeds: str, transfer: str, keep: str | None
) -> None:
    """Print the correlation of each parameter of a driver with those read off the avatar that it drives."""
    model, loaded = embedded_head(), load_generator(network)
    if loaded.head_model_name != model.name:
        raise UserError(f'{network}: expected a network trained with head model {model.name}')
    estimator = load_head_estimator(spec)
    head, label = driver_motion(model, frames)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        film = folder / f'film-{frames}-{resolution}-{person}.mp4'
        if not film.exists():
            pictures = film_synthetic(head, label, resolution=resolution, person=person)
            write_mp4(film, tqdm(pictures, total=frames, desc='filming'), fps=FPS, crf=12)
        rig = CameraRig.of(loaded.config, framing=loaded.info.framing)
        options = DriverOptions(
            source=str(film),
            transfer=TransferOptions(transfer=transfer, camera=True),
            track=TrackOptions(kept=str(film.with_suffix('.npz'))),
        )
        identity = own_identity(loaded, network_head_model(loaded))
        motion = drive(options, model, identity=identity, rig=rig, beside=str(film), report=click.echo)
        seen = np.stack([frame.image for frame in read_frames(film) if frame.image is not None])
    if loaded.avatar is not None:
        people = avatar_latent(loaded, loaded.avatar, truncation_psi=1.0, truncation_cutoff=None)
    else:
        numbers = parse_int_list(seeds, option='--seeds')
        people = seed_latents(loaded.generator, numbers, truncation_psi=0.7, truncation_cutoff=None, rig=rig)
    assert motion.labels is not None
    scene = Scene(latents=StillLatents(people), heads=model.forward(motion.params), labels=motion.labels, frames=frames)
    drawn = torch.stack(list(tqdm(render_scene(loaded.generator, scene), total=frames, desc='driving')), dim=1)
    avatars = ((drawn + 1) * 127.5).round().byte()
    names = model.expression_names
    truth = measures(estimator.targets(head, label), names)
    found = {
        'tracked and transferred': [measures(estimator.targets(motion.params, motion.labels), names)],
        'read off the avatar': [measures(estimated(estimator, pictures), names) for pictures in avatars],
        "read off the driver's frames": [
            measures(estimated(estimator, torch.from_numpy(seen).permute(0, 3, 1, 2)), names)
        ],
    }
    click.echo(f'\n| {frames} frames, {transfer}, {estimator.name} | spread | {" | ".join(found)} |')
    click.echo('|---|---|' + '---|' * len(found))
    for name, values in truth.items():
        cells = [[np.corrcoef(values, person[name])[0, 1] for person in column] for column in found.values()]
        means = ' | '.join(f'{np.mean(column):.2f}' for column in cells)
        click.echo(f'| {name} | {values.std():.2f} | {means} |')


if __name__ == '__main__':
    main()
