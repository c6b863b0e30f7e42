"""Memory on the host that XLA shares, and batches that are stacked into it.

Workaround for JAX 0.7 to 0.12: XLA shares memory that begins at a multiple of 64 bytes. NumPy's
arrays begin 16 bytes after one, and XLA would copy them into fresh small pages. For a large
`float32` batch that takes four times as long as a copy into NumPy's memory, of huge pages.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

ALIGNMENT = 64


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
        What Grain's own `batch_fn` returns: the same structure, each leaf a NumPy array `[B, ...]`.

    >>> import grain
    >>> batch = grain.transforms.Batch(128, drop_remainder=True, batch_fn=aligned_stack)
    >>> aligned_stack([{"label": 3}, {"label": 5}])
    {'label': array([3, 5])}
    """
    return jax.tree.map(lambda *leaves: _stack(leaves), *records)


def _stack(leaves: Sequence[Any]) -> np.ndarray:
    arrays = [np.asarray(leaf) for leaf in leaves]
    first = arrays[0]
    numbers = first.dtype.kind in "biufcV" and not first.dtype.hasobject
    if not numbers or any(x.dtype != first.dtype for x in arrays):
        return np.stack(arrays)
    return np.stack(arrays, out=aligned_empty((len(arrays), *first.shape), first.dtype))
