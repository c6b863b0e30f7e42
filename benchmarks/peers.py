"""Mixing a batch, beside the copy of its bytes and beside other libraries, on the CPU."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _memory, _peers, _report, _time

SIZES = {"224²": (128, 224, 1000), "32²": (128, 32, 10)}  # ImageNet's and CIFAR's
DTYPES = ("uint8", "float32")
COLUMNS = [(dtype, kind) for dtype in DTYPES for kind in (*_peers.KINDS, _peers.MOSAIC)]
FLOOR, NUMPY_FLOOR = "copy, jitted", "copy, NumPy"
PATIENCE = 10.0  # seconds of one side
MAP = "grain_mix, map, one draw per record"
COLOURS = {"record": "C0", "pair": "C0", "batch": "C2", None: "0.6"}


def run(quick: bool, rounds: int | None = None) -> _report.Report:
    """Measures all peers that can be imported."""
    rounds = rounds or (2 if quick else 15)
    return report(_memory.in_each("peers", quick, rounds, tuple(_memory.SETTINGS)), rounds)


def report(every: list[dict[str, Any]], rounds: int) -> _report.Report:
    """What a reader sees of these rows."""
    rows = [row for row in every if "reason" not in row]
    skipped: dict[str, list[str]] = {}
    for row in every:
        if "reason" in row and row["side"] not in skipped.setdefault(row["reason"], []):
            skipped[row["reason"]].append(row["side"])
    without = dict.fromkeys(
        f"The {row['kind']} of {row['side'].split(',')[0]}"
        for row in rows
        if row.get("labels") is False
    )
    first, *others = sizes = list(dict.fromkeys(row["size"] for row in rows))
    return _report.Report(
        subject="peers",
        setting=f"α = 1; four images meet at {_peers.SPLIT[0]} to {_peers.SPLIT[1]} of each side; "
        f"medians of {rounds} alternating rounds, for 32² of ten times as many, and of fewer where "
        f"one side takes more than {PATIENCE:.0f} s. In all tables but the last freed memory "
        "is kept for the next call; they show multiples of the jitted copy, and in brackets the "
        "milliseconds that pass. `map` takes NumPy's arrays and returns NumPy's; all others are "
        "called with arrays of their own kind. A weight map of floats stands in the columns of "
        "MixUp, one that is bool in those of CutMix.",
        rows=every,
        title=f"128 x {first} x 3, freed memory kept",
        table=_table(rows, first),
        more_tables={
            **{f"128 x {size} x 3, freed memory kept": _table(rows, size) for size in others},
            "Mosaics of four, freed memory kept": _mosaics(rows, sizes),
            "Milliseconds by what glibc does with freed memory": _by_memory(rows),
        },
        plot=lambda figure: _plot(figure, rows, first),
        more_plots={
            f"_{size.rstrip('²')}": functools.partial(_plot, rows=rows, size=size)
            for size in others
        },
        inches=(5.2, 16),
        summary=[
            line
            for memory in ("kept", "default")
            for size in sizes
            for line in _summary(rows, size, memory)
        ],
        notes=[
            *(f"{side} takes no labels of classes, so it mixes images alone." for side in without),
            *(f"Skipped: {'; '.join(sides)} ({why})." for why, sides in skipped.items()),
        ],
    )


def measure(quick: bool, rounds: int) -> list[dict[str, Any]]:
    """All rows in the memory setting of this process; a side that fails is a row with a reason."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for size, (batch, side, classes) in ({"16²": (8, 16, 10)} if quick else SIZES).items():
        for dtype in DTYPES[:1] if quick else DTYPES:
            x = _peers.Inputs(
                rng.integers(0, 256, (batch, side, side, 3)).astype(dtype),
                rng.integers(0, classes, batch).astype(np.int32),
                rng.integers(0, 2**32, batch, dtype=np.uint32),
                classes,
            )
            # Small batches take less time, and are disturbed more.
            more = 1 if side > 32 else 10
            rows += [{"size": size, **row} for row in _measure(x, dtype, rounds * more)]
    return rows


