"""What mixing does to a network trained on few records: `python examples/train.py --compare`.

Each finished run is a line of `runs.jsonl` in the folder. So a comparison that was stopped goes on,
and more `--seeds` are added to those that are there.
"""

import argparse
import functools
import itertools
import json
import pathlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import data
import jax
import numpy as np
import optax
import picture
import training
from flax import nnx
from matplotlib.figure import Figure
from scipy import optimize, special, stats
from tqdm import tqdm
from train import log_loss, open_dataset

import grain_mix as gm

NOISE = 0.2  # standard deviation, where black is 0 and white is 1
WRONG = 0.4  # share of the training labels that are wrong, in runs of their own
BINS = 10

MODES: dict[str, functools.partial[Any]] = {}
for _name in ("both", "mixup"):
    _mix = MODES[_name] = training.MIXES[_name]
    MODES |= {f"{_name}, {mode}": functools.partial(_mix, mode=mode) for mode in ("pair", "batch")}
    if Larger := getattr(gm, "Larger", None):
        _laws = {option: Larger(gm.Beta(a, a)) for option, a in _mix.keywords.items()}
        MODES[f"{_name}, larger"] = functools.partial(_mix, **_laws)
SETTINGS = training.MIXES | MODES
KINDS = {"recipes": list(training.MIXES), "modes": list(MODES)}
# Which of a kind is compared with which.
PAIRS = {
    "recipes": [(later, first) for first, later in itertools.combinations(training.MIXES, 2)],
    "modes": [(name, name.partition(",")[0]) for name in MODES if "," in name],
}
# The options that a run depends on.
OPTIONS = ("data", "records", "num_epochs", "batch_size", "learning_rate", "momentum", "hard")

# A run: its options, "name", "seed" and "wrong_labels"; what was measured; "bins".
Run = dict[str, Any]


def main(args: argparse.Namespace) -> None:
    """Trains all of a kind over all seeds; writes `KIND.md` and `KIND.png`."""
    if args.seeds < 2:
        fix = "pass --seeds 2 or more"
        raise SystemExit(f"--seeds {args.seeds}: expected at least 2, for intervals; {fix}")
    folder = args.workdir or pathlib.Path("runs", f"compare-{args.data}-{args.records}")
    folder.mkdir(parents=True, exist_ok=True)
    steps = args.num_epochs * args.records // args.batch_size
    runs = train_all(args, steps, folder / "runs.jsonl")
    command = f"python examples/train.py --compare {args.compare} --seeds {args.seeds}"
    for name in OPTIONS[:-1]:
        command += f" --{name.replace('_', '-')} {getattr(args, name)}"
    command += " --hard" * args.hard + (f" --folder {args.folder}" if args.folder else "")
    own = {name: (name, name) for name in KINDS[args.compare]}
    pairs = {f"{a} less {b}": (a, b) for a, b in PAIRS[args.compare]}
    tables = (
        f"{args.records:,} training records of `{args.data}`, {args.num_epochs} epochs, which are"
        f" {steps:,} steps of {args.batch_size}; {sum(runs[0]['bins'][2]):,} test records. Mean ±"
        f" standard deviation over {args.seeds} seeds:\n\n{make_table(runs, own, spread)}\n"
        f"Differences with the same seed, mean (95% interval):\n\n"
        f"{make_table(runs, pairs, difference)}\n```sh\n{command}\n```\n"
    )
    (folder / f"{args.compare}.md").write_text(tables)
    draw([run for run in runs if not run["wrong_labels"]], folder / f"{args.compare}.png")
    print(f"{tables}\nwrote {folder / args.compare}.md and .png")
    if args.page:
        name = f"{args.data} {args.records} {args.compare}, {args.num_epochs} epochs"
        renew(args.page, name, tables)


