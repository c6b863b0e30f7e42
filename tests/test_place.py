"""Mixing over devices: the result is the same everywhere, and devices never communicate."""

import contextlib
import copy
import dataclasses
import pickle
import re
from collections.abc import Iterator
from typing import Any

import common
import grain
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from common import KINDS, Rng, assert_same, data_loader, each_kind, nightly, over, slow
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import grain_mix as gm
from grain_mix import _plan, _run, _sharding

COLLECTIVES = r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
each_axis_type = pytest.mark.parametrize("axis_type", [AUTO, EXPLICIT])


def make_batch(rng: Rng, size: int) -> dict[str, np.ndarray]:
    return common.make_batch(rng, size) | {"id": np.arange(size, dtype=np.int32)}


def on_grid(
    *axes: Any, shape: tuple[int, int] = (4, 2), types: tuple[AxisType, AxisType] = (AUTO, AUTO)
) -> NamedSharding:
    """Over a mesh of two axes, of which the batch is split along these."""
    names = ("data", "model") if shape == (4, 2) else ("model", "data")
    return NamedSharding(jax.make_mesh(shape, names, types), PartitionSpec(*axes))


def check_same(transform: Any, batch: dict[str, np.ndarray], sharding: Any) -> None:
    expected = transform.map(batch)
    actual = dataclasses.replace(transform, sharding=sharding).map(batch)
    assert list(actual) == list(expected)
    for value in actual.values():
        assert isinstance(value, jax.Array)
        assert value.sharding == sharding
    assert_same([actual], [expected])


# --- the same on any devices ----------------------------------------------------------------------

DTYPES = ("uint16", "uint32", "int8", "int16", "int32", "float16", "bfloat16", "float32")
DEVICES: dict[str, tuple[str, Any, int, dict[str, Any]]] = {
    "1": ("both", over(1), 16, {}),
    "2": ("mixup", over(2), 16, {}),
    "4, Explicit": ("cutmix", over(4, EXPLICIT), 16, {}),
    "8": ("both", over(8), 16, {}),
    "pairs": ("cutmix", over(8), 16, {"mode": "pair"}),
    "one draw": ("both", over(8), 16, {"mode": "batch"}),
    "padding": ("both", over(4), 8, {"valid_key": "valid"}),
    "boxes of every dtype": ("cutmix", over(4), 8, {"image_key": ("image", "bool", *DTYPES)}),
    "both of every dtype": ("both", over(4), 8, {"image_key": ("image", *DTYPES)}),
    "repeated": ("both", on_grid("data"), 16, {}),
    "repeated in a turned mesh": ("mixup", on_grid("data", shape=(2, 4)), 16, {}),
    "two axes": ("both", on_grid(("model", "data")), 16, {}),
    "axes of two types": ("mixup", on_grid("data", types=(AUTO, EXPLICIT)), 16, {}),
    "both of two types": ("both", on_grid(("data", "model"), types=(EXPLICIT, AUTO)), 16, {}),
    "not split": ("cutmix", on_grid(), 16, {}),
    "another device": ("both", SingleDeviceSharding(jax.devices()[3]), 16, {}),
    "one record": ("both", SingleDeviceSharding(jax.devices()[1]), 1, {}),
    "an odd batch": ("both", SingleDeviceSharding(jax.devices()[1]), 7, {}),
}


RARE = {"2", "8", "repeated in a turned mesh", "axes of two types", "two axes", "an odd batch"}


@pytest.mark.parametrize("case", [nightly(case) if case in RARE else case for case in DEVICES])
def test_any_number_of_devices(case: str, rng: Rng) -> None:
    kind, sharding, size, fields = DEVICES[case]
    batch = make_batch(rng, size)
    if "valid_key" in fields:
        batch["valid"] = np.arange(size) < 5
    for dtype in set(fields.get("image_key", ())) - {"image"}:
        image = rng.normal(60, 25, (size, 11, 9, 3)).clip(0, 127)
        batch[dtype] = image.astype(jax.numpy.dtype(dtype))
    transform = KINDS[kind](num_classes=10, **fields)
    check_same(transform, batch, sharding)
    if "image_key" in fields:
        assert_same([jax.jit(transform.mix)(batch)], [transform.map(batch)])


