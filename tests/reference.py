"""MixUp and CutMix as references, written from the papers: plain NumPy, one record at a time."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import grain_mix as gm


def partner_of(i: int, batch_size: int) -> int:
    if i % 2 == 1:
        return i - 1
    if i + 1 < batch_size:
        return i + 1
    return max(i - 1, 0)


def mixup_one(x: np.ndarray, y: np.ndarray, lam: Any) -> np.ndarray:
    """λ·x + (1-λ)·y; integers are rounded to nearest, halves up. λ may be an array."""
    if np.issubdtype(x.dtype, np.integer):
        # 2²⁴·λ is a whole number, so Python's integers give the exact value before rounding.
        weight = np.rint(np.float64(lam) * 2**24).astype(np.int64).astype(object)
        scaled = weight * x.astype(object) + (2**24 - weight) * y.astype(object)
        return np.asarray((scaled + 2**23) // 2**24, object).astype(x.dtype)
    lam = np.float64(lam)
    mixed = lam * x.astype(np.float64) + (1 - lam) * y.astype(np.float64)
    return mixed.astype(x.dtype)


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


# --- one record and its partner, by what was drawn -----------------------------------------------

Arrays = dict[str, np.ndarray]  # of one record; for a target, its own field is called ""


@dataclasses.dataclass(frozen=True)
class One:
    """What was drawn for one record.

    Attributes:
        lam: the record's own weight in its label.
        outside: the weight of the own pixels that no box covers.
        inside: `bool [*lengths]`, where the partner's pixels are pasted.
        weights: `float [*lengths]`, of the own pixels.
        axes: of the lengths, in the image `[B, ...]`.
        parts: whether pixels may differ in their weights.
        blends: whether the transform may blend.
        by_map: whether it has a map of weights.
    """

    lam: np.float32
    outside: np.float32
    inside: np.ndarray
    weights: np.ndarray
    axes: tuple[int, ...]
    parts: bool
    blends: bool
    by_map: bool

    @property
    def upright(self) -> np.ndarray:
        """`inside` with rows first, whatever the order of the axes."""
        return self.inside.transpose(np.argsort(self.axes))

    def over(self, positions: np.ndarray, x: np.ndarray, axes: Any = None) -> np.ndarray:
        """What each position has, in a shape that broadcasts over one record's field."""
        if not self.parts:
            return positions.reshape(-1)[0]
        if axes is None:  # the image's own, or all that there are
            axes = np.argsort(np.argsort(self.axes)) + 1 if x.ndim == len(self.axes) else self.axes
        axes = [axis % (x.ndim + 1) for axis in axes]
        shape = [1] * x.ndim
        for axis, length in zip(axes, positions.shape, strict=True):
            shape[axis - 1] = length
        return positions.transpose(np.argsort(axes)).reshape(shape)


def ones(transform: Any, draw: gm.Draw, shape: tuple[int, ...]) -> list[One]:
    """What was drawn for each record of images of this shape."""
    cls, parts = type(transform), draw.box is not None or draw.weights is not None
    axes: tuple[int, ...] = ()
    if parts or any(kind.positions for kind in targets_of(transform).values()):
        axes = tuple(axis % len(shape) for axis in transform.spatial_axes or (1, 2))
    lengths = tuple(shape[axis] for axis in axes)
    found = []
    for i in range(shape[0]):
        outside = np.float32(outside_of(draw, i))
        inside = np.zeros(lengths, bool)
        if draw.box is not None:
            inside[tuple(slice(int(start), int(stop)) for start, stop in draw.box[i])] = True
        weights = np.where(inside, np.float32(0), outside)
        if draw.weights is not None:
            weights = np.float32(draw.weights[i])
            inside = weights == 0
        blends = cls in (gm.MixUpBatch, gm.MixBatch)
        lam, by_map = np.float32(draw.lam[i]), draw.weights is not None
        found.append(One(lam, outside, inside, weights, axes, parts, blends, by_map))
    return found


def outside_of(draw: gm.Draw, i: int) -> Any:
    """The weight of the own pixels that no box covers: 1 where a box is cut, else λ."""
    if draw.weights is not None:
        return 1
    if draw.box is not None and (draw.box[i, :, 0] < draw.box[i, :, 1]).all():
        return 1
    return draw.lam[i]


def pair(weight: np.float32) -> np.ndarray:
    """The weights of both."""
    return np.stack([weight, np.float32(1) - weight])


def check_lam(one: One) -> None:
    """The label's weight is the mean of the pixels' weights."""
    w = one.weights
    assert 0 <= one.lam <= 1
    exact = np.float32(w.mean(dtype=np.float64)) if w.min() < w.max() else w.reshape(-1)[0]
    error = 0 if set(np.unique(w)) <= {0, 1} or not one.parts else 1e-6
    assert abs(np.float64(one.lam) - np.float64(exact)) <= error


