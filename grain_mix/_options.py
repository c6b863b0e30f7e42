"""The parameters of a transform, checked when it is made."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from grain_mix._axes import as_axes
from grain_mix._boxes import FORMATS
from grain_mix._draw import ONE
from grain_mix._errors import did_you_mean, fail, is_int, kind, name, quote
from grain_mix._maps import check_function
from grain_mix._place import check_sharding

MODES = ("elem", "pair", "batch")
T = TypeVar("T")


def option(where: str, field: str, value: Any) -> Any:
    """Checks one parameter of a transform, and returns it as a plain float, int or tuple."""
    value = tuple(value) if isinstance(value, list) else value
    came = f"{field}={quote(value)}"
    if field.endswith("alpha"):
        off = {"mixup_alpha": "CutMixBatch", "cutmix_alpha": "MixUpBatch"}.get(field, "prob=0")
        fix = f"pass one like 0.2; to do without, use {off}"
        return _number(where, came, value, math.inf, "a finite number above 0", fix)
    if field in ("prob", "switch_prob"):
        return _chance(where, came, value)
    if field == "label_smoothing":
        return _number(where, came, value, 1, "a number from 0 to 1", "pass one like 0.1")
    if field == "mode" and not (isinstance(value, str) and value in MODES):
        fix = f"{did_you_mean(value, MODES)}see the docstring for what each does"
        fail(ValueError, where, came, f"one of {MODES}", fix)
    if field == "sparse_labels" and not isinstance(value, bool):
        fail(TypeError, where, came, "True or False", "pass one of them")
    if field == "min_visible":
        return _number(where, came, value, 1, "a number from 0 to 1", "pass one like 0.1")
    if field == "weight_map":
        check_function(where, value)
    if field in ("image_key", "pair_keys", "box_keys"):
        return _keys(where, field, value)
    if field == "seed_key":
        return _key(where, field, value)
    if value is None:  # of the fields that follow, which may all be left out
        return None
    if field in ("label_key", "mask_key"):
        return _keys(where, field, value)
    if field.endswith("_key"):
        return _key(where, field, value)
    if field == "box_format" and not (isinstance(value, str) and value in FORMATS):
        fix = f"{did_you_mean(value, FORMATS)}TFDS has 'rel_yxyx', COCO's boxes are no corners"
        fail(ValueError, where, came, f"one of {FORMATS}", fix)
    elif field.endswith("minmax"):
        return _minmax(where, came, value)
    elif field == "num_classes":
        return _num_classes(where, came, value)
    elif field == "spatial_axes":
        return as_axes(where, value)
    elif field == "sharding":
        check_sharding(where, value)
    return value


def _number(where: str, came: str, value: Any, high: float, expected: str, fix: str) -> float:
    """A number in [0, high], or in (0, ∞) if `high` is infinite."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool | np.bool_):
        fail(TypeError, where, came, expected, fix)
    try:
        number = float(value)
    except OverflowError:  # an int or a fraction beyond all floats
        number = math.nan
    if not (0 < number < high if math.isinf(high) else 0 <= number <= high):  # NaN is neither
        fail(ValueError, where, came, expected, fix)
    return number


def _chance(where: str, came: str, value: Any) -> float:
    chance = _number(where, came, value, 1, "a number from 0 to 1", "pass one like 0.5")
    if 0 < chance < 1 and round(chance * ONE) in (0, ONE):
        expected = f"0, 1, or a number from {1 / ONE:.0e} to 1 - {1 / ONE:.0e}"
        fail(ValueError, where, came, expected, f"chances count in steps of 1/{ONE}: round it")
    return chance


def _minmax(where: str, came: str, value: Any) -> tuple[float, float]:
    fix = "pass fractions of a side, like (0.2, 0.8)"
    if not isinstance(value, tuple) or len(value) != 2:
        fail(TypeError, where, came, "a pair (lo, hi)", fix)
    expected = "(lo, hi), numbers from 0 to 1"
    lo, hi = (_number(where, came, bound, 1, expected, fix) for bound in value)
    if lo > hi:
        fail(ValueError, where, came, "lo <= hi", f"swap them: {value[::-1]!r}")
    return lo, hi


def _num_classes(where: str, came: str, value: Any) -> int | tuple[int | None, ...]:
    if isinstance(value, tuple) and value:
        return tuple(None if entry is None else _count(where, came, entry) for entry in value)
    return _count(where, came, value)


