"""Detection boxes and masks of instances.

`GRAIN_MIX_FUZZ=12` counts the pixels of 130,000 boxes instead of 10,000.
"""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from common import KINDS, each_kind, nightly
from programs import batch_of, coins, fog, values

import grain_mix as gm

H, W, N = 13, 17, 3
MIN_VISIBLE = 0.305  # no box here shows just so much of its area
MIXES: dict[str, Any] = KINDS | {
    "mosaic": functools.partial(gm.MosaicBatch, split=(0, 1)),
    "three": functools.partial(gm.MixUpBatch, 0.5, sources=3),
    "map": functools.partial(gm.WeightMapMixBatch, coins),
}


def boxes_in(
    rng: np.random.Generator, size: int, boxes: Any = "xyxy", dtype: Any = None
) -> dict[str, Any]:
    """Images with these boxes, or with random ones of this format."""
    if isinstance(boxes, str):
        box_format = boxes
        dtype = dtype or ("float32" if "rel" in boxes or "center" in boxes else "int32")
        corners = reference.corners_of(values(rng, "xyxy", (size, H, W), dtype), "xyxy", (H, W))
        if "float" in dtype:  # half a pixel outside: of a whole one, fractions may be rounded up
            corners = corners.clip(-0.5, np.array([H, W]) + 0.5)
        boxes = reference.boxes_of(corners, boxes, (H, W)).astype(jnp.dtype(dtype))
        if "xywh" in box_format and dtype != "uint8":  # padding too
            boxes[rng.random(size) < 0.2, 2, 2] *= -1
    fields = {
        "image": ("any", (H, W, 3), "uint8"),
        "class": ("any", (N,), "int32"),
        "mask": ("any", (N, H, W), "uint8"),
        "valid": ("any", (), "bool"),
        "mix_seed": ("any", (), "uint32"),
    }
    return batch_of(rng, size, fields) | {"boxes": boxes}


def transform_of(
    kind: str, box_format: str = "xyxy", masks: Any = None, visible: float = 0, **more: Any
) -> Any:
    boxes = gm.Boxes(box_format, fields=("class",), masks=masks, min_visible=visible)
    return MIXES[kind](targets={"boxes": boxes}, label_key=None, **more)


@pytest.mark.parametrize(
    ("kind", "box_format", "dtype", "axes"),
    [
        ("mixup", "xyxy", None, (1, 2)),
        nightly("both", "xyxy", None, (1, 2)),
        ("cutmix", "yxyx", "uint8", (2, 1)),
        nightly("cutmix", "xywh", None, (1, 2)),
        nightly("cutmix", "center_xywh", "bfloat16", (1, 2)),
        ("both", "rel_xyxy", None, (1, 2)),
        nightly("cutmix", "rel_yxyx", None, (1, 2)),
        ("both", "rel_xywh", None, (3, 2)),
        ("cutmix", "rel_center_xywh", None, (1, 2)),
        nightly("mosaic", "yxyx", "int32", (1, 2)),
        ("mosaic", "xywh", "uint8", (3, 2)),
        ("mosaic", "center_xywh", "bfloat16", (-1, -2)),
        nightly("mosaic", "rel_xywh", "float32", (2, 1)),
        ("three", "rel_yxyx", "float32", (1, 2)),
        nightly("map", "xyxy", "int32", (1, 2)),
        ("map", "xywh", "bfloat16", (3, 2)),
        ("map", "rel_center_xywh", "float32", (2, 1)),
    ],
)
def test_boxes_by_counting_pixels(
    kind: str, box_format: str, dtype: Any, axes: tuple[int, int], rng: np.random.Generator
) -> None:
    size = 200 * int(os.environ.get("GRAIN_MIX_FUZZ", "1"))
    batch = boxes_in(rng, size, box_format, dtype)
    if 3 in np.abs(axes) or -1 in axes:  # channels first
        batch["image"] = batch["image"].transpose(0, 3, 1, 2)
    # Of some masks all pixels are left, of some few or none.
    batch["mask"] *= rng.random(batch["mask"].shape) < rng.choice([0, 0.02, 1], (size, N, 1, 1))
    more = {"prob": 0.8, "valid_key": "valid", "spatial_axes": axes}
    transform = transform_of(kind, box_format, "mask", MIN_VISIBLE, **more)
    reference.check_mixed(transform, batch, transform.map(batch))


