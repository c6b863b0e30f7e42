"""From a record's seed to random bits: Threefry, which counts instead of remembering.

Every platform, compiler and device count gives the very same bits.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix._errors import describe, fail, kind
from grain_mix._fixed_point import ONE


class Bits(NamedTuple):
    """`uint32 [B]` random bits of each record, some for each decision.

    Each decision has bits of its own, so none changes when another is not made.

    Attributes:
        gate: whether to mix.
        switch: CutMix or MixUp, and the corner of a mosaic.
        quantile: λ.
        further: `[n, 2, B]`, two words for each axis of a box, for the key of a map, and for each
            further share of MixUp.
    """

    gate: jax.Array
    switch: jax.Array
    quantile: jax.Array
    further: jax.Array


def random_bits(seeds: jax.Array, further: int) -> Bits:
    """The random bits of each record: a hash of its seed and of the decision's number."""
    # Without jax.random.key, which adds jax_random_seed_offset. fold_in, unlike jax.random.bits,
    # does not depend on jax_threefry_partitionable.
    keys = jnp.stack([jnp.zeros_like(seeds), seeds], axis=1)
    decisions = jnp.arange(2 + further, dtype=jnp.uint32)
    words = jax.vmap(jax.vmap(fold_in, (0, None)), (None, 0))(keys, decisions)
    words = jnp.moveaxis(words, 2, 1)
    return Bits(words[0, 0], words[0, 1], words[1, 0], words[2:])


def fold_in(words: jax.Array, number: jax.Array) -> jax.Array:
    """`uint32 [2]`: the words of a key, and a number, hashed by Threefry."""
    key = jax.random.wrap_key_data(words, impl="threefry2x32")
    folded: jax.Array = jax.random.key_data(jax.random.fold_in(key, number))
    return folded


def chance(bits: jax.Array, probability: float) -> jax.Array:
    """`bool [B]`, true with this probability; exactly always for 1 and never for 0."""
    return (bits >> 8) < np.uint32(round(probability * ONE))


# --- the key of a step, in place of seeds --------------------------------------------------------


def words_of_key(caller: str, key: Any) -> jax.Array:
    """The data of a JAX key, new style or old, as `uint32 [n]`."""
    fix = "pass one key of this step, such as jax.random.fold_in(key, step)"
    if not isinstance(key, jax.Array | np.ndarray):
        fix += ", or rngs.mix() of a flax.nnx.Rngs"
        fail(TypeError, caller, f"key is {kind(key)}", "a key of jax.random", fix)
    if jax.sharding.get_abstract_mesh().manual_axes:
        got = "a key inside shard_map or pmap, where all shards would draw alike"
        fix = "there, add a field of seeds outside, and leave key out"
        fail(ValueError, caller, got, "a key outside, or seeds", fix)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape:
            fail(ValueError, caller, f"key is {describe(key)}", "one key, not several", fix)
        return jax.random.key_data(key)
    if str(key.dtype) != "uint32" or key.ndim != 1 or not key.size:
        fail(TypeError, caller, f"key is {describe(key)}", "one key of jax.random", fix)
    return jnp.asarray(key)


def seeds_of_key(words: jax.Array, size: int) -> jax.Array:
    """`uint32 [size]`: seed i is a hash of the key's data and of i, whatever the size."""
    data = jnp.zeros(2, jnp.uint32)
    for word in words:
        data = fold_in(data, word)
    positions = jnp.arange(size, dtype=jnp.uint32)
    return jax.vmap(fold_in, (None, 0))(data, positions)[:, 0]
