"""Real JAX processes on loopback train the same as one process does, also when one is killed."""

import collections
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import multihost_worker
import numpy as np
import pytest
from common import nightly, slow, started

WORKER = Path(__file__).parent / "multihost_worker.py"
EXAMPLE = Path(__file__).parents[1] / "examples" / "multihost.py"

# Each test ends its processes well before this, with all that they printed.
pytestmark = pytest.mark.timeout(600)
TIMEOUT = 240


class Processes(contextlib.ExitStack):
    """Processes that never outlive a test."""

    def start(self, *command: object, devices: int) -> Popen[str]:
        flags = f"--xla_force_host_platform_device_count={devices}"
        return self.enter_context(started(*command, JAX_PLATFORMS="cpu", XLA_FLAGS=flags))

    def wait(self, *processes: Popen[str]) -> str:
        """What they printed, when all have succeeded."""
        self.wait_until(lambda: all(process.poll() == 0 for process in processes), *processes)
        return self.output(*processes)

    def wait_until(self, done: Callable[[], bool], *running: Popen[str]) -> None:
        """Returns when `done`; fails when that takes too long, or when one of `running` fails."""
        deadline = time.monotonic() + TIMEOUT
        while not done():
            codes = [process.poll() for process in running]
            if any(codes) or time.monotonic() > deadline:
                for process in running:
                    process.kill()
                pytest.fail(f"exit codes {codes} (None: ran too long)\n{self.output(*running)}")
            time.sleep(0.05)

    def output(self, *processes: Popen[str]) -> str:
        return "\n".join(text for process in processes for text in process.communicate())


@pytest.fixture
def processes() -> Iterator[Processes]:
    with Processes() as processes:
        yield processes


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def train(processes: Processes, folder: Path, **config: Any) -> list[dict[str, Any]]:
    """Trains in `count` processes, or in this one; returns what each of them saw."""
    # Replicas are devices that hold the same part of the batch.
    config = {"count": 1, "replicas": 1, "interleaved": False, "workers": 0} | config
    config |= {"coordinator": free_address()}
    devices, outputs = config.pop("devices", None), []
    commands = []
    for i in range(config["count"]):
        outputs.append(folder / f"seen-{i}.json")
        commands.append(config | {"id": i, "output": str(outputs[i])})
    if devices is None:
        multihost_worker.main(commands[0])
    else:
        started = [processes.start(WORKER, json.dumps(c), devices=devices) for c in commands]
        processes.wait(*started)
    return [json.loads(output.read_text()) for output in outputs]


MESHES = {  # an epoch has 10 steps
    "2 hosts": {"count": 2, "devices": 2, "steps": 10},
    "4 hosts, interleaved": {"count": 4, "devices": 2, "interleaved": True, "steps": 80},
    "2 hosts, repeated in each": {"count": 2, "devices": 4, "replicas": 2, "steps": 80},
    "4 hosts, repeated in pairs of them": {"count": 4, "devices": 2, "replicas": 4, "steps": 80},
}


@pytest.mark.parametrize(
    "mesh",
    [
        "2 hosts",
        slow("4 hosts, interleaved"),
        nightly("2 hosts, repeated in each"),
        nightly("4 hosts, repeated in pairs of them"),
    ],
)
def test_the_same_training(mesh: str, processes: Processes, tmp_path: Path) -> None:
    [single] = train(processes, tmp_path, steps=MESHES[mesh]["steps"])
    hosts = train(processes, tmp_path, **MESHES[mesh])
    assert all(host["by_key"] == single["by_key"] for host in hosts)
    assert all(host["kernel"] == hosts[0]["kernel"] for host in hosts)
    np.testing.assert_allclose(hosts[0]["kernel"], single["kernel"], rtol=1e-3, atol=1e-4)
    assert np.abs(single["kernel"]).max() > 0.01
    if "pairs" in mesh:
        assert [host["records"] for host in hosts[::2]] == [host["records"] for host in hosts[1::2]]
        hosts = hosts[::2]
    # Each step mixes the same records, though in another order.
    for step, expected in enumerate(single["records"]):
        mixed = itertools.chain.from_iterable(host["records"][step] for host in hosts)
        assert sorted(mixed) == sorted(expected), step


