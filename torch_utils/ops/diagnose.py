"""What doctor.py prints: tools, devices, builds, active backends, and a self-test of every op."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import torch

from dnnlib import UserError
from torch_utils.ops import (
    bias_act,
    fill_holes,
    layer_epilogue,
    library,
    memory,
    planes,
    rasterize,
    texture_planes,
    upfirdn2d,
)
from torch_utils.ops.build_help import read_record
from torch_utils.precision import choose_precision

SELF_TEST_SECONDS = 10.0
INSTRUCTIONS = ('avx2', 'avx512f', 'avx512_bf16', 'avx512_fp16', 'amx_bf16', 'asimd', 'bf16', 'sve')
PACKAGES = ('torch', 'numpy', 'scipy', 'pillow', 'click', 'imageio', 'imageio-ffmpeg', 'tensorboard', 'ninja')


def report() -> Iterator[tuple[str, bool]]:
    """Lines of the report and whether each is sound; builds the native ops of every device that is present."""
    yield from _environment()
    yield from _arithmetic()
    for device in library.present_devices():
        yield from _build(device)
        if device.type == 'cpu':
            yield f'memory     cpu: {memory.reason() or "freed memory is kept for reuse"}', True
        start = time.perf_counter()
        for name, check in CHECKS.items():
            yield _compare(name, check, device)
        seconds = time.perf_counter() - start
        yield f'self-test  {device.type} took {seconds:.1f} s for {len(CHECKS)} ops', seconds < SELF_TEST_SECONDS


def _arithmetic() -> Iterator[tuple[str, bool]]:
    """What the processor multiplies natively, and what follows from it."""
    flags = library.processor_flags().split()
    found = [name for name in INSTRUCTIONS if name in flags]
    uses = torch.backends.cpu.get_cpu_capability()
    yield f'processor  {" ".join(found) or "no instruction set that matters here is known"}; torch uses {uses}', True
    for device in library.present_devices():
        yield f'precision  {device.type}: --precision=auto is {choose_precision("auto", device)}', True


def _environment() -> Iterator[tuple[str, bool]]:
    yield f'python     {platform.python_version()} at {sys.executable}', True
    yield f'platform   {platform.platform()}, {torch.get_num_threads()} threads', True
    versions = {package: _installed_version(package) for package in PACKAGES}
    found = [f'{package} {version or "MISSING"}' for package, version in versions.items()]
    yield f'packages   {", ".join(found)}', all(versions.values())
    for name, find in (('ninja', library.find_ninja), ('compiler', library.find_compiler), ('nvcc', library.find_nvcc)):
        try:
            path = str(find())
            yield f'{name:<10} {path}: {_version(path)}', True
        except UserError as error:
            yield f'{name:<10} {error}', True
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            capability = f'{properties.major}.{properties.minor}'
            gigabytes = properties.total_memory / 2**30
            yield f'device     cuda:{index} {properties.name}, capability {capability}, {gigabytes:.0f} GiB', True
    else:
        yield f'device     cpu only (torch {torch.__version__} sees no GPU)', True
    installed = importlib.util.find_spec('pytorch3d') is not None
    yield (
        f'rasterizer native, reference{", pytorch3d" if installed else " (pytorch3d is not installed: optional)"}',
        True,
    )
    yield f'           in use: {rasterize.chosen_backend() or "auto"} (--rasterizer or NEXT3D_RASTERIZER)', True
    yield f'NEXT3D_OPS {library.mode()} (one of {", ".join(library.MODES)})', True
    yield f'NEXT3D_ALLOCATOR {memory.mode()} (one of {", ".join(memory.MODES)})', True


def _installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _version(path: str) -> str:
    lines = library.run_tool(path, '--version').splitlines()
    return next((line for line in lines if 'release' in line), lines[0])


def _build(device: torch.device) -> Iterator[tuple[str, bool]]:
    if library.mode() == 'reference':
        yield f'ops        {device.type}: PyTorch twins, as NEXT3D_OPS demands', True
        return
    build = library.load(device.type)
    if build.library is None:
        yield f'ops        {device.type}: PyTorch twins, because the native ops fail: {build.cause}', False
        if build.remedy:
            yield f'           what to do: {build.remedy}', False
        if build.log is not None:
            yield f'           full log: {build.log}', False
        return
    how = 'compiled' if build.compiled else 'loaded from the cache'
    yield f'ops        {device.type}: native, {how} in {build.seconds:.1f} s: {build.library}', True
    record = read_record(build.library)
    if record is not None:
        made = f'{record.date} UTC in {record.seconds:.1f} s by {record.compiler}'
        yield f'           built {made} with {" ".join(record.flags)}', True


def _compare(
    name: str, check: Callable[[torch.device, str | None], tuple[torch.Tensor, ...]], device: torch.device
) -> tuple[str, bool]:
    """The active backend of an op against its twin on one small case."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the report has told already why an op is not native
        check(device, None)
    start = time.perf_counter()
    active = [value.cpu() for value in check(device, None)]
    milliseconds = 1000 * (time.perf_counter() - start)
    expected = [value.cpu() for value in check(device, 'reference')]
    error = max(float((a.double() - b.double()).abs().max()) for a, b in zip(active, expected, strict=True))
    sound = error < 1e-4
    return (
        f'self-test  {device.type} {name:<14} {"ok" if sound else "WRONG"}, {error:.1e}, {milliseconds:.1f} ms',
        sound,
    )


