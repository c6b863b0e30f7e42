"""The same groups on any number of hosts and workers, in Grain's own loaders."""

import collections
import dataclasses
import functools
import gc
import itertools
import pickle
import sys
from typing import Any

import common
import grain
import hypothesis
import numpy as np
import pytest
from common import assert_same, slow
from hypothesis import strategies as st

import grain_mix as gm
from grain_mix import PairedSampler

BATCH_SIZE = 4
RECORDS = 288  # BATCH_SIZE · H · W divides it, for all H and W below
TOPOLOGIES = [(1, 2), (2, 0), (3, 2), (4, 3)]  # hosts and workers
MIX = gm.MixBatch(mixup_alpha=1.0, num_classes=RECORDS)
MOSAIC = gm.MosaicBatch(num_classes=RECORDS)

Batch = dict[str, Any]


@functools.cache
def records() -> list[Batch]:
    images = np.random.default_rng(0).integers(256, size=(RECORDS, 4, 6, 1), dtype=np.uint8)
    return [{"image": image, "label": i, "id": i} for i, image in enumerate(images)]


class KeepSeed(grain.transforms.Map):
    def map(self, element: Batch) -> Batch:
        return element | {"seed": element["mix_seed"]}


def index_sampler(**options: Any) -> grain.samplers.IndexSampler:
    defaults = {"num_records": RECORDS, "num_epochs": 2, "shuffle": True, "seed": 7}
    return grain.samplers.IndexSampler(**defaults | options)


def data_loader(
    sampler: Any, shard: tuple[int, int], transform: Any = MIX, **options: Any
) -> grain.DataLoader:
    operations = gm.RecordSeed(), KeepSeed(), grain.transforms.Batch(BATCH_SIZE), transform
    return common.data_loader(records(), *operations, sampler=sampler, shard=shard, **options)


