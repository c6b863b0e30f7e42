"""Maps of weights, one per record, which a user's function makes."""

import dataclasses
import functools
import inspect
import math
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix._dtypes import FLOATS, check_copied, narrow_dtype
from grain_mix._errors import describe, fail, kind, quote
from grain_mix._identity import check_frozen, check_hash
from grain_mix._parameters import as_names
from grain_mix._purity import check_pure
from grain_mix._weight_maps import IMPL

WeightMap = Callable[..., Any]  # (key, lam, lengths) -> bool or floats of shape `lengths`
MOST_PIXELS = {"bool": 2**31 - 1, "float": 2**24 - 1}  # that 32 bits count exactly
FIX = "it takes (key, lam, lengths) and returns the own weights, such as mask < lam"


def reads_of(caller: str, function: WeightMap, option: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the fields that a function reads, as it or the option says.

    Checks that it takes as many arguments: `own` and `partner` too, where it reads anything.
    """
    said = getattr(function, "reads", ())
    if option and said:
        got = f"reads={option} for a weight map with reads={said!r}"
        fail(ValueError, caller, got, "one of them", "leave the option out")
    names = option or as_names(caller, "weight_map.reads", said)
    arguments = ("key", "lam", "lengths", *(("own", "partner") if names else ()))
    try:
        inspect.signature(function).bind(*arguments)
    except ValueError:  # no signature is known
        pass
    except TypeError:
        got = f"weight_map{inspect.signature(function)}" + (f" with reads={names}" if names else "")
        fix = FIX if not names else f"it takes ({', '.join(arguments)}); own and partner are dicts"
        if not names and _binds(function, 5):
            fix = "say which fields it reads, reads=('masks',)"
        fail(TypeError, caller, got, f"a function of ({', '.join(arguments)})", fix)
    return names


def _binds(function: WeightMap, count: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    return True


def check_function(caller: str, field: str, value: Any) -> WeightMap:
    """Checks what can be checked before there is an image, and what it reads."""
    got = f"{field}={quote(value)}"
    if not callable(value) or isinstance(value, type):
        fix = f"write {value.__name__}(...), with brackets" if isinstance(value, type) else FIX
        fail(TypeError, caller, got, "a function", fix)
    fix = "pass a function, functools.partial, or a frozen dataclass with __call__"
    check_hash(caller, got, value, fix)
    made_of = value.func if isinstance(value, functools.partial) else value
    has_own_eq = isinstance(getattr(type(made_of), "__eq__", None), types.FunctionType)
    if dataclasses.is_dataclass(made_of) or has_own_eq:
        check_frozen(caller, got, made_of)
    function: WeightMap = value
    return function


def dtype_of(
    caller: str, function: WeightMap, lengths: tuple[int, ...], read: Mapping[str, Any]
) -> np.dtype[Any]:
    """Checks what the function returns for images of these lengths, and returns its dtype.

    `read` are the fields `[B, ...]` that it reads.
    """
    for name, value in read.items():
        check_copied(caller, name, value)
    if hasattr(function, "check_fields"):
        function.check_fields(caller, dict(read), lengths)
    fields = {
        name: jax.ShapeDtypeStruct(value.shape[1:], narrow_dtype(value.dtype))
        for name, value in read.items()
    }
    key = jax.eval_shape(lambda: jax.random.wrap_key_data(jnp.zeros(2, jnp.uint32), impl=IMPL))
    lam = jax.ShapeDtypeStruct((), jnp.float32)
    spec = check_pure(
        caller,
        "weight_map",
        lambda key, lam, *read: function(key, lam, lengths, *read),
        key,
        lam,
        *([fields, fields] if read else []),
        fix="take random numbers from key, which is the record's own",
    )
    expected = f"bool or floats {list(lengths)}"
    if not isinstance(spec, jax.ShapeDtypeStruct):
        fail(TypeError, caller, f"weight_map returns {kind(spec)}", expected, FIX)
    got = f"weight_map returns {describe(spec)}"
    is_bool = str(spec.dtype) == "bool"
    if not is_bool and str(spec.dtype) not in FLOATS:
        fix = "return a comparison, such as mask == 1, or cast weights to float32"
        fail(TypeError, caller, got, expected, fix)
    if spec.shape != lengths:
        fix = "return a weight for each pixel, without axes for the batch and for channels"
        fail(ValueError, caller, got, expected, fix)
    most = MOST_PIXELS["bool" if is_bool else "float"]
    if math.prod(lengths) > most:
        fix = "split images up before" + ("" if is_bool else ", or return bool")
        fail(ValueError, caller, got, f"at most {most} pixels", fix)
    dtype: np.dtype[Any] = np.dtype(spec.dtype)
    return dtype


@dataclasses.dataclass(frozen=True)
class InImageOrder:
    """A map that takes the image's axes in their own order; what it returns is turned.

    Attributes:
        function: one of `gm.maps` that reads a field.
        order: which of the image's axes is the first, the second, ... of `spatial_axes`.
    """

    function: Any
    order: tuple[int, ...]

    def __call__(self, key: Any, lam: Any, lengths: tuple[int, ...], *read: Any) -> Any:
        """The weights of one record's own pixels, in the order of `spatial_axes`."""
        return jnp.transpose(self.function(key, lam, self._upright(lengths), *read), self.order)

    def check_fields(self, caller: str, read: Mapping[str, Any], lengths: tuple[int, ...]) -> None:
        """As the map checks them."""
        self.function.check_fields(caller, read, self._upright(lengths))

    def axes_like_image(self, key: str, ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
        """As the map says them."""
        axes_like_image: tuple[int, ...] = self.function.axes_like_image(key, ndim, axes)
        return axes_like_image

    def _upright(self, lengths: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(lengths[int(k)] for k in np.argsort(self.order))


def in_image_order(
    caller: str, function: WeightMap, axes: tuple[int, ...] | None
) -> WeightMap | InImageOrder:
    """The function, turned if it takes the image's own order of axes and `spatial_axes` differs."""
    if axes is None or not getattr(function, "in_image_order", False):
        return function
    if len({axis < 0 for axis in axes}) > 1:
        got, fix = f"spatial_axes={axes} with {function!r}", "count all from the front"
        fail(ValueError, caller, got, "axes that are counted from one end", fix)
    order = tuple(sorted(axes).index(axis) for axis in axes)
    return function if order == tuple(range(len(order))) else InImageOrder(function, order)
