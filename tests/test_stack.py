"""`aligned_stack` is Grain's own stack in other memory."""

import collections
import dataclasses
import pathlib
import pickle
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import grain_mix as gm

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


def memmaps(folder: pathlib.Path) -> list[Any]:
    np.save(folder / "images.npy", np.stack([ARRAY, ARRAY + 1]))
    return list(np.load(folder / "images.npy", mmap_mode="r"))


DTYPES = [
    *"?bBhHiIqQefdgFD",
    *(">f4", ">i2", "=f4", "M8[s]", "m8[ms]", "S3", "U3", "O", "V5"),
    *(jnp.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4),
    np.dtype([("a", "f4"), ("b", ">i2")]),
]
LEAVES: dict[str, list[Any]] = {
    **{f"array-{np.dtype(d)}": arrays(d) for d in DTYPES},
    "int": [1, 2, 3],
    "huge int": [2**63, 2**64 - 1],
    "int of any size": [2**100, 1],
    "float": [0.5, float("nan")],
    "complex": [1j, 2j],
    "bool": [True, False],
    "bool and int": [True, 2],
    "int and float": [1, 2.5],
    "text": ["short", "a much longer text"],
    "bytes": [b"short", b"a much longer text", b""],
    "trailing zeros": [b"a\0", b"b\0\0"],
    "text arrays": [np.asarray("ab"), np.asarray("abcd")],
    "text and int": ["a", 1],
    "numpy numbers": [np.uint8(3), np.uint8(4)],
    "unsigned and signed": [np.uint64(1), np.int64(2)],
    "bfloat16 number": [jnp.bfloat16(1.5), jnp.bfloat16(2)],
    "two dtypes": [ARRAY, ARRAY.astype(np.float64), ARRAY.astype(np.int32)],
    "two byte orders": [ARRAY, ARRAY.astype(">f4")],
    "no dimension": [np.asarray(1.5), np.asarray(2.5)],
    "empty": [ARRAY[:0], ARRAY[:0]],
    "Fortran's order": [np.asfortranarray(ARRAY), ARRAY],
    "strides": [ARRAY[:, ::-1], ARRAY[:, ::-1]],
    "masked": [np.ma.array(ARRAY, mask=ARRAY > 2), np.ma.array(ARRAY, mask=ARRAY > 3)],
    "masked and not": [ARRAY, np.ma.array(ARRAY, mask=ARRAY > 3)],
    "masked constant": [np.ma.masked, np.ma.masked],
    "subclass": [ARRAY.view(Sub), ARRAY.view(Sub)],
    "record array": [np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")])] * 2,
    "jax": [jnp.asarray(ARRAY), jnp.asarray(ARRAY)],
    "jax and numpy": [jnp.asarray(ARRAY), ARRAY],
    "dict": [{"image": ARRAY, "more": {"name": "a", "label": i}} for i in range(3)],
    "ordered dict": [collections.OrderedDict(b=1, a=ARRAY)] * 2,
    "default dict": [collections.defaultdict(int, a=1)] * 2,
    "list": [[ARRAY, 1], [ARRAY, 2]],
    "tuple": [(ARRAY, 1), (ARRAY, 2)],
    "empty tuple": [(), ()],
    "named tuple": [Named(ARRAY, 1), Named(ARRAY, 2)],
    "None": [{"a": None, "b": 1}, {"a": None, "b": 2}],
    "None after an int": [{"a": 1}, {"a": None}],
    "list after an array": [np.asarray([1, 2, 3]), [4, 5, 6]],
    "dict after an int": [{"a": 1}, {"a": {"b": 1}}],
    "dataclass": [Thing(1), Thing(2)],
    "registered dataclass": [Node(ARRAY, 1), Node(ARRAY, 2)],
    "objects": [object(), object()],
    "sets": [{1}, {2}],
}
ONE_SHAPE = "expected one shape in all records of a batch; crop, resize or pad it before Batch"
ONE_STRUCTURE = "expected records of one structure; add the field to all records, or drop it"
FAILURES: dict[str, tuple[list[Any], str]] = {
    "shapes": (
        [{"views": (1, ARRAY)}, {"views": (1, ARRAY)}, {"views": (1, ARRAY[:1])}],
        f"aligned_stack: 'views/1' is [2, 3] in record 0 and [1, 3] in record 2; {ONE_SHAPE}",
    ),
    "shapes without a name": (
        [ARRAY, ARRAY[0]],
        f"aligned_stack: the record is [2, 3] in record 0 and [3] in record 1; {ONE_SHAPE}",
    ),
    "masked shapes": (
        [{"a": np.ma.array(ARRAY)}, {"a": np.ma.array(ARRAY[0])}],
        "'a' is [2, 3] in",
    ),
    "ragged": ([{"a": [1, 2]}, {"a": [1, [2, 3]]}, {"a": [1, 2]}], "'a/1' is"),
    "missing": (
        [{"image": ARRAY, "label": 1}, {"image": ARRAY, "label": 1}, {"image": ARRAY}],
        f"aligned_stack: 'label' is in record 0 and not in record 2; {ONE_STRUCTURE}",
    ),
    "one more": ([{"a": 1}, {"a": 1, "b": 1}], "'b' is in record 1 and not in record 0"),
    "other name": ([{"a": 1}, {"b": 0.5}, {"c": True}], "'a' is in record 0 and not in record 1"),
    "int after None": ([{"a": None}, {"a": 1}], "'a' is in record 1 and not in record 0"),
    "lengths": ([{"a": (1, 2)}, {"a": (1,)}], "'a/1' is in record 0 and not in record 1"),
    "list after tuple": ([{"a": (1,)}, {"a": [1]}], "tuple"),
    "dtypes": ([{"a": np.datetime64(0, "s")}, {"a": 1.5}], "aligned_stack: in 'a'"),
    "keys": ([{"a": jax.random.key(0)}] * 2, "aligned_stack: in 'a'"),
    "none": ([], "aligned_stack: no records; expected one or more; pass the records of a batch"),
}


def grains_own(records: list[Any]) -> Any:
    return grain.MapDataset.source(records).batch(len(records))[0]


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
@pytest.mark.parametrize("records", LEAVES.values(), ids=LEAVES)
def test_every_kind_of_leaf(records: list[Any], size: int | None) -> None:
    records = records[:size]
    dataset = grain.MapDataset.source(records)
    ours = dataset.batch(len(records), batch_fn=gm.aligned_stack)[0]
    assert_alike(ours, grains_own(records))


def test_memory_maps(tmp_path: pathlib.Path) -> None:
    records = memmaps(tmp_path)
    stacked = gm.aligned_stack(records)
    assert_alike(stacked, grains_own(records))
    assert stacked.ctypes.data % 64 == 0


@pytest.mark.parametrize(("records", "message"), FAILURES.values(), ids=FAILURES)
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


def test_records_are_copied() -> None:
    records = [{"a": ARRAY.copy()}]
    stacked = gm.aligned_stack(records)
    stacked["a"][:] = 9
    np.testing.assert_array_equal(records[0]["a"], ARRAY)


@pytest.mark.parametrize("drop", [True, False])
def test_spec(drop: bool) -> None:
    struct = grain.experimental.ShapeDtypeStruct

    class Record(grain.transforms.Map):
        def map(self, i: int) -> Any:
            return {"image": np.full((4, 5), i), "more": ({"name": str(i)}, None)}

        def output_spec(self, _: Any) -> Any:
            return {"image": struct((4, 5), np.int64), "more": ({"name": struct((), str)}, None)}

    records = grain.MapDataset.range(6).map(Record())
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