@pytest.mark.parametrize("kind", ["cutmix", "mosaic", "map"])
def test_boxes_of_a_record_alone(kind: str, rng: np.random.Generator) -> None:
    batch = boxes_in(rng, 1)
    transform = transform_of(kind, masks="mask", visible=MIN_VISIBLE, prob=0.8)
    reference.check_mixed(transform, batch, transform.map(batch))


def test_boxes_that_show_just_enough_stay(rng: np.random.Generator) -> None:
    """With `min_visible=1` a box may lose nothing, and stays if it does not."""
    batch = boxes_in(rng, 8)
    mixed = transform_of("cutmix", visible=1, prob=0).map(batch)
    low, high = np.split(batch["boxes"].clip(0, [W, H, W, H]), 2, axis=-1)
    real = (low < high).all(-1)
    assert real.any()
    np.testing.assert_array_equal(mixed["boxes_weight"][:, :N], real)


@pytest.mark.parametrize("box_format", ["xyxy", "rel_xyxy", "rel_yxyx"])
def test_boxes_that_end_anywhere(box_format: str, rng: np.random.Generator) -> None:
    """Against float64: what is visible is the box less what is pasted over it, or within that."""
    size, sides = 100, np.array([H, W])
    corners = np.sort(rng.random((size, N, 2, 2)), axis=2) * sides
    boxes = reference.boxes_of(corners, box_format, sides).astype(np.float32)
    batch = boxes_in(rng, size, boxes)
    transform = transform_of("cutmix", box_format, visible=MIN_VISIBLE)
    found = transform.map(batch)["boxes_weight"]
    pasted = np.asarray(transform.draw(batch["mix_seed"], batch["image"].shape).box)
    corners = reference.corners_of(boxes, box_format, sides)
    corners = np.concatenate([corners, corners[np.arange(size) ^ 1]], axis=1)
    (low, high), (start, stop) = np.moveaxis(corners, 2, 0), np.moveaxis(pasted, 2, 0)[:, :, None]
    area = (high - low).prod(-1)
    covered = (np.minimum(high, stop) - np.maximum(low, start)).clip(0).prod(-1)
    fraction = np.where(np.arange(2 * N) < N, area - covered, covered) / area
    expected = np.where(fraction < MIN_VISIBLE, 0, fraction)
    # Where rounding decides, and where a strip is too thin to be visible, it may be another.
    thinnest = (high - low).min(-1)
    gaps = np.abs(corners[:, :, :, None] - np.moveaxis(pasted, 2, 1)[:, None, None])
    certain = (thinnest > 0.01) & (gaps.min((2, 3, 4)) > 0.002)
    certain &= np.abs(fraction - MIN_VISIBLE) > 1e-4
    assert certain.mean() > 0.8
    slack = 1e-6 + 4e-7 * max(H, W) / thinnest  # float32 rounds positions
    assert (np.abs(found - expected) <= slack)[certain].all()


def whole(*box: float, dtype: Any = np.float32) -> np.ndarray:
    return np.full((4, N, 4), box, dtype)


def test_boxes_far_outside_are_clipped_under_jit(rng: np.random.Generator) -> None:
    batch = boxes_in(rng, 4, whole(-40, 0, W, 8))
    jitted = jax.jit(transform_of("cutmix", prob=0).mix)(batch)
    np.testing.assert_array_equal(jitted["boxes"][:, :N], whole(0, 0, W, 8))