def check_same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Every bit; 64 bits may be held in 32."""
    narrow = {"int64": "int32", "uint64": "uint32", "float64": "float32"}
    dtypes = {str(expected.dtype), narrow.get(str(expected.dtype), str(expected.dtype))}
    assert str(actual.dtype) in dtypes
    assert actual.shape == expected.shape
    assert actual.tobytes() == expected.astype(actual.dtype).tobytes()


def check_positions(own: np.ndarray, other: np.ndarray, mixed: np.ndarray, weights: Any) -> None:
    """Each value is the own one, the partner's or the blend, as its weight says."""
    assert (mixed.shape, mixed.dtype) == (own.shape, own.dtype)
    weights = np.broadcast_to(weights, own.shape)
    copied = (weights == 0) | (weights == 1)
    # Bit for bit, where the formula's 0·NaN and 0·∞ would be NaN.
    assert mixed[copied].tobytes() == np.where(weights == 1, own, other)[copied].tobytes()
    own, other, mixed, weights = (z[~copied] for z in (own, other, mixed, weights))
    if copied.all():
        return
    with np.errstate(all="ignore"):
        expected = mixup_one(own, other, weights)
        if own.dtype.kind in "iu":
            np.testing.assert_array_equal(mixed, expected)
            return
        a, b, y, expected = (z.astype(np.float64) for z in (own, other, mixed, expected))
        eps = float(ml_dtypes.finfo(own.dtype).eps)
        slack = 4 * eps * np.maximum(np.abs(a), np.abs(b)) + 1e-7
        close = np.abs(y - expected) <= slack
        between = (np.minimum(a, b) - slack <= y) & (y <= np.maximum(a, b) + slack)
    finite = np.isfinite(a) & np.isfinite(b)
    assert (np.isfinite(y) & close & between)[finite].all()
    assert (np.isnan(y) == np.isnan(expected))[~finite].all()


def check_mean(own: Any, other: Any, mixed: np.ndarray, one: One, smoothing: float, k: int) -> None:
    """The label's mean, smoothed over k classes."""
    own, other = np.asarray(own, np.float32), np.asarray(other, np.float32)
    if not smoothing:
        check_positions(own, other, mixed, one.lam)
        return
    with np.errstate(all="ignore"):
        expected = one.lam * own.astype(np.float64) + (1 - np.float64(one.lam)) * other
    expected = np.where(one.lam == 1, own, np.where(one.lam == 0, other, expected))
    expected = expected * (1 - smoothing) + smoothing / k
    assert (mixed.shape, mixed.dtype) == (own.shape, np.float32)
    finite = np.isfinite(expected)
    assert (np.isfinite(mixed) == finite).all()
    np.testing.assert_allclose(mixed[finite], expected[finite], rtol=1e-6, atol=1e-6)


def check_label_map(target: Any, own: Arrays, other: Arrays, mixed: Arrays, one: One) -> None:
    """Cut where the image is cut; where it may be blended, beside the partner's."""
    expected = np.where(one.over(one.inside, own[""], target.axes), other[""], own[""])
    if one.blends:
        expected = np.stack([expected, other[""]])
        check_same(mixed["_weight"], pair(one.outside))
    check_same(mixed[""], expected)


def check_points(own: Arrays, other: Arrays, mixed: Arrays, one: One) -> None:
    """Both records' points, which weigh as the pixels under them."""
    last = np.array(one.weights.shape) - 1
    for k, side in enumerate((own, other)):
        at = np.floor(side[""].astype(np.float64))
        weights = one.weights[tuple(np.clip(at, 0, last).astype(int).T)]
        beyond = ((at < 0) | (at > last)).any(-1) & (not one.by_map)  # in no box
        weights = np.where(beyond, one.outside, weights)
        check_same(mixed["_weight"][k], weights if k == 0 else np.float32(1) - weights)
    for name in own:
        check_same(mixed[name], np.stack([own[name], other[name]]))


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


def shifted(x: np.ndarray, shift: Any) -> np.ndarray:
    """`[..., H, W]`, moved by whole entries along its last two axes; 0 where nothing comes from."""
    ends = list(zip(shift, x.shape[-2:], strict=True))
    into = tuple(slice(max(s, 0), length + min(s, 0)) for s, length in ends)
    out_of = tuple(slice(max(-s, 0), length + min(-s, 0)) for s, length in ends)
    moved = np.zeros_like(x)
    moved[..., *into] = x[..., *out_of]
    return moved


def check_boxes(target: Any, own: Arrays, other: Arrays, mixed: Arrays, one: One) -> None:
    """Boxes of a pair."""
    shown, weights = [~one.upright, one.upright], [np.float32(1)] * 2
    if not one.by_map and not one.inside.any():  # a blend
        shown, weights = [np.ones_like(one.upright)] * 2, list(pair(one.outside))
    check_objects(target, [own, other], mixed, shown, weights, [(0, 0)] * 2, one.by_map)


