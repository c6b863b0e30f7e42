"""A fault in a pipeline is an error that says so, and the last state resumes from there.

All of it is real: worker processes, files, signals. What Grain does about a fault is Grain's, as of
0.2.18; that the error comes through prefetch and mixing, that nothing stays behind, and that a
restart loses no record and repeats none, is ours.
"""

import contextlib
import gc
import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import grain
import numpy as np
import pytest
from array_record.python import array_record_module

import grain_mix as gm
import grain_mix._loader as loader_module

RECORDS, BATCH_SIZE = 96, 4
SHAPE = (32, 48, 3)
FAULTY = 71  # the record with a fault


class Decode(grain.transforms.Map):
    """Fails at one record as long as a file of that name exists."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def map(self, element: bytes) -> dict[str, Any]:
        image = np.frombuffer(element, np.uint8, offset=1).reshape(SHAPE)
        if element[0] == FAULTY and os.path.exists(self.fault):
            if self.fault.endswith("shape"):
                image = image[:-1]
            elif self.fault.endswith("kill"):
                time.sleep(0.5)  # until nothing else goes on in this worker
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.fault.endswith("stuck"):
                pathlib.Path(self.fault + " now").touch()
                time.sleep(10**6)
            elif self.fault.endswith("lock"):
                for thing in gc.get_objects():
                    if isinstance(thing, multiprocessing.synchronize.Event):
                        thing._cond.acquire()
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                raise OSError(f"cannot decode {element[0]}")
        return {"image": image, "label": element[0], "id": element[0]}


def write_records(path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for i in range(RECORDS):
        writer.write(bytes([i]) + rng.integers(256, size=SHAPE, dtype=np.uint8).tobytes())
    writer.close()


def start(folder: pathlib.Path, fault: str, worker_count: int) -> grain.DatasetIterator:
    loader = grain.load(
        grain.sources.ArrayRecordDataSource([str(folder / "images.array_record")]),
        shuffle=True,
        seed=3,
        num_epochs=1,
        transformations=[
            Decode(str(folder / fault)),
            gm.RecordSeed(),
            grain.transforms.Batch(BATCH_SIZE),
        ],
        worker_count=worker_count,
        read_options=grain.ReadOptions(num_threads=1, prefetch_buffer_size=2),
    )
    dataset = loader_module.LoaderDataset(loader).map(gm.MixBatch(num_classes=RECORDS))
    return iter(grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=2))


def read(iterator: grain.DatasetIterator, seen: list[int]) -> dict[str, Any]:
    """Reads to the end or to an error; appends what it saw and returns the last state."""
    state: dict[str, Any] = iterator.get_state()
    try:
        for batch in iterator:
            seen.extend(batch["id"].tolist())
            state = iterator.get_state()
    except Exception as error:
        error.state = state  # type: ignore[attr-defined]
        raise
    return state


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    write_records(tmp_path / "images.array_record")
    return tmp_path


def assert_the_rest_comes(
    folder: pathlib.Path, fault: str, worker_count: int, state: Any, seen: list[int]
) -> None:
    """After the repair, each record has come exactly once."""
    again = start(folder, fault, worker_count)
    again.set_state(json.loads(json.dumps(state)))
    read(again, seen)
    again.close()
    assert sorted(seen) == list(range(RECORDS))
    assert not multiprocessing.active_children()


FAULTS = {
    "error": (OSError, f"cannot decode {FAULTY}"),
    "shape": (ValueError, "same structure|shape"),
    "corrupt": (Exception, "[Cc]orrupt|[Dd]ecod|hash|[Ii]nvalid"),
    # As the kernel kills a worker when memory runs out.
    "kill": (RuntimeError, "terminated unexpectedly with exit code -9"),
}


@pytest.mark.parametrize(
    ("fault", "worker_count"),
    [
        ("error", 0),
        ("shape", 0),
        ("corrupt", 0),
        ("kill", 2),
        *(
            pytest.param(fault, 2, marks=pytest.mark.slow)
            for fault in ("error", "shape", "corrupt")
        ),
    ],
)
def test_a_record_that_cannot_be_read(fault: str, worker_count: int, folder: pathlib.Path) -> None:
    records = folder / "images.array_record"
    good = records.read_bytes()
    (folder / fault).touch()
    if fault == "corrupt":
        # A record's own bytes, which a flipped bit in storage changes; the index stays whole.
        image = np.random.default_rng(0).integers(256, size=(RECORDS, *SHAPE), dtype=np.uint8)
        place = good.index(image[FAULTY].tobytes()[100:200])
        records.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    seen: list[int] = []
    error, message = FAULTS[fault]
    iterator = start(folder, fault, worker_count)
    with pytest.raises(error, match=message) as caught:
        read(iterator, seen)
    assert FAULTY not in seen
    iterator.close()
    del iterator
    gc.collect()
    assert not multiprocessing.active_children()

    (folder / fault).unlink()
    records.write_bytes(good)
    assert_the_rest_comes(folder, fault, worker_count, caught.value.state, seen)  # type: ignore


SCRIPT = """
import json, pathlib, sys, time
from absl import app
sys.path[:0] = {path!r}
import test_faults

