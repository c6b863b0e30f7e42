"""The mixed batch as a reference, written from the contract: plain NumPy, one record at a time."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import reference_maps

import grain_mix as gm


def group_of(i: int, size: int, k: int) -> list[int]:
    """The positions of a record's sources: itself, and those that follow it in its group of k."""
    if size < k:
        return [i] * k
    start = min(i - i % k, size - k)  # what remains takes the last k records
    return [start + (i - start + r) % k for r in range(k)]


def partner_of(i: int, size: int) -> int:
    return group_of(i, size, 2)[1]


def mixup_one(x: np.ndarray, y: np.ndarray, lam: Any) -> np.ndarray:
    """λ·x + (1-λ)·y; for integers λ in units of 2⁻²⁴. It may be an array."""
    lam = np.float64(lam)
    lam = np.rint(lam * 2**24) / 2**24 if np.issubdtype(x.dtype, np.integer) else lam
    return mean_of([x, y], [lam, 1 - lam])


def mean_of(xs: Sequence[np.ndarray], weights: Sequence[Any]) -> np.ndarray:
    """Σ w·x over those that weigh more than 0; integers are rounded to nearest, halves up."""
    weights = [np.float64(w) for w in weights]
    with np.errstate(all="ignore"):
        if np.issubdtype(xs[0].dtype, np.integer):  # 2²⁴·w are whole numbers, so int64 is exact
            pairs = zip(xs, weights, strict=True)
            total = sum(np.rint(w * 2**24).astype(int) * x.astype(int) for x, w in pairs)
            return np.asarray((total + 2**23) >> 24).astype(xs[0].dtype)
        shown = [np.where(w > 0, w * np.float64(x), 0) for x, w in zip(xs, weights, strict=True)]
        return np.asarray(sum(shown)).astype(xs[0].dtype)


