"""Which dtypes JAX holds, which of them have an average, and what 32 bits lose.

Dtypes are compared by name, which differs where bytes are swapped: JAX does not take those.
"""

import math
from typing import Any

import jax
import numpy as np

from grain_mix._errors import describe, fail

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
WIDE = ("int64", "uint64", "float64")  # which JAX holds in 32 bits, unless x64 is on
AVERAGED = (*(name for name in (*INTEGERS, *FLOATS) if name not in WIDE),)
RAREST = 1e-7  # what is less likely than this is no chance


def is_integer(dtype: Any) -> bool:
    """Whether a dtype holds whole numbers."""
    return str(dtype) in INTEGERS


def is_float(dtype: Any) -> bool:
    """Whether a dtype holds fractions."""
    return str(dtype) in FLOATS


def native_fix(dtype: Any) -> str:
    """The fix for a dtype whose bytes are swapped, which JAX does not take; else `""`."""
    if getattr(dtype, "isnative", True) or dtype.kind not in "iufc":
        return ""
    return f"its bytes are swapped, so cast it before, .astype(np.{dtype.newbyteorder('=')})"


def check_pixels(where: str, name: str, value: Any, averaged: bool) -> None:
    """Checks that JAX holds what an image has and, where it is blended, that it has an average."""
    dtype = str(value.dtype)
    allowed = AVERAGED if averaged else (*AVERAGED, "bool")
    if dtype not in allowed:
        if dtype == "bool":
            fix = "cast it to float32 or uint8, or use CutMixBatch, which copies"
        elif dtype in WIDE:
            fix = f"JAX keeps 32 bits, so cast it before, .astype(np.{dtype[:-2]}32)"
        elif dtype in ("complex64", "complex128"):
            fix = "convert it to its magnitude, or to real and imaginary parts as channels"
        else:
            fix = native_fix(value.dtype) or "decode or convert it to one of these before Batch"
        fail(TypeError, where, f"{name!r} is {dtype}", f"one of {', '.join(allowed)}", fix)
    if 0 in value.shape:
        fix = "filter empty images out before"
        fail(ValueError, where, f"{name!r} is {describe(value)}", "at least one pixel", fix)


def check_copied(where: str, name: str, value: Any) -> None:
    """Checks that JAX can hold a field that is copied, though perhaps in 32 bits."""
    if str(value.dtype) not in (*AVERAGED, *WIDE, "bool", "complex64"):
        fix = native_fix(value.dtype) or "encode it as numbers, such as token ids"
        fail(TypeError, where, f"{name!r} is {describe(value)}", "numbers", fix)
    if 0 in value.shape:
        fix = "drop the field, or filter out records where it is empty"
        fail(ValueError, where, f"{name!r} is {describe(value)}", "at least one entry", fix)


def narrow_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype of at most 32 bits that JAX has for this one, while x64 is off."""
    name = str(dtype)
    return np.dtype(f"{name[:-2]}32") if name in WIDE else np.dtype(dtype)


def check_narrow(where: str, name: str, values: np.ndarray, *, always: bool = False) -> None:
    """Checks that the dtype in which JAX holds an array keeps its values apart.

    With x64 JAX holds 64 bits, unless it is `always` made 32.

    Integers must keep their values. Floats may be rounded, but not to infinity, nor to equal
    values where they differ, as seconds since 1970 would be.
    """
    kept = narrow_dtype(values.dtype)
    if not always:
        kept = jax.dtypes.canonicalize_dtype(values.dtype)
    if kept == values.dtype or not values.size:
        return
    fix = "scale or offset it, split it in two, drop the field before Batch, or set jax_enable_x64"
    came = f"{name!r} is {describe(values)} from {values.min()} to {values.max()}"
    expected = f"values that {kept} tells apart, in which JAX holds it"
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = values.astype(kept)
        lost = (
            narrow != values if values.dtype.kind in "iu" else np.isinf(narrow) != np.isinf(values)
        )
    if lost.any() or _merges(values, narrow):
        fail(ValueError, where, came, expected, fix)


def _merges(values: np.ndarray, narrow: np.ndarray) -> bool:
    """Whether floats that differ become equal, and not just now and then, as any floats may."""
    if values.dtype.kind != "f":
        return False
    finite = np.isfinite(values)
    apart = np.unique(values[finite])
    lost = len(apart) - len(np.unique(narrow[finite]))
    return lost > 0 and (
        bool((apart == np.rint(apart)).all())
        or is_no_chance(lost, len(apart) * (len(apart) - 1) / 2 / 2**24)
    )


def is_no_chance(count: int, expected: float) -> bool:
    """Whether `count` rare events are more than chance explains, where so many are `expected`."""
    # About Poisson distributed; this bounds the chance of so many.
    return count > 0 and count * math.log(expected) - math.lgamma(count + 1) < math.log(RAREST)


def check_limits(where: str, name: str, values: np.ndarray, limit: float) -> None:
    """Checks that finite values lie in ±limit, up to which float32 holds them."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if finite.size and (finite.max() > limit or finite.min() < -limit):
        came = f"{name!r} from {finite.min()} to {finite.max()}"
        expected = f"values that float32 holds, to {limit}"
        fail(ValueError, where, came, expected, "scale them")
