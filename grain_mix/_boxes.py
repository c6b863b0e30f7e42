"""Detection targets are parts: boxes, what goes with each of them, and masks of instances.

Own boxes come first, then the partner's. A pasted rectangle hides parts of the own boxes, and shows
parts of the partner's.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix._draw import Draw
from grain_mix._errors import FLOATS, INTEGERS, describe, fail
from grain_mix._fields import has_values
from grain_mix._labels import WIDE, check_copied, check_limits, check_narrow
from grain_mix._swap import swap

FORMATS = ("xyxy", "yxyx", "rel_xyxy", "rel_yxyx")
BOX_WEIGHT = "box_weight"  # the field that boxes add


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Boxes `[B, N, 4]`, and fields `[B, N, ...]` that go with each box.

    They come out as `[B, 2N, ...]`, with weights `float32 [B, 2N]`: how much of the box is visible,
    times how much of the record is.
    """

    key: str
    format: str
    others: tuple[str, ...]
    image: str
    min_visible: float
    option: ClassVar[str] = "boxes_key"
    fix: ClassVar[str] = "pass the names as boxes_key and box_keys"
    adds: ClassVar[Mapping[str, str | None]] = {BOX_WEIGHT: None}

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key, *self.others)

    def check(self, where: str, fields: Mapping[str, Any], axes: tuple[int, ...]) -> None:
        boxes = fields[self.key]
        came = f"{self.key!r} is {describe(boxes)}"
        if str(boxes.dtype) not in (*INTEGERS, *FLOATS):
            fix = "cast them to float32 or int32"
            fail(TypeError, where, came, "numbers [B, N, 4]", fix)
        if len(boxes.shape) != 3 or boxes.shape[2] != 4 or boxes.shape[1] == 0:
            fix = "pad each record to N boxes with zeros, before Batch"
            fail(ValueError, where, came, "[B, N, 4], N > 0", fix)
        if self.is_relative and str(boxes.dtype) not in FLOATS:
            fix = f"pass box_format={self.format[4:]!r} for pixels, or floats from 0 to 1"
            fail(TypeError, where, f"{came} for {self.format!r}", "floats [B, N, 4]", fix)
        if axes and len(axes) != 2:
            came = f"{self.key!r} with spatial_axes={axes}"
            fail(ValueError, where, came, "two axes, height and width", "drop boxes_key")
        for key in self.others:
            check_copied(where, key, fields[key])
            if fields[key].shape[1:2] != boxes.shape[1:2]:
                came = f"{key!r} is {describe(fields[key])}"
                fix = "pad it as the boxes are, or take it out of box_keys"
                fail(ValueError, where, came, f"[B, {boxes.shape[1]}, ...] as {self.key!r}", fix)

    def check_values(self, where: str, fields: Mapping[str, Any]) -> None:
        for key in self.others:
            check_narrow(where, key, fields[key])
        if not has_values(fields[self.key]):
            return
        boxes = np.asarray(jax.device_get(fields[self.key]))
        if str(boxes.dtype) in ("int32", "uint32", *WIDE):
            # float32 counts areas, and positions up to this are exact.
            check_limits(where, self.key, boxes, -(2**24), 2**24, "float32")
        if np.isnan(boxes.astype(np.float32)).any():
            fail(ValueError, where, f"{self.key!r} with NaN", "numbers", "pad boxes with zeros")
        if (boxes[..., :2] > boxes[..., 2:]).any():
            fix = "box_format is corners, so turn [x, y, width, height] into [x, y, x + w, y + h]"
            came = f"{self.key!r} with a first corner beyond the second"
            fail(ValueError, where, came, "the lower corner first", fix)
        if self.is_relative and (boxes > 2).any():
            fix = f"pass box_format={self.format[4:]!r} for boxes in pixels"
            came = f"{self.key!r} up to {boxes.max()} for box_format={self.format!r}"
            fail(ValueError, where, came, "fractions of the image, from 0 to 1", fix)

    @property
    def is_relative(self) -> bool:
        """Whether positions are fractions of the image's sides."""
        return self.format.startswith("rel_")

    def mix(
        self, fields: Mapping[str, jax.Array], draw: Draw, axes: tuple[int, ...]
    ) -> dict[str, jax.Array]:
        boxes, draw = fields[self.key], _unmixed_if_alone(draw)
        exact = jnp.int32 if jnp.issubdtype(boxes.dtype, jnp.integer) else jnp.float32
        own = boxes.astype(exact)
        other = swap(own)
        outside = jnp.ones_like(draw.lam) if draw.outside is None else draw.outside
        own_weight, other_weight = outside, 1 - outside
        own_area, other_area = _area(own), _area(other)
        own_visible, other_visible = own_area, other_area
        if draw.box is not None:
            cut = is_cut(draw)
            pasted = self._rectangle(draw.box, fields[self.image].shape, axes, exact)
            seen = _intersect(other, pasted)
            covered = _area(_intersect(own, pasted))
            each = cut[:, None, None]
            own_visible = jnp.where(cut[:, None], own_area - covered, own_area)
            other_visible = jnp.where(cut[:, None], _area(seen), other_area)
            own = jnp.where(each, _without(own, pasted), own)
            other = jnp.where(each, seen, other)
            other_weight = jnp.where(cut, np.float32(1), other_weight)
        weights = [
            weight[:, None] * self._visibility(visible, area)
            for weight, visible, area in (
                (own_weight, own_visible, own_area),
                (other_weight, other_visible, other_area),
            )
        ]
        mixed = {key: _joined(fields[key], swap(fields[key])) for key in self.others}
        mixed[self.key] = _joined(own, other).astype(boxes.dtype)
        return {**mixed, BOX_WEIGHT: _joined(*weights)}

    def _rectangle(
        self, box: jax.Array, shape: tuple[int, ...], axes: tuple[int, ...], dtype: Any
    ) -> jax.Array:
        """The pasted rectangles `[B, 1, 4]`, in the format of the boxes."""
        rows, columns = (int(i) for i in np.argsort(axes))  # of the box, in the image's order
        order = (columns, rows) if self.format.endswith("xyxy") else (rows, columns)
        corners = jnp.stack([box[:, k, side] for side in (0, 1) for k in order], axis=1)
        rectangle = corners[:, None, :].astype(dtype)
        if self.is_relative:
            sides = [shape[axes[k]] for k in order] * 2
            rectangle = rectangle / np.array(sides, np.float32)
        return rectangle

    def _visibility(self, visible: jax.Array, area: jax.Array) -> jax.Array:
        """The visible part of a box's area, 0 for padding and below `min_visible`."""
        fraction = jnp.where(area > 0, visible / jnp.where(area > 0, area, 1), 0)
        return jnp.where(fraction < np.float32(self.min_visible), 0, fraction)


