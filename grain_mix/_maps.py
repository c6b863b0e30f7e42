"""Maps of weights, one per record, which a user's function makes."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from grain_mix._errors import FLOATS, describe, fail, kind

WeightMap = Callable[..., Any]  # (key, lam, lengths) -> bool or floats of shape `lengths`
MOST_PIXELS = {"bool": 2**31 - 1, "float": 2**24 - 1}  # that 32 bits count exactly
FIX = "it takes (key, lam, lengths) and returns the own weights, such as mask < lam"


def check_function(where: str, value: Any) -> None:
    """Checks what can be checked before there is an image."""
    came = f"weight_map={value!r}"
    if not callable(value) or isinstance(value, type):
        fail(TypeError, where, came, "a function", FIX)
    try:
        hash(value)
    except TypeError:
        fix = "pass a function, functools.partial, or a frozen dataclass with __call__"
        fail(TypeError, where, f"{came}, which has no hash", "a function", fix)
    try:
        inspect.signature(value).bind(None, None, None)
    except ValueError:  # no signature is known
        pass
    except TypeError:
        came = f"weight_map{inspect.signature(value)}"
        fail(TypeError, where, came, "a function of (key, lam, lengths)", FIX)


def check_result(where: str, function: WeightMap, lengths: tuple[int, ...]) -> bool:
    """Checks the shape and dtype of a map, and returns whether it is `bool`."""
    spec = _spec(function, lengths)
    expected = f"bool or floats {list(lengths)}"
    if not isinstance(spec, jax.ShapeDtypeStruct):
        fail(TypeError, where, f"weight_map returns {kind(spec)}", expected, FIX)
    came = f"weight_map returns {describe(spec)}"
    if str(spec.dtype) not in ("bool", *FLOATS):
        fix = "return a comparison, such as mask == 1, or cast weights to float32"
        fail(TypeError, where, came, expected, fix)
    if spec.shape != lengths:
        fix = "return a weight for each pixel, without axes for the batch and for channels"
        fail(ValueError, where, came, expected, fix)
    is_bool = str(spec.dtype) == "bool"
    most = MOST_PIXELS["bool" if is_bool else "float"]
    if math.prod(lengths) > most:
        fix = "split images up before" + ("" if is_bool else ", or return bool")
        fail(ValueError, where, came, f"at most {most} pixels", fix)
    return is_bool


@functools.lru_cache(maxsize=256)
def _spec(function: WeightMap, lengths: tuple[int, ...]) -> Any:
    key = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))
    lam = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.eval_shape(lambda key, lam: function(key, lam, lengths), key, lam)


def maps_of(
    function: WeightMap, keys: jax.Array, lam: jax.Array, lengths: tuple[int, ...]
) -> jax.Array:
    """`[B, *lengths]`: the maps as the function returns them, from keys `[B]` and `lam` `[B]`."""

    def one(key: jax.Array, lam: jax.Array) -> jax.Array:
        return jnp.asarray(function(key, lam, lengths))

    maps = jax.vmap(one)(keys, lam)
    once: jax.Array = jax.lax.platform_dependent(
        maps, lam, cpu=_once_on_cpus, default=lambda maps, _: jax.lax.optimization_barrier(maps)
    )
    return once


def _once_on_cpus(maps: jax.Array, lam: jax.Array) -> jax.Array:
    """The maps, computed once, for pixels and label: twice might not round the same way.

    Workaround for JAX 0.7 to 0.10, whose CPU compiler looks through `optimization_barrier`. It
    cannot look through a condition, since it does not know that λ is never below 0.
    """
    once: jax.Array = jax.lax.cond(lam[0] >= 0, lambda maps: maps, jnp.zeros_like, maps)
    return once
