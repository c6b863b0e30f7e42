"""One seed per record: from Grain's generator, or from the record's own values."""

import itertools
import pickle
import types
import warnings
from collections.abc import Iterable
from typing import Any

import grain
import numpy as np
import pytest
from common import Rng, data_loader, slow

import grain_mix as gm
from grain_mix import _errors

SIZE = 24
SOURCE = [{"index": i, "name": f"{i % 6}.jpg"} for i in range(SIZE)]
BY_ID = gm.RecordSeed(id_key="index")
EXPECTED = {i: int(BY_ID.random_map({"index": i})["mix_seed"]) for i in range(SIZE)}


def seeds_by_index(*parts: Iterable[dict[str, Any]]) -> dict[int, int]:
    records = list(itertools.chain(*parts))
    seeds = {int(record["index"]): int(record["mix_seed"]) for record in records}
    assert len(records) == len(seeds) == SIZE
    return seeds


def dataset(records: Any = SOURCE) -> grain.MapDataset:
    return grain.MapDataset.source(records).seed(0)


@pytest.mark.parametrize("hosts", [1, 4])
def test_an_id_gives_the_seed_in_any_order(hosts: int) -> None:
    """Split first, as a stream, interleaved: where Grain's generator counts positions."""
    split = [dataset()[host::hosts] for host in range(hosts)]
    assert seeds_by_index(*(part.random_map(BY_ID) for part in split)) == EXPECTED
    streams = [part.to_iter_dataset().random_map(BY_ID) for part in split]
    assert seeds_by_index(*streams) == EXPECTED
    files = [dataset(SOURCE[i::4]).random_map(BY_ID).to_iter_dataset() for i in range(4)]
    interleaved = grain.experimental.InterleaveIterDataset(files, cycle_length=4)
    assert seeds_by_index(interleaved) == EXPECTED


@pytest.mark.parametrize(("hosts", "workers"), [(2, 0), slow(1, 2)])
def test_an_id_needs_no_seed_of_the_sampler(hosts: int, workers: int) -> None:
    loaders = [
        data_loader(SOURCE, BY_ID, worker_count=workers, shard=(host, hosts), seed=None)
        for host in range(hosts)
    ]
    assert seeds_by_index(*loaders) == EXPECTED


class Crops(grain.experimental.FlatMapTransform):
    """Two records of each."""

    max_fan_out = 2

    def flat_map(self, element: Any) -> list[Any]:
        return [{**element, "crop": crop} for crop in range(2)]


def test_the_fix_for_a_flat_map_works() -> None:
    with pytest.raises(ValueError, match=r"no generator.*after a FlatMap use RecordSeed\(id_key"):
        list(data_loader(SOURCE, Crops(), gm.RecordSeed()))
    records = data_loader(SOURCE, Crops(), gm.RecordSeed(id_key=("index", "crop")))
    assert len({int(record["mix_seed"]) for record in records}) == 2 * SIZE
    # The other order pairs a record with its own copy, which the warning says.
    batches = data_loader(SOURCE, gm.RecordSeed(), Crops(), grain.transforms.Batch(8))
    images = {"image": np.zeros((8, 4, 4, 1), np.uint8)}
    _errors.WARNED.clear()
    with pytest.warns(UserWarning, match=r"same seed.*before a FlatMap.*id_key"):
        gm.MixUpBatch(label_key=None).map(next(iter(batches)) | images)


SPLITS: dict[str, Any] = {
    "split before": lambda ds, h: ds[h::2].random_map(gm.RecordSeed()),
    "stream": lambda ds, h: ds[h::2].to_iter_dataset().random_map(gm.RecordSeed()),
    "split after": lambda ds, h: ds.random_map(gm.RecordSeed())[h::2],
}


