"""FlameHead on a made-up file of FLAME's structure, against skinning by hand; the inert unpickler; errors."""

from __future__ import annotations

import pickle
from pathlib import Path

import cases_flame as cases
import numpy as np
import pytest
import torch

from dnnlib import UserError
from training.head import HeadParams, load_head_model
from training.head.flame import FlameHead, uv_coverage
from training.head.flame_file import read_flame
from training.head.model import PARAM_FIELDS


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.write_folder(tmp_path_factory.mktemp('flame'), cases.arrays())


@pytest.fixture(scope='module')
def head(folder: Path) -> FlameHead:
    return FlameHead(folder)


def random_params(head: FlameHead, count: int, seed: int = 0) -> HeadParams:
    rng = torch.Generator().manual_seed(seed)
    return head.neutral(count).map(lambda t: 0.5 * torch.randn(t.shape, generator=rng))


def test_counts_and_names(head: FlameHead, folder: Path) -> None:
    assert (head.num_identity, head.num_expression) == (100, 50)
    assert head.name == 'flame2020'
    assert load_head_model('flame2023', path=str(folder)).name == 'flame2023'
    assert load_head_model('flame', path=str(folder / 'generic_model.pkl')).content_hash == head.content_hash
    assert len(head.content_hash) == 64


def test_forward_equals_skinning_by_hand(head: FlameHead) -> None:
    values, params = cases.arrays(), random_params(head, 3)
    found = head.forward(params)
    for i in range(3):
        parts = [params.rotation, params.neck, params.jaw, params.eyes[:, :3], params.eyes[:, 3:]]
        pose = torch.stack([p[i] for p in parts]).numpy()
        expected = cases.skin_by_hand(values, params.identity[i].numpy(), params.expression[i].numpy(), pose)
        expected = expected + params.translation[i].numpy()
        np.testing.assert_allclose(found.vertices[i].numpy(), expected, atol=2e-6)
        tables = cases.embedding(len(values['f']))
        corners = expected[values['f'][tables['full_lmk_faces_idx'][0]]]
        landmarks = (corners * tables['full_lmk_bary_coords'][0][..., None]).sum(axis=1)
        np.testing.assert_allclose(found.landmarks[i].numpy(), landmarks, atol=2e-6)


def test_neutral_is_the_template(head: FlameHead) -> None:
    torch.testing.assert_close(head.forward(head.neutral()).vertices[0], head.template.vertices)


def test_every_parameter_has_a_gradient(head: FlameHead) -> None:
    params = head.neutral(2).map(lambda t: t.requires_grad_())
    head.forward(params).landmarks.square().sum().backward()
    for name in PARAM_FIELDS:
        grad = getattr(params, name).grad
        assert grad is not None, name
        assert bool(torch.isfinite(grad).all()), name


def test_mirror_of_a_symmetric_model_is_exact(head: FlameHead) -> None:
    params = random_params(head, 2, seed=4)
    original, mirrored = head.forward(params).vertices, head.forward(head.mirror(params)).vertices
    partner = list(range(20, 40)) + list(range(20))
    torch.testing.assert_close(mirrored, original[:, partner] * torch.tensor([-1.0, 1, 1]), atol=2e-5, rtol=0)


def test_batch_independence(head: FlameHead) -> None:
    params = random_params(head, 3)
    together = head.forward(params).vertices
    torch.testing.assert_close(head.forward(params[1:2]).vertices[0], together[1], atol=1e-6, rtol=0)
    some = torch.tensor([3, 30])
    torch.testing.assert_close(head.positions(params, some), together[:, some])


def test_plain_npz_gives_the_same_head(head: FlameHead, tmp_path: Path) -> None:
    other = FlameHead(cases.write_folder(tmp_path, cases.arrays(), model='generic_model.npz'))
    params = random_params(head, 1)
    torch.testing.assert_close(other.forward(params).vertices, head.forward(params).vertices)
    assert other.name == 'flame2023'


def test_static_and_dynamic_embedding_files(head: FlameHead, folder: Path, tmp_path: Path) -> None:
    tables = cases.embedding(36)
    static = tmp_path / 'flame_static_embedding.pkl'
    named = {'lmk_face_idx': tables['static_lmk_faces_idx'], 'lmk_b_coords': tables['static_lmk_bary_coords']}
    static.write_bytes(pickle.dumps(named, protocol=2))
    contour = {'lmk_face_idx': tables['dynamic_lmk_faces_idx'], 'lmk_b_coords': tables['dynamic_lmk_bary_coords']}
    cases.write_embedding(tmp_path / 'flame_dynamic_embedding.npy', contour)
    other = FlameHead(folder, landmarks=static, dynamic_landmarks=tmp_path / 'flame_dynamic_embedding.npy')
    assert torch.equal(other.template.landmark_faces, head.template.landmark_faces)
    torch.testing.assert_close(other.template.landmark_barycentrics, head.template.landmark_barycentrics)


