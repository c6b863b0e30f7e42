"""The law of λ, the record's own weight, from uniform random bits."""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix._errors import describe, explains_mistakes, fail, quote
from grain_mix._fixed_point import ONE
from grain_mix._identity import check_frozen, identity
from grain_mix._parameters import above_zero, check_all, checked_by, fraction

# Not to 0 and 1, where a large α would make outliers of a first cell that spans half of all λ.
POINTS = np.clip(np.arange(4097) / 4096, 2.0**-14, 1 - 2.0**-14)


class Law:
    """The law of λ, the record's own weight: the base class of all laws, and of your own.

    A law of your own is a subclass, decorated as `@dataclasses.dataclass(frozen=True)`, with a
    method `quantile`. It takes the place of any `alpha`. For CutMix it is the law before the box is
    rounded and clipped.

    Raises:
        TypeError: when the transform is made, if the class is no frozen dataclass, or if its fields
            have no hash or hide something from it.
        ValueError: when the transform is made, if quantiles fall, or are not from 0 to 1.

    >>> import dataclasses
    >>> import grain_mix as gm
    >>> @dataclasses.dataclass(frozen=True)
    ... class Power(gm.Law):
    ...     "λ^n is uniform."
    ...     n: float
    ...     def quantile(self, p):
    ...         return p ** (1 / self.n)
    >>> seeds = np.arange(4000, dtype=np.uint32)
    >>> lam = gm.MixUpBatch(Power(3), label_key=None).draw(seeds, (4000, 16000)).lam
    >>> round(float(lam.mean()), 2)
    0.75
    """

    def __post_init__(self) -> None:
        check_all(self)

    def quantile(self, p: np.ndarray) -> np.ndarray:
        """The λ that are not exceeded with these probabilities.

        Args:
            p: NumPy `float64 [4097]`, from 2⁻¹⁴ to 1 - 2⁻¹⁴.

        Returns:
            NumPy floats of the same shape, from 0 to 1, which do not fall. They are rounded to
            multiples of 2⁻²⁴, once; between them λ is linear.
        """
        raise NotImplementedError


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class Beta(Law):
    """λ ~ Beta(a, b).

    The mean of λ is a / (a + b). `Beta(a, a)` draws the same bits as `alpha=a`.

    Args:
        a: above 0. Larger: more of the record itself.
        b: above 0. Larger: more of its partner.

    Raises:
        TypeError, ValueError: a parameter that is no finite number above 0.

    >>> import grain_mix as gm
    >>> seeds = np.arange(4000, dtype=np.uint32)
    >>> lam = gm.MixUpBatch(gm.Beta(2, 8), label_key=None).draw(seeds, (4000, 16000)).lam
    >>> round(float(lam.mean()), 1)
    0.2
    """

    a: float = dataclasses.field(metadata=checked_by(above_zero("pass one like 0.2")))
    b: float = dataclasses.field(metadata=checked_by(above_zero("pass one like 0.2")))

    def quantile(self, p: np.ndarray) -> np.ndarray:
        """The λ that are not exceeded with these probabilities."""
        from scipy.special import betaincinv  # comes with JAX; costs 0.2 s, so only when needed

        # Beyond these the table stays as it is, while SciPy fails near the ends of all floats.
        a, b = (min(max(x, 1e-30), 1e30) for x in (self.a, self.b))
        table: np.ndarray = betaincinv(a, b, p)
        return table


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class Uniform(Law):
    """λ is uniform from `low` to `high`; where these are equal it is that constant.

    Args:
        low: the smallest λ.
        high: the largest λ, 0 ≤ low ≤ high ≤ 1.

    Raises:
        TypeError, ValueError: parameters that are no such numbers.

    >>> import grain_mix as gm
    >>> transform = gm.MixUpBatch(gm.Uniform(0.75, 0.75), label_key=None)
    >>> transform.draw(np.arange(4, dtype=np.uint32), (4, 16000)).lam.tolist()
    [0.75, 0.75, 0.75, 0.75]
    """

    low: float = dataclasses.field(metadata=checked_by(fraction("pass one like 0.5")))
    high: float = dataclasses.field(metadata=checked_by(fraction("pass one like 0.5")))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            got = f"low={self.low}, high={self.high}"
            fail(ValueError, "Uniform", got, "low <= high", "swap them")

    def quantile(self, p: np.ndarray) -> np.ndarray:
        """The λ that are not exceeded with these probabilities."""
        return self.low + (self.high - self.low) * p


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class Larger(Law):
    """max(λ, 1-λ) of the λ that another law draws: the record itself always weighs at least half.

    So no record of a pair is lost from both of its mixtures. MixMatch and big_vision mix like this.

    Args:
        law: any other law.

    Raises:
        TypeError: what is no law, or is `Larger` itself.

    See Berthelot et al., MixMatch, https://arxiv.org/abs/1905.02249

    >>> import grain_mix as gm
    >>> seeds = np.arange(4, dtype=np.uint32)
    >>> law = gm.Beta(0.2, 0.2)
    >>> lam = gm.MixUpBatch(law, label_key=None).draw(seeds, (4, 16000)).lam
    >>> larger = gm.MixUpBatch(gm.Larger(law), label_key=None).draw(seeds, (4, 16000)).lam
    >>> bool((larger == np.maximum(lam, 1 - lam)).all())
    True
    """

    law: Law

    def __post_init__(self) -> None:
        got, fix = f"law={quote(self.law)}", "pass one like gm.Beta(0.2, 0.2)"
        if isinstance(self.law, Larger):
            fail(TypeError, "Larger", got, "any other law", "drop one of the two gm.Larger")
        if not isinstance(self.law, Law):
            fail(TypeError, "Larger", got, "a law", fix)
        check_frozen("Larger", got, self.law)

    def quantile(self, p: np.ndarray) -> np.ndarray:
        """The λ that are not exceeded with these probabilities."""
        table = _quantiles(identity(self.law), self.law) / ONE
        quantiles: np.ndarray = np.quantile(np.maximum(table, 1 - table), p)
        return quantiles


