"""Weighted means in words of 32 bits, each of four bytes or two floats, for GPUs.

A GPU computes in 32 bits, and a byte by itself costs as much as a word. The results are those of
`_weigh`, bit by bit.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix._grid import to_grid
from grain_mix._weigh import weigh_bytes

BYTES = ("uint8", "int8")
HALVES = ("float16", "bfloat16")


def can_pack(x: jax.Array) -> bool:
    """Whether `x` has a narrow dtype, and rows that are whole words."""
    return str(x.dtype) in (*BYTES, *HALVES) and x.shape[-1] * x.dtype.itemsize % 4 == 0


def pack(x: jax.Array) -> jax.Array:
    """`[..., L]` as `uint32` words; the first entry is in the lowest bits."""
    return jax.lax.bitcast_convert_type(
        x.reshape(*x.shape[:-1], -1, 4 // x.dtype.itemsize), jnp.uint32
    )


def unpack(words: jax.Array, dtype: Any) -> jax.Array:
    """The entries `[..., L]` of `uint32` words."""
    entries = jax.lax.bitcast_convert_type(words, dtype)
    return entries.reshape(*words.shape[:-1], -1)


def weighted_mean(x: jax.Array, y: jax.Array, lam: jax.Array, dtype: Any) -> jax.Array:
    """`lam·x + (1-lam)·y` of the entries that two arrays of words hold."""
    if str(dtype) in BYTES:
        return _mean_of_bytes(x, y, lam, dtype)
    return _mean_of_halves(x, y, lam, dtype)


def _mean_of_bytes(x: jax.Array, y: jax.Array, lam: jax.Array, dtype: Any) -> jax.Array:
    signs = np.uint32(0x80808080 if str(dtype) == "int8" else 0)  # flipped, as in `_weigh`
    x, y, weight = x ^ signs, y ^ signs, to_grid(lam)
    mean = jnp.uint32(0)
    for shift in (0, 8, 16, 24):
        mean = mean | weigh_bytes((x >> shift) & 255, (y >> shift) & 255, weight) << shift
    signed: jax.Array = mean ^ signs
    return signed


def _mean_of_halves(x: jax.Array, y: jax.Array, lam: jax.Array, dtype: Any) -> jax.Array:
    mean = jnp.uint32(0)
    for shift in (0, 16):
        a, b = (
            jax.lax.bitcast_convert_type((z >> shift).astype(jnp.uint16), dtype) for z in (x, y)
        )
        half = (lam * a.astype(jnp.float32) + (1 - lam) * b.astype(jnp.float32)).astype(dtype)
        mean = mean | jax.lax.bitcast_convert_type(half, jnp.uint16).astype(jnp.uint32) << shift
    return jnp.where(lam == 0, y, jnp.where(lam == 1, x, mean))  # where 0·inf would be NaN
