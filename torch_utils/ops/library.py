"""Builds and loads the native ops at first use, and decides which implementation a call gets.

Each op's schema is defined once, in Python, under the namespace `next3d`; its module registers the fake kernel and
the gradient. The C++ and CUDA kernels in csrc/ are compiled by ninja when an op first runs on a device and kept in a
cache keyed by sources, flags, compiler, processor and torch. The CUDA kernels compile for sm_80 to sm_120
(tools/compile_cuda.py) and are tested by running them thread after thread on a CPU (tests/cuda_emulation); they have
not run on a GPU yet. `NEXT3D_OPS` chooses:

    auto       native where it builds; otherwise the PyTorch twin, after one warning that gives the cause (default)
    native     native; UserError with the cause where it does not build
    reference  the PyTorch twin; nothing is ever built
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from dnnlib import UserError
from dnnlib.files import exclusive
from torch_utils.ops import build_help, memory

MODES = ('auto', 'native', 'reference')
SOURCE_DIR = Path(__file__).parent / 'csrc'
LOCK_TIMEOUT_SECONDS = 900.0
# No contraction: the same operations in the same order everywhere, so that the ops equal their twins exactly. Nobody
# reads floating-point exception flags; gcc needs to know that before it vectorizes choices with AVX2.
_FLAGS = ('-O3', '-ffp-contract=off', '-fno-trapping-math', '-fno-math-errno')

_definitions = torch.library.Library('next3d', 'DEF')
_builds: dict[str, Build] = {}
_build_lock = threading.Lock()
_warned: set[str] = set()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Build:
    """The outcome of loading one device's kernels: a library, or the cause of the failure."""

    library: Path | None = None
    cause: str | None = None
    remedy: str = ''  # what to do about the cause
    log: Path | None = None  # what the failed build printed
    seconds: float = 0.0
    compiled: bool = False

    @property
    def explanation(self) -> str:
        """Cause, remedy and log in one line."""
        parts = [self.cause or '', self.remedy, f'full log: {self.log}' if self.log else '']
        return '; '.join(part for part in parts if part)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a binary depends on."""

    name: str
    sources: tuple[Path, ...]
    headers: tuple[Path, ...]
    compiler: str
    compiler_version: str
    flags: tuple[str, ...]
    cuda_flags: tuple[str, ...] = ()
    nvcc_version: str = ''  # empty: no CUDA

    @property
    def folder(self) -> Path:
        """The cache entry."""
        digest = hashlib.sha256()
        for path in (*self.sources, *self.headers):
            digest.update(path.name.encode() + b'\0' + path.read_bytes() + b'\0')
        facts = (torch.__version__, self.compiler, self.compiler_version, *self.flags, *self.cuda_flags)
        digest.update('\0'.join((*facts, self.nvcc_version, processor_flags())).encode())
        return cache_root() / f'{self.name}-{digest.hexdigest()[:20]}'

    @property
    def library(self) -> Path:
        """Where the finished library lies."""
        return self.folder / f'{self.name}.so'


def define(schema: str) -> None:
    """Define one op of the namespace, such as 'fill_holes(Tensor alpha, bool guarded) -> Tensor'."""
    _definitions.define(schema)


def layout(x: torch.Tensor) -> torch.memory_format:
    """The memory format that a native op returns for x: channels-last where x is unambiguously so."""
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def present_devices() -> list[torch.device]:
    """The CPU, and the current GPU if there is one."""
    gpus = [torch.device('cuda', torch.cuda.current_device())] if torch.cuda.is_available() else []
    return [torch.device('cpu'), *gpus]


def mode() -> str:
    """The value of NEXT3D_OPS; UserError when it is none of MODES."""
    value = os.environ.get('NEXT3D_OPS') or 'auto'
    if value not in MODES:
        raise UserError(f'NEXT3D_OPS: expected one of {", ".join(MODES)}, got {value!r}')
    return value


def use_native(device: torch.device, *, backend: str | None = None) -> bool:
    """Whether a call on `device` runs the native kernel (True) or the PyTorch twin (False).

    `backend` ('native', 'reference', or None for NEXT3D_OPS) overrides the environment. Builds at first use.
    Raises UserError when native kernels are demanded and cannot be had.
    """
    choice = backend or mode()
    if choice not in MODES:
        raise ValueError(f'backend: expected one of {", ".join(MODES)}, got {choice!r}')
    if choice == 'reference':
        return False
    if device.type == 'meta':
        return True
    memory.mode()  # a wrong value is the user's mistake, not the cause of a failed build
    build = load(device.type)
    if build.library is not None:
        return True
    if choice == 'native':
        raise UserError(
            f'native ops for {device.type} are not available: {build.explanation}; or set NEXT3D_OPS=reference'
        )
    if device.type not in _warned:
        _warned.add(device.type)
        warnings.warn(
            f'native ops for {device.type} are not available, using the slower PyTorch twins: {build.explanation}',
            RuntimeWarning,
            stacklevel=3,
        )
    return False


def load(device_type: str) -> Build:
    """Build (if needed) and load the kernels of 'cpu' or 'cuda'; never raises, and tries once per process."""
    build = _builds.get(device_type)
    if build is None:
        with _build_lock:
            build = _builds.get(device_type)
            if build is None:
                build = _builds[device_type] = _load(device_type)
    return build


def cache_root() -> Path:
    """Folder of all builds: $TORCH_EXTENSIONS_DIR, else next3d in the user's cache folder."""
    configured = os.environ.get('TORCH_EXTENSIONS_DIR')
    if configured:
        return Path(configured)
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'next3d'


