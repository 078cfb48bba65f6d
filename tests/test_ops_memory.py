"""The allocator of large CPU tensors: placement, reuse, return of memory, threads, fork, and when it stands back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dnnlib import UserError
from torch_utils.ops import library, memory

ROOT = Path(__file__).parent.parent
MIB = 2**20
STANDS_BACK = "PyTorch's allocator, because"


@pytest.fixture(scope='module', autouse=True)
def installed() -> None:
    library.use_native(torch.device('cpu'), backend='native')
    if not memory.active():
        pytest.skip(memory.reason())


def block(mebibytes: float, value: int = 1) -> torch.Tensor:
    """A filled tensor of so many MiB."""
    return torch.full((int(mebibytes * MIB),), value, dtype=torch.uint8)


def run(code: str, **environment: str) -> str:
    """What a process of its own prints, with the native ops loaded; MIB, block, torch, memory, library are at hand."""
    prelude = (
        'import os, sys, threading, torch\n'
        'from torch_utils.ops import library, memory\n'
        'MIB = 2**20\n'
        'def block(mebibytes, value=1): return torch.full((int(mebibytes * MIB),), value, dtype=torch.uint8)\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', prelude + code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


LOAD = "library.use_native(torch.device('cpu'), backend='native')\n"


def test_alignment_and_counts() -> None:
    before = memory.stats()
    tensors = [block(mebibytes) for mebibytes in (1, 1.3, 2, 5.7, 40)]
    assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors)
    grown = memory.stats()
    assert 50 * MIB <= grown.live - before.live < 50.1 * MIB
    assert grown.peak >= grown.live
    assert grown.resident >= grown.live
    small = torch.ones(1000)
    assert memory.stats() == grown
    del tensors, small
    assert memory.stats().live == before.live
    assert memory.stats().cached >= 50 * MIB


def test_freed_memory_is_reused() -> None:
    first = block(33)
    address = first.data_ptr()
    del first
    faults = memory.stats().resident
    second = block(33)
    assert second.data_ptr() == address
    assert memory.stats().resident == faults


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1)])
def test_neighbours_coalesce(order: tuple[int, ...]) -> None:
    """Three neighbours become one block in whatever order they go, and are the best fit for their sum alone."""
    code = LOAD + (
        'guard = block(600)\n'  # hides what earlier tensors have left
        'parts = [block(8, value) for value in range(3)]\n'
        'wall = block(1)\n'
        'addresses = [part.data_ptr() for part in parts]\n'
        'assert [b - a for a, b in zip(addresses, addresses[1:])] == [8 * MIB] * 2\n'
        f'for index in {order}: parts[index] = None\n'
        'whole = block(24)\n'
        'print(whole.data_ptr() == addresses[0] and wall.data_ptr() == addresses[0] + 24 * MIB)\n'
    )
    assert run(code) == 'True'


def test_best_fit() -> None:
    code = LOAD + (
        'sizes = (30, 1, 10, 1, 20, 1)\n'
        'parts = [block(size) for size in sizes]\n'
        'wide, narrow, middle = (parts[index].data_ptr() for index in (0, 2, 4))\n'
        'for index in (0, 2, 4): parts[index] = None\n'
        'new = [block(size) for size in (9, 15, 25)]\n'
        'print([tensor.data_ptr() for tensor in new] == [narrow, middle, wide])\n'
    )
    assert run(code) == 'True'


def test_no_overlap_under_stress() -> None:
    """Threads allocate, mark, check and free at random, and hand tensors to each other."""
    code = LOAD + (
        'import random\n'
        'torch.set_num_threads(1)\n'
        'exchange, lock, errors = [], threading.Lock(), []\n'
        'def work(seed):\n'
        '    rng, held = random.Random(seed), []\n'
        '    def check(value, tensor):\n'
        '        if not bool((tensor == value).all()): errors.append(value)\n'
        '    for step in range(8000):\n'
        '        if held and (len(held) > 6 or rng.random() < 0.5):\n'
        '            check(*held.pop(rng.randrange(len(held))))\n'
        '        whole = torch.empty(int(rng.choice((0.1, 1, 1.1, 2, 3.7, 6)) * MIB), dtype=torch.uint8)\n'
        '        marks = whole if step % 50 == 0 else whole[::50000]\n'
        '        value = rng.randrange(256)\n'
        '        held.append((value, marks.fill_(value)))\n'
        '        del whole, marks\n'
        '        with lock:\n'
        '            exchange.append(held.pop(0))\n'
        '            if len(exchange) > 8: held.append(exchange.pop(rng.randrange(8)))\n'
        '    for entry in held: check(*entry)\n'
        'threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]\n'
        'for thread in threads: thread.start()\n'
        'for thread in threads: thread.join()\n'
        'for value, tensor in exchange: assert bool((tensor == value).all())\n'
        'del value, tensor\n'
        'exchange.clear()\n'
        'print(errors, memory.stats().live, memory.stats().peak > 20 * MIB)\n'
    )
    assert run(code) == '[] 0 True'


def test_resident_memory_is_bounded_by_the_peak_of_what_is_live() -> None:
    """Requests that are slightly larger than every hole: the holes' pages must go back as fresh ones come."""
    code = LOAD + (
        'parts = [block(20) for _ in range(40)]\n'
        'del parts[::2]\n'
        'parts += [block(21) for _ in range(18)]\n'
        'stats = memory.stats()\n'
        'rows = dict(row.split(":") for row in open("/proc/self/status"))\n'
        'print(stats.peak // MIB, stats.peak_resident <= 1.07 * stats.peak + 34 * MIB)\n'
        'print(int(rows["VmHWM"].split()[0]) * 1024 - base < stats.peak_resident + 40 * MIB)\n'
    )
    measure = 'base = int(dict(row.split(":") for row in open("/proc/self/status"))["VmRSS"].split()[0]) * 1024\n'
    assert run(measure + code).split() == ['800', 'True', 'True']


