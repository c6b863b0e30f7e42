"""A whole Grain loader on ArrayRecord photographs, with and without mixing."""

import contextlib
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import NamedSharding, PartitionSpec

import grain_mix as gm
from benchmarks import _report, _time

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
import data

CROP = 88
MIX = gm.MixBatch(num_classes=len(data.PICTURES))


class RandomCrop(grain.transforms.RandomMap):
    """The augmentation before mixing."""

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Crops a record's image."""
        image = element["image"]
        top, left = rng.integers(0, np.subtract(image.shape[:2], CROP) + 1)
        return element | {"image": image[top : top + CROP, left : left + CROP]}


def run(quick: bool, rounds: int | None = None) -> _report.Report:
    """Measures loaders side by side, and the first batch by itself."""
    with contextlib.suppress(flags.Error):
        flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl's flags
    size, batches = (16, 2) if quick else (128, 20)
    rounds = rounds or (1 if quick else 9)
    sharding = NamedSharding(
        jax.make_mesh((1,), ("data",), devices=jax.devices()[:1]), PartitionSpec("data")
    )
    rows: list[dict[str, Any]] = []
    for workers in (0,) if quick else (0, 2):
        makers = {
            "no mixing": _loader(size, workers, None),
            "mixing in the worker": _loader(size, workers, MIX),
            "no mixing, to the device": _after(_loader(size, workers, None), sharding, mix=False),
            "mixing after, on the device": _after(_loader(size, workers, None), sharding, mix=True),
        }
        with contextlib.ExitStack() as stack:
            iterators = {name: iter(dataset) for name, dataset in makers.items()}
            for iterator in iterators.values():
                stack.callback(_close, iterator)
            for iterator in iterators.values():
                _take(iterator, 2 * (workers + 2))
            seconds: dict[str, list[float]] = {name: [] for name in iterators}
            for i in range(rounds):
                for name in list(iterators)[:: 1 if i % 2 else -1]:
                    # What was fetched ahead while others had their turn does not count.
                    _take(iterators[name], 2 * (workers + 2))
                    start = time.perf_counter()
                    _take(iterators[name], batches)
                    seconds[name].append(time.perf_counter() - start)
        for name, values in seconds.items():
            floor = seconds["no mixing, to the device" if "device" in name else "no mixing"]
            ratios = np.array(floor) / np.array(values)
            rate = size * batches / np.array(values)
            rows.append(
                {
                    "workers": workers,
                    "loader": name,
                    "records/s": float(np.median(rate)),
                    "spread": float(np.subtract(*np.quantile(rate, [0.75, 0.25]))) / 2,
                    "x without": float(np.median(ratios)),
                }
            )
    first = [_first_batch() for _ in range(1 if quick else 5)]
    split = {key: float(np.median([f[key] for f in first])) for key in first[0]}
    host = _host_time(16 if quick else 128, 16 if quick else 224, 3 if quick else 60)
    return _report.Report(
        subject="pipeline",
        setting=f"Photographs of 96 x 96 x 3 in ArrayRecord files, read, decoded, cropped to "
        f"{CROP} x {CROP} and batched by {size}, then mixed by MixBatch; medians of {rounds} "
        f"alternating rounds of {batches} batches.",
        rows=[*rows, {"first_batch_s": split}, {"map_host_ms": host}],
        table=rows,
        plot=lambda figure: _plot(figure, rows),
        notes=[
            "The first batch, in a fresh process: "
            + ", ".join(f"{key} {value:.2f} s" for key, value in split.items())
            + ".",
            "`map` on the host: " + ", ".join(f"{k} {v:.2f} ms" for k, v in host.items()) + ".",
        ],
    )


def _loader(size: int, workers: int, mix: Any) -> grain.DataLoader:
    source = data.photographs().source
    operations = [gm.RecordSeed(), RandomCrop(), grain.transforms.Batch(size, drop_remainder=True)]
    return grain.DataLoader(
        data_source=source,
        sampler=grain.samplers.IndexSampler(len(source), shuffle=True, seed=0),
        operations=operations if mix is None else [*operations, mix],
        worker_count=workers,
        # Small records gain by few threads.
        read_options=grain.ReadOptions(num_threads=2, prefetch_buffer_size=32),
    )


def _after(loader: grain.DataLoader, sharding: NamedSharding, mix: bool) -> Any:
    """With mixing or, for comparison, with the transfer to the device alone."""
    place = (
        gm.MixBatch(num_classes=MIX.num_classes, sharding=sharding)
        if mix
        else (
            lambda batch: jax.device_put({key: np.asarray(batch[key]) for key in batch}, sharding)
        )
    )
    dataset = gm.LoaderDataset(loader).map(place)
    return grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=2)


def _take(iterator: Iterator[Any], count: int) -> None:
    for _ in range(count):
        jax.block_until_ready(next(iterator))


def _close(iterator: Any) -> None:
    getattr(iterator, "close", getattr(getattr(iterator, "_iterator", None), "close", int))()


FIRST_BATCH = """
import json, time
t0 = time.perf_counter()
import grain, jax, numpy as np
t1 = time.perf_counter()
import grain_mix as gm
t2 = time.perf_counter()
batch = {"image": np.zeros((128, 224, 224, 3), np.uint8), "label": np.zeros(128, np.int32),
         "mix_seed": np.arange(128, dtype=np.uint32)}
mix = gm.MixBatch(num_classes=1000)
jax.block_until_ready(jax.jit(lambda x: x + 1)(np.zeros(2)))
t3 = time.perf_counter()
mix.map(batch)
t4 = time.perf_counter()
mix.map(batch)
t5 = time.perf_counter()
print(json.dumps({"import of grain and jax": t1 - t0, "import of grain_mix": t2 - t1,
                  "compile": (t4 - t3) - (t5 - t4), "run": t5 - t4}))
"""


def _first_batch() -> dict[str, float]:
    """Seconds until the first mixed batch of a process, by part."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_BATCH], capture_output=True, text=True, check=True
    )
    split: dict[str, float] = json.loads(done.stdout)
    return split


def _host_time(size: int, side: int, rounds: int) -> dict[str, float]:
    """Milliseconds of `map`, and of its jitted function on fields that are in place already."""
    rng = np.random.default_rng(0)
    figures = {}
    mix = gm.MixBatch(num_classes=1000, spatial_axes=(1, 2))  # not clear for so few pixels
    jitted = jax.jit(mix.mix)
    for name, width in (("full", side), ("tiny", 2)):
        batch = {
            "image": rng.integers(0, 256, (size, width, width, 3), np.uint8),
            "label": rng.integers(0, 1000, size).astype(np.int32),
            "mix_seed": rng.integers(0, 2**32, size, dtype=np.uint32),
        }
        placed = jax.device_put(batch, jax.local_devices(backend="cpu")[0])
        sides = {"map": lambda b=batch: mix.map(b), "jit": lambda b=placed: jitted(b)}
        seconds = _time.measure(sides, rounds)
        medians = {key: float(np.median(values)) * 1e3 for key, values in seconds.items()}
        if name == "full":
            figures[f"whole call at {side} x {side}"] = medians["map"]
        figures[f"beside its jitted function, {name} images"] = medians["map"] - medians["jit"]
    return figures


def _plot(figure: Any, rows: list[dict[str, Any]]) -> None:
    counts = sorted({row["workers"] for row in rows})
    for axes, workers in zip(
        figure.subplots(len(counts), 1, squeeze=False).flat, counts, strict=True
    ):
        values = {row["loader"]: row["records/s"] for row in rows if row["workers"] == workers}
        _report.bars(axes, values, f"{workers} workers", "records/s")
