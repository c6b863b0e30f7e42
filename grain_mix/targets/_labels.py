"""Kinds that speak of the whole image, and so weigh as its pixels do."""

import dataclasses
import functools
from dataclasses import field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix._arithmetic import exact_mean, multiply_add
from grain_mix._draw import Draw
from grain_mix._dtypes import (
    WIDE,
    check_copied,
    check_finite,
    check_narrow,
    is_float,
    is_integer,
    native_fix,
)
from grain_mix._errors import describe, explains_mistakes, fail, warn_once
from grain_mix._parameters import (
    CLASSES,
    MOST_CLASSES,
    SMOOTHING,
    YES_OR_NO,
    checked_by,
    optional,
)
from grain_mix.targets._target import Sources, Space, Target, values

MINUS_ONE = (
    "the label {name!r} has -1 beside zeros and ones, and numbers are averaged. If -1 stands for "
    "an uncertain or a missing label, give it a probability, keep it out of the loss, and pass "
    "targets={{{name!r}: gm.MultiHot()}}, which refuses -1. If it is a number, pass "
    "targets={{{name!r}: gm.Soft()}}."
)


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class OneHot(Target):
    """Class ids, which become one-hot and are averaged with the label weights.

    In: integers `[B]` or `[B, 1]`, from 0 to below K. Out: `float32 [B, K]`, λ at the own class and
    1-λ at the partner's. Under `jit`, where values are not known, an id out of range is not noticed
    and becomes zeros.

    Args:
        num_classes: the number of classes, K.
        smoothing: ε in [0, 1]: 1 - ε + ε/K and ε/K take the places of 1 and 0.

    >>> import grain_mix as gm
    >>> targets = {"breed": gm.OneHot(120), "coat": gm.OneHot(4, smoothing=0.1)}
    >>> gm.MixUpBatch(targets=targets).targets["coat"]
    OneHot(num_classes=4, smoothing=0.1)
    """

    num_classes: int = field(metadata=checked_by(CLASSES))
    _: dataclasses.KW_ONLY
    smoothing: float = field(default=0.0, metadata=checked_by(SMOOTHING))

    def check(self, name: str, array: Any, space: Space) -> None:
        """Class ids in range."""
        check_ids("OneHot", name, array, self.num_classes, space)

    def mix_batch(self, sources: Sources, draw: Draw, space: Space) -> Any:
        """The share of each source at its class."""
        k = self.num_classes
        ids = [x.reshape(-1).astype(jnp.int32) for x in values(sources)]
        mixed = mean([jax.nn.one_hot(x, k, dtype=jnp.bool_) for x in ids], draw)
        return smoothed(mixed, self.smoothing, k)


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class MultiHot(Target):
    """Any number of classes for each image: zeros and ones, or probabilities, for each class.

    In: numbers in [0, 1] of any dtype, `[B, K]`; where the transform cuts nothing also
    `[B, ..., K]`. Out: `float32`, the same shape, averaged with the label weights. Under `jit`,
    where values are not known, numbers outside [0, 1], such as -1 for a missing label, are not
    noticed.

    Args:
        smoothing: ε in [0, 1], towards 1/2: `y·(1-ε) + ε/2`, as in timm's `multi_label`.
        union: `True`: not the mean, but the larger of those whose weight is above 0. What is in
            either image is in the mixed one, as in audio tagging.

    >>> import grain_mix as gm
    >>> batch = {
    ...     "image": np.zeros((2, 16000), np.float32),
    ...     "label": np.array([[1, 0, 0], [0, 1, 0]]),
    ...     "mix_seed": np.array([1, 2], np.uint32),
    ... }
    >>> gm.MixUpBatch(targets={"label": gm.MultiHot(union=True)}).map(batch)["label"].tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]
    """

    _: dataclasses.KW_ONLY
    smoothing: float = field(default=0.0, metadata=checked_by(SMOOTHING))
    union: bool = field(default=False, metadata=checked_by(YES_OR_NO))

    def check(self, name: str, array: Any, space: Space) -> None:
        """Numbers from 0 to 1 for each class."""
        if isinstance(array, np.ndarray):
            if array.dtype.kind != "b" and not (array.min() >= 0 and array.max() <= 1):
                got = f"{name!r} from {array.min()} to {array.max()}"
                fix = (
                    "for class ids use OneHot or Sparse; give what is uncertain or missing a "
                    "probability, and keep out of the loss what must not count"
                )
                fail(ValueError, "MultiHot", got, "0, 1 or probabilities", fix)
            return
        check_numbers("MultiHot", name, array)
        got = f"{name!r} is {describe(array)}"
        if len(array.shape) < 2 or 0 in array.shape:
            fix = "for class ids [B] use OneHot; make lists of ids zeros and ones for each class"
            fail(ValueError, "MultiHot", got, "[B, K]", fix)
        if len(array.shape) > 2 and space.has_pixel_weights:
            fix = "for numbers at each position use ValueMap, for class ids LabelMap"
            fail(ValueError, "MultiHot", got, "[B, K] where an image is cut", fix)

    def mix_batch(self, sources: Sources, draw: Draw, space: Space) -> Any:
        """The mean, or the largest."""
        xs = values(sources)
        if not self.union:
            return smoothed(mean(xs, draw), self.smoothing, 2)
        shares = shares_along(draw, xs[0])
        shown = [
            jnp.where(w > 0, x.astype(jnp.float32), np.float32(0))
            for x, w in zip(xs, shares, strict=True)
        ]
        # As in a mean, NaN tells of a weight map outside [0, 1].
        is_wrong = jnp.isnan(shares[0])
        union = jnp.where(is_wrong, shares[0], functools.reduce(jnp.maximum, shown))
        return smoothed(union, self.smoothing, 2)


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class Soft(Target):
    """Floats that speak of the whole image: soft labels, regression, a teacher's probabilities.

    In: floats `[B, ...]`. Out: `float32`, averaged with the label weights.

    Args:
        smoothing: ε in [0, 1], towards 1/K, for `[B, K]`: `y·(1-ε) + ε/K`.

    >>> import grain_mix as gm
    >>> transform = gm.MixUpBatch(targets={"age": gm.Soft(), "label": gm.OneHot(10)})
    """

    _: dataclasses.KW_ONLY
    smoothing: float = field(default=0.0, metadata=checked_by(SMOOTHING))

    def check(self, name: str, array: Any, space: Space) -> None:
        """Floats."""
        if isinstance(array, np.ndarray):
            if str(array.dtype) in WIDE:
                check_finite("Soft", name, array)
            return
        check_numbers("Soft", name, array)
        got = f"{name!r} is {describe(array)}"
        if not is_float(array.dtype):
            fix = "for class ids use OneHot or Sparse, for zeros and ones MultiHot; cast to float32"
            fail(TypeError, "Soft", got, "floats", f"{fix} only where a mean means something")
        if 0 in array.shape:
            fail(ValueError, "Soft", got, "at least one number", "drop the field before Batch")
        if self.smoothing and len(array.shape) != 2:
            got += f" with smoothing={self.smoothing}"
            fix = "pass smoothing=0, or labels [B, K]; for class ids use OneHot"
            fail(ValueError, "Soft", got, "[B, K]", fix)

    def mix_batch(self, sources: Sources, draw: Draw, space: Space) -> Any:
        """The mean."""
        mixed = mean(values(sources), draw)
        return smoothed(mixed, self.smoothing, mixed.shape[-1] if self.smoothing else 1)