@pytest.mark.slow
def test_the_same_records_with_workers(processes: Processes, tmp_path: Path) -> None:
    """With workers the order differs, but the batches of both workers together are the same."""
    hosts = train(processes, tmp_path, count=2, devices=2, workers=2, steps=20)
    mixed = [step for host in hosts for step in host["records"]]
    [single] = train(processes, tmp_path, steps=20)
    count, flat = collections.Counter, itertools.chain.from_iterable
    assert count(flat(mixed)) == count(flat(single["records"]))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the photographs are written to, by the first process that needs them."""
    return tmp_path_factory.mktemp("photographs")


def read_log(folder: Path, process: int) -> list[dict[str, Any]]:
    path = folder / f"process_{process}-of-2.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []  # the last may be half
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_killed_and_resumed(processes: Processes, tmp_path: Path, data_dir: Path) -> None:
    """An epoch has 100 steps, of which these are the first 50."""

    def start(log: str, *more: object) -> list[Popen[str]]:
        flags = ["--data-dir", data_dir, "--batch-size", 16, "--steps", 50, "--count", 2, *more]
        flags += ["--coordinator", free_address(), "--log-dir", tmp_path / log]
        return [processes.start(EXAMPLE, *flags, "--id", i, devices=2) for i in (0, 1)]

    def logs(name: str) -> list[list[dict[str, Any]]]:
        return [read_log(tmp_path / name, i) for i in (0, 1)]

    processes.wait(*start("undisturbed"))
    undisturbed = logs("undisturbed")
    for log in undisturbed:
        assert [line["step"] for line in log] == list(range(1, 51))

    checkpoints = ["--checkpoint-dir", tmp_path / "checkpoints", "--checkpoint-every", 10]
    first = start("killed", *checkpoints)
    processes.wait_until(lambda: len(read_log(tmp_path / "killed", 1)) > 26, *first)
    first[1].send_signal(signal.SIGKILL)
    processes.wait_until(lambda: first[0].poll() is not None)
    assert first[0].returncode != 0
    for log, expected in zip(logs("killed"), undisturbed, strict=True):
        assert log == expected[: len(log)]

    output = processes.wait(*start("resumed", *checkpoints))
    [*_, resumed] = re.finditer(r"^resumed after step (\d+)$", output, re.MULTILINE)
    step = int(resumed[1])
    assert step in (10, 20, 30)
    assert logs("resumed") == [expected[step:] for expected in undisturbed]

    others = start("others", *checkpoints, "--batch-size", 32)
    processes.wait_until(lambda: all(process.poll() is not None for process in others))
    assert all(process.returncode != 0 for process in others)
    refused = "--batch-size was 16, now it is 32; pass the options it was started with"
    assert refused in processes.output(*others)


@pytest.mark.slow
def test_local(processes: Processes, tmp_path: Path, data_dir: Path) -> None:
    flags = ["--data-dir", data_dir, "--batch-size", 16, "--steps", 5, "--log-dir", tmp_path]
    launcher = processes.start(EXAMPLE, "--local", 2, *flags, devices=1)
    output = processes.wait(launcher)
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
    number: int, processes: Processes, tmp_path: Path, data_dir: Path
) -> None:
    flags = ["--data-dir", data_dir, "--batch-size", 16, "--steps", 10**6, "--log-dir", tmp_path]
    launcher = processes.start(EXAMPLE, "--local", 2, *flags, devices=1)
    processes.wait_until(lambda: len(read_log(tmp_path, 1)) > 2, launcher)
    launcher.send_signal(number)
    processes.wait_until(lambda: launcher.poll() is not None)
    assert launcher.returncode == 128 + number
    with pytest.raises(ProcessLookupError):  # none of its process group is left
        os.killpg(launcher.pid, 0)
