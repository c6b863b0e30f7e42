"""What all kinds of targets have in common, those of the package and those of users."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from grain_mix._calls import jax_defaults
from grain_mix._draw import Draw
from grain_mix._dtypes import check_copied, check_narrow, narrow_dtype


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
    """

    axes: tuple[int, ...]
    lengths: tuple[int, ...]
    blends: bool
    cuts: bool
    map: np.dtype[Any] | None = None

    @property
    def parts_pixels(self) -> bool:
        """Whether pixels of one image may have different weights."""
        return self.cuts or self.map is not None


class Target:
    """What a field says about the image: the base class of all kinds, and of your own.

    A kind of your own is a subclass, decorated as `@dataclasses.dataclass(frozen=True)`, with a
    method `mix` for one record. The package runs it for all records of a batch (by `jax.vmap`),
    compiled, under JAX's own settings: on the host, in workers, on devices and inside `jit`.

    Attributes:
        adds: the endings that it may add to the field's name, such as `("_weight",)`.
        reads: names of further fields that it mixes, counted from the batch's root. Where there are
            any, `own`, `partner` and the result are dicts: the field itself under `""`, the
            others under their names.
        positions: whether it needs the axes of space, which then must be known.

    >>> import dataclasses
    >>> import grain_mix as gm
    >>> import jax.numpy as jnp
    >>> @dataclasses.dataclass(frozen=True)
    ... class Loudest(gm.Target):
    ...     "A number of which the larger one counts."
    ...     def mix(self, own, partner, draw, space):
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

    def mix(self, own: Any, partner: Any, draw: Draw, space: Space) -> Any:
        """Mixes the field of one record with its partner's.

        Args:
            own: the record's value `[...]`, without the batch axis. With `reads`, a dict.
            partner: the partner's, of the same shape and dtype.
            draw: the record's `Draw`: `lam` is a scalar, `box` `[n, 2]`.
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
            where = type(self).__name__
            for other, value in fields.items():
                if isinstance(value, np.ndarray):
                    check_narrow(where, other or name, value, always=True)
                else:
                    check_copied(where, other or name, value)
        self.check(name, fields[""], space)

    def mix_batch(self, own: Any, partner: Any, draw: Draw, space: Space) -> Any:
        """Mixes the fields of all records, `[B, ...]`, with those of their partners."""

        def one(own: Any, partner: Any, draw: Draw) -> Any:
            with jax_defaults():
                own, partner = jax.tree.map(_narrow, (own, partner))
                return jax.tree.map(jnp.asarray, self.mix(own, partner, draw, space))

        return jax.vmap(one)(own, partner, draw)


def _narrow(x: jax.Array) -> jax.Array:
    """What `mix` gets with x64 too: JAX's own settings know 32 bits."""
    dtype = narrow_dtype(x.dtype)
    return x if x.dtype == dtype else x.astype(dtype)
