"""What to measure on mixed batches, whose labels are more than one class."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr
from jax.typing import ArrayLike

from grain_mix import _sharding
from grain_mix._dtypes import FLOATS, INTEGERS, native_fix
from grain_mix._errors import describe, fail, is_array
from grain_mix._fields import check_array
from grain_mix._guards import into_jax


def mixed_accuracy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The accuracy on mixed labels: `labels[argmax(logits)]`, the weight of the predicted class.

    For two classes with weights λ and 1 - λ it is λ, 1 - λ or 0. For labels of one class it is the
    usual accuracy, 1 or 0. Take the mean over records. The best that it can be is
    `labels.max(-1).mean()`, for a network that always names the heavier class.

    Args:
        logits: `[..., K]`, or probabilities; of equal largest ones the first counts.
        labels: `[..., K]`, numbers, soft labels as the transforms return them.

    Returns:
        `float32 [...]`, a value for each record.

    Raises:
        TypeError: something else than arrays of numbers.
        ValueError: shapes that differ, or without a class.

    So do mixup's authors count: https://github.com/facebookresearch/mixup-cifar10/pull/7

    >>> logits = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
    >>> labels = np.array([[0.75, 0.25, 0.0], [0.75, 0.25, 0.0], [1.0, 0.0, 0.0]])
    >>> mixed_accuracy(logits, labels).tolist()
    [0.75, 0.25, 0.0]
    """
    _check("mixed_accuracy", "labels", labels)
    _check("mixed_accuracy", "logits", logits)
    got, wanted = np.shape(logits), np.shape(labels)
    if got != wanted:
        both = f"logits is {describe(logits)} and labels is {describe(labels)}"
        fix = "pass the soft labels of the same records"
        if wanted == got[:-1]:
            fix = f"make class ids one-hot, jax.nn.one_hot(labels, {got[-1]})"
        fail(ValueError, "mixed_accuracy", both, "the same shape [..., K]", fix)
    with into_jax():
        weights: jax.Array = _weight_of_largest(*map(_sharding.as_array, (logits, labels)))
    return weights


def label_entropy(labels: ArrayLike) -> jax.Array:
    """The entropy of soft labels, `-Σ y·log(y)`, below which no cross-entropy can fall.

    So `cross-entropy - label_entropy(labels)` can reach 0, where the network knows all weights. It
    is the Kullback–Leibler divergence from the network's answer to the label. It has the same
    gradient, as labels do not depend on the network.

    Args:
        labels: `[..., K]`, numbers, soft labels as the transforms return them.

    Returns:
        `float32 [...]`, a value for each record, in nats: 0 for one class, log 2 for two halves.

    Raises:
        TypeError: something else than an array of numbers.
        ValueError: no axis of classes.

    >>> labels = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]])
    >>> print(label_entropy(labels) / np.log(2))
    [0.  1.  1.5]
    """
    _check("label_entropy", "labels", labels)
    with into_jax():
        entropy: jax.Array = _entropy(_sharding.as_array(labels))
    return entropy


@jax.jit
def _weight_of_largest(logits: jax.Array, labels: jax.Array) -> jax.Array:
    named = jax.nn.one_hot(logits.argmax(-1), labels.shape[-1], dtype=bool)
    return jnp.where(named, labels.astype(jnp.float32), jnp.float32(0)).sum(-1)


@jax.jit
def _entropy(labels: jax.Array) -> jax.Array:
    return entr(labels.astype(jnp.float32)).sum(-1)


def _check(caller: str, field: str, value: Any) -> None:
    """Checks that it is an array of numbers whose last axis is that of the classes."""
    expected = "numbers [..., K]"
    if not is_array(value):
        got = f"{field} is {describe(value)}"
        fail(TypeError, caller, got, expected, f"pass np.asarray({field})")
    check_array(caller, field, value)
    got = f"{field} is {describe(value)}"
    if str(value.dtype) not in (*INTEGERS, *FLOATS, "bool"):
        fail(TypeError, caller, got, expected, native_fix(value.dtype) or "pass floats")
    if value.shape[-1:] in ((), (0,)):
        fix = "let the last axis be the classes"
        fail(ValueError, caller, got, expected, fix)
