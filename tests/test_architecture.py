"""The project's rules as tests: imports, devices, sizes, style hazards, and no work on import."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ('dnnlib', 'torch_utils', 'training', 'metrics', 'applications', 'tools', 'benchmarks')
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60

# What each folder may import of the project (a folder may always import itself).
MAY_IMPORT = {
    'dnnlib': set(),
    'torch_utils': {'dnnlib'},
    'training': {'dnnlib', 'torch_utils'},
    'metrics': {'dnnlib', 'torch_utils'},
    'applications': {'dnnlib', 'torch_utils', 'training', 'metrics'},
    'tools': {'dnnlib', 'torch_utils', 'training', 'metrics', 'applications'},
    'benchmarks': {'dnnlib', 'torch_utils', 'training', 'metrics', 'applications'},
}
# The pipeline's stages do not know each other; generator.py alone composes them.
STAGES = {'texture', 'rasterized_planes', 'teeth', 'static_planes', 'blending', 'volume', 'superres'}
# The places that choose a device, and the code that is about CUDA itself.
CHOOSES_DEVICES = {
    'torch_utils/distributed.py',
    'torch_utils/ops/library.py',
    'torch_utils/ops/rasterize.py',
    'torch_utils/ops/cuda_build.py',
    'doctor.py',
}


def sources() -> list[Path]:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob('*.py')]
    return sorted(files + list(ROOT.glob('*.py')))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding='utf-8'), filename=str(path))


def imported_modules(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.fixture(scope='module')
def trees() -> dict[str, ast.Module]:
    return {name_of(path): parse(path) for path in sources()}


def test_there_is_something_to_check(trees: dict[str, ast.Module]) -> None:
    assert 'training/generator.py' in trees
    assert 'train.py' in trees


def test_import_table(trees: dict[str, ast.Module]) -> None:
    wrong = []
    for name, tree in trees.items():
        folder = name.split('/')[0] if '/' in name else None
        if folder is None:
            continue
        for module in imported_modules(tree):
            top = module.split('.')[0]
            if top in PACKAGES and top != folder and top not in MAY_IMPORT[folder]:
                wrong.append(f'{name} imports {module}')
    assert not wrong, '\n'.join(wrong)


def test_stages_do_not_import_each_other(trees: dict[str, ast.Module]) -> None:
    wrong = []
    for stage in STAGES:
        for module in imported_modules(trees[f'training/{stage}.py']):
            parts = module.split('.')
            if parts[0] == 'training' and len(parts) > 1 and parts[1] in STAGES - {stage}:
                wrong.append(f'{stage} imports {parts[1]}')
    assert not wrong, '\n'.join(wrong)


def test_cuda_literal_only_where_devices_are_chosen(trees: dict[str, ast.Module]) -> None:
    wrong = []
    for name, tree in trees.items():
        if name in CHOOSES_DEVICES:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.lower() == 'cuda':
                wrong.append(f'{name}:{node.lineno}')
            if isinstance(node, ast.Attribute) and node.attr == 'cuda':
                wrong += (
                    [] if ast.unparse(node) in ('torch.cuda', 'torch.version.cuda') else [f'{name}:{node.lineno} .cuda']
                )
    assert not wrong, '\n'.join(wrong)


def test_no_bare_except_and_no_mutable_default(trees: dict[str, ast.Module]) -> None:
    wrong = []
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                wrong.append(f'{name}:{node.lineno} bare except')
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                defaults = node.args.defaults + [default for default in node.args.kw_defaults if default]
                if any(isinstance(default, (ast.List, ast.Dict, ast.Set)) for default in defaults):
                    wrong.append(f'{name}:{node.lineno} mutable default')
    assert not wrong, '\n'.join(wrong)


def test_sizes(trees: dict[str, ast.Module]) -> None:
    wrong = []
    for name, tree in trees.items():
        lines = len((ROOT / name).read_text(encoding='utf-8').splitlines())
        if lines > MAX_FILE_LINES:
            wrong.append(f'{name}: {lines} lines')
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno:
                statements = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                length = node.end_lineno - statements[0].lineno + 1  # without signature and docstring
                if length > MAX_FUNCTION_LINES:
                    wrong.append(f'{name}:{node.lineno} {node.name}: {length} lines')
    assert not wrong, '\n'.join(wrong)


def test_import_builds_and_runs_nothing(tmp_path: Path) -> None:
    """Every module imports in a bare process without building, without CUDA and without writing."""
    modules = [name_of(path)[:-3].replace('/', '.') for path in sources() if path.name != '__init__.py']
    modules = [module for module in modules if not module.startswith('tools.')]
    code = (
        'import importlib, sys\n'
        f'for name in {modules!r}: importlib.import_module(name)\n'
        'import torch\n'
        'assert not torch.cuda.is_initialized()\n'
        'assert "torch.utils.cpp_extension" not in sys.modules, "an import loads the extension builder"\n'
    )
    cache = tmp_path / 'cache'
    environment = {**os.environ, 'NEXT3D_CACHE_DIR': str(cache), 'TORCH_EXTENSIONS_DIR': str(cache)}
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert not cache.exists()


@pytest.mark.parametrize('script', sorted(path.name for path in ROOT.glob('*.py')))
def test_help_teaches_without_loading_torch(script: str) -> None:
    result = subprocess.run(
        [sys.executable, '-X', 'importtime', script, '--help'], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert 'Usage:' in result.stdout
    loaded = {line.rpartition('|')[2].strip() for line in result.stderr.splitlines()}
    assert 'torch' not in loaded, f'{script} --help imports torch'