@pytest.mark.parametrize("mode", [slow("pair"), nightly("elem"), nightly("batch")])
def test_drawn_shapes_give_the_same_bits_in_slices_of_any_size(mode: str, rng: Rng) -> None:
    """Sizes, classes and parameters are drawn; labels are class ids, floats and smoothed ones."""
    for trial in range(4):
        slices, pairs, classes = 2 ** rng.integers(1, 4), rng.integers(1, 6), rng.integers(1, 40)
        smoothing = float(rng.choice([0, 0.1, rng.random()]))
        if trial % 2:  # compilers treat a slice of two records in a way of their own
            pairs, classes, smoothing = 1, rng.integers(20, 200), rng.uniform(0.05, 0.5)
        size = int(2 * slices * pairs)
        shape = tuple(rng.integers(2, 12, 3))
        kind_of_label: gm.Target = gm.OneHot(int(classes), smoothing=smoothing)
        batch = common.make_batch(rng, size, shape, label=rng.integers(0, classes, size))
        if rng.random() < 0.5:
            batch["label"] = rng.random((size, classes), np.float32)
            kind_of_label = gm.Soft(smoothing=smoothing)
        batch["depth"] = rng.normal(size=(size, *shape)).astype(np.float32)
        kind = str(rng.choice(list(KINDS)))
        fields: dict[str, Any] = {
            "targets": {"label": kind_of_label},
            "image_key": ("image", "depth"),
            "prob": float(rng.choice([1, rng.random()])),
            "mode": mode,
        } | ({} if kind == "mixup" else {"spatial_axes": (1, 2)})
        print(kind, slices, shape, fields)
        transform = KINDS[kind](**fields)
        check_same(transform, batch, over(int(slices)))
        assert_same([transform.mix(batch)], [transform.map(batch)])


# --- programs -------------------------------------------------------------------------------------


@each_kind
def test_map_needs_no_communication(kind: str, rng: Rng) -> None:
    transform = KINDS[kind](num_classes=10, sharding=over(8))
    batch = make_batch(rng, 16)
    plan = _plan.plan_of(transform._setup, batch)
    program: Any = _run._on_devices(_sharding.local_part(transform.sharding))
    program = program.lower(plan.mixing, plan.inputs(batch)).compile().as_text()
    assert "ENTRY" in program
    assert not re.findall(COLLECTIVES, program)
    assert "conditional" not in program  # platforms are told apart by the compiler


@each_kind
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_never_wait(kind: str, platform: str, rng: Rng) -> None:
    """A loop whose length depends on data, or a callback, would make the GPU's host wait."""
    traced = jax.jit(KINDS[kind](num_classes=10).mix).trace(make_batch(rng, 16))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo" in program
    assert not re.findall(r"stablehlo\.while|callback|infeed|outfeed", program)


@pytest.mark.parametrize(
    ("kind", "axis_type", "mode", "in_shard_map"),
    [
        ("both", AUTO, "elem", False),
        ("both", EXPLICIT, "batch", False),
        ("cutmix", AUTO, "pair", False),
        ("mixup", EXPLICIT, "elem", False),
        ("both", AUTO, "elem", True),
        ("mixup", EXPLICIT, "pair", True),
        ("cutmix", EXPLICIT, "elem", True),
        ("mosaic", AUTO, "elem", False),
    ],
)
def test_mix_inside_a_users_program(
    kind: str, axis_type: AxisType, mode: str, in_shard_map: bool, rng: Rng
) -> None:
    kinds = KINDS | {"mosaic": gm.MosaicBatch}
    transform, sharding = kinds[kind](num_classes=10, mode=mode), over(4, axis_type)
    batch = make_batch(rng, 16)
    sharded, mix, parts = jax.device_put(batch, sharding), transform.mix, PartitionSpec("data")
    if in_shard_map:
        mix = jax.shard_map(mix, mesh=sharding.mesh, in_specs=(parts,), out_specs=parts)
    compiled = jax.jit(mix).lower(sharded).compile()
    assert_same([compiled(sharded)], [transform.map(batch)])
    moved = re.findall(rf"= (\S+?)\[[\d,]*\]\S* (?:{COLLECTIVES})\(", compiled.as_text())
    # The records of a batch have to learn its first one's seed; nothing else moves.
    assert moved == (["u32"] if mode == "batch" else [])
    if in_shard_map:
        assert not re.findall(COLLECTIVES, compiled.as_text())