def renew(page: pathlib.Path, name: str, content: str) -> None:
    """Replaces what stands between `<!-- name -->` and `<!-- /name -->`."""
    after, count = re.subn(
        rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)",
        lambda match: match[1] + content + match[2],
        page.read_text(),
        flags=re.DOTALL,
    )
    if not count:
        expected = f"lines <!-- {name} --> and <!-- /{name} -->"
        raise SystemExit(f"{page}: no place for the tables; expected {expected}; add them")
    page.write_text(after)


def train_all(args: argparse.Namespace, steps: int, path: pathlib.Path) -> list[Run]:
    """Returns all runs, seed by seed, after training those that the file has not."""
    stored = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    # TFDS has the records in another order than a folder.
    wanted = [
        {name: getattr(args, name) for name in OPTIONS}
        | {"from_folder": bool(args.folder), "name": name, "seed": seed, "wrong_labels": share}
        for seed, name, share in itertools.product(
            range(args.seeds), KINDS[args.compare], (0.0, WRONG) if args.hard else (0.0,)
        )
    ]
    missing = [run for run in wanted if not any(run.items() <= other.items() for other in stored)]
    if missing:
        records, classes = open_dataset(args, "train")
        if args.records > len(records):
            came = f"--records {args.records} with --data {args.data}"
            raise SystemExit(f"{came}: expected at most {len(records)}; pass fewer")
        images, labels = data.as_arrays(open_dataset(args, "test")[0])
        tests = {"clean": images}
        if args.hard:
            tests |= {"noisy": with_noise(images), "hidden": with_hidden_square(images)}
        # One optimizer for all, or each is compiled. The rate falls to 0 along half a cosine.
        rate = optax.cosine_decay_schedule(args.learning_rate, steps)
        optimizer = optax.sgd(rate, args.momentum)
        for run in tqdm(missing, unit=" runs"):
            measured = train_one(run, records, len(classes), optimizer, steps, tests, labels)
            stored.append(run | measured)
            with path.open("a") as lines:
                lines.write(json.dumps(stored[-1]) + "\n")
    return [next(run for run in stored if want.items() <= run.items()) for want in wanted]


def train_one(
    run: Run,
    records: Any,
    num_classes: int,
    optimizer: optax.GradientTransformation,
    steps: int,
    tests: Mapping[str, np.ndarray],
    labels: np.ndarray,
) -> dict[str, Any]:
    """Trains and tests. The seed is that of the records chosen, their order, draws and weights."""
    seed, size = run["seed"], run["batch_size"]
    chosen = np.random.default_rng(seed).permutation(len(records))[: run["records"]]
    few = with_wrong_labels([records[i] for i in chosen], run["wrong_labels"], num_classes, seed)
    mix = SETTINGS[run["name"]](num_classes=num_classes, sharding=training.over_devices("data"))
    trained = training.Training(
        training.Net(tests["clean"].shape[1:], num_classes, nnx.Rngs(seed)),
        optimizer,
        training.load(few, mix, batch_size=size, seed=seed, workers=0),
    )
    started = 0.0
    for _ in trained.run(steps):
        started = started or time.process_time()  # after the first step, which compiles
    training_time = (time.process_time() - started) / max(1, steps - 1)
    trained.close()

    predicted = {test: training.predict(trained.net, inputs) for test, inputs in tests.items()}
    clean = predicted.pop("clean")
    if run["wrong_labels"]:
        return {"after_wrong_labels": accuracy(clean, labels)}
    return {
        "accuracy": accuracy(clean, labels),
        "log_loss": log_loss(clean, labels),
        "calibration_error": calibration_error(clean, labels),
        "error_after_temperature": error_after_temperature(clean, labels),
        **{test: accuracy(log_probs, labels) for test, log_probs in predicted.items()},
        "mixing": mixing_time(mix, few[:size]) / training_time,
        "bins": [sums.tolist() for sums in by_confidence(clean, labels)],
    }


