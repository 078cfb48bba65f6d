"""Parameter files of trackers, read inertly, and what from-deca and from-smirk make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from applications.datasets.imports import Target, Tracker, import_tracker
from applications.datasets.trackers import root_joint
from tests.cases_dataset import random_params, user_error
from tests.cases_importers import (
    Tracked,
    make_tracked,
    rejects,
    save_codes,
    write_labels,
)
from training import cameras
from training.dataset import HeadDataset
from training.head import load_head_model
from training.head.rotation import axis_angle_matrix

# DECA and SMIRK.


def run_tracker(tracked: Tracked, kind: str, out: Path, **options) -> list[str]:
    lines: list[str] = []
    tracker = Tracker(kind=kind, folder=str(tracked.params), **options.pop('tracker', {}))
    images = options.pop('images', str(tracked.images))
    target = Target(out=str(out), workers=0, **options.pop('target', {}))
    flame = str(tracked.params.parent / 'flame')
    import_tracker(tracker, images=images, target=target, head_model=flame, log=lines.append, **options)
    return lines


def seen_by_tracker(tracked: Tracked, kind: str) -> torch.Tensor:
    """Landmarks [N, 68, 2] in [0, 1] as the tracker's own formulas put them: FLAME turned, then scaled and shifted."""
    codes = {key: torch.from_numpy(value) for key, value in tracked.codes.items()}
    pose = codes['pose'] if kind == 'deca' else torch.cat([codes['pose_params'], codes['jaw_params']], dim=1)
    neutral = tracked.model.neutral(len(pose))
    params = neutral.replace(
        identity=codes['shape' if kind == 'deca' else 'shape_params'][:, :100],
        expression=codes['exp' if kind == 'deca' else 'expression_params'],
        rotation=pose[:, :3],
        jaw=pose[:, 3:],
    )
    points = tracked.model.forward(params).landmarks
    flat = codes['cam'][:, None, :1] * (points[..., :2] + codes['cam'][:, None, 1:])
    return flat * torch.tensor([0.5, -0.5]) + 0.5


@pytest.mark.parametrize(('kind', 'save'), [('deca', 'npz'), ('deca', 'npy'), ('smirk', 'pkl'), ('smirk', 'mat')])
def test_tracker_files_become_heads_and_cameras(tmp_path: Path, kind: str, save: str) -> None:
    tracked = make_tracked(tmp_path, kind, save=save)
    lines = run_tracker(tracked, kind, tmp_path / 'out.zip')
    data = HeadDataset(tmp_path / 'out.zip', head_model=tracked.model)
    params, head = data.head_params(range(4)), data.head_input(range(4))
    assert params is not None
    codes = tracked.codes
    jaw = codes['pose'][:, 3:] if kind == 'deca' else codes['jaw_params']
    np.testing.assert_allclose(params.jaw, jaw, atol=1e-6)
    np.testing.assert_allclose(params.identity, codes['shape' if kind == 'deca' else 'shape_params'][:, :100])
    assert not params.rotation.any()
    assert not params.eyes.any()
    # The camera took the turn: landmarks fall where the tracker put them, but for perspective.
    seen, depth = cameras.project(cameras.head_to_world(head.landmarks), data.labels)
    flat = seen_by_tracker(tracked, kind)
    middle = depth[:, 17:].mean(dim=1, keepdim=True)
    expected = 0.5 + (flat - 0.5) * (middle / depth)[..., None]
    torch.testing.assert_close(seen, expected, atol=2e-3, rtol=0)
    assert any('pixels on average' in line for line in lines)
    assert any('beyond the head model' in line for line in lines) == (kind == 'smirk')


def test_labels_are_kept_and_compared(tmp_path: Path) -> None:
    tracked = make_tracked(tmp_path, 'deca')
    run_tracker(tracked, 'deca', tmp_path / 'own.zip')
    own = HeadDataset(tmp_path / 'own.zip', head_model=tracked.model).labels
    write_labels(tmp_path / 'labels.json', tracked.names, own)
    lines = run_tracker(tracked, 'deca', tmp_path / 'same.zip', labels=str(tmp_path / 'labels.json'))
    assert any('differ by 0.0 degrees' in line for line in lines)
    turned = own.clone()
    cam2world, intrinsics = cameras.unpack_label(own)
    twist = axis_angle_matrix(torch.tensor([[0.0, float(np.deg2rad(12.0)), 0.0]]))
    turned = cameras.pack_label(
        torch.cat([torch.cat([twist @ cam2world[:, :3, :3], cam2world[:, :3, 3:]], dim=2), cam2world[:, 3:]], dim=1),
        intrinsics,
    )
    write_labels(tmp_path / 'labels.json', tracked.names, turned)
    lines = run_tracker(tracked, 'deca', tmp_path / 'other.zip', labels=str(tmp_path / 'labels.json'))
    assert any('differ by 12.0 degrees' in line for line in lines)


def test_crop_of_a_larger_image(tmp_path: Path) -> None:
    tracked = make_tracked(tmp_path, 'deca', count=1)
    row = {key: value[:1] for key, value in tracked.codes.items()}
    # The tracker saw the square from (4, 2) of side 8 of the 16-pixel image.
    tform = np.array([[[28.0, 0, -4 * 28], [0, 28.0, -2 * 28], [0, 0, 1]]])
    for matrix in (tform, tform.transpose(0, 2, 1)):  # as computed, and as batches of tensors hold it
        save_codes(tracked.params / 'img0/img0.npz', {**row, 'tform': matrix})
        run_tracker(tracked, 'deca', tmp_path / 'part.zip', target={'overwrite': True})
        data = HeadDataset(tmp_path / 'part.zip', head_model=tracked.model)
        seen, depth = cameras.project(cameras.head_to_world(data.head_input([0]).landmarks), data.labels)
        flat = seen_by_tracker(tracked, 'deca') * 0.5 + torch.tensor([4 / 16, 2 / 16])
        expected = 0.5 + (flat - 0.5) * (depth[:, 17:].mean() / depth)[..., None]
        torch.testing.assert_close(seen, expected, atol=1e-4, rtol=0)