def check_objects(
    target: Any,
    sources: list[Arrays],
    mixed: Arrays,
    shown: list[np.ndarray],
    weights: list[np.float32],
    shifts: list[tuple[int, int]],
    by_map: bool = False,
) -> None:
    """What is visible of each object, counted in halves of pixels, on which all boxes must end.

    Of each source, `shown` says where in the mixed image it is, `bool [H, W]` with rows first; then
    come its weight there, and by how many rows and columns it is moved.
    """
    sides, count = shown[0].shape, len(sources[0][""])
    assert mixed[""].shape == (len(sources) * count, 4)
    assert mixed["_weight"].dtype == np.float32
    # Fractions of other sides are rounded, on the way to pixels and back.
    exact = "rel" not in target.format or all(side & (side - 1) == 0 for side in sides)
    for i in range(len(sources) * count):
        source, shift = sources[i // count], np.array(shifts[i // count])
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
    targets, brings = targets_of(transform), transform.partner_key is not None
    keys = transform.image_key if isinstance(transform.image_key, tuple) else ("image",)
    image = np.asarray(batch[keys[0]])
    size = len(image)
    partner = [partner_of(i, size) for i in range(size)]
    names = {*keys, *targets, *(name for kind in targets.values() for name in kind.reads)}
    own = {name: np.asarray(batch[name]) for name in names}
    others = {
        name: np.asarray(batch["other"][name]) if brings else own[name][partner] for name in names
    }
    mixed = {
        name: np.asarray(x) for name, x in out.items() if isinstance(x, np.ndarray | jax.Array)
    }
    added = {f"{name}_weight" for name, kind in targets.items() if kind.adds}
    if not isinstance(transform, gm.MixUpBatch | gm.MixBatch):
        added -= {f"{name}_weight" for name, kind in targets.items() if type(kind) is gm.LabelMap}
    assert set(out) == (set(batch) - {"mix_seed", "other"}) | added
    for name in set(batch) - names - {"mix_seed", "other"}:
        check_passed(transform, batch[name], out[name])

    valid = np.asarray(batch["valid"]) if transform.valid_key else np.ones(size, bool)
    real = valid & valid[partner]
    if brings:
        valid = real = valid & batch["other"].get("valid", True)
    numbers = np.arange(size, dtype=np.uint32)
    seeds = np.asarray(batch["mix_seed"] if key is None else hashed(key, numbers))
    draw = jax.device_get(transform.draw(seeds, image.shape, valid))
    for i, one in enumerate(ones(transform, draw, image.shape)):
        check_lam(one)
        if not real[i] or transform.prob == 0 or (size == 1 and not brings):
            assert (one.weights == 1).all()
        a, b, y = ({name: x[i, ...] for name, x in side.items()} for side in (own, others, mixed))
        for name in keys:
            with named(name, i):
                check_positions(a[name], b[name], y[name], one.over(one.weights, a[name]))
        for name, kind in targets.items():
            sides = [{"": x[name], **{other: x[other] for other in kind.reads}} for x in (a, b)]
            came = {"": y[name], **{other: y[other] for other in kind.reads}}
            came["_weight"] = y.get(f"{name}_weight")
            with named(name, i):
                check_target(kind, *sides, came, one)
    return names | added


@contextlib.contextmanager
def named(name: str, record: int) -> Iterator[None]:
    """Adds to a failure where it is."""
    try:
        yield
    except AssertionError as error:
        error.add_note(f"in {name!r} of record {record}")
        raise


@jax.jit
def hashed(key: jax.Array, positions: jax.Array) -> jax.Array:
    """Each position's hash, after that of the key's own words."""
    start = jax.random.wrap_key_data(jnp.zeros(2, jnp.uint32), impl="threefry2x32")
    words = key if key.dtype == jnp.uint32 else jax.random.key_data(key)
    for word in words:
        start = jax.random.fold_in(start, word)
    each = jax.vmap(jax.random.fold_in, (None, 0))(start, positions)
    return jax.random.key_data(each)[:, 0]


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


def check_target(kind: gm.Target, own: Arrays, other: Arrays, mixed: Arrays, one: One) -> None:
    a, b, y = own[""], other[""], mixed[""]
    match kind:
        case gm.OneHot():
            a, b = (np.eye(kind.num_classes)[x.reshape(()).astype(int)] for x in (a, b))
            check_mean(a, b, y, one, kind.smoothing, kind.num_classes)
        case gm.MultiHot(union=True):
            a, b = (x.astype(np.float64) for x in (a, b))
            union = np.maximum(a * (one.lam > 0), b * (one.lam < 1))
            check_mean(union, union, y, one, kind.smoothing, 2)
        case gm.MultiHot():
            check_mean(a, b, y, one, kind.smoothing, 2)
        case gm.Soft():
            check_mean(a, b, y, one, kind.smoothing, a.shape[-1] if a.ndim else 1)
        case gm.Sparse() | gm.Stacked():
            if isinstance(kind, gm.Sparse):
                a, b = (x.reshape(()).astype(np.int32) for x in (a, b))
            check_same(y, np.stack([a, b]))
            check_same(mixed["_weight"], pair(one.lam))
        case gm.ValueMap():
            check_positions(a, b, y, one.over(one.weights, a, kind.axes))
        case gm.LabelMap():
            check_label_map(kind, own, other, mixed, one)
        case gm.Boxes():
            check_boxes(kind, own, other, mixed, one)
        case _:  # Points of `programs.py`
            check_points(own, other, mixed, one)
