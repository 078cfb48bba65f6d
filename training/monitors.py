"""What training watches besides its losses: numbers about the averaged generator, the gradients and the dataset.

Everything here reads and draws nothing that training draws: latents, cameras and heads are fixed by the seed, the
generator runs without noise and without gradients. docs/training.md says how to read the numbers.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from torch_utils.ops.planes import sample_planes
from torch_utils.rng import numpy_stream, stream
from torch_utils.stats import Stats
from training.cameras import head_to_world, project, rays
from training.conditions import HeadImages
from training.config import TrainConfig
from training.generator import Generator, Identity, Planes
from training.head.model import HeadInput, HeadModel, HeadParams, HeadTemplate
from training.rasterized_planes import SLOTS
from training.template_rendering import render_template
from training.volume import ray_weights, stratified_depths

PERSONS = 4
LATENTS = 64  # for the spread of w
RAYS = 16  # side of the grid of rays for the shares
JAW_OPEN = 0.36  # radians about +x
MOUTH = slice(48, 68)  # of the 68 landmarks
MOUTH_MARGIN = 1.2  # the region's sides over the landmarks' extent
MIN_MOUTH = 16  # pixels of the volume rendering, a person: below, its change says nothing
MIN_CONTRAST = 0.02  # of a region in [-1, 1]: below, a change is measured against this
HEADS = 64  # looked at in a dataset
OUT_OF_FRAME = 0.25  # share of a head's landmarks


def report_gradients(stats: Stats, phase: str, network: nn.Module) -> None:
    """Gradient/<phase>/<part>: the norm of each sub-network's gradient; parts without one are left out."""
    gradients: dict[str, list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            gradients.setdefault(part_of(name), []).append(parameter.grad)
    for part, values in gradients.items():
        stats.report(f'Gradient/{phase}/{part}', nn.utils.get_total_norm(values))


def part_of(parameter: str) -> str:
    """The sub-network that a parameter's name belongs to; the discriminator's image branch is 'image'."""
    first = parameter.split('.')[0]
    return 'image' if first == 'fromrgb' or re.fullmatch(r'b\d+', first) else first


@torch.no_grad()
def dataset_numbers(dataset: HeadImages) -> dict[str, float]:
    """How much a dataset's cameras and heads differ, and whether the heads lie in their images.

    camera_spread: the largest standard deviation among the camera's 25 numbers. head_spread: rms distance of the
    vertices from their mean over heads, in metres. out_of_frame: share of heads with more than OUT_OF_FRAME of their
    landmarks outside the image or behind the camera. The last two from at most HEADS items, evenly spaced; mirrored
    ones are left out, since they differ from their originals in any dataset.
    """
    number = len(dataset.labels)
    count = min(number, HEADS)
    items = [index * number // count for index in range(count)]
    head = dataset.head_input(items, device=torch.device('cpu'))
    place, depth = project(head_to_world(head.landmarks), dataset.label(items))
    outside = ((place < 0) | (place > 1)).any(dim=2) | (depth <= 0)
    from_mean = head.vertices - head.vertices.mean(dim=0)
    return {
        'Dataset/camera_spread': float(dataset.labels.double().std(dim=0, correction=0).max()),
        'Dataset/head_spread': float(from_mean.double().square().sum(dim=2).mean().sqrt()),
        'Dataset/out_of_frame': float((outside.float().mean(dim=1) > OUT_OF_FRAME).float().mean()),
    }


class Probe:
    """A few fixed persons, cameras and heads that a generator is asked for at every tick."""

    def __init__(self, config: TrainConfig, dataset: HeadImages, *, device: torch.device) -> None:
        self.config, self.template = config.generator, dataset.head_model.template
        items = numpy_stream(config.seed, 'monitors').integers(len(dataset), size=PERSONS).tolist()
        rng = stream(config.seed, 'monitors', 'latents')
        self.z = torch.randn(LATENTS, self.config.z_dim, generator=rng).to(device)
        self.label = dataset.label(items).to(device)
        self.head = dataset.head_input(items, device=device)
        poses = jaw_poses(dataset.head_model, dataset.head_params(items), count=len(items))
        self.closed, self.open = (head.to(device) for head in poses)
        self.region, self.template_change = template_response(
            self.template, self.closed, self.open, self.label, resolution=self.config.image_resolution
        )
        mouth = float(self.region.float().mean()) * self.config.render_resolution**2
        self.sees_mouth = mouth >= MIN_MOUTH and self.template_change > 0  # 0: a head without a jaw

    @torch.no_grad()
    def measure(self, generator: Generator, *, batch: int) -> dict[str, float]:
        """The Monitor/ numbers of a generator in evaluation mode; `batch`: images at once."""
        parts = [self._persons(generator, slice(i, i + batch)) for i in range(0, PERSONS, batch)]
        alpha, shares, closed, opened = (torch.cat(values) for values in zip(*parts, strict=True))
        layout = SLOTS[self.config.plane_layout]  # of the views front, left, right, top
        coverage = alpha.mean(dim=0)[[layout[0], layout[1], layout[3]]].tolist()
        dynamic, static = shares.mean(dim=0).tolist()
        numbers = dict(zip(('alpha_front', 'alpha_side', 'alpha_top'), coverage, strict=True))
        numbers |= {'share_dynamic': dynamic, 'share_static': static, **self._latents(generator)}
        change = relative_change(closed, opened, self.region)
        if self.sees_mouth:
            numbers['mouth_response'] = change / self.template_change
        return {f'Monitor/{name}': value for name, value in numbers.items()}

    def _persons(self, generator: Generator, part: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Coverage of the planes [N, 3], shares of the image [N, 2], images with closed and with open jaw."""
        label = self.label[part]
        identity = generator.identity(generator.map(self.z[:PERSONS][part], label))
        planes = generator.deform(identity, self.head[part])
        shares = image_shares(generator, planes, label)
        closed, opened = (self._image(generator, identity, head[part], label) for head in (self.closed, self.open))
        return planes.alpha.mean(dim=(2, 3, 4)), shares, closed, opened

    def _image(self, generator: Generator, identity: Identity, head: HeadInput, label: Tensor) -> Tensor:
        return generator.render(generator.deform(identity, head), label).image

    def _latents(self, generator: Generator) -> dict[str, float]:
        """rms of w_avg, and how far w moves with z, relative to its own rms."""
        w = generator.map(self.z, self.label[:1].expand(LATENTS, -1))[:, 0]
        spread = (w - w.mean(dim=0)).square().mean().sqrt() / w.square().mean().sqrt().clamp(min=1e-12)
        return {'w_avg': float(generator.mapping.w_avg.square().mean().sqrt()), 'w_spread': float(spread)}


def image_shares(generator: Generator, planes: Planes, label: Tensor) -> Tensor:
    """Shares of the image that the dynamic and the static planes explain. [N, 2]

    At a sample of a ray each of the three planes gives alpha of a dynamic and 1 - alpha of a static feature. The
    samples are weighted as volume rendering weights them (coarse depths, a RAYS x RAYS image) and averaged over rays;
    what is missing from 1 is transparent or lies outside the box.
    """
    config = generator.config
    origins, directions = rays(label, RAYS)
    depths = stratified_depths(len(label), RAYS**2, config, rng=None, like=origins)
    points = (origins[:, :, None] + depths * directions[:, :, None]).flatten(1, 2)
    weights = ray_weights(generator.density(planes, points).float().view(depths.shape), depths)
    halves = nn.functional.pad(weights, (0, 0, 0, 1)) / 2 + nn.functional.pad(weights, (0, 0, 1, 0)) / 2
    sources = torch.cat([planes.alpha, 1 - planes.alpha], dim=2).float()
    read = sample_planes(sources, points, box_size=config.box_size, aggregation='mean')
    return (read.view(*depths.shape[:3], 2) * halves).sum(dim=2).mean(dim=1)


def jaw_poses(model: HeadModel, params: HeadParams | None, *, count: int) -> tuple[HeadInput, HeadInput]:
    """Heads without expression, jaw closed and open; `count` neutral ones where there are no parameters."""
    params = model.neutral(count) if params is None else params
    params = params.replace(expression=torch.zeros_like(params.expression), jaw=torch.zeros_like(params.jaw))
    opened = torch.tensor([JAW_OPEN, 0.0, 0.0]).expand(len(params), 3)
    with torch.no_grad():
        return model.forward(params), model.forward(params.replace(jaw=opened))


def template_response(
    template: HeadTemplate, closed: HeadInput, opened: HeadInput, label: Tensor, *, resolution: int
) -> tuple[Tensor, float]:
    """The mouth's region, and the relative change of the template's normals in it: what the relative change of a
    generator's images is divided by to be its mouth response (0: the head has no jaw)."""
    region = mouth_region(closed, opened, label, resolution=resolution)
    normals = [
        render_template(template, head, label, resolution=resolution, mode='normals') for head in (closed, opened)
    ]
    return region, relative_change(normals[0], normals[1], region)


def mouth_region(closed: HeadInput, opened: HeadInput, label: Tensor, *, resolution: int) -> Tensor:
    """Pixels around the mouth's landmarks of both poses. bool [N, 1, resolution, resolution]"""
    landmarks = torch.cat([closed.landmarks[:, MOUTH], opened.landmarks[:, MOUTH]], dim=1)
    place, _ = project(head_to_world(landmarks), label)
    low, high = place.amin(dim=1), place.amax(dim=1)  # [N, 2] (column, row)
    half = (high - low) * (MOUTH_MARGIN / 2)
    centres = (torch.arange(resolution, device=label.device) + 0.5) / resolution
    inside = ((centres - (low + high)[:, :, None] / 2).abs() <= half[:, :, None]).unsqueeze(1)  # [N, 1, 2, R]
    return inside[:, :, 1, :, None] & inside[:, :, 0, None, :]


def relative_change(before: Tensor, after: Tensor, region: Tensor) -> float:
    """rms difference of two image batches [N, C, R, R] in a region [N, 1, R, R], over the region's own contrast.

    The contrast is the rms deviation of both from each sample's and channel's mean, at least MIN_CONTRAST, so that
    blurred and unblurred, dark and bright pictures compare. 0 for an empty region.
    """
    mask = region.to(before)
    count = mask.sum(dim=(2, 3), keepdim=True)  # [N, 1, 1, 1]
    total = float(count.sum()) * before.shape[1]
    if total == 0:
        return 0.0
    pair = torch.stack([before, after]).float()
    mean = (pair * mask).sum(dim=(3, 4), keepdim=True) / count.clamp(min=1)
    contrast = ((pair - mean).square() * mask).sum() / (2 * total)
    change = ((pair[0] - pair[1]).square() * mask).sum() / total
    return float(change.sqrt() / contrast.sqrt().clamp(min=MIN_CONTRAST))
