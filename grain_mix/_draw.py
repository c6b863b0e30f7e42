"""From seeds to parameters: λ, partner and box.

Everything here is integer arithmetic on counter-based random bits, with λ on a grid of 2⁻²⁴, the
spacing of float32 just below 1. So λ and 1-λ are both exact, and every platform, compiler and
device count draws the very same numbers.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix._errors import describe, fail
from grain_mix._maps import WeightMap, maps_of
from grain_mix._swap import partners, swap

ONE = 1 << 24  # λ = 1 on the grid
BYTES = ((0, 255), (8, 255), (16, 511))  # shifts and masks that part a weight on the grid


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draw:
    """The parameters of one mixed batch of B records; a JAX pytree.

    Attributes:
        lam: `float32 [B]`, a record's own weight in its label, which is also the fraction of its
            own pixels (CutMix) or their weight (MixUp). Its partner has the weight `1 - lam`. It
            is NaN for a record whose weight map has values outside [0, 1].
        partner: `int32 [B]`, the batch position of the record that each is mixed with.
        box: `int32 [B, n, 2]`, `(start, stop)` along each of the n spatial axes of the box that
            comes from the partner, empty where a record is not cut; `None` for MixUp.
        outside: `float32 [B]`, the weight of a record's own pixels outside its box: `lam` for
            MixUp, 1 for CutMix; `None` where it is always 1.
        weights: `[B, *lengths]`, `bool` or `float32`, the weight map that each record is mixed
            with: the weights of its own pixels along the spatial axes; `None` without a
            `weight_map`.
    """

    lam: jax.Array
    partner: jax.Array
    box: jax.Array | None
    outside: jax.Array | None
    weights: jax.Array | None = None


def check_seeds(where: str, key: str, value: Any) -> int:
    """Checks seeds, and returns how many there are."""
    expected = "uint32 [B], one seed per record"
    if value.shape == ():
        fix = (
            "the order is RecordSeed, grain.transforms.Batch, then this transform "
            "(batch_size= of grain.load batches last, so leave it out)"
        )
        fail(ValueError, where, f"{key!r} is one seed", expected, fix)
    if str(value.dtype) != "uint32" or len(value.shape) != 1:
        fix = "let RecordSeed add it before Batch, or cast your own with .astype(np.uint32)"
        fail(TypeError, where, f"{key!r} is {describe(value)}", expected, fix)
    if value.shape == (0,):
        fail(ValueError, where, "an empty batch", "B > 0", "filter empty batches out before")
    return int(value.shape[0])


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a transform draws: MixUp, CutMix (an alpha that is `None` rules it out) or either.

    With a `weight_map`, `mixup_alpha` is that of the λ that the map is made for.
    """

    prob: float
    mixup_alpha: float | None = None
    cutmix_alpha: float | None = None
    switch_prob: float = 1.0
    minmax: tuple[float, float] | None = None
    weight_map: WeightMap | None = None

    @property
    def blends(self) -> bool:
        """Whether a draw may be MixUp."""
        return self.mixup_alpha is not None and self.weight_map is None


def draw(
    recipe: Recipe, seeds: jax.Array, lengths: tuple[int, ...], valid: jax.Array | None = None
) -> Draw:
    """Draws for `uint32 [B]` seeds and images that are `lengths` long on their spatial axes.

    Each decision has random bits of its own, so none moves when another is configured away. A
    pair in which a record is not `valid` stays unmixed.
    """
    (gate, switch), (quantile, _), *axes = _random_bits(seeds, 2 + len(lengths))
    partner = jnp.asarray(partners(len(seeds)))
    mixed = _chance(gate, recipe.prob)
    if valid is not None:
        mixed = mixed & valid & swap(valid)
    if recipe.weight_map is not None:
        lam, weights = _by_map(raw_maps(recipe, seeds, lengths), mixed)
        return Draw(lam, partner, None, None, weights)
    if recipe.cutmix_alpha is None:
        assert recipe.mixup_alpha is not None
        lam = _lam(mixed, beta(quantile, recipe.mixup_alpha))
        return Draw(lam, partner, None, outside=lam)

    cut = mixed
    outside = None
    if recipe.mixup_alpha is not None:
        cut = mixed & _chance(switch, recipe.switch_prob)
        outside = _lam(mixed & ~cut, beta(quantile, recipe.mixup_alpha))
    box_weight = np.uint32(ONE) - beta(quantile, recipe.cutmix_alpha)
    sides = [
        _paper_side(length, bits, box_weight, len(lengths))
        if recipe.minmax is None
        else _minmax_side(length, bits, recipe.minmax)
        for length, bits in zip(lengths, axes, strict=True)
    ]
    box = jnp.stack(sides, axis=1)
    # In float32: exact up to 2²⁴ pixels, where int32 would overflow on large volumes.
    inside = jnp.prod((box[:, :, 1] - box[:, :, 0]).astype(jnp.float32), axis=1)
    outside_box = np.float32(math.prod(lengths)) - inside
    # Not over the constant, whose rounded reciprocal XLA would multiply with instead, as it does
    # where it can tell that there is no box. So whether there is one is asked last.
    kept = outside_box / (outside_box + inside)
    lam = jnp.where(cut, kept, np.float32(1) if outside is None else outside)
    return Draw(lam, partner, jnp.where(cut[:, None, None], box, np.int32(0)), outside)


