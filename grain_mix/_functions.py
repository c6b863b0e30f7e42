"""The two formulas as functions with given parameters."""

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
    _check_arrays("mixup", images, partner, averaged=True)
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
    _check_arrays("cutmix", images, partner, averaged=False)
    axes = _check_box("cutmix", box, spatial_axes, np.shape(images))
    with into_jax():
        mixed: jax.Array = _cutmix(*map(_sharding.as_array, (images, partner, box)), axes)
    return mixed


@jax.jit
def _mixup(x: jax.Array, partner: jax.Array, lam: jax.Array) -> jax.Array:
    def formula(x: jax.Array, partner: jax.Array, lam: jax.Array) -> jax.Array:
        lam = lam.astype(jnp.float32)
        return blend((Source(x), Source(x, partner)), Weights(jnp.stack([lam, 1 - lam], axis=1)))

    mixed: jax.Array = _sharding.gathered(formula, x, partner, lam)
    return mixed


@functools.partial(jax.jit, static_argnums=3)
def _cutmix(
    x: jax.Array, partner: jax.Array, box: jax.Array, spatial_axes: tuple[int, ...]
) -> jax.Array:
    def formula(x: jax.Array, partner: jax.Array, box: jax.Array) -> jax.Array:
        weights = Weights(box=box.astype(jnp.int32))
        return blend((Source(x), Source(x, partner)), weights, spatial_axes)

    mixed: jax.Array = _sharding.gathered(formula, x, partner, box)
    return mixed


def _check_arrays(where: str, images: Any, partner: Any, averaged: bool) -> None:
    for field, value in (("images", images), ("partner", partner)):
        if not is_array(value) or value.shape[:1] in ((), (0,)):
            fix = "pass at least one record" if is_array(value) else f"pass np.asarray({field})"
            came = f"{field} is {describe(value)}"
            fail(TypeError, where, came, "an array [B, ...] with B > 0", fix)
        check_array(where, field, value)
    if 0 not in images.shape:
        check_pixels(where, "images", images, averaged)
    size = images.shape[0]
    if str(partner.dtype) not in INTEGERS or partner.shape != (size,):
        fix = "pass the batch position of each record's partner"
        fail(ValueError, where, f"partner is {describe(partner)}", f"integers [{size}]", fix)
    _check_range(where, "partner", partner, 0, size - 1, "partners count from 0")


def _as_lam(where: str, lam: Any, size: int) -> Any:
    """Checks the weights of `mixup`, and returns them as an array."""
    if not is_array(lam):
        try:
            lam = np.asarray(lam)
        except ValueError:  # NumPy's, of lists of different lengths
            lam = np.empty((), object)
    if lam.shape != (size,):
        fix = f"for one weight for all pass np.full({size}, lam)"
        fail(ValueError, where, f"lam of shape {lam.shape}", f"[{size}]", fix)
    if str(lam.dtype) not in (*INTEGERS, *FLOATS, "bool"):
        fix = native_fix(lam.dtype) or "pass floats"
        fail(TypeError, where, f"lam is {describe(lam)}", f"numbers [{size}]", fix)
    _check_range(where, "lam", lam, 0, 1, "clip lam to this")
    return lam


def _check_box(
    where: str, box: Any, axes: Sequence[int] | None, shape: tuple[int, ...]
) -> tuple[int, ...]:
    """Checks the boxes of `cutmix`, and returns their axes, counted from the front."""
    fix = "give each record (start, stop) in pixels along each of the n spatial axes"
    expected = f"integers [{shape[0]}, n, 2]"
    if not is_array(box) or str(box.dtype) not in INTEGERS:
        fail(TypeError, where, f"box is {describe(box)}", expected, fix)
    if len(box.shape) != 3 or box.shape[::2] != (shape[0], 2) or box.shape[1] == 0:
        fail(ValueError, where, f"box of shape {box.shape}", expected, fix)
    if axes is None:
        axes = tuple(range(1, 1 + box.shape[1]))
    axes = as_axes(where, "spatial_axes", axes) or ()
    front = front_axes(where, "spatial_axes", axes, "images", shape)
    if len(front) != box.shape[1]:
        came = f"spatial_axes={axes} for box of shape {box.shape}"
        fail(ValueError, where, came, f"{box.shape[1]} axes, one for each row of a box", fix)
    fix = "clip it to the image, and take λ from the clipped one"
    if has_values(box):
        values = np.asarray(jax.device_get(box))
        for k, axis in enumerate(front):
            _check_range(where, f"box[:, {k}]", values[:, k], 0, shape[axis], fix)
        if (values[..., 0] > values[..., 1]).any():
            fail(ValueError, where, "box with start > stop", "start <= stop", "swap them")
    return front


def _check_range(where: str, field: str, value: Any, low: float, high: float, fix: str) -> None:
    if not has_values(value):
        return
    values = np.asarray(jax.device_get(value))
    if not (low <= values.min() and values.max() <= high):
        came = f"{field} from {values.min()} to {values.max()}"
        fail(ValueError, where, came, f"{low} <= {field} <= {high}", fix)
