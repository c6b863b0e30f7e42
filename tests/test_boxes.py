"""Detection boxes and masks of instances, against counted pixels and exact fractions.

`GRAIN_MIX_FUZZ=12` counts the pixels of 240,000 boxes instead of 20,000.
"""

import os
from fractions import Fraction
from typing import Any

import jax
import numpy as np
import pytest

import grain_mix as gm

H, W, N = 13, 17, 5
MIN_VISIBLE = 0.3
KINDS: dict[str, Any] = {
    "mixup": lambda **more: gm.MixUpBatch(1.0, **more),
    "cutmix": lambda **more: gm.CutMixBatch(**more),
    "both": lambda **more: gm.MixBatch(1.0, **more),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def boxes_of(rng: np.random.Generator, size: int) -> np.ndarray:
    """`int32 [B, N, 4]` as (x, y, x, y), some of which are padding."""
    x, y = (np.sort(rng.integers(0, side + 1, (size, N, 2)), axis=-1) for side in (W, H))
    boxes = np.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], axis=-1)
    boxes[rng.random((size, N)) < 0.2] = 0
    return boxes.astype(np.int32)


def batch_of(rng: np.random.Generator, size: int, boxes: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "image": rng.integers(0, 256, (size, H, W, 3), np.uint8),
        "boxes": boxes,
        "class": rng.integers(0, 9, (size, N)).astype(np.int32),
        "mix_seed": rng.integers(2**32, size=size, dtype=np.uint32),
    }


def transform_of(kind: str, box_format: str, **more: Any) -> Any:
    fields: dict[str, Any] = {
        "boxes_key": "boxes",
        "box_format": box_format,
        "box_keys": ("class",),
        "min_visible": MIN_VISIBLE,
        "label_key": None,
    }
    return KINDS[kind](**fields | more)


def painted(box: Any) -> np.ndarray:
    """`bool [H, W]`: the pixels of a box."""
    x0, y0, x1, y1 = box
    pixels = np.zeros((H, W), bool)
    pixels[y0:y1, x0:x1] = True
    return pixels


def partners(size: int) -> np.ndarray:
    index = np.arange(size)
    return np.where((index ^ 1) < size, index ^ 1, index - 1)


