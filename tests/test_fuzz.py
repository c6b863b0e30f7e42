"""Any input is either mixed, with all invariants, or is one of our errors.

`GRAIN_MIX_FUZZ=20` runs twenty times as many examples, of twenty times as many programs.
"""

import contextlib
import dataclasses
import decimal
import fractions
import functools
import itertools
import os
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import reference
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import grain_mix as gm

TIMES = int(os.environ.get("GRAIN_MIX_FUZZ", "1"))
# A program compiles for a second and then runs for a millisecond, so few are tried in each run;
# they differ from run to run, but in CI.
FIRST_PROGRAM = 0 if "CI" in os.environ else np.random.default_rng().integers(2**31)
PROGRAMS = 6 * TIMES

fuzz = functools.partial(
    settings,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # examples are small as they are, and to shrink them compiles more
    suppress_health_check=list(HealthCheck),
)


# Some batches that are made up have one seed for all records.
pytestmark = pytest.mark.filterwarnings("ignore:grain_mix. several records of one batch")


def assert_is_ours(error: Exception) -> None:
    assert type(error) in (KeyError, TypeError, ValueError), error
    text = str(error.args[0])
    where = r"((MixUp|CutMix|Mix|WeightMapMix)Batch|RecordSeed|PairedSampler|mixup|cutmix)(\.draw)?"
    assert re.fullmatch(rf"{where}: .+; expected .+; .+", text, re.DOTALL), text
    assert len(text) < 2000, "quotes too much"


def try_out(function: Callable[[], Any]) -> Any:
    """The function's result, or None and one of our errors."""
    try:
        return function()
    except Exception as error:
        if not str(error.args[0] if error.args else "").count("; expected "):
            raise
        assert_is_ours(error)
        note(str(error))
        return None


# --- parameters -----------------------------------------------------------------------------------

NUMBERS = [0, 1, -1, 2, 0.0, -0.0, 0.5, 1.0, 0.2, 1.5, np.nan, np.inf, -np.inf, 5e-324, 1e-310]
NUMBERS += [1e-30, 1e30, 1.7e308, 10**400, -(10**400), 2**31, 2**63, np.float16(0.3), np.float32(1)]
NUMBERS += [np.float64(0.7), np.int8(3), np.uint64(2**63), ml_dtypes.bfloat16(0.5)]
NUMBERS += [fractions.Fraction(1, 3), fractions.Fraction(10**500), fractions.Fraction(1, 10**500)]
NUMBERS += [decimal.Decimal("0.5"), decimal.Decimal("nan"), 1j, np.longdouble("0.1")]
THINGS = [None, True, False, np.True_, "", "x", "elem", "pair", "image", "0.5", b"x", [], (), {}]
THINGS += [[1], (1, 2), (0.2, 0.8), [0.8, 0.2], (0.1,), (1, 2, 3), ("image", "mask"), ["label"]]
THINGS += [(0.1, "x"), (None, 1), (10**400, 1), (-1, -2), (1, 1), (0, 1), ("x", "x"), ("", 1)]
THINGS += [set(), object(), print, dict, ..., np.array(0.5), np.array([1, 2]), np.array(["elem"])]
THINGS += [np.array([], object), np.datetime64("2020-01-01"), range(1, 3), np.str_("batch")]
ANYTHING = st.sampled_from(NUMBERS + THINGS)
GOOD: dict[str, Any] = {
    "alpha": [0.2, 1, np.float32(0.4)],
    "mode": ["elem", "pair", "batch"],
    "prob": [1.0, 0.5, 0],
    "minmax": [None, (0.1, 0.6), [0, 1]],
    "spatial_axes": [(1,), (1, 2), [2, 3], (-1,)],
    "num_classes": [None, 3, np.int64(4)],
    "label_smoothing": [0.0, 0.1],
    "sparse_labels": [False, True],
    "key": ["image", "label", "mask", "depth"],
    "keys": [(), ("caption",), ["x", 0]],
    "box_format": ["xyxy", "rel_yxyx"],
    "min_visible": [0.1, 0, 1],
}
CLASSES = [gm.MixUpBatch, gm.CutMixBatch, gm.MixBatch, gm.WeightMapMixBatch]


def coins(key: jax.Array, lam: jax.Array, lengths: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, lengths) < lam


def fog(key: jax.Array, lam: jax.Array, lengths: tuple[int, ...]) -> jax.Array:
    return jnp.clip(jax.random.uniform(key, lengths, minval=-0.5, maxval=1) + lam, 0, 1)


