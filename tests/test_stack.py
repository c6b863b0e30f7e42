"""`aligned_stack` is Grain's own stack in other memory."""

import collections
import dataclasses
import pickle
import re
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from common import Rng

import grain_mix as gm
from grain_mix import _sharding

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


class Named(NamedTuple):
    image: Any
    label: Any


@dataclasses.dataclass
class Thing:  # a leaf, to JAX
    label: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Node:
    image: Any
    label: Any


class Sub(np.ndarray):
    pass


def arrays(dtype: Any) -> list[np.ndarray]:
    return [np.array([[0, 1, 2], [3, i, 1]]).astype(dtype) for i in range(3)]


DTYPES = [
    *"?bBhHiIqQefdgFD",
    *(">f4", ">i2", "=f4", "M8[s]", "m8[ms]", "S3", "U3", "O", "V5"),
    *(jnp.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4),
    np.dtype([("a", "f4"), ("b", ">i2")]),
]
MASKED = [np.ma.masked_greater(ARRAY, limit) for limit in (2, 3)]
RECORD = np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")])
LEAVES: list[list[Any]] = [arrays(dtype) for dtype in DTYPES]
# Numbers, text and objects.
LEAVES += [[1, 2, 3], [2**63, 2**64 - 1], [2**100, 1], [0.5, float("nan")], [1j, 2j]]
LEAVES += [[True, False], [True, 2], [1, 2.5], ["a", 1], ["short", "a much longer text"]]
LEAVES += [[b"short", b"a much longer text", b""], [b"a\0", b"b\0\0"], [np.ma.masked] * 2]
LEAVES += [
    [np.uint8(3), np.uint8(4)],
    [np.uint64(1), np.int64(2)],
    [jnp.bfloat16(1.5), jnp.bfloat16(2)],
]
LEAVES += [[object(), object()], [{1}, {2}], [Thing(1), Thing(2)]]
# Arrays.
LEAVES += [[np.asarray("ab"), np.asarray("abcd")], [np.asarray(1.5), np.asarray(2.5)]]
LEAVES += [[ARRAY, ARRAY.astype(np.float64), ARRAY.astype(np.int32)], [ARRAY, ARRAY.astype(">f4")]]
LEAVES += [[ARRAY[:0]] * 2, [np.asfortranarray(ARRAY), ARRAY], [ARRAY[:, ::-1]] * 2]
LEAVES += [MASKED, [ARRAY, MASKED[1]], [ARRAY.view(Sub)] * 2, [RECORD] * 2]
LEAVES += [[jnp.asarray(ARRAY)] * 2, [jnp.asarray(ARRAY), ARRAY], [np.arange(3), [4, 5, 6]]]
# Trees.
LEAVES += [[{"image": ARRAY, "more": {"name": "a", "label": i}} for i in range(3)]]
LEAVES += [[collections.OrderedDict(b=1, a=ARRAY)] * 2, [collections.defaultdict(int, a=1)] * 2]
LEAVES += [[[ARRAY, 1], [ARRAY, 2]], [(ARRAY, 1), (ARRAY, 2)], [(), ()]]
LEAVES += [[Named(ARRAY, 1), Named(ARRAY, 2)], [Node(ARRAY, 1), Node(ARRAY, 2)]]
LEAVES += [[{"a": None, "b": 1}, {"a": None, "b": 2}], [{"a": 1}, {"a": None}]]
LEAVES += [[{"a": 1}, {"a": {"b": 1}}]]
ONE_SHAPE = "expected one shape in all records of a batch; crop, resize or pad it before Batch"
ONE_STRUCTURE = "expected records of one structure; add the field to all records, or drop it"
NO_RECORDS = "aligned_stack: no records; expected one or more; pass the records of a batch"
FAILURES: list[tuple[list[Any], str]] = [
    (
        [{"views": (1, ARRAY)}, {"views": (1, ARRAY)}, {"views": (1, ARRAY[:1])}],
        f"aligned_stack: 'views/1' is [2, 3] in record 0 and [1, 3] in record 2; {ONE_SHAPE}",
    ),
    (
        [ARRAY, ARRAY[0]],
        f"aligned_stack: the record is [2, 3] in record 0 and [3] in record 1; {ONE_SHAPE}",
    ),
    (
        [{"image": ARRAY, "label": 1}, {"image": ARRAY, "label": 1}, {"image": ARRAY}],
        f"aligned_stack: 'label' is in record 0 and not in record 2; {ONE_STRUCTURE}",
    ),
    ([], NO_RECORDS),
    ([{"a": np.ma.array(ARRAY)}, {"a": np.ma.array(ARRAY[0])}], "'a' is [2, 3] in"),
    ([{"a": [1, 2]}, {"a": [1, [2, 3]]}, {"a": [1, 2]}], "'a/1' is"),
    ([{"a": 1}, {"a": 1, "b": 1}], "'b' is in record 1 and not in record 0"),
    ([{"a": 1}, {"b": 0.5}, {"c": True}], "'a' is in record 0 and not in record 1"),
    ([{"a": None}, {"a": 1}], "'a' is in record 1 and not in record 0"),
    ([{"a": (1, 2)}, {"a": (1,)}], "'a/1' is in record 0 and not in record 1"),
    ([{"a": (1,)}, {"a": [1]}], "tuple"),
    ([{"a": np.datetime64(0, "s")}, {"a": 1.5}], "aligned_stack: in 'a'"),
    ([{"a": jax.random.key(0)}] * 2, "aligned_stack: in 'a'"),
]