def recipe(device_type: str) -> Recipe:
    """What a build for 'cpu' or 'cuda' is made of; UserError names what is missing."""
    if device_type not in ('cpu', 'cuda'):
        raise UserError(f'there are no kernels for {device_type} devices')
    compiler = find_compiler()
    suffixes = {'cpu': ('_cpu.cpp',), 'cuda': ('_cuda.cpp', '.cu')}[device_type]
    return Recipe(
        name=f'next3d_{device_type}',
        sources=tuple(path for path in sorted(SOURCE_DIR.iterdir()) if path.name.endswith(suffixes)),
        headers=tuple(sorted(SOURCE_DIR.glob('*.h'))),
        compiler=compiler,
        compiler_version=run_tool(compiler, '--version').splitlines()[0],
        flags=(*_FLAGS, *(('-march=native', '-fopenmp') if sys.platform == 'linux' else ())),
        cuda_flags=('-O3', '-fmad=false') if device_type == 'cuda' else (),
        nvcc_version=_nvcc_version() if device_type == 'cuda' else '',
    )


def build_and_load(built: Recipe) -> bool:
    """Load a recipe's library into torch, compiling it unless the cache has it; True if this process compiled it.

    Several processes may call this at once: one compiles, the others wait for it. A process killed meanwhile leaves
    nothing that blocks or misleads the next one. Raises UserError, OSError, RuntimeError or ImportError.
    """
    folder, library = built.folder, built.library
    if library.is_file():
        torch.ops.load_library(library)
        return False
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / 'build.lock'
    busy = f'{lock}: another process has been building for too long; end it'
    with exclusive(lock, wait=LOCK_TIMEOUT_SECONDS, busy=busy):
        if not library.is_file():
            _compile(built, folder, library)
            return True
    torch.ops.load_library(library)
    return False


def _load(device_type: str) -> Build:
    start, built = time.monotonic(), None
    try:
        built = recipe(device_type)
        compiled = build_and_load(built)
        if device_type == 'cpu':
            memory.install(built.library)
    except (UserError, OSError, RuntimeError, ImportError) as error:
        return Build(
            cause=build_help.cause_of(error),
            remedy=build_help.remedy_for(error),
            log=build_help.write_log(built.folder, error) if built is not None else None,
            seconds=time.monotonic() - start,
        )
    return Build(library=built.library, seconds=time.monotonic() - start, compiled=compiled)


