"""The law of λ, the record's own weight, from uniform random bits."""

import dataclasses
import functools
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix._errors import explains_mistakes, fail, quote
from grain_mix._fixed_point import ONE


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class Beta:
    """λ ~ Beta(a, b), the law of a record's own weight, in the place of an `alpha`.

    The mean of λ is a / (a + b). `Beta(a, a)` draws the same bits as `alpha=a`. For CutMix it is
    the law before the box is rounded and clipped.

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

    a: float
    b: float

    def __post_init__(self) -> None:
        for field in ("a", "b"):
            object.__setattr__(self, field, check_number("Beta", field, getattr(self, field)))


def check_number(
    where: str, field: str, value: Any, high: float = math.inf, fix: str = "pass one like 0.2"
) -> float:
    """A number in [0, high], or in (0, ∞) if `high` is infinite."""
    came = f"{field}={quote(value)}"
    expected = "a finite number above 0" if math.isinf(high) else f"a number from 0 to {high:g}"
    if not isinstance(value, numbers.Real) or isinstance(value, bool | np.bool_):
        fail(TypeError, where, came, expected, fix)
    try:
        number = float(value)
    except OverflowError:  # an int or a fraction beyond all floats
        number = math.nan
    if not (0 < number < high if math.isinf(high) else 0 <= number <= high):  # NaN is neither
        fail(ValueError, where, came, expected, fix)
    return number


def check_law(where: str, field: str, value: Any) -> float | Beta:
    """A number α, which is Beta(α, α), or a `Beta`."""
    if isinstance(value, Beta):
        return value
    off = {"mixup_alpha": "CutMixBatch", "cutmix_alpha": "MixUpBatch"}.get(field, "prob=0")
    fix = f"pass one like 0.2, or gm.Beta(a, b); to do without, use {off}"
    if isinstance(value, tuple | list) and len(value) == 2:
        fix = f"write gm.Beta({value[0]!r}, {value[1]!r}) if you mean Beta's two parameters"
    return check_number(where, field, value, fix=fix)


def law_of(alpha: float | Beta) -> Beta:
    """`Beta(α, α)` for a number α; a `Beta` as it is."""
    return alpha if isinstance(alpha, Beta) else Beta(alpha, alpha)


def draw(bits: jax.Array, law: Beta) -> jax.Array:
    """λ as `uint32 [B]` multiples of 2⁻²⁴.

    Linear between the points of a table: no loop (rejection sampling needs one, and a loop whose
    length depends on data makes a GPU's host wait), off by less than 1/4096 of probability.
    """
    table = jnp.asarray(_quantiles(law.a, law.b))
    cell, fraction = bits >> 20, (bits >> 12) & 255
    low, high = table[cell], table[cell + 1]
    return low + (((high - low) * fraction + 128) >> 8)


@functools.lru_cache(maxsize=256)
def _quantiles(a: float, b: float) -> np.ndarray:
    """The inverse distribution function of Beta(a, b) at 4097 points, on the grid of λ."""
    lower, upper = _lower_quantiles(a, b), ONE - _lower_quantiles(b, a)
    both = np.concatenate([lower, upper[-2::-1]])
    # Where the halves meet, each is rounded for itself.
    return np.maximum.accumulate(both)


def _lower_quantiles(a: float, b: float) -> np.ndarray:
    """Those of the lower half, which are the precise ones."""
    from scipy.special import betaincinv  # comes with JAX; costs 0.2 s, so only when needed

    # Beyond these the table stays as it is, while SciPy fails near the ends of all floats.
    a, b = (min(max(x, 1e-30), 1e30) for x in (a, b))
    # Not to 0, where a large α would make outliers of a first cell that spans half of all λ.
    quantiles = np.maximum(np.arange(2049) / 4096, 2.0**-14)
    table: np.ndarray = np.rint(betaincinv(a, b, quantiles) * ONE).astype(np.uint32)
    return table