def test_a_hundred_batches_compile_once(rng: Rng) -> None:
    sharding = over(4)
    program: Any = _run._on_devices(_sharding.local_part(sharding))
    before = program._cache_size()
    for _ in range(100):
        transform = gm.MixBatch(num_classes=9 + 1, prob=0.987, sharding=sharding)
        transform.map(make_batch(rng, 8))
    assert program._cache_size() == before + 1


CALLS: list[int] = []


def counted(key: jax.Array, lam: jax.Array, lengths: tuple[int, ...]) -> jax.Array:
    CALLS.append(len(lengths))
    return jax.random.uniform(key, lengths) < lam


@pytest.mark.parametrize("sharding", [None, over(2)], ids=["host", "devices"])
def test_fields_that_only_pass_compile_nothing(
    sharding: Any, rng: Rng, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is a user's function called again, whatever the fields hold that are not mixed."""

    def batch(i: int, size: int = 8) -> dict[str, Any]:
        fields: dict[str, Any] = make_batch(rng, size)
        fields["id"] = np.arange(size, dtype=["int64", "int32", "uint8", "float32"][i])
        fields["text"] = {"tokens": np.zeros((size, 5 + i), np.int32), "mask": np.ones((size, i))}
        if sharding is None:  # what devices cannot hold
            fields["name"] = np.array(["x" * (i + 1)] * size)
            fields["note"] = [None, "all of it", ["a"] * size, 5][i]
        names = list(fields)
        return {name: fields[name] for name in names[i:] + names[:i]}

    transform = gm.WeightMapMixBatch(counted, num_classes=10, sharding=sharding)
    methods = [transform.map] if sharding else [transform.map, transform.mix]
    for method in methods:
        method(batch(0))
    called = len(CALLS)
    with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
        for i in range(4):
            for method in methods:
                method(batch(i))
        assert [record.getMessage() for record in caplog.records] == []
        assert len(CALLS) == called
        transform.map(batch(0, size=4))
    assert any("Compiling" in record.getMessage() for record in caplog.records)


# --- in a loader, and errors ----------------------------------------------------------------------


def test_in_a_loader_and_not_in_a_worker() -> None:
    """Fails at the first batch, before any worker starts, and says what to write instead."""
    transform = gm.MixBatch(num_classes=16)
    sharded = dataclasses.replace(transform, sharding=over(4))
    operations = gm.RecordSeed(), grain.transforms.Batch(8)
    records = [{"image": np.full((4, 4, 3), i, np.uint8), "label": i} for i in range(16)]
    assert_same(*(data_loader(records, *operations, mix) for mix in (sharded, transform)))
    with pytest.raises(TypeError, match=r"LoaderDataset\(loader\).map\(gm.MixBatch") as error:
        next(iter(data_loader(records, *operations, sharded, worker_count=2)))
    assert "ThreadPrefetchIterDataset(dataset" in str(error.value)


def test_copies_of_a_transform_with_a_sharding() -> None:
    transform = gm.CutMixBatch(num_classes=3, sharding=over(2))
    assert copy.copy(transform) == copy.deepcopy([transform])[0] == transform
    with pytest.raises(TypeError, match=r"(?s)cannot be pickled.*worker.*LoaderDataset"):
        pickle.dumps(transform)


@pytest.mark.parametrize(
    ("sharding", "message"),
    [
        (on_grid().mesh, "sharding.*NamedSharding"),
        (PartitionSpec("data"), "sharding.*NamedSharding"),
        (on_grid("data", "model"), "sharding.*axis 0"),
        (on_grid("data", None, None), "sharding.*axis 0"),
        (
            NamedSharding(over(4).mesh.abstract_mesh, PartitionSpec("data")),
            "names no devices.*make_mesh",
        ),
        (over(4).with_memory_kind("pinned_host"), "memory_kind='pinned_host'.*leave memory_kind"),
        (over(4, AxisType.Manual), "without Manual axes"),
        (NamedSharding(over(4).mesh, PartitionSpec(PartitionSpec.UNCONSTRAINED)), "UNCONSTRAINED"),
        (
            NamedSharding(over(4, EXPLICIT).mesh, PartitionSpec(unreduced={"data"})),
            "unreduced.*axes that split the batch",
        ),
    ],
)
def test_wrong_shardings(sharding: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"(?s)^MixUpBatch: .*{message}"):
        gm.MixUpBatch(sharding=sharding)


@pytest.mark.parametrize("size", [4, 12, 15])
def test_batches_that_do_not_divide(size: int, rng: Rng) -> None:
    """12 records on 4 devices would tear the pairs (2, 3) and (8, 9) apart."""
    message = rf"{size} records in 4 slices.*multiple of 8.*drop_remainder=True"
    with pytest.raises(ValueError, match=message):
        gm.MixUpBatch(num_classes=10, sharding=over(4)).map(make_batch(rng, size))


def test_fields_that_devices_cannot_hold(rng: Rng) -> None:
    transform = gm.MixUpBatch(num_classes=10, sharding=over(2))
    batch = make_batch(rng, 4)
    for field, error, message in [
        ({"name": np.array(list("abcd"))}, TypeError, "'name'.*drop the field"),
        ({"note": "all"}, TypeError, "'note'.*str.*drop the field"),
        ({"big": np.arange(4) + 2**40}, ValueError, "'big'.*jax_enable_x64"),
    ]:
        with pytest.raises(error, match=message):
            transform.map(batch | field)
    small = transform.map(batch | {"small": np.arange(4)})["small"]
    assert (small.dtype, small.tolist()) == (np.int32, [0, 1, 2, 3])


# --- arrays and meshes of the user's own ----------------------------------------------------------


@contextlib.contextmanager
def globally(mesh: Mesh) -> Iterator[None]:
    """The other way that `jax.set_mesh` has."""
    jax.set_mesh(mesh)
    try:
        yield
    finally:
        jax.set_mesh(Mesh(np.empty((), object), ()))


def no_mesh(mesh: Mesh) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


@pytest.mark.parametrize(
    ("count", "axis_type", "entering"),
    [
        (1, AUTO, globally),
        (2, EXPLICIT, jax.set_mesh),
        (4, EXPLICIT, no_mesh),
        nightly(4, AUTO, no_mesh),
        nightly(4, AUTO, jax.set_mesh),
        nightly(4, EXPLICIT, globally),
    ],
)
def test_any_ambient_mesh(count: int, axis_type: AxisType, entering: Any, rng: Rng) -> None:
    """Everything, on the host, elsewhere, and of arrays that lie on the mesh's devices."""
    batch, ambient = make_batch(rng, 16), over(count, axis_type)
    on_devices = jax.device_put(batch, ambient)
    shape = batch["image"].shape
    lam, partner = rng.random(16, np.float32), rng.permutation(16).astype(np.int32)
    box = np.sort(rng.integers(0, 10, (16, 2, 2)), axis=-1)
    arguments = {
        gm.mixup: (batch["image"], lam, partner),
        gm.cutmix: (batch["image"], box, partner),
    }
    expected = {function: np.asarray(function(*of)) for function, of in arguments.items()}
    for kind, mode in zip(KINDS, ("pair", "batch", "elem"), strict=True):
        if (count, kind) in ((1, "mixup"), (1, "cutmix"), (2, "mixup"), (2, "cutmix")):
            continue
        transform = KINDS[kind](num_classes=10, mode=mode)
        mixed = transform.map(batch)
        drawn = jax.device_get(transform.draw(batch["mix_seed"], shape))
        with entering(ambient.mesh):
            results = [transform.mix(on_devices), jax.jit(transform.mix)(on_devices)]
            if entering is not no_mesh:
                results += [transform.map(batch), transform.mix(batch)]
                results += [dataclasses.replace(transform, sharding=ambient).map(batch)]
                results += [dataclasses.replace(transform, sharding=over(8)).map(batch)]
            for seeds in (batch["mix_seed"], on_devices["mix_seed"]):
                jax.tree.map(np.testing.assert_array_equal, transform.draw(seeds, shape), drawn)
        assert_same(results, [mixed] * len(results))
    for function, of in arguments.items():
        with entering(ambient.mesh):
            made = function(*of), function(*jax.device_put(of, ambient))
        assert made[1].sharding.is_equivalent_to(ambient, 4) or axis_type == AUTO
        for each in made:
            np.testing.assert_array_equal(each, expected[function])


@each_axis_type
def test_the_ambient_mesh_is_entered_again(axis_type: AxisType, rng: Rng) -> None:
    with jax.set_mesh(over(4, axis_type).mesh):
        before = jax.sharding.get_abstract_mesh()
        gm.MixUpBatch(num_classes=10).map(make_batch(rng, 4))
        with pytest.raises(KeyError):
            gm.MixUpBatch(image_key="images").map(make_batch(rng, 4))
        assert jax.sharding.get_abstract_mesh() == before


def looped(key: jax.Array, lam: jax.Array, lengths: tuple[int, ...]) -> jax.Array:
    """A loop from a constant, a branch, and a function of `jax.random` that has both."""
    count = jax.random.poisson(key, 3.0)
    fades = jax.lax.fori_loop(0, 4, lambda i, w: w * 0.9 + 0.1 * lam, jnp.zeros(lengths))
    return jax.lax.cond(count > 3, lambda: fades, lambda: 1 - fades)


@dataclasses.dataclass(frozen=True)
class Walk(gm.Target):
    """Says which records are mixed, after a loop."""

    def mix(self, sources: Any, draw: gm.Draw, space: gm.Space) -> Any:
        total, _ = jax.lax.scan(lambda a, b: (a + b, a), jnp.float32(0), draw.shares)
        while_ = jax.lax.while_loop(lambda i: i < 3, lambda i: i + 1, jnp.int32(0))
        return jnp.append(draw.sources, while_ * jnp.rint(total).astype(int))


@pytest.mark.parametrize("axis_type", [None, AUTO, EXPLICIT])
def test_loops_and_positions_of_users_functions(axis_type: AxisType | None, rng: Rng) -> None:
    """What works on the host works on devices, and positions are those in the batch."""
    transform = gm.WeightMapMixBatch(looped, targets={"id": Walk()}, label_key=None)
    batch = make_batch(rng, 16)
    del batch["label"]
    expected = transform.map(batch)
    assert expected["id"][5].tolist() == [5, 4, 3]
    if axis_type is None:
        assert_same([jax.device_get(jax.jit(transform.mix)(batch))], [expected])
        return
    check_same(transform, batch, over(4, axis_type))
    on_devices = jax.device_put(batch, over(4, axis_type))
    with jax.set_mesh(over(4, axis_type).mesh):
        assert_same([jax.device_get(jax.jit(transform.mix)(on_devices))], [expected])


# Each function of `jax.random` that makes numbers, with what it needs besides a key.
RANDOM: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(["ball", "orthogonal"], (3,)),
    **dict.fromkeys(["bits", "cauchy", "exponential", "gumbel", "laplace", "logistic"], ((3,),)),
    **dict.fromkeys(["maxwell", "normal", "rademacher", "uniform"], ((3,),)),
    **dict.fromkeys(["bernoulli", "geometric"], (0.4,)),
    **dict.fromkeys(["chisquare", "gamma", "loggamma", "pareto", "poisson", "t"], (2.5,)),
    **dict.fromkeys(["beta", "f", "weibull_min"], (2.0, 3.0)),
    **dict.fromkeys(["choice", "permutation"], (jnp.arange(5),)),
    **dict.fromkeys(["randint"], ((3,), 0, 9)),
    **dict.fromkeys(["binomial"], (5.0, 0.4)),
    **dict.fromkeys(["categorical", "dirichlet"], (jnp.ones(4),)),
    **dict.fromkeys(["truncated_normal"], (-1.0, 1.0)),
    **dict.fromkeys(["lognormal", "rayleigh", "wald"], (1.5,)),
    **dict.fromkeys(["triangular"], (0.0, 0.5, 1.0)),
    **dict.fromkeys(["double_sided_maxwell"], (0.0, 1.0)),
    **dict.fromkeys(["generalized_normal"], (1.5,)),
    **dict.fromkeys(["multivariate_normal"], (jnp.zeros(2), jnp.eye(2))),
    **dict.fromkeys(["multinomial"], (5.0, jnp.ones(4) / 4)),
}


