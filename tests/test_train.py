"""The training example: it trains, stops, resumes, and compares."""

import argparse
import re
import signal
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path

import compare
import numpy as np
import pytest
from common import Rng, started
from PIL import Image
from test_data import prepare_look_alike

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
def test_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "SEEDS", range(2))
    monkeypatch.setattr(compare, "STEPS", 3)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- compare -->\nold\n<!-- /compare -->\nafter\n")
    options = {"data": "digits", "data_dir": tmp_path / "data", "workdir": tmp_path, "page": page}
    compare.main(argparse.Namespace(**options, learning_rate=0.1, momentum=0.9))
    table = (tmp_path / "compare.md").read_text()
    number = r"\d+\.\d+ ± \d+\.\d+"
    rows = re.findall(rf"^\| (\w+)(?: \| {number}){{7}} \|$", table, re.MULTILINE)
    assert rows == ["none", "mixup", "cutmix", "both"]
    assert page.read_text() == f"before\n<!-- compare -->\n{table}\n<!-- /compare -->\nafter\n"
    with Image.open(tmp_path / "compare.png") as image:
        assert image.width > 900


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
