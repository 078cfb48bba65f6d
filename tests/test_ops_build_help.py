"""Builds of the native ops as a user meets them: progress, failures of every kind with cause, remedy and log."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from torch_utils.ops import build_help, library

ROOT = Path(__file__).resolve().parent.parent

# What a compiler prints when it compiles (-c) or links, and the parts of the explanation.
FAILURES = {
    'broken': (
        'c++: fatal error: cannot execute "cc1plus": No such file or directory\ncompilation terminated.',
        '',
        'fatal error: cannot execute "cc1plus"',
        'set CXX to another compiler',
    ),
    'too old': (
        'c++: error: unrecognized command-line option "-std=c++20"',
        '',
        'unrecognized command-line option',
        'too old or too strange',
    ),
    'disk full': (
        '{standard input}: Assembler messages:\n/tmp/a.s: fatal error: error writing: No space left on device',
        '',
        'No space left on device',
        'free some space, or point TORCH_EXTENSIONS_DIR to',
    ),
    'killed': (
        'c++: fatal error: Killed signal terminated program cc1plus',
        '',
        'Killed signal',
        'the memory did not suffice: set MAX_JOBS=1',
    ),
    'linker': (
        '',
        '/usr/bin/ld: cannot find -lgomp: No such file or directory\ncollect2: error: ld returned 1 exit status',
        '/usr/bin/ld: cannot find -lgomp',
        'install what the linker misses',
    ),
    'mute': (' ', '', 'the compiler fails without a word', 'set CXX to another compiler'),
}


def fake_compiler(folder: Path, *, compiling: str, linking: str) -> Path:
    """A compiler that knows its version and fails with the given output (empty: does nothing, successfully)."""
    path = folder / 'fake-c++'
    real = library.find_compiler()

    def step(output: str) -> str:
        return f"cat >&2 <<'END'\n{output}\nEND\nexit 1" if output else 'touch "$last"; exit 0'

    path.write_text(
        '#!/bin/sh\n'
        'last=; for word in "$@"; do [ "$previous" = -o ] && last=$word; previous=$word; done\n'
        f'for word in "$@"; do if [ "$word" = -c ]; then {step(compiling)}\nfi; done\n'
        f'for word in "$@"; do if [ "$word" = -shared ]; then {step(linking)}\nfi; done\n'
        f'exec {real} "$@"\n'
    )
    path.chmod(0o755)
    return path


def doctor(cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, 'doctor.py'],
        cwd=ROOT,
        env={**os.environ, 'TORCH_EXTENSIONS_DIR': str(cache), 'NEXT3D_OPS': 'auto', **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize('kind', FAILURES)
def test_doctor_explains_a_failed_build(kind: str, tmp_path: Path) -> None:
    compiling, linking, cause, remedy = FAILURES[kind]
    compiler = fake_compiler(tmp_path, compiling=compiling, linking=linking)
    result = doctor(tmp_path / 'cache', CXX=str(compiler))
    assert result.returncode == 1, result.stdout + result.stderr
    assert 'Traceback' not in result.stdout + result.stderr
    lines = result.stdout.splitlines()
    (told,) = (
        line for line in lines if line.startswith('ops        cpu: PyTorch twins, because the native ops fail: ')
    )
    assert cause in told
    (advice,) = (line for line in lines if 'what to do: ' in line)
    assert remedy in advice
    (log,) = (line.partition('full log: ')[2] for line in lines if 'full log: ' in line)
    assert (compiling.strip() or linking) in Path(log).read_text()
    assert sum(' ok, ' in line for line in lines if line.startswith('self-test')) >= 4  # the twins serve


def test_scripts_warn_once_with_the_remedy(tmp_path: Path) -> None:
    compiling, linking, cause, remedy = FAILURES['disk full']
    compiler = fake_compiler(tmp_path, compiling=compiling, linking=linking)
    code = (
        'import torch\nfrom torch_utils.ops import bias_act\n'
        'for _ in range(2): print(bias_act.bias_act(torch.ones(1, 1), act="relu").item())'
    )
    environment = {**os.environ, 'CXX': str(compiler), 'TORCH_EXTENSIONS_DIR': str(tmp_path / 'cache')}
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout == '1.4142135381698608\n' * 2
    (warning,) = (line for line in result.stderr.splitlines() if 'RuntimeWarning' in line)
    assert cause in warning
    assert remedy in warning
    assert f'full log: {tmp_path}' in warning


def test_doctor_without_ninja(tmp_path: Path) -> None:
    """As after `pip uninstall ninja`, on a system without it."""
    code = (
        'import sys, shutil, runpy\n'
        'from dnnlib import UserError\nfrom torch_utils.ops import library\n'
        'def missing(): raise UserError("ninja is not installed (pip install ninja)")\n'
        'library.find_ninja = missing\n'
        'sys.argv = ["doctor.py"]\nrunpy.run_path("doctor.py", run_name="__main__")'
    )
    environment = {**os.environ, 'TORCH_EXTENSIONS_DIR': str(tmp_path / 'cache')}
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1, result.stderr
    assert 'because the native ops fail: ninja is not installed (pip install ninja)' in result.stdout


def test_doctor_says_what_was_built() -> None:
    result = subprocess.run([sys.executable, 'doctor.py'], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    build = library.load('cpu')
    assert build.library is not None
    record = build_help.read_record(build.library)
    if record is not None:  # a cache older than records has none
        assert f'in {record.seconds:.1f} s by {record.compiler} with -O3' in result.stdout
    (total,) = (line for line in result.stdout.splitlines() if ' took ' in line)
    assert float(total.split(' took ')[1].split()[0]) < 10
    assert 'processor  ' in result.stdout


def test_record_of_a_build(tmp_path: Path) -> None:
    record = build_help.BuildRecord(compiler='c++ 12', flags=('-O3', '-fopenmp'), seconds=9.5, date='2030-01-01 00:00')
    build_help.write_record(tmp_path, record)
    assert build_help.read_record(tmp_path / 'x.so') == record
    (tmp_path / build_help.RECORD).write_text('{}')
    assert build_help.read_record(tmp_path / 'x.so') is None
    assert build_help.read_record(tmp_path / 'none' / 'x.so') is None
    build_help.write_record(tmp_path / 'none', record)  # not worth failing for


def test_a_folder_that_cannot_be_made() -> None:
    error = FileNotFoundError(2, 'No such file or directory', '/proc/nowhere')
    assert build_help.remedy_for(error) == 'point TORCH_EXTENSIONS_DIR to a folder that can be written to'
    assert 'report this' in build_help.remedy_for(RuntimeError('something new'))


def test_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    assert build_help.write_log(tmp_path / 'file', RuntimeError('x')) is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_and_elsewhere(tmp_path: Path) -> None:
    work = tmp_path / 'work'
    work.mkdir()
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        with build_help.progress('tiny', work, steps=3, stream=stream):
            if stream is terminal:
                (work / 'a.o').write_text('')
                (work / 'b.o').write_text('')
                (work / 'build.ninja').write_text('')
                time.sleep(2.5 * build_help.POLL_SECONDS)
                assert '\r[2/3] ' in terminal.getvalue()
                (work / 'tiny.so').write_text('')
    shown = terminal.getvalue().split('\r')
    assert shown[0].startswith('Building tiny (once')
    assert shown[1].startswith('[0/3] ')
    assert shown[-1].startswith('[3/3] ')
    assert shown[-1].endswith('\n')
    assert file.getvalue() == f'Building tiny (once, up to a minute) in {tmp_path} ...\n'


def test_progress_ends_with_a_failed_build(tmp_path: Path) -> None:
    terminal = Terminal()
    with pytest.raises(RuntimeError, match='broken'), build_help.progress('tiny', tmp_path, steps=3, stream=terminal):
        raise RuntimeError('broken')
    assert terminal.getvalue().endswith('\n')
