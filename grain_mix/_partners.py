"""Who is whose partner: the neighbour in the batch, and each record replaced by it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# What the compilers for v5e, v5p and v6e estimate: a product with more records has more arithmetic
# than a TPU does in the time that the bytes take. Of 32 bits it gains too little.
LARGEST_PRODUCT = 512


def partners(batch_size: int) -> np.ndarray:
    """Records 2k and 2k+1 are partners; a last one without a neighbour takes the one before."""
    index = np.arange(batch_size, dtype=np.int32)
    return np.where((index ^ 1) < batch_size, index ^ 1, np.maximum(index - 1, 0))


def swap(x: jax.Array) -> jax.Array:
    """`x[partners(len(x))]`, each record replaced by its partner."""
    if len(x) % 2:
        return x[partners(len(x))]
    # A reshape rather than a gather: nothing moves between devices when axis 0 is sharded.
    return x.reshape(len(x) // 2, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def can_be_product(x: jax.Array) -> bool:
    """Whether `swap_by_product` pays, and may be used: all of `x` must lie on one device.

    Otherwise the product would need records of other devices. Inside `shard_map` it is known that
    they do; under a plain `jit` it is not.
    """
    pays = x.dtype.itemsize < 4 and 2 <= len(x) <= LARGEST_PRODUCT
    return pays and jax.sharding.get_abstract_mesh().are_all_axes_manual


@jax.custom_jvp
def swap_by_product(x: jax.Array) -> jax.Array:
    """`swap(x)` of 8 or 16 bits as a product with a permutation matrix, for TPUs.

    TPUs keep the batch on the lanes of their vectors, and to reverse pairs of lanes they go
    through memory. Their matrix unit swaps on the way. The product takes the bits of `x` as whole
    numbers, since with floats 0·inf would be NaN. It is exact: a sum has one term that is not 0,
    and each factor fits the precision that is asked for.
    """
    size = x.dtype.itemsize
    unsigned = jnp.dtype(f"uint{8 * size}")
    is_bool = x.dtype == jnp.bool_
    bits = x.astype(unsigned) if is_bool else jax.lax.bitcast_convert_type(x, unsigned)
    # 16 bits as two factors of 8.
    dtype, precision = [(jnp.bfloat16, None), (jnp.float32, jax.lax.Precision.HIGH)][size - 1]
    matrix = jnp.asarray(np.eye(len(x), dtype=np.float32)[partners(len(x))], dtype)
    swapped = jax.lax.dot_general(
        matrix,
        bits.astype(jnp.int32).astype(dtype),
        (((1,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    swapped = swapped.astype(jnp.int32).astype(unsigned)
    return swapped.astype(x.dtype) if is_bool else jax.lax.bitcast_convert_type(swapped, x.dtype)


@swap_by_product.defjvp
def _swap_tangents(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    return swap_by_product(x), swap(dx)
