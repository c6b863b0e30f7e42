"""Mistakes that other implementations of MixUp and CutMix made, each shown not to happen here.

Most images here are filled with one number, the record's position in the batch. Each pixel then
tells where it came from, and weights can be counted.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.stats

import grain_mix as gm

# Inputs are new in every run, so chance alone must never fail a test.
IMPOSSIBLE = 1e-9

MIXUP = gm.MixUpBatch(alpha=1.0, num_classes=1000)
CUTMIX = gm.CutMixBatch(alpha=1.0, num_classes=1000)
MIX = gm.MixBatch(mixup_alpha=1.0, cutmix_alpha=1.0, num_classes=1000)
EACH = pytest.mark.parametrize("transform", [MIXUP, CUTMIX, MIX], ids=lambda t: type(t).__name__)


def seeds(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.integers(2**32, size=size, dtype=np.uint32)


def column(values: Any, ndim: int) -> np.ndarray:
    """`[B]` to `[B, 1, ..., 1]`."""
    return np.reshape(values, (-1, *[1] * (ndim - 1)))


def numbered(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.uint8
) -> dict[str, np.ndarray]:
    """A batch whose i-th image is i all over and whose i-th label is i."""
    position = np.arange(shape[0])
    image = np.broadcast_to(column(position, len(shape)), shape).astype(dtype)
    return {"image": image, "label": position, "mix_seed": seeds(rng, shape[0])}


def partners(size: int) -> list[int]:
    return [i ^ 1 if i ^ 1 < size else max(i - 1, 0) for i in range(size)]


def own_weights(label: np.ndarray) -> np.ndarray:
    """The weight of each label's own class in a numbered batch; the rest must be its partner's."""
    size = len(label)
    own = label[np.arange(size), np.arange(size)]
    expected = np.zeros_like(label)
    expected[np.arange(size), partners(size)] = 1 - own
    expected[np.arange(size), np.arange(size)] = own
    np.testing.assert_array_equal(label, expected)
    return own


def pasted(image: np.ndarray) -> np.ndarray:
    """Which pixels of a numbered batch are the partner's; the rest must be the record's own."""
    own, other = (column(i, image.ndim) for i in (np.arange(len(image)), partners(len(image))))
    assert ((image == own) | (image == other)).all()
    return image != own


def kept(image: np.ndarray) -> np.ndarray:
    """The fraction of own pixels, counted."""
    own = ~pasted(image).reshape(len(image), -1)
    return (own.sum(axis=1) / own.shape[1]).astype(np.float32)


# clovaai/CutMix-PyTorch #1: λ was not corrected when the box was clipped
def test_lambda_follows_the_clipped_box(rng: np.random.Generator) -> None:
    mixed = CUTMIX.map(numbered(rng, (200, 20, 50, 1)))
    np.testing.assert_array_equal(own_weights(mixed["label"]), kept(mixed["image"]))
    # A whole box has the sides ⌊20·r⌋ and ⌊50·r⌋ for one r. If all were whole, none was clipped.
    height, width = (pasted(mixed["image"]).any(axis=axes).sum(axis=1) for axes in [(2, 3), (1, 3)])
    clipped = (height / 20 >= (width + 1) / 50) | (width / 50 >= (height + 1) / 20)
    assert clipped.sum() > 20


# kornia #3077: the label's weight came from the wrong area
@pytest.mark.parametrize(
    ("shape", "transform"),
    [
        ((64, 11, 17, 3), gm.CutMixBatch(num_classes=64)),
        ((64, 3, 11, 17), gm.CutMixBatch(num_classes=64, spatial_axes=(2, 3), minmax=(0.2, 0.7))),
        ((64, 101, 2), gm.CutMixBatch(num_classes=64, spatial_axes=(1,))),
        ((64, 5, 7, 9, 2), gm.CutMixBatch(num_classes=64, spatial_axes=(-3, -4, -2))),
    ],
    ids=["channels last", "channels first", "audio", "video"],
)
def test_label_weight_is_the_pasted_area(
    rng: np.random.Generator, shape: tuple[int, ...], transform: Any
) -> None:
    mixed = transform.map(numbered(rng, shape))
    np.testing.assert_array_equal(own_weights(mixed["label"]), kept(mixed["image"]))
    assert len(np.unique(kept(mixed["image"]))) > 10


# kornia #4657: class ids were cast to the images' bfloat16, and 257 became 256
@pytest.mark.parametrize("transform", [MIXUP, CUTMIX], ids=["MixUp", "CutMix"])
def test_class_ids_do_not_pass_through_bfloat16(rng: np.random.Generator, transform: Any) -> None:
    image = rng.random((4, 8, 8, 3)).astype(ml_dtypes.bfloat16)
    ids = [257, 513, 999, 259]  # in bfloat16 256, 512, 1000 and 260
    partner_ids = [513, 257, 259, 999]
    batch = {"image": image, "label": np.array(ids), "mix_seed": seeds(rng, 4)}
    label = transform.map(batch)["label"]
    rows = np.arange(4)
    np.testing.assert_allclose(label[rows, ids] + label[rows, partner_ids], 1, rtol=1e-6)
    assert np.count_nonzero(label) <= 8
    sparse = type(transform)(sparse_labels=True).map(batch)["label"]
    np.testing.assert_array_equal(sparse, np.stack([ids, partner_ids], axis=1))


# kornia #4657
def test_class_ids_of_masks_do_not_either(rng: np.random.Generator) -> None:
    batch = numbered(rng, (4, 8, 9, 3), ml_dtypes.bfloat16)
    mask = np.array([257, 513, 999, 259], np.uint16).repeat(8 * 9).reshape(4, 8, 9)
    mixed = gm.CutMixBatch(num_classes=4, mask_key="mask").map(batch | {"mask": mask})
    inside = pasted(mixed["image"])[..., 0]
    assert mixed["mask"].dtype == np.uint16
    np.testing.assert_array_equal(mixed["mask"], np.where(inside, mask[partners(4)], mask))


# tensorflow/models #11271, composer #3932: swapped, which square images hide
def test_height_is_height_and_width_is_width(rng: np.random.Generator) -> None:
    batch = numbered(rng, (200, 20, 50, 1))
    boxes = np.asarray(CUTMIX.draw(batch["mix_seed"], (200, 20, 50, 1)).box)
    top, bottom, left, right = (column(bound, 4) for bound in boxes.reshape(200, 4).T)
    row, col = np.arange(20).reshape(20, 1, 1), np.arange(50).reshape(50, 1)
    inside = (top <= row) & (row < bottom) & (left <= col) & (col < right)
    np.testing.assert_array_equal(pasted(CUTMIX.map(batch)["image"]), inside)
    assert bottom.max() == 20
    assert right.max() == 50


# tensorflow/models #10318, keras-cv #1092: either crashed or was mixed wrongly
@pytest.mark.parametrize("label_dtype", [np.int64, np.float16])
def test_float16_images_and_one_hot_labels(rng: np.random.Generator, label_dtype: Any) -> None:
    batch = numbered(rng, (6, 8, 9, 3), np.float16) | {"label": np.eye(6).astype(label_dtype)}
    mixed = gm.CutMixBatch().map(batch)
    assert mixed["image"].dtype == np.float16
    assert mixed["label"].dtype == np.float32
    np.testing.assert_array_equal(own_weights(mixed["label"]), kept(mixed["image"]))

    x = (60_000 * rng.random((6, 8, 9, 3))).astype(np.float16)  # the sum of two overflows
    mixed = gm.MixUpBatch(alpha=1.0).map(batch | {"image": x})
    assert mixed["image"].dtype == np.float16
    assert mixed["label"].dtype == np.float32
    lam = column(own_weights(mixed["label"]), 4).astype(np.float64)
    expected = lam * x + (1 - lam) * x[partners(6)]
    np.testing.assert_allclose(mixed["image"].astype(np.float64), expected, rtol=2**-10, atol=1e-6)


# fastai2 #368: an integer division
@pytest.mark.parametrize("one_hot", [False, True], ids=["class ids", "one-hot"])
def test_integers_do_not_make_every_weight_zero(rng: np.random.Generator, one_hot: bool) -> None:
    batch = numbered(rng, (200, 20, 50, 1))
    label = np.eye(200, 1000, dtype=np.uint8) if one_hot else batch["label"]
    own = own_weights(CUTMIX.map(batch | {"label": label})["label"])
    assert ((own > 0) & (own < 1)).mean() > 0.8


# fastai #3247: the centre was drawn from Beta
@pytest.mark.parametrize("alpha", [0.4, 4.0])
def test_box_centre_is_uniform(rng: np.random.Generator, alpha: float) -> None:
    n, lengths = 20_000, (200, 500)
    box = np.asarray(gm.CutMixBatch(alpha=alpha).draw(seeds(rng, n), (n, *lengths, 3)).box)
    # A box that touches no edge is whole; given its sides, it is anywhere between the edges.
    box = box[((box[..., 0] > 0) & (box[..., 1] < lengths)).all(axis=1)]
    assert len(box) > 1000
    start, stop = box[..., 0], box[..., 1]
    where = (start - 1 + rng.random(start.shape)) / (np.subtract(lengths, 1) - (stop - start))
    for axis in (0, 1):
        assert scipy.stats.kstest(where[:, axis], "uniform").pvalue > IMPOSSIBLE
    assert scipy.stats.spearmanr(where).pvalue > IMPOSSIBLE


# fastai #3247: and λ weighed wrongly
@pytest.mark.parametrize("alpha", [0.4, 4.0])
def test_lambda_weighs_as_in_the_paper(rng: np.random.Generator, alpha: float) -> None:
    n, lengths = 20_000, (20, 50)
    lam = gm.CutMixBatch(alpha=alpha).draw(seeds(rng, n), (n, *lengths, 3)).lam
    # rand_bbox of https://arxiv.org/abs/1905.04899, all records at once
    root = np.sqrt(1 - rng.beta(alpha, alpha, n))
    area = np.ones(n)
    for length in lengths:
        side = (length * root).astype(int)
        start = rng.integers(length, size=n) - side // 2
        area *= (start + side).clip(0, length) - start.clip(0, length)
    assert scipy.stats.ks_2samp(np.asarray(lam), 1 - area / 1000).pvalue > IMPOSSIBLE


# Megvii YOLOX #275: the source sample was mixed in place
@pytest.mark.parametrize("writeable", [True, False])
@EACH
def test_input_is_not_written_to(rng: np.random.Generator, transform: Any, writeable: bool) -> None:
    batch = numbered(rng, (4, 20, 50, 3))
    before = {key: value.copy() for key, value in batch.items()}
    for value in batch.values():
        value.flags.writeable = writeable
    mixed = transform.map(batch)
    assert list(batch) == list(before)
    for key, value in batch.items():
        np.testing.assert_array_equal(value, before[key])
        assert not any(np.shares_memory(value, other) for other in mixed.values())


# timm #1304: they were refused
@pytest.mark.parametrize("size", [3, 5])
@EACH
def test_odd_batches_are_mixed(rng: np.random.Generator, transform: Any, size: int) -> None:
    batch = numbered(rng, (size, 20, 50, 3), np.float32)
    mixed = transform.map(batch)
    own = own_weights(mixed["label"])
    # The last record's weight shows that it has a partner, too.
    np.testing.assert_array_equal(own, transform.draw(batch["mix_seed"], (size, 20, 50, 3)).lam)
    mean = mixed["image"].mean(axis=(1, 2, 3), dtype=np.float64)
    np.testing.assert_allclose(mean, own * np.arange(size) + (1 - own) * partners(size), atol=1e-5)


def intervals(length: int, sides: Sequence[int]) -> set[tuple[int, int]]:
    return {(start, start + side) for side in sides for start in range(length - side + 1)}


# timm #2740: ranges were off by one
@pytest.mark.parametrize(
    ("minmax", "sides_of_5", "sides_of_7"),
    [
        ((0.4, 0.8), range(2, 5), range(3, 6)),
        ((0.01, 1), range(1, 6), range(1, 8)),
        ((1, 1), [5], [7]),
    ],
    ids=["between", "any", "whole"],
)
def test_minmax_box_has_every_size_and_place(
    rng: np.random.Generator,
    minmax: tuple[float, float],
    sides_of_5: Sequence[int],
    sides_of_7: Sequence[int],
) -> None:
    n = 20_000
    box = np.asarray(gm.CutMixBatch(minmax=minmax).draw(seeds(rng, n), (n, 5, 7, 3)).box)
    for axis, length, sides in [(0, 5, sides_of_5), (1, 7, sides_of_7)]:
        found, counts = np.unique(box[:, axis], axis=0, return_counts=True)
        assert set(map(tuple, found.tolist())) == intervals(length, sides)
        expected = [n / len(sides) / (length + 1 - (stop - start)) for start, stop in found]
        # Each count is binomial; 10 standard deviations off is impossible.
        assert (abs(counts - expected) <= 10 * np.sqrt(expected)).all()


# timm #2740
def test_paper_box_has_every_size_and_place(rng: np.random.Generator) -> None:
    n = 20_000
    # A tiny alpha gives many boxes as large as the image, 1 all sizes below.
    transforms = [gm.CutMixBatch(alpha=0.05), gm.CutMixBatch(alpha=1.0)]
    boxes = [transform.draw(seeds(rng, n), (n, 5, 7, 3)).box for transform in transforms]
    for axis, length in enumerate([5, 7]):
        found = map(tuple, np.concatenate(boxes)[:, axis].tolist())
        found = {(start, stop) for start, stop in found if start < stop}
        assert found == intervals(length, range(1, length + 1))


# BirdSet #274: it crashed
@pytest.mark.parametrize("method", ["map", "mix"])
@EACH
def test_batch_of_one_comes_back_unmixed(
    rng: np.random.Generator, transform: Any, method: str
) -> None:
    for _ in range(5):
        image = rng.standard_normal((1, 8, 9, 3), np.float32)
        batch = {"image": image, "label": np.array([257]), "mix_seed": seeds(rng, 1)}
        mixed = getattr(transform, method)(batch)
        np.testing.assert_array_equal(mixed["image"], image)
        np.testing.assert_array_equal(mixed["label"], np.eye(1000)[[257]])


# torchvision v2 MixUp: uint8 was refused
def test_uint8_images_are_rounded_to_nearest(rng: np.random.Generator) -> None:
    x = rng.integers(256, size=(64, 20, 50, 3), dtype=np.uint8)
    batch = {"image": x, "label": np.arange(64), "mix_seed": seeds(rng, 64)}
    mixed = MIXUP.map(batch)
    lam = column(own_weights(mixed["label"]), 4).astype(np.float64)
    assert mixed["image"].dtype == np.uint8
    np.testing.assert_array_equal(mixed["image"], np.rint(lam * x + (1 - lam) * x[partners(64)]))


# torchvision v2 MixUp
def test_all_pairs_of_uint8_are_rounded_to_nearest() -> None:
    pairs = np.array(list(itertools.product(range(256), repeat=2)), np.uint8).T
    x, y = pairs.astype(np.float64)
    for lam in (0, 0.25, 0.5, 1):
        mixed = gm.mixup(pairs, np.array([lam, 1 - lam]), np.array([1, 0]))
        np.testing.assert_array_equal(mixed, [np.floor(lam * x + (1 - lam) * y + 0.5)] * 2)


# datarax 0.1.17: MixUp averaged every field, record ids too
@EACH
def test_other_fields_are_left_alone(rng: np.random.Generator, transform: Any) -> None:
    others = {
        "id": np.arange(4),
        "depth": rng.random((4, 20, 50, 3)),
        "file": np.array(["a", "b", "c", "d"]),
        "boxes": [[1, 2], [], [3], []],
    }
    before = repr(others)
    mixed = transform.map(numbered(rng, (4, 20, 50, 3)) | others)
    assert sorted(mixed) == sorted([*others, "image", "label"])
    assert all(mixed[key] is value for key, value in others.items())
    assert repr(others) == before
