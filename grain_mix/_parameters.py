"""What a parameter may be. Where it can, that is data: its type, its range, and what errors say."""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from grain_mix._errors import did_you_mean, fail, is_int, quote
from grain_mix._fixed_point import ONE

Check = Callable[[str, str, Any], Any]  # (caller, parameter, value) -> the value to keep


def checked_by(check: Check) -> dict[str, Check]:
    """The metadata of a dataclass's field: what checks it."""
    return {"check": check}


def check_all(made: Any) -> None:
    """Checks each field of a frozen dataclass, and keeps its value as a plain one."""
    for field in dataclasses.fields(made):
        check = field.metadata.get("check")  # there is none in fields that a subclass adds
        if check is not None:
            value = check(type(made).__name__, field.name, getattr(made, field.name))
            object.__setattr__(made, field.name, value)


def optional(check: Check) -> Check:
    """The same check, of what may be `None`."""
    return lambda caller, name, value: None if value is None else check(caller, name, value)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A check that is data.

    Attributes:
        expected: what an error says was expected.
        fix: what it says to do.
        is_type: whether a value has the right type; else it is a `TypeError`.
        keep: makes it a plain value.
        holds: whether that is one that can be; else it is a `ValueError`.
        words: those of which one may have been meant.
    """

    expected: str
    fix: str
    is_type: Callable[[Any], bool] = lambda value: True
    keep: Callable[[Any], Any] = lambda value: value
    holds: Callable[[Any], bool] = lambda value: True
    words: tuple[str, ...] = ()

    def __call__(self, caller: str, name: str, value: Any) -> Any:
        """Returns the value to keep."""
        error: type[Exception] = TypeError
        if self.is_type(value):
            kept, error = self.keep(value), ValueError
            if self.holds(kept):
                return kept
        fix = did_you_mean(value, self.words) + self.fix
        return fail(error, caller, f"{name}={quote(value)}", self.expected, fix)


# --- numbers -------------------------------------------------------------------------------------


def is_number(value: Any) -> bool:
    """Whether a value is a real number; a `bool` is not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an int or a fraction beyond all floats
        return math.nan


def fraction(fix: str) -> Parameter:
    """A number in [0, 1]."""
    expected = "a number from 0 to 1"
    return Parameter(expected, fix, is_number, _as_float, lambda value: 0 <= value <= 1)


def above_zero(fix: str) -> Parameter:
    """A number in (0, ∞)."""
    expected = "a finite number above 0"
    return Parameter(expected, fix, is_number, _as_float, lambda value: 0 < value < math.inf)


def whole(least: int, fix: str, expected: str = "", most: float = math.inf) -> Parameter:
    """A whole number from `least` to `most`."""
    expected = expected or f"an int from {least}"
    return Parameter(expected, fix, is_int, int, lambda value: least <= value <= most)


def chance(caller: str, name: str, value: Any) -> float:
    """A probability."""
    kept: float = fraction("pass one like 0.5")(caller, name, value)
    if 0 < kept < 1 and round(kept * ONE) in (0, ONE):
        expected = f"0, 1, or a number from {1 / ONE:.0e} to 1 - {1 / ONE:.0e}"
        fix = f"chances count in steps of 1/{ONE}: round it"
        fail(ValueError, caller, f"{name}={quote(value)}", expected, fix)
    return kept


def bounds(caller: str, name: str, value: Any) -> tuple[float, float]:
    """The fractions of an image's sides between which something is drawn."""
    got, fix = f"{name}={quote(value)}", "pass fractions of a side, like (0.2, 0.8)"
    if not isinstance(value, tuple | list) or len(value) != 2:
        fail(TypeError, caller, got, "a pair (lo, hi)", fix)
    try:
        lo, hi = (fraction(fix)(caller, name, bound) for bound in value)
    except (TypeError, ValueError) as error:
        fail(type(error), caller, got, "(lo, hi), numbers from 0 to 1", fix)
    if lo > hi:
        fail(ValueError, caller, got, "lo <= hi", f"swap them: {tuple(value)[::-1]!r}")
    return lo, hi


MOST_CLASSES = 2**31 - 1  # as int32 counts them
SMOOTHING = fraction("pass one like 0.1")
COUNT = whole(1, "pass one like 4", "an int above 0")
CLASSES = whole(
    1,
    "pass the number of classes; labels that are [B, K] already are Soft or MultiHot",
    "an int above 0 (and an int32)",
    MOST_CLASSES,
)
YES_OR_NO = Parameter("True or False", "pass one of them", lambda value: isinstance(value, bool))


def one_of(words: tuple[str, ...], fix: str) -> Parameter:
    """One of these words."""
    return Parameter(
        f"one of {words}",
        fix,
        holds=lambda value: isinstance(value, str) and value in words,
        words=words,
    )


MODE = one_of(("elem", "pair", "batch"), "see the docstring for what each does")
SOURCES = whole(2, "pass 2 for pairs, or 3 for three records in one", "an int from 2 to 8", 8)


# --- names of fields -----------------------------------------------------------------------------


def as_name(caller: str, parameter: str, value: Any) -> str:
    """A field's name, or its position in a tuple, as a string."""
    if is_int(value):
        return str(int(value))
    if not isinstance(value, str) or not value:
        fix = "pass a string like 'image', or a position in a tuple"
        fail(TypeError, caller, f"{parameter}={quote(value)}", "a field's name", fix)
    return value


def as_names(caller: str, parameter: str, value: Any) -> tuple[str, ...]:
    """A tuple of names of fields."""
    if isinstance(value, str) or not isinstance(value, tuple | list):
        fix = f"pass a tuple like ({value!r},)"
        fail(TypeError, caller, f"{parameter}={quote(value)}", "a tuple of names", fix)
    return tuple(as_name(caller, parameter, name) for name in value)


def name_or_names(example: str) -> Check:
    """A field's name, or a tuple of names."""

    def check(caller: str, parameter: str, value: Any) -> str | tuple[str, ...]:
        if not isinstance(value, tuple | list):
            return as_name(caller, parameter, value)
        if not value:
            fix = f"pass {parameter}={example}"
            fail(ValueError, caller, f"{parameter}=()", "at least one name", fix)
        return as_names(caller, parameter, value)

    return check
