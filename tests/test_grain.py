"""Inside Grain: its loaders, datasets, worker processes and checkpoints, all of them real."""

import concurrent.futures
import copy
import dataclasses
import functools
import gc
import itertools
import json
import multiprocessing
import pickle
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import common
import grain
import jax
import numpy as np
import pytest
from common import Rng, assert_same, make_batch, nightly, run_python, slow

import grain_mix as gm

SIZE, BATCH_SIZE = 25, 4  # the last batch is one record
SHAPE = (6, 10, 3)
TRANSFORMS = [
    gm.MixUpBatch(alpha=1.0, num_classes=SIZE),
    gm.CutMixBatch(num_classes=SIZE),
    gm.MixBatch(mixup_alpha=1.0, num_classes=SIZE),
    gm.WeightMapMixBatch(gm.maps.Patches(3), num_classes=SIZE),
]
MIX = TRANSFORMS[2]
SEED, BATCH = gm.RecordSeed(), grain.transforms.Batch(BATCH_SIZE)
ALIGNED = grain.transforms.Batch(BATCH_SIZE, batch_fn=gm.aligned_stack)
each_transform = pytest.mark.parametrize(
    "transform", [MIX, *map(nightly, TRANSFORMS[:2])], ids=lambda t: type(t).__name__
)

Batch = dict[str, Any]


@pytest.fixture(autouse=True)
def _collect_garbage() -> Iterator[None]:
    """Python 3.12 warns if one worker's semaphores go while another starts.

    https://github.com/python/cpython/issues/109629
    """
    yield
    gc.collect()


# --- loaders and datasets -------------------------------------------------------------------------


@functools.cache
def records() -> list[Batch]:
    """The last two fields are beyond what JAX holds, so they must not pass through it."""
    images = np.random.default_rng(0).integers(256, size=(SIZE, *SHAPE), dtype=np.uint8)
    return [
        {"image": image, "label": i, "id": i, "more": {"third": i / 3, "name": f"record {10**i}"}}
        for i, image in enumerate(images)
    ]


class Noise(grain.transforms.RandomMap):
    """Another random operation, which shares the record's generator."""

    def random_map(self, element: Batch, rng: np.random.Generator) -> Batch:
        return element | {"image": rng.integers(256, size=SHAPE, dtype=np.uint8)}


class Remember(grain.transforms.Map):
    """Keeps copies of the fields that mixing changes."""

    def map(self, element: Batch) -> Batch:
        return element | {"seed": element["mix_seed"], "own_image": element["image"]}


class All(grain.transforms.Map):
    """All transforms at once, since worker processes take seconds to start."""

    def map(self, element: Batch) -> Batch:
        return {type(t).__name__: t.map(element) for t in TRANSFORMS}


def loader(*operations: Any, workers: int = 0, num_epochs: int | None = 2) -> grain.DataLoader:
    options = {"worker_count": workers, "num_epochs": num_epochs, "seed": 7, "shuffle": True}
    return common.data_loader(records(), *operations, **options)


def dataset() -> grain.MapDataset:
    return grain.MapDataset.source(records()).seed(7).shuffle().repeat(2).random_map(SEED)


def prefetched(dataset: grain.IterDataset) -> grain.IterDataset:
    return grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=3)


def after_loader(mix: Any, workers: int = 0, **options: Any) -> grain.IterDataset:
    """What users are meant to write."""
    return prefetched(gm.LoaderDataset(loader(SEED, BATCH, workers=workers, **options)).map(mix))


def in_dataset(mix: Any, workers: int) -> grain.IterDataset:
    mixed = dataset().batch(BATCH_SIZE).map(mix).to_iter_dataset()
    return mixed.mp_prefetch(grain.MultiprocessingOptions(workers)) if workers else mixed


# Each with a transform and a number of workers.
PIPELINES: dict[str, Callable[[Any, int], Any]] = {
    "in a loader": lambda mix, workers: loader(SEED, ALIGNED, mix, workers=workers),
    "after a loader": after_loader,
    "in a dataset": in_dataset,
}
MORE: dict[str, Callable[[Any, int], Any]] = {
    "load": lambda mix, _: grain.load(
        records(), shuffle=True, seed=7, num_epochs=2, transformations=[SEED, BATCH, mix]
    ),
    "after a dataset": lambda mix, _: dataset().batch(BATCH_SIZE).to_iter_dataset().map(mix),
    "after a stream": lambda mix, _: dataset().to_iter_dataset().batch(BATCH_SIZE).map(mix),
}


