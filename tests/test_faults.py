"""A fault in a pipeline is an error that says so, and the last state resumes from there.

All of it is real: worker processes, files, signals. What Grain does about a fault is Grain's, as of
0.2.18; that the error comes through prefetch and mixing, that nothing stays behind, and that a
restart loses no record and repeats none, is ours.
"""

import gc
import json
import multiprocessing
import os
import re
import signal
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest
from array_record.python import array_record_module
from common import data_loader, slow, started

import grain_mix as gm

RECORDS, BATCH_SIZE = 96, 4
SHAPE = (32, 48, 3)
FAULTY = 71  # the record with a fault


IMAGES = np.random.default_rng(0).integers(256, size=(RECORDS, *SHAPE), dtype=np.uint8)


class Decode(grain.transforms.Map):
    """Fails at one record as long as a file of that name exists."""

    def __init__(self, fault: Path) -> None:
        self.fault = fault

    def map(self, element: bytes) -> dict[str, Any]:
        image = np.frombuffer(element, np.uint8, offset=1).reshape(SHAPE)
        if element[0] == FAULTY and self.fault.exists():
            match self.fault.name:
                case "shape":
                    image = image[:-1]
                case "kill":
                    time.sleep(0.5)  # until nothing else goes on in this worker
                    os.kill(os.getpid(), signal.SIGKILL)
                case "stuck":
                    self.fault.with_name("stuck now").touch()
                    time.sleep(10**6)
                case "lock":
                    for thing in gc.get_objects():
                        if isinstance(thing, multiprocessing.synchronize.Event):
                            thing._cond.acquire()
                    os.kill(os.getpid(), signal.SIGKILL)
                case _:
                    raise OSError(f"cannot decode {element[0]}")
        return {"image": image, "label": element[0], "id": element[0]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    writer = array_record_module.ArrayRecordWriter(str(tmp_path / "images"), "group_size:1")
    for i, image in enumerate(IMAGES):
        writer.write(bytes([i]) + image.tobytes())
    writer.close()
    return tmp_path


def start(folder: Path, fault: str, worker_count: int) -> grain.DatasetIterator:
    loader = data_loader(
        grain.sources.ArrayRecordDataSource([str(folder / "images")]),
        *(Decode(folder / fault), gm.RecordSeed(), grain.transforms.Batch(BATCH_SIZE)),
        worker_count=worker_count,
        shuffle=True,
        seed=3,
    )
    dataset = gm.LoaderDataset(loader).map(gm.MixBatch(num_classes=RECORDS))
    return iter(grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=2))


def read(iterator: grain.DatasetIterator, seen: list[int]) -> tuple[Any, Exception | None]:
    """Reads to the end or to an error; appends what it saw, and returns the last state."""
    state = iterator.get_state()
    try:
        for batch in iterator:
            seen.extend(batch["id"].tolist())
            state = iterator.get_state()
    except Exception as error:
        return state, error
    return state, None


def assert_the_rest_comes(
    folder: Path, fault: str, worker_count: int, state: Any, seen: list[int]
) -> None:
    """After the repair, each record has come exactly once."""
    again = start(folder, fault, worker_count)
    again.set_state(json.loads(json.dumps(state)))
    assert read(again, seen)[1] is None
    again.close()
    assert sorted(seen) == list(range(RECORDS))
    assert not multiprocessing.active_children()


FAULTS: dict[str, tuple[type[Exception], str]] = {
    "error": (OSError, f"cannot decode {FAULTY}"),
    "shape": (ValueError, "same structure|shape"),
    "corrupt": (Exception, "[Cc]orrupt|[Dd]ecod|hash|[Ii]nvalid"),
    # As the kernel kills a worker when memory runs out.
    "kill": (RuntimeError, "terminated unexpectedly with exit code -9"),
}
HERE, IN_WORKERS = [(fault, 0) for fault in FAULTS if fault != "kill"], [("kill", 2)]
IN_WORKERS += [slow(fault, 2) for fault, _ in HERE]


@pytest.mark.parametrize(("fault", "worker_count"), HERE + IN_WORKERS)
def test_a_record_that_cannot_be_read(fault: str, worker_count: int, folder: Path) -> None:
    records = folder / "images"
    good = records.read_bytes()
    (folder / fault).touch()
    if fault == "corrupt":
        # A record's own bytes, which a flipped bit in storage changes; the index stays whole.
        place = good.index(IMAGES[FAULTY].tobytes()[100:200])
        records.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    seen: list[int] = []
    iterator = start(folder, fault, worker_count)
    state, error = read(iterator, seen)
    expected, message = FAULTS[fault]
    assert isinstance(error, expected)
    assert re.search(message, str(error))
    assert FAULTY not in seen
    iterator.close()
    del iterator
    gc.collect()
    assert not multiprocessing.active_children()

    (folder / fault).unlink()
    records.write_bytes(good)
    assert_the_rest_comes(folder, fault, worker_count, state, seen)


