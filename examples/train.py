"""Trains a small Flax NNX network on mixed batches, over all devices, and tests it on clean data.

    python examples/train.py --mix cutmix

The same line again goes on from the last checkpoint, and so does one after Ctrl-C, which saves.
With other options than before, it refuses; more epochs are fine.

    python examples/train.py --compare

trains without mixing, with MixUp, with CutMix and with both, over several seeds on few records, and
writes a table and a picture of what that did.
"""

import argparse
import pathlib
from typing import Any

import data
import grain
import numpy as np
import optax
import training
from absl import flags
from flax import nnx
from tqdm import tqdm

OPTIONS = ("data", "mix", "learning_rate", "momentum", "batch_size", "seed", "workers")


def main() -> None:
    """Trains and tests."""
    args = parse_arguments()
    if args.compare:
        import compare  # which imports from here

        compare.main(args)
        return
    records, names = open_dataset(args, "train")
    images, labels = data.as_arrays(open_dataset(args, "test")[0])
    mix = training.MIXES[args.mix](num_classes=len(names), sharding=training.over_devices("data"))
    run = training.Training(
        training.Net(images.shape[1:], len(names), nnx.Rngs(args.seed)),
        optax.sgd(args.learning_rate, args.momentum),
        training.load(
            records,
            mix,
            batch_size=args.batch_size,
            seed=args.seed,
            workers=args.workers,
            augment=[PadCropFlip()] if args.data == "cifar10" else [],
        ),
        checkpoints=args.workdir or pathlib.Path("runs", f"{args.data}-{args.mix}-{args.seed}"),
        # These options must stay the same when a run resumes. --num-epochs may grow.
        options={name: getattr(args, name) for name in OPTIONS},
    )
    if run.step:
        print(f"resumed after step {run.step}")

    steps = args.num_epochs * len(records) // args.batch_size
    with tqdm(
        initial=run.step * args.batch_size, total=steps * args.batch_size, unit=" records"
    ) as bar:
        for _, loss in run.run(steps):
            bar.update(args.batch_size)
            bar.set_postfix(loss=f"{float(loss):.4f}", refresh=False)
    run.close()
    if run.step < steps:
        print(
            f"stopped and saved after step {run.step} of {steps}; the same line goes on from here"
        )
        return
    log_probs = np.asarray(training.predict(run.net, images))
    accuracy = np.mean(log_probs.argmax(axis=1) == labels)
    loss = log_loss(log_probs, labels)
    print(f"{len(labels)} clean test records: accuracy {accuracy:.2%}, log-loss {loss:.4f}")


def parse_arguments() -> argparse.Namespace:
    """Reads the command line. Names and defaults follow Flax's examples."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["digits", "cifar10"], default="digits")
    parser.add_argument("--mix", choices=list(training.MIXES), default="both")
    parser.add_argument("--workdir", type=pathlib.Path, help="default: runs/DATA-MIX-SEED")
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--num-epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="Grain worker processes")
    parser.add_argument("--data-dir", type=pathlib.Path, help=f"default: {data.CACHE}")
    parser.add_argument("--download", action="store_true", help="fetch CIFAR-10 if it's not there")
    parser.add_argument("--compare", action="store_true", help="all of --mix, side by side")
    parser.add_argument("--page", type=pathlib.Path, help="where --compare renews its table")
    return parser.parse_args()


def open_dataset(args: argparse.Namespace, split: str) -> data.Dataset:
    """Opens a split of `--data`."""
    if args.data == "cifar10":
        return data.cifar10(args.data_dir, split, download=args.download)
    return data.digits(args.data_dir, split)


def log_loss(log_probs: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean negative log-probability of the right class."""
    return float(-np.take_along_axis(log_probs, labels[:, None], axis=1).mean())


class PadCropFlip(grain.transforms.RandomMap):
    """The augmentation of the CIFAR-10 papers. It comes before mixing."""

    def random_map(self, element: Any, rng: np.random.Generator) -> Any:
        """Shifts the image by up to four pixels and flips every second one."""
        height, width, _ = element["image"].shape
        padded = np.pad(element["image"], [(4, 4), (4, 4), (0, 0)])
        top, left = rng.integers(9, size=2)
        image = padded[top : top + height, left : left + width]
        return {**element, "image": image[:, :: rng.choice([1, -1])]}


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl's flags
    main()
