"""training/dataset*.py: reading and mirroring."""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cases_dataset import (
    COLUMNS,
    ROWS,
    SheetHead,
    edit_labels,
    make_dataset,
    random_labels,
    random_params,
    user_error,
)
from torch_utils.workers import in_runs
from training import cameras
from training.dataset import HeadDataset
from training.dataset_format import HEAD_FILE
from training.dataset_labels import LABEL_FILE, label_text, read_labels, stored_labels
from training.dataset_source import Source, ZipSource, open_source
from training.head import load_head_model
from training.head.landmarks import MIRROR
from training.head.makehuman import MakeHumanHead
from training.head.model import PARAM_FIELDS, HeadModel, HeadParams
from training.mirroring import mirror_vertex_map

FIRST, SECOND = '00000/img00000000.png', '00000/img00000001.png'
MODEL = SheetHead()


def opened(path: Path, **options) -> HeadDataset:
    return HeadDataset(path, head_model=MODEL, **options)


# Reading.


@pytest.mark.parametrize('name', ['a.zip', 'a'])
@pytest.mark.parametrize('heads', ['params', 'mesh', 'none'])
def test_reads_back_what_was_written(tmp_path: Path, name: str, heads: str) -> None:
    dataset = opened(make_dataset(tmp_path / name, heads=heads))
    assert (len(dataset), dataset.name, dataset.resolution) == (6, 'a', 16)
    rng = np.random.default_rng(0)
    params = random_params(MODEL, 6, seed=0)
    torch.testing.assert_close(dataset.labels, random_labels(6, seed=0), rtol=0, atol=0)
    batch = dataset.batch([4, 1, 4])
    for i in range(6):
        image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        np.testing.assert_array_equal(dataset.image(i), image.transpose(2, 0, 1))
    assert batch.image.shape == (3, 3, 16, 16)
    assert batch.indices.tolist() == [4, 1, 4]
    torch.testing.assert_close(batch.label, dataset.labels[[4, 1, 4]])
    if heads == 'none':
        assert batch.head is None
        assert dataset.identities is None
        return
    assert dataset.identities is not None
    assert dataset.identities.tolist() == [0, 0, 1, 1, 2, 2]
    want = MODEL.forward(params[[4, 1, 4]])
    assert batch.head is not None
    tolerance = 1e-6 if heads == 'params' else 7e-5  # meshes are stored as float16
    torch.testing.assert_close(batch.head.vertices, want.vertices, rtol=0, atol=tolerance)
    torch.testing.assert_close(batch.head.landmarks, want.landmarks, rtol=0, atol=tolerance)
    assert (batch.params is None) == (heads == 'mesh')


def test_equal_content_gives_equal_files(tmp_path: Path) -> None:
    one, two = make_dataset(tmp_path / 'one.zip'), make_dataset(tmp_path / 'two.zip')
    other, folder = make_dataset(tmp_path / 'other.zip', seed=1), make_dataset(tmp_path / 'folder')
    assert one.read_bytes() == two.read_bytes()
    assert opened(one).content_hash == opened(folder).content_hash != opened(other).content_hash
    with zipfile.ZipFile(one) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        with np.load(io.BytesIO(archive.read(HEAD_FILE))) as plain:
            assert set(PARAM_FIELDS) < set(plain.files)
        assert json.loads(archive.read(LABEL_FILE))['labels'][0][0] == FIRST


def test_large_requests_are_computed_in_batches(tmp_path: Path) -> None:
    dataset = opened(make_dataset(tmp_path / 'a.zip'), mirror=True)
    indices = torch.randint(0, 12, (600,), generator=torch.Generator().manual_seed(0))
    head = dataset.head_input(indices)
    single = dataset.head_input([int(indices[577])])
    assert head.vertices.shape == (600, 169, 3)
    torch.testing.assert_close(head.vertices[577], single.vertices[0])


