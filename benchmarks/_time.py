"""Timing: the sides alternate within one run, and each call is timed until its output is ready."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

Side = Callable[[], Any]


def measure(
    sides: Mapping[str, Side],
    rounds: int,
    work: dict[str, np.ndarray] | None = None,
    patience: float = float("inf"),
) -> dict[str, np.ndarray]:
    """Seconds that each side takes, `[rounds]`, warmed up before; every other round backwards.

    `work` receives the processor time, summed over all threads. A busy machine disturbs it less. A
    side whose calls have taken so many seconds as the `patience` sits out, once it has had three.
    """
    for side in sides.values():
        for _ in range(2):
            jax.block_until_ready(side())
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    spent = dict.fromkeys(sides, 0.0)
    for i in range(rounds):
        for name in list(sides)[:: 1 if i % 2 else -1]:
            if i >= 3 and spent[name] > patience:
                continue
            # Untimed, so that memory and threads are as this side leaves them, not the last one:
            # an allocator that has to fetch fresh pages triples the time of a copy.
            jax.block_until_ready(sides[name]())
            worked, start = time.process_time(), time.perf_counter()
            output = jax.block_until_ready(sides[name]())
            passed = time.perf_counter() - start
            seconds[name].append((passed, time.process_time() - worked))
            spent[name] += 2 * passed
            del output  # its memory is free again before the next one starts
    if work is not None:
        work |= {name: np.array(values)[:, 1] for name, values in seconds.items()}
    return {name: np.array(values)[:, 0] for name, values in seconds.items()}


def summary(seconds: np.ndarray, floor: np.ndarray | None = None) -> dict[str, Any]:
    """Median and spread (half the range between quartiles), and the ratio to a floor's median."""
    low, middle, high = np.quantile(seconds * 1e3, [0.25, 0.5, 0.75])
    result = {"ms": float(middle), "spread_ms": float(high - low) / 2}
    if floor is not None:
        result["ratio"] = float(np.median(seconds) / np.median(floor))
    return result