@dataclasses.dataclass(frozen=True)
class Ready(Soft):
    """What `label_key` means without `num_classes`: labels `[B, K]` that are soft already.

    Floats as `Soft`, and integers that are zeros and ones.
    """

    def check(self, name: str, array: Any, space: Space) -> None:
        """Rows that have a mean, and nothing else that looks like it."""
        got, caller = f"{name!r} is {describe(array)}", "label_key"
        if isinstance(array, np.ndarray):
            if is_integer(array.dtype) and not ((array == 0) | (array == 1)).all():
                got = f"{name!r} has integers from {array.min()} to {array.max()}"
                fix = (
                    "for class ids pass num_classes; lists of ids must become zeros and ones, ids "
                )
                fix += "of several heads a field each; say what is missing with targets= and "
                fix += "gm.MultiHot() or gm.Soft()"
                fail(ValueError, caller, got, "zeros and ones", fix)
            sums = array.sum(-1, dtype=np.float64) if self.smoothing else np.ones(1)
            rounding = float(jnp.finfo(array.dtype).eps) if is_float(array.dtype) else 0.0
            if np.abs(sums - 1).max() > max(1e-3, rounding):
                got = f"{name!r} has rows with sums from {sums.min():g} to {sums.max():g}"
                fix = "for several classes in one image pass targets="
                fix += f"{{{name!r}: gm.MultiHot(smoothing={self.smoothing})}}"
                fail(ValueError, caller, f"{got}, with label_smoothing", "sums of 1", fix)
            if is_float(array.dtype):
                super().check(name, array, space)
                if array.min() == -1 and ((array == 0) | (abs(array) == 1)).all():
                    warn_once("-1", MINUS_ONE.format(name=name))
            return
        check_numbers(caller, name, array)
        check_no_map(caller, name, array, space)
        expected = "class ids with num_classes, or soft labels [B, K]"
        if len(array.shape) < 2:
            fix = "for class ids pass num_classes=K"
            if is_float(array.dtype):
                fix = f"for other targets pass targets={{{name!r}: gm.Soft()}}; for class ids cast "
                fix += "to integers and pass num_classes=K"
            fail(ValueError, caller, got, expected, fix)
        if len(array.shape) > 2 or 0 in array.shape:
            fix = f"say what it is: targets={{{name!r}: gm.Soft()}} averages over the whole image, "
            fix += "gm.ValueMap() holds numbers for each position, gm.LabelMap() class ids"
            fail(ValueError, caller, got, expected, fix)
        if not is_float(array.dtype) and array.shape[1] == 1:
            fix = f"for class ids pass num_classes=K, else targets={{{name!r}: gm.MultiHot()}}"
            fail(ValueError, caller, got, expected, fix)
        if is_integer(array.dtype) and isinstance(array, jax.Array):
            fix = f"say what they are: targets={{{name!r}: gm.MultiHot()}} for zeros and ones, or "
            fix += "cast to float32 what is gm.Soft()"
            fail(TypeError, caller, f"{got}, whose values are not known here", "floats", fix)


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class Sparse(Target):
    """Class ids as pairs with weights, for K too large for `[B, K]`.

    In: integers `[B]` or `[B, 1]`. Out: `int32 [B, 2]`, own and partner's, and `<name>_weight`
    `float32 [B, 2]`, λ and 1-λ.

    Args:
        num_classes: K, which class ids must be below; `None`: they are not compared.

    >>> import grain_mix as gm
    >>> batch = {
    ...     "image": np.zeros((2, 8, 8, 3), np.uint8),
    ...     "label": np.array([7, 20000]),
    ...     "mix_seed": np.array([1, 2], np.uint32),
    ... }
    >>> mixed = gm.MixUpBatch(targets={"label": gm.Sparse(21841)}).map(batch)
    >>> mixed["label"].tolist(), mixed["label_weight"].shape
    ([[7, 20000], [20000, 7]], (2, 2))
    """

    num_classes: int | None = field(default=None, metadata=checked_by(optional(CLASSES)))
    adds: ClassVar[tuple[str, ...]] = ("_weight",)

    def check(self, name: str, array: Any, space: Space) -> None:
        """Class ids in range."""
        check_ids("Sparse", name, array, self.num_classes or MOST_CLASSES + 1, space)

    def mix_batch(self, sources: Sources, draw: Draw, space: Space) -> Any:
        """The class ids of all sources, and their shares."""
        ids = [x.reshape(-1).astype(jnp.int32) for x in values(sources)]
        return {"": jnp.stack(ids, axis=1), "_weight": draw.shares}


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class Stacked(Target):
    """The values of all sources, with their weights: captions, token ids, sample weights, lengths.

    In: any numbers `[B, ...]`. Out: `[B, k, ...]`, the record's own first, and `<name>_weight`
    `float32 [B, k]`, their shares: λ and 1-λ for a pair. JAX holds 64 bits in 32, unless x64 is on:
    floats are rounded then, and values that would change or become equal are errors.

    >>> import grain_mix as gm
    >>> transform = gm.CutMixBatch(num_classes=10, minmax=(0.2, 0.8))
    >>> transform = gm.CutMixBatch(targets={"label": gm.OneHot(10), "caption": gm.Stacked()})
    """

    adds: ClassVar[tuple[str, ...]] = ("_weight",)

    def check(self, name: str, array: Any, space: Space) -> None:
        """Numbers that JAX holds."""
        if isinstance(array, np.ndarray):
            check_narrow("Stacked", name, array)
        else:
            check_copied("Stacked", name, array)

    def mix_batch(self, sources: Sources, draw: Draw, space: Space) -> Any:
        """The values of all sources, and their shares."""
        return {"": jnp.stack(values(sources), axis=1), "_weight": draw.shares}


