"""Measure a snapshot, another generator or a folder of images; write the results as tables."""

from __future__ import annotations

from typing import Any

import click

from dnnlib.cli import (
    Group,
    device_option,
    network_option,
    options,
    precision_option,
    rasterizer_option,
    truncation_options,
)

METRICS_HELP = (
    'Comma-separated, FAMILY[_ESTIMATOR][COUNTS][_full]: fid50k_full, kid50k_full, pr50k3_full, is50k, fid3d50k_full, '
    'ppl50k, aed, apd, apd_no_roll, jaw, gaze, expression_response, id, id_crossview, flicker. _synth uses the '
    'embedded estimators, which need no download: fid_synth2k_full, aed_synth50x4, id_synth100. docs/metrics.md.'
)


# What all measuring commands share; `_measure` reads it.
protocol_options = options(
    click.option('--mirror/--no-mirror', default=None, help='Count mirrored real images too.'),
    click.option(
        '--seed', type=click.IntRange(min=0), default=0, show_default=True, help='Seed of latents, cameras and heads.'
    ),
    truncation_options,
    click.option(
        '--batch',
        type=click.IntRange(min=1),
        default=16,
        show_default=True,
        help='Images at once per rank of an accelerator; a CPU takes 8, so that nothing depends on it.',
    ),
    click.option('--gpus', type=click.IntRange(min=1), default=1, show_default=True, help='Number of ranks.'),
    device_option,
    click.option('--out', help='Append the results with their protocol to this JSON-lines file.'),
    click.option('--name', help='What reports call it. Default: the name of the file.'),
    click.option(
        '--cache-dir',
        help='Where features and downloads are kept. Default: NEXT3D_CACHE_DIR or ~/.cache/next3d.',
    ),
    click.option('--features', help='Feature network of metrics that name none. Default: official Inception.'),
    click.option('--head-estimator', help='Head estimator of metrics that name none. Default: deca.'),
    click.option('--identity', help='Identity network of metrics that name none. Default: arcface.'),
    click.option('--locate', is_flag=True, help='Find faces (MediaPipe) for DECA, ArcFace, ... to crop by.'),
    click.option('--inception', help='Path or URL of the official Inception (TorchScript). Default: its URL.'),
    click.option('--inception-sha256', help='Expected sha256 of --inception, if it is not the official file.'),
    click.option('--head-model', metavar='FILE', help="The user's FLAME file, for datasets of FLAME parameters."),
    rasterizer_option,
)


def _measure(chosen: dict[str, Any], **subject: Any) -> None:
    """Run one evaluation from the options of `protocol_options` and what is measured."""
    from functools import partial

    from applications.evaluation import Evaluation, run_evaluation, split_names
    from metrics.protocol import Protocol
    from torch_utils.devices import choose_device
    from torch_utils.distributed import run

    same = ('seed', 'batch', 'cache_dir', 'inception', 'inception_sha256', 'features', 'identity')
    evaluation = Evaluation(
        metrics=split_names(chosen['metrics']),
        data=chosen['data'],
        mirror=chosen['mirror'],
        name=chosen['name'],
        head_model_path=chosen['head_model'],
        out=chosen['out'],
        locate=chosen['locate'],
        show=click.echo,
        protocol=Protocol(
            **{name: chosen[name] for name in same},
            truncation_psi=chosen['trunc'],
            truncation_cutoff=chosen['trunc_cutoff'],
            head=chosen['head_estimator'],
        ),
        **subject,
    )
    run(partial(run_evaluation, evaluation), choose_device(chosen['device']).type, ranks=chosen['gpus'])


@click.group(cls=Group, invoke_without_command=True)
@network_option(required=False)
@click.option('--data', help='Packed dataset. Default: what the network was trained on.')
@click.option('--metrics', default='fid50k_full', show_default=True, help=METRICS_HELP)
@precision_option
@protocol_options
@click.pass_context
def main(context: click.Context, network: str | None, precision: str, **chosen: Any) -> None:
    """Measure a snapshot and print one line a metric, with its 95 % interval and its floor.

    Camera and head of each generated image come from random dataset items. A result depends on the seed, not on
    the batch size or the number of ranks. What was computed is kept: an interrupted run continues.

    \b
    Examples:
        python calc_metrics.py --network=runs/00000/network-snapshot-000200.pkl --metrics=fid_synth2k_full,aed_synth50x4
        python calc_metrics.py compare --images=their_samples --data=data/ffhq512.zip --metrics=fid50k_full
        python calc_metrics.py report results.jsonl --out=tables.md
    """
    if context.invoked_subcommand is not None:
        if network is not None:
            raise click.UsageError(f'options of {context.invoked_subcommand} go behind its name')
        return
    if network is None:
        raise click.UsageError("--network: missing, the snapshot to measure; or use 'compare' or 'report'")
    _measure(chosen, network=network, precision=precision)


@main.command()
@click.option('--adapter', help='FILE.py:CLASS, your Python around any generator (metrics/adapter.py). It is run.')
@click.option('--images', help='Packed dataset of pictures with labels, or a folder of pictures alone.')
@click.option('--data', help='Packed dataset: real images, and where cameras and heads are drawn from.')
@click.option('--metrics', required=True, help=METRICS_HELP)
@protocol_options
def compare(adapter: str | None, images: str | None, **chosen: Any) -> None:
    """Measure another generator, or a folder of images, by the same code.

    Of a folder, fid, kid, pr and is take the pictures as they are. With dataset.json and head.npz in it
    (dataset_tool.py writes them), its labels are the driving parameters of aed, apd and gaze, and its
    identity_ids make the pairs of id.

    \b
    Examples:
        python calc_metrics.py compare --adapter=mine.py:Mine --data=data/ffhq512.zip --metrics=fid50k_full,aed,id
        python calc_metrics.py compare --images=their.zip --data=data/ffhq512.zip --metrics=fid50k_full,aed
    """
    if (adapter is None) == (images is None):
        raise click.UsageError('--adapter or --images: give one of the two')
    _measure(chosen, adapter=adapter, images=images)


@main.command()
@click.argument('results', nargs=-1, required=True)
@click.option('--out', required=True, help='File to write: .md, .tex or .html.')
@click.option('--table', type=click.Choice(['1', '2', 'both']), default='both', show_default=True, help='Of the paper.')
def report(results: tuple[str, ...], out: str, table: str) -> None:
    """Lay RESULTS (JSON-lines files) out as the paper's Tables 1 and 2, beside its own numbers.

    The paper's rows are marked as quoted. Values of stand-in estimators get columns of their own, named
    after them. The latest of several equal measurements counts.
    """
    from applications.report import write_report

    write_report(results, out, tables=('1', '2') if table == 'both' else (table,))
    click.echo(out)


if __name__ == '__main__':
    main()
