"""The Grain transforms: their fields and their documentation."""

import abc
import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import field
from typing import Any, NoReturn, TypeVar

import grain
from jax.sharding import Sharding
from jax.typing import ArrayLike

from grain_mix import _map_functions, _options, _parameters, _run, _sharding, _spec
from grain_mix._axes import as_axes
from grain_mix._draw import Draw
from grain_mix._errors import explains_mistakes, fail
from grain_mix._identity import identity
from grain_mix._laws import Beta, Law, check_law, law_of
from grain_mix._mixing import Setup
from grain_mix._parameters import (
    MODE,
    SMOOTHING,
    SOURCES,
    as_name,
    checked_by,
    name_or_names,
    optional,
)
from grain_mix._rules import ByMap, CutMix, Either, MixUp, MixUpOfMany, Mosaic, Rule
from grain_mix.targets import OneHot, Target
from grain_mix.targets._labels import Ready

T = TypeVar("T")
Key = str | int  # the name of a field, or its position in a tuple

SHARED = """targets: a dict from a field's name to what it says about the image, such as
            `{"label": gm.OneHot(10), "map": gm.LabelMap()}`. `None`: the one label of `label_key`.
        label_key: name of the label, for the short form without `targets`. With `num_classes` it
            means `OneHot(num_classes, smoothing=label_smoothing)`. Without, labels are soft
            already: floats `[B, K]`, or integers that are zeros and ones. `None`: no label. With
            `targets`, a field of this name must be in them, unless `label_key=None`.
        num_classes: K, for class ids, integers `[B]` or `[B, 1]`.
        label_smoothing: ε in [0, 1]: the targets are 1 - ε + ε/K and ε/K instead of 1 and 0.
        prob: chance in [0, 1] that a draw mixes at all.
        mode: `"elem"`: each record has its own draw. `"pair"`: each pair shares the draw of its
            first record. `"batch"`: the whole batch shares the draw of its first record. `"pair"`
            is for two records in one.
        image_key: name of the image, or a tuple of names of images that share a draw. `uint8`,
            `uint16`, `uint32`, `int8`, `int16`, `int32`, `float16`, `bfloat16` or `float32`
            `[B, ...]`; `bool` too where nothing is blended. The dtype stays. Integers are rounded
            to nearest, halves up; floats are blended in `float32`. Any field's name may be a path
            `"inputs/image"` or `"views/0"` through dicts and tuples, or a position in a tuple.
        spatial_axes: axes of the image that a box or a map spans, and that targets with positions
            need: `(1, 2)` for `[B, H, W, C]`, `(2, 3)` for `[B, C, H, W]`, `(1,)` for audio
            `[B, T, ...]`, `(1, 2, 3)` for volumes. `None` is (1, 2) for `[B, H, W, C]` with C at
            most 4 and below H and W; every other shape must name its axes, where they are needed.
            Along an axis of length 1 the paper's box is always empty: leave such an axis out.
        seed_key: name of the field that `RecordSeed` added, `uint32 [B]`. It is removed.
        valid_key: name of a field `bool [B]` that is `False` for padding. A record is mixed if it
            is real, and all that it is mixed with are. The field passes through. `None`: all
            records are real.
        partner_key: name of a nested record with the same names that each record brings as its
            partner; where k > 2 records are mixed into one, a tuple of k - 1 names. It is removed.
            `None`: the records of each group of k consecutive ones are mixed with each other. The
            records that remain at the end of a batch take its last k records as their group, and a
            batch of fewer than k comes back unmixed.
        sharding: `None`: NumPy in, NumPy out, on the host. A `jax.sharding.Sharding` that splits
            the batch axis only: mixes on the devices, and returns global arrays with that
            sharding. Each process brings its own part of the batch. All processes hold the same
            number of slices, and those that hold the same slices must bring the same records, as in
            `jax.make_array_from_process_local_data`. A transform with a sharding cannot enter a
            worker process: put it after `LoaderDataset`."""


