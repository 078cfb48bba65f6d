"""Puts a synthetic scene together: the person's pieces, the posed head, the light; one picture out."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from training import synthetic_geometry as geometry
from training import synthetic_params as params
from training import synthetic_render as render
from training import synthetic_skin as skin
from training.head.makehuman import MakeHumanHead
from training.head.model import HeadParams
from training.synthetic_geometry import Piece, Skull
from training.synthetic_hair import build_hair
from training.synthetic_params import Person, Scene
from training.synthetic_props import build_collar, build_glasses, build_shoulders, follow_neck

MAX_JAW = 0.42  # radians of the widest opening
_FIBRES = 512
# The parts sit high and far forward behind closed lips; moved (metres) so that an open mouth shows them all.
_PART_SHIFT = {
    'teeth_upper': (0.0, -0.0040, 0.0010),
    'teeth_lower': (0.0, -0.0030, 0.0),
    'tongue': (0.0, -0.0050, -0.0070),
}
_TONGUE_FLOOR = -0.050  # height (metres) above which the tongue is flattened to half


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dressed:
    """A person ready to be posed; all pieces in the pose of the neutral head."""

    person: Person
    skull_vertices: np.ndarray  # [K, 3] neutral, for following the skull
    attached: list[Piece]  # hair, glasses: follow the skull
    neck_ring: np.ndarray  # [K, 3] neutral lower edge of the neck
    clothes: list[Piece]  # shoulders, collar: stay with the body
    face: np.ndarray  # painted canvas


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """Teeth or tongue as they are drawn."""

    faces: np.ndarray
    surface: np.ndarray  # [V, 3]
    shift: np.ndarray  # [V, 3] metres, in the skull's frame
    material: int


class Studio:
    """Renders images by (seed, index). Holds the head model and what all images share; remembers one person."""

    def __init__(self, model: MakeHumanHead, *, resolution: int) -> None:
        self.model = model
        self.resolution = resolution
        self.render_size = resolution * render.SUPERSAMPLING
        template = model.template
        vertices, landmarks = (
            template.vertices.numpy().astype(np.float64),
            model.forward(model.neutral()).landmarks[0].numpy(),
        )
        faces = template.faces.numpy()
        eye_faces = model.regions['eyes'].numpy()
        self._skin_faces, self._eye_faces = faces[~eye_faces], faces[eye_faces]
        self._skin_vertices = np.unique(self._skin_faces)
        rings = geometry.border_rings(self._skin_faces, len(vertices))
        self._neck_ring = min(rings, key=lambda ring: float(vertices[ring, 1].mean()))
        self.canvas = skin.make_canvas(landmarks, int(np.clip(self.render_size, 256, 512)))
        self._centre = _skull_centre(vertices[self._skin_vertices], landmarks)
        self._importance = self._skull_importance(vertices, landmarks)
        polar = geometry.angles(_unit(vertices - self._centre))[1]
        self._crown = np.intersect1d(np.flatnonzero(polar < np.deg2rad(65)), self._skin_vertices)
        self._surface = self._template_surface(vertices)
        ear, cheek = landmarks[[0, 16], 2].mean(), landmarks[[36, 45], 2].mean()
        self._depth_range = (float(ear - 0.005), float(ear + 0.4 * (cheek - ear)))
        slope, height = np.polyfit(vertices[self._neck_ring, 2], vertices[self._neck_ring, 1], 1)
        self._neck_plane = (float(height), float(slope))
        self._beard = self._beard_vertices(vertices)
        self._parts = {name: self._part(name) for name in model.parts}
        self._fibres = _make_fibres()
        self._last: tuple[tuple[int, int], Dressed] | None = None

    # Static description of the template.

    def _template_surface(self, vertices: np.ndarray) -> np.ndarray:
        """Skin: the template's own position; eyes: direction from the eyeball's centre, the iris about +z."""
        surface = vertices.copy()
        for ring in self.model.gaze_vertices.numpy():
            own = _connected(self._eye_faces, int(ring[0]), len(vertices))
            centre = _sphere_centre(vertices[own])
            axis = _unit(vertices[ring[0]] - centre)
            side = _unit(np.cross([0.0, 1.0, 0.0], axis))
            basis = np.stack([side, np.cross(axis, side), axis], axis=1)
            surface[own] = _unit(vertices[own] - centre) @ basis
        return surface.astype(np.float32)

    def _beard_vertices(self, vertices: np.ndarray) -> np.ndarray:
        """How far each vertex moves outwards in a full beard, 0 to 1."""
        density = skin.sample_canvas(self.canvas, self.canvas.beard[..., None], vertices.astype(np.float32))[:, 0]
        density = density * skin.smoothstep(*self._depth_range, vertices[:, 2])
        density[np.setdiff1d(np.arange(len(vertices)), self._skin_vertices)] = 0
        return density.astype(np.float32)

    def _part(self, name: str) -> _Part:
        """Teeth: (share of the height from the root, depth behind the front, x); tongue: the same but unused share."""
        rest = self.model.forward_parts(self.model.neutral())[name][0].numpy()
        shift = np.tile(np.array(_PART_SHIFT[name]), (len(rest), 1))
        share = np.zeros(len(rest))
        if name == 'tongue':
            shift[:, 1] -= 0.5 * np.maximum(rest[:, 1] - _TONGUE_FLOOR, 0)
        else:
            front, back = rest[rest[:, 2] > 0.030], rest[rest[:, 2] < 0.005]
            span = [[points[:, 2].mean(), points[:, 1].min(), points[:, 1].max()] for points in (back, front)]
            low, high = (np.interp(rest[:, 2], [row[0] for row in span], [row[k] for row in span]) for k in (1, 2))
            share = (rest[:, 1] - low) / (high - low)
            share = 1 - share if name == 'teeth_upper' else share
        surface = np.stack([share, rest[:, 2].max() - rest[:, 2], rest[:, 0]], axis=1).astype(np.float32)
        return _Part(
            faces=self.model.parts[name].faces.numpy(),
            surface=surface,
            shift=shift,
            material=geometry.TONGUE if name == 'tongue' else geometry.TEETH,
        )

    # From numbers to a picture.

    def scene(self, seed: int, index: int, *, identity: int | None = None) -> Scene:
        """Everything that image `index` shows beside its person; `identity`: another person in its place."""
        rng = params.stream(seed, 'backdrop', index)
        return Scene(
            label=params.sample_camera(seed, index),
            head=self.head_params(seed, index, identity=identity),
            light=params.sample_light(seed, index),
            background=str(rng.choice(params.BACKGROUNDS)),
            background_seed=int(rng.integers(2**31)),
        )

    def head_params(self, seed: int, index: int, *, identity: int | None = None) -> HeadParams:
        """One row of exact head parameters; `identity`: of another person than the image's."""
        head = self.model.neutral()
        identity = params.identity_of(index) if identity is None else identity
        person = params.sample_person(seed, identity, num_identity=self.model.num_identity)
        weights = dict(params.sample_expression(seed, index))
        weights['eyeBlinkLeft'], weights['eyeBlinkRight'] = params.sample_blink(seed, index)
        named = torch.tensor([[weights.get(name, 0.0) for name in self.model.expression_names]])
        opening, sideways = params.sample_jaw(seed, index)
        yaw, pitch, vergence = params.sample_gaze(seed, index)
        eyes = [_axis_angle(yaw - vergence, pitch), _axis_angle(yaw + vergence, pitch)]
        return head.replace(
            identity=torch.from_numpy(person.shape)[None],
            expression=self.model.expression_coefficients(named),
            jaw=torch.tensor([[MAX_JAW * opening, 0.10 * sideways * opening, 0.0]]),
            neck=torch.from_numpy(params.sample_neck(seed, index))[None],
            eyes=torch.from_numpy(np.concatenate(eyes))[None],
        )

    def dress(self, seed: int, identity: int) -> Dressed:
        """Build or recall a person."""
        if self._last is not None and self._last[0] == (seed, identity):
            return self._last[1]
        person = params.sample_person(seed, identity, num_identity=self.model.num_identity)
        neutral = self.model.forward(self.model.neutral().replace(identity=torch.from_numpy(person.shape)[None]))
        vertices, landmarks = (
            neutral.vertices[0].numpy().astype(np.float64),
            neutral.landmarks[0].numpy().astype(np.float64),
        )
        skull, ring = self._skull(vertices, landmarks), vertices[self._neck_ring]
        dressed = Dressed(
            person=person,
            skull_vertices=vertices[self._crown],
            attached=build_hair(person.hair, skull) + build_glasses(person, landmarks, skull),
            neck_ring=ring,
            clothes=[build_shoulders(ring), *build_collar(person, ring)],
            face=skin.paint_face(self.canvas, person),
        )
        self._last = ((seed, identity), dressed)
        return dressed

    def _skull_importance(self, vertices: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """Weights for fitting the skull: area, little of it below the brows, none at ears and eyes."""
        weights = geometry.vertex_areas(vertices, self._skin_faces) * (1 - self.model.vertex_masks['ears'].numpy())
        low_face = (vertices[:, 1] < landmarks[17:27, 1].mean()) & (vertices[:, 2] > landmarks[[0, 16], 2].mean())
        weights[low_face] *= 0.1
        weights[vertices[:, 1] < landmarks[8, 1]] *= 0.1
        return weights

    def _skull(self, vertices: np.ndarray, landmarks: np.ndarray) -> Skull:
        used = np.flatnonzero(self._importance > 0)
        centre = _skull_centre(vertices[self._skin_vertices], landmarks)
        return geometry.fit_skull(vertices[used], centre, importance=self._importance[used])

    def pieces(self, dressed: Dressed, head: HeadParams) -> list[Piece]:
        """All meshes of a posed person (head frame)."""
        posed = self.model.forward(head).vertices[0].numpy()
        if dressed.person.beard_length > 0:
            normals = geometry.vertex_normals(posed, self._skin_faces)
            length = dressed.person.beard_length * dressed.person.beard
            posed = posed + normals * (self._beard * length)[:, None]
        pieces = [
            Piece(
                vertices=posed, faces=self._skin_faces, surface=self._surface, material=geometry.SKIN, two_sided=True
            ),
            Piece(vertices=posed, faces=self._eye_faces, surface=self._surface, material=geometry.EYE),
        ]
        rotation, shift = geometry.rigid_fit(dressed.skull_vertices, posed[self._crown])
        parts = self.model.forward_parts(head)
        for name, part in self._parts.items():
            vertices = (parts[name][0].numpy() + part.shift @ rotation.T).astype(np.float32)
            pieces.append(Piece(vertices=vertices, faces=part.faces, surface=part.surface, material=part.material))
        pieces += [piece.at(piece.vertices @ rotation.T + shift) for piece in dressed.attached]
        return pieces + [follow_neck(piece, dressed.neck_ring, posed[self._neck_ring]) for piece in dressed.clothes]

    @torch.no_grad()
    def trace(self, dressed: Dressed, scene: Scene) -> render.Pixels:
        """The visible surface at the supersampled size."""
        return render.trace(self.pieces(dressed, scene.head), scene.label, self.render_size)

    @torch.no_grad()
    def draw(self, dressed: Dressed, scene: Scene) -> np.ndarray:
        """The image of a person in a scene, uint8 [R, R, 3]."""
        pixels = self.trace(dressed, scene)
        paint = render.Paint(
            person=dressed.person,
            canvas=self.canvas,
            face=dressed.face,
            fibres=self._fibres,
            skull_centre=self._centre.astype(np.float32),
            depth_range=self._depth_range,
            neck_plane=self._neck_plane,
        )
        albedo, gloss = render.colour(pixels, paint)
        view = scene.label[:16].reshape(4, 4)[:3, 3] - params.rgb(0, 0, 0.1)
        view = view / np.linalg.norm(view)
        lit = render.light_up(albedo, gloss, pixels, light=scene.light, view=view)
        image = render.draw_background(scene.background, scene.background_seed, self.resolution)
        image = image.repeat(render.SUPERSAMPLING, axis=0).repeat(render.SUPERSAMPLING, axis=1).reshape(-1, 3)
        image[pixels.index] = np.clip(lit, 0, 1)
        small = render.shrink(image.reshape(self.render_size, self.render_size, 3), render.SUPERSAMPLING)
        return render.to_srgb(small)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _axis_angle(yaw: float, pitch: float) -> np.ndarray:
    """Axis-angle [3] of turning +z by `yaw` towards +x and by `pitch` up."""
    up, side = np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])
    half = [np.cos(yaw / 2), np.cos(pitch / 2), np.sin(yaw / 2), -np.sin(pitch / 2)]
    vector = half[0] * half[3] * side + half[2] * half[1] * up + half[2] * half[3] * np.cross(up, side)
    angle = 2 * np.arctan2(np.linalg.norm(vector), half[0] * half[1])
    return (angle * _unit(vector)).astype(np.float32)