def batch_by_hand(elements: list[Batch], workers: int = 0) -> list[Batch]:
    """As Grain does: worker w takes elements w, w + W, ..., and their batches alternate."""
    shares = [elements[w :: max(workers, 1)] for w in range(max(workers, 1))]
    chunks = [[s[i : i + BATCH_SIZE] for i in range(0, len(s), BATCH_SIZE)] for s in shares]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*chunks))
    return [jax.tree.map(lambda *x: np.stack(x), *turn) for turn in turns if turn]


def copied(batch: Batch) -> Batch:
    """The batch without the memory that it shares with a worker."""
    return jax.tree.map(np.array, batch)


@pytest.mark.parametrize(
    ("how", "workers"),
    [
        *((how, 0) for how in (PIPELINES | MORE)),
        ("in a loader", 2),
        *(slow(how, 2) for how in list(PIPELINES)[1:]),
    ],
)
def test_batches(how: str, workers: int) -> None:
    of_dataset = "dataset" in how or "stream" in how
    elements = list(dataset() if of_dataset else loader(SEED))
    originals = batch_by_hand(elements, 0 if of_dataset else workers)
    mixed = map(copied, (PIPELINES | MORE)[how](All(), workers))
    assert_same(mixed, map(All().map, originals))


NOISE = (Noise(), SEED, Noise(), Remember())


def drawn(transform: Any, batch_size: int, workers: int = 0) -> list[tuple[int, int, float, bytes]]:
    """Two epochs as (id, seed, λ, pixels before mixing), by id and seed."""
    batches = loader(*NOISE, grain.transforms.Batch(batch_size), transform, workers=workers)
    return sorted(
        (int(i), int(seed), float(weight[0]), image.tobytes())
        for batch in batches
        for i, seed, weight, image in zip(
            *(batch[key] for key in ("id", "seed", "label_weight", "own_image")), strict=True
        )
    )


@each_transform
def test_draws_belong_to_records(transform: Any) -> None:
    transform = dataclasses.replace(transform, num_classes=None, targets={"label": gm.Sparse()})
    expected = drawn(transform, batch_size=SIZE)
    ids, seeds, lams, _ = zip(*expected, strict=True)
    assert list(ids) == [i // 2 for i in range(2 * SIZE)]
    assert len(set(seeds)) == 2 * SIZE  # so the second epoch has others
    assert len(set(lams)) > 5
    others = [(3, 0), (2, 0), (SIZE, 2)] if isinstance(transform, gm.MixBatch) else [(3, 0), (2, 0)]
    for size, workers in others:
        assert drawn(transform, size, workers) == expected


# --- state ----------------------------------------------------------------------------------------


def save(iterator: Any) -> str:
    """Bytes from a DataLoader's iterator; a dataset's is what JSON can hold."""
    state = iterator.get_state()
    return state.decode() if isinstance(state, bytes) else json.dumps(state)


def restore(iterator: Any, how: str, state: str) -> None:
    iterator.set_state(state.encode() if how == "in a loader" else json.loads(state))
    assert save(iterator) == state


@pytest.mark.parametrize("workers", [0, slow(2)])
@pytest.mark.parametrize("how", PIPELINES)
def test_state(how: str, workers: int, rng: Rng) -> None:
    iterator = iter(PIPELINES[how](MIX, workers))
    states, expected = [save(iterator)], []
    for batch in iterator:
        expected.append(copied(batch))
        states.append(save(iterator))
    # Forth and back in another one, two batches each time so that the way on is seen as well.
    # Not to the end, where workers stop: to start again takes them long.
    again = iter(PIPELINES[how](MIX, workers))
    for i in rng.permutation(len(expected) - 8):
        restore(again, how, states[i])
        assert_same([copied(next(again)), copied(next(again))], expected[i : i + 2])
    # To the end. Without workers in a fresh one for each state.
    for i in [3] if workers else range(len(states)):
        rest = again if workers else iter(PIPELINES[how](MIX, workers))
        restore(rest, how, states[i])
        assert_same(map(copied, rest), expected[i:])
        assert next(rest, None) is None


def test_state_of_a_loader_is_its_own() -> None:
    plain, iterator = iter(loader(SEED, BATCH)), iter(gm.LoaderDataset(loader(SEED, BATCH)))
    for _ in range(3):
        assert iterator.get_state() == json.loads(plain.get_state())
        next(plain)
        next(iterator)
    assert iterator.get_state() == json.loads(plain.get_state())
    other = iter(gm.LoaderDataset(loader(SEED, BATCH, num_epochs=3)))
    with pytest.raises(ValueError, match="Sampler in checkpoint does not match"):
        other.set_state(iterator.get_state())


@pytest.mark.parametrize("how", [*PIPELINES, "after a dataset"])
def test_grains_own_check_of_state(how: str) -> None:
    grain.experimental.assert_equal_output_after_checkpoint((PIPELINES | MORE)[how](MIX, 0))


# --- a loader as a dataset ------------------------------------------------------------------------


def worker_processes() -> int:
    return len(multiprocessing.active_children())


def test_iterators_are_independent() -> None:
    loaded = after_loader(MIX)
    expected, one, other = list(loaded), iter(loaded), iter(loaded)
    assert_same([next(one), next(one)], expected[:2])
    assert_same(other, expected)
    assert_same(one, expected[2:])


@pytest.mark.parametrize("alone", [False, slow(True)])
@pytest.mark.parametrize("how", ["closed", slow("forgotten")])
def test_abandoned_iterators_leave_no_process(how: str, alone: bool) -> None:
    assert not worker_processes()
    if alone:  # without map and prefetch
        loaded = gm.LoaderDataset(loader(SEED, BATCH, workers=1, num_epochs=None))
    else:
        loaded = after_loader(MIX, workers=2, num_epochs=None)
    iterator = iter(loaded)
    next(iterator)
    assert worker_processes() == (1 if alone else 2)
    if how == "closed":
        iterator.close()
        assert not worker_processes()
        iterator.close()
        with pytest.raises(ValueError, match="closed"):
            next(iterator)
    del iterator
    gc.collect()
    assert not worker_processes()


@pytest.mark.parametrize("workers", [0, 1])
def test_closed_before_it_started(workers: int) -> None:
    iterator = iter(gm.LoaderDataset(loader(SEED, BATCH, workers=workers)))
    iterator.get_state()
    iterator.close()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)
    assert not worker_processes()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["next", "start_prefetch", "next, after the end"])
