"""from-release, from-deca, from-smirk, from-eg3d: what goes in comes out, and what does not is listed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import dataset_tool
from applications.datasets import importing, imports
from applications.datasets.importing import ImportReport
from applications.datasets.imports import Meshes, Target, import_eg3d, import_release
from applications.preprocessing.mesh_fit import MeshFit, MeshFitter
from tests.cases_dataset import make_dataset, random_labels, random_params, user_error
from tests.cases_importers import (
    Release,
    UprightHead,
    make_release,
    make_tracked,
    rejects,
    write_image,
    write_labels,
)
from training.dataset import HeadDataset
from training.head import load_head_model
from training.head.model import HeadModel


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> HeadModel:
    """A head of 169 vertices in place of the user's FLAME."""
    head = UprightHead()
    monkeypatch.setattr(imports, 'open_head_model', lambda choice: None if choice is None else head)
    return head


def run_release(release: Release, out: Path, **options) -> tuple[ImportReport, list[str]]:
    lines: list[str] = []
    target = Target(out=str(out), workers=options.pop('workers', 0), **options.pop('target', {}))
    report = import_release(str(release.root), target=target, head_model='sheet', log=lines.append, **options)
    return report, lines


# The public release.


@pytest.mark.parametrize('workers', [0, 2])
def test_release_becomes_a_dataset(tmp_path: Path, model: HeadModel, workers: int) -> None:
    release = make_release(tmp_path / 'ffhq', model)
    report, lines = run_release(release, tmp_path / 'out.zip', workers=workers)
    assert report.accepted == tuple(release.names)
    assert 'images/s' in lines[0]
    assert 'float16' in lines[1]
    assert not rejects(tmp_path / 'out.zip')
    data = HeadDataset(tmp_path / 'out.zip', head_model=model)
    torch.testing.assert_close(data.labels, release.labels)
    head = data.head_input(range(len(data)))
    # Half the spacing of 16-bit numbers below 25 cm is 0.06 mm in each coordinate.
    assert float((head.vertices - release.heads.vertices).abs().max()) <= 0.0625e-3
    assert float((head.landmarks - release.heads.landmarks).abs().max()) <= 0.0625e-3
    with open(release.image(3), 'rb') as handle:
        assert handle.read() == data._source.read(data.names[3])


def test_rounding_is_reported_and_true(tmp_path: Path, model: HeadModel) -> None:
    release = make_release(tmp_path / 'ffhq', model)
    _, lines = run_release(release, tmp_path / 'out.zip')
    values = torch.cat([release.heads.vertices, release.heads.landmarks], dim=1)
    worst = float((values - values.half().float()).norm(dim=-1).max()) * 1000
    assert f'{worst:.3f} mm' in lines[1]
    assert 0 < worst < 0.11


def test_release_fitted(tmp_path: Path, model: HeadModel) -> None:
    release = make_release(tmp_path / 'ffhq', model, count=2)
    _, lines = run_release(release, tmp_path / 'out.zip', fit=True)
    data = HeadDataset(tmp_path / 'out.zip', head_model=model)
    assert data.head_params([0]) is not None
    gap = (data.head_input(range(2)).vertices - release.heads.vertices).norm(dim=-1) * 1000
    assert float(gap.mean()) < 0.1
    assert f'mean {float(gap.mean()):.3f}' in lines[1]
    assert f'max {float(gap.max()):.3f} mm' in lines[1]


def spoil(release: Release) -> dict[str, str]:
    """Damages of each kind, and the reasons that must be given."""
    names = release.names
    text = release.mesh(0).read_text().splitlines()
    release.mesh(0).unlink()
    release.landmarks(1).unlink()
    release.mesh(2).write_text('\n'.join(line for line in text if line.startswith('f ')))
    release.mesh(3).write_text('\n'.join(['v nan 0 0', *text[1:]]))
    release.mesh(4).write_text('\n'.join(text[:20]) + '\n')
    release.mesh(5).write_text('\n'.join(text[:168]) + '\nv 0.01 0.0')
    release.mesh(6).write_text('\n'.join(['v 0.1 zero 0', *text[1:]]))
    np.savetxt(release.landmarks(7), np.zeros((60, 3)))
    np.savetxt(release.landmarks(8), np.full((68, 3), np.nan))
    np.savetxt(release.landmarks(9), 300 * np.ones((68, 3)))
    release.image(10).write_bytes(b'\x89PNG\r\n\x1a\nnothing more')
    write_image(release.image(11), 16, width=20)
    write_image(release.image(12), 24)
    return {
        names[0]: 'no mesh file', names[1]: 'no landmark file', names[2]: 'no vertices', names[3]: 'not finite',
        names[4]: 'wrong number of vertices (20 instead of 169)', names[5]: 'cut short within a vertex',
        names[6]: 'not three numbers', names[7]: '60 landmarks', names[8]: 'a landmark is not finite',
        names[9]: 'outside the mesh', names[10]: 'not a readable image', names[11]: 'not square',
        names[12]: 'another size',
    }  # fmt: skip