def documented(transform: type[T]) -> type[T]:
    """Puts the text of the shared fields, which is written once, into a class's documentation."""
    text = inspect.cleandoc(transform.__doc__ or "")  # as Python 3.13 itself keeps it
    transform.__doc__ = text.replace("SHARED", SHARED.replace("\n    ", "\n"))
    return explains_mistakes(transform)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Transform(grain.transforms.Map, abc.ABC):
    """What the transforms share: everything except what is drawn."""

    targets: Mapping[Any, Target] | None = field(
        default=None, metadata=checked_by(optional(_options.as_targets))
    )
    label_key: Key | None = field(default="label", metadata=checked_by(optional(_options.as_label)))
    num_classes: int | None = field(
        default=None, metadata=checked_by(optional(_options.as_classes))
    )
    label_smoothing: float = field(default=0.0, metadata=checked_by(SMOOTHING))
    prob: float = field(default=1.0, metadata=checked_by(_parameters.chance))
    mode: str = field(default="elem", metadata=checked_by(MODE))
    image_key: Key | tuple[Key, ...] = field(
        default="image", metadata=checked_by(name_or_names("'image'"))
    )
    spatial_axes: tuple[int, ...] | None = field(default=None, metadata=checked_by(as_axes))
    seed_key: Key = field(default="mix_seed", metadata=checked_by(as_name))
    valid_key: Key | None = field(default=None, metadata=checked_by(optional(as_name)))
    partner_key: Key | tuple[Key, ...] | None = field(
        default=None, metadata=checked_by(optional(name_or_names("'other'")))
    )
    sharding: Sharding | None = field(
        default=None, metadata=checked_by(optional(_sharding.check_sharding))
    )

    def __post_init__(self) -> None:
        _parameters.check_all(self)
        caller, targets = type(self).__name__, self._all_targets()
        rule, partners = self._rule, self._partners
        if partners and self.mode == "pair":
            got = f"mode='pair' with partner_key={self.partner_key!r}"
            fix = "use 'elem': the partner's own draw is not used"
            fail(ValueError, caller, got, "mode='elem' or 'batch'", fix)
        if rule.sources > 2 and self.mode == "pair":
            got = f"mode='pair' where {rule.sources} records are mixed"
            fix = "use 'elem', or 'batch' for one draw for all"
            fail(ValueError, caller, got, "mode='elem' or 'batch'", fix)
        if partners and len(partners) != rule.sources - 1:
            got = f"partner_key={self.partner_key!r} where {rule.sources} records are mixed"
            others = tuple(f"other{i}" for i in range(1, rule.sources))
            fix = f"name each nested record, like {others if rule.sources > 2 else 'other'!r}"
            fail(ValueError, caller, got, f"{rule.sources - 1} of them", fix)
        images = self.image_key if isinstance(self.image_key, tuple) else (self.image_key,)
        names = [("image_key", str(name)) for name in images]
        names += [
            ("targets" if self.targets is not None else "label_key", name) for name in targets
        ]
        for kind in targets.values():
            names += [(type(kind).__name__, name) for name in kind.reads]
        names += [("seed_key", str(self.seed_key))]
        names += [] if self.valid_key is None else [("valid_key", str(self.valid_key))]
        names += [("partner_key", name) for name in partners]
        for name, kind in targets.items():
            names += [(f"{type(kind).__name__}, which adds it", name + end) for end in kind.adds]
        _options.check_names(caller, names)
        fields = tuple(
            getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "sharding"
        )
        setup = Setup(
            identity=(type(self), identity(fields)),
            caller=caller,
            rule=rule,
            prob=self.prob,
            mode=self.mode,
            images=tuple(map(str, images)),
            targets=targets,
            spatial_axes=self.spatial_axes,
            seed_key=str(self.seed_key),
            valid_key=None if self.valid_key is None else str(self.valid_key),
            partner_keys=partners,
            is_short=self.targets is None,
            unnamed=str(self.label_key) if self.targets is not None and self.label_key else None,
        )
        object.__setattr__(self, "_setup", setup)

    @property
    def _partners(self) -> tuple[str, ...]:
        """The names of the partners that records bring."""
        keys = self.partner_key if isinstance(self.partner_key, tuple) else (self.partner_key,)
        return tuple(str(key) for key in keys if key is not None)

    def _all_targets(self) -> dict[str, Target]:
        """The targets, those of the short form included."""
        caller, label = type(self).__name__, self.label_key
        said = {"num_classes": self.num_classes, "label_smoothing": self.label_smoothing or None}
        for option, value in said.items():
            if value is None or (self.targets is None and label is not None):
                continue
            if self.targets is not None:
                got, fix = f"{option}={value} with targets", f"targets={{{label or 'label'!r}: "
                fix = f"say it in there, {fix}gm.OneHot(K, smoothing=...)}}"
            else:
                got, fix = (
                    f"{option}={value} with label_key=None",
                    f"drop {option}, or name the label",
                )
            fail(ValueError, caller, got, f"{option} for the one label of label_key", fix)
        if self.targets is not None:
            return dict(self.targets)
        if label is None:
            return {}
        if self.num_classes is None:
            return {str(label): Ready(smoothing=self.label_smoothing)}
        return {str(label): OneHot(self.num_classes, smoothing=self.label_smoothing)}

    @property
    @abc.abstractmethod
    def _rule(self) -> Rule:
        """What is drawn."""

    def map(self, element: Any) -> Any:
        """Mixes a batch; Grain calls this.

        Args:
            element: a dict or tuple of fields, which may be nested, each a NumPy array `[B, ...]`;
                with a `sharding`, the process's own part of the batch.

        Returns:
            The same, but new. Images and targets are mixed, the seeds removed, and every other
            field is as it came. What is added to a tuple is in one dict at its end.

            Without a `sharding`, new arrays are NumPy's. Most are read-only views of JAX's memory;
            what is large and only cut is an array of its own, and writable. With a `sharding`, all
            are arrays over all processes. Their devices may still be reading the batch that came
            in, so write to its arrays only when the result is ready.
        """
        return _run.map_batch(self._setup, self.sharding, element)

    def mix(self, batch: Any, *, key: Any = None) -> Any:
        """Does the same as a pure function of arrays, for use inside `jit` and `shard_map`.

        Args:
            batch: a dict or tuple of fields, each `[B, ...]`. Under `jit`, where values are not
                known, class ids out of range are not noticed and become zeros. Inside `shard_map`
                a shard is the batch: pairs, and `mode="batch"`, are the shard's own, so keep its
                size even.
            key: a key of `jax.random`, new style or old, for a step that has no seeds. The seed of
                record i is a hash of the key's data and of i, so the same key draws the same on any
                number of devices. Not inside `shard_map`, where all shards would draw alike.

        Returns:
            What `map` returns, with a `jax.Array` for each field that is mixed.
        """
        return _run.mix_batch(self._setup, batch, key)

    def draw(
        self,
        seeds: ArrayLike,
        image_shape: tuple[int, ...],
        valid: ArrayLike | None = None,
        *,
        fields: Mapping[Key, ArrayLike] | None = None,
    ) -> Draw:
        """The parameters that a batch with these seeds is mixed with, for plots and debugging.

        Args:
            seeds: `uint32 [B]`, as `RecordSeed` adds them.
            image_shape: the shape of the whole batch's images, B first.
            valid: `bool [B]`, the field that `valid_key` names; `None`: all records are real. With
                a `partner_key`, where a record and its partners are all real.
            fields: what a weight map reads, `[B, ...]` each, by its name; that of partners that
                records bring as `"other/masks"`.
        """
        return _run.draw(self._setup, seeds, image_shape, valid, fields)

    def output_spec(self, input_spec: Any) -> Any:
        """The shapes and dtypes that come out, for `grain.experimental.get_element_spec`.

        Args:
            input_spec: the fields of a batch, each with a `shape` and a `dtype`. Lengths that are
                unknown (`None`), as the number of records is without `drop_remainder=True`, stay
                unknown.
        """
        return _spec.output_spec(self._setup, self.sharding, input_spec)

    def __call__(self, *_: Any) -> NoReturn:
        """Refuses to be called, as a function would be."""
        caller = type(self).__name__
        fix = "put it into the operations of a DataLoader or a dataset's .map, or call .map(batch)"
        fail(TypeError, caller, "a transform that is called like a function", "a method", fix)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Transform)
            and self._setup == other._setup
            and self.sharding == other.sharding
        )

    def __hash__(self) -> int:
        return hash(self._setup)

    def __getstate__(self) -> dict[str, Any]:
        """Refuses to enter a worker process with devices, which cannot follow."""
        if self.sharding is not None:
            _sharding.refuse_pickling(type(self).__name__)
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def __copy__(self: T) -> T:
        """Itself: nothing of it can change."""
        return self

    def __deepcopy__(self: T, memo: dict[int, Any]) -> T:
        """Itself: nothing of it can change."""
        return self