def shares_along(draw: Draw, x: jax.Array) -> list[jax.Array]:
    """The share of each source, to broadcast against `x`."""
    shape = -1, *[1] * (x.ndim - 1)
    return [draw.shares[:, r].reshape(shape) for r in range(draw.shares.shape[1])]


def mean(xs: list[jax.Array], draw: Draw) -> jax.Array:
    """`Σ w_r·x_r` in `float32`, with the shares as weights."""
    xs = [x.astype(jnp.float32) for x in xs]
    return exact_mean(xs, shares_along(draw, xs[0]))


def smoothed(mixed: jax.Array, smoothing: float, classes: int) -> jax.Array:
    """`y·(1-ε) + ε/K`.

    Smoothing and mixing are both affine, so their order is free. In this order no compiler can
    round differently for another size of the batch.
    """
    if not smoothing:
        return mixed
    return multiply_add(mixed, jnp.float32(1 - smoothing), jnp.float32(smoothing / classes))


# --- checks -----------------------------------------------------------------------------------


def check_numbers(caller: str, name: str, array: Any) -> None:
    """Checks that a label consists of numbers."""
    if not (is_integer(array.dtype) or is_float(array.dtype) or str(array.dtype) == "bool"):
        fix = native_fix(array.dtype) or "encode it as numbers, or leave it out"
        if array.dtype.kind == "c":
            fix = "convert it to magnitudes, or to real and imaginary parts, [..., 2]"
        fail(TypeError, caller, f"{name!r} is {describe(array)}", "numbers", fix)


