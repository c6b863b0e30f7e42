"""What mixing does to a network trained on few records: `python examples/train.py --compare`."""

import argparse
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import data
import numpy as np
import optax
import picture
import training
from flax import nnx
from matplotlib.figure import Figure
from scipy import optimize, special
from tqdm import tqdm
from train import log_loss, open_dataset

SEEDS = range(5)  # of the records chosen, of their order, of what is drawn, of the first weights
RECORDS = 200
STEPS = 400
BATCH_SIZE = 48
NOISE = 0.2  # standard deviation, where black is 0 and white is 1
WRONG = 0.4  # share of the training labels that are wrong, in the last column
BINS = 10

# Log-probabilities [S, N, K] of each setting, for all seeds.
Predictions = Mapping[str, np.ndarray]


def main(args: argparse.Namespace) -> None:
    """Trains all settings over all seeds; writes `compare.md` and `compare.png`."""
    predicted, labels = train_and_predict(args)
    folder = args.workdir or pathlib.Path()
    folder.mkdir(parents=True, exist_ok=True)
    table = (
        f"{RECORDS} training records of `{args.data}`, {STEPS} steps of {BATCH_SIZE},"
        f" {len(labels)} test records; mean ± standard deviation over {len(SEEDS)} seeds.\n\n"
        + make_table(predicted, labels)
    )
    (folder / "compare.md").write_text(table)
    draw(predicted["clean"], labels, folder / "compare.png")
    print(table + f"\nwrote {folder / 'compare.md'} and {folder / 'compare.png'}")
    if args.page:
        before = args.page.read_text()
        after = re.sub(
            r"(<!-- compare -->\n).*?(\n<!-- /compare -->)",
            lambda match: match[1] + table + match[2],
            before,
            flags=re.DOTALL,
        )
        args.page.write_text(after)


def train_and_predict(args: argparse.Namespace) -> tuple[dict[str, Predictions], np.ndarray]:
    """Returns predictions for each kind of test, and the labels `[N]` of the test images."""
    records, names = open_dataset(args, "train")
    images, labels = data.as_arrays(open_dataset(args, "test")[0])
    tests = {"clean": images, "noisy": with_noise(images), "hidden": with_hidden_square(images)}
    optimizer = optax.sgd(args.learning_rate, args.momentum)  # one for all, or each is compiled

    predicted: dict[str, dict[str, list[np.ndarray]]] = {
        test: {name: [] for name in training.MIXES} for test in (*tests, "wrong labels")
    }
    runs = list(itertools.product(SEEDS, training.MIXES, (0.0, WRONG)))
    with tqdm(total=len(runs) * STEPS, unit=" steps") as bar:
        for seed, name, wrong in runs:
            chosen = np.random.default_rng(seed).permutation(len(records))[:RECORDS]
            mix = training.MIXES[name](
                num_classes=len(names), sharding=training.over_devices("data")
            )
            run = training.Training(
                training.Net(images.shape[1:], len(names), nnx.Rngs(seed)),
                optimizer,
                training.load(
                    with_wrong_labels([records[i] for i in chosen], wrong, len(names), seed),
                    mix,
                    batch_size=BATCH_SIZE,
                    seed=seed,
                    workers=0,
                ),
            )
            for _ in run.run(STEPS):
                bar.update()
            run.close()
            for test, inputs in {"wrong labels": images}.items() if wrong else tests.items():
                predicted[test][name].append(np.asarray(training.predict(run.net, inputs)))
    return {
        test: {name: np.stack(seeds) for name, seeds in of_test.items()}
        for test, of_test in predicted.items()
    }, labels


def with_noise(images: np.ndarray) -> np.ndarray:
    """Returns the images with Gaussian noise."""
    noise = np.random.default_rng(0).normal(scale=255 * NOISE, size=images.shape)
    return np.clip(images + noise, 0, 255).astype(np.float32)


def with_hidden_square(images: np.ndarray) -> np.ndarray:
    """Returns the images with a grey square, half as wide as they are, at a random place."""
    rng, hidden = np.random.default_rng(0), images.copy()
    side = min(images.shape[1:3]) // 2
    for image in hidden:
        top, left = rng.integers(0, np.subtract(image.shape[:2], side) + 1)
        image[top : top + side, left : left + side] = 127
    return hidden


def with_wrong_labels(records: list[Any], share: float, num_classes: int, seed: int) -> list[Any]:
    """Returns the records, a share of them with another class than their own."""
    rng = np.random.default_rng(seed)
    is_wrong = rng.permutation(len(records)) < share * len(records)
    shifts = rng.integers(1, num_classes, len(records)) * is_wrong
    return [
        record | {"label": (int(record["label"]) + int(shift)) % num_classes}
        for record, shift in zip(records, shifts, strict=True)
    ]


def make_table(predicted: Mapping[str, Predictions], labels: np.ndarray) -> str:
    """Returns a row for each setting, in Markdown."""

    def spread(values: Sequence[float], percent: bool = False) -> str:
        scale, digits = (100, 1) if percent else (1, 3)
        mean, deviation = np.mean(values) * scale, np.std(values, ddof=1) * scale
        return f"{mean:.{digits}f} ± {deviation:.{digits}f}"

    columns = (
        "accuracy %",
        "log-loss",
        "calibration error %",
        "the same, after a fitted temperature",
        f"accuracy % with noise σ = {NOISE}",
        "accuracy % with a hidden square",
        f"accuracy % after training with {WRONG:.0%} wrong labels",
    )
    rows = [f"| | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name, seeds in predicted["clean"].items():
        cells = [
            spread([accuracy(seed, labels) for seed in seeds], percent=True),
            spread([log_loss(seed, labels) for seed in seeds]),
            spread([calibration_error(seed, labels) for seed in seeds], percent=True),
            spread([error_after_temperature(seed, labels) for seed in seeds], percent=True),
        ]
        cells += [
            spread([accuracy(seed, labels) for seed in predicted[test][name]], percent=True)
            for test in ("noisy", "hidden", "wrong labels")
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


def error_after_temperature(log_probs: np.ndarray, labels: np.ndarray) -> float:
    """Returns the calibration error after all logits were divided by one number.

    It is fitted on every second record, and the error is that of the others, and the other way
    round (https://arxiv.org/abs/1706.04599).
    """
    halves = np.arange(len(labels)) % 2 == 0
    errors = []
    for fit in (halves, ~halves):

        def loss(log_t: float, fit: np.ndarray = fit) -> float:
            return log_loss(scaled(log_probs[fit], log_t), labels[fit])

        best = optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded").x
        errors.append(calibration_error(scaled(log_probs[~fit], best), labels[~fit]))
    return float(np.mean(errors))


def scaled(log_probs: np.ndarray, log_temperature: float) -> np.ndarray:
    """Returns log-probabilities at another temperature."""
    logits = log_probs.astype(np.float64) / np.exp(log_temperature)
    return np.asarray(special.log_softmax(logits, axis=1))


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
