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

from grain_mix import _draw, _fields, _maps, _options, _place
from grain_mix._axes import axes_of
from grain_mix._blend import check_dtype
from grain_mix._boxes import Boxes
from grain_mix._calls import into_jax
from grain_mix._errors import describe, fail, is_array, is_int, quote
from grain_mix._fields import Key
from grain_mix._labels import Pairs, SoftLabels, SparseLabels
from grain_mix._parts import Images, LabelMaps, Part
from grain_mix._seed import warn_of_equal_seeds

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixedBatch(grain.transforms.Map, abc.ABC):
    """What the transforms share: everything except what is drawn."""

    num_classes: int | tuple[int | None, ...] | None = None
    label_smoothing: float = 0.0
    sparse_labels: bool = False
    prob: float = 1.0
    mode: str = "elem"
    image_key: Key | tuple[Key, ...] = "image"
    label_key: Key | tuple[Key, ...] | None = "label"
    pair_keys: tuple[Key, ...] = ()
    mask_key: Key | tuple[Key, ...] | None = None
    boxes_key: Key | None = None
    box_format: str | None = None
    box_keys: tuple[Key, ...] = ()
    min_visible: float = 0.1
    seed_key: Key = "mix_seed"
    valid_key: Key | None = None
    sharding: Sharding | None = None

    def __post_init__(self) -> None:
        where = type(self).__name__
        for field, value in list(vars(self).items()):
            object.__setattr__(self, field, _options.option(where, field, value))
        _options.check_labels(
            where, self.sparse_labels, self.label_smoothing, self.label_key, self.num_classes
        )
        _options.check_boxes(where, self.boxes_key, self.box_format, self.box_keys)
        if self.boxes_key is not None and self._recipe.weight_map is not None:
            came = f"boxes_key={self.boxes_key!r} with a weight map"
            fix = "use CutMixBatch, or drop boxes_key: what a map leaves of a box is no box"
            fail(ValueError, where, came, "boxes_key=None", fix)
        names = [(part.option, key) for part in self._parts for key in part.keys]
        names += [("seed_key", str(self.seed_key))]
        names += [("valid_key", str(self.valid_key))] if self.valid_key is not None else []
        _options.check_names(where, names)
        added = {key: part.option for part in self._parts for key in part.adds}
        _options.check_names(where, names + [(option, key) for key, option in added.items()])

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
        images, blends = _options.as_tuple(self.image_key), self._recipe.blends
        parts: list[Part] = [Images(images, averaged=blends)]
        boxes = None if self.boxes_key is None else str(self.boxes_key)
        if boxes is not None:
            others = _options.as_tuple(self.box_keys)
            parts.append(Boxes(boxes, str(self.box_format), others, images[0], self.min_visible))
        if self.mask_key is not None:
            parts.append(LabelMaps(_options.as_tuple(self.mask_key), images[0], boxes, blends))
        labels = _options.as_tuple(self.label_key)
        for key, classes in zip(labels, _options.classes_of(labels, self.num_classes), strict=True):
            if self.sparse_labels:
                parts.append(SparseLabels(key, classes))
            else:
                smooth = classes is not None or len(labels) == 1
                parts.append(SoftLabels(key, classes, self.label_smoothing if smooth else 0.0))
        if self.pair_keys:
            parts.append(Pairs(_options.as_tuple(self.pair_keys)))
        return tuple(parts)

    def map(self, element: Any) -> Any:
        """Mixes a batch; Grain calls this.

        Args:
            element: a dict or tuple of fields, which may be nested, each a NumPy array `[B, ...]`;
                with a `sharding`, the process's own part of the batch.

        Returns:
            The same, but new: images and label maps mixed, labels soft, the seeds removed, every
            other field as it came. Without a `sharding`, new arrays are read-only views of JAX's
            memory. With one, all are arrays over all processes. Their devices may still be reading
            the batch that came in, so write to its arrays only when the result is ready.
        """
        where = type(self).__name__
        fields = self._checked(element)
        for key, value in fields.items():
            if isinstance(value, jax.core.Tracer):
                came = f"map under jit, where {key!r} is {describe(value)} without values"
                fix = "call mix inside jit, grad, vmap and shard_map; it does the same"
                fail(TypeError, where, came, "arrays with values", fix)
        arrays = {key: np.asarray(value) for key, value in fields.items()}
        valid = None if self.valid_key is None else arrays[str(self.valid_key)]
        warn_of_equal_seeds(arrays[str(self.seed_key)], valid)
        with into_jax():
            if self.sharding is None:
                mixed, lam = jax.device_get(_mix(self, _place.to_host(arrays)))
                if lam is not None:
                    self._check_lam(fields[str(self.seed_key)], lam, self._lengths(fields))
                return _fields.replace(element, self._changes(element, mixed))
            return self._map_to_devices(self.sharding, element, arrays)

    def _map_to_devices(self, sharding: Sharding, batch: Any, fields: dict[str, np.ndarray]) -> Any:
        where, seed_key = type(self).__name__, str(self.seed_key)
        mesh = _place.local_mesh(sharding)
        seeds = fields[seed_key]
        _place.check_pairs(where, len(seeds), mesh.shape[_place.SLICES])
        read = set(self._paths(batch).values())
        others = {path: x for path, x in _fields.leaves(batch).items() if path not in read}
        for path, value in others.items():
            _place.check_placeable(where, _fields.show(path), value, len(seeds))
        if self.mode == "batch":  # whose first record is on one of the devices only
            fields[seed_key] = np.full_like(seeds, seeds[0])
        # Copies, or CPU devices would share the memory that the next batch may be put into.
        copies = [np.array(value) for value in others.values()]
        placed, passed = _place.to_devices(sharding, (fields, copies))
        mixed = _mix_sharded(self, mesh, placed)
        changes = dict(zip(others, passed, strict=True))
        if self.valid_key is not None:
            mixed = mixed | {str(self.valid_key): placed[str(self.valid_key)]}
        changes |= self._changes(batch, mixed)
        return _fields.replace(
            batch,
            {
                path: x if x is _fields.DROPPED else _place.to_global(sharding, x)
                for path, x in changes.items()
            },
        )

    def _paths(self, batch: Any) -> dict[str, _fields.Path | None]:
        """Where in a batch each field is that is read, by its name."""
        keys: dict[str, Key] = {}
        for option in ("image", "label", "mask", "boxes", "valid"):
            value = getattr(self, f"{option}_key")
            values = value if isinstance(value, tuple) else () if value is None else (value,)
            keys |= {str(key): key for key in values}
        keys |= {str(key): key for key in (*self.pair_keys, *self.box_keys)}
        paths = {name: _fields.locate(batch, key) for name, key in keys.items()}
        return {**paths, str(self.seed_key): _fields.locate_seed(batch, self.seed_key)}

    def _changes(self, batch: Any, mixed: Mapping[str, Any]) -> dict[_fields.Path, Any]:
        """What `_fields.replace` needs to put the mixed fields into the batch."""
        paths = self._paths(batch)
        changes: dict[_fields.Path, Any] = {paths[str(self.seed_key)] or (): _fields.DROPPED}
        beside = {name: near for part in self._parts for name, near in part.adds.items()}
        for name, value in mixed.items():
            path = paths.get(name)
            changes[path if path is not None else _added(batch, name, beside[name], paths)] = value
        return changes

    def mix(self, batch: Any) -> Any:
        """Does the same as a pure function of arrays, for use inside `jit` and `shard_map`.

        Args:
            batch: a dict or tuple of fields, each `[B, ...]`. Under `jit`, where values are not
                known, class ids out of range are not noticed and become zeros. Inside `shard_map`
                a shard is the batch: pairs, and `mode="batch"`, are the shard's own, so keep its
                size even.

        Returns:
            What `map` returns, with a `jax.Array` for each field that is mixed.
        """
        fields = self._checked(batch)
        with into_jax():
            arrays = {key: _place.as_array(value) for key, value in fields.items()}
            mixed, lam = _mix(self, arrays)
            if lam is not None:
                self._check_lam(arrays[str(self.seed_key)], lam, self._lengths(arrays))
            return _fields.replace(batch, self._changes(batch, mixed))

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
            if self._recipe.weight_map is not None:
                _maps.check_result(where, self._recipe.weight_map, lengths)
            real = None if valid is None else _place.as_array(valid)
            seeds = _place.as_array(seeds)
            drawn: _draw.Draw = _draw_jitted(self, seeds, real, lengths)
            if drawn.weights is not None:
                self._check_lam(seeds, drawn.lam, lengths)
        return drawn

    def output_spec(self, input_spec: Any) -> Any:
        """The shapes and dtypes that come out, for `grain.experimental.get_element_spec`.

        Args:
            input_spec: the fields of a batch, each with a `shape` and a `dtype`. The number of
                records may be unknown (`None`), as it is without `drop_remainder=True`.
        """
        where = type(self).__name__
        _fields.check_container(where, input_spec)
        path = _fields.locate_seed(input_spec, self.seed_key)
        seeds = _fields.find(where, input_spec, self.seed_key, path, self._fix_for_seeds())
        size = seeds.shape[0] if seeds.shape else None

        def known(spec: Any) -> Any:
            if not is_array(spec):
                return spec
            shape = tuple(2 if length is None else length for length in spec.shape)
            return grain.experimental.ShapeDtypeStruct(shape, np.dtype(spec.dtype))

        fields = self._checked(_fields.convert(input_spec, known))
        shapes = {
            key: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))
            for key, x in fields.items()
        }
        with into_jax():
            mixed, _ = jax.eval_shape(functools.partial(_mix, self), shapes)
        out = {
            key: grain.experimental.ShapeDtypeStruct((size, *spec.shape[1:]), spec.dtype)
            for key, spec in mixed.items()
        }
        return _fields.replace(input_spec, self._changes(input_spec, out))

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
        where, seed_key = type(self).__name__, str(self.seed_key)
        _fields.check_container(where, batch)
        fixes = {key: part.fix for part in self._parts for key in part.keys}
        fixes[seed_key] = self._fix_for_seeds()
        if self.valid_key is not None:
            fixes[str(self.valid_key)] = "pass the name as valid_key, or None if nothing is padded"
        paths = self._paths(batch)
        fields = {
            key: _fields.find(where, batch, key, paths[key], fix) for key, fix in fixes.items()
        }
        if isinstance(batch, tuple) and list(paths.values()).count(paths[seed_key]) > 1:
            came = f"no seeds at the end of a tuple of {len(batch)}"
            fail(KeyError, where, came, "one seed per record", self._fix_for_seeds())
        _options.check_names(where, [(key, _fields.show(paths[key] or ())) for key in fields])
        for part in self._parts:
            for key in part.adds:
                if _fields.locate(batch, key) is not None:
                    came = f"{key!r} is in the batch"
                    fail(KeyError, where, came, f"it free for {part.option}", "rename that field")
        size = _draw.check_seeds(where, seed_key, fields[seed_key])
        for key, value in fields.items():
            if value.shape[:1] != (size,):
                came = f"{key!r} is {describe(value)}, but there are {size} seeds"
                fail(
                    ValueError, where, came, "as many seeds as records", "take both from one batch"
                )
        if self.valid_key is not None:
            key = str(self.valid_key)
            _draw.check_valid(where, key, fields[key], size)
        axes = self._axes_in(fields)
        for part in self._parts:
            part.check(where, fields, axes)
            part.check_values(where, fields)
        self._check_map(where, fields)
        return fields

    def _check_map(self, where: str, fields: Mapping[str, Any]) -> None:
        """Checks that a weight map fits the images, and all that is mixed with it."""
        function = self._recipe.weight_map
        if function is None:
            return
        with into_jax():
            is_bool = _maps.check_result(where, function, self._lengths(fields))
        if is_bool:
            return
        for key in self._parts[0].keys:
            check_dtype(where, key, fields[key].dtype, averaged=True)
        if self.mask_key is not None:
            came = f"mask_key={self.mask_key!r}, but weight_map returns floats"
            fail(TypeError, where, came, "bool, since class ids have no average", "return bool")

    def _check_lam(self, seeds: Any, lam: Any, lengths: tuple[int, ...]) -> None:
        """Checks that all weights of a map were in [0, 1], if they are known."""
        if not _fields.has_values(lam) or not np.isnan(lam).any():
            return
        shared = _draw.share(self.mode, _place.as_array(seeds))
        seed = shared[int(np.argmax(np.isnan(lam)))]
        weights = np.asarray(_draw.raw_maps(self._recipe, seed[None], lengths))
        came = f"weight_map gives weights from {weights.min()} to {weights.max()} for seed {seed}"
        fix = "divide by the largest possible weight, or use jnp.clip"
        fail(ValueError, type(self).__name__, came, "weights from 0 to 1", fix)

    def _lengths(self, fields: Mapping[str, Any]) -> tuple[int, ...]:
        """How long the first image is along the axes of the box."""
        shape = fields[self._parts[0].keys[0]].shape
        return tuple(shape[axis] for axis in self._axes_in(fields))

    def _axes_in(self, fields: Mapping[str, Any]) -> tuple[int, ...]:
        """The axes of the box in the first image, counted from the front."""
        first = self._parts[0].keys[0]
        return axes_of(type(self).__name__, self._axes, first, fields[first].shape)

    def _mix_parts(
        self, fields: dict[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], jax.Array | None]:
        """Draws, and mixes each part with what was drawn.

        With a weight map, λ `[B]` comes too, to be checked.
        """
        axes, lengths = self._axes_in(fields), self._lengths(fields)
        seeds = _draw.share(self.mode, fields[str(self.seed_key)])
        valid = None if self.valid_key is None else fields[str(self.valid_key)]
        draw = _draw.draw(self._recipe, seeds, lengths, valid)
        mixed: dict[str, jax.Array] = {}
        for part in self._parts:
            mixed |= part.mix(fields, draw, axes)
        return mixed, None if draw.weights is None else draw.lam


