"""How time and memory grow with batch size, image size, devices and classes."""

import gc
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import grain_mix as gm
from benchmarks import _report, _time

LIMIT = 2**30  # bytes of the images of one batch


def run(quick: bool, rounds: int | None = None) -> _report.Report:
    """Measures each dependence by itself; sides of a group alternate in one run."""
    rounds = rounds or (2 if quick else 15)
    if quick:
        sizes, sides, classes, devices = [8], [8], [10], [1, 2]
        size, side = 8, 16
    else:
        sizes, sides = [8, 32, 128, 256, 1024, 4096], [32, 64, 128, 224, 384]
        classes, devices, size, side = [10, 1000, 21_841], [1, 2, 4, 8], 256, 224
    rows: list[dict[str, Any]] = []
    for name in ("MixUp",) if quick else ("MixUp", "CutMix"):
        batches = {f"B = {b}, side 32": (b, min(32, side)) for b in sizes}
        batches |= {f"B = {b}, side {side}": (b, side) for b in sizes if b * side**2 * 3 <= LIMIT}
        rows += _group(
            "batch size", name, {k: (_mix(name), *v) for k, v in batches.items()}, rounds
        )
        widths = {f"side {s}, B = 128": (_mix(name), min(128, 8 * size), s) for s in sides}
        rows += _group("image side", name, widths, rounds)
        labels = {
            f"{k} classes, {'sparse' if sparse else 'soft'}": (_mix(name, k, sparse), size, side)
            for k in classes
            for sparse in (True, False)
        }
        rows += _group("classes", name, labels, rounds)
    for count in devices:
        rows += _on_devices(count, size, side, rounds)
    return _report.Report(
        subject="scaling",
        setting=f"uint8 images; inputs resident, under jit; medians of {rounds} alternating rounds."
        " Memory is the peak over input + output: as XLA plans it, and as the process grows.",
        rows=rows,
        table=[_line(row) for row in rows],
        plot=lambda figure: _plot(figure, rows),
        inches=(9, 7),
    )


def _mix(name: str, classes: int = 1000, sparse: bool = False) -> Any:
    transform = gm.MixUpBatch if name == "MixUp" else gm.CutMixBatch
    label = gm.Sparse(classes) if sparse else gm.OneHot(classes)
    return transform(alpha=1.0, targets={"label": label})


def _batch(size: int, side: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (size, side, side, 3), np.uint8),
        "label": rng.integers(0, 10, size).astype(np.int32),
        "mix_seed": rng.integers(0, 2**32, size, dtype=np.uint32),
    }


def _group(
    group: str, name: str, cases: dict[str, tuple[Any, int, int]], rounds: int
) -> list[dict[str, Any]]:
    runs: dict[str, Any] = {}
    rows: dict[str, dict[str, Any]] = {}
    for case, (transform, size, side) in cases.items():
        batch = jax.device_put(_batch(size, side))
        compiled = jax.jit(transform.mix).lower(batch).compile()
        assert bool((compiled(batch)["image"] != batch["image"]).any()), "nothing is mixed"
        plan = compiled.memory_analysis()
        given = plan.argument_size_in_bytes + plan.output_size_in_bytes
        rows[case] = {
            "group": group,
            "mix": name,
            "case": case,
            "records": size,
            "planned memory": (given + plan.temp_size_in_bytes) / given,
            "resident memory": _resident(compiled, batch, plan.output_size_in_bytes, given),
        }
        runs[case] = lambda run=compiled, batch=batch: run(batch)
    for case, seconds in _time.measure(runs, rounds).items():
        rows[case] |= _time.summary(seconds)
        rows[case]["us/record"] = rows[case]["ms"] * 1e3 / rows[case]["records"]
    return list(rows.values())


def _resident(run: Any, batch: Any, output: int, given: int) -> float | None:
    """Peak of the process above what it had before the call, and the input, over input + output.

    None for small batches, where other things weigh as much, and where Linux is not there to ask.
    """
    status, reset = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")
    if output < 2**26 or not reset.exists():
        return None
    gc.collect()
    time.sleep(1)  # until JAX has let go of earlier outputs
    kilobytes = lambda field: int(status.read_text().partition(field)[2].split()[0])  # noqa: E731
    before = kilobytes("VmRSS:")
    try:
        reset.write_text("5")  # sets the peak back to what there is now
    except OSError:
        return None
    jax.block_until_ready(run(batch))
    return ((kilobytes("VmHWM:") - before) * 1024 + given - output) / given


def _on_devices(count: int, size: int, side: int, rounds: int) -> list[dict[str, Any]]:
    """In a new process, since JAX makes its CPU devices only once."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    command = [sys.executable, "-m", "benchmarks.scaling", str(size), str(side), str(rounds)]
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def _devices_here(size: int, side: int, rounds: int) -> list[dict[str, Any]]:
    count = jax.device_count()
    mesh = jax.make_mesh((count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    batch = jax.device_put(_batch(size, side), sharding)
    rows = []
    runs = {"copy": jax.jit(lambda batch: jnp.copy(batch["image"]))}
    runs |= {name: jax.jit(_mix(name).mix) for name in ("MixUp", "CutMix")}
    sides = {name: lambda run=run: run(batch) for name, run in runs.items()}
    for name, seconds in _time.measure(sides, rounds).items():
        row = {"group": "devices", "mix": name, "case": f"{count} devices, B = {size}"}
        row |= {"records": size, **_time.summary(seconds)}
        rows.append(row | {"us/record": row["ms"] * 1e3 / size})
    return rows


def _line(row: dict[str, Any]) -> dict[str, Any]:
    keys = ("group", "mix", "case", "ms", "us/record", "planned memory", "resident memory")
    return {key: row.get(key) for key in keys}


def _plot(figure: Any, rows: list[dict[str, Any]]) -> None:
    panels = figure.subplots(2, 2, height_ratios=(5, 3)).flat  # 24 bars above, 12 below
    for axes, group in zip(panels, ("batch size", "image side", "classes", "devices"), strict=True):
        chosen = [row for row in rows if row["group"] == group and row["mix"] != "copy"]
        values = {f"{row['mix']}, {row['case']}": row["us/record"] for row in chosen}
        _report.bars(axes, values, group, "microseconds per record")


if __name__ == "__main__":
    print(json.dumps(_devices_here(*map(int, sys.argv[1:]))))
