"""Inside Grain: its loaders, datasets, worker processes and checkpoints, all of them real."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import cloudpickle
import grain
import jax
import numpy as np
import pytest
import weight_maps
from array_record.python import array_record_module
from common import assert_same, make_batch

import grain_mix as gm

RECORDS = 13  # leaves an incomplete last batch
BATCH_SIZE = 4
SHAPE = (6, 10, 3)

TRANSFORMS = [
    gm.MixUpBatch(alpha=1.0, num_classes=RECORDS),
    gm.CutMixBatch(num_classes=RECORDS),
    gm.MixBatch(mixup_alpha=1.0, num_classes=RECORDS),
]
MIXUP, CUTMIX, MIX = TRANSFORMS
each_transform = pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)

Batch = dict[str, Any]


# --- data ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> grain.sources.ArrayRecordDataSource:
    """An ArrayRecord file of random images, each with its number in front."""
    path = str(tmp_path_factory.mktemp("records") / "images.array_record")
    writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
    rng = np.random.default_rng(0)
    for i in range(RECORDS):
        writer.write(bytes([i]) + rng.integers(256, size=SHAPE, dtype=np.uint8).tobytes())
    writer.close()
    return grain.sources.ArrayRecordDataSource([path])


class Decode(grain.transforms.Map):
    def map(self, element: bytes) -> Batch:
        image = np.frombuffer(element, np.uint8, offset=1).reshape(SHAPE)
        # The last two are beyond what JAX holds, so they must not pass through it.
        more = {"third": np.float64(element[0] / 3), "name": f"record-{element[0]}"}
        return {"image": image, "label": element[0], "id": element[0], "more": more}


@dataclasses.dataclass(frozen=True)
class RandomCrop(grain.transforms.RandomMap):
    height: int
    width: int

    def random_map(self, element: Batch, rng: np.random.Generator) -> Batch:
        image = element["image"]
        top = rng.integers(image.shape[0] - self.height + 1)
        left = rng.integers(image.shape[1] - self.width + 1)
        return element | {"image": image[top : top + self.height, left : left + self.width]}


class Remember(grain.transforms.Map):
    """Keeps copies of the fields that mixing changes."""

    def map(self, element: Batch) -> Batch:
        return element | {"seed": element["mix_seed"], "own_image": element["image"]}


def sampler(num_epochs: int | None) -> grain.samplers.IndexSampler:
    return grain.samplers.IndexSampler(
        RECORDS,
        shard_options=grain.sharding.NoSharding(),
        shuffle=True,
        num_epochs=num_epochs,
        seed=7,
    )


def data_loader(
    records: Any, *operations: Any, worker_count: int = 0, num_epochs: int | None = 1
) -> grain.DataLoader:
    return grain.DataLoader(
        data_source=records,
        sampler=sampler(num_epochs),
        operations=[Decode(), *operations],
        worker_count=worker_count,
        # Grain's default, to read 500 records ahead, is much for each of many short iterations.
        read_options=grain.ReadOptions(num_threads=2, prefetch_buffer_size=4),
    )


def mixing_loader(
    records: Any, transform: Any, worker_count: int, **options: Any
) -> grain.DataLoader:
    operations = (gm.RecordSeed(), grain.transforms.Batch(BATCH_SIZE), transform)
    return data_loader(records, *operations, worker_count=worker_count, **options)


def seeded_dataset(records: Any) -> grain.MapDataset:
    """Several epochs, so that Grain's threads have something to do at the same time."""
    dataset = grain.MapDataset.source(records).seed(7).shuffle().repeat(8).map(Decode())
    return dataset.random_map(gm.RecordSeed())


def batch_by_hand(elements: list[Batch], worker_count: int = 0) -> list[Batch]:
    """As Grain does: worker w takes elements w, w + W, ..., and their batches alternate."""
    workers = max(worker_count, 1)
    shares = [elements[w::workers] for w in range(workers)]
    chunks = [[s[i : i + BATCH_SIZE] for i in range(0, len(s), BATCH_SIZE)] for s in shares]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*chunks))
    return [jax.tree.map(lambda *x: np.stack(x), *turn) for turn in turns if turn]


def copied(batch: Batch) -> Batch:
    """The batch without the memory that it shares with a worker."""
    return jax.tree.map(np.array, batch)


# --- loaders and datasets -------------------------------------------------------------------------


