"""What each transform draws: from seeds to the shares of the sources, the box, the map, the tiles.

Everything here is integer arithmetic on counter-based random bits, with weights in units of 2⁻²⁴.
So every platform, compiler and device count draws the very same numbers.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix import _laws
from grain_mix._bits import Bits, chance, random_bits
from grain_mix._draw import Draw
from grain_mix._fixed_point import ONE, from_fixed, is_less, times
from grain_mix._laws import Beta, Law
from grain_mix._sources import Neighbour, positions, rearranged
from grain_mix._weight_maps import MapFunction, label_weights, made_once

Fields = Mapping[str, jax.Array]


def share_seeds(mode: str, seeds: jax.Array) -> jax.Array:
    """The seed of the record whose draw each record takes; doing it twice changes nothing."""
    if mode == "pair":  # of the first record of the pair
        return jnp.where(np.arange(len(seeds)) % 2, rearranged(seeds, Neighbour(1, 2)), seeds)
    return jnp.broadcast_to(seeds[:1], seeds.shape) if mode == "batch" else seeds


# --- what each transform draws -------------------------------------------------------------------


class Rule:
    """What a transform draws.

    Attributes:
        sources: k, how many sources a record has.
        blends: whether it may blend all pixels by one weight.
        cuts: whether it may cut a box or tiles.
        reads: names of the fields that it reads.
    """

    sources: int = 2
    blends: bool = False
    cuts: bool = False
    reads: tuple[str, ...] = ()

    @property
    def has_papers_box(self) -> bool:
        """Whether it cuts the paper's box, which is empty along an axis of length 1."""
        return False

    def words(self, axes: int) -> int:
        """How many pairs of further words of random bits it needs, for images of these axes."""
        return axes if self.cuts else 0

    def draw(
        self, bits: Bits, mixed: jax.Array, lengths: tuple[int, ...], fields: Sequence[Fields]
    ) -> Draw:
        """Draws for the records that are `mixed`.

        Args:
            bits: the random bits of each record.
            mixed: `bool [B]`.
            lengths: of the images along their spatial axes.
            fields: for each source what the rule `reads`, `[B, ...]`.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class MixUp(Rule):
    """`Σ w_r·x_r`: λ and 1-λ by the law of λ."""

    law: Law
    blends = True

    def draw(self, bits: Bits, mixed: jax.Array, lengths: tuple[int, ...], fields: Any) -> Draw:
        """λ by its law."""
        lam = from_fixed(jnp.where(mixed, _laws.sample(bits.quantile, self.law), np.uint32(ONE)))
        return Draw(_both(lam))


@dataclasses.dataclass(frozen=True)
class CutMix(Rule):
    """A box of the partner's. With `minmax` its sides are uniform, and λ's law is not used."""

    law: Law
    minmax: tuple[float, float] | None
    cuts = True

    @property
    def has_papers_box(self) -> bool:
        """Not with `minmax`."""
        return self.minmax is None

    def draw(self, bits: Bits, mixed: jax.Array, lengths: tuple[int, ...], fields: Any) -> Draw:
        """A box, and λ by its pixels."""
        box_weight = np.uint32(ONE) - _laws.sample(bits.quantile, self.law)
        sides = [
            box_about(bits.further[axis, 0] % np.uint32(length), length, box_weight, len(lengths))
            if self.minmax is None
            else _box_inside(length, bits.further[axis], self.minmax)
            for axis, length in enumerate(lengths)
        ]
        box = jnp.stack(sides, axis=1)
        # In float32: exact up to 2²⁴ pixels, where int32 would overflow on large volumes.
        inside = jnp.prod((box[:, :, 1] - box[:, :, 0]).astype(jnp.float32), axis=1)
        outside = np.float32(math.prod(lengths)) - inside
        # Not over the constant, whose rounded reciprocal XLA would multiply with instead, as it
        # does where it can tell that there is no box. So whether there is one is asked last.
        lam = jnp.where(mixed, outside / (outside + inside), np.float32(1))
        return Draw(_both(lam), box=jnp.where(mixed[:, None, None], box, np.int32(0)))


@dataclasses.dataclass(frozen=True)
class Either(Rule):
    """CutMix with the chance `switch_prob`, else MixUp."""

    mixup: MixUp
    cutmix: CutMix
    switch_prob: float
    blends = True
    cuts = True

    @property
    def has_papers_box(self) -> bool:
        """As CutMix."""
        return self.cutmix.has_papers_box

    def draw(self, bits: Bits, mixed: jax.Array, lengths: tuple[int, ...], fields: Any) -> Draw:
        """A box or a λ, the other of them empty or 1."""
        cut = mixed & chance(bits.switch, self.switch_prob)
        blended = self.mixup.draw(bits, mixed & ~cut, lengths, fields)
        boxed = self.cutmix.draw(bits, cut, lengths, fields)
        return Draw(_both(jnp.where(cut, boxed.lam, blended.lam)), box=boxed.box)


@dataclasses.dataclass(frozen=True)
class MixUpOfMany(Rule):
    """`Σ w_r·x_r` of k > 2 sources, w ~ Dirichlet(α, ..., α).

    A stick is broken: source r takes a share b ~ Beta(α, (k-1-r)·α) of what the others left.
    """

    alpha: float
    larger: bool
    sources: int
    blends = True

    def words(self, axes: int) -> int:
        """One pair for each stick after the first."""
        return self.sources - 2

    def draw(self, bits: Bits, mixed: jax.Array, lengths: tuple[int, ...], fields: Any) -> Draw:
        """The shares, whole numbers of 2⁻²⁴ that sum to 1."""
        k, left = self.sources, jnp.full_like(bits.quantile, ONE)
        taken: list[jax.Array] = []
        for r in range(k - 1):
            words = bits.quantile if r == 0 else bits.further[r - 1, 0]
            part = _laws.sample(words, Beta(self.alpha, (k - 1 - r) * self.alpha))
            taken.append(_fraction(left, part))
            left = left - taken[-1]
        shares = jnp.stack([*taken, left], axis=1)
        if self.larger:  # the largest changes places with the first
            largest = jnp.argmax(shares, axis=1)[:, None]
            first = jnp.take_along_axis(shares, largest, axis=1)
            others = jnp.where(np.arange(k)[None] == largest, shares[:, :1], shares)[:, 1:]
            shares = jnp.concatenate([first, others], axis=1)
        unmixed = np.array([[ONE, *[0] * (k - 1)]], np.uint32)
        return Draw(from_fixed(jnp.where(mixed[:, None], shares, unmixed)))


def _fraction(whole: jax.Array, part: jax.Array) -> jax.Array:
    """`⌊whole·part + 1/2⌋`, both in units of 2⁻²⁴, exact in 32 bits."""
    product = times([(whole >> shift) & np.uint32(255) for shift in (0, 8, 16, 24)], part)
    carry = (product[2] >= 128).astype(jnp.uint32)
    return (product[3] | product[4] << 8 | product[5] << 16 | product[6] << 24) + carry


@dataclasses.dataclass(frozen=True)
class Mosaic(Rule):
    """Four images that meet in one point, the centre."""

    split: tuple[float, float]
    sources = 4
    cuts = True

    def draw(self, bits: Bits, mixed: jax.Array, lengths: tuple[int, ...], fields: Any) -> Draw:
        """The centre, and the corner of the record's own image; source r is in corner own ^ r."""
        centre = [
            _centre(length, bits.further[axis, 0], self.split)
            for axis, length in enumerate(lengths)
        ]
        middle, ends = jnp.stack(centre, axis=1)[:, None], np.array([[lengths]], np.int32)
        own = (bits.switch >> 30).astype(jnp.int32)[:, None]
        corners = own ^ np.arange(4, dtype=np.int32)[None]
        is_far = jnp.stack([corners >> 1, corners & 1], axis=-1) == 1  # [B, 4, 2]
        start = jnp.where(is_far, middle, np.int32(0))
        stop = jnp.where(is_far, ends, middle)
        shift = jnp.where(is_far, middle, middle - ends)
        tiles = jnp.stack([start, stop], axis=-1)
        whole = np.zeros((1, 4, 2, 2), np.int32)
        whole[0, 0, :, 1] = lengths  # the tiles of a record that is not mixed
        tiles = jnp.where(mixed[:, None, None, None], tiles, whole)
        shift = jnp.where(mixed[:, None, None], shift, np.int32(0))
        pixels = jnp.prod((tiles[..., 1] - tiles[..., 0]).astype(jnp.float32), axis=-1)
        # Neither over the constant nor over a vector that is broadcast, with whose rounded
        # reciprocals XLA would multiply instead.
        size = pixels.sum(axis=1)
        shares = [pixels[:, r] / size for r in range(4)]
        return Draw(jnp.stack(shares, axis=1), tiles=tiles, shift=shift)


