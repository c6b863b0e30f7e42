"""Objects: their boxes, what goes with each of them, and their masks."""

import dataclasses
from collections.abc import Callable
from dataclasses import field
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix._arithmetic import hidden_one, multiply_add, rounded
from grain_mix._blend import Weights, blend
from grain_mix._draw import Draw
from grain_mix._dtypes import WIDE, check_copied, check_narrow, check_pixels, is_float, is_integer
from grain_mix._errors import describe, explains_mistakes, fail
from grain_mix._parameters import as_name, as_names, checked_by, fraction, one_of, optional
from grain_mix.targets._target import Sources, Space, Target

IN_PIXELS = ("xyxy", "yxyx", "xywh", "center_xywh")
FORMATS = (*IN_PIXELS, *(f"rel_{name}" for name in IN_PIXELS))
FORMAT = one_of(FORMATS, "TFDS has 'rel_yxyx', COCO's files 'xywh', YOLO's 'rel_center_xywh'")
WHOLE = ("xyxy", "yxyx", "xywh")  # the formats that integers may have
THINNEST = 1e-3  # pixels of a box that can be seen
OUTSIDE = 1.01  # pixels that a box may reach out of the image: one, and what fractions may round to

Corners = tuple[Any, ...]  # `[B, N, 2]` each, in pixels, rows first
Part = tuple[jax.Array, jax.Array, jax.Array]  # corners of what is left, and its area `[B, N]`


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class Boxes(Target):
    """Boxes around objects, with what goes with each of them.

    In: numbers `[B, N, 4]`, padded to N boxes with any that have no area. Out: `[B, kN, 4]` in the
    same format and dtype, those of the record's k sources, own first, moved with their image and
    cut to what is visible where that is a rectangle; and `<name>_weight` `float32 [B, kN]`: visible
    area / area, times the source's share for a blend. What weighs 0 comes out as a box of zeros:
    padding, what is hidden, and the other sources' boxes in a record that is not mixed.

    The area is that of the part inside the image. Boxes may end up to a pixel outside, and are
    clipped; what lies farther outside is an error, and under `jit`, where values are not known, is
    clipped too. What is thinner than a thousandth of a pixel is not visible.

    Under a `bool` weight map objects need `masks`. A box weighs visible pixels of its mask / its
    pixels. Where its mask loses pixels, the box becomes the smallest that holds what is left of it
    inside the box. Maps of floats are refused.

    Args:
        format: `"xyxy"`, `"yxyx"`, `"xywh"` or `"center_xywh"` in pixels, and with `"rel_"` before
            it in fractions of the image's sides. TFDS has `"rel_yxyx"`, COCO's files `"xywh"`,
            YOLO's `"rel_center_xywh"`.
            Integers count whole pixels, `[start, stop)`.
        fields: names of fields `[B, N, ...]`, such as the classes. They come out as `[B, kN, ...]`.
        masks: name of a field `[B, N, height, width]`, a mask for each box, in which any value but
            0 is a pixel of the object. It comes out as `[B, kN, height, width]`, moved with its
            image, with 0 where an object is hidden.
        min_visible: in [0, 1]. A box of which less is visible gets the weight 0.

    >>> import grain_mix as gm
    >>> transform = gm.CutMixBatch(targets={"boxes": gm.Boxes("rel_yxyx", fields=("class",))})
    """

    format: str = field(metadata=checked_by(FORMAT))
    _: dataclasses.KW_ONLY
    fields: tuple[str, ...] = field(default=(), metadata=checked_by(as_names))
    masks: str | None = field(default=None, metadata=checked_by(optional(as_name)))
    min_visible: float = field(default=0.1, metadata=checked_by(fraction("pass one like 0.1")))
    adds: ClassVar[tuple[str, ...]] = ("_weight",)
    positions: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The fields that go with the boxes, and the masks."""
        return (*self.fields, *(() if self.masks is None else (self.masks,)))

    @property
    def _is_relative(self) -> bool:
        return self.format.startswith("rel_")

    def check_fields(self, name: str, fields: dict[str, Any], space: Space) -> None:
        """Boxes inside the image, and as many of all that goes with them."""
        boxes = fields[""]
        if isinstance(boxes, np.ndarray):
            self._check_values(name, boxes, space)
            for other in self.fields:
                check_narrow("Boxes", other, fields[other])
            return
        self._check_boxes(name, boxes, space)
        count = boxes.shape[1]
        for other in self.fields:
            check_copied("Boxes", other, fields[other])
            if fields[other].shape[1:2] != (count,):
                got = f"{other!r} is {describe(fields[other])}"
                fix = "pad it as the boxes are, or take it out of fields"
                fail(ValueError, "Boxes", got, f"[B, {count}, ...] as {name!r}", fix)
        if self.masks is not None:
            masks, size = fields[self.masks], self._size(space)
            check_pixels("Boxes", self.masks, masks, averaged=False)
            if masks.shape[1:] != (count, *size):
                got = f"{self.masks!r} is {describe(masks)}"
                expected = f"a mask for each box, [B, {count}, {size[0]}, {size[1]}]"
                fix = "pad masks as the boxes are; one map of class ids is gm.LabelMap()"
                fail(ValueError, "Boxes", got, expected, fix)

    def _check_boxes(self, name: str, boxes: Any, space: Space) -> None:
        got = f"{name!r} is {describe(boxes)}"
        if not is_integer(boxes.dtype) and not is_float(boxes.dtype):
            fail(TypeError, "Boxes", got, "numbers [B, N, 4]", "cast them to float32 or int32")
        if len(boxes.shape) != 3 or boxes.shape[2] != 4 or boxes.shape[1] == 0:
            fail(ValueError, "Boxes", got, "[B, N, 4], N > 0", _fix_for_shape(boxes.shape))
        if not is_float(boxes.dtype) and (self._is_relative or "center" in self.format):
            fix = "pass floats"
            if self._is_relative:
                fix = f"pass format={self.format[4:]!r} for pixels, or floats from 0 to 1"
            fail(TypeError, "Boxes", f"{got} for {self.format!r}", "floats [B, N, 4]", fix)
        if space.map is not None and (space.map != np.bool_ or self.masks is None):
            got = f"{name!r} with a weight map of {space.map} and masks={self.masks!r}"
            fix = "name the masks of the objects where the map returns bool, or use CutMixBatch"
            fail(ValueError, "Boxes", got, "a map of bool, and masks", fix)
        if len(space.axes) != 2:
            got = f"{name!r} with spatial_axes={space.axes}"
            fix = "leave the boxes out, or pass the axes of height and width alone"
            fail(ValueError, "Boxes", got, "two axes, height and width", fix)
        side = max(self._size(space))
        is_moved = space.cuts and space.sources > 2
        if is_moved and is_integer(boxes.dtype) and side > np.iinfo(boxes.dtype).max:
            got = f"{name!r} is {describe(boxes)}, beside an image that is {side} long"
            fix = "cast them to int32: a mosaic moves boxes"
            fail(TypeError, "Boxes", got, "a dtype that can count its pixels", fix)

    def _check_values(self, name: str, boxes: np.ndarray, space: Space) -> None:
        if not np.isfinite(boxes).all():
            fix = "pad boxes with zeros"
            fail(ValueError, "Boxes", f"{name!r} with NaN or infinity", "finite numbers", fix)
        size = np.array(self._size(space), np.float64)
        wrong = self._wrong(boxes, size)
        if wrong:
            got, expected, fix = wrong
            floats = is_float(boxes.dtype)
            others = [
                other
                for other in sorted(FORMATS, key=lambda other: self.format not in other)
                if (floats or other in WHOLE)
                and not dataclasses.replace(self, format=other)._wrong(boxes, size)
            ]
            if others:
                fix = (
                    f"pass format={' or '.join(map(repr, others))} if they are meant so, else {fix}"
                )
            got = f"{name!r} with {got}, for format={self.format!r}"
            fail(ValueError, "Boxes", got, expected, fix)
        if str(boxes.dtype) in WIDE:
            check_narrow("Boxes", name, boxes)

    def _wrong(self, boxes: np.ndarray, size: np.ndarray) -> tuple[str, str, str] | None:
        """What came, what was expected and the fix, if boxes do not fit this format."""
        scale = self._scale(tuple(size))
        low, high = self._corners(boxes.astype(np.float64), scale)
        if "xywh" not in self.format and (low > high).any():
            return "a first corner beyond the second", "the lower corner first", "correct them"
        real = (low < high).all(-1)
        if not real.any():
            return None
        lowest, highest = low[real].min(0), high[real].max(0)
        fractions = is_float(boxes.dtype) and np.abs(boxes[real]).max() <= 1 < size.min()
        if fractions and not self._is_relative:
            return "no number above 1", "boxes in pixels", "scale them"
        outside: Any = OUTSIDE
        if is_float(
            boxes.dtype
        ):  # of few bits, whose sums of a corner and a side may be off by one
            outside = outside + size * float(jnp.finfo(boxes.dtype).eps)
        if (lowest < -outside).any() or (highest > size + outside).any():
            rows, columns = (f"{a:g} to {b:g}" for a, b in zip(lowest, highest, strict=True))
            got = f"rows from {rows} and columns from {columns} (in pixels)"
            got += f", in an image of {size[0]:g} x {size[1]:g}"
            return got, "boxes inside, but for one pixel", "clip boxes to the image before"
        return None

    def axes_like_image(self, key: str, ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the masks, which have rows first."""
        return tuple(2 + int(k) for k in np.argsort(np.argsort(axes))) if key == self.masks else ()

    def mix_batch(self, sources: Sources, draw: Draw, space: Space) -> Any:
        """Own boxes, then those of the other sources, with what is visible of each."""
        mixed = [{name: x.value for name, x in source.items()} for source in sources]
        if self.masks is not None and draw.tiles is not None:
            # A pixel shows one source, so all that is shown of their masks fits into one.
            weights = Weights(tiles=draw.tiles, shift=draw.shift)
            axes = self.axes_like_image(self.masks, 4, space.axes)
            moved = blend([source[self.masks] for source in sources], weights, axes)
            mixed = [fields | {self.masks: moved} for fields in mixed]
        draw, size = _rows_first(draw, space.axes), self._size(space)
        for r, fields in enumerate(mixed):
            boxes, shown = fields[""], _shown(draw, r, size)
            before = self._corners(boxes.astype(jnp.float32), self._scale(size), multiply_add)
            inside = _clipped(before, np.float32(0), np.array(size, np.float32).reshape(1, 1, 2))
            low, high, visible, area = (*shown.part(inside), _area(*inside))
            if self.masks is not None:
                masks, pixels = fields[self.masks], shown.pixels(size)
                fields[self.masks] = jnp.where(pixels, masks, jnp.zeros((), masks.dtype))
                if draw.weights is not None:
                    low, high, visible, area = _of_masks(inside, masks.astype(jnp.bool_), pixels)
            is_real = area > 0
            # Compilers may know the area, but then not what is visible of it.
            fraction = visible / (jnp.where(is_real, area, np.float32(1)) * hidden_one(visible))
            is_seen = is_real & (fraction >= np.float32(self.min_visible))
            weight = shown.weight[:, None] * jnp.where(is_seen, fraction, np.float32(0))
            left = self._like_input(boxes, before, (low, high), shown.shift, size)
            left = jnp.where(weight[..., None] > 0, left, jnp.zeros((), boxes.dtype))
            fields |= {"": left, "_weight": weight}
        return {name: jnp.concatenate([x[name] for x in mixed], axis=1) for name in mixed[0]}

    def _size(self, space: Space) -> tuple[int, int]:
        """Height and width."""
        height, width = (space.lengths[int(k)] for k in np.argsort(space.axes))
        return height, width

    def _scale(self, size: tuple[int, ...]) -> np.ndarray:
        """How many pixels one is, for each of the four numbers of a box."""
        sides = size if self.format.endswith("yxyx") else size[::-1]
        return np.array(sides * 2 if self._is_relative else (1,) * 4, np.float32).reshape(1, 1, 4)

    def _corners(
        self, boxes: Any, scale: Any, multiply_add: Callable[..., Any] = lambda a, b, c: a * b + c
    ) -> tuple[Any, Any]:
        """Lower and upper corners `[B, N, 2]`, rows first, in pixels, of which one is `scale`."""
        name = self.format.removeprefix("rel_")
        turn = slice(None, None, None if name == "yxyx" else -1)
        first, second, scale = (
            x[..., turn] for x in (boxes[..., :2], boxes[..., 2:], scale[..., :2])
        )
        none = np.zeros((1, 1, 1), np.float32)
        low, high = multiply_add(first, scale, none), multiply_add(second, scale, none)
        if name == "xywh":
            high = multiply_add(second, scale, low)
        elif name == "center_xywh":
            low, high = low - high / 2, low + high / 2
        return low, high

    def _like_input(
        self, boxes: jax.Array, before: Corners, after: Corners, shift: Any, size: tuple[int, ...]
    ) -> jax.Array:
        """Boxes in the format that came in; a number that does not change keeps its bits."""
        name, (low, high) = self.format.removeprefix("rel_"), after
        first, second, stays = low + shift, high + shift, shift == 0
        low_same, high_same = (x == y for x, y in zip(before, after, strict=True))
        first_same, second_same = low_same & stays, high_same & stays
        if "xywh" in name:
            second, second_same = high - low, low_same & high_same
        if name == "center_xywh":
            first, first_same = (low + high) / 2 + shift, second_same & stays
        if name != "yxyx":
            first, second, first_same, second_same = (
                x[..., ::-1] for x in (first, second, first_same, second_same)
            )
        changed = jnp.concatenate([first, second], axis=-1)
        if self._is_relative:
            changed = changed * (np.float32(1) / self._scale(size))
        same = jnp.concatenate([first_same, second_same], axis=-1)
        return jnp.where(same, boxes, changed.astype(boxes.dtype))


