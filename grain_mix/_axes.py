"""Which axes of an image a box or a map of weights spans."""

from typing import Any

from grain_mix._errors import fail, is_int, quote, warn_once

MOST_CHANNELS = 4
LONGEST = 1 << 24  # pixels along an axis: positions in a box are drawn on a grid this fine
LONG = 16  # an image is at least as long where it is taken for one with channels
EXAMPLES = {  # by the number of axes
    1: "(1,) for [B, T]",
    2: "(1,) for [B, T]",
    3: "(1,) for [B, T, C], (2,) for [B, C, T], (1, 2) for [B, H, W]",
    4: "(1, 2) for [B, H, W, C], (2, 3) for [B, C, H, W], (1, 2, 3) for [B, D, H, W]",
    5: "(2, 3) or (1, 2, 3) for [B, T, H, W, C], (3, 4) or (1, 3, 4) for [B, T, C, H, W]",
    6: "(2, 3, 4) for [B, T, D, H, W, C], (3, 4, 5) for [B, T, C, D, H, W]",
}
MORE_AXES = "(3, 4) if height and width are axes 3 and 4, with the batch as axis 0"


def as_axes(caller: str, option: str, axes: Any) -> tuple[int, ...] | None:
    """Checks axes as far as that is possible without an image."""
    fix = "pass those of the batch, like (1, 2) for [B, H, W, C] and (1,) for [B, T]"
    if axes is None:
        return None
    axes = tuple(axes) if isinstance(axes, list) else axes
    got = f"{option}={quote(axes)}"
    if not isinstance(axes, tuple) or not axes or not all(map(is_int, axes)):
        fail(TypeError, caller, got, "a tuple of axes", fix)
    if 0 in axes:
        fail(ValueError, caller, got, "no 0, which is the batch axis", fix)
    if len(set(axes)) < len(axes):
        fail(ValueError, caller, got, "each axis once", fix)
    return tuple(map(int, axes))


def axes_of(
    caller: str, axes: tuple[int, ...] | None, name: str, shape: tuple[int, ...]
) -> tuple[int, ...]:
    """Returns the axes of an image of this shape, counted from the front, after checking them.

    `None` is (1, 2) for `[B, H, W, C]` with few channels. Every other shape must name its axes.
    """
    if axes is None:
        if len(shape) != 4 or not shape[3] <= min(MOST_CHANNELS, shape[1] - 1, shape[2] - 1):
            got = f"spatial_axes=None for {name!r} of shape {list(shape)}"
            expected = f"[B, H, W, C] with at most {MOST_CHANNELS} channels, or axes with names"
            fix = "say which axes are height and width, or time: spatial_axes="
            fix += EXAMPLES.get(len(shape), MORE_AXES)
            fail(ValueError, caller, got, expected, fix)
        axes = (1, 2)
    else:
        axes = front_axes(caller, "spatial_axes", axes, name, shape)
        _warn_of_channels(caller, axes, name, shape)
    return front_axes(caller, "spatial_axes", axes, name, shape)


def front_axes(
    caller: str, option: str, axes: tuple[int, ...], name: str, shape: tuple[int, ...]
) -> tuple[int, ...]:
    """Axes counted from the front, after checking that an array of this shape has them."""
    front = tuple(axis + len(shape) if axis < 0 else axis for axis in axes)
    if any(not 0 < axis < len(shape) for axis in front) or len(set(front)) < len(front):
        got = f"{option}={axes} for {name!r} of shape {list(shape)}"
        fix = f"pass {EXAMPLES.get(len(shape), MORE_AXES)}"
        fail(ValueError, caller, got, f"different axes from 1 to {len(shape) - 1}", fix)
    if any(shape[axis] > LONGEST for axis in front):
        got = f"{name!r} of shape {list(shape)}"
        fail(ValueError, caller, got, f"at most {LONGEST} pixels along an axis", "split it up")
    return front


def check_axes_to_cut(
    caller: str, axes: tuple[int, ...], name: str, shape: tuple[int, ...]
) -> None:
    """Checks that the paper's box can cut an image along each of these axes.

    On an axis of length 1 it is empty, so nothing would ever be mixed. A box by `minmax` cuts it.
    """
    if all(shape[axis] > 1 for axis in axes):
        return
    got = f"spatial_axes={axes} for {name!r} of shape {list(shape)}, whose box would be empty"
    rest = tuple(axis for axis in axes if shape[axis] > 1)
    fix = f"leave out what is of length 1: spatial_axes={rest}" if rest else "use MixUpBatch"
    fail(ValueError, caller, got, "axes longer than 1", f"{fix}; or pass minmax, which cuts it too")


def _warn_of_channels(
    caller: str, axes: tuple[int, ...], name: str, shape: tuple[int, ...]
) -> None:
    """Warns, once per process, if axes that the user has named look like channels."""
    for axis in axes:
        rest = tuple(other for other in range(1, len(shape)) if other != axis)
        few = 2 <= shape[axis] <= MOST_CHANNELS and axis in (1, len(shape) - 1)
        if few and max((shape[other] for other in rest), default=0) >= LONG:
            layout = "[B, C, ...]" if axis == 1 else "[B, ..., C]"
            warn_once(
                "channels",
                f"{caller}: spatial_axes={axes} for {name!r} of shape {list(shape)} spans axis "
                f"{axis}, of length {shape[axis]}, so some channels come from one record and some "
                f"from the other if the layout is {layout}; then pass {rest}, or some of them. If "
                "this axis is no channels, ignore this.",
            )


def axes_in(ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of the box in a field with `ndim` axes that shares it with the first image.

    They are the image's own axes, unless the field has batch and spatial axes alone, such as a
    label map `[B, H, W]` beside an image `[B, C, H, W]`.
    """
    if ndim == 1 + len(axes):
        return tuple(1 + sorted(axes).index(axis) for axis in axes)
    return axes