def test_opening_reads_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_dataset(tmp_path / 'a.zip', count=20)
    read, names = ZipSource.read, []

    def counted(self: ZipSource, name: str) -> bytes:
        names.append(name)
        return read(self, name)

    monkeypatch.setattr(ZipSource, 'read', counted)
    dataset = HeadDataset(path)
    assert names == [FIRST]  # the labels came from head.npz, which is mapped
    for _ in range(2):
        dataset.images([0, 3, 3])
    assert sorted(names[1:]) == [FIRST, '00000/img00000003.png']  # decoded once, then cached
    dataset = HeadDataset(path, cache_bytes=0)
    names.clear()
    for _ in range(2):
        dataset.image(3)
    assert len(names) == 2


def test_returned_images_are_copies(tmp_path: Path) -> None:
    dataset = opened(make_dataset(tmp_path / 'a.zip'), mirror=True)
    before = dataset.image(2).copy()
    dataset.image(2)[:] = 0
    dataset.images([2, 8]).zero_()
    np.testing.assert_array_equal(dataset.image(2), before)


def _image_sum(args: tuple[HeadDataset, int]) -> int:
    return int(args[0].image(args[1]).sum())


@pytest.mark.parametrize('cache_bytes', [0, 1 << 20])
@pytest.mark.parametrize('threads', [1, 3, 64])
def test_a_batch_of_images_is_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_bytes: int, threads: int
) -> None:
    monkeypatch.setattr('torch_utils.workers.usable_cores', lambda: 64)
    dataset = opened(make_dataset(tmp_path / 'a.zip'), mirror=True, cache_bytes=cache_bytes, decode_threads=threads)
    alone = np.stack([dataset.decode(i) for i in range(12)])
    for items in ([4], [3, 9, 3], [11, 5, 0, 1, 5, 7, 2], list(range(12)), []):
        assert np.array_equal(dataset.images(items).numpy(), alone[items]), items


@pytest.mark.parametrize('threads', [0, 1, 2, 5, 100])
def test_runs_cover_everything_once(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr('torch_utils.workers.usable_cores', lambda: 8)
    for count in (0, 1, 2, 7):
        runs: list[range] = []
        in_runs(runs.append, count, threads=threads)
        assert sorted(i for run in runs for i in run) == list(range(count))
        assert len(runs) <= 4 * max(threads, 1)


@pytest.mark.parametrize('heads', ['params', 'mesh'])
def test_many_readers(tmp_path: Path, heads: str) -> None:
    dataset = opened(make_dataset(tmp_path / 'a.zip', count=12, heads=heads), mirror=True, cache_bytes=0)
    want = [int(dataset.image(i).sum()) for i in range(24)]
    clone = pickle.loads(pickle.dumps(dataset))
    assert len(pickle.dumps(HeadDataset(dataset.path))) < 20_000  # no images, no heads
    torch.testing.assert_close(clone.head_input([3, 15]).vertices, dataset.head_input([3, 15]).vertices)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(_image_sum, [(dataset, i % 24) for i in range(240)])) == want * 10
    with multiprocessing.get_context('fork').Pool(2) as processes:
        assert processes.map(_image_sum, [(clone, i) for i in range(24)]) == want


def test_index_out_of_range(tmp_path: Path) -> None:
    dataset = opened(make_dataset(tmp_path / 'a.zip'), mirror=True)
    for index in (12, -1):
        with pytest.raises(IndexError, match='0 to 11'):
            dataset.label([0, index])


def test_reads_eg3d_datasets(tmp_path: Path) -> None:
    path = make_dataset(tmp_path / 'a.zip', heads='none')
    labels = opened(path).labels
    edit_labels(
        path, lambda entries: [[n.replace('/', '\\'), v] for n, v in reversed(entries)] + [['gone.png', [0] * 25]]
    )
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**files, '__MACOSX/._img.png': b'', '00000/.hidden.png': b''}.items():
            archive.writestr(name, data)
    dataset = opened(path, mirror=True)
    torch.testing.assert_close(dataset.labels, labels)
    assert dataset.image(7).shape == (3, 16, 16)
    assert dataset.head_params([0]) is None
    assert 'from-photos' in user_error(lambda: dataset.head_input([0]))
    assert dataset.batch([0]).head is None


