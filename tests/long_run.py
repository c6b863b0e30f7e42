"""Millions of records through all parts at once, and a hundred iterators that are not finished.

`python tests/long_run.py --records 10_000_000 --minutes 12 --iterators 100` ends when either is
reached, prints what each process held, and with `--write` puts it into tests/README.md. It is no
test of pytest's, since it takes as long as it is given.
"""

import argparse
import contextlib
import gc
import os
import pathlib
import platform
import time
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import grain
import jax
import numpy as np
import psutil
from absl import flags
from common import data_loader, over

import grain_mix as gm
from grain_mix import _run

README = pathlib.Path(__file__).parent / "README.md"
BATCH_SIZE = 1024


class Records:
    """Tiny records, so that only the pipeline itself takes time."""

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": np.full((4, 4, 1), index % 256, np.uint8), "label": index % 10}


def start() -> grain.DatasetIterator:
    """Two workers, mixing over four devices after them, in a prefetch thread."""
    mix = gm.MixBatch(num_classes=10, sharding=over(4))
    sampler = grain.samplers.IndexSampler(len(Records()), shuffle=True, seed=0)
    loader = data_loader(  # whose few records read ahead settle soon
        Records(),
        gm.RecordSeed(),
        grain.transforms.Batch(BATCH_SIZE, drop_remainder=True),
        sampler=gm.PairedSampler(sampler, shard_count=1, worker_count=2),
        worker_count=2,
    )
    dataset = gm.LoaderDataset(loader).map(mix)
    return iter(grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=2))


def descriptors(pid: int) -> tuple[int, int]:
    """Those of batches on their way, whose number goes up and down, and all others."""
    shared = other = 0
    for descriptor in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            is_shared = str(descriptor.readlink()).startswith("/dev/shm/")
            shared, other = shared + is_shared, other + (not is_shared)
    return shared, other


def census() -> dict[str, float]:
    """What this process and its children hold now."""
    me = psutil.Process()
    held: dict[str, float] = {}
    workers = [p for p in me.children(recursive=True) if "resource_tracker" not in str(p.cmdline())]
    for name, process in [("main", me), *((f"worker {i}", p) for i, p in enumerate(workers))]:
        memory = process.memory_info()
        held[f"{name}: memory of its own, MiB"] = (memory.rss - memory.shared) / 2**20
        shared, other = descriptors(process.pid)
        held[f"{name}: file descriptors"] = other
        held[f"{name}: those of batches in shared memory"] = shared
        held[f"{name}: threads"] = process.num_threads()
    held["segments in /dev/shm"] = len(os.listdir("/dev/shm"))
    held["compiled programs"] = _run._on_host()._cache_size()
    held["processes"] = 1 + len(workers)
    return held


def long_run(records: int, seconds: float) -> tuple[int, float, list[dict[str, float]]]:
    """The records read, the seconds this took, and a census every few seconds."""
    iterator, began, read = start(), time.monotonic(), 0
    taken: list[dict[str, float]] = []
    due = 0.0
    while read < records and time.monotonic() - began < seconds:
        read += jax.block_until_ready(next(iterator))["label"].shape[0]
        if time.monotonic() - began > due:
            taken.append(census() | {"seconds": time.monotonic() - began})
            due = time.monotonic() - began + 5
    took = time.monotonic() - began
    iterator.close()
    return read, took, taken


def abandon(count: int, seconds: float) -> tuple[int, dict[str, float], dict[str, float]]:
    """How many iterators were started and forgotten in this time, and a census before and after."""
    began, before, done = time.monotonic(), {}, 0
    while done < count and (not done or time.monotonic() - began < seconds):
        iterator = start()
        next(iterator)
        del iterator
        gc.collect()
        done += 1
        before = before or census()
    return done, before, census()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--iterators", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=12, help="for both together")
    parser.add_argument("--write", action="store_true", help="into tests/README.md")
    args = parser.parse_args()
    flags.FLAGS.mark_as_parsed()
    share = 0.6 if args.iterators and args.records else 1
    versions = f"JAX {jax.__version__}, Grain {grain.__version__}"
    lines = [f"Python {platform.python_version()}, {versions}, {os.cpu_count()} cores.", ""]
    if args.records:
        read, took, taken = long_run(args.records, args.minutes * 60 * share)
        # The first minute, or a quarter of a short run, is for pools and caches to fill.
        settled = [c for c in taken if c["seconds"] > min(60, took / 4)]
        lines += [
            f"{read:,} records in {took:.0f} s, by two workers, mixed over four CPU devices in a",
            f"prefetch thread; {len(settled)} censuses from second {min(60, took / 4):.0f} on:",
            "",
            "| | first quarter, median | last quarter, median | most |",
            "|---|---|---|---|",
        ]
        quarter = max(len(settled) // 4, 1)
        for key in [key for key in settled[0] if key != "seconds"]:
            values = [c.get(key, np.nan) for c in settled]
            first, last = np.median(values[:quarter]), np.median(values[-quarter:])
            lines.append(f"| {key} | {first:.1f} | {last:.1f} | {max(values):.1f} |")
    if args.iterators:
        done, before, after = abandon(args.iterators, args.minutes * 60 * (1 - share or 1))
        lines += ["", f"{done} iterators with two workers each, forgotten after one batch:", ""]
        lines += ["| | after the first | after the last |", "|---|---|---|"]
        lines += [f"| {key} | {before[key]:.1f} | {after[key]:.1f} |" for key in before]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.write:
        head, _, rest = README.read_text().partition("<!-- long_run -->\n")
        tail = rest.partition("<!-- end -->\n")[2]
        README.write_text(f"{head}<!-- long_run -->\n{text}<!-- end -->\n{tail}")


if __name__ == "__main__":
    main()