def test_damaged_items_are_listed_with_reasons(tmp_path: Path, model: HeadModel) -> None:
    release = make_release(tmp_path / 'ffhq', model, count=20)
    expected = spoil(release)
    labels = json.loads((release.root / 'images512x512/dataset.json').read_text())['labels']
    labels[13][1] = labels[13][1][:20]
    labels[14][1][3] = 'x'
    labels.append(['00000/nowhere.png', labels[0][1]])
    labels.append([labels[15][0], labels[0][1]])
    del labels[16]
    (release.root / 'images512x512/dataset.json').write_text(json.dumps({'labels': labels}))
    expected |= {
        release.names[13]: 'label of 20 numbers', release.names[14]: 'not a number',
        '00000/nowhere.png': 'label without image', release.names[15]: 'two different labels',
        release.names[16]: 'no label',
    }  # fmt: skip
    report, lines = run_release(release, tmp_path / 'out.zip')
    found = rejects(tmp_path / 'out.zip')
    assert set(found) == set(expected)
    for name, reason in expected.items():
        assert reason in found[name], name
    assert report.accepted == tuple(release.names[17:])
    assert '3 of 21 images' in lines[0]
    assert 'rejects.csv' in lines[-1]


def test_sizes_are_resampled_when_asked(tmp_path: Path, model: HeadModel) -> None:
    release = make_release(tmp_path / 'ffhq', model)
    write_image(release.image(0), 24)
    assert 'pass --resolution' in user_error(lambda: run_release(release, tmp_path / 'out.zip'))
    report, _ = run_release(release, tmp_path / 'out.zip', target={'resolution': 32, 'resize': True})
    assert len(report.accepted) == 6
    assert HeadDataset(tmp_path / 'out.zip', head_model=model).resolution == 32


@pytest.mark.parametrize(('scale', 'remedy'), [(2.5, '0.4'), (1000.0, '0.001')])
def test_scaled_meshes_are_refused_with_the_remedy(tmp_path: Path, model: HeadModel, scale: float, remedy: str) -> None:
    release = make_release(tmp_path / 'ffhq', model, scale=scale)
    text = user_error(lambda: run_release(release, tmp_path / 'out.zip'))
    assert f'--mesh-scale={remedy}' in text
    assert not (tmp_path / 'out.zip').exists()
    report, _ = run_release(release, tmp_path / 'out.zip', scale=float(remedy))
    assert len(report.accepted) == 6


def test_upside_down_meshes_are_rejected(tmp_path: Path, model: HeadModel) -> None:
    release = make_release(tmp_path / 'ffhq', model)
    np.savetxt(release.landmarks(0), release.heads.landmarks[0].numpy() * [1, -1, 1])
    vertices = release.heads.vertices[0].numpy() * [1, -1, 1]
    release.mesh(0).write_text(''.join(f'v {x} {y} {z}\n' for x, y, z in vertices))
    # The topology of the first mesh is not stated now, its frame is still checked.
    report, _ = run_release(release, tmp_path / 'out.zip')
    assert 'y must point up' in dict(report.rejected)[release.names[0]]


def test_another_topology_is_refused_before_the_work(tmp_path: Path, model: HeadModel) -> None:
    release = make_release(tmp_path / 'ffhq', model)
    text = release.mesh(0).read_text().replace('f 1 14 15', 'f 2 14 15')
    assert text != release.mesh(0).read_text()
    release.mesh(0).write_text(text)
    assert 'another topology' in user_error(lambda: run_release(release, tmp_path / 'out.zip'))


