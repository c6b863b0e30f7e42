"""Which axes of an image a box spans."""

from typing import Any

from grain_mix._errors import fail, is_int, quote

CHANNELS = (1, 3, 4)  # how many channels an image usually has
LONGEST = 1 << 24  # pixels along an axis: positions in a box are drawn on a grid this fine


def as_axes(where: str, axes: Any) -> tuple[int, ...]:
    """Checks `spatial_axes` as far as that is possible without an image."""
    fix = "pass those of the batch, like (1, 2) for [B, H, W, C] and (1,) for [B, T]"
    if not isinstance(axes, tuple) or not axes or not all(map(is_int, axes)):
        fail(TypeError, where, f"spatial_axes={quote(axes)}", "a tuple of axes", fix)
    if 0 in axes:
        fail(ValueError, where, f"spatial_axes={axes}", "no 0, which is the batch axis", fix)
    if len(set(axes)) < len(axes):
        fail(ValueError, where, f"spatial_axes={axes}", "each axis once", fix)
    return tuple(map(int, axes))


def axes_of(
    where: str, axes: tuple[int, ...] | None, key: str, shape: tuple[int, ...]
) -> tuple[int, ...]:
    """Returns the axes of an image of this shape, counted from the front, after checking them.

    `None` is (1, 2), unless the image looks like `[B, C, H, W]`: then a box would be cut across
    channels, so that is an error.
    """
    if axes is None:
        axes = (1, 2)
        if len(shape) > 2 and shape[1] in CHANNELS and shape[-1] not in CHANNELS:
            spatial = tuple(range(2, len(shape)))
            fix = f"pass spatial_axes={spatial} if axis 1 holds channels, else spatial_axes=(1, 2)"
            came = (
                f"spatial_axes=None for {key!r} of shape {shape}, whose axis 1 looks like channels"
            )
            fail(ValueError, where, came, "the axes to be named", fix)
    front = tuple(axis + len(shape) if axis < 0 else axis for axis in axes)
    if any(not 0 < axis < len(shape) for axis in front) or len(set(front)) < len(front):
        fix = "(1, 2) is for [B, H, W, C], (2, 3) for [B, C, H, W], (1,) for [B, T]"
        came = f"spatial_axes={tuple(axes)} for {key!r} of shape {shape}"
        fail(ValueError, where, came, f"different axes from 1 to {len(shape) - 1}", fix)
    check_pixels(where, key, shape)
    if any(shape[axis] > LONGEST for axis in front):
        expected = f"at most {LONGEST} pixels along an axis"
        fail(ValueError, where, f"{key!r} of shape {shape}", expected, "split it up before")
    return front


def check_pixels(where: str, key: str, shape: tuple[int, ...]) -> None:
    """Checks that an image is not empty."""
    if min(shape) < 1:
        came = f"{key!r} of shape {shape}"
        fail(ValueError, where, came, "at least one pixel", "filter empty images out before")


def axes_in(ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of the box in a field with `ndim` axes that shares it with the first image.

    They are the image's own axes, unless the field has batch and spatial axes alone, such as a
    label map `[B, H, W]` beside an image `[B, C, H, W]`.
    """
    if ndim == 1 + len(axes):
        return tuple(1 + sorted(axes).index(axis) for axis in axes)
    return axes
