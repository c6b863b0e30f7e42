"""The benchmarks run, with any peers installed, and write the files that they promise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain")]
ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> str:
    # One device, as users have; and the interpreter's own warnings, as peers have plenty.
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("subject", ["device", "overhead", "pipeline", "stacking", "scaling"])
def test_a_quick_run_leaves_a_table_json_and_a_plot(subject, tmp_path):
    printed = run(subject, "--quick", "--output", str(tmp_path))
    check(subject, printed, tmp_path)


def test_the_table_of_peers_goes_between_the_marks_of_a_readme(tmp_path):
    begin, end = "<!-- from here on written by the benchmark -->", "<!-- up to here -->"
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    printed = run("peers", "--quick", "--output", str(tmp_path), "--readme", str(readme))
    rows = check("peers", printed, tmp_path)
    text = readme.read_text()
    assert text.startswith(f"before\n{begin}\n")
    assert text.endswith(f"{end}\nafter\n")
    assert printed.strip() in text
    assert "old\n" not in text
    # Peers may be skipped, for a reason, but not what is always there.
    measured = {(row["side"].split(",")[0], row["kind"]) for row in rows if "kind" in row}
    for side in ("grain_mix", "NumPy", "JAX recipe"):
        assert {(side, "MixUp"), (side, "CutMix")} <= measured
    assert {("grain_mix", "Mosaic"), ("NumPy", "Mosaic")} <= measured


def test_compiled_for_devices_that_are_not_here(tmp_path):
    for module in ("cramjam", "libtpu", "jax_cuda13_plugin"):
        pytest.importorskip(module, reason="needs the extra `compiled`")
    rows = check("compiled", run("compiled", "--quick", "--output", str(tmp_path)), tmp_path)
    for row in rows:
        assert row["collectives"] == row["loops"] == row["host calls"] == 0
        assert (row["instructions per byte"] or row["bytes over copy's"]) > 1


def test_what_a_run_on_a_gpu_leaves_when_its_time_is_up(tmp_path):
    command = ["-m", "benchmarks", "gpu", "--rehearse", "--minutes", "0.05"]
    done = subprocess.run([sys.executable, *command, "--output", str(tmp_path)], cwd=ROOT)
    assert done.returncode == 1
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert {"machine", "versions"} <= set(report)
    assert report["tests"]["ended"] == report["device"]["ended"] == "when its time was up"
    assert "`device` ended when its time was up" in (tmp_path / "gpu.md").read_text()


def check(subject, printed, folder):
    assert printed.startswith(("| ", "- "))
    report = json.loads((folder / f"{subject}.json").read_text())
    assert report["subject"] == subject
    assert report["machine"]
    assert {"python", "jax", "numpy"} <= set(report["versions"])
    assert report["rows"]
    assert (folder / f"{subject}.png").read_bytes().startswith(b"\x89PNG")
    return report["rows"]
