"""Any input is either mixed, with all invariants, or is one of our errors.

`GRAIN_MIX_FUZZ=20` runs twenty times as many examples, of twenty times as many programs.
"""

import contextlib
import dataclasses
import decimal
import fractions
import functools
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
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
from programs import CLASSES, ROADS, SETTINGS, Points, Program, batch_of, coins, fog, program
from programs import LAWS as ALPHAS
from test_settings import setting

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


# Some batches that are made up have one seed for all records, or -1 in soft labels.
pytestmark = [
    pytest.mark.filterwarnings("ignore:grain_mix. (several records|the label)"),
    pytest.mark.usefixtures("optimised"),
]

KINDS = [gm.OneHot, gm.MultiHot, gm.Soft, gm.Sparse, gm.Stacked, gm.ValueMap, gm.LabelMap, gm.Boxes]
LAWS = [gm.Beta, gm.Uniform, gm.Larger]
NAMES = [each.__name__ for each in (*CLASSES, *KINDS, *LAWS, gm.RecordSeed, gm.PairedSampler)]
FUNCTIONS = ["mixup", "cutmix", "mixed_accuracy", "label_entropy"]
WHERE = "|".join([*NAMES, *FUNCTIONS, "Points", "label_key", "map"])


def try_out(function: Callable[[], Any]) -> Any:
    """The function's result, or None and one of our errors."""
    try:
        return function()
    except (KeyError, TypeError, ValueError) as error:
        text = str(error.args[0] if error.args else "")
        if not re.fullmatch(rf"({WHERE})(\.draw)?: .+; expected .+; .+", text, re.DOTALL):
            raise
    assert len(text) < 2000, "quotes too much"
    note(text)
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
THINGS += [gm.Beta(2, 8), gm.Beta, gm.OneHot(3), gm.OneHot, gm.Target(), {"label": gm.Stacked}]
THINGS += [{"x": gm.Soft(), "x_weight": gm.Sparse()}, {1: gm.Stacked(), "1": gm.Stacked()}, {"": 1}]
ANYTHING = st.sampled_from(NUMBERS + THINGS)


GOOD: dict[str, Any] = {
    "alpha": ALPHAS,
    "law": [gm.Beta(2, 8), gm.Uniform(0, 1)],
    "low": [0, 0.2],
    "high": [0.3, 1],
    "sources": [2, 3, np.int64(8)],
    "split": [(0.25, 0.75), (0, 1), [0.5, 0.5]],
    "reads": [(), ("height",), ["x", 0]],
    "mode": ["elem", "pair", "batch"],
    "prob": [1.0, 0.5, 0],
    "minmax": [None, (0.1, 0.6), [0, 1]],
    "axes": [None, (1,), (1, 2), [2, 3], (-1,)],
    "num_classes": [None, 3, np.int64(4)],
    "smoothing": [0.0, 0.1],
    "union": [False, True],
    "key": ["image", "label", "mask", "depth"],
    "format": ["xyxy", "rel_yxyx", "center_xywh"],
    "fields": [(), ("class",), ["x", 0]],
    "masks": [None, "masks", 3],
    "min_visible": [0.1, 0, 1],
    "targets": [{"label": gm.OneHot(3), "mask": gm.LabelMap()}, {"boxes": gm.Boxes("xywh")}, {}],
    "sharding": [None, jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])],
    "weight_map": [coins, fog],
    "a": [0.2, 1, np.float32(0.4)],
    "b": [8, 1e-30],
}
NEEDED = {gm.OneHot: {"num_classes": 3}, gm.Boxes: {"format": "xyxy"}, gm.Beta: {"a": 1, "b": 2}}
NEEDED |= {gm.Uniform: {"low": 0, "high": 1}, gm.Larger: {"law": gm.Beta(1, 2)}}


