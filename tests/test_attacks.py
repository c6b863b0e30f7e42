"""Attempts to break the README's guarantees. Each once worked, or might have."""

import concurrent.futures
import fractions
import math
import threading
import time
from typing import Any

import common
import grain
import jax
import numpy as np
import pytest
import reference
from common import KINDS, each_kind, make_batch, over
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import grain_mix as gm
from grain_mix._loader import LoaderDataset


def random_batch(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    extra = rng.normal(size=(size, 64, 64)).astype(np.float32)
    label = rng.dirichlet(np.ones(9), size).astype(np.float32)
    batch = make_batch(rng, size, (32, 24, 3), label=label, extra=extra)
    return {name: reference.aligned(x) for name, x in batch.items()}


def assert_same(actual: Any, expected: Any) -> None:
    common.assert_same([jax.device_get(actual)], [jax.device_get(expected)])


@pytest.mark.parametrize(
    ("kind", "size", "sharded"), [("mixup", 4, True), ("cutmix", 1, False), ("both", 4, False)]
)
def test_memory_used_again(kind: str, size: int, sharded: bool, rng: np.random.Generator) -> None:
    """A loader that reuses a batch's memory for the next batch does not change the mixed one."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0]) if sharded else None
    transform = KINDS[kind](prob=0.5, sharding=sharding)
    batch = random_batch(rng, size)
    out = {key: value for key, value in transform.map(batch).items() if value is not batch.get(key)}
    if sharded:
        assert "extra" in out
    before = {key: np.array(value) for key, value in jax.block_until_ready(out).items()}
    for value in batch.values():
        value[...] = 1
    assert_same(out, before)


@pytest.mark.slow
@each_kind
def test_devices_in_any_order(kind: str, rng: np.random.Generator) -> None:
    """A mesh may name its devices in any order, and repeat the batch along any of its axes."""
    batch = random_batch(rng, 16)
    expected = KINDS[kind]().map(batch)
    specs = [("a",), ("b",), (("a", "b"),), (("b", "a"),), (("c", "a"),), (None,), ()]
    for spec in (specs[i] for i in rng.permutation(len(specs))[:3]):
        devices = np.array(jax.devices())[rng.permutation(8)].reshape(2, 2, 2)
        sharding = NamedSharding(Mesh(devices, ("a", "b", "c")), PartitionSpec(*spec))
        assert_same(KINDS[kind](sharding=sharding).map(batch), expected)


@pytest.mark.parametrize("lengths", [(4097, 4099), (20_011, 17_011), (1023, 1021, 1019)])
def test_the_weight_of_very_large_images(
    lengths: tuple[int, ...], rng: np.random.Generator
) -> None:
    """float32 cannot count more than 2²⁴ pixels. The weight is still their fraction."""
    seeds = rng.integers(2**32, size=500, dtype=np.uint32)
    transform = gm.CutMixBatch(spatial_axes=tuple(range(1, len(lengths) + 1)))
    draw = jax.device_get(transform.draw(seeds, (500, *lengths)))
    total = math.prod(lengths)
    for lam, box in zip(draw.lam, draw.box, strict=True):
        inside = math.prod(int(stop) - int(start) for start, stop in box)
        assert abs(float(lam) - float(fractions.Fraction(total - inside, total))) < 1e-7


@pytest.mark.parametrize("alpha", [5e-324, 1e-310, 1e-12, 1e12, 1.7e308])
def test_extreme_alphas(alpha: float) -> None:
    """Tiny α give λ of 0 or 1, huge ones 1/2. SciPy fails at both ends."""
    seeds = np.arange(4096, dtype=np.uint32)
    lam = np.asarray(gm.MixUpBatch(alpha=alpha).draw(seeds, (4096, 2, 2)).lam)
    if alpha > 1:
        np.testing.assert_allclose(lam, 0.5, atol=1e-5)
    else:
        assert np.isin(lam, [0, 1]).mean() > 0.999
        assert 0.45 < lam.mean() < 0.55


def test_numbers_of_few_bits_do_not_round() -> None:
    """A float16 λ is taken for exactly the number it represents."""
    for cls, field, value in (
        (gm.MixUpBatch, "prob", np.float16(0.3)),
        (gm.MixUpBatch, "label_smoothing", np.float16(0.1)),
        (gm.MixUpBatch, "alpha", np.float32(0.2)),
        (gm.CutMixBatch, "minmax", (np.float16(0.1), np.float16(0.7))),
        (gm.MixUpBatch, "num_classes", np.int8(100)),
    ):
        plain = tuple(map(float, value)) if isinstance(value, tuple) else value.item()
        assert repr(cls(**{field: value})) == repr(cls(**{field: plain}))
    sampler = grain.samplers.SequentialSampler(1000)
    paired = gm.PairedSampler(sampler, shard_count=np.int8(100), worker_count=np.int8(2))
    assert sorted(record.index for record in paired) == list(range(1000))


@pytest.mark.timeout(300)
def test_threads_and_devices_at_once(rng: np.random.Generator) -> None:
    """Sixteen threads compile and mix, on all devices and on the host, without a deadlock."""
    batches = [random_batch(rng, 16) for _ in range(16)]
    transforms = [
        cls(label_smoothing=0.03, sharding=where)  # new in this process
        for cls in KINDS.values()
        for where in (None, over(8))
    ]
    together = threading.Barrier(len(batches))

    def work(i: int) -> list[dict[str, Any]]:
        together.wait(timeout=100)
        return [transforms[(i + j) % 6].map(batches[i]) for j in range(12)]

    with concurrent.futures.ThreadPoolExecutor(len(batches)) as pool:
        results = list(pool.map(work, range(len(batches))))
    for i, mixed in enumerate(results):
        for j in range(6):
            assert_same(mixed[j], transforms[(i + j) % 6].map(batches[i]))


class Records:
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": np.full((8, 8, 1), index, np.uint8), "label": index % 9}


@pytest.mark.timeout(300)
def test_closed_while_the_prefetch_thread_is_busy() -> None:
    """An iterator that is closed at any time, from any thread, leaves no thread."""
    before = threading.active_count()
    operations = [gm.RecordSeed(), grain.transforms.Batch(8)]
    for step in range(12):
        loader = grain.load(Records(), seed=0, transformations=operations, worker_count=0)
        dataset = LoaderDataset(loader).map(gm.MixBatch(num_classes=9))
        dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=1)
        iterator = iter(dataset)
        for _ in range(step % 3):
            next(iterator)
        iterator.start_prefetch()
        if step % 2:
            closer = threading.Thread(target=iterator.close)
            closer.start()
            closer.join()
        else:
            iterator.close()
        with pytest.raises(ValueError, match="closed"):
            next(iterator)
        del iterator
    for thread in threading.enumerate():
        if "grain-thread-prefetch" in thread.name:
            thread.join(timeout=60)
    assert not [t for t in threading.enumerate() if "grain-thread-prefetch" in t.name]
    # Grain tells the threads that read to end, and waits for none.
    deadline = time.monotonic() + 60
    while threading.active_count() > before + 20 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert threading.active_count() <= before + 20
