"""The embedded dataset: repeatable, exact in its labels, its factors independent, its parts where they belong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from dnnlib import UserError
from training import cameras, synthetic
from training import synthetic_geometry as geometry
from training import synthetic_params as params
from training import synthetic_render as render
from training import synthetic_skin as skin
from training.head import load_head_model
from training.head.makehuman import MakeHumanHead
from training.synthetic_studio import Studio

SEED = 11


@pytest.fixture(scope='module')
def studio() -> Studio:
    model = load_head_model('makehuman')
    assert isinstance(model, MakeHumanHead)
    return Studio(model, resolution=64)


def person_with(studio: Studio, **wanted: str) -> int:
    """Number of the first person whose hair style, glasses, ... are as wanted."""
    for identity in range(400):
        person = params.sample_person(SEED, identity, num_identity=studio.model.num_identity)
        if all(getattr(person.hair if name == 'style' else person, name) == value for name, value in wanted.items()):
            return identity
    raise AssertionError(f'nobody with {wanted}')


def plain_scene(studio: Studio, *, yaw: float = 0.0) -> params.Scene:
    """A neutral head of the mean identity before a camera at `yaw`."""
    label = cameras.orbit_camera(torch.tensor([yaw]), torch.tensor([0.0]))[0].numpy()
    return dataclasses.replace(studio.scene(SEED, 0), label=label, head=studio.model.neutral())


def as_person(studio: Studio, identity: int, scene: params.Scene) -> params.Scene:
    shape = params.sample_person(SEED, identity, num_identity=studio.model.num_identity).shape
    return dataclasses.replace(scene, head=scene.head.replace(identity=torch.from_numpy(shape)[None]))


def count(pixels: render.Pixels, material: int) -> int:
    return int((pixels.material == material).sum())


# Repeatability.


def test_same_seed_and_index_same_image_in_any_order() -> None:
    first = synthetic.render_index(SEED, 6, resolution=32)
    synthetic.render_index(SEED, 1, resolution=32)
    synthetic._studio.cache_clear()
    again = synthetic.render_index(SEED, 6, resolution=32)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.label, again.label)
    for name, value in first.head.as_dict().items():
        assert torch.equal(value, again.head.as_dict()[name])
    assert first.image.dtype == np.uint8
    assert first.image.shape == (3, 32, 32)
    assert first.identity_id == again.identity_id == 1
    assert not np.array_equal(first.image, synthetic.render_index(SEED + 1, 6, resolution=32).image)
    assert not np.array_equal(first.image, synthetic.render_index(SEED, 7, resolution=32).image)


def test_workers_and_count_do_not_change_the_images(tmp_path: Path) -> None:
    paths = [tmp_path / f'{workers}.zip' for workers in (0, 2)]
    for path, workers in zip(paths, (0, 2), strict=True):
        synthetic.generate(path, num=18, resolution=32, seed=3, workers=workers, progress=False)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    short = tmp_path / 'short.zip'
    synthetic.generate(short, num=2, resolution=32, seed=3, workers=0, progress=False)
    from training.dataset import HeadDataset

    long_set, short_set = HeadDataset(paths[0]), HeadDataset(short)
    assert np.array_equal(long_set.image(1), short_set.image(1))
    assert long_set.identities is not None
    assert long_set.identities.tolist() == [index // 4 for index in range(18)]


@pytest.mark.parametrize(('option', 'value'), [('num', 0), ('resolution', 48), ('resolution', 1024), ('workers', -1)])
def test_options_out_of_range(tmp_path: Path, option: str, value: int) -> None:
    options = {'num': 4, 'resolution': 32, 'workers': 0, option: value}
    with pytest.raises(UserError, match=option):
        synthetic.generate(tmp_path / 'a.zip', seed=0, progress=False, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


# What is drawn, and from which distribution.


@pytest.fixture(scope='module')
def draws() -> dict[str, np.ndarray]:
    """One row an image, each of another person."""
    rows: list[dict[str, float]] = []
    for index in range(0, 8000, params.IMAGES_PER_IDENTITY):
        person = params.sample_person(SEED, params.identity_of(index), num_identity=8)
        label = params.sample_camera(SEED, index).astype(np.float64).reshape(-1)
        forward, right = label[[2, 6, 10]], label[[0, 4, 8]]
        expression = params.sample_expression(SEED, index)
        gaze, neck, jaw = (
            params.sample_gaze(SEED, index),
            params.sample_neck(SEED, index),
            params.sample_jaw(SEED, index),
        )
        light = params.sample_light(SEED, index)
        rows.append(
            {
                'identity 0': person.shape[0], 'identity 1': person.shape[1], 'skin': person.skin.mean(),
                'hair': person.hair.colour.mean(), 'glasses': float(person.glasses != 'none'), 'beard': person.beard,
                'smile': expression.get('mouthSmileLeft', 0.0), 'brows': expression.get('browInnerUp', 0.0),
                'units': len(expression), 'blink': max(params.sample_blink(SEED, index)), 'jaw': jaw[0],
                'gaze yaw': gaze[0], 'gaze pitch': gaze[1], 'neck nod': neck[0], 'neck turn': neck[1],
                'yaw': np.arctan2(-forward[0], -forward[2]), 'pitch': np.arcsin(-forward[1]),
                'roll': np.arcsin(np.clip(right[1] / np.hypot(forward[0], forward[2]), -1, 1)),
                'light': np.arctan2(light.direction[0], light.direction[2]), 'strength': light.colour.mean(),
                'bald': float(person.hair.style == 'bald'),
            }
        )  # fmt: skip
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_factors_are_independent(draws: dict[str, np.ndarray]) -> None:
    groups = {
        'identity 0': 'person', 'identity 1': 'person', 'skin': 'person', 'hair': 'person', 'glasses': 'person',
        'beard': 'person', 'bald': 'person', 'smile': 'expression', 'brows': 'expression', 'units': 'expression',
        'gaze yaw': 'gaze', 'gaze pitch': 'gaze', 'neck nod': 'neck', 'neck turn': 'neck', 'yaw': 'camera',
        'pitch': 'camera', 'roll': 'camera', 'light': 'light', 'strength': 'light',
    }  # fmt: skip
    names = sorted(draws)
    for transform in (lambda x: x, lambda x: np.abs(x - np.median(x))):  # the second sees a tie of spreads
        values = np.stack([transform(draws[name]) for name in names])
        correlation = np.corrcoef(values)
        for i, first in enumerate(names):
            for j, second in enumerate(names[:i]):
                if groups.get(first, first) != groups.get(second, second):
                    assert abs(correlation[i, j]) < 0.09, f'{first} and {second}: {correlation[i, j]:.3f}'


def test_marginals_look_like_portraits(draws: dict[str, np.ndarray]) -> None:
    spreads = {'yaw': (0.26, 0.32), 'pitch': (0.13, 0.17), 'roll': (0.08, 0.12), 'gaze yaw': (0.18, 0.25)}
    for name, (low, high) in spreads.items():
        assert low < draws[name].std() < high, name
        assert abs(draws[name].mean()) < 0.03, name
    assert np.abs(draws['yaw']).max() < 0.9
    shares = {'glasses': (0.12, 0.18), 'bald': (0.06, 0.10)}
    for name, (low, high) in shares.items():
        assert low < draws[name].mean() < high, name
    assert 0.40 < (draws['jaw'] > 0.1).mean() < 0.50
    assert (draws['jaw'] > 0.8).mean() > 0.02
    assert 0.16 < (draws['blink'] > 0).mean() < 0.24


# Labels.


def test_irises_lie_where_camera_and_head_put_them(studio: Studio) -> None:
    hits = tried = 0
    size = studio.render_size
    for index in range(0, 120, 3):
        scene = studio.scene(SEED, index)
        forward = scene.label.reshape(-1)[[2, 10]]
        if abs(np.arctan2(-forward[0], -forward[1])) > 0.35 or max(params.sample_blink(SEED, index)) > 0:
            continue
        pixels = studio.trace(studio.dress(SEED, params.identity_of(index)), scene)
        material = np.full(size * size, -1)
        material[pixels.index] = pixels.material
        angle = np.full(size * size, np.inf)
        eye = pixels.material == geometry.EYE
        angle[pixels.index[eye]] = np.arccos(np.clip(pixels.surface[eye, 2], -1, 1))
        centres = studio.model.forward(scene.head).vertices[:, studio.model.gaze_vertices[:, 0]]
        image, _ = cameras.project(cameras.head_to_world(centres), torch.from_numpy(scene.label)[None])
        for column, row in (image[0] * size).floor().long().tolist():
            where = row * size + column
            if material[where] != geometry.EYE:  # under a lid or a pair of glasses
                continue
            tried += 1
            hits += bool(angle[where] < np.deg2rad(6))
    assert tried > 20
    assert hits == tried


def test_silhouette_of_a_bald_head_is_that_of_its_mesh(studio: Studio) -> None:
    identity = person_with(studio, style='bald', glasses='none')
    for yaw in (-0.5, 0.0, 0.4):
        scene = as_person(studio, identity, plain_scene(studio, yaw=yaw))
        dressed = dataclasses.replace(studio.dress(SEED, identity), clothes=[])
        dressed = dataclasses.replace(dressed, person=dataclasses.replace(dressed.person, beard_length=0.0))
        pixels = studio.trace(dressed, scene)
        vertices = cameras.head_to_world(studio.model.forward(scene.head).vertices)
        image, _ = cameras.project(vertices, torch.from_numpy(scene.label)[None])
        low, high = (bound.clamp(0, 1).numpy() * studio.render_size for bound in (image[0].amin(0), image[0].amax(0)))
        rows, columns = np.divmod(pixels.index, studio.render_size)
        found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert np.abs(found - np.concatenate([low, high])).max() < 2


# Parts.


def test_open_mouth_shows_teeth_and_no_background(studio: Studio) -> None:
    identity = person_with(studio, style='short')
    dressed = studio.dress(SEED, identity)
    closed = as_person(studio, identity, plain_scene(studio))
    opened = dataclasses.replace(closed, head=closed.head.replace(jaw=torch.tensor([[0.3, 0.0, 0.0]])))
    before, after = studio.trace(dressed, closed), studio.trace(dressed, opened)
    inside = [count(p, geometry.TEETH) + count(p, geometry.TONGUE) for p in (before, after)]
    assert count(after, geometry.TEETH) > 20
    assert inside[1] > 4 * inside[0] + 50
    landmarks = cameras.head_to_world(studio.model.forward(opened.head).landmarks)
    image, _ = cameras.project(landmarks, torch.from_numpy(opened.label)[None])
    size = studio.render_size
    covered = np.zeros(size * size, dtype=bool)
    covered[after.index] = True
    axis = (np.arange(size) + 0.5) / size
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    mouth = skin.polygon_distance(grid, image[0, 60:68].numpy().astype(np.float64)) < 0
    assert mouth.sum() > 100
    assert covered[mouth].all()
    dark = studio.draw(dressed, opened).astype(int)
    assert np.abs(dark - studio.draw(dressed, closed)).sum() > 0


@pytest.mark.parametrize(('gaze', 'axis', 'sign'), [((0.0, 0.3), 1, 1), ((0.0, -0.3), 1, -1), ((-0.2, 0.0), 0, -1)])
def test_gaze_moves_the_irises_and_nothing_else(
    studio: Studio, gaze: tuple[float, float], axis: int, sign: int
) -> None:
    identity = person_with(studio, style='short', glasses='none')
    dressed = studio.dress(SEED, identity)
    ahead = as_person(studio, identity, plain_scene(studio))
    turned = dataclasses.replace(ahead, head=ahead.head.replace(eyes=torch.tensor([[*gaze, 0.0] * 2])))
    centres, images = [], []
    for scene in (ahead, turned):
        pixels = studio.trace(dressed, scene)
        iris = (pixels.material == geometry.EYE) & (pixels.surface[:, 2] > np.cos(render.IRIS_ANGLE))
        centres.append(np.array(np.divmod(pixels.index[iris], studio.render_size)).mean(axis=1))
        images.append(studio.draw(dressed, scene).astype(int))
    moved = centres[1] - centres[0]
    assert moved[axis] * sign > 1.0
    assert abs(moved[axis]) > 2 * abs(moved[1 - axis])
    changed = np.abs(images[1] - images[0]).max(axis=2) > 8
    eyes = np.zeros(studio.render_size**2, dtype=bool)
    eyes[pixels.index[pixels.material == geometry.EYE]] = True
    near = eyes.reshape(64, 4, 64, 4).any(axis=(1, 3))
    assert changed.any()
    assert not (changed & ~near).any()


def test_hair_stands_out_from_the_mesh_and_follows_only_the_neck(studio: Studio) -> None:
    identity = person_with(studio, style='afro')
    dressed = studio.dress(SEED, identity)
    scene = as_person(studio, identity, plain_scene(studio))
    with_hair, without = (
        set(studio.trace(d, scene).index.tolist()) for d in (dressed, dataclasses.replace(dressed, attached=[]))
    )
    assert without <= with_hair
    assert len(with_hair - without) > 0.10 * len(without)

    def hair(**fields: torch.Tensor) -> np.ndarray:
        pieces = studio.pieces(dressed, scene.head.replace(**fields))
        return np.concatenate([piece.vertices for piece in pieces if piece.material == geometry.HAIR])

    rest = hair()
    torch.manual_seed(0)
    expression = torch.randn(1, studio.model.num_expression)
    assert np.abs(hair(expression=expression, jaw=torch.tensor([[0.3, 0.0, 0.0]])) - rest).max() < 2e-3
    assert np.abs(hair(neck=torch.tensor([[0.0, 0.2, 0.0]])) - rest).max() > 5e-3


@pytest.mark.parametrize('style', params.HAIR_STYLES)
def test_every_hair_style_is_finite_and_above_the_skin(studio: Studio, style: str) -> None:
    dressed = studio.dress(SEED, person_with(studio, style=style))
    hair = [piece for piece in dressed.attached if piece.material == geometry.HAIR]
    assert bool(hair) == (style != 'bald')
    for piece in hair:
        assert np.isfinite(piece.vertices).all()
        assert np.abs(piece.vertices).max() < 0.5
        assert piece.faces.max() < len(piece.vertices)


def test_glasses_sit_before_the_eyes(studio: Studio) -> None:
    identity = person_with(studio, glasses='round')
    dressed = studio.dress(SEED, identity)
    head = as_person(studio, identity, plain_scene(studio)).head
    eyes = studio.model.forward(head).landmarks[0, 36:48].numpy()
    frames = np.concatenate([piece.vertices for piece in dressed.attached if piece.material == geometry.FRAME])
    before_eyes = frames[np.abs(frames[:, 0]) < np.abs(eyes[:, 0]).max()]
    assert before_eyes[:, 2].min() > eyes[:, 2].max()
    assert before_eyes[:, 1].min() < eyes[:, 1].min() < eyes[:, 1].max() < before_eyes[:, 1].max()


# Tools, against closed forms.


def test_geometry_against_closed_forms() -> None:
    ball = geometry.ellipsoid(np.zeros(3), (1.0, 1.0, 1.0), geometry.HAIR)
    normals = geometry.vertex_normals(ball.vertices, ball.faces)
    inner = np.abs(ball.vertices[:, 1]) < 0.99
    assert (normals[inner] * ball.vertices[inner]).sum(axis=1).min() > 0.9  # outward
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((3000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    centre = np.array([0.0, 0.1, -0.05])
    radii = 0.1 * (1 + 0.1 * directions[:, 1])
    radii[:60] += 0.03  # ears
    skull = geometry.fit_skull(centre + directions * radii[:, None], centre, importance=np.ones(3000))
    assert np.abs(skull.radius(directions) - 0.1 * (1 + 0.1 * directions[:, 1])).max() < 2e-3
    points = rng.standard_normal((20, 3))
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    rotation, shift = geometry.rigid_fit(points, points @ turn.T + [1, 2, 3])
    assert np.allclose(rotation, turn)
    assert np.allclose(shift, [1, 2, 3])
    open_tube = geometry.grid_faces(3, 4)
    assert [len(ring) for ring in geometry.border_rings(open_tube, 12)] == [10]


def test_distances_and_colours_against_closed_forms() -> None:
    square = np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
    points = np.array([(0.5, 0.5), (0.5, 0.9), (2.0, 0.5), (-3.0, -4.0)])
    assert np.allclose(skin.polygon_distance(points, square), [-0.5, -0.1, 1.0, 5.0])
    distance, share, offset = skin.segment_distance(
        np.array([(1.5, 0.5), (4.0, 0.0)]), np.array([(0.0, 0.0), (2.0, 0.0)])
    )
    assert np.allclose(distance, [0.5, 2.0])
    assert np.allclose(share, [0.75, 1.0])
    assert offset[0] == pytest.approx(0.5)
    codes = np.arange(256, dtype=np.uint8)
    assert np.array_equal(render.to_srgb(params.linear(codes)), codes)
    image = np.random.default_rng(0).random((8, 8, 3))
    assert np.allclose(render.shrink(image, 4)[1, 0], image[4:, :4].mean(axis=(0, 1)))