def good_values(field: str) -> list[Any]:
    if field == "sharding":
        return [None, jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])]
    [name] = [name for name in GOOD if field.endswith(name)] or ["prob"]
    return GOOD[name]


@fuzz(max_examples=800 * TIMES)
@given(data=st.data())
def test_parameters(data: st.DataObject) -> None:
    """A transform is made or refused. If made, it is a value with plain fields."""
    cls = data.draw(st.sampled_from(CLASSES))
    names = [field.name for field in dataclasses.fields(cls)]
    chosen = data.draw(st.lists(st.sampled_from(names), max_size=4, unique=True))
    bad = data.draw(st.sampled_from([None, *chosen]))
    fields = {
        name: data.draw(ANYTHING if name == bad else st.sampled_from(good_values(name)), label=name)
        for name in chosen
    }
    if cls is gm.WeightMapMixBatch and "weight_map" not in fields:
        fields["weight_map"] = coins
    transform = try_out(lambda: cls(**fields))
    if transform is None:
        return
    assert transform == cls(**fields)
    assert hash(transform) == hash(cls(**fields))
    if transform.sharding is None:
        assert pickle.loads(pickle.dumps(transform)) == transform
    plain = (bool, int, float, str, tuple, type(None), jax.sharding.Sharding)
    others = [value for name, value in vars(transform).items() if name != "weight_map"]
    assert all(isinstance(value, plain) for value in others), transform

    def drawn(seeds: Any) -> Any:
        return transform.draw(seeds, (4, 5, 6, 3))

    # Shapes without values: all of a program but its compilation.
    if data.draw(st.integers(0, 9)) == 9:
        try_out(lambda: jax.eval_shape(drawn, seeds_of(4)))


def seeds_of(size: int) -> np.ndarray:
    return np.arange(size, dtype=np.uint32)


@fuzz(max_examples=300 * TIMES)
@given(fields=st.tuples(ANYTHING, ANYTHING, ANYTHING), good=st.integers(0, 3))
def test_sampler_and_seed_parameters(fields: tuple[Any, Any, Any], good: int) -> None:
    wrapped = grain.samplers.SequentialSampler(12)
    sampler, hosts, workers = (
        value if i == good else use
        for i, (value, use) in enumerate(zip(fields, (wrapped, 2, 3), strict=True))
    )
    paired = try_out(lambda: gm.PairedSampler(sampler, shard_count=hosts, worker_count=workers))
    if paired is not None and sampler is wrapped:
        assert sorted(record.index for record in paired) == list(range(12))
    seed = try_out(lambda: gm.RecordSeed(fields[0]))
    if seed is not None:
        rng = np.random.default_rng(0)
        assert try_out(lambda: seed.random_map({1: 0}, rng)).keys() == {1, fields[0]}
    try_out(lambda: gm.RecordSeed().random_map(fields[1], np.random.default_rng(0)))
    try_out(lambda: gm.RecordSeed().random_map({}, fields[2]))


# --- programs: a transform with the fields that it is made for -----------------------------------

DTYPES = ["uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "bfloat16", "float32"]
LABELS = ["ids", "one-hot", "multi-label", "soft", "none"]
LAYOUTS = [  # shape of a record, axes of its box
    ((5, 4, 3), (1, 2)),
    ((3, 4, 5), (2, 3)),
    ((3, 5, 4), (-1, -2)),
    ((4, 5), (1, 2)),
    ((9,), (1,)),
    ((7, 2), (1,)),
    ((3, 4, 2, 3), (1, 2, 3)),
    ((1, 1, 1), (1, 2)),
]
K = 5


@dataclasses.dataclass(frozen=True)
class Program:
    transform: Any
    fields: dict[str, tuple[tuple[int, ...], str]]  # shape of a record and dtype
    size: int
    method: str

    def batch(self, rng: np.random.Generator, special: bool) -> dict[str, np.ndarray]:
        return {
            name: values(rng, name, (self.size, *shape), dtype, special)
            for name, (shape, dtype) in self.fields.items()
        }


def values(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], dtype: str, special: bool
) -> np.ndarray:
    if name == "mix_seed":
        return rng.integers(2**32, size=shape, dtype=np.uint32)
    if name == "boxes":
        corners = np.sort(rng.integers(0, 7, (*shape[:-1], 2, 2)), axis=-2)
        return corners.reshape(shape).astype(dtype)
    if name in ("class", "caption") and dtype == "int64":
        return rng.integers(0, 2**31, shape)
    if name == "label":
        if len(shape) == 1:
            return rng.integers(K, size=shape).astype(dtype)
        if dtype == "bool":
            return rng.integers(2, size=shape).astype(dtype)
        if "float" in dtype:
            return rng.dirichlet(np.ones(K), shape[0]).astype(jnp.dtype(dtype))
        return np.eye(K, dtype=dtype)[rng.integers(K, size=shape[0])]
    if dtype == "bool":
        return rng.integers(2, size=shape).astype(bool)
    if "int" in dtype:
        info = np.iinfo(dtype)
        x = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
        return np.where(rng.random(shape) < 0.2, info.max, x).astype(dtype) if special else x
    x = rng.normal(size=shape).astype(jnp.dtype(dtype))
    if special:
        odd = np.array([np.nan, np.inf, -np.inf, 0, -0.0, float(jnp.finfo(dtype).max)])
        x = np.where(rng.random(shape) < 0.3, rng.choice(odd, shape).astype(x.dtype), x)
    return x


