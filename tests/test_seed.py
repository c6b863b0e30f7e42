"""One seed per record: from Grain's generator, or from the record's own values."""

import itertools
import pickle
import warnings
from collections.abc import Iterable
from typing import Any

import grain
import numpy as np
import pytest

import grain_mix as gm
from grain_mix import _draw

SIZE = 24


def source() -> list[dict[str, Any]]:
    return [{"index": i, "name": f"{i % 6}.jpg"} for i in range(SIZE)]


def with_id(record: dict[str, Any]) -> dict[str, Any]:
    return gm.RecordSeed(id_key="index").random_map(record)


def seeds_by_index(*parts: Iterable[dict[str, Any]]) -> dict[int, int]:
    records = list(itertools.chain(*parts))
    seeds = {int(record["index"]): int(record["mix_seed"]) for record in records}
    assert len(records) == len(seeds) == SIZE
    return seeds


EXPECTED = {i: int(with_id({"index": i})["mix_seed"]) for i in range(SIZE)}


@pytest.mark.parametrize("hosts", [1, 4])
def test_an_id_gives_the_seed_in_any_order(hosts: int) -> None:
    """Split first, as a stream, interleaved: where Grain's generator counts positions."""
    add = gm.RecordSeed(id_key="index")
    whole = grain.MapDataset.source(source()).seed(0)
    split = [whole[host::hosts].random_map(add) for host in range(hosts)]
    assert seeds_by_index(*split) == EXPECTED
    streams = [whole[host::hosts].to_iter_dataset().random_map(add) for host in range(hosts)]
    assert seeds_by_index(*streams) == EXPECTED
    files = [
        grain.MapDataset.source(source()[file::4]).seed(0).random_map(add).to_iter_dataset()
        for file in range(4)
    ]
    assert (
        seeds_by_index(grain.experimental.InterleaveIterDataset(files, cycle_length=4)) == EXPECTED
    )


@pytest.mark.parametrize(
    ("hosts", "worker_count"), [(2, 0), pytest.param(1, 2, marks=pytest.mark.slow)]
)
def test_an_id_needs_no_seed_of_the_sampler(hosts: int, worker_count: int) -> None:
    loaders = [
        grain.DataLoader(
            data_source=source(),
            sampler=grain.samplers.IndexSampler(SIZE, num_epochs=1),
            shard_options=grain.sharding.ShardOptions(host, hosts),
            operations=[gm.RecordSeed(id_key="index")],
            worker_count=worker_count,
        )
        for host in range(hosts)
    ]
    assert seeds_by_index(*loaders) == EXPECTED


class Crops(grain.experimental.FlatMapTransform):
    """Two records of each."""

    max_fan_out = 2

    def flat_map(self, element: Any) -> list[Any]:
        return [{**element, "crop": crop} for crop in range(2)]


def load(*operations: Any, **options: Any) -> list[Any]:
    sampler = grain.samplers.IndexSampler(SIZE, num_epochs=1, seed=0)
    loader = grain.DataLoader(
        data_source=source(), sampler=sampler, operations=operations, worker_count=0
    )
    return list(loader)


def test_the_fix_for_a_flat_map_works() -> None:
    with pytest.raises(ValueError, match=r"no generator.*after a FlatMap use RecordSeed\(id_key"):
        load(Crops(), gm.RecordSeed())
    records = load(Crops(), gm.RecordSeed(id_key=("index", "crop")))
    assert len({int(record["mix_seed"]) for record in records}) == 2 * SIZE
    # The other order pairs a record with its own copy, which the warning says.
    batches = load(gm.RecordSeed(), Crops(), grain.transforms.Batch(8))
    images = {"image": np.zeros((8, 4, 4, 1), np.uint8)}
    _draw.warn_once.cache_clear()
    with pytest.warns(UserWarning, match=r"same seed.*before a FlatMap.*id_key"):
        gm.MixUpBatch(label_key=None).map(batches[0] | images)


SPLITS: dict[str, Any] = {
    "split before": lambda ds: [ds[h::2].random_map(gm.RecordSeed()) for h in range(2)],
    "stream": lambda ds: [ds[h::2].to_iter_dataset().random_map(gm.RecordSeed()) for h in range(2)],
    "split after": lambda ds: [ds.random_map(gm.RecordSeed())[h::2] for h in range(2)],
}


@pytest.mark.parametrize("order", SPLITS)
def test_in_which_orders_the_generator_is_the_records_own(order: str) -> None:
    """As the docstring says. If a wrong order becomes right, Grain has changed."""
    dataset = grain.MapDataset.source(source()).seed(0)
    whole = {int(r["index"]): int(r["mix_seed"]) for r in dataset.random_map(gm.RecordSeed())}
    parts = [list(part) for part in SPLITS[order](dataset)]
    alike = [int(r["mix_seed"]) for r in parts[0]] == [int(r["mix_seed"]) for r in parts[1]]
    assert alike == (order != "split after")
    assert (seeds_by_index(*parts) == whole) == (order == "split after")


