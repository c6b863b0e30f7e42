"""Weighted means and choices, bit by bit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import make_batch
from reference import mixup_one

import grain_mix as gm
from grain_mix import _formula, _weigh


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
def test_halves_are_rounded_up(dtype: str, rng: np.random.Generator) -> None:
    """Ties, which need a λ of few bits: `⌊x + 1/2⌋`, also below zero."""
    info = np.iinfo(dtype)
    images = rng.integers(info.min, info.max, (64, 50), dtype, endpoint=True)
    lam = rng.choice([0.5, 0.25, 0.75, 1 / 256, 127 / 128], 64).astype(np.float32)
    mixed = gm.mixup(images, lam, np.arange(64) ^ 1)
    expected = [mixup_one(images[i], images[i ^ 1], lam[i]) for i in range(64)]
    np.testing.assert_array_equal(mixed, expected)
    low, high = (0, 3) if info.min == 0 else (-3, 0)
    halves = gm.mixup(np.array([[low], [high]], dtype), np.float32([0.5, 0.5]), np.array([1, 0]))
    assert halves.tolist() == [[2], [2]] if info.min == 0 else [[-1], [-1]]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32])
def test_every_bit_of_a_nan_is_copied(dtype: Any, rng: np.random.Generator) -> None:
    """All bits are kept, also those of NaNs, by CutMix and in unmixed records."""
    bits = np.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}")
    some = rng.integers(0, np.iinfo(bits).max, (4, 16, 16, 3), bits, endpoint=True)
    some[:, ::2] |= np.array(np.inf, dtype).view(bits)  # NaNs of all kinds
    images = some.view(dtype)
    seeds = rng.integers(2**32, size=4, dtype=np.uint32)
    batch = {"image": images, "mix_seed": seeds}
    transform = gm.CutMixBatch(label_key=None, minmax=(0.3, 0.8))
    mixed = transform.map(batch)["image"].view(bits)
    box = np.asarray(transform.draw(seeds, images.shape).box)
    for i in range(4):
        expected = some[i].copy()
        rows, columns = (slice(*bounds) for bounds in box[i])
        expected[rows, columns] = some[i ^ 1][rows, columns]
        np.testing.assert_array_equal(mixed[i], expected)
    unmixed = gm.MixUpBatch(label_key=None, prob=0).map(batch)["image"].view(bits)
    np.testing.assert_array_equal(unmixed, some)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32])
def test_unmixed_records_keep_every_bit(dtype: Any, rng: np.random.Generator) -> None:
    """Also beside a partner whose NaN would make λ·x + 0·NaN a NaN."""
    images = rng.normal(size=(64, 4, 4, 3)).astype(dtype)
    images[::2] = np.nan
    images[1::4] = np.inf
    batch = make_batch(rng, 64, image=images)
    for kind in (gm.MixUpBatch, gm.CutMixBatch, gm.MixBatch):
        transform = kind(num_classes=10, prob=0.5)
        unmixed = np.asarray(transform.draw(batch["mix_seed"], images.shape).lam) == 1
        assert 0 < unmixed.sum() < 64
        mixed = transform.map(batch)
        assert mixed["image"][unmixed].tobytes() == images[unmixed].tobytes()
        np.testing.assert_array_equal(mixed["label"][unmixed].max(axis=1), 1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32])
def test_gradients_go_to_the_pixels_that_are_shown(dtype: Any, rng: np.random.Generator) -> None:
    inside = rng.random((5, 7)) < 0.5
    x, y = (jnp.asarray(rng.normal(size=(5, 7)), dtype) for _ in range(2))
    to_x, to_y = jax.grad(lambda x, y: _weigh.select(inside, y, x).sum(), (0, 1))(x, y)
    np.testing.assert_array_equal(to_x, ~inside)
    np.testing.assert_array_equal(to_y, inside)


@pytest.mark.parametrize("axes", [(1,), (1, 2), (2, 1), (1, 3)])
def test_rows_too_long_for_int32(
    axes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """From 2³¹ entries on, a row is not merged with what comes after it; here from 5 on."""
    x = jnp.asarray(rng.integers(0, 256, (4, 6, 5, 4, 3), np.uint8))
    box = np.sort(rng.integers(0, 5, (4, len(axes), 2)), axis=-1).astype(np.int32)
    lam = rng.integers(0, 2**24, 4).astype(np.float32) / 2**24
    expected = _formula.blend(x, jnp.asarray(lam), jnp.asarray(box), axes)
    monkeypatch.setattr(_formula, "LONGEST_ROW", 5)
    np.testing.assert_array_equal(
        _formula.blend(x, jnp.asarray(lam), jnp.asarray(box), axes), expected
    )
    # A long video, by its shape alone: no position in the program is beyond an int32.
    monkeypatch.undo()
    shape = (2, 346, 1080, 1920, 3)
    program = jax.make_jaxpr(lambda x, box: _formula.blend(x, None, box, (1,)))(
        jax.ShapeDtypeStruct(shape, jnp.uint8), jax.ShapeDtypeStruct((2, 1, 2), jnp.int32)
    )
    iotas = [e for e in all_equations(program.jaxpr) if e.primitive.name == "iota"]
    assert iotas
    assert all(max(e.outvars[0].aval.shape) < 2**31 for e in iotas)


def all_equations(jaxpr: Any) -> Any:
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if hasattr(inner, "jaxpr"):
                    yield from all_equations(inner.jaxpr)
