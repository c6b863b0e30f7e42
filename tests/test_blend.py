"""What comes out of mixing, compared with a reference written from the papers, and bit by bit."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from common import KINDS, Rng, assert_same, make_batch

import grain_mix as gm
from grain_mix import _arithmetic, _blend, _plan, _sources

as_users_get = pytest.mark.usefixtures("optimised")

DTYPES = ["uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "bfloat16", "float32"]
each_float = pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32])


def values(rng: Rng, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Random values over the whole range of an integer dtype, normal ones of a float."""
    if "int" in dtype:
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    return rng.normal(size=shape).astype(jnp.dtype(dtype))


def labels_of(rng: Rng, size: int, kind: str, k: int) -> np.ndarray:
    if kind == "ids":
        return rng.integers(0, k, size)
    if kind == "one-hot":
        return np.eye(k, dtype=np.int8)[rng.integers(0, k, size)]
    if kind == "multi-label":
        return rng.integers(2, size=(size, k)).astype(bool)
    return rng.dirichlet(np.ones(k), size).astype(np.float32)


def assert_same_images(actual: np.ndarray, expected: np.ndarray) -> None:
    """Integers are equal, floats up to one rounding."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    if expected.dtype.kind in "iu":
        np.testing.assert_array_equal(actual, expected)
    else:
        eps = float(jnp.finfo(expected.dtype).eps)
        a, b = actual.astype(np.float64), expected.astype(np.float64)
        np.testing.assert_allclose(a, b, rtol=eps, atol=4 * eps)


# --- whole batches --------------------------------------------------------------------------------

MINMAX = {"mixup": {}, "cutmix": {"minmax": (0.2, 0.9)}, "both": {"cutmix_minmax": (0.2, 0.9)}}
LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], str, int]] = {
    # Shape of a record, spatial axes of the batch, what mixes it, and how many records.
    "grey": ((7, 10), (1, 2), "cutmix", 7),
    "rgb": ((9, 6, 3), (1, 2), "both", 16),
    "one record": ((9, 6, 3), (1, 2), "both", 1),
    "many channels": ((5, 4, 13), (1, 2), "mixup", 3),
    "channels first": ((3, 6, 11), (2, 3), "both", 4),
    "audio": ((37,), (1,), "cutmix", 7),
    "audio with channels": ((41, 2), (1,), "both", 2),
    "video": ((4, 6, 5, 3), (1, 2, 3), "cutmix", 3),
    "video, boxes in space": ((4, 6, 5, 3), (2, 3), "both", 4),
    "axes named backwards": ((9, 6, 3), (2, 1), "cutmix", 16),
    "axes from the end": ((3, 6, 11), (-2, -1), "both", 7),
    "one pixel": ((1, 1, 3), (1, 2), "mixup", 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_agrees_with_the_reference(layout: str, rng: Rng) -> None:
    def one(*options: Any) -> Any:
        return options[rng.integers(len(options))]

    labels = one("ids", "one-hot", "multi-label", "soft")
    mode, prob = one("elem", "pair", "batch"), one(1, 0.5)
    num_classes = 5 if labels == "ids" else None
    smoothing = 0.0 if labels == "multi-label" else one(0.0, 0.1)  # whose rows do not sum to 1
    shape, axes, kind, size = LAYOUTS[layout]
    images = {"image": values(rng, (size, *shape), one(*DTYPES))}
    if min(axes) > 0:
        images["depth"] = values(rng, (size, *shape[: max(axes)]), "uint16")
    transform = KINDS[kind](
        image_key=tuple(images),
        spatial_axes=axes,
        num_classes=num_classes,
        mode=mode,
        prob=prob,
        label_smoothing=smoothing,
        **one({}, MINMAX[kind]),
    )
    batch = images | {
        "label": labels_of(rng, size, labels, 5),
        "mix_seed": rng.integers(2**32, size=size, dtype=np.uint32),
        "id": np.arange(size),
        "names": [str(i) for i in range(size)],
    }
    print(transform, {name: (x.dtype, x.shape) for name, x in images.items()})
    before = {key: np.array(value) for key, value in batch.items()}
    for key in before.keys() - {"names"}:
        batch[key].flags.writeable = False
    out = transform.map(batch)

    assert list(out) == [key for key in batch if key != "mix_seed"]
    reference.check_mixed(transform, batch, out)
    for key, value in before.items():
        np.testing.assert_array_equal(batch[key], value)

    draw = jax.device_get(transform.draw(batch["mix_seed"], batch["image"].shape))
    rows = np.arange(size)
    np.testing.assert_array_equal(draw.partner, [reference.partner_of(i, size) for i in rows])
    sharer = {"elem": rows, "pair": rows // 2 * 2, "batch": 0 * rows}
    np.testing.assert_array_equal(draw.lam, draw.lam[sharer[mode]])
    if draw.box is not None:
        lengths = np.array([batch["image"].shape[axis] for axis in axes])
        assert ((draw.box >= 0) & (draw.box <= lengths[:, None])).all()


@as_users_get
@pytest.mark.parametrize(
    ("shape", "minmax", "prob", "mode"),
    [
        ((29, 43), None, 1.0, "elem"),
        ((331,), (0.1, 0.6), 1.0, "batch"),
        ((29, 43), (0.1, 0.6), 0.6, "pair"),
        ((11, 14, 9), None, 0.6, "elem"),
    ],
)
def test_a_label_weight_is_the_pixel_weight(
    shape: tuple[int, ...], minmax: tuple[float, float] | None, prob: float, mode: str, rng: Rng
) -> None:
    """Image i is filled with i, so its pixels can be counted in the mixed image."""
    size, axes = 64, tuple(range(1, len(shape) + 1))
    images = np.zeros((size, *shape), np.uint8) + np.arange(size).reshape(-1, *[1] * len(shape))
    batch = make_batch(rng, size, image=images.astype(np.uint8), label=np.arange(size))
    out = gm.CutMixBatch(
        num_classes=size, minmax=minmax, prob=prob, mode=mode, spatial_axes=axes
    ).map(batch)
    flat = out["image"].reshape(size, -1)
    for i in range(size):
        j = reference.partner_of(i, size)
        kept = np.mean(flat[i] == i, dtype=np.float64)
        assert set(flat[i]) <= {i, j}
        assert out["label"][i, i] == np.float32(kept)
        assert abs(out["label"][i, j] - (1 - kept)) < 2e-7
        assert abs(out["label"][i].sum(dtype=np.float64) - 1) < 1e-7


@as_users_get
@each_float
@pytest.mark.parametrize("kind", KINDS)
def test_unmixed_records_keep_every_bit(kind: str, dtype: Any, rng: Rng) -> None:
    """Also beside a partner whose NaN would make λ·x + 0·NaN a NaN.

    λ is exactly 1. If a compiler turned n/n into n·(1/n), it would not be 1 for 41 pixels.
    """
    images = rng.normal(size=(64, 41, 3)).astype(dtype)
    images[::2] = np.nan
    images[1::4] = np.inf
    batch = make_batch(rng, 64, image=images)
    transform = KINDS[kind](num_classes=10, prob=0.5, spatial_axes=(1,))
    unmixed = np.asarray(transform.draw(batch["mix_seed"], images.shape).lam) == 1
    assert 0 < unmixed.sum() < 64
    for prob, same in ((0.5, unmixed), (0, np.full(64, True))):
        mixed = dataclasses.replace(transform, prob=prob).map(batch)
        assert mixed["image"][same].tobytes() == images[same].tobytes()
        np.testing.assert_array_equal(mixed["label"][same], np.eye(10)[batch["label"][same]])


def test_many_classes_make_no_dense_array(rng: Rng) -> None:
    """No array in the program is as wide as the number of classes."""
    k, batch = 21_841, make_batch(rng, 4)
    sparse = gm.MixBatch(targets={"label": gm.Sparse(k)})
    assert sparse.map(batch)["label"].shape == (4, 2)
    assert str(k) not in jax.jit(sparse.mix).lower(batch).as_text()
    assert str(k) in jax.jit(gm.MixBatch(num_classes=k).mix).lower(batch).as_text()


# --- pixels, bit by bit ---------------------------------------------------------------------------


@as_users_get
@pytest.mark.parametrize("dtype", DTYPES)
def test_mixup_with_given_parameters(dtype: str, rng: Rng) -> None:
    """Ends and ties of λ, the smallest against the largest values, and any partners.

    Integers are ⌊x + 1/2⌋, also below zero. Floats of 16 bits are rounded once, at the end.
    """
    weights = [0, 1, 2, 2**16, 2**22, 2**23 - 1, 2**23, 2**23 + 1, 3 * 2**22, 127 * 2**17]
    weights += [2**24 - 1, 2**24, *rng.integers(0, 2**24, 20, endpoint=True)]
    lam = np.array(weights, np.float32) / np.float32(2**24)
    images = values(rng, (32, 50), dtype)
    if "int" in dtype:
        info = np.iinfo(dtype)
        images[:, :2] = np.where(np.arange(32)[:, None] % 2 == [0, 1], info.min, info.max)
    partner = (np.arange(32) + 2 * rng.integers(16) + 1) % 32  # an odd one of each even one
    mixed = np.asarray(gm.mixup(images, lam, partner))
    expected = [reference.mixup_one(images[i], images[partner[i]], lam[i]) for i in range(32)]
    assert_same_images(mixed, np.stack(expected))
    if "float16" in dtype:
        x = images.astype(np.float64)
        exact = lam[:, None] * x + (1 - np.float64(lam[:, None])) * x[partner]
        normal = np.maximum(np.abs(exact), float(jnp.finfo(dtype).smallest_normal))
        magnitude = 2.0 ** np.floor(np.log2(normal))
        half_a_unit = float(jnp.finfo(dtype).eps) / 2 * magnitude
        in_float32 = 2.0**-23 * np.maximum(np.abs(x), np.abs(x[partner]))
        assert (np.abs(mixed.astype(np.float64) - exact) <= half_a_unit + in_float32).all()


def test_a_weight_that_1_does_not_show_still_counts() -> None:
    """1 - 10⁻⁹ is 1 in `float32`, and the own image is as large as that is small."""
    images = np.array([[1e9], [3.0]], np.float32)
    mixed = gm.mixup(images, np.array([1e-9, 1], np.float32), np.array([1, 0]))
    np.testing.assert_allclose(mixed, [[4], [3]], rtol=1e-6)


@as_users_get
def test_cutmix_with_given_parameters(rng: Rng) -> None:
    images = values(rng, (5, 3, 6, 7), "bfloat16")
    partner = rng.integers(0, 5, 5)
    box = np.sort(rng.integers(0, 7, (5, 2, 2)), axis=2)
    mixed = np.asarray(gm.cutmix(images, box, partner, spatial_axes=(2, 3)))
    for i in range(5):
        expected = reference.cutmix_one(images[i], images[partner[i]], box[i], (1, 2))
        np.testing.assert_array_equal(mixed[i].view(np.uint16), expected.view(np.uint16))


@as_users_get
@each_float
def test_every_bit_of_a_nan_is_copied(dtype: Any, rng: Rng) -> None:
    """All bits are kept, also those of NaNs, by CutMix and in unmixed records."""
    bits = np.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}")
    some = rng.integers(0, np.iinfo(bits).max, (4, 16, 16, 3), bits, endpoint=True)
    some[:, ::2] |= np.array(np.inf, dtype).view(bits)  # NaNs of all kinds
    batch = make_batch(rng, 4, image=some.view(dtype))
    transform = gm.CutMixBatch(label_key=None, minmax=(0.3, 0.8))
    mixed = transform.map(batch)["image"].view(bits)
    box = np.asarray(transform.draw(batch["mix_seed"], some.shape).box)
    for i in range(4):
        expected = reference.cutmix_one(some[i], some[i ^ 1], box[i], (0, 1))
        np.testing.assert_array_equal(mixed[i], expected)
    unmixed = gm.MixUpBatch(label_key=None, prob=0).map(batch)["image"].view(bits)
    np.testing.assert_array_equal(unmixed, some)


@pytest.mark.parametrize(
    ("transform", "shape", "axes", "dtype", "partners"),
    [
        (gm.CutMixBatch, (7, 9, 6, 3), (1, 2), "uint8", 0),
        (gm.CutMixBatch, (5, 3, 8, 7), (3, 2), "float16", 1),
        (gm.MosaicBatch, (9, 9, 6, 3), (1, 2), "bfloat16", 0),
        (gm.MosaicBatch, (6, 3, 8, 7), (3, 2), "int16", 3),
    ],
)
def test_large_windows_that_numpy_copies(
    transform: Any,
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    dtype: str,
    partners: int,
    monkeypatch: pytest.MonkeyPatch,
    rng: Rng,
) -> None:
    """On the host what is cut and large is copied by NumPy: the same bits as the compiled ones."""
    monkeypatch.setattr(_plan, "LARGE", 1)

    def record() -> dict[str, Any]:
        image, ids = values(rng, shape, dtype), rng.integers(0, 5, (*shape[:1], 2, *shape[1:]))
        return {"image": image, "ids": ids.astype(np.uint8)}

    keys = tuple(f"other{i}" for i in range(partners)) or None
    batch = record() | {key: record() for key in keys or ()}
    batch["mix_seed"] = rng.integers(2**32, size=shape[0], dtype=np.uint32)
    targets = {"ids": gm.LabelMap(tuple(axis + 1 for axis in axes))}
    options: Any = {"targets": targets, "label_key": None, "spatial_axes": axes, "prob": 0.75}
    mix = transform(partner_key=keys if partners > 1 else keys and keys[0], **options)
    mixed = mix.map(batch)
    assert mixed["image"].flags.writeable  # which arrays of JAX are not
    assert_same([mixed], [jax.device_get(jax.jit(mix.mix)(batch))])


@each_float
def test_gradients_go_to_the_pixels_that_are_shown(dtype: Any, rng: Rng) -> None:
    inside = rng.random((5, 7)) < 0.5
    x, y = (jnp.asarray(rng.normal(size=(5, 7)), dtype) for _ in range(2))
    to_x, to_y = jax.grad(lambda x, y: _arithmetic.select(inside, y, x).sum(), (0, 1))(x, y)
    np.testing.assert_array_equal(to_x, ~inside)
    np.testing.assert_array_equal(to_y, inside)


@pytest.mark.parametrize("axes", [(1,), (1, 2), (2, 1), (1, 3)])
def test_rows_too_long_for_int32(
    axes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, rng: Rng
) -> None:
    """From 2³¹ entries on, a row is not merged with what comes after it; here from 5 on."""
    x = jnp.asarray(rng.integers(0, 256, (4, 6, 5, 4, 3), np.uint8))
    box = jnp.asarray(np.sort(rng.integers(0, 5, (4, len(axes), 2)), axis=-1), jnp.int32)
    lam = jnp.asarray(rng.integers(0, 2**24, 4) / 2**24, jnp.float32)
    weights = _blend.Weights(jnp.stack([lam, 1 - lam], axis=1), box)

    def mixed() -> jax.Array:
        return jax.jit(lambda: _blend.blend(_sources.neighbours(x, 2), weights, axes))()

    expected = mixed()
    monkeypatch.setattr(_blend, "LONGEST_ROW", 5)
    np.testing.assert_array_equal(mixed(), expected)


def test_positions_in_a_long_video_fit_int32() -> None:
    def cut(x: jax.Array, box: jax.Array) -> jax.Array:
        return _blend.blend(_sources.neighbours(x, 2), _blend.Weights(box=box), (1,))

    program = jax.make_jaxpr(cut)(
        jax.ShapeDtypeStruct((2, 346, 1080, 1920, 3), jnp.uint8),
        jax.ShapeDtypeStruct((2, 1, 2), jnp.int32),
    )
    iotas = [e for e in all_equations(program.jaxpr) if e.primitive.name == "iota"]
    assert iotas
    assert all(max(e.outvars[0].aval.shape) < 2**31 for e in iotas)


def all_equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if hasattr(inner, "jaxpr"):
                    yield from all_equations(inner.jaxpr)