def cutmix_one(x: np.ndarray, y: np.ndarray, box: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """`axes` count from the record's first axis, without the batch axis."""
    window: list[Any] = [slice(None)] * x.ndim
    for (start, stop), axis in zip(box, axes, strict=True):
        window[axis] = slice(int(start), int(stop))
    out = x.copy()
    out[tuple(window)] = y[tuple(window)]
    return out


def aligned(x: np.ndarray) -> np.ndarray:
    """A copy that starts at a memory page, like memory of workers, so that JAX need not copy."""
    memory = np.zeros(x.nbytes + 4096, np.uint8)
    start = -memory.ctypes.data % 4096
    out = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    out[...] = x
    return out


# --- one record and its sources, by what was drawn -----------------------------------------------

Arrays = dict[str, np.ndarray]  # of one record; for a target, its own field is called ""


@dataclasses.dataclass(frozen=True)
class One:
    """What was drawn for one record of k sources."""

    shares: np.ndarray  # float32 [k], the weights of the sources in a label
    outside_box: np.ndarray  # float32 [k], those of the pixels that no box covers
    weights: np.ndarray  # float32 [k, *lengths], those of each pixel of the mixed image
    shift: np.ndarray  # int [k, n], how far each source is moved
    axes: tuple[int, ...]  # of the lengths, in the image [B, ...]
    parts: bool  # whether pixels may differ in their weights
    blends: bool  # whether the transform may blend
    by_map: bool  # whether it has a map of weights

    def axes_in(self, x: np.ndarray, axes: Any) -> list[int]:
        """Those of one record's field, counted without the batch."""
        if axes is None:  # the image's own, or all that there are
            axes = np.argsort(np.argsort(self.axes)) + 1 if x.ndim == len(self.axes) else self.axes
        return [int(axis % (x.ndim + 1)) - 1 for axis in axes]

    def over(self, x: np.ndarray, axes: Any = None) -> list[np.ndarray]:
        """The weights of the sources, each in a shape that broadcasts over a field."""
        if not self.parts:
            return list(self.shares)
        axes = self.axes_in(x, axes)
        shape = [1] * x.ndim
        for axis, length in zip(axes, self.weights.shape[1:], strict=True):
            shape[axis] = length
        return [weights.transpose(np.argsort(axes)).reshape(shape) for weights in self.weights]

    def moved(self, x: np.ndarray, r: int, axes: Any = None) -> np.ndarray:
        """A field of source r where it is shown; zeros beyond its end."""
        if not self.shift.any():
            return x
        return shifted(x, self.shift[r], self.axes_in(x, axes))


def shifted(x: np.ndarray, shift: Any, axes: Sequence[int] = (-2, -1)) -> np.ndarray:
    """Moved by whole entries along these axes; 0 where nothing comes from."""
    moved, to, of = np.zeros_like(x), [slice(None)] * x.ndim, [slice(None)] * x.ndim
    for axis, by in zip(axes, shift, strict=True):
        to[axis] = slice(max(by, 0), x.shape[axis] + min(by, 0))
        of[axis] = slice(max(-by, 0), x.shape[axis] + min(-by, 0))
    moved[tuple(to)] = x[tuple(of)]
    return moved


def ones(transform: Any, draw: gm.Draw, shape: tuple[int, ...]) -> list[One]:
    """What was drawn for each record of images of this shape."""
    parts = not isinstance(transform, gm.MixUpBatch)
    blends = isinstance(transform, gm.MixUpBatch | gm.MixBatch)
    axes: tuple[int, ...] = ()
    if parts or any(kind.positions for kind in targets_of(transform).values()):
        axes = tuple(axis % len(shape) for axis in transform.spatial_axes or (1, 2))
    lengths = tuple(shape[axis] for axis in axes)
    found = []
    for i, shares in enumerate(np.float32(draw.shares)):
        k, shift = len(shares), np.zeros((len(shares), len(axes)), int)
        is_cut = draw.box is not None and (draw.box[i, :, 0] < draw.box[i, :, 1]).all()
        is_blend = draw.weights is None and draw.tiles is None and not is_cut
        outside = shares if is_blend else np.eye(k, dtype=np.float32)[0]
        weights = np.broadcast_to(outside.reshape(k, *[1] * len(axes)), (k, *lengths)).copy()
        if draw.box is not None:
            for r, weight in enumerate([0, 1]):
                weights[r, *window(draw.box[i])] = weight
        elif draw.weights is not None:
            weights = np.stack([np.float32(draw.weights[i]), 1 - np.float32(draw.weights[i])])
        elif draw.tiles is not None:
            shift, weights = draw.shift[i], np.zeros_like(weights)
            for r in range(k):
                weights[r, *window(draw.tiles[i, r])] = 1
            check_mosaic(draw.tiles[i], shift, lengths, transform.split)
        by_map = draw.weights is not None
        found.append(One(shares, outside, weights, shift, axes, parts, blends, by_map))
    return found


def window(box: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(int(start), int(stop)) for start, stop in box)


def check_mosaic(tiles: Any, shift: Any, lengths: Any, split: tuple[float, float]) -> None:
    """All images meet in the centre, with the corners that lie there."""
    if (tiles == [[[0, length] for length in lengths], *[[[0, 0]] * 2] * 3]).all():
        assert (shift == 0).all()  # not mixed
        return
    centre = shift.max(0)
    for length, at in zip(lengths, centre, strict=True):
        low, high = (round(bound * length, 6) for bound in split)
        assert math.ceil(low) <= at <= max(math.floor(high), math.ceil(low))
    own = 2 * (shift[0] == centre)[0] + (shift[0] == centre)[1]
    for r in range(4):
        is_far = np.array([(own ^ r) >> 1, (own ^ r) & 1]) == 1
        np.testing.assert_array_equal(shift[r], np.where(is_far, centre, centre - lengths))
        ends = np.where(is_far, centre, 0), np.where(is_far, lengths, centre)
        np.testing.assert_array_equal(tiles[r].T, ends)


def check_shares(one: One) -> None:
    """The label's weights are the means of the pixels' weights."""
    k, weights = len(one.shares), np.float64(one.weights).reshape(len(one.shares), -1)
    np.testing.assert_array_equal(weights.sum(0), 1)
    assert (weights >= 0).all()
    rounding = 1e-6 if one.by_map and not set(np.unique(weights)) <= {0, 1} else 0
    exact = np.float32(weights.mean(1))
    if k == 2:
        exact[1] = 1 - one.shares[0]
    np.testing.assert_allclose(one.shares, exact, rtol=0, atol=rounding)
    if one.blends:
        np.testing.assert_array_equal(np.float64(one.outside_box) * 2**24 % 1, 0)


def check_same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Every bit; 64 bits may be held in 32."""
    narrow = {"int64": "int32", "uint64": "uint32", "float64": "float32"}
    dtypes = {str(expected.dtype), narrow.get(str(expected.dtype), str(expected.dtype))}
    assert str(actual.dtype) in dtypes
    assert actual.shape == expected.shape
    assert actual.tobytes() == expected.astype(actual.dtype).tobytes()


def check_mean(xs: Sequence[np.ndarray], mixed: np.ndarray, weights: Sequence[Any]) -> None:
    """Each value is that of the one source that is shown, or the mean, as the weights say."""
    assert (mixed.shape, mixed.dtype) == (xs[0].shape, xs[0].dtype)
    w = np.stack([np.broadcast_to(weight, mixed.shape) for weight in weights])
    copied = w.max(0) == 1
    # Bit for bit, where the formula's 0·NaN and 0·∞ would be NaN.
    assert mixed[copied].tobytes() == np.select(list(w == 1), list(xs), xs[0])[copied].tobytes()
    mixed, w, expected = mixed[~copied], w[:, ~copied], mean_of(xs, list(w))[~copied]
    if mixed.dtype.kind in "iu" or copied.all():
        np.testing.assert_array_equal(mixed, expected)
        return
    x, y, expected = (np.float64(z) for z in ([x[~copied] for x in xs], mixed, expected))
    eps = float(ml_dtypes.finfo(mixed.dtype).eps)
    with np.errstate(all="ignore"):
        slack = 2 * len(xs) * eps * np.where(w > 0, np.abs(x), 0).max(0) + 1e-7
        close = np.abs(y - expected) <= slack
        low, high = (np.where(w > 0, x, end) for end in (np.inf, -np.inf))
        between = (low.min(0) - slack <= y) & (y <= high.max(0) + slack)
    finite = np.isfinite(np.where(w > 0, x, 0)).all(0)
    assert (close & between)[finite].all()
    np.testing.assert_array_equal(y[~finite], expected[~finite])


def check_label(
    xs: Sequence[Any], mixed: np.ndarray, shares: np.ndarray, smoothing: float, classes: int
) -> None:
    """The label's mean, smoothed over the classes."""
    xs = [np.asarray(x, np.float32) for x in xs]
    if not smoothing:
        check_mean(xs, mixed, shares)
        return
    assert (mixed.shape, mixed.dtype) == (xs[0].shape, np.float32)
    with np.errstate(all="ignore"):
        expected = mean_of([np.float64(x) for x in xs], shares)
        expected = expected * (1 - smoothing) + smoothing / classes
    np.testing.assert_allclose(mixed, expected, rtol=1e-6, atol=1e-6)


def check_label_map(target: Any, sources: list[Arrays], mixed: Arrays, one: One) -> None:
    """Cut where the image is cut; where it may be blended, beside those of the other sources."""
    xs = [one.moved(source[""], r, target.axes) for r, source in enumerate(sources)]
    weights = zip(one.over(xs[0], target.axes), one.outside_box, strict=True)
    shown = [np.broadcast_to((w == 1) & (w != outside), xs[0].shape) for w, outside in weights]
    expected = np.select(shown[1:], xs[1:], xs[0])
    if one.blends:
        expected = np.stack([expected, *xs[1:]])
        check_same(mixed["_weight"], one.outside_box)
    check_same(mixed[""], expected)


def check_points(sources: list[Arrays], mixed: Arrays, one: One) -> None:
    """The points of all sources, where they lie now, which weigh as the pixels under them."""
    last = np.array(one.weights.shape[1:]) - 1
    for r, source in enumerate(sources):
        points = source[""].astype(np.float32) + np.float32(one.shift[r])
        check_same(mixed[""][r], points)
        at = np.floor(points.astype(np.float64))
        weights = one.weights[r][tuple(np.clip(at, 0, last).astype(int).T)]
        if not one.by_map and not one.shift.any():  # under maps and mosaics the nearest pixel's
            beyond = ((at < 0) | (at > last)).any(-1)
            weights = np.where(beyond, one.outside_box[r], weights)
        check_same(mixed["_weight"][r], weights)
    for name in sources[0].keys() - {""}:
        check_same(mixed[name], np.stack([source[name] for source in sources]))


# --- boxes, by counting halves of pixels ----------------------------------------------------------


def boxes_of(corners: np.ndarray, box_format: str, sides: Any) -> np.ndarray:
    """Boxes `[..., 4]` of the corners `[..., 2, 2]`, lower first, rows first, in pixels."""
    first, second = corners[..., 0, :], corners[..., 1, :]
    name, scale = box_format.removeprefix("rel_"), np.ones(2)
    scale = np.array(sides, float) if name != box_format else scale
    second = second - first if "xywh" in name else second
    first = first + second / 2 if "center" in name else first
    both = [x / scale if name == "yxyx" else (x / scale)[..., ::-1] for x in (first, second)]
    return np.concatenate(both, axis=-1)


def corners_of(boxes: np.ndarray, box_format: str, sides: Any) -> np.ndarray:
    """The corners of boxes: `boxes_of`, the other way round."""
    name, scale = box_format.removeprefix("rel_"), np.ones(2)
    scale = np.array(sides, float) if name != box_format else scale
    boxes = boxes.astype(np.float64)
    first, second = (
        x if name == "yxyx" else x[..., ::-1] for x in (boxes[..., :2], boxes[..., 2:])
    )
    first, second = first * scale, second * scale
    first = first - second / 2 if "center" in name else first
    second = first + second if "xywh" in name else second
    return np.stack([first, second], axis=-2)


def painted(corners: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    """The halves of pixels that a box covers."""
    halves = np.zeros([2 * side for side in sides], bool)
    (top, left), (bottom, right) = (2 * corners).astype(int)
    halves[top:bottom, left:right] = True
    return halves


def check_boxes(target: Any, sources: list[Arrays], mixed: Arrays, one: One) -> None:
    """What is visible of each object, counted in halves of pixels, on which all boxes must end."""
    order = np.argsort(one.axes)  # rows first
    at, shifts = one.weights.transpose(0, *(1 + order)), one.shift[:, order]
    shown, weights, by_map = at == 1, np.ones(len(at), np.float32), one.by_map
    if not by_map and (at == one.outside_box.reshape(-1, 1, 1)).all():  # a blend
        shown, weights = np.ones_like(shown), one.outside_box
    sides, count = shown[0].shape, len(sources[0][""])
    assert mixed[""].shape == (len(sources) * count, 4)
    assert mixed["_weight"].dtype == np.float32
    # Fractions of other sides are rounded, on the way to pixels and back.
    exact = "rel" not in target.format or all(side & (side - 1) == 0 for side in sides)
    for i in range(len(sources) * count):
        source, shift = sources[i // count], shifts[i // count]
        box, here = source[""][i % count], shown[i // count]
        before = np.rint(2 * corners_of(box, target.format, sides)) / 2
        corners = np.clip(before, 0, np.array(sides))
        whole = painted(corners, sides)
        halves = here.repeat(2, axis=0).repeat(2, axis=1)
        seen = shifted(whole, 2 * shift) & halves
        if by_map and whole.any():  # what is lost of its mask is lost of it
            mask = source[target.masks][i % count] != 0
            left = mask & here
            fraction = np.float32(left.sum()) / np.float32(max(mask.sum(), 1))
            if fraction < 1:
                rows, columns = (np.flatnonzero(left.any(axis)) for axis in (1, 0))
                about = np.zeros_like(whole)
                if left.any():
                    about[2 * rows[0] : 2 * rows[-1] + 2, 2 * columns[0] : 2 * columns[-1] + 2] = 1
                seen = whole & about
                fraction *= seen.any()  # a box without area is padding
            else:
                seen = whole
        else:
            fraction = np.float32(seen.sum()) / np.float32(max(whole.sum(), 1))
        weight = weights[i // count] * fraction * (fraction >= np.float32(target.min_visible))
        assert abs(mixed["_weight"][i] - weight) <= 1e-6
        assert (mixed["_weight"][i] > 0) == (weight > 0)
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        after = corners + shift
        if weight and seen[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all():
            after = np.array([[rows[0], columns[0]], [rows[-1] + 1, columns[-1] + 1]]) / 2
        expected = boxes_of(after, target.format, sides) if weight else np.zeros(4)
        stays = weight and (after == before).all() and not shift.any()
        expected = box if stays else expected.astype(box.dtype)
        meets_edges = (
            not (by_map or here.all()) or (corners == 0).any() or (corners == np.array(sides)).any()
        )
        if exact or not weight or (stays and not meets_edges):
            check_same(mixed[""][i], expected)
        else:
            np.testing.assert_allclose(mixed[""][i], expected, rtol=1e-6, atol=1e-6)
    for name in target.fields:
        check_same(mixed[name], np.concatenate([source[name] for source in sources]))
    if target.masks is not None:
        masks = [
            np.where(here & (weight > 0), shifted(source[target.masks], shift), 0)
            for source, here, weight, shift in zip(sources, shown, weights, shifts, strict=True)
        ]
        check_same(
            mixed[target.masks], np.concatenate(masks).astype(sources[0][target.masks].dtype)
        )


# --- a whole batch --------------------------------------------------------------------------------


def check_mixed(transform: Any, batch: Mapping[Any, Any], out: Any, key: Any = None) -> set[str]:
    """Compares what came out, record by record; returns the names of what was mixed."""
    targets = targets_of(transform)
    keys = transform.image_key if isinstance(transform.image_key, tuple) else ("image",)
    brought = (
        transform.partner_key
        if isinstance(transform.partner_key, tuple | None)
        else (transform.partner_key,)
    )
    used = {*keys, *targets, *(name for kind in targets.values() for name in kind.reads)}
    weight_map = getattr(transform, "weight_map", None)
    reads = getattr(transform, "reads", ()) or getattr(weight_map, "reads", ())
    own = {name: np.asarray(batch[name]) for name in used | {*reads}}
    image = own[keys[0]]
    size = len(image)
    valid = np.asarray(batch["valid"]) if transform.valid_key else np.ones(size, bool)
    seeds = np.asarray(batch["mix_seed"] if key is None else hashed(key, size))
    k = sources_of(transform)
    groups = np.array([group_of(i, size, k) for i in range(size)])
    real = valid[groups].all(1)
    sources = [{name: x[groups[:, r]] for name, x in own.items()} for r in range(k)]
    fields = {name: own[name] for name in reads}
    if brought:
        others = [batch[above] for above in brought]
        sources = [own, *({name: np.asarray(each[name]) for name in own} for each in others)]
        valid = real = np.all([valid, *(each.get("valid", valid) for each in others)], axis=0)
        for above, each in zip(brought, others, strict=True):
            fields |= {f"{above}/{name}": each[name] for name in reads}
    mixed = {
        name: np.asarray(x) for name, x in out.items() if isinstance(x, np.ndarray | jax.Array)
    }
    added = {f"{name}_weight" for name, kind in targets.items() if kind.adds}
    if not isinstance(transform, gm.MixUpBatch | gm.MixBatch):
        added -= {f"{name}_weight" for name, kind in targets.items() if type(kind) is gm.LabelMap}
    dropped = {"mix_seed", *(brought or ())}
    assert set(out) == (set(batch) - dropped) | added
    for name in set(batch) - used - dropped:
        check_passed(transform, batch[name], out[name])

    options = {"fields": fields} if fields else {}
    draw = jax.device_get(transform.draw(seeds, image.shape, valid, **options))
    made_of = keys_of(transform, seeds) if weight_map is not None else []
    assert (draw.sources is None) if brought else (draw.sources == groups).all()
    for i, one in enumerate(ones(transform, draw, image.shape)):
        *each, y = ({name: x[i, ...] for name, x in side.items()} for side in (*sources, mixed))
        check_shares(one)
        if not real[i] or transform.prob == 0 or (size < k and not brought):
            assert (one.weights[0] == 1).all()
        elif weight_map is not None:
            check_map(transform, one, each, *made_of[i])
        for name in keys:
            with named(name, i):
                xs = [one.moved(x[name], r) for r, x in enumerate(each)]
                check_mean(xs, y[name], one.over(xs[0]))
        for name, kind in targets.items():
            of_kind = [
                {"": x[name], **{other: x[other] for other in kind.reads}} for x in (*each, y)
            ]
            of_kind[-1]["_weight"] = y.get(f"{name}_weight")
            with named(name, i):
                check_target(kind, of_kind[:-1], of_kind[-1], one)
    return used | added


def written(key: jax.Array, lam: jax.Array, lengths: Any) -> jax.Array:
    """A map that shows what it is given: the bits of the key and of λ in units of 2⁻²⁴."""
    words = jnp.append(jax.random.key_data(key), (lam * 2**24).astype(jnp.uint32))
    return ((words[:, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1).reshape(lengths) == 1


def keys_of(transform: gm.WeightMapMixBatch, seeds: np.ndarray) -> list[tuple[jax.Array, Any]]:
    """The key and λ that the map of each record is made of."""
    same = gm.WeightMapMixBatch(written, transform.alpha, mode=transform.mode, spatial_axes=(1,))
    bits = np.asarray(same.draw(seeds, (len(seeds), 96)).weights).reshape(-1, 3, 32)
    words = np.packbits(bits, axis=-1, bitorder="little").view("<u4")[..., 0].astype(np.uint32)
    keys = [jax.random.wrap_key_data(each, impl="threefry2x32") for each in words[:, :2]]
    return list(zip(keys, np.float32(words[:, 2]) / np.float32(2**24), strict=True))


def check_map(
    transform: gm.WeightMapMixBatch, one: One, sources: list[Arrays], key: jax.Array, lam: Any
) -> None:
    """The weights are those of the map, or of an unmixed record."""
    weights, weight_map = one.weights[0], transform.weight_map
    if transform.prob < 1 and (weights == 1).all():
        return
    if transform.reads:  # by a function of a user's, of numbers alone
        with np.errstate(invalid="ignore"):  # NaN among what it reads
            check_same(weights == 1, weight_map(key, lam, weights.shape, *sources))
    elif type(weight_map).__module__ == gm.maps.__name__:
        order = np.arange(weights.ndim)
        if hasattr(weight_map, "reads"):  # in the image's order
            order = np.argsort(one.axes)
        lengths = tuple(weights.shape[axis] for axis in order)
        expected, sure = reference_maps.map_of(weight_map, key, lam, lengths, sources[1])
        found = weights.transpose(order)
        off = 0 if expected.dtype == bool else 1e-6
        np.testing.assert_allclose(found[sure], expected[sure], rtol=0, atol=off)


@contextlib.contextmanager
def named(name: str, record: int) -> Iterator[None]:
    """Adds to a failure where it is."""
    try:
        yield
    except AssertionError as error:
        error.add_note(f"in {name!r} of record {record}")
        raise


def hashed(key: jax.Array, size: int) -> np.ndarray:
    """Each position's hash, after that of the key's own words."""
    start = jax.random.wrap_key_data(jnp.zeros(2, jnp.uint32), impl="threefry2x32")
    words = key if key.dtype == jnp.uint32 else jax.random.key_data(key)
    for word in words:
        start = jax.random.fold_in(start, word)
    each = jax.vmap(jax.random.fold_in, (None, 0))(start, np.arange(size, dtype=np.uint32))
    return np.asarray(jax.random.key_data(each)[:, 0])


def sources_of(transform: Any) -> int:
    """How many sources a record has."""
    return 4 if isinstance(transform, gm.MosaicBatch) else getattr(transform, "sources", 2)


def targets_of(transform: Any) -> Mapping[str, gm.Target]:
    """What the short form says, as kinds."""
    if transform.targets is not None or transform.label_key is None:
        return transform.targets or {}
    classes, smoothing = transform.num_classes, transform.label_smoothing
    kind = gm.OneHot(classes, smoothing=smoothing) if classes else gm.Soft(smoothing=smoothing)
    return {transform.label_key: kind}


def check_passed(transform: Any, before: Any, after: Any) -> None:
    """What is neither image nor target is the same object, or has been put onto devices."""
    if transform.sharding is not None and isinstance(before, Mapping):
        for below in before:
            check_passed(transform, before[below], after[below])
    elif transform.sharding is not None or isinstance(after, jax.Array):
        check_same(np.asarray(after), np.asarray(before))
    else:
        assert after is before


def check_target(kind: gm.Target, sources: list[Arrays], mixed: Arrays, one: One) -> None:
    xs, y = [source[""] for source in sources], mixed[""]
    match kind:
        case gm.OneHot():
            hot = [np.eye(kind.num_classes)[x.reshape(()).astype(int)] for x in xs]
            check_label(hot, y, one.shares, kind.smoothing, kind.num_classes)
        case gm.MultiHot(union=True):
            union = np.max([np.float64(x) for x, w in zip(xs, one.shares, strict=True) if w > 0], 0)
            check_label([union], y, np.ones(1), kind.smoothing, 2)
        case gm.MultiHot():
            check_label(xs, y, one.shares, kind.smoothing, 2)
        case gm.Soft():
            check_label(xs, y, one.shares, kind.smoothing, y.shape[-1] if y.ndim else 1)
        case gm.Sparse() | gm.Stacked():
            if isinstance(kind, gm.Sparse):
                xs = [x.reshape(()).astype(np.int32) for x in xs]
            check_same(y, np.stack(xs))
            check_same(mixed["_weight"], one.shares)
        case gm.ValueMap():
            moved = [one.moved(x, r, kind.axes) for r, x in enumerate(xs)]
            check_mean(moved, y, one.over(y, kind.axes))
        case gm.LabelMap():
            check_label_map(kind, sources, mixed, one)
        case gm.Boxes():
            check_boxes(kind, sources, mixed, one)
        case _:  # Points of `programs.py`
            check_points(sources, mixed, one)