@dataclasses.dataclass(frozen=True)
class ByMap(Rule):
    """A map of weights, which a function makes for a λ."""

    function: MapFunction
    law: Law
    reads: tuple[str, ...] = ()

    def words(self, axes: int) -> int:
        """The key."""
        return 1

    def draw(self, bits: Bits, mixed: jax.Array, lengths: tuple[int, ...], fields: Any) -> Draw:
        """The map, and λ by its mean."""
        lam, weights = label_weights(self.maps(bits, lengths, fields, fixed=True), mixed)
        return Draw(_both(lam), weights=weights)

    def maps(
        self, bits: Bits, lengths: tuple[int, ...], fields: Any, *, fixed: bool = False
    ) -> jax.Array:
        """`[B, *lengths]`: the map that is made of each record's λ and key."""
        lam = from_fixed(_laws.sample(bits.quantile, self.law))
        return made_once(self.function, bits.further[0].T, lam, lengths, fields, fixed=fixed)


def draw_parameters(
    rule: Rule,
    prob: float,
    seeds: jax.Array,
    lengths: tuple[int, ...],
    *,
    valid: Sequence[jax.Array | None] = (),
    fields: Sequence[Fields] = (),
    brings: bool = False,
) -> Draw:
    """Draws for `uint32 [B]` seeds and images that are `lengths` long on their spatial axes.

    Args:
        rule: what the transform draws.
        prob: the chance that a record mixes at all.
        seeds: `uint32 [B]`.
        lengths: of the images along their spatial axes.
        valid: `bool [B]`, which records are real, then which of the partners that they bring. A
            record mixes if it and all its sources are.
        fields: for each source what the rule reads.
        brings: whether records bring their partners. Else a batch of fewer than k is not mixed.
    """
    k = rule.sources
    bits = random_bits(seeds, rule.words(len(lengths)))
    mixed = chance(bits.gate, prob)
    real = [each for each in valid if each is not None]
    if not brings:
        real += [rearranged(each, Neighbour(r, k)) for each in real for r in range(1, k)]
        if len(seeds) < k:
            mixed = jnp.zeros_like(mixed)
    for each in real:
        mixed = mixed & each
    drawn = rule.draw(bits, mixed, lengths, fields)
    sources = None if brings else jnp.asarray(positions(len(seeds), k))
    return dataclasses.replace(drawn, sources=sources)