@each_transform
def test_data_loader(records: Any, transform: Any) -> None:
    originals = batch_by_hand(list(data_loader(records, gm.RecordSeed())))
    batches = list(mixing_loader(records, transform, worker_count=0))
    assert_same(batches, map(transform.map, originals))
    for batch, original in zip(batches, originals, strict=True):
        assert batch.keys() == {"image", "label", "id", "more"}
        assert_same(*([{key: b[key] for key in ("id", "more")}] for b in (batch, original)))
        assert batch["label"].dtype == np.float32
        assert batch["image"].dtype == np.uint8
        assert batch["image"].shape == original["image"].shape
        if len(batch["id"]) > 1:
            assert (batch["image"] != original["image"]).any()


BY_MAP = gm.WeightMapMixBatch(functools.partial(weight_maps.patches, side=3), num_classes=RECORDS)


class All(grain.transforms.Map):
    """All transforms at once, since worker processes take seconds to start."""

    def map(self, element: Batch) -> Batch:
        return {type(t).__name__: t.map(element) for t in [*TRANSFORMS, BY_MAP]}


def test_data_loader_with_workers(records: Any) -> None:
    elements = list(data_loader(records, gm.RecordSeed(), num_epochs=2))
    originals = batch_by_hand(elements, worker_count=2)
    batches = list(mixing_loader(records, All(), worker_count=2, num_epochs=2))
    assert_same(batches, map(All().map, originals))


def test_load(records: Any) -> None:
    operations = [Decode(), gm.RecordSeed(), grain.transforms.Batch(BATCH_SIZE), MIX]
    loader = grain.load(records, shuffle=True, seed=7, num_epochs=1, transformations=operations)
    assert_same(loader, mixing_loader(records, MIX, worker_count=0))


def test_datasets(records: Any) -> None:
    seeded = seeded_dataset(records)
    batches = seeded.batch(BATCH_SIZE)
    originals = batch_by_hand([seeded[i] for i in range(len(seeded))])
    expected = [MIX.map(batch) for batch in originals]
    assert len({batch["image"].tobytes() for batch in expected}) == len(expected)

    mapped = batches.map(MIX)
    assert_same((mapped[i] for i in range(len(mapped))), expected)
    assert_same(mapped.to_iter_dataset(), expected)  # in 16 threads
    assert_same(batches.to_iter_dataset().map(MIX), expected)
    assert_same(seeded.to_iter_dataset().batch(BATCH_SIZE).map(MIX), expected)


@pytest.mark.slow
def test_dataset_in_workers(records: Any) -> None:
    mapped = seeded_dataset(records).batch(BATCH_SIZE).map(MIX)
    options = grain.MultiprocessingOptions(num_workers=2)
    assert_same(mapped.to_iter_dataset().mp_prefetch(options), mapped)


# --- seeds are the record's own -------------------------------------------------------------------

CROPS = (RandomCrop(5, 9), gm.RecordSeed(), RandomCrop(4, 8))


def drawn(
    records: Any, transform: Any, operations: tuple[Any, ...], batch_size: int, worker_count: int
) -> list[tuple[int, int, float, bytes]]:
    """Two epochs as (id, seed, λ, pixels before mixing), by id and seed."""
    batch = grain.transforms.Batch(batch_size)
    operations = (*operations, Remember(), batch, transform)
    loader = data_loader(records, *operations, worker_count=worker_count, num_epochs=2)
    return sorted(
        (int(i), int(seed), float(lam), image.tobytes())
        for batch in loader
        for i, seed, lam, image in zip(
            batch["id"], batch["seed"], batch["label_weight"][:, 0], batch["own_image"], strict=True
        )
    )


