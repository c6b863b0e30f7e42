"""The Grain transforms: what is drawn, which parts are mixed with it, and where they are placed."""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

import grain
import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec, Sharding
from jax.typing import ArrayLike

from grain_mix import _draw, _fields, _options, _place
from grain_mix._axes import axes_of
from grain_mix._calls import into_jax
from grain_mix._errors import describe, fail, is_array, is_int, quote
from grain_mix._parts import Images, LabelMaps, Part, SoftLabels, SparseLabels
from grain_mix._seed import warn_of_equal_seeds

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixedBatch(grain.transforms.Map, abc.ABC):
    """What the transforms share: everything except what is drawn."""

    num_classes: int | None = None
    label_smoothing: float = 0.0
    sparse_labels: bool = False
    prob: float = 1.0
    mode: str = "elem"
    image_key: str | tuple[str, ...] = "image"
    label_key: str | None = "label"
    seed_key: str = "mix_seed"
    valid_key: str | None = None
    sharding: Sharding | None = None

    def __post_init__(self) -> None:
        where = type(self).__name__
        for field, value in list(vars(self).items()):
            object.__setattr__(self, field, _options.option(where, field, value))
        _options.check_labels(where, self.sparse_labels, self.label_smoothing, self.label_key)
        names = [(part.option, key) for part in self._parts for key in part.keys]
        names += [("seed_key", self.seed_key)]
        names += [("valid_key", self.valid_key)] if self.valid_key is not None else []
        names += [("sparse_labels", key) for part in self._parts for key in part.adds]
        _options.check_names(where, names)

    @property
    @abc.abstractmethod
    def _recipe(self) -> _draw.Recipe:
        """What is drawn."""

    @property
    def _axes(self) -> tuple[int, ...] | None:
        """The axes of the box, as they were named; `()` if there is no box."""
        return ()

    @property
    def _parts(self) -> tuple[Part, ...]:
        """What is mixed: the only place to add a new kind of field."""
        keys = (self.image_key,) if isinstance(self.image_key, str) else self.image_key
        parts: list[Part] = [Images(keys, averaged=self._recipe.mixup_alpha is not None)]
        mask_key = getattr(self, "mask_key", None)
        if mask_key is not None:
            parts.append(LabelMaps((mask_key,), image=keys[0]))
        if self.label_key is not None and self.sparse_labels:
            parts.append(SparseLabels(self.label_key, self.num_classes))
        elif self.label_key is not None:
            parts.append(SoftLabels(self.label_key, self.num_classes, self.label_smoothing))
        return tuple(parts)

    def map(self, element: Mapping[str, Any]) -> dict[str, Any]:
        """Mixes a batch; Grain calls this.

        Args:
            element: the fields of a batch, each a NumPy array `[B, ...]`; with a `sharding`, the
                process's own part of the batch.

        Returns:
            A new dict: images and label maps mixed, labels soft, the seeds removed, every other
            field as it came. Without a `sharding`, new arrays are read-only views of JAX's memory.
            With one, all are global `jax.Array`s. Their devices may still be reading the batch that
            came in, so write to its arrays only when the result is ready.
        """
        where = type(self).__name__
        fields = self._checked(element)
        for key, value in fields.items():
            if isinstance(value, jax.core.Tracer):
                came = f"map under jit, where {key!r} is {describe(value)} without values"
                fix = "call mix inside jit, grad, vmap and shard_map; it does the same"
                fail(TypeError, where, came, "arrays with values", fix)
        arrays = {key: np.asarray(value) for key, value in fields.items()}
        valid = None if self.valid_key is None else arrays[self.valid_key]
        warn_of_equal_seeds(arrays[self.seed_key], valid)
        with into_jax():
            if self.sharding is None:
                mixed = jax.device_get(_mix(self, _place.to_host(arrays)))
                return _fields.replace(element, [self.seed_key], mixed)
            return self._map_to_devices(self.sharding, element, arrays)

    def _map_to_devices(
        self, sharding: Sharding, batch: Mapping[str, Any], fields: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        where, mesh = type(self).__name__, _place.local_mesh(sharding)
        seeds = fields[self.seed_key]
        _place.check_pairs(where, len(seeds), mesh.shape[_place.SLICES])
        for key in batch:
            if key not in fields:
                _place.check_placeable(where, key, batch[key], len(seeds))
        if self.mode == "batch":  # whose first record is on one of the devices only
            fields[self.seed_key] = np.full_like(seeds, seeds[0])
        # Copies, or CPU devices would share the memory that the next batch may be put into.
        others = {key: np.array(batch[key]) for key in batch if key not in fields}
        placed = _place.to_devices(sharding, fields | others)
        mixed = _mix_sharded(self, mesh, {key: placed[key] for key in fields})
        ordered = {key: placed[key] for key in batch}
        merged = _fields.replace(ordered, [self.seed_key], mixed)
        return {key: _place.to_global(sharding, value) for key, value in merged.items()}

    def mix(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Does the same as a pure function of arrays, for use inside `jit` and `shard_map`.

        Args:
            batch: the fields of a batch, each `[B, ...]`. Under `jit`, where values are not known,
                class ids out of range are not noticed and become zeros. Inside `shard_map` a shard
                is the batch: pairs, and `mode="batch"`, are the shard's own, so keep its size even.

        Returns:
            A new dict with the values that `map` returns, as `jax.Array`s.
        """
        fields = self._checked(batch)
        with into_jax():
            arrays = {key: _place.as_array(value) for key, value in fields.items()}
            return _fields.replace(batch, [self.seed_key], _mix(self, arrays))

    def draw(
        self, seeds: ArrayLike, image_shape: tuple[int, ...], valid: ArrayLike | None = None
    ) -> _draw.Draw:
        """The parameters that a batch with these seeds is mixed with, for plots and debugging.

        Args:
            seeds: `uint32 [B]`, as `RecordSeed` adds them.
            image_shape: the shape of the whole batch's images, B first.
            valid: `bool [B]`, the field that `valid_key` names; `None`: all records are real.
        """
        where = f"{type(self).__name__}.draw"
        if not is_array(seeds):
            fix = 'pass batch["mix_seed"], or np.arange(B, dtype=np.uint32)'
            fail(TypeError, where, f"seeds is {describe(seeds)}", "an array", fix)
        size = _draw.check_seeds(where, "seeds", seeds)
        fix = "pass that of the whole batch's images, B first, B the number of seeds"
        if not isinstance(image_shape, tuple | list) or not all(map(is_int, image_shape)):
            fail(TypeError, where, f"image_shape={quote(image_shape)}", "a shape", fix)
        shape = tuple(map(int, image_shape))
        if shape[:1] != (size,):
            fail(ValueError, where, f"image_shape={quote(shape)}", f"({size}, ...)", fix)
        axes = axes_of(where, self._axes, "image_shape", shape)
        if valid is not None:
            if not is_array(valid):
                fix = "pass np.asarray(valid)"
                fail(TypeError, where, f"valid is {describe(valid)}", f"bool [{size}]", fix)
            _draw.check_valid(where, "valid", valid, size)
        lengths = tuple(shape[axis] for axis in axes)
        with into_jax():
            real = None if valid is None else _place.as_array(valid)
            drawn: _draw.Draw = _draw_jitted(self, _place.as_array(seeds), real, lengths)
        return drawn

    def output_spec(self, input_spec: Mapping[str, Any]) -> dict[str, Any]:
        """The shapes and dtypes that come out, for `grain.experimental.get_element_spec`.

        Args:
            input_spec: the fields of a batch, each with a `shape` and a `dtype`. The number of
                records may be unknown (`None`), as it is without `drop_remainder=True`.
        """
        where = type(self).__name__
        _fields.check_mapping(where, input_spec)
        seeds = _fields.find(where, input_spec, self.seed_key, self._fix_for_seeds())
        size = seeds.shape[0] if seeds.shape else None
        specs = {
            key: grain.experimental.ShapeDtypeStruct(
                tuple(2 if length is None else length for length in spec.shape),
                np.dtype(spec.dtype),
            )
            for key, spec in input_spec.items()
            if is_array(spec)
        }
        fields = self._checked({**input_spec, **specs})
        shapes = {
            key: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))
            for key, x in fields.items()
        }
        with into_jax():
            mixed = jax.eval_shape(functools.partial(_mix, self), shapes)
        out = {
            key: grain.experimental.ShapeDtypeStruct((size, *spec.shape[1:]), spec.dtype)
            for key, spec in mixed.items()
        }
        return _fields.replace(input_spec, [self.seed_key], out)

    def __call__(self, *_: Any) -> NoReturn:
        """Refuses to be called, as a function would be."""
        where = type(self).__name__
        fix = "put it into the operations of a DataLoader or a dataset's .map, or call .map(batch)"
        fail(TypeError, where, "a transform that is called like a function", "a method", fix)

    def __getstate__(self) -> dict[str, Any]:
        """Refuses to enter a worker process with devices, which cannot follow."""
        if self.sharding is not None:
            _place.refuse_pickling(type(self).__name__)
        return dict(vars(self))

    def __copy__(self: T) -> T:
        """Itself: nothing of it can change."""
        return self

    def __deepcopy__(self: T, memo: dict[int, Any]) -> T:
        """Itself: nothing of it can change."""
        return self

    def _fix_for_seeds(self) -> str:
        return (
            f"put gm.RecordSeed(seed_key={self.seed_key!r}) into the operations, before Batch; if "
            "another of these transforms comes first, it has used the seeds up: use one of them, "
            "such as MixBatch for MixUp and CutMix"
        )

    def _checked(self, batch: Any) -> dict[str, Any]:
        """The fields that are read, after all checks; every other field passes through."""
        where = type(self).__name__
        _fields.check_mapping(where, batch)
        fixes = {key: part.fix for part in self._parts for key in part.keys}
        fixes[self.seed_key] = self._fix_for_seeds()
        if self.valid_key is not None:
            fixes[self.valid_key] = "pass the name as valid_key, or None if nothing is padded"
        fields = {key: _fields.find(where, batch, key, fix) for key, fix in fixes.items()}
        for key in (key for part in self._parts for key in part.adds):
            if key in batch:
                came = f"{key!r} is in the batch"
                fail(KeyError, where, came, "it free for sparse_labels", "rename that field")
        size = _draw.check_seeds(where, self.seed_key, fields[self.seed_key])
        for key, value in fields.items():
            if value.shape[:1] != (size,):
                came = f"{key!r} is {describe(value)}, but there are {size} seeds"
                fail(
                    ValueError, where, came, "as many seeds as records", "take both from one batch"
                )
        if self.valid_key is not None:
            _draw.check_valid(where, self.valid_key, fields[self.valid_key], size)
        axes = self._axes_in(fields)
        for part in self._parts:
            part.check(where, fields, axes)
            part.check_values(where, fields)
        return fields

    def _axes_in(self, fields: Mapping[str, Any]) -> tuple[int, ...]:
        """The axes of the box in the first image, counted from the front."""
        first = self._parts[0].keys[0]
        return axes_of(type(self).__name__, self._axes, first, fields[first].shape)

    def _mix_parts(self, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Draws, and mixes each part with what was drawn."""
        axes = self._axes_in(fields)
        image = fields[self._parts[0].keys[0]]
        lengths = tuple(image.shape[axis] for axis in axes)
        seeds = _draw.share(self.mode, fields[self.seed_key])
        valid = None if self.valid_key is None else fields[self.valid_key]
        draw = _draw.draw(self._recipe, seeds, lengths, valid)
        mixed: dict[str, jax.Array] = {}
        for part in self._parts:
            mixed |= part.mix(fields, draw, axes)
        return mixed


# One jitted function for all: the transform is a static argument, compared by value.
@functools.partial(jax.jit, static_argnums=0)
def _mix(transform: MixedBatch, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
    where, key = type(transform).__name__, transform.seed_key
    split = _place.explicit_split(where, fields)
    if split is None:
        return transform._mix_parts(fields)
    # Explicit axes leave nothing to the compiler, so each shard is mixed by itself.
    seeds = fields[key]
    _place.check_pairs(where, len(seeds), len(seeds) // split.shard_shape(seeds.shape)[0])
    if transform.mode == "batch":  # whose first record is in one of the shards only
        fields = fields | {key: _place.gathered(functools.partial(_draw.share, "batch"), seeds)}
    mix = jax.shard_map(
        transform._mix_parts, mesh=split.mesh, in_specs=(split.spec,), out_specs=split.spec
    )
    mixed: dict[str, jax.Array] = mix(fields)
    return mixed


@functools.partial(jax.jit, static_argnums=(0, 3))
def _draw_jitted(
    transform: MixedBatch, seeds: jax.Array, valid: jax.Array | None, lengths: tuple[int, ...]
) -> _draw.Draw:
    def drawn(seeds: jax.Array, *valid: jax.Array) -> _draw.Draw:
        return _draw.draw(transform._recipe, _draw.share(transform.mode, seeds), lengths, *valid)

    draw: _draw.Draw = _place.gathered(drawn, seeds, *([] if valid is None else [valid]))
    return draw


@functools.partial(jax.jit, static_argnums=(0, 1))
def _mix_sharded(
    transform: MixedBatch, mesh: Mesh, fields: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    # No pair crosses a device, so each device mixes its own part and none talks to another.
    parts = PartitionSpec(_place.SLICES)
    mix = jax.shard_map(transform._mix_parts, mesh=mesh, in_specs=(parts,), out_specs=parts)
    mixed: dict[str, jax.Array] = mix(fields)
    return mixed


@_options.explains_mistakes
@dataclasses.dataclass(frozen=True)
class MixUpBatch(MixedBatch):
    """MixUp: `λ·x + (1-λ)·x_partner` for images and labels, with λ ~ Beta(α, α).

    Put it after `Batch`, and `RecordSeed` before `Batch`. Records 2k and 2k+1 of a batch are each
    other's partners. A last record without a neighbour takes the one before it. A batch of one
    record comes back unmixed.

    Args:
        alpha: α > 0. Small: most records are hardly mixed. 1: λ is uniform. Large: λ is near 1/2.
        num_classes: K. Class ids, integers `[B]` or `[B, 1]`, become one-hot `[B, K]`. `None`:
            labels are `[B, K]` already, as floats.
        label_smoothing: ε in [0, 1]: the targets are 1 - ε + ε/K and ε/K instead of 1 and 0, before
            mixing.
        sparse_labels: if `True`, the label becomes `int32 [B, 2]`, own and partner's class id, and
            a field `label_weight` `float32 [B, 2]` is added. For K too large for `[B, K]`.
        prob: chance in [0, 1] that a draw mixes at all.
        mode: `"elem"`: each record has its own draw. `"pair"`: each pair shares the draw of its
            first record. `"batch"`: the whole batch shares the draw of its first record.
        image_key: name of the image field, or a tuple of names of images that share a draw.
            `uint8`, `uint16`, `uint32`, `int8`, `int16`, `int32`, `float16`, `bfloat16` or
            `float32` `[B, ...]`. The dtype stays. Integers are rounded to nearest, halves up;
            floats are blended in float32.
        label_key: name of the label field. `None`: there is none.
        seed_key: name of the field that `RecordSeed` added, `uint32 [B]`. It is removed.
        valid_key: name of a field `bool [B]` that is `False` for padding. A pair with an invalid
            record stays unmixed. The field passes through. `None`: all records are real.
        sharding: `None`: NumPy in, NumPy out, on the host. A `jax.sharding.Sharding` that splits
            the batch axis only: mixes on the devices, and returns global `jax.Array`s with that
            sharding. Each process brings its own part of the batch. All processes hold the same
            number of slices, and those that hold the same slices must bring the same records, as in
            `jax.make_array_from_process_local_data`. A transform with a sharding cannot enter a
            worker process: put it after `LoaderDataset`.

    Raises:
        TypeError, ValueError: a parameter that cannot be, when the transform is made.
        KeyError, TypeError, ValueError: a batch that does not fit, before anything is computed.

    See Zhang et al., mixup: Beyond Empirical Risk Minimization, https://arxiv.org/abs/1710.09412

    >>> batch = {
    ...     "image": np.full((4, 8, 8, 3), 100, np.uint8),
    ...     "label": np.array([0, 1, 2, 0]),
    ...     "mix_seed": np.array([1, 2, 3, 4], np.uint32),
    ... }
    >>> mixed = MixUpBatch(alpha=0.4, num_classes=3).map(batch)
    >>> mixed["image"].dtype, mixed["label"].shape, sorted(mixed)
    (dtype('uint8'), (4, 3), ['image', 'label'])
    """

    alpha: float = 0.2

    @property
    def _recipe(self) -> _draw.Recipe:
        return _draw.Recipe(prob=self.prob, mixup_alpha=self.alpha)


@_options.explains_mistakes
@dataclasses.dataclass(frozen=True)
class CutMixBatch(MixedBatch):
    """CutMix: a box of each image comes from its partner, and its label weighs by the pixels.

    With λ ~ Beta(α, α) the box has the sides ⌊L·(1-λ)^(1/n)⌋ over n spatial axes of length L
    about a uniform centre, clipped to the image. The own label's weight is pixels kept / pixels,
    after clipping and rounding: exactly, up to 2²⁴ pixels, and beyond to one part in 10⁷.

    Put it after `Batch`, and `RecordSeed` before `Batch`. Records 2k and 2k+1 of a batch are each
    other's partners. A last record without a neighbour takes the one before it. A batch of one
    record comes back unmixed.

    Args:
        alpha: α > 0. With 1 the box's area is uniform before clipping.
        minmax: `(lo, hi)`, 0 ≤ lo ≤ hi ≤ 1. Instead of the paper's box, each side is uniform over
            the whole numbers of pixels from lo·L to hi·L (if there is none: the first above), and
            the box lies wholly inside the image. `alpha` is not used then.
        mask_key: name of a label map `[B, ...]` of any image dtype. It is cut with the same box and
            copied exactly.
        spatial_axes: axes of the image that the box spans: `(1, 2)` for `[B, H, W, C]`, `(2, 3)`
            for `[B, C, H, W]`, `(1,)` for audio `[B, T, ...]`, `(1, 2, 3)` for video and volumes.
            `None` is (1, 2), but an error if axis 1 looks like channels (it has 1, 3 or 4 entries,
            and the last axis has not). Along an axis of length 1 the paper's box is always empty,
            so leave such an axis out.
        num_classes: K. Class ids, integers `[B]` or `[B, 1]`, become one-hot `[B, K]`. `None`:
            labels are `[B, K]` already, as floats.
        label_smoothing: ε in [0, 1]: the targets are 1 - ε + ε/K and ε/K instead of 1 and 0, before
            mixing.
        sparse_labels: if `True`, the label becomes `int32 [B, 2]`, own and partner's class id, and
            a field `label_weight` `float32 [B, 2]` is added. For K too large for `[B, K]`.
        prob: chance in [0, 1] that a draw mixes at all.
        mode: `"elem"`: each record has its own draw. `"pair"`: each pair shares the draw of its
            first record. `"batch"`: the whole batch shares the draw of its first record.
        image_key: name of the image field, or a tuple of names of images that share a draw.
            `uint8`, `uint16`, `uint32`, `int8`, `int16`, `int32`, `float16`, `bfloat16`, `float32`
            or `bool` `[B, ...]`. Every value is copied exactly.
        label_key: name of the label field. `None`: there is none.
        seed_key: name of the field that `RecordSeed` added, `uint32 [B]`. It is removed.
        valid_key: name of a field `bool [B]` that is `False` for padding. A pair with an invalid
            record stays unmixed. The field passes through. `None`: all records are real.
        sharding: `None`: NumPy in, NumPy out, on the host. A `jax.sharding.Sharding` that splits
            the batch axis only: mixes on the devices, and returns global `jax.Array`s with that
            sharding. Each process brings its own part of the batch. All processes hold the same
            number of slices, and those that hold the same slices must bring the same records, as in
            `jax.make_array_from_process_local_data`. A transform with a sharding cannot enter a
            worker process: put it after `LoaderDataset`.

    Raises:
        TypeError, ValueError: a parameter that cannot be, when the transform is made.
        KeyError, TypeError, ValueError: a batch that does not fit, before anything is computed.

    See Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features, https://arxiv.org/abs/1905.04899

    >>> batch = {
    ...     "image": np.arange(2, dtype=np.uint8).repeat(64).reshape(2, 8, 8, 1),
    ...     "label": np.array([0, 1]),
    ...     "mix_seed": np.array([5, 6], np.uint32),
    ... }
    >>> mixed = CutMixBatch(num_classes=2).map(batch)
    >>> bool((mixed["label"][:, 1] == mixed["image"].mean(axis=(1, 2, 3))).all())
    True
    """

    alpha: float = 1.0
    _: dataclasses.KW_ONLY
    minmax: tuple[float, float] | None = None
    mask_key: str | None = None
    spatial_axes: tuple[int, ...] | None = None

    @property
    def _recipe(self) -> _draw.Recipe:
        return _draw.Recipe(prob=self.prob, cutmix_alpha=self.alpha, minmax=self.minmax)

    @property
    def _axes(self) -> tuple[int, ...] | None:
        return self.spatial_axes


@_options.explains_mistakes
@dataclasses.dataclass(frozen=True)
class MixBatch(MixedBatch):
    """Each draw is CutMix with the chance `switch_prob`, else MixUp, as timm mixes.

    Put it after `Batch`, and `RecordSeed` before `Batch`. Records 2k and 2k+1 of a batch are each
    other's partners. A last record without a neighbour takes the one before it. A batch of one
    record comes back unmixed.

    Args:
        mixup_alpha: α > 0 of MixUp.
        cutmix_alpha: α > 0 of CutMix.
        switch_prob: chance in [0, 1] that a draw is CutMix.
        cutmix_minmax: `(lo, hi)`, 0 ≤ lo ≤ hi ≤ 1, as `minmax` of `CutMixBatch`: each side of the
            box is uniform from lo·L to hi·L, wholly inside the image. `cutmix_alpha` is not used
            then.
        spatial_axes: axes of the image that the box spans: `(1, 2)` for `[B, H, W, C]`, `(2, 3)`
            for `[B, C, H, W]`, `(1,)` for audio `[B, T, ...]`, `(1, 2, 3)` for video and volumes.
            `None` is (1, 2), but an error if axis 1 looks like channels (it has 1, 3 or 4 entries,
            and the last axis has not). Along an axis of length 1 the paper's box is always empty,
            so leave such an axis out.
        num_classes: K. Class ids, integers `[B]` or `[B, 1]`, become one-hot `[B, K]`. `None`:
            labels are `[B, K]` already, as floats.
        label_smoothing: ε in [0, 1]: the targets are 1 - ε + ε/K and ε/K instead of 1 and 0, before
            mixing.
        sparse_labels: if `True`, the label becomes `int32 [B, 2]`, own and partner's class id, and
            a field `label_weight` `float32 [B, 2]` is added. For K too large for `[B, K]`.
        prob: chance in [0, 1] that a draw mixes at all.
        mode: `"elem"`: each record has its own draw. `"pair"`: each pair shares the draw of its
            first record. `"batch"`: the whole batch shares the draw of its first record.
        image_key: name of the image field, or a tuple of names of images that share a draw.
            `uint8`, `uint16`, `uint32`, `int8`, `int16`, `int32`, `float16`, `bfloat16` or
            `float32` `[B, ...]`. The dtype stays. Integers are rounded to nearest, halves up;
            floats are blended in float32.
        label_key: name of the label field. `None`: there is none.
        seed_key: name of the field that `RecordSeed` added, `uint32 [B]`. It is removed.
        valid_key: name of a field `bool [B]` that is `False` for padding. A pair with an invalid
            record stays unmixed. The field passes through. `None`: all records are real.
        sharding: `None`: NumPy in, NumPy out, on the host. A `jax.sharding.Sharding` that splits
            the batch axis only: mixes on the devices, and returns global `jax.Array`s with that
            sharding. Each process brings its own part of the batch. All processes hold the same
            number of slices, and those that hold the same slices must bring the same records, as in
            `jax.make_array_from_process_local_data`. A transform with a sharding cannot enter a
            worker process: put it after `LoaderDataset`.

    Raises:
        TypeError, ValueError: a parameter that cannot be, when the transform is made.
        KeyError, TypeError, ValueError: a batch that does not fit, before anything is computed.

    See `MixUpBatch` and `CutMixBatch` for the two formulas and their papers.

    >>> transform = MixBatch(switch_prob=0.5)
    >>> draw = transform.draw(np.arange(1000, dtype=np.uint32), (1000, 32, 32, 3))
    >>> 0.4 < float((draw.box[:, 0, 1] > draw.box[:, 0, 0]).mean()) < 0.6
    True
    """

    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    _: dataclasses.KW_ONLY
    switch_prob: float = 0.5
    cutmix_minmax: tuple[float, float] | None = None
    spatial_axes: tuple[int, ...] | None = None

    @property
    def _recipe(self) -> _draw.Recipe:
        return _draw.Recipe(
            prob=self.prob,
            mixup_alpha=self.mixup_alpha,
            cutmix_alpha=self.cutmix_alpha,
            switch_prob=self.switch_prob,
            minmax=self.cutmix_minmax,
        )

    @property
    def _axes(self) -> tuple[int, ...] | None:
        return self.spatial_axes
