"""Benchmarks: `python benchmarks/run.py`, `python benchmarks/precision.py`; see benchmarks/RESULTS.md."""
