"""The training example: it trains, stops, resumes, and compares."""

import argparse
import json
import re
import signal
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import compare
import numpy as np
import pytest
from common import Rng, started
from PIL import Image
from scipy import stats
from test_data import prepare_look_alike, write_clothes
from train import parse_arguments

SCRIPT = Path(__file__).parents[1] / "examples" / "train.py"
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


def training(folder: Path, *flags: object) -> AbstractContextManager[subprocess.Popen[str]]:
    return started(SCRIPT, "--data-dir", folder / "data", *flags, cwd=folder, **ENVIRONMENT)


def train(folder: Path, *flags: object) -> list[str]:
    """Returns the lines that it printed."""
    with training(folder, *flags) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output.splitlines()


@pytest.mark.slow
def test_learns_and_resumes(tmp_path: Path) -> None:
    flags = ["--mix", "mixup", "--seed", 3]
    *_, straight = train(tmp_path, *flags, "--num-epochs", 6)
    found = re.fullmatch(r"360 clean test records: accuracy (.*)%, log-loss 0\.\d{4}", straight)
    assert found, straight
    assert float(found[1]) > 80

    in_two = ["--workdir", tmp_path / "in two", *flags]
    train(tmp_path, *in_two, "--num-epochs", 2)
    resumed, result = train(tmp_path, *in_two, "--num-epochs", 6)
    assert resumed == f"resumed after step {2 * 1437 // 128}"
    assert result == straight


@pytest.mark.slow
def test_other_options_are_refused(tmp_path: Path) -> None:
    """With other options, the checkpoint's state would count other batches."""
    line = ["--workdir", tmp_path / "run", "--num-epochs", 1]
    train(tmp_path, *line, "--mix", "mixup", "--batch-size", 64)
    for flags, difference in [
        (["--mix", "cutmix", "--batch-size", 64], "--mix was mixup, now it is cutmix"),
        (["--mix", "mixup", "--batch-size", 128], "--batch-size was 64, now it is 128"),
    ]:
        with training(tmp_path, *line, *flags) as process:
            _, errors = process.communicate()
        assert process.returncode == 1
        assert f"holds another run: {difference}; pass the options it was started with" in errors
    resumed, _ = train(tmp_path, *line, "--mix", "mixup", "--batch-size", 64)
    assert resumed == f"resumed after step {1437 // 64}"


@pytest.mark.slow
def test_ctrl_c_saves(tmp_path: Path) -> None:
    saved = tmp_path / "runs" / "digits-both-0" / "50"  # the first checkpoint
    with training(tmp_path, "--num-epochs", 10**6) as process:
        while process.poll() is None and not saved.exists():
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    found = re.search(r"^stopped and saved after step (\d+) of", output, re.MULTILINE)
    assert found, output
    lines = train(tmp_path, "--num-epochs", 1)  # which is done already
    assert lines[0] == f"resumed after step {found[1]}"


@pytest.mark.slow
def test_cifar10(tmp_path: Path) -> None:
    prepare_look_alike(tmp_path / "data")
    lines = train(tmp_path, "--data", "cifar10", "--num-epochs", 1, "--batch-size", 32)
    assert lines[-1].startswith("32 clean test records: accuracy ")


@pytest.mark.slow
def test_fashion_mnist(tmp_path: Path, rng: Rng) -> None:
    write_clothes(tmp_path / "files", rng)
    line = ["--data", "fashion_mnist", "--folder", tmp_path / "files", "--batch-size", 32]
    assert train(tmp_path, *line, "--num-epochs", 1)[-1].startswith("20 clean test records: ")
    resumed, _ = train(tmp_path, *line, "--num-epochs", 2)
    assert resumed == "resumed after step 2"


def compare_options(where: Path, **options: object) -> argparse.Namespace:
    defaults = {
        "data_dir": where / "data",
        "folder": None,
        "download": False,
        "workdir": where / "out",
        "page": None,
        "compare": "recipes",
        "num_epochs": 1,
        "learning_rate": 0.1,
        "momentum": 0.9,
        "hard": False,
    }
    return argparse.Namespace(**defaults | options)


def table_rows(page: str, columns: int) -> list[str]:
    number = r"[+−]?\d+\.\d+"
    cell = rf"({number} ± {number}|{number} \({number} to {number}\))"
    return re.findall(rf"^\| ([\w, ]+)(?: \| {cell}){{{columns}}} \|$", page, re.MULTILINE)