def main(_):
    iterator = test_faults.start(pathlib.Path({folder!r}), {fault!r}, {worker_count})
    print(json.dumps([[], iterator.get_state()]), flush=True)
    for batch in iterator:
        # The lines are the train step's own record of what it has seen, and its checkpoint.
        print(json.dumps([batch["id"].tolist(), iterator.get_state()]), flush=True)
        time.sleep({pause})
    print("end", flush=True)

if __name__ == "__main__":
    app.run(main)
"""


def run_script(
    folder: pathlib.Path, worker_count: int, pause: float, *prefix: str, fault: str = "none"
) -> subprocess.Popen[str]:
    script = SCRIPT.format(
        folder=str(folder), fault=fault, worker_count=worker_count, pause=pause, path=sys.path
    )
    (folder / "main.py").write_text(script)
    return subprocess.Popen(
        [*prefix, sys.executable, str(folder / "main.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as a shell gives it
    )


def group_is_gone(group: int, seconds: float = 30) -> bool:
    for _ in range(int(20 * seconds)):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("worker_count", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_control_c(worker_count: int, folder: pathlib.Path) -> None:
    """The terminal sends SIGINT to the whole group: the process and its workers."""
    process = run_script(folder, worker_count, pause=0.2)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode not in (0, None), err
    assert "KeyboardInterrupt" in err
    assert "end" not in out
    assert group_is_gone(process.pid), "processes stay behind"
    steps = [json.loads(line) for line in [*lines, *out.splitlines()]]
    seen = [i for ids, _ in steps for i in ids]
    assert_the_rest_comes(folder, "none", worker_count, steps[-1][1], seen)


@pytest.mark.slow
def test_control_c_while_a_worker_is_stuck(folder: pathlib.Path) -> None:
    """As it can be in a file system that does not answer; only the main process is told to stop."""
    (folder / "stuck").touch()
    process = run_script(folder, worker_count=2, pause=0, fault="stuck")
    while process.poll() is None and not (folder / "stuck now").exists():
        time.sleep(0.1)
    time.sleep(2)  # until the prefetch thread waits for this worker, and the main thread for that
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=120)
        assert process.returncode not in (0, None), err
        assert "KeyboardInterrupt" in err
        assert "end" not in out
        assert group_is_gone(process.pid), "processes stay behind"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.xfail(
    strict=True,
    raises=subprocess.TimeoutExpired,
    reason="Grain 0.2.18 waits for the lock, for ever",
)
def test_a_worker_is_killed_while_it_asks_whether_to_stop(folder: pathlib.Path) -> None:
    """Some microseconds, a few times a second, it holds a lock that the main process needs."""
    (folder / "lock").touch()
    process = run_script(folder, worker_count=2, pause=0, fault="lock")
    try:
        _, err = process.communicate(timeout=20)
        assert "terminated unexpectedly with exit code -9" in err
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate()


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="Grain 0.2.18's workers outlive a main process killed alone")
def test_the_main_process_is_killed(folder: pathlib.Path) -> None:
    """As by `kill -9` or, without a handler, `kill`: nothing of it can end its workers then."""
    with run_script(folder, worker_count=2, pause=0.2) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        process.kill()
    try:
        assert group_is_gone(process.pid, seconds=5), "its workers wait for it, for ever"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)


@pytest.mark.slow
def test_the_process_group_is_terminated(folder: pathlib.Path) -> None:
    """What the README says to do instead; then Python itself clears shared memory up."""
    with run_script(folder, worker_count=2, pause=0.2) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGTERM)
    assert process.returncode == -signal.SIGTERM
    assert group_is_gone(process.pid)


@pytest.mark.slow
def test_no_room_for_shared_memory(folder: pathlib.Path) -> None:
    """Workers hand batches over through /dev/shm, which containers often keep small."""
    mount = "mount -t tmpfs -o size=16k tmpfs /dev/shm"
    unshare = ["unshare", "--mount", "sh", "-c"]
    try:
        subprocess.run([*unshare, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a /dev/shm of its own needs root and mount namespaces: {error}")
    process = run_script(folder, 2, 0, *unshare, f'{mount} && exec "$0" "$@"')
    out, err = process.communicate(timeout=300)
    assert process.returncode != 0, out
    assert "end" not in out
    assert "terminated unexpectedly with exit code -7" in err or "No space left" in err, err
    assert group_is_gone(process.pid), "processes stay behind"
