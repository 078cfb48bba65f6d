"""How near inverted synthetic people come to the truth, which the synthetic dataset can render. Run by hand.

    python -m tools.measure_avatars --network=assets/synth64.pkl --num=8

People that no training set of seed 0 holds. One picture of each is inverted; then the input, other cameras and other
expressions are compared with renderings of the same person: before tuning (pivot), after (tuned), and a static copy of
the input. Prints the table of docs/avatars.md.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable

import click
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from applications.avatars import choose_objective
from applications.inversion import InversionConfig, Locality, find_latent, latent_statistics, tune_generator
from applications.inversion_losses import Objective, View, Weights, head_weight
from applications.inversion_novel import drawn_camera, drawn_head
from applications.perceptual import RandomPerceptual, weighted_mean
from applications.samples import CameraRig
from dnnlib import UserError
from dnnlib.cli import Command
from training import cameras
from training.checkpoint import LoadedGenerator, load_generator
from training.generator import Generator
from training.head.makehuman import MakeHumanHead, embedded_head
from training.synthetic_params import IMAGES_PER_IDENTITY, Scene
from training.synthetic_studio import Studio

CAMERAS = ((-0.45, 0.0), (-0.2, 0.15), (0.2, -0.15), (0.45, 0.0))  # yaw, pitch
KINDS = ('input', 'novel views', 'novel expressions')
COLUMNS = ('PSNR, head', 'PSNR', 'perceptual', 'identity')


@dataclasses.dataclass(frozen=True)
class Person:
    """Truth of one person: a view to invert, and all views by kind."""

    identity: Tensor
    views: dict[str, list[View]]


def truth(studio: Studio, model: MakeHumanHead, *, seed: int, person: int) -> Person:
    """Renderings of a person of the synthetic dataset."""
    first = person * IMAGES_PER_IDENTITY
    scene, dressed = studio.scene(seed, first), studio.dress(seed, person)

    def view(shown: Scene) -> View:
        label = torch.from_numpy(shown.label)[None]
        head = model.forward(shown.head)
        image = torch.from_numpy(studio.draw(dressed, shown).astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        weight = head_weight(model.template, head, label, resolution=studio.resolution, background=0.0)
        return View(image=image, label=label, head=head, weight=weight)

    angles = torch.tensor(CAMERAS)
    labels = cameras.orbit_camera(angles[:, 0], angles[:, 1]).numpy()
    others = [studio.scene(seed, first + turn).head for turn in range(1, IMAGES_PER_IDENTITY)]
    return Person(
        identity=scene.head.identity,
        views={
            'input': [view(scene)],
            'novel views': [view(dataclasses.replace(scene, label=label)) for label in labels],
            'novel expressions': [view(dataclasses.replace(scene, head=head)) for head in others],
        },
    )


@torch.no_grad()
def scores(draw: Callable[[View], Tensor], person: Person, objective: Objective) -> np.ndarray:
    """Mean of COLUMNS over the views of each of KINDS, [3, 4]; identity is NaN without an embedder."""
    rows = []
    for kind in KINDS:
        values = []
        for view in person.views[kind]:
            image = draw(view).clamp(-1, 1)
            error = (image - view.image).square()
            terms = objective.terms(image, objective.target(view.image, view.weight))
            values.append(
                [psnr(weighted_mean(error, view.weight)), psnr(error.mean())]
                + [float(terms.perceptual), 1 - float(terms.identity) if objective.embedder else math.nan]
            )
        rows.append(np.mean(values, axis=0))
    return np.stack(rows)


def psnr(square: Tensor) -> float:
    """dB of a mean square error in [-1, 1]."""
    return float(10 * torch.log10(4 / square.clamp_min(1e-10)))


def measure(
    loaded: LoadedGenerator,
    person: Person,
    objective: Objective,
    config: InversionConfig,
    *,
    judge: Objective,
    ablate: bool,
) -> dict[str, np.ndarray]:
    """Scores by method; `judge` compares with networks of its own."""
    generator, rig, model = loaded.generator, CameraRig.of(loaded.config, framing=loaded.info.framing), embedded_head()
    given = person.views['input'][0]
    background = objective.weights.background
    view = dataclasses.replace(given, weight=background + (1 - background) * given.weight)
    statistics = latent_statistics(generator, rig.front(), samples=config.mean_samples, seed=config.seed)
    ws = find_latent(generator, [view], objective, statistics, config)
    locality = Locality(
        generator,
        ws,
        statistics,
        objective,
        config,
        heads=lambda rng: drawn_head(model, person.identity, rng),
        cameras=lambda rng: drawn_camera(rig, rng),
    )
    tuned = tune_generator(generator, ws, [view], objective, config, locality=locality)

    def drawn_by(network: Generator) -> Callable[[View], Tensor]:
        identity = network.identity(ws)
        return lambda view: network.render(network.deform(identity, view.head), view.label).image

    with torch.no_grad():
        methods = {'pivot': drawn_by(generator), 'tuned': drawn_by(tuned)}
    if ablate:
        free = tune_generator(generator, ws, [view], objective, config)
        with torch.no_grad():
            methods['tuned, no locality'] = drawn_by(free)
    methods['copy of the input'] = lambda view: given.image
    return {name: scores(draw, person, judge) for name, draw in methods.items()}


def table(results: list[dict[str, np.ndarray]]) -> list[str]:
    """Markdown lines: means over people."""
    lines = [f'| method | compared | {" | ".join(COLUMNS)} |', '|---|---' + '|---' * len(COLUMNS) + '|']
    for kind_index, kind in enumerate(KINDS):
        for method in results[0]:
            mean = np.mean([result[method][kind_index] for result in results], axis=0)
            same = '-' if math.isnan(mean[3]) else f'{mean[3]:.3f}'
            lines.append(f'| {method} | {kind} | {mean[0]:.2f} | {mean[1]:.2f} | {mean[2]:.4f} | {same} |')
    return lines


@click.command(cls=Command)
@click.option('--network', required=True, help='Snapshot of a network that was trained on the synthetic dataset.')
@click.option('--num', default=8, show_default=True, help='People.')
@click.option('--seed', default=1000, show_default=True, help='Of the people; another than that of the training data.')
@click.option('--space', type=click.Choice(['w', 'w+']), default='w+', show_default=True)
@click.option('--perceptual', default='auto', show_default=True, help='As project_avatar.py.')
@click.option('--identity', default='auto', show_default=True, help='As project_avatar.py; judges as well.')
@click.option('--latent-steps', default=450, show_default=True)
@click.option('--tuning-steps', default=500, show_default=True)
@click.option('--ablate', is_flag=True, help='Tune without the locality regularizer as well.')
def main(
    network: str,
    num: int,
    seed: int,
    space: str,
    perceptual: str,
    identity: str,
    latent_steps: int,
    tuning_steps: int,
    ablate: bool,
) -> None:
    """Print the errors of inverted people against ground-truth renderings."""
    loaded, model = load_generator(network), embedded_head()
    if loaded.head_model_name != model.name:
        raise UserError(f'{network}: expected a network trained with head model {model.name}')
    studio = Studio(model, resolution=loaded.generator.config.image_resolution)
    chosen = choose_objective(perceptual, Weights(), identity=identity)
    config = InversionConfig(space='w' if space == 'w' else 'w+', latent_steps=latent_steps, tuning_steps=tuning_steps)
    judge = Objective(RandomPerceptual(), weights=Weights(), embedder=chosen.embedder)
    for role, compared in (('losses', chosen), ('judge', judge)):
        click.echo(f'{role}: {json.dumps(compared.networks())}')
    results = []
    for person in tqdm(range(num), desc='people'):
        known = truth(studio, model, seed=seed, person=person)
        results.append(measure(loaded, known, chosen, config, judge=judge, ablate=ablate))
        click.echo('\n'.join([f'\nmeans over {len(results)} of {num} people', *table(results)]))


if __name__ == '__main__':
    main()
