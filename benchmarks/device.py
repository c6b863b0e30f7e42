"""Mixing on the device that holds the batch, drawing included, compared with a copy there."""

import concurrent.futures
import functools
import json
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import grain_mix as gm
from benchmarks import _peers, _report, compiled

CLASSES = 1000
BUFFERS = 3  # in turn, so that no output of one launch is the cache of the next
LIMIT = {"cpu": 2**30}  # bytes of one batch; elsewhere an eighth of the memory
SIZES = (256, 1024, 128, 2048, 512)  # what tells most comes first, in case time runs out
PEERS_AT = (256, 1024)
DTYPES = ("uint8", "bfloat16", "float32")
TURN, PATIENCE = 0.05, 2.0  # seconds of a side: in one round, and in all from the fourth on
COUNTS = pathlib.Path(__file__).parent / "results" / "compiled.json"


def run(
    quick: bool,
    rounds: int | None = None,
    minutes: float | None = None,
    keep: Callable[[_report.Report], None] = lambda report: None,
) -> _report.Report:
    """Measures on JAX's default device. A CPU works too.

    What would take longer than the `minutes` is skipped. `keep` gets what there is so far.
    """
    device = jax.devices()[0]
    end = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    side = 16 if quick else 224
    rounds = rounds or (2 if quick else 15)
    stats = device.memory_stats() or {} if device.platform != "cpu" else {}
    limit = LIMIT.get(device.platform, stats.get("bytes_limit", 2**34) // 8)
    rows: list[dict[str, Any]] = [_host_wait(device, *((8, 16) if quick else (128, 224)))]
    skipped: dict[str, None] = {}
    late: list[str] = []
    longest, largest = 0.0, 8

    def report() -> _report.Report:
        notes = [f"Skipped for want of time: {'; '.join(late)}."] if late else []
        return _report_of(device, side, rounds, rows, [*skipped, *notes])

    for size in (8,) if quick else SIZES:
        for dtype in DTYPES[:1] if quick else DTYPES:
            start = time.monotonic()
            if size * side * side * 3 * jnp.dtype(dtype).itemsize > limit:
                skipped[f"Skipped, as too large: {dtype}, B = {size}."] = None
                continue
            # An accelerator compiles for most of the time, a CPU computes.
            growth = max(1, size / largest) if device.platform == "cpu" else 1
            if longest and start + growth * longest > end:
                late.append(f"{dtype}, B = {size}")
                continue
            # On a CPU `peers` has them, and they would take hours of large batches.
            with_peers = quick or (device.platform != "cpu" and size in PEERS_AT)
            try:
                rows += _measure(device, dtype, size, side, rounds, with_peers, skipped)
            except Exception as error:  # memory may not suffice, and the others still count
                if quick:
                    raise
                skipped[f"Failed: {dtype}, B = {size} ({_report.reason(error)})."] = None
            longest = max(longest, time.monotonic() - start)
            keep(report())
        largest = max(largest, size)
    return report()


def _report_of(
    device: jax.Device,
    side: int,
    rounds: int,
    rows: list[dict[str, Any]],
    notes: list[str],
) -> _report.Report:
    wait, *rest = rows
    rest.sort(key=lambda row: (DTYPES.index(row["images"]), row["B"]))
    return _report.Report(
        subject="device",
        setting=f"On {device.device_kind or device.platform} ({device.platform}); B x {side} x "
        f"{side} x 3, {CLASSES} classes; inputs resident, {BUFFERS} buffers in turn, launches "
        f"queued, a synchronised clock; medians of {rounds} alternating rounds, fewer where a "
        "launch is slow. 'x copy' is the time over that of a jitted copy of the images. 'counted' "
        "are the bytes of the arguments, the results and twice the temporaries, over the copy's. "
        "'clock / count' is the time over the copy's, on the device alone where it is known, over "
        "'counted'. 'instructions' are those for each byte of pixels, from `benchmarks compiled`.",
        rows=[*rest, wait],
        table=[_line(row) for row in rest],
        plot=lambda figure: _plot(figure, rest),
        notes=[_wait_in_words(wait), *notes],
        inches=(11, 6),
    )


def _measure(
    device: jax.Device,
    dtype: str,
    size: int,
    side: int,
    rounds: int,
    with_peers: bool,
    skipped: dict[str, None],
) -> list[dict[str, Any]]:
    with jax.default_device(device):
        buffers = [_batch(jax.random.key(i), (size, side, side, 3), dtype) for i in range(BUFFERS)]
    functions: dict[str, Callable[..., Any]] = {"copy": lambda batch: jnp.copy(batch["image"])}
    for name, transform in compiled.TRANSFORMS.items():
        functions[name] = transform(num_classes=CLASSES).mix
    # What many projects have: one λ for all, and `roll`.
    functions["MixUp, one λ and roll"] = lambda batch: _peers.roll_mixup(
        jax.random.key(batch["mix_seed"][0]), batch["image"], batch["label"], CLASSES
    )
    with concurrent.futures.ThreadPoolExecutor() as pool:  # XLA compiles without Python's lock
        compiling = {
            name: pool.submit(jax.jit(function).lower(buffers[0]).compile)
            for name, function in functions.items()
        }
        runs = {name: future.result() for name, future in compiling.items()}
    for name in compiled.TRANSFORMS:
        mixed = runs[name](buffers[0])["image"]
        assert mixed.shape == (size, side, side, 3)
        assert mixed.dtype == dtype
        assert (np.asarray(mixed[:8]) != np.asarray(buffers[0]["image"][:8])).any()
    sides: dict[str, Callable[..., Any]] = {n: lambda b, run=run: run(b) for n, run in runs.items()}
    for peer in ("timm", "torchvision") if with_peers else ():
        sides |= _on_torch(peer, device, buffers[0], skipped)
    seconds = {n: float(np.median(s)) for n, s in _in_turn(sides, buffers, rounds).items()}
    alone: dict[str, float | None] = dict.fromkeys(runs)
    try:
        alone |= {name: _device_seconds(device, run, buffers) for name, run in runs.items()}
    except Exception as error:
        skipped[f"Failed: JAX's profiler ({_report.reason(error)})."] = None
    instructions = _instructions(device)
    moved = 2 * buffers[0]["image"].nbytes
    rows = []
    for name, middle in seconds.items():
        row = {
            "images": dtype,
            "B": size,
            "side": name,
            "ms": middle * 1e3,
            "x copy": middle / seconds["copy"],
            "GB/s": moved / middle / 1e9,
        }
        if program := runs.get(name):
            counted = _bytes_of(program) / _bytes_of(runs["copy"])
            clock = alone if alone[name] and alone["copy"] else seconds
            row |= {
                "device ms": alone[name] and alone[name] * 1e3,
                "kernels": kernels(program.as_text()),
                "instructions": instructions.get((name, dtype)),
                "counted": counted,
                "clock / count": clock[name] / clock["copy"] / counted,
            }
        rows.append(row)
    return rows


@functools.partial(jax.jit, static_argnums=(1, 2))
def _batch(key: jax.Array, shape: tuple[int, ...], dtype: str) -> dict[str, jax.Array]:
    pixels, label, seed = jax.random.split(key, 3)
    return {
        "image": jax.random.bits(pixels, shape, jnp.uint8).astype(dtype),
        "label": jax.random.randint(label, shape[:1], 0, CLASSES),
        "mix_seed": jax.random.bits(seed, shape[:1], jnp.uint32),
    }


def _bytes_of(program: Any) -> int:
    """What a compiled program has to read and write at least."""
    sizes = program.memory_analysis()
    through = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    return int(through + 2 * sizes.temp_size_in_bytes)


def _instructions(device: jax.Device) -> dict[tuple[str, str], float]:
    """The counts of `benchmarks compiled` for this kind of device, if it has them."""
    return {
        (row["transform"], row["dtype"]): row[compiled.PER_BYTE]
        for row in json.loads(COUNTS.read_text())["rows"]
        if row["target"] in device.device_kind.lower().split() and row.get(compiled.PER_BYTE)
    }


def _on_torch(
    peer: str, device: jax.Device, batch: dict[str, jax.Array], skipped: dict[str, None]
) -> dict[str, Callable[..., Any]]:
    """Peers on the same device: timm and torchvision, each with its own batch there."""
    images, labels, seeds = map(np.asarray, batch.values())
    place = "cpu" if device.platform == "cpu" else "cuda"
    sides: dict[str, Callable[..., Any]] = {}
    try:
        offered = list(_peers.SIDES[peer](_peers.Inputs(images, labels, seeds, CLASSES, place)))
    except Exception as error:  # absent, or without this device or dtype
        skipped[f"Skipped: {peer}, {images.dtype} ({_report.reason(error)})."] = None
        return sides
    for side in [side for side in offered if side.task == "stacked"]:
        name = f"{peer} {side.kind}, one draw per {side.draws}"
        try:
            mixed, soft = side.run()
            assert mixed.shape == (len(images), 3, *images.shape[1:3])
            assert soft.shape == (len(images), CLASSES)
        except Exception as error:
            skipped[f"Skipped: {name}, {images.dtype} ({_report.reason(error)})."] = None
            continue
        sides[name] = lambda _, run=side.run: run()
    return sides


def _wait(output: Any) -> None:
    """Waits for an output of JAX or of PyTorch."""
    first = output[0] if isinstance(output, tuple) else None
    if getattr(first, "is_cuda", False):
        sys.modules["torch"].cuda.synchronize()
    jax.block_until_ready(output)


def _in_turn(runs: dict[str, Any], buffers: list[Any], rounds: int) -> dict[str, list[float]]:
    """Seconds per launch: launches are queued over the buffers, with one wait at the end.

    A side whose launches are slow has fewer of them, and sits out rounds once it has had three.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    launches: dict[str, int] = {}
    spent = dict.fromkeys(runs, 0.0)

    def turn(name: str, count: int) -> float:
        start = time.perf_counter()
        for k in range(count):
            output = runs[name](buffers[k % len(buffers)])
        _wait(output)
        return time.perf_counter() - start

    for name in runs:
        turn(name, BUFFERS)  # warms up
        launches[name] = int(np.clip(TURN / turn(name, BUFFERS) * BUFFERS, BUFFERS, 60))
    for i in range(rounds):
        for name in list(runs)[:: 1 if i % 2 else -1]:
            if i < 3 or spent[name] < PATIENCE:
                took = turn(name, launches[name])
                spent[name] += took
                seconds[name].append(took / launches[name])
    return seconds


def kernels(hlo: str) -> int:
    """How many operations of a compiled program's entry computation do work."""
    entry = hlo[hlo.index("ENTRY ") :]
    work = r" (fusion|copy|custom-call|call|while|sort|scatter|reduce|convert|transpose)\("
    return len(re.findall(work, entry[: entry.index("\n}")]))


def _device_seconds(device: jax.Device, program: Any, buffers: list[Any]) -> float | None:
    """Of one launch on the device alone, from the profiler. None if it recorded none."""
    if device.platform == "cpu":
        return None
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for batch in buffers * 4:
                output = program(batch)
            jax.block_until_ready(output)
        nanoseconds = 0.0
        for path in pathlib.Path(folder).rglob("*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
                if plane.name.startswith("/device:"):
                    streams = [line for line in plane.lines if line.name.startswith("Stream")]
                    nanoseconds += sum(e.duration_ns for line in streams for e in line.events)
    return nanoseconds / (4 * len(buffers)) / 1e9 or None


def _host_wait(device: jax.Device, size: int, side: int) -> dict[str, Any]:
    """How long `map` blocks the host, with an idle device and with a step queued on it."""
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (size, side, side, 3), np.uint8),
        "label": rng.integers(0, CLASSES, size).astype(np.int32),
        "mix_seed": rng.integers(0, 2**32, size, dtype=np.uint32),
    }
    mix = gm.MixBatch(num_classes=CLASSES, sharding=jax.sharding.SingleDeviceSharding(device))
    weights = jnp.zeros(2 ** (20 if device.platform == "cpu" else 27), device=device)
    step = jax.jit(lambda w: jax.lax.fori_loop(0, 200, lambda _, x: x * 0.9 + 1, w))
    jax.block_until_ready((step(weights), mix.map(batch)))
    idle, queued, steps = [], [], []
    for _ in range(9):
        start = time.perf_counter()
        mixed = mix.map(batch)
        idle.append(time.perf_counter() - start)
        jax.block_until_ready(mixed)
        start = time.perf_counter()
        stepped = step(weights)
        launched = time.perf_counter()
        mixed = mix.map(batch)
        queued.append(time.perf_counter() - launched)
        jax.block_until_ready(stepped)
        steps.append(time.perf_counter() - start)
        jax.block_until_ready(mixed)
    figures = (float(np.median(values)) * 1e3 for values in (idle, queued, steps))
    return dict(zip(("map_idle_ms", "map_after_step_ms", "step_ms"), figures, strict=True))


