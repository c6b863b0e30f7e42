"""What all kinds of targets have in common, those of the package and those of users."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix._axes import axes_in, front_axes
from grain_mix._draw import Draw
from grain_mix._dtypes import check_copied, check_narrow, narrowed
from grain_mix._errors import describe, fail
from grain_mix._guards import jax_defaults
from grain_mix._parameters import check_all
from grain_mix._sources import Source


@dataclasses.dataclass(frozen=True)
class Space:
    """What a kind may know of the first image, and of what is done to it.

    Attributes:
        axes: the axes of the box or the map in the image `[B, ...]`, counted from the front; `()`
            where nothing needs them.
        lengths: how long the image is along these axes.
        blends: whether the class of the transform can blend by one weight, as MixUp does.
        cuts: whether it can cut a box.
        map: the dtype of its weight map, `bool` or a float; `None` if there is none.
        sources: k, how many sources a record has.
    """

    axes: tuple[int, ...]
    lengths: tuple[int, ...]
    blends: bool
    cuts: bool
    map: np.dtype[Any] | None = None
    sources: int = 2

    @property
    def has_pixel_weights(self) -> bool:
        """Whether pixels of one image may have different weights."""
        return self.cuts or self.map is not None

    @property
    def averages(self) -> bool:
        """Whether a pixel may be a mean of two."""
        return self.blends or (self.map is not None and self.map != np.bool_)

    def axes_of(
        self, caller: str, name: str, array: Any, axes: tuple[int, ...] | None, fix: str = ""
    ) -> tuple[int, ...]:
        """The axes of the box in a field `[B, ...]`, which must be as long as the image there.

        Args:
            caller: the kind or the transform, for errors.
            name: the field's.
            array: the field, or its shape and dtype.
            axes: as the user said them. `None`: the image's own, or 1 to n in a field of n+1 axes,
                such as a label map `[B, H, W]` beside an image `[B, C, H, W]`.
            fix: what to do where lengths differ.
        """
        if not self.has_pixel_weights:
            return ()
        ndim = len(array.shape)
        if axes is None:
            axes = axes_in(ndim, self.axes)
        elif len(axes) != len(self.axes):
            got = f"axes={axes} for {name!r}, beside an image with spatial_axes={self.axes}"
            expected = f"{len(self.axes)} axes, in the image's order"
            fail(ValueError, caller, got, expected, "name them")
        if max(axes) < ndim:
            axes = front_axes(caller, "axes", axes, name, array.shape)
        if tuple(array.shape[axis] if axis < ndim else None for axis in axes) != self.lengths:
            got = f"{name!r} is {describe(array)}, with the box along its axes {axes}"
            expected = f"the image's lengths there, {list(self.lengths)}"
            default = "resize it to match, since both are cut alike, or say its axes, "
            fail(ValueError, caller, got, expected, fix or f"{default}gm.{caller}(axes=...)")
        return axes


Sources = Sequence[Mapping[str, Source]]  # for each source the field, and what the kind reads


class Target:
    """What a field says about the image: the base class of all kinds, and of your own.

    A kind of your own is a subclass, decorated as `@dataclasses.dataclass(frozen=True)`, with a
    method `mix` for one record. The package runs it for all records of a batch (by `jax.vmap`),
    compiled, under JAX's own settings: on the host, in workers, on devices and inside `jit`.

    Attributes:
        adds: the endings that it may add to the field's name, such as `("_weight",)`.
        reads: names of further fields that it mixes, counted from the batch's root. Where there are
            any, the sources and the result are dicts: the field itself under `""`, the
            others under their names.
        positions: whether it needs the axes of space, which then must be known.

    >>> import dataclasses
    >>> import grain_mix as gm
    >>> import jax.numpy as jnp
    >>> @dataclasses.dataclass(frozen=True)
    ... class Loudest(gm.Target):
    ...     "A number of which the larger one counts."
    ...     def mix(self, sources, draw, space):
    ...         own, partner = sources
    ...         return jnp.where(draw.lam == 1, own, jnp.maximum(own, partner))
    >>> batch = {
    ...     "image": np.zeros((2, 16000), np.float32),
    ...     "decibel": np.array([40, 60], np.float32),
    ...     "mix_seed": np.array([1, 2], np.uint32),
    ... }
    >>> gm.MixUpBatch(targets={"decibel": Loudest()}).map(batch)["decibel"].tolist()
    [60.0, 60.0]
    """

    adds: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ()
    positions: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_all(self)

    def mix(self, sources: Any, draw: Draw, space: Space) -> Any:
        """Mixes the field of one record with those of its other sources.

        Args:
            sources: a tuple of the k sources' values `[...]`, without the batch axis, the record's
                own first: `own, partner = sources` for pairs. With `reads`, of dicts.
            draw: the record's `Draw`: `shares` is `[k]`, `box` `[n, 2]`.
            space: the axes of the box in the first image, and its lengths there.

        Returns:
            The new value. Or a dict from ending to value, where `""` is the field itself, and
            `"_weight"` adds `<name>_weight`. With `reads`, a dict that has the others too.
        """
        raise NotImplementedError

    def check(self, name: str, array: Any, space: Space) -> None:
        """Checks the field, the record's own and the partner's; it raises.

        Args:
            name: the field's.
            array: the batch's field, `[B, ...]`. First it has a shape and a dtype alone; then, for
                each batch whose values are known, it is a NumPy array.
            space: as `mix` gets it.
        """

    def check_fields(self, name: str, fields: dict[str, Any], space: Space) -> None:
        """Checks the field and those that it `reads`; a user's kind gets what JAX holds."""
        if type(self).mix is not Target.mix:
            caller = type(self).__name__
            for other, value in fields.items():
                if isinstance(value, np.ndarray):
                    check_narrow(caller, other or name, value, always=True)
                else:
                    check_copied(caller, other or name, value)
        self.check(name, fields[""], space)

    def is_copied(self, space: Space) -> bool:
        """Whether each value of the mixed field is that of one source: `copied` then gives it."""
        return False

    def axes_like_image(self, key: str, ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
        """The axes along which a field of `ndim` axes must be as long as the image along `axes`.

        `key` is `""` for the field itself, else the name of what is read.
        """
        return ()

    def mix_batch(self, sources: Sources, draw: Draw, space: Space) -> Any:
        """Mixes the fields of all records: for each source a dict, the field itself under `""`."""

        def one(fields: Any, draw: Draw) -> Any:
            with jax_defaults():
                fields = jax.tree.map(narrowed, fields)
                return jax.tree.map(jnp.asarray, self.mix(fields, draw, space))

        fields = tuple({name: x.value for name, x in source.items()} for source in sources)
        return jax.vmap(one)(fields if self.reads else tuple(x[""] for x in fields), draw)


def values(sources: Sources) -> list[jax.Array]:
    """The field itself, of each source."""
    return [source[""].value for source in sources]
