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
MIN_VISIBLE = 0.305  # no box here shows just so much of its area
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


def transform_of(
    kind: str, box_format: str, masks: Any = None, visible: float = MIN_VISIBLE, **more: Any
) -> Any:
    boxes = gm.Boxes(box_format, fields=("class",), masks=masks, min_visible=visible)
    return KINDS[kind](targets={"boxes": boxes}, label_key=None, **more)


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
        outside = 1.0 if draw.mixup_lam is None else float(draw.mixup_lam[i])
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


def written(boxes: np.ndarray, box_format: str) -> np.ndarray:
    """Boxes (x, y, x, y) in pixels, in another format."""
    x0, y0, x1, y1 = np.moveaxis(boxes, -1, 0)
    sides = {
        "xyxy": (x0, y0, x1, y1),
        "yxyx": (y0, x0, y1, x1),
        "xywh": (x0, y0, x1 - x0, y1 - y0),
        "center_xywh": ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0),
    }[box_format.removeprefix("rel_")]
    out = np.stack(sides, axis=-1)
    if not box_format.startswith("rel_"):
        return out.astype(np.float32 if "center" in box_format else np.int32)
    return (out / (([H, W] if "yxyx" in box_format else [W, H]) * 2)).astype(np.float32)


def read(boxes: np.ndarray, box_format: str) -> np.ndarray:
    """The reverse of `written`."""
    out = np.asarray(boxes, np.float64)
    if box_format.startswith("rel_"):
        out = out * (([H, W] if "yxyx" in box_format else [W, H]) * 2)
    a, b, c, d = np.moveaxis(out, -1, 0)
    x0, y0, x1, y1 = {
        "xyxy": (a, b, c, d),
        "yxyx": (b, a, d, c),
        "xywh": (a, b, a + c, b + d),
        "center_xywh": (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
    }[box_format.removeprefix("rel_")]
    return np.rint(np.stack([x0, y0, x1, y1], axis=-1)).astype(int)


@pytest.mark.parametrize(
    ("kind", "box_format"),
    [
        ("mixup", "xyxy"),
        ("both", "xyxy"),
        ("cutmix", "yxyx"),
        ("cutmix", "xywh"),
        ("cutmix", "center_xywh"),
        ("both", "rel_xyxy"),
        ("cutmix", "rel_yxyx"),
        ("both", "rel_xywh"),
        ("cutmix", "rel_center_xywh"),
    ],
)
def test_boxes_by_counting_pixels(kind: str, box_format: str, rng: np.random.Generator) -> None:
    size = 200 * int(os.environ.get("GRAIN_MIX_FUZZ", "1"))
    boxes = boxes_of(rng, size)
    batch = batch_of(rng, size, written(boxes, box_format))
    batch["masks"] = np.array([[painted(box) for box in each] for each in boxes]).astype(np.uint8)
    transform = transform_of(kind, box_format, prob=0.8, masks="masks")
    mixed = transform.map(batch)
    draw = transform.draw(batch["mix_seed"], batch["image"].shape)
    weights, visible = counted(boxes, draw)
    assert mixed["boxes"].shape == (size, 2 * N, 4)
    assert mixed["boxes"].dtype == batch["boxes"].dtype
    np.testing.assert_allclose(mixed["boxes_weight"], weights, atol=1e-6)
    np.testing.assert_array_equal(mixed["boxes_weight"] == 0, weights == 0)
    other = batch["class"][partners(size)]
    np.testing.assert_array_equal(mixed["class"], np.concatenate([batch["class"], other], axis=1))
    assert (mixed["boxes"][weights == 0] == 0).all()  # matchers must not train on what is hidden
    shown = read(mixed["boxes"], box_format)
    full = np.concatenate([boxes, boxes[partners(size)]], axis=1)
    cut = 0
    for i, k in zip(*np.nonzero(weights), strict=True):
        seen = visible[i, k]
        is_rectangle = painted(bounds(seen)).sum() == seen.sum()
        assert tuple(shown[i, k]) == (bounds(seen) if is_rectangle else tuple(full[i, k]))
        cut += is_rectangle and tuple(shown[i, k]) != tuple(full[i, k])
    assert (cut > 100) == (kind != "mixup")
    # The painted masks are the visible pixels, and nothing of a partner that is not shown.
    masks = np.asarray(mixed["masks"]).astype(bool)
    np.testing.assert_array_equal(masks[weights > 0], visible[weights > 0])
    unmixed = np.asarray(draw.lam) == 1
    assert unmixed.any()
    assert not masks[unmixed, N:].any()


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
            pixels = [W, H] if box_format != "xyxy" else [1, 1]
            if min((high - low) * n for (low, high), n in zip(spans, pixels, strict=True)) < 0.01:
                continue  # where it is thinner than a thousandth of a pixel, it is not visible
            area = (spans[0][1] - spans[0][0]) * (spans[1][1] - spans[1][0])
            gaps = [
                abs(edge - bound) * n
                for span, cut, n in zip(spans, pasted, pixels, strict=True)
                for edge in span
                for bound in cut
            ]
            if any(gap < 0.002 for gap in gaps):
                continue  # so thin a strip does not count as visible
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
            assert mixed["boxes_weight"][i, k] == pytest.approx(expected, abs=1e-6 + 4e-7 * thin)


@each_kind
def test_unmixed_records_keep_their_boxes(kind: str, rng: np.random.Generator) -> None:
    boxes = boxes_of(rng, 8)
    batch = batch_of(rng, 8, boxes) | {"valid": np.arange(8) < 4}
    for more in ({"prob": 0}, {"valid_key": "valid"}):
        mixed = transform_of(kind, "xyxy", **more).map(batch)
        unmixed = slice(4, 8)
        real = (boxes[..., 2:] > boxes[..., :2]).all(-1)[unmixed]
        kept = boxes[unmixed] * real[..., None]
        np.testing.assert_array_equal(mixed["boxes"][unmixed, :N], kept)
        np.testing.assert_array_equal(mixed["boxes_weight"][unmixed, :N], real)
        np.testing.assert_array_equal(mixed["boxes_weight"][unmixed, N:], 0)
        np.testing.assert_array_equal(mixed["boxes"][unmixed, N:], 0)


@each_kind
def test_a_batch_of_one_stays_unmixed(kind: str, rng: np.random.Generator) -> None:
    boxes = np.full((1, N, 4), [1, 2, 9, 8], np.int32)
    for _ in range(5):
        mixed = transform_of(kind, "xyxy").map(batch_of(rng, 1, boxes))
        np.testing.assert_array_equal(mixed["boxes"][:, :N], boxes)
        assert mixed["boxes_weight"].tolist() == [[1] * N + [0] * N]


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
        np.testing.assert_array_equal(mixed["boxes_weight"], expected["boxes_weight"])
        np.testing.assert_array_equal(mixed["boxes"], expected["boxes"])


def test_boxes_at_the_edge(rng: np.random.Generator) -> None:
    """What lies outside is no part of a box, which is clipped to the image."""
    boxes = np.zeros((2, N, 4), np.float32)
    boxes[:, 0] = [-0.5, 0, 4, 4]
    boxes[:, 1] = [W - 2, 0, W + 0.75, 2]
    mixed = transform_of("cutmix", "xyxy", prob=0).map(batch_of(rng, 2, boxes))
    np.testing.assert_array_equal(mixed["boxes"][:, :2], [[[0, 0, 4, 4], [W - 2, 0, W, 2]]] * 2)
    np.testing.assert_array_equal(mixed["boxes_weight"][:, :2], 1)
    far = np.zeros((2, N, 4), np.float32)
    far[:, 0] = [-40, 0, W, 8]
    jitted = jax.jit(transform_of("cutmix", "xyxy", prob=0).mix)(batch_of(rng, 2, far))
    np.testing.assert_array_equal(jitted["boxes"][:, 0], [[0, 0, W, 8]] * 2)


def test_relative_boxes_end_where_the_image_ends(rng: np.random.Generator) -> None:
    """41/41 is 0.99999994 where XLA divides by a broadcast vector."""
    for side in (41, 55):
        batch = {
            "image": np.zeros((512, side, side, 3), np.uint8),
            "boxes": np.array([[[0.5, 0.5, 1, 1]]] * 512, np.float32),
            "mix_seed": rng.integers(2**32, size=512, dtype=np.uint32),
        }
        transform = gm.CutMixBatch(
            targets={"boxes": gm.Boxes("rel_xyxy", min_visible=0)}, minmax=(0.6, 1)
        )
        mixed = transform.map(batch)
        box = np.asarray(transform.draw(batch["mix_seed"], batch["image"].shape).box)
        (top, left), (bottom, right) = box[..., 0].T, box[..., 1].T
        hidden = (top <= side / 2) & (left <= side / 2) & (bottom == side) & (right == side)
        assert hidden.any()
        assert (mixed["boxes_weight"][hidden, 0] == 0).all()
        assert (mixed["boxes"][hidden, 0] == 0).all()
        below = (left <= side / 2) & (right == side) & (top > side / 2) & (bottom == side)
        np.testing.assert_allclose(mixed["boxes"][below, 0, 3], top[below] / side, rtol=1e-6)


def test_what_is_too_thin_is_not_visible(rng: np.random.Generator) -> None:
    boxes = np.zeros((4, N, 4), np.float32)
    boxes[:, 0] = [2, 2, 2.0005, 9]
    boxes[:, 1] = [2, 2, 2.005, 9]
    mixed = transform_of("mixup", "xyxy", prob=0, visible=0).map(batch_of(rng, 4, boxes))
    np.testing.assert_array_equal(mixed["boxes_weight"][:, :2], [[0, 1]] * 4)


def whole(*box: float, dtype: Any = np.float32) -> np.ndarray:
    return np.full((4, N, 4), box, dtype)


@pytest.mark.parametrize(
    ("boxes", "box_format", "message"),
    [
        (np.zeros((4, N), np.int32), "xyxy", r"'boxes' is int32 \[4, 5\].*\[B, N, 4\].*pad"),
        (np.zeros((4, 3, 4), np.int32), "xyxy", r"'class' is int32 \[4, 5\].*\[B, 3, \.\.\.\]"),
        (whole(3, 4, 1, 5), "xyxy", "first corner beyond.*format='xywh'"),
        (whole(3, 4, 5, 9), "rel_xyxy", "format='xyxy' for boxes in pixels"),
        (whole(0.1, 0.2, 0.5, 0.9), "xyxy", "first pixel.*format='rel_xyxy'"),
        (whole(0, 0, 1, 1, dtype=np.int32), "rel_xyxy", "int32.*'rel_xyxy'.*'xyxy'"),
        (whole(5, 5, 2, 2, dtype=np.int32), "center_xywh", "int32.*floats"),
        (whole(np.nan, 0, 1, 1), "xyxy", "'boxes' with NaN.*zeros"),
        (whole(0, 0, np.inf, 1), "xyxy", "infinity.*zeros"),
        (whole(-10, 2, 5, 5), "xyxy", "columns from -10 to 5.*clip boxes"),
        (whole(1, 2, 5, 16), "xyxy", "rows from 2 to 16.*rows and columns swapped"),
        (np.zeros((4, N, 4), "U1"), "xyxy", r"'boxes' is <U1.*cast"),
    ],
)
def test_wrong_boxes(
    boxes: np.ndarray, box_format: str, message: str, rng: np.random.Generator
) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^Boxes: .*{message}"):
        transform_of("cutmix", box_format).map(batch_of(rng, 4, boxes))


@each_kind
def test_wrong_masks(kind: str, rng: np.random.Generator) -> None:
    batch = batch_of(rng, 4, boxes_of(rng, 4))
    transform = transform_of(kind, "xyxy", masks="mask")
    for shape in ((4, N + 1, H, W), (4, N, H + 1, W), (4, H, W, N), (4, H, W)):
        wrong = batch | {"mask": np.zeros(shape, bool)}
        with pytest.raises(ValueError, match=r"^Boxes: 'mask' is bool .*a mask for each.*LabelMap"):
            transform.map(wrong)


def test_weight_maps_leave_no_boxes(rng: np.random.Generator) -> None:
    def halves(key: Any, lam: Any, lengths: tuple[int, ...]) -> Any:
        return jax.numpy.zeros(lengths, bool)

    mix = gm.WeightMapMixBatch(halves, targets={"boxes": gm.Boxes("xyxy")})
    with pytest.raises(ValueError, match=r"^Boxes: 'boxes' with a weight map.*CutMixBatch"):
        mix.map(batch_of(rng, 4, boxes_of(rng, 4)))


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
