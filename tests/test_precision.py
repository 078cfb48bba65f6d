"""The choice of a precision, its reason, and what it does to scripts and pictures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dnnlib import UserError
from torch_utils.ops import library
from torch_utils.precision import choose_precision, lay_out
from training import cameras
from training.checkpoint import load_generator
from training.head.makehuman import embedded_head

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device('cpu')


@pytest.mark.parametrize(
    ('flags', 'name', 'reason'),
    [
        ('x86_64 avx2 avx512_bf16', 'bf16', 'avx512_bf16'),
        ('aarch64 asimd bf16', 'bf16', 'bf16'),
        ('x86_64 avx2', 'fp32', 'no bf16'),
    ],
)
def test_auto_follows_the_processor(flags: str, name: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, 'processor_flags', lambda: flags)
    chosen = choose_precision('auto', CPU)
    assert chosen.name == name
    assert reason in str(chosen)
    assert str(chosen).startswith(f'{name} (auto: ')


def test_wrong_choices() -> None:
    with pytest.raises(UserError, match='--precision: expected one of auto, fp32, bf16, fp16'):
        choose_precision('tf32', CPU)
    with pytest.raises(UserError, match='--precision=fp16: CPUs'):
        choose_precision('fp16', CPU)


def test_context_and_layout() -> None:
    convolution = torch.nn.Conv2d(4, 4, 3)
    chosen = choose_precision('bf16', CPU)
    lay_out(convolution, chosen)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        with chosen.context():
            assert convolution(x).dtype == torch.bfloat16
        with choose_precision('fp32', CPU).context():
            assert convolution(x).dtype == torch.float32


def test_pictures_in_bf16_are_those_of_fp32() -> None:
    """At least 40 dB on the trained network (docs/performance.md gives the measured figure)."""
    pictures = []
    for name in ('fp32', 'bf16'):
        chosen = choose_precision(name, CPU)
        loaded = load_generator(ROOT / 'assets/synth64.pkl', precision=chosen)
        head = embedded_head().forward(embedded_head().neutral(2))
        label = cameras.orbit_camera(torch.tensor([0.3, -0.2]), torch.zeros(2))
        z = torch.randn(2, loaded.config.generator.z_dim, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            pictures.append(loaded.generator(z, label, head).image.float())
    error = (pictures[0] - pictures[1]).square().mean(dim=(1, 2, 3))
    psnr = 10 * torch.log10(4 / error)
    assert psnr.min() > 40
    assert error.max() > 0  # bf16 was really used


def test_scripts_say_what_they_chose(tmp_path: Path) -> None:
    command = [sys.executable, 'gen_samples.py', '--network=assets/synth64.pkl', f'--outdir={tmp_path}', '--seeds=0']
    done = subprocess.run([*command, '--precision=bf16'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'precision bf16 (asked for)' in done.stdout
    done = subprocess.run([*command, '--precision=fp16', '--device=cpu'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1