def test_relative_boxes_end_where_the_image_ends(rng: np.random.Generator) -> None:
    """41/41 is 0.99999994 where XLA divides by a broadcast vector."""
    for side in (41, 55):
        batch = {
            "image": np.zeros((512, side, side, 3), np.uint8),
            "boxes": np.array([[[0.5, 0.5, 1, 1]]] * 512, np.float32),
            "mix_seed": rng.integers(2**32, size=512, dtype=np.uint32),
        }
        targets = {"boxes": gm.Boxes("rel_xyxy", min_visible=0)}
        transform = gm.CutMixBatch(targets=targets, minmax=(0.6, 1))
        mixed = transform.map(batch)
        box = np.asarray(transform.draw(batch["mix_seed"], batch["image"].shape).box)
        (top, left), (bottom, right) = box[..., 0].T, box[..., 1].T
        hidden = (top <= side / 2) & (left <= side / 2) & (bottom == side) & (right == side)
        assert hidden.any()
        assert (mixed["boxes_weight"][hidden, 0] == 0).all()
        assert (mixed["boxes"][hidden, 0] == 0).all()
        below = (left <= side / 2) & (right == side) & (top > side / 2) & (bottom == side)
        np.testing.assert_allclose(mixed["boxes"][below, 0, 3], top[below] / side, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "box_format"),
    [("both", "rel_center_xywh"), nightly("mosaic", "rel_xywh"), ("map", "yxyx")],
)
def test_boxes_that_a_compiler_knows(kind: str, box_format: str, rng: np.random.Generator) -> None:
    """Divisors that are constants would become rounded reciprocals: 1/7·7 is not 1."""
    size, room = 64, 0.01  # no box is too thin to be visible
    corners = np.sort(rng.random((size, N, 2, 2)), axis=2) * (np.array([H, W]) - room)
    corners[:, :, 1] += room
    boxes = reference.boxes_of(corners, box_format, (H, W)).astype(np.float32)
    batch = boxes_in(rng, size, boxes)
    batch["mask"] *= rng.random(batch["mask"].shape) < 0.02
    mix = transform_of(kind, box_format, "mask" if kind == "map" else None, prob=0.7)
    seeds = rng.integers(2**32, size=(3, size), dtype=np.uint32)

    def mixed(seeds: Any) -> Any:
        out = mix.mix(batch | {"mix_seed": seeds})
        return out["boxes"], out["boxes_weight"]

    def roads(seeds: jax.Array) -> Any:
        branches = mixed, lambda seeds: mixed(seeds + 1)
        return {
            "vmap": jax.vmap(mixed)(seeds),
            "scan": jax.lax.map(mixed, seeds),
            "jit": [x[None] for x in mixed(seeds[0])],
            "cond": [x[None] for x in jax.lax.cond(seeds[1, 0] >= 0, *branches, seeds[0])],
            "checkpoint": [x[None] for x in jax.checkpoint(mixed)(seeds[0])],
        }

    each = [mix.map(batch | {"mix_seed": x}) for x in seeds]
    expected = [np.stack([x[name] for x in each]) for name in ("boxes", "boxes_weight")]
    unmixed = np.asarray(mix.draw(seeds[0], batch["image"].shape).lam) == 1
    real = corners[unmixed, :, 0, 0] >= 0 if kind != "map" else batch["mask"][unmixed].any((2, 3))
    assert (expected[1][0][unmixed, :N] == real).all()
    for road, found in jax.device_get(jax.jit(roads)(seeds)).items():
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_array_equal(x.view("u4"), y[: len(x)].view("u4"), road)


def test_fractions_of_one_pixel_outside() -> None:
    """-1/13 * 13 is -1.0000001 in float32."""
    mix = gm.MixUpBatch(targets={"boxes": gm.Boxes("rel_xyxy")}, prob=0)
    for side in (13, 41):
        boxes = np.float32([[[-1 / side, -1 / side, 1 + 1 / side, 0.5]]])
        seeds, images = np.zeros(1, np.uint32), np.zeros((1, side, side, 3), np.uint8)
        mixed = mix.mix({"image": images, "boxes": boxes, "mix_seed": seeds})
        np.testing.assert_allclose(mixed["boxes"][0, 0], [0, 0, 1, 0.5], atol=1e-6)


def test_relative_boxes_of_few_bits_that_end_with_the_image() -> None:
    """A corner and a side that bfloat16 has rounded may miss the border by some pixels."""
    corners, size = np.linspace(0.3, 0.7, 40), np.array([800, 1333])
    boxes = np.stack([corners, corners, 1 - corners, 1 - corners], -1)[None]
    batch = {
        "image": np.zeros((1, *size, 1), np.uint8),
        "boxes": boxes.astype(jax.numpy.bfloat16),
        "mix_seed": np.zeros(1, np.uint32),
    }
    corner, side = np.split(np.float64(batch["boxes"]), 2, axis=-1)
    assert (corner + side).max() > 1 + 1.01 / 1333
    batch["boxes"][0, 30:] = -1  # padding has no area
    spec = gm.Boxes("rel_xywh")
    gm.MixUpBatch(targets={"boxes": spec}, label_key=None).map(batch)


def test_what_is_too_thin_is_not_visible(rng: np.random.Generator) -> None:
    for width, weight in ((0.0005, 0), (0.005, 1)):
        batch = boxes_in(rng, 4, whole(2, 2, 2 + width, 9))
        mixed = transform_of("mixup", prob=0).map(batch)
        np.testing.assert_array_equal(mixed["boxes_weight"][:, :N], weight)