@pytest.mark.parametrize("order", SPLITS)
def test_in_which_orders_the_generator_is_the_records_own(order: str) -> None:
    """As the docstring says. If a wrong order becomes right, Grain has changed."""
    parts = [list(SPLITS[order](dataset(), host)) for host in range(2)]
    first, second = ([int(record["mix_seed"]) for record in part] for part in parts)
    assert (first == second) == (order != "split after")
    whole = seeds_by_index(dataset().random_map(gm.RecordSeed()))
    assert (seeds_by_index(*parts) == whole) == (order == "split after")


@pytest.mark.parametrize("hosts", [2, 4])
def test_elastic_iterator_with_pairs(hosts: int) -> None:
    """Pairs are split and batched as units, so no split separates them."""
    images = [{"image": np.full((4, 4, 1), 10 * i, np.uint8), "index": i} for i in range(SIZE)]
    pairs = dataset(images).shuffle().random_map(gm.RecordSeed()).batch(2, drop_remainder=True)
    mixed: list[dict[int, bytes]] = []
    for count in (1, hosts):
        found = {}
        for host in range(count):
            shard = grain.sharding.ShardOptions(host, count)
            for batch in grain.experimental.ElasticIterator(pairs, SIZE // 6, shard):
                flat = {key: value.reshape(-1, *value.shape[2:]) for key, value in batch.items()}
                out = gm.MixUpBatch(1.0, label_key=None).map(flat)
                assert len(out["index"]) == SIZE // 3 // count
                for index, image in zip(out["index"], out["image"], strict=True):
                    found[int(index)] = image.tobytes()
        assert len(found) == SIZE
        mixed.append(found)
    assert mixed[0] == mixed[1]


def seed_of(*values: Any, **fields: Any) -> int:
    record = {f"id{i}": value for i, value in enumerate(values)}
    return int(gm.RecordSeed(id_key=tuple(record), **fields).random_map(record)["mix_seed"])


def test_what_an_id_is() -> None:
    """By value, whatever holds it; these numbers never change."""
    known = [829052094, 453667297, 3226270158, 1660120139, 1473470561]
    seeds = [seed_of(7), seed_of("7"), seed_of(b"7"), seed_of(7, "a.jpg"), seed_of(7, seed=3)]
    assert seeds == known
    for seven in (np.int8(7), np.uint64(7), np.array(7), np.array(7, np.int16)):
        assert seed_of(seven) == seed_of(7)
    assert seed_of(np.str_("7")) == seed_of(np.array("7")) == seed_of("7")
    assert seed_of(np.bytes_(b"7")) == seed_of(np.array(b"7")) == seed_of(b"7")
    assert seed_of(np.array([7, 8], np.int8)) == seed_of(np.array([7, 8], np.uint64))
    different: list[Any] = ["\udcff.jpg", 7, -7, 2**80, "7", b"7", "", b"", "a", "ab"]
    different += [np.array(x) for x in ([7], [[7]], [7, 8], [78], ["7"], [b"7"])]
    assert len({seed_of(value) for value in different}) == len(different)
    assert len({seed_of(*ids) for ids in [("a", "bc"), ("ab", "c"), ("abc",), ("abc", "")]}) == 4


@pytest.mark.parametrize(
    "value",
    [1.0, None, True, np.float32(1), np.array([1.5]), np.array([True]), (1, 2), {1}],
    ids=repr,
)
def test_what_is_no_id(value: Any) -> None:
    with pytest.raises(TypeError, match=r"'id0' is .*; expected an int, str or bytes.*; name"):
        seed_of(value)


def test_another_seed_gives_another_run(rng: Rng) -> None:
    """Grain keys a record by seed + index, so seeds 0 and 1 draw the same, one record apart."""
    run = int(rng.integers(1, 2**63))
    print(f"{run=}")

    def lam(seed: int, recorded: int) -> Any:
        records = data_loader(
            [{"index": i} for i in range(500)], gm.RecordSeed(seed=recorded), seed=seed
        )
        seeds = np.array([record["mix_seed"] for record in records], np.uint32)
        return np.asarray(gm.MixUpBatch(1.0).draw(seeds, (500, 8, 8, 3)).lam)

    first, second = lam(0, 0), lam(1, 0)
    assert np.corrcoef(first[1:], second[:-1])[0, 1] > 0.99  # Grain's, and why `seed` exists
    for seed, recorded in ((0, run), (1, run), (0, run + 1)):
        for lag in (-1, 0, 1):
            other = np.roll(lam(seed, recorded), lag)
            assert abs(np.corrcoef(first, other)[0, 1]) < 0.25  # 5.5 standard deviations
    assert (lam(0, run) == lam(0, run)).all()


def test_parameters() -> None:
    assert gm.RecordSeed(id_key=["a", "b"]) == gm.RecordSeed(id_key=("a", "b"))
    transform = gm.RecordSeed("s", id_key="a", seed=np.int64(3))
    assert transform == gm.RecordSeed("s", id_key="a", seed=3)
    copy = pickle.loads(pickle.dumps(transform))
    assert (copy, hash(copy)) == (transform, hash(transform))
    assert transform != gm.RecordSeed("s", id_key="a", seed=4)
    for fields, message in [
        ({"id_key": ()}, r"id_key=\(\); expected at least one name"),
        ({"id_key": 3.5}, r"id_key=3\.5; expected a field's name"),
        ({"id_key": "mix_seed"}, "'mix_seed' named twice"),
        ({"seed": -1}, "seed=-1; expected an int from 0"),
        ({"seed": 1.5}, r"seed=1\.5; expected an int from 0"),
        ({"seed": True}, "seed=True; expected an int from 0"),
    ]:
        with pytest.raises((TypeError, ValueError), match=f"^RecordSeed: {message}"):
            gm.RecordSeed(**fields)  # type: ignore[arg-type]
    with pytest.raises(KeyError, match=r"no field 'indx' among .*did you mean 'index'"):
        gm.RecordSeed(id_key="indx").random_map({"index": 1})
    views = {"views": [{"id": 1}, {"id": 2}]}
    with pytest.raises(KeyError, match=r"'views/0/id' among .*lists are not looked into.*tuple or"):
        gm.RecordSeed(id_key="views/0/id").random_map(views)
    for numbered in ({0: 1, 1: 2}, (1, {0: 1, 1: 2})):
        with pytest.raises(TypeError, match=r"\[0, 1\] as keys.*that are strings; rename.*a tuple"):
            gm.RecordSeed(id_key=0).random_map(numbered)
    mapping = types.MappingProxyType({"index": 1})
    seed = gm.RecordSeed(id_key="index")
    assert seed.random_map(mapping) == seed.random_map({"index": 1})
    with pytest.raises(TypeError, match=r"given to \.map.*use \.random_map\(gm\.RecordSeed\(\)\)"):
        dataset().map(gm.RecordSeed())[0]
    for wrong in (
        lambda: list(data_loader(SOURCE, gm.RecordSeed)),
        lambda: dataset().map(gm.RecordSeed)[0],
        lambda: dataset().random_map(gm.RecordSeed)[0],
    ):
        with pytest.raises(TypeError, match=r"^RecordSeed: the class .* write RecordSeed\(\)"):
            wrong()


def test_equal_seeds_are_warned_of(rng: Rng) -> None:
    def mix(seeds: Any, **valid: Any) -> None:
        batch = {"image": np.zeros((len(seeds), 2), np.float32), "mix_seed": np.uint32(seeds)}
        gm.MixUpBatch(label_key=None, valid_key=next(iter(valid), None)).map(batch | valid)

    fresh = rng.choice(2**32, 4096, replace=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in (1, 2, 64, 4096):
            mix(fresh[:size])
        mix([*fresh[:4095], fresh[0]])  # one pair in 4,096 is chance, now and then
        mix([*fresh[:4], 0, 0, 0, 0], valid=np.arange(8) < 4)
    for seeds in ([5, 5], [5, 6, 5, 7], fresh[:8].repeat(2), [*fresh[:4090], *fresh[:6]]):
        _errors.WARNED.clear()
        with pytest.warns(UserWarning, match="several records of one batch have the same seed"):
            mix(seeds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mix([5, 5])  # once is enough
