"""What a user can get wrong. Each error says where, what came, what was expected, and the fix.

Shapes and dtypes are checked on tracers, too; values only where there are values.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import jax
import numpy as np

from grain_mix import _place
from grain_mix._errors import (
    FLOATS,
    INTEGERS,
    describe,
    did_you_mean,
    fail,
    is_array,
    is_int,
    name,
    quote,
)

if TYPE_CHECKING:
    from grain_mix._batch import _MixedBatch

LABEL_WEIGHT = "label_weight"  # the field that sparse_labels adds
MODES = ("elem", "pair", "batch")
AVERAGED = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "bfloat16", "float32")
# --- parameters, when a transform is made -----------------------------------------------------


def parameters(transform: _MixedBatch) -> None:
    """Checks all fields of a transform, and makes them plain floats, ints and tuples."""
    where = type(transform).__name__
    for field, value in list(vars(transform).items()):
        value = tuple(value) if isinstance(value, list) else value
        object.__setattr__(transform, field, _parameter(where, field, value))
    _sparse(where, transform)
    _keys(where, transform)


def _parameter(where: str, field: str, value: Any) -> Any:
    came = f"{field}={quote(value)}"
    if field.endswith("alpha"):
        off = {"mixup_alpha": "CutMixBatch", "cutmix_alpha": "MixUpBatch"}.get(field, "prob=0")
        fix = f"pass one like 0.2; to do without, use {off}"
        return _number(where, came, value, math.inf, "a finite number above 0", fix)
    if field in ("prob", "switch_prob", "label_smoothing"):
        return _number(where, came, value, 1, "a number from 0 to 1", "pass one like 0.5")
    if field.endswith("minmax") and value is not None:
        return _minmax(where, came, value)
    if field == "num_classes" and value is not None:
        if not (is_int(value) and 0 < value < 2**31):
            fix = "pass the number of classes, or None if labels are [B, K] already"
            error = ValueError if is_int(value) else TypeError
            fail(error, where, came, "an int above 0 (and an int32) or None", fix)
        return int(value)
    if field == "mode" and not (isinstance(value, str) and value in MODES):
        fix = f"{did_you_mean(value, MODES)}see the docstring for what each does"
        fail(ValueError, where, came, f"one of {MODES}", fix)
    if field == "sparse_labels" and not isinstance(value, bool):
        fail(TypeError, where, came, "True or False", "pass one of them")
    if field == "spatial_axes":
        return _axes(where, value)
    if field == "sharding":
        _sharding(where, value)
    elif field == "image_key" and isinstance(value, tuple):
        if not value:
            fail(ValueError, where, came, "at least one name", "pass image_key='image'")
        for key in value:
            name(where, field, key)
    elif field.endswith("_key") and (value is not None or field in ("image_key", "seed_key")):
        name(where, field, value)
    return value


def _number(where: str, came: str, value: Any, high: float, expected: str, fix: str) -> float:
    """A number in [0, high], or in (0, ∞) if `high` is infinite."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool | np.bool_):
        fail(TypeError, where, came, expected, fix)
    try:
        number = float(value)
    except OverflowError:  # an int or a fraction beyond all floats
        number = math.nan
    if not (0 < number < high if math.isinf(high) else 0 <= number <= high):  # NaN is neither
        fail(ValueError, where, came, expected, fix)
    return number


def _minmax(where: str, came: str, value: Any) -> tuple[float, float]:
    fix = "pass fractions of a side, like (0.2, 0.8)"
    if not isinstance(value, tuple) or len(value) != 2:
        fail(TypeError, where, came, "a pair (lo, hi)", fix)
    expected = "(lo, hi), numbers from 0 to 1"
    lo, hi = (_number(where, came, bound, 1, expected, fix) for bound in value)
    if lo > hi:
        fail(ValueError, where, came, "lo <= hi", f"swap them: {value[::-1]!r}")
    return lo, hi