def _count(where: str, came: str, value: Any) -> int:
    if not (is_int(value) and 0 < value < 2**31):
        fix = "pass the number of classes, or None if labels are [B, K] already"
        error = ValueError if is_int(value) else TypeError
        fail(error, where, came, "an int above 0 (and an int32) or None", fix)
    return int(value)


def _keys(where: str, field: str, value: Any) -> Any:
    keys = value if isinstance(value, tuple) else (value,)
    if not keys and field.endswith("_key"):
        fix = f"pass {field}='{field[:-4]}'"
        fix += "" if field == "image_key" else ", or None"
        fail(ValueError, where, f"{field}=()", "at least one name", fix)
    if not isinstance(value, tuple) and field.endswith("_keys"):
        fix = f"pass a tuple like ({value!r},)" if isinstance(value, str | int) else "pass ('id',)"
        fail(TypeError, where, f"{field}={quote(value)}", "a tuple of names", fix)
    checked = tuple(_key(where, field, key) for key in keys)
    return checked if isinstance(value, tuple) else checked[0]


def _key(where: str, field: str, value: Any) -> Any:
    """Checks that a value is a field's name, or its position in a tuple."""
    if is_int(value):
        return int(value)
    name(where, field, value)
    return value


def as_tuple(keys: Any) -> tuple[str, ...]:
    """The names that a `..._key` or `..._keys` gives, as strings."""
    if keys is None:
        return ()
    return tuple(map(str, keys)) if isinstance(keys, tuple) else (str(keys),)


def classes_of(label_key: Any, num_classes: Any) -> tuple[int | None, ...]:
    """`num_classes` for each label."""
    count = len(as_tuple(label_key))
    return num_classes if isinstance(num_classes, tuple) else (num_classes,) * count


def check_labels(
    where: str,
    sparse_labels: bool,
    label_smoothing: float,
    label_key: Any,
    num_classes: Any,
) -> None:
    """Checks that the options of labels go together."""
    came = "sparse_labels=True"
    if sparse_labels and label_smoothing:
        came += f" with label_smoothing={label_smoothing}"
        fail(ValueError, where, came, "label_smoothing=0", "smooth in the loss instead")
    if sparse_labels and label_key is None:
        came += " with label_key=None"
        fail(ValueError, where, came, "labels", "name the label field, or drop sparse_labels")
    if isinstance(num_classes, tuple) and len(num_classes) != len(as_tuple(label_key)):
        came = f"num_classes={num_classes} for label_key={label_key!r}"
        fix = "pass None for a label that is no class id, or one int for all"
        fail(ValueError, where, came, "one entry for each label", fix)


def check_boxes(where: str, boxes_key: Any, box_format: Any, box_keys: Any) -> None:
    """Checks that the options of boxes go together."""
    if boxes_key is None and (box_format is not None or box_keys):
        came = "box_format or box_keys without boxes_key"
        fail(ValueError, where, came, "boxes", "name the field of boxes as boxes_key")
    if boxes_key is not None and box_format is None:
        fix = "pass 'rel_yxyx' for boxes of TFDS, and 'xyxy' for [x, y, x, y] in pixels"
        came = f"boxes_key={boxes_key!r} without box_format"
        fail(ValueError, where, came, f"one of {FORMATS}", fix)


def check_names(where: str, names: list[tuple[str, str]]) -> None:
    """Checks that no field is named twice, by these pairs of an option and the field it names."""
    for i, (field, key) in enumerate(names):
        for other, same in names[:i]:
            if key == same:
                came = f"{key!r} named twice, by {other} and {field}"
                fail(ValueError, where, came, "different fields", "rename one")


def explains_mistakes(transform: type[T]) -> type[T]:
    """Lets a transform be made with wrong arguments only to say which ones there are."""
    where = transform.__name__
    made: Callable[..., None] = transform.__init__
    fields = [field.name for field in dataclasses.fields(transform)]  # type: ignore[arg-type]

    @functools.wraps(made)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        if args and isinstance(args[0], Mapping | Iterator):  # Grain calls what it takes to be one
            came = f"the class was given in place of a transform, and called with {kind(args[0])}"
            fix = f"write {where}(), with brackets"
            fail(TypeError, where, came, "a transform", fix)
        for field in sorted(set(kwargs) - set(fields)):
            near = [other for other in fields if field in other]
            hint = f"did you mean {' or '.join(near)}? " if near else did_you_mean(field, fields)
            came = f"an unknown parameter {field!r}"
            fail(TypeError, where, came, f"one of {', '.join(fields)}", f"{hint}see the docstring")
        made(self, *args, **kwargs)

    setattr(transform, "__init__", checked)  # noqa: B010 (mypy refuses the plain assignment)
    return transform