def is_of_instances(mask: Any, boxes: Any, image: Any, axes: tuple[int, ...]) -> bool:
    """Whether a field has a mask for each box: `[B, N, H, W]`, with sizes as the image's."""
    if len(mask.shape) != 4 or len(boxes.shape) != 3 or mask.shape[1] != boxes.shape[1]:
        return False
    return mask.shape[2:] in sizes_of(image, axes)


def sizes_of(image: Any, axes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Height and width of an image; without axes, as they are with channels last and first."""
    if axes:
        return [tuple(image.shape[axis] for axis in sorted(axes))]
    return [image.shape[1:3], image.shape[2:4]]


def check_instances(
    where: str, key: str, mask: Any, boxes: Any, image: Any, axes: tuple[int, ...]
) -> None:
    """Checks that a field beside boxes which is no label map has a mask for each box."""
    sizes = sizes_of(image, axes)
    if len(mask.shape) != 4 or mask.shape[1:3] in sizes:
        return
    if mask.shape[2:] in sizes and mask.shape[1] in (1, image.shape[1]):
        return  # a label map with channels first
    came = f"{key!r} is {describe(mask)}, with {boxes.shape[1]} boxes in {describe(image)}"
    fix = "pad masks as the boxes are, or pass one label map [B, H, W]"
    fail(ValueError, where, came, "a mask for each box, [B, N, H, W]", fix)


def mix_instances(own: jax.Array, draw: Draw, axes: tuple[int, ...]) -> jax.Array:
    """Masks `[B, N, H, W]` as `[B, 2N, H, W]`, own ones first.

    Own masks are 0 where they are covered, the partner's are 0 where they are not shown.
    """
    other, draw = swap(own), _unmixed_if_alone(draw)
    if draw.box is not None:
        inside = _pixels_inside(draw.box, axes, own.shape[2:])
        cut = is_cut(draw)[:, None, None, None]
        own = jnp.where(inside, jnp.zeros((), own.dtype), own)
        other = jnp.where(cut & ~inside, jnp.zeros((), other.dtype), other)
    return _joined(own, other)


def _unmixed_if_alone(draw: Draw) -> Draw:
    """A batch of one record comes back unmixed, since the record is its own partner."""
    if len(draw.lam) > 1:
        return draw
    return Draw(
        jnp.ones_like(draw.lam),
        draw.partner,
        None if draw.box is None else jnp.zeros_like(draw.box),
        None if draw.outside is None else jnp.ones_like(draw.outside),
    )


def is_cut(draw: Draw) -> jax.Array:
    """`bool [B]`: whether a rectangle is pasted."""
    assert draw.box is not None
    return (draw.box[:, :, 0] < draw.box[:, :, 1]).all(axis=1)


def _pixels_inside(box: jax.Array, axes: tuple[int, ...], sizes: tuple[int, ...]) -> jax.Array:
    """`bool [B, 1, H, W]`."""
    masks = []
    for k, length in zip(np.argsort(axes), sizes, strict=True):
        position = jnp.arange(length, dtype=jnp.int32)
        masks.append((box[:, k, :1] <= position) & (position < box[:, k, 1:]))
    return (masks[0][:, :, None] & masks[1][:, None, :])[:, None]


def _area(boxes: jax.Array) -> jax.Array:
    """`float32 [B, N]`, exact for whole numbers up to 2²⁴, and 0 where corners are swapped."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0).astype(jnp.float32)
    return sides[..., 0] * sides[..., 1]


def _intersect(boxes: jax.Array, rectangle: jax.Array) -> jax.Array:
    """What is left of boxes inside a rectangle, without area where there is nothing."""
    low = jnp.clip(boxes[..., :2], rectangle[..., :2], rectangle[..., 2:])
    high = jnp.clip(boxes[..., 2:], rectangle[..., :2], rectangle[..., 2:])
    return jnp.concatenate([low, high], axis=-1)


def _without(boxes: jax.Array, rectangle: jax.Array) -> jax.Array:
    """What is left of boxes outside a rectangle, where that is a rectangle; else the boxes."""
    low, high = boxes[..., :2], boxes[..., 2:]
    start, stop = rectangle[..., :2], rectangle[..., 2:]
    spans = (start <= low) & (high <= stop)  # per axis: the rectangle covers the box's extent
    meets = (start < high) & (low < stop)
    # Along one axis the box is cut back if the rectangle spans the other.
    may_cut = spans[..., ::-1] & meets
    new_low = jnp.where(may_cut & (start <= low), jnp.minimum(stop, high), low)
    new_high = jnp.where(may_cut & (stop >= high) & (start > low), start, high)
    return jnp.concatenate([new_low, new_high], axis=-1)


def _joined(own: jax.Array, other: jax.Array) -> jax.Array:
    """`[B, 2N, ...]`, own entries first."""
    return jnp.concatenate([own, other], axis=1)