def _sparse(where: str, transform: _MixedBatch) -> None:
    came = "sparse_labels=True"
    if transform.sparse_labels and transform.label_smoothing:
        came += f" with label_smoothing={transform.label_smoothing}"
        fail(ValueError, where, came, "label_smoothing=0", "smooth in the loss instead")
    if transform.sparse_labels and transform.label_key is None:
        came += " with label_key=None"
        fail(ValueError, where, came, "labels", "name the label field, or drop sparse_labels")


def _keys(where: str, transform: _MixedBatch) -> None:
    keys: list[tuple[str, str | None]] = [("image_key", key) for key in transform._image_keys]
    keys += [(field, getattr(transform, field, None)) for field in ("mask_key", "label_key")]
    keys += [("seed_key", transform.seed_key)]
    keys += [("sparse_labels", LABEL_WEIGHT)] * transform.sparse_labels
    for i, (field, key) in enumerate(keys):
        for other, same in keys[:i]:
            if key == same and key is not None:
                came = f"{key!r} named twice, by {other} and {field}"
                fail(ValueError, where, came, "different fields", "rename one")


def _axes(where: str, axes: Any) -> tuple[int, ...]:
    fix = "pass those of the batch, like (1, 2) for [B, H, W, C] and (1,) for [B, T]"
    if not isinstance(axes, tuple) or not axes or not all(map(is_int, axes)):
        fail(TypeError, where, f"spatial_axes={quote(axes)}", "a tuple of axes", fix)
    if 0 in axes:
        fail(ValueError, where, f"spatial_axes={axes}", "no 0, the batch axis", fix)
    if len(set(axes)) < len(axes):
        fail(ValueError, where, f"spatial_axes={axes}", "each axis once", fix)
    return tuple(map(int, axes))


def _sharding(where: str, sharding: Any) -> None:
    if sharding is None:
        return
    fix = 'pass NamedSharding(mesh, PartitionSpec("data")) with the mesh axis of the batch'
    if not isinstance(sharding, jax.sharding.Sharding):
        came = f"sharding={quote(sharding)}"
        fail(TypeError, where, came, "a jax.sharding.Sharding or None", fix)
    spec = sharding.spec if isinstance(sharding, jax.sharding.NamedSharding) else ()
    if len(spec) > 1:  # labels [B] have no second axis, not even one to leave whole
        came = f"sharding with {spec}"
        fail(ValueError, where, came, "a split of axis 0 alone, for fields of any rank", fix)
    if not sharding.addressable_devices:
        came = f"sharding={quote(sharding)}, none of whose devices is this process's"
        fail(ValueError, where, came, "devices of this process", fix)
    # Batches of one size in slices of different sizes would be different arrays on each process.
    counts = _place.slices_by_process(sharding)
    if len(set(counts.values())) > 1:
        came = f"sharding with these slices of the batch by process: {counts}"
        fix = "build the mesh of as many devices of each process"
        fail(ValueError, where, came, "as many on each process", fix)


def worker(transform: _MixedBatch) -> None:
    """Checks that a transform can be pickled, which is how it enters a worker process."""
    if transform.sharding is None:
        return
    where = type(transform).__name__
    came = "a transform with a sharding is to be pickled, but a worker process has no devices"
    fix = (
        "let workers load and batch, and mix behind them: take it out of operations and write\n"
        f"    dataset = gm.LoaderDataset(loader).map(gm.{where}(..., sharding=sharding))\n"
        "    dataset = grain.experimental.ThreadPrefetchIterDataset("
        "dataset, prefetch_buffer_size=2)"
    )
    fail(TypeError, where, came, "worker_count=0, or sharding=None in a worker", fix)


# --- records and batches ----------------------------------------------------------------------


