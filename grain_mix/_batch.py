"""The Grain transforms: check, draw, blend, each once for all three."""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jax.typing import ArrayLike

from grain_mix import _blend, _check, _draw, _place


@dataclasses.dataclass(frozen=True, kw_only=True)
class _MixedBatch(grain.transforms.Map, abc.ABC):
    """What the three transforms share: everything but which parameters are drawn."""

    num_classes: int | None = None
    label_smoothing: float = 0.0
    sparse_labels: bool = False
    prob: float = 1.0
    mode: str = "elem"
    image_key: str | tuple[str, ...] = "image"
    label_key: str | None = "label"
    seed_key: str = "mix_seed"
    sharding: Sharding | None = None

    def __post_init__(self) -> None:
        _check.parameters(self)

    @property
    @abc.abstractmethod
    def _recipe(self) -> _draw.Recipe:
        """What is drawn."""

    def map(self, element: Mapping[str, Any]) -> dict[str, Any]:
        """Mixes a batch; Grain calls this.

        Args:
            element: the fields of a batch, each a NumPy array `[B, ...]`; with a `sharding`, the
                process's own part of the batch.

        Returns:
            A new dict: images and masks mixed, labels soft, the seeds gone, every other field as
            it came. Without a `sharding`, new arrays are read-only views of JAX's memory. With
            one, all are global `jax.Array`s, and their devices may still be at work, reading the
            batch that came in: write to its arrays only when they are done.
        """
        _check.batch(self, element)
        _check.concrete(self, element)
        fields = {key: np.asarray(element[key]) for key in self._keys}
        _check.label_range(self, fields)
        fields[self.seed_key] = self._share(fields[self.seed_key])
        if self.sharding is None:
            mixed = _mix_jitted(self, _place.to_host(fields))
            return self._merge(element, jax.device_get(mixed))
        _check.sharded_batch(self, element, _place.local_mesh(self.sharding).shape[_place.SLICES])
        # Copies, or CPU devices would share the memory that the next batch may be put into.
        others = {key: np.array(element[key]) for key in element if key not in fields}
        placed = _place.to_devices(self.sharding, fields | others)
        inputs = {key: placed.pop(key) for key in fields}
        mixed = _mix_sharded(self, _place.local_mesh(self.sharding), inputs)
        merged = self._merge(element, placed | mixed)
        return {key: _place.to_global(self.sharding, value) for key, value in merged.items()}

    def mix(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The same as a pure function of arrays, for use inside `jit` and `shard_map`.

        Args:
            batch: the fields of a batch, each `[B, ...]`. Labels out of range go unnoticed under
                `jit`, where values are not known, and become zeros. Inside `shard_map` a shard is
                the batch: pairs, and `mode="batch"`, are its own, so keep its size even.

        Returns:
            A new dict with the values that `map` returns, as `jax.Array`s.
        """
        _place.spare_accelerators()
        _check.batch(self, batch)
        _check.label_range(self, batch)
        fields = {key: jnp.asarray(batch[key]) for key in self._keys}
        seeds = fields[self.seed_key]
        split = _place.explicit(seeds)
        if split is None:
            fields[self.seed_key] = self._share(seeds)
            return self._merge(batch, self._mix(fields))
        # Explicit axes leave nothing to the compiler, so each shard is mixed for itself.
        slices = len(seeds) // split.shard_shape(seeds.shape)[0]
        _check.whole_pairs(self, len(seeds), slices)
        if self.mode != "elem":
            everywhere = NamedSharding(split.mesh, PartitionSpec())
            shared = self._share(jax.sharding.reshard(seeds, everywhere))
            fields[self.seed_key] = jax.sharding.reshard(shared, split)
        mix = jax.shard_map(
            self._mix, mesh=split.mesh, in_specs=(split.spec,), out_specs=split.spec
        )
        return self._merge(batch, mix(fields))

    def draw(self, seeds: ArrayLike, image_shape: tuple[int, ...]) -> _draw.Draw:
        """The parameters that a batch with these seeds is mixed with, for plots and debugging.

        Args:
            seeds: `uint32 [B]`, as `RecordSeed` adds them.
            image_shape: the shape of the whole batch's images, B first.
        """
        _place.spare_accelerators()
        _check.draw(self, seeds, image_shape)
        shared = self._share(jax.device_put(seeds))
        drawn: _draw.Draw = _draw_jitted(self, shared, tuple(image_shape))
        return drawn

    def __getstate__(self) -> dict[str, Any]:
        """Refuses to enter a worker process with devices, which cannot follow."""
        _check.worker(self)
        return dict(vars(self))

    @property
    def _image_keys(self) -> tuple[str, ...]:
        return (self.image_key,) if isinstance(self.image_key, str) else self.image_key

    @property
    def _mask_keys(self) -> tuple[str, ...]:
        mask_key = getattr(self, "mask_key", None)
        return () if mask_key is None else (mask_key,)

    @property
    def _keys(self) -> tuple[str, ...]:
        """The fields that are read; all others pass through."""
        label = () if self.label_key is None else (self.label_key,)
        return (*self._image_keys, *self._mask_keys, *label, self.seed_key)

    def _merge(self, batch: Mapping[str, Any], mixed: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in batch.items() if key != self.seed_key} | mixed

    def _share(self, seeds: Any) -> Any:
        """Each record's seed, or that of the record whose draw it shares."""
        index = np.arange(len(seeds))
        sharer = {"elem": None, "pair": index - index % 2, "batch": 0 * index}[self.mode]
        return seeds if sharer is None else seeds[sharer]

    def _draw(self, seeds: jax.Array, image_shape: tuple[int, ...]) -> _draw.Draw:
        lengths = tuple(image_shape[axis] for axis in self._recipe.spatial_axes)
        return _draw.draw(self._recipe, seeds, lengths)

    def _mix(self, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
        image_shape = fields[self._image_keys[0]].shape
        draw = self._draw(fields[self.seed_key], image_shape)
        mixed = {}
        for key in (*self._image_keys, *self._mask_keys):
            x = fields[key]
            axes = _check.axes_of(self._recipe.spatial_axes, image_shape, x.shape)
            mixed[key] = _blend.blend(x, _blend.swap(x), draw.outside, draw.box, axes)
        if self.label_key is None:
            return mixed
        labels = fields[self.label_key]
        if self.sparse_labels:
            labels = labels.astype(jnp.int32)
            mixed[self.label_key] = jnp.stack([labels, _blend.swap(labels)], axis=1)
            mixed[_check.LABEL_WEIGHT] = jnp.stack([draw.lam, 1 - draw.lam], axis=1)
        else:
            soft = _blend.soft_labels(labels, self.num_classes, self.label_smoothing)
            mixed[self.label_key] = _blend.blend(soft, _blend.swap(soft), draw.lam)
        return mixed


# One jitted function for all: the transform is a static argument, compared by value.
_mix_jitted = jax.jit(lambda transform, fields: transform._mix(fields), static_argnums=0)
_draw_jitted = jax.jit(
    lambda transform, seeds, shape: transform._draw(seeds, shape), static_argnums=(0, 2)
)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _mix_sharded(
    transform: _MixedBatch, mesh: Mesh, fields: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    # No pair crosses a device, so each device mixes its own part and none talks to another.
    parts = PartitionSpec(_place.SLICES)
    mix = jax.shard_map(transform._mix, mesh=mesh, in_specs=(parts,), out_specs=parts)
    mixed: dict[str, jax.Array] = mix(fields)
    return mixed


@dataclasses.dataclass(frozen=True)
class MixUpBatch(_MixedBatch):
    """MixUp: `λ·x + (1-λ)·x_partner` for images and labels, with λ ~ Beta(α, α).

    Goes behind `Batch`, with `RecordSeed` before `Batch`. Records 2k and 2k+1 of a batch are each
    other's partners; a last one without neighbour takes the one before it, and a batch of one
    comes back unmixed.

    Args:
        alpha: α > 0. Small: most records hardly mixed; 1: λ uniform; large: λ near 1/2.
        num_classes: K; integer labels `[B]` become one-hot `[B, K]`. `None`: labels are already
            `[B, K]`.
        label_smoothing: ε in [0, 1]: on = 1 - ε + ε/K, off = ε/K, before mixing.
        sparse_labels: the label becomes `int32 [B, 2]`, own and partner's, and a field
            `label_weight` `float32 [B, 2]` is added; for K too large for `[B, K]`.
        prob: chance in [0, 1] that a draw mixes at all.
        mode: `"elem"`: each record has its own draw; `"pair"`: each pair has its first record's;
            `"batch"`: the whole batch has its first record's.
        image_key: name of the image field, or names of several that share a draw. `uint8`,
            `uint16`, `uint32`, `int8`, `int16`, `int32`, `float16`, `bfloat16` or `float32`
            `[B, ...]`; the dtype stays, integers are rounded to nearest.
        label_key: name of the label field; `None`: there is none.
        seed_key: name of the field that `RecordSeed` added; it is consumed.
        sharding: `None`: NumPy in, NumPy out, on the host. A `jax.sharding.Sharding` that splits
            the batch axis only: mixes on the devices and returns global `jax.Array`s with that
            sharding. All processes hold as many slices of the batch, and those that hold the same
            slices have to bring the same records, as in JAX's `make_array_from_process_local_data`.
            It cannot enter a worker process; put it behind `LoaderDataset` then.

    Raises:
        TypeError, ValueError: a parameter that cannot be, on construction.
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


@dataclasses.dataclass(frozen=True)
class CutMixBatch(_MixedBatch):
    """CutMix: a box of each image comes from its partner, and its label weighs by the pixels.

    With λ ~ Beta(α, α) the box has the sides ⌊L·(1-λ)^(1/n)⌋ over n spatial axes of length L
    about a uniform centre, clipped to the image. The own label's weight is pixels kept / pixels,
    after clipping and rounding: exactly, up to 2²⁴ pixels, and beyond to one part in 10⁷.

    Args:
        alpha: α > 0; 1 makes the box's area uniform before clipping.
        minmax: `(lo, hi)`, 0 ≤ lo ≤ hi ≤ 1: instead, each side's fraction is uniform in
            [lo, hi] and the box lies wholly inside; `alpha` is not used then.
        mask_key: name of a label map `[B, ...]` that is cut with the same box, copied exactly.
        spatial_axes: axes of the image that the box spans: `(1, 2)` for `[B, H, W, C]`, `(2, 3)`
            for `[B, C, H, W]`, `(1,)` for audio `[B, T, ...]`, three for video and volumes.

    The remaining fields and the errors are those of `MixUpBatch`. Images may be `bool`, too.

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
    spatial_axes: tuple[int, ...] = (1, 2)

    @property
    def _recipe(self) -> _draw.Recipe:
        return _draw.Recipe(
            prob=self.prob,
            cutmix_alpha=self.alpha,
            minmax=self.minmax,
            spatial_axes=self.spatial_axes,
        )


@dataclasses.dataclass(frozen=True)
class MixBatch(_MixedBatch):
    """Each draw is CutMix with `switch_prob`, else MixUp, as timm mixes.

    Args:
        mixup_alpha: α > 0 of MixUp.
        cutmix_alpha: α > 0 of CutMix.
        switch_prob: chance in [0, 1] that a draw is CutMix.
        cutmix_minmax: `minmax` of `CutMixBatch`.
        spatial_axes: as in `CutMixBatch`.

    The remaining fields and the errors are those of `MixUpBatch`.

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
    spatial_axes: tuple[int, ...] = (1, 2)

    @property
    def _recipe(self) -> _draw.Recipe:
        return _draw.Recipe(
            prob=self.prob,
            mixup_alpha=self.mixup_alpha,
            cutmix_alpha=self.cutmix_alpha,
            switch_prob=self.switch_prob,
            minmax=self.cutmix_minmax,
            spatial_axes=self.spatial_axes,
        )