# Mirroring.


def check_mirrored(dataset: HeadDataset, model: HeadModel) -> None:
    """The mirrored mesh and landmarks under the mirrored camera are the flipped projections."""
    count = len(dataset) // 2
    here, there = torch.arange(count), torch.arange(count, 2 * count)
    flip = torch.tensor([-1.0, 1.0])
    vertex_map = mirror_vertex_map(model.template)
    left, right = dataset.head_input(here), dataset.head_input(there)
    for name, renumber in (('vertices', vertex_map), ('landmarks', torch.tensor(MIRROR))):
        points, depth = cameras.project(cameras.head_to_world(getattr(left, name)), dataset.label(here))
        other, other_depth = cameras.project(cameras.head_to_world(getattr(right, name)), dataset.label(there))
        assert points.std() > 0.05
        torch.testing.assert_close(other, (points * flip + torch.tensor([1.0, 0.0]))[:, renumber], rtol=0, atol=2e-4)
        torch.testing.assert_close(other_depth, depth[:, renumber], rtol=0, atol=2e-4)
    np.testing.assert_array_equal(dataset.image(count), dataset.image(0)[:, :, ::-1])
    torch.testing.assert_close(dataset.images(there), dataset.images(here).flip(3))


@pytest.mark.parametrize('heads', ['params', 'mesh'])
@pytest.mark.parametrize('head', ['sheet', 'makehuman'])
def test_mirror_changes_all_sides_together(tmp_path: Path, heads: str, head: str) -> None:
    model = MODEL if head == 'sheet' else load_head_model('makehuman')

    def shift(entries: list) -> list:  # a camera whose centre and skew are not symmetric
        entries[1][1][17:19], entries[1][1][21] = [0.02, 0.43], 0.55
        return entries

    path = edit_labels(make_dataset(tmp_path / 'a.zip', heads=heads, model=model), shift)
    check_mirrored(HeadDataset(path, mirror=True, head_model=model), model)


def test_mirrored_mesh_equals_mirrored_parameters(tmp_path: Path) -> None:
    params, mesh = (opened(make_dataset(tmp_path / f'{h}.zip', heads=h), mirror=True) for h in ('params', 'mesh'))
    indices = [9, 0, 11]
    torch.testing.assert_close(
        params.head_input(indices).vertices, mesh.head_input(indices).vertices, rtol=0, atol=7e-5
    )


class LopsidedHead(SheetHead):
    """A head whose parameters cannot express their mirror image exactly, as FLAME."""

    def mirror(self, params: HeadParams) -> HeadParams:
        exact = super().mirror(params)
        return exact.replace(identity=exact.identity + 0.5)


def test_mirrored_meshes_are_exact_where_parameters_are_not(tmp_path: Path) -> None:
    model = LopsidedHead()
    dataset = HeadDataset(make_dataset(tmp_path / 'a.zip', model=model), mirror=True, head_model=model)
    check_mirrored(dataset, model)


def test_vertex_map_survives_a_slightly_asymmetric_neutral_shape() -> None:
    """As FLAME's: off by up to the distance between neighbouring vertices."""
    model = MakeHumanHead()
    want = model.mirror_vertices
    assert torch.equal(mirror_vertex_map(model.template), want)
    points = model.template.vertices
    lopsided = points + 0.002 * torch.sin(40 * points[:, [1, 2, 0]] + torch.tensor([0.3, 1.0, 2.0]))
    assert (lopsided[want] * torch.tensor([-1.0, 1.0, 1.0]) - lopsided).norm(dim=1).max() > 0.004
    template = dataclasses.replace(model.template, vertices=lopsided)
    assert torch.equal(mirror_vertex_map(template), want)