def test_what_an_id_is() -> None:
    known = [829052094, 453667297, 3226270158, 1660120139, 1473470561]

    def seed(*values: Any, **fields: Any) -> int:
        names = tuple(f"id{i}" for i in range(len(values)))
        record = dict(zip(names, values, strict=True))
        return int(gm.RecordSeed(id_key=names, **fields).random_map(record)["mix_seed"])

    # By value, whatever holds it; these numbers never change.
    assert [seed(7), seed("7"), seed(b"7"), seed(7, "a.jpg"), seed(7, seed=3)] == known
    for seven in (np.int8(7), np.uint64(7), np.array(7), np.array(7, np.int16)):
        assert seed(seven) == seed(7)
    assert seed(np.str_("7")) == seed(np.array("7")) == seed("7")
    assert seed(np.bytes_(b"7")) == seed(np.array(b"7")) == seed(b"7")
    assert seed(np.array([7, 8], np.int8)) == seed(np.array([7, 8], np.uint64))
    different = [
        "\udcff.jpg",
        7,
        -7,
        2**80,
        "7",
        b"7",
        "",
        b"",
        "a",
        "ab",
        np.array([7]),
        np.array([[7]]),
    ]
    different += [np.array([7, 8]), np.array([78]), np.array(["7"]), np.array([b"7"])]
    assert len({seed(value) for value in different}) == len(different)
    assert len({seed("a", "bc"), seed("ab", "c"), seed("abc"), seed("abc", "")}) == 4
    for value in (
        1.0,
        None,
        True,
        np.float32(1),
        np.array([1.5]),
        np.array([True]),
        (1, 2),
        object(),
    ):
        with pytest.raises(TypeError, match=r"'id0' is .*; expected an int, str or bytes.*; name"):
            seed(value)


def test_another_seed_gives_another_run(rng: np.random.Generator) -> None:
    """Grain keys a record by seed + index, so seeds 0 and 1 draw the same, one record apart."""
    run = int(rng.integers(1, 2**63))
    print(f"{run=}")

    def lam(seed: int, recorded: int) -> Any:
        sampler = grain.samplers.IndexSampler(500, seed=seed, num_epochs=1)
        add = gm.RecordSeed(seed=recorded)
        records = [{"index": i} for i in range(500)]
        loader = grain.DataLoader(
            data_source=records, sampler=sampler, operations=[add], worker_count=0
        )
        seeds = np.array([record["mix_seed"] for record in loader], np.uint32)
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
    assert (
        pickle.loads(pickle.dumps(transform)) == transform == gm.RecordSeed("s", id_key="a", seed=3)
    )
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
    dataset = grain.MapDataset.source(source()).map(gm.RecordSeed())
    with pytest.raises(TypeError, match=r"given to \.map.*use \.random_map\(gm\.RecordSeed\(\)\)"):
        dataset[0]
    for wrong in (
        lambda: load(gm.RecordSeed),
        lambda: grain.MapDataset.source(source()).seed(0).map(gm.RecordSeed)[0],
        lambda: grain.MapDataset.source(source()).seed(0).random_map(gm.RecordSeed)[0],
    ):
        with pytest.raises(TypeError, match=r"^RecordSeed: the class .* write RecordSeed\(\)"):
            wrong()


def test_equal_seeds_are_warned_of(rng: np.random.Generator) -> None:
    def mix(seeds: Any, valid: Any = None) -> None:
        size = len(seeds)
        batch = {"image": np.zeros((size, 2), np.float32), "mix_seed": np.asarray(seeds, np.uint32)}
        if valid is not None:
            batch["valid"] = np.asarray(valid)
        valid_key = None if valid is None else "valid"
        gm.MixUpBatch(label_key=None, valid_key=valid_key).map(batch)

    fresh = rng.choice(2**32, 4096, replace=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in (1, 2, 64, 4096):
            mix(fresh[:size])
        mix([*fresh[:4095], fresh[0]])  # one pair in 4,096 is chance, now and then
        mix([*fresh[:4], 0, 0, 0, 0], [True] * 4 + [False] * 4)
    for seeds in ([5, 5], [5, 6, 5, 7], fresh[:8].repeat(2), [*fresh[:4090], *fresh[:6]]):
        _draw.warn_once.cache_clear()
        with pytest.warns(UserWarning, match="several records of one batch have the same seed"):
            mix(seeds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mix([5, 5])  # once is enough


@pytest.mark.parametrize("hosts", [2, 4])
def test_elastic_iterator_with_pairs(hosts: int) -> None:
    """Pairs are split and batched as units, so no split separates them."""

    def flat(batch: dict[str, Any]) -> dict[str, Any]:
        return {key: value.reshape(-1, *value.shape[2:]) for key, value in batch.items()}

    def images(index: int) -> dict[str, Any]:
        return {"image": np.full((4, 4, 1), 10 * index, np.uint8), "index": index}

    dataset = grain.MapDataset.range(SIZE).seed(0).shuffle().map(images)
    pairs = dataset.random_map(gm.RecordSeed()).batch(2, drop_remainder=True)
    mixed: dict[int, bytes] = {}
    for count in {1, hosts}:
        found = {}
        for host in range(count):
            batches = grain.experimental.ElasticIterator(
                pairs, SIZE // 6, grain.sharding.ShardOptions(host, count)
            )
            for batch in batches:
                out = gm.MixUpBatch(1.0, label_key=None).map(flat(batch))
                assert len(out["index"]) == SIZE // 3 // count
                for index, image in zip(out["index"], out["image"], strict=True):
                    found[int(index)] = image.tobytes()
        assert len(found) == SIZE
        assert found == (mixed or found)
        mixed = found
