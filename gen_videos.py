"""Videos of a trained generator: camera orbits, latent interpolation, driven expressions."""

from __future__ import annotations

import re

import click

from dnnlib import UserError
from dnnlib.cli import (
    Command,
    device_option,
    direction_option,
    head_model_option,
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
@click.option('--output', required=True, help='The .mp4 to write.')
@click.option(
    '--seeds',
    help="Like 0,1,4-7: one a cell, or with interpolation several. Default: 0, or an avatar's own latent.",
)
@click.option('--grid', help='Cells as WxH. Default: one row with all seeds, or one cell with interpolation.')
@click.option(
    '--frames', type=click.IntRange(min=1), help="Of a driving video the first so many. Default: the driver's, or 120."
)
@click.option('--fps', type=click.FloatRange(min=1), help="Default: a driving video's own, else 30.")
@click.option('--motion', help='orbit, interpolate, orbit+interpolate, still. Default: still for a video, else orbit.')
@click.option('--drive', help='Who drives: a video, an .npz of HeadParams, a dataset, or talk, blink, gaze, turn, all.')
@click.option('--transfer', type=click.Choice(['relative', 'absolute']), help='Default: relative for tracked drivers.')
@click.option('--neutral-frame', type=click.IntRange(min=0), help="The driver's frame at rest. Default: found.")
@click.option('--drive-camera', is_flag=True, help="The camera follows the driver's head instead of the neck.")
@click.option(
    '--neck-share',
    type=float,
    help="Share of a tracked head's rotation that the neck makes. Default: 1, or 0 with --drive-camera.",
)
@click.option('--save-params', metavar='NPZ', help='Keep the tracking of a video here; used again if it is there.')
@click.option('--landmarker', help="MediaPipe's face_landmarker.task, for a video. Default: looked for.")
@click.option('--workers', type=click.IntRange(min=0), default=0, show_default=True, help='Processes that track.')
@click.option('--drive-items', help='Dataset items that are the key poses, like 0,3,5-8. Default: the first 8.')
@click.option(
    '--head-identity',
    help="Head shape from DATASET[:ITEM] or FILE.npz[:ROW]. Default: an avatar's own, else the neutral one.",
)
@click.option('--obj_path', '--obj-path', help='Undriven head from an OBJ of the same topology (head frame, metres).')
@click.option('--lms_path', '--lms-path', help='Its 68 x 3 landmarks (.npy or text). Default: computed from the mesh.')
@head_model_option
@truncation_options
@direction_option
@click.option('--with-driver', is_flag=True, help="Show the driving video's frames beside the grid.")
@click.option('--with-template', is_flag=True, help='Show the driven template mesh beside the grid.')
@click.option(
    '--scale', type=click.IntRange(min=1), help='Enlarge cells by this factor. Default: to 256 pixels or more.'
)
@click.option('--crf', type=click.IntRange(0, 51), default=18, show_default=True, help='H.264: 0 lossless, 51 worst.')
@device_option
@rasterizer_option
@precision_option
def main(
    network: str,
    topology: str | None,
    eye_mask: str | None,
    output: str,
    seeds: str | None,
    grid: str | None,
    frames: int | None,
    fps: float | None,
    motion: str | None,
    drive: str | None,
    transfer: str | None,
    neutral_frame: int | None,
    drive_camera: bool,
    neck_share: float | None,
    save_params: str | None,
    landmarker: str | None,
    workers: int,
    drive_items: str | None,
    head_identity: str | None,
    obj_path: str | None,
    lms_path: str | None,
    head_model: str | None,
    trunc: float,
    trunc_cutoff: int | None,
    directions: tuple[str, ...],
    with_driver: bool,
    with_template: bool,
    scale: int | None,
    crf: int,
    device: str,
    precision: str,
) -> None:
    """Write an mp4. A driver gives expression, jaw, neck and eyes (a video also sound); its identity stays its own.

    \b
    Examples:
        python gen_videos.py --network=SNAPSHOT --output=orbit.mp4 --seeds=0-3 --grid=2x2
        python gen_videos.py --network=SNAPSHOT --output=talk.mp4 --seeds=5 --drive=talk --frames=240
        python gen_videos.py --network=out/avatar/avatar.pkl --output=me.mp4 --drive=talk
        python gen_videos.py --network=out/avatar/avatar.pkl --output=me.mp4 --drive=talk.mp4 --with-driver
        python gen_videos.py --network=SNAPSHOT --output=walk.mp4 --seeds=0-5 --motion=orbit+interpolate
    """
    numbers = parse_int_list('0' if seeds is None else seeds, option='--seeds')
    items = parse_int_list(drive_items, option='--drive-items') if drive_items else None
    known = None if motion is None else tuple(motion.split('+'))
    if known and (set(known) - {'orbit', 'interpolate', 'still'} or ('still' in known and len(known) > 1)):
        raise UserError(f'--motion: expected orbit, interpolate, orbit+interpolate or still, got {motion!r}')
    columns, rows = _grid_size(grid, 1 if known and 'interpolate' in known else len(numbers))

    from applications.reenactment import DriverOptions, TransferOptions, is_video
    from applications.tracking import TrackOptions
    from applications.videos import VideoOptions, make_video
    from torch_utils.devices import choose_device
    from torch_utils.precision import choose_precision
    from training.checkpoint import ReleaseAssets, load_generator

    driver = None
    if drive is not None:
        driver = DriverOptions(
            source=drive,
            items=None if items is None else tuple(items),
            frames=frames,
            fps=fps,
            transfer=TransferOptions(
                transfer=transfer, neutral_frame=neutral_frame, camera=drive_camera, neck_share=neck_share
            ),
            track=TrackOptions(landmarker=landmarker, workers=workers, kept=save_params),
        )
    motions = known or (('still',) if drive is not None and is_video(drive) else ('orbit',))
    options = VideoOptions(
        seeds=tuple(numbers),
        own_latent=seeds is None,
        output=output,
        columns=columns,
        rows=rows,
        frames=frames,
        fps=fps,
        motions=motions,
        driver=driver,
        head_identity=head_identity,
        obj_path=obj_path,
        lms_path=lms_path,
        head_model_path=head_model,
        truncation_psi=trunc,
        truncation_cutoff=trunc_cutoff,
        directions=directions,
        with_driver=with_driver,
        with_template=with_template,
        scale=scale,
        crf=crf,
    )
    assets = ReleaseAssets(topology=topology, eye_mask=eye_mask)
    chosen = choose_precision(precision, choose_device(device))
    loaded = load_generator(network, device=choose_device(device), assets=assets, precision=chosen)
    count = make_video(loaded, options, progress=_show_progress, report=click.echo)
    click.echo(f'{output}: {count} frames, precision {chosen}')


def _grid_size(grid: str | None, cells: int) -> tuple[int, int]:
    if grid is None:
        return cells, 1
    match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', grid)
    if match is None:
        raise UserError(f'--grid: expected WxH like 4x2, got {grid!r}')
    return int(match[1]), int(match[2])


def _show_progress(done: int, total: int) -> None:
    if done % 10 == 0 or done == total:
        click.echo(f'\rframe {done}/{total}', nl=done == total, err=True)


if __name__ == '__main__':
    main()
