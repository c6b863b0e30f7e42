"""From records to a mixed batch on the host, and to what a worker of Grain's sends."""

from typing import Any

import grain
import numpy as np

import grain_mix as gm
from benchmarks import _memory, _report, _time

SIZES = {True: (8, 16), False: (128, 224)}  # quick or not: records, and their side


def run(quick: bool, rounds: int | None = None) -> _report.Report:
    """Measures one call of `map`, with and without the stacking before it."""
    size, side = SIZES[quick]
    rounds = rounds or (2 if quick else 25)
    rows = _memory.in_each("stacking", quick, rounds, ("default", "huge pages"))
    return _report.Report(
        subject="stacking",
        setting=f"{size} records of {side} x {side} x 3, stacked and mixed by one call of `map`, "
        "with glibc's default and with GLIBC_TUNABLES=glibc.malloc.hugetlb=1; "
        f"medians of {rounds} alternating rounds, in milliseconds; in brackets as multiples of "
        "the first line.",
        rows=rows,
        table=_table(rows),
        plot=lambda figure: _plot(figure, rows),
        inches=(9, 8),
    )


def measure(quick: bool, rounds: int) -> list[dict[str, Any]]:
    """All rows in the memory setting of this process."""
    size, side = SIZES[quick]
    rows: list[dict[str, Any]] = []
    for dtype in ("uint8",) if quick else ("uint8", "float32"):
        records = _records(size, side, dtype)
        for name, cls in {"MixUp": gm.MixUpBatch, "CutMix": gm.CutMixBatch}.items():
            seconds = _time.measure(_sides(records, cls(num_classes=1000)), rounds)
            rows += [
                {"side": key, "dtype": dtype, "transform": name} | _time.summary(value)
                for key, value in seconds.items()
            ]
    return rows


def _records(size: int, side: int, dtype: str) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.integers(0, 256, (side, side, 3)).astype(dtype),
            "label": np.int32(i),
            "mix_seed": rng.integers(2**32, dtype=np.uint32),
        }
        for i in range(size)
    ]


def _sides(records: list[dict[str, Any]], mix: Any) -> dict[str, _time.Side]:
    ready = _aligned(records)
    return {
        "stacked by NumPy": lambda: mix.map(_stacked(records)),
        "stacked by aligned_stack": lambda: mix.map(_aligned(records)),
        "map alone, on aligned memory": lambda: mix.map(ready),
        "stacking by NumPy alone": lambda: _stacked(records),
        # What a worker does until Grain can send a batch.
        "a worker: stacks, mixes, copies to shared memory": lambda: _sent(
            mix, records, len(records)
        ),
        "a worker: the same in pieces of 16 records": lambda: _sent(mix, records, 16),
        "a worker: stacks into shared memory, mixes nothing": lambda: _sent(None, records, 0),
    }


def _sent(mix: Any, records: list[dict[str, Any]], piece: int) -> None:
    """Puts the images of a batch into shared memory, as Grain does, mixed piece by piece."""
    first = records[0]["image"]
    shape = len(records), *first.shape
    sent = grain.multiprocessing.SharedMemoryArray(shape, dtype=first.dtype)
    sent.unlink_on_del()
    if mix is None:
        np.stack([record["image"] for record in records], out=sent)
        return
    for start in range(0, len(records), piece):
        stop = start + piece
        sent[start:stop] = mix.map(_aligned(records[start:stop]))["image"]


def _stacked(records: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {key: np.stack([record[key] for record in records]) for key in records[0]}


def _aligned(records: list[dict[str, Any]]) -> Any:
    return gm.aligned_stack(records)


def _table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        column = f"{row['dtype']} {row['transform']}"
        first = next(
            r["ms"]
            for r in rows
            if f"{r['dtype']} {r['transform']}" == column and r["memory"] == "default"
        )
        cell = f"{row['ms']:.1f} ({row['ms'] / first:.2f})"
        cells.setdefault((row["memory"], row["side"]), {})[column] = cell
    return [{"": side, "memory": memory, **columns} for (memory, side), columns in cells.items()]


def _plot(figure: Any, rows: list[dict[str, Any]]) -> None:
    groups: dict[str, dict[str, float]] = {}
    for row in rows:
        name = f"{row['side']}, {row['memory']}"
        groups.setdefault(f"{row['dtype']} {row['transform']}", {})[name] = row["ms"]
    panels = figure.subplots(-(-len(groups) // 2), 2, squeeze=False, sharey=True)
    for axes, (title, values) in zip(panels.flat, groups.items(), strict=False):
        _report.bars(axes, values, title, "milliseconds")