def _fix_for_shape(shape: tuple[int, ...]) -> str:
    """What to do with boxes that are not `[B, N, 4]`."""
    if len(shape) == 4 and shape[3] == 4:
        return "reshape them to [B, T * N, 4], and what comes out to [B, -1, T, N, 4]"
    if len(shape) == 3 and shape[2] in (5, 6):
        fix = (
            "split off what is no corner, such as the class, boxes[..., :4], and name it in fields"
        )
        return f"{fix}; for rotated boxes write a kind of your own, from gm.Target"
    if len(shape) >= 3 and shape[-1] != 4:
        return "for polygons and the like write a kind of your own, from gm.Target"
    return "pad each record to N boxes with zeros, before Batch"


class Shown(NamedTuple):
    """Where the mixed image shows a source, rows first: within a rectangle and not within another.

    Attributes:
        weight: `float32 [B]`, of what is shown.
        inside: `int32 [B, 2, 2]`, `(start, stop)` of rows and of columns.
        outside: the same; `None`: nothing is hidden.
        shift: `float32 [B, 1, 2]`, how far the source is moved.
        map: `bool [B, H, W]`, the pixels in the place of the rectangles.
    """

    weight: Any
    inside: Any
    outside: Any = None
    shift: Any = np.zeros((1, 1, 2), np.float32)
    map: Any = None

    def part(self, box: Corners) -> Part:
        """What shows of boxes, where it is in the source itself."""
        start, stop = (x - self.shift for x in _ends(self.inside))
        low, high = _clipped(box, start, stop)
        if self.outside is None:
            return low, high, _area(low, high)
        return _without((low, high), _ends(self.outside))

    def pixels(self, size: tuple[int, ...]) -> Any:
        """`bool [B, 1, H, W]`."""
        if self.map is not None:
            pixels: jax.Array = self.map[:, None]
            return pixels
        shown: jax.Array = _within(self.inside, size) & (self.weight > 0).reshape(-1, 1, 1, 1)
        return shown if self.outside is None else shown & ~_within(self.outside, size)