@dataclasses.dataclass
class Share:
    """What Grain has worker w of host h read, of W and H: its host's elements w, w + W, ...

    With it, no processes are needed. `test_share_is_what_worker_processes_read` confirms it.
    """

    sampler: Any
    w: int
    workers: int
    h: int
    hosts: int

    def __len__(self) -> int:
        return len(range(self.w, len(self.sampler) // self.hosts, self.workers))

    def __getitem__(self, k: int) -> grain.RecordMetadata:
        return self.sampler[(self.w + k * self.workers) * self.hosts + self.h]


def paired(sampler: Any, hosts: int, workers: int, transform: Any = MIX) -> PairedSampler:
    group = transform._rule.sources
    return PairedSampler(sampler, shard_count=hosts, worker_count=workers, group=group)


def readers(
    sampler: Any, hosts: int, workers: int, transform: Any = MIX, **options: Any
) -> list[list[Batch]]:
    """The batches of each worker of each host: worker 0 of all hosts first."""
    sampler = paired(sampler, hosts, workers, transform)
    workers = max(workers, 1)
    return [
        list(data_loader(Share(sampler, w, workers, h, hosts), (0, 1), transform, **options))
        for w in range(workers)
        for h in range(hosts)
    ]


def mixed(batches: list[Batch]) -> collections.Counter[tuple[int, int, int]]:
    """The records of these batches in no order: id, seed and, short enough to print, a hash."""
    return collections.Counter(
        (int(i), int(seed), hash(image.tobytes() + label.tobytes()))
        for batch in batches
        for i, seed, image, label in zip(
            *(batch[key] for key in ("id", "seed", "image", "label")), strict=True
        )
    )


def flat(nested: list[list[Batch]]) -> list[Batch]:
    return list(itertools.chain.from_iterable(nested))


ALL = list(itertools.product((1, 2, 3, 4), (0, 2, 3)))


@pytest.mark.parametrize(
    ("sampler", "transform", "topologies"),
    [
        (index_sampler(), MIX, TOPOLOGIES),
        (
            grain.samplers.SequentialSampler(RECORDS, seed=7),
            dataclasses.replace(MIX, mode="pair"),
            TOPOLOGIES,
        ),
        (index_sampler(num_epochs=1), MOSAIC, TOPOLOGIES[1:3]),
        slow(index_sampler(), MIX, ALL),
        slow(index_sampler(), MOSAIC, ALL),
    ],
    ids=["shuffled", "in order, mode pair", "mosaics", "all", "all of mosaics"],
)
def test_same_mixed_records(
    sampler: Any, transform: gm.MixBatch, topologies: list[tuple[int, int]]
) -> None:
    [batches] = readers(sampler, 1, 0, transform=transform)
    epochs, size = len(sampler) // RECORDS, RECORDS // BATCH_SIZE
    expected = [mixed(batches[e * size : (e + 1) * size]) for e in range(epochs)]
    for epoch in expected:
        assert len(epoch) == RECORDS
        assert {i for i, *_ in epoch} == set(range(RECORDS))
    assert not set.intersection(*map(set, expected)) or epochs == 1

    for hosts, workers in topologies:
        each = readers(sampler, hosts, workers, transform=transform)
        part = size // len(each)
        for e in range(epochs):
            epoch = flat([batches[e * part : (e + 1) * part] for batches in each])
            assert mixed(epoch) == expected[e], (hosts, workers, e)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transform", "host", "hosts", "workers"), [(MIX, 0, 1, 2), (MIX, 1, 2, 3), (MOSAIC, 1, 2, 2)]
)
def test_share_is_what_worker_processes_read(
    transform: gm.MixBatch, host: int, hosts: int, workers: int
) -> None:
    share = readers(index_sampler(), hosts, workers, transform)[host::hosts]
    turns = flat([list(turn) for turn in zip(*share, strict=True)])
    sampler = paired(index_sampler(), hosts, workers, transform)
    loader = data_loader(sampler, (host, hosts), transform, worker_count=workers)
    assert_same(loader, turns)


@pytest.mark.parametrize(("hosts", "workers"), [(3, 0), slow(2, 2)])
def test_datasets_split_after_batch(hosts: int, workers: int) -> None:
    """Grain's datasets need no sampler for this, as long as whole batches are split."""
    seeded = grain.MapDataset.source(records()).seed(7).shuffle().repeat(2)
    seeded = seeded.random_map(gm.RecordSeed()).map(KeepSeed())
    batches = seeded.batch(BATCH_SIZE, drop_remainder=True)
    expected = mixed([MIX.map(batches[i]) for i in range(len(batches))])
    assert len(expected) == 2 * RECORDS

    options = grain.MultiprocessingOptions(num_workers=workers)
    found: list[Batch] = []
    for host in range(hosts):
        gc.collect()  # Python 3.12 warns if one worker's semaphores go while another starts
        found += batches[host::hosts].to_iter_dataset().mp_prefetch(options).map(MIX)
    assert mixed(found) == expected


shard_counts = st.integers(1, 7)
worker_counts = st.integers(0, 5)


@hypothesis.given(st.integers(1, 400), shard_counts, worker_counts, st.integers(2, 9))
def test_permutation(length: int, hosts: int, workers: int, k: int) -> None:
    plain = grain.samplers.SequentialSampler(length, seed=3)
    sampler = PairedSampler(plain, shard_count=hosts, worker_count=workers, group=k)
    assert len(sampler) == length
    order = [record.record_key for record in sampler]  # ends at the first IndexError
    assert sorted(order) == list(range(length))

    count = hosts * max(workers, 1)
    blocks = length // (k * count)
    left = blocks * k * count  # where the last block begins, if it is incomplete
    for g in range(count):
        own = order[g::count]
        whole = [k * (count * b + g) + m for b in range(blocks) for m in range(k)]
        last = own[len(whole) :]
        # Whole groups, then one reader after another takes what is left, at most a group.
        assert own[: len(whole)] == whole
        assert last == list(range(left, left + len(last)))
        assert len(last) <= k
        left += len(last)


@hypothesis.given(st.integers(0, sys.maxsize - 1), shard_counts, worker_counts, st.integers(2, 9))
@pytest.mark.parametrize("plain", [index_sampler(num_epochs=None), index_sampler()])
def test_records_keep_what_they_have(
    plain: Any, index: int, hosts: int, workers: int, k: int
) -> None:
    sampler = PairedSampler(plain, shard_count=hosts, worker_count=workers, group=k)
    index %= len(sampler)
    record = sampler[index]
    expected = plain[record.index]
    assert abs(record.index - index) < k * hosts * max(workers, 1)
    assert record.record_key == expected.record_key
    assert record.rng.integers(2**32) == expected.rng.integers(2**32)


class OwnSampler:
    """As little as Grain asks for; endless if there is no length."""

    def __init__(self, length: int | None) -> None:
        self.length = length
        self.lookups = 0

    def __getitem__(self, index: int) -> grain.RecordMetadata:
        self.lookups += 1
        if self.length is not None and index >= self.length:
            raise IndexError(index)
        rng = np.random.default_rng(index)
        return grain.RecordMetadata(index=index, record_key=index % RECORDS, rng=rng)

    def __repr__(self) -> str:
        return f"OwnSampler({self.length})"


@pytest.mark.parametrize("length", [0, 1, 7, 100, sys.maxsize - 1])
def test_sampler_without_length(length: int) -> None:
    own = OwnSampler(length)
    sampler = PairedSampler(own, shard_count=2, worker_count=3)
    assert len(sampler) == length
    assert len(sampler) == length
    assert own.lookups < 100
    if length == 100:
        usual = grain.samplers.SequentialSampler(length, seed=3)
        usual = PairedSampler(usual, shard_count=2, worker_count=3)
        assert [record.index for record in sampler] == [record.index for record in usual]


@pytest.mark.parametrize("endless", [index_sampler(num_epochs=None), OwnSampler(None)])
def test_endless(endless: Any) -> None:
    sampler = PairedSampler(endless, shard_count=2, worker_count=2)
    assert len(sampler) == sys.maxsize
    assert sampler[sys.maxsize - 100].index in range(sys.maxsize - 108, sys.maxsize - 92)
    steps = 3 * RECORDS // 2 // BATCH_SIZE
    loaders = [data_loader(sampler, (host, 2)) for host in range(2)]
    seen = [i for loader in loaders for b in itertools.islice(loader, steps) for i in b["id"]]
    assert collections.Counter(seen) == dict.fromkeys(range(RECORDS), 3)


def test_repr() -> None:
    parts = [
        {"sampler": sampler, "shard_count": hosts, "worker_count": workers, "group": k}
        for sampler in (index_sampler(), index_sampler(seed=8), OwnSampler(3), OwnSampler(None))
        for hosts in (1, 2)
        for workers in (0, 1, 2)
        for k in (2, 4)
    ]
    reprs = [repr(PairedSampler(**part)) for part in parts]
    assert len(set(reprs)) == len(parts)
    copies = [pickle.loads(pickle.dumps(PairedSampler(**part))) for part in parts]
    assert list(map(repr, copies)) == reprs
    numbers = "shard_count=1, worker_count=0, group=2"
    assert reprs[0] == f"PairedSampler(sampler={index_sampler()!r}, {numbers})"


SHARDED = index_sampler(shard_options=grain.sharding.ShardOptions(1, 2))
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"sampler": 100}, TypeError, "sampler=100; expected a Grain sampler; pass one like"),
    ({"sampler": [1, 2]}, TypeError, "sampler=.*; expected a Grain sampler; "),
    ({"sampler": grain.samplers.IndexSampler}, TypeError, "expected a Grain sampler"),
    ({"sampler": PairedSampler(index_sampler(), shard_count=2)}, TypeError, "a Grain sampler"),
    ({"sampler": SHARDED}, ValueError, "shards of its own; .* give shard_options to the grain.D"),
    ({"shard_count": 0}, ValueError, "shard_count=0; expected an int from 1; pass the number"),
    ({"shard_count": 2.0}, TypeError, "shard_count=2.0; expected an int from 1"),
    ({"shard_count": True}, TypeError, "shard_count=True; expected an int from 1"),
    ({"worker_count": -1}, ValueError, "worker_count=-1; expected an int from 0; pass the number"),
    ({"worker_count": None}, TypeError, "worker_count=None; expected an int from 0"),
    ({"group": 1}, ValueError, "group=1; expected an int from 2; pass how many records are mixed"),
    ({"group": "pair"}, TypeError, "group='pair'; expected an int from 2; pass how many"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=lambda x: str(x)[:40])
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    trivial = index_sampler(shard_options=grain.sharding.ShardOptions(0, 1))
    good = {"sampler": trivial, "shard_count": np.int64(2), "worker_count": 0}
    assert len(PairedSampler(**good)) == 2 * RECORDS
    with pytest.raises(error, match=rf"^PairedSampler: .*{message}"):
        PairedSampler(**good | change)