def test_memory_of_a_phase_that_ended_is_returned() -> None:
    code = LOAD + (
        'torch.set_num_threads(1)\n'
        'big = torch.empty(1500 * MIB, dtype=torch.uint8)\n'
        'del big\n'
        'high = memory.stats().resident\n'
        'for step in range(64 * 1500 // 40 * 2 + 20): torch.empty(40 * MIB, dtype=torch.uint8)\n'
        'print(high // (1500 * MIB), memory.stats().resident < 80 * MIB)\n'
    )
    assert run(code) == '1 True'


def test_peaks_start_again() -> None:
    held = block(64)
    memory.reset_peak()
    stats = memory.stats()
    assert (stats.peak, stats.peak_resident) == (stats.live, stats.resident)
    more = block(16)
    del more
    assert 16 * MIB <= memory.stats().peak - stats.peak < 16.1 * MIB
    assert held[0] == 1


def test_tensors_from_before_and_after() -> None:
    code = (
        'before = block(8, 5)\n'
        'grows = torch.ones(MIB)\n'
        'assert not memory.active()\n' + LOAD + 'assert memory.active()\n'
        'assert bool((before.clone() == 5).all())\n'
        'grows.resize_(2 * MIB)\n'
        'assert bool((grows[:MIB] == 1).all())\n'
        'del before, grows\n'
        'print(memory.stats().live)\n'
    )
    assert run(code) == '0'


def test_storages_resize_and_share(tmp_path: Path) -> None:
    x = block(2, 3)
    x.resize_(8 * MIB)
    x.untyped_storage().resize_(16 * MIB)
    x.untyped_storage().resize_(3 * MIB)
    assert bool((x.set_(x.untyped_storage(), 0, (2 * MIB,), (1,)) == 3).all())
    array = block(4, 6).numpy()  # the tensor itself is gone
    assert (array == 6).all()
    assert bool((torch.from_numpy(array) == 6).all())
    torch.save(x, tmp_path / 'x.pt')
    assert torch.equal(torch.load(tmp_path / 'x.pt'), x)
    assert torch.equal(torch.load(tmp_path / 'x.pt', mmap=True), x)
    shared = block(4, 7)
    shared.share_memory_()
    assert bool((shared == 7).all())