@documented
@dataclasses.dataclass(frozen=True, eq=False)
class MixUpBatch(Transform):
    """MixUp: `λ·x + (1-λ)·x_partner` for images and labels, with λ ~ Beta(α, α).

    With `sources=k` it is `Σ w_r·x_r` over the record and the k - 1 that follow it in its group of
    k consecutive records, with w ~ Dirichlet(α, ..., α).

    Put it after `Batch`, and `RecordSeed` before `Batch`.

    Args:
        alpha: α > 0. Small: most records are hardly mixed. 1: λ is uniform. Large: λ is near 1/2.
            Or a law of the record's own weight, such as `gm.Beta(a, b)`; for more than two sources
            a number, or `gm.Larger(gm.Beta(a, a))`, under which the largest share is the record's.
        sources: k, how many records are mixed into one, from 2 to 8.
        SHARED

    Raises:
        TypeError, ValueError: a parameter that cannot be, when the transform is made.
        KeyError, TypeError, ValueError: a batch that does not fit, before anything is computed.

    See Zhang et al., mixup: Beyond Empirical Risk Minimization, https://arxiv.org/abs/1710.09412

    >>> import numpy as np
    >>> batch = {
    ...     "image": np.full((4, 8, 8, 3), 100, np.uint8),
    ...     "label": np.array([0, 1, 2, 0]),
    ...     "mix_seed": np.array([1, 2, 3, 4], np.uint32),
    ... }
    >>> mixed = MixUpBatch(alpha=0.4, num_classes=3).map(batch)
    >>> mixed["image"].dtype, mixed["label"].shape, sorted(mixed)
    (dtype('uint8'), (4, 3), ['image', 'label'])
    >>> of_three = MixUpBatch(1.0, sources=3, num_classes=3)
    >>> of_three.draw(np.array([1, 2, 3], np.uint32), (3, 8, 8, 3)).shares.shape
    (3, 3)
    """

    alpha: float | Law = field(default=0.2, metadata=checked_by(check_law))
    _: dataclasses.KW_ONLY
    sources: int = field(default=2, metadata=checked_by(SOURCES))

    @property
    def _rule(self) -> Rule:
        law = law_of(self.alpha)
        if self.sources == 2:
            return MixUp(law)
        inner = getattr(law, "law", law)  # what is inside of Larger
        if not isinstance(inner, Beta) or inner.a != inner.b:
            got = f"alpha={self.alpha!r} with sources={self.sources}"
            fix = "pass a number α, the parameter of Dirichlet(α, ..., α)"
            fail(ValueError, "MixUpBatch", got, "a number, or gm.Larger(gm.Beta(a, a))", fix)
        return MixUpOfMany(inner.a, inner is not law, self.sources)


