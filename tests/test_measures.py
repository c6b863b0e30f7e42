"""What to measure on mixed labels, against plain NumPy."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import Rng, over
from jax.sharding import AxisType
from test_settings import SETTINGS, setting

import grain_mix as gm

SHAPES = [(7,), (6, 7), (2, 3, 5), (0, 4)]


def soft_labels(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    """At most three classes each, so that most of many classes weigh nothing."""
    weights = rng.dirichlet([0.5] * 3, shape[:-1])
    ids = rng.integers(shape[-1], size=(*shape[:-1], 3))
    return np.asarray((np.eye(shape[-1])[ids] * weights[..., None]).sum(-2), np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("compiled", [False, True])
def test_accuracy(
    shape: tuple[int, ...], dtype: str, place: Callable[..., Any], compiled: bool, rng: Rng
) -> None:
    logits = rng.normal(size=shape).astype(jnp.dtype(dtype))
    labels = soft_labels(rng, shape)
    function = jax.jit(gm.mixed_accuracy) if compiled else gm.mixed_accuracy
    out = function(place(logits), place(labels))
    expected = np.empty(shape[:-1], np.float32)
    for at in np.ndindex(shape[:-1]):
        expected[at] = labels[at][max(range(shape[-1]), key=lambda k: logits[at][k])]
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, expected)


def test_accuracy_is_the_usual_one_without_mixing(rng: Rng) -> None:
    logits, ids = rng.normal(size=(50, 10)), rng.integers(10, size=50)
    for dtype in (np.float32, np.int32, bool):
        out = gm.mixed_accuracy(logits, np.eye(10, dtype=dtype)[ids])
        np.testing.assert_array_equal(out, logits.argmax(1) == ids)


def test_accuracy_of_the_two_classes(rng: Rng) -> None:
    """As others write it: λ where the own class was named, 1 - λ where the partner's was."""
    batch = {
        "image": rng.integers(0, 256, (64, 5, 4, 3), np.uint8),
        "label": rng.integers(3, size=64),
        "mix_seed": rng.integers(2**32, size=64, dtype=np.uint32),
    }
    mix = gm.MixBatch(num_classes=3)
    draw, logits = mix.draw(batch["mix_seed"], batch["image"].shape), rng.normal(size=(64, 3))
    own, partner = batch["label"], batch["label"][np.asarray(draw.partner)]
    named, lam = logits.argmax(1), np.asarray(draw.lam)
    expected = lam * (named == own) + (1 - lam) * (named == partner)
    labels = mix.map(batch)["label"]
    np.testing.assert_allclose(gm.mixed_accuracy(logits, labels), expected, atol=1e-6)
    # Who names the heavier class reaches the largest weights.
    np.testing.assert_array_equal(gm.mixed_accuracy(labels, labels), labels.max(1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("compiled", [False, True])
def test_entropy(shape: tuple[int, ...], compiled: bool, rng: Rng) -> None:
    labels = soft_labels(rng, shape)
    out = (jax.jit(gm.label_entropy) if compiled else gm.label_entropy)(labels)
    expected = np.zeros(shape[:-1])
    for at in np.ndindex(shape[:-1]):
        expected[at] = -sum(y * math.log(y) for y in labels[at].tolist() if y > 0)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_loss_above_the_entropy(rng: Rng) -> None:
    labels, logits = soft_labels(rng, (40, 9)), rng.normal(size=(40, 9)).astype(np.float32)

    def excess(logits: Any) -> Any:
        return optax.softmax_cross_entropy(logits, labels) - gm.label_entropy(labels)

    # Above 0, but for rounding, for any network; 0 for one that knows all weights.
    assert (excess(logits) > -1e-5).all()
    np.testing.assert_allclose(excess(np.log(labels + 1e-9)), 0, atol=1e-5)
    plain = jax.grad(lambda x: optax.softmax_cross_entropy(x, labels).sum())(logits)
    np.testing.assert_allclose(jax.grad(lambda x: excess(x).sum())(logits), plain, rtol=1e-6)


def test_labels_of_one_class_have_no_entropy(rng: Rng) -> None:
    out = gm.label_entropy(np.eye(6)[rng.integers(6, size=20)])
    np.testing.assert_array_equal(out, np.zeros(20))
    assert not np.signbit(out).any()  # and no -0.0 in a log


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_over_devices(axis_type: AxisType, rng: Rng) -> None:
    labels, logits = soft_labels(rng, (16, 5)), rng.normal(size=(16, 5)).astype(np.float32)
    placed = jax.device_put((logits, labels), over(4, axis_type))
    for function, args, others in (
        (gm.mixed_accuracy, placed, (logits, labels)),
        (gm.label_entropy, placed[1:], (labels,)),
    ):
        out = function(*args)
        assert len(out.sharding.device_set) == 4
        np.testing.assert_array_equal(out, function(*others))
        np.testing.assert_array_equal(jax.jit(function)(*args), out)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str, rng: Rng) -> None:
    labels = soft_labels(rng, (16, 5))
    logits = rng.normal(size=(16, 5)).astype(jnp.bfloat16)
    expected = jax.device_get((gm.mixed_accuracy(logits, labels), gm.label_entropy(labels)))
    with setting(name):
        out = jax.device_get((gm.mixed_accuracy(logits, labels), gm.label_entropy(labels)))
    for got, wanted in zip(out, expected, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, wanted)


def test_a_mesh_of_other_devices(rng: Rng) -> None:
    """Arrays stay where they are, whatever mesh is set for other code."""
    labels = soft_labels(rng, (8, 5))
    args = jax.device_put((rng.normal(size=(8, 5)), labels), jax.devices()[0])
    expected = gm.mixed_accuracy(*args), gm.label_entropy(args[1])
    with jax.set_mesh(jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[4:])):
        out = gm.mixed_accuracy(*args), gm.label_entropy(args[1])
    for got, wanted in zip(out, expected, strict=True):
        assert got.devices() == {jax.devices()[0]}
        np.testing.assert_array_equal(got, wanted)


