"""Mixing over devices: the result is the same everywhere, and devices never communicate."""

import contextlib
import copy
import functools
import pickle
import re
from collections.abc import Iterator
from typing import Any

import common
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import KINDS, each_kind
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import grain_mix as gm

COLLECTIVES = r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
each_axis_type = pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])


def make_batch(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    return common.make_batch(rng, size) | {"id": np.arange(size, dtype=np.int32)}


def over(count: int, axis_type: AxisType = AxisType.Auto) -> NamedSharding:
    mesh = jax.make_mesh((count,), ("data",), (axis_type,), devices=jax.devices()[:count])
    return NamedSharding(mesh, PartitionSpec("data"))


def dict_of(draw: gm.Draw) -> dict[str, Any]:
    return {name: value for name, value in vars(draw).items() if value is not None}


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


@pytest.mark.parametrize(("kind", "count"), [("both", 1), ("mixup", 2), ("cutmix", 4), ("both", 8)])
def test_any_number_of_devices(kind: str, count: int, rng: np.random.Generator) -> None:
    check_same(kind, make_batch(rng, 16), over(count))


@pytest.mark.parametrize("kind", ["cutmix", "both"])
def test_every_dtype(kind: str, rng: np.random.Generator) -> None:
    dtypes = ("uint16", "uint32", "int8", "int16", "int32", "float16", "bfloat16", "float32")
    images = {
        dtype: rng.normal(60, 25, (8, 11, 9, 3)).clip(0, 127).astype(jax.numpy.dtype(dtype))
        for dtype in dtypes
    }
    check_same(kind, make_batch(rng, 8) | images, over(4), image_key=("image", *dtypes))


@pytest.mark.parametrize(("kind", "mode"), [("cutmix", "pair"), ("both", "batch")])
def test_shared_draws(kind: str, mode: str, rng: np.random.Generator) -> None:
    check_same(kind, make_batch(rng, 16), over(8), mode=mode)


@pytest.mark.parametrize(
    "kind", ["both", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("mixup", "cutmix"))]
)
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


def test_odd_batches_fit_one_device(rng: np.random.Generator) -> None:
    for size in (1, 7):
        check_same("both", make_batch(rng, size), SingleDeviceSharding(jax.devices()[1]))


@each_kind
def test_map_needs_no_communication(kind: str, rng: np.random.Generator) -> None:
    from grain_mix import _mixing, _place

    transform = KINDS[kind](num_classes=10, sharding=over(8))
    batch = make_batch(rng, 16)
    programs = _mixing.programs_of(transform._mixer, batch)
    program = programs.on_devices(_place.local_part(transform.sharding))
    program = program.lower(programs.plan.inputs(batch)).compile().as_text()
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


@pytest.mark.parametrize(
    ("kind", "axis_type", "mode"),
    [
        ("both", AxisType.Auto, "elem"),
        ("both", AxisType.Explicit, "batch"),
        ("cutmix", AxisType.Auto, "pair"),
        ("mixup", AxisType.Explicit, "elem"),
    ],
)
def test_mix_inside_a_users_jit(
    kind: str, axis_type: AxisType, mode: str, rng: np.random.Generator
) -> None:
    transform = KINDS[kind](num_classes=10, mode=mode)
    batch = make_batch(rng, 16)
    sharded = jax.device_put(batch, over(4, axis_type))
    compiled = jax.jit(transform.mix).lower(sharded).compile()
    assert_same_bits(compiled(sharded), transform.map(batch))
    moved = re.findall(rf"= (\S+?)\[[\d,]*\]\S* (?:{COLLECTIVES})\(", compiled.as_text())
    # The records of a batch have to learn its first one's seed; nothing else moves.
    assert moved == (["u32"] if mode == "batch" else [])


@pytest.mark.parametrize(
    ("kind", "axis_type", "mode"),
    [
        ("both", AxisType.Auto, "elem"),
        ("mixup", AxisType.Explicit, "pair"),
        ("cutmix", AxisType.Explicit, "elem"),
    ],
)
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
    from grain_mix import _mixing, _place

    sharding = over(4)
    before = len(_mixing._programs)
    for _ in range(100):
        transform = gm.MixBatch(num_classes=9 + 1, prob=0.987, sharding=sharding)
        transform.map(make_batch(rng, 8))
    assert len(_mixing._programs) == before + 1
    programs = _mixing.programs_of(transform._mixer, make_batch(rng, 8))
    assert programs.on_devices(_place.local_part(sharding))._cache_size() == 1


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


