"""Heads of a trained generator as meshes for other programs: OBJ, PLY, GLB, also animated."""

from __future__ import annotations

from typing import Any

import click

from dnnlib.cli import (
    Command,
    device_option,
    head_options,
    network_option,
    parse_int_list,
    precision_option,
    rasterizer_option,
    release_options,
    truncation_options,
)


@click.command(cls=Command)
@network_option()
@release_options
@click.option('--output', 'outputs', required=True, multiple=True, help='An .obj, .ply or .glb; repeat for several.')
@click.option('--seeds', help="Like 0,1,4-7: a file each. Default: 0, or the latent of an avatar's checkpoint.")
@click.option('--latent', help='Instead: ws from an .npy, or from an .npz like the pivot.npz of an avatar.')
@truncation_options
@head_options
@click.option('--drive', help='An animated .glb: a video, an .npz, a dataset, or talk, blink, gaze, turn, all.')
@click.option('--frames', type=click.IntRange(min=1), help="Of the animation. Default: the driver's, or 120.")
@click.option('--fps', type=click.FloatRange(min=1), help="Default: a driving video's own, else 30.")
@click.option('--landmarker', help="MediaPipe's face_landmarker.task, for a video. Default: looked for.")
@click.option('--template', is_flag=True, help='The head mesh with baked colours; expressions become morph targets.')
@click.option(
    '--texture-size', type=click.IntRange(8, 4096), default=512, show_default=True, help='Side of its picture, texels.'
)
@click.option('--resolution', type=click.IntRange(4, 1024), default=128, show_default=True, help='Voxels a side.')
@click.option('--level', type=float, help='sigma of the surface. Default: 10, or mid-range where 10 is not reached.')
@click.option('--faces', type=click.IntRange(min=4), help='At most so many. Default: all of marching cubes.')
@click.option(
    '--cut',
    type=click.FloatRange(min=0, min_open=True),
    metavar='METRES',
    help='Remove what is farther than this from the head mesh. Default: nothing.',
)
@click.option('--all-parts', is_flag=True, help='Keep every connected part. Default: the largest.')
@device_option
@rasterizer_option
@precision_option
def main(
    network: str,
    topology: str | None,
    eye_mask: str | None,
    outputs: tuple[str, ...],
    seeds: str | None,
    latent: str | None,
    trunc: float,
    trunc_cutoff: int | None,
    drive: str | None,
    frames: int | None,
    fps: float | None,
    landmarker: str | None,
    template: bool,
    texture_size: int,
    resolution: int,
    level: float | None,
    faces: int | None,
    cut: float | None,
    all_parts: bool,
    device: str,
    precision: str,
    **head: Any,
) -> None:
    """Write coloured meshes in metres (y up, the face towards +z) of seeds, a latent or an avatar.

    \b
    Examples:
        python export_mesh.py --network=SNAPSHOT --seeds=3 --faces=20000 --output=head.obj --output=head.glb
        python export_mesh.py --network=out/avatar/avatar.pkl --output=me.glb --expression=jawOpen
        python export_mesh.py --network=out/avatar/avatar.pkl --output=rig.glb --template
        python export_mesh.py --network=SNAPSHOT --output=talk.glb --drive=talk --frames=24 --fps=8 --faces=8000
    """
    numbers = parse_int_list('0' if seeds is None else seeds, option='--seeds')

    from applications.heads import HeadChoice
    from applications.mesh_export import ExportOptions, export_meshes, pose
    from applications.reenactment import DriverOptions
    from applications.surfaces import SurfaceOptions
    from applications.tracking import TrackOptions
    from torch_utils.devices import choose_device
    from torch_utils.precision import choose_precision
    from training.checkpoint import ReleaseAssets, load_generator

    options = ExportOptions(
        outputs=outputs,
        seeds=tuple(numbers),
        own_latent=seeds is None,
        latent=latent,
        truncation_psi=trunc,
        truncation_cutoff=trunc_cutoff,
        surface=SurfaceOptions(resolution=resolution, level=level, faces=faces, cut=cut, all_parts=all_parts),
        template=template,
        texture_size=texture_size,
    )
    options.check(animated=drive is not None)
    choice = HeadChoice(**head)
    driver = None
    if drive is not None:
        driver = DriverOptions(source=drive, frames=frames, fps=fps, track=TrackOptions(landmarker=landmarker))
    assets = ReleaseAssets(topology=topology, eye_mask=eye_mask)
    chosen = choose_precision(precision, choose_device(device))
    loaded = load_generator(network, device=choose_device(device), assets=assets, precision=chosen)
    posed = pose(loaded, choice, driver=driver, animatable=template, beside=outputs[0], report=click.echo)
    export_meshes(loaded, posed, options, report=click.echo)


if __name__ == '__main__':
    main()
