"""Tools for latents: interpolation, style mixing, truncation, directions, blends of avatars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dnnlib import UserError
from dnnlib.cli import (
    Group,
    device_option,
    head_model_option,
    network_option,
    options,
    parse_float_list,
    parse_int_list,
    precision_option,
    rasterizer_option,
    truncation_options,
)

POSITIVE = click.IntRange(min=1)


@click.group(cls=Group)
def main() -> None:
    """Look at a network's latents; every command writes a sheet of pictures into --outdir.

    Among seeds, avatar stands for the own latent of a checkpoint of project_avatar.py.

    \b
    Examples:
        python latents.py interpolate --network=SNAPSHOT --seeds=0,5,9 --outdir=out
        python latents.py mix --network=SNAPSHOT --rows=0-3 --columns=4-7 --take=texture --outdir=out
        python latents.py truncate --network=SNAPSHOT --seeds=0-3 --outdir=out
        python latents.py directions --network=SNAPSHOT --part=texture --outdir=out
        python latents.py blend --avatar=out/me/avatar.pkl --avatar=out/you/avatar.pkl --outdir=out/us
        python gen_samples.py --network=SNAPSHOT --direction=out/directions.npz:0:2 --outdir=out
    """


# What all commands take: head, camera, truncation, device.
view_options = options(
    click.option('--outdir', required=True, metavar='DIR', help='Folder for the sheet.'),
    truncation_options,
    click.option('--yaw', default=0.0, show_default=True, help='Camera yaw, radians.'),
    click.option('--pitch', default=0.0, show_default=True, help='Camera pitch, radians.'),
    click.option('--expression', 'expressions', multiple=True, help='NAME or NAME:WEIGHT, added; may be repeated.'),
    head_model_option,
    device_option,
    rasterizer_option,
    precision_option,
)
shared_options = options(network_option(), view_options)


@main.command()
@click.option('--seeds', default='0-2', show_default=True, help='Two or more, like 0,3,5-8 or avatar,3.')
@click.option('--steps', type=click.IntRange(min=2), default=7, show_default=True, help='Pictures a row.')
@click.option(
    '--space', type=click.Choice(['w', 'z']), default='w', show_default=True, help='w: line; z: great circle.'
)
@shared_options
def interpolate(seeds: str, steps: int, space: str, **shared: Any) -> None:
    """interpolate.png: from one seed to the next."""
    numbers = _people(seeds, option='--seeds')
    if len(numbers) < 2:
        raise UserError(f'--seeds: interpolation needs 2 or more, got {len(numbers)}')
    view = _open(shared)

    from applications.latent_sheets import interpolation_sheet
    from dnnlib.files import output_folder

    with output_folder(shared['outdir']) as folder:
        _save(folder / 'interpolate.png', interpolation_sheet(view, numbers, steps=steps, space=space))


@main.command()
@click.option('--rows', default='0-3', show_default=True, help='Seeds that are changed.')
@click.option('--columns', default='4-7', show_default=True, help='Seeds whose codes are taken.')
@click.option(
    '--take',
    type=click.Choice(['texture', 'static', 'all']),
    default='texture',
    show_default=True,
    help='Half of ws to take: of the face texture, or of static planes, mouth and super-resolution; or both.',
)
@click.option('--layers', help='Rows of that half to take, like 0-4 (coarse). Default: all.')
@shared_options
def mix(rows: str, columns: str, take: str, layers: str | None, **shared: Any) -> None:
    """mix.png: each row's seed with codes of each column's seed."""
    changed, taken = _people(rows, option='--rows'), _people(columns, option='--columns')
    numbers = _layers(layers)
    view = _open(shared)

    from applications.directions import part_rows
    from applications.latent_sheets import mixing_sheet
    from dnnlib.files import output_folder

    mask = part_rows(view.generator, take, numbers)
    with output_folder(shared['outdir']) as folder:
        _save(folder / 'mix.png', mixing_sheet(view, changed, taken, taken=mask))


@main.command()
@click.option('--seeds', default='0-3', show_default=True, help='A row each.')
@click.option('--psis', default='0,0.3,0.5,0.7,0.85,1', show_default=True, help='A column each.')
@shared_options
def truncate(seeds: str, psis: str, **shared: Any) -> None:
    """truncate.png: seeds pulled towards the mean latent; --trunc is not used."""
    numbers, values = _people(seeds, option='--seeds'), parse_float_list(psis, option='--psis')
    view = _open(shared)

    from applications.latent_sheets import truncation_sheet
    from dnnlib.files import output_folder

    with output_folder(shared['outdir']) as folder:
        _save(folder / 'truncate.png', truncation_sheet(view, numbers, values))


@main.command()
@click.option(
    '--method',
    type=click.Choice(['sefa', 'pca']),
    default='sefa',
    show_default=True,
    help='Weights, or random latents.',
)
@click.option(
    '--part',
    type=click.Choice(['all', 'texture', 'static', 'teeth', 'superres']),
    default='all',
    show_default=True,
    help='Network whose weights are looked at (sefa), and whose half of ws is moved.',
)
@click.option('--layers', help='Rows of that half, like 0-4 (coarse). Default: all.')
@click.option('--count', type=POSITIVE, default=6, show_default=True, help='Number of directions.')
@click.option('--seed', help="Who is shown in the sheet. Default: 0, or an avatar's own latent.")
@click.option('--sigmas', type=click.FloatRange(min=0, min_open=True), default=3.0, show_default=True)
@click.option('--steps', type=click.IntRange(min=2), default=5, show_default=True, help='Pictures a direction.')
@shared_options
def directions(
    method: str, part: str, layers: str | None, count: int, seed: str | None, sigmas: float, steps: int, **shared: Any
) -> None:
    """directions.npz, for --direction of gen_samples.py and gen_videos.py, and directions.png."""
    numbers = _layers(layers)
    shown = None if seed is None else _people(seed, option='--seed')[:1]
    view = _open(shared)

    from applications.directions import find_directions, save_directions
    from applications.latent_sheets import direction_sheet
    from dnnlib.files import output_folder

    start = view.people(shown or [0 if view.own is None else None])
    with output_folder(shared['outdir']) as folder:
        found = find_directions(view.generator, method=method, part=part, layers=numbers, count=count, rig=view.rig)
        save_directions(folder / 'directions.npz', found)
        click.echo(f'{folder / "directions.npz"}: {len(found.vectors)} directions of {part} by {method}')
        _save(folder / 'directions.png', direction_sheet(view, start, found, sigmas=sigmas, steps=steps))


@main.command()
@click.option('--avatar', 'avatars', multiple=True, required=True, metavar='PKL', help='Of one network; two or more.')
@click.option('--steps', type=click.IntRange(min=2), default=7, show_default=True, help='Pictures a row.')
@click.option('--shares', metavar='X,Y,...', help='Also write avatar.pkl, with so much of each avatar.')
@view_options
def blend(avatars: tuple[str, ...], steps: int, shares: str | None, **shared: Any) -> None:
    """blend.png: from one avatar to the next: weights, latents and heads of project_avatar.py's checkpoints."""
    values = None if shares is None else parse_float_list(shares, option='--shares')

    from applications import avatar_blend, images
    from dnnlib.files import output_folder
    from training.checkpoint import open_generator, save_snapshot

    files = avatar_blend.read_avatars(avatars)
    parts = None if values is None else avatar_blend.normalized(values, count=len(files))
    device, precision = _numerics(shared)
    with output_folder(shared['outdir']) as folder:
        target = folder / 'avatar.pkl'
        avatar_blend.check_target(target, files if parts else [])
        cells = []
        for between in avatar_blend.steps_between(len(files), steps=steps):
            person = avatar_blend.blend(files, between)
            view = _view(open_generator(person, where=avatars[0], device=device, precision=precision), shared)
            cells += view.cells(view.people([None]))
        if parts is not None:
            save_snapshot(target, avatar_blend.blend(files, parts))
            click.echo(str(target))
        _save(folder / 'blend.png', images.grid(cells, steps))