@documented
@dataclasses.dataclass(frozen=True, eq=False)
class CutMixBatch(Transform):
    """CutMix: a box of each image comes from its partner, and its label weighs by the pixels.

    With λ ~ Beta(α, α) the box has the sides ⌊L·(1-λ)^(1/n)⌋ over n spatial axes of length L
    about a uniform centre, clipped to the image. The own label's weight is pixels kept / pixels,
    after clipping and rounding: exactly, up to 2²⁴ pixels, and beyond to one part in 10⁷.

    Put it after `Batch`, and `RecordSeed` before `Batch`.

    Args:
        alpha: α > 0. With 1 the box's area is uniform before clipping. Or `gm.Beta(a, b)` for
            another law of the record's own weight, before clipping.
        minmax: `(lo, hi)`, 0 ≤ lo ≤ hi ≤ 1. Instead of the paper's box, each side is uniform over
            the whole numbers of pixels from lo·L to hi·L (if there is none: the first above), and
            the box lies wholly inside the image. `alpha` is not used then.
        SHARED

    Raises:
        TypeError, ValueError: a parameter that cannot be, when the transform is made.
        KeyError, TypeError, ValueError: a batch that does not fit, before anything is computed.

    See Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features, https://arxiv.org/abs/1905.04899

    >>> import numpy as np
    >>> batch = {
    ...     "image": np.arange(2, dtype=np.uint8).repeat(64).reshape(2, 8, 8, 1),
    ...     "label": np.array([0, 1]),
    ...     "mix_seed": np.array([5, 6], np.uint32),
    ... }
    >>> mixed = CutMixBatch(num_classes=2).map(batch)
    >>> bool((mixed["label"][:, 1] == mixed["image"].mean(axis=(1, 2, 3))).all())
    True
    """

    alpha: float | Law = field(default=1.0, metadata=checked_by(check_law))
    _: dataclasses.KW_ONLY
    minmax: tuple[float, float] | None = field(
        default=None, metadata=checked_by(optional(_parameters.bounds))
    )

    @property
    def _rule(self) -> Rule:
        return CutMix(law_of(self.alpha), self.minmax)


