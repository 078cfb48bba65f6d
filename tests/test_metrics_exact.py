"""Distances between sets of features: brute-force formulas, torch-fidelity where it is installed, known limits."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from metrics.bootstrap import refit_error
from metrics.distributions import inception_score, inside, kernel_distance, kid, path_lengths, subset_distances
from metrics.frechet import Statistics, frechet_distance, statistics


@pytest.fixture(scope='module')
def sets() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mixing = rng.normal(0, 1, (12, 12))
    real = (rng.normal(0, 1, (300, 12)) @ mixing).astype(np.float32)
    return real, (rng.normal(0.3, 1.1, (220, 12)) @ mixing).astype(np.float32)


def test_kernel_distance_is_the_sum_over_pairs(sets) -> None:
    x, y = (rows[:25].astype(np.float64) for rows in sets)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    pairs = [(i, j) for i in range(25) for j in range(25)]
    within = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs if i != j) / (25 * 24)
    across = sum(kernel(x[i], y[j]) for i, j in pairs) / 25**2
    assert kernel_distance(x, y) == pytest.approx(within - 2 * across, rel=1e-12)
    with pytest.raises(ValueError, match='expected the shape of first'):
        kernel_distance(x, y[:9])


def test_inside_is_the_neighbours_ball(sets) -> None:
    manifold, points = sets[0][:80], sets[1][:60]
    own = np.sort(np.linalg.norm(manifold[:, None] - manifold[None], axis=2), axis=1)[:, 3]
    expected = (np.linalg.norm(points[:, None] - manifold[None], axis=2) <= own).any(axis=1)
    assert 0 < expected.sum() < len(expected)
    np.testing.assert_array_equal(inside(manifold, points, neighbours=3), expected)
    assert inside(manifold, manifold, neighbours=3).all()
    with pytest.raises(ValueError, match='more rows than neighbours'):
        inside(manifold[:3], points, neighbours=3)


def test_inception_score_is_exp_of_mutual_information() -> None:
    p = np.random.default_rng(1).dirichlet(np.ones(7), 100)
    expected = []
    for part in np.split(p, 10):
        mean = part.mean(axis=0)
        expected.append(
            np.exp(np.mean([sum(q * np.log(q / m) for q, m in zip(row, mean, strict=True)) for row in part]))
        )
    np.testing.assert_allclose(inception_score(p), expected, rtol=1e-12)
    certain = np.tile(np.eye(5), (20, 1))
    np.testing.assert_allclose(inception_score(certain), 5, rtol=1e-12)
    np.testing.assert_allclose(inception_score(np.full((20, 5), 0.2)), 1, rtol=1e-12)


def test_path_lengths() -> None:
    rows = np.array([[2.0, 0], [0, 3.0], [1, 1], [2, 2]])
    np.testing.assert_allclose(path_lengths(rows, step=0.5), [2 / 0.25, 0], atol=1e-15)


def test_values_do_not_depend_on_the_order_of_the_rows(sets) -> None:
    real, generated = sets
    order = np.random.default_rng(2).permutation(len(generated))
    moved = frechet_distance(statistics(real), statistics(generated[order]))
    assert moved == pytest.approx(frechet_distance(statistics(real), statistics(generated)), rel=1e-12)
    assert inside(real, generated[order], neighbours=3).mean() == inside(real, generated, neighbours=3).mean()


def _frechet_of_rows(against: Statistics, rows: np.ndarray, chosen: np.ndarray) -> float:
    return frechet_distance(against, statistics(rows[chosen]))


def test_standard_errors_are_those_of_repeated_draws(sets) -> None:
    """Many independent draws spread as much as the error that each of them states."""
    rng = np.random.default_rng(3)
    real = rng.normal(0, 1, (400, 6)).astype(np.float32)
    against = statistics(real)
    frechet, kernel, frechet_error, kernel_error = [], [], [], []
    for seed in range(16):
        rows = rng.normal(0.3, 1, (200, 6)).astype(np.float32)
        frechet.append(frechet_distance(against, statistics(rows)))
        frechet_error.append(refit_error(200, functools.partial(_frechet_of_rows, against, rows), seed=seed))
        values = subset_distances(real[:200], rows, size=100, seed=seed)
        kernel.append(kernel_distance(real[:200], rows))
        kernel_error.append(values.std(ddof=1))  # of halves of 200: the spread of the whole (100 / (200 - 100) = 1)
    assert np.std(frechet, ddof=1) == pytest.approx(np.mean(frechet_error), rel=0.5)
    # The real set stays the same here, while subsets vary both.
    assert 0.4 < np.std(kernel, ddof=1) / np.mean(kernel_error) < 1.3
    value, error = kid(real, rows, seed=0)
    assert value == pytest.approx(kernel[-1], abs=4 * error)


# torch-fidelity, where it is installed.


@pytest.fixture(scope='module')
def fidelity():
    return pytest.importorskip(
        'torch_fidelity', exc_type=ImportError, reason='compares with torch-fidelity where it is installed'
    )


def test_frechet_equals_torch_fidelity(fidelity, sets) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    other = [fid_features_to_statistics(torch.from_numpy(rows)) for rows in sets]
    value = fid_statistics_to_metric(*other, verbose=False)['frechet_inception_distance']
    assert frechet_distance(*(statistics(rows) for rows in sets)) == pytest.approx(value, rel=1e-6)


def test_kid_equals_torch_fidelity(fidelity, sets) -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    real, generated = (rows[:200] for rows in sets)
    value = kid_features_to_metric(
        torch.from_numpy(generated), torch.from_numpy(real), kid_subsets=1, kid_subset_size=200, verbose=False
    )['kernel_inception_distance_mean']
    assert kid(real, generated, seed=0)[0] == pytest.approx(value, rel=1e-6)


def test_precision_and_recall_equal_torch_fidelity(fidelity, sets) -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, generated = sets
    value = prc_features_to_metric(
        torch.from_numpy(generated).double(), torch.from_numpy(real).double(), prc_neighborhood=3, verbose=False
    )
    assert inside(real, generated, neighbours=3).mean() == pytest.approx(value['precision'], rel=1e-6)
    assert inside(generated, real, neighbours=3).mean() == pytest.approx(value['recall'], rel=1e-6)


def test_inception_score_equals_torch_fidelity(fidelity) -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = torch.randn(200, 9, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    value = isc_features_to_metric(logits, splits=10, shuffle=False)
    scores = inception_score(logits.softmax(dim=1).numpy())
    assert scores.mean() == pytest.approx(value['inception_score_mean'], rel=1e-6)
    assert scores.std() == pytest.approx(value['inception_score_std'], rel=1e-6)