def _rows_first(draw: Draw, axes: tuple[int, ...]) -> Draw:
    """The draw with its axes in the order of the image's."""
    if axes[0] < axes[1]:
        return draw
    flipped = {
        name: jnp.flip(getattr(draw, name), axis)
        for name, axis in (("box", 1), ("tiles", 2), ("shift", 2))
        if getattr(draw, name) is not None
    }
    weights = None if draw.weights is None else draw.weights.swapaxes(1, 2)
    return dataclasses.replace(draw, weights=weights, **flipped)


def _shown(draw: Draw, r: int, size: tuple[int, ...]) -> Shown:
    """Where source r is shown; the draw has rows first."""
    whole = np.array([[(0, length) for length in size]], np.int32)
    all_of_it = np.ones(1, np.float32)
    if draw.weights is not None:
        return Shown(all_of_it, whole, map=draw.weights if r == 0 else ~draw.weights)
    if draw.tiles is not None and draw.shift is not None:
        shift = draw.shift[:, r, None].astype(jnp.float32)
        return Shown(all_of_it, draw.tiles[:, r], shift=shift)
    if draw.box is None:
        return Shown(draw.shares[:, r], whole)
    is_cut = (draw.box[:, :, 0] < draw.box[:, :, 1]).all(axis=1)
    weight = jnp.where(is_cut, np.float32(1), draw.shares[:, r])
    box = jnp.where(is_cut[:, None, None], draw.box, np.int32(0) if r == 0 else whole)
    return Shown(weight, whole, box) if r == 0 else Shown(weight, box)