def _added(
    batch: Any, name: str, near: str | None, paths: Mapping[str, _fields.Path | None]
) -> _fields.Path:
    """The path of a field that is added, beside `near` or in the outermost dict or tuple."""
    path = () if near is None else paths[near]
    above = path[:-1] if path else ()
    if isinstance(_fields.get(batch, above), tuple):
        return (*above, name)  # a key that no tuple has, so it comes last
    return (*above, name if near is None or not path else f"{path[-1]}{name[len(near) :]}")


# One jitted function for all: the transform is a static argument, compared by value.
@functools.partial(jax.jit, static_argnums=0)
def _mix(
    transform: MixedBatch, fields: dict[str, jax.Array]
) -> tuple[dict[str, jax.Array], jax.Array | None]:
    where, key = type(transform).__name__, str(transform.seed_key)
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
    mixed: tuple[dict[str, jax.Array], jax.Array | None] = mix(fields)
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
    mixed: dict[str, jax.Array] = mix(fields)[0]
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
            labels are floats already, `[B, K]` or any targets `[B, ...]`. For several labels, one
            int for all, or a tuple with an entry for each.
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
        label_key: name of the label field, or a tuple of names. `None`: there is none. Labels come
            out as `float32`. Any field's name may be a path `"inputs/image"` into nested dicts, or
            an int, the position in a tuple; then the seed is the last element.
        pair_keys: names of fields of any dtype and shape, such as captions, token ids or weights.
            They come out as `[B, 2, ...]`, own and partner's, and a field `label_weight`
            `float32 [B, 2]` is added.
        mask_key: name of a label map `[B, ...]` of any image dtype, or a tuple of names. It is cut
            with the image's box and never averaged. `CutMixBatch` returns `[B, ...]`. The others
            return `[B, 2, ...]`, own (cut) and partner's, and add a field `<mask_key>_weight`
            `float32 [B, 2]`: (1, 0) for a box, (λ, 1 - λ) for a blend. With `boxes_key`, masks of
            instances `[B, N, H, W]` come out as `[B, 2N, H, W]`, with 0 where they are hidden.
        boxes_key: name of a field of boxes `[B, N, 4]`, padded with boxes without area. They come
            out as `[B, 2N, 4]`, own boxes first, cut to what is visible where that is a rectangle.
            A field `box_weight` `float32 [B, 2N]` is added: the visible part of the box's area,
            times λ or 1 - λ for a blend. It is 0 for padding and for the partner's boxes in an
            unmixed record.
        box_format: `"xyxy"` or `"yxyx"` in pixels, `"rel_xyxy"` or `"rel_yxyx"` from 0 to 1. TFDS
            has `"rel_yxyx"`. Integer boxes count whole pixels, `[start, stop)`.
        box_keys: names of fields that go with each box, `[B, N, ...]`, such as its class. They come
            out as `[B, 2N, ...]`.
        min_visible: in [0, 1]. A box of which less is visible gets the weight 0.
        seed_key: name of the field that `RecordSeed` added, `uint32 [B]`. It is removed.
        valid_key: name of a field `bool [B]` that is `False` for padding. A pair with an invalid
            record stays unmixed. The field passes through. `None`: all records are real.
        sharding: `None`: NumPy in, NumPy out, on the host. A `jax.sharding.Sharding` that splits
            the batch axis only: mixes on the devices, and returns global arrays with that
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
        spatial_axes: axes of the image that the box spans: `(1, 2)` for `[B, H, W, C]`, `(2, 3)`
            for `[B, C, H, W]`, `(1,)` for audio `[B, T, ...]`, `(1, 2, 3)` for video and volumes.
            `None` is (1, 2), but an error if axis 1 looks like channels (it has 1, 3 or 4 entries,
            and the last axis has not). Along an axis of length 1 the paper's box is always empty,
            so leave such an axis out.
        num_classes: K. Class ids, integers `[B]` or `[B, 1]`, become one-hot `[B, K]`. `None`:
            labels are floats already, `[B, K]` or any targets `[B, ...]`. For several labels, one
            int for all, or a tuple with an entry for each.
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
        label_key: name of the label field, or a tuple of names. `None`: there is none. Labels come
            out as `float32`. Any field's name may be a path `"inputs/image"` into nested dicts, or
            an int, the position in a tuple; then the seed is the last element.
        pair_keys: names of fields of any dtype and shape, such as captions, token ids or weights.
            They come out as `[B, 2, ...]`, own and partner's, and a field `label_weight`
            `float32 [B, 2]` is added.
        mask_key: name of a label map `[B, ...]` of any image dtype, or a tuple of names. It is cut
            with the image's box and never averaged. `CutMixBatch` returns `[B, ...]`. The others
            return `[B, 2, ...]`, own (cut) and partner's, and add a field `<mask_key>_weight`
            `float32 [B, 2]`: (1, 0) for a box, (λ, 1 - λ) for a blend. With `boxes_key`, masks of
            instances `[B, N, H, W]` come out as `[B, 2N, H, W]`, with 0 where they are hidden.
        boxes_key: name of a field of boxes `[B, N, 4]`, padded with boxes without area. They come
            out as `[B, 2N, 4]`, own boxes first, cut to what is visible where that is a rectangle.
            A field `box_weight` `float32 [B, 2N]` is added: the visible part of the box's area,
            times λ or 1 - λ for a blend. It is 0 for padding and for the partner's boxes in an
            unmixed record.
        box_format: `"xyxy"` or `"yxyx"` in pixels, `"rel_xyxy"` or `"rel_yxyx"` from 0 to 1. TFDS
            has `"rel_yxyx"`. Integer boxes count whole pixels, `[start, stop)`.
        box_keys: names of fields that go with each box, `[B, N, ...]`, such as its class. They come
            out as `[B, 2N, ...]`.
        min_visible: in [0, 1]. A box of which less is visible gets the weight 0.
        seed_key: name of the field that `RecordSeed` added, `uint32 [B]`. It is removed.
        valid_key: name of a field `bool [B]` that is `False` for padding. A pair with an invalid
            record stays unmixed. The field passes through. `None`: all records are real.
        sharding: `None`: NumPy in, NumPy out, on the host. A `jax.sharding.Sharding` that splits
            the batch axis only: mixes on the devices, and returns global arrays with that
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
            labels are floats already, `[B, K]` or any targets `[B, ...]`. For several labels, one
            int for all, or a tuple with an entry for each.
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
        label_key: name of the label field, or a tuple of names. `None`: there is none. Labels come
            out as `float32`. Any field's name may be a path `"inputs/image"` into nested dicts, or
            an int, the position in a tuple; then the seed is the last element.
        pair_keys: names of fields of any dtype and shape, such as captions, token ids or weights.
            They come out as `[B, 2, ...]`, own and partner's, and a field `label_weight`
            `float32 [B, 2]` is added.
        mask_key: name of a label map `[B, ...]` of any image dtype, or a tuple of names. It is cut
            with the image's box and never averaged. `CutMixBatch` returns `[B, ...]`. The others
            return `[B, 2, ...]`, own (cut) and partner's, and add a field `<mask_key>_weight`
            `float32 [B, 2]`: (1, 0) for a box, (λ, 1 - λ) for a blend. With `boxes_key`, masks of
            instances `[B, N, H, W]` come out as `[B, 2N, H, W]`, with 0 where they are hidden.
        boxes_key: name of a field of boxes `[B, N, 4]`, padded with boxes without area. They come
            out as `[B, 2N, 4]`, own boxes first, cut to what is visible where that is a rectangle.
            A field `box_weight` `float32 [B, 2N]` is added: the visible part of the box's area,
            times λ or 1 - λ for a blend. It is 0 for padding and for the partner's boxes in an
            unmixed record.
        box_format: `"xyxy"` or `"yxyx"` in pixels, `"rel_xyxy"` or `"rel_yxyx"` from 0 to 1. TFDS
            has `"rel_yxyx"`. Integer boxes count whole pixels, `[start, stop)`.
        box_keys: names of fields that go with each box, `[B, N, ...]`, such as its class. They come
            out as `[B, 2N, ...]`.
        min_visible: in [0, 1]. A box of which less is visible gets the weight 0.
        seed_key: name of the field that `RecordSeed` added, `uint32 [B]`. It is removed.
        valid_key: name of a field `bool [B]` that is `False` for padding. A pair with an invalid
            record stays unmixed. The field passes through. `None`: all records are real.
        sharding: `None`: NumPy in, NumPy out, on the host. A `jax.sharding.Sharding` that splits
            the batch axis only: mixes on the devices, and returns global arrays with that
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


