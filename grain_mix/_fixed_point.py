"""Weights as whole numbers of 2⁻²⁴, the spacing of `float32` just below 1.

So λ and 1-λ are both exact, and integer pixels can be weighed without rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np

ONE = 1 << 24  # a weight of 1


def to_fixed(weight: jax.Array) -> jax.Array:
    """Weights `float32` as `int32`, in units of 2⁻²⁴."""
    return jnp.rint(weight * np.float32(ONE)).astype(jnp.int32)


def from_fixed(weight: jax.Array) -> jax.Array:
    """Weights in units of 2⁻²⁴ as `float32`, exact."""
    return weight.astype(jnp.float32) / np.float32(ONE)


# Products of more than 32 bits, as lists of bytes, the lowest first: JAX has no 64 bits by default.


def times(number: list[jax.Array], factor: jax.Array) -> list[jax.Array]:
    """The bytes of a number, multiplied by `uint32` factors of at most 2²⁴."""
    out, carry = [], jnp.uint32(0)
    for byte in number:
        total = byte * factor + carry  # at most 255·2²⁴ + 2²⁴ - 1
        out.append(total & np.uint32(255))
        carry = total >> 8
    for _ in range(4):
        out.append(carry & np.uint32(255))
        carry = carry >> 8
    return out


def is_less(a: list[jax.Array], b: list[jax.Array]) -> jax.Array:
    """Whether the first number is below the second."""
    zeros = [jnp.uint32(0)] * abs(len(a) - len(b))
    less = jnp.zeros((), jnp.bool_)
    for x, y in zip([*a, *zeros], [*b, *zeros], strict=False):
        less = (x < y) | ((x == y) & less)
    return less
