"""Benchmarks of grain_mix: `python -m benchmarks --help`, in a clone."""