def _people(text: str, *, option: str) -> list[int | None]:
    """'0,3,5-8' with seeds, or 'avatar' (None) for a checkpoint's own latent."""
    people: list[int | None] = []
    for part in text.split(','):
        people += [None] if part.strip() == 'avatar' else parse_int_list(part, option=option)
    return people


def _layers(text: str | None) -> list[int] | None:
    return None if text is None else parse_int_list(text, option='--layers')


def _numerics(shared: dict[str, Any]) -> tuple[Any, Any]:
    """Device and Precision of the shared options."""
    from torch_utils.devices import choose_device
    from torch_utils.precision import choose_precision

    device = choose_device(shared['device'])
    return device, choose_precision(shared['precision'], device)


def _open(shared: dict[str, Any]) -> Any:
    """The View of --network and the shared options."""
    from training.checkpoint import load_generator

    device, precision = _numerics(shared)
    return _view(load_generator(shared['network'], device=device, precision=precision), shared)


def _view(loaded: Any, shared: dict[str, Any]) -> Any:
    """The View of a network and the shared options."""
    import torch

    from applications.heads import HeadChoice, choose_head
    from applications.latent_sheets import View
    from applications.samples import CameraRig

    head = choose_head(HeadChoice(expressions=shared['expressions'], head_model_path=shared['head_model']), loaded)
    rig = CameraRig.of(loaded.config, framing=loaded.info.framing)
    return View(
        generator=loaded.generator,
        head=head,
        label=rig.labels(torch.tensor([shared['yaw']]), torch.tensor([shared['pitch']])),
        rig=rig,
        own=None if loaded.avatar is None else loaded.avatar.ws,
        truncation_psi=shared['trunc'],
        truncation_cutoff=shared['trunc_cutoff'],
    )


def _save(path: Path, sheet: Any) -> None:
    from applications.images import save_png

    save_png(path, sheet)
    click.echo(str(path))


if __name__ == '__main__':
    main()