def test_vertex_map_ignores_diagonals() -> None:
    """Quads split one way on both sides, as an exporter does it."""
    index = torch.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    a, b, c, d = (part.reshape(-1) for part in (index[:-1, :-1], index[1:, :-1], index[:-1, 1:], index[1:, 1:]))
    faces = torch.cat([torch.stack([a, b, d], -1), torch.stack([a, d, c], -1)])
    template = dataclasses.replace(MODEL.template, faces=faces, uv_faces=faces)
    assert torch.equal(mirror_vertex_map(template), MODEL.vertex_map)
    lopsided = template.vertices + 0.0007 * torch.sin(20 * template.vertices[:, [1, 2, 0]])
    assert torch.equal(mirror_vertex_map(dataclasses.replace(template, vertices=lopsided)), MODEL.vertex_map)


def test_asymmetric_mesh_cannot_be_mirrored() -> None:
    vertices = MODEL.template.vertices + torch.tensor([0.03, 0.0, 0.0])
    faces = MODEL.template.faces[1:]
    template = dataclasses.replace(MODEL.template, vertices=vertices, faces=faces, uv_faces=faces)
    assert 'symmetry' in user_error(lambda: mirror_vertex_map(template))


# Labels.


def test_labels_parsed_as_json_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((50, 25)).astype(np.float32) * 10.0 ** rng.integers(-8, 8, (50, 25)).astype(np.float32)
    entries = [json.loads(label_text(f'ä {i}.png', row)) for i, row in enumerate(values)]
    for number, text in enumerate(
        [json.dumps({'labels': entries}), json.dumps({'version': 1, 'labels': entries}, indent=1), '\n{"labels" :[ ]}']
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / LABEL_FILE).write_text(text)
        table = read_labels(open_source(folder))
        assert table.names == [name for name, _ in json.loads(text)['labels']]
        np.testing.assert_array_equal(table.values, values[: len(table.names)])


def test_cut_label_file_is_always_an_error(tmp_path: Path) -> None:
    text = json.dumps({'labels': [['a.png', [1.5] * 25], ['b.png', [2.5] * 25]]})
    for end in range(len(text)):
        (tmp_path / LABEL_FILE).write_text(text[:end])
        assert LABEL_FILE in user_error(lambda: read_labels(open_source(tmp_path)))


def test_source_interface_is_complete(tmp_path: Path) -> None:
    zipped, folder = make_dataset(tmp_path / 'a.zip'), make_dataset(tmp_path / 'b')
    sources: list[Source] = [open_source(zipped), open_source(folder)]
    assert sources[0].names == sources[1].names
    for name in sources[0].names:
        assert sources[0].read(name) == sources[1].read(name)
        for source in sources:
            extent = source.extent(name)
            assert extent is not None
            data = extent.path.read_bytes()[extent.offset : extent.offset + extent.size]
            assert data == source.read(name)
        assert sources[0].checksum(name) == sources[1].checksum(name)


def test_labels_are_stored_twice_and_the_text_wins(tmp_path: Path) -> None:
    """Opening takes head.npz's copy as long as dataset.json is what it was; after an edit, the text."""
    path = tmp_path / 'data'
    make_dataset(path)
    labels = HeadDataset(path).labels
    stored = stored_labels(open_source(path))
    assert stored is not None
    assert np.array_equal(stored, labels.numpy())
    text = (path / LABEL_FILE).read_text()
    entries = json.loads(text)
    entries['labels'][2][1][3] += 0.25
    (path / LABEL_FILE).write_text(json.dumps(entries))
    assert stored_labels(open_source(path)) is None
    edited = HeadDataset(path).labels
    assert torch.equal(edited[:, :3], labels[:, :3])
    assert torch.allclose(edited[2, 3], labels[2, 3] + 0.25)
    (path / LABEL_FILE).write_text(text[:-20])  # cut short: read as text, and refused
    assert 'cut short' in user_error(lambda: HeadDataset(path))