def _compile(built: Recipe, folder: Path, library: Path) -> None:
    """Compile in a fresh subfolder, which loads the result too, then put the library in its place."""
    for left in folder.glob('work-*'):  # by a killed process
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix='work-', dir=folder))
    start = time.monotonic()
    from torch.utils import cpp_extension  # slow to import, so only when something must be built

    try:
        with _tools_on_path(built.compiler), build_help.progress(built.name, work, steps=len(built.sources) + 1):
            cpp_extension.load(
                built.name,
                [str(path) for path in built.sources],
                extra_cflags=list(built.flags),
                extra_cuda_cflags=list(built.cuda_flags),
                extra_ldflags=[flag for flag in built.flags if flag == '-fopenmp'],
                extra_include_paths=[str(SOURCE_DIR)],
                build_directory=str(work),
                with_cuda=bool(built.nvcc_version),
                is_python_module=False,
            )
        record = build_help.BuildRecord(
            compiler=built.compiler_version,
            flags=(*built.flags, *built.cuda_flags),
            seconds=round(time.monotonic() - start, 1),
            date=time.strftime('%Y-%m-%d %H:%M', time.gmtime()),
        )
        build_help.write_record(folder, record)
        os.replace(next(work.glob('*.so')), library)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _tools_on_path(compiler: str) -> Iterator[None]:
    """Let torch's builder find the chosen ninja and compiler."""
    saved = {name: os.environ.get(name) for name in ('PATH', 'CXX')}
    os.environ['PATH'] = os.pathsep.join([str(find_ninja().parent), saved['PATH'] or os.defpath])
    os.environ['CXX'] = compiler
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def find_ninja() -> Path:
    """The ninja of this Python environment (activated or not), else the system's; UserError where there is none."""
    beside = Path(sys.executable).parent / 'ninja'
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which('ninja')
    if found is None:
        raise UserError('ninja is not installed (pip install ninja)')
    return Path(found)


def find_compiler() -> str:
    """$CXX, else the system's C++ compiler; UserError where there is none."""
    names = [os.environ['CXX']] if os.environ.get('CXX') else ['c++', 'g++', 'clang++']
    for name in names:
        found = shutil.which(name)
        if found is not None:
            return found
    raise UserError(f'no C++ compiler found (looked for {", ".join(names)}); install g++ or set CXX')


def find_nvcc() -> str:
    """The CUDA compiler; UserError where there is none."""
    home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH') or '/usr/local/cuda'
    found = shutil.which(str(Path(home) / 'bin' / 'nvcc')) or shutil.which('nvcc')
    if found is None:
        raise UserError('nvcc not found; install the CUDA toolkit or set CUDA_HOME')
    return found


def run_tool(*command: str) -> str:
    """What a tool prints; UserError when it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        said = build_help.cause_of(RuntimeError(result.stderr or result.stdout or f'exit status {result.returncode}'))
        raise UserError(f'{" ".join(command)} fails: {said}')
    return result.stdout.strip()


def _nvcc_version() -> str:
    if torch.version.cuda is None:
        raise UserError('this build of torch has no CUDA')
    nvcc = find_nvcc()
    devices = sorted({torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())})
    return f'{nvcc} {run_tool(nvcc, "--version").splitlines()[-1]} for {devices}'


@functools.cache
def processor_flags() -> str:
    """The machine and the instruction sets that -march=native may use, separated by blanks."""
    with contextlib.suppress(OSError):
        for row in Path('/proc/cpuinfo').read_text().splitlines():
            if row.startswith(('flags', 'Features')):
                return platform.machine() + row.partition(':')[2]
    return platform.machine()


def bf16_instructions() -> str | None:
    """The processor flag of fast bfloat16 products (x86: two, ARM: one); None where there is none."""
    return next((flag for flag in ('avx512_bf16', 'amx_bf16', 'bf16') if flag in processor_flags().split()), None)