def check_ids(caller: str, name: str, array: Any, count: int, space: Space) -> None:
    """Checks that a label holds class ids, from 0 to below `count`."""
    if isinstance(array, np.ndarray):
        # As unsigned, so that one pass tells of negative ones too, which are beyond all others.
        beyond = min(count, np.iinfo(array.dtype).max + 1)
        if array.view(f"u{array.dtype.itemsize}").max() < beyond:
            return
        fix = "raise num_classes, or fix the labels (counted from 1? missing ones marked -1?)"
        got = f"{name!r} from {array.min()} to {array.max()}"
        fail(ValueError, caller, got, f"class ids, 0 <= {name} < {count}", fix)
    check_numbers(caller, name, array)
    got, expected = f"{name!r} is {describe(array)}", "class ids, integers [B] or [B, 1]"
    if is_integer(array.dtype) and array.shape[1:] in ((), (1,)):
        return
    check_no_map(caller, name, array, space)
    if not is_integer(array.dtype):
        fix = "labels that are soft already are gm.Soft(), zeros and ones gm.MultiHot(): say so "
        fix += f"with targets={{{name!r}: ...}}, or leave num_classes out for [B, K]"
        if len(array.shape) == 1:
            fix = f"cast class ids to integers; other numbers are targets={{{name!r}: gm.Soft()}}"
        fail(TypeError, caller, got, expected, fix)
    fix = (
        "class ids of several heads are a field each, label[:, 0] and so on; for several class ids "
    )
    fix += (
        "of one head make them zeros and ones [B, K], as gm.MultiHot() takes them; class ids for "
    )
    fix += "each position are gm.LabelMap()"
    fail(ValueError, caller, got, expected, fix)


def check_no_map(caller: str, name: str, array: Any, space: Space) -> None:
    """Refuses what has the image's lengths: it speaks of positions, not of the whole image."""
    lengths = space.lengths
    if space.has_pixel_weights and lengths and array.shape[1 : 1 + len(lengths)] == lengths:
        fix = (
            f"numbers for each position are targets={{{name!r}: gm.ValueMap()}}, class ids "
            "gm.LabelMap(); what speaks of the whole image and has this shape by chance gm.Soft()"
        )
        got = f"{name!r} is {describe(array)}, as long as the image along the box"
        fail(ValueError, caller, got, "a label of the whole image", fix)
