"""What is mixed is a part: images, label maps, labels.

A part knows the fields that it reads, checks them, and mixes them, given a draw. A new kind of
field is a new class of the same shape, and a line in `MixedBatch._parts`, in `_transforms`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix._axes import axes_in, check_pixels
from grain_mix._blend import check_dtype
from grain_mix._draw import Draw
from grain_mix._errors import FLOATS, INTEGERS, describe, fail, native_fix
from grain_mix._fields import has_values
from grain_mix._formula import blend
from grain_mix._swap import swap

LABEL_WEIGHT = "label_weight"  # the field that sparse labels add


class Part(Protocol):
    """What every part has.

    `option` is the parameter of a transform that names the fields, `keys` are the fields that the
    part reads and replaces, and `adds` are those that come out beside them.
    """

    option: ClassVar[str]
    fix: ClassVar[str]

    @property
    def keys(self) -> tuple[str, ...]:
        """The fields that are read."""

    @property
    def adds(self) -> tuple[str, ...]:
        """The fields that are added."""

    def check(self, where: str, fields: Mapping[str, Any], axes: tuple[int, ...]) -> None:
        """Checks shapes and dtypes, which are known under `jit` too."""

    def check_values(self, where: str, fields: Mapping[str, Any]) -> None:
        """Checks values, where there are any."""

    def mix(
        self, fields: Mapping[str, jax.Array], draw: Draw, axes: tuple[int, ...]
    ) -> dict[str, jax.Array]:
        """Returns the mixed fields. `axes` are those of the box in the first image."""


@dataclasses.dataclass(frozen=True)
class Images:
    """Images `[B, ...]`, which share a draw and are blended and cut.

    `averaged` says whether a blend can occur, which not every dtype allows.
    """

    keys: tuple[str, ...]
    averaged: bool
    option: ClassVar[str] = "image_key"
    fix: ClassVar[str] = "pass the name as image_key"
    adds: ClassVar[tuple[str, ...]] = ()

    def check(self, where: str, fields: Mapping[str, Any], axes: tuple[int, ...]) -> None:
        first = fields[self.keys[0]]
        for key in self.keys:
            check_dtype(where, key, fields[key].dtype, self.averaged)
            check_pixels(where, key, fields[key].shape)
            check_sizes(where, key, fields[key], self.keys[0], first, axes)

    def check_values(self, where: str, fields: Mapping[str, Any]) -> None:
        pass

    def mix(
        self, fields: Mapping[str, jax.Array], draw: Draw, axes: tuple[int, ...]
    ) -> dict[str, jax.Array]:
        return {key: mix_pixels(fields[key], draw, axes) for key in self.keys}


@dataclasses.dataclass(frozen=True)
class LabelMaps:
    """Label maps `[B, ...]` of class ids, which are cut with the image's box and never averaged."""

    keys: tuple[str, ...]
    image: str
    option: ClassVar[str] = "mask_key"
    fix: ClassVar[str] = "pass the name as mask_key"
    adds: ClassVar[tuple[str, ...]] = ()

    def check(self, where: str, fields: Mapping[str, Any], axes: tuple[int, ...]) -> None:
        for key in self.keys:
            check_dtype(where, key, fields[key].dtype, averaged=False)
            check_pixels(where, key, fields[key].shape)
            check_sizes(where, key, fields[key], self.image, fields[self.image], axes)

    def check_values(self, where: str, fields: Mapping[str, Any]) -> None:
        pass

    def mix(
        self, fields: Mapping[str, jax.Array], draw: Draw, axes: tuple[int, ...]
    ) -> dict[str, jax.Array]:
        return {key: mix_pixels(fields[key], draw, axes) for key in self.keys}


def check_sizes(
    where: str, key: str, value: Any, first_key: str, first: Any, axes: tuple[int, ...]
) -> None:
    """Checks that a field is as large as the first image along the axes of the box."""
    own = axes_in(len(value.shape), axes)
    sizes = [value.shape[axis : axis + 1] for axis in own]
    if sizes != [(first.shape[axis],) for axis in axes]:
        came = f"{key!r} is {describe(value)}, but {first_key!r} is {describe(first)}"
        fix = f"resize {key!r} to match, since both are cut with one box"
        fail(ValueError, where, came, f"the same sizes along axes {axes}", fix)


def mix_pixels(x: jax.Array, draw: Draw, axes: tuple[int, ...]) -> jax.Array:
    """A field with a pixel for each of the image's, blended and cut as the image is."""
    return blend(x, draw.outside, draw.box, axes_in(x.ndim, axes))


