"""The grid of λ: multiples of 2⁻²⁴, the spacing of float32 just below 1.

So λ and 1-λ are both exact, and weights can be whole numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np

ONE = 1 << 24  # λ = 1 on the grid


def to_grid(lam: jax.Array) -> jax.Array:
    """Weights `float32` as `int32`, in units of 2⁻²⁴."""
    return jnp.rint(lam * np.float32(ONE)).astype(jnp.int32)


def from_grid(weight: jax.Array) -> jax.Array:
    """Weights in units of 2⁻²⁴ as `float32`, exact."""
    return weight.astype(jnp.float32) / np.float32(ONE)