@pytest.mark.parametrize(
    ("transform", "operations"),
    [(MIXUP, CROPS), (CUTMIX, (gm.RecordSeed(),)), (MIX, CROPS)],
    ids=["MixUp, crops", "CutMix", "both, crops"],
)
def test_draws_belong_to_records(records: Any, transform: Any, operations: tuple[Any, ...]) -> None:
    transform = dataclasses.replace(transform, num_classes=None, targets={"label": gm.Sparse()})
    expected = drawn(records, transform, operations, batch_size=13, worker_count=0)
    ids, seeds, lams, _ = zip(*expected, strict=True)
    assert list(ids) == [i // 2 for i in range(2 * RECORDS)]
    assert len(set(seeds)) == 2 * RECORDS  # so the second epoch has others
    assert len(set(lams)) > 5

    assert drawn(records, transform, operations, batch_size=3, worker_count=0) == expected
    assert drawn(records, transform, operations, batch_size=2, worker_count=0) == expected
    if operations is CROPS and isinstance(transform, gm.MixBatch):
        assert drawn(records, transform, operations, batch_size=13, worker_count=2) == expected


# --- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["no workers", "dataset", pytest.param("2 workers", marks=pytest.mark.slow)]
)
def test_state(records: Any, kind: str, tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
    def start() -> Iterator[Batch]:
        # Long enough that no worker gets to the end, since one that did is started anew.
        if kind == "dataset":
            batches = seeded_dataset(records).batch(BATCH_SIZE)[:10]
            return iter(batches.map(CUTMIX).to_iter_dataset())
        return iter(mixing_loader(records, CUTMIX, 2 * (kind == "2 workers"), num_epochs=None))

    count = 8  # two epochs
    iterator = start()
    expected = []
    for i in range(count):
        save(iterator, tmp_path / str(i))
        expected.append(copied(next(iterator)))

    # Forth and back in one iterator, two batches each time so that the way on is seen as well.
    for i in rng.permutation(count - 1):
        restore(iterator, tmp_path / str(i))
        assert_same([next(iterator), next(iterator)], expected[i : i + 2])
    # In a fresh one. Worker processes take seconds to start, so they do it once.
    for i in [3] if kind == "2 workers" else range(count):
        fresh = start()
        restore(fresh, tmp_path / str(i))
        assert_same(itertools.islice(fresh, count - i), expected[i:])


def save(iterator: Any, path: pathlib.Path) -> None:
    state = iterator.get_state()  # bytes from a DataLoader's iterator, a dict from a dataset's
    path.write_bytes(pickle.dumps(state))


def restore(iterator: Any, path: pathlib.Path) -> None:
    iterator.set_state(pickle.loads(path.read_bytes()))


def test_grains_own_check_of_state(records: Any) -> None:
    check = grain.experimental.assert_equal_output_after_checkpoint
    batches = seeded_dataset(records).batch(BATCH_SIZE)[:4]
    check(batches.map(MIX).to_iter_dataset())
    check(batches.to_iter_dataset().map(MIX))
    check(mixing_loader(records, MIX, worker_count=0))


# --- workers --------------------------------------------------------------------------------------

# JAX_PLATFORMS=cuda without a GPU: starting anything but the CPU platform fails.
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
        worker = element["label"][0]
        if worker == 0:
            transform.map(element)
        elif worker == 1:
            transform.mix(element)
        elif worker == 2:
            transform.draw(seeds, image.shape)
        elif worker == 3:
            gm.mixup(image, lam, partner)
        elif worker == 4:
            gm.cutmix(image, box, partner)
        return element

class Report(grain.transforms.Map):
    def map(self, element):
        process = multiprocessing.current_process()
        return {
            "platforms": sorted(xla_bridge._backends),
            "daemon": process.daemon,
            "process": process.name,
        }

if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    transform, worker_count = sys.argv[1:]
    loader = grain.load(
        [{"image": np.full((6, 10, 3), i, np.uint8), "label": i} for i in range(10)],
        num_epochs=1,
        seed=0,
        transformations=[
            gm.RecordSeed(), grain.transforms.Batch(2), eval(transform), Report()
        ],
        worker_count=int(worker_count),
    )
    print(json.dumps([*loader, {"platforms": sorted(xla_bridge._backends)}]))
"""


def run_script(path: pathlib.Path, script: str, *args: str, **env: str) -> tuple[int, str, str]:
    """Runs it with this very grain_mix; returns exit status, stdout and stderr."""
    path.write_text(script)
    outputs = [path.with_suffix(".out"), path.with_suffix(".err")]
    with outputs[0].open("w") as out, outputs[1].open("w") as err:
        process = subprocess.Popen(
            [sys.executable, str(path), *args],
            env=os.environ | {"PYTHONPATH": str(pathlib.Path(gm.__file__).parents[1])} | env,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    try:
        status = process.wait(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):  # when no worker was left behind
            os.killpg(process.pid, signal.SIGKILL)
        print(*(output.read_text() for output in outputs))
    return status, *(output.read_text() for output in outputs)


NO_GPU = {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(
    ("transform", "workers"),
    [("gm.MixBatch(num_classes=10)", 1), pytest.param("Each()", 5, marks=pytest.mark.slow)],
)
def test_workers_start_no_accelerator(transform: str, workers: int, tmp_path: pathlib.Path) -> None:
    args = transform, str(workers)
    status, out, _ = run_script(tmp_path / "main.py", PLATFORM_SCRIPT, *args, **NO_GPU)
    assert status == 0
    *batches, main = json.loads(out)
    assert len(batches) == 5
    for batch in batches:
        assert batch["platforms"] == ["cpu"]
        assert batch["daemon"]
        assert batch["process"].startswith("grain-")
    assert main["platforms"] == []


@pytest.mark.slow
def test_workers_could_start_one(tmp_path: pathlib.Path) -> None:
    """Shows that the test before this one can fail."""
    args, env = ("Careless()", "1"), NO_GPU | {"JAX_TRACEBACK_FILTERING": "off"}
    status, _, err = run_script(tmp_path / "main.py", PLATFORM_SCRIPT, *args, **env)
    assert status != 0
    assert re.search("in map\n.*xla_bridge.py", err, re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_no_cpu_platform_in_the_main_process(platform: str, tmp_path: pathlib.Path) -> None:
    args = "gm.MixUpBatch(num_classes=10)", "0"
    env = NO_GPU | {"JAX_PLATFORMS": platform}
    status, _, err = run_script(tmp_path / "main.py", PLATFORM_SCRIPT, *args, **env)
    assert status != 0
    assert "RuntimeError: mixing on the host needs JAX's CPU platform" in err
    assert f"add cpu to it (JAX_PLATFORMS={platform},cpu)" in err


# --- compilation, import, pickling ----------------------------------------------------------------


@pytest.fixture
def compilations() -> list[str]:
    """The list grows by one entry with each program that is compiled."""
    events: list[str] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return events  # the listener stays, since JAX 0.7 cannot take it back


def new(transform: Any, rng: np.random.Generator) -> Any:
    """Neither this process nor the cache of programs has seen it."""
    return dataclasses.replace(transform, label_smoothing=rng.uniform(0.1, 0.9))


def random_batch(rng: np.random.Generator, size: int = BATCH_SIZE) -> Batch:
    return make_batch(rng, size, SHAPE)


@each_transform
def test_one_compilation(transform: Any, compilations: list[str], rng: np.random.Generator) -> None:
    transform = new(transform, rng)
    for _ in range(100):
        transform.map(random_batch(rng))
    assert len(compilations) == 1
    dataclasses.replace(transform).map(random_batch(rng))
    pickle.loads(pickle.dumps(transform)).map(random_batch(rng))
    assert len(compilations) == 1
    transform.map(random_batch(rng, BATCH_SIZE + 2))
    assert len(compilations) == 2


def test_threads_share_a_transform(compilations: list[str], rng: np.random.Generator) -> None:
    transform = new(MIX, rng)
    batches = [random_batch(rng) for _ in range(16)]
    together = threading.Barrier(len(batches))

    def first(batch: Batch) -> Batch:
        together.wait(timeout=60)
        return transform.map(batch)

    with concurrent.futures.ThreadPoolExecutor(len(batches)) as pool:
        mixed = list(pool.map(first, batches))
    assert len(compilations) == 1
    assert_same(mixed, map(transform.map, batches))


def test_import_starts_nothing(tmp_path: pathlib.Path) -> None:
    script = """
import sys
import grain_mix
from jax._src import xla_bridge
print(sorted(xla_bridge._backends), "scipy" in sys.modules)
"""
    status, out, _ = run_script(tmp_path / "main.py", script)
    assert (status, out) == (0, "[] False\n")


@pytest.mark.parametrize("pickler", [pickle, cloudpickle], ids=lambda module: module.__name__)
@pytest.mark.parametrize(
    "transform", [*TRANSFORMS, gm.RecordSeed("seed")], ids=lambda t: type(t).__name__
)
def test_pickles(transform: Any, pickler: Any) -> None:
    other = pickler.loads(pickler.dumps(transform))
    assert other is not transform
    assert other == transform
    assert hash(other) == hash(transform)


@each_transform
def test_transforms_differ_in_any_field(transform: Any) -> None:
    """Equal transforms share a compiled program, so equality must cover all fields."""
    others = {
        "num_classes": 99,
        "label_smoothing": 0.125,
        "mode": "batch",
        "spatial_axes": (2, 1),
        "sharding": jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0]),
    }
    said = dataclasses.replace(transform, num_classes=None, targets={"label": gm.OneHot(3)})
    assert said != dataclasses.replace(said, targets={"label": gm.OneHot(4)})
    for field in dataclasses.fields(transform):
        key = field.name.removeprefix("cutmix_")
        other = (0.1, 0.2) if key == "minmax" else "other" if key.endswith("_key") else 0.125
        if field.name == "targets":
            continue
        changed = dataclasses.replace(transform, **{field.name: others.get(key, other)})
        assert changed != transform, field.name