def test_wrong_shardings() -> None:
    mesh = over(4).mesh
    grid = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)
    for sharding, message in [
        (grid, "sharding.*NamedSharding"),
        (PartitionSpec("data"), "sharding.*NamedSharding"),
        (NamedSharding(grid, PartitionSpec("data", "model")), "sharding.*axis 0"),
        (NamedSharding(grid, PartitionSpec("data", None, None)), "sharding.*axis 0"),
        (NamedSharding(mesh.abstract_mesh, PartitionSpec("data")), "names no devices.*make_mesh"),
        (over(4).with_memory_kind("pinned_host"), "memory_kind='pinned_host'.*leave memory_kind"),
    ]:
        with pytest.raises((TypeError, ValueError), match=f"(?s)^MixUpBatch: .*{message}"):
            gm.MixUpBatch(sharding=sharding)


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


# --- inside a mesh of the user's own ------------------------------------------------------------


@contextlib.contextmanager
def globally(mesh: Mesh) -> Iterator[None]:
    """The other way that `jax.set_mesh` has."""
    jax.set_mesh(mesh)
    try:
        yield
    finally:
        jax.set_mesh(Mesh(np.empty((), object), ()))


@pytest.mark.parametrize(
    ("count", "axis_type", "entering"),
    [
        (1, AxisType.Auto, globally),
        (2, AxisType.Explicit, jax.set_mesh),
        pytest.param(4, AxisType.Auto, jax.set_mesh, marks=pytest.mark.slow),
        pytest.param(4, AxisType.Explicit, globally, marks=pytest.mark.slow),
    ],
)
def test_any_ambient_mesh(
    count: int, axis_type: AxisType, entering: Any, rng: np.random.Generator
) -> None:
    batch = make_batch(rng, 16)
    seeds, images = batch["mix_seed"], batch["image"]
    ambient = over(count, axis_type)
    for kind, make in KINDS.items() if count == 4 else [("both", gm.MixBatch)]:
        transform = make(num_classes=10)
        on_devices = make(num_classes=10, sharding=ambient)
        elsewhere = make(num_classes=10, sharding=over(8))
        mixed, drawn = transform.map(batch), transform.draw(seeds, images.shape)
        with entering(ambient.mesh):
            assert_same_bits(transform.map(batch), mixed)
            assert_same_bits(on_devices.map(batch), mixed)
            assert_same_bits(elsewhere.map(batch), mixed)
            assert_same_bits(transform.mix(batch), mixed)
            assert_same_bits(transform.mix(jax.device_put(batch, ambient)), mixed)
            assert_same_bits(jax.jit(transform.mix)(jax.device_put(batch, ambient)), mixed)
            again = transform.draw(seeds, images.shape)
            assert_same_bits(dict_of(again), dict_of(drawn))
        if kind == "cutmix":
            box = np.asarray(drawn.box)
            pasted = gm.cutmix(images, box, drawn.partner)
            with entering(ambient.mesh):
                np.testing.assert_array_equal(gm.cutmix(images, box, drawn.partner), pasted)
        if kind == "mixup":
            lam = np.asarray(drawn.lam)
            blended = gm.mixup(images, lam, np.asarray(drawn.partner))
            with entering(ambient.mesh):
                again = gm.mixup(images, lam, np.asarray(drawn.partner))
            np.testing.assert_array_equal(again, blended)


@each_axis_type
def test_the_ambient_mesh_is_entered_again(axis_type: AxisType, rng: np.random.Generator) -> None:
    with jax.set_mesh(over(4, axis_type).mesh):
        before = jax.sharding.get_abstract_mesh()
        gm.MixUpBatch(num_classes=10).map(make_batch(rng, 4))
        with pytest.raises(KeyError):
            gm.MixUpBatch(image_key="images").map(make_batch(rng, 4))
        assert jax.sharding.get_abstract_mesh() == before


@each_axis_type
def test_everything_takes_sharded_arrays(axis_type: AxisType, rng: np.random.Generator) -> None:
    """Without an ambient mesh, and outside `jit`."""
    batch = make_batch(rng, 16)
    sharded = jax.device_put(batch, over(4, axis_type))
    images = batch["image"]
    for make, mode in zip(KINDS.values(), ("pair", "batch", "elem"), strict=True):
        transform = make(num_classes=10, mode=mode)
        assert_same_bits(transform.mix(sharded), transform.map(batch))
        drawn = transform.draw(batch["mix_seed"], images.shape)
        on_devices = transform.draw(sharded["mix_seed"], images.shape)
        np.testing.assert_array_equal(on_devices.lam, drawn.lam)
        np.testing.assert_array_equal(on_devices.partner, drawn.partner)
    lam = rng.random(16, np.float32)
    partner = rng.permutation(16).astype(np.int32)
    box = np.sort(rng.integers(0, 10, (16, 2, 2)), axis=-1)
    put = functools.partial(jax.device_put, device=over(4, axis_type))
    blended = gm.mixup(put(images), put(lam), put(partner))
    np.testing.assert_array_equal(blended, gm.mixup(images, lam, partner))
    assert blended.sharding.is_equivalent_to(over(4, axis_type), 4) or axis_type == AxisType.Auto
    pasted = gm.cutmix(put(images), put(box), put(partner))
    np.testing.assert_array_equal(pasted, gm.cutmix(images, box, partner))


