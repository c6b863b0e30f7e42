"""Real JAX processes on loopback train the same as one process does, also when one is killed."""

import collections
import contextlib
import functools
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import multihost_worker
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
WORKER = ROOT / "tests" / "multihost_worker.py"
EXAMPLE = ROOT / "examples" / "multihost.py"

# Each test ends its processes well before this, with all that they printed.
pytestmark = pytest.mark.timeout(600)
TIMEOUT = 240


# --- processes ----------------------------------------------------------------------------------


class Processes:
    """Processes that never outlive a test."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._all: list[tuple[subprocess.Popen[bytes], pathlib.Path]] = []

    def start(self, command: Sequence[object], *, devices: int) -> subprocess.Popen[bytes]:
        """Starts Python in a process group of its own, which its children share."""
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        output = self._folder / f"output-{len(self._all)}.txt"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._all.append((process, output))
        return process

    def wait(self, *processes: subprocess.Popen[bytes]) -> None:
        """Returns when all have succeeded."""
        self.wait_until(lambda: all(process.poll() == 0 for process in processes), *processes)

    def wait_until(self, done: Callable[[], bool], *running: subprocess.Popen[bytes]) -> None:
        """Returns when `done`; fails when that takes too long, or when one of `running` fails."""
        deadline = time.monotonic() + TIMEOUT
        while not done():
            codes = [process.poll() for process in running]
            if any(codes) or time.monotonic() > deadline:
                self.end()
                pytest.fail(f"exit codes {codes} (None: ran too long)\n{self.output()}")
            time.sleep(0.05)

    def output(self) -> str:
        return "".join(f"--- {path.name}\n{path.read_text()}" for _, path in self._all)

    def output_of(self, process: subprocess.Popen[bytes]) -> str:
        return next(path for started, path in self._all if started is process).read_text()

    def end(self) -> None:
        for process, _ in self._all:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def processes(tmp_path: pathlib.Path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    yield processes
    processes.end()


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


# --- the same training --------------------------------------------------------------------------


def train(processes: Processes, folder: pathlib.Path, **config: Any) -> list[dict[str, Any]]:
    """Trains in `count` processes; returns what each of them saw."""
    config = {
        "coordinator": free_address(),
        "replicas": 1,  # devices that hold the same part of the batch
        "interleaved": False,
        "workers": 0,
    } | config
    outputs = [folder / f"seen-{i}.json" for i in range(config["count"])]
    devices = config.pop("devices")
    processes.wait(
        *(
            processes.start(
                [WORKER, json.dumps(config | {"id": i, "output": str(output)})], devices=devices
            )
            for i, output in enumerate(outputs)
        )
    )
    return [json.loads(output.read_text()) for output in outputs]


def train_here(folder: pathlib.Path, steps: int) -> dict[str, Any]:
    """The same in this process, on its own devices."""
    output = folder / "seen.json"
    config = {"count": 1, "replicas": 1, "interleaved": False, "workers": 0, "steps": steps}
    multihost_worker.main(config | {"output": str(output)})
    return json.loads(output.read_text())


MESHES = {  # an epoch has 10 steps
    "2 hosts": {"count": 2, "devices": 2, "steps": 10},
    "4 hosts, interleaved": {"count": 4, "devices": 2, "interleaved": True, "steps": 80},
    "2 hosts, repeated in each": {"count": 2, "devices": 4, "replicas": 2, "steps": 80},
    "4 hosts, repeated in pairs of them": {"count": 4, "devices": 2, "replicas": 4, "steps": 80},
}


@pytest.mark.parametrize(
    "mesh", [pytest.param(mesh, marks=pytest.mark.slow if "," in mesh else ()) for mesh in MESHES]
)
def test_the_same_training(mesh: str, processes: Processes, tmp_path: pathlib.Path) -> None:
    single = train_here(tmp_path, MESHES[mesh]["steps"])
    hosts = train(processes, tmp_path, **MESHES[mesh])
    assert all(host["by_key"] == single["by_key"] for host in hosts)
    for host in hosts[1:]:
        assert host["params_bytes"] == hosts[0]["params_bytes"]
    for key, expected in single["params"].items():
        np.testing.assert_allclose(hosts[0]["params"][key], expected, rtol=1e-3, atol=1e-4)
    assert np.abs(single["params"]["kernel"]).max() > 0.01
    if "pairs" in mesh:
        assert [host["records"] for host in hosts[::2]] == [host["records"] for host in hosts[1::2]]
        hosts = hosts[::2]
    # Each step mixes the same records, though in another order.
    for step, expected in enumerate(single["records"]):
        mixed = itertools.chain.from_iterable(host["records"][step] for host in hosts)
        assert sorted(mixed) == sorted(expected), step


@pytest.mark.slow
def test_the_same_records_with_workers(processes: Processes, tmp_path: pathlib.Path) -> None:
    """With workers the order differs, but the batches of both workers together are the same."""
    hosts = train(processes, tmp_path, count=2, devices=2, workers=2, steps=20)
    mixed = [step for host in hosts for step in host["records"]]
    expected = train_here(tmp_path, 20)["records"]
    count = functools.partial(map, collections.Counter)
    assert sum(count(mixed), collections.Counter()) == sum(count(expected), collections.Counter())


# --- the example --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder that the photographs are written to, by the first process that needs them."""
    return tmp_path_factory.mktemp("photographs")


