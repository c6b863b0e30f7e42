"""From seeds to parameters: λ, partner and box.

Everything here is integer arithmetic on counter-based random bits, with λ on a grid of 2⁻²⁴. So
every platform, compiler and device count draws the very same numbers.
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from grain_mix import _laws
from grain_mix._dtypes import is_no_chance
from grain_mix._errors import describe, fail
from grain_mix._grid import ONE, from_grid
from grain_mix._laws import Beta
from grain_mix._maps import WeightMap, maps_of
from grain_mix._partners import partners, swap

PARTS = ((0, 255), (8, 255), (16, 511))  # shifts and masks that part a weight on the grid
NO_WEIGHT = np.uint32(2**32 - 1)  # stands for what is not from 0 to 1

EQUAL_SEEDS = (
    "grain_mix: several records of one batch have the same seed, more than chance explains, so "
    "they are mixed alike. It happens when datasets that each have the same .seed(...) are "
    "interleaved, when RecordSeed comes before a FlatMap, and when records are repeated or padded. "
    "Use gm.RecordSeed(id_key=...) with fields that tell the records apart, after the FlatMap; "
    "name padding with valid_key."
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draw:
    """The parameters of one mixed batch of B records; a JAX pytree.

    A record that is not mixed has λ = 1 and an empty box. A kind of target gets the draw of one
    record: the same fields, without the axis B.

    Attributes:
        lam: `float32 [B]`, a record's own weight in its label, which is also the fraction of its
            own pixels (CutMix) or their weight (MixUp). Its partner has the weight `1 - lam`. It
            is NaN for a record whose weight map has values outside [0, 1].
        partner: `int32 [B]`, the batch position of the record that each is mixed with; `None` with
            a `partner_key`.
        box: `int32 [B, n, 2]`, `(start, stop)` along each of the n spatial axes of the box that
            comes from the partner, empty where a record is not cut; `None` for MixUp.
        mixup_lam: `float32 [B]`, the weight of a record's own pixels outside its box: `lam` for
            MixUp, 1 for CutMix; `None` where it is always 1.
        weights: `[B, *lengths]`, `bool` or `float32`, the weight map that each record is mixed
            with: the weights of its own pixels along the spatial axes; `None` without a
            `weight_map`.
    """

    lam: jax.Array
    partner: jax.Array | None
    box: jax.Array | None
    mixup_lam: jax.Array | None
    weights: jax.Array | None = None

    def own_weight(self, points: ArrayLike) -> jax.Array:
        """The record's own weight at pixel positions, under every transform.

        Args:
            points: `[..., n]`, whole numbers or floats, along the n axes of the box or the map;
                for the draw of a batch `[B, ..., n]`. A pixel reaches from its position to the
                next whole number.

        Returns:
            `float32 [...]`. Points outside the image are in no box; under a map they weigh as the
            nearest pixel.

        >>> import grain_mix as gm
        >>> import numpy as np
        >>> draw = gm.CutMixBatch().draw(np.array([5, 6], np.uint32), (2, 8, 8, 3))
        >>> draw.box[0].tolist()
        [[3, 8], [0, 7]]
        >>> draw.own_weight(np.array([[[0.0, 0.0], [7.5, 6.0]]] * 2))[0].tolist()
        [1.0, 0.0]
        """
        positions = jnp.asarray(points)
        size, axes = self.lam.shape, None
        if self.box is not None:
            axes = self.box.shape[-2]
        elif self.weights is not None:
            axes = self.weights.ndim - self.lam.ndim
        if positions.shape[: len(size)] != size or positions.ndim <= len(size):
            fix = "give each record its points; jax.vmap gives the draw of one record"
            came = f"points is {describe(positions)} for the draw of {size[0]} records"
            fail(ValueError, "Draw.own_weight", came, f"[{size[0]}, ..., n]", fix)
        if axes is not None and positions.shape[-1] != axes:
            fix = "give the position along each axis of the box, in the order of spatial_axes"
            came = f"points is {describe(positions)}"
            fail(ValueError, "Draw.own_weight", came, f"[..., {axes}]", fix)
        if size:
            weights: jax.Array = jax.vmap(Draw.own_weight)(self, positions)
            return weights
        if self.weights is not None:
            last = np.array(self.weights.shape, np.int32) - 1
            pixels = jnp.floor(positions.astype(jnp.float32)).astype(jnp.int32)
            pixels = jnp.minimum(jnp.maximum(pixels, np.int32(0)), _same_rank(last, pixels))
            return self.weights[tuple(jnp.moveaxis(pixels, -1, 0))].astype(jnp.float32)
        outside = jnp.float32(1) if self.mixup_lam is None else self.mixup_lam
        if self.box is None:
            return jnp.broadcast_to(outside, positions.shape[:-1])
        start, stop = (_same_rank(bound, positions).astype(jnp.float32) for bound in self.box.T)
        positions = positions.astype(jnp.float32)
        inside = ((start <= positions) & (positions < stop)).all(-1)
        return jnp.where(inside, np.float32(0), outside)


def _same_rank(x: Any, like: jax.Array) -> jax.Array:
    return jnp.asarray(x).reshape(*[1] * (like.ndim - 1), -1)


def check_seeds(where: str, key: str, value: Any) -> int:
    """Checks seeds, and returns how many there are."""
    expected = "uint32 [B], one seed per record"
    if value.shape == ():
        fix = (
            "the order is RecordSeed, grain.transforms.Batch, then this transform "
            "(batch_size= of grain.load batches last, so leave it out)"
        )
        fail(ValueError, where, f"{key!r} is one seed", expected, fix)
    if str(value.dtype) == "uint32" and len(value.shape) > 1:
        came, fix = f"{key!r} is {describe(value)}", "use grain.transforms.Batch once"
        fail(ValueError, where, f"{came}, as after two Batch", expected, fix)
    if str(value.dtype) != "uint32" or len(value.shape) != 1:
        fix = "let RecordSeed add it before Batch, or cast your own with .astype(np.uint32)"
        fail(TypeError, where, f"{key!r} is {describe(value)}", expected, fix)
    if value.shape == (0,):
        fail(ValueError, where, "an empty batch", "B > 0", "filter empty batches out before")
    return int(value.shape[0])


def warn_of_equal_seeds(seeds: np.ndarray, valid: np.ndarray | None = None) -> None:
    """Warns where more records of a batch have equal seeds than chance explains."""
    seeds = seeds if valid is None else seeds[valid]
    equal = len(seeds) - len(set(seeds.tolist()))
    if equal and is_no_chance(equal, len(seeds) * (len(seeds) - 1) / 2**33):
        warn_once()


@functools.cache
def warn_once() -> None:
    """Warns of equal seeds, once per process."""
    warnings.warn(EQUAL_SEEDS, UserWarning, stacklevel=4)


def check_valid(where: str, key: str, value: Any, size: int) -> None:
    """Checks the field that says which records are real and which are padding."""
    if str(value.dtype) != "bool" or value.shape != (size,):
        fix = "pass True for each real record and False for padding"
        fail(TypeError, where, f"{key!r} is {describe(value)}", f"bool [{size}]", fix)


def share(mode: str, seeds: jax.Array) -> jax.Array:
    """The seed of the record whose draw each record takes; doing it twice changes nothing."""
    if mode == "pair":  # of the first record of the pair
        return jnp.where(np.arange(len(seeds)) % 2, swap(seeds), seeds)
    return jnp.broadcast_to(seeds[:1], seeds.shape) if mode == "batch" else seeds


class Bits(NamedTuple):
    """`uint32 [B]` random bits of each record, some for each decision.

    Each decision has bits of its own, so none moves when another is configured away. `axes` has two
    words for each axis of a box, `[n, 2, B]`, or for the key of a map.
    """

    gate: jax.Array
    switch: jax.Array
    quantile: jax.Array
    axes: jax.Array


def random_bits(seeds: jax.Array, axes: int) -> Bits:
    """The random bits of each record: Threefry of its seed and the number of the decision."""
    # Without jax.random.key, which adds jax_random_seed_offset. fold_in, unlike jax.random.bits,
    # does not depend on jax_threefry_partitionable.
    keys = jnp.stack([jnp.zeros_like(seeds), seeds], axis=1)
    decisions = jnp.arange(2 + axes, dtype=jnp.uint32)
    words = jax.vmap(jax.vmap(fold_in, (0, None)), (None, 0))(keys, decisions)
    words = jnp.moveaxis(words, 2, 1)
    return Bits(words[0, 0], words[0, 1], words[1, 0], words[2:])


def fold_in(words: jax.Array, number: jax.Array) -> jax.Array:
    """`uint32 [2]`: the words of a key, and a number, hashed by Threefry."""
    key = jax.random.wrap_key_data(words, impl="threefry2x32")
    folded: jax.Array = jax.random.key_data(jax.random.fold_in(key, number))
    return folded


class Recipe(Protocol):
    """What a transform draws.

    `blends`: whether it may blend by one weight. `cuts`: whether it may cut a box.
    """

    blends: bool
    cuts: bool

    def draw(self, bits: Bits, mixed: jax.Array, lengths: tuple[int, ...]) -> Draw:
        """Draws for the records that are `mixed`, with images of these lengths."""


@dataclasses.dataclass(frozen=True)
class MixUp:
    """λ·x + (1-λ)·x_partner."""

    law: Beta
    blends = True
    cuts = False

    def draw(self, bits: Bits, mixed: jax.Array, lengths: tuple[int, ...]) -> Draw:
        """λ by its law."""
        lam = from_grid(jnp.where(mixed, _laws.draw(bits.quantile, self.law), np.uint32(ONE)))
        return Draw(lam, None, None, mixup_lam=lam)


@dataclasses.dataclass(frozen=True)
class CutMix:
    """A box of the partner's. With `minmax` its sides are uniform, and λ's law is not used."""

    law: Beta
    minmax: tuple[float, float] | None
    blends = False
    cuts = True

    def draw(self, bits: Bits, mixed: jax.Array, lengths: tuple[int, ...]) -> Draw:
        """A box, and λ by its pixels."""
        box_weight = np.uint32(ONE) - _laws.draw(bits.quantile, self.law)
        sides = [
            _paper_side(length, words, box_weight, len(lengths))
            if self.minmax is None
            else _minmax_side(length, words, self.minmax)
            for length, words in zip(lengths, bits.axes, strict=True)
        ]
        box = jnp.stack(sides, axis=1)
        # In float32: exact up to 2²⁴ pixels, where int32 would overflow on large volumes.
        inside = jnp.prod((box[:, :, 1] - box[:, :, 0]).astype(jnp.float32), axis=1)
        outside = np.float32(math.prod(lengths)) - inside
        # Not over the constant, whose rounded reciprocal XLA would multiply with instead, as it
        # does where it can tell that there is no box. So whether there is one is asked last.
        lam = jnp.where(mixed, outside / (outside + inside), np.float32(1))
        return Draw(lam, None, jnp.where(mixed[:, None, None], box, np.int32(0)), None)


@dataclasses.dataclass(frozen=True)
class Either:
    """CutMix with the chance `switch_prob`, else MixUp."""

    mixup: MixUp
    cutmix: CutMix
    switch_prob: float
    blends = True
    cuts = True

    def draw(self, bits: Bits, mixed: jax.Array, lengths: tuple[int, ...]) -> Draw:
        """A box or a λ, the other of them empty or 1."""
        cut = mixed & chance(bits.switch, self.switch_prob)
        blended = self.mixup.draw(bits, mixed & ~cut, lengths)
        boxed = self.cutmix.draw(bits, cut, lengths)
        lam = jnp.where(cut, boxed.lam, blended.lam)
        return Draw(lam, None, boxed.box, blended.mixup_lam)


@dataclasses.dataclass(frozen=True)
class ByMap:
    """A user's map of weights, which is made for a λ."""

    weight_map: WeightMap
    law: Beta
    blends = False
    cuts = False

    def draw(self, bits: Bits, mixed: jax.Array, lengths: tuple[int, ...]) -> Draw:
        """The map, and λ by its mean."""
        lam, weights = _by_map(self.maps(bits, lengths, _on_grid), mixed)
        return Draw(lam, None, None, None, weights)

    def maps(
        self,
        bits: Bits,
        lengths: tuple[int, ...],
        kept: Callable[[jax.Array], jax.Array] = lambda maps: maps,
    ) -> jax.Array:
        """`[B, *lengths]`: what is kept of the map that is made of each record's λ and key."""
        lam = from_grid(_laws.draw(bits.quantile, self.law))
        return maps_of(self.weight_map, bits.axes[0].T, lam, lengths, kept)