def batch(transform: _MixedBatch, fields: Any) -> None:
    """Checks the shapes and dtypes of a batch."""
    where = type(transform).__name__
    if not isinstance(fields, Mapping):
        fix = 'let records be dicts, like {"image": image, "label": label}'
        fail(TypeError, where, f"a batch that is a {type(fields).__name__}", "a dict", fix)
    for key in transform._keys:
        if key not in fields:
            _missing(where, transform, key, fields)
        if not is_array(fields[key]):
            fix = "put grain.transforms.Batch before this, and let records hold NumPy arrays"
            fail(TypeError, where, f"{key!r} is {describe(fields[key])}", "an array [B, ...]", fix)
    if transform.sparse_labels and LABEL_WEIGHT in fields:
        came = f"{LABEL_WEIGHT!r} is in the batch"
        fail(KeyError, where, came, "it free for sparse_labels", "rename that field")
    size = _seeds(where, transform.seed_key, fields[transform.seed_key])
    for key in transform._keys:
        if fields[key].shape[:1] != (size,):
            came = (
                f"{key!r} is {describe(fields[key])}, but {transform.seed_key!r} has {size} seeds"
            )
            fail(ValueError, where, came, "as many seeds as records", "take both from one batch")
    first, *others = transform._image_keys
    shape = fields[first].shape
    _dtype(where, first, fields[first].dtype, averaged=transform._recipe.mixup_alpha is not None)
    axes = _spatial_axes(where, transform._recipe.spatial_axes, first, shape)
    for key in (*others, *transform._mask_keys):
        _dtype(where, key, fields[key].dtype, averaged=transform._recipe.mixup_alpha is not None)
        _pixels(where, key, fields[key].shape)
        own = axes_of(axes, shape, fields[key].shape)
        sizes = [fields[key].shape[axis : axis + 1] for axis in own]
        if sizes != [(shape[axis],) for axis in axes]:
            came = f"{key!r} is {describe(fields[key])}, but {first!r} is {describe(fields[first])}"
            fix = f"resize {key!r} to match, since both are cut with one box"
            fail(ValueError, where, came, f"the same sizes along axes {axes}", fix)
    if transform.label_key is not None:
        _labels(where, transform, fields[transform.label_key])


def concrete(transform: _MixedBatch, fields: Mapping[str, Any]) -> None:
    """Checks that `map` is not under `jit`."""
    for key in transform._keys:
        if isinstance(fields[key], jax.core.Tracer):
            came = f"map under jit, {key!r} is {describe(fields[key])} without values"
            fix = "inside jit, grad, vmap and shard_map call mix, which is the same"
            fail(TypeError, type(transform).__name__, came, "arrays with values", fix)


def whole_pairs(transform: _MixedBatch, size: int, slices: int) -> None:
    """Checks that no pair would be torn between two slices of a batch."""
    if slices > 1 and size % (2 * slices):
        came = f"a batch of {size} records in {slices} slices"
        fix = "set drop_remainder=True in Batch, and a batch_size that is such a multiple"
        expected = f"a multiple of {2 * slices}, which keeps pairs whole"
        fail(ValueError, type(transform).__name__, came, expected, fix)


def sharded_batch(transform: _MixedBatch, fields: Mapping[str, Any], slices: int) -> None:
    """Checks that a batch can be split over this process's devices."""
    where = type(transform).__name__
    size = fields[transform.seed_key].shape[0]
    whole_pairs(transform, size, slices)
    for key, value in fields.items():
        came = f"{key!r} is {describe(value)}"
        if not is_array(value) or value.shape[:1] != (size,):
            fix = "drop the field before Batch, or let records hold it as a NumPy array"
            fail(TypeError, where, came, f"an array [{size}, ...] to put on devices", fix)
        if str(value.dtype) not in (*INTEGERS, *FLOATS, "bool", "complex64", "complex128"):
            fix = "drop the field before Batch, or encode it as numbers"
            fail(TypeError, where, came, "numbers to put on devices", fix)
        kept = jax.dtypes.canonicalize_dtype(value.dtype)
        if kept != value.dtype and key not in transform._keys:
            with np.errstate(over="ignore"):
                narrow = value.astype(kept)
            whole = value.dtype.kind in "iu"  # others lose digits, as ever in JAX
            lost = narrow != value if whole else np.isinf(narrow) & ~np.isinf(value)
            if lost.any():
                came += f" with values up to {np.abs(value).max()}"
                fix = "drop the field before Batch, split it in two, or set jax_enable_x64"
                fail(ValueError, where, came, f"values that {kept} holds, as devices do", fix)


