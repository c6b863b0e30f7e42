"""The formulas as functions with given parameters."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from grain_mix import _sharding
from grain_mix._axes import as_axes, front_axes
from grain_mix._blend import Weights, blend
from grain_mix._dtypes import FLOATS, INTEGERS, check_pixels, native_fix
from grain_mix._errors import describe, fail, is_array
from grain_mix._fields import check_array, has_values
from grain_mix._guards import into_jax
from grain_mix._move import turned
from grain_mix._sources import Source


def mixup(images: ArrayLike, lam: ArrayLike, partner: ArrayLike) -> jax.Array:
    """MixUp with given parameters: `lam · images + (1 - lam) · images[partner]`.

    Args:
        images: `[B, ...]`, integer or floating point, any shape; labels work as well.
        lam: `[B]` in [0, 1], a record's own weight. Integer images are weighed on a grid of
            2⁻²⁴, finer than float32 resolves near 1.
        partner: `int [B]`, the batch position of each record's partner, in [0, B).

    Returns:
        Shape and dtype of `images`. Integers are exact, rounded to nearest, halves up;
        floats are blended in float32.

    Raises:
        TypeError: images of a dtype that cannot be averaged.
        ValueError: `lam` or `partner` of another length, or out of range.

    See Zhang et al., mixup: Beyond Empirical Risk Minimization, https://arxiv.org/abs/1710.09412

    >>> images = np.array([[0, 100], [200, 100]], np.uint8)
    >>> mixup(images, np.array([0.75, 0.5]), np.array([1, 0])).tolist()
    [[50, 100], [100, 100]]
    """
    _check_images("mixup", images, averaged=True)
    _check_partner("mixup", partner, np.shape(images)[0])
    lam = _as_lam("mixup", lam, np.shape(images)[0])
    with into_jax():
        mixed: jax.Array = _mixup(*map(_sharding.as_array, (images, partner, lam)))
    return mixed


def cutmix(
    images: ArrayLike,
    box: ArrayLike,
    partner: ArrayLike,
    *,
    spatial_axes: Sequence[int] | None = None,
) -> jax.Array:
    """CutMix with given parameters: the partner's pixels inside the box, the own ones outside.

    Args:
        images: `[B, ...]` of any dtype that JAX holds.
        box: `int [B, n, 2]`, `(start, stop)` in pixels along each spatial axis.
        partner: `int [B]`, the batch position of each record's partner, in [0, B).
        spatial_axes: the n axes of `images` that the box spans; `None` is 1, ..., n.

    Returns:
        Shape and dtype of `images`, every value copied exactly.

    Raises:
        ValueError: shapes that do not fit, axes that do not exist, `partner` or `box` out of range;
            values are checked where there are any, which is not under `jit`.

    See Yun et al., CutMix, https://arxiv.org/abs/1905.04899

    >>> images = np.array([[1, 1, 1, 1], [2, 2, 2, 2]], np.uint8)
    >>> cutmix(images, np.array([[[1, 3]], [[0, 1]]]), np.array([1, 0])).tolist()
    [[1, 2, 2, 1], [1, 2, 2, 2]]
    """
    _check_images("cutmix", images, averaged=False)
    _check_partner("cutmix", partner, np.shape(images)[0])
    axes = _check_box("cutmix", box, spatial_axes, np.shape(images))
    with into_jax():
        mixed: jax.Array = _cutmix(*map(_sharding.as_array, (images, partner, box)), axes)
    return mixed


def mosaic(
    images: ArrayLike,
    tiles: ArrayLike,
    shift: ArrayLike,
    sources: ArrayLike,
    *,
    spatial_axes: Sequence[int] | None = None,
) -> jax.Array:
    """Mosaic with given parameters: in its tile, each source's pixels, moved by its shift.

    `out(p) = images[sources[:, r]](p - shift[:, r])` for positions p in tile r.

    Args:
        images: `[B, ...]` of any dtype that JAX holds.
        tiles: `int [B, k, n, 2]`, `(start, stop)` in pixels of the mixed image along each spatial
            axis; together they cover it.
        shift: `int [B, k, n]`, by how many pixels each source is moved.
        sources: `int [B, k]`, the batch positions of the sources, in [0, B).
        spatial_axes: the n axes of `images` that the tiles span; `None` is 1, ..., n.

    Returns:
        Shape and dtype of `images`, every value copied exactly.

    Raises:
        ValueError: shapes that do not fit, axes that do not exist, `sources` out of range, tiles
            outside the image, or whose pixels come from outside it, or that do not cover it; values
            are checked where there are any, which is not under `jit`.

    >>> images = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.uint8)
    >>> tiles, shift = np.array([[[[0, 1]], [[1, 4]]]] * 2), np.array([[[-3], [1]]] * 2)
    >>> mosaic(images, tiles, shift, np.array([[0, 1], [1, 0]])).tolist()
    [[4, 5, 6, 7], [8, 1, 2, 3]]
    """
    _check_images("mosaic", images, averaged=False)
    axes = _check_tiles("mosaic", tiles, shift, sources, spatial_axes, np.shape(images))
    with into_jax():
        mixed: jax.Array = _mosaic(*map(_sharding.as_array, (images, tiles, shift, sources)), axes)
    return mixed


@jax.jit
def _mixup(x: jax.Array, partner: jax.Array, lam: jax.Array) -> jax.Array:
    def formula(x: jax.Array, partner: jax.Array, lam: jax.Array) -> jax.Array:
        lam = lam.astype(jnp.float32)
        return blend((Source(x), Source(x, partner)), Weights(jnp.stack([lam, 1 - lam], axis=1)))

    mixed: jax.Array = _sharding.on_gathered(formula, x, partner, lam)
    return mixed


@functools.partial(jax.jit, static_argnums=3)
def _cutmix(
    x: jax.Array, partner: jax.Array, box: jax.Array, spatial_axes: tuple[int, ...]
) -> jax.Array:
    def formula(x: jax.Array, partner: jax.Array, box: jax.Array) -> jax.Array:
        weights = Weights(box=box.astype(jnp.int32))
        return blend((Source(x), Source(x, partner)), weights, spatial_axes)

    mixed: jax.Array = _sharding.on_gathered(formula, x, partner, box)
    return mixed


@functools.partial(jax.jit, static_argnums=4)
def _mosaic(
    x: jax.Array, tiles: jax.Array, shift: jax.Array, sources: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
    def formula(x: jax.Array, tiles: jax.Array, shift: jax.Array, sources: jax.Array) -> jax.Array:
        mixed = x
        for r in range(tiles.shape[1]):
            moved = turned(x[sources[:, r]], shift[:, r].astype(jnp.int32), axes)
            weights = Weights(box=tiles[:, r].astype(jnp.int32))
            mixed = blend((Source(mixed), Source(moved)), weights, axes)
        return mixed

    mixed: jax.Array = _sharding.on_gathered(formula, x, tiles, shift, sources)
    return mixed


def _check_array(caller: str, field: str, value: Any) -> None:
    """Checks that a parameter is an array of at least one record."""
    if not is_array(value) or value.shape[:1] in ((), (0,)):
        fix = "pass at least one record" if is_array(value) else f"pass np.asarray({field})"
        got = f"{field} is {describe(value)}"
        fail(TypeError, caller, got, "an array [B, ...] with B > 0", fix)
    check_array(caller, field, value)


def _check_images(caller: str, images: Any, averaged: bool) -> None:
    _check_array(caller, "images", images)
    if 0 not in images.shape:
        check_pixels(caller, "images", images, averaged)


def _check_partner(caller: str, partner: Any, size: int) -> None:
    _check_array(caller, "partner", partner)
    if str(partner.dtype) not in INTEGERS or partner.shape != (size,):
        fix = "pass the batch position of each record's partner"
        fail(ValueError, caller, f"partner is {describe(partner)}", f"integers [{size}]", fix)
    _check_range(caller, "partner", partner, 0, size - 1, "partners count from 0")


def _as_lam(caller: str, lam: Any, size: int) -> Any:
    """Checks the weights of `mixup`, and returns them as an array."""
    if not is_array(lam):
        try:
            lam = np.asarray(lam)
        except ValueError:  # NumPy's, of lists of different lengths
            lam = np.empty((), object)
    if lam.shape != (size,):
        fix = f"for one weight for all pass np.full({size}, lam)"
        fail(ValueError, caller, f"lam of shape {lam.shape}", f"[{size}]", fix)
    if str(lam.dtype) not in (*INTEGERS, *FLOATS, "bool"):
        fix = native_fix(lam.dtype) or "pass floats"
        fail(TypeError, caller, f"lam is {describe(lam)}", f"numbers [{size}]", fix)
    _check_range(caller, "lam", lam, 0, 1, "clip lam to this")
    return lam


def _check_box(
    caller: str, box: Any, axes: Sequence[int] | None, shape: tuple[int, ...]
) -> tuple[int, ...]:
    """Checks the boxes of `cutmix`, and returns their axes, counted from the front."""
    fix = "give each record (start, stop) in pixels along each of the n spatial axes"
    expected = f"integers [{shape[0]}, n, 2]"
    if not is_array(box) or str(box.dtype) not in INTEGERS:
        fail(TypeError, caller, f"box is {describe(box)}", expected, fix)
    if len(box.shape) != 3 or box.shape[::2] != (shape[0], 2) or box.shape[1] == 0:
        fail(ValueError, caller, f"box of shape {box.shape}", expected, fix)
    if axes is None:
        axes = tuple(range(1, 1 + box.shape[1]))
    axes = as_axes(caller, "spatial_axes", axes) or ()
    front = front_axes(caller, "spatial_axes", axes, "images", shape)
    if len(front) != box.shape[1]:
        got = f"spatial_axes={axes} for box of shape {box.shape}"
        fail(ValueError, caller, got, f"{box.shape[1]} axes, one for each row of a box", fix)
    fix = "clip it to the image, and take λ from the clipped one"
    if has_values(box):
        values = np.asarray(jax.device_get(box))
        for k, axis in enumerate(front):
            _check_range(caller, f"box[:, {k}]", values[:, k], 0, shape[axis], fix)
        if (values[..., 0] > values[..., 1]).any():
            fail(ValueError, caller, "box with start > stop", "start <= stop", "swap them")
    return front


def _check_tiles(
    caller: str,
    tiles: Any,
    shift: Any,
    sources: Any,
    axes: Sequence[int] | None,
    shape: tuple[int, ...],
) -> tuple[int, ...]:
    """Checks the parameters of `mosaic`, and returns its axes, counted from the front."""
    known: tuple[Any, ...] = tiles.shape if is_array(tiles) else ()
    k, n = (known[1], known[2]) if len(known) == 4 else ("k", "n")
    for field, value, expected in (
        ("tiles", tiles, (shape[0], k, n, 2)),
        ("shift", shift, (shape[0], k, n)),
        ("sources", sources, (shape[0], k)),
    ):
        fix = "give each record its sources, with a tile and a shift for each of them"
        got, wanted = (
            f"{field} is {describe(value)}",
            f"integers [{', '.join(map(str, expected))}]",
        )
        if not is_array(value) or str(value.dtype) not in INTEGERS:
            fail(TypeError, caller, got, wanted, fix)
        if value.shape != expected or 0 in value.shape:
            fail(ValueError, caller, got, wanted, fix)
    axes = tuple(range(1, 1 + tiles.shape[2])) if axes is None else axes
    front = front_axes(
        caller, "spatial_axes", as_axes(caller, "spatial_axes", axes) or (), "images", shape
    )
    if len(front) != tiles.shape[2]:
        got = f"spatial_axes={axes} for tiles of shape {tiles.shape}"
        fail(ValueError, caller, got, f"{tiles.shape[2]} axes", "one for each row of a tile")
    _check_range(caller, "sources", sources, 0, shape[0] - 1, "sources count from 0")
    if has_values(tiles) and has_values(shift):
        tile, moved = (np.asarray(jax.device_get(x)).astype(np.int64) for x in (tiles, shift))
        lengths = np.array([shape[axis] for axis in front])
        if (tile[..., 0] > tile[..., 1]).any():
            fail(ValueError, caller, "tiles with start > stop", "start <= stop", "swap them")
        is_shown = (tile[..., 0] < tile[..., 1]).all(-1)
        for field, ends in (("tiles", tile), ("tiles - shift", tile - moved[..., None])):
            for axis, length in enumerate(lengths):
                fix = "let tiles lie in the image, and show what is in their sources"
                _check_range(caller, field, ends[is_shown][:, axis], 0, int(length), fix)
        pixels = (tile[..., 1] - tile[..., 0]).prod(-1).sum(1)
        if (pixels != lengths.prod()).any():
            got = f"tiles of {pixels.min()} to {pixels.max()} pixels"
            fix = "let tiles cover the image, each pixel once"
            fail(ValueError, caller, got, f"{lengths.prod()} pixels, all of the image", fix)
    return front


def _check_range(caller: str, field: str, value: Any, low: float, high: float, fix: str) -> None:
    if not has_values(value):
        return
    values = np.asarray(jax.device_get(value))
    if not (low <= values.min() and values.max() <= high):
        got = f"{field} from {values.min()} to {values.max()}"
        fail(ValueError, caller, got, f"{low} <= {field} <= {high}", fix)
