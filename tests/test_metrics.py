"""Frechet distances: exact formulas, sensitivity, batch and rank independence, caching, loaders."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from cases_metrics import BlobDataset, BlobGenerator, blob_images, write_inception

from dnnlib import UserError
from dnnlib.download import fetch
from dnnlib.files import sha256_file
from metrics import registry
from metrics.adapter import NetworkAdapter
from metrics.estimators.inception import load_inception
from metrics.estimators.random_features import RandomFeatures, counter_weights
from metrics.features import extract_features
from metrics.frechet import Statistics, frechet_distance, statistics
from metrics.names import parse_metric
from metrics.protocol import Protocol
from metrics.registry import check_metrics, evaluate, write_results
from metrics.shots import plan
from metrics.sources import ShotImages, choose_indices
from metrics.tables import CHUNK, Workshop, read_chunk
from torch_utils.distributed import Communicator, run

FROZEN_HASH = '477ef5eb086d5e9a200b529fdbb45b369ad1034d610337dcf15e5b5ad0dadb71'
CPU = Communicator(torch.device('cpu'))


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    features = RandomFeatures()
    return frechet_distance(*(statistics(extract_features([images], features)) for images in (first, second)))


# Frechet distance.


def test_statistics_equal_numpy() -> None:
    features = np.random.default_rng(0).normal(5, 2, (3000, 7)).astype(np.float32)
    result = statistics(features)
    np.testing.assert_allclose(result.mean, features.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        result.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-10, atol=1e-12
    )
    assert result.count == 3000


def test_distance_equals_matrix_square_root() -> None:
    rng = np.random.default_rng(1)
    first, second = (statistics(rng.normal(0, 1, (200, 12)) @ rng.normal(0, 1, (12, 12)) + shift) for shift in (0, 1))
    root = scipy.linalg.sqrtm(first.covariance @ second.covariance).real
    gap = first.mean - second.mean
    expected = gap @ gap + np.trace(first.covariance + second.covariance - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-9)


def test_distance_of_diagonal_gaussians() -> None:
    first = Statistics(np.array([0.0, 1.0]), np.diag([4.0, 9.0]), 10)
    second = Statistics(np.array([3.0, 1.0]), np.diag([1.0, 0.0]), 10)
    assert frechet_distance(first, second) == pytest.approx(9 + (2 - 1) ** 2 + (3 - 0) ** 2, rel=1e-12)


def test_distance_to_itself_is_zero_even_with_few_samples() -> None:
    features = np.random.default_rng(2).normal(0, 30, (20, 64))  # singular covariance
    same = statistics(features)
    assert frechet_distance(same, same) < 1e-9 * np.trace(same.covariance)


def test_statistics_reject_bad_features() -> None:
    with pytest.raises(ValueError, match='at least 2'):
        statistics(np.zeros((1, 4)))
    with pytest.raises(ValueError, match='finite'):
        statistics(np.array([[0.0], [np.nan]]))
    with pytest.raises(ValueError, match='same width'):
        frechet_distance(statistics(np.eye(3)), statistics(np.eye(4)))


# The stand-in network.


def test_random_features_are_frozen() -> None:
    features = RandomFeatures()
    assert counter_weights(0, 100000).var() == pytest.approx(1, abs=0.02)
    assert abs(float(counter_weights(1, 100000).mean())) < 0.02
    assert features.content_hash == FROZEN_HASH
    assert features(blob_images(2, seed=0)).shape == (2, features.num_features)


def test_features_do_not_depend_on_the_batch() -> None:
    images = blob_images(9, seed=3)
    features = RandomFeatures()
    together = extract_features([images], features)
    apart = extract_features(images.split(2), features)
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-6)


def test_features_reject_other_ranges() -> None:
    with pytest.raises(ValueError, match='uint8'):
        extract_features([torch.zeros(1, 3, 16, 16)], RandomFeatures())
    with pytest.raises(ValueError, match='side of at least'):
        extract_features([torch.zeros(1, 3, 4, 4, dtype=torch.uint8)], RandomFeatures())


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    radius = int(3 * sigma) + 1
    taps = torch.exp(-((torch.arange(-radius, radius + 1.0) / sigma) ** 2) / 2)
    taps = (taps / taps.sum()).repeat(3, 1, 1, 1)
    padded = F.pad(images.float(), (radius,) * 4, mode='reflect')
    return F.conv2d(F.conv2d(padded, taps, groups=3), taps.transpose(2, 3), groups=3).round().byte()


def noise(images: torch.Tensor, scale: float) -> torch.Tensor:
    draw = torch.randn(images.shape, generator=torch.Generator().manual_seed(4))
    return (images.float() + scale * draw).round().clamp(0, 255).byte()


def tint(images: torch.Tensor, share: float) -> torch.Tensor:
    grey = images.float().mean(dim=1, keepdim=True)
    return (images.float() * (1 - share) + grey * share).round().byte()


def shuffle(images: torch.Tensor, share: float) -> torch.Tensor:
    count = int(share * len(images))
    patches = F.unfold(images[:count].float(), 8, stride=8)
    order = torch.randperm(patches.shape[2], generator=torch.Generator().manual_seed(6))
    return torch.cat([F.fold(patches[:, :, order], images.shape[2], 8, stride=8).byte(), images[count:]])


@pytest.mark.parametrize(
    ('corrupt', 'strengths'),
    [
        (blur, (0.4, 0.8, 1.6, 3.2)),
        (noise, (5.0, 10.0, 20.0, 40.0)),
        (tint, (0.2, 0.4, 0.8)),
        (shuffle, (0.25, 0.5, 1.0)),
    ],
    ids=['blur', 'noise', 'saturation', 'patches'],
)
def test_stand_in_grows_with_corruption(corrupt, strengths) -> None:
    images, others = blob_images(160, seed=1), blob_images(160, seed=2)
    floor = distance(images, others)
    values = [distance(images, corrupt(others, strength)) for strength in strengths]
    assert floor < values[0] or values[0] == pytest.approx(floor, rel=0.2)
    assert all(a < b for a, b in zip(values, values[1:], strict=False)), values
    assert values[-1] > 3 * floor


# Names.


@pytest.mark.parametrize(
    ('name', 'family', 'estimator', 'counts', 'full', 'suffix'),
    [
        ('fid50k_full', 'fid', None, (50000,), True, '50k'),
        ('fid_synth500', 'fid', 'synth', (500,), False, '500'),
        ('fd_random500', 'fd', 'random', (500,), False, '500'),
        ('fid3d2k_full', 'fid3d', None, (2000,), True, '2k'),
        ('pr50k3_full', 'pr', None, (50000, 3), True, '50k3'),
        ('pr_synth500nn5', 'pr', 'synth', (500, 5), False, '500nn5'),
        ('ppl_z_synth1500', 'ppl_z', 'synth', (1500,), False, '1500'),
        ('aed', 'aed', None, (500, 20), False, ''),
        ('aed_l1_synth50x4', 'aed_l1', 'synth', (50, 4), False, '50x4'),
        ('apd_no_roll500x20', 'apd_no_roll', None, (500, 20), False, ''),
        ('id_crossview100', 'id_crossview', None, (100,), False, '100'),
        ('flicker', 'flicker', None, (100, 16), False, ''),
    ],
)
def test_metric_names(name, family, estimator, counts, full, suffix) -> None:
    metric = parse_metric(name)
    assert (metric.family, metric.estimator, metric.counts, metric.full) == (family, estimator, counts, full)
    assert metric.suffix == suffix


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('fid', r'expected fid\[_<estimator>\]<N>\[k\]\[_full\]'),
        ('FID50k', 'expected one of fid, fd'),
        ('fid50k_fast', 'expected fid'),
        ('fid0', 'expected fid'),
        ('fd50', 'expected fd'),
        ('pr50k_full', 'expected pr'),
        ('aed50', r'expected aed\[_<estimator>\]\[<identities>x<images>\]'),
        ('aed_full', None),  # an estimator called "full": found out when it is loaded
        ('fid1', 'at least 2 images'),
        ('flicker10x2', 'at least 1 x 3'),
    ],
)
def test_metric_names_that_are_none(name: str, message: str | None) -> None:
    if message is None:
        with pytest.raises(UserError, match='unknown'):
            check_metrics([name], Protocol())
        return
    with pytest.raises(UserError, match=message):
        parse_metric(name)


def test_a_word_of_a_name_takes_its_path_from_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(registry, 'load_head_estimator', lambda spec, **_: asked.append(spec))
    protocol = Protocol(head='smirk:here.pt')
    for name in ('aed_smirk', 'aed', 'aed_emoca'):
        registry.load_estimator(parse_metric(name), protocol)
    registry.load_estimator(parse_metric('aed'), Protocol())
    assert asked == ['smirk:here.pt', 'smirk:here.pt', 'emoca', 'deca']
    with pytest.raises(UserError, match='only the official Inception has classes'):
        check_metrics(['is_synth50'], Protocol())


# Generated images.


def shot_images(*, seed: int = 3, generator: BlobGenerator | None = None) -> ShotImages:
    shots = plan(parse_metric('fid10'), items=96, seed=seed)
    adapter = NetworkAdapter(generator or BlobGenerator())
    return ShotImages(adapter, BlobDataset(), shots, seed=seed, device=CPU.device)


def test_images_do_not_depend_on_batch_or_order() -> None:
    source = shot_images()
    together = source.images(range(10))
    backwards = torch.cat([source.images([index]) for index in reversed(range(10))]).flip(0)
    assert torch.equal(together, backwards)
    assert not torch.equal(together, shot_images(seed=4).images(range(10)))


def test_camera_and_head_are_drawn_per_image() -> None:
    generator = BlobGenerator()
    shot_images(generator=generator).images(range(10))
    assert len({row.item() for row in generator.labels[0][:, 0]}) > 7


def test_wrong_resolution_is_refused() -> None:
    dataset = BlobDataset()
    dataset.resolution = 64
    with pytest.raises(UserError, match='64 px but network makes 32'):
        ShotImages(NetworkAdapter(BlobGenerator()), dataset, [], seed=0, device=CPU.device)


def test_latents_on_the_way_between_two_persons() -> None:
    shots = plan(parse_metric('ppl_z_random4'), items=96, seed=0)
    assert [shot.mix for shot in shots[1::2]] == [shot.mix + 1 / 16 for shot in shots[0::2]]
    for name in ('ppl_random20', 'ppl_z_random20'):
        result = evaluate_blobs(name)
        assert result['value'] > 0
        assert result['metric'] == name


# Tables.


def test_tables_are_made_once_and_again_where_damaged(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute(indices: Sequence[int]) -> np.ndarray:
        calls.extend(indices)
        return np.stack([[index, index / 3] for index in indices]).astype(np.float32)

    def table() -> np.ndarray:
        return Workshop(communicator=CPU, batch=16, cache_dir=tmp_path).table(['key'], 150, compute, what='rows')

    first = table()
    assert first[:, 0].tolist() == list(range(150))
    assert calls == list(range(150))
    assert np.array_equal(table(), first)
    assert len(calls) == 150
    chunks = sorted(tmp_path.rglob('*.npz'))
    data = bytearray(chunks[1].read_bytes())
    data[len(data) // 2] ^= 1
    chunks[1].write_bytes(data)
    chunks[2].unlink()  # as after an interruption
    assert read_chunk(chunks[1], CHUNK) is None
    assert np.array_equal(table(), first)
    assert calls[150:] == list(range(CHUNK, 150))
    other = Workshop(communicator=CPU, batch=16, cache_dir=tmp_path).table(['other'], 3, compute, what='rows')
    assert len(other) == 3
    workshop = Workshop(communicator=CPU, batch=16, cache_dir=tmp_path)
    calls.clear()
    for _ in range(2):
        workshop.table(['fleeting'], 3, compute, what='rows', keep=False)
    assert calls == [0, 1, 2]
    assert len(list(tmp_path.rglob('*.npz'))) == 4


def test_choose_indices() -> None:
    assert choose_indices(5, None, seed=0) == [0, 1, 2, 3, 4]
    assert choose_indices(5, 9, seed=0) == [0, 1, 2, 3, 4]
    chosen = choose_indices(1000, 100, seed=0)
    assert len(set(chosen)) == 100
    assert chosen == sorted(chosen)
    assert chosen != choose_indices(1000, 100, seed=1)


# The whole measurement.


def evaluate_blobs(name: str, dataset: BlobDataset | None = None, **protocol) -> dict:
    return evaluate(
        [name],
        subject=NetworkAdapter(BlobGenerator(), content_hash='g'),
        dataset=dataset or BlobDataset(),
        protocol=Protocol(**protocol),
        communicator=CPU,
        facts={'kimg': 7},
    )[0]


def measure(tmp_path: Path, name: str = 'fd_random40_full', **protocol) -> dict:
    return evaluate_blobs(name, cache_dir=tmp_path, **protocol)


def test_result_holds_the_protocol(tmp_path: Path) -> None:
    result = measure(tmp_path, seed=2, truncation_psi=0.7)
    assert result['metric'] == 'fd_random40_full'
    assert result['value'] > 0
    expected = {'kimg': 7, 'seed': 2, 'num_real': 96, 'num_generated': 40, 'truncation_psi': 0.7, 'dataset': 'blobs'}
    assert {key: result[key] for key in expected} == expected
    assert result['estimator_hash'] == RandomFeatures().content_hash
    assert result['interval'][0] < result['value'] < result['interval'][1]
    assert 0 < result['floor'] < result['value']
    out = tmp_path / 'results.jsonl'
    write_results(out, [result])
    write_results(out, [result])
    stored = json.loads(json.dumps(result))
    assert [json.loads(line) for line in out.read_text().splitlines()] == [stored, stored]


def test_value_is_independent_of_batch_and_cache(tmp_path: Path) -> None:
    first = measure(tmp_path / 'a', batch=16)
    assert measure(tmp_path / 'b', batch=7)['value'] == first['value']
    assert measure(tmp_path / 'a', batch=16)['value'] == first['value']  # from kept features
    assert measure(tmp_path / 'a', batch=16, seed=1)['value'] != first['value']


def test_real_images_are_read_once(tmp_path: Path) -> None:
    dataset = BlobDataset()
    evaluate_blobs('fd_random20_full', dataset, cache_dir=tmp_path)
    evaluate_blobs('kid_random30_full', dataset, cache_dir=tmp_path, seed=5)
    assert dataset.reads == len(dataset)
    evaluate_blobs('fd_random20', dataset, cache_dir=tmp_path)
    assert dataset.reads == len(dataset) + 20


@pytest.mark.parametrize('name', ['kid_random40_full', 'pr_random40nn3_full', 'fid3d_random40', 'fid_random40'])
def test_other_distances_run_on_the_same_features(tmp_path: Path, name: str) -> None:
    result = measure(tmp_path, name)
    assert result['metric'] == name + ('_precision' if name.startswith('pr') else '')
    assert not result['official']
    if name.startswith('pr'):
        assert 0 <= result['interval'][0] <= result['value'] <= result['interval'][1] <= 1
    else:
        assert result['value'] > 0


def _measure_on_rank(path: str, communicator: Communicator) -> None:
    results = evaluate(
        ['fd_random150_full', 'kid_random150_full'],
        subject=NetworkAdapter(BlobGenerator(), content_hash='g'),
        dataset=BlobDataset(),
        protocol=Protocol(cache_dir=f'{path}/cache{communicator.rank}'),  # ranks need not share a folder
        communicator=communicator,
    )
    Path(path, f'rank{communicator.rank}.json').write_text(json.dumps([result['value'] for result in results]))


def test_two_ranks_give_the_value_of_one_to_the_last_bit(tmp_path: Path) -> None:
    run(functools.partial(_measure_on_rank, str(tmp_path)), 'cpu', ranks=2)
    values = [json.loads((tmp_path / f'rank{rank}.json').read_text()) for rank in range(2)]
    alone = [measure(tmp_path / 'alone', name)['value'] for name in ('fd_random150_full', 'kid_random150_full')]
    assert values[0] == values[1] == alone


# The Inception loader.


@pytest.fixture(scope='module')
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inception(tmp_path_factory.mktemp('inception') / 'tiny.pt')


def test_inception_by_path_and_hash(tmp_path: Path, inception_file: Path) -> None:
    digest = sha256_file(inception_file)
    result = measure(tmp_path, 'fid40_full', inception=str(inception_file), inception_sha256=digest)
    assert result['metric'] == f'fid_inception-{digest[:8]}_40_full'  # not the official file, so not called fid
    assert result['estimator_hash'] == digest
    assert result['value'] > 0
    score = measure(tmp_path, 'is40', inception=str(inception_file), inception_sha256=digest)
    assert score['metric'] == f'is_inception-{digest[:8]}_40'
    assert score['value'] > 1


def test_inception_is_not_loaded_unless_the_hash_matches(inception_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.jit, 'load', lambda *_, **__: pytest.fail('a file with another hash was loaded'))
    with pytest.raises(UserError, match='expected f58cb9b6'):
        load_inception(str(inception_file))
    with pytest.raises(UserError, match='no such file'):
        load_inception(str(inception_file) + '.missing')


def test_inception_of_another_kind(tmp_path: Path) -> None:
    text = tmp_path / 'text.pt'
    text.write_bytes(b'not a network')
    with pytest.raises(UserError, match='not a TorchScript file'):
        load_inception(str(text), sha256=sha256_file(text))


@pytest.fixture
def server(inception_file: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(inception_file.parent))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{httpd.server_address[1]}'
        httpd.shutdown()
        thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def test_download_is_checked_and_cached(tmp_path: Path, inception_file: Path, server: str) -> None:
    digest = sha256_file(inception_file)
    url = f'{server}/tiny.pt'
    with pytest.raises(UserError, match='sha256 is'):
        fetch(url, sha256='0' * 64, cache_dir=tmp_path)
    assert not list((tmp_path / 'downloads').iterdir())
    path = fetch(url, sha256=digest, cache_dir=tmp_path)
    assert path.read_bytes() == inception_file.read_bytes()
    assert fetch('http://127.0.0.1:9/tiny.pt', sha256=digest, cache_dir=tmp_path) == path  # cached: no network
    with pytest.raises(UserError, match='put it at') as error:
        fetch(f'{server}/absent.pt', sha256=digest, cache_dir=tmp_path)
    assert digest in str(error.value)
