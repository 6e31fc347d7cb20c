"""Ours beside other systems: `python -m benchmarks.suite`."""