def _wait_in_words(row: dict[str, Any]) -> str:
    return (
        f"`map` returns after {row['map_idle_ms']:.2f} ms on an idle device, and after "
        f"{row['map_after_step_ms']:.2f} ms after a queued step of {row['step_ms']:.0f} ms."
    )


def _line(row: dict[str, Any]) -> dict[str, Any]:
    columns = ("images", "B", "side", "ms", "x copy", "GB/s", "device ms", "kernels")
    return {name: row.get(name) for name in (*columns, "instructions", "counted", "clock / count")}


def _plot(figure: Any, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(row["side"] for row in rows))
    for axes, dtype in zip(figure.subplots(1, 3, sharex=True, sharey=True), DTYPES, strict=True):
        for k, name in enumerate(names):
            line = [row for row in rows if (row["images"], row["side"]) == (dtype, name)]
            style = "o-" if name in ("copy", *compiled.TRANSFORMS) else "x--"
            points = [r["B"] for r in line], [r["x copy"] for r in line]
            axes.plot(*points, style, label=name, color=f"C{k % 10}")
        sizes = sorted({row["B"] for row in rows})
        axes.set(xscale="log", yscale="log", xlabel="batch size", title=dtype)
        axes.set_xticks(sizes, sizes)
        low, high = axes.get_ylim()
        ticks = [tick for tick in (0.5, 1, 1.5, 2, 3, 5, 10, 30, 100, 1000) if low < tick < high]
        axes.set_yticks(ticks, ticks)
        axes.minorticks_off()
        axes.grid(axis="y", alpha=0.3)
    figure.axes[0].set_ylabel("time / time of a copy")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
