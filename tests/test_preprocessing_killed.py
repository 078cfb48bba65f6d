"""from-video under SIGKILL: what was kept is not done again, and the dataset is that of an uninterrupted run."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.cases_killed_video import FRAMES, convert, make_frames

ROOT = Path(__file__).resolve().parent.parent


def killed(frames: Path, out: Path, *, saves: int) -> None:
    command = [sys.executable, '-m', 'tests.cases_killed_video', str(frames), str(out), str(saves)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr


def test_a_killed_video_continues(tmp_path: Path) -> None:
    """Killed while it looks for faces, and again when the person's identity is fitted."""
    frames, out = tmp_path / 'frames', tmp_path / 'out.zip'
    make_frames(frames)
    kept: list[int] = []
    for saves in (1, FRAMES - 1 + 2):  # the second: the faces that are left, the list of frames, the identity
        killed(frames, out, saves=saves)
        kept.append(len(list((tmp_path / 'out-work').glob('*.done'))))
        assert not out.exists()
        (tmp_path / f'.out.zip.{2**31 - 1}.tmp').touch()  # of a process that was killed while it wrote
    assert kept == [1, FRAMES + 2]

    lines, saved = convert(frames, out)
    assert any('continuing' in line for line in lines)
    _, all_saved = convert(frames, tmp_path / 'whole.zip')
    assert saved == all_saved - kept[-1]
    assert out.read_bytes() == (tmp_path / 'whole.zip').read_bytes()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {'frames', 'out.zip', 'out-report', 'whole.zip', 'whole-report'}