def test_bad_tracker_files_are_listed(tmp_path: Path) -> None:
    tracked = make_tracked(tmp_path, 'deca', count=8)
    rows = [{key: value[[index]] for key, value in tracked.codes.items()} for index in range(8)]
    files = [tracked.params / f'img{i}/img{i}.npz' for i in range(8)]
    files[0].unlink()
    files[1].write_bytes(b'PK nothing')
    save_codes(files[2], {key: value for key, value in rows[2].items() if key != 'exp'})
    save_codes(files[3], {**rows[3], 'cam': np.array([[np.nan, 0, 0]], dtype=np.float32)})
    save_codes(files[4], {**rows[4], 'cam': np.array([[-8, 0, 0]], dtype=np.float32)})
    save_codes(files[5], {key: np.repeat(value, 3, axis=0) for key, value in rows[5].items()})
    save_codes(files[6], {**rows[6], 'pose': np.zeros((1, 3))})
    run_tracker(tracked, 'deca', tmp_path / 'out.zip')
    found = rejects(tmp_path / 'out.zip')
    reasons = ['no parameter file', 'cannot be read', 'has no exp', 'not finite', 'not positive', '3 rows', '3 numbers']
    assert len(found) == 7
    for index, reason in enumerate(reasons):
        assert reason in found[f'img{index}.png']


def test_eye_poses(tmp_path: Path) -> None:
    tracked = make_tracked(tmp_path, 'deca', count=2)
    save_codes(tmp_path / 'eyes/img0.npz', {'gaze': np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32)})
    # A plain array without a name.
    np.save(tmp_path / 'eyes/img1.npy', np.array([0.1, 0.2, 0, 0.3, 0.4, 0], dtype=np.float32))
    run_tracker(tracked, 'deca', tmp_path / 'out.zip', tracker={'eyes': str(tmp_path / 'eyes')})
    params = HeadDataset(tmp_path / 'out.zip', head_model=tracked.model).head_params([0, 1])
    assert params is not None
    np.testing.assert_allclose(params.eyes, [[0.1, -0.2, 0, 0.3, -0.4, 0], [0.1, 0.2, 0, 0.3, 0.4, 0]], atol=1e-7)


def test_lids_become_expression(tmp_path: Path) -> None:
    tracked = make_tracked(tmp_path, 'smirk')
    lines = run_tracker(tracked, 'smirk', tmp_path / 'lost.zip')
    assert any('--eyelids' in line for line in lines)
    (tmp_path / 'lids').mkdir()
    template = tracked.model.template.vertices
    for side, column in (('l', 7), ('r', 9)):
        params = tracked.model.named_expression(f'expression{column:02d}', 2.0)
        np.save(tmp_path / f'lids/{side}_eyelid.npy', (tracked.model.forward(params).vertices[0] - template).numpy())
    run_tracker(tracked, 'smirk', tmp_path / 'kept.zip', tracker={'eyelids': str(tmp_path / 'lids')})
    pair = [HeadDataset(tmp_path / f'{name}.zip', head_model=tracked.model) for name in ('lost', 'kept')]
    before, after = (data.head_params(range(4)) for data in pair)
    assert before is not None
    assert after is not None
    gain = after.expression - before.expression
    expected = torch.zeros_like(gain)
    expected[:, 7], expected[:, 9] = (torch.from_numpy(2 * tracked.codes['eyelid_params'].T)).unbind(0)
    torch.testing.assert_close(gain, expected, atol=0.05, rtol=0)


def test_parameters_alone_become_an_npz(tmp_path: Path) -> None:
    from applications.heads import read_params

    tracked = make_tracked(tmp_path, 'deca')
    lines = run_tracker(tracked, 'deca', tmp_path / 'drive.npz', images=None)
    params = read_params(tmp_path / 'drive.npz', tracked.model)
    np.testing.assert_allclose(params.expression, tracked.codes['exp'])
    assert '4 rows' in lines[-1]
    assert 'already exists' in user_error(lambda: run_tracker(tracked, 'deca', tmp_path / 'drive.npz', images=None))
    assert '.npz' in user_error(lambda: run_tracker(tracked, 'deca', tmp_path / 'drive.zip', images=None))


def test_root_joint_is_found_by_turning(tmp_path: Path) -> None:
    for model in (make_tracked(tmp_path, 'deca').model, load_head_model('makehuman')):
        params = random_params(model, 2, seed=0)
        params = params.replace(rotation=torch.zeros(2, 3))
        turn = torch.tensor([[0.3, -0.2, 0.5]]).expand(2, 3)
        joint = root_joint(model, params) + params.translation
        still, turned = (model.forward(params.replace(rotation=r)).vertices for r in (params.rotation, turn))
        expected = (still - joint[:, None]) @ axis_angle_matrix(turn).transpose(1, 2) + joint[:, None]
        torch.testing.assert_close(turned, expected, atol=1e-5, rtol=0)
