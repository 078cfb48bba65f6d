"""Which pictures a metric looks at: plans of shots, each a function of (seed, number) alone.

A shot names dataset items, not numbers: the camera of one, the head of another. "Draw a camera, a set of head
parameters" means one random item, as in training. A person is what training draws together: a latent, the camera
that conditions it, and the face shape of that item.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from metrics.names import Metric
from torch_utils.rng import numpy_stream

PATH_STEP = 1 / 16  # of path lengths: pictures pass as 8 bits, which hide the step of 1e-4 that others take


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shot:
    """One picture to make."""

    scene: int  # number of the surroundings: pictures that differ in one respect only share it
    person: int  # number of the latent
    origin: int  # item that the person was drawn with: conditioning camera, face shape
    head: int  # item whose expression, jaw, neck and eyes drive it
    camera: int  # item whose camera sees it
    own_shape: bool = True  # the person's face shape; False: that of `head`
    head_to: int | None = None  # the head moves towards this item's ...
    progress: float = 0.0  # ... by this share
    person_to: int | None = None  # the latent moves towards this person's ...
    mix: float = 0.0  # ... by this share
    mix_space: str = 'w'


Items = Callable[[str, int], list[int]]  # purpose, count -> random items; the first are the same for any count


def plan(metric: Metric, *, items: int, seed: int) -> list[Shot]:
    """The shots of a metric, in order: for `ppl` and `id` two a pair, else image by image of each identity.

    `items`: number of dataset items to draw from.
    """

    def draw(purpose: str, count: int) -> list[int]:
        return numpy_stream('metric', seed, purpose).integers(items, size=count).tolist()

    family, counts = metric.family, metric.counts
    if family in ('ppl', 'ppl_z'):
        return _paths(counts[0], draw, space='z' if family == 'ppl_z' else 'w', seed=seed)
    if family.startswith('id'):
        return _pairs(metric, items=items, seed=seed, origins=draw('origin', counts[0]))
    if family == 'flicker':
        return _clips(counts[0], counts[1], draw)
    if metric.rules.kind == 'head':
        return _driven(counts[0], counts[1], draw)
    origins = draw('origin', counts[0])
    cameras = draw('camera', counts[0]) if family == 'fid3d' else origins
    return [_one(number, *chosen) for number, chosen in enumerate(zip(origins, cameras, strict=True))]


def _one(number: int, origin: int, camera: int) -> Shot:
    """A latent with one item's camera and head (FID); fid3d looks from another item's camera than conditions it."""
    return Shot(scene=number, person=number, origin=origin, head=origin, camera=camera)


def _driven(persons: int, images: int, draw: Items) -> list[Shot]:
    """Persons, each animated by random sets of expression and pose (AED, APD)."""
    origins, drives = draw('origin', persons), draw('drive', persons * images)
    return [
        Shot(scene=number, person=number // images, origin=origins[number // images], head=drive, camera=drive)
        for number, drive in enumerate(drives)
    ]


def _pairs(metric: Metric, *, items: int, seed: int, origins: list[int]) -> list[Shot]:
    """Two poses and two parameter sets each, from pools of twice as many as there are persons (ID)."""
    persons = metric.counts[0]
    rng = numpy_stream('metric', seed, 'pools', persons)
    poses, sets = rng.integers(items, size=(2, 2 * persons))
    shots = []
    for person in range(persons):
        chosen_poses, chosen_sets = (rng.choice(2 * persons, 2, replace=False) for _ in range(2))
        if metric.family == 'id_crossview':
            chosen_sets[1] = chosen_sets[0]
        shots += [
            Shot(
                scene=2 * person + side,
                person=person,
                origin=origins[person],
                head=int(sets[chosen_sets[side]]),
                camera=int(poses[chosen_poses[side]]),
                own_shape=metric.family == 'id_own_shape',
            )
            for side in range(2)
        ]
    return shots


def _clips(clips: int, frames: int, draw: Items) -> list[Shot]:
    """Persons whose heads move evenly from one item's expression to another's under a fixed camera."""
    origins, ends = draw('origin', clips), draw('drive', 2 * clips)
    return [
        Shot(
            scene=clip,
            person=clip,
            origin=origins[clip],
            head=ends[2 * clip],
            camera=ends[2 * clip],
            head_to=ends[2 * clip + 1],
            progress=frame / (frames - 1),
        )
        for clip in range(clips)
        for frame in range(frames)
    ]


def _paths(count: int, draw: Items, *, space: str, seed: int) -> list[Shot]:
    """Pairs of pictures of latents PATH_STEP apart on the way between two persons, everything else the same."""
    origins, where = draw('origin', count), numpy_stream('metric', seed, 'path').uniform(size=count)
    return [
        dataclasses.replace(
            _one(2 * number, origins[number], origins[number]),
            person_to=2 * number + 1,
            mix=float(where[number]) + step,
            mix_space=space,
        )
        for number in range(count)
        for step in (0.0, PATH_STEP)
    ]
