"""Measure a snapshot: Frechet distances between a dataset and generated images."""

from __future__ import annotations

import click

from dnnlib.cli import Command, precision_option, rasterizer_option


@click.command(cls=Command)
@click.option('--network', required=True, help='Snapshot (network-snapshot-*.pkl).')
@click.option('--data', help='Packed dataset. Default: what the network was trained on.')
@click.option(
    '--metrics',
    default='fid50k_full',
    show_default=True,
    help='Comma-separated. fid<N>[k][_full]: N generated against N (or all) real images with the official Inception. '
    'fd_random<N>[k][_full]: the same with an offline stand-in network; not comparable with FID.',
)
@click.option('--mirror/--no-mirror', default=None, help='Count mirrored real images too. Default: as in training.')
@click.option('--seed', default=0, show_default=True, help='Seed of latents, cameras and heads.')
@click.option('--trunc', default=1.0, show_default=True, help='Truncation psi.')
@click.option('--trunc-cutoff', type=click.IntRange(min=0), help='Number of ws to truncate. Default: all.')
@click.option('--batch', type=click.IntRange(min=1), default=16, show_default=True, help='Images at once per rank.')
@click.option('--gpus', type=click.IntRange(min=1), default=1, show_default=True, help='Number of ranks.')
@click.option('--device', default='auto', show_default=True, help='auto, cpu, or a torch device name.')
@rasterizer_option
@precision_option
@click.option('--out', help='Append the results with their protocol to this JSON-lines file.')
@click.option(
    '--cache-dir', help='Where statistics and downloads are kept. Default: NEXT3D_CACHE_DIR or ~/.cache/next3d.'
)
@click.option('--inception', help='Path or URL of the official Inception (TorchScript). Default: its official URL.')
@click.option('--inception-sha256', help='Expected sha256 of --inception, if it is not the official file.')
@click.option('--head-model', help="The user's FLAME file, for datasets of FLAME parameters.")
def main(
    network: str,
    data: str | None,
    metrics: str,
    mirror: bool | None,
    seed: int,
    trunc: float,
    trunc_cutoff: int | None,
    batch: int,
    gpus: int,
    device: str,
    precision: str,
    out: str | None,
    cache_dir: str | None,
    inception: str | None,
    inception_sha256: str | None,
    head_model: str | None,
) -> None:
    """Measure NETWORK and print one line a metric.

    Camera and head of each generated image come from a random dataset item, one draw an image. A
    result depends on the seed, not on the batch size or the number of ranks.

    \b
    Example:
        python calc_metrics.py --network=runs/00000/network-snapshot-000200.pkl --metrics=fd_random2k_full
    """
    from functools import partial

    from applications.evaluation import Evaluation, run_evaluation, split_names
    from metrics.registry import Protocol
    from torch_utils.devices import choose_device
    from torch_utils.distributed import run

    evaluation = Evaluation(
        network=network,
        metrics=split_names(metrics),
        data=data,
        mirror=mirror,
        head_model_path=head_model,
        out=out,
        show=click.echo,
        precision=precision,
        protocol=Protocol(
            seed=seed,
            truncation_psi=trunc,
            truncation_cutoff=trunc_cutoff,
            batch=batch,
            cache_dir=cache_dir,
            inception=inception,
            inception_sha256=inception_sha256,
        ),
    )
    run(partial(run_evaluation, evaluation), choose_device(device).type, ranks=gpus)


if __name__ == '__main__':
    main()
