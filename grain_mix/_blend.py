"""The formula: each pixel of the mixed image is a weighted mean of its sources' pixels.

    out(p) = Σ w_r(p) · x_r(p - shift_r)

MixUp         w is one number for each source        https://arxiv.org/abs/1710.09412
CutMix        w is 1 for the partner inside its box  https://arxiv.org/abs/1905.04899
Mosaic        w is 1 for the source of the tile
a weight map  w is given for each pixel

`blend` is the only place where a platform gets a program of its own. Each gives the same bits, but
for floats that a map of floats weighs: there the last bit may differ between platforms.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from itertools import starmap
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix import _arithmetic, _packed
from grain_mix._move import turned, turned_by_product
from grain_mix._sources import (
    Source,
    are_whole_groups,
    can_be_product,
    in_groups,
    positions,
    rearranged,
    rearranged_by_product,
)

LONGEST_ROW = 2**31 - 1  # entries in a row whose positions an int32 can count
Axes = tuple[int, ...]


class Weights(NamedTuple):
    """How much of each of the k sources a pixel shows: `None` for what is not used.

    Attributes:
        shares: `float32 [B, k]`, of all pixels but those in the box; `None`: the first source's.
        box: `int32 [B, n, 2]`, inside which the second source is shown.
        map: `[B, *lengths]`, `bool` or `float32` in units of 2⁻²⁴: the weights of the first source
            and, what they leave, of the second, in the place of shares and box.
        tiles: `int32 [B, k, n, 2]`, where each source is shown, in the place of all others.
        shift: `int32 [B, k, n]`, how far each source is moved. Modulo the image's lengths it is the
            same for all of them.
    """

    shares: Any = None
    box: Any = None
    map: Any = None
    tiles: Any = None
    shift: Any = None


def blend(sources: Sequence[Source], weights: Weights, axes: Axes = ()) -> jax.Array:
    """The mixed field `[B, ...]`, where a box or a map spans these axes of it."""
    x: jax.Array = sources[0].array
    if all(weight is None for weight in weights) or 0 in x.shape:
        return x
    if len(x) == 1 and all(source.array is x for source in sources):
        return x  # its own partner; weights that add up to 1 could still round
    if x.ndim == 1:
        sources = [Source(source.array[:, None], source.order) for source in sources]
        column: jax.Array = blend(sources, weights)[:, 0]
        return column
    if x.ndim == 2 and x.dtype.itemsize == 4:  # labels: there, all platforms do the same
        arrays, orders = zip(*sources, strict=True)
        return mixed_in(Rows(axes), arrays, orders, weights)
    programs = {"cpu": Rows(axes, on_cpu=True), "cuda": Words(axes), "rocm": Words(axes)}
    programs |= {"tpu": Pixels(axes), "default": Rows(axes)}
    arrays, orders = zip(*sources, strict=True)
    if all(array is x for array in arrays):  # which JAX would not tell the programs otherwise
        arrays = arrays[:1]
    mixed: jax.Array = jax.lax.platform_dependent(
        arrays,
        orders,
        weights,
        **{name: functools.partial(mixed_in, form) for name, form in programs.items()},
    )
    return mixed


def mixed_in(form: "Rows", arrays: Any, orders: Any, weights: Weights) -> jax.Array:
    """The formula, in the form that images have for one platform.

    Args:
        form: one of the three forms below.
        arrays: those of the sources; a single one is that of all.
        orders: those of the sources.
        weights: of the sources.
    """
    form = form.fit(arrays[0], weights)
    return (_mixed_bits if form.moves_bits else _mixed)(form, arrays, orders, weights)


def _mixed(form: "Rows", arrays: Any, orders: Any, weights: Weights) -> jax.Array:
    arrays = arrays if len(arrays) > 1 else arrays * len(orders)
    x, shape, sources = arrays[0], arrays[0].shape, [*map(Source, arrays, orders)]
    if weights.tiles is not None and 6 * math.prod(x.shape[1:]) < 2**31:  # of a padded group
        if form.on_cpu:
            return _sliced(form, sources, weights)
        if form.looks_up and are_whole_groups(sources):
            return _looked_up(form, sources, weights)
    own, *others = (form.rearranged(form.shaped(s.array), s.order) for s in sources)
    if weights.map is not None:
        # `own` is first in a mean, and where the map is true.
        spread = form.spread(weights.map, form.entries(own.shape))
        if spread.dtype == jnp.bool_:
            mixed = _arithmetic.select(form.mask(spread, own), own, others[0])
        else:
            mixed = form.mean([own, *others], [spread, 1 - spread])
        return form.unshaped(mixed, shape)
    mixed = own
    if weights.tiles is not None:
        # Chosen where its pixels come from, and then all are moved at once.
        tiles = weights.tiles - weights.shift[..., None]
        for r, other in enumerate(others, 1):
            mixed = form.boxed(tiles[:, r], other, mixed)
        return form.turned(form.unshaped(mixed, shape), weights.shift[:, 0])
    if weights.shares is not None:
        mixed = form.mean(
            [own, *others], [_column(weights.shares[:, r], own) for r in range(1 + len(others))]
        )
    if weights.box is not None:
        mixed = form.boxed(weights.box, others[0], mixed)
    return form.unshaped(mixed, shape)


class Corners(NamedTuple):
    """A mosaic, told by its corners: where its four images meet, and which these are.

    Attributes:
        sources: `int32 [B, 2, 2]`, which source is in each corner; near ones first along each axis.
        centre: `int32 [B, 2]`, where they meet along each axis. Near images are moved by
            `centre - length`, far ones by `centre`: modulo the length that is the same.
    """

    sources: jax.Array
    centre: jax.Array


def _corners(form: "Rows", shape: tuple[int, ...], shift: jax.Array) -> Corners:
    lengths = np.array([[shape[axis] for axis in form.axes]], np.int32)
    shift = shift[:, 0]
    is_far = shift > 0  # the record's own; an unmixed one is near, with the centre at the end
    own = is_far.astype(jnp.int32)
    order = [(own[:, 0] ^ (q >> 1)) * 2 + (own[:, 1] ^ (q & 1)) for q in range(4)]
    centre = jnp.where(is_far, shift, shift + lengths)
    return Corners(jnp.stack(order, axis=1).reshape(-1, 2, 2), centre)


def _is_on_one_cpu() -> bool:
    """Whether the batch lies on one CPU, as inside `shard_map`, and where there is but one."""
    if jax.sharding.get_abstract_mesh().are_all_axes_manual:
        return True
    try:
        return jax.device_count("cpu") == 1
    except (RuntimeError, AssertionError):  # JAX is told of other platforms alone
        return False


def _sliced(form: "Rows", sources: Sequence[Source], weights: Weights) -> jax.Array:
    """A mosaic on CPUs: each image, moved, is a slice of its whole group, and tiles choose.

    What a slice holds of the images before and after it is in no tile.
    """
    x = sources[0].array
    corners, centre = _corners(form, x.shape, weights.shift)
    table, order = in_groups(sources)
    rows = jax.vmap(form.shaped)(table)  # [groups, 4, ...]
    shape, size, members = rows.shape[2:], math.prod(rows.shape[2:]), len(order)
    centre = centre * np.array([[form.width_along(axis) for axis in form.axes]], np.int32)
    lengths = np.array([shape[axis - 1] for axis in form.axes], np.int32)
    strides = np.array([math.prod(shape[axis:]) for axis in form.axes], np.int32)
    flat, first = jnp.pad(rows.reshape(len(rows), -1), ((0, 0), (size, size))), jnp.int32(0)
    if _is_on_one_cpu() and rows.size + 2 * size < 2**31:
        # CPUs are twice as fast with one array of one axis.
        flat = jnp.pad(rows.reshape(-1), (size, size))
        first = 4 * size * jnp.arange(len(rows), dtype=jnp.int32)

    def one(
        flat: jax.Array, first: jax.Array, order: jax.Array, corners: jax.Array, centre: jax.Array
    ) -> jax.Array:
        def moved(i: int, j: int) -> jax.Array:
            shift = jnp.where(np.array([i, j]) == 1, centre, centre - lengths)
            back = (shift * strides).sum(dtype=jnp.int32)
            start = (order[corners[i, j]] + 1) * np.int32(size) - back
            return jax.lax.dynamic_slice(flat, [first + start], [size]).reshape(shape)

        is_far = [
            jax.lax.broadcasted_iota(jnp.int32, shape, axis - 1) >= centre[k]
            for k, axis in enumerate(form.axes)
        ]
        near, far = (jnp.where(is_far[1], moved(i, 1), moved(i, 0)) for i in (0, 1))
        return jnp.where(is_far[0], far, near)

    groups = 0 if flat.ndim == 2 else None, 0 if first.ndim else None
    each = jax.vmap(jax.vmap(one, (None, None, 0, 0, 0)), (*groups, None, 0, 0))
    in_members = (y.reshape(-1, members, *y.shape[1:]) for y in (corners, centre))
    mixed: jax.Array = each(flat, first, jnp.asarray(order), *in_members)
    return form.unshaped(mixed.reshape(len(x), *shape), x.shape)


def _looked_up(form: "Rows", sources: Sequence[Source], weights: Weights) -> jax.Array:
    """A mosaic on GPUs: each entry is looked up where it comes from.

    Four bytes, or two halves, are a word. A mixed word is made of two words that follow one another
    on the ring of a row, which is the row of the far image and then that of the near one.
    """
    x, k = sources[0].array, len(sources)
    corners, centre = _corners(form, x.shape, weights.shift)
    records = (corners + np.arange(len(x), dtype=np.int32)[:, None, None]) % k  # in their group
    rows = form.shaped(x)
    groups = rows.reshape(len(x) // k, -1)
    per_word, last = np.uint32(form.per_word), max(form.axes)
    strides = [np.uint32(math.prod(rows.shape[axis + 1 :])) for axis in range(rows.ndim)]

    def origin(axis: int, behind: Any = 0) -> tuple[jax.Array, jax.Array]:
        """Where along an axis an entry comes from, and whether from a far image.

        `behind` is how many entries it is behind the first of its word.
        """
        line = [length if k == axis else 1 for k, length in enumerate(rows.shape)]
        place = jax.lax.broadcasted_iota(jnp.uint32, line, axis)
        if axis not in form.axes:
            return place, jnp.bool_(False)
        entries, width = (per_word, form.width) if axis == last else (np.uint32(1), 1)
        place = place * entries + behind
        meet = _column(centre[:, form.axes.index(axis)] * width, rows).astype(jnp.uint32)
        is_far = place >= meet
        return place - meet + jnp.where(is_far, np.uint32(0), rows.shape[axis] * entries), is_far

    others = [axis for axis in range(1, rows.ndim) if axis != last]
    origins = {axis: origin(axis) for axis in others}
    before: Any = sum((origins[axis][0] * strides[axis] for axis in others), np.uint32(0))

    def word(behind: Any = 0) -> tuple[jax.Array, jax.Array]:
        """The word from which an entry comes, and which of its entries that is."""
        entry, is_far = origin(last, behind)
        far = [is_far if axis == last else origins[axis][1] for axis in form.axes]
        at = [[_column(records[:, i, j], rows) for j in (0, 1)] for i in (0, 1)]
        near_row, far_row = (jnp.where(far[1], at[i][1], at[i][0]) for i in (0, 1))
        record = jnp.where(far[0], far_row, near_row)
        index = record.astype(jnp.uint32) * strides[0] + before + entry // per_word * strides[last]
        index = index.reshape(groups.shape)
        found = jnp.take_along_axis(groups, index, axis=1, mode="promise_in_bounds")
        return found.reshape(rows.shape), entry % per_word

    mixed, begin = word()
    if per_word > 1:
        bits = np.uint32(32) // per_word
        following, _ = word(per_word - begin)
        both = mixed >> begin * bits | following << (per_word - begin) * bits
        mixed = jnp.where(begin == 0, mixed, both)
    return form.unshaped(mixed, x.shape)


def copy_windows(
    arrays: Sequence[np.ndarray], k: int, axes: Axes, box: Any, tiles: Any, shift: Any
) -> np.ndarray:
    """The same on the host by NumPy's slices, where every pixel is that of one source.

    Args:
        arrays: the batch's field `[B, ...]`, and those of the partners that records bring.
        k: how many sources a record has.
        axes: those of the box in the field.
        box: as in `Weights`; `None` for tiles.
        tiles: as in `Weights`.
        shift: as in `Weights`.
    """
    x, own_only = arrays[0], len(arrays) == 1
    origins = positions(len(x), k) if own_only else np.arange(len(x))[:, None].repeat(k, axis=1)
    if tiles is None:
        out, numbers = np.array(x), [1]
        to = origin = box[:, None].tolist()
    else:
        out, numbers = np.empty(x.shape, x.dtype), list(range(k))
        to, origin = tiles.tolist(), (tiles - shift[..., None]).tolist()
    front = range(1, 1 + len(axes))
    mixed, *sides = (np.moveaxis(each, axes, front) for each in (out, *arrays))

    def window(record: int, bounds: list[list[int]]) -> Any:
        return record, *starmap(slice, bounds)

    for i, records in enumerate(origins[:, numbers].tolist()):
        for r, record, shown, taken in zip(numbers, records, to[i], origin[i], strict=True):
            if all(start < stop for start, stop in shown):
                side = sides[0 if own_only else r]
                mixed[window(i, shown)] = side[window(record, taken)]
    return out


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _mixed_bits(form: "Rows", arrays: Any, orders: Any, weights: Weights) -> jax.Array:
    """The same, with tangents that are those of floats."""
    return _mixed(form, arrays, orders, weights)


@_mixed_bits.defjvp
def _tangents(form: "Rows", primals: Any, tangents: Any) -> Any:
    floats = functools.partial(_mixed, Rows(form.axes, width=form.width, merged=form.merged))
    return _mixed_bits(form, *primals), jax.jvp(floats, primals, tangents)[1]


# --- the three forms: rows, words, pixels --------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rows:
    """With what comes after the last spatial axis merged into it.

    So compilers vectorise over a whole row and not over three channels.

    Attributes:
        axes: those of the box, in the image.
        on_cpu: whether this is for CPUs.
        merged: the first axis that is merged.
        width: how many entries of a row make up one pixel.
        dtype: the floats of 16 bits whose bits are moved as integers, else `None`.
    """

    axes: Axes
    on_cpu: bool = False
    merged: int = 1
    width: int = 1
    dtype: Any = None
    looks_up: ClassVar[bool] = True  # whether to look up a pixel elsewhere costs little

    def fit(self, x: jax.Array, weights: Weights) -> "Rows":
        """The form for images like this one."""
        has_axes = any(x is not None for x in (weights.box, weights.map, weights.tiles))
        last = max(self.axes) if has_axes else 1
        merged = last if not has_axes or math.prod(x.shape[last:]) <= LONGEST_ROW else last + 1
        width = math.prod(x.shape[last + 1 :]) if has_axes and merged == last else 1
        # Workaround for JAX 0.8 to 0.10: for CPUs, XLA widens floats of 16 bits to move them, and
        # so changes the bits of a NaN.
        is_half = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize == 2
        dtype = jnp.dtype(x.dtype) if is_half else None
        return dataclasses.replace(self, merged=merged, width=width, dtype=dtype)

    @property
    def moves_bits(self) -> bool:
        """Whether floats are moved as integers, of which JAX knows no tangents."""
        return self.dtype is not None

    def shaped(self, x: jax.Array) -> jax.Array:
        """An image in this form."""
        rows = x.reshape(*x.shape[: self.merged], math.prod(x.shape[self.merged :]))
        return rows if self.dtype is None else jax.lax.bitcast_convert_type(rows, jnp.uint16)

    def unshaped(self, mixed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The image again, of this shape."""
        if self.dtype is not None:
            mixed = jax.lax.bitcast_convert_type(mixed, self.dtype)
        return mixed.reshape(shape)

    def entries(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in this form, counted in entries."""
        return shape

    @property
    def per_word(self) -> int:
        """How many entries one number of this form holds."""
        return 1

    def width_along(self, axis: int) -> int:
        """How many entries one pixel has along an axis."""
        return self.width if axis == max(self.axes) else 1

    def rearranged(self, x: jax.Array, order: Any) -> jax.Array:
        """The records in another order."""
        return rearranged(x, order, looks_up=not self.on_cpu)

    def turned(self, x: jax.Array, shift: jax.Array) -> jax.Array:
        """An image, moved along its axes; what leaves it on one side comes back on the other."""
        return turned(x, shift, self.axes)

    def mean(self, xs: Sequence[jax.Array], weights: Sequence[jax.Array]) -> jax.Array:
        """The weighted mean."""
        # Of a map, words of 16 bits would need two weights to be fetched for each entry.
        in_16_bits = self.on_cpu and weights[0].size == len(weights[0])
        return _arithmetic.weighted_mean(xs, weights, self.dtype, in_16_bits=in_16_bits)

    def mask(self, mask: jax.Array, x: jax.Array) -> jax.Array:
        """A mask as is best to select `x` by: bytes are chosen bit by bit.

        So all bits are set or none. With a choice between the two, or a negated mask, a map of
        which labels are made too can take CPUs six times as long: they guess each entry.
        """
        return -mask.astype(x.dtype) if x.dtype in (jnp.uint8, jnp.int8) else mask

    def boxed(self, box: jax.Array, inside: jax.Array, outside: jax.Array) -> jax.Array:
        """One image inside the box, the other outside."""
        masks = [self.mask(mask, inside) for mask in _lines(box, self, self.entries(inside.shape))]
        if self.on_cpu:
            # Workaround for JAX 0.8 to 0.12: XLA's CPU compiler would repeat the comparison for
            # each pixel of the image, which takes longer than the rest.
            masks = [jax.lax.optimization_barrier(mask) for mask in masks]
        return _arithmetic.select(functools.reduce(jnp.bitwise_and, masks), inside, outside)

    def spread(self, weights: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """A map `[B, *lengths]`, its axes in the order of the image's, to broadcast against it."""
        turned = weights.transpose(0, *(1 + int(k) for k in np.argsort(self.axes)))
        if self.width > 1:
            turned = jnp.repeat(turned, self.width, axis=-1)
        line = [1] * len(shape)
        for axis, length in zip((0, *sorted(self.axes)), turned.shape, strict=True):
            line[axis] = length
        return turned.reshape(line)


class Words(Rows):
    """Rows of narrow dtypes as words of 32 bits, for GPUs, where they are whole words."""

    def fit(self, x: jax.Array, weights: Weights) -> Rows:
        """The form for images like this one."""
        rows = super().fit(x, weights)
        by_floats = weights.map is not None and weights.map.dtype != jnp.bool_
        row = jax.ShapeDtypeStruct((math.prod(x.shape[rows.merged :]),), x.dtype)
        if by_floats or not _packed.can_pack(row):  # a word has several weights, or there are none
            return Rows(rows.axes, merged=rows.merged, width=rows.width, dtype=rows.dtype)
        return dataclasses.replace(rows, dtype=jnp.dtype(x.dtype))

    def shaped(self, x: jax.Array) -> jax.Array:
        return _packed.pack(x.reshape(*x.shape[: self.merged], -1))

    def unshaped(self, mixed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return _packed.unpack(mixed, self.dtype).reshape(shape)

    def mean(self, xs: Sequence[jax.Array], weights: Sequence[jax.Array]) -> jax.Array:
        return _packed.weighted_mean(xs, weights, self.dtype)

    def mask(self, mask: jax.Array, x: jax.Array) -> jax.Array:
        if mask.shape[-1] == 1:
            return _as_bits(mask, jnp.uint32)
        # Negated before and after: to choose from a map takes one instruction per entry less.
        return ~_packed.pack(_as_bits(~mask, jnp.dtype(f"uint{8 * self.dtype.itemsize}")))

    def entries(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] * self.per_word)

    @property
    def per_word(self) -> int:
        return int(4 // self.dtype.itemsize)


class Pixels(Rows):
    """In the shape that images have, for TPUs, where to merge axes is to move the whole batch."""

    looks_up: ClassVar[bool] = False

    def fit(self, x: jax.Array, weights: Weights) -> Rows:
        return self

    def shaped(self, x: jax.Array) -> jax.Array:
        return x

    def unshaped(self, mixed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        if mixed.dtype.itemsize > 1 or jax.sharding.get_abstract_mesh().are_all_axes_manual:
            return mixed
        # Workaround for libtpu with JAX 0.12: without labels its compiler would move sums of 32
        # bits to the layout of what comes out, and not the bytes that they become.
        kept: jax.Array = jax.lax.optimization_barrier(mixed)
        return kept

    def rearranged(self, x: jax.Array, order: Any) -> jax.Array:
        by_product = can_be_product(x, order)
        return rearranged_by_product(x, order) if by_product else rearranged(x, order)

    def turned(self, x: jax.Array, shift: jax.Array) -> jax.Array:
        return turned_by_product(x, shift, self.axes)

    def boxed(self, box: jax.Array, inside: jax.Array, outside: jax.Array) -> jax.Array:
        # One mask after another, or a map of all pixels would be kept for their conjunction.
        for mask in _lines(box, self, inside.shape):
            inside = _arithmetic.select(mask, inside, outside)
        return inside


def _column(weights: jax.Array, x: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """`[B]` as `[B, 1, ...]`, to broadcast against `x`."""
    return weights.reshape(-1, *[1] * (x.ndim - 1))


def _lines(box: jax.Array, form: Rows, shape: tuple[int, ...]) -> list[jax.Array]:
    """For each spatial axis a mask `bool [B, 1, ..., length, ..., 1]`: start ≤ position < stop."""
    masks = []
    for k, axis in enumerate(form.axes):
        bounds = box[:, k] * (form.width if axis == max(form.axes) else 1)
        start, stop = (_column(bound, jax.ShapeDtypeStruct(shape, bool)) for bound in bounds.T)
        line = [length if i == axis else 1 for i, length in enumerate(shape)]
        position = jax.lax.broadcasted_iota(jnp.int32, line, axis)
        masks.append((start <= position) & (position < stop))
    return masks


def _as_bits(mask: jax.Array, dtype: Any) -> jax.Array:
    """All bits set where the mask is true, else none."""
    return jnp.where(mask, np.array(-1).astype(dtype), np.array(0, dtype))