@pytest.mark.parametrize(
    ("boxes", "box_format", "message"),
    [
        (np.zeros((4, N), np.int32), "xyxy", r"'boxes' is int32 \[4, 3\].*\[B, N, 4\].*pad"),
        (np.zeros((4, N, 5), np.int32), "xyxy", r"\[4, 3, 5\].*the class, .*in fields.*rotated"),
        (np.zeros((4, N, 8)), "xyxy", r"\[4, 3, 8\].*polygons.*gm.Target"),
        (np.zeros((4, 2, N, 4)), "xyxy", r"\[4, 2, 3, 4\].*reshape them to \[B, T \* N, 4\]"),
        (np.zeros((4, 2, 4), np.int32), "xyxy", r"'class' is int32 \[4, 3\].*\[B, 2, \.\.\.\]"),
        (whole(3, 4, 1, 5), "xyxy", "first corner beyond.*format='xywh' or"),
        (whole(9, 3, 16, 10), "xywh", "columns from 9 to 25.*pass format='xyxy' if they"),
        (whole(0.5, 0.6, 0.3, 0.9), "rel_xyxy", "beyond.*pass format='rel_center_xywh' if they"),
        (whole(3, 4, 5, 9), "rel_xyxy", "pass format='xyxy' or"),
        (whole(0.1, 0.2, 0.5, 0.9), "xyxy", "no number above 1.*pass format='rel_xyxy' or"),
        (whole(0, 0, 1, 1, dtype=np.int32), "rel_xyxy", "int32.*'rel_xyxy'.*'xyxy'"),
        (whole(5, 5, 2, 2, dtype=np.int32), "center_xywh", "int32.*floats"),
        (whole(np.nan, 0, 1, 1), "xyxy", "'boxes' with NaN.*zeros"),
        (whole(0, 0, np.inf, 1), "xyxy", "infinity.*zeros"),
        (whole(-10, 2, 5, 5), "xyxy", "columns from -10 to 5.*; clip boxes"),
        (whole(1, 2, 5, 16), "xyxy", "rows from 2 to 16.*pass format='yxyx'.*else clip"),
        (np.zeros((4, N, 4), "U1"), "xyxy", r"'boxes' is <U1.*cast"),
    ],
)
def test_wrong_boxes(
    boxes: np.ndarray, box_format: str, message: str, rng: np.random.Generator
) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^Boxes: .*{message}"):
        transform_of("cutmix", box_format).map(boxes_in(rng, 4, boxes))


@each_kind
def test_wrong_masks(kind: str, rng: np.random.Generator) -> None:
    batch = boxes_in(rng, 4)
    transform = transform_of(kind, masks="mask")
    for shape in ((4, N + 1, H, W), (4, N, H + 1, W), (4, H, W, N), (4, H, W)):
        wrong = batch | {"mask": np.zeros(shape, bool)}
        with pytest.raises(ValueError, match=r"^Boxes: 'mask' is bool .*a mask for each.*LabelMap"):
            transform.map(wrong)


@pytest.mark.parametrize(("weight_map", "masks"), [(coins, None), (fog, "mask")])
def test_what_weight_maps_leave(weight_map: Any, masks: Any, rng: np.random.Generator) -> None:
    mix = gm.WeightMapMixBatch(weight_map, targets={"boxes": gm.Boxes("xyxy", masks=masks)})
    message = r"^Boxes: 'boxes' with a weight map of .* a map of bool, and masks; .* CutMixBatch"
    with pytest.raises(ValueError, match=message):
        mix.map(boxes_in(rng, 4))


def test_a_mosaic_moves_boxes_as_far_as_the_image_is_long(rng: np.random.Generator) -> None:
    batch = boxes_in(rng, 4, "xyxy", "uint8") | {"image": np.zeros((4, H, 300, 3), np.uint8)}
    with pytest.raises(TypeError, match=r"^Boxes: 'boxes' is uint8 .* 300 long; .* int32"):
        transform_of("mosaic").map(batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "xyyx"}, "format='xyyx'.*mean 'xyxy'"),
        ({"format": "xyxy", "fields": "class"}, r"tuple like \('class',\)"),
        ({"format": "xyxy", "min_visible": 2}, "min_visible=2; expected a number from 0 to 1"),
        ({"format": "xyxy", "masks": 1.5}, "masks=1.5"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^Boxes: .*{message}"):
        gm.Boxes(**options)
