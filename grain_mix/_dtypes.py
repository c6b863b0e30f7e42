"""Which dtypes JAX holds, which of them have an average, and what 32 bits lose.

Dtypes are compared by name, which differs where bytes are swapped: JAX does not take those.
"""

from typing import Any

import jax
import numpy as np

from grain_mix._chance import is_no_chance
from grain_mix._errors import describe, fail

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
WIDE = ("int64", "uint64", "float64")  # which JAX holds in 32 bits, unless x64 is on
AVERAGED = (*(name for name in (*INTEGERS, *FLOATS) if name not in WIDE),)


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


def check_pixels(caller: str, name: str, value: Any, averaged: bool) -> None:
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
        fail(TypeError, caller, f"{name!r} is {dtype}", f"one of {', '.join(allowed)}", fix)
    if 0 in value.shape:
        fix = "filter empty images out before"
        fail(ValueError, caller, f"{name!r} is {describe(value)}", "at least one pixel", fix)


def check_copied(caller: str, name: str, value: Any) -> None:
    """Checks that JAX can hold a field that is copied, though perhaps in 32 bits."""
    if str(value.dtype) not in (*AVERAGED, *WIDE, "bool", "complex64"):
        fix = native_fix(value.dtype) or "encode it as numbers, such as token ids"
        fail(TypeError, caller, f"{name!r} is {describe(value)}", "numbers", fix)
    if 0 in value.shape:
        fix = "drop the field, or filter out records where it is empty"
        fail(ValueError, caller, f"{name!r} is {describe(value)}", "at least one entry", fix)


def narrow_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype of at most 32 bits that JAX has for this one, while x64 is off."""
    name = str(dtype)
    return np.dtype(f"{name[:-2]}32") if name in WIDE else np.dtype(dtype)


def narrowed(x: jax.Array) -> jax.Array:
    """What a user's function gets with x64 too: JAX's own settings know 32 bits."""
    dtype = narrow_dtype(x.dtype)
    return x if x.dtype == dtype else x.astype(dtype)


def check_narrow(caller: str, name: str, values: np.ndarray, *, always: bool = False) -> None:
    """Checks that values stay apart in the dtype in which JAX holds them.

    With x64 JAX holds 64 bits, unless it is `always` made 32. Integers must keep their values.
    Floats may be rounded, but not to infinity, nor to equal values where they differ.
    """
    kept = narrow_dtype(values.dtype)
    if not always:
        kept = jax.dtypes.canonicalize_dtype(values.dtype)
    if kept == values.dtype or not values.size:
        return
    lost = _overflow(values, kept) or (values.dtype.kind == "f" and _merge(_sample(values)))
    if lost:
        got = f"{name!r} is {describe(values)} from {values.min()} to {values.max()}"
        fix = "scale or offset it, split it in two, drop the field before Batch, or set "
        expected = f"values that {kept} tells apart, in which JAX holds it"
        fail(ValueError, caller, got, expected, f"{fix}jax_enable_x64")


def check_finite(caller: str, name: str, values: np.ndarray) -> None:
    """Checks that float32 has no infinity in the place of a finite value."""
    if _overflow(values, np.dtype(np.float32)):
        finite = values[np.isfinite(values)]
        got = f"{name!r} from {finite.min()} to {finite.max()}"
        expected = f"values that float32 holds, to {np.finfo(np.float32).max}"
        fail(ValueError, caller, got, expected, "scale them")


def _overflow(values: np.ndarray, dtype: np.dtype[Any]) -> bool:
    """Whether some values are beyond all that a dtype holds."""
    if values.dtype.kind != "f":
        limits = np.iinfo(dtype)
        return bool(values.min() < limits.min or values.max() > limits.max)
    with np.errstate(over="ignore", invalid="ignore"):
        infinite = np.isinf(values.astype(dtype))
    return bool(infinite.any()) and not bool(np.isinf(values)[infinite].all())


def _sample(values: np.ndarray) -> np.ndarray:
    """At most 4096 values: the first of each of 64 parts, so that sorting them costs little."""
    flat = values.reshape(-1)
    return flat if len(flat) <= 4096 else flat[: len(flat) // 64 * 64].reshape(64, -1)[:, :64]


def _merge(values: np.ndarray) -> bool:
    """Whether float64 values that differ become equal in float32, other than by chance.

    Random floats do so now and then: two of them are one of 2²⁴ float32 by chance. Whole numbers
    are meant exactly. Others are too close together for float32 if far more of them are neighbors
    there than random ones would be, as seconds since 1970 are.
    """
    apart = np.unique(values[np.isfinite(values) & (values != 0)])  # many pad with zeros
    # What float64 itself rounds is no difference.
    apart = np.append(apart[:1], apart[1:][np.diff(apart) > 8 * np.spacing(np.abs(apart[1:]))])
    narrow = apart.astype(np.float32)
    steps = np.diff(narrow) / np.spacing(np.abs(narrow[1:]))
    if (steps > 0).all():
        return False
    pairs = len(apart) * (len(apart) - 1) / 2
    return (
        bool((apart == np.rint(apart)).all())
        or is_no_chance(int((steps == 0).sum()), pairs / 2**24)
        # Random floats of many laws are spread over at least 2¹⁹ float32.
        or any(is_no_chance(int((steps < n).sum()), pairs * n / 2**19) for n in (8, 64, 512, 4096))
    )