def _seeds(where: str, key: str, value: Any) -> int:
    """Checks seeds and returns how many there are."""
    expected = "uint32 [B], a seed a record"
    if value.shape == ():
        fix = "the order is RecordSeed, grain.transforms.Batch, then this transform"
        fail(ValueError, where, f"{key!r} is one seed", expected, fix)
    if str(value.dtype) != "uint32" or len(value.shape) != 1:
        fix = "let RecordSeed add it before Batch, or cast your own with .astype(np.uint32)"
        fail(TypeError, where, f"{key!r} is {describe(value)}", expected, fix)
    if value.shape == (0,):
        fail(ValueError, where, "an empty batch", "B > 0", "filter empty batches out before")
    return int(value.shape[0])


def draw(transform: _MixedBatch, values: Any, image_shape: Any) -> None:
    """Checks the arguments of a transform's `draw`."""
    where = f"{type(transform).__name__}.draw"
    if not is_array(values):
        fix = 'pass batch["mix_seed"], or np.arange(B, dtype=np.uint32)'
        fail(TypeError, where, f"seeds is {describe(values)}", "an array", fix)
    size = _seeds(where, "seeds", values)
    fix = "pass that of the whole batch's images, B first, B the number of seeds"
    if not isinstance(image_shape, Sequence) or not all(map(is_int, image_shape)):
        fail(TypeError, where, f"image_shape={quote(image_shape)}", "a shape", fix)
    if tuple(image_shape[:1]) != (size,):
        fail(ValueError, where, f"image_shape={quote(tuple(image_shape))}", f"({size}, ...)", fix)
    _spatial_axes(where, transform._recipe.spatial_axes, "image_shape", tuple(image_shape))


def _labels(where: str, transform: _MixedBatch, value: Any) -> None:
    classes, shape = transform.num_classes, value.shape
    came = f"{transform.label_key!r} is {describe(value)}"
    expected = "class ids, integers [B], or soft labels, floats [B, K]"
    integer = str(value.dtype) in INTEGERS
    if not integer and str(value.dtype) not in (*FLOATS, "bool"):
        fix = _native(value.dtype) or "encode them as numbers, or set label_key=None"
        fail(TypeError, where, came, expected, fix)
    if transform.sparse_labels:
        if not integer or len(shape) != 1:
            fix = "pass these, or drop sparse_labels=True"
            fail(TypeError, where, came, "class ids, integers [B]", fix)
    elif len(shape) == 1 and not integer:
        fix = "cast class ids to integers, or give a single target an axis, label[:, None]"
        fail(TypeError, where, came, expected, fix)
    elif len(shape) == 1 and classes is None:
        fix = "pass num_classes, or one-hot labels [B, K]"
        fail(ValueError, where, came + ", class ids, but num_classes is None", expected, fix)
    elif len(shape) > 2 or 0 in shape:
        fail(ValueError, where, came, expected, "reshape them, or set label_key=None")
    elif len(shape) == 2 and shape[1] != (classes or shape[1]):
        fix = f"pass num_classes={shape[1]}, or for class ids drop the last axis, label[:, 0]"
        fail(ValueError, where, came, f"[B, {classes}] for num_classes={classes}", fix)
    elif shape[1:] == (1,) and integer and classes is None:  # to average class ids means nothing
        fix = "for class ids pass num_classes and label[:, 0]; else cast to float32"
        fail(ValueError, where, came, expected, fix)


