"""Labels are parts: soft ones are averaged, and pairs keep both sides with their weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix._blend import AVERAGED
from grain_mix._draw import Draw
from grain_mix._errors import FLOATS, INTEGERS, describe, fail, native_fix
from grain_mix._fields import has_values
from grain_mix._formula import blend
from grain_mix._swap import swap

LABEL_WEIGHT = "label_weight"  # the field that pairs add
WIDE = ("int64", "uint64", "float64")  # which JAX narrows to 32 bits


@dataclasses.dataclass(frozen=True)
class SoftLabels:
    """A label that comes out as `float32`, averaged with the weights of the pixels.

    Class ids `[B]` or `[B, 1]` become one-hot `[B, K]`. Floats `[B, ...]` and `[B, K]` of any
    numbers are taken as they are.
    """

    key: str
    num_classes: int | None
    smoothing: float
    option: ClassVar[str] = "label_key"
    fix: ClassVar[str] = "pass the name as label_key, or label_key=None if there are no labels"
    adds: ClassVar[Mapping[str, str | None]] = {}

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def check(self, where: str, fields: Mapping[str, Any], axes: tuple[int, ...]) -> None:
        value, classes = fields[self.key], self.num_classes
        shape, integer = value.shape, str(value.dtype) not in FLOATS
        came = f"{self.key!r} is {describe(value)}"
        expected = "class ids, integers [B] or [B, 1], or targets, floats [B, ...]"
        check_label_dtype(where, came, value.dtype)
        if is_class_ids(value, classes):
            return
        if len(shape) == 1 and classes is not None:
            fix = "cast class ids to integers, or pass num_classes=None for other targets"
            fail(TypeError, where, came, expected, fix)
        if len(shape) == 1 and integer:
            fix = "pass num_classes, or one-hot labels [B, K]; cast other targets to float32"
            came = f"{came}, class ids, but num_classes is None"
            fail(ValueError, where, came, expected, fix)
        if 0 in shape or (integer and len(shape) != 2):
            fix = "reshape them, cast targets to float32, or set label_key=None"
            fail(ValueError, where, came, expected, fix)
        if integer and shape[1] == 1:  # to average class ids means nothing
            fix = "for class ids pass num_classes, for other targets cast to float32"
            fail(ValueError, where, came, expected, fix)
        if classes is not None and shape[1:] != (classes,):
            fix = "pass num_classes=None"
            if len(shape) == 2:
                fix = f"pass num_classes={shape[1]}, or for class ids drop the last axis"
            fail(ValueError, where, came, f"[B, {classes}] for num_classes={classes}", fix)
        if self.smoothing and len(shape) != 2:
            fix = "pass label_smoothing=0, or labels [B, K]"
            came = f"{came} with label_smoothing={self.smoothing}"
            fail(ValueError, where, came, "class ids, or [B, K]", fix)

    def check_values(self, where: str, fields: Mapping[str, Any]) -> None:
        if not has_values(fields[self.key]):
            return
        labels = np.asarray(jax.device_get(fields[self.key]))
        if is_class_ids(labels, self.num_classes):
            check_class_ids(where, self.key, labels, self.num_classes)
        elif str(labels.dtype) in ("int32", "uint32", *WIDE):
            integer = labels.dtype.kind in "iu"
            limit = 2**24 if integer else float(np.finfo(np.float32).max)
            check_limits(where, self.key, labels, -limit, limit, "float32")

    def mix(
        self, fields: Mapping[str, jax.Array], draw: Draw, axes: tuple[int, ...]
    ) -> dict[str, jax.Array]:
        labels = fields[self.key]
        if is_class_ids(labels, self.num_classes):
            classes = jnp.arange(self.num_classes, dtype=jnp.int32)
            labels = labels.reshape(-1, 1).astype(jnp.int32) == classes[None, :]
        mixed = blend(labels.astype(jnp.float32), draw.lam)
        # Smoothing and mixing are both affine, so their order is free. In this order no compiler
        # can round differently for another size of the batch.
        on, off = 1 - self.smoothing, self.smoothing / mixed.shape[-1] if mixed.ndim > 1 else 0
        return {self.key: mixed * np.float32(on) + np.float32(off) if self.smoothing else mixed}


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Fields of any dtype that come out as `[B, 2, ...]`, own and partner's, with weights."""

    keys: tuple[str, ...]
    option: ClassVar[str] = "pair_keys"
    fix: ClassVar[str] = "pass the names as pair_keys"
    adds: ClassVar[Mapping[str, str | None]] = {LABEL_WEIGHT: None}

    def check(self, where: str, fields: Mapping[str, Any], axes: tuple[int, ...]) -> None:
        for key in self.keys:
            check_copied(where, key, fields[key])

    def check_values(self, where: str, fields: Mapping[str, Any]) -> None:
        for key in self.keys:
            check_narrow(where, key, fields[key])

    def mix(
        self, fields: Mapping[str, jax.Array], draw: Draw, axes: tuple[int, ...]
    ) -> dict[str, jax.Array]:
        pairs = {key: jnp.stack([fields[key], swap(fields[key])], axis=1) for key in self.keys}
        return {**pairs, LABEL_WEIGHT: jnp.stack([draw.lam, 1 - draw.lam], axis=1)}