def _measure(x: _peers.Inputs, dtype: str, rounds: int) -> list[dict[str, Any]]:
    on_device = jnp.asarray(x.images)
    copy = jax.jit(jnp.copy)
    runs = {(FLOOR, "", ""): lambda: copy(on_device), (NUMPY_FLOOR, "", ""): x.images.copy}
    found: dict[tuple[str, str, str], _peers.Side] = {}
    rows: list[dict[str, Any]] = []
    for peer, sides in _peers.SIDES.items():
        try:
            offered = list(sides(x))
        except Exception as error:  # a peer that is absent, or broken, is a row of the table
            rows.append({"side": peer, "reason": _report.reason(error)})
            continue
        for side in offered:
            if side.task == "records" and dtype != "uint8":
                continue
            name = f"{peer}, one draw per {side.draws}"
            try:
                check(x, side)
            except Exception as error:
                what = f"{peer}, {dtype} {side.kind} of {side.task}, one draw per {side.draws}"
                rows.append({"side": what, "reason": _report.reason(error)})
                continue
            runs[name, side.task, side.kind] = side.run
            found[name, side.task, side.kind] = side
    keys = {str(i): key for i, key in enumerate(runs)}
    work: dict[str, Any] = {}
    seconds = _time.measure({i: runs[key] for i, key in keys.items()}, rounds, work, PATIENCE)
    for i, (name, task, kind) in keys.items():
        row = {"side": name, "task": task, "dtype": dtype, "kind": kind, "draws": None}
        if side := found.get((name, task, kind)):
            row |= {"draws": side.draws, "labels": side.labels}
        row |= {f"cpu_{name}": value for name, value in _time.summary(work[i], work["0"]).items()}
        rows.append(row | _time.summary(seconds[i], seconds["0"]))
    return rows


def check(x: _peers.Inputs, side: _peers.Side) -> None:
    """Raises unless what comes out has the right shape and is really mixed."""
    before = x.images.astype(np.float32)
    for _ in range(5):  # a single λ for all may happen to be 1
        images, labels = side.run()
        images = np.asarray(images).astype(np.float32)
        if images.shape != x.images.shape:
            images = images.transpose(0, 2, 3, 1)
        assert images.shape == x.images.shape, f"images of shape {images.shape}"
        # kornia's CutMix labels have an axis for several boxes in front.
        assert not side.labels or len(before) in labels.shape[:2], f"labels of {labels.shape}"
        assert images.min() >= before.min(), "images out of the range of its input"
        assert images.max() <= before.max() + 0.5, "images out of the range of its input"
        mixed = (images != before).any(axis=(1, 2, 3))
        if mixed.mean() >= 0.5:
            return
    raise AssertionError("images come back unmixed")


def _chosen(
    rows: list[dict[str, Any]],
    size: str,
    dtype: str,
    kind: str,
    memory: str = "kept",
    task: str = "stacked",
) -> dict[str, dict[str, Any]]:
    """The rows of one column, by their sides."""
    return {
        row["side"]: row
        for row in rows
        if (row["size"], row["dtype"], row["memory"]) == (size, dtype, memory)
        and row["kind"] in ("", kind)
        and row["task"] in ("", task)
    }


def _table(rows: list[dict[str, Any]], size: str) -> list[dict[str, Any]]:
    columns = {
        f"{dtype} {kind}": _chosen(rows, size, dtype, kind)
        for dtype in DTYPES
        for kind in _peers.KINDS
    }
    for kind in _peers.KINDS:
        columns[f"records {kind}"] = _chosen(rows, size, "uint8", kind, task="records")
    return _beside(columns)


def _mosaics(rows: list[dict[str, Any]], sizes: list[str]) -> list[dict[str, Any]]:
    columns = {}
    for size in sizes:
        for dtype in DTYPES:
            columns[f"{size} {dtype}"] = _chosen(rows, size, dtype, _peers.MOSAIC)
        columns[f"{size} records"] = _chosen(rows, size, "uint8", _peers.MOSAIC, task="records")
    return _beside(columns)


