"""Pictures and shapes of a trained generator."""

from __future__ import annotations

from typing import Any

import click

from dnnlib.cli import (
    Command,
    device_option,
    direction_option,
    head_options,
    network_option,
    parse_float_list,
    parse_int_list,
    precision_option,
    rasterizer_option,
    release_options,
    truncation_options,
)


@click.command(cls=Command)
@network_option()
@release_options
@click.option('--outdir', required=True, metavar='DIR', help='Folder for the pictures.')
@click.option('--seeds', help="Like 0,1,4-7. Default: 0-7, or the latent of an avatar's checkpoint.")
@truncation_options
@click.option(
    '--yaws', default='0.4,0,-0.4', show_default=True, help='Camera yaws, radians; + is to the left of the subject.'
)
@click.option('--pitches', default='0', show_default=True, help='Camera pitches, radians; one, or one a yaw.')
@click.option(
    '--fov-deg', type=click.FloatRange(1, 120), help='Field of view as EG3D counts it. Default: 18.837 (focal 4.2647).'
)
@head_options
@direction_option
@click.option(
    '--shapes/--no-shapes', default=False, help='Also write a surface (.ply) and a density grid (.mrc) a seed.'
)
@click.option('--shape-res', type=click.IntRange(min=2), default=128, show_default=True, help='Voxels a side.')
@click.option(
    '--shape-level', type=float, help='sigma of the surface. Default: 10, or mid-range where 10 is not reached.'
)
@device_option
@rasterizer_option
@precision_option
def main(
    network: str,
    topology: str | None,
    eye_mask: str | None,
    outdir: str,
    seeds: str | None,
    trunc: float,
    trunc_cutoff: int | None,
    yaws: str,
    pitches: str,
    fov_deg: float | None,
    directions: tuple[str, ...],
    shapes: bool,
    shape_res: int,
    shape_level: float | None,
    device: str,
    precision: str,
    **head: Any,
) -> None:
    """Draw SEEDS with one head: seed0000.png (its views), and sheet.png with raw image, depth and template.

    \b
    Examples:
        python gen_samples.py --network=SNAPSHOT --outdir=out --seeds=0-7 --trunc=0.7
        python gen_samples.py --network=SNAPSHOT --outdir=out --expression=jawOpen --expression=mouthSmileLeft:0.5
        python gen_samples.py --network=SNAPSHOT --outdir=out --seeds=3 --shapes --shape-res=256
        python gen_samples.py --network=out/avatar/avatar.pkl --outdir=out --expression=jawOpen
        python gen_samples.py --network=next3d_ffhq_512.pkl --obj_path=demo.obj --lms_path=demo_kpt2d.txt --outdir=out
    """
    numbers = parse_int_list('0-7' if seeds is None else seeds, option='--seeds')
    yaw_values = parse_float_list(yaws, option='--yaws')
    pitch_values = parse_float_list(pitches, option='--pitches')

    from applications.directions import direction_shift
    from applications.heads import HeadChoice, choose_head
    from applications.samples import CameraRig, SampleOptions, avatar_latent, view_labels, write_samples
    from torch_utils.devices import choose_device
    from torch_utils.precision import choose_precision
    from training import cameras
    from training.checkpoint import ReleaseAssets, load_generator

    choice = HeadChoice(**head)
    assets = ReleaseAssets(topology=topology, eye_mask=eye_mask)
    chosen = choose_precision(precision, choose_device(device))
    loaded = load_generator(network, device=choose_device(device), assets=assets, precision=chosen)
    focal = cameras.FOCAL if fov_deg is None else cameras.focal_from_fov(fov_deg)
    rig = CameraRig.of(loaded.config, framing=loaded.info.framing, focal=focal)
    latent = None
    if seeds is None and loaded.avatar is not None:
        latent = avatar_latent(loaded, loaded.avatar, truncation_psi=trunc, truncation_cutoff=trunc_cutoff)
    options = SampleOptions(
        seeds=tuple(numbers),
        outdir=outdir,
        labels=view_labels(yaw_values, pitch_values, rig=rig),
        rig=rig,
        truncation_psi=trunc,
        truncation_cutoff=trunc_cutoff,
        shift=direction_shift(directions, loaded.generator),
        shape_resolution=shape_res if shapes else None,
        shape_level=shape_level,
    )
    write_samples(loaded.generator, choose_head(choice, loaded), options, latent=latent, report=click.echo)
    click.echo(f'precision {chosen}')


if __name__ == '__main__':
    main()