def test_workers_start_together(how: str) -> None:
    iterator = iter(gm.LoaderDataset(loader(SEED, BATCH, workers=2)))
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


@pytest.mark.parametrize("wrong", [[1, 2], grain.MapDataset.range(3), grain.DataLoader, None])
def test_not_a_loader(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^LoaderDataset: loader is a .*; expected a grain.DataL"):
        gm.LoaderDataset(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_not_inside_mp_prefetch(workers: int) -> None:
    loaded = gm.LoaderDataset(loader(SEED, BATCH)).map(MIX)
    loaded = loaded.mp_prefetch(grain.MultiprocessingOptions(workers))
    with pytest.raises(TypeError, match=r"^LoaderDataset: .* as mp_prefetch does; .*worker_count"):
        next(iter(loaded))
    gc.collect()
    assert not worker_processes()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps, cloudpickle.dumps])
def test_stays_in_its_process(duplicate: Any) -> None:
    with pytest.raises(TypeError, match=r"^LoaderDataset: pickled, or copied"):
        duplicate(gm.LoaderDataset(loader(SEED, BATCH)))


# --- workers --------------------------------------------------------------------------------------

PLATFORM_SCRIPT = """
import json, multiprocessing, sys
import grain, jax, numpy as np
from absl import flags
from jax._src import xla_bridge
import grain_mix as gm

class Careless(grain.transforms.Map):
    def map(self, element):
        return element | {"image": jax.numpy.sqrt(element["image"])}

class Each(grain.transforms.Map):  # in each worker another function is the first to need JAX
    def map(self, element):
        image, seeds = element["image"], element["mix_seed"]
        transform = gm.MixBatch(num_classes=10)
        partner, lam, box = np.array([1, 0]), np.full(2, 0.5), np.ones((2, 2, 2), int)
        functions = [
            lambda: transform.map(element),
            lambda: transform.mix(element),
            lambda: transform.draw(seeds, image.shape),
            lambda: gm.mixup(image, lam, partner),
            lambda: gm.cutmix(image, box, partner),
        ]
        functions[element["label"][0] % 5]()
        return element

class Report(grain.transforms.Map):
    def map(self, element):
        process = multiprocessing.current_process()
        return sorted(xla_bridge._backends), process.daemon, process.name.split("-")[0]

if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    transform, worker_count = sys.argv[1:]
    loader = grain.load(
        [{"image": np.full((6, 10, 3), i, np.uint8), "label": i} for i in range(10)],
        num_epochs=1,
        seed=0,
        transformations=[gm.RecordSeed(), grain.transforms.Batch(2), eval(transform), Report()],
        worker_count=int(worker_count),
    )
    print(json.dumps([*loader, sorted(xla_bridge._backends)]))
"""