@_options.explains_mistakes
@dataclasses.dataclass(frozen=True)
class WeightMapMixBatch(MixedBatch):
    """Mixes by a map of weights that your function makes: `w·x + (1-w)·x_partner` per pixel.

    Any method that decides for each pixel how much is whose is a function of ten lines: FMix,
    GridMix, SmoothMix, patches of a ViT, bands of a spectrogram. The own label's weight is the mean
    of the map. For `bool` maps that is pixels kept / pixels, exactly, up to 2²⁴ pixels. For
    floats it is the mean to 10⁻⁶.

    Put it after `Batch`, and `RecordSeed` before `Batch`. Records 2k and 2k+1 of a batch are each
    other's partners. A last record without a neighbour takes the one before it. A batch of one
    record comes back unmixed.

    Args:
        weight_map: a function `(key, lam, lengths)` of JAX operations, for one record. `key` is a
            JAX key, the record's own. `lam` is λ ~ Beta(α, α), a `float32` scalar. `lengths` are
            the image's lengths along `spatial_axes`, a tuple of ints. It returns the weights of the
            record's own pixels, `bool` or floats in [0, 1], of shape `lengths`. Floats are rounded
            to multiples of 2⁻²⁴. Define the function once, at module level: a new function object
            is compiled anew, and worker processes must be able to import it.
        alpha: α > 0 of the λ that the function gets.
        spatial_axes: axes of the image that the map has: `(1, 2)` for `[B, H, W, C]`, `(2, 3)` for
            `[B, C, H, W]`, `(1,)` for audio `[B, T, ...]`, `(1, 2, 3)` for video and volumes.
            `None` is (1, 2), but an error if axis 1 looks like channels (it has 1, 3 or 4 entries,
            and the last axis has not).
        num_classes: K. Class ids, integers `[B]` or `[B, 1]`, become one-hot `[B, K]`. `None`:
            labels are floats already, `[B, K]` or any targets `[B, ...]`. For several labels, one
            int for all, or a tuple with an entry for each.
        label_smoothing: ε in [0, 1]: the targets are 1 - ε + ε/K and ε/K instead of 1 and 0, before
            mixing.
        sparse_labels: if `True`, the label becomes `int32 [B, 2]`, own and partner's class id, and
            a field `label_weight` `float32 [B, 2]` is added. For K too large for `[B, K]`.
        prob: chance in [0, 1] that a draw mixes at all.
        mode: `"elem"`: each record has its own draw. `"pair"`: each pair shares the draw of its
            first record. `"batch"`: the whole batch shares the draw of its first record.
        image_key: name of the image field, or a tuple of names of images that share a draw.
            `uint8`, `uint16`, `uint32`, `int8`, `int16`, `int32`, `float16`, `bfloat16` or
            `float32` `[B, ...]`; `bool` too if the map is. The dtype stays. A `bool` map copies
            every value exactly. With weights that are floats, integers are rounded to nearest,
            halves up, and floats are blended in float32.
        label_key: name of the label field, or a tuple of names. `None`: there is none. Labels come
            out as `float32`. Any field's name may be a path `"inputs/image"` into nested dicts, or
            an int, the position in a tuple; then the seed is the last element.
        pair_keys: names of fields of any dtype and shape, such as captions, token ids or weights.
            They come out as `[B, 2, ...]`, own and partner's, and a field `label_weight`
            `float32 [B, 2]` is added.
        mask_key: name of a label map `[B, ...]` of any image dtype, or a tuple of names, for
            weight maps that are `bool`. It is cut as the image is.
        boxes_key, box_format, box_keys, min_visible: not for weight maps, since what a map leaves
            of a box is no box. `CutMixBatch` mixes boxes.
        seed_key: name of the field that `RecordSeed` added, `uint32 [B]`. It is removed.
        valid_key: name of a field `bool [B]` that is `False` for padding. A pair with an invalid
            record stays unmixed. The field passes through. `None`: all records are real.
        sharding: `None`: NumPy in, NumPy out, on the host. A `jax.sharding.Sharding` that splits
            the batch axis only: mixes on the devices, and returns global arrays with that
            sharding. Each process brings its own part of the batch. All processes hold the same
            number of slices, and those that hold the same slices must bring the same records, as in
            `jax.make_array_from_process_local_data`. A transform with a sharding cannot enter a
            worker process: put it after `LoaderDataset`.

    Raises:
        TypeError, ValueError: a parameter that cannot be, when the transform is made.
        KeyError, TypeError, ValueError: a batch that does not fit, or a function that returns
            another shape or dtype, before anything is computed.
        ValueError: weights outside [0, 1] in `draw`, in `map` without a `sharding`, and in `mix`
            outside `jit`. Elsewhere values are not known: then the weights of that record's label
            become NaN, and so does the loss. Without labels nothing tells, so look at `draw` first.

    The guide to weight maps has recipes. FMix: https://arxiv.org/abs/2002.12047

    >>> import jax.numpy as jnp
    >>> def halves(key, lam, lengths):
    ...     height, width = lengths
    ...     return jnp.broadcast_to(jnp.arange(width) < lam * width, lengths)
    >>> batch = {
    ...     "image": np.arange(2, dtype=np.uint8).repeat(64).reshape(2, 8, 8, 1),
    ...     "label": np.array([0, 1]),
    ...     "mix_seed": np.array([5, 6], np.uint32),
    ... }
    >>> mixed = WeightMapMixBatch(halves, num_classes=2).map(batch)
    >>> bool((mixed["label"][:, 1] == mixed["image"].mean(axis=(1, 2, 3))).all())
    True
    """

    weight_map: _maps.WeightMap
    alpha: float = 1.0
    _: dataclasses.KW_ONLY
    spatial_axes: tuple[int, ...] | None = None

    @property
    def _recipe(self) -> _draw.Recipe:
        return _draw.Recipe(prob=self.prob, mixup_alpha=self.alpha, weight_map=self.weight_map)

    @property
    def _axes(self) -> tuple[int, ...] | None:
        return self.spatial_axes
