"""A `DataLoader` as a dataset: its batches, its state, its worker processes."""

import copy
import gc
import itertools
import json
import multiprocessing
import pathlib
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import grain
import grain.checkpoint
import numpy as np
import orbax.checkpoint as ocp
import pytest
from common import assert_same

import grain_mix as gm
from grain_mix._loader import LoaderDataset

BATCH_SIZE = 4
RECORDS = 26  # leaves an incomplete last batch
MIX = gm.MixBatch(mixup_alpha=1.0, num_classes=RECORDS)

Batch = dict[str, Any]


class FailAt(grain.transforms.Map):
    def __init__(self, label: int | None) -> None:
        self.label = label

    def map(self, element: Batch) -> Batch:
        if element["label"] == self.label:
            raise FileNotFoundError(f"no picture of {self.label}")
        return element


def data_loader(
    worker_count: int, num_epochs: int | None = 2, fail_at: int | None = None
) -> grain.DataLoader:
    images = np.random.default_rng(0).integers(256, size=(RECORDS, 4, 6, 1), dtype=np.uint8)
    return grain.load(
        [{"image": image, "label": i} for i, image in enumerate(images)],
        shuffle=True,
        seed=7,
        num_epochs=num_epochs,
        transformations=[FailAt(fail_at), gm.RecordSeed(), grain.transforms.Batch(BATCH_SIZE)],
        worker_count=worker_count,
    )


def prefetched(dataset: grain.IterDataset, size: int = 3) -> grain.IterDataset:
    return grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=size)


def pipeline(worker_count: int, **options: Any) -> grain.IterDataset:
    """What users are meant to write."""
    return prefetched(LoaderDataset(data_loader(worker_count, **options)).map(MIX))


def worker_processes() -> int:
    return len(multiprocessing.active_children())


@pytest.fixture(autouse=True)
def _collect_garbage() -> Iterator[None]:
    """Python 3.12 warns if one worker's semaphores go while another starts.

    https://github.com/python/cpython/issues/109629
    """
    yield
    gc.collect()


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker_count", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches(worker_count: int) -> None:
    loader = data_loader(worker_count)
    plain = [{key: np.array(value) for key, value in batch.items()} for batch in loader]
    assert len(plain) > 10
    if worker_count == 0:
        assert_same(LoaderDataset(loader), plain)
    assert_same(pipeline(worker_count), map(MIX.map, plain))


def test_iterators_are_independent() -> None:
    dataset = pipeline(worker_count=0)
    expected = list(dataset)
    one, other = iter(dataset), iter(dataset)
    assert_same([next(one), next(one)], expected[:2])
    assert_same(other, expected)
    assert_same(one, expected[2:])


def test_mixing_is_in_the_prefetch_thread() -> None:
    names = []

    def note(batch: Batch) -> Batch:
        names.append((multiprocessing.current_process().name, threading.current_thread().name))
        return batch

    list(prefetched(LoaderDataset(data_loader(worker_count=0)).map(note)))
    [(process, thread)] = set(names)
    assert process == "MainProcess"
    assert thread.startswith("grain-thread-prefetch")


# --- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker_count", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_state(worker_count: int, rng: np.random.Generator) -> None:
    iterator = iter(pipeline(worker_count, num_epochs=3))
    states, expected = [json.dumps(iterator.get_state())], []
    for batch in iterator:
        expected.append(batch)
        states.append(json.dumps(iterator.get_state()))

    # Forth and back in another one, two batches each time so that the way on is seen as well.
    # Prefetch must not get to the end, where workers stop: to start again takes them long.
    again = iter(pipeline(worker_count, num_epochs=3))
    for i in rng.permutation(len(expected) - 8):
        again.set_state(json.loads(states[i]))
        assert json.dumps(again.get_state()) == states[i]
        assert_same([next(again), next(again)], expected[i : i + 2])
    # To the end. Without workers in a fresh one for each state.
    for i in [3] if worker_count else range(len(states)):
        rest = again if worker_count else iter(pipeline(0, num_epochs=3))
        rest.set_state(json.loads(states[i]))
        assert_same(rest, expected[i:])
        assert next(rest, None) is None
    again.close()