def _skull_centre(vertices: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """A point amid the brain case: at the height of the brows, halfway between forehead and occiput."""
    brows = landmarks[17:27, 1].mean()
    above = vertices[vertices[:, 1] > brows]
    return np.array([0.0, brows, 0.5 * (above[:, 2].min() + above[:, 2].max())])


def _sphere_centre(points: np.ndarray) -> np.ndarray:
    """Least-squares centre of points on a sphere."""
    design = np.concatenate([2 * points, np.ones((len(points), 1))], axis=1)
    return np.linalg.lstsq(design, (points**2).sum(axis=1), rcond=None)[0][:3]


def _connected(faces: np.ndarray, start: int, count: int) -> np.ndarray:
    """Vertices joined to `start` by faces."""
    reached = np.zeros(count, dtype=bool)
    reached[start] = True
    while True:
        touched = reached.copy()
        touched[faces[reached[faces].any(axis=1)]] = True
        if (touched == reached).all():
            return np.flatnonzero(reached)
        reached = touched


def _make_fibres() -> np.ndarray:
    """Noise for strands of hair: fine across, slow along; the same for everybody."""
    rng = np.random.default_rng(7)
    total = 0.5 * skin.value_noise(rng, _FIBRES, 64, stretch=4) + 0.5 * skin.value_noise(rng, _FIBRES, 180, stretch=12)
    return np.clip(1.3 * total, -1, 1)