def label_range(transform: _MixedBatch, fields: Mapping[str, Any]) -> None:
    """Checks the values of labels: class ids, and of others that float32 holds them."""
    where, key, classes = type(transform).__name__, transform.label_key, transform.num_classes
    if key is None or isinstance(fields[key], jax.core.Tracer):
        return
    if isinstance(fields[key], jax.Array) and not fields[key].is_fully_addressable:
        return
    labels = np.asarray(jax.device_get(fields[key]))
    if labels.ndim == 1:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= (classes or 2**31):
            fix = "raise num_classes, or mend the labels (counted from 1? missing ones marked -1?)"
            end = f"num_classes={classes}" if classes else f"{2**31} (int32)"
            fail(ValueError, where, f"{key!r} from {low} to {high}", f"0 <= {key} < {end}", fix)
    elif str(labels.dtype) in ("int32", "uint32", "int64", "uint64", "float64"):
        integer = labels.dtype.kind in "iu"
        limit = 2**24 if integer else float(np.finfo(np.float32).max)
        finite = labels if integer else labels[np.isfinite(labels)]
        if finite.size and (finite.max() > limit or finite.min() < -limit):
            came = f"{key!r} from {finite.min()} to {finite.max()}"
            fail(ValueError, where, came, f"values that float32 holds, to {limit}", "scale them")


def _dtype(where: str, key: str, value: Any, averaged: bool) -> None:
    """Checks that JAX holds the dtype and, for MixUp, that it can be averaged."""
    kind, allowed = str(value), AVERAGED if averaged else (*AVERAGED, "bool")
    if kind in allowed:
        return
    if kind == "bool":
        fix = "cast it to float32 or uint8, or use CutMixBatch, which copies"
    elif kind in ("float64", "int64", "uint64"):
        fix = f"JAX keeps 32 bits, so cast it before, .astype(np.{kind[:-2]}32)"
    elif kind in ("complex64", "complex128"):
        fix = "convert it to its magnitude, or to real and imaginary parts as channels"
    else:
        fix = _native(value) or "decode or convert it to one of these before Batch"
    fail(TypeError, where, f"{key!r} is {value}", f"one of {', '.join(allowed)}", fix)


def _native(dtype: Any) -> str:
    """The fix for swapped bytes, if they are."""
    if getattr(dtype, "isnative", True) or dtype.kind not in "iuf":
        return ""
    return f"its bytes are swapped, so cast it before, .astype(np.{dtype.newbyteorder('=')})"


def _spatial_axes(
    where: str, axes: Sequence[int], key: str, shape: tuple[int, ...]
) -> tuple[int, ...]:
    """The axes, counted from the front; each must exist, once, and have a length."""
    front = tuple(axis + len(shape) if axis < 0 else axis for axis in axes)
    if any(not 0 < axis < len(shape) for axis in front) or len(set(front)) < len(front):
        fix = "(1, 2) is for [B, H, W, C], (2, 3) for [B, C, H, W], (1,) for [B, T]"
        came = f"spatial_axes={tuple(axes)} for {key!r} of shape {shape}"
        fail(ValueError, where, came, f"different axes from 1 to {len(shape) - 1}", fix)
    _pixels(where, key, shape)
    if any(shape[axis] > 2**24 for axis in front):  # the grid of λ
        came = f"{key!r} of shape {shape}"
        fail(ValueError, where, came, f"at most {2**24} pixels along an axis", "cut it up before")
    return front


def _pixels(where: str, key: str, shape: tuple[int, ...]) -> None:
    if min(shape) < 1:
        came = f"{key!r} of shape {shape}"
        fail(ValueError, where, came, "at least one pixel", "filter empty images out before")


