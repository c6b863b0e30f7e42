"""How an error reads: where it happened, what came, what was expected, and how to fix it."""

import difflib
import numbers
from collections.abc import Iterable
from typing import Any, NoReturn

# Dtypes by name, which differs where bytes are swapped: JAX does not take those.
FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")


def fail(error: type[Exception], where: str, came: str, expected: str, fix: str) -> NoReturn:
    """Raises `error` with one message of the same form everywhere."""
    raise error(f"{where}: {came}; expected {expected}; {fix}")


def is_int(value: Any) -> bool:
    """Whether a value is a whole number, of Python or NumPy; a `bool` is not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_array(value: Any) -> bool:
    """Whether a value has a shape and a dtype: of NumPy, JAX, or a tracer of JAX."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type)


def kind(value: Any) -> str:
    """`"an int"`, `"a list"`: the type of a value, with its article."""
    name = type(value).__name__
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"


def describe(value: Any) -> str:
    """`"uint8 [4, 8, 8, 3]"` for an array, else the type with its article."""
    return f"{value.dtype} {list(value.shape)}" if is_array(value) else kind(value)


def quote(value: Any) -> str:
    """The `repr` of what a user passed, cut off where it is too long to read."""
    text = repr(value)
    return text if len(text) < 500 else f"{text[:500]}..."


def native_fix(dtype: Any) -> str:
    """The fix for a dtype whose bytes are swapped, which JAX does not take; else `""`."""
    if getattr(dtype, "isnative", True) or dtype.kind not in "iuf":
        return ""
    return f"its bytes are swapped, so cast it before, .astype(np.{dtype.newbyteorder('=')})"


def did_you_mean(word: Any, words: Iterable[Any]) -> str:
    """`"did you mean 'image'? "` if one of the words is close, else `""`."""
    near = difflib.get_close_matches(str(word), [str(other) for other in words], n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def name(where: str, field: str, value: Any) -> None:
    """Checks that a value can be the name of a field."""
    if not isinstance(value, str) or not value:
        fix = "pass a string like 'image'"
        fail(TypeError, where, f"{field}={quote(value)}", "a field's name", fix)
