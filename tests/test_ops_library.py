"""Building, caching, locking and falling back; and the CUDA kernels as far as a machine without a GPU can test them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cases_epilogue
import cases_ops
import cases_volume
import pytest
import torch

from dnnlib import UserError
from tools import compile_cuda
from torch_utils.ops import bias_act, fill_holes, layer_epilogue, library, planes, rasterize, upfirdn2d
from torch_utils.ops.texture_planes import Mirror

ROOT = Path(__file__).parent.parent
OPS = (
    *('rasterize', 'rasterize_backward', 'interpolate', 'interpolate_backward'),
    *('texture_planes', 'texture_planes_backward', 'sample_mask'),
    *('fill_holes', 'upfirdn2d', 'bias_act', 'bias_act_backward', 'bias_act_backward_sum'),
    *('sample_planes', 'sample_planes_backward', 'query_field'),
    *('layer_epilogue', 'layer_epilogue_backward', 'scale_channels', 'scale_channels_backward'),
)

# Builds a one-function library through the cache, in a process of its own: sys.argv is source, compiler.
BUILD = """
import sys
from pathlib import Path
from torch_utils.ops import library
source, compiler = Path(sys.argv[1]), sys.argv[2]
recipe = library.Recipe(
    name='tiny', sources=(source,), headers=(), compiler=compiler, compiler_version='1', flags=('-O0',)
)
print('compiled' if library.build_and_load(recipe) else 'cached', recipe.library, flush=True)
"""


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process state as if no op had run yet, with an empty build cache (its path)."""
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path / 'cache'))
    monkeypatch.setattr(library, '_builds', {})
    monkeypatch.setattr(library, '_warned', set())
    monkeypatch.delenv('NEXT3D_OPS', raising=False)
    return tmp_path / 'cache'


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    source = tmp_path / 'tiny.cpp'
    source.write_text('extern "C" int next3d_tiny() { return 3; }\n')
    return source


def start_build(source: Path, cache: Path, compiler: str | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, '-c', BUILD, str(source), compiler or library.find_compiler()]
    environment = {**os.environ, 'TORCH_EXTENSIONS_DIR': str(cache), 'PYTHONPATH': str(ROOT)}
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[str]) -> list[str]:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output.split()


def test_processes_build_once(tiny: Path, tmp_path: Path) -> None:
    results = [finish(process) for process in [start_build(tiny, tmp_path / 'cache') for _ in range(3)]]
    assert sorted(result[0] for result in results) == ['cached', 'cached', 'compiled']
    assert not list(Path(results[0][1]).parent.glob('work-*'))
    assert finish(start_build(tiny, tmp_path / 'cache'))[0] == 'cached'
    tiny.write_text(tiny.read_text().replace('3', '4'))
    assert finish(start_build(tiny, tmp_path / 'cache'))[0] == 'compiled'


def test_killed_build_does_not_block_the_next(tiny: Path, tmp_path: Path) -> None:
    """Kill the builder while its compiler hangs; what it leaves (a held lock, a half-built folder) must not matter."""
    waiting = tmp_path / 'waiting'
    slow = tmp_path / 'slow_compiler'
    real = library.find_compiler()
    slow.write_text(f'#!/bin/sh\n[ "$1" = -MMD ] && touch {waiting} && exec sleep 5\nexec {real} "$@"\n')
    slow.chmod(0o755)
    process = start_build(tiny, tmp_path / 'cache', str(slow))
    deadline = time.monotonic() + 60
    while not waiting.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    assert waiting.exists()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    slow.write_text(f'#!/bin/sh\nexec {real} "$@"\n')
    start = time.monotonic()
    assert finish(start_build(tiny, tmp_path / 'cache', str(slow)))[0] == 'compiled'
    assert time.monotonic() - start < 60