def raw_maps(recipe: Recipe, seeds: jax.Array, lengths: tuple[int, ...]) -> jax.Array:
    """`[B, *lengths]`: what the function makes of each record's λ and key."""
    assert recipe.weight_map is not None
    assert recipe.mixup_alpha is not None
    _, (quantile, _), words = _random_bits(seeds, 3)
    lam = beta(quantile, recipe.mixup_alpha).astype(jnp.float32) / np.float32(ONE)
    keys = jax.random.wrap_key_data(words.T, impl="threefry2x32")
    return maps_of(recipe.weight_map, keys, lam, lengths)


def _by_map(maps: jax.Array, mixed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The label's weights `float32 [B]`, which are the means of the maps, and the maps' weights."""
    axes = tuple(range(1, maps.ndim))
    each = mixed.reshape(-1, *[1] * len(axes))
    size = np.float32(math.prod(maps.shape[1:]))
    if maps.dtype == jnp.bool_:
        weights = maps | ~each
        kept = weights.sum(axes, dtype=jnp.int32).astype(jnp.float32)
        return kept / (kept + (size - kept)), weights  # not over the constant, as in `draw`
    maps = maps.astype(jnp.float32)
    is_weight = (maps >= 0) & (maps <= 1)
    on_grid = jnp.rint(jnp.where(is_weight, maps, 0) * np.float32(ONE)).astype(jnp.uint32)
    on_grid = jnp.where(each, on_grid, np.uint32(ONE))
    # Byte by byte, since float32 would lose what integers sum exactly, up to 2²⁴ pixels.
    total = sum(
        ((on_grid >> shift) & mask).sum(axes, dtype=jnp.uint32) * np.float32(2.0**shift / ONE)
        for shift, mask in BYTES
    )
    lam = jnp.where((on_grid == ONE).all(axes), np.float32(1), jnp.minimum(total / size, 1))
    lam = jnp.where(mixed & ~is_weight.all(axes), np.float32(np.nan), lam)
    return lam, on_grid.astype(jnp.float32) / np.float32(ONE)


def _lam(mixed: jax.Array, weight: jax.Array) -> jax.Array:
    """`float32 [B]` of a weight on the grid, 1 where nothing is mixed."""
    return jnp.where(mixed, weight, np.uint32(ONE)).astype(jnp.float32) / np.float32(ONE)


def _random_bits(seeds: jax.Array, count: int) -> jax.Array:
    """`uint32 [count, 2, B]` random bits: two words for each of `count` decisions of a record."""
    # fold_in, unlike jax.random.bits, does not depend on jax_threefry_partitionable.
    keys = jax.vmap(lambda seed: jax.random.key(seed, impl="threefry2x32"))(seeds)
    decisions = jnp.arange(count, dtype=jnp.uint32)
    fold_in = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))
    return jnp.moveaxis(jax.random.key_data(fold_in(keys, decisions)), 2, 1)


def _chance(bits: jax.Array, probability: float) -> jax.Array:
    """`bool [B]`, true with the given probability; exactly always for 1 and never for 0."""
    return (bits >> 8) < np.uint32(round(probability * ONE))


@functools.cache
def _beta_quantiles(alpha: float) -> np.ndarray:
    """The inverse distribution function of Beta(α, α) at 4097 points, on the grid of λ."""
    from scipy.special import betaincinv  # comes with JAX; costs 0.2 s, so only when needed

    # Beyond these the table stays as it is, while SciPy fails near the ends of all floats.
    alpha = min(max(alpha, 1e-30), 1e30)
    # Not to 0, where a large α would make outliers of a first cell that spans half of all λ.
    quantiles = np.maximum(np.arange(2049) / 4096, 2.0**-14)
    lower = np.rint(betaincinv(alpha, alpha, quantiles) * ONE).astype(np.uint32)
    return np.concatenate([lower, ONE - lower[-2::-1]])


def beta(bits: jax.Array, alpha: float) -> jax.Array:
    """λ ~ Beta(α, α) as `uint32 [B]` multiples of 2⁻²⁴.

    Linear between the points of a table: no loop (rejection sampling needs one, and a loop whose
    length depends on data makes a GPU's host wait), off by less than 1/4096 of probability.
    """
    table = jnp.asarray(_beta_quantiles(float(alpha)))
    cell, fraction = bits >> 20, (bits >> 12) & 255
    low, high = table[cell], table[cell + 1]
    return low + (((high - low) * fraction + 128) >> 8)


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