FLOATS, IDS = np.zeros((8, 5), np.float32), np.zeros(8, np.int32)
SAME, FIX = "expected the same shape [..., K]", "pass the soft labels of the same records"


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (FLOATS, IDS, f"int32 [8]; {SAME}; make class ids one-hot, jax.nn.one_hot(labels, 5)"),
        (
            FLOATS,
            FLOATS[:, :2],
            f"float32 [8, 2]; {SAME}; pass the soft labels of the same records",
        ),
        (IDS, FLOATS, f"float32 [8, 5]; {SAME}; pass the soft labels of the same records"),
    ],
)
def test_shapes_that_differ(logits: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match="logits is") as caught:
        gm.mixed_accuracy(logits, labels)
    came = f"mixed_accuracy: logits is {logits.dtype} {list(logits.shape)} and labels is "
    assert str(caught.value) == came + message


@pytest.mark.parametrize(
    ("labels", "error", "came", "fix"),
    [
        ([[0.5, 0.5]], TypeError, "a list", "pass np.asarray(labels)"),
        (np.array(["cat", "dog"]), TypeError, "<U3 [2]", "pass floats"),
        (np.float32(1), ValueError, "float32 []", "let the last axis be the classes"),
        (FLOATS[:, :0], ValueError, "float32 [8, 0]", "let the last axis be the classes"),
    ],
)
@pytest.mark.parametrize("name", ["mixed_accuracy", "label_entropy"])
def test_labels_that_are_none(
    name: str, labels: Any, error: type[Exception], came: str, fix: str
) -> None:
    args = (labels,) if name == "label_entropy" else (FLOATS, labels)
    with pytest.raises(error) as caught:
        getattr(gm, name)(*args)
    assert str(caught.value) == f"{name}: labels is {came}; expected numbers [..., K]; {fix}"
