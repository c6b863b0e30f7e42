"""Who is mixed with whom: the k sources of each record, itself first.

A group is k consecutive records of a batch. Record m of a group has the records m, m + 1, ...
modulo k as its sources, so for k = 2 records 2i and 2i+1 are each other's partners.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# What the compilers for v5e, v5p and v6e estimate: a product with more records has more arithmetic
# than a TPU does in the time that the bytes take. Of 32 bits it gains too little.
LARGEST_PRODUCT = 512


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Neighbour:
    """Of each record the r-th next one in its group of k."""

    r: int
    k: int


class Source(NamedTuple):
    """One source of each record: the records of `array` `[B, ...]` in this order.

    The order is `None` as they are, a `Neighbour`, or positions `int [B]`. Each platform rearranges
    its own form of the array, so this is left until then.
    """

    array: Any
    order: Any = None

    @property
    def value(self) -> Any:
        """`[B, ...]`, the source of each record."""
        return rearranged(self.array, self.order)


def positions(size: int, k: int) -> np.ndarray:
    """`int32 [size, k]`: where in the batch the sources of each record are.

    The records that remain at the end take the last k records of the batch as their group. In a
    batch of fewer than k records each is its own source.
    """
    index = np.arange(size, dtype=np.int32)
    if size < k:
        return np.repeat(index[:, None], k, axis=1)
    first = np.where(index < size - size % k, index - index % k, size - k)
    turns = np.arange(k, dtype=np.int32)
    found: np.ndarray = first[:, None] + (index[:, None] - first[:, None] + turns) % k
    return found.astype(np.int32)


def neighbours(x: Any, k: int) -> tuple[Source, ...]:
    """The sources of each record, where these are its neighbours in the batch."""
    return (Source(x), *(Source(x, Neighbour(r, k)) for r in range(1, k)))


def are_whole_groups(sources: Sequence[Source]) -> bool:
    """Whether these are the neighbours of each record in groups, of which none is incomplete."""
    x, *others = sources
    return len(x.array) % len(sources) == 0 and all(
        other.array is x.array and isinstance(other.order, Neighbour) for other in others
    )


def in_groups(sources: Sequence[Source]) -> tuple[jax.Array, np.ndarray]:
    """The records in groups `[groups, k, ...]`, and where in it each member has its sources.

    The latter is `int32 [members, k]`. Where sources are no whole groups of one array, each record
    gets a group of its own, with its sources as members.
    """
    x, k = sources[0].array, len(sources)
    if are_whole_groups(sources):
        return x.reshape(len(x) // k, k, *x.shape[1:]), positions(k, k)
    return jnp.stack([source.value for source in sources], axis=1), positions(k, k)[:1]


def rearranged(x: jax.Array, order: Any, *, looks_up: bool = False) -> jax.Array:
    """The records of `x` in this order.

    `looks_up` is whether to look up where each entry comes from costs less than to join parts: on
    GPUs XLA would store what is joined, and read it again.
    """
    if order is None:
        return x
    if not isinstance(order, Neighbour):
        return x[order]
    size, r, k = len(x), order.r, order.k
    if size % k:
        return x[positions(size, k)[:, r]]
    # Slices rather than a gather: nothing moves between devices when axis 0 is sharded.
    groups = x.reshape(size // k, k, *x.shape[1:])
    if k == 2:
        turned = groups[:, ::-1]
    elif looks_up:
        turned = jnp.take(groups, np.roll(np.arange(k), -r), axis=1, mode="clip")
    else:
        turned = jnp.concatenate([groups[:, r:], groups[:, :r]], axis=1)
    return turned.reshape(x.shape)


def can_be_product(x: jax.Array, order: Any) -> bool:
    """Whether `rearranged_by_product` pays, and may be used: all of `x` must lie on one device.

    Otherwise the product would need records of other devices. Inside `shard_map` it is known that
    they do; under a plain `jit` it is not.
    """
    pays = x.dtype.itemsize < 4 and 2 <= len(x) <= LARGEST_PRODUCT and isinstance(order, Neighbour)
    return pays and jax.sharding.get_abstract_mesh().are_all_axes_manual


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def rearranged_by_product(x: jax.Array, order: Neighbour) -> jax.Array:
    """`rearranged(x, order)` of 8 or 16 bits as a product with a permutation matrix, for TPUs.

    TPUs keep the batch on the lanes of their vectors, and to reverse pairs of lanes they go
    through memory. Their matrix unit rearranges on the way.
    """
    matrix = np.eye(len(x), dtype=np.float32)[positions(len(x), order.k)[:, order.r]]
    return product(jnp.asarray(matrix), x, (((1,), (0,)), ((), ())))


@rearranged_by_product.defjvp
def _tangents(order: Neighbour, primals: Any, tangents: Any) -> Any:
    (x,), (tangent,) = primals, tangents
    return rearranged_by_product(x, order), rearranged(tangent, order)


def product(matrix: jax.Array, x: jax.Array, dimensions: Any) -> jax.Array:
    """`matrix @ x` as `jax.lax.dot_general`, where the matrix selects: each row has at most one 1.

    The product takes the bits of `x` as whole numbers, since with floats 0·inf would be NaN. It is
    exact: a sum has one term that is not 0, and each factor fits the precision that is asked for.
    """
    size = x.dtype.itemsize
    unsigned = jnp.dtype(f"uint{8 * size}")
    is_bool = x.dtype == jnp.bool_
    bits = x.astype(unsigned) if is_bool else jax.lax.bitcast_convert_type(x, unsigned)
    if size == 4:  # as two halves
        low, high = (product(matrix, (bits >> s).astype(jnp.uint16), dimensions) for s in (0, 16))
        moved = low.astype(jnp.uint32) | (high.astype(jnp.uint32) << 16)
        return jax.lax.bitcast_convert_type(moved, x.dtype)
    # 16 bits as two factors of 8.
    dtype, precision = [(jnp.bfloat16, None), (jnp.float32, jax.lax.Precision.HIGH)][size - 1]
    moved = jax.lax.dot_general(
        matrix.astype(dtype),
        bits.astype(jnp.int32).astype(dtype),
        dimensions,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    moved = moved.astype(jnp.int32).astype(unsigned)
    return moved.astype(x.dtype) if is_bool else jax.lax.bitcast_convert_type(moved, x.dtype)
