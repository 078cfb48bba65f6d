"""Where and with what a benchmark ran."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PACKAGES = ('torch', 'numpy', 'click', 'pytorch3d')


def commit(folder: Path) -> str:
    """The commit of the checkout that holds `folder`, '+' where files differ from it; 'unknown' outside of one."""
    try:
        run = ['git', '-C', str(folder)]
        name = subprocess.run([*run, 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True, check=True)
        changed = subprocess.run([*run, 'status', '--porcelain'], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'
    return name.stdout.strip() + ('+' if changed.stdout.strip() else '')


def processor() -> str:
    """The processor's name and the instruction sets that matter here."""
    with contextlib.suppress(OSError):
        rows = [line.partition(':') for line in Path('/proc/cpuinfo').read_text().splitlines()]
        facts = {key.strip(): value.strip() for key, _, value in rows}
        name = facts.get('model name') or platform.machine()
        numbers = [facts[key] for key in ('cpu family', 'model') if key in facts]
        found = [
            flag for flag in ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16') if flag in facts.get('flags', '').split()
        ]
        return ' '.join([name, *([f'(family {" model ".join(numbers)})'] if numbers else []), *found])
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Python, system and the packages that matter."""
    found = {'python': platform.python_version(), 'system': platform.platform()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def command_line() -> str:
    """How this process was started, without the path of the interpreter."""
    return ' '.join(['python', *sys.argv])