def grains_own(records: list[Any], **batch_fn: Any) -> Any:
    return grain.MapDataset.source(records).batch(len(records), **batch_fn)[0]


def assert_alike(ours: Any, grains: Any) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(grains)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(grains), strict=True):
        assert (type(x), x.dtype, x.shape) == (type(y), y.dtype, y.shape)
        assert x.dtype.byteorder == y.dtype.byteorder
        np.testing.assert_array_equal(np.ma.getmaskarray(x), np.ma.getmaskarray(y))
        if x.dtype.hasobject:
            assert all(a is b or a == b for a, b in zip(x.flat, y.flat, strict=True))
        else:
            assert np.ma.getdata(x).tobytes() == np.ma.getdata(y).tobytes()


@pytest.mark.parametrize("size", [1, None], ids=["one", "all"])
@pytest.mark.parametrize(
    "records", LEAVES, ids=lambda records: re.sub(" at 0x\\w+", "", repr(records))[:50]
)
def test_every_kind_of_leaf(records: list[Any], size: int | None) -> None:
    records = records[:size]
    assert_alike(grains_own(records, batch_fn=gm.aligned_stack), grains_own(records))


def test_memory_is_aligned_and_its_own(tmp_path: Path, rng: Rng) -> None:
    np.save(tmp_path / "images.npy", rng.integers(0, 9, (5, 7, 3)))
    maps = list(np.load(tmp_path / "images.npy", mmap_mode="r"))
    assert_alike(gm.aligned_stack(maps), grains_own(maps))
    for dtype in (np.uint8, np.float32, jnp.bfloat16):
        records = [{"a": image.astype(dtype)} for image in maps]
        stacked = gm.aligned_stack(records)["a"]
        assert stacked.ctypes.data % 64 == 0
        assert _sharding.to_host({"a": stacked})["a"] is stacked
        placed = jax.device_put(stacked, _sharding.host())  # as a jitted function takes it
        assert placed.unsafe_buffer_pointer() == stacked.ctypes.data
        assert not any(np.shares_memory(stacked, record["a"]) for record in records)


@pytest.mark.parametrize(("records", "message"), FAILURES)
def test_what_grain_refuses_is_refused_by_name(records: list[Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as ours:
        gm.aligned_stack(records)
    if records:  # an empty dataset cannot be batched
        with pytest.raises(ours.type):
            grains_own(records)
    text = "\n".join([str(ours.value), *getattr(ours.value, "__notes__", ())])
    assert message in text
    if message.startswith("aligned_stack") and "; " in message:
        assert text == message


class Decode(grain.transforms.Map):
    def map(self, i: int) -> Any:
        return {"image": np.full((4, 5), i), "more": ({"name": str(i)}, None)}

    def output_spec(self, _: Any) -> Any:
        struct = grain.experimental.ShapeDtypeStruct
        return {"image": struct((4, 5), np.int64), "more": ({"name": struct((), str)}, None)}


@pytest.mark.parametrize("drop", [True, False])
def test_spec(drop: bool) -> None:
    records = grain.MapDataset.range(6).map(Decode())
    for dataset in (records, records.to_iter_dataset()):
        ours, grains = (
            grain.experimental.get_element_spec(
                dataset.batch(3, drop_remainder=drop, batch_fn=batch_fn)
            )
            for batch_fn in (gm.aligned_stack, None)
        )
        assert ours == grains
    assert ours["image"].shape == (3 if drop else None, 4, 5)


def test_pickles() -> None:
    assert pickle.loads(pickle.dumps(gm.aligned_stack)) is gm.aligned_stack
