"""Timings by pytest-benchmark: `pytest benchmarks/`. Wheels leave them out."""