def _both(lam: jax.Array) -> jax.Array:
    return jnp.stack([lam, 1 - lam], axis=1)


# --- boxes ---------------------------------------------------------------------------------------


def box_about(centre: jax.Array, length: int, weight: jax.Array, n: int) -> jax.Array:
    """`int32 [B, 2]`: one side of the paper's box about a centre, clipped to the image.

    The side is ⌊L·(1-λ)^(1/n)⌋, and `weight` is 1-λ in units of 2⁻²⁴.
    """
    root = (weight.astype(jnp.float32) / np.float32(ONE)) ** np.float32(1 / n)
    side = jnp.floor(length * root).astype(jnp.int32).clip(0, length)
    # Platforms round roots differently, by up to one pixel. So compare weight·Lⁿ with 2²⁴·sideⁿ.
    whole = (length**n).to_bytes((length**n).bit_length() // 8 + 1, "little")
    bound = times([jnp.uint32(byte) for byte in whole], weight)

    def is_too_long(side: jax.Array) -> jax.Array:
        power = [jnp.uint32(1)]
        for _ in range(n):
            power = times(power, side.astype(jnp.uint32))
        return is_less(bound, [jnp.uint32(0)] * 3 + power)

    side = jnp.where(is_too_long(side), side - 1, side)
    side = jnp.where(is_too_long(side + 1), side, side + 1)
    start = centre.astype(jnp.int32) - side // 2
    return jnp.stack([start, start + side], axis=1).clip(0, length)


def whole_numbers(length: int, bounds: tuple[float, float]) -> tuple[int, int]:
    """The smallest and the largest whole number from lo·L to hi·L; if there is none, one above."""
    lo, hi = (round(bound * length, 6) for bound in bounds)  # 0.14·50 is 7, not 7.000000000000001
    smallest = math.ceil(lo)
    return smallest, max(math.floor(hi), smallest)


def _box_inside(length: int, bits: jax.Array, minmax: tuple[float, float]) -> jax.Array:
    """`int32 [B, 2]`: side uniform in [lo·L, hi·L], wholly inside the image."""
    smallest, largest = whole_numbers(length, minmax)
    side = smallest + bits[1] % np.uint32(largest - smallest + 1)
    start = bits[0] % (np.uint32(length + 1) - side)
    return jnp.stack([start, start + side], axis=1).astype(jnp.int32)


def _centre(length: int, bits: jax.Array, split: tuple[float, float]) -> jax.Array:
    """`int32 [B]`: where images meet along one axis, uniform in [lo·L, hi·L]."""
    smallest, largest = whole_numbers(length, split)
    return (smallest + bits % np.uint32(largest - smallest + 1)).astype(jnp.int32)
