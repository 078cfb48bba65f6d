"""Compiles every CUDA kernel for several GPU generations, and checks the CUDA binding's syntax, without a GPU.

Run from the repository's root: python -m tools.compile_cuda. Needs nvcc (a CUDA toolkit) and a C++ compiler; says so
and exits with 0 where there is no nvcc. It proves that the kernels compile, not that they run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import torch

from dnnlib import UserError
from dnnlib.cli import Command
from torch_utils.ops import library

ARCHITECTURES = ('80', '90', '120')


def nvcc_command(source: Path, *, architectures: Sequence[str], output: Path) -> list[str]:
    """The command that compiles one kernel file for `architectures` (such as '90')."""
    targets = [f'-gencode=arch=compute_{number},code=sm_{number}' for number in architectures]
    flags = ['-std=c++17', '-O3', '-fmad=false', '-Werror', 'all-warnings', '--threads', '0']
    return [library.find_nvcc(), *flags, *targets, '-c', str(source), '-o', str(output)]


def binding_command(folder: Path) -> list[str]:
    """The command that checks bindings_cuda.cpp; a CPU build of torch lacks one generated header, written here."""
    stub = folder / 'c10/cuda/impl/cuda_cmake_macros.h'
    stub.parent.mkdir(parents=True)
    stub.write_text('#pragma once\n#define C10_CUDA_BUILD_SHARED_LIBS\n')
    torch_include = Path(torch.__file__).parent / 'include'
    toolkit = Path(library.find_nvcc()).resolve().parent.parent / 'include'
    include = [f'-I{folder}', '-isystem', str(torch_include), '-isystem', str(toolkit)]
    return [
        library.find_compiler(),
        '-std=c++20',
        '-fsyntax-only',
        *include,
        str(library.SOURCE_DIR / 'bindings_cuda.cpp'),
    ]


def compile_all(architectures: Sequence[str], *, jobs: int = 2) -> dict[str, str]:
    """The compiler's complaint per file, empty where it compiles; UserError without nvcc."""
    library.find_nvcc()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(jobs) as pool:
        folder = Path(name)
        commands = {
            source.name: nvcc_command(source, architectures=architectures, output=folder / f'{source.stem}.o')
            for source in sorted(library.SOURCE_DIR.glob('*.cu'))
        }
        commands['bindings_cuda.cpp'] = binding_command(folder)
        return dict(zip(commands, pool.map(_complaint, commands.values()), strict=True))


def _complaint(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return '' if result.returncode == 0 else (result.stderr or result.stdout)


@click.command(cls=Command)
@click.option('--arch', default=','.join(ARCHITECTURES), show_default=True, help='Compute capabilities, 90 for 9.0.')
def main(arch: str) -> None:
    """Compile the CUDA kernels for several GPU generations; exits with 1 if one does not compile."""
    try:
        complaints = compile_all(arch.split(','))
    except UserError as error:
        click.echo(f'CUDA kernels not checked: {error}')
        return
    for name, complaint in complaints.items():
        click.echo(f'{name:<20} {"FAILS" if complaint else "compiles"} ({arch})\n{complaint}'.rstrip())
    sys.exit(any(complaints.values()))


if __name__ == '__main__':
    main()
