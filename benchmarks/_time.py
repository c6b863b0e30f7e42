"""Timing: the sides alternate within one run, and each call is timed until its output is ready."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

Side = Callable[[], Any]

# `time.process_time` instead adds up what all threads work, which a busy machine disturbs less.
clock = time.perf_counter


def measure(sides: Mapping[str, Side], rounds: int) -> dict[str, np.ndarray]:
    """Seconds that each side takes, `[rounds]`, warmed up before; every other round backwards."""
    for side in sides.values():
        for _ in range(2):
            jax.block_until_ready(side())
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds):
        for name in list(sides)[:: 1 if i % 2 else -1]:
            # Untimed, so that memory and threads are as this side leaves them, not the last one:
            # an allocator that has to fetch fresh pages triples the time of a copy.
            jax.block_until_ready(sides[name]())
            start = clock()
            output = jax.block_until_ready(sides[name]())
            seconds[name].append(clock() - start)
            del output  # its memory is free again before the next one starts
    return {name: np.array(values) for name, values in seconds.items()}


def summary(seconds: np.ndarray, floor: np.ndarray | None = None) -> dict[str, Any]:
    """Median and spread (half the range between quartiles), and the ratio to a floor's median."""
    low, middle, high = np.quantile(seconds * 1e3, [0.25, 0.5, 0.75])
    result = {"ms": float(middle), "spread_ms": float(high - low) / 2}
    if floor is not None:
        result["ratio"] = float(np.median(seconds) / np.median(floor))
    return result