def axes_of(
    axes: Sequence[int], image_shape: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[int, ...]:
    """The axes of the box in a field that shares it with the first image.

    They are that image's, but in a field of batch and spatial axes alone, such as a mask
    `[B, H, W]` to an image `[B, C, H, W]`.
    """
    front = [axis % len(image_shape) for axis in axes]
    if len(shape) == 1 + len(front):
        return tuple(1 + sorted(front).index(axis) for axis in front)
    return tuple(front)


def _missing(where: str, transform: _MixedBatch, key: str, fields: Mapping[str, Any]) -> NoReturn:
    fix = did_you_mean(key, fields)
    if key == transform.seed_key:
        fix += f"put gm.RecordSeed(seed_key={key!r}) into the operations, before Batch"
    elif key == transform.label_key:
        fix += "pass the name as label_key, or label_key=None if there are no labels"
    else:
        fix += f"pass the name as {'mask_key' if key in transform._mask_keys else 'image_key'}"
    came = f"no field {key!r} among {sorted(map(str, fields))}"
    fail(KeyError, where, came, f"a field {key!r} in the batch", fix)


# --- the pure functions -----------------------------------------------------------------------


def formula(where: str, images: Any, partner: Any, averaged: bool) -> None:
    """Checks `images` and `partner`."""
    for field, value in (("images", images), ("partner", partner)):
        if not is_array(value) or value.shape[:1] in ((), (0,)):
            fix = "pass at least one record" if is_array(value) else f"pass np.asarray({field})"
            came = f"{field} is {describe(value)}"
            fail(TypeError, where, came, "an array [B, ...] with B > 0", fix)
    _dtype(where, "images", images.dtype, averaged)
    size = images.shape[0]
    if str(partner.dtype) not in INTEGERS or partner.shape != (size,):
        fix = "pass the batch position of each record's partner"
        fail(ValueError, where, f"partner is {describe(partner)}", f"integers [{size}]", fix)
    _values(where, "partner", partner, 0, size - 1, "partners count from 0")


def lam(where: str, value: Any, size: int) -> Any:
    """Checks the weights of `mixup`, and returns them as an array."""
    if not is_array(value):
        try:
            value = np.asarray(value)
        except ValueError:  # NumPy's, of lists of different lengths
            value = np.empty((), object)
    if value.shape != (size,):
        fix = f"for one weight for all pass np.full({size}, lam)"
        fail(ValueError, where, f"lam of shape {value.shape}", f"[{size}]", fix)
    if str(value.dtype) not in (*INTEGERS, *FLOATS, "bool"):
        fix = _native(value.dtype) or "pass floats"
        fail(TypeError, where, f"lam is {describe(value)}", f"numbers [{size}]", fix)
    _values(where, "lam", value, 0, 1, "clip lam to this")
    return value


def box(
    where: str, value: Any, axes: Sequence[int] | None, shape: tuple[int, ...]
) -> tuple[int, ...]:
    """Checks the boxes of `cutmix` and returns their axes, counted from the front."""
    fix = "give each record (start, stop) in pixels along each of the n spatial axes"
    expected = f"integers [{shape[0]}, n, 2]"
    if not is_array(value) or str(value.dtype) not in INTEGERS:
        fail(TypeError, where, f"box is {describe(value)}", expected, fix)
    if len(value.shape) != 3 or value.shape[::2] != (shape[0], 2) or value.shape[1] == 0:
        fail(ValueError, where, f"box of shape {value.shape}", expected, fix)
    if axes is None:
        axes = tuple(range(1, 1 + value.shape[1]))
    axes = _axes(where, tuple(axes) if isinstance(axes, list) else axes)
    front = _spatial_axes(where, axes, "images", shape)
    if len(front) != value.shape[1]:
        came = f"spatial_axes={axes} for box of shape {value.shape}"
        fail(ValueError, where, came, f"{value.shape[1]} axes, one for each row of a box", fix)
    fix = "clip it to the image, and take λ from the clipped one"
    for k, axis in enumerate(front):
        _values(where, f"box[:, {k}]", value[:, k], 0, shape[axis], fix)
    if not isinstance(value, jax.core.Tracer) and (value[..., 0] > value[..., 1]).any():
        fail(ValueError, where, "box with start > stop", "start <= stop", "swap them")
    return front


def _values(where: str, field: str, value: Any, low: float, high: float, fix: str) -> None:
    if isinstance(value, jax.core.Tracer):
        return
    values = np.asarray(jax.device_get(value))
    if not (low <= values.min() and values.max() <= high):
        came = f"{field} from {values.min()} to {values.max()}"
        fail(ValueError, where, came, f"{low} <= {field} <= {high}", fix)
