"""Train a generator: options -> config -> training.loop.train on every rank."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import click

from dnnlib.cli import SectionedCommand, rasterizer_option
from dnnlib.errors import UserError
from training.config import PRESETS, TrainConfig, preset, to_dict

# Option -> the config field that it sets (training/config.py).
FIELDS = {
    'data': 'data',
    'gpus': 'gpus',
    'batch': 'batch',
    'batch_gpu': 'batch_gpu',
    'kimg': 'kimg',
    'tick': 'tick_kimg',
    'snap': 'snapshot_ticks',
    'seed': 'seed',
    'resume': 'resume',
    'mirror': 'mirror',
    'bad_images': 'bad_images',
    'clip_frames': 'clip_frames',
    'aug': 'augment',
    'p': 'augment_p',
    'target': 'ada_target',
    'freezed': 'freeze_d',
    'glr': 'g_lr',
    'dlr': 'd_lr',
    'precision': 'precision',
    'gamma': 'L.r1_gamma',
    'density_reg': 'L.density_weight',
    'style_mixing_prob': 'L.style_mixing_prob',
    'blur_fade_kimg': 'L.blur_fade_kimg',
    'gen_pose_cond': 'G.label_scale',
    'neural_rendering_resolution': 'G.render_resolution',
    'neural_rendering_resolution_initial': 'L.render_resolution_initial',
    'neural_rendering_resolution_fade_kimg': 'L.render_fade_kimg',
    'mouth': 'G.mouth_source',
    'mouth_planes': 'G.mouth_planes',
    'disc_template': 'D.template',
    'mbstd_group': 'D.mbstd_group_size',
}
# How --help lists the options; the first two lists are what most runs need.
SECTIONS = {
    'A run': (
        'outdir', 'cfg', 'data', 'gpus', 'batch', 'kimg', 'tick', 'snap', 'seed', 'resume', 'metrics', 'workers',
        'dry_run',
    ),
    'What it learns, and on what': (
        'gamma', 'mirror', 'aug', 'p', 'target', 'freezed', 'glr', 'dlr', 'precision', 'batch_gpu', 'device',
        'assignments',
    ),
    'Losses and networks, as in EG3D': (
        'density_reg', 'style_mixing_prob', 'blur_fade_kimg', 'gen_pose_cond', 'neural_rendering_resolution',
        'neural_rendering_resolution_initial', 'neural_rendering_resolution_fade_kimg', 'mbstd_group',
    ),
    'Mouth, discriminator, heads, clips': ('mouth', 'mouth_planes', 'disc_template', 'head_model', 'clip_frames'),
    'Memory, disk, faults': (
        'grad_checkpoint', 'rasterizer', 'keep', 'override_config', 'bad_images', 'timeout', 'max_skipped',
    ),
}  # fmt: skip
POSITIVE = click.IntRange(min=1)
RATE = click.FloatRange(min=0, min_open=True)


@click.command(
    cls=SectionedCommand,
    sections=SECTIONS,
    context_settings={'token_normalize_func': lambda name: name.replace('_', '-'), 'max_content_width': 110},
)
@click.option('--outdir', required=True, metavar='DIR', help="The run's folder; the same command again resumes it.")
@click.option('--cfg', default='synth64', show_default=True, help=f'Preset: {", ".join(PRESETS)}.')
@click.option('--data', metavar='PATH', help='Packed dataset, zip or folder (dataset_tool.py).')
@click.option('--gpus', type=POSITIVE, help='Number of ranks (processes; on the CPU too).')
@click.option('--batch', type=POSITIVE, help='Images a step, over all ranks.')
@click.option(
    '--batch-gpu', metavar='N|auto', help='Images at once on a rank, auto: what memory holds; rest accumulated.'
)
@click.option('--kimg', type=RATE, help='Length of the run in thousand real images.')
@click.option('--tick', type=RATE, help='kimg between two reports.')
@click.option('--snap', type=POSITIVE, help='Ticks between two snapshots, states, grids and measurements.')
@click.option('--seed', type=click.IntRange(min=0), help='Of weights, order and noise.')
@click.option('--resume', metavar='PKL', help='Weights to start from: a snapshot, or a pickle of Next3D or EG3D.')
@click.option('--metrics', help='Comma-separated names (calc_metrics.py --help), or none.')
@click.option('--mirror', type=bool, help='Also train on mirrored images, cameras and heads.')
@click.option(
    '--bad-images', type=click.Choice(['stop', 'skip']), help='What to do with damaged images. Default: stop.'
)
@click.option('--clip-frames', type=POSITIVE, help='Frames of one clip in a group of images that D compares; 1: none.')
@click.option('--aug', type=click.Choice(['none', 'ada', 'fixed']), help='Augment what D sees.')
@click.option('--p', type=click.FloatRange(0, 1), help='Probability of each augmentation for --aug=fixed.')
@click.option('--target', type=float, help='ADA: wanted mean sign of real logits.')
@click.option('--freezed', type=click.IntRange(min=0), help="Freeze the discriminator's first layers.")
@click.option('--glr', type=RATE, help="Generator's learning rate.")
@click.option('--dlr', type=RATE, help="Discriminator's learning rate.")
@click.option('--gamma', type=click.FloatRange(min=0), help='Weight of R1; 0 leaves it out.')
@click.option('--density-reg', type=click.FloatRange(min=0), help='Weight of density smoothness; 0 leaves it out.')
@click.option('--style-mixing-prob', type=click.FloatRange(0, 1), help='Probability of mixing two latents.')
@click.option('--blur-fade-kimg', type=click.FloatRange(min=0), help='When the blur of images has faded.')
@click.option('--gen-pose-cond', type=bool, help='Tell the mapping network a camera.')
@click.option(
    '--neural-rendering-resolution',
    '--neural-rendering-resolution-final',
    type=POSITIVE,
    help='Side of the volume rendering in pixels.',
)
@click.option('--neural-rendering-resolution-initial', type=POSITIVE, help='Side at the start of training.')
@click.option('--neural-rendering-resolution-fade-kimg', type=click.FloatRange(min=0), help='How long it grows.')
@click.option('--mouth', type=click.Choice(['teeth', 'texture', 'static']), help='Where the mouth comes from.')
@click.option('--mouth-planes', type=click.Choice(['all', 'front']), help='Planes that the mouth is completed on.')
@click.option('--disc-template', help='Template rendering for D: none, uv, normals or correspondence.')
@click.option('--mbstd-group', type=POSITIVE, help='Group size of the minibatch standard deviation.')
@click.option(
    '--precision', type=click.Choice(['auto', 'fp32', 'bf16', 'fp16']), help='Of convolutions. Default: fp32.'
)
@click.option(
    '--set', 'assignments', multiple=True, metavar='KEY=VALUE', help='Any config field, e.g. G.depth_samples=24.'
)
@click.option('--workers', type=click.IntRange(min=0), default=0, show_default=True, help='Decoding processes a rank.')
@click.option('--device', default='auto', show_default=True, help='auto, cpu, or a torch device type.')
@rasterizer_option
@click.option('--head-model', metavar='FILE', help="The user's FLAME file, for datasets of FLAME parameters.")
@click.option('--keep', type=POSITIVE, help='Snapshots and states that stay. Default: all snapshots, two states.')
@click.option('--override-config', is_flag=True, help='Go on with a changed config; the change is written down.')
@click.option(
    '--grad-checkpoint',
    is_flag=False,
    flag_value='all',
    metavar='[STAGES]',
    help='Less memory, more time: recompute stages of G. all (without a value) or texture,static,...',
)
@click.option(
    '--timeout', type=POSITIVE, default=1800, show_default=True, help='Seconds without progress that end the run.'
)
@click.option(
    '--max-skipped',
    type=POSITIVE,
    default=10,
    show_default=True,
    help='Steps in a row with non-finite gradients that end it.',
)
@click.option('--dry-run', is_flag=True, help='Check everything, print the config, make one step, write nothing.')
def main(
    outdir: str,
    cfg: str,
    metrics: str | None,
    assignments: tuple[str, ...],
    workers: int,
    device: str,
    head_model: str | None,
    keep: int | None,
    override_config: bool,
    grad_checkpoint: str | None,
    timeout: int,
    max_skipped: int,
    dry_run: bool,
    **chosen: Any,
) -> None:
    """Train on a packed dataset and write everything to --outdir.

    A killed run continues when the same command is given again, bit by bit on the same CPU. Most runs need no more
    than the first two lists of options. What EG3D has is named as there, with - or _.

    \b
    Examples:
        python train.py --outdir=runs/synth --cfg=synth64 --data=synth64.zip
        python train.py --outdir=runs/ffhq --cfg=ffhq512 --data=ffhq512.zip --gpus=8 --batch=32 --gamma=4
        python train.py --outdir=runs/try --cfg=synth64 --data=synth64.zip --set G.plane_layout=release --dry-run
    """
    overrides = {FIELDS[name]: value for name, value in chosen.items()}
    overrides['G.label_scale'] = None if chosen['gen_pose_cond'] is None else float(chosen['gen_pose_cond'])
    overrides['image_ticks'] = chosen['snap']
    if chosen['precision'] == 'auto':
        del overrides['precision']  # decided below, by the device
    if metrics is not None:
        overrides['metrics'] = [name.strip() for name in metrics.split(',') if name.strip() not in ('', 'none')]
    overrides['batch_gpu'] = parse_batch_gpu(chosen['batch_gpu'])
    overrides.update(parse_assignment(text) for text in assignments)

    from torch_utils.devices import choose_device
    from torch_utils.distributed import run, torchrun_ranks
    from torch_utils.precision import choose_precision
    from training.batch_fit import settle_batch_gpu
    from training.generator import STAGES
    from training.loop import RunOptions, prepare, train

    started = torchrun_ranks()
    if overrides['gpus'] is None and started is not None:
        overrides['gpus'] = started[1]
    config = make_config(cfg, overrides)
    if overrides['batch_gpu'] is None:
        config = settle_batch_gpu(config, outdir, auto=chosen['batch_gpu'] == 'auto')
    device_type = choose_device(device).type
    wanted = 'auto' if chosen['precision'] == 'auto' else config.precision
    precision = choose_precision(wanted, choose_device(device))
    config = dataclasses.replace(config, precision=precision.name)  # type: ignore[arg-type]
    check_metrics(config.metrics)
    config = prepare(config, head_model=head_model)
    leads = started is None or started[0] == 0
    if wanted == 'auto' and leads:
        click.echo(f'precision {precision}', err=True)
    if dry_run and leads:
        click.echo(json.dumps(to_dict(config), indent=2))
    options = RunOptions(
        outdir=outdir,
        workers=workers,
        head_model=head_model,
        dry_run=dry_run,
        checkpoint=parse_stages(grad_checkpoint, STAGES),
        max_skipped=max_skipped,
        keep=keep,
        override_config=override_config,
    )
    work = functools.partial(train, config=config, options=options, evaluate=evaluate)
    run(work, device_type, ranks=config.gpus, timeout=timeout)


def parse_batch_gpu(text: str | None) -> int | None:
    """--batch-gpu: a number, or None for auto and where it is not given."""
    if text in (None, 'auto'):
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f'--batch-gpu: expected a number of images or auto, got {text!r}')
    return int(text)


def parse_stages(text: str | None, known: tuple[str, ...]) -> frozenset[str]:
    """--grad-checkpoint: 'all', or names of stages by commas; UserError names those that there are."""
    if text is None:
        return frozenset()
    names = frozenset(known) if text == 'all' else frozenset(name.strip() for name in text.split(','))
    unknown = sorted(names - set(known))
    if unknown:
        raise UserError(f'--grad-checkpoint: unknown stage {unknown[0]!r}; expected all, or some of {", ".join(known)}')
    return names


def parse_assignment(text: str) -> tuple[str, Any]:
    """'G.depth_samples=24' -> ('G.depth_samples', 24); values are JSON, or else text."""
    key, equals, value = text.partition('=')
    if not equals or key.rpartition('.')[0] not in ('', 'G', 'D', 'L'):
        raise UserError(f'--set {text}: expected KEY=VALUE with KEY like batch, G.name, D.name or L.name')
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def make_config(cfg: str, overrides: dict[str, Any]) -> TrainConfig:
    """The checked config of a command line; UserError names the option."""
    if cfg not in PRESETS:
        raise UserError(f'--cfg: expected one of {", ".join(PRESETS)}, got {cfg!r}')
    try:
        config = preset(cfg, overrides)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not config.data:
        synth = '; make the embedded one by `python dataset_tool.py synth --out=synth64.zip --resolution=64`'
        raise UserError(f'--data: missing, the dataset to train on{synth if cfg in ("synth64", "debug") else ""}')
    ranks, batch_gpu = config.gpus, config.batch_gpu or max(config.batch // config.gpus, 1)
    if config.batch % (ranks * batch_gpu):
        raise UserError(f'--batch: {config.batch} is not divisible by --gpus x --batch-gpu = {ranks} x {batch_gpu}')
    if batch_gpu % config.clip_frames:
        raise UserError(f'--clip-frames: {config.clip_frames} does not divide --batch-gpu {batch_gpu}; change one')
    return dataclasses.replace(config, batch_gpu=batch_gpu)


def check_metrics(names: tuple[str, ...]) -> None:
    """Find unknown names and missing estimators before hours of training; UserError."""
    from metrics import registry

    registry.check_metrics(names, registry.Protocol())


def evaluate(names: tuple[str, ...], *, images_seen: int, generator: Any, **others: Any) -> list[dict[str, Any]]:
    """What calc_metrics.py runs, for the training loop."""
    from metrics import registry
    from metrics.adapter import NetworkAdapter

    return registry.evaluate(
        names,
        subject=NetworkAdapter(generator),
        protocol=registry.Protocol(),
        facts={'kimg': images_seen / 1000},
        **others,
    )


if __name__ == '__main__':
    main()
