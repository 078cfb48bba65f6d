"""Train the embedded estimators (assets/estimators/synthetic.npz) on the synthetic dataset. Run by hand.

    python -m tools.train_estimators --work=runs/estimators
    python -m tools.evaluate_estimators --work=runs/estimators      # writes the card

Three parts: the trunk with all heads; the gaze from pictures of the eyes; expression and jaw from pictures of mouth and
brows. `--trunk=FILE` begins with the second, `--gaze-steps=0` leaves it out.

The datasets are rendered to the work folder by their seeds. One thread on a CPU; the same command gives the same
network on the same machine and version of PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch.nn.utils import convert_conv2d_weight_memory_format

from dnnlib.cli import Command
from dnnlib.files import make_output_folder
from metrics.estimators.embedded_network import DEFAULT_PATH, EmbeddedNetwork, read_embedded, write_embedded
from tools.estimators.augment import augment, spoil
from tools.estimators.data import Mirror, Pictures, expression_names_matrix, load_pictures
from tools.estimators.expressions import fit_expressions
from tools.estimators.eyes import fit_gaze
from tools.estimators.objective import Objective, total
from tools.estimators.progress import Progress
from tools.estimators.variants import make_variants
from torch_utils.rng import stream
from training.head.makehuman import embedded_head

TRAINING_SETS = ((0, 4000), (1001, 3200))  # seed, images
BATCH, NUM_SPOILT = 64, 4
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 0.02
WARM_UP = 0.1  # share of the steps in which the learning rate grows
REPORT_EVERY = 100
LICENCE = 'CC0 1.0'


def batch_rows(person: torch.Tensor, *, steps: int, seed: int) -> torch.Tensor:
    """Rows [steps, BATCH]: pairs of pictures of a person [N], whose number of pictures is even, in random order."""
    epochs = []
    for number in range(-(-steps * BATCH // len(person))):
        rng = stream('estimators', seed, 'order', number)
        shuffled = torch.randperm(len(person), generator=rng)
        pairs = shuffled[person[shuffled].argsort(stable=True)].reshape(-1, 2)
        epochs.append(pairs[torch.randperm(len(pairs), generator=rng)].reshape(-1))
    return torch.cat(epochs)[: steps * BATCH].reshape(steps, BATCH)


def prepare(batch: Pictures, mirror: Mirror, *, rng: torch.Generator) -> tuple[Pictures, torch.Tensor, torch.Tensor]:
    """Labels, augmented images, spoilt images of one step."""
    batch = mirror.apply(batch, torch.rand(len(batch), generator=rng) < 0.5)
    images, _ = augment(batch.images.float() / 127.5 - 1, rng=rng)
    return batch, images, spoil(images[:NUM_SPOILT], rng=rng)


def train(pictures: Pictures, *, steps: int, seed: int, save: Callable[[EmbeddedNetwork], None]) -> EmbeddedNetwork:
    """The trained network, not folded; `save` gets what there is now and then."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # initial weights
        network = EmbeddedNetwork()
        objective = Objective(network, pictures)
        convert_conv2d_weight_memory_format(objective, torch.channels_last)
    network.expression_names.copy_(expression_names_matrix())
    optimizer = torch.optim.AdamW(objective.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, total_steps=steps, pct_start=WARM_UP, cycle_momentum=False
    )
    mirror = Mirror.of_embedded_head()
    progress = Progress('network', steps=steps, every=REPORT_EVERY)
    for step, rows in enumerate(batch_rows(pictures.person, steps=steps, seed=seed)):
        rng = stream('estimators', seed, 'augment', step)
        batch, images, spoilt = prepare(pictures.rows(rows), mirror, rng=rng)
        losses = objective(images.contiguous(memory_format=torch.channels_last), batch, spoilt)
        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
        schedule.step()
        if progress.add(step, losses):
            save(network)
    return network


def finish(path: str, pictures: Pictures, *, gaze_steps: int, expression_steps: int, seed: int) -> None:
    """Train gaze and expression on top of the network in a file, which is written again and again."""
    file = read_embedded(path)
    made = {name: value for name, value in file.header.items() if name not in ('format', 'version')}

    def save(network: EmbeddedNetwork) -> None:
        write_embedded(path, network, made)

    seen = make_variants(file.network, pictures, seed=seed)
    if gaze_steps:
        fit_gaze(file.network, seen, steps=gaze_steps, seed=seed)
        save(file.network)
    fit_expressions(file.network, seen, steps=expression_steps, seed=seed, save=save)
    save(file.network)


@click.command(cls=Command)
@click.option('--work', default='runs/estimators', show_default=True, help='Folder of the rendered datasets.')
@click.option('--out', default=str(DEFAULT_PATH), show_default='assets/estimators/synthetic.npz', help='File to write.')
@click.option('--steps', default=500, show_default=True, help=f'Steps of {BATCH} pictures.')
@click.option('--trunk', help='File whose trunk is kept, instead of --steps: the later parts alone.')
@click.option('--gaze-steps', default=2000, show_default=True, help='Of the second part, on eyes; 0: keep its gaze.')
@click.option('--expression-steps', default=4000, show_default=True, help='Of the third, on mouths and brows.')
@click.option('--seed', default=0, show_default=True, help='Of weights, order and augmentation.')
def main(work: str, out: str, steps: int, trunk: str | None, gaze_steps: int, expression_steps: int, seed: int) -> None:
    """Train the embedded estimators."""
    folder = make_output_folder(work)
    make_output_folder(Path(out).parent)
    torch.set_num_threads(1)
    start = None if trunk is None else read_embedded(trunk)
    pictures = Pictures.join([load_pictures(folder, seed=number, num=num) for number, num in TRAINING_SETS])
    model = embedded_head()
    first = f'--steps={steps}' if start is None else f'--trunk={Path(str(trunk)).name}'
    training = {
        'command': (
            f'python -m tools.train_estimators {first} --gaze-steps={gaze_steps} '
            f'--expression-steps={expression_steps} --seed={seed}'
        ),
        'pictures': len(pictures),
        'people': int(pictures.person.max()) + 1,
        'datasets': [{'seed': number, 'images': num} for number, num in TRAINING_SETS],
        'torch': torch.__version__,
        **({} if start is None else {'trunk': start.header['training']}),
    }
    header = {'head_model': model.name, 'head_model_hash': model.content_hash, 'licence': LICENCE, 'training': training}
    if start is not None:
        network = start.network
    else:
        network = train(pictures, steps=steps, seed=seed, save=lambda network: write_embedded(out, network, header))
    write_embedded(out, network, header)
    finish(out, pictures, gaze_steps=gaze_steps, expression_steps=expression_steps, seed=seed)


if __name__ == '__main__':
    main()
