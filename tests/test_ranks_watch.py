"""A rank that hangs, leaves or raises ends the run, with rank and phase in one line; one that works is let alone."""

from __future__ import annotations

import functools
import multiprocessing
import re

import pytest
from cases_ranks import fall_asleep, stumble, work_alone

from dnnlib import UserError
from torch_utils import distributed
from torch_utils.distributed import run


@pytest.fixture(autouse=True)
def forked_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that need not import torch again: seconds a test."""
    monkeypatch.setattr(distributed, 'START_METHOD', 'fork')


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('sleep', r'^rank 1 \(.*, process \d+\) made no progress for \d s in phase Gmain; 1 other waits for it'),
        ('exit', '^rank 1 ended by exit status 3 before its work was done in phase Gmain$'),
        ('leave', '^rank 1 failed in phase Gmain: SystemExit: 0$'),
        ('raise', '^rank 1 failed in phase Gmain: RuntimeError: a defect$'),
    ],
)
def test_a_rank_that_stumbles_is_named_with_its_phase(kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(functools.partial(stumble, kind=kind), 'cpu', ranks=2, timeout=1.0)


def sleep_alone() -> None:
    run(functools.partial(fall_asleep, phase='data'), 'cpu', ranks=1, timeout=0.5)


def test_a_single_rank_that_hangs_is_ended_too(capfd: pytest.CaptureFixture[str]) -> None:
    process = multiprocessing.get_context('fork').Process(target=sleep_alone)
    process.start()
    process.join(20)
    assert process.exitcode == 1
    assert re.search(r'^Error: rank 0 \(.*\) made no progress for .* in phase data', capfd.readouterr().err, re.M)


def test_a_rank_that_works_for_longer_than_the_timeout_is_let_alone() -> None:
    run(functools.partial(work_alone, seconds=2.0), 'cpu', ranks=2, timeout=0.6)