@documented
@dataclasses.dataclass(frozen=True, eq=False)
class MixBatch(Transform):
    """Each draw is CutMix with the chance `switch_prob`, else MixUp, as timm mixes.

    Put it after `Batch`, and `RecordSeed` before `Batch`.

    Args:
        mixup_alpha: α > 0 of MixUp, or `gm.Beta(a, b)`.
        cutmix_alpha: α > 0 of CutMix, or `gm.Beta(a, b)`.
        switch_prob: chance in [0, 1] that a draw is CutMix.
        cutmix_minmax: `(lo, hi)`, 0 ≤ lo ≤ hi ≤ 1, as `minmax` of `CutMixBatch`: each side of the
            box is uniform from lo·L to hi·L, wholly inside the image. `cutmix_alpha` is not used
            then.
        SHARED

    Raises:
        TypeError, ValueError: a parameter that cannot be, when the transform is made.
        KeyError, TypeError, ValueError: a batch that does not fit, before anything is computed.

    See `MixUpBatch` and `CutMixBatch` for the two formulas and their papers.

    >>> import numpy as np
    >>> transform = MixBatch(switch_prob=0.5)
    >>> draw = transform.draw(np.arange(1000, dtype=np.uint32), (1000, 32, 32, 3))
    >>> 0.4 < float((draw.box[:, 0, 1] > draw.box[:, 0, 0]).mean()) < 0.6
    True
    """

    mixup_alpha: float | Law = field(default=0.8, metadata=checked_by(check_law))
    cutmix_alpha: float | Law = field(default=1.0, metadata=checked_by(check_law))
    _: dataclasses.KW_ONLY
    switch_prob: float = field(default=0.5, metadata=checked_by(_parameters.chance))
    cutmix_minmax: tuple[float, float] | None = field(
        default=None, metadata=checked_by(optional(_parameters.bounds))
    )

    @property
    def _rule(self) -> Rule:
        cutmix = CutMix(law_of(self.cutmix_alpha), self.cutmix_minmax)
        return Either(MixUp(law_of(self.mixup_alpha)), cutmix, self.switch_prob)


@documented
@dataclasses.dataclass(frozen=True, eq=False)
class MosaicBatch(Transform):
    """Mosaic: four images meet in one point of an image of the same size.

    A record is mixed with the three that follow it in its group of four consecutive records. Its
    own image is in one of the four corners, each with chance 1/4. Each image lies with its inner
    corner at the point where they meet: the near ones show the far part of their image, the far
    ones the near part. Pixels are moved by whole pixels and never resized, so every bit is copied.
    A label's weight is `pixels shown / pixels`, exactly. Boxes and masks move with their image.

    Put it after `Batch`, and `RecordSeed` before `Batch`.

    Args:
        split: `(lo, hi)`, 0 ≤ lo ≤ hi ≤ 1, with hi > 0 and lo < 1. Along an axis of length L the
            images meet at a whole number from lo·L to hi·L, each with the same chance; if there is
            none, at the first above lo·L. At the ends of [0, L] images may show nothing.
        SHARED

    Raises:
        TypeError, ValueError: a parameter that cannot be, when the transform is made.
        KeyError, TypeError, ValueError: a batch that does not fit, before anything is computed.

    As in YOLOv4, cut to the image's size: Bochkovskiy et al., https://arxiv.org/abs/2004.10934

    >>> import numpy as np
    >>> batch = {
    ...     "image": np.arange(4, dtype=np.uint8).repeat(64).reshape(4, 8, 8, 1),
    ...     "label": np.arange(4),
    ...     "mix_seed": np.array([5, 6, 7, 8], np.uint32),
    ... }
    >>> mixed = MosaicBatch(num_classes=4).map(batch)
    >>> shown = [[(image == i).mean() for i in range(4)] for image in mixed["image"]]
    >>> bool((mixed["label"] == np.float32(shown)).all())
    True
    """

    _: dataclasses.KW_ONLY
    split: tuple[float, float] = field(default=(0.25, 0.75), metadata=checked_by(_options.as_split))

    @property
    def _rule(self) -> Rule:
        return Mosaic(self.split)


