"""Draw docs/images/conventions_*.png: the frames of docs/conventions.md with the embedded head.

python -m tools.draw_conventions
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dnnlib.cli import Command
from dnnlib.files import atomic_write, make_output_folder
from torch_utils.ops import rasterize
from torch_utils.ops.texture_planes import Mirror
from training import cameras
from training.head import load_head_model
from training.head.landmarks import JAW
from training.head.model import HeadInput, HeadTemplate
from training.rasterized_planes import FRONT, LEFT, MIRRORS, RIGHT, TOP, project_consistent
from training.template_rendering import correspondence_colors, render_template, vertex_normals

X, Y, Z, DARK, GREY = (215, 60, 50), (40, 150, 60), (50, 90, 215), (40, 40, 40), (150, 150, 150)
COLOURS = 256


class Page:
    """A white picture on which world points are drawn through a camera (label [1, 25])."""

    def __init__(self, side: int, label: Tensor) -> None:
        self.image = Image.new('RGB', (side, side), 'white')
        self.pen = ImageDraw.Draw(self.image)
        self.side, self.label = side, label

    def at(self, point: Sequence[float]) -> tuple[float, float]:
        seen, _ = cameras.project(torch.tensor([[list(point)]]), self.label)
        return float(seen[0, 0, 0]) * self.side, float(seen[0, 0, 1]) * self.side

    def line(self, start: Sequence[float], end: Sequence[float], colour: tuple, *, width: int = 1) -> None:
        self.pen.line([self.at(start), self.at(end)], fill=colour, width=width)

    def arrow(self, start: Sequence[float], end: Sequence[float], colour: tuple, text: str) -> None:
        arrow(self.pen, self.at(start), self.at(end), colour=colour, text=text)


def arrow(
    pen: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], *, colour: tuple, text: str
) -> None:
    """A line with a head, and its name beyond the tip."""
    along = np.array(end) - np.array(start)
    along = along / max(float(np.hypot(*along)), 1e-6)
    across = np.array([-along[1], along[0]])
    base = np.array(end) - 12 * along
    pen.line([start, tuple(base)], fill=colour, width=3)
    pen.polygon([tuple(end), tuple(base + 5 * across), tuple(base - 5 * across)], fill=colour)
    reach = 6 + 4.5 * len(text) * abs(along[0]) + 8 * abs(along[1])  # half of the text's width or height
    pen.text(tuple(np.array(end) + reach * along), text, fill=colour, font=ImageFont.load_default(15), anchor='mm')


def shaded(template: HeadTemplate, head: HeadInput, label: Tensor, side: int) -> Image.Image:
    """The head lit from the camera, on white."""
    normals = render_template(template, head, label, resolution=2 * side, mode='normals')[0]
    covered = (normals + 1).abs().amax(dim=0) > 1e-6
    shade = 0.25 + 0.7 * (-normals[2]).clamp(min=0)
    picture = torch.where(covered, shade, torch.ones_like(shade))
    picture = torch.nn.functional.avg_pool2d(picture[None, None], 2)[0, 0]
    return Image.fromarray((picture.clamp(0, 1) * 255).byte().numpy()).convert('RGB')


def draw_world(template: HeadTemplate, head: HeadInput) -> Image.Image:
    """Head, box, world axes and the frontal camera, seen from the side."""
    position, target = torch.tensor([[5.2, 2.6, 5.4]]), torch.tensor([[0.0, -0.05, 1.25]])
    view = cameras.pack_label(cameras.look_at(position, target), cameras.intrinsics(focal=1.75))
    page = Page(720, view)
    page.image.paste(shaded(template, head, view, page.side))
    corners = [(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)]
    for a in corners:
        for b in corners:
            if a < b and sum(p != q for p, q in zip(a, b, strict=True)) == 1:
                page.line(a, b, GREY)
    for end, colour, text in (((0.85, 0, 0), X, 'x'), ((0, 0.95, 0), Y, 'y'), ((0, 0, 1.0), Z, 'z')):
        page.arrow((0, 0, 0), end, colour, text)
    eye = (0.0, 0.0, cameras.PIVOT[2] + cameras.RADIUS)
    for end, colour, text in (((0.4, 0, 0), X, 'right'), ((0, -0.45, 0), Y, 'down'), ((0, 0, -0.75), Z, 'forward')):
        page.arrow(eye, [a + b for a, b in zip(eye, end, strict=True)], colour, text)
    for depth in (2.25, 3.3):
        half = depth * 0.5 / cameras.FOCAL
        ring = [(sx * half, sy * half, eye[2] - depth) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1))]
        for a, b in zip(ring, ring[1:], strict=False):
            page.line(a, b, DARK)
    half = 3.3 * 0.5 / cameras.FOCAL
    for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        page.line(eye, (sx * half, sy * half, eye[2] - 3.3), GREY)
    font = ImageFont.load_default(15)
    column, row = page.at(cameras.PIVOT)
    page.pen.ellipse([column - 4, row - 4, column + 4, row + 4], fill=(230, 150, 0))
    for text, place in (
        ("world: x to the subject's left, y up, z out of the face; box of side 1", (14, 14)),
        ('frontal camera at (0, 0, 2.9), looks at the pivot (0, 0, 0.2), orange', (14, 36)),
        ('rays count from depth 2.25 to 3.3 (dark squares)', (14, 58)),
    ):
        page.pen.text(place, text, fill=DARK, font=font)
    return page.image.crop((0, 0, 720, 600))


def draw_image(template: HeadTemplate, head: HeadInput) -> Image.Image:
    """The image frame with the 68 landmarks, and pixel centres of a 4 x 4 image."""
    label = cameras.orbit_camera(torch.tensor([0.3]), torch.tensor([0.1]))
    side, margin = 420, 60
    page = Image.new('RGB', (side + 320 + 2 * margin, side + 2 * margin), 'white')
    page.paste(shaded(template, head, label, side), (margin, margin))
    pen, font, small = ImageDraw.Draw(page), ImageFont.load_default(15), ImageFont.load_default(11)
    pen.rectangle([margin, margin, margin + side, margin + side], outline=DARK)
    seen, _ = cameras.project(cameras.head_to_world(head.landmarks), label)
    for index, (column, row) in enumerate((seen[0] * side + margin).tolist()):
        pen.ellipse([column - 2, row - 2, column + 2, row + 2], fill=X if index >= len(JAW) else Z)
        if index in (0, 8, 16, 26, 30, 45, 54):
            pen.text((column + 4, row - 12), str(index), fill=DARK, font=small)
    arrow(pen, (margin, margin - 14), (margin + 150, margin - 14), colour=X, text='column')
    arrow(pen, (margin - 14, margin), (margin - 14, margin + 150), colour=Y, text='row')
    centre = margin + side / 2
    pen.line([centre - 8, centre, centre + 8, centre], fill=(230, 150, 0), width=2)
    pen.line([centre, centre - 8, centre, centre + 8], fill=(230, 150, 0), width=2)
    pen.text((margin - 4, margin - 40), '(0, 0)', fill=DARK, font=font)
    pen.text((margin + side - 30, margin + side + 8), '(1, 1)', fill=DARK, font=font)
    pen.text((margin, margin + side + 8), 'camera yaw 0.3, pitch 0.1; centre (0.5, 0.5) orange', fill=DARK, font=font)
    left, top, cell = margin + side + 90, margin + 40, 60
    for i in range(4):
        for j in range(4):
            x, y = left + j * cell, top + i * cell
            pen.rectangle([x, y, x + cell, y + cell], outline=GREY)
            pen.ellipse([x + cell / 2 - 2, y + cell / 2 - 2, x + cell / 2 + 2, y + cell / 2 + 2], fill=X)
        pen.text((left + (i + 0.5) * cell, top - 10), f'{(i + 0.5) / 4:g}', fill=DARK, font=small, anchor='mm')
        pen.text((left - 22, top + (i + 0.5) * cell), f'{(i + 0.5) / 4:g}', fill=DARK, font=small, anchor='mm')
    pen.text((left - 20, top + 4 * cell + 14), 'pixel i of R = 4: centre (i + 0.5) / R', fill=DARK, font=font)
    pen.text((left - 20, top + 4 * cell + 36), "the subject's right is on the left", fill=DARK, font=font)
    return page


def orthographic(template: HeadTemplate, head: HeadInput, side: int) -> list[Tensor]:
    """The four views as they are rasterized, [side, side, 3] in [0, 1]; first rows are low coordinates."""
    projected = project_consistent(head.vertices, 1.0)[:, 0]
    order = [0, 2, 1]
    fragments = rasterize.rasterize(projected, template.faces[:, order].contiguous(), height=side, width=side)
    normals = vertex_normals(head.vertices, template.faces)[0]
    paint = (correspondence_colors(template) + 1) / 2
    toward = {FRONT: (0, 0, 1.0), LEFT: (1.0, 0, 0), RIGHT: (-1.0, 0, 0), TOP: (0, 1.0, 0)}
    shades = torch.stack([0.35 + 0.65 * (normals @ torch.tensor(toward[view])).clamp(min=0) for view in range(4)])
    attributes = (paint * shades[..., None])[:, template.faces[:, order]]
    colours = rasterize.interpolate(fragments, attributes)
    return list(torch.where((fragments.face_ids >= 0)[..., None], colours, torch.ones(3)))


def draw_planes(template: HeadTemplate, head: HeadInput) -> Image.Image:
    """Above: the four views upright, as an onlooker sees them. Below: the three planes as they are stored."""
    side, gap, margin = 190, 40, 40
    views = orthographic(template, head, side)
    page = Image.new('RGB', (4 * side + 3 * gap + 2 * margin, 2 * side + 140), 'white')
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(14)

    def put(picture: Tensor, place: tuple[int, int], title: str, across: str, along: str, *, up: bool) -> None:
        x, y = place
        page.paste(Image.fromarray((picture.clamp(0, 1) * 255).byte().numpy()), place)
        pen.rectangle([x, y, x + side, y + side], outline=DARK)
        pen.text((x, y - 20), title, fill=DARK, font=font)
        corner, tip = (y + side - 8, y + side - 58) if up else (y + 8, y + 58)
        colours = {'x': X, 'y': Y, 'z': Z}
        arrow(pen, (x + 8, corner), (x + 58, corner), colour=colours[across[-1]], text=across)
        arrow(pen, (x + 8, corner), (x + 8, tip), colour=colours[along[-1]], text=along)

    upper = (
        (FRONT, 'front', 'x', 'y'),
        (LEFT, "left (subject's)", '-z', 'y'),
        (RIGHT, 'right', 'z', 'y'),
        (TOP, 'top', 'x', '-z'),
    )
    for k, (view, title, across, along) in enumerate(upper):
        put(views[view].flip(0), (margin + k * (side + gap), 50), title, across, along, up=True)
    sides = torch.minimum(_turned(views[LEFT], MIRRORS['consistent'][LEFT]), views[RIGHT])
    lower = (
        (views[FRONT], 'slot 0: (x, y)', 'x', 'y'),
        (_turned(views[TOP], MIRRORS['consistent'][TOP]), 'slot 1: (x, z)', 'x', 'z'),
        (sides, 'slot 2: (z, y), both sides', 'z', 'y'),
    )
    for k, (picture, title, across, along) in enumerate(lower):
        put(picture, (margin + k * (side + gap), side + 120), title, across, along, up=False)
    pen.text((margin, 10), 'views, upright; arrows: growing world coordinates', fill=DARK, font=font)
    pen.text((margin, side + 76), 'planes, row 0 first as stored: rows grow with the coordinate', fill=DARK, font=font)
    return page


def _turned(picture: Tensor, mirror: Mirror) -> Tensor:
    return picture.flip({Mirror.COLUMNS: 1, Mirror.ROWS: 0}[mirror]) if mirror != Mirror.NONE else picture


@click.command(cls=Command)
@click.option('--outdir', type=click.Path(path_type=Path), default=Path('docs/images'), show_default=True)
def main(outdir: Path) -> None:
    """Write conventions_world.png, conventions_image.png and conventions_planes.png."""
    model = load_head_model('makehuman')
    with torch.no_grad():
        head = model.forward(model.named_expression('jawOpen', 0.2))
    folder = make_output_folder(outdir)
    for name, draw in (('world', draw_world), ('image', draw_image), ('planes', draw_planes)):
        path = folder / f'conventions_{name}.png'
        page = draw(model.template, head)
        with atomic_write(path) as handle:
            page.quantize(COLOURS, dither=Image.Dither.NONE).save(handle, format='PNG', optimize=True)
        click.echo(f'{path}: {path.stat().st_size} bytes')


if __name__ == '__main__':
    main()