def _beside(columns: dict[str, dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    columns = {name: column for name, column in columns.items() if column}
    sides = dict.fromkeys(side for column in columns.values() for side in column)
    return [
        {"": side}
        | {
            name: f"{row['ratio']:.2f} ({row['ms']:.2f})" if (row := column.get(side)) else "–"
            for name, column in columns.items()
        }
        for side in sides
    ]


def _fastest(column: dict[str, dict[str, Any]], draws: tuple[str, ...]) -> dict[str, Any] | None:
    """Of those sides that are not ours."""
    peers = [
        row
        for side, row in column.items()
        if row["draws"] in draws and not side.startswith("grain_mix")
    ]
    return min(peers, key=lambda row: row["ms"], default=None)


def _by_memory(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    table = []
    for size in dict.fromkeys(row["size"] for row in rows):
        for dtype, kind in COLUMNS:
            for memory in _memory.SETTINGS:
                column = _chosen(rows, size, dtype, kind, memory)
                if MAP not in column:
                    continue
                line = {"": f"{size} {dtype} {kind}", "memory": memory}
                for side in (FLOOR, NUMPY_FLOOR, MAP):
                    line[side.split(", one")[0]] = f"{column[side]['ms']:.2f}"
                for name, draws in {"record": ("record", "pair"), "batch": ("batch",)}.items():
                    row = _fastest(column, draws)
                    peer = "–" if row is None else f"{row['ms']:.2f} ({row['side'].split(',')[0]})"
                    line[f"fastest peer, one draw per {name}"] = peer
                table.append(line)
    return table


def _summary(rows: list[dict[str, Any]], size: str, memory: str) -> Iterator[str]:
    """Where `map` is ahead of peers, and where it is not."""
    setting = {"kept": "freed memory kept", "default": "glibc's default"}[memory]
    for name, draws in {"record": ("record", "pair"), "batch": ("batch",)}.items():
        ahead, behind = [], []
        for dtype, kind in COLUMNS:
            column = _chosen(rows, size, dtype, kind, memory)
            peer = _fastest(column, draws)
            if peer is None or MAP not in column:
                continue
            ratio = column[MAP]["ms"] / peer["ms"]
            what = f"{dtype} {kind} ({ratio:.2f} times {peer['side'].split(',')[0]})"
            (ahead if ratio <= 1 else behind).append(what)
        if ahead or behind:
            text = f"128 x {size}, {setting}, against the fastest peer with one draw per {name}: "
            text += f"`map` takes less time for {', '.join(ahead) or 'nothing'}"
            yield text + f"; more for {', '.join(behind) or 'nothing'}."


def _plot(figure: Any, rows: list[dict[str, Any]], size: str) -> None:
    columns = {(d, k): _chosen(rows, size, d, k) for d, k in COLUMNS}
    columns = {key: column for key, column in columns.items() if column}
    heights = [2 + len(column) for column in columns.values()]
    panels = figure.subplots(len(columns), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, ((dtype, kind), column) in zip(panels, columns.items(), strict=True):
        names = [
            side.replace(", one draw per record", "").replace("one draw per ", "")
            for side in column
        ]
        ratios = [row["ratio"] for row in column.values()]
        colours = [
            "C1" if side.startswith("grain_mix") else COLOURS[row["draws"]]
            for side, row in column.items()
        ]
        drawn = axes.barh(names, ratios, color=colours)
        axes.bar_label(drawn, fmt="%.3g", padding=2, fontsize=8)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlim(min(0.5, *ratios) * 0.9, max(ratios) * 2.2)  # so that numbers stay inside
        axes.set_title(f"{kind}, {dtype}, 128 x {size}", fontsize=10)
        axes.tick_params(labelsize=8)
    panels[-1].set_xlabel(
        "time / time of a jitted copy\norange: grain_mix\nblue: one draw per record\n"
        "green: one draw per batch",
        fontsize=9,
    )