def test_named_expressions(head: FlameHead) -> None:
    assert float(head.named_expression('jawOpen', 0.5).jaw[0, 0]) == pytest.approx(0.18)
    assert float(head.named_expression('eyeLookInRight').eyes[0, 4]) > 0
    assert float(head.named_expression('expression07', 2.0).expression[0, 7]) == 2.0
    with pytest.raises(UserError, match='knows only'):
        head.named_expression('mouthSmileLeft')


def test_regions_and_gaze(head: FlameHead) -> None:
    assert set(head.regions) >= {'face', 'eyes', 'neck'}
    assert not bool((head.regions['face'] & head.regions['eyes']).any())
    assert bool((head.gaze_vertices[0] < 6).all())
    assert bool(((head.gaze_vertices[1] >= 20) & (head.gaze_vertices[1] < 26)).all())


def test_uv_coverage_marks_texels_inside() -> None:
    uv = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.5, 0.5], [0.0, 0.5]])
    image = uv_coverage(uv, torch.tensor([[0, 1, 2], [0, 3, 2]]), 32)
    assert bool((image[16:, :16] == 1).all())  # low v lies at the bottom
    assert float(image[:15].sum() + image[:, 17:].sum()) == 0


class Bomb:
    """Runs a command when unpickled by an ordinary unpickler."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


class EvalBomb:
    def __reduce__(self) -> tuple:
        return (eval, ('1 + 1',))


def test_a_hostile_file_runs_nothing(tmp_path: Path) -> None:
    values: dict = cases.arrays()
    for i, bomb in enumerate((Bomb(tmp_path / 'boom'), EvalBomb())):
        path = tmp_path / f'generic_model{i}.pkl'
        path.write_bytes(pickle.dumps({**values, 'extra': bomb}))
        with pytest.raises(UserError, match='which no FLAME file needs'):
            read_flame(path)
    assert not (tmp_path / 'boom').exists()


def test_numpy_names_of_old_and_new_pickles_are_read(tmp_path: Path) -> None:
    values = cases.arrays()
    for protocol in (2, 4, 5):
        path = tmp_path / f'model{protocol}.pkl'
        path.write_bytes(pickle.dumps(values, protocol=protocol))
        np.testing.assert_allclose(read_flame(path).weights, values['weights'], rtol=1e-6)
    old = pickle.dumps(values, protocol=2).replace(b'cnumpy._core.multiarray\n', b'cnumpy.core.multiarray\n')
    path = tmp_path / 'old.pkl'
    path.write_bytes(old)
    np.testing.assert_allclose(read_flame(path).template, values['v_template'], rtol=1e-6)


def test_errors_are_one_clear_line(folder: Path, tmp_path: Path) -> None:
    def refuses(match: str, path: Path, **files: Path) -> None:
        with pytest.raises(UserError, match=match) as caught:
            FlameHead(path, **files)  # type: ignore[arg-type]
        assert '\n' not in str(caught.value)

    values = cases.arrays()
    refuses('no FLAME model', tmp_path)
    refuses('no such file', tmp_path / 'x.pkl')
    (tmp_path / 'cut.pkl').write_bytes((folder / 'generic_model.pkl').read_bytes()[:500])
    refuses('not a readable FLAME file', tmp_path / 'cut.pkl')
    (tmp_path / 'huge.pkl').write_bytes(b'\x80\x04\x8e' + (2**44).to_bytes(8, 'little'))  # a string of 16 TiB
    refuses('claims more memory than there is', tmp_path / 'huge.pkl')
    (tmp_path / 'list.pkl').write_bytes(pickle.dumps([1, 2]))
    refuses('expected a dictionary', tmp_path / 'list.pkl')
    part = {key: value for key, value in values.items() if key != 'posedirs'}
    (tmp_path / 'part.pkl').write_bytes(pickle.dumps(part))
    refuses('not a FLAME model: no posedirs', tmp_path / 'part.pkl')
    (tmp_path / 'body.pkl').write_bytes(pickle.dumps({**values, 'weights': values['weights'][:, :4]}))
    refuses('expected shape', tmp_path / 'body.pkl')
    odd = cases.write_folder(tmp_path / 'odd', cases.arrays(directions=17))
    refuses('17 shape and expression directions', odd)
    bare = tmp_path / 'bare'
    bare.mkdir()
    (bare / 'generic_model.pkl').write_bytes((folder / 'generic_model.pkl').read_bytes())
    refuses('no OBJ with uv coordinates', bare)
    refuses('no landmark embedding', bare, uv=folder / 'head_template_mesh.obj')
    (bare / 'no_uv.obj').write_text('v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n')
    refuses('no uv coordinates', bare, uv=bare / 'no_uv.obj', landmarks=folder / 'landmark_embedding.npy')


def test_wrong_width_names_the_field(head: FlameHead) -> None:
    params = head.neutral()
    with pytest.raises(ValueError, match=r'HeadParams.expression: expected shape \[1, 50\]'):
        head.forward(params.replace(expression=torch.zeros(1, 52)))