@pytest.mark.parametrize("index", [-1, 2 * RECORDS, sys.maxsize])
def test_out_of_range(index: int) -> None:
    sampler = PairedSampler(index_sampler(), shard_count=2, worker_count=3)
    with pytest.raises(IndexError, match=rf"index {index}; expected 0 <= index < {2 * RECORDS}"):
        sampler[index]
    with pytest.raises(IndexError):
        index_sampler()[index]


def test_loader_needs_shard_options() -> None:
    sampler = PairedSampler(index_sampler(), shard_count=2)
    came = "PairedSampler: a grain.DataLoader without shard_options; expected .*shard_count=2; pass"
    with pytest.raises(ValueError, match=came):
        grain.DataLoader(data_source=records(), sampler=sampler)


@pytest.mark.parametrize(("hosts", "workers"), [(2, 2), (1, 2), (2, 0), (4, 2)])
def test_a_loader_with_other_numbers(hosts: int, workers: int) -> None:
    sampler = PairedSampler(index_sampler(), shard_count=hosts, worker_count=workers)
    loader = data_loader(sampler, (0, 2), worker_count=2)
    if (hosts, workers) == (2, 2):
        gm.LoaderDataset(loader)
        return
    with pytest.raises(ValueError, match=r"a PairedSampler with .*; expected 2, as .*; write"):
        gm.LoaderDataset(loader)
