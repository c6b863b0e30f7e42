"""The end of Python, and Grain's worker processes: what the package does there, and what not."""

import multiprocessing
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from common import run_python, slow, started

import grain_mix as gm

PROGRAM = """
import atexit, gc, threading, time, traceback
import grain, jax, numpy as np
{before}
import grain_mix as gm
{after}
records = [{{"image": np.zeros((256, 256, 3), np.uint8), "label": i}} for i in range(8)]
options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
prefetched = grain.experimental.ThreadPrefetchIterDataset
iterators = []
for sharding in (None, jax.sharding.SingleDeviceSharding(jax.devices()[0])):
    dataset = grain.MapDataset.source(records).seed(0).repeat().random_map(gm.RecordSeed()).batch(8)
    dataset = dataset.map(gm.MixBatch(num_classes=8, sharding=sharding)).to_iter_dataset(options)
    # Room for so much that its thread is still mixing when Python ends.
    for size in {rooms}:
        dataset = prefetched(dataset, prefetch_buffer_size=size)
    iterators.append(iter(dataset))
    next(iterators[-1])
{end}
"""
ONE, NESTED = (10**6,), (10**6, 2, 10**6)


def program(folder: Path, rooms: Any = ONE, **parts: str) -> Path:
    parts = dict.fromkeys(("end", "before", "after"), "") | parts
    (folder / "main.py").write_text(PROGRAM.format(rooms=rooms, **parts))
    return folder / "main.py"


@pytest.mark.parametrize(
    ("end", "status", "rooms"),
    [("", 0, ONE), slow("raise OSError('mine')", 1, NESTED), slow("gc.freeze()", 0, NESTED)],
    ids=["end", "error", "freeze"],
)
def test_python_ends_while_threads_mix(end: str, status: int, rooms: Any, tmp_path: Path) -> None:
    """Grain's prefetch threads run until Python ends, unless their iterators are closed."""
    done = run_python(program(tmp_path, rooms, end=end), status=status)
    assert ("OSError: mine" in done.stderr) == bool(status)


STRANGERS = """
class Strange(grain.DatasetIterator):
    def __next__(self): return 1
    def get_state(self): return {}
    def set_state(self, state): pass
    def close(self):
        if traceback and any("grain_mix" in frame.filename for frame in traceback.extract_stack()):
            print("closed by another")
            raise OSError("a stranger's close")
class Odd(type):
    @property
    def __class__(cls): raise OSError("an odd metaclass")
class Thing(metaclass=Odd): pass
strange, thing, half_built = Strange(), Thing(), Strange.__new__(Strange)
print({thread.join.__qualname__ for thread in threading.enumerate()})
"""


@pytest.mark.slow
def test_strangers_are_left_alone(tmp_path: Path) -> None:
    done = run_python(program(tmp_path, end=STRANGERS))
    assert done.stdout.splitlines() == ["{'Thread.join'}"]
    assert "a stranger's close" not in done.stderr
    assert "an odd metaclass" not in done.stderr


@pytest.mark.slow
def test_others_still_read_when_python_ends(tmp_path: Path) -> None:
    """Handlers registered later run earlier, and the main thread mixes to the end."""
    before = """
def mix():
    batch = {"image": np.zeros((2, 4), np.float32), "mix_seed": np.arange(2, dtype=np.uint32)}
    print(sorted(gm.MixUpBatch(label_key=None).map(batch)))
atexit.register(mix)
"""
    end = 'atexit.register(lambda: print([len(next(each)["image"]) for each in iterators]))'
    done = run_python(program(tmp_path, end=end, before=before))
    assert done.stdout.splitlines() == ["[8, 8]", "['image']"]


def test_new_guards_are_refused_in_threads() -> None:
    code = """
import threading, numpy as np, grain_mix as gm
from grain_mix import _guards
batch = {"image": np.zeros((2, 4), np.float32), "mix_seed": np.arange(2, dtype=np.uint32)}
transform = gm.MixUpBatch(label_key=None)
transform.map(batch)
_guards._end()
def refused(function, *args):
    try:
        function(*args)
    except RuntimeError as error:
        print(error)
for call in [
    (transform.map, batch),
    (transform.mix, batch),
    (transform.draw, batch["mix_seed"], (2, 4)),
    (gm.mixup, batch["image"], [0.5, 0.5], np.array([1, 0])),
    (gm.cutmix, batch["image"], np.zeros((2, 1, 2), int), np.array([1, 0])),
]:
    thread = threading.Thread(target=refused, args=call)
    thread.start()
    thread.join()
assert not _guards._in_progress
"""
    refused = "Python is ending, so this thread cannot mix more"
    assert run_python("-c", code).stdout.count(refused) == 5