def draw(
    recipe: Recipe,
    prob: float,
    seeds: jax.Array,
    lengths: tuple[int, ...],
    valid: jax.Array | None = None,
    partner_valid: jax.Array | None = None,
    *,
    brings_partner: bool = False,
) -> Draw:
    """Draws for `uint32 [B]` seeds and images that are `lengths` long on their spatial axes.

    Records 2k and 2k+1 are partners, unless each brings its own. A record mixes if it is `valid`,
    and its partner is. A record that is its own partner does not.
    """
    bits = random_bits(seeds, 1 if isinstance(recipe, ByMap) else len(lengths))
    mixed = chance(bits.gate, prob)
    if not brings_partner:
        partner_valid = None if valid is None else swap(valid)
        if len(seeds) == 1:
            mixed = jnp.zeros_like(mixed)
    for real in (valid, partner_valid):
        mixed = mixed if real is None else mixed & real
    drawn = recipe.draw(bits, mixed, lengths)
    partner = None if brings_partner else jnp.asarray(partners(len(seeds)))
    return dataclasses.replace(drawn, partner=partner)


def _on_grid(maps: jax.Array) -> jax.Array:
    """Maps of floats as whole numbers `uint32`, and `NO_WEIGHT`; those of `bool` as they are."""
    if maps.dtype == jnp.bool_:
        return maps
    maps = maps.astype(jnp.float32)
    is_weight = (maps >= 0) & (maps <= 1)
    on_grid = jnp.rint(jnp.where(is_weight, maps, 0) * np.float32(ONE)).astype(jnp.uint32)
    return jnp.where(is_weight, on_grid, NO_WEIGHT)


