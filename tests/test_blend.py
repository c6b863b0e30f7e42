"""Mixed batches compared with a reference written from the papers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import reference
from common import make_batch
from hypothesis import given, settings
from hypothesis import strategies as st

import grain_mix as gm

DTYPES = ["uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "bfloat16", "float32"]


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Random values over the whole range of an integer dtype, normal ones of a float."""
    if dtype == "bool":
        return rng.integers(2, size=shape).astype(bool)
    if "int" in dtype:
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    return rng.normal(size=shape).astype(jnp.dtype(dtype))


def labels_of(rng: np.random.Generator, size: int, kind: str, k: int) -> np.ndarray:
    if kind == "ids":
        return rng.integers(0, k, size)
    if kind == "one-hot":
        return np.eye(k, dtype=np.int8)[rng.integers(0, k, size)]
    if kind == "multi-label":
        return rng.integers(2, size=(size, k)).astype(bool)
    return rng.dirichlet(np.ones(k), size).astype(np.float32)


def assert_same_images(actual: np.ndarray, expected: np.ndarray) -> None:
    """Integers and bools are equal, floats up to one rounding."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if expected.dtype.kind in "iub":
        np.testing.assert_array_equal(actual, expected)
    else:
        eps = float(jnp.finfo(expected.dtype).eps)
        a, b = actual.astype(np.float64), expected.astype(np.float64)
        np.testing.assert_allclose(a, b, rtol=eps, atol=4 * eps)


MAKE: dict[str, Callable[..., Any]] = {
    "mixup": lambda axes, **kw: gm.MixUpBatch(alpha=0.7, **kw),
    "cutmix": lambda axes, **kw: gm.CutMixBatch(spatial_axes=axes, **kw),
    "minmax": lambda axes, **kw: gm.CutMixBatch(spatial_axes=axes, minmax=(0.2, 0.9), **kw),
    "both": lambda axes, **kw: gm.MixBatch(spatial_axes=axes, **kw),
}
LAYOUTS = {  # shape of a record, spatial axes of the batch
    "grey": ((7, 10), (1, 2)),
    "rgb": ((9, 6, 3), (1, 2)),
    "many channels": ((5, 4, 13), (1, 2)),
    "channels first": ((3, 6, 11), (2, 3)),
    "audio": ((37,), (1,)),
    "audio with channels": ((41, 2), (1,)),
    "video": ((4, 6, 5, 3), (1, 2, 3)),
    "video, boxes in space": ((4, 6, 5, 3), (2, 3)),
    "volume": ((5, 7, 3), (1, 2, 3)),
    "axes named backwards": ((9, 6, 3), (2, 1)),
    "axes from the end": ((3, 6, 11), (-2, -1)),
    "one pixel": ((1, 1, 3), (1, 2)),
}


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(list(MAKE)),
    layout=st.sampled_from(list(LAYOUTS)),
    dtype=st.sampled_from(DTYPES),
    labels=st.sampled_from(["ids", "one-hot", "multi-label", "soft"]),
    mode=st.sampled_from(["elem", "pair", "batch"]),
    size=st.sampled_from([1, 2, 3, 4, 7, 16]),
    prob=st.sampled_from([1.0, 0.5, 0.0]),
    smoothing=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 2**32 - 1),
)
def test_agrees_with_the_reference(
    kind: str,
    layout: str,
    dtype: str,
    labels: str,
    mode: str,
    size: int,
    prob: float,
    smoothing: float,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    shape, axes = LAYOUTS[layout]
    num_classes = 5 if labels == "ids" else None
    smoothing = 0.0 if labels == "multi-label" else smoothing  # whose rows do not sum to 1
    transform = MAKE[kind](
        axes, num_classes=num_classes, mode=mode, prob=prob, label_smoothing=smoothing
    )
    batch = {
        "image": values(rng, (size, *shape), dtype),
        "label": labels_of(rng, size, labels, 5),
        "mix_seed": rng.integers(2**32, size=size, dtype=np.uint32),
        "id": np.arange(size),
        "names": [str(i) for i in range(size)],
    }
    before = {key: np.array(value) for key, value in batch.items()}
    for key in before.keys() - {"names"}:
        batch[key].flags.writeable = False
    out = transform.map(batch)

    draw = transform.draw(batch["mix_seed"], batch["image"].shape)
    lam, box = np.asarray(draw.lam), None if draw.box is None else np.asarray(draw.box)
    front = tuple(axis % (1 + len(shape)) for axis in axes)
    expected = reference.mix(
        batch, lam, box, axes=front, num_classes=num_classes, smoothing=smoothing
    )
    assert list(out) == ["image", "label", "id", "names"]
    assert_same_images(out["image"], expected["image"])
    assert out["label"].dtype == np.float32
    np.testing.assert_allclose(out["label"], expected["label"], atol=2e-7)
    assert out["id"] is batch["id"]
    assert out["names"] is batch["names"]
    for key, value in before.items():
        np.testing.assert_array_equal(batch[key], value)

    np.testing.assert_array_equal(
        draw.partner, [reference.partner_of(i, size) for i in range(size)]
    )
    if box is not None:
        lengths = tuple(batch["image"].shape[axis] for axis in front)
        assert (box >= 0).all()
        assert (box <= np.array(lengths)[:, None]).all()
        for i in range(size):
            if draw.mixup_lam is None or (box[i, :, 0] < box[i, :, 1]).all():
                assert lam[i] == np.float32(reference.kept_fraction(box[i], lengths))
    sharer = {
        "elem": np.arange(size),
        "pair": np.arange(size) // 2 * 2,
        "batch": np.zeros(size, int),
    }
    np.testing.assert_array_equal(lam, lam[sharer[mode]])
    if prob == 0 or size == 1:
        np.testing.assert_array_equal(out["image"], batch["image"])


@pytest.mark.parametrize(
    ("axes", "minmax", "prob", "mode"),
    [
        ((1, 2), None, 1.0, "elem"),
        ((1,), (0.1, 0.6), 1.0, "batch"),
        ((1, 2), (0.1, 0.6), 0.6, "pair"),
        ((1, 2, 3), None, 0.6, "elem"),
    ],
)
def test_a_label_weight_is_the_pixel_weight(
    axes: tuple[int, ...],
    minmax: tuple[float, float] | None,
    prob: float,
    mode: str,
    rng: np.random.Generator,
) -> None:
    """Image i is filled with i, so its pixels can be counted in the mixed image."""
    size = 64
    shape = {1: (331,), 2: (29, 43), 3: (11, 14, 9)}[len(axes)]
    ids = np.arange(size, dtype=np.uint8).reshape(-1, *[1] * len(shape))
    images = np.broadcast_to(ids, (size, *shape)).copy()
    batch = make_batch(rng, size, image=images, label=np.arange(size))
    transform = gm.CutMixBatch(
        num_classes=size, minmax=minmax, prob=prob, mode=mode, spatial_axes=axes
    )
    out = transform.map(batch)
    flat = out["image"].reshape(size, -1)
    for i in range(size):
        j = reference.partner_of(i, size)
        kept = np.mean(flat[i] == i, dtype=np.float64)
        assert set(flat[i]) <= {i, j}
        assert out["label"][i, i] == np.float32(kept)
        assert abs(out["label"][i, j] - (1 - kept)) < 2e-7
        assert abs(out["label"][i].sum(dtype=np.float64) - 1) < 1e-7


@pytest.mark.parametrize(("kind", "length"), [("mixup", 41), ("cutmix", 47), ("both", 61)])
def test_an_unmixed_label_stays(kind: str, length: int, rng: np.random.Generator) -> None:
    """λ is exactly 1. If a compiler turned n/n into n·(1/n), it would not be 1 for these sizes."""
    batch = make_batch(rng, 6, (length,))
    out = MAKE[kind]((1,), num_classes=10, prob=0).map(batch)
    np.testing.assert_array_equal(out["label"], np.eye(10, dtype=np.float32)[batch["label"]])


@pytest.mark.parametrize("kind", ["cutmix", "both"])
def test_mix_inside_jit_equals_map(kind: str, rng: np.random.Generator) -> None:
    dtypes = tuple(DTYPES if kind in ("mixup", "both") else [*DTYPES, "bool"])
    transform = MAKE[kind]((1, 2), num_classes=10, image_key=dtypes)
    batch = make_batch(rng, 6, **{dtype: values(rng, (6, 8, 5, 3), dtype) for dtype in dtypes})
    del batch["image"]
    mapped, mixed = transform.map(batch), jax.jit(transform.mix)(batch)
    assert mapped.keys() == mixed.keys()
    for key, value in mapped.items():
        assert isinstance(value, np.ndarray)
        assert isinstance(mixed[key], jax.Array)
        assert mixed[key].dtype == value.dtype
        np.testing.assert_array_equal(value, np.asarray(mixed[key]), key)


def test_several_images_share_a_draw(rng: np.random.Generator) -> None:
    batch = make_batch(rng, 8, (12, 9, 3))
    batch |= {"right": values(rng, (8, 12, 9, 1), "float32")}
    batch |= {"depth": values(rng, (8, 12, 9), "uint16")}
    keys = ("image", "right", "depth")
    for kind in ("mixup", "cutmix"):
        transform = MAKE[kind]((1, 2), num_classes=10, image_key=keys)
        out = transform.map(batch)
        draw = transform.draw(batch["mix_seed"], batch["image"].shape)
        box = None if draw.box is None else np.asarray(draw.box)
        expected = reference.mix(
            batch, np.asarray(draw.lam), box, image_keys=keys, axes=(1, 2), num_classes=10
        )
        for key in keys:
            assert_same_images(out[key], expected[key])


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [("uint8", "last"), ("int32", "first"), ("bool", "with another axis"), ("float32", "last")],
)
def test_masks_are_cut_with_the_image(dtype: str, layout: str, rng: np.random.Generator) -> None:
    """The image holds the numbers of the mask, so both must be cut in the same way."""
    size, height, width = 6, 10, 13
    mask = values(rng, (size, height, width), dtype)
    position = np.arange(mask.size, dtype=np.int32).reshape(mask.shape)
    image, axes = position[..., None], (1, 2)
    if layout == "first":
        image, axes = np.stack([position] * 4, axis=1), (2, 3)
    if layout == "with another axis":
        mask = mask[..., None]
    batch = make_batch(rng, size, image=image, mask=mask)
    transform = gm.CutMixBatch(targets={"mask": gm.LabelMap()}, label_key=None, spatial_axes=axes)
    out = transform.map(batch)
    moved = out["image"][:, 0] if layout == "first" else out["image"][..., 0]
    assert out["mask"].dtype == mask.dtype
    assert out["mask"].shape == mask.shape
    np.testing.assert_array_equal(out["mask"].reshape(moved.shape), mask.reshape(-1)[moved])
    assert (moved != position).any()


@pytest.mark.parametrize("kind", ["mixup", "both"])
def test_sparse_labels_say_what_dense_ones_say(kind: str, rng: np.random.Generator) -> None:
    batch = make_batch(rng, 9)
    dense = MAKE[kind]((1, 2), num_classes=10).map(batch)
    sparse = MAKE[kind]((1, 2), targets={"label": gm.Sparse(10)}).map(batch)
    assert sparse["label"].dtype == np.int32
    assert sparse["label_weight"].dtype == np.float32
    assert sparse["label"].shape == sparse["label_weight"].shape == (9, 2)
    weighted = np.eye(10, dtype=np.float32)[sparse["label"]] * sparse["label_weight"][..., None]
    np.testing.assert_allclose(weighted.sum(axis=1), dense["label"], atol=1e-7)
    np.testing.assert_array_equal(sparse["image"], dense["image"])


def test_many_classes_make_no_dense_array(rng: np.random.Generator) -> None:
    """No array in the program is as wide as the number of classes."""
    k = 21_841
    transform = gm.MixBatch(targets={"label": gm.Sparse(k)})
    batch = make_batch(rng, 4)
    assert transform.map(batch)["label"].shape == (4, 2)
    assert str(k) not in jax.jit(transform.mix).lower(batch).as_text()
    dense = gm.MixBatch(num_classes=k)
    assert str(k) in jax.jit(dense.mix).lower(batch).as_text()


@pytest.mark.parametrize("dtype", DTYPES)
def test_mixup_with_given_parameters(dtype: str, rng: np.random.Generator) -> None:
    images = values(rng, (5, 6, 7), dtype)
    partner = rng.integers(0, 5, 5)
    lam = np.array([0, 1, 0.5, 0.25, rng.random()], np.float32)
    lam[4] = round(float(lam[4]) * 2**24) / 2**24
    mixed = np.asarray(gm.mixup(images, lam, partner))
    expected = [reference.mixup_one(images[i], images[partner[i]], lam[i]) for i in range(5)]
    assert_same_images(mixed, np.stack(expected))


def test_cutmix_with_given_parameters(rng: np.random.Generator) -> None:
    images = values(rng, (5, 3, 6, 7), "bfloat16")
    partner = rng.integers(0, 5, 5)
    box = np.sort(rng.integers(0, 7, (5, 2, 2)), axis=2)
    mixed = np.asarray(gm.cutmix(images, box, partner, spatial_axes=(2, 3)))
    for i in range(5):
        expected = reference.cutmix_one(images[i], images[partner[i]], box[i], (1, 2))
        np.testing.assert_array_equal(mixed[i].view(np.uint16), expected.view(np.uint16))


def test_extreme_integers_neither_wrap_nor_drift() -> None:
    """The largest and the smallest value against each other, for weights at and near the ends."""
    for dtype in ("uint8", "uint16", "uint32", "int8", "int16", "int32"):
        info = np.iinfo(dtype)
        pairs = np.array([[info.min, info.max], [info.max, info.min]], dtype)
        for weight in (0, 1, 2, 2**23 - 1, 2**23, 2**23 + 1, 2**24 - 1, 2**24):
            lam = np.full(2, weight / 2**24, np.float32)
            mixed = np.asarray(gm.mixup(pairs, lam, np.array([1, 0])))
            expected = [reference.mixup_one(pairs[i], pairs[1 - i], lam[i]) for i in range(2)]
            np.testing.assert_array_equal(mixed, np.stack(expected), err_msg=f"{dtype} {weight}")


def test_bfloat16_is_blended_in_float32(rng: np.random.Generator) -> None:
    """One rounding at the end, at most half a unit off, rather than one in each operation."""
    images = rng.normal(size=(2, 4096)).astype(ml_dtypes.bfloat16)
    lam = np.array([0.3, 0.9])[:, None]
    x = images.astype(np.float64)
    exact = lam * x + (1 - lam) * x[::-1]
    mixed = np.asarray(gm.mixup(images, lam[:, 0], np.array([1, 0]))).astype(np.float64)
    half_a_unit = 2.0**-9 * 2.0 ** np.ceil(np.log2(np.maximum(np.abs(exact), 1e-30)))
    assert (np.abs(mixed - exact) <= half_a_unit + 2e-7).all()