def _check_rasterize(device: torch.device, backend: str | None) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(0)
    vertices = torch.randn(2, 300, 3, generator=rng).to(device)
    faces = torch.arange(300, device=device).view(-1, 3)
    result = rasterize.rasterize(vertices, faces, height=64, width=64, backend=backend)
    return result.face_ids, result.barycentrics, result.depth


def _check_texture(device: torch.device, backend: str | None) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(0)
    vertices = torch.randn(4, 300, 3, generator=rng).to(device)
    faces = torch.arange(300, device=device).view(-1, 3)
    fragments = rasterize.rasterize(vertices, faces, height=64, width=64, backend='reference')
    face_uv = 2 * torch.rand(100, 3, 2, generator=rng).to(device) - 1
    texture = torch.randn(1, 32, 64, 64, generator=rng).to(device).requires_grad_()
    planes = texture_planes.texture_planes(
        fragments,
        face_uv,
        texture,
        slots=(0, 1, 1, 2),
        mirrors=list(texture_planes.Mirror)[:1] * 4,
        background=True,
        backend=backend,
    )
    gradient = torch.autograd.grad(planes.square().mean(), texture)[0]
    return planes.detach(), gradient


def _check_fill_holes(device: torch.device, backend: str | None) -> tuple[torch.Tensor, ...]:
    alpha = (torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)) > 0.4).float().to(device)
    return (fill_holes.fill_holes(alpha, guarded=True, backend=backend),)


def _check_upfirdn2d(device: torch.device, backend: str | None) -> tuple[torch.Tensor, ...]:
    x = torch.randn(2, 8, 32, 32, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    y = upfirdn2d.upsample2d(x, upfirdn2d.setup_filter(device=device), backend=backend)
    return y.detach(), *torch.autograd.grad(y.square().sum(), x)


def _check_bias_act(device: torch.device, backend: str | None) -> tuple[torch.Tensor, ...]:
    x = torch.randn(2, 8, 32, 32, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    y = bias_act.bias_act(x, torch.linspace(-1, 1, 8, device=device), act='lrelu', clamp=1, backend=backend)
    return y.detach(), *torch.autograd.grad(y.square().sum(), x)


def _check_planes(device: torch.device, backend: str | None) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(0)
    stack = torch.randn(2, 3, 8, 16, 16, generator=rng).to(device).requires_grad_()
    points = (torch.rand(2, 500, 3, generator=rng) - 0.5).to(device)
    value = planes.sample_planes(stack, points, box_size=1.0, aggregation='mean', backend=backend)
    return value.detach(), *torch.autograd.grad(value.square().sum(), stack)


def _check_layer_epilogue(device: torch.device, backend: str | None) -> tuple[torch.Tensor, ...]:
    x = torch.randn(2, 8, 33, 33, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    ramp = torch.linspace(0.5, 1.5, 16, device=device).view(2, 8)
    taps = torch.tensor([0.25, 0.75, 0.75, 0.25], device=device)
    x_scaled = layer_epilogue.scale_channels(x, ramp, backend=backend)
    y = layer_epilogue.layer_epilogue(x_scaled, taps=taps, scale=ramp, bias=ramp[0] - 0.7, backend=backend)
    return y.detach(), *torch.autograd.grad(y.square().sum() / 16, x)


CHECKS: dict[str, Callable[[torch.device, str | None], tuple[torch.Tensor, ...]]] = {
    'rasterize': _check_rasterize,
    'texture': _check_texture,
    'fill_holes': _check_fill_holes,
    'upfirdn2d': _check_upfirdn2d,
    'bias_act': _check_bias_act,
    'planes': _check_planes,
    'layer_epilogue': _check_layer_epilogue,
}
