"""What `map` costs over the jitted function that it calls, on the host and with a sharding."""

import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import grain_mix as gm
from benchmarks import _memory, _report, _time

HOST = {(8, 8): 2.0, (128, 32): 1.6, (128, 64): 1.5, (128, 224): 1.0}  # and the aims
SHARDED = {(16, 8): 1.2, (128, 32): 1.2}
DEVICES = (1, 8)


def run(
    quick: bool, rounds: int | None = None, before: pathlib.Path | None = None
) -> _report.Report:
    """Measures with one CPU device, and with eight."""
    rounds = rounds or (2 if quick else 300)
    runs: dict[str, list[dict[str, Any]]] = {}
    flags = os.environ.get("XLA_FLAGS", "")
    for devices in DEVICES:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}"
        # How large arrays lie in memory differs from process to process, and costs up to a half.
        for _ in range(1 if quick else 5):
            for row in _memory.in_each("overhead", quick, rounds, ("default",)):
                runs.setdefault(_name(row), []).append(row)
    os.environ["XLA_FLAGS"] = flags
    rows = []
    for same in runs.values():
        same.sort(key=lambda row: row["ratio"])
        rows.append(same[len(same) // 2] | {"ratios": [row["ratio"] for row in same]})
    earlier = json.loads(before.read_text())["rows"] if before else []
    return _report.Report(
        subject="overhead",
        setting="`uint8` images, MixBatch, NumPy in. On the host `map` over "
        "`jax.device_get(jax.jit(mix)(batch))`; with a sharding over the jitted `shard_map` of "
        f"`jax.device_put(batch, sharding)`. Medians of up to {rounds} alternating rounds, and of "
        "five processes.",
        rows=rows,
        table=_table(rows, earlier),
        plot=lambda figure: _report.bars(
            figure.subplots(),
            {_name(row): row["ratio"] for row in rows},
            "map, over its jitted function",
            "time / time of the jitted function",
        ),
    )


def measure(quick: bool, rounds: int) -> list[dict[str, Any]]:
    """All rows with the devices of this process."""
    rows = []
    if len(jax.devices()) == 1:
        for (size, side), aim in HOST.items():
            rows.append(_measure(size, side, aim, None, rounds))
    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    for (size, side), aim in SHARDED.items():
        rows.append(_measure(size, side, aim, sharding, rounds))
    return rows


def _measure(
    size: int, side: int, aim: float, sharding: NamedSharding | None, rounds: int
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(256, size=(size, side, side, 3), dtype=np.uint8),
        "label": rng.integers(10, size=size),
        "mix_seed": rng.integers(2**32, size=size, dtype=np.uint32),
    }
    mix = gm.MixBatch(num_classes=10).mix
    transform = gm.MixBatch(num_classes=10, sharding=sharding)
    if sharding is None:
        jitted = jax.jit(mix)
        sides = {"jit": lambda: jax.device_get(jitted(batch))}
    else:
        spec = sharding.spec
        jitted = jax.jit(jax.shard_map(mix, mesh=sharding.mesh, in_specs=(spec,), out_specs=spec))
        sides = {"jit": lambda: jitted(jax.device_put(batch, sharding))}
    sides["map"] = lambda: transform.map(batch)
    seconds = _time.measure(sides, max(2, rounds // (10 if side > 100 else 1)))
    return {
        "records": size,
        "side": side,
        "devices": None if sharding is None else len(jax.devices()),
        "aim": aim,
        "jit_ms": _time.summary(seconds["jit"])["ms"],
        **_time.summary(seconds["map"], seconds["jit"]),
    }


def _name(row: dict[str, Any]) -> str:
    where = "on the host" if row["devices"] is None else f"on {row['devices']} CPU devices"
    return f"{row['records']} x {row['side']}², {where}"


def _table(rows: list[dict[str, Any]], earlier: list[dict[str, Any]]) -> list[dict[str, Any]]:
    was = {_name(row): row["ratio"] for row in earlier}
    table = []
    for row in rows:
        line = {"": _name(row), "jitted function, ms": row["jit_ms"], "`map`, ms": row["ms"]}
        line |= {"`map` / jitted": row["ratio"], "aim": row["aim"]}
        line["lowest and highest"] = f"{min(row['ratios']):.2f} to {max(row['ratios']):.2f}"
        if earlier:
            line["before"] = was.get(_name(row))
        table.append(line)
    return table
