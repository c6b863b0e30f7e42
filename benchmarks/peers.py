"""Mixing a batch, beside the copy of its bytes and beside other libraries, on the CPU."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _peers, _report, _time

COLUMNS = [("stacked", dtype, kind) for dtype in ("uint8", "float32") for kind in _peers.KINDS]
COLUMNS += [("records", "uint8", kind) for kind in _peers.KINDS]
FLOOR, NUMPY_FLOOR = "copy, jitted", "copy, NumPy"


def run(quick: bool, rounds: int | None = None) -> _report.Report:
    """Measures all peers that can be imported."""
    size, side, classes = (8, 16, 10) if quick else (128, 224, 1000)
    rounds = rounds or (2 if quick else 25)
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    skipped: dict[str, list[str]] = {}
    for dtype in ("uint8",) if quick else ("uint8", "float32"):
        x = _peers.Inputs(
            rng.integers(0, 256, (size, side, side, 3)).astype(dtype),
            rng.integers(0, classes, size).astype(np.int32),
            rng.integers(0, 2**32, size, dtype=np.uint32),
            classes,
        )
        rows += _measure(x, dtype, rounds, skipped)
    return _report.Report(
        subject="peers",
        setting=f"Batches of {size} x {side} x {side} x 3, {classes} classes, α = 1; medians of "
        f"{rounds} alternating rounds, as multiples of the jitted copy; in brackets the "
        "milliseconds that pass, and those of processor time over all threads; freed memory "
        "is kept for the next call (see NOTES.md). A weight map of floats stands in the columns of "
        "MixUp, one that is bool in those of CutMix.",
        rows=rows
        + [{"side": side, "skipped": why} for why, all_ in skipped.items() for side in all_],
        table=_table(rows),
        plot=lambda figure: _plot(figure, rows),
        notes=[f"Skipped: {'; '.join(sides)} ({why})." for why, sides in skipped.items()],
    )


def _measure(
    x: _peers.Inputs, dtype: str, rounds: int, skipped: dict[str, list[str]]
) -> list[dict[str, Any]]:
    on_device = jnp.asarray(x.images)
    copy = jax.jit(jnp.copy)
    runs = {(FLOOR, "", ""): lambda: copy(on_device), (NUMPY_FLOOR, "", ""): x.images.copy}
    draws = {}
    for peer, sides in _peers.SIDES.items():
        try:
            offered = list(sides(x))
        except Exception as error:  # a peer that is absent, or broken, is a row of the table
            skipped.setdefault(_report.reason(error), []).append(peer)
            continue
        for side in offered:
            if side.task == "records" and dtype != "uint8":
                continue
            name = f"{peer}, one draw per {side.draws}"
            try:
                check(x, side)
            except Exception as error:
                skipped.setdefault(_report.reason(error), []).append(
                    f"{peer}, {dtype} {side.kind} of {side.task}, one draw per {side.draws}"
                )
                continue
            runs[name, side.task, side.kind] = side.run
            draws[name] = side.draws
    keys = {str(i): key for i, key in enumerate(runs)}
    work: dict[str, Any] = {}
    seconds = _time.measure({i: runs[key] for i, key in keys.items()}, rounds, work)
    rows = []
    for i, (name, task, kind) in keys.items():
        row = {"side": name, "task": task, "dtype": dtype, "kind": kind, "draws": draws.get(name)}
        row |= {f"cpu_{name}": value for name, value in _time.summary(work[i], work["0"]).items()}
        rows.append(row | _time.summary(seconds[i], seconds["0"]))
    return rows


def check(x: _peers.Inputs, side: _peers.Side) -> None:
    """Raises unless what comes out has the right shape and is really mixed."""
    before = x.images.astype(np.float32)
    for _ in range(5):  # a single λ for all may happen to be 1
        images, labels = (np.asarray(out).astype(np.float32) for out in side.run())
        if images.shape != x.images.shape:
            images = images.transpose(0, 2, 3, 1)
        assert images.shape == x.images.shape, f"images of shape {images.shape}"
        # kornia's CutMix labels have an axis for several boxes in front.
        assert len(before) in labels.shape[:2], f"labels of shape {labels.shape}"
        assert images.min() >= before.min(), "images out of the range of its input"
        assert images.max() <= before.max() + 0.5, "images out of the range of its input"
        mixed = (images != before).any(axis=(1, 2, 3))
        if mixed.mean() >= 0.5:
            return
    raise AssertionError("images come back unmixed")


def _cell(row: dict[str, Any]) -> str:
    return f"{row['ratio']:.2f} ({row['ms']:.1f}, {row['cpu_ms']:.1f})"


def _table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    table = []
    for name in dict.fromkeys(row["side"] for row in rows):
        line = {"": name}
        for task, dtype, kind in COLUMNS:
            cells = [
                _cell(row)
                for row in rows
                if row["side"] == name
                and row["dtype"] == dtype
                and row["kind"] in ("", kind)
                and row["task"] in ("", task)
            ]
            line[f"{dtype if task == 'stacked' else 'records'} {kind}"] = "".join(cells) or "–"
        table.append(line)
    return table


def _plot(figure: Any, rows: list[dict[str, Any]]) -> None:
    panels = figure.subplots(2, 2)
    for axes, (task, dtype, kind) in zip(panels.flat, COLUMNS[:4], strict=True):
        chosen = [
            r
            for r in rows
            if r["dtype"] == dtype and r["kind"] in ("", kind) and r["task"] in ("", task)
        ]
        if not chosen:  # a quick run has one dtype
            axes.set_axis_off()
            continue
        values = {row["side"]: row["ratio"] for row in chosen}
        _report.bars(axes, values, f"{kind}, {dtype}", "time / time of a jitted copy")
        axes.set_xscale("log")