def test_state_is_the_loaders() -> None:
    loader = data_loader(worker_count=0)
    plain, iterator = iter(loader), iter(LoaderDataset(loader))
    for _ in range(3):
        assert iterator.get_state() == json.loads(plain.get_state())
        next(plain)
        next(iterator)
    assert iterator.get_state() == json.loads(plain.get_state())
    other = iter(LoaderDataset(data_loader(worker_count=0, num_epochs=3)))
    with pytest.raises(ValueError, match="Sampler in checkpoint does not match"):
        other.set_state(iterator.get_state())


def test_grains_own_check_of_state() -> None:
    check = grain.experimental.assert_equal_output_after_checkpoint
    dataset = LoaderDataset(data_loader(worker_count=0))
    check(dataset)
    check(prefetched(dataset.map(MIX)))


@pytest.mark.parametrize("worker_count", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_orbax(worker_count: int, tmp_path: pathlib.Path) -> None:
    """As a train loop saves: after some steps, while the iterator goes on."""
    iterator = iter(pipeline(worker_count))
    expected = []
    with ocp.CheckpointManager(tmp_path) as manager:
        for step in range(6):
            data = grain.checkpoint.CheckpointSave(iterator)
            manager.save(step, args=ocp.args.Composite(data=data))
            expected.append(next(iterator))
        fresh = iter(pipeline(worker_count))
        for step in (4, 0, 2):
            data = grain.checkpoint.CheckpointRestore(fresh)
            manager.restore(step, args=ocp.args.Composite(data=data))
            assert_same(itertools.islice(fresh, 6 - step), expected[step:])
        fresh.close()


# --- worker processes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        "closed",
        *(
            pytest.param(how, marks=pytest.mark.slow)
            for how in ("forgotten", "alone, closed", "alone, forgotten")
        ),
    ],
)
def test_abandoned_iterators_leave_no_process(how: str) -> None:
    assert not worker_processes()
    alone = "alone" in how  # without map and prefetch
    loader = data_loader(worker_count=1 if alone else 2, num_epochs=None)
    iterator = iter(LoaderDataset(loader) if alone else prefetched(LoaderDataset(loader).map(MIX)))
    next(iterator)
    assert worker_processes() == loader.multiprocessing_options.num_workers
    if "closed" in how:
        iterator.close()
        assert not worker_processes()
        iterator.close()
        with pytest.raises(ValueError, match="closed"):
            next(iterator)
    del iterator
    gc.collect()
    assert not worker_processes()


@pytest.mark.parametrize("worker_count", [0, 1])
def test_closed_before_it_started(worker_count: int) -> None:
    iterator = iter(LoaderDataset(data_loader(worker_count)))
    iterator.get_state()
    iterator.close()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)
    assert not worker_processes()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["next", "start_prefetch", "next, after the end"])
def test_workers_start_together(how: str) -> None:
    iterator = iter(LoaderDataset(data_loader(worker_count=2)))
    state = iterator.get_state()
    if "end" in how:
        list(iterator)
    iterator.set_state(state)
    assert not worker_processes()
    if how == "start_prefetch":
        iterator.start_prefetch()
    next(iterator)  # takes the first worker seconds
    assert worker_processes() == 2
    iterator.close()


@pytest.mark.parametrize(
    ("worker_count", "prefetch"), [(0, True), pytest.param(2, True, marks=pytest.mark.slow)]
)
def test_errors_reach_the_consumer(worker_count: int, prefetch: bool) -> None:
    dataset = LoaderDataset(data_loader(worker_count, num_epochs=1, fail_at=3)).map(MIX)
    iterator = iter(prefetched(dataset) if prefetch else dataset)
    with pytest.raises(FileNotFoundError, match="no picture of 3"):
        list(iterator)
    iterator.close()
    assert not worker_processes()


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loader", [[1, 2], grain.MapDataset.range(3), grain.DataLoader, None])
def test_not_a_loader(loader: Any) -> None:
    with pytest.raises(TypeError, match=r"^LoaderDataset: loader is a .*; expected a grain.DataL"):
        LoaderDataset(loader)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_not_inside_mp_prefetch(num_workers: int) -> None:
    dataset = LoaderDataset(data_loader(worker_count=0)).map(MIX)
    dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    with pytest.raises(TypeError, match=r"^LoaderDataset: .* as mp_prefetch does; .*worker_count"):
        next(iter(dataset))
    gc.collect()
    assert not worker_processes()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_stays_in_its_process(duplicate: Any) -> None:
    with pytest.raises(TypeError, match=r"^LoaderDataset: pickled, or copied"):
        duplicate(LoaderDataset(data_loader(worker_count=0)))