def _by_map(maps: jax.Array, mixed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The label's weights `float32 [B]`, which are the means of the maps, and the maps' weights."""
    axes = tuple(range(1, maps.ndim))
    each = mixed.reshape(-1, *[1] * len(axes))
    size = np.float32(math.prod(maps.shape[1:]))
    if maps.dtype == jnp.bool_:
        weights = maps | ~each
        kept = weights.sum(axes, dtype=jnp.int32).astype(jnp.float32)
        return kept / (kept + (size - kept)), weights  # not over the constant, as in `draw`
    maps = jnp.where(each, maps, np.uint32(ONE))
    wrong = maps == NO_WEIGHT
    maps = jnp.where(wrong, np.uint32(0), maps)
    # Byte by byte, since float32 would lose what integers sum exactly, up to 2²⁴ pixels. All in one
    # reduction, of which CPUs make one loop, twenty times as fast as three.
    parts = [(maps >> shift) & mask for shift, mask in PARTS]
    *sums, wrongs = jax.lax.reduce(
        [*parts, wrong.astype(jnp.uint32)],
        [np.uint32(0)] * (len(PARTS) + 1),
        lambda x, y: [a + b for a, b in zip(x, y, strict=True)],
        axes,
    )
    total = sum(
        count.astype(jnp.float32) * np.float32(2.0**shift / ONE)
        for count, (shift, _) in zip(sums, PARTS, strict=True)
    )
    is_whole = sums[-1] == np.uint32((ONE >> PARTS[-1][0]) * math.prod(maps.shape[1:]))
    lam = jnp.where(is_whole, np.float32(1), jnp.minimum(total / size, np.float32(1)))
    return jnp.where(wrongs > 0, np.float32(np.nan), lam), from_grid(maps)


def chance(bits: jax.Array, probability: float) -> jax.Array:
    """`bool [B]`, true with the given probability; exactly always for 1 and never for 0."""
    return (bits >> 8) < np.uint32(round(probability * ONE))


def _paper_side(length: int, bits: jax.Array, weight: jax.Array, n: int) -> jax.Array:
    """`int32 [B, 2]`: side ⌊L·(1-λ)^(1/n)⌋ about a uniform centre, clipped to the image."""
    root = (weight.astype(jnp.float32) / np.float32(ONE)) ** np.float32(1 / n)
    side = jnp.floor(length * root).astype(jnp.int32).clip(0, length)
    # Platforms round roots differently, by up to one pixel. So correct it with the weights at
    # which side s begins, ⌈2²⁴·(s/L)ⁿ⌉.
    begins = [-(-ONE * s**n // length**n) for s in range(length + 1)]
    table = jnp.asarray(np.array([*begins, 2**32 - 1], np.uint32))
    side = jnp.where(weight < table[side], side - 1, side)
    side = jnp.where(table[side + 1] <= weight, side + 1, side)
    start = (bits[0] % np.uint32(length)).astype(jnp.int32) - side // 2
    return jnp.stack([start, start + side], axis=1).clip(0, length)


def _minmax_side(length: int, bits: jax.Array, minmax: tuple[float, float]) -> jax.Array:
    """`int32 [B, 2]`: side uniform in [lo·L, hi·L], wholly inside the image."""
    lo, hi = (round(bound * length, 6) for bound in minmax)  # 0.1·30 is 3, not 3.0000000000000004
    smallest = math.ceil(lo)
    largest = max(math.floor(hi), smallest)
    side = smallest + bits[1] % np.uint32(largest - smallest + 1)
    start = bits[0] % (np.uint32(length + 1) - side)
    return jnp.stack([start, start + side], axis=1).astype(jnp.int32)


def words_of_key(where: str, key: Any) -> jax.Array:
    """The data of a JAX key, new style or old, as `uint32 [n]`."""
    fix = "pass one key of this step, such as jax.random.fold_in(key, step)"
    if not isinstance(key, jax.Array | np.ndarray):
        fail(TypeError, where, f"key is {describe(key)}", "a key of jax.random", fix)
    if jax.sharding.get_abstract_mesh().manual_axes:
        came = "a key inside shard_map, where all shards would draw alike"
        fix = "there, add a field of seeds outside, and leave key out"
        fail(ValueError, where, came, "a key outside, or seeds", fix)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape:
            fail(ValueError, where, f"key is {describe(key)}", "one key, not several", fix)
        return jax.random.key_data(key)
    if str(key.dtype) != "uint32" or key.ndim != 1 or not key.size:
        fail(TypeError, where, f"key is {describe(key)}", "one key of jax.random", fix)
    return jnp.asarray(key)


def seeds_of_key(words: jax.Array, size: int) -> jax.Array:
    """`uint32 [size]`: seed i is a hash of the key's data and of i, whatever the size."""
    data = jnp.zeros(2, jnp.uint32)
    for word in words:
        data = fold_in(data, word)
    positions = jnp.arange(size, dtype=jnp.uint32)
    return jax.vmap(fold_in, (None, 0))(data, positions)[:, 0]
