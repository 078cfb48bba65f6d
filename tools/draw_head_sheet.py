"""Draw the embedded head in its expressions and poses from four views. Run by hand: python -m tools.draw_head_sheet."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dnnlib.cli import Command
from dnnlib.files import atomic_write, make_output_folder
from torch_utils.ops import rasterize
from training.head.makehuman import MakeHumanHead, embedded_head
from training.head.model import HeadParams

VIEWS = (0.0, -40.0, -90.0, 40.0)  # degrees about y: front, the subject's left, left profile, the subject's right
SPAN = 0.27  # metres across a cell
MIDDLE = (0.0, 0.008, -0.03)
COLOURS = 96  # of a sheet's palette
SKIN, SCALP, LIPS = (0.86, 0.66, 0.56), (0.72, 0.55, 0.47), (0.76, 0.38, 0.36)
SCLERA, IRIS, PUPIL = (0.95, 0.95, 0.93), (0.30, 0.42, 0.50), (0.05, 0.05, 0.05)
PART_COLOURS = {'teeth_upper': (0.95, 0.93, 0.86), 'teeth_lower': (0.93, 0.91, 0.84), 'tongue': (0.75, 0.35, 0.36)}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One drawing: a label and the head to draw."""

    label: str
    params: HeadParams
    yaw: float


def vertex_colours(head: MakeHumanHead) -> Tensor:
    """[V + parts, 3]: skin, lips, scalp, eyes by their masks; then the parts."""
    masks = head.vertex_masks
    colours = torch.tensor(SKIN).repeat(head.template.num_vertices, 1)
    for mask, colour in ((masks['hair'], SCALP), (masks['lips'], LIPS)):
        colours = colours + mask[:, None] * (torch.tensor(colour) - colours)
    eyes = head.template.faces[head.regions['eyes']].unique()
    colours[eyes] = torch.tensor(SCLERA)
    for centre, *border in head.gaze_vertices.tolist():
        points = head.template.vertices
        radius = (points[border] - points[centre]).norm(dim=1).mean()
        distance = (points[eyes] - points[centre]).norm(dim=1)
        colours[eyes[distance < 1.01 * radius]] = torch.tensor(IRIS)
        colours[eyes[distance < 0.45 * radius]] = torch.tensor(PUPIL)
    parts = [torch.tensor(PART_COLOURS[name]).repeat(size, 1) for name, size in part_sizes(head).items()]
    return torch.cat([colours, *parts])


def part_sizes(head: MakeHumanHead) -> dict[str, int]:
    return {name: int(part.faces.max()) + 1 for name, part in head.parts.items()}


def all_faces(head: MakeHumanHead) -> Tensor:
    """Triangles of template and parts over their concatenated vertices."""
    faces, start = [head.template.faces], head.template.num_vertices
    for name, size in part_sizes(head).items():
        faces.append(head.parts[name].faces + start)
        start += size
    return torch.cat(faces)