@dataclasses.dataclass(frozen=True)
class SoftLabels:
    """Labels that come out as `float32 [B, K]`, averaged with the weights of the pixels.

    Class ids `[B]` or `[B, 1]` become one-hot; labels `[B, K]` are taken as they are.
    """

    key: str
    num_classes: int | None
    smoothing: float
    option: ClassVar[str] = "label_key"
    fix: ClassVar[str] = "pass the name as label_key, or label_key=None if there are no labels"
    adds: ClassVar[tuple[str, ...]] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def check(self, where: str, fields: Mapping[str, Any], axes: tuple[int, ...]) -> None:
        value, classes = fields[self.key], self.num_classes
        shape, integer = value.shape, str(value.dtype) in INTEGERS
        came = f"{self.key!r} is {describe(value)}"
        expected = "class ids, integers [B] or [B, 1], or soft labels, floats [B, K]"
        check_label_dtype(where, came, value.dtype)
        if is_class_ids(value, classes):
            return
        if len(shape) == 1 and not integer:
            fix = "cast class ids to integers, or give a single target an axis, label[:, None]"
            fail(TypeError, where, came, expected, fix)
        if len(shape) == 1:
            fix = "pass num_classes, or one-hot labels [B, K]"
            came = f"{came}, class ids, but num_classes is None"
            fail(ValueError, where, came, expected, fix)
        if len(shape) != 2 or 0 in shape:
            fix = "reshape them, or set label_key=None"
            fail(ValueError, where, came, expected, fix)
        if integer and shape[1] == 1:  # to average class ids means nothing
            fix = "for class ids pass num_classes, for other targets cast to float32"
            fail(ValueError, where, came, expected, fix)
        if classes is not None and shape[1] != classes:
            fix = f"pass num_classes={shape[1]}, or for class ids drop the last axis, label[:, 0]"
            fail(ValueError, where, came, f"[B, {classes}] for num_classes={classes}", fix)

    def check_values(self, where: str, fields: Mapping[str, Any]) -> None:
        if not has_values(fields[self.key]):
            return
        labels = np.asarray(jax.device_get(fields[self.key]))
        if is_class_ids(labels, self.num_classes):
            check_class_ids(where, self.key, labels, self.num_classes)
        elif str(labels.dtype) in ("int32", "uint32", "int64", "uint64", "float64"):
            integer = labels.dtype.kind in "iu"
            limit = 2**24 if integer else float(np.finfo(np.float32).max)
            finite = labels if integer else labels[np.isfinite(labels)]
            if finite.size and (finite.max() > limit or finite.min() < -limit):
                came = f"{self.key!r} from {finite.min()} to {finite.max()}"
                expected = f"values that float32 holds, to {limit}"
                fail(ValueError, where, came, expected, "scale them")

    def mix(
        self, fields: Mapping[str, jax.Array], draw: Draw, axes: tuple[int, ...]
    ) -> dict[str, jax.Array]:
        labels = fields[self.key]
        if is_class_ids(labels, self.num_classes):
            classes = jnp.arange(self.num_classes, dtype=jnp.int32)
            labels = labels.reshape(-1, 1).astype(jnp.int32) == classes[None, :]
        soft = labels.astype(jnp.float32)
        mixed = blend(soft, draw.lam)
        # Smoothing and mixing are both affine, so their order is free. In this order no compiler
        # can round differently for another size of the batch.
        on, off = 1 - self.smoothing, self.smoothing / mixed.shape[1]
        return {self.key: mixed * np.float32(on) + np.float32(off) if self.smoothing else mixed}


@dataclasses.dataclass(frozen=True)
class SparseLabels:
    """Class ids that come out as `int32 [B, 2]`, own and partner's, with weights beside them."""

    key: str
    num_classes: int | None
    option: ClassVar[str] = "label_key"
    fix: ClassVar[str] = SoftLabels.fix
    adds: ClassVar[tuple[str, ...]] = (LABEL_WEIGHT,)

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
        return {
            self.key: jnp.stack([labels, swap(labels)], axis=1),
            LABEL_WEIGHT: jnp.stack([draw.lam, 1 - draw.lam], axis=1),
        }


def is_class_ids(labels: Any, num_classes: int | None) -> bool:
    """Whether labels are class ids to be made one-hot: integers `[B]` or `[B, 1]`."""
    integer = str(labels.dtype) in INTEGERS
    return num_classes is not None and integer and labels.shape[1:] in ((), (1,))


def check_label_dtype(where: str, came: str, dtype: Any) -> None:
    """Checks that labels are numbers."""
    if str(dtype) not in (*INTEGERS, *FLOATS, "bool"):
        fix = native_fix(dtype) or "encode them as numbers, or set label_key=None"
        expected = "class ids, integers [B], or soft labels, floats [B, K]"
        fail(TypeError, where, came, expected, fix)


def check_class_ids(where: str, key: str, labels: np.ndarray, num_classes: int | None) -> None:
    """Checks that class ids count from 0 to below `num_classes`."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= (num_classes or 2**31):
        fix = "raise num_classes, or fix the labels (counted from 1? missing ones marked -1?)"
        end = f"num_classes={num_classes}" if num_classes else f"{2**31} (int32)"
        fail(ValueError, where, f"{key!r} from {low} to {high}", f"0 <= {key} < {end}", fix)