@functools.cache
def program(index: int) -> Program:
    rng = np.random.default_rng(index)

    def one(options: Any) -> Any:
        return options[rng.integers(len(options))]

    cls = CLASSES[index % 4]
    weight_map = one([coins, fog])
    shape, axes = one(LAYOUTS)
    copies = cls is gm.CutMixBatch or (cls is gm.WeightMapMixBatch and weight_map is coins)
    dtype = one([*DTYPES, "bool"] if copies else DTYPES)
    method = one(["map", "map", "jit", "sharded"])
    size = one([2, 4, 8] if method == "sharded" else [1, 2, 3, 4, 7])
    labels = one(LABELS)
    own: dict[str, Any] = {"mode": one(GOOD["mode"]), "prob": one([1.0, 1.0, 0.5, 0.0])}
    fields: dict[str, Any] = {"image": (shape, dtype)}
    if rng.random() < 0.3:
        own["image_key"] = ("image", "depth")
        fields["depth"] = (shape, one(DTYPES))
    if labels == "ids":
        fields["label"] = ((), one(["int64", "int32", "uint8", "int8", "uint64"]))
        own |= one([{"num_classes": K}, {"num_classes": K, "label_smoothing": 0.2}])
        own |= one([{}, {}, {"sparse_labels": True, "label_smoothing": 0.0}])
    elif labels == "none":
        own["label_key"] = None
    else:
        dtypes = {
            "one-hot": ["int8", "int64", "uint8", "float32"],
            "multi-label": ["bool"],
            "soft": ["float64", "float32", "float16", "bfloat16"],
        }
        fields["label"] = ((K,), one(dtypes[labels]))
        own |= one([{}, {"num_classes": K}, {"label_smoothing": 0.1}])
    if cls is not gm.MixUpBatch:
        own["spatial_axes"] = axes
        alphas = ("mixup_alpha", "cutmix_alpha") if cls is gm.MixBatch else ("alpha",)
        if cls is gm.WeightMapMixBatch:
            own["weight_map"] = weight_map
        else:
            own |= one([{}, {"minmax" if cls is gm.CutMixBatch else "cutmix_minmax": (0.2, 0.9)}])
    else:
        alphas = ("alpha",)
    own |= {alpha: one([0.2, 1.0, 8, np.float32(0.7)]) for alpha in alphas}
    if rng.random() < 0.3:
        own["pair_keys"] = ("caption",)
        fields["caption"] = (one([(6,), (), (2, 3)]), one(["int64", "uint8", "float16", "bool"]))
    no_map = cls is not gm.WeightMapMixBatch
    if rng.random() < 0.3 and no_map and (cls is gm.MixUpBatch or len(axes) == 2):
        own |= {"boxes_key": "boxes", "box_format": "xyxy", "box_keys": ("class",)}
        fields["boxes"] = ((3, 4), one(["int32", "uint8", "float32", "int64"]))
        fields["class"] = ((3,), "int64")
    if rng.random() < 0.4 and (copies or no_map):
        own["mask_key"] = "mask"
        fields["mask"] = (one([shape, tuple(shape[a - (a > 0)] for a in axes)]), "uint8")
        if -1 in axes:
            fields["mask"] = (shape, "uint8")
        if "boxes" in fields and shape[:1] == fields["boxes"][0][:1]:
            del fields["mask"], own["mask_key"]  # would be masks of instances
    fields["mix_seed"] = ((), "uint32")
    if method == "sharded":
        devices = jax.devices()[: size // 2]
        mesh = jax.make_mesh((len(devices),), ("data",), devices=devices)
        own["sharding"] = NamedSharding(mesh, PartitionSpec("data"))
    return Program(cls(**own), fields, size, method)


@functools.cache
def jitted(transform: Any) -> Any:
    return jax.jit(transform.mix)


# --- what may happen to a batch on its way --------------------------------------------------------


def ragged(x: np.ndarray) -> np.ndarray:
    rows = np.empty(len(x), object)
    rows[:] = [np.ravel(x[i])[:i] for i in range(len(x))]
    return rows


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


def with_value(x: np.ndarray, value: Any) -> np.ndarray:
    x = x.copy()
    with np.errstate(all="ignore"):
        x.reshape(-1)[-1:] = np.array(value).astype(x.dtype)
    return x


SAME: dict[str, Callable[[np.ndarray], Any]] = {
    "read-only": read_only,
    "aligned": reference.aligned,
    "every other": lambda x: np.repeat(x, 2, axis=0)[::2],
    "backwards": lambda x: x[::-1].copy()[::-1],
    "Fortran order": np.asfortranarray,
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "jax.Array": lambda x: jnp.asarray(x) if x.dtype.itemsize < 8 else x,
    "memory map": lambda x: x.view(np.ndarray).copy(),
}
CHANGED: dict[str, Callable[[np.ndarray], Any]] = {
    "byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "float64": lambda x: x.astype(np.float64),
    "float32": lambda x: x.astype(np.float32),
    "int64": lambda x: x.astype(np.int64),
    "uint32": lambda x: x.astype(np.uint32),
    "bool": lambda x: x.astype(bool),
    "int4": lambda x: x.astype(ml_dtypes.int4),
    "float8": lambda x: x.astype(ml_dtypes.float8_e4m3fn),
    "longdouble": lambda x: x.astype(np.longdouble),
    "complex": lambda x: x.astype(np.complex64),
    "object": lambda x: x.astype(object),
    "string": lambda x: x.astype(str),
    "time": lambda x: x.astype(np.int64).astype("m8[s]"),
    "date": lambda x: x.astype(np.int64).astype("M8[s]"),
    "record": lambda x: np.zeros(x.shape, [("a", np.uint8), ("b", np.float32)]),
    "key": lambda x: jax.vmap(jax.random.key)(seeds_of(len(x))) if len(x) else x,
    "masked": lambda x: np.ma.masked_array(x, np.zeros(x.shape, bool)),
    "list": lambda x: x.tolist(),
    "list of arrays": list,
    "ragged": ragged,
    "scalar": lambda x: x.reshape(-1)[0] if x.size else x,
    "0-d": lambda x: x.reshape(-1)[:1].reshape(()) if x.size else x,
    "nothing": lambda x: None,
    "text": lambda x: "image",
    "class": lambda x: np.ndarray,
    "one less": lambda x: x[:-1],
    "one more": lambda x: np.concatenate([x, x[:1]]),
    "empty": lambda x: x[:0],
    "axis more": lambda x: x[..., None],
    "axis less": lambda x: x[..., 0] if x.ndim > 1 else x,
    "no width": lambda x: x[..., :0],
    "narrower": lambda x: x[..., :-1],
    "turned": lambda x: x.swapaxes(1, -1) if x.ndim > 2 else x,
    "huge": lambda x: with_value(x, 2**40) if x.dtype.itemsize == 8 else x,
    "largest": lambda x: with_value(x, np.iinfo(x.dtype).max) if x.dtype.kind in "iu" else x,
    "negative": lambda x: with_value(x, -1) if x.dtype.kind in "if" else x,
    "nan": lambda x: with_value(x, np.nan) if x.dtype.kind == "f" else x,
    "1e300": lambda x: with_value(x.astype(np.float64), 1e300) if x.dtype.kind == "f" else x,
}
EXTRAS: dict[str, Any] = {
    "id": np.arange(8, dtype=np.int64),
    "big id": np.arange(8, dtype=np.int64) + 2**40,
    "name": np.array(list("abcdefgh")),
    "weight": np.linspace(0, 1, 8),
    "overflow": np.full(8, 1e300),
    "pair": np.zeros(8, [("a", np.uint8), ("b", np.float32)]),
    "when": np.zeros(8, "M8[s]"),
    "how long": np.zeros(8, "m8[s]"),
    "swapped": np.arange(8, dtype=">i4"),
    "object": np.array([None] * 8),
    "nested": {"a": np.arange(8)},
    "note": "all of it",
    "none": None,
    "label_weight": np.zeros(8, np.float32),
    3: np.arange(8),
}


@pytest.mark.slow
@fuzz(max_examples=1000 * TIMES)
@given(data=st.data())
def test_batches(data: st.DataObject) -> None:
    index = int(FIRST_PROGRAM + data.draw(st.integers(0, PROGRAMS - 1), label="program"))
    it = program(index)
    note(f"program({index}) = {it}")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    batch: Any = it.batch(rng, special=data.draw(st.booleans(), label="special"))

    fields = st.sampled_from(sorted(batch))
    for name, how in data.draw(
        st.lists(st.tuples(fields, st.sampled_from(list(SAME))), max_size=2)
    ):
        batch[name] = SAME[how](np.asarray(batch[name]))
    good = True
    for name, how in data.draw(
        st.lists(st.tuples(fields, st.sampled_from(list(CHANGED))), max_size=2)
    ):
        if isinstance(batch[name], np.ndarray):
            # Not every change can follow every other.
            cannot = contextlib.suppress(TypeError, ValueError, IndexError, OverflowError)
            with cannot, np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
                batch[name] = CHANGED[how](batch[name])
            good = False
    for extra in data.draw(st.lists(st.sampled_from(list(EXTRAS)), max_size=2)):
        value = EXTRAS[extra]
        batch[extra] = value[: it.size] if isinstance(value, np.ndarray) else value
        good = False
    drop = data.draw(st.sampled_from([None] * 9 + [*batch]), label="drop")
    if drop is not None:
        del batch[drop]
        good = False
    if data.draw(st.integers(0, 30)) == 30:
        batch = data.draw(st.sampled_from([list(batch.items()), None, "x", 3, batch.get("image")]))
        good = False

    check_batch(it, batch, good)


def check_batch(it: Program, batch: Any, good: bool) -> None:
    before = {key: copied(value) for key, value in batch.items()} if good_dict(batch) else {}
    method = it.transform.map
    if it.method == "jit" and good:  # else what comes may be no JAX type, as JAX itself says
        method = jitted(it.transform)
        batch = {key: value for key, value in batch.items() if isinstance(key, str)}
    out = try_out(lambda: method(batch))
    if good_dict(batch):
        assert {key: copied(value) for key, value in batch.items()} == before
    if out is None:
        assert not good
        return
    check_mixed(it, batch, out)
    # What came out is not the memory that came in, which may be used again for the next batch.
    kept = {key: np.array(out[key]) for key in out if isinstance(out[key], jax.Array | np.ndarray)}
    mine = {key for key in kept if it.method == "sharded" or out[key] is not batch.get(key)}
    for value in batch.values():
        if isinstance(value, np.ndarray) and value.flags.writeable and value.dtype != object:
            value.view(np.ndarray)[...] = np.zeros((), value.dtype)
    for key in mine:
        assert np.array(out[key]).tobytes() == kept[key].tobytes(), key


def good_dict(batch: Any) -> bool:
    return isinstance(batch, Mapping)


def copied(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.tobytes(), value.shape, str(value.dtype), value.flags.writeable
    return repr(value)


def check_mixed(it: Program, batch: Mapping[Any, Any], out: dict[Any, Any]) -> None:
    transform = it.transform
    label_key, seeds = transform.label_key, np.asarray(batch["mix_seed"])
    keys = transform.image_key
    keys = keys if isinstance(keys, tuple) else (keys,)
    cuts = isinstance(transform, gm.CutMixBatch | gm.WeightMapMixBatch)
    in_pairs = transform.mask_key is not None and not cuts
    keys += () if transform.mask_key is None or in_pairs else (transform.mask_key,)
    others = {*transform.pair_keys, *transform.box_keys, transform.boxes_key, transform.mask_key}
    size = len(seeds)
    shape = np.shape(batch["image"])
    draw = transform.draw(seeds, shape)
    lam = np.asarray(draw.lam)
    axes = getattr(transform, "spatial_axes", ())
    axes = tuple(axis % len(shape) for axis in ((1, 2) if axes is None else axes))
    box = None if draw.box is None else np.asarray(draw.box)

    expected_keys = set(batch) - {"mix_seed"}
    if transform.sparse_labels or transform.pair_keys:
        expected_keys |= {"label_weight"}
    expected_keys |= {"box_weight"} if transform.boxes_key else set()
    expected_keys |= {"mask_weight"} if in_pairs else set()
    assert set(out) == expected_keys
    for key in set(batch) - {"mix_seed", label_key, *keys, *others}:
        if it.method == "sharded" and isinstance(batch[key], Mapping):
            for below in batch[key]:
                np.testing.assert_array_equal(out[key][below], batch[key][below])
        elif it.method == "sharded":
            narrow = jax.dtypes.canonicalize_dtype(batch[key].dtype)
            np.testing.assert_array_equal(out[key], batch[key].astype(narrow), strict=True)
        elif it.method != "jit":
            assert out[key] is batch[key], key
    assert ((lam >= 0) & (lam <= 1)).all()
    for key in keys:
        x, y = np.asarray(batch[key]), np.asarray(out[key])
        assert (x.shape, x.dtype) == (y.shape, y.dtype), key
        ours = axes  # counted in the first image, but where there is nothing else than these
        if x.ndim == 1 + len(axes):
            ours = tuple(1 + sorted(axes).index(axis) for axis in axes)
        for i in range(size):
            if draw.weights is None:
                check_pixels(x, y, i, float(lam[i]), None if box is None else box[i], ours)
            else:
                check_by_map(x, y, i, np.asarray(draw.weights), ours)
    if draw.weights is not None:
        mean = np.asarray(draw.weights).reshape(size, -1).mean(axis=1, dtype=np.float64)
        exact = draw.weights.dtype == bool
        np.testing.assert_allclose(lam, mean.astype(np.float32), rtol=0, atol=0 if exact else 1e-6)
    if box is not None and size > 1:
        lengths = tuple(shape[axis] for axis in axes)
        for i in range(size):
            # Without a box λ is MixUp's or, where there is none, 1, to the last bit.
            if draw.outside is None or (box[i, :, 0] < box[i, :, 1]).all():
                assert lam[i] == np.float32(reference.kept_fraction(box[i], lengths))
            else:
                assert lam[i] == draw.outside[i]
    if label_key is not None:
        check_labels(transform, np.asarray(batch[label_key]), out, lam)
    partner = np.array([reference.partner_of(i, size) for i in range(size)])
    for key in transform.pair_keys:
        x = np.asarray(batch[key])
        expected = np.stack([x, x[partner]], axis=1)
        np.testing.assert_array_equal(out[key], expected.astype(out[key].dtype))
        np.testing.assert_array_equal(out["label_weight"], np.stack([lam, 1 - lam], axis=1))
    if in_pairs:
        found = {key: np.asarray(out[key]) for key in ("mask", "mask_weight")}
        check_pairs_of_maps(np.asarray(batch["mask"]), found, draw, axes)
    if transform.boxes_key:
        fields = {key: np.asarray(batch[key]) for key in ("boxes", "class")}
        found = {key: np.asarray(out[key]) for key in ("boxes", "class", "box_weight")}
        check_boxes(transform, fields, found, draw)


def check_pairs_of_maps(
    x: np.ndarray, out: dict[Any, Any], draw: gm.Draw, axes: tuple[int, ...]
) -> None:
    outside = np.asarray(draw.outside)
    np.testing.assert_array_equal(out["mask_weight"], np.stack([outside, 1 - outside], axis=1))
    if x.ndim == 1 + len(axes):
        axes = tuple(1 + sorted(axes).index(axis) for axis in axes)
    for i in range(len(x)):
        other = x[reference.partner_of(i, len(x))]
        expected = x[i]
        if draw.box is not None:
            spatial = tuple(axis - 1 for axis in axes)
            expected = reference.cutmix_one(x[i], other, np.asarray(draw.box[i]), spatial)
        np.testing.assert_array_equal(out["mask"][i], np.stack([expected, other]))


def check_boxes(
    transform: Any, fields: dict[str, np.ndarray], out: dict[Any, Any], draw: gm.Draw
) -> None:
    """By areas of whole numbers; `test_boxes.py` counts pixels."""
    boxes, size = fields["boxes"].astype(float), len(fields["boxes"])

    def area(box: np.ndarray) -> float:
        return float(np.prod(np.maximum(box[2:] - box[:2], 0)))

    for i in range(size):
        j = reference.partner_of(i, size)
        ids = np.concatenate([fields["class"][i], fields["class"][j]])
        np.testing.assert_array_equal(out["class"][i], ids.astype(out["class"].dtype))
        outside = 1.0 if draw.outside is None else float(draw.outside[i])
        rectangle = None
        if draw.box is not None and (draw.box[i, :, 0] < draw.box[i, :, 1]).all() and size > 1:
            order = np.argsort(transform.spatial_axes)[::-1]  # x is the later axis
            rectangle = np.asarray(draw.box[i])[order].T.ravel().astype(float)
        for k, box in enumerate([*boxes[i], *boxes[j]]):
            own, weight = k < 3, outside if k < 3 else 1 - outside
            if size == 1:
                weight = float(own)
            seen = area(box)
            if rectangle is not None:
                low, high = np.maximum(box[:2], rectangle[:2]), np.minimum(box[2:], rectangle[2:])
                inside = area(np.concatenate([low, high]))
                seen, weight = (area(box) - inside, outside) if own else (inside, 1.0)
            fraction = seen / area(box) if area(box) else 0
            fraction = 0 if np.float32(fraction) < np.float32(transform.min_visible) else fraction
            assert abs(float(out["box_weight"][i, k]) - weight * fraction) < 1e-6


def check_pixels(
    x: np.ndarray, y: np.ndarray, i: int, lam: float, box: np.ndarray | None, axes: tuple[int, ...]
) -> None:
    """Each value is the record's own, its partner's or the blend, as the draw says."""
    if x.ndim == 1:
        x, y = x[:, None], y[:, None]
    own, other = x[i], x[reference.partner_of(i, len(x))]
    if len(x) == 1 or lam in (0, 1):
        # Bit for bit, where the formula's 0·NaN and 0·∞ would be NaN.
        assert y[i].tobytes() == (own if lam or len(x) == 1 else other).tobytes()
        return
    if box is not None and (box[:, 0] < box[:, 1]).all():
        expected = reference.cutmix_one(own, other, box, tuple(axis - 1 for axis in axes))
        assert y[i].tobytes() == expected.tobytes()
        return
    check_blend(own, other, y[i], lam)


def check_by_map(
    x: np.ndarray, y: np.ndarray, i: int, weights: np.ndarray, axes: tuple[int, ...]
) -> None:
    """The same, with a weight for each pixel."""
    own, other = x[i], x[reference.partner_of(i, len(x))]
    if len(x) == 1:
        assert y[i].tobytes() == own.tobytes()
        return
    for position in np.ndindex(*weights.shape[1:]):
        at: list[Any] = [slice(None)] * own.ndim
        for axis, p in zip(axes, position, strict=True):
            at[axis - 1] = p
        a, b, mixed = (np.atleast_1d(z[tuple(at)]) for z in (own, other, y[i]))
        w = float(weights[(i, *position)])
        if w in (0, 1):
            assert mixed.tobytes() == (a if w else b).tobytes()
        else:
            check_blend(a, b, mixed, w)


def check_blend(own: np.ndarray, other: np.ndarray, y: np.ndarray, lam: float) -> None:
    """Each value is the blend, between the two."""
    if own.dtype.kind in "iu":
        np.testing.assert_array_equal(y, reference.mixup_one(own, other, lam))
        return
    with np.errstate(all="ignore"):
        expected = reference.mixup_one(own, other, lam).astype(np.float64)
        a, b, mixed = (z.astype(np.float64) for z in (own, other, y))
        slack = 4 * float(jnp.finfo(own.dtype).eps) * np.maximum(np.abs(a), np.abs(b)) + 1e-7
        close = np.abs(mixed - expected) <= slack
        between = (np.minimum(a, b) - slack <= mixed) & (mixed <= np.maximum(a, b) + slack)
    finite = np.isfinite(a) & np.isfinite(b)
    assert np.isfinite(mixed[finite]).all()
    assert close[finite].all()
    assert between[finite].all()
    assert (np.isnan(mixed) == np.isnan(expected))[~finite].all()


def check_labels(transform: Any, label: np.ndarray, out: dict[Any, Any], lam: np.ndarray) -> None:
    size = len(label)
    partner = [reference.partner_of(i, size) for i in range(size)]
    one_hot = transform.sparse_labels or transform.num_classes is not None
    if label.shape == (size, 1) and label.dtype.kind in "iu" and one_hot:
        label = label[:, 0]  # class ids with an axis of their own
    if transform.sparse_labels:
        ids, weight = np.asarray(out["label"]), np.asarray(out["label_weight"])
        assert (ids.dtype, weight.dtype) == (np.int32, np.float32)
        np.testing.assert_array_equal(ids, np.stack([label, label[partner]], axis=1))
        np.testing.assert_array_equal(weight[:, 0], lam)
        assert (weight.sum(axis=1) == 1).all()
        return
    soft = np.asarray(out["label"])
    assert soft.dtype == np.float32
    smoothing = transform.label_smoothing
    if one_hot or label.ndim == 2:
        own = np.stack([reference.soft_label(x, transform.num_classes, smoothing) for x in label])
    else:  # other targets
        own = label.astype(np.float64)
    assert soft.shape == own.shape
    weight = lam.astype(np.float64).reshape(-1, *[1] * (own.ndim - 1))
    with np.errstate(all="ignore"):
        expected = weight * own + (1 - weight) * own[partner]
    finite = np.isfinite(own) & np.isfinite(own[partner])
    scale = np.maximum(1, np.maximum(np.abs(own), np.abs(own[partner])))
    assert (np.abs(soft - expected) <= 4e-7 * scale)[finite].all()
    assert np.isfinite(soft[finite]).all()
    if own.ndim == 2 and (own.sum(axis=1) == 1).all():
        np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-6)


# --- the pure functions ---------------------------------------------------------------------------

ARGUMENTS: list[Any] = [
    *NUMBERS,
    *THINGS,
    [[1, 2], [3]],
    [0.5, "x"],
    [0.5] * 4,
    [None] * 4,
    [10**400] * 4,
    np.full(4, 0.5),
    np.full(4, 0.5, ">f4"),
    np.full(4, 0.5, np.float16),
    np.full(4, np.nan),
    np.full(4, 2**32, np.int64),
    np.full(4, -1),
    np.full(4, 1, ">i2"),
    np.zeros(4, "m8[s]"),
    np.zeros(4, complex),
    np.zeros(4, object),
    np.arange(4),
    np.arange(4, dtype=np.uint8),
    np.arange(4, dtype=np.uint64),
    np.arange(4, dtype=ml_dtypes.int4),
    np.zeros((4, 1), np.int32),
    np.zeros((0,), np.int32),
    np.zeros((4, 0), np.float32),
    np.zeros((4, 5, 6, 3), np.uint8),
    np.zeros((4, 5, 6, 3), np.float64),
    np.zeros((4, 5, 6, 3), "M8[s]"),
    np.full((4, 5), np.inf, np.float32),
    np.array([[[1, 3], [2, 5]]] * 4),
    np.array([[[3, 1], [2, 5]]] * 4),
    np.array([[[-3, 1], [2, 50]]] * 4),
    np.array([[[2**32, 2**32 + 3], [0, 2]]] * 4),
    np.array([[[0, 2]]] * 4, np.uint8),
    np.array([[[0, 2]]] * 4, ">i8"),
    jnp.arange(4),
    jnp.full(4, 0.25),
    jax.random.key(0),
    jax.random.split(jax.random.key(0), 4),
]
EXAMPLES: dict[Any, tuple[Any, ...]] = {
    gm.mixup: (np.ones((4, 5), np.float32), np.full(4, 0.5, np.float32), np.array([1, 0, 3, 2])),
    gm.cutmix: (
        np.ones((4, 5, 6, 3), np.uint8),
        np.array([[[1, 3], [2, 5]]] * 4),
        np.array([1, 0, 3, 2]),
    ),
    gm.CutMixBatch().draw: (seeds_of(4), (4, 5, 6, 3)),
    gm.MixUpBatch().draw: (seeds_of(4), (4, 5)),
}


@fuzz(max_examples=600 * TIMES)
@given(data=st.data())
def test_functions(data: st.DataObject) -> None:
    function = data.draw(st.sampled_from(list(EXAMPLES)))
    args = [*EXAMPLES[function]]
    for i in data.draw(st.lists(st.integers(0, len(args) - 1), max_size=2, unique=True)):
        args[i] = data.draw(st.sampled_from(ARGUMENTS))
    options = {}
    if function is gm.cutmix and data.draw(st.booleans()):
        options["spatial_axes"] = data.draw(ANYTHING)
    out = try_out(lambda: function(*args, **options))
    if function in (gm.mixup, gm.cutmix) and out is not None:
        assert (out.shape, out.dtype) == (np.shape(args[0]), args[0].dtype)
        if np.isfinite(np.asarray(args[0], np.float32)).all():
            assert np.isfinite(np.asarray(out, np.float32)).all()


def test_the_oracle_sees_what_is_wrong() -> None:
    """Each invariant is broken by hand, and the tests above notice it."""
    it = next(
        p
        for p in map(program, itertools.count())
        if p.method == "map" and p.size == 4 and p.transform.prob == 1
        if isinstance(p.transform, gm.CutMixBatch) and len(p.fields["image"][0]) == 3
        if len(p.fields.get("label", [()])[0]) == 1 and p.transform.mode == "elem"
    )
    rng = np.random.default_rng(0)
    batch = it.batch(rng, special=False)
    out = it.transform.map(batch)
    check_mixed(it, batch, out)
    assert (np.asarray(it.transform.draw(batch["mix_seed"], batch["image"].shape).lam) < 1).any()
    for broken in (
        {"image": batch["image"][::-1]},
        {"image": out["image"].astype(np.complex64)},
        {"label": out["label"] + np.float32(1e-5)},
        {"label": out["label"].astype(np.float64)},
        {"mix_seed": batch["mix_seed"]},
    ):
        with pytest.raises(AssertionError):
            check_mixed(it, batch, out | broken)