def mixing_time(mix: Any, records: Sequence[Any], calls: int = 50) -> float:
    """Returns the CPU time of mixing a batch, in seconds. It hardly sees what else is running."""
    images, labels = data.as_arrays(records)
    seeds = np.arange(len(records), dtype=np.uint32)
    batch = {"image": images, "label": labels, "mix_seed": seeds}
    started = time.process_time()
    for _ in range(calls):
        jax.block_until_ready(mix.map(batch))
    return (time.process_time() - started) / calls


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


# What a table shows, and the heading of its column; in % where the heading ends so.
COLUMNS = {
    "accuracy": "accuracy, %",
    "log_loss": "log-loss",
    "calibration_error": "calibration error, %",
    "error_after_temperature": "the same after a fitted temperature, %",
    "noisy": f"accuracy with noise σ = {NOISE}, %",
    "hidden": "accuracy with a hidden square, %",
    "after_wrong_labels": f"accuracy after training with {WRONG:.0%} wrong labels, %",
    "mixing": "mixing's share of the CPU time, %",
}


def make_table(
    runs: Sequence[Run],
    rows: Mapping[str, tuple[str, str]],
    cell: Callable[[np.ndarray, np.ndarray, int], str],
    headings: Mapping[str, str] = COLUMNS,
) -> str:
    """Returns rows of two settings each, in Markdown. A cell gets what both have, seed by seed."""
    values: dict[tuple[str, str], list[float]] = {}
    for run, column in itertools.product(runs, headings):
        if column in run:
            values.setdefault((run["name"], column), []).append(run[column])
    columns = [column for column in headings if any(column in run for run in runs)]
    lines = [f"| | {' | '.join(headings[column] for column in columns)} |"]
    lines.append("|---" * (1 + len(columns)) + "|")
    for title, names in rows.items():
        cells = []
        for column in columns:
            scale, digits = (100, 1) if headings[column].endswith("%") else (1, 3)
            own, other = (scale * np.array(values[name, column]) for name in names)
            cells.append(cell(own, other, digits))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: np.ndarray, _: np.ndarray, digits: int) -> str:
    """Returns the mean and the standard deviation over the seeds."""
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def difference(values: np.ndarray, others: np.ndarray, digits: int) -> str:
    """Returns the mean difference of pairs, and its 95% interval by Student's t."""
    differences = values - others
    mean, count = differences.mean(), len(differences)
    half = stats.t.ppf(0.975, count - 1) * differences.std(ddof=1) / count**0.5
    mean, low, high = (f"{x:+.{digits + 1}f}" for x in (mean, mean - half, mean + half))
    return f"{mean} ({low} to {high})".replace("-", "−")


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


def draw(runs: Sequence[Run], path: pathlib.Path) -> None:
    """Draws how often a network is right when it is so sure, over all seeds together."""
    names = list(dict.fromkeys(run["name"] for run in runs))
    figure = Figure((2.4 * len(names), 2.9), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True)
    for axis, name in zip(axes, names, strict=True):
        sums = np.sum([run["bins"] for run in runs if run["name"] == name], axis=0)
        seen = sums[2] > 0
        confidence, right, count = sums[:, seen]
        axis.bar(
            np.arange(BINS)[seen] / BINS,
            right / count,
            width=1 / BINS,
            align="edge",
            color="0.85",
            edgecolor="0.4",
        )
        axis.plot([0, 1], [0, 1], color="0.4", linestyle=":", label="calibrated")
        size = 4 + 150 * count / count.sum()
        axis.scatter(confidence / count, right / count, s=size, color="tab:blue", zorder=3)
        axis.set(title=name, xlabel="confidence", xlim=(0, 1), ylim=(0, 1))
    axes[0].set_ylabel("accuracy")
    axes[0].legend(loc="upper left", fontsize=8)
    figure.suptitle("How often right when so sure (dots: share of the records)", fontsize=11)
    picture.save(figure, path)