def test_fields_that_are_split_differently(rng: np.random.Generator) -> None:
    mesh = jax.make_mesh((2, 2), ("data", "model"), (AxisType.Explicit,) * 2)
    batch = jax.device_put(make_batch(rng, 8), NamedSharding(mesh, PartitionSpec("data")))
    tall = np.zeros((8, 12, 9, 3), np.uint8)
    by_rows = NamedSharding(mesh, PartitionSpec("data", "model"))
    split = batch | {"image": jax.device_put(tall, by_rows)}
    whole = batch | {"image": jax.device_put(tall, NamedSharding(mesh, PartitionSpec()))}
    mixing = gm.CutMixBatch(num_classes=10).mix
    for fields in (split, whole):
        for mix in (mixing, jax.jit(mixing)):
            with pytest.raises(ValueError, match=r"'image' is split as .*; expected .*reshard"):
                mix(fields)


def test_copies_of_a_transform_with_a_sharding() -> None:
    transform = gm.CutMixBatch(num_classes=3, sharding=over(2))
    assert copy.copy(transform) == copy.deepcopy([transform])[0] == transform
    with pytest.raises(TypeError, match=r"(?s)cannot be pickled.*LoaderDataset"):
        pickle.dumps(transform)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["elem", "pair", "batch"])
def test_drawn_shapes_give_the_same_bits_in_slices_of_any_size(
    mode: str, rng: np.random.Generator
) -> None:
    """Sizes, classes and parameters are drawn; labels are class ids, floats and smoothed ones."""
    for trial in range(4):
        slices, pairs, classes = 2 ** rng.integers(1, 4), rng.integers(1, 6), rng.integers(1, 40)
        smoothing = float(rng.choice([0, 0.1, rng.random()]))
        if trial % 2:  # compilers treat a slice of two records in a way of their own
            pairs, classes, smoothing = 1, rng.integers(20, 200), rng.uniform(0.05, 0.5)
        size = int(2 * slices * pairs)
        shape = (size, *rng.integers(1, 12, 3))
        kind = list(KINDS)[rng.integers(3)]
        labels: Any = rng.integers(0, classes, size)
        kind_of_label: gm.Target = gm.OneHot(int(classes), smoothing=smoothing)
        if rng.random() < 0.5:
            labels = rng.random((size, classes), np.float32)
            kind_of_label = gm.Soft(smoothing=smoothing)
        batch = {
            "image": rng.integers(0, 256, shape, np.uint8),
            "depth": rng.normal(size=shape).astype(np.float32),
            "label": labels,
            "mix_seed": rng.integers(2**32, size=size, dtype=np.uint32),
        }
        fields: dict[str, Any] = {
            "targets": {"label": kind_of_label},
            "image_key": ("image", "depth"),
            "prob": float(rng.choice([1, rng.random()])),
            "mode": mode,
        }
        if kind != "mixup":
            fields["spatial_axes"] = (1, 2)
        print(kind, slices, shape, fields)
        mixed = KINDS[kind](**fields).map(batch)
        sharding = over(int(slices))
        assert_same_bits(KINDS[kind](**fields, sharding=sharding).map(batch), mixed)
        assert_same_bits(KINDS[kind](**fields).mix(batch), mixed)


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_aligned_stack_makes_grains_own_batch(workers: int, rng: np.random.Generator) -> None:
    """In Grain's loader, with nested records, text, and dtypes that NumPy does not know."""
    source = [
        {
            "image": rng.integers(0, 256, (5, 3), np.uint8),
            "half": rng.normal(size=3).astype(jnp.bfloat16),
            "label": i,
            "more": ({"name": f"record {10**i}"}, np.float64(i)),
            "true": bool(i % 2),
        }
        for i in range(9)
    ]
    batches = {}
    for batch_fn in (None, gm.aligned_stack):
        loader = grain.DataLoader(
            data_source=source,
            sampler=grain.samplers.SequentialSampler(9),
            operations=[grain.transforms.Batch(4, batch_fn=batch_fn)],
            worker_count=workers,
        )
        batches[batch_fn is None] = list(loader)
    assert len(batches[True]) == 3
    for own, grains in zip(batches[False], batches[True], strict=True):
        assert jax.tree.structure(own) == jax.tree.structure(grains)
        for x, y in zip(jax.tree.leaves(own), jax.tree.leaves(grains), strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


def test_aligned_stack_is_not_copied(rng: np.random.Generator) -> None:
    from grain_mix import _place

    for dtype in (np.uint8, np.float32, jnp.bfloat16):
        x = gm.aligned_stack([rng.integers(0, 9, (7, 3)).astype(dtype) for _ in range(5)])
        assert x.ctypes.data % 64 == 0
        assert _place.to_host({"x": x})["x"] is x
        placed = jax.device_put(x, _place.host())  # as a jitted function takes it
        assert placed.unsafe_buffer_pointer() == x.ctypes.data
