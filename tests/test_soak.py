"""A small soak: two ranks, killed and started again, end as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys

from cases_training import ROOT


def test_a_run_of_two_ranks_survives_kills() -> None:
    command = [sys.executable, '-m', 'tools.soak', '--kills=2', '--seed=4']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout[done.stdout.index('{') :])
    assert summary['identical'] is True
    assert summary['kills'] == sum(summary['targets'].values()) == 2
    assert summary['steps'] >= 4
