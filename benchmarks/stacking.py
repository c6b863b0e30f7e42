"""From records to a mixed batch on the host, stacked by NumPy or into memory that XLA shares."""

from typing import Any

import numpy as np

import grain_mix as gm
from benchmarks import _report, _time


def run(quick: bool, rounds: int | None = None) -> _report.Report:
    """Measures one call of `map`, with and without the stacking before it."""
    size, side = (8, 16) if quick else (128, 224)
    rounds = rounds or (2 if quick else 25)
    rows: list[dict[str, Any]] = []
    for dtype in ("uint8",) if quick else ("uint8", "float32"):
        records = _records(size, side, dtype)
        for name, cls in {"MixUp": gm.MixUpBatch, "CutMix": gm.CutMixBatch}.items():
            seconds = _time.measure(_sides(records, cls(num_classes=1000)), rounds)
            floor = seconds["stacked by NumPy"]
            rows += [
                {"side": key, "dtype": dtype, "transform": name} | _time.summary(value, floor)
                for key, value in seconds.items()
            ]
    return _report.Report(
        subject="stacking",
        setting=f"{size} records of {side} x {side} x 3, stacked and mixed by one call of `map`; "
        f"medians of {rounds} alternating rounds, as multiples of NumPy's; in brackets the "
        "milliseconds that pass.",
        rows=rows,
        table=_table(rows),
        plot=lambda figure: _plot(figure, rows),
    )


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
    }


def _stacked(records: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {key: np.stack([record[key] for record in records]) for key in records[0]}


def _aligned(records: list[dict[str, Any]]) -> Any:
    return gm.aligned_stack(records)


def _table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    table = []
    for name in dict.fromkeys(row["side"] for row in rows):
        cells = {
            f"{row['dtype']} {row['transform']}": f"{row['ratio']:.2f} ({row['ms']:.1f})"
            for row in rows
            if row["side"] == name
        }
        table.append({"": name, **cells})
    return table


def _plot(figure: Any, rows: list[dict[str, Any]]) -> None:
    values = {f"{row['dtype']} {row['transform']}, {row['side']}": row["ms"] for row in rows}
    _report.bars(figure.subplots(), values, "From records to a mixed batch", "milliseconds")
