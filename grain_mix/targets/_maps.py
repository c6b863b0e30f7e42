"""Kinds that have a value for each position, and so are mixed where the image is."""

import dataclasses
from dataclasses import field
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from grain_mix._axes import as_axes, axes_in
from grain_mix._blend import Weights, blend
from grain_mix._draw import Draw
from grain_mix._dtypes import check_pixels
from grain_mix._errors import explains_mistakes, fail
from grain_mix._parameters import checked_by
from grain_mix.targets._target import Sources, Space, Target, values


class _OfPositions(Target):
    """What both kinds share: the axes of the box in their field."""

    axes: tuple[int, ...] | None

    def is_copied(self, space: Space) -> bool:
        """Where boxes or tiles are cut, and nothing else."""
        return space.cuts and not space.blends

    def axes_like_image(self, key: str, ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the box."""
        return axes_in(ndim, axes) if self.axes is None else self.axes


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class ValueMap(_OfPositions):
    """Numbers for each position: depth, heat maps, labels for each frame.

    In: `[B, ...]` of an image's dtype. Out: the same, mixed exactly as the image is: blended by
    MixUp, cut by CutMix, weighed by a weight map.

    Args:
        axes: its axes that the box spans, in the order of the image's. `None`: the image's axes, or
            1 to n in a field of n + 1 axes. The image's lengths along them, where there is a box or
            a map.

    >>> import grain_mix as gm
    >>> transform = gm.CutMixBatch(targets={"label": gm.OneHot(10), "depth": gm.ValueMap()})
    """

    axes: tuple[int, ...] | None = field(default=None, metadata=checked_by(as_axes))

    def check(self, name: str, array: Any, space: Space) -> None:
        """An image's dtype, and the image's lengths."""
        if not isinstance(array, np.ndarray):
            check_pixels("ValueMap", name, array, space.averages)
            space.axes_of("ValueMap", name, array, self.axes)

    def mix_batch(self, sources: Sources, draw: Draw, space: Space) -> Any:
        """As the image, which is one of these."""
        axes = space.axes_of("ValueMap", "", sources[0][""].array, self.axes)
        shares = draw.outside_box() if space.blends else None
        weights = Weights(shares, draw.box, draw.weights, draw.tiles, draw.shift)
        return blend([source[""] for source in sources], weights, axes)


@explains_mistakes
@dataclasses.dataclass(frozen=True)
class LabelMap(_OfPositions):
    """Class ids for each position, which are never averaged: segmentation.

    In: `[B, ...]` of an image's dtype, or `bool`. Out, from `CutMixBatch` and `bool` weight maps:
    `[B, ...]`, cut as the image is. Out, from `MixUpBatch` and `MixBatch`: `[B, 2, ...]`, own (cut)
    and partner's, and `<name>_weight` `float32 [B, 2]`: (1, 0) for a box, (λ, 1-λ) for a blend. For
    each position the weighted maps are what the image shows.

    Args:
        axes: its axes that the box spans, as in `ValueMap`.

    >>> import grain_mix as gm
    >>> batch = {
    ...     "image": np.zeros((2, 8, 8, 3), np.uint8),
    ...     "map": np.arange(2, dtype=np.uint8).repeat(64).reshape(2, 8, 8),
    ...     "mix_seed": np.array([1, 2], np.uint32),
    ... }
    >>> {k: v.shape for k, v in gm.MixBatch(targets={"map": gm.LabelMap()}).map(batch).items()}
    {'image': (2, 8, 8, 3), 'map': (2, 2, 8, 8), 'map_weight': (2, 2)}
    >>> gm.CutMixBatch(targets={"map": gm.LabelMap()}).map(batch)["map"].shape
    (2, 8, 8)
    """

    axes: tuple[int, ...] | None = field(default=None, metadata=checked_by(as_axes))
    adds: ClassVar[tuple[str, ...]] = ("_weight",)

    def check(self, name: str, array: Any, space: Space) -> None:
        """An image's dtype, and the image's lengths."""
        if isinstance(array, np.ndarray):
            return
        check_pixels("LabelMap", name, array, averaged=False)
        space.axes_of("LabelMap", name, array, self.axes)
        if space.map is not None and space.map != np.bool_:
            got = f"{name!r} with a weight_map that returns {space.map}"
            fix = "return bool, or use MixUpBatch, which keeps both maps with their weights"
            fail(TypeError, "LabelMap", got, "bool, since class ids have no mean", fix)

    def mix_batch(self, sources: Sources, draw: Draw, space: Space) -> Any:
        """Cut as the image is; where it may be blended, those of all sources."""
        axes = space.axes_of("LabelMap", "", sources[0][""].array, self.axes)
        weights = Weights(None, draw.box, draw.weights, draw.tiles, draw.shift)
        cut = blend([source[""] for source in sources], weights, axes)
        if not space.blends:
            return cut
        return {"": jnp.stack([cut, *values(sources)[1:]], axis=1), "_weight": draw.outside_box()}
