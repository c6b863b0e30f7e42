"""Mixing on the device that holds the batch, drawing included, compared with a copy there."""

import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import grain_mix as gm
from benchmarks import _peers, _report

CLASSES = 1000
BUFFERS = 3  # in turn, so that no output of one launch is the cache of the next
LIMIT = {"cpu": 2**30}  # bytes of one batch; elsewhere an eighth of the memory
TRANSFORMS = {
    "MixUp": gm.MixUpBatch(alpha=1.0, num_classes=CLASSES),
    "CutMix": gm.CutMixBatch(num_classes=CLASSES),
    "MixUp or CutMix": gm.MixBatch(num_classes=CLASSES),
}


def run(quick: bool, rounds: int | None = None) -> _report.Report:
    """Measures on JAX's default device. A CPU works too."""
    device = jax.devices()[0]
    side = 16 if quick else 224
    rounds = rounds or (2 if quick else 15)
    sizes = [8] if quick else [128, 256, 512, 1024, 2048, 4096]
    stats = device.memory_stats() or {} if device.platform != "cpu" else {}
    limit = LIMIT.get(device.platform, stats.get("bytes_limit", 2**34) // 8)
    rows: list[dict[str, Any]] = []
    skipped: dict[str, None] = {}
    for dtype in ("uint8",) if quick else ("uint8", "bfloat16", "float32"):
        for size in sizes:
            nbytes = size * side * side * 3 * jnp.dtype(dtype).itemsize
            if nbytes > limit:
                continue
            # On a CPU a long launch needs few repeats.
            launches = max(BUFFERS, min(60, 2**28 // nbytes if device.platform == "cpu" else 60))
            # On a CPU `peers` has them, and they would take hours of large batches.
            torch = ("timm", "torchvision") if quick or device.platform != "cpu" else ()
            rows += _measure(device, dtype, size, side, launches, rounds, torch, skipped)
    fastest = max(row["GB/s"] for row in rows if row["side"] == "copy")
    for row in rows:
        row["of the largest copy"] = row["GB/s"] / fastest
    rows.append(_host_wait(device, *((8, 16) if quick else (128, 224))))
    return _report.Report(
        subject="device",
        setting=f"On {device.device_kind or device.platform} ({device.platform}); B x {side} x "
        f"{side} x 3, {CLASSES} classes; inputs resident, {BUFFERS} buffers in turn, launches "
        f"queued, a synchronised clock; medians of {rounds} alternating rounds. 'x copy' is the "
        "time over that of a jitted copy of the images.",
        rows=rows,
        table=[_line(row) for row in rows if "images" in row],
        plot=lambda figure: _plot(figure, rows),
        notes=[_wait_in_words(rows[-1]), *skipped],
    )


def _measure(
    device: jax.Device,
    dtype: str,
    size: int,
    side: int,
    launches: int,
    rounds: int,
    torch: Sequence[str],
    skipped: dict[str, None],
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    buffers = [
        jax.device_put(
            {
                "image": rng.integers(0, 256, (size, side, side, 3), np.uint8).astype(dtype),
                "label": rng.integers(0, CLASSES, size).astype(np.int32),
                "mix_seed": rng.integers(0, 2**32, size, dtype=np.uint32),
            },
            device,
        )
        for _ in range(BUFFERS)
    ]
    functions: dict[str, Callable[..., Any]] = {"copy": lambda batch: jnp.copy(batch["image"])}
    functions |= {name: transform.mix for name, transform in TRANSFORMS.items()}
    # What many projects have: one λ for all, and `roll`.
    functions["MixUp, one λ and roll"] = lambda batch: _peers.roll_mixup(
        jax.random.key(batch["mix_seed"][0]), batch["image"], batch["label"], CLASSES
    )
    runs = {
        name: jax.jit(function).lower(buffers[0]).compile() for name, function in functions.items()
    }
    for name in TRANSFORMS:
        mixed = runs[name](buffers[0])["image"]
        assert mixed.shape == (size, side, side, 3)
        assert mixed.dtype == dtype
        assert bool((mixed != buffers[0]["image"]).any())
    sides: dict[str, Callable[..., Any]] = {n: lambda b, run=run: run(b) for n, run in runs.items()}
    for peer in torch:
        sides |= _on_torch(peer, device, buffers[0], skipped)
    seconds = _in_turn(sides, buffers, launches, rounds)
    moved = 2 * buffers[0]["image"].nbytes
    rows = []
    for name, values in seconds.items():
        middle = float(np.median(values))
        rows.append(
            {
                "images": dtype,
                "B": size,
                "side": name,
                "ms": middle * 1e3,
                "spread_ms": float(np.subtract(*np.quantile(values, [0.75, 0.25]))) * 500,
                "x copy": middle / float(np.median(seconds["copy"])),
                "GB/s": moved / middle / 1e9,
                "kernels": kernels(runs[name].as_text()) if name in runs else None,
                "device_ms": _device_ms(device, runs[name], buffers) if name in runs else None,
            }
        )
    return rows


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


def _in_turn(
    runs: dict[str, Any], buffers: list[Any], launches: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds per launch: `launches` are queued over the buffers, with one wait at the end."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):  # the first one warms up
        for name in list(runs)[:: 1 if i % 2 else -1]:
            start = time.perf_counter()
            for k in range(launches):
                output = runs[name](buffers[k % len(buffers)])
            _wait(output)
            if i:
                seconds[name].append((time.perf_counter() - start) / launches)
    return seconds


def kernels(hlo: str) -> int:
    """How many operations of a compiled program's entry computation do work."""
    entry = hlo[hlo.index("ENTRY ") :]
    work = r" (fusion|copy|custom-call|call|while|sort|scatter|reduce|convert|transpose)\("
    return len(re.findall(work, entry[: entry.index("\n}")]))


def _device_ms(device: jax.Device, run: Any, buffers: list[Any]) -> float | None:
    """Time of one launch on the device alone, from the profiler. None if it recorded none."""
    if device.platform == "cpu":
        return None
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for batch in buffers * 4:
                output = run(batch)
            jax.block_until_ready(output)
        nanoseconds = 0.0
        for path in pathlib.Path(folder).rglob("*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
                if plane.name.startswith("/device:"):
                    streams = [line for line in plane.lines if line.name.startswith("Stream")]
                    nanoseconds += sum(e.duration_ns for line in streams for e in line.events)
    return nanoseconds / (4 * len(buffers)) / 1e6 or None


def _host_wait(device: jax.Device, size: int, side: int) -> dict[str, Any]:
    """How long `map` blocks the host, with an idle device and with a step queued on it."""
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (size, side, side, 3), np.uint8),
        "label": rng.integers(0, CLASSES, size).astype(np.int32),
        "mix_seed": rng.integers(0, 2**32, size, dtype=np.uint32),
    }
    mix = gm.MixBatch(num_classes=CLASSES, sharding=jax.sharding.SingleDeviceSharding(device))
    width = 512 if device.platform == "cpu" else 8192
    weights = jax.device_put(jnp.full((width, width), 1 / width, jnp.bfloat16), device)
    step = jax.jit(lambda w: jax.lax.fori_loop(0, 40, lambda _, x: x @ w, w))
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
    return {key: value for key, value in row.items() if key != "spread_ms"}


def _plot(figure: Any, rows: list[dict[str, Any]]) -> None:
    dtypes = ("uint8", "bfloat16", "float32")
    for axes, dtype in zip(figure.subplots(1, 3, sharey=True), dtypes, strict=True):
        chosen = [row for row in rows if row.get("images") == dtype]
        for name in dict.fromkeys(row["side"] for row in chosen):
            line = [row for row in chosen if row["side"] == name]
            axes.plot([r["B"] for r in line], [r["x copy"] for r in line], "o-", label=name)
        axes.set(xscale="log", xlabel="batch size", title=dtype)
    figure.axes[0].set_ylabel("time / time of a copy")
    figure.axes[0].legend(fontsize=7)