@dataclasses.dataclass(frozen=True)
class SparseLabels:
    """Class ids as pairs: `int32 [B, 2]`, own and partner's, with weights beside them."""

    key: str
    num_classes: int | None
    option: ClassVar[str] = "label_key"
    fix: ClassVar[str] = SoftLabels.fix
    adds: ClassVar[Mapping[str, str | None]] = Pairs.adds

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def check(self, where: str, fields: Mapping[str, Any], axes: tuple[int, ...]) -> None:
        value = fields[self.key]
        came = f"{self.key!r} is {describe(value)}"
        check_label_dtype(where, came, value.dtype)
        if str(value.dtype) not in INTEGERS or value.shape[1:] not in ((), (1,)):
            fix = "pass these, or drop sparse_labels=True"
            fail(TypeError, where, came, "class ids, integers [B] or [B, 1]", fix)

    def check_values(self, where: str, fields: Mapping[str, Any]) -> None:
        if has_values(fields[self.key]):
            labels = np.asarray(jax.device_get(fields[self.key]))
            check_class_ids(where, self.key, labels, self.num_classes)

    def mix(
        self, fields: Mapping[str, jax.Array], draw: Draw, axes: tuple[int, ...]
    ) -> dict[str, jax.Array]:
        labels = fields[self.key].reshape(-1).astype(jnp.int32)
        return Pairs(self.keys).mix({self.key: labels}, draw, axes)


def is_class_ids(labels: Any, num_classes: int | None) -> bool:
    """Whether labels are class ids to be made one-hot: integers `[B]` or `[B, 1]`."""
    integer = str(labels.dtype) in INTEGERS
    return num_classes is not None and integer and labels.shape[1:] in ((), (1,))


def check_label_dtype(where: str, came: str, dtype: Any) -> None:
    """Checks that labels are numbers."""
    if str(dtype) not in (*INTEGERS, *FLOATS, "bool"):
        fix = native_fix(dtype) or "encode them as numbers, or set label_key=None"
        expected = "class ids, integers [B], or targets, floats [B, ...]"
        fail(TypeError, where, came, expected, fix)


def check_class_ids(where: str, key: str, labels: np.ndarray, num_classes: int | None) -> None:
    """Checks that class ids count from 0 to below `num_classes`."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= (num_classes or 2**31):
        fix = "raise num_classes, or fix the labels (counted from 1? missing ones marked -1?)"
        end = f"num_classes={num_classes}" if num_classes else f"{2**31} (int32)"
        fail(ValueError, where, f"{key!r} from {low} to {high}", f"0 <= {key} < {end}", fix)


def check_copied(where: str, key: str, value: Any) -> None:
    """Checks that JAX can hold a field that is copied, though perhaps in 32 bits."""
    if str(value.dtype) not in (*AVERAGED, *WIDE, "bool", "complex64"):
        fix = native_fix(value.dtype) or "encode it as numbers, such as token ids"
        fail(TypeError, where, f"{key!r} is {describe(value)}", "numbers", fix)
    if 0 in value.shape:
        fix = "drop the field, or filter out records where it is empty"
        fail(ValueError, where, f"{key!r} is {describe(value)}", "at least one entry", fix)


def check_narrow(where: str, key: str, value: Any) -> None:
    """Checks that 32 bits hold the values of a field of 64."""
    if str(value.dtype) in WIDE and has_values(value):
        values = np.asarray(jax.device_get(value))
        narrow = np.dtype(f"{values.dtype.name[:-2]}32")
        info: Any = np.finfo(narrow) if values.dtype.kind == "f" else np.iinfo(narrow)
        check_limits(where, key, values, info.min, info.max, narrow.name)


def check_limits(
    where: str, key: str, values: np.ndarray, low: float, high: float, held_by: str
) -> None:
    """Checks that finite values lie in the range of what holds them."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if finite.size and (finite.max() > high or finite.min() < low):
        came = f"{key!r} from {finite.min()} to {finite.max()}"
        fail(ValueError, where, came, f"values that {held_by} holds, to {high}", "scale them")