def platforms(folder: Path, *arguments: str, **options: Any) -> Any:
    """Without a GPU and with JAX_PLATFORMS=cuda, starting anything but the CPU platform fails."""
    (folder / "main.py").write_text(PLATFORM_SCRIPT)
    options = {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": ""} | options
    return run_python(folder / "main.py", *arguments, **options)


@pytest.mark.parametrize(
    ("transform", "workers"), [("gm.MixBatch(num_classes=10)", "1"), slow("Each()", "5")]
)
def test_workers_start_no_accelerator(transform: str, workers: str, tmp_path: Path) -> None:
    *batches, main = json.loads(platforms(tmp_path, transform, workers).stdout)
    assert batches == [[["cpu"], True, "grain"]] * 5
    assert main == []


@pytest.mark.slow
def test_workers_could_start_one(tmp_path: Path) -> None:
    """Shows that the test before this one can fail."""
    done = platforms(tmp_path, "Careless()", "1", status=None, JAX_TRACEBACK_FILTERING="off")
    assert re.search("in map\n.*xla_bridge.py", done.stderr, re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_no_cpu_platform_in_the_main_process(platform: str, tmp_path: Path) -> None:
    transform = "gm.MixUpBatch(num_classes=10)"
    err = platforms(tmp_path, transform, "0", status=None, JAX_PLATFORMS=platform).stderr
    assert "RuntimeError: mixing on the host needs JAX's CPU platform" in err
    assert f"add cpu to it (JAX_PLATFORMS={platform},cpu)" in err


# --- compilation, import, equality ----------------------------------------------------------------


@pytest.fixture
def compilations() -> list[str]:
    """The list grows by one entry with each program that is compiled."""
    events: list[str] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return events  # the listener stays, since JAX 0.7 cannot take it back


def new(transform: Any) -> Any:
    """Neither this process nor the cache of programs has seen it, whatever the seed of the test."""
    smoothing = np.random.default_rng().uniform(0.1, 0.9)
    return dataclasses.replace(transform, label_smoothing=smoothing)


@each_transform
def test_one_compilation(transform: Any, compilations: list[str], rng: Rng) -> None:
    transform = new(transform)
    for _ in range(100):
        transform.map(make_batch(rng, BATCH_SIZE, SHAPE))
    assert len(compilations) == 1
    same = (
        dataclasses.replace(transform),
        *(module.loads(module.dumps(transform)) for module in (pickle, cloudpickle)),
    )
    for other in same:
        other.map(make_batch(rng, BATCH_SIZE, SHAPE))
    assert len(compilations) == 1
    transform.map(make_batch(rng, BATCH_SIZE + 2, SHAPE))
    assert len(compilations) == 2


def test_threads_share_a_transform(compilations: list[str], rng: Rng) -> None:
    transform = new(MIX)
    batches = [make_batch(rng, BATCH_SIZE, SHAPE) for _ in range(16)]
    together = threading.Barrier(len(batches))

    def first(batch: Batch) -> Batch:
        together.wait(timeout=60)
        return transform.map(batch)

    with concurrent.futures.ThreadPoolExecutor(len(batches)) as pool:
        mixed = list(pool.map(first, batches))
    assert len(compilations) == 1
    assert_same(mixed, map(transform.map, batches))


def test_import_starts_nothing() -> None:
    script = """
import sys
import grain_mix
from jax._src import xla_bridge
print(sorted(xla_bridge._backends), "scipy" in sys.modules)
"""
    assert run_python("-c", script).stdout == "[] False\n"


@pytest.mark.parametrize("transform", TRANSFORMS[:3], ids=lambda t: type(t).__name__)
def test_transforms_differ_in_any_field(transform: Any) -> None:
    """Equal transforms share a compiled program, so equality must cover all fields."""
    others = {
        "num_classes": 99,
        "label_smoothing": 0.125,
        "mode": "batch",
        "sources": 3,
        "spatial_axes": (2, 1),
        "sharding": jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0]),
    }
    said = dataclasses.replace(transform, num_classes=None, targets={"label": gm.OneHot(3)})
    assert said != dataclasses.replace(said, targets={"label": gm.OneHot(4)})
    for field in {each.name for each in dataclasses.fields(transform)} - {"targets"}:
        key = field.removeprefix("cutmix_")
        other = (0.1, 0.2) if key == "minmax" else "other" if key.endswith("_key") else 0.125
        changed = dataclasses.replace(transform, **{field: others.get(key, other)})
        assert changed != transform, field
