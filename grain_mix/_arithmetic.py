"""Weighted means and exact choices, for every dtype and on every platform. Knows no box."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix._fixed_point import ONE, to_fixed

Arrays = Sequence[jax.Array]


def weighted_mean(
    xs: Arrays, weights: Arrays, dtype: Any = None, *, in_16_bits: bool = False
) -> jax.Array:
    """`Σ w_r·x_r`, for `float32` weights in units of 2⁻²⁴ that sum to 1 and broadcast.

    A weight of 0 adds nothing, not even NaN, and a weight of 1 copies every bit.

    Args:
        xs: the sources, of one dtype.
        weights: those of the sources.
        dtype: a float of 16 bits where `xs` and the result are its bits, as `uint16`.
        in_16_bits: whether two bytes are weighed in words of 16 bits, of which a CPU multiplies
            more at a time. The result is the same.
    """
    if dtype is None and jnp.issubdtype(xs[0].dtype, jnp.integer):
        return _mean_of_integers(xs, weights, in_16_bits)
    floats = xs if dtype is None else [jax.lax.bitcast_convert_type(x, dtype) for x in xs]
    mixed = mean_of_floats(floats, weights)
    mixed = mixed if dtype is None else jax.lax.bitcast_convert_type(mixed, jnp.uint16)
    return copied(xs, weights, mixed)


def exact_mean(xs: Arrays, weights: Arrays) -> jax.Array:
    """`Σ w_r·x_r` of `float32`, with the same bits in every program and on every platform."""
    terms = [jnp.where(w == 0, np.float32(0), x) for x, w in zip(xs, weights, strict=True)]
    total = multiply_add(weights[0], terms[0], rounded(weights[1] * terms[1]))
    for x, weight in zip(terms[2:], weights[2:], strict=True):
        total = multiply_add(weight, x, total)
    return copied(xs, weights, total)


def copied(xs: Arrays, weights: Arrays, mixed: jax.Array) -> jax.Array:
    """`mixed`, but where one source has the whole weight, that source: all bits, also of NaN."""
    # Of two, 1-λ may round to 1 where λ is not 0.
    last = weights[0] == 0 if len(xs) == 2 else weights[-1] == 1
    wholes = [*(weight == 1 for weight in weights[:-1]), last]
    for x, whole in zip(xs, wholes, strict=True):
        mixed = select(whole, x, mixed)
    return mixed


def mean_of_floats(xs: Arrays, weights: Arrays) -> jax.Array:
    """`Σ w_r·x_r` of floats, summed in `float32` in the order of the sources.

    Where a weight is 1 of two, 0·inf makes it NaN.
    """
    terms = [w * x.astype(jnp.float32) for x, w in zip(xs, weights, strict=True)]
    if len(xs) > 2:
        terms = [jnp.where(w == 0, np.float32(0), t) for t, w in zip(terms, weights, strict=True)]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total.astype(xs[0].dtype)


@jax.custom_jvp
def multiply_add(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """`a·b + c` of `float32`, rounded once, as a processor's own instruction does.

    Compilers use that instruction in one program and not in another. So what the product loses, and
    what the sum loses, are computed (Dekker, https://doi.org/10.1007/BF01397083) and added.
    """
    product = rounded(a * b)
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    lost = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    total = product + c
    added = total - product
    lost = lost + ((product - (total - added)) + (c - added))
    return jnp.where(jnp.isfinite(lost), total + lost, total)


@multiply_add.defjvp
def _tangents(primals: Any, tangents: Any) -> Any:
    (a, b, c), (da, db, dc) = primals, tangents
    return multiply_add(a, b, c), da * b + a * db + dc


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two floats of 12 bits that sum to `x`: products of such are exact."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & np.uint32(0xFFFFF000)
    high = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return high, x - high


def rounded(x: jax.Array) -> jax.Array:
    """`x` of `float32`, rounded as it is: no compiler fuses it with what comes next.

    Compilers fuse a product into a sum, which rounds once instead of twice, in one program and not
    in another.
    """
    return x * hidden_one(x)


def hidden_one(x: jax.Array) -> jax.Array:
    """Ones in the shape of `x` of `float32`. Compilers cannot know them without knowing `x`.

    A divisor that is multiplied by it is no constant, with whose rounded reciprocal they multiply
    instead, in one program and not in another.
    """
    # A square's lowest bit and its third lowest are never both set.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    square = bits * bits
    zero = square & (square >> 2) & np.uint32(1)
    return 1 + zero.astype(jnp.float32)


def select(mask: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """`x` where the mask is true, else `y`.

    The mask is `bool`. For integers it may also have their dtype, with all bits set or none.
    """
    return jnp.where(mask, x, y) if mask.dtype == jnp.bool_ else y ^ ((y ^ x) & mask)


def fixed_weights(weights: Arrays) -> list[jax.Array]:
    """The weights as `uint32` in units of 2⁻²⁴; the last is what the others leave."""
    fixed = [to_fixed(weight).astype(jnp.uint32) for weight in weights[:-1]]
    return [*fixed, np.uint32(ONE) - sum(fixed[1:], fixed[0])]


def _mean_of_integers(xs: Arrays, weights: Arrays, in_16_bits: bool) -> jax.Array:
    """`⌊Σ w_r·x_r + 1/2⌋`, exact: rounded to nearest, halves up.

    The weights are integers too: the same on every platform, and faster than float32.
    """
    dtype = xs[0].dtype
    unsigned = jnp.dtype(f"uint{8 * dtype.itemsize}")
    # Flipping the sign bit maps signed integers to unsigned ones, order and distances kept.
    offset = np.array(-jnp.iinfo(dtype).min).astype(unsigned)
    xs = [jax.lax.bitcast_convert_type(x, unsigned) ^ offset for x in xs]
    if unsigned != jnp.uint8:
        nearest = _mean_of_wide(xs, fixed_weights(weights))
    elif in_16_bits and len(xs) == 2:
        nearest = _mean_in_16_bits(xs[0], xs[1], to_fixed(weights[0]))
    else:
        wide = mean_of_bytes([x.astype(jnp.uint32) for x in xs], fixed_weights(weights))
        nearest = wide.astype(jnp.uint8)
    return jax.lax.bitcast_convert_type(nearest ^ offset, dtype)


def mean_of_bytes(xs: Arrays, fixed: Arrays) -> jax.Array:
    """The mean of bytes that are `uint32`, as is the result."""
    total = xs[-1] * fixed[-1] + np.uint32(ONE // 2)
    for x, weight in zip(xs[:-1], fixed[:-1], strict=True):
        total = x * weight + total
    return total >> 24


def _mean_in_16_bits(a: jax.Array, b: jax.Array, weight: jax.Array) -> jax.Array:
    """The mean of two bytes, 24 bits of fraction included, in two words of 16 bits.

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


def _mean_of_wide(xs: Arrays, fixed: Arrays) -> jax.Array:
    """The mean of 16 or 32 bits, byte by byte, low to high, as in long multiplication by hand.

    A byte times a weight fits 32 bits.
    """
    dtype, size = xs[0].dtype, xs[0].dtype.itemsize
    carry = remainder = jnp.uint32(0)
    for place in range(size):
        *others, last = ((x.astype(jnp.uint32) >> (8 * place)) & 255 for x in xs)
        # Σ w_r·x_r in units of 2⁻²⁴; x - last may wrap, the sum unwraps it.
        total = (last << 24) + carry
        for x, weight in zip(others, fixed[:-1], strict=True):
            total = total + weight * (x - last)
        carry = total >> 8
        fraction_bits = 8 if place < size - 1 else 8 * (4 - size)
        remainder += (total & ((1 << fraction_bits) - 1)) << (8 * place)
    floor = total >> fraction_bits if size < 4 else total
    nearest = floor + ((remainder + ONE // 2) >> 24)
    narrow: jax.Array = nearest.astype(dtype)
    return narrow