def test_missing_parts_of_the_layout(tmp_path: Path, model: HeadModel) -> None:
    release = make_release(tmp_path / 'ffhq', model)
    labels = release.root / 'images512x512/dataset.json'
    labels.rename(tmp_path / 'labels.json')
    assert '--labels' in user_error(lambda: run_release(release, tmp_path / 'out.zip'))
    report, _ = run_release(release, tmp_path / 'out.zip', labels=str(tmp_path / 'labels.json'))
    assert len(report.accepted) == 6
    (tmp_path / 'labels.json').write_text('{"labels": [["a", [1,')
    broken = str(tmp_path / 'labels.json')
    assert 'cut short' in user_error(lambda: run_release(release, tmp_path / 'o2.zip', labels=broken))
    shutil.rmtree(release.root / 'meshes512x512')
    assert 'meshes512x512' in user_error(lambda: run_release(release, tmp_path / 'o2.zip'))
    assert 'no such folder' in user_error(
        lambda: import_release(str(tmp_path / 'none'), target=Target(out=str(tmp_path / 'o2.zip')))
    )


def test_without_landmark_files_the_models_are_taken(tmp_path: Path, model: HeadModel) -> None:
    release = make_release(tmp_path / 'ffhq', model)
    shutil.rmtree(release.root / 'lms512x512')
    run_release(release, tmp_path / 'out.zip')
    head = HeadDataset(tmp_path / 'out.zip', head_model=model).head_input([0])
    torch.testing.assert_close(head.landmarks[0], release.heads.landmarks[0], atol=1e-4, rtol=0)
    target = Target(out=str(tmp_path / 'o2.zip'), workers=0)
    assert '--head-model' in user_error(lambda: import_release(str(release.root), target=target))


def test_nothing_usable_leaves_nothing(tmp_path: Path, model: HeadModel) -> None:
    release = make_release(tmp_path / 'ffhq', model)
    for index in range(6):
        release.mesh(index).write_text('f 1 2 3\n')
    assert 'no usable image of 6: 6 x no vertices' in user_error(lambda: run_release(release, tmp_path / 'out.zip'))
    assert [path.name for path in tmp_path.iterdir()] == ['ffhq']


def test_interrupted_run_leaves_nothing(tmp_path: Path, model: HeadModel, monkeypatch: pytest.MonkeyPatch) -> None:
    release = make_release(tmp_path / 'ffhq', model)

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr('applications.datasets.mesh_import.MeshFinisher.__call__', stop)
    with pytest.raises(KeyboardInterrupt):
        run_release(release, tmp_path / 'out.zip')
    assert [path.name for path in tmp_path.iterdir()] == ['ffhq']