SCRIPT = """
import json, sys, time
from absl import app
import test_faults

def main(argv):
    folder, fault, workers, pause = argv[1:]
    iterator = test_faults.start(test_faults.Path(folder), fault, int(workers))
    print(json.dumps([[], iterator.get_state()]), flush=True)
    for batch in iterator:
        # The lines are the train step's own record of what it has seen, and its checkpoint.
        print(json.dumps([batch["id"].tolist(), iterator.get_state()]), flush=True)
        time.sleep(float(pause))
    print("end", flush=True)

if __name__ == "__main__":
    app.run(main)
"""


def reading(
    folder: Path, worker_count: int, pause: float, fault: str = "none", **options: Any
) -> AbstractContextManager[subprocess.Popen[str]]:
    (folder / "main.py").write_text(SCRIPT)
    return started(folder / "main.py", folder, fault, worker_count, pause, **options)


def lines_of(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline() for _ in range(count)]


def group_is_gone(group: int, seconds: float = 60) -> bool:
    for _ in range(int(20 * seconds)):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def assert_interrupted(process: subprocess.Popen[str], out: str, err: str) -> None:
    assert process.returncode not in (0, None), err
    assert "KeyboardInterrupt" in err
    assert "end" not in out
    assert group_is_gone(process.pid), "processes stay behind"


@pytest.mark.parametrize("worker_count", [slow(0), 2])
def test_control_c(worker_count: int, folder: Path) -> None:
    """The terminal sends SIGINT to the whole group: the process and its workers."""
    for _ in range(5):
        with reading(folder, worker_count, pause=0.2) as process:
            lines = lines_of(process, 4)
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=120)
            # Python's own, from 3.12 on: its tracker of shared memory may be interrupted, and then
            # what clears memory up calls it within itself.
            if "ReentrantCallError" not in err:
                assert_interrupted(process, out, err)
                break
    else:
        pytest.fail(err)
    steps = [json.loads(line) for line in [*lines, *out.splitlines()]]
    seen = [i for ids, _ in steps for i in ids]
    assert_the_rest_comes(folder, "none", worker_count, steps[-1][1], seen)


@pytest.mark.slow
def test_control_c_while_a_worker_is_stuck(folder: Path) -> None:
    """As it can be in a file system that does not answer; only the main process is told to stop."""
    (folder / "stuck").touch()
    with reading(folder, worker_count=2, pause=0, fault="stuck") as process:
        while process.poll() is None and not (folder / "stuck now").exists():
            time.sleep(0.1)
        time.sleep(2)  # until the prefetch thread waits for this worker, and the main one for that
        process.send_signal(signal.SIGINT)
        assert_interrupted(process, *process.communicate(timeout=120))


@pytest.mark.slow
@pytest.mark.xfail(
    strict=True,
    raises=subprocess.TimeoutExpired,
    reason="Grain 0.2.18 waits for the lock, for ever",
)
def test_a_worker_is_killed_while_it_asks_whether_to_stop(folder: Path) -> None:
    """Some microseconds, a few times a second, it holds a lock that the main process needs."""
    (folder / "lock").touch()
    with reading(folder, worker_count=2, pause=0, fault="lock") as process:
        _, err = process.communicate(timeout=20)
        assert "terminated unexpectedly with exit code -9" in err


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="Grain 0.2.18's workers outlive a main process killed alone")
def test_the_main_process_is_killed(folder: Path) -> None:
    """As by `kill -9` or, without a handler, `kill`: nothing of it can end its workers then."""
    with reading(folder, worker_count=2, pause=0.2) as process:
        lines_of(process, 2)
        process.kill()
        process.wait()
        assert group_is_gone(process.pid, seconds=5), "its workers wait for it, for ever"


@pytest.mark.slow
def test_the_process_group_is_terminated(folder: Path) -> None:
    """What the README says to do instead; then Python itself clears shared memory up."""
    with reading(folder, worker_count=2, pause=0.2) as process:
        lines_of(process, 2)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
        assert group_is_gone(process.pid)


@pytest.mark.slow
def test_no_room_for_shared_memory(folder: Path) -> None:
    """Workers hand batches over through /dev/shm, which containers often keep small."""
    mount = "mount -t tmpfs -o size=16k tmpfs /dev/shm"
    unshare = ["unshare", "--mount", "sh", "-c"]
    try:
        subprocess.run([*unshare, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a /dev/shm of its own needs root and mount namespaces: {error}")
    prefix = (*unshare, f'{mount} && exec "$0" "$@"')
    with reading(folder, 2, 0, prefix=prefix) as process:
        out, err = process.communicate(timeout=300)
        assert process.returncode != 0, out
        assert group_is_gone(process.pid), "processes stay behind"
    assert "end" not in out
    assert "terminated unexpectedly with exit code -7" in err or "No space left" in err, err
