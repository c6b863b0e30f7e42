"""For whoever has a GPU for some minutes: the tests marked `gpu`, then `benchmarks device`.

This process leaves the GPU to those that it starts, one after the other. What is known is written
after each, and each has its part of the time.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
FOR_TESTS = 0.5  # of the time
TO_END = 20.0  # seconds in which `device` ends what it has begun, before it is stopped
LOOK = """
import json, jax, grain_mix, hypothesis, pytest, pytest_timeout, xdist
from benchmarks import _report
found = {"platform": jax.default_backend(), "machine": _report.machine()}
print(json.dumps(found | {"versions": _report.versions()}))
"""
DRIVER = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit"
WELL = "well"
OPTIONS = "-m gpu -n0 -v -W default --color=no --tb=short --timeout=120"


def run(output: pathlib.Path, minutes: float, wheels: pathlib.Path | None, rehearse: bool) -> bool:
    """Writes `gpu.json` and `gpu.md`, beside what each step writes; returns whether all went well.

    Args:
        output: a folder.
        minutes: that all takes at most.
        wheels: a folder with wheels of what is missing here; they are unpacked elsewhere.
        rehearse: takes a CPU for the GPU.
    """
    end = time.monotonic() + 60 * minutes
    output = output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as site:
        if wheels is not None:
            install = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
            files = sorted(map(str, wheels.glob("*.whl")))
            subprocess.run([*install, "--no-compile", "--target", site, *files], check=True)
        environment = _environment(site, rehearse)
        report = _look(environment, rehearse)
        _write(report, output)

        log = output / "gpu_tests.txt"
        tests = ["pytest", *OPTIONS.split(), "tests/test_gpu.py"]
        report["tests"] = _step(tests, log, environment, FOR_TESTS * 60 * minutes)
        text, outcome = log.read_text(), r"^tests/\S+?::(.+?) (PASSED|FAILED|ERROR|SKIPPED)"
        report["tests"]["outcomes"] = dict(re.findall(outcome, text, re.MULTILINE))
        report["tests"]["failures"] = text.partition(" FAILURES ")[2].strip("=\n")[:6000]
        _write(report, output)

        left = max(end - time.monotonic(), 1)
        device = ["benchmarks", "device", "--output", str(output)]
        device += ["--minutes", str((left - TO_END) / 60)]
        report["device"] = _step(device, output / "gpu_device.txt", environment, left)
        _write(report, output)
    for file in (output / "gpu.md", output / "device.md"):
        print(file.read_text() if file.exists() else f"There is no {file}.")
    return report["tests"]["ended"] == report["device"]["ended"] == WELL


def _environment(site: str, rehearse: bool) -> dict[str, str]:
    paths = [site, str(ROOT), os.environ.get("PYTHONPATH", "")]
    changed = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    if rehearse:
        return os.environ | changed | {"JAX_PLATFORMS": "cpu", "GRAIN_MIX_GPU": "cpu"}
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms:  # which mixes for the host
        changed["JAX_PLATFORMS"] = f"{platforms},cpu"
    return os.environ | changed


def _look(environment: dict[str, str], rehearse: bool) -> dict[str, Any]:
    """What the machine is."""
    look = subprocess.run(
        [sys.executable, "-c", LOOK], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    if look.returncode:
        raise SystemExit(f"{look.stderr}\nThis needs what CONTRIBUTING.md says.")
    found: dict[str, Any] = json.loads(look.stdout.splitlines()[-1])
    if found["platform"] == "cpu" and not rehearse:
        raise SystemExit("JAX sees no GPU or TPU here. With --rehearse a CPU takes its place.")
    if shutil.which("nvidia-smi") and not rehearse:
        query = ["nvidia-smi", f"--query-gpu={DRIVER}", "--format=csv"]
        found["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    return found


def _step(
    command: list[str], log: pathlib.Path, environment: dict[str, str], seconds: float
) -> dict[str, Any]:
    """Runs `python -m` with a limit, and says how it ended and how long it took."""
    start = time.monotonic()
    print(f"--- {' '.join(command)}\n--- at most {seconds:.0f} s, see {log}", flush=True)
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
            process_group=0,
        )
        try:
            status = process.wait(seconds)
            ended = WELL if status == 0 else f"with status {status}"
        except subprocess.TimeoutExpired:
            ended = "when its time was up"
        finally:  # with the processes that it has started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return {"ended": ended, "seconds": round(time.monotonic() - start, 1)}


def _write(report: dict[str, Any], output: pathlib.Path) -> None:
    (output / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    software = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [f"{report['machine']}; {software}."]
    if "driver" in report:
        lines += ["", "```text", report["driver"], "```"]
    for step in ("tests", "device"):
        if step in report:
            ended, seconds = report[step]["ended"], report[step]["seconds"]
            lines += ["", f"`{step}` ended {ended}, after {seconds} s."]
    if "tests" in report:
        lines += ["", "| test | outcome |", "| --- | --- |"]
        outcomes = report["tests"]["outcomes"].items()
        lines += [f"| {test} | {outcome.lower()} |" for test, outcome in outcomes]
        if report["tests"]["failures"]:
            lines += ["", "```text", report["tests"]["failures"], "```"]
    (output / "gpu.md").write_text("\n".join(lines) + "\n")
