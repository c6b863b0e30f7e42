"""Maps of weights, one per record, which a user's function makes."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix._calls import jax_defaults
from grain_mix._dtypes import FLOATS
from grain_mix._errors import check_hash, describe, fail, kind
from grain_mix._trace import check_pure

WeightMap = Callable[..., Any]  # (key, lam, lengths) -> bool or floats of shape `lengths`
MOST_PIXELS = {"bool": 2**31 - 1, "float": 2**24 - 1}  # that 32 bits count exactly
FIX = "it takes (key, lam, lengths) and returns the own weights, such as mask < lam"


def check_function(where: str, field: str, value: Any) -> WeightMap:
    """Checks what can be checked before there is an image."""
    came = f"{field}={value!r}"
    if not callable(value) or isinstance(value, type):
        fail(TypeError, where, came, "a function", FIX)
    fix = "pass a function, functools.partial, or a frozen dataclass with __call__"
    check_hash(where, came, value, "a function with a hash", fix)
    try:
        inspect.signature(value).bind(None, None, None)
    except ValueError:  # no signature is known
        pass
    except TypeError:
        came = f"{field}{inspect.signature(value)}"
        fail(TypeError, where, came, "a function of (key, lam, lengths)", FIX)
    function: WeightMap = value
    return function


def dtype_of(where: str, function: WeightMap, lengths: tuple[int, ...]) -> np.dtype[Any]:
    """Checks what the function returns for images of these lengths, and returns its dtype."""
    key = jax.eval_shape(lambda: jax.random.wrap_key_data(jnp.zeros(2, jnp.uint32), impl=IMPL))
    lam = jax.ShapeDtypeStruct((), jnp.float32)
    spec = check_pure(
        where,
        "weight_map",
        functools.partial(_as_it_is, function, lengths),
        key,
        lam,
        fix="take random numbers from key, which is the record's own",
    )
    expected = f"bool or floats {list(lengths)}"
    if not isinstance(spec, jax.ShapeDtypeStruct):
        fail(TypeError, where, f"weight_map returns {kind(spec)}", expected, FIX)
    came = f"weight_map returns {describe(spec)}"
    is_bool = str(spec.dtype) == "bool"
    if not is_bool and str(spec.dtype) not in FLOATS:
        fix = "return a comparison, such as mask == 1, or cast weights to float32"
        fail(TypeError, where, came, expected, fix)
    if spec.shape != lengths:
        fix = "return a weight for each pixel, without axes for the batch and for channels"
        fail(ValueError, where, came, expected, fix)
    most = MOST_PIXELS["bool" if is_bool else "float"]
    if math.prod(lengths) > most:
        fix = "split images up before" + ("" if is_bool else ", or return bool")
        fail(ValueError, where, came, f"at most {most} pixels", fix)
    dtype: np.dtype[Any] = np.dtype(spec.dtype)
    return dtype


IMPL = "threefry2x32"


def _as_it_is(function: WeightMap, lengths: tuple[int, ...], key: Any, lam: Any) -> Any:
    return function(key, lam, lengths)


def maps_of(
    function: WeightMap,
    words: jax.Array,
    lam: jax.Array,
    lengths: tuple[int, ...],
    kept: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """`[B, *lengths]`: what is kept of the maps that the function returns, computed once.

    Pixels and label both need it, and twice might not round the same way.

    Args:
        function: the user's.
        words: `uint32 [B, 2]`, the data of each record's key.
        lam: `float32 [B]`.
        lengths: of the image along the axes of the map.
        kept: from maps to what is kept, entry by entry.
    """

    def one(words: jax.Array, lam: jax.Array) -> jax.Array:
        with jax_defaults():
            key = jax.random.wrap_key_data(words, impl=IMPL)
            return jnp.asarray(function(key, lam, lengths))

    def made(words: jax.Array, lam: jax.Array) -> jax.Array:
        return kept(jax.vmap(one)(words, lam))

    once: jax.Array = jax.lax.platform_dependent(
        words,
        lam,
        cpu=functools.partial(_once_on_cpus, made),
        default=lambda *args: jax.lax.optimization_barrier(made(*args)),
    )
    return once


def _once_on_cpus(made: Callable[..., jax.Array], words: jax.Array, lam: jax.Array) -> jax.Array:
    """Workaround for JAX 0.8 to 0.10, whose CPU compiler looks through `optimization_barrier`.

    It cannot look through a condition, since it does not know that λ is never below 0.
    """
    once: jax.Array = jax.lax.cond(
        lam[0] >= 0, made, lambda *args: jnp.zeros_like(made(*args)), words, lam
    )
    return once