@fuzz(max_examples=800 * TIMES)
@given(data=st.data())
def test_parameters(data: st.DataObject) -> None:
    """A transform or a kind is made or refused. If made, it is a value with plain fields."""
    cls: Any = data.draw(st.sampled_from([*CLASSES, *CLASSES, *KINDS, *LAWS]))
    names = [field.name for field in dataclasses.fields(cls)]
    chosen = data.draw(st.lists(st.sampled_from(names), max_size=4, unique=True)) if names else []
    bad = data.draw(st.sampled_from([None, *chosen]))
    fields = NEEDED.get(cls, {"weight_map": coins} if "weight_map" in names else {})
    for name in chosen:
        good = next((GOOD[end] for end in GOOD if name.endswith(end)), GOOD["prob"])
        fields = fields | {name: data.draw(ANYTHING if name == bad else st.sampled_from(good))}
    note(f"{cls.__name__}(**{fields})")
    made = try_out(lambda: cls(**fields))
    if made is None:
        return
    assert made == cls(**fields)
    assert hash(made) == hash(cls(**fields))
    if getattr(made, "sharding", None) is None:
        assert pickle.loads(pickle.dumps(made)) == made
    plain = (bool, int, float, str, tuple, type(None), Mapping, jax.sharding.Sharding, gm.Law)
    for name in set(names) - {"weight_map"}:
        assert isinstance(getattr(made, name), plain), made
    # Shapes without values: all of a program but its compilation.
    if cls in CLASSES and data.draw(st.integers(0, 9)) == 9:
        seeds = np.arange(4, dtype=np.uint32)
        try_out(lambda: jax.eval_shape(lambda seeds: made.draw(seeds, (4, 5, 6, 3)), seeds))


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
        assert try_out(lambda: seed.random_map({"a": 0}, rng)).keys() == {"a", str(fields[0])}
    try_out(lambda: gm.RecordSeed().random_map(fields[1], np.random.default_rng(0)))
    try_out(lambda: gm.RecordSeed().random_map({}, fields[2]))


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
    "key": lambda x: jax.vmap(jax.random.key)(np.arange(len(x))) if len(x) else x,
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
MOST = 32  # records in a batch of a program
EXTRAS: dict[str, Any] = {
    "id": np.arange(MOST, dtype=np.int64),
    "big id": np.arange(MOST, dtype=np.int64) + 2**40,
    "name": np.array(list("abcd") * (MOST // 4)),
    "weight": np.linspace(0, 1, MOST),
    "overflow": np.full(MOST, 1e300),
    "pair": np.zeros(MOST, [("a", np.uint8), ("b", np.float32)]),
    "when": np.zeros(MOST, "M8[s]"),
    "how long": np.zeros(MOST, "m8[s]"),
    "swapped": np.arange(MOST, dtype=">i4"),
    "object": np.array([None] * MOST),
    "nested": {"a": np.arange(MOST)},
    "note": "all of it",
    "none": None,
    "label_weight": np.zeros(MOST, np.float32),
    3: np.arange(MOST),
}


# --- a batch is mixed, or refused ----------------------------------------------------------------


@pytest.mark.slow
@fuzz(max_examples=1000 * TIMES)
@given(data=st.data())
def test_batches(data: st.DataObject) -> None:
    index = int(FIRST_PROGRAM + data.draw(st.integers(0, PROGRAMS - 1), label="program"))
    it = program(index)
    note(f"program({index}) = {it}")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    special = data.draw(st.booleans(), label="special")
    batch: Any = batch_of(rng, it.size, it.fields, special)

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
    batch = nested(batch)
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
    check_batch(it, batch, good, special)


# Programs that have every class, kind, road and setting among them, with a warm cache of each.
COVERING = [295, 1608, 454, 215, 181, 307, 232, 1653]


def test_programs_cover_all_kinds() -> None:
    covering = [program(index) for index in COVERING]
    kinds = {type(kind) for it in covering for kind in reference.targets_of(it.transform).values()}
    assert kinds == {*KINDS, Points}
    assert {type(it.transform) for it in covering} == {*CLASSES}
    assert {2, 4} < {reference.sources_of(it.transform) for it in covering}
    assert any(getattr(it.transform, "reads", ()) for it in covering)
    assert any(hasattr(getattr(it.transform, "weight_map", None), "reads") for it in covering)
    assert {it.road for it in covering} == {"map", "sharded", *ROADS}
    assert {it.key is None for it in covering} == {True, False}
    assert {it.setting for it in covering} == {*SETTINGS}


@pytest.mark.parametrize("index", COVERING)
def test_programs(index: int, rng: np.random.Generator) -> None:
    """What is mixed is right, and the check sees whatever else it could be."""
    it = program(index)
    batch = nested(batch_of(rng, it.size, it.fields))
    out = check_batch(it, batch, good=True, special=False)
    for name, value in leaves(out):
        value = np.array(value)
        at = tuple(rng.integers(value.shape))
        value[at] = value[at] ^ True if value.dtype.kind in "biu" else value[at] + 1
        with pytest.raises(AssertionError):
            reference.check_mixed(it.transform, batch, out | {name: value}, it.key)
    for wrong in ({"image": np.asarray(out["image"]).astype(np.complex64)}, {"more": 1}):
        with pytest.raises(AssertionError):
            reference.check_mixed(it.transform, batch, out | wrong, it.key)


def nested(fields: Mapping[Any, Any]) -> dict[Any, Any]:
    """The batch of these fields; `"other/label"` is `"label"` of the partner."""
    batch: dict[Any, Any] = {}
    for name, x in fields.items():
        above, slash, below = name.partition("/")
        (batch.setdefault(above, {}) if slash else batch)[below or above] = x
    return batch


def leaves(tree: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items() if isinstance(tree, Mapping) else []:
        if isinstance(value, Mapping):
            yield from leaves(value, f"{above}{key}/")
        else:
            yield f"{above}{key}", value


def check_batch(it: Program, batch: Any, good: bool, special: bool) -> Any:
    before = [(name, copied(x)) for name, x in leaves(batch)]
    # A changed batch may hold what is no JAX type, which `jit` refuses before it is ours.
    out = it.run(batch, compiled=True) if good else try_out(lambda: it.run(batch, compiled=False))
    assert [(name, copied(x)) for name, x in leaves(batch)] == before, "written to"
    if out is None:
        return None
    used = reference.check_mixed(it.transform, batch, out, it.key)
    if good and it.road in ROADS:  # each road gives the same bits as `map`
        keyed = {} if it.key is None else {"mix_seed": reference.hashed(it.key, it.size)}
        mapped = it.transform.map(batch | keyed)
        for name in used:
            reference.check_same(np.asarray(out[name]), np.asarray(mapped[name]))
    # With NaN among the pixels, a user's own `jit` stops where `debug_nans` says so.
    if good and not (special and it.road in ROADS and it.setting == "debug_nans"):
        # With 64 bits no dtype is mended in silence either: sums of int32 would be int64.
        also = "dtype_promotion" if it.setting == "x64" else it.setting
        with setting(it.setting), setting(also):
            again = it.run(batch, compiled=True)
        for name in out:
            reference.check_same(np.asarray(out[name]), np.asarray(again[name]))
    # What came out is not the memory that came in, which may be used again for the next batch.
    names = [name for name in out if it.road == "sharded" or name in used]
    kept = {name: np.array(out[name]) for name in names}
    saved = [(x, x.copy()) for _, x in leaves(batch) if is_writeable(x)]
    for value, _ in saved:
        value.view(np.ndarray)[...] = np.zeros((), value.dtype)
    for name, value in kept.items():
        assert np.array(out[name]).tobytes() == value.tobytes(), f"{name} is shared"
    for value, copy in saved:
        value[...] = copy
    return out


def is_writeable(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.flags.writeable and x.dtype != object


def copied(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.tobytes(), value.shape, str(value.dtype), value.flags.writeable
    return repr(value)


# --- the pure functions ---------------------------------------------------------------------------

ARGUMENTS: list[Any] = [*NUMBERS, *THINGS, [[1, 2], [3]], [0.5, "x"], [0.5] * 4, [None] * 4]
ARGUMENTS += [[10**400] * 4, np.full(4, 0.5), np.full(4, 0.5, ">f4"), np.full(4, 0.5, np.float16)]
ARGUMENTS += [np.full(4, np.nan), np.full(4, 2**32, np.int64), np.full(4, -1), np.full(4, 1, ">i2")]
ARGUMENTS += [np.zeros(4, dtype) for dtype in ("m8[s]", complex, object)]
ARGUMENTS += [np.arange(4, dtype=dtype) for dtype in (int, np.uint8, np.uint64, ml_dtypes.int4)]
ARGUMENTS += [np.zeros((4, 1), np.int32), np.zeros((0,), np.int32), np.zeros((4, 0), np.float32)]
ARGUMENTS += [np.zeros((4, 5, 6, 3), dtype) for dtype in (np.uint8, np.float64, "M8[s]")]
ARGUMENTS += [np.full((4, 5), np.inf, np.float32), np.array([[[1, 3], [2, 5]]] * 4)]
ARGUMENTS += [np.array([[[3, 1], [2, 5]]] * 4), np.array([[[-3, 1], [2, 50]]] * 4)]
ARGUMENTS += [np.array([[[2**32, 2**32 + 3], [0, 2]]] * 4), np.array([[[0, 2]]] * 4, np.uint8)]
ARGUMENTS += [np.array([[[0, 2]]] * 4, ">i8"), jnp.arange(4), jnp.full(4, 0.25)]
ARGUMENTS += [jax.random.key(0), jax.random.split(jax.random.key(0), 4)]
SWAPPED = np.array([1, 0, 3, 2])
EXAMPLES: dict[Any, tuple[Any, ...]] = {
    gm.mixup: (np.ones((4, 5), np.float32), np.full(4, 0.5, np.float32), SWAPPED),
    gm.cutmix: (np.ones((4, 5, 6, 3), np.uint8), np.array([[[1, 3], [2, 5]]] * 4), SWAPPED),
    gm.mixed_accuracy: (np.ones((4, 5), np.float32), np.full((4, 5), 0.2, np.float32)),
    gm.label_entropy: (np.full((4, 5), 0.2, np.float32),),
    gm.CutMixBatch().draw: (np.arange(4, dtype=np.uint32), (4, 5, 6, 3)),
    gm.MixUpBatch().draw: (np.arange(4, dtype=np.uint32), (4, 5)),
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