def counted(boxes: np.ndarray, draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """Weights and visible pixels, by painting each box and the pasted rectangle."""
    size = len(boxes)
    weights = np.zeros((size, 2 * N), np.float64)
    visible = np.zeros((size, 2 * N, H, W), bool)
    for i, j in enumerate(partners(size)):
        pasted = np.zeros((H, W), bool)
        if draw.box is not None:
            (top, bottom), (left, right) = np.asarray(draw.box[i])
            pasted[top:bottom, left:right] = True
        outside = 1.0 if draw.outside is None else float(draw.outside[i])
        for k in range(2 * N):
            own = k < N
            whole = painted(boxes[i if own else j][k % N])
            seen = whole
            weight = outside if own else 1 - outside
            if pasted.any():
                seen = whole & (~pasted if own else pasted)
                weight = outside if own else 1.0
            fraction = seen.sum() / whole.sum() if whole.any() else 0
            weights[i, k] = weight * (fraction if fraction >= MIN_VISIBLE else 0)
            visible[i, k] = seen
    return weights, visible


def bounds(pixels: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@pytest.mark.parametrize(
    ("kind", "box_format"), [("mixup", "xyxy"), ("cutmix", "yxyx"), ("both", "xyxy")]
)
def test_boxes_by_counting_pixels(kind: str, box_format: str, rng: np.random.Generator) -> None:
    size = 333 * int(os.environ.get("GRAIN_MIX_FUZZ", "1"))
    boxes = boxes_of(rng, size)
    given = boxes if box_format == "xyxy" else boxes[..., [1, 0, 3, 2]]
    batch = batch_of(rng, size, given)
    batch["masks"] = np.array([[painted(box) for box in each] for each in boxes]).astype(np.uint8)
    transform = transform_of(kind, box_format, prob=0.8, mask_key="masks")
    mixed = transform.map(batch)
    weights, visible = counted(boxes, transform.draw(batch["mix_seed"], batch["image"].shape))
    assert mixed["boxes"].shape == (size, 2 * N, 4)
    assert mixed["boxes"].dtype == np.int32
    np.testing.assert_allclose(mixed["box_weight"], weights, atol=1e-6)
    np.testing.assert_array_equal(mixed["box_weight"] == 0, weights == 0)
    other = batch["class"][partners(size)]
    np.testing.assert_array_equal(mixed["class"], np.concatenate([batch["class"], other], axis=1))
    assert (mixed["boxes"][..., :2] <= mixed["boxes"][..., 2:]).all()  # also where nothing is left
    shown = mixed["boxes"] if box_format == "xyxy" else mixed["boxes"][..., [1, 0, 3, 2]]
    full = np.concatenate([boxes, boxes[partners(size)]], axis=1)
    cut = 0
    for i, k in zip(*np.nonzero(weights), strict=True):
        seen = visible[i, k]
        is_rectangle = painted(bounds(seen)).sum() == seen.sum()
        assert tuple(shown[i, k]) == (bounds(seen) if is_rectangle else tuple(full[i, k]))
        cut += is_rectangle and tuple(shown[i, k]) != tuple(full[i, k])
    assert (cut > 100) == (kind != "mixup")
    # The painted masks are the visible pixels, where a record shows its partner at all.
    masks = np.asarray(mixed["masks"]).astype(bool)
    np.testing.assert_array_equal(masks[weights > 0], visible[weights > 0])


@pytest.mark.parametrize("box_format", ["xyxy", "rel_xyxy", "rel_yxyx"])
def test_fractional_boxes_by_exact_arithmetic(box_format: str, rng: np.random.Generator) -> None:
    size = 100
    x, y = (np.sort(rng.random((size, N, 2), np.float32), axis=-1) for _ in range(2))
    if box_format == "xyxy":
        x, y = x * np.float32(W), y * np.float32(H)
    order = [y, x] if box_format == "rel_yxyx" else [x, y]
    boxes = np.stack([order[0][..., 0], order[1][..., 0], order[0][..., 1], order[1][..., 1]], -1)
    batch = batch_of(rng, size, boxes)
    transform = transform_of("cutmix", box_format)
    mixed = transform.map(batch)
    rectangles = np.asarray(transform.draw(batch["mix_seed"], batch["image"].shape).box)
    for i, j in enumerate(partners(size)):
        (top, bottom), (left, right) = rectangles[i].tolist()
        sides = (H, W) if box_format != "xyxy" else (1, 1)
        pasted = [
            (Fraction(left, sides[1]), Fraction(right, sides[1])),
            (Fraction(top, sides[0]), Fraction(bottom, sides[0])),
        ]
        for k in range(2 * N):
            source = i if k < N else j
            spans = [tuple(Fraction(float(v)) for v in axis[source][k % N]) for axis in (x, y)]
            area = (spans[0][1] - spans[0][0]) * (spans[1][1] - spans[1][0])
            inside = Fraction(1)
            for (low, high), (start, stop) in zip(spans, pasted, strict=True):
                inside *= max(min(high, stop) - max(low, start), 0)
            fraction = (area - inside if k < N else inside) / area if area else Fraction(0)
            if abs(float(fraction) - MIN_VISIBLE) < 1e-4:
                continue  # rounding decides
            if right == left or bottom == top:
                fraction = Fraction(int(k < N and area > 0))
            expected = float(fraction) if fraction >= MIN_VISIBLE else 0
            # float32 rounds positions, which counts where a box is thin.
            far = max(abs(float(bound)) for span in spans for bound in span)
            thin = far / max(min(float(high - low) for low, high in spans), 1e-9)
            assert mixed["box_weight"][i, k] == pytest.approx(expected, abs=1e-6 + 4e-7 * thin)


@each_kind
def test_unmixed_records_keep_their_boxes(kind: str, rng: np.random.Generator) -> None:
    boxes = boxes_of(rng, 8)
    batch = batch_of(rng, 8, boxes) | {"valid": np.arange(8) < 4}
    for more in ({"prob": 0}, {"valid_key": "valid"}):
        mixed = transform_of(kind, "xyxy", **more).map(batch)
        unmixed = slice(4, 8)
        real = (boxes[..., 2:] > boxes[..., :2]).all(-1)[unmixed]
        np.testing.assert_array_equal(mixed["boxes"][unmixed, :N], boxes[unmixed])
        np.testing.assert_array_equal(mixed["box_weight"][unmixed, :N], real)
        np.testing.assert_array_equal(mixed["box_weight"][unmixed, N:], 0)


@each_kind
def test_a_batch_of_one_stays_unmixed(kind: str, rng: np.random.Generator) -> None:
    boxes = np.full((1, N, 4), [1, 2, 9, 8], np.int32)
    for _ in range(5):
        mixed = transform_of(kind, "xyxy").map(batch_of(rng, 1, boxes))
        np.testing.assert_array_equal(mixed["boxes"][:, :N], boxes)
        assert mixed["box_weight"].tolist() == [[1] * N + [0] * N]


@pytest.mark.parametrize(("kind", "mode"), [("cutmix", "batch"), ("both", "elem")])
def test_boxes_over_devices(kind: str, mode: str, rng: np.random.Generator) -> None:
    batch = batch_of(rng, 8, boxes_of(rng, 8))
    expected = transform_of(kind, "xyxy", mode=mode).map(batch)
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    mixed = transform_of(kind, "xyxy", mode=mode, sharding=sharding).map(batch)
    jitted = jax.jit(transform_of(kind, "xyxy", mode=mode).mix)(batch)
    assert list(mixed) == list(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(mixed[key], value)
        np.testing.assert_array_equal(jitted[key], value)


def test_channels_first(rng: np.random.Generator) -> None:
    batch = batch_of(rng, 50, boxes_of(rng, 50))
    expected = transform_of("cutmix", "xyxy").map(batch)
    turned = batch | {"image": np.moveaxis(batch["image"], 3, 1)}
    for axes in ((2, 3), (-2, -1)):
        mixed = transform_of("cutmix", "xyxy", spatial_axes=axes).map(turned)
        np.testing.assert_array_equal(mixed["box_weight"], expected["box_weight"])
        np.testing.assert_array_equal(mixed["boxes"], expected["boxes"])


@pytest.mark.parametrize(
    ("boxes", "more", "message"),
    [
        (np.zeros((4, N), np.int32), {}, r"'boxes' is int32 \[4, 5\].*\[B, N, 4\].*pad"),
        (np.zeros((4, 3, 4), np.int32), {}, r"'class' is int32 \[4, 5\].*\[B, 3, \.\.\.\]"),
        (np.full((4, N, 4), [3, 4, 1, 5], np.int32), {}, "first corner beyond.*width, height"),
        (np.full((4, N, 4), [3, 4, 5, 9.0]), {"box_format": "rel_xyxy"}, "up to 9.*'xyxy'"),
        (np.zeros((4, N, 4), np.int32), {"box_format": "rel_xyxy"}, "int32.*'rel_xyxy'.*'xyxy'"),
        (np.full((4, N, 4), np.nan), {}, "'boxes' with NaN.*zeros"),
        (np.zeros((4, N, 4), "U1"), {}, r"'boxes' is <U1.*cast"),
    ],
)
def test_wrong_boxes(boxes: np.ndarray, more: Any, message: str, rng: np.random.Generator) -> None:
    batch = batch_of(rng, 4, boxes)
    with pytest.raises((TypeError, ValueError), match=f"^CutMixBatch: .*{message}"):
        transform_of("cutmix", **({"box_format": "xyxy"} | more)).map(batch)


@each_kind
def test_wrong_masks(kind: str, rng: np.random.Generator) -> None:
    batch = batch_of(rng, 4, boxes_of(rng, 4))
    transform = transform_of(kind, "xyxy", mask_key="mask")
    for shape in ((4, N + 1, H, W), (4, N, H + 1, W)):
        wrong = batch | {"mask": np.zeros(shape, bool)}
        with pytest.raises(ValueError, match=f"'mask' is bool .* with {N} boxes.*a mask for each"):
            transform.map(wrong)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"boxes_key": "boxes"}, "without box_format.*'rel_yxyx'"),
        ({"boxes_key": "boxes", "box_format": "xywh"}, "box_format='xywh'.*one of"),
        ({"box_keys": ("class",)}, "without boxes_key"),
        ({"boxes_key": "b", "box_format": "xyxy", "box_keys": "class"}, r"tuple like \('class',\)"),
        ({"min_visible": 2}, "min_visible=2; expected a number from 0 to 1"),
        ({"boxes_key": "box_weight", "box_format": "xyxy"}, "'box_weight' named twice"),
    ],
)
def test_wrong_options(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^MixBatch: .*{message}"):
        gm.MixBatch(**fields)