def check_law(caller: str, field: str, value: Any) -> float | Law:
    """A number α, which is Beta(α, α), or a law, whose table is made to see that it is one."""
    if isinstance(value, Law):
        got = f"{field}={quote(value)}"
        check_frozen(caller, got, value)
        if type(value).quantile is Law.quantile:
            fix = "write quantile(self, p), or pass one like gm.Beta(2, 8)"
            fail(TypeError, caller, f"{got}, which has no quantile", "a law", fix)
        table_of(value)
        return value
    off = {"mixup_alpha": "CutMixBatch", "cutmix_alpha": "MixUpBatch"}.get(field, "prob=0")
    fix = f"pass one like 0.2, or gm.Beta(a, b); to do without, use {off}"
    if isinstance(value, tuple | list) and len(value) == 2:
        first, second = value
        fix = f"write gm.Beta({first!r}, {second!r}) if you mean Beta's two parameters, and "
        fix += f"gm.Uniform({first!r}, {second!r}) for a range"
    if isinstance(value, type) and issubclass(value, Law):
        fix = f"write {value.__name__}(...), with brackets"
    kept: float = above_zero(fix)(caller, field, value)
    return kept


def law_of(alpha: float | Law) -> Law:
    """`Beta(α, α)` for a number α; a law as it is."""
    return alpha if isinstance(alpha, Law) else Beta(alpha, alpha)


def sample(bits: jax.Array, law: Law) -> jax.Array:
    """λ as `uint32 [B]` multiples of 2⁻²⁴.

    Linear between the points of a table: no loop (rejection sampling needs one, and a loop whose
    length depends on data makes a GPU's host wait), off by less than 1/4096 of probability.
    """
    if type(law) is Larger:
        lam = sample(bits, law.law)
        return jnp.maximum(lam, np.uint32(ONE) - lam)
    table = jnp.asarray(table_of(law))
    cell, fraction = bits >> 20, (bits >> 12) & 255
    low, high = table[cell], table[cell + 1]
    return low + (((high - low) * fraction + 128) >> 8)


def table_of(law: Law) -> np.ndarray:
    """`uint32 [4097]`: the inverse distribution function of a law, on the grid of λ.

    Raises:
        TypeError, ValueError: the quantiles of the law are no such table.
    """
    return _quantiles(identity(law), law)


@functools.lru_cache(maxsize=256)
def _quantiles(_: Hashable, law: Law) -> np.ndarray:
    """The table of a law; its identity is part of the key, since 1, 1.0 and True are equal."""
    if type(law) is not Beta:
        return _on_grid(law, law.quantile, POINTS)
    # Each half from its own end, where floats are finer.
    lower, upper = (
        _on_grid(law, half.quantile, POINTS[:2049]) for half in (law, Beta(law.b, law.a))
    )
    # Where the halves meet, each is rounded for itself.
    return np.maximum.accumulate(np.concatenate([lower, ONE - upper[-2::-1]]))


def _on_grid(law: Law, quantile: Callable[[np.ndarray], Any], p: np.ndarray) -> np.ndarray:
    """Quantiles in units of 2⁻²⁴, after checking them; the law is named in errors."""
    caller, values = type(law).__name__, quantile(p.copy())
    got, fix = f"{quote(law)}.quantile(p) gives", "write it with NumPy, for p as an array"
    is_array = isinstance(values, np.ndarray) and values.dtype.kind in "fiu"
    if not is_array or values.shape != p.shape:
        expected = f"NumPy's float64 {list(p.shape)}"
        fail(TypeError, caller, f"{got} {describe(values)}", expected, fix)
    grid = np.rint(values.astype(np.float64) * ONE)
    expected = "numbers from 0 to 1 that do not fall"
    fix = "correct it, or its parameters; a λ that does not vary is gm.Uniform(x, x)"
    if not ((grid >= 0) & (grid <= ONE)).all():  # NaN is neither
        got += f" numbers from {values.min()} to {values.max()}"
        fail(ValueError, caller, got, expected, fix)
    falls = np.diff(grid)
    if falls.min() < -1:  # less is rounding
        first = int(falls.argmin())
        got += f" {values[first]} for p={p[first]}, and {values[first + 1]} for p={p[first + 1]}"
        fail(ValueError, caller, got, expected, fix)
    if type(law) is not Beta and not np.array_equal(values, quantile(p.copy())):
        fix = "leave random numbers out: p is all that λ depends on"
        fail(ValueError, caller, f"{got} other numbers each time", "the same", fix)
    return np.maximum.accumulate(grid).astype(np.uint32)
