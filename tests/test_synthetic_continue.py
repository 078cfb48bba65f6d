"""dataset_tool.py synth: an interrupted run goes on, and its dataset is that of an uninterrupted one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import dataset_tool
from training import synthetic


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Any]]:
    """A dataset of three chunks of two images, and what was kept of it."""
    kept: dict[str, Any] = {}
    path = tmp_path_factory.mktemp('whole') / 'a.zip'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, 'CHUNK', 2)
        generate(path, kept, workers=0)
    return path.read_bytes(), kept


def generate(path: Path, kept: dict[str, Any], *, workers: int) -> None:
    class Keep:
        load = staticmethod(kept.get)
        save = staticmethod(kept.__setitem__)

    synthetic.generate(path, num=6, resolution=32, seed=5, workers=workers, progress=False, kept=Keep())


def test_chunks_that_are_done_take_their_place(
    tmp_path: Path, whole: tuple[bytes, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between chunks that a process renders."""
    monkeypatch.setattr(synthetic, 'CHUNK', 2)
    middle = '32 5 2-4'
    assert set(whole[1]) == {'32 5 0-2', middle, '32 5 4-6'}
    kept = {middle: whole[1][middle]}
    generate(tmp_path / 'a.zip', kept, workers=1)
    assert (tmp_path / 'a.zip').read_bytes() == whole[0]
    assert set(kept) == set(whole[1])


def test_the_same_command_continues(
    tmp_path: Path, whole: tuple[bytes, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, 'CHUNK', 2)
    render = synthetic._render_chunk
    rendered: list[int] = []

    def once(seed: int, indices: range, resolution: int) -> Any:
        if rendered and allowed == 1:
            raise KeyboardInterrupt
        rendered.append(indices.start)
        return render(seed, indices, resolution)

    def command(*options: str) -> Result:
        arguments = ['synth', f'--out={tmp_path / "a.zip"}', '--num=6', '--resolution=32', '--seed=5', '--workers=0']
        return CliRunner().invoke(dataset_tool.main, [*arguments, *options])

    monkeypatch.setattr(synthetic, '_render_chunk', once)
    allowed = 1
    assert command().exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ['a-work']
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    unfinished = [tmp_path / f'.a.zip.{process}.tmp' for process in (dead.pid, os.getppid())]
    for path in unfinished:
        path.touch()
    allowed = 3
    done = command()
    assert done.exit_code == 0, done.output
    assert 'a-work: continuing, 1 batches of images are done' in done.output
    assert rendered == [0, 2, 4]
    assert (tmp_path / 'a.zip').read_bytes() == whole[0]
    assert [path.exists() for path in unfinished] == [False, True]  # the second may be at work
    unfinished[1].unlink()
    assert [path.name for path in tmp_path.iterdir()] == ['a.zip']
    assert 'already exists' in command().output
    assert [path.name for path in tmp_path.iterdir()] == ['a.zip']