@pytest.mark.slow
def test_compare(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    mark = "digits 96 recipes, 1 epochs"
    page.write_text(f"before\n<!-- {mark} -->\nold\n<!-- /{mark} -->\nafter\n")
    options = {"data": "digits", "records": 96, "batch_size": 32, "seeds": 2, "hard": True}
    compare.main(compare_options(tmp_path, page=page, **options))
    tables = (tmp_path / "out" / "recipes.md").read_text()
    rows = [row[0] for row in table_rows(tables, 8)]
    less = [f"{a} less none" for a in ("mixup", "cutmix", "both")]
    less += ["cutmix less mixup", "both less mixup", "both less cutmix"]
    assert rows == ["none", "mixup", "cutmix", "both", *less]
    assert page.read_text() == f"before\n<!-- {mark} -->\n{tables}\n<!-- /{mark} -->\nafter\n"
    assert "--num-epochs 1 --batch-size 32 --learning-rate 0.1 --momentum 0.9 --hard" in tables
    with Image.open(tmp_path / "out" / "recipes.png") as image:
        assert image.width > 900


@pytest.mark.slow
def test_compare_goes_on(tmp_path: Path, rng: Rng) -> None:
    """Finished runs are not trained again, and modes share what they can with recipes."""
    write_clothes(tmp_path / "files", rng)
    options = {"data": "fashion_mnist", "folder": tmp_path / "files", "batch_size": 32}
    stored = tmp_path / "out" / "runs.jsonl"

    def runs() -> list[tuple[str, int]]:
        lines = map(json.loads, stored.read_text().splitlines())
        return [(run["name"], run["seed"]) for run in lines]

    compare.main(compare_options(tmp_path, **options, records=64, seeds=2))
    before = stored.read_text()
    recipes = [(name, seed) for seed in range(2) for name in ("none", "mixup", "cutmix", "both")]
    assert runs() == recipes
    compare.main(compare_options(tmp_path, **options, records=64, seeds=2, compare="modes"))
    assert stored.read_text().startswith(before)
    modes = [name for name in compare.KINDS["modes"] if "," in name]
    assert {"both, pair", "both, batch", "mixup, pair", "mixup, batch"} <= set(modes)
    rows = [row[0] for row in table_rows((tmp_path / "out" / "modes.md").read_text(), 5)]
    less = [f"{name} less {name.partition(',')[0]}" for name in modes]
    assert rows == [*compare.KINDS["modes"], *less]
    assert runs() == recipes + [(name, seed) for seed in range(2) for name in modes]

    with pytest.raises(SystemExit, match=r"--records 65 .*: expected at most 64; pass fewer"):
        compare.main(compare_options(tmp_path, **options, records=65, seeds=2))
    with pytest.raises(SystemExit, match="--seeds 1: expected at least 2, for intervals"):
        compare.main(compare_options(tmp_path, **options, records=64, seeds=1))
    page = tmp_path / "page.md"
    page.write_text("# No place\n")
    with pytest.raises(
        SystemExit, match="expected lines <!-- fashion_mnist 64 recipes, 1 epochs -->"
    ):
        compare.main(compare_options(tmp_path, **options, records=64, seeds=2, page=page))
    assert page.read_text() == "# No place\n"


def test_difference_of_pairs(rng: Rng) -> None:
    values, others = rng.normal(size=(2, 7))
    interval = stats.ttest_rel(values, others).confidence_interval(0.95)
    numbers = [np.mean(values - others), interval.low, interval.high]
    mean, low, high = (f"{number:+.3f}".replace("-", "−") for number in numbers)
    assert compare.difference(values, others, 2) == f"{mean} ({low} to {high})"


@pytest.mark.parametrize(
    ("options", "came"),
    [
        (["--records", "100"], "--records with --data digits"),
        (["--compare", "--mix", "none"], "--mix with --data digits --compare"),
        (["--data", "cifar10", "--folder", "f"], "--folder with --data cifar10"),
    ],
)
def test_options_without_a_use_are_refused(
    options: list[str], came: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", *options])
    with pytest.raises(SystemExit):
        parse_arguments()
    assert f"{came}: expected no such option" in capsys.readouterr().err


def test_calibration_error(rng: Rng) -> None:
    """0 if predictions are right as often as they say. Errors in both directions add up."""
    confidence = np.repeat([0.65, 0.85], 20)
    log_probs = np.log(np.stack([confidence, 1 - confidence], axis=1))
    labels = np.concatenate([np.arange(20) >= 13, np.arange(20) >= 17]).astype(int)
    order = rng.permutation(40)
    assert compare.calibration_error(log_probs[order], labels[order]) == pytest.approx(0)
    labels[:3] = 1  # three of the first twenty less are right, two of the others more
    labels[37:39] = 0
    assert compare.calibration_error(log_probs[order], labels[order]) == pytest.approx(5 / 40)


def test_temperature(rng: Rng) -> None:
    """Predictions that are twice too sure are calibrated after it, and others stay so."""
    logits = rng.normal(size=(20_000, 5))
    probabilities = np.exp(compare.scaled(logits, 0.0))
    labels = (probabilities.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    for factor in (1, 2, 0.5):
        log_probs = compare.scaled(factor * logits, 0.0)
        assert compare.error_after_temperature(log_probs, labels) < 0.03
    assert compare.calibration_error(compare.scaled(2 * logits, 0.0), labels) > 0.1


def test_wrong_labels_and_hidden_squares(rng: Rng) -> None:
    records = [{"image": i, "label": i % 10} for i in range(200)]
    wrong = compare.with_wrong_labels(records, 0.4, 10, seed=3)
    changed = [a["label"] != b["label"] for a, b in zip(records, wrong, strict=True)]
    assert sum(changed) == 80
    assert compare.with_wrong_labels(records, 0, 10, seed=3) == records
    images = rng.integers(128, 256, (50, 8, 8, 1), np.uint8)
    hidden = compare.with_hidden_square(images)
    assert ((hidden == 127).sum(axis=(1, 2, 3)) == 16).all()
    assert (hidden[hidden != 127] == images[hidden != 127]).all()
