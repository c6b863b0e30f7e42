"""The formulas, which are one: each pixel is its own record's, its partner's, or a blend.

MixUp         λ·x + (1-λ)·x_partner                    https://arxiv.org/abs/1710.09412
CutMix        x_partner inside the box, x outside      https://arxiv.org/abs/1905.04899
a weight map  w·x + (1-w)·x_partner, w for each pixel

`blend` is the only place where a platform gets a program of its own. Each gives the same bits, but
for floats that a map of floats weighs: there the last bit may differ between platforms.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix import _weigh, _words
from grain_mix._partners import can_be_product, swap, swap_by_product

LONGEST_ROW = 2**31 - 1  # entries in a row whose positions an int32 can count
ArrayOrNone = jax.Array | None


def blend(
    x: jax.Array,
    lam: ArrayOrNone = None,
    box: ArrayOrNone = None,
    spatial_axes: tuple[int, ...] = (),
    *,
    weights: ArrayOrNone = None,
    partner: ArrayOrNone = None,
    other: ArrayOrNone = None,
) -> jax.Array:
    """`lam·x + (1-lam)·y` outside the box and `y` inside, where `y` are the partners of `x`.

    `x` is `[B, ...]`, `lam` `float32 [B]`, `box` `int32 [B, n, 2]`. `None` for `lam` means 1, for
    `box` no box. A map of `weights` `[B, *lengths]`, `bool` or `float32` on the grid of λ, takes
    the place of `lam` and `box`. `other` is `y`, or `partner` `int [B]` says where in the batch
    each partner is. Where both are `None`, records 2k and 2k+1 are partners.
    """
    if (lam is None and box is None and weights is None) or 0 in x.shape:
        return x
    if len(x) == 1 and other is None:
        return x  # its own partner; weights that add up to 1 could still round
    if x.ndim == 1:
        other = None if other is None else other[:, None]
        return blend(x[:, None], lam, partner=partner, other=other)[:, 0]
    rows = functools.partial(in_rows, spatial_axes)
    if x.ndim == 2 and x.dtype.itemsize == 4:  # labels: there, all platforms do the same
        return rows(x, lam, box, weights, partner, other)
    mixed: jax.Array = jax.lax.platform_dependent(
        x,
        lam,
        box,
        weights,
        partner,
        other,
        cpu=functools.partial(in_rows, spatial_axes, on_cpu=True),
        cuda=functools.partial(in_words, spatial_axes),
        rocm=functools.partial(in_words, spatial_axes),
        tpu=functools.partial(in_pixels, spatial_axes),
        default=rows,
    )
    return mixed


def in_rows(
    axes: tuple[int, ...],
    x: jax.Array,
    lam: ArrayOrNone,
    box: ArrayOrNone,
    weights: ArrayOrNone,
    partner: ArrayOrNone,
    other: ArrayOrNone = None,
    on_cpu: bool = False,
) -> jax.Array:
    """With what comes after the last spatial axis merged into it.

    So compilers vectorise over a whole row and not over three channels.
    """
    if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize == 2:
        return _in_rows_of_bits(axes, on_cpu, x, lam, box, weights, partner, other)
    return _in_rows(axes, on_cpu, None, x, lam, box, weights, partner, other)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _in_rows_of_bits(
    axes: tuple[int, ...], on_cpu: bool, x: jax.Array, *how: ArrayOrNone
) -> jax.Array:
    """Floats of 16 bits, moved as integers, so that each bit of a NaN is copied.

    Workaround for JAX 0.8 to 0.10: for CPUs, XLA widens floats of 16 bits to move them.
    """
    lam, box, weights, partner, other = how
    bits = jax.lax.bitcast_convert_type(x, jnp.uint16)
    other = None if other is None else jax.lax.bitcast_convert_type(other, jnp.uint16)
    mixed = _in_rows(axes, on_cpu, x.dtype, bits, lam, box, weights, partner, other)
    return jax.lax.bitcast_convert_type(mixed, x.dtype)


@_in_rows_of_bits.defjvp
def _tangents_in_rows(axes: tuple[int, ...], on_cpu: bool, primals: Any, tangents: Any) -> Any:
    rows = functools.partial(_in_rows, axes, on_cpu, None)
    return _in_rows_of_bits(axes, on_cpu, *primals), jax.jvp(rows, primals, tangents)[1]


def _in_rows(
    axes: tuple[int, ...],
    on_cpu: bool,
    dtype: Any,
    x: jax.Array,
    lam: ArrayOrNone,
    box: ArrayOrNone,
    weights: ArrayOrNone,
    partner: ArrayOrNone,
    other: ArrayOrNone,
) -> jax.Array:
    own, width = _as_rows(axes, x, box is not None or weights is not None)
    other = _partners(own, partner) if other is None else other.reshape(own.shape)
    mixed = own
    if weights is not None:
        over = _over(weights, axes, own, width)
        return _by_map(over, own, other, dtype, on_cpu).reshape(x.shape)
    if lam is not None:
        mixed = _weigh.weighted_mean(own, other, along(lam, own), dtype, in_16_bits=on_cpu)
    if box is not None:
        masks = _inside(box, axes, own.shape, width)
        if own.dtype in (jnp.uint8, jnp.int8):
            masks = [_as_bits(mask, own.dtype) for mask in masks]
        if on_cpu:
            # Workaround for JAX 0.8 to 0.12: XLA's CPU compiler would repeat the comparison for
            # each pixel of the image, which takes longer than the rest.
            masks = [jax.lax.optimization_barrier(mask) for mask in masks]
        mixed = _weigh.select(functools.reduce(jnp.bitwise_and, masks), other, mixed)
    return mixed.reshape(x.shape)


def in_pixels(
    axes: tuple[int, ...],
    x: jax.Array,
    lam: ArrayOrNone,
    box: ArrayOrNone,
    weights: ArrayOrNone,
    partner: ArrayOrNone,
    other: ArrayOrNone = None,
) -> jax.Array:
    """In the shape that images have, for TPUs, where to merge axes is to move the whole batch."""
    if other is None:
        use_product = partner is None and can_be_product(x)
        other = swap_by_product(x) if use_product else _partners(x, partner)
    if weights is not None:
        return _by_map(_over(weights, axes, x, 1), x, other)
    mixed = x if lam is None else _weigh.weighted_mean(x, other, along(lam, x))
    if box is not None:
        # One mask after another, or a map of all pixels would be kept for their conjunction.
        chosen = other
        for mask in _inside(box, axes, x.shape, 1):
            chosen = _weigh.select(mask, chosen, mixed)
        mixed = chosen
    return mixed


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def in_words(
    axes: tuple[int, ...],
    x: jax.Array,
    lam: ArrayOrNone,
    box: ArrayOrNone,
    weights: ArrayOrNone,
    partner: ArrayOrNone,
    other: ArrayOrNone = None,
) -> jax.Array:
    """In words of 32 bits, for GPUs, where rows of narrow dtypes are whole words."""
    rows, width = _as_rows(axes, x, box is not None or weights is not None)
    by_floats = weights is not None and weights.dtype != jnp.bool_  # a word has several weights
    if by_floats or not _words.can_pack(rows):
        return in_rows(axes, x, lam, box, weights, partner, other)
    own = _words.pack(rows)
    other = _partners(own, partner) if other is None else _words.pack(other.reshape(rows.shape))
    mixed = own
    if lam is not None:
        mixed = _words.weighted_mean(own, other, along(lam, own), x.dtype)
    entry = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    if weights is not None:
        mask = _words.pack(_as_bits(_over(~weights, axes, rows, width), entry))
        mixed = _weigh.select(mask, other, mixed)
    if box is not None:
        masks = [
            _as_bits(mask, jnp.uint32)
            if mask.shape[-1] == 1
            else _words.pack(_as_bits(mask, entry))
            for mask in _inside(box, axes, rows.shape, width)
        ]
        mixed = _weigh.select(functools.reduce(jnp.bitwise_and, masks), other, mixed)
    return _words.unpack(mixed, x.dtype).reshape(x.shape)


@in_words.defjvp
def _tangents(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    _, tangent = jax.jvp(functools.partial(in_rows, axes), primals, tangents)
    return in_words(axes, *primals), tangent


def _partners(x: jax.Array, partner: ArrayOrNone) -> jax.Array:
    return swap(x) if partner is None else x[partner]


def along(lam: jax.Array, x: jax.Array) -> jax.Array:
    """`[B, 1, ...]`, to broadcast against `x`."""
    return lam.reshape(-1, *[1] * (x.ndim - 1))


def _by_map(
    weights: jax.Array,
    own: jax.Array,
    other: jax.Array,
    dtype: Any = None,
    on_cpu: bool = False,
) -> jax.Array:
    """Mixed by weights `[B, ...]`, `bool` or floats, which have the shape of the pixels."""
    if weights.dtype != jnp.bool_:
        return _weigh.weighted_mean(own, other, weights, dtype, in_16_bits=on_cpu)
    inside = ~weights
    if own.dtype in (jnp.uint8, jnp.int8):
        inside = _as_bits(inside, own.dtype)
    return _weigh.select(inside, other, own)


def _over(weights: jax.Array, axes: tuple[int, ...], x: jax.Array, width: int) -> jax.Array:
    """A map `[B, *lengths]`, its axes in the order of `x`'s, to broadcast against `x`.

    Along the last of them each weight counts for `width` entries.
    """
    order = np.argsort(axes)
    turned = weights.transpose(0, *(1 + int(k) for k in order))
    if width > 1:
        turned = jnp.repeat(turned, width, axis=-1)
    shape = [1] * x.ndim
    for axis, length in zip((0, *sorted(axes)), turned.shape, strict=True):
        shape[axis] = length
    return turned.reshape(shape)


def _as_rows(axes: tuple[int, ...], x: jax.Array, has_axes: bool) -> tuple[jax.Array, int]:
    """`x` with merged axes, and how many entries of a row make up one pixel."""
    last = max(axes) if has_axes else 1
    merged = last if not has_axes or math.prod(x.shape[last:]) <= LONGEST_ROW else last + 1
    rows = x.reshape(*x.shape[:merged], math.prod(x.shape[merged:]))
    return rows, rows.shape[last] // x.shape[last]


def _inside(
    box: jax.Array, axes: tuple[int, ...], shape: tuple[int, ...], width: int
) -> list[jax.Array]:
    """For each spatial axis a mask `bool [B, 1, ..., length, ..., 1]`: start ≤ position < stop."""
    masks = []
    for k, axis in enumerate(axes):
        bounds = box[:, k] * (width if axis == max(axes) else 1)
        start, stop = (bound.reshape(-1, *[1] * (len(shape) - 1)) for bound in bounds.T)
        line = [length if i == axis else 1 for i, length in enumerate(shape)]
        position = jax.lax.broadcasted_iota(jnp.int32, line, axis)
        masks.append((start <= position) & (position < stop))
    return masks


def _as_bits(mask: jax.Array, dtype: Any) -> jax.Array:
    """All bits set where the mask is true, else none."""
    return jnp.where(mask, np.array(-1).astype(dtype), np.array(0, dtype))
