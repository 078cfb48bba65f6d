"""Order of images, cutting of batches, random streams, statistics."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from dnnlib import UserError
from torch_utils.distributed import Communicator
from torch_utils.rng import derive_seed, numpy_stream, stream
from torch_utils.stats import Stats
from training.sampler import BatchPlan, InfiniteOrder, MicroBatchIndices, explained_workers, load_micro_batches


class Images:
    """Image i is filled with i; `broken` raises."""

    def __init__(self, count: int, broken: int = -1) -> None:
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def readable(self, indices: list[int]) -> tuple[list[int], torch.Tensor, list[int]]:
        return indices, self.images(indices), []

    def images(self, indices: list[int]) -> torch.Tensor:
        if self.broken in indices:
            raise UserError(f'image {self.broken} is damaged')
        return torch.tensor(indices, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2).clone()


def test_every_epoch_is_another_permutation() -> None:
    order = InfiniteOrder(7, seed=3)
    epochs = [[order[7 * epoch + i] for i in range(7)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_order_depends_on_position_and_seed_only() -> None:
    forward = InfiniteOrder(5, seed=1)
    wanted = [forward[i] for i in range(23)]
    backward = InfiniteOrder(5, seed=1)
    assert [backward[i] for i in reversed(range(23))] == wanted[::-1]
    other = InfiniteOrder(5, seed=2)
    assert [other[i] for i in range(23)] != wanted


def _indices(plan: BatchPlan, rank: int, start: int) -> MicroBatchIndices:
    return MicroBatchIndices(9, seed=0, plan=plan, rank=rank, start=start)


@pytest.mark.parametrize('ranks', [1, 2, 3])
def test_ranks_share_out_the_same_micro_batches(ranks: int) -> None:
    alone = list(itertools.islice(_indices(BatchPlan(batch=12, batch_gpu=2), 0, 24), 18))
    plan = BatchPlan(batch=12, batch_gpu=2, ranks=ranks)
    shares = [list(itertools.islice(_indices(plan, rank, 24), 18 // ranks)) for rank in range(ranks)]
    assert [shares[i % ranks][i // ranks] for i in range(18)] == alone


def test_a_later_start_continues_the_sequence() -> None:
    plan = BatchPlan(batch=6, batch_gpu=3)
    whole = list(itertools.islice(_indices(plan, 0, 0), 10))
    assert list(itertools.islice(_indices(plan, 0, 12), 6)) == whole[4:]


def test_batch_must_be_divisible() -> None:
    with pytest.raises(ValueError, match='not divisible by gpus x batch_gpu = 2 x 3'):
        BatchPlan(batch=8, batch_gpu=3, ranks=2)


@pytest.mark.parametrize('workers', [0, 2])
def test_loading_keeps_the_order(workers: int) -> None:
    plan = BatchPlan(batch=4, batch_gpu=2)
    loaded = itertools.islice(load_micro_batches(Images(9), _indices(plan, 0, 0), workers=workers), 7)
    for (indices, images, _), wanted in zip(loaded, _indices(plan, 0, 0), strict=False):
        assert indices == wanted
        assert images[:, 0, 0, 0].tolist() == wanted


@pytest.mark.parametrize('workers', [0, 1])
def test_a_damaged_image_is_named(workers: int) -> None:
    plan = BatchPlan(batch=4, batch_gpu=2)
    with pytest.raises(UserError, match='^image 3 is damaged$'):
        list(itertools.islice(load_micro_batches(Images(9, 3), _indices(plan, 0, 0), workers=workers), 9))


@pytest.mark.parametrize(
    ('message', 'wanted'),
    [
        (
            'DataLoader worker (pid 12) is killed by signal: Segmentation fault. ',
            'pid 12. was killed by signal Segmentation',
        ),
        ('DataLoader worker (pid(s) 12, 13) exited unexpectedly', 'pid 12, 13. ended unexpectedly'),
        ('DataLoader worker (pid 12) exited unexpectedly with exit code 1. Details are lost', 'pid 12. ended unexpect'),
    ],
)
def test_the_end_of_a_loading_process_is_one_line(message: str, wanted: str) -> None:
    with pytest.raises(UserError, match=wanted), explained_workers():
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match='shape'), explained_workers():
        raise RuntimeError('shape')


def test_streams_are_named_by_their_keys() -> None:
    assert derive_seed(1, 'a') == 4610687093479912873
    assert derive_seed(1, 'a') != derive_seed('1', 'a') != derive_seed(1, 'b')
    assert derive_seed(12, 3) != derive_seed(1, 23)
    assert torch.equal(torch.rand(3, generator=stream(0, 'x')), torch.rand(3, generator=stream(0, 'x')))
    assert numpy_stream(0, 'x').random() == numpy_stream(0, 'x').random() != numpy_stream(0, 'y').random()


def test_stats_are_moments_of_all_elements() -> None:
    stats, values = Stats(), np.random.default_rng(0).normal(size=(4, 5))
    for row in values:
        stats.report('x', torch.tensor(row))
    stats.report('y', 2.5)
    moments = stats.collect(Communicator(torch.device('cpu')))
    assert moments['x'].num == 20
    assert moments['x'].mean == pytest.approx(values.mean())
    assert moments['x'].std == pytest.approx(values.std())
    assert (moments['y'].mean, moments['y'].std) == (2.5, 0.0)
    assert stats.collect(Communicator(torch.device('cpu'))) == {}


def test_stats_pass_nan_on() -> None:
    stats = Stats()
    stats.report('x', float('nan'))
    assert np.isnan(stats.collect(Communicator(torch.device('cpu')))['x'].mean)