def test_failed_build_is_told_once_and_falls_back(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(library, 'build_and_load', lambda recipe: calls.append(recipe))
    monkeypatch.setenv('CXX', '/nowhere/c++')
    x = torch.rand(1, 1, 4, 4)
    with pytest.warns(RuntimeWarning, match=r'slower PyTorch twins: no C\+\+ compiler found .*/nowhere/c\+\+'):
        fill_holes.fill_holes(x, guarded=True)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        bias_act.bias_act(x)
    assert not calls
    with pytest.raises(UserError, match='native ops for cpu are not available: no C'):
        upfirdn2d.upfirdn2d(x, torch.ones(2, 2), backend='native')
    assert not fresh.exists()


def test_compiler_error_is_the_cause(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / 'broken_cpu.cpp'
    broken.write_text('int main() { return undeclared; }\n')
    monkeypatch.setattr(library, 'SOURCE_DIR', tmp_path)
    build = library.load('cpu')
    assert build.library is None
    assert build.cause is not None
    assert 'undeclared' in build.cause
    assert len(build.cause.splitlines()) == 1
    assert library.load('cpu') is build
    assert 'undeclared' in next(fresh.glob('*/build.log')).read_text()


def test_unwritable_cache_is_the_cause(fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path / 'file'))
    assert 'Not a directory' in str(library.load('cpu').cause)


def test_missing_ninja_is_the_cause(fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library.sys, 'executable', str(tmp_path / 'python'))
    monkeypatch.setattr(shutil, 'which', lambda name: None if 'ninja' in name else '/usr/bin/env')
    with pytest.raises(UserError, match='ninja is not installed'):
        library.find_ninja()


def test_modes(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device('cpu')
    monkeypatch.setenv('NEXT3D_OPS', 'reference')
    assert not library.use_native(cpu)
    assert not fresh.exists()
    monkeypatch.setenv('NEXT3D_OPS', 'fast')
    with pytest.raises(UserError, match="NEXT3D_OPS: expected one of auto, native, reference, got 'fast'"):
        library.use_native(cpu)
    with pytest.raises(ValueError, match='backend: expected one of'):
        library.use_native(cpu, backend='fast')
    monkeypatch.setenv('NEXT3D_OPS', 'auto')
    with pytest.warns(RuntimeWarning, match='there are no kernels for xpu devices'):
        assert not library.use_native(torch.device('xpu'))
    assert library.use_native(torch.device('meta'))
    assert not fresh.exists()


def test_cuda_without_cuda_is_explained(fresh: Path) -> None:
    if torch.version.cuda is not None:
        pytest.skip('a CUDA build of torch')
    assert library.load('cuda').cause == 'this build of torch has no CUDA'


def test_meta_tensors() -> None:
    case = cases_ops.tie_mesh().to(torch.device('meta'))
    result = rasterize.rasterize(case.vertices, case.faces, height=5, width=7)
    assert result.barycentrics.shape == (2, 5, 7, 3)
    x = torch.empty(2, 3, 8, 8, device='meta')
    assert upfirdn2d.upsample2d(x, torch.empty(4, 4, device='meta')).shape == (2, 3, 16, 16)
    assert bias_act.bias_act(x, torch.empty(3, device='meta'), act='lrelu').shape == x.shape
    assert fill_holes.fill_holes(x[:, :1], guarded=True).shape == (2, 1, 8, 8)
    stack, points = torch.empty(2, 3, 4, 8, 8, device='meta'), torch.empty(2, 5, 3, device='meta')
    assert planes.sample_planes(stack, points, box_size=1.0, aggregation='sum').shape == (2, 5, 4)


def test_import_builds_nothing(tmp_path: Path) -> None:
    code = (
        'import sys; from torch_utils.ops import rasterize, upfirdn2d, bias_act, fill_holes, planes, diagnose\n'
        'assert "torch.utils.cpp_extension" not in sys.modules'
    )
    environment = {**os.environ, 'TORCH_EXTENSIONS_DIR': str(tmp_path / 'cache')}
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=environment, check=True)
    assert not (tmp_path / 'cache').exists()


def test_doctor() -> None:
    result = subprocess.run([sys.executable, 'doctor.py'], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'ops        cpu: native' in result.stdout
    assert result.stdout.count(' ok, ') >= 4
    assert 'memory     cpu: ' in result.stdout
    environment = {**os.environ, 'CXX': '/nowhere/c++'}
    result = subprocess.run(
        [sys.executable, 'doctor.py'], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert 'PyTorch twins, because the native ops fail: no C++ compiler found' in result.stdout
    assert 'Warning' not in result.stderr


@pytest.mark.slow
def test_cuda_sources_compile() -> None:
    try:
        complaints = compile_cuda.compile_all(['90'])
    except UserError as error:
        pytest.skip(str(error))
    assert set(complaints) == {*(path.name for path in library.SOURCE_DIR.glob('*.cu')), 'bindings_cuda.cpp'}
    assert not any(complaints.values()), complaints


@pytest.fixture(scope='module')
def emulated() -> Iterator[Any]:
    """The CUDA kernels compiled as C++ and run thread after thread on the CPU: torch.ops.next3d_emulated."""
    library.use_native(torch.device('cpu'), backend='native')
    definitions = torch.library.Library('next3d_emulated', 'DEF')
    for name in OPS:
        schema = str(getattr(torch.ops.next3d, name).default._schema)
        definitions.define(schema.removeprefix('next3d::'))
    sources = [path for path in sorted(library.SOURCE_DIR.iterdir()) if path.suffix in ('.h', '.cu')]
    compiler = library.find_compiler()
    recipe = library.Recipe(
        name='next3d_emulated',
        sources=(ROOT / 'tests' / 'cuda_emulation' / 'emulated.cpp',),
        headers=tuple(sources),
        compiler=compiler,
        compiler_version=library.run_tool(compiler, '--version'),
        flags=('-O1', '-ffp-contract=off'),
    )
    library.build_and_load(recipe)
    yield torch.ops.next3d_emulated
    definitions._destroy()


@pytest.mark.slow
def test_cuda_rasterizer_emulated(emulated: Any) -> None:
    native = torch.ops.next3d
    for case in [*cases_ops.mesh_cases(), cases_ops.head_like(views=1)]:
        for dtype in (torch.float32, torch.float64):
            case = case.to(torch.device('cpu'), dtype)
            arguments = (case.vertices, case.faces, case.height, case.width)
            result = emulated.rasterize(*arguments)
            for value, expected in zip(result, native.rasterize(*arguments), strict=True):
                assert torch.equal(value, expected)
            cotangents = (torch.randn_like(result[0]), torch.randn_like(result[1]))
            backward = (*cotangents, result[2], case.vertices, case.faces)
            gradient = emulated.rasterize_backward(*backward)
            expected = native.rasterize_backward(*backward)
            scale = expected.abs().amax().clamp(min=1e-6)
            torch.testing.assert_close(gradient / scale, expected / scale, atol=1e-5, rtol=1e-4)
            table = torch.randn(len(case.vertices), len(case.faces), 3, 2, dtype=dtype)
            shading = (result[2], result[0], table)
            assert torch.equal(emulated.interpolate(*shading), native.interpolate(*shading))
            pulled = (torch.randn(*result[2].shape, 2, dtype=dtype), *shading, True)
            for value, expected in zip(
                emulated.interpolate_backward(*pulled), native.interpolate_backward(*pulled), strict=True
            ):
                torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_cuda_fill_holes_emulated(emulated: Any) -> None:
    for _, alpha in cases_ops.mask_cases():
        for guarded in (False, True):
            arguments = (alpha[:, 0], guarded)
            assert torch.equal(emulated.fill_holes(*arguments), torch.ops.next3d.fill_holes(*arguments))


@pytest.mark.slow
@pytest.mark.parametrize('background', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_cuda_texture_emulated(emulated: Any, dtype: torch.dtype, background: bool) -> None:
    case = cases_ops.texture_case(dtype=dtype)
    native = torch.ops.next3d
    turned = [Mirror.NONE, Mirror.COLUMNS, Mirror.NONE, Mirror.ROWS]
    arguments = (case.face_ids, case.barycentrics, case.face_uv, case.texture, [0, 2, 2, 0], turned, background)
    planes = native.texture_planes(*arguments)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(emulated.texture_planes(*arguments), planes, atol=tolerance, rtol=tolerance)
    grad = torch.randn(planes.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    pairs = zip(
        emulated.texture_planes_backward(grad, *arguments, True, True),
        native.texture_planes_backward(grad, *arguments, True, True),
        strict=True,
    )
    for value, expected in pairs:
        scale = expected.abs().amax()
        assert value.stride() == expected.stride()
        torch.testing.assert_close(value / scale, expected / scale, atol=tolerance, rtol=tolerance)
    masked = (case.face_ids, case.barycentrics, case.face_uv, case.texture[0, 0].contiguous())
    assert torch.equal(emulated.sample_mask(*masked), native.sample_mask(*masked))


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_cuda_elementwise_emulated(emulated: Any, memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    x = (2 * torch.randn(2, 3, 7, 6, generator=rng)).to(dtype).to(memory_format=memory_format)
    grad, b = torch.randn(x.shape, generator=rng).to(dtype), torch.randn(3, generator=rng).to(dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5 if dtype == torch.float32 else 1e-2
    native = torch.ops.next3d
    pairs = []
    for f in (cases_ops.filters()['general'], cases_ops.filters()['gappy']):
        for arguments in (
            (f, 1, 1, 1, 1, 2, 1, 2, 1, True, 1.0),
            (f, 2, 3, 1, 2, 1, 2, 4, 0, False, -0.5),
            (f, 2, 2, 1, 1, -1, -2, 9, -3, False, 4.0),
        ):
            pairs.append((emulated.upfirdn2d(x, *arguments), native.upfirdn2d(x, *arguments)))
    for act in bias_act.ACTIVATIONS:
        for bias in (b, None):
            rest = (bias, 1, act, 0.2, 1.3, 2.0)
            pairs.append((emulated.bias_act(x, *rest), native.bias_act(x, *rest)))
            pairs.append((emulated.bias_act_backward(grad, x, *rest), native.bias_act_backward(grad, x, *rest)))
            sums = emulated.bias_act_backward_sum(grad, x, *rest), native.bias_act_backward_sum(grad, x, *rest)
            pairs += zip(*sums, strict=True)
    for value, expected in pairs:
        assert value.stride() == expected.stride()
        torch.testing.assert_close(value, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_cuda_planes_emulated(emulated: Any, dtype: torch.dtype) -> None:
    native = torch.ops.next3d
    tolerance = 1e-12 if dtype == torch.float64 else 1e-2 if dtype.itemsize == 2 else 1e-5
    for case in (case.to(torch.device('cpu'), dtype) for case in cases_volume.plane_cases()):
        channels = case.planes.shape[2]
        arguments = (case.planes, case.points, 2 / case.box_size, 1 / 3)
        value = emulated.sample_planes(*arguments)
        cotangent = cases_volume.noise(*value.shape, seed=1).to(value)
        pairs = [(value, native.sample_planes(*arguments))]
        backward = (cotangent, *arguments, True, True)
        pairs += zip(emulated.sample_planes_backward(*backward), native.sample_planes_backward(*backward), strict=True)
        for of_colors in (True, False) if dtype != torch.float64 else ():
            decoded = (*arguments, *cases_volume.decoder_weights(channels, 20, channels), of_colors)
            pairs += zip(emulated.query_field(*decoded), native.query_field(*decoded), strict=True)
        for result, expected in pairs:
            torch.testing.assert_close(result, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_cuda_epilogue_emulated(emulated: Any, memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5 if dtype == torch.float32 else 1e-2
    native = torch.ops.next3d
    for filtered, own, bare in ((True, False, False), (False, True, False), (True, False, True), (False, False, True)):
        case = cases_epilogue.epilogue_case(
            (2, 5, 21, 34),
            filtered=filtered,
            scaled=not bare,
            noise=None if bare else 'own' if own else 'shared',
            dtype=dtype,
            memory_format=memory_format,
        )
        taps, scale, noise, bias = case.options.values()
        y = native.layer_epilogue(case.x, taps, scale, noise, bias, 0.2, 1.3)
        grad = torch.randn_like(y)
        pairs = [(emulated.layer_epilogue(case.x, taps, scale, noise, bias, 0.2, 1.3), y)]
        for wanted in ([True, not bare, not bare, True], [False] * 4):
            rest = (grad, y, scale, noise, bias, 0.2, 1.3, wanted)
            pairs += zip(emulated.layer_epilogue_backward(*rest), native.layer_epilogue_backward(*rest), strict=True)
        factors = torch.randn(2, 5).to(torch.float64 if dtype == torch.float64 else torch.float32)
        pairs.append((emulated.scale_channels(y, factors), layer_epilogue.scale_channels(y, factors, backend='native')))
        scaling = (grad, y, factors)
        pairs += zip(emulated.scale_channels_backward(*scaling), native.scale_channels_backward(*scaling), strict=True)
        for value, expected in pairs:
            assert value.stride() == expected.stride()
            unit = expected.abs().amax().clamp(min=1) if expected.numel() else 1
            torch.testing.assert_close(value / unit, expected / unit, atol=tolerance, rtol=tolerance)