@documented
@dataclasses.dataclass(frozen=True, eq=False)
class WeightMapMixBatch(Transform):
    """Mixes by a map of weights: `w·x + (1-w)·x_partner` per pixel.

    `gm.maps` has maps to import: FMix, GridMix, patches of a ViT, bands of a spectrogram, ClassMix,
    copy-paste. Any other method that decides for each pixel how much is whose is a function of ten
    lines. The own label's weight is the mean of the map. For `bool` maps that is pixels kept /
    pixels, exactly, up to 2²⁴ pixels. For floats it is the mean to 10⁻⁶.

    Put it after `Batch`, and `RecordSeed` before `Batch`.

    Args:
        weight_map: one of `gm.maps`, or a function `(key, lam, lengths)` of JAX operations, for one
            record. `key` is a JAX key, the record's own. `lam` is λ ~ Beta(α, α), a `float32`
            scalar. `lengths` are the image's lengths along `spatial_axes`, a tuple of ints. It
            returns the weights of the record's own pixels, `bool` or floats in [0, 1], of shape
            `lengths`. Floats are rounded to multiples of 2⁻²⁴. It is compiled once, under JAX's own
            settings: its random numbers come from `key`, and what it reads besides its arguments
            must not change. Define it once, at module level: a new function object is compiled
            anew, and worker processes must be able to import it. An object that is called may have
            attributes: `reads`, in the place of the option, and `uses_lam = False`, after which an
            `alpha` is an error.
        alpha: α > 0 of the λ that the function gets, or `gm.Beta(a, b)`.
        reads: names of fields `[B, ...]` that the function reads. It is then called with `(key,
            lam, lengths, own, partner)`: two dicts with these fields of the record and of its
            partner, numbers or `bool` of at most 32 bits. Any fields but the seeds; those that
            nothing mixes pass through. Under `mode="pair"` and `"batch"` records share key and λ,
            and each reads its own fields.
        SHARED

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
    >>> import numpy as np
    >>> batch = {
    ...     "image": np.arange(2, dtype=np.uint8).repeat(64).reshape(2, 8, 8, 1),
    ...     "label": np.array([0, 1]),
    ...     "mix_seed": np.array([5, 6], np.uint32),
    ... }
    >>> mixed = WeightMapMixBatch(halves, num_classes=2).map(batch)
    >>> bool((mixed["label"][:, 1] == mixed["image"].mean(axis=(1, 2, 3))).all())
    True
    """

    weight_map: _map_functions.WeightMap = field(metadata=checked_by(_map_functions.check_function))
    alpha: float | Law = field(default=1.0, metadata=checked_by(check_law))
    _: dataclasses.KW_ONLY
    reads: tuple[str, ...] = field(default=(), metadata=checked_by(_parameters.as_names))

    @property
    def _rule(self) -> Rule:
        caller, law = type(self).__name__, law_of(self.alpha)
        reads = _map_functions.reads_of(caller, self.weight_map, self.reads)
        if not getattr(self.weight_map, "uses_lam", True) and law != law_of(type(self).alpha):
            got = f"alpha={self.alpha!r} with {self.weight_map!r}, which does not use λ"
            fail(ValueError, caller, got, "no alpha", "leave it out: it would change nothing")
        return ByMap(
            _map_functions.in_image_order(caller, self.weight_map, self.spatial_axes), law, reads
        )
