"""One block of rows in a process of its own, so that its peak memory is its own: started by run.py.

python -m benchmarks.worker REQUEST RESULT      (JSON text, file to write)
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import ceilings, ops, processes, stages, training
from benchmarks.release import BATCH
from benchmarks.subjects import build_subject
from torch_utils.ops import library


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A block: the rows `names` of a group at one precision, or all ceilings (group 'ceilings') of `precisions`."""

    group: str
    precision: str = '-'
    precisions: tuple[str, ...] = ()  # of the ceilings
    names: tuple[str, ...] = ()
    cfg: str
    device: str
    threads: int
    runs: int
    quick: bool


def perform(request: Request) -> dict[str, Any]:
    """{'rates': ...} for ceilings, else {'rows': ...}: JSON-able."""
    torch.set_num_threads(request.threads)
    torch.manual_seed(0)
    device = torch.device(request.device)
    if request.group == 'ceilings':
        rates = ceilings.measure(request.precisions, device=device, runs=request.runs, small=request.quick)
        return {'rates': rates}
    names = frozenset(request.names)
    if request.group == 'processes':
        rows = processes.measure(runs=request.runs, names=names)
    else:
        library.use_native(device)  # built and loaded before anything is timed, as the scripts do
        if request.group == 'ops':
            rows = ops.measure(precision=request.precision, runs=request.runs, names=names, device=device)
        else:
            module, batch = (stages, 1) if request.group == 'stages' else (training, BATCH)
            subject = build_subject(request.cfg, batch=batch, device=device)
            rows = module.measure(subject, precision=request.precision, runs=request.runs, names=names)
    return {'rows': [row.to_dict() for row in rows]}


def main() -> None:
    values = json.loads(sys.argv[1])
    lists = {key: tuple(values[key]) for key in ('precisions', 'names')}
    result = perform(Request(**{**values, **lists}))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding='utf-8')


if __name__ == '__main__':
    main()
