"""What mixing does to a network trained on few records: `python examples/train.py --compare`."""

import argparse
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence

import data
import numpy as np
import optax
import picture
import training
from flax import nnx
from matplotlib.figure import Figure
from tqdm import tqdm
from train import log_loss, open_dataset

SEEDS = range(5)  # of the records chosen, of their order, of what is drawn, of the first weights
RECORDS = 200
STEPS = 400
BATCH_SIZE = 48
NOISE = 0.2  # standard deviation, where black is 0 and white is 1
BINS = 10

# Log-probabilities [S, N, K] of each setting, for all seeds.
Predictions = Mapping[str, np.ndarray]


def main(args: argparse.Namespace) -> None:
    """Trains all settings over all seeds; writes `compare.md` and `compare.png`."""
    clean, noisy, labels = train_and_predict(args)
    folder = args.workdir or pathlib.Path()
    folder.mkdir(parents=True, exist_ok=True)
    table = (
        f"{RECORDS} training records of `{args.data}`, {STEPS} steps of {BATCH_SIZE},"
        f" {len(labels)} test records; mean ± standard deviation over {len(SEEDS)} seeds.\n\n"
        + make_table(clean, noisy, labels)
    )
    (folder / "compare.md").write_text(table)
    draw(clean, labels, folder / "compare.png")
    print(table + f"\nwrote {folder / 'compare.md'} and {folder / 'compare.png'}")
    if args.readme:
        before = args.readme.read_text()
        after = re.sub(
            r"(<!-- compare -->\n).*?(\n<!-- /compare -->)",
            lambda match: match[1] + table + match[2],
            before,
            flags=re.DOTALL,
        )
        args.readme.write_text(after)


def train_and_predict(args: argparse.Namespace) -> tuple[Predictions, Predictions, np.ndarray]:
    """Returns predictions for clean and for noisy test images, and their labels `[N]`."""
    records, names = open_dataset(args, "train")
    images, labels = data.as_arrays(open_dataset(args, "test")[0])
    noise = np.random.default_rng(0).normal(scale=255 * NOISE, size=images.shape)
    noisy = np.clip(images + noise, 0, 255).astype(np.float32)
    optimizer = optax.sgd(args.learning_rate, args.momentum)  # one for all, or each is compiled

    predicted: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {
        name: ([], []) for name in training.MIXES
    }
    with tqdm(total=len(SEEDS) * len(predicted) * STEPS, unit=" steps") as bar:
        for seed, name in itertools.product(SEEDS, predicted):
            chosen = np.random.default_rng(seed).permutation(len(records))[:RECORDS]
            mix = training.MIXES[name](
                num_classes=len(names), sharding=training.over_devices("data")
            )
            run = training.Training(
                training.Net(images.shape[1:], len(names), nnx.Rngs(seed)),
                optimizer,
                training.load(
                    [records[i] for i in chosen], mix, batch_size=BATCH_SIZE, seed=seed, workers=0
                ),
            )
            for _ in run.run(STEPS):
                bar.update()
            run.close()
            for kind, inputs in zip(predicted[name], (images, noisy), strict=True):
                kind.append(np.asarray(training.predict(run.net, inputs)))
    on_clean, on_noisy = (
        {name: np.stack(kinds[k]) for name, kinds in predicted.items()} for k in (0, 1)
    )
    return on_clean, on_noisy, labels


def make_table(clean: Predictions, noisy: Predictions, labels: np.ndarray) -> str:
    """Returns a row for each setting, in Markdown."""

    def spread(values: Sequence[float], percent: bool = False) -> str:
        scale, digits = (100, 1) if percent else (1, 3)
        mean, deviation = np.mean(values) * scale, np.std(values, ddof=1) * scale
        return f"{mean:.{digits}f} ± {deviation:.{digits}f}"

    rows = [
        f"| | accuracy % | log-loss | calibration error % | accuracy % with noise σ = {NOISE} |",
        "|---|---|---|---|---|",
    ]
    for name, seeds in clean.items():
        cells = [
            spread([accuracy(seed, labels) for seed in seeds], percent=True),
            spread([log_loss(seed, labels) for seed in seeds]),
            spread([calibration_error(seed, labels) for seed in seeds], percent=True),
            spread([accuracy(seed, labels) for seed in noisy[name]], percent=True),
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def accuracy(log_probs: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of records whose most likely class is right."""
    return float(np.mean(log_probs.argmax(axis=1) == labels))


def by_confidence(
    log_probs: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns, for `BINS` equal ranges of it, the sum of confidence, of right ones, of records."""
    confidence = np.exp(log_probs.max(axis=1))
    right = log_probs.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return (
        np.bincount(bins, confidence, BINS),
        np.bincount(bins, right, BINS),
        np.bincount(bins, minlength=BINS),
    )


def calibration_error(log_probs: np.ndarray, labels: np.ndarray) -> float:
    """Returns the expected calibration error (https://arxiv.org/abs/1706.04599)."""
    confidence, right, _ = by_confidence(log_probs, labels)
    return float(np.abs(confidence - right).sum() / len(labels))


def draw(clean: Predictions, labels: np.ndarray, path: pathlib.Path) -> None:
    """Draws how often a network is right when it is so sure, over all seeds together."""
    figure = Figure((9.6, 2.9), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(clean), sharey=True)
    for axis, (name, seeds) in zip(axes, clean.items(), strict=True):
        everything = np.concatenate(seeds)
        confidence, right, count = by_confidence(everything, np.tile(labels, len(seeds)))
        seen = count > 0
        axis.bar(
            np.arange(BINS)[seen] / BINS,
            right[seen] / count[seen],
            width=1 / BINS,
            align="edge",
            color="0.85",
            edgecolor="0.4",
        )
        axis.plot([0, 1], [0, 1], color="0.4", linestyle=":", label="calibrated")
        means = confidence[seen] / count[seen], right[seen] / count[seen]
        axis.scatter(*means, s=4 + 150 * count[seen] / count.sum(), color="tab:blue", zorder=3)
        axis.set(title=name, xlabel="confidence", xlim=(0, 1), ylim=(0, 1))
    axes[0].set_ylabel("accuracy")
    axes[0].legend(loc="upper left", fontsize=8)
    figure.suptitle("How often right when so sure (dots: share of the records)", fontsize=11)
    picture.save(figure, path)
