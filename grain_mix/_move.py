"""Moving whole images along their axes, each record by its own number of pixels."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix._sources import product


def turned(x: jax.Array, shift: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Images `[B, ...]`, moved by `int32 [B, n]` along their axes, and round from end to start."""

    def one(x: jax.Array, shift: jax.Array) -> jax.Array:
        for k, axis in enumerate(axes):
            x = jnp.take(x, _origins(x.shape[axis - 1], shift[k]), axis=axis - 1, mode="clip")
        return x

    moved: jax.Array = jax.vmap(one)(x, shift)
    return moved


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def turned_by_product(x: jax.Array, shift: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The same as products with permutation matrices, for TPUs, where a gather is a loop."""
    for k, axis in enumerate(axes):
        length = x.shape[axis]
        origins = jax.vmap(functools.partial(_origins, length))(shift[:, k])
        matrices = origins[:, :, None] == np.arange(length, dtype=np.int32)[None, None]
        x = jnp.moveaxis(product(matrices, x, (((2,), (axis,)), ((0,), (0,)))), 1, axis)
    return x


@turned_by_product.defjvp
def _tangents(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    return turned_by_product(*primals, axes), turned(tangents[0], primals[1], axes)


def _origins(length: int, shift: jax.Array) -> jax.Array:
    """Where along an axis each position comes from."""
    positions: jax.Array = jnp.arange(length, dtype=jnp.int32) - shift.reshape(1)
    return positions % np.int32(length)
