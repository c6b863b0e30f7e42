"""Memory on the host that XLA shares, and batches that are stacked into it.

Workaround for JAX 0.8 to 0.12: XLA shares memory that begins at a multiple of 64 bytes. NumPy's
arrays begin 16 bytes after one, so XLA copies them. For a large batch its copy waits for fresh
small pages, while NumPy asks for huge ones.
"""

import math
from collections.abc import Sequence
from typing import Any

import grain
import jax
import numpy as np

from grain_mix._errors import fail

ALIGNMENT = 64
PLAIN = (np.ndarray, np.memmap)  # types that NumPy stacks into an ndarray


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """As `np.empty`, in memory that XLA shares."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    aligned: np.ndarray = memory[start : start + size].view(dtype).reshape(shape)
    return aligned


def aligned_stack(records: Sequence[Any]) -> Any:
    """Stacks records into memory that XLA can share: a `batch_fn` for `grain.transforms.Batch`.

    On the host, a batch is mixed in such memory, and copied there first if it is not there
    already. So this saves one copy of each batch. Leave it out where `Batch` is the last operation
    of a worker process: there Grain stacks into shared memory, which XLA can share as well.

    Args:
        records: dicts, tuples or other trees of arrays and numbers, all of the same structure.

    Returns:
        What Grain's own `batch_fn` returns, in values, dtypes and types. The structure stays, and
        each leaf is an array `[B, ...]`. Arrays of numbers are in such memory. All else, like text
        and masked arrays, Grain stacks itself.

    Raises:
        ValueError: the records differ in structure, or a field in shape; or there are none.

    >>> import grain
    >>> batch = grain.transforms.Batch(128, drop_remainder=True, batch_fn=aligned_stack)
    >>> aligned_stack([{"label": 3}, {"label": 5}])
    {'label': array([3, 5])}

    `grain.experimental.get_element_spec` knows what comes out.

    >>> batches = grain.MapDataset.range(256).batch(128, batch_fn=aligned_stack)
    >>> grain.experimental.get_element_spec(batches)
    ShapeDtypeStruct(shape=(None,), dtype=<class 'numpy.int64'>)
    """
    if not records:
        fail(
            ValueError, "aligned_stack", "no records", "one or more", "pass the records of a batch"
        )
    try:
        return jax.tree.map_with_path(_stack, *records)
    except ValueError:
        _check_structures(records)
        raise


def _output_spec(input_spec: Any, batch_size: int, drop_remainder: bool) -> Any:
    """The spec of a batch; without `drop_remainder` the last one's length is not known."""
    length = batch_size if drop_remainder else None
    struct = grain.experimental.ShapeDtypeStruct
    return jax.tree.map(lambda x: struct((length, *x.shape), x.dtype), input_spec)


aligned_stack.output_spec = _output_spec  # type: ignore[attr-defined]  # where Grain looks for it


def _stack(path: Any, *leaves: Any) -> Any:
    try:
        arrays = [np.asanyarray(leaf) for leaf in leaves]
        if _same_shape(path, arrays) and _are_plain(arrays):
            shape = len(arrays), *arrays[0].shape
            return np.stack(arrays, out=aligned_empty(shape, arrays[0].dtype))
        # The public name of Grain's own batch_fn: nothing is padded at this size.
        return grain.experimental.batch_and_pad(leaves, batch_size=len(leaves))
    except TypeError as error:  # NumPy's or JAX's, which Grain leaves as they are, too
        error.add_note(f"aligned_stack: in {_show(path)}")
        raise


def _same_shape(path: Any, arrays: Sequence[np.ndarray]) -> bool:
    first = arrays[0].shape
    for i, x in enumerate(arrays):
        if x.shape != first:
            got = f"{_show(path)} is {list(first)} in record 0 and {list(x.shape)} in record {i}"
            fix = "crop, resize or pad it before Batch"
            fail(ValueError, "aligned_stack", got, "one shape in all records of a batch", fix)
    return True


def _are_plain(arrays: Sequence[np.ndarray]) -> bool:
    """Whether NumPy stacks them into their own dtype, byte for byte."""
    dtype = arrays[0].dtype
    numbers = dtype.kind in "biufcV" and dtype.fields is None  # V: bfloat16, and others like it
    return dtype.isnative and numbers and all(type(x) in PLAIN and x.dtype == dtype for x in arrays)


def _check_structures(records: Sequence[Any]) -> None:
    """Names what is in one record and not in another; the error of JAX shows whole records."""
    expected, fix = "records of one structure", "add the field to all records, or drop it"
    first, *others = [{_show(p) for p, _ in jax.tree.leaves_with_path(x)} for x in records]
    for i, other in enumerate(others, 1):
        for name in sorted(first ^ other):
            here, there = (0, i) if name in first else (i, 0)
            got = f"{name} is in record {here} and not in record {there}"
            fail(ValueError, "aligned_stack", got, expected, fix)


def _show(path: Any) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return repr(name) if path else "the record"