SLEEPS = "print('ready', flush=True)\nwhile True: time.sleep(1)"
READS = "print('ready', flush=True)\nwhile True: next(iterators[0])"


@contextmanager
def interrupted_twice(path: Path, pause: float, wait: float = 0) -> Iterator[subprocess.Popen[str]]:
    """A program shortly after the second of two Ctrl-C."""
    with started(path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        yield process


@pytest.mark.parametrize("pause", [0.01, *(slow(x) for x in (0, 0.001, 0.05, 0.3))])
def test_two_control_c(pause: float, tmp_path: Path) -> None:
    """Wherever the second one comes. For what is special where the main thread reads, see below."""
    with interrupted_twice(program(tmp_path, end=SLEEPS), pause) as process:
        _, err = process.communicate(timeout=120)
    # Python's own status: an abort would be -6 and a segfault -11.
    assert process.returncode in (-signal.SIGINT, 1), err
    assert "KeyboardInterrupt" in err


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("rooms", [ONE, NESTED], ids=["one", "nested"])
@pytest.mark.parametrize("end", [SLEEPS, READS], ids=["sleeps", "reads"])
def test_two_control_c_often(end: str, rooms: Any, tmp_path: Path) -> None:
    """A third one may be needed where the main thread reads, as it may be without this package.

    Python may raise KeyboardInterrupt as `threading.Condition.__exit__` begins, so that `next`
    leaves the lock of Grain's queue taken. Grain 0.2.18 waits for it when the iterator is deleted.
    """
    path = program(tmp_path, rooms, end=end)
    for pause in (0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3):
        for wait in (0, 0.05, 0.2):
            with interrupted_twice(path, pause, wait) as process:
                try:
                    _, err = process.communicate(timeout=60)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGINT if end == READS else signal.SIGKILL)
                    _, err = process.communicate(timeout=60)
            assert process.returncode in (-signal.SIGINT, 1), err


def test_control_c_as_the_end_begins(tmp_path: Path) -> None:
    """Python raises it where its next function begins, which is ours, before its first line."""
    after = """
import ctypes, signal
# Runs right before ours. As signal.raise_signal, but Python sees the signal later.
atexit.register(getattr(ctypes.CDLL(None), "raise"), signal.SIGINT)
"""
    assert "in _end\n" in run_python(program(tmp_path, after=after)).stderr


HANDLERS = """
import atexit, os, signal, sys, threading, time
came = []
def mine(*_):
    came.append(1)
    raise OSError("mine")
handler = mine if sys.argv[1] == "mine" else signal.default_int_handler
signal.signal(signal.SIGINT, handler)
@atexit.register
def after_ours():
    same = signal.getsignal(signal.SIGINT) is handler
    print("cut short" if _guards._in_progress else "to the end", bool(came), same)
from grain_mix import _guards
_guards._in_progress.add((os.getpid(), None))
def interrupt():
    while not _guards._ending: time.sleep(0.001)
    for _ in range(20):
        time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)
    _guards._in_progress.clear()
threading.Thread(target=interrupt, daemon=True).start()
"""


@pytest.mark.parametrize("handler", ["python's", "mine"])
def test_handlers_of_signals(handler: str) -> None:
    """None cuts the end short; others' are called, and all are as before afterwards."""
    done = run_python("-c", HANDLERS, handler)
    assert done.stdout == f"to the end {handler == 'mine'} True\n", done.stderr


def put_platforms(queue: Any) -> None:
    batch = {"image": np.zeros((2, 4), np.float32), "mix_seed": np.arange(2, dtype=np.uint32)}
    gm.MixUpBatch(label_key=None).mix(batch)
    queue.put(jax.config.values["jax_platforms"])


@pytest.mark.slow
def test_a_process_with_such_a_name_keeps_its_platforms() -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=put_platforms, args=(queue,), name="grain-mine", daemon=True)
    process.start()
    assert queue.get(timeout=120) == jax.config.values["jax_platforms"]
    process.join()