def _ends(rectangle: Any) -> Corners:
    """`float32 [B, 1, 2]`, where a rectangle starts and stops."""
    return tuple(rectangle[:, None, :, side].astype(jnp.float32) for side in (0, 1))


def _within(rectangle: Any, size: tuple[int, ...]) -> Any:
    """`bool [B, 1, H, W]`: which pixels a rectangle has."""
    lines: list[jax.Array] = []
    for k, length in enumerate(size):
        position = jnp.arange(length, dtype=jnp.int32)[None]
        lines.append((rectangle[:, k, :1] <= position) & (position < rectangle[:, k, 1:]))
    return lines[0][:, None, :, None] & lines[1][:, None, None, :]


def _area(low: jax.Array, high: jax.Array) -> jax.Array:
    """`float32 [B, N]`, exact for whole numbers up to 2²⁴; 0 for what is too thin to be seen."""
    sides = high - low
    seen = (sides >= np.float32(THINNEST)).all(-1)
    return jnp.where(seen, rounded(sides[..., 0] * sides[..., 1]), np.float32(0))


def _clipped(box: Corners, start: Any, stop: Any) -> Corners:
    """What is left of boxes inside a rectangle, without area where there is nothing."""
    return tuple(jnp.minimum(jnp.maximum(x, start), stop) for x in box)


