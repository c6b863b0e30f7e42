"""MixUp, CutMix and both in a `grain.DataLoader`: what comes out, how fast it is, how it looks.

    python examples/quickstart.py

prints a summary and writes `quickstart.png`; the first run also prepares the photographs.
"""

import argparse
import itertools
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import data
import grain
import numpy as np
import picture
from absl import flags
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

import grain_mix as gm

Batch = Mapping[str, np.ndarray]
TIMED_BATCHES = 40


def main() -> None:
    """Loads, mixes, counts and draws."""
    args = parse_arguments()
    if args.source == "cifar10":
        records, names = data.cifar10(args.data_dir, download=args.download)
    else:
        records, names = data.photographs(args.data_dir)
    print(f"{len(records):,} records of {len(names)} classes in batches of {args.batch_size}")

    def load(*transforms: grain.transforms.Map) -> grain.DataLoader:
        sampler = grain.samplers.IndexSampler(
            num_records=len(records),
            shuffle=True,
            seed=args.seed,
            num_epochs=1,
            shard_options=grain.sharding.NoSharding(),
        )
        batch = grain.transforms.Batch(args.batch_size, drop_remainder=True)
        return grain.DataLoader(
            data_source=records,
            sampler=sampler,
            operations=[gm.RecordSeed(), batch, *transforms],
            worker_count=args.workers,
        )

    originals = summarize("Before mixing", load())

    num_classes = len(names)
    for title, transform in {
        "MixUpBatch(alpha=0.2)": gm.MixUpBatch(alpha=0.2, num_classes=num_classes),
        "CutMixBatch(alpha=1.0)": gm.CutMixBatch(alpha=1.0, num_classes=num_classes),
        "MixBatch()": gm.MixBatch(num_classes=num_classes),
    }.items():
        summarize(title, load(transform))
        # All loaders share the sampler's seed, so this one starts with the same records and seeds.
        explain(transform, originals)

    # A transform is a function of the batch, so the picture needs no loader. MixUp's alpha is
    # larger here, since with 0.2 most records hardly change.
    rows = {
        "Records, each next to its partner": {
            **originals,
            "label": np.eye(num_classes)[originals["label"]],
        },
        "MixUpBatch(alpha=1.0)": gm.MixUpBatch(alpha=1.0, num_classes=num_classes).map(originals),
        "CutMixBatch(alpha=1.0)": gm.CutMixBatch(alpha=1.0, num_classes=num_classes).map(originals),
        "MixBatch()": gm.MixBatch(num_classes=num_classes).map(originals),
    }
    draw_picture(rows, names, args.output)
    print(f"\nwrote {args.output}")


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", choices=["photographs", "cifar10"], default="photographs")
    parser.add_argument("--download", action="store_true", help="fetch CIFAR-10 if it's not there")
    parser.add_argument("--data-dir", type=pathlib.Path, help=f"default: {data.CACHE}")
    parser.add_argument("--output", type=pathlib.Path, default="quickstart.png")
    parser.add_argument("--workers", type=int, default=0, help="Grain worker processes")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=129, help="129 starts with varied records")
    return parser.parse_args()


def summarize(title: str, loader: grain.DataLoader) -> Batch:
    """Prints what a loader gives and how fast; returns its first batch."""
    batches = iter(loader)
    first: Batch = next(batches)  # not timed: it compiles, and starts the workers
    print(f"\n{title}")
    for key, value in first.items():
        print(f"  {key:<12}{value.dtype} {value.shape}")

    start = time.perf_counter()
    labels = [batch["label"] for batch in itertools.islice(batches, TIMED_BATCHES)]
    seconds = time.perf_counter() - start
    print(f"  {'loading':<12}{sum(map(len, labels)) / seconds:,.0f} records/s")

    if first["label"].ndim == 2:
        sums = np.concatenate([first["label"], *labels]).sum(axis=1)
        print(f"  {'label sums':<12}{sums.min():.6f} to {sums.max():.6f}")
    return first


def explain(transform: gm.MixUpBatch | gm.CutMixBatch | gm.MixBatch, batch: Batch) -> None:
    """Prints the λ that a transform draws for a batch, and its own share of the time."""
    lam = transform.draw(batch["mix_seed"], batch["image"].shape).lam
    print(f"  {'lambda':<12}{' '.join(f'{x:.2f}' for x in lam[:8])} ...")
    transform.map(batch)  # compiled already, unless that was in a worker process
    start = time.perf_counter()
    for _ in range(10):
        transform.map(batch)
    print(f"  {'mixing':<12}{(time.perf_counter() - start) / 10 * 1000:.1f} ms per batch")


def draw_picture(rows: Mapping[str, Batch], names: Sequence[str], path: pathlib.Path) -> None:
    """Draws the first four pairs of each batch, each image under its soft label."""
    gap = 0.1  # between pairs, in widths of an image
    widths = [1, 1, gap, 1, 1, gap, 1, 1, gap, 1, 1]
    figure = Figure((10.5, 1.975 * len(rows)), dpi=130, layout=ConstrainedLayoutEngine(h_pad=0.07))
    bands: Any = figure.subfigures(len(rows), height_ratios=[0.9] + [1] * (len(rows) - 1))
    for band, (title, batch) in zip(bands, rows.items(), strict=True):
        band.suptitle(title, x=0.005, ha="left", family="monospace", weight="bold")
        axes = band.subplots(1, len(widths), width_ratios=widths)
        for axis in axes:
            axis.axis("off")
        tiles = [axis for axis, width in zip(axes, widths, strict=True) if width == 1]
        for tile, image, label in zip(tiles, batch["image"], batch["label"], strict=False):
            tile.imshow(image)
            tile.set_title(describe(label, names), fontsize=9.5, linespacing=1.15)
    picture.save(figure, path)


def describe(label: np.ndarray, names: Sequence[str]) -> str:
    """Returns a soft label's two classes, the heavier first, each a line like "0.63 coffee"."""
    two = np.argsort(-label)[:2]
    return "\n".join(f"{label[k]:.2f} {names[k]}" for k in two if label[k] >= 0.005)


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl's flags
    main()