def test_interrupted_fits_continue(tmp_path: Path, model: HeadModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits that an earlier run kept are taken as they are; dataset and report are those of an uninterrupted run."""
    release = make_release(tmp_path / 'ffhq', model, count=4)
    fitted: list[int] = []
    stop_at: list[int] = []

    def fit(self: MeshFitter, vertices: torch.Tensor) -> MeshFit:  # that it fits is tested above
        if len(fitted) in stop_at:
            raise KeyboardInterrupt
        fitted.append(len(vertices))
        params = self.model.neutral(len(vertices)).replace(translation=vertices.mean(dim=1))
        return MeshFit(params=params, error=vertices.norm(dim=2))

    monkeypatch.setattr(MeshFitter, 'fit', fit)
    monkeypatch.setattr(importing, 'CHUNK', 2)
    _, expected = run_release(release, tmp_path / 'whole.zip', fit=True)
    stop_at[:] = [3]
    with pytest.raises(KeyboardInterrupt):
        run_release(release, tmp_path / 'out.zip', fit=True)
    assert sorted(path.name for path in tmp_path.glob('out*')) == ['out-work']
    stop_at[:] = []
    _, lines = run_release(release, tmp_path / 'out.zip', fit=True)
    assert 'out-work: continuing, 1 batches of fits are done' in lines[0]
    assert fitted == [2, 2, 2, 2]
    assert lines[2] == expected[1]
    assert sorted(path.name for path in tmp_path.glob('out*')) == ['out-report', 'out.zip']
    for name in ('{}.zip', '{}-report/items.csv'):
        assert (tmp_path / name.format('out')).read_bytes() == (tmp_path / name.format('whole')).read_bytes()


# EG3D datasets.


def eg3d(tmp_path: Path, model: HeadModel) -> tuple[Path, list[str]]:
    path = make_dataset(tmp_path / 'eg3d.zip', heads='none', model=model)
    return path, HeadDataset(path).names


@pytest.mark.parametrize('named', [True, False])
def test_eg3d_with_a_parameter_file(tmp_path: Path, model: HeadModel, named: bool) -> None:
    path, names = eg3d(tmp_path, model)
    params = random_params(model, 6, seed=5)
    order = list(reversed(range(6))) if named else list(range(6))
    arrays = {key: value[order].numpy() for key, value in params.as_dict().items()}
    extra = {'names': np.array([names[i].encode() for i in order])} if named else {}
    np.savez(tmp_path / 'heads.npz', **arrays, **extra)  # type: ignore[arg-type]
    target = Target(out=str(tmp_path / 'out.zip'), workers=0)
    import_eg3d(str(path), target=target, params=str(tmp_path / 'heads.npz'), log=lambda line: None)
    data = HeadDataset(tmp_path / 'out.zip', head_model=model)
    found = data.head_params(range(6))
    assert found is not None
    torch.testing.assert_close(found.expression, params.expression)
    torch.testing.assert_close(data.labels, HeadDataset(path).labels)
    np.savez(tmp_path / 'short.npz', **{key: value[:4] for key, value in arrays.items()})  # type: ignore[arg-type]
    short = str(tmp_path / 'short.npz')
    assert '4 rows for 6 images' in user_error(
        lambda: import_eg3d(str(path), target=Target(out=str(tmp_path / 'o2.zip')), params=short)
    )


def test_eg3d_with_meshes_by_name(tmp_path: Path, model: HeadModel) -> None:
    path, names = eg3d(tmp_path, model)
    release = make_release(tmp_path / 'ffhq', model)
    for folder, suffix in (('meshes512x512', '.obj'), ('lms512x512', '.txt')):
        target_folder = tmp_path / folder
        target_folder.mkdir()
        for name, old in zip(names, release.names, strict=True):
            shutil.copy(
                release.root / folder / Path(old).with_suffix(suffix), target_folder / f'{Path(name).stem}{suffix}'
            )
    meshes = Meshes(folder=tmp_path / 'meshes512x512', landmarks=tmp_path / 'lms512x512')
    target = Target(out=str(tmp_path / 'out.zip'), workers=0)
    report = import_eg3d(str(path), target=target, meshes=meshes, head_model='sheet', log=lambda line: None)
    assert report.accepted == tuple(names)
    # The same name twice, in folders that do not match the images': nobody can tell which.
    for copy in ('a', 'b'):
        (tmp_path / 'meshes512x512' / copy).mkdir()
        shutil.copy(release.mesh(0), tmp_path / 'meshes512x512' / copy / f'{Path(names[0]).stem}.obj')
    (tmp_path / 'meshes512x512' / f'{Path(names[0]).stem}.obj').unlink()
    target = Target(out=str(tmp_path / 'o2.zip'), workers=0)
    report = import_eg3d(str(path), target=target, meshes=meshes, head_model='sheet', log=lambda line: None)
    assert 'several mesh files' in dict(report.rejected)[names[0]]


def test_eg3d_with_deca_through_the_command(tmp_path: Path) -> None:
    tracked = make_tracked(tmp_path, 'deca', count=3)
    write_labels(tmp_path / 'crops/dataset.json', tracked.names, random_labels(3, seed=0))
    command = ['from-eg3d', f'--data={tmp_path / "crops"}', f'--deca={tracked.params}', '--workers=0']
    command += [f'--head-model={tmp_path / "flame"}', f'--out={tmp_path / "out.zip"}']
    result = CliRunner().invoke(dataset_tool.main, command)
    assert result.exit_code == 0, result.output
    assert '3 of 3 images' in result.output
    result = CliRunner().invoke(dataset_tool.main, command)
    assert result.exit_code == 1
    assert '--overwrite' in result.output
    result = CliRunner().invoke(dataset_tool.main, [*command, '--smirk=x'])
    assert result.exit_code == 2


def test_release_of_the_embedded_head_through_the_command(tmp_path: Path) -> None:
    head = load_head_model('makehuman')
    release = make_release(tmp_path / 'ffhq', head, count=2)
    command = ['from-release', f'--source={release.root}', '--head-model=makehuman', '--workers=0', '--fit']
    result = CliRunner().invoke(dataset_tool.main, [*command, f'--out={tmp_path / "out.zip"}'])
    assert result.exit_code == 0, result.output
    data = HeadDataset(tmp_path / 'out.zip')
    assert float((data.head_input([0, 1]).vertices - release.heads.vertices).norm(dim=-1).mean()) < 2e-5
    assert 'fit error' in result.output


def test_flame_of_5023_vertices_is_expected_without_a_model(tmp_path: Path) -> None:
    release = make_release(tmp_path / 'ffhq', UprightHead(), count=2)
    target = Target(out=str(tmp_path / 'out.zip'), workers=0)
    text = user_error(lambda: import_release(str(release.root), target=target))
    assert 'no usable image of 2: 2 x wrong number of vertices' in text