def _without(box: Corners, pasted: Corners) -> Part:
    """What is left of boxes outside a rectangle, where that is a rectangle; else the boxes."""
    (low, high), (start, stop) = box, pasted
    thin = np.float32(THINNEST)
    from_low, to_high = start - low < thin, high - stop < thin  # nothing shows on this side
    spans = from_low & to_high  # per axis: the rectangle covers the box's extent
    meets = (start < high) & (low < stop)
    # Along one axis the box is cut back if the rectangle spans the other.
    may_cut = spans[..., ::-1] & meets
    new_low = jnp.where(may_cut & from_low, jnp.minimum(stop, high), low)
    new_high = jnp.where(may_cut & to_high & ~from_low, start, high)
    is_changed = ((new_low != low) | (new_high != high)).any(-1)
    sides = jnp.subtract(*_clipped(box, start, stop)[::-1])
    beside = multiply_add(-sides[..., 0], sides[..., 1], _area(low, high))
    visible = jnp.where(is_changed, _area(new_low, new_high), beside)
    hidden = meets.all(-1) & spans.all(-1)
    return new_low, new_high, jnp.where(hidden, np.float32(0), visible)


def _of_masks(box: Corners, masks: jax.Array, shown: jax.Array) -> tuple[jax.Array, ...]:
    """What is left of boxes whose masks lose pixels, and the visible pixels and all."""
    left = masks & shown
    area, visible = (x.sum((2, 3), dtype=jnp.int32).astype(jnp.float32) for x in (masks, left))
    spans = zip(_span(left.any(3)), _span(left.any(2)), strict=True)
    start, stop = (jnp.stack(ends, axis=2).astype(jnp.float32) for ends in spans)
    is_less = (visible < area)[..., None]
    start, stop = jnp.where(is_less, start, box[0]), jnp.where(is_less, stop, box[1])
    low, high = _clipped(box, start, stop)
    return low, high, visible, jnp.where(_area(low, high) > 0, area, np.float32(0))


def _span(line: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where what is true in `bool [B, N, L]` begins and ends."""
    length = line.shape[2]
    position = np.arange(length, dtype=np.int32).reshape(1, 1, length)
    start = jnp.where(line, position, np.int32(length)).min(2)
    return start, jnp.where(line, position + 1, np.int32(0)).max(2)
