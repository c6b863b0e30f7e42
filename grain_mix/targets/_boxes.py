"""Objects: their boxes, what goes with each of them, and their masks."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix._draw import Draw
from grain_mix._dtypes import WIDE, check_copied, check_narrow, check_pixels, is_float, is_integer
from grain_mix._errors import describe, did_you_mean, explains_mistakes, fail, quote
from grain_mix._fields import as_name
from grain_mix._laws import check_number
from grain_mix.targets._target import Sources, Space, Target

IN_PIXELS = ("xyxy", "yxyx", "xywh", "center_xywh")
FORMATS = (*IN_PIXELS, *(f"rel_{name}" for name in IN_PIXELS))
WHOLE = ("xyxy", "yxyx", "xywh")  # the formats that integers may have
THINNEST = 1e-3  # pixels of a box that can be seen
OUTSIDE = 1.01  # pixels that a box may reach out of the image: one, and what fractions may round to


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class Boxes(Target):
    """Boxes around objects, with what goes with each of them.

    In: numbers `[B, N, 4]`, padded to N boxes with any that have no area. Out: `[B, 2N, 4]` in the
    same format and dtype, own boxes first, cut to what is visible where that is a rectangle; and
    `<name>_weight` `float32 [B, 2N]`: visible area / area, times λ or 1-λ for a blend. What weighs
    0 comes out as a box of zeros: padding, what is hidden, and the partner's boxes in a record that
    is not mixed.

    The area is that of the part inside the image. Boxes may end up to a pixel outside, and are
    clipped; what lies farther outside is an error, and under `jit`, where values are not known, is
    clipped too. What is thinner than a thousandth of a pixel is not visible.

    Args:
        format: `"xyxy"`, `"yxyx"`, `"xywh"` or `"center_xywh"` in pixels, and with `"rel_"` before
            it in fractions of the image's sides. TFDS has `"rel_yxyx"`, COCO's files `"xywh"`,
            YOLO's `"rel_center_xywh"`.
            Integers count whole pixels, `[start, stop)`.
        fields: names of fields `[B, N, ...]`, such as the classes. They come out as `[B, 2N, ...]`.
        masks: name of a field `[B, N, height, width]`, a mask for each box. It comes out as
            `[B, 2N, height, width]`, with 0 where an object is hidden.
        min_visible: in [0, 1]. A box of which less of its area is visible gets the weight 0.

    >>> import grain_mix as gm
    >>> transform = gm.CutMixBatch(targets={"boxes": gm.Boxes("rel_yxyx", fields=("class",))})
    """

    format: str
    _: dataclasses.KW_ONLY
    fields: tuple[str, ...] = ()
    masks: str | None = None
    min_visible: float = 0.1
    adds: ClassVar[tuple[str, ...]] = ("_weight",)
    positions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.format, str) or self.format not in FORMATS:
            fix = f"{did_you_mean(self.format, FORMATS)}TFDS has 'rel_yxyx', COCO's files 'xywh', "
            fix += "YOLO's 'rel_center_xywh'"
            fail(ValueError, "Boxes", f"format={quote(self.format)}", f"one of {FORMATS}", fix)
        if isinstance(self.fields, str) or not isinstance(self.fields, tuple | list):
            fix = f"pass a tuple like ({self.fields!r},)"
            fail(TypeError, "Boxes", f"fields={quote(self.fields)}", "a tuple of names", fix)
        names = tuple(as_name("Boxes", "fields", name) for name in self.fields)
        object.__setattr__(self, "fields", names)
        if self.masks is not None:
            object.__setattr__(self, "masks", as_name("Boxes", "masks", self.masks))
        visible = check_number("Boxes", "min_visible", self.min_visible, 1, "pass one like 0.1")
        object.__setattr__(self, "min_visible", visible)

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
                came = f"{other!r} is {describe(fields[other])}"
                fix = "pad it as the boxes are, or take it out of fields"
                fail(ValueError, "Boxes", came, f"[B, {count}, ...] as {name!r}", fix)
        if self.masks is not None:
            masks, size = fields[self.masks], self._size(space)
            check_pixels("Boxes", self.masks, masks, averaged=False)
            if masks.shape[1:] != (count, *size):
                came = f"{self.masks!r} is {describe(masks)}"
                expected = f"a mask for each box, [B, {count}, {size[0]}, {size[1]}]"
                fix = "pad masks as the boxes are; one map of class ids is gm.LabelMap()"
                fail(ValueError, "Boxes", came, expected, fix)

    def _check_boxes(self, name: str, boxes: Any, space: Space) -> None:
        came = f"{name!r} is {describe(boxes)}"
        if not is_integer(boxes.dtype) and not is_float(boxes.dtype):
            fail(TypeError, "Boxes", came, "numbers [B, N, 4]", "cast them to float32 or int32")
        if len(boxes.shape) != 3 or boxes.shape[2] != 4 or boxes.shape[1] == 0:
            fail(ValueError, "Boxes", came, "[B, N, 4], N > 0", _fix_for_shape(boxes.shape))
        if not is_float(boxes.dtype) and (self._is_relative or "center" in self.format):
            fix = "pass floats"
            if self._is_relative:
                fix = f"pass format={self.format[4:]!r} for pixels, or floats from 0 to 1"
            fail(TypeError, "Boxes", f"{came} for {self.format!r}", "floats [B, N, 4]", fix)
        if space.map is not None:
            came = f"{name!r} with a weight map"
            fix = "use CutMixBatch or MixUpBatch: what a map leaves of a box is no box"
            fail(ValueError, "Boxes", came, "a box or a blend", fix)
        if len(space.axes) != 2:
            came = f"{name!r} with spatial_axes={space.axes}"
            fix = "leave the boxes out, or pass the axes of height and width alone"
            fail(ValueError, "Boxes", came, "two axes, height and width", fix)

    def _check_values(self, name: str, boxes: np.ndarray, space: Space) -> None:
        if not np.isfinite(boxes).all():
            fix = "pad boxes with zeros"
            fail(ValueError, "Boxes", f"{name!r} with NaN or infinity", "finite numbers", fix)
        size = np.array(self._size(space), np.float64)
        wrong = self._wrong(boxes, size)
        if wrong:
            came, expected, fix = wrong
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
            came = f"{name!r} with {came}, for format={self.format!r}"
            fail(ValueError, "Boxes", came, expected, fix)
        if str(boxes.dtype) in WIDE:
            check_narrow("Boxes", name, boxes)

    def _wrong(self, boxes: np.ndarray, size: np.ndarray) -> tuple[str, str, str] | None:
        """What came, what was expected and the fix, if boxes do not fit this format."""
        low, high = self._corners(boxes.astype(np.float64), size, np)
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
            came = f"rows from {rows} and columns from {columns} (in pixels)"
            came += f", in an image of {size[0]:g} x {size[1]:g}"
            return came, "boxes inside, but for one pixel", "clip boxes to the image before"
        return None

    def axes_like_image(self, key: str, ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the masks, which have rows first."""
        return tuple(2 + int(k) for k in np.argsort(np.argsort(axes))) if key == self.masks else ()

    def mix_batch(self, sources: Sources, draw: Draw, space: Space) -> Any:
        """Own boxes, then the partner's, with what is visible of each."""
        own, partner = ({name: x.value for name, x in source.items()} for source in sources)
        size = np.array(self._size(space), np.float32)
        ours, theirs = (self._inside(side[""], size) for side in (own, partner))
        weights, others = draw.outside_box().T
        seen, remain = _visible(*theirs), _visible(*ours)
        if draw.box is not None:
            order = [int(k) for k in np.argsort(space.axes)]
            pasted = tuple(
                jnp.stack([draw.box[:, k, side] for k in order], 1)[:, None].astype(jnp.float32)
                for side in (0, 1)
            )
            cut = is_cut(draw.box)
            remain = _where(cut, _without(ours, pasted), remain)
            seen = _where(cut, _visible(*_intersect(theirs, pasted)), seen)
            others = jnp.where(cut, np.float32(1), others)
        out: list[Any] = []
        weight: list[Any] = []
        for side, whole, left, factor in (
            (own, ours, remain, weights),
            (partner, theirs, seen, others),
        ):
            weight.append(factor[:, None] * self._fraction(left[2], _area(*whole)))
            out.append(
                jnp.where(
                    weight[-1][..., None] > 0,
                    self._like_input(side[""], left[:2], size),
                    jnp.zeros((), side[""].dtype),
                )
            )
        mixed = {name: _joined(own[name], partner[name]) for name in self.fields}
        if self.masks is not None:
            mixed[self.masks] = _mix_masks(own[self.masks], partner[self.masks], draw, space)
        return mixed | {"": _joined(*out), "_weight": _joined(*weight)}

    def _size(self, space: Space) -> tuple[int, int]:
        """Height and width."""
        height, width = (space.lengths[int(k)] for k in np.argsort(space.axes))
        return height, width

    def _corners(self, boxes: Any, size: np.ndarray, np: Any = jnp) -> tuple[Any, Any]:
        """Lower and upper corners `[B, N, 2]`, rows first, in pixels."""
        name = self.format.removeprefix("rel_")
        first, second = boxes[..., :2], boxes[..., 2:]
        if name != "yxyx":
            first, second = first[..., ::-1], second[..., ::-1]
        if self._is_relative:
            scale = size.reshape(1, 1, 2)
            first, second = first * scale, second * scale
        if name == "xywh":
            second = first + second
        elif name == "center_xywh":
            half = second / 2
            first, second = first - half, first + half
        return first, second

    def _inside(self, boxes: jax.Array, size: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Corners, clipped to the image."""
        low, high = self._corners(boxes.astype(jnp.float32), size)
        limit = jnp.asarray(size.reshape(1, 1, 2))
        zero = jnp.zeros_like(limit)
        return jnp.minimum(jnp.maximum(low, zero), limit), jnp.minimum(
            jnp.maximum(high, zero), limit
        )

    def _like_input(
        self, boxes: jax.Array, corners: tuple[jax.Array, jax.Array], size: np.ndarray
    ) -> jax.Array:
        """Boxes in the format that came in; a number that does not change keeps its bits."""
        before = self._corners(boxes.astype(jnp.float32), size)
        (low, high), (low_same, high_same) = (
            corners,
            (a == b for a, b in zip(before, corners, strict=True)),
        )
        name, both = self.format.removeprefix("rel_"), low_same & high_same
        first, second, first_same, second_same = low, high, low_same, high_same
        if name == "xywh":
            second, second_same = high - low, both
        elif name == "center_xywh":
            first, second, first_same, second_same = (low + high) / 2, high - low, both, both
        if self._is_relative:
            scale = jnp.asarray(size.reshape(1, 1, 2))
            first, second = first / scale, second / scale
        if name != "yxyx":
            first, second, first_same, second_same = (
                x[..., ::-1] for x in (first, second, first_same, second_same)
            )
        same = jnp.concatenate([first_same, second_same], axis=-1)
        return jnp.where(same, boxes, jnp.concatenate([first, second], axis=-1).astype(boxes.dtype))

    def _fraction(self, visible: jax.Array, area: jax.Array) -> jax.Array:
        """The visible part of a box's area, 0 for padding and below `min_visible`."""
        fraction = jnp.where(area > 0, visible / jnp.where(area > 0, area, np.float32(1)), 0)
        return jnp.where(fraction < np.float32(self.min_visible), np.float32(0), fraction)


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


Corners = tuple[jax.Array, ...]  # [B, N, 2] each, in pixels, rows first
Part = tuple[jax.Array, jax.Array, jax.Array]  # corners of what is left, and its area [B, N]


def is_cut(box: jax.Array) -> jax.Array:
    """`bool [B]`: whether a rectangle is pasted."""
    return (box[:, :, 0] < box[:, :, 1]).all(axis=1)


def _area(low: jax.Array, high: jax.Array) -> jax.Array:
    """`float32 [B, N]`, exact for whole numbers up to 2²⁴; 0 for what is too thin to be seen."""
    sides = high - low
    seen = (sides >= np.float32(THINNEST)).all(-1)
    return jnp.where(seen, sides[..., 0] * sides[..., 1], np.float32(0))


def _visible(low: jax.Array, high: jax.Array) -> Part:
    return low, high, _area(low, high)


def _intersect(box: Corners, pasted: Corners) -> tuple[jax.Array, jax.Array]:
    """What is left of boxes inside a rectangle, without area where there is nothing."""
    low, high = (jnp.minimum(jnp.maximum(x, pasted[0]), pasted[1]) for x in box)
    return low, high


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
    sides = jnp.subtract(*_intersect(box, pasted)[::-1])
    covered = sides[..., 0] * sides[..., 1]
    visible = jnp.where(is_changed, _area(new_low, new_high), _area(low, high) - covered)
    hidden = meets.all(-1) & spans.all(-1)
    return new_low, new_high, jnp.where(hidden, np.float32(0), visible)


def _where(cut: jax.Array, x: Part, y: Part) -> Part:
    low, high = (jnp.where(cut[:, None, None], a, b) for a, b in zip(x[:2], y[:2], strict=True))
    return low, high, jnp.where(cut[:, None], x[2], y[2])


def _joined(own: jax.Array, other: jax.Array) -> jax.Array:
    """`[B, 2N, ...]`, own entries first."""
    return jnp.concatenate([own, other], axis=1)


def _mix_masks(own: jax.Array, other: jax.Array, draw: Draw, space: Space) -> jax.Array:
    """`[B, 2N, H, W]`: 0 where own ones are covered, and where the partner's are not shown."""
    shown = jnp.zeros((len(own), 1, 1, 1), jnp.bool_)
    if space.blends:
        shown = (draw.outside_box()[:, 0] < 1)[:, None, None, None]
    if draw.box is not None:
        lines = []
        for k in np.argsort(space.axes):
            position = jnp.arange(space.lengths[int(k)], dtype=jnp.int32)[None]
            box = draw.box[:, int(k)]
            lines.append((box[:, :1] <= position) & (position < box[:, 1:]))
        inside = (lines[0][:, :, None] & lines[1][:, None, :])[:, None]
        own = jnp.where(inside, jnp.zeros((), own.dtype), own)
        shown = shown | inside
    return _joined(own, jnp.where(shown, other, jnp.zeros((), other.dtype)))