def test_fork() -> None:
    """A child reads and frees its parent's tensors, allocates its own, and leaves the parent's alone."""
    code = LOAD + (
        'torch.set_num_threads(1)\n'
        'held, gone = block(50, 4), block(70)\n'
        'del gone\n'
        'stop = threading.Event()\n'
        'def busy():\n'
        '    while not stop.is_set(): block(3)\n'
        'thread = threading.Thread(target=busy)\n'
        'thread.start()\n'  # forks while another thread may hold the lock
        'for _ in range(8):\n'
        '    child = os.fork()\n'
        '    if child == 0:\n'
        '        good = bool((held == 4).all())\n'
        '        held.fill_(9)\n'
        '        del held\n'
        '        mine = [block(20, value) for value in range(5)]\n'
        '        good &= all(bool((tensor == value).all()) for value, tensor in enumerate(mine))\n'
        '        os._exit(0 if good else 1)\n'
        '    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n'
        '    assert bool((held == 4).all())\n'
        'stop.set()\n'
        'thread.join()\n'
        'if os.fork() == 0:\n'
        '    print(memory.stats().cached < 6 * MIB, flush=True)\n'  # not shared: it would be copied when it is reused
        '    os._exit(0)\n'
        'os.wait()\n'
    )
    assert run(code) == 'True'


class Blocks(torch.utils.data.Dataset[torch.Tensor]):
    """Large items, made by a worker."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        return block(3, index)


@pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork:DeprecationWarning')
@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_data_loader_workers(method: str) -> None:
    loader = torch.utils.data.DataLoader(Blocks(), batch_size=2, num_workers=2, multiprocessing_context=method)
    batches = list(loader)
    assert [batch.shape for batch in batches] == [(2, 3 * MIB)] * 3
    assert [int(row.double().mean()) for batch in batches for row in batch] == list(range(6))


def test_autograd_across_threads() -> None:
    """The backward pass of each thread frees what its forward pass has allocated."""
    live = memory.stats().live

    def work(seed: int) -> torch.Tensor:
        x = torch.full((512, 1024), float(seed), requires_grad=True)
        return torch.autograd.grad((x.square() * 3).exp().log().sum(), x)[0]

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        gradients = list(pool.map(work, [1, 2, 3, 4] * 5))
    for seed, gradient in zip([1, 2, 3, 4] * 5, gradients, strict=True):
        torch.testing.assert_close(gradient, torch.full_like(gradient, 6.0 * seed))
    del gradient, gradients
    assert memory.stats().live == live


def test_profiler_sees_allocations() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        x = torch.empty(8 * MIB, dtype=torch.uint8)
        y = torch.empty(4096, dtype=torch.uint8)
        del x, y
    sizes = [event.cpu_memory_usage for event in profile.events() if event.name == 'aten::empty']
    assert sizes == [8 * MIB, 4096]
    assert sum(event.cpu_memory_usage for event in profile.events() if event.name == '[memory]') == -8 * MIB - 4096


def test_out_of_memory_is_torch_s_error() -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory: you tried to allocate"):
        torch.empty(2**46, dtype=torch.uint8)
    assert bool((block(4, 2) == 2).all())


def test_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    code = LOAD + 'x = block(8)\nprint(memory.active(), memory.stats().live, memory.reason())'
    assert run(code, NEXT3D_ALLOCATOR='system') == "False 0 PyTorch's allocator, as NEXT3D_ALLOCATOR demands"
    monkeypatch.setenv('NEXT3D_ALLOCATOR', 'fast')
    with pytest.raises(UserError, match="NEXT3D_ALLOCATOR: expected one of auto, system, got 'fast'"):
        library.use_native(torch.device('cpu'))
    assert run('print(memory.active(), memory.reason())') == f'False {STANDS_BACK} the native CPU ops are not loaded'


def test_limited_address_space_falls_back() -> None:
    limit = 'import resource\nresource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))\n'
    code = 'print(memory.active(), int(block(8).sum()) // MIB, memory.stats().live, memory.reason())\n'
    assert run(limit + LOAD + code) == f'False 8 0 {STANDS_BACK} the address space is limited (ulimit -v or -d)'


def test_refused_reservation_falls_back() -> None:
    """Addresses run out before the arena is made."""
    fill = (
        'import mmap\n'
        'hoard, size = [], 2**46\n'
        'while size > 2**34:\n'
        '    try:\n'
        '        hoard.append(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000))\n'
        '    except (OSError, OverflowError):\n'
        '        size //= 2\n'
    )
    code = 'print(memory.active(), int(block(8).sum()) // MIB, memory.reason())\n'
    assert run(fill + LOAD + code) == f'False 8 {STANDS_BACK} the system refuses to reserve addresses'
