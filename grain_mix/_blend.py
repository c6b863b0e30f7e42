"""The two formulas, which are one: each pixel is its own record's, its partner's, or a blend.

MixUp   λ·x + (1-λ)·x_partner                    https://arxiv.org/abs/1710.09412
CutMix  x_partner inside the box, x outside      https://arxiv.org/abs/1905.04899
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from grain_mix import _check, _place
from grain_mix._draw import ONE, partners


def mixup(images: ArrayLike, lam: ArrayLike, partner: ArrayLike) -> jax.Array:
    """MixUp with given parameters: `lam · images + (1 - lam) · images[partner]`.

    Args:
        images: `[B, ...]`, integer or floating point, any shape; labels work as well.
        lam: `[B]` in [0, 1], a record's own weight. Integer images are weighed on a grid of
            2⁻²⁴, finer than float32 resolves near 1.
        partner: `int [B]`, the batch position of each record's partner, in [0, B).

    Returns:
        Shape and dtype of `images`. Integers are exact, rounded to nearest (halves to even);
        floats are blended in float32.

    Raises:
        TypeError: images of a dtype that cannot be averaged.
        ValueError: `lam` or `partner` of another length, or out of range.

    See Zhang et al., mixup: Beyond Empirical Risk Minimization, https://arxiv.org/abs/1710.09412

    >>> images = np.array([[0, 100], [200, 100]], np.uint8)
    >>> mixup(images, np.array([0.75, 0.5]), np.array([1, 0])).tolist()
    [[50, 100], [100, 100]]
    """
    _check.formula("mixup", images, partner, averaged=True)
    lam = _check.lam("mixup", lam, np.shape(images)[0])
    mixed: jax.Array = _mixup(_on_device(images), _on_device(partner), _on_device(lam))
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
    _check.formula("cutmix", images, partner, averaged=False)
    axes = _check.box("cutmix", box, spatial_axes, np.shape(images))
    mixed: jax.Array = _cutmix(_on_device(images), _on_device(partner), _on_device(box), axes)
    return mixed


def _on_device(x: ArrayLike) -> jax.Array:
    """As a copy, and an explicit transfer, which `jax_transfer_guard` allows."""
    _place.spare_accelerators()
    return x if isinstance(x, jax.Array) else jax.device_put(x, may_alias=False)


@jax.jit
def _mixup(x: jax.Array, partner: jax.Array, lam: jax.Array) -> jax.Array:
    return blend(x, x[partner], lam.astype(jnp.float32))


@functools.partial(jax.jit, static_argnums=3)
def _cutmix(
    x: jax.Array, partner: jax.Array, box: jax.Array, spatial_axes: tuple[int, ...]
) -> jax.Array:
    return blend(x, x[partner], None, box.astype(jnp.int32), spatial_axes)


def swap(x: jax.Array) -> jax.Array:
    """`x[partners(len(x))]`, each record replaced by its partner."""
    if len(x) % 2:
        return x[partners(len(x))]
    # A reshape rather than a gather: nothing moves between devices when axis 0 is sharded.
    return x.reshape(len(x) // 2, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def blend(
    x: jax.Array,
    y: jax.Array,
    lam: jax.Array | None = None,
    box: jax.Array | None = None,
    spatial_axes: tuple[int, ...] = (),
) -> jax.Array:
    """`lam·x + (1-lam)·y` outside the box and `y` inside, for `x` and `y` `[B, ...]`.

    `None` for `lam` means 1, `None` for `box` no box. What lies behind the last spatial axis is
    merged into it, so that compilers vectorise over a whole row and not over three channels.
    """
    if len(x) == 1:
        return x  # its own partner; weights that add up to 1 could still round
    last = max(spatial_axes) if box is not None else 1
    rows = (*x.shape[:last], math.prod(x.shape[last:]))
    own, other = x.reshape(rows), y.reshape(rows)
    mixed = own
    if lam is not None:
        weigh = _weigh_integers if jnp.issubdtype(x.dtype, jnp.integer) else _weigh_floats
        mixed = weigh(own, other, lam.reshape(-1, *[1] * (own.ndim - 1)))
    if box is not None:
        width = rows[last] // x.shape[last]  # entries of a row that make up one pixel
        inside = [
            _between(box[:, k] * (width if axis == last else 1), axis, rows)
            for k, axis in enumerate(spatial_axes)
        ]
        mixed = jnp.where(functools.reduce(jnp.logical_and, inside), other, mixed)
    return mixed.reshape(x.shape)


def _between(bounds: jax.Array, axis: int, shape: tuple[int, ...]) -> jax.Array:
    """`bool [B, 1, ..., shape[axis], ..., 1]`: start ≤ position < stop along the axis."""
    start, stop = (bound.reshape(-1, *[1] * (len(shape) - 1)) for bound in bounds.T)
    line = [length if i == axis else 1 for i, length in enumerate(shape)]
    position = jax.lax.broadcasted_iota(jnp.int32, line, axis)
    inside = (start <= position) & (position < stop)
    # XLA's CPU compiler would repeat the comparison for each pixel of the image, which takes longer
    # than the rest. Elsewhere a barrier only costs a kernel.
    barrier = jax.lax.optimization_barrier
    mask: jax.Array = jax.lax.platform_dependent(inside, cpu=barrier, default=lambda x: x)
    return mask


def _weigh_floats(x: jax.Array, y: jax.Array, lam: jax.Array) -> jax.Array:
    """`lam·x + (1-lam)·y` in float32; at 1 and 0 exactly x and y, where 0·inf would be NaN."""
    lam = lam.astype(jnp.float32)
    mixed = lam * x.astype(jnp.float32) + (1 - lam) * y.astype(jnp.float32)
    return jnp.where(lam == 1, x, jnp.where(lam == 0, y, mixed.astype(x.dtype)))


def _weigh_integers(x: jax.Array, y: jax.Array, lam: jax.Array) -> jax.Array:
    """`lam·x + (1-lam)·y`, exact, rounded to nearest with halves to even like `np.rint`.

    The weights are integers, too, in units of 2⁻²⁴: the same on every platform, and faster than
    float32.
    """
    weight = jnp.rint(lam * np.float32(ONE)).astype(jnp.int32)
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    # Flipping the sign bit maps signed integers to unsigned ones, order and distances kept.
    offset = np.array(-jnp.iinfo(x.dtype).min).astype(unsigned)
    a, b = (jax.lax.bitcast_convert_type(z, unsigned) ^ offset for z in (x, y))
    nearest = (_weigh_bytes if unsigned == jnp.uint8 else _weigh_wide)(a, b, weight)
    return jax.lax.bitcast_convert_type(nearest ^ offset, x.dtype)


def _weigh_bytes(a: jax.Array, b: jax.Array, weight: jax.Array) -> jax.Array:
    """The blend of bytes, 24 bits of fraction included, in two words of 16 bits.

    CPUs multiply twice as many of these at a time as of 32 bits. `high·2¹⁶ + low` is
    `2²⁴·b + weight·(a - b)`: what wraps on the way is back in range in the sum.
    """
    rounded = (weight + (1 << 15)) >> 16
    upper = rounded.astype(jnp.int16)
    lower = (weight - (rounded << 16)).astype(jnp.int16)  # signed
    difference = a.astype(jnp.int16) - b.astype(jnp.int16)
    low = lower * difference
    # Compilers know this for the instruction that yields a product's upper word.
    carry = ((lower.astype(jnp.int32) * difference.astype(jnp.int32)) >> 16).astype(jnp.int16)
    high = ((b.astype(jnp.int16) << 8) + upper * difference + carry).astype(jnp.uint16)
    up_at_half = ((high >> 8) & 1) | (low != 0).astype(jnp.uint16)
    return ((high + 127 + up_at_half) >> 8).astype(jnp.uint8)


def _weigh_wide(a: jax.Array, b: jax.Array, weight: jax.Array) -> jax.Array:
    """The blend of 16 or 32 bits, byte by byte, low to high, as in long multiplication by hand.

    A byte times a weight fits 32 bits.
    """
    size = a.dtype.itemsize
    weight = weight.astype(jnp.uint32)
    carry = remainder = jnp.uint32(0)
    for byte in range(size):
        a_byte, b_byte = ((z.astype(jnp.uint32) >> (8 * byte)) & 255 for z in (a, b))
        # weight·a + (1-weight)·b in units of 2⁻²⁴; a - b may wrap, the sum unwraps it.
        total = (b_byte << 24) + weight * (a_byte - b_byte) + carry
        carry = total >> 8
        fraction_bits = 8 if byte < size - 1 else 8 * (4 - size)
        remainder += (total & ((1 << fraction_bits) - 1)) << (8 * byte)
    floor = total >> fraction_bits if size < 4 else total
    nearest = floor + ((remainder + (ONE // 2 - 1) + (floor & 1)) >> 24)
    narrow: jax.Array = nearest.astype(a.dtype)
    return narrow


def soft_labels(labels: jax.Array, num_classes: int | None, smoothing: float) -> jax.Array:
    """`float32 [B, K]` targets: one-hot of integer labels `[B]`, else as they are; smoothed."""
    if labels.ndim == 1:
        classes = jnp.arange(num_classes, dtype=jnp.int32)
        labels = labels.astype(jnp.int32)[:, None] == classes[None, :]
    off = smoothing / labels.shape[1]
    return labels.astype(jnp.float32) * np.float32(1 - smoothing) + np.float32(off)
