"""benchmarks/scaling.py: what is computed for clusters, against sums done by hand."""

from __future__ import annotations

import dataclasses

import pytest
from click.testing import CliRunner

from benchmarks import scaling
from benchmarks.scaling import Cluster, cluster_of

CLUSTER = Cluster(
    image_seconds=0.1,
    gradient_bytes=(400e6, 100e6),
    phases=(1.25, 1.0625),
    inside=200e9,
    between=10e9,
    node=8,
    latency=1e-5,
)


def test_one_gpu_exchanges_nothing() -> None:
    assert CLUSTER.exchange(1) == 0
    assert CLUSTER.step(batch=32, gpus=1) == pytest.approx(3.2)


def test_a_ring_moves_nearly_twice_the_bytes_over_its_slowest_link() -> None:
    inside = 1.25 * (2 * 7 / 8 * 400e6 / 200e9 + 14e-5) + 1.0625 * (2 * 7 / 8 * 100e6 / 200e9 + 14e-5)
    assert CLUSTER.exchange(8) == pytest.approx(inside)
    assert CLUSTER.step(batch=32, gpus=8) == pytest.approx(0.4 + inside)
    slow = dataclasses.replace(CLUSTER, latency=0.0)
    assert slow.exchange(16) == pytest.approx((1.25 * 400e6 + 1.0625 * 100e6) * 2 * 15 / 16 / 10e9)


def test_gradients_and_lazy_terms_are_those_of_the_preset() -> None:
    cluster = cluster_of('debug', image_seconds=1, inside=1, between=1, node=8, latency=0)
    assert cluster.phases == (1 + 1 / 4, 1 + 1 / 16)
    assert cluster.gradient_bytes[0] > cluster.gradient_bytes[1] > 10_000


def test_batches_that_do_not_divide_are_left_out() -> None:
    result = CliRunner().invoke(scaling.main, ['project', '--cfg=debug', '--batch=32'])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line.split(',')[1].strip() for line in lines[1:]] == ['1 GPUs', '8 GPUs']