def read_log(folder: pathlib.Path, process: int) -> list[dict[str, Any]]:
    path = folder / f"process_{process}-of-2.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []  # the last may be half
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_killed_and_resumed(
    processes: Processes, tmp_path: pathlib.Path, data_dir: pathlib.Path
) -> None:
    """An epoch has 100 steps, of which these are the first 50."""
    flags = ["--data-dir", data_dir, "--batch-size", 16, "--steps", 50]

    def start(log: str, *more: object) -> list[subprocess.Popen[bytes]]:
        by_hand = ["--coordinator", free_address(), "--count", 2, "--log-dir", tmp_path / log]
        return [
            processes.start([EXAMPLE, *by_hand, "--id", i, *flags, *more], devices=2)
            for i in (0, 1)
        ]

    processes.wait(*start("undisturbed"))
    undisturbed = [read_log(tmp_path / "undisturbed", i) for i in (0, 1)]
    for log in undisturbed:
        assert [line["step"] for line in log] == list(range(1, 51))

    checkpoints = ["--checkpoint-dir", tmp_path / "checkpoints", "--checkpoint-every", 10]
    first = start("killed", *checkpoints)
    processes.wait_until(lambda: len(read_log(tmp_path / "killed", 1)) > 26, *first)
    first[1].send_signal(signal.SIGKILL)
    processes.wait_until(lambda: first[0].poll() is not None)
    assert first[0].returncode != 0
    before = [read_log(tmp_path / "killed", i) for i in (0, 1)]
    for log, expected in zip(before, undisturbed, strict=True):
        assert log == expected[: len(log)]

    second = start("resumed", *checkpoints)
    processes.wait(*second)
    resumed = re.search(r"^resumed after step (\d+)$", processes.output_of(second[0]), re.MULTILINE)
    assert resumed, processes.output()
    step = int(resumed[1])
    assert step in (10, 20, 30)
    for i, expected in enumerate(undisturbed):
        assert read_log(tmp_path / "resumed", i) == expected[step:]

    others = start("others", *checkpoints, "--batch-size", 32)
    processes.wait_until(lambda: all(process.poll() is not None for process in others))
    assert all(process.returncode != 0 for process in others)
    assert (
        "--batch-size was 16, now it is 32; pass the options it was started with"
        in processes.output()
    )


@pytest.mark.slow
def test_local(processes: Processes, tmp_path: pathlib.Path, data_dir: pathlib.Path) -> None:
    flags = ["--data-dir", data_dir, "--batch-size", 16, "--steps", 5, "--log-dir", tmp_path]
    launcher = processes.start([EXAMPLE, "--local", 2, *flags], devices=1)
    processes.wait(launcher)
    output = processes.output()
    assert "processes: 2, devices: 4 (cpu)" in output
    assert re.search(r"^loss \d\.\d{4} after step 5$", output, re.MULTILINE), output
    accuracy = r"^400 clean test records: accuracy \d+\.\d\d%$"
    assert len(re.findall(accuracy, output, re.MULTILINE)) == 1, output  # of process 0 alone
    first, second = (read_log(tmp_path, i) for i in (0, 1))
    assert [line["step"] for line in first] == [1, 2, 3, 4, 5]
    assert [line["loss"] for line in first] == [line["loss"] for line in second]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_local_takes_its_processes_along(
    number: int, processes: Processes, tmp_path: pathlib.Path, data_dir: pathlib.Path
) -> None:
    flags = ["--data-dir", data_dir, "--batch-size", 16, "--steps", 10**6, "--log-dir", tmp_path]
    launcher = processes.start([EXAMPLE, "--local", 2, *flags], devices=1)
    processes.wait_until(lambda: len(read_log(tmp_path, 1)) > 2, launcher)
    launcher.send_signal(number)
    processes.wait_until(lambda: launcher.poll() is not None)
    assert launcher.returncode == 128 + number
    with pytest.raises(ProcessLookupError):  # none of its process group is left
        os.killpg(launcher.pid, 0)