def all_random(key: jax.Array, lam: jax.Array, lengths: tuple[int, ...]) -> jax.Array:
    """One number of each."""
    keys = jax.random.split(key, len(RANDOM))
    drawn = [
        jnp.ravel(getattr(jax.random, name)(key, *arguments))[0].astype(jnp.float32)
        for key, (name, arguments) in zip(keys, RANDOM.items(), strict=True)
    ]
    shown = jnp.resize(jnp.abs(jnp.stack(drawn)) % 1, lengths)
    return jnp.where(jnp.isfinite(shown), shown, 0)


@pytest.mark.slow
@pytest.mark.nightly
@each_axis_type
def test_all_of_jax_random_on_devices(axis_type: AxisType, rng: Rng) -> None:
    """The same but for rounding in JAX's own functions, which is each program's own."""
    transform, batch = gm.WeightMapMixBatch(all_random, num_classes=10), make_batch(rng, 4)
    sharded = dataclasses.replace(transform, sharding=over(2, axis_type))
    expected, found = transform.map(batch)["label"], sharded.map(batch)["label"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_shards_that_are_split_further(rng: Rng) -> None:
    mesh = jax.make_mesh((2, 2), ("a", "b"), (EXPLICIT, EXPLICIT))
    split, one = PartitionSpec(("a", "b")), PartitionSpec("a")
    batch = jax.device_put(make_batch(rng, 8), NamedSharding(mesh, split))
    mix = gm.CutMixBatch(num_classes=10).mix
    with jax.set_mesh(mesh):
        mapped = jax.shard_map(mix, in_specs=one, out_specs=one, axis_names={"a"})
        with pytest.raises(NotImplementedError, match=r"over \('a',\).*name all axes"):
            jax.jit(mapped)(batch)


def test_batches_of_a_symbolic_size(rng: Rng) -> None:
    (size,) = jax.export.symbolic_shape("b")
    specs = {
        name: jax.ShapeDtypeStruct((size, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype))
        for name, x in make_batch(rng, 8).items()
    }
    with pytest.raises(TypeError, match=r"a batch of b records.*a program for each batch size"):
        jax.export.export(jax.jit(gm.MixUpBatch(num_classes=10).mix))(specs)


def test_fields_that_are_split_differently(rng: Rng) -> None:
    mesh = jax.make_mesh((2, 2), ("data", "model"), (EXPLICIT, EXPLICIT))
    batch = jax.device_put(make_batch(rng, 8), NamedSharding(mesh, PartitionSpec("data")))
    padded = gm.CutMixBatch(num_classes=10, valid_key="valid").mix
    with pytest.raises(ValueError, match=r"'valid' is split as .*; expected .*reshard"):
        padded(batch | {"valid": np.ones(8, bool)})
    mix = gm.CutMixBatch(num_classes=10).mix
    for spec in (PartitionSpec("data", "model"), PartitionSpec()):
        image = jax.device_put(np.zeros((8, 12, 9, 3), np.uint8), NamedSharding(mesh, spec))
        for function in (mix, jax.jit(mix)):
            with pytest.raises(ValueError, match=r"'image' is split as .*; expected .*reshard"):
                function(batch | {"image": image})