def draw(head: MakeHumanHead, cells: list[Cell], *, size: int) -> np.ndarray:
    """uint8 images [N, size, size, 3], shaded from above the viewer's left, drawn at twice the size."""
    params = HeadParams.cat([cell.params for cell in cells])
    vertices = torch.cat([head.forward(params).vertices, *head.forward_parts(params).values()], dim=1)
    faces, colours = all_faces(head), vertex_colours(head)
    corners = vertices[:, faces]
    normals = torch.zeros_like(vertices)
    face_normals = torch.linalg.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0])
    for k in range(3):
        normals.index_add_(1, faces[:, k], face_normals)
    normals = torch.nn.functional.normalize(normals, dim=2)
    angle = torch.tensor([math.radians(cell.yaw) for cell in cells])
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack([c, zero, s, zero, one, zero, -s, zero, c], dim=1).reshape(-1, 3, 3)
    seen = (vertices - torch.tensor(MIDDLE)) @ turn.mT * (2 / SPAN) * torch.tensor([1.0, -1.0, -1.0])
    fragments = rasterize.rasterize(seen, faces, height=2 * size, width=2 * size)
    attributes = torch.cat([(normals @ turn.mT)[:, faces], colours[faces].expand(len(cells), -1, -1, -1)], dim=3)
    pixels = rasterize.interpolate(fragments, attributes)
    normal = torch.nn.functional.normalize(pixels[..., :3], dim=3)
    light = torch.nn.functional.normalize(torch.tensor([-0.35, 0.5, 0.8]), dim=0)
    shade = 0.3 + 0.75 * (normal @ light).clamp(min=0)
    image = torch.where(fragments.face_ids[..., None] >= 0, pixels[..., 3:] * shade[..., None], torch.tensor(0.16))
    image = torch.nn.functional.avg_pool2d(image.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    return (image.clamp(0, 1) * 255).round().byte().numpy()


def sheet(head: MakeHumanHead, cells: list[Cell], *, size: int, columns: int) -> Image.Image:
    """Cells row by row; a label stands in the first cell that has it."""
    rows = -(-len(cells) // columns)
    page = Image.new('RGB', (columns * size, rows * size), (41, 41, 41))
    pen = ImageDraw.Draw(page)
    for start in range(0, len(cells), 8):
        for k, image in enumerate(draw(head, cells[start : start + 8], size=size)):
            column, row = (start + k) % columns, (start + k) // columns
            page.paste(Image.fromarray(image), (column * size, row * size))
            if cells[start + k].label:
                pen.text((column * size + 3, row * size + 2), cells[start + k].label, fill=(255, 255, 255))
    return page


def four_views(label: str, params: HeadParams) -> list[Cell]:
    return [Cell(label if k == 0 else '', params, yaw) for k, yaw in enumerate(VIEWS)]


def pose_cells(head: MakeHumanHead) -> list[Cell]:
    """Neutral, jaw, gaze and neck, four views each."""
    cells = four_views('neutral', head.neutral())
    for label, field, column, value in (
        ('jaw x +0.2', 'jaw', 0, 0.2), ('jaw x +0.4', 'jaw', 0, 0.4), ('jaw y +0.12', 'jaw', 1, 0.12),
        ('neck x +0.35', 'neck', 0, 0.35), ('neck x -0.35', 'neck', 0, -0.35), ('neck y +0.6', 'neck', 1, 0.6),
        ('neck z +0.35', 'neck', 2, 0.35), ('rotation y -0.5', 'rotation', 1, -0.5),
    ):  # fmt: skip
        params = head.neutral()
        getattr(params, field)[0, column] = value
        cells += four_views(label, params)
    for label, column, value in (('gaze x +0.4', 0, 0.4), ('gaze x -0.4', 0, -0.4), ('gaze y +0.5', 1, 0.5)):
        params = head.neutral()
        params.eyes[0, [column, column + 3]] = value
        cells += four_views(label, params)
    return cells


def identity_cells(head: MakeHumanHead, count: int) -> list[Cell]:
    rng = torch.Generator().manual_seed(0)
    drawn = torch.randn(count, head.num_identity, generator=rng)
    cells = [
        cell for i in range(count) for cell in four_views(f'{i}', head.neutral().replace(identity=drawn[i : i + 1]))
    ]
    return cells


def uv_sheet(head: MakeHumanHead, size: int) -> Image.Image:
    """The uv chart, coloured by region, with the landmarks, beside the eye mask."""
    palette = {
        'face': (225, 190, 170), 'scalp': (150, 130, 112), 'ears': (228, 150, 150), 'neck': (165, 182, 215),
        'eyes': (245, 245, 245), 'lips': (215, 80, 90), 'eyelids': (180, 120, 190), 'brows': (95, 75, 55),
    }  # fmt: skip
    template = head.template
    colours = np.zeros((len(template.faces), 3), dtype=int)
    for name in palette:
        colours[head.regions[name].numpy()] = palette[name]
    page = Image.new('RGB', (2 * size, size), (41, 41, 41))
    pen = ImageDraw.Draw(page)
    points = template.uv.numpy() * [size, -size] + [0, size]
    for triangle, colour in zip(template.uv_faces.numpy(), colours, strict=True):
        pen.polygon([tuple(p) for p in points[triangle]], fill=tuple(colour), outline=(90, 90, 90))
    for u, v in (head.landmark_uv.numpy() * [size, -size] + [0, size]).tolist():
        pen.ellipse([u - 3, v - 3, u + 3, v + 3], fill=(20, 60, 220))
    mask = Image.fromarray((template.eye_mask.numpy() * 255).astype(np.uint8))
    page.paste(mask.resize((size, size), Image.Resampling.NEAREST), (size, 0))
    return page


@click.command(cls=Command)
@click.option('--outdir', type=click.Path(path_type=Path), default=Path('docs/images'), show_default=True)
@click.option('--size', type=click.IntRange(32, 512), default=120, show_default=True, help='Pixels across a cell.')
def main(outdir: Path, size: int) -> None:
    """Write head_expressions_1.png, head_expressions_2.png, head_poses.png, head_identities.png and head_uv.png."""
    head = embedded_head()
    folder = make_output_folder(outdir)
    half = len(head.expression_names) // 2
    pages = {}
    for part, names in enumerate((head.expression_names[:half], head.expression_names[half:]), start=1):
        cells = [cell for name in names for cell in four_views(name, head.named_expression(name))]
        pages[f'head_expressions_{part}'] = sheet(head, cells, size=size, columns=12)
    pages['head_poses'] = sheet(head, pose_cells(head), size=size, columns=12)
    pages['head_identities'] = sheet(head, identity_cells(head, 15), size=size, columns=12)
    pages['head_uv'] = uv_sheet(head, 640)
    for name, page in pages.items():
        with atomic_write(folder / f'{name}.png') as handle:
            page.quantize(COLOURS, dither=Image.Dither.NONE).save(handle, format='PNG', optimize=True)
        click.echo(f'{folder / name}.png: {(folder / f"{name}.png").stat().st_size} bytes')


if __name__ == '__main__':
    main()
