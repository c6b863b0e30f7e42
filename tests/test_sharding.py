"""Mixing over devices: where it runs never changes what comes out, and devices never talk."""

import pickle
import re
from typing import Any

import grain
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

import grain_mix as gm

KINDS = {"mixup": gm.MixUpBatch, "cutmix": gm.CutMixBatch, "both": gm.MixBatch}
COLLECTIVES = r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
each_kind = pytest.mark.parametrize("kind", KINDS)
each_axis_type = pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])


def make_batch(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    return {
        "image": rng.integers(256, size=(size, 11, 9, 3), dtype=np.uint8),
        "label": rng.integers(0, 10, size),
        "mix_seed": rng.integers(2**32, size=size, dtype=np.uint32),
        "id": np.arange(size, dtype=np.int32),
    }


def over(count: int, axis_type: AxisType = AxisType.Auto) -> NamedSharding:
    mesh = jax.make_mesh((count,), ("data",), (axis_type,), devices=jax.devices()[:count])
    return NamedSharding(mesh, PartitionSpec("data"))


def assert_same_bits(actual: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert actual[key].dtype == value.dtype
        assert np.asarray(actual[key]).tobytes() == np.asarray(value).tobytes(), key


def check_same(kind: str, batch: dict[str, np.ndarray], sharding: Any, **fields: Any) -> None:
    expected = KINDS[kind](num_classes=10, **fields).map(batch)
    actual = KINDS[kind](num_classes=10, **fields, sharding=sharding).map(batch)
    assert list(actual) == list(expected)
    for value in actual.values():
        assert isinstance(value, jax.Array)
        assert value.sharding == sharding
    assert_same_bits(actual, expected)


@each_kind
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_any_number_of_devices(kind: str, count: int, rng: np.random.Generator) -> None:
    check_same(kind, make_batch(rng, 16), over(count))


@each_kind
def test_every_dtype(kind: str, rng: np.random.Generator) -> None:
    dtypes = ("uint16", "uint32", "int8", "int16", "int32", "float16", "bfloat16", "float32")
    images = {
        dtype: rng.normal(60, 25, (8, 11, 9, 3)).clip(0, 127).astype(jax.numpy.dtype(dtype))
        for dtype in dtypes
    }
    check_same(kind, make_batch(rng, 8) | images, over(4), image_key=("image", *dtypes))


@each_kind
@pytest.mark.parametrize("mode", ["pair", "batch"])
def test_shared_draws(kind: str, mode: str, rng: np.random.Generator) -> None:
    check_same(kind, make_batch(rng, 16), over(8), mode=mode)


@each_kind
def test_every_kind_of_sharding(kind: str, rng: np.random.Generator) -> None:
    batch = make_batch(rng, 16)
    grid = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)
    turned = jax.make_mesh((2, 4), ("model", "data"), (AxisType.Auto,) * 2)
    check_same(kind, batch, over(4, AxisType.Explicit))
    check_same(kind, batch, NamedSharding(grid, PartitionSpec("data")))
    check_same(kind, batch, NamedSharding(turned, PartitionSpec("data")))
    check_same(kind, batch, NamedSharding(grid, PartitionSpec(("model", "data"))))
    check_same(kind, batch, NamedSharding(grid, PartitionSpec()))
    check_same(kind, batch, SingleDeviceSharding(jax.devices()[3]))


@each_kind
def test_odd_batches_fit_one_device(kind: str, rng: np.random.Generator) -> None:
    for size in (1, 7):
        check_same(kind, make_batch(rng, size), SingleDeviceSharding(jax.devices()[1]))


def test_sparse_labels_and_masks(rng: np.random.Generator) -> None:
    batch = make_batch(rng, 8) | {"mask": rng.integers(0, 9, (8, 11, 9), np.uint8)}
    fields: dict[str, Any] = {"sparse_labels": True, "mask_key": "mask"}
    expected = gm.CutMixBatch(**fields).map(batch)
    assert_same_bits(gm.CutMixBatch(**fields, sharding=over(4)).map(batch), expected)


@each_kind
def test_map_needs_no_communication(kind: str, rng: np.random.Generator) -> None:
    from grain_mix import _batch, _place

    transform = KINDS[kind](num_classes=10, sharding=over(8))
    placed = _place.to_devices(transform.sharding, make_batch(rng, 16))
    del placed["id"]
    mesh = _place.local_mesh(transform.sharding)
    program = _batch._mix_sharded.lower(transform, mesh, placed).compile().as_text()
    assert "ENTRY" in program
    assert not re.findall(COLLECTIVES, program)
    assert "conditional" not in program  # platforms are told apart by the compiler


@each_kind
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_never_wait(kind: str, platform: str, rng: np.random.Generator) -> None:
    """A loop whose length depends on data, or a callback, would make the GPU's host wait."""
    transform = KINDS[kind](num_classes=10)
    traced = jax.jit(transform.mix).trace(make_batch(rng, 16))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo" in program
    assert not re.findall(r"stablehlo\.while|callback|infeed|outfeed", program)


@each_kind
@each_axis_type
@pytest.mark.parametrize("mode", ["elem", "pair", "batch"])
def test_mix_inside_a_users_jit(
    kind: str, axis_type: AxisType, mode: str, rng: np.random.Generator
) -> None:
    transform = KINDS[kind](num_classes=10, mode=mode)
    batch = make_batch(rng, 16)
    sharded = jax.device_put(batch, over(4, axis_type))
    compiled = jax.jit(transform.mix).lower(sharded).compile()
    assert_same_bits(compiled(sharded), transform.map(batch))
    moved = re.findall(rf"= (\S+?)\[[\d,]*\]\S* (?:{COLLECTIVES})\(", compiled.as_text())
    # Records that share a draw have to learn its seed; nothing else moves.
    assert moved == ([] if mode == "elem" else ["u32"] * len(moved))
    assert (mode == "elem") or moved


@each_kind
@each_axis_type
@pytest.mark.parametrize("mode", ["elem", "pair"])
def test_mix_inside_shard_map(
    kind: str, axis_type: AxisType, mode: str, rng: np.random.Generator
) -> None:
    transform = KINDS[kind](num_classes=10, mode=mode)
    batch = make_batch(rng, 16)
    sharding = over(4, axis_type)
    parts = PartitionSpec("data")
    mix = jax.shard_map(transform.mix, mesh=sharding.mesh, in_specs=(parts,), out_specs=parts)
    compiled = jax.jit(mix).lower(jax.device_put(batch, sharding)).compile()
    assert not re.findall(COLLECTIVES, compiled.as_text())
    assert_same_bits(compiled(jax.device_put(batch, sharding)), transform.map(batch))


def test_a_hundred_batches_compile_once(rng: np.random.Generator) -> None:
    from grain_mix import _batch

    sharding = over(4)
    before = _batch._mix_sharded._cache_size()
    for _ in range(100):
        gm.MixBatch(num_classes=9 + 1, prob=0.987, sharding=sharding).map(make_batch(rng, 8))
    assert _batch._mix_sharded._cache_size() == before + 1


class Records:
    """Records of a class id each; at module level, where worker processes find it."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": np.full((4, 4, 3), index, np.uint8), "label": index}


def make_loader(worker_count: int, *transforms: Any) -> grain.DataLoader:
    return grain.DataLoader(
        data_source=Records(),
        sampler=grain.samplers.IndexSampler(
            16, grain.sharding.NoSharding(), shuffle=True, num_epochs=1, seed=3
        ),
        operations=[gm.RecordSeed(), grain.transforms.Batch(8), *transforms],
        worker_count=worker_count,
    )


def test_in_a_loader_without_workers() -> None:
    transform = gm.MixBatch(num_classes=16)
    sharded = gm.MixBatch(num_classes=16, sharding=over(4))
    pairs = list(zip(make_loader(0, sharded), make_loader(0, transform), strict=True))
    assert len(pairs) == 2
    for actual, expected in pairs:
        assert_same_bits(actual, expected)


def test_not_in_a_worker() -> None:
    """Fails at the first batch, before any worker starts, and says what to write instead."""
    transform = gm.MixBatch(num_classes=16, sharding=over(4))
    with pytest.raises(TypeError, match=r"LoaderDataset\(loader\).map\(gm.MixBatch") as error:
        next(iter(make_loader(2, transform)))
    assert "ThreadPrefetchIterDataset(dataset" in str(error.value)
    with pytest.raises(TypeError, match="worker"):
        pickle.dumps(transform)


def bad_shardings() -> dict[str, tuple[Any, str]]:
    grid = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)
    return {
        "a mesh": (grid, "NamedSharding"),
        "a spec": (PartitionSpec("data"), "NamedSharding"),
        "two axes": (NamedSharding(grid, PartitionSpec("data", "model")), "axis 0"),
        "named rank": (NamedSharding(grid, PartitionSpec("data", None, None)), "axis 0"),
    }


@pytest.mark.parametrize("case", ["a mesh", "a spec", "two axes", "named rank"])
def test_wrong_shardings(case: str) -> None:
    sharding, fix = bad_shardings()[case]
    with pytest.raises((TypeError, ValueError), match=fix) as error:
        gm.MixUpBatch(sharding=sharding)
    assert "MixUpBatch: sharding" in str(error.value)


@pytest.mark.parametrize("size", [4, 12, 15])
def test_batches_that_do_not_divide(size: int, rng: np.random.Generator) -> None:
    """12 records on 4 devices would tear the pairs (2, 3) and (8, 9) apart."""
    transform = gm.MixUpBatch(num_classes=10, sharding=over(4))
    with pytest.raises(ValueError, match="drop_remainder=True") as error:
        transform.map(make_batch(rng, size))
    assert f"{size} records in 4 slices" in str(error.value)
    assert "multiple of 8" in str(error.value)


def test_fields_that_devices_cannot_hold(rng: np.random.Generator) -> None:
    transform = gm.MixUpBatch(num_classes=10, sharding=over(2))
    batch = make_batch(rng, 4)
    with pytest.raises(TypeError, match=r"'name'.*drop the field"):
        transform.map(batch | {"name": np.array(list("abcd"))})
    with pytest.raises(TypeError, match=r"'note'.*str.*drop the field"):
        transform.map(batch | {"note": "all"})
    with pytest.raises(ValueError, match=r"'big'.*jax_enable_x64"):
        transform.map(batch | {"big": np.arange(4) + 2**40})
    small = transform.map(batch | {"small": np.arange(4)})["small"]
    assert (small.dtype, small.tolist()) == (np.int32, [0, 1, 2, 3])
