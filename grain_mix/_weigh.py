"""Weighted means and exact choices, for every dtype and on every platform. Knows no box."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix._grid import ONE, to_grid


def weighted_mean(
    x: jax.Array, y: jax.Array, lam: jax.Array, dtype: Any = None, *, in_16_bits: bool = False
) -> jax.Array:
    """`lam·x + (1-lam)·y`, for `float32` weights on the grid of λ that broadcast against `x`.

    With a `dtype`, `x`, `y` and the result are `uint16`, the bits of floats of that dtype.
    `in_16_bits` weighs bytes in words of 16 bits, of which a CPU multiplies more at a time. The
    result is the same.
    """
    if dtype is None and jnp.issubdtype(x.dtype, jnp.integer):
        return _weigh_integers(x, y, lam, in_16_bits)
    a, b = (z if dtype is None else jax.lax.bitcast_convert_type(z, dtype) for z in (x, y))
    mixed = lam * a.astype(jnp.float32) + (1 - lam) * b.astype(jnp.float32)
    mixed = mixed.astype(a.dtype)
    mixed = mixed if dtype is None else jax.lax.bitcast_convert_type(mixed, jnp.uint16)
    # At 1 and 0 exactly x and y, where 0·inf would be NaN.
    return select(lam == 0, y, select(lam == 1, x, mixed))


def select(mask: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """`x` where the mask is true, else `y`.

    The mask is `bool`. For integers it may also have their dtype, with all bits set or none.
    """
    return jnp.where(mask, x, y) if mask.dtype == jnp.bool_ else y ^ ((y ^ x) & mask)


def _weigh_integers(x: jax.Array, y: jax.Array, lam: jax.Array, in_16_bits: bool) -> jax.Array:
    """`⌊lam·x + (1-lam)·y + 1/2⌋`, exact: rounded to nearest, halves up.

    The weights are integers too, in units of 2⁻²⁴: the same on every platform, and faster than
    float32.
    """
    weight = to_grid(lam)
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    # Flipping the sign bit maps signed integers to unsigned ones, order and distances kept.
    offset = np.array(-jnp.iinfo(x.dtype).min).astype(unsigned)
    a, b = (jax.lax.bitcast_convert_type(z, unsigned) ^ offset for z in (x, y))
    if unsigned != jnp.uint8:
        nearest = _weigh_wide(a, b, weight)
    elif in_16_bits:
        nearest = _weigh_bytes_in_16_bits(a, b, weight)
    else:
        wide = weigh_bytes(a.astype(jnp.uint32), b.astype(jnp.uint32), weight)
        nearest = wide.astype(jnp.uint8)
    return jax.lax.bitcast_convert_type(nearest ^ offset, x.dtype)


def weigh_bytes(a: jax.Array, b: jax.Array, weight: jax.Array) -> jax.Array:
    """The blend of bytes that are `uint32`, as is the result; `weight` is on the grid."""
    weight = weight.astype(jnp.uint32)
    return (a * weight + (b * (np.uint32(ONE) - weight) + np.uint32(ONE // 2))) >> 24


def _weigh_bytes_in_16_bits(a: jax.Array, b: jax.Array, weight: jax.Array) -> jax.Array:
    """The blend of bytes, 24 bits of fraction included, in two words of 16 bits.

    CPUs multiply twice as many of these at a time as of 32 bits. `high·2¹⁶ + low` is
    `2²⁴·b + weight·(a - b)`, and only `high` decides on rounding; what wraps on the way is back in
    range in the sum.
    """
    rounded = (weight + (1 << 15)) >> 16
    upper = rounded.astype(jnp.int16)
    lower = (weight - (rounded << 16)).astype(jnp.int16)  # signed
    difference = a.astype(jnp.int16) - b.astype(jnp.int16)
    # Compilers know this for the instruction that yields a product's upper word.
    carry = ((lower.astype(jnp.int32) * difference.astype(jnp.int32)) >> 16).astype(jnp.int16)
    high = ((b.astype(jnp.int16) << 8) + upper * difference + carry).astype(jnp.uint16)
    return ((high + 128) >> 8).astype(jnp.uint8)


def _weigh_wide(a: jax.Array, b: jax.Array, weight: jax.Array) -> jax.Array:
    """The blend of 16 or 32 bits, byte by byte, low to high, as in long multiplication by hand.

    A byte times a weight fits 32 bits.
    """
    size = a.dtype.itemsize
    weight = weight.astype(jnp.uint32)
    carry = remainder = jnp.uint32(0)
    for byte in range(size):
        a_byte, b_byte = ((z.astype(jnp.uint32) >> (8 * byte)) & 255 for z in (a, b))
        # weight·a + (1-weight)·b in units of 2⁻²⁴; a - b may wrap, the sum unwraps it.
        total = (b_byte << 24) + weight * (a_byte - b_byte) + carry
        carry = total >> 8
        fraction_bits = 8 if byte < size - 1 else 8 * (4 - size)
        remainder += (total & ((1 << fraction_bits) - 1)) << (8 * byte)
    floor = total >> fraction_bits if size < 4 else total
    nearest = floor + ((remainder + ONE // 2) >> 24)
    narrow: jax.Array = nearest.astype(a.dtype)
    return narrow
