"""Maps of weights, one for each record, which a function makes; their means are label weights."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix._dtypes import narrowed
from grain_mix._fixed_point import ONE, from_fixed
from grain_mix._guards import jax_defaults

# (key, lam, lengths) or (key, lam, lengths, own, partner) -> bool or floats of shape `lengths`
MapFunction = Callable[..., Any]
IMPL = "threefry2x32"
PARTS = ((0, 255), (8, 255), (16, 511))  # shifts and masks that split a weight into bytes
NO_WEIGHT = np.uint32(2**32 - 1)  # in the place of what is not from 0 to 1


def made_once(
    function: MapFunction,
    words: jax.Array,
    lam: jax.Array,
    lengths: tuple[int, ...],
    fields: Sequence[Mapping[str, jax.Array]] = (),
    *,
    fixed: bool,
) -> jax.Array:
    """`[B, *lengths]`: the maps that the function returns, computed once.

    Pixels and label both need them, and twice might not round the same way.

    Args:
        function: the user's, or one of `gm.maps`.
        words: `uint32 [B, 2]`, the data of each record's key.
        lam: `float32 [B]`.
        lengths: of the image along the axes of the map.
        fields: for each source what the function reads, `[B, ...]`; none where it reads nothing.
        fixed: whether floats are returned as `uint32`, in units of 2⁻²⁴, or `NO_WEIGHT`.
    """

    def one(words: jax.Array, lam: jax.Array, fields: Any) -> jax.Array:
        with jax_defaults():
            key = jax.random.wrap_key_data(words, impl=IMPL)
            read = jax.tree.map(narrowed, [dict(each) for each in fields])
            return jnp.asarray(function(key, lam, lengths, *read))

    def made(words: jax.Array, lam: jax.Array, fields: Any) -> jax.Array:
        maps = jax.vmap(one)(words, lam, fields)
        return _to_fixed(maps) if fixed else maps

    once: jax.Array = jax.lax.platform_dependent(
        words,
        lam,
        list(fields),
        cpu=functools.partial(_once_on_cpus, made),
        default=lambda *args: jax.lax.optimization_barrier(made(*args)),
    )
    return once


def _once_on_cpus(
    made: Callable[..., jax.Array], words: jax.Array, lam: jax.Array, fields: Any
) -> jax.Array:
    """Workaround for JAX 0.8 to 0.10, whose CPU compiler looks through `optimization_barrier`.

    It cannot look through a condition, since it does not know that λ is never below 0.
    """
    once: jax.Array = jax.lax.cond(
        lam[0] >= 0, made, lambda *args: jnp.zeros_like(made(*args)), words, lam, fields
    )
    return once


def _to_fixed(maps: jax.Array) -> jax.Array:
    """Maps of floats as whole numbers `uint32`, and `NO_WEIGHT`; those of `bool` as they are."""
    if maps.dtype == jnp.bool_:
        return maps
    maps = maps.astype(jnp.float32)
    is_weight = (maps >= 0) & (maps <= 1)
    fixed = jnp.rint(jnp.where(is_weight, maps, 0) * np.float32(ONE)).astype(jnp.uint32)
    return jnp.where(is_weight, fixed, NO_WEIGHT)


def label_weights(maps: jax.Array, mixed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The label's weights `float32 [B]`, which are the means of the maps, and the maps' weights.

    Records that are not `mixed` have a map of ones. The mean of a map with other values than
    weights is NaN.
    """
    axes = tuple(range(1, maps.ndim))
    each = mixed.reshape(-1, *[1] * len(axes))
    if maps.dtype == jnp.bool_:
        weights = maps | ~each
        ones = weights.astype(jnp.uint32)
        shown, hidden = _sums([ones, 1 - ones], axes)
        kept, size = shown.astype(jnp.float32), (shown + hidden).astype(jnp.float32)
        # Not `kept / size`, which may be another float for maps of more than 2²⁴ pixels.
        return kept / (kept + (size - kept)), weights
    maps = jnp.where(each, maps, np.uint32(ONE))
    wrong = maps == NO_WEIGHT
    maps = jnp.where(wrong, np.uint32(0), maps)
    # Byte by byte, since float32 would lose what integers sum exactly, up to 2²⁴ pixels.
    parts = [(maps >> shift) & mask for shift, mask in PARTS]
    *sums, wrongs = _sums([*parts, wrong.astype(jnp.uint32)], axes)
    total = sum(
        count.astype(jnp.float32) * np.float32(2.0**shift / ONE)
        for count, (shift, _) in zip(sums, PARTS, strict=True)
    )
    is_whole = sums[-1] == np.uint32((ONE >> PARTS[-1][0]) * math.prod(maps.shape[1:]))
    mean = total / np.float32(math.prod(maps.shape[1:]))
    lam = jnp.where(is_whole, np.float32(1), jnp.minimum(mean, np.float32(1)))
    return jnp.where(wrongs > 0, np.float32(np.nan), lam), from_fixed(maps)


def _sums(maps: Sequence[jax.Array], axes: tuple[int, ...]) -> list[jax.Array]:
    """`uint32 [B]`, the sum of each of several maps.

    In one reduction, of which CPUs make one loop, ten to twenty times as fast as one for each: XLA
    would take that apart, as if it had to sum floats more exactly.
    """
    zeros = [np.uint32(0)] * len(maps)
    added: list[jax.Array] = jax.lax.reduce(
        list(maps), zeros, lambda x, y: [a + b for a, b in zip(x, y, strict=True)], axes
    )
    return added
