"""Trains a small Flax NNX network on mixed batches, over all devices, and tests it on clean data.

    python examples/train.py --mix cutmix

The same line again goes on from the last checkpoint, and so does one after Ctrl-C, which saves.
With other options than before, it refuses; more epochs are fine.

    python examples/train.py --compare

trains without mixing, with MixUp, with CutMix and with both, over several seeds on few records, and
writes tables and a picture of what that did. `--compare modes` does so for who shares a draw.

    python examples/train.py --data fashion_mnist --folder /usr/share/datasets/fashion-mnist

takes the four files of Fashion-MNIST from where Debian's package `dataset-fashion-mnist` has them.
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
    log_probs = training.predict(run.net, images)
    accuracy = np.mean(log_probs.argmax(axis=1) == labels)
    loss = log_loss(log_probs, labels)
    print(f"{len(labels)} clean test records: accuracy {accuracy:.2%}, log-loss {loss:.4f}")


def parse_arguments() -> argparse.Namespace:
    """Reads the command line. Names and defaults follow Flax's examples."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["digits", "fashion_mnist", "cifar10"], default="digits")
    parser.add_argument("--mix", choices=list(training.MIXES), default="both")
    parser.add_argument("--workdir", type=pathlib.Path, help="default: a folder in runs/")
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--num-epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="Grain worker processes")
    parser.add_argument("--data-dir", type=pathlib.Path, help=f"default: {data.CACHE}")
    parser.add_argument("--folder", type=pathlib.Path, help="with the files of Fashion-MNIST")
    parser.add_argument("--download", action="store_true", help="fetch the data if it's not there")
    compare = parser.add_argument_group("to train all of a kind, side by side")
    compare.add_argument("--compare", nargs="?", choices=["recipes", "modes"], const="recipes")
    compare.add_argument("--records", type=int, default=200, help="of the training data")
    compare.add_argument("--seeds", type=int, default=5)
    compare.add_argument("--hard", action="store_true", help="noise, hidden squares, wrong labels")
    compare.add_argument("--page", type=pathlib.Path, help="where to renew the tables")
    if parser.parse_args().compare:
        parser.set_defaults(batch_size=48, num_epochs=96)  # many runs of few records
    args = parser.parse_args()
    unused = ["mix", "seed", "workers"] if args.compare else ["records", "seeds", "hard"]
    unused += [] if args.compare else ["page"]
    unused += [] if args.data == "fashion_mnist" else ["folder"]
    for name in unused:
        if getattr(args, name) != parser.get_default(name):
            option = f"--{name.replace('_', '-')}"
            came = f"{option} with --data {args.data}{' --compare' * bool(args.compare)}"
            parser.error(f"{came}: expected no such option, which has no use there; leave it out")
    return args


def open_dataset(args: argparse.Namespace, split: str) -> data.Dataset:
    """Opens a split of `--data`."""
    if args.data == "cifar10":
        return data.cifar10(args.data_dir, split, download=args.download)
    if args.data == "fashion_mnist":
        return data.fashion_mnist(args.data_dir, split, folder=args.folder, download=args.download)
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
