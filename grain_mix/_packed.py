"""Weighted means in words of 32 bits, each of four bytes or two floats, for GPUs.

A GPU computes in 32 bits, and a byte by itself costs as much as a word. The results are those of
`_arithmetic`, bit by bit.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix._arithmetic import Arrays, copied, fixed_weights, mean_of_bytes, mean_of_floats

BYTES = ("uint8", "int8")
HALVES = ("float16", "bfloat16")


def can_pack(x: jax.Array | jax.ShapeDtypeStruct) -> bool:
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


def weighted_mean(xs: Arrays, weights: Arrays, dtype: Any) -> jax.Array:
    """`Σ w_r·x_r` of the entries that arrays of words hold."""
    mean = jnp.uint32(0)
    if str(dtype) in BYTES:
        signs = np.uint32(0x80808080 if str(dtype) == "int8" else 0)  # as in `_arithmetic`
        xs, fixed = [x ^ signs for x in xs], fixed_weights(weights)
        for shift in (0, 8, 16, 24):
            mean = mean | mean_of_bytes([(x >> shift) & 255 for x in xs], fixed) << shift
        signed: jax.Array = mean ^ signs
        return signed
    for shift in (0, 16):
        halves = [(x >> shift).astype(jnp.uint16) for x in xs]
        half = mean_of_floats([jax.lax.bitcast_convert_type(x, dtype) for x in halves], weights)
        mean = mean | jax.lax.bitcast_convert_type(half, jnp.uint16).astype(jnp.uint32) << shift
    return copied(xs, weights, mean)
